//! The HTTP side, in the few words that it takes.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// GET: status and body.
pub async fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let malformed = || std::io::Error::other(format!("no HTTP answer: {answer}"));
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(malformed)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    Ok((status, body.to_owned()))
}
