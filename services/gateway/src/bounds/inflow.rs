//! A request's body as it comes: messages are counted, and inflated where they are compressed. One that stops half way
//! is not waited for for ever.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::FutureExt;
use http_body::Frame;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

use super::inflate::Encoding;
use super::{Bounds, Charge};
use sensorium_actors::error::Error;
use sensorium_plane::status;

/// A message's flag and length.
const HEADER: usize = 5;
/// More compressed bytes than this are not inflated where others wait for their turn.
const INLINE: usize = 4 << 10;
/// Messages of more bytes than this are kept until they are whole: tonic sets aside what a header asks for as soon as it
/// sees it, whether or not the rest ever comes.
const KEPT: usize = 64 << 10;

type Inflated = Result<Bytes, String>;

pub(super) struct Inflow {
    body: Body,
    encoding: Option<Encoding>,
    bounds: Bounds,
    /// Of the message that is coming; the handler of the request holds it, too.
    charge: Arc<Mutex<Charge>>,
    /// The message's header, as far as it has come.
    header: [u8; HEADER],
    header_bytes: usize,
    /// Bytes of the message that are still to come.
    left: usize,
    /// Pieces for tonic…
    ready: VecDeque<Bytes>,
    /// …and those of a large message that is not whole.
    kept: Vec<Bytes>,
    /// A message that is to be inflated, as far as it has come.
    compressed: BytesMut,
    /// Bytes after it.
    rest: Bytes,
    inflating: Option<JoinHandle<Inflated>>,
    /// Runs while a message has begun and nothing more of it comes.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Inflow {
    pub(super) fn new(body: Body, encoding: Option<Encoding>, bounds: Bounds, charge: Arc<Mutex<Charge>>) -> Self {
        Self {
            body,
            encoding,
            bounds,
            charge,
            header: [0; HEADER],
            header_bytes: 0,
            left: 0,
            ready: VecDeque::new(),
            kept: Vec::new(),
            compressed: BytesMut::new(),
            rest: Bytes::new(),
            inflating: None,
            stalled: None,
        }
    }

    /// Whether a message has begun and is not at its end.
    fn is_within(&self) -> bool {
        self.header_bytes > 0
    }

    fn charge(&self, bytes: usize) -> Result<(), Status> {
        self.charge.lock().become_of(bytes).map_err(|error| status::from_error(&error))
    }

    /// Takes what it can of a message's header; true when that is whole.
    fn read_header(&mut self, data: &mut Bytes) -> bool {
        let count = (HEADER - self.header_bytes).min(data.len());
        data.copy_to_slice(&mut self.header[self.header_bytes..self.header_bytes + count]);
        self.header_bytes += count;
        self.header_bytes == HEADER
    }

