//! `identity` and `chaos`.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use sensorium_actors::engine::{Batch, Engine, Error, Interrupted, Loader, Model, Pulse};
use sensorium_actors::manifest::Manifest;
use sensorium_actors::tensor::Tensor;
use sensorium_worker::{Options, TchLoader};

use crate::support::{Calm, call};

fn engine(architecture: &str) -> Box<dyn Engine> {
    let text = format!(
        r#"
        name = "{architecture}"
        modality = "text"
        engine = "builtin"
        architecture = "{architecture}"
        pipeline = "tensor"
        inputs = [{{ name = "INPUT0", datatype = "FP32", shape = [-1, -1] }}]
        outputs = [{{ name = "OUTPUT0", datatype = "FP32", shape = [-1, -1] }}]
        "#
    );
    let manifest = Manifest::parse(&text, Path::new("model.toml")).unwrap();
    match TchLoader::new(Options::default()).load(&manifest, Path::new("/nowhere")).unwrap() {
        Model::Forward(engine) => engine,
        Model::Decode(_) => panic!("a built-in answers in one call"),
    }
}

fn rows(values: &[f32]) -> Tensor {
    Tensor::from_f32(vec![values.len() as i64 / 2, 2], values).unwrap()
}

#[test]
fn identity_shares_its_input() {
    let mut engine = engine("identity");
    assert!(!engine.occupies_device());
    let input = rows(&[1.0, 2.0]);
    let output = call(engine.as_mut(), vec![input.clone()]).tensors.remove(0);
    assert_eq!(output, input);
    assert_eq!(output.data().as_ptr(), input.data().as_ptr(), "no copy");
}

#[test]
fn chaos_does_as_told() {
    let mut engine = engine("chaos");
    let mut order = |value: f32, pulse: &dyn Pulse| {
        // the first value of the second row; the others are harmless
        let tensors = vec![rows(&[1.0, f32::NAN, value, f32::NAN])];
        engine.forward(Batch { tensors, rows: 2 }, pulse)
    };
    assert!(order(3.0, &Calm).is_ok());
    assert!(matches!(order(f32::NEG_INFINITY, &Calm), Err(Error::Device(_))));
    assert!(catch_unwind(AssertUnwindSafe(|| order(f32::NAN, &Calm))).is_err());

    let start = Instant::now();
    assert!(order(-60.0, &Calm).is_ok());
    assert!(start.elapsed() >= Duration::from_millis(60));
}

#[test]
fn a_slow_call_beats_and_can_be_interrupted() {
    struct Third(Cell<usize>);
    impl Pulse for Third {
        fn beat(&self) -> Result<(), Interrupted> {
            self.0.set(self.0.get() + 1);
            if self.0.get() == 3 { Err(Interrupted) } else { Ok(()) }
        }
    }
    let start = Instant::now();
    let batch = Batch { tensors: vec![rows(&[-60_000.0, 0.0])], rows: 1 };
    let result = engine("chaos").forward(batch, &Third(Cell::new(0)));
    assert!(matches!(result, Err(Error::Interrupted)));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_hang_never_returns() {
    let (done, returned) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let batch = Batch { tensors: vec![rows(&[f32::INFINITY, 0.0])], rows: 1 };
        let _ = engine("chaos").forward(batch, &Calm);
        done.send(())
    });
    assert!(returned.recv_timeout(Duration::from_millis(200)).is_err());
}
