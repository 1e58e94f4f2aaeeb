//! What tests and the baseline loop share: the model repository, recordings, and a pulse that never stops.

pub mod speech;

use std::path::PathBuf;

use sensorium_actors::engine::{Batch, Decoder, Engine, Interrupted, Loader, Model, Outputs, Pulse};
use sensorium_actors::manifest::{Dtype, Manifest};
use sensorium_actors::tensor::Tensor;
use sensorium_worker::{Options, TchLoader};

/// Somebody always waits.
pub struct Calm;

impl Pulse for Calm {
    fn beat(&self) -> Result<(), Interrupted> {
        Ok(())
    }
}

/// `SENSORIUM_REPOSITORY`, or where the set-up script puts the models.
pub fn repository() -> PathBuf {
    let path = std::env::var_os("SENSORIUM_REPOSITORY").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/sensorium/models"),
        PathBuf::from,
    );
    assert!(
        path.is_dir(),
        "no model repository at {}: build it with the set-up script, or set SENSORIUM_REPOSITORY",
        path.display()
    );
    path
}

/// The manifest of a model of the repository, and the folder of its version 1.
pub fn manifest(model: &str) -> (Manifest, PathBuf) {
    let folder = repository().join(model);
    let manifest = Manifest::read(&folder.join("model.toml")).expect("the manifest is valid");
    (manifest, folder.join("1"))
}

/// The model as its manifest says after `change`, on the CPU.
pub fn load(model: &str, change: impl FnOnce(&mut Manifest)) -> Model {
    let (mut manifest, directory) = manifest(model);
    manifest.replicas.device = "cpu".to_owned();
    change(&mut manifest);
    TchLoader::new(Options::default()).load(&manifest, &directory).expect("the model loads")
}

/// A model that answers in one call, as its manifest says or in one numeric type and no other.
pub fn engine(model: &str, dtype: Option<Dtype>) -> Box<dyn Engine> {
    engine_with(model, |manifest| {
        if let Some(dtype) = dtype {
            manifest.dtype = dtype;
            manifest.generation.int8_max_sequences = 0;
        }
    })
}

/// A model that answers in one call.
pub fn engine_with(model: &str, change: impl FnOnce(&mut Manifest)) -> Box<dyn Engine> {
    match load(model, change) {
        Model::Forward(engine) => engine,
        Model::Decode(_) => panic!("{model} decodes token by token"),
    }
}

/// A model that answers token by token.
pub fn decoder(model: &str, change: impl FnOnce(&mut Manifest)) -> Box<dyn Decoder> {
    match load(model, change) {
        Model::Decode(decoder) => decoder,
        Model::Forward(_) => panic!("{model} answers in one call"),
    }
}

/// One call with these tensors.
pub fn call(engine: &mut dyn Engine, tensors: Vec<Tensor>) -> Outputs {
    let rows = tensors[0].rows();
    engine.forward(Batch { tensors, rows }, &Calm).expect("the batch is answered")
}

/// A reference file of the repository's `tests/reference`.
pub fn reference<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = PathBuf::from(format!("../../tests/reference/{name}.json"));
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("the reference is valid")
}

/// Cosine of the angle between two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
