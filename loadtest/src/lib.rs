//! Load generator and benchmarks through the public door.
//!
//! Knows the server by its wire contracts alone, as any client does: what it measures is what a caller gets.
//! [`closed`] keeps a fixed number of requests in flight, [`open`] keeps a rate; [`work`] says what is asked,
//! [`echo`] is what the fastest possible server would do.

pub mod bench;
pub mod closed;
pub mod cluster;
pub mod echo;
pub mod error;
pub mod open;
pub mod process;
pub mod record;
pub mod server;
pub mod work;

pub use error::{Error, Result};
