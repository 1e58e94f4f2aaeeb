//! The architectures: each loads a Hugging Face style `config.json` and safetensors, so that any checkpoint of its
//! family drops in.

pub(crate) mod bert;
pub(crate) mod efficientnet_lite;
pub(crate) mod llama;
pub(crate) mod mlp;
pub(crate) mod open_nsfw;
pub(crate) mod silero_vad;
pub(crate) mod whisper;
