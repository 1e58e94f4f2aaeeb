//! `grpc-timeout`, read as the protocol writes it. tonic writes it, and keeps it for itself when it reads it.

use std::time::Duration;

use http::HeaderMap;
use http::header::HeaderName;

/// The header.
pub const HEADER: HeaderName = HeaderName::from_static("grpc-timeout");

/// What a request brings, if that can be read.
pub fn of(headers: &HeaderMap) -> Option<Duration> {
    headers.get(&HEADER).and_then(|value| parse(value.to_str().ok()?))
}

/// `TimeoutValue TimeoutUnit` of the gRPC over HTTP/2 protocol.
pub fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(value * 3600),
        'M' => Duration::from_secs(value * 60),
        'S' => Duration::from_secs(value),
        'm' => Duration::from_millis(value),
        'u' => Duration::from_micros(value),
        'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "m", "5", "-1S", "123456789S", "5x", "5é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
