//! What the loader says about folders and manifests that do not fit.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use sensorium_actors::engine::{Error, Loader};
use sensorium_actors::manifest::Manifest;
use sensorium_worker::{Options, TchLoader};

use crate::support::manifest;

/// An MLP 2 → 1 whose weight has this shape, as f16.
fn write(directory: &Path, weight: &[usize], bias: bool) {
    std::fs::write(
        directory.join("config.json"),
        r#"{"sizes": [2, 1], "hidden_activation": "relu", "output_activation": "identity"}"#,
    )
    .unwrap();
    let bytes = vec![0; weight.iter().product::<usize>() * 2];
    let mut tensors = HashMap::new();
    tensors.insert("layers.0.weight", TensorView::new(Dtype::F16, weight.to_vec(), &bytes).unwrap());
    if bias {
        tensors.insert("layers.0.bias", TensorView::new(Dtype::F16, vec![1], &bytes[..2]).unwrap());
    }
    serialize_to_file(&tensors, None, &directory.join("model.safetensors")).unwrap();
}

fn load(manifest: &Manifest, directory: &Path) -> Result<(), Error> {
    TchLoader::new(Options::default()).load(manifest, directory).map(|_| ())
}

fn refused(manifest: &Manifest, directory: &Path) -> String {
    match load(manifest, directory) {
        Err(Error::Load(message)) => message,
        other => panic!("expected a load error, got {other:?}"),
    }
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let (manifest, _) = manifest("prompt-guard");
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[1, 2], true);
    load(&manifest, folder.path()).unwrap();

    write(folder.path(), &[2, 2], true);
    assert_eq!(refused(&manifest, folder.path()), "tensor 'layers.0.weight' has shape [2, 2], expected [1, 2]");
    write(folder.path(), &[1, 2], false);
    assert!(refused(&manifest, folder.path()).contains("no tensor 'layers.0.bias' (expected with shape [1])"));

    std::fs::write(folder.path().join("model.safetensors"), b"not safetensors at all").unwrap();
    assert!(refused(&manifest, folder.path()).contains("is it safetensors?"));
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert!(refused(&manifest, folder.path()).contains("model.safetensors"));
}

#[test]
fn a_device_that_is_absent_is_named() {
    let (mut manifest, directory) = manifest("prompt-guard");
    manifest.replicas.device = "cuda:7".to_owned();
    let message = refused(&manifest, &directory);
    assert!(message.contains("cuda:7") && message.contains("CUDA devices"), "{message}");
}

#[test]
fn an_unknown_architecture_is_answered_with_the_known() {
    let (mut manifest, directory) = manifest("prompt-guard");
    manifest.architecture = "perceptron".to_owned();
    assert!(refused(&manifest, &directory).contains("expected one of bert, llama"));
}

#[test]
fn every_model_of_the_pack_loads_and_weighs_something() {
    for model in ["minilm", "efficientnet-lite0", "open-nsfw", "whisper-tiny-en", "silero-vad", "prompt-guard"] {
        assert!(crate::support::engine(model, None).memory_bytes() > 100_000, "{model}");
    }
}
