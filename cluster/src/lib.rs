//! Membership, bus and cache as plain async handles, each with an embedded twin.

pub mod bus;
pub mod cache;
pub mod membership;