    fn length(&self) -> usize {
        let [_, length @ ..] = self.header;
        usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX)
    }

    /// Counts what passes. Lengths that are too large are tonic's to refuse, which reads the same header.
    fn count(&mut self, data: Bytes) -> Result<(), Status> {
        let mut left = data.clone();
        let mut from = 0;
        while !left.is_empty() {
            if self.header_bytes < HEADER {
                if !self.read_header(&mut left) {
                    break;
                }
                self.left = self.length();
                // what came before is its handler's
                self.charge(0)?;
            }
            let count = self.left.min(left.len());
            left.advance(count);
            self.left -= count;
            let before = self.charge.lock().bytes();
            self.charge(before + count)?;
            if self.left == 0 {
                self.header_bytes = 0;
                let to = data.len() - left.len();
                self.ready.extend(self.kept.drain(..));
                self.ready.push_back(data.slice(from..to));
                from = to;
            }
        }
        let rest = data.slice(from..);
        let is_large = self.header_bytes == HEADER && (KEPT..=self.bounds.message_bytes).contains(&self.length());
        if is_large {
            self.kept.push(rest);
        } else if !rest.is_empty() {
            self.ready.push_back(rest);
        }
        Ok(())
    }

    /// Gathers a message that may be compressed; gives it when it is whole.
    fn gather(&mut self, encoding: Encoding) -> Result<Option<Bytes>, Status> {
        if self.header_bytes < HEADER {
            let mut rest = std::mem::take(&mut self.rest);
            let whole = self.read_header(&mut rest);
            self.rest = rest;
            if !whole {
                return Ok(None);
            }
            let (length, limit) = (self.length(), self.bounds.message_bytes);
            if length > limit {
                return Err(status::invalid("message", format!("{length} bytes, the limit is {limit}")));
            }
            self.left = length;
            self.charge(0)?;
        }
        let piece = self.rest.split_to(self.left.min(self.rest.len()));
        self.left -= piece.len();
        self.compressed.put_slice(&piece);
        self.charge(self.compressed.len())?;
        if self.left > 0 {
            return Ok(None);
        }
        self.header_bytes = 0;
        let message = std::mem::take(&mut self.compressed).freeze();
        match self.header[0] {
            0 => Ok(Some(framed(&message))),
            1 if message.len() <= INLINE => self.told(encoding.inflate(&message, self.bounds.message_bytes)).map(Some),
            1 => {
                let limit = self.bounds.message_bytes;
                self.inflating = Some(tokio::task::spawn_blocking(move || encoding.inflate(&message, limit)));
                Ok(None)
            }
            flag => Err(status::invalid("message", format!("compression flag {flag}, expected 0 or 1"))),
        }
    }

    /// A message that was inflated, or why it was not.
    fn told(&self, inflated: Inflated) -> Result<Bytes, Status> {
        let message = inflated.map_err(|error| status::invalid("message", error))?;
        self.charge(message.len())?;
        Ok(framed(&message))
    }

    fn poll_inflated(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        let Some(inflating) = &mut self.inflating else { return Poll::Ready(None) };
        let done = ready!(inflating.poll_unpin(context));
        self.inflating = None;
        let inflated = done.map_err(|error| status::from_error(&Error::Internal(format!("inflating: {error}"))));
        Poll::Ready(Some(inflated.and_then(|inflated| self.told(inflated))))
    }

    fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        let stall = self.bounds.stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        ready!(stalled.as_mut().poll(context));
        metrics::counter!("sensorium_stalled_total", "direction" => "request").increment(1);
        let stage = format!("receiving the message, of which nothing came for {} s", stall.as_secs());
        Poll::Ready(status::from_error(&Error::DeadlineExceeded { stage }))
    }
}

/// A message that is not compressed, with its header.
fn framed(message: &Bytes) -> Bytes {
    let mut framed = BytesMut::with_capacity(HEADER + message.len());
    framed.put_u8(0);
    // below the limit of a message, which is below 4 GiB
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

impl http_body::Body for Inflow {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if let Some(data) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if let Some(inflated) = ready!(this.poll_inflated(context)) {
                return Poll::Ready(Some(inflated.map(Frame::data)));
            }
            if let Some(encoding) = this.encoding.filter(|_| !this.rest.is_empty()) {
                match this.gather(encoding) {
                    Ok(Some(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
                    Ok(None) => continue,
                    Err(status) => return Poll::Ready(Some(Err(status))),
                }
            }
            let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
                if this.is_within() {
                    let status = ready!(this.poll_stalled(context));
                    return Poll::Ready(Some(Err(status)));
                }
                return Poll::Pending;
            };
            this.stalled = None;
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) if this.encoding.is_some() => this.rest = data,
                Some(Ok(Ok(data))) => {
                    if let Err(status) = this.count(data) {
                        return Poll::Ready(Some(Err(status)));
                    }
                }
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None if this.is_within() => {
                    return Poll::Ready(Some(Err(status::invalid("message", "ends before it is whole"))));
                }
                None => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inflating.is_none()
            && self.ready.is_empty()
            && self.rest.is_empty()
            && !self.is_within()
            && self.body.is_end_stream()
    }
}
