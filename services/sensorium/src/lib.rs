//! The sensorium binary.
