//! HTTP/2 by hand, for what no client library would send.

use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW: u16 = 4;
/// The largest frame that everybody takes.
const FRAME: usize = 16 << 10;

/// A frame that came.
#[derive(Debug)]
pub struct Came {
    /// Its type.
    kind: u8,
    flags: u8,
    /// Its stream.
    pub stream: u32,
    /// What is in it.
    pub payload: Bytes,
}

impl Came {
    /// Whether it is the last of its stream.
    pub fn ends(&self) -> bool {
        self.is_reset() || (matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0)
    }

    /// Whether it resets its stream.
    pub fn is_reset(&self) -> bool {
        self.kind == RST_STREAM
    }

    /// Whether it ends the connection.
    pub fn is_goaway(&self) -> bool {
        self.kind == GOAWAY
    }

    /// Whether it holds a part of a message.
    pub fn is_data(&self) -> bool {
        self.kind == DATA
    }
}

/// One connection.
pub struct Frames {
    stream: TcpStream,
    authority: String,
}

impl Frames {
    /// Connects; the server may send `window` bytes on each stream before it is given more.
    pub async fn open(address: SocketAddr, window: u32) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        let mut frames = Self { stream, authority: address.to_string() };
        let mut hello = BytesMut::from(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]);
        let mut settings = BytesMut::new();
        settings.put_u16(INITIAL_WINDOW);
        settings.put_u32(window);
        put(&mut hello, SETTINGS, 0, 0, &settings);
        frames.write(&hello).await;
        // until then the windows are those of the protocol, and small
        let mut met = [false; 2];
        while met != [true; 2] {
            let came = frames.read().await.expect("the server's settings");
            met[usize::from(came.kind == WINDOW_UPDATE)] = true;
        }
        frames
    }

    /// The frames of a call with one message.
    pub fn call(&self, stream: u32, path: &str, message: &[u8]) -> Bytes {
        let mut frames = BytesMut::from(&self.head(stream, path, &[])[..]);
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len()).expect("below 4 GiB"));
        framed.put_slice(message);
        let mut left = framed.freeze();
        while left.len() > FRAME {
            put(&mut frames, DATA, 0, stream, &left.split_to(FRAME));
        }
        put(&mut frames, DATA, END_STREAM, stream, &left);
        frames.freeze()
    }

    /// The first frame of a call, without its message.
    pub fn head(&self, stream: u32, path: &str, more: &[(&str, &str)]) -> Bytes {
        let known = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", &self.authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        let mut block = BytesMut::new();
        for (name, value) in known.iter().chain(more) {
            // a literal that is not kept, with a name of its own (RFC 7541, 6.2.2)
            block.put_u8(0);
            for text in [name, value] {
                length(&mut block, text.len());
                block.put_slice(text.as_bytes());
            }
        }
        let mut frame = BytesMut::new();
        put(&mut frame, HEADERS, END_HEADERS, stream, &block);
        frame.freeze()
    }

    /// A part of a call's message, by its raw bytes.
    pub fn data(stream: u32, data: &[u8]) -> Bytes {
        let mut frame = BytesMut::new();
        put(&mut frame, DATA, 0, stream, data);
        frame.freeze()
    }

    /// Cancels a call.
    pub fn reset(stream: u32) -> Bytes {
        let mut frame = BytesMut::new();
        put(&mut frame, RST_STREAM, 0, stream, &8u32.to_be_bytes());
        frame.freeze()
    }

    /// Lets the server send so many more bytes on a stream.
    pub fn window(stream: u32, more: u32) -> Bytes {
        let mut frame = BytesMut::new();
        put(&mut frame, WINDOW_UPDATE, 0, stream, &more.to_be_bytes());
        frame.freeze()
    }

    /// Sends bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) {
        // a server that has closed the connection is noticed by whoever reads
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next frame; nothing if the connection has ended. Settings and pings are answered.
    async fn read(&mut self) -> Option<Came> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let mut head = &head[..];
        let length = usize::try_from(head.get_uint(3)).expect("24 bits");
        let (kind, flags, stream) = (head.get_u8(), head.get_u8(), head.get_u32());
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await.ok()?;
        if matches!(kind, SETTINGS | PING) && flags & ACK == 0 {
            let mut answer = BytesMut::new();
            put(&mut answer, kind, ACK, 0, if kind == PING { &payload } else { &[] });
            self.write(&answer).await;
        }
        Some(Came { kind, flags, stream, payload: payload.into() })
    }

    /// The next frame that is not about the connection alone; nothing if the connection has ended.
    pub async fn next(&mut self) -> Option<Came> {
        loop {
            let came = self.read().await?;
            if !matches!(came.kind, SETTINGS | PING | WINDOW_UPDATE) {
                return Some(came);
            }
        }
    }

    /// Waits for the end of a call; true if it was answered with a message.
    pub async fn is_answered(&mut self, stream: u32) -> bool {
        let mut message = false;
        while let Some(came) = self.next().await {
            if came.stream == stream {
                message |= came.is_data() && !came.payload.is_empty();
                if came.ends() {
                    return message && !came.is_reset();
                }
            }
        }
        false
    }
}

fn put(into: &mut BytesMut, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    into.put_uint(payload.len() as u64, 3);
    into.put_u8(kind);
    into.put_u8(flags);
    into.put_u32(stream);
    into.put_slice(payload);
}

/// A length with a prefix of seven bits (RFC 7541, 5.1).
fn length(into: &mut BytesMut, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else {
        return into.put_u8(u8::try_from(length).expect("seven bits"));
    };
    into.put_u8(127);
    while rest >= 128 {
        into.put_u8(u8::try_from(rest % 128 + 128).expect("eight bits"));
        rest /= 128;
    }
    into.put_u8(u8::try_from(rest).expect("seven bits"));
}
