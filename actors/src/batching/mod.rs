//! Rows of concurrent requests become one call of the device.

pub mod batcher;
pub mod collate;
pub mod entry;
pub mod queue;
