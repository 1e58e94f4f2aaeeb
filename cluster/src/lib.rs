//! Membership, bus, jobs and cache as plain async handles, each with an embedded twin.

pub mod bus;
pub mod cache;
pub mod health;
pub mod jobs;
pub mod membership;
