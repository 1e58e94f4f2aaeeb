//! Requests that were refused for who made them: all are counted, few are logged, as anybody may cause them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sensorium_actors::error::Error;
use sensorium_plane::operator::peer;
use tonic::Extensions;

use super::Caller;

/// One refusal in this time is logged.
const COMPLAIN: Duration = Duration::from_secs(1);

/// When one was logged, and how many were not since then.
static LAST: Mutex<Option<Instant>> = Mutex::new(None);
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// It brought neither a key nor a token.
    NoCredentials,
    /// The key is in no file.
    UnknownKey,
    /// The token is none that can be used.
    BadToken,
    /// The caller is known, and has not the role.
    Role,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::NoCredentials => "no_credentials",
            Self::UnknownKey => "unknown_key",
            Self::BadToken => "bad_token",
            Self::Role => "role",
        }
    }
}

/// Notes a refusal; `caller` is known where only the role is missing. Keys and tokens are never told.
pub(super) fn note(extensions: &Extensions, caller: Option<&Caller>, reason: Reason, error: &Error) {
    metrics::counter!("sensorium_auth_refused_total", "reason" => reason.as_str()).increment(1);
    {
        let mut last = LAST.lock();
        if last.is_some_and(|last| last.elapsed() < COMPLAIN) {
            LEFT_OUT.fetch_add(1, Relaxed);
            return;
        }
        *last = Some(Instant::now());
    }
    let (by, tenant) = caller.map_or(("", ""), |caller| (&*caller.name, &*caller.tenant));
    let (peer, others) = (peer(extensions), LEFT_OUT.swap(0, Relaxed));
    tracing::warn!(reason = reason.as_str(), by, tenant, peer, %error, others, "request refused");
}
