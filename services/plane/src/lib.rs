//! The request plane: both ends of `sensorium.worker.v1`, and a worker as the gateway sees it, here or elsewhere.
//!
//! Gateway and worker talk gRPC and nothing else. A [`Member`] is a worker; [`LocalMember`] is the one of this process,
//! [`RemoteMember`] is behind connections; [`Fleet`] is all of them. What the gateway does with a member it need not know which it is.

// the modules themselves are private: `pub` in them means "for the rest of this crate"
#![allow(unreachable_pub)]

mod admin;
mod connection;
mod convert;
pub mod deadline;
pub mod deal;
mod error;
mod fleet;
pub mod inbound;
mod line;
mod local;
mod member;
pub mod operator;
mod overriding;
mod remote;
mod service;
mod statistics;
pub mod status;
pub mod tls;
mod trace;

pub use admin::{AdminService, Cluster};
pub use convert::version as parse_version;
pub use fleet::{Fleet, Make};
pub use local::LocalMember;
pub use member::{Description, Member};
pub use remote::{Dial, RemoteMember};
pub use service::{WorkerService, serve};
pub use trace::{extract as extract_trace, inject as inject_trace, resume as resume_trace, text as trace_text};
