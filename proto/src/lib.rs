//! Wire contracts and the code generated from them.

pub mod codec;
mod weigh;

/// Open Inference Protocol v2, package `inference`.
pub mod inference {
    tonic::include_proto!("inference");
}

/// Understanding, embedding and generation, package `sensorium.v1`.
pub mod v1 {
    tonic::include_proto!("sensorium.v1");
}

/// For operators, package `sensorium.admin.v1`.
pub mod admin {
    tonic::include_proto!("sensorium.admin.v1");
}

mod sensorium {
    pub(crate) mod worker {
        /// From gateway to worker, package `sensorium.worker.v1`, in the place where its references to `inference`
        /// expect it.
        pub mod v1 {
            tonic::include_proto!("sensorium.worker.v1");
        }
    }
}

pub use sensorium::worker::v1 as worker;

/// All descriptors, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
