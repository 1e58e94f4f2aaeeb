//! Compiles the contracts with protox, so that no `protoc` has to be installed.
use std::path::PathBuf;

use prost::Message;

const FILES: [&str; 5] = [
    "inference/grpc_service.proto",
    "sensorium/v1/sensorium.proto",
    "sensorium/v1/jobs.proto",
    "sensorium/admin/v1/admin.proto",
    "sensorium/worker/v1/worker.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut names = prost_build::Config::new();
    // by which the codec finds what it knows of a message
    names.enable_type_names();
    // tensors and media stay slices of the receive buffer
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::BoundedCodec")
        .compile_fds_with_config(descriptors, names)?;
    Ok(())
}
