//! A user's own module.

use std::path::Path;

use sensorium_actors::engine::{Batch, Engine, Error, Loader, Model};
use sensorium_actors::manifest::Manifest;
use sensorium_actors::tensor::{DataType, Tensor};
use sensorium_worker::{Options, TchLoader};
use tch::{CModule, Kind};

use crate::support::{Calm, call};

/// Saves a module `(x, y) -> x * 2 + y` of f32 `[n, 3]`. Tracing can save no more than one output.
fn save(path: &Path) {
    let ones = || tch::Tensor::ones([1, 3], (Kind::Float, tch::Device::Cpu));
    let inputs = [ones(), ones()];
    let mut body = |x: &[tch::Tensor]| vec![&x[0] * 2.0 + &x[1]];
    CModule::create_by_tracing("Twice", "forward", &inputs, &mut body).unwrap().save(path).unwrap();
}

fn manifest(outputs: &str) -> Manifest {
    let text = format!(
        r#"
        name = "twice"
        modality = "text"
        engine = "torchscript"
        pipeline = "tensor"
        inputs = [
            {{ name = "x", datatype = "FP32", shape = [-1, 3] }},
            {{ name = "y", datatype = "FP32", shape = [-1, 3] }},
        ]
        outputs = [{outputs}]
        replicas = {{ device = "cpu" }}
        "#
    );
    Manifest::parse(&text, Path::new("model.toml")).unwrap()
}

const OUTPUTS: &str = r#"
    { name = "twice", datatype = "FP16", shape = [-1, 3] },
"#;

fn load(outputs: &str, directory: &Path) -> Result<Box<dyn Engine>, Error> {
    match TchLoader::new(Options::default()).load(&manifest(outputs), directory)? {
        Model::Forward(engine) => Ok(engine),
        Model::Decode(_) => panic!("a module answers in one call"),
    }
}

fn inputs() -> Vec<Tensor> {
    let x = Tensor::from_f32(vec![2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    vec![x, Tensor::from_f32(vec![2, 3], &[0.5; 6]).unwrap()]
}

#[test]
fn a_module_answers_in_the_declared_datatypes() {
    let folder = tempfile::tempdir().unwrap();
    save(&folder.path().join("model.pt"));
    let mut engine = load(OUTPUTS, folder.path()).unwrap();
    let outputs = call(engine.as_mut(), inputs()).tensors;
    assert_eq!((outputs[0].dtype(), outputs[0].shape()), (DataType::Fp16, [2, 3].as_slice()));
    let twice: Vec<f32> =
        outputs[0].data().chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
    assert_eq!(twice, [2.5, 4.5, 6.5, 8.5, 10.5, 12.5]);
}

#[test]
fn what_does_not_fit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let says = |result: Result<Box<dyn Engine>, Error>, expected: &str| match result {
        Err(error) => assert!(error.to_string().contains(expected), "{error}"),
        Ok(_) => panic!("expected an error with '{expected}'"),
    };
    says(load(OUTPUTS, folder.path()), "model.pt is missing");
    std::fs::write(folder.path().join("model.pt"), b"nonsense").unwrap();
    says(load(OUTPUTS, folder.path()), "model.pt");
    save(&folder.path().join("model.pt"));
    let text = OUTPUTS.replace("FP16", "BYTES");
    says(load(&text, folder.path()), "'twice' is BYTES");

    let fails = |outputs: &str, tensors: Vec<Tensor>| {
        load(outputs, folder.path()).unwrap().forward(Batch { tensors, rows: 2 }, &Calm).unwrap_err()
    };
    let error = fails(&OUTPUTS.replace("[-1, 3]", "[-1, 4]"), inputs());
    assert!(error.to_string().contains("'twice' with shape [2, 3], but model.toml declares [-1, 4]"), "{error}");
    let error = fails(&OUTPUTS.repeat(2), inputs());
    assert!(error.to_string().contains("returned 1 tensors, but model.toml declares 2"), "{error}");
    let mut wrong = inputs();
    wrong[1] = Tensor::from_f32(vec![2, 2], &[0.0; 4]).unwrap();
    let error = fails(OUTPUTS, wrong);
    assert!(matches!(&error, Error::Input(message) if message.contains("y is FP32 [2, 2]")), "{error}");
}
