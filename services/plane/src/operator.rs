//! Who did what: operators' acts are logged and counted, also those that were refused or given up.

use std::sync::Arc;

use sensorium_actors::error::names;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Code, Extensions, Request, Status};

/// Somebody who has shown a key or a token. Whoever checks it leaves this among the request's extensions.
#[derive(Clone, Debug)]
pub struct Operator {
    /// For people: `API key 'ci'`.
    pub name: Arc<str>,
    /// On whose behalf.
    pub tenant: Arc<str>,
}

impl Operator {
    /// Whose request it is; nobody's where the listener asks for no credentials.
    pub fn of(extensions: &Extensions) -> Self {
        let nobody = || Self { name: "nobody in particular".into(), tenant: Arc::default() };
        extensions.get().cloned().unwrap_or_else(nobody)
    }
}

/// Where a request comes from, as `address:port`.
pub fn peer(extensions: &Extensions) -> String {
    let address = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
    address.map_or_else(|| "unknown".to_owned(), |address| address.to_string())
}

/// An act that goes on; it is logged and counted when it ends, and as cancelled if nobody waits for that.
pub struct Act {
    act: &'static str,
    target: String,
    by: Operator,
    peer: String,
    code: Code,
}

impl Act {
    /// An act begins: what is done, such as `load`, and to what.
    pub fn begin<T>(request: &Request<T>, act: &'static str, target: &str) -> Self {
        let extensions = request.extensions();
        // it is logged, and may be anything
        let target = names([target]);
        Self { act, target, by: Operator::of(extensions), peer: peer(extensions), code: Code::Cancelled }
    }

    /// It has ended so.
    pub fn end<T>(mut self, outcome: Result<T, Status>) -> Result<T, Status> {
        self.code = outcome.as_ref().map_or_else(Status::code, |_| Code::Ok);
        outcome
    }
}

impl Drop for Act {
    fn drop(&mut self) {
        let Self { act, target, by, peer, code } = self;
        let code = label(*code);
        tracing::info!(act, on = target, by = &*by.name, tenant = &*by.tenant, peer, code, "an operator acted");
        metrics::counter!("sensorium_operator_acts_total", "act" => *act, "code" => code).increment(1);
    }
}

/// A code as in the labels of other metrics.
fn label(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::Unauthenticated => "unauthenticated",
        _ => "other",
    }
}
