//! `efficientnet-lite` and `open-nsfw`.

use sensorium_actors::engine::Engine;
use sensorium_actors::manifest::Dtype;
use sensorium_actors::tensor::Tensor;

use crate::support::{call, cosine, engine};

const SIDE: usize = 224;

/// A picture without a file: smooth colours and an edge, different for each `seed`.
fn picture(seed: usize, scale: f32) -> Vec<f32> {
    let at = |c: usize, y: usize, x: usize| {
        let wave = ((x + 3 * y * (seed + 1)) as f32 / 40.0 + c as f32).sin();
        let edge = if (x / 56 + y / 56 + seed).is_multiple_of(2) { 0.6 } else { -0.4 };
        scale * (0.5 * wave + edge)
    };
    (0..3).flat_map(|c| (0..SIDE).flat_map(move |y| (0..SIDE).map(move |x| at(c, y, x)))).collect()
}

fn run(engine: &mut dyn Engine, pictures: &[Vec<f32>]) -> Vec<Vec<Vec<f32>>> {
    let shape = vec![pictures.len() as i64, 3, SIDE as i64, SIDE as i64];
    let outputs = call(engine, vec![Tensor::from_f32(shape, &pictures.concat()).unwrap()]);
    let split = |tensor: &Tensor| {
        let values = tensor.to_f32().unwrap();
        values.chunks_exact(values.len() / pictures.len()).map(<[f32]>::to_vec).collect()
    };
    outputs.tensors.iter().map(split).collect()
}

fn best(values: &[f32]) -> usize {
    values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0
}

#[test]
fn probabilities_are_probabilities_and_bf16_agrees() {
    for (model, scale, at) in [("efficientnet-lite0", 1.0, 1), ("open-nsfw", 100.0, 0)] {
        let pictures: Vec<Vec<f32>> = (0..3).map(|seed| picture(seed, scale)).collect();
        let wide = run(engine(model, Some(Dtype::F32)).as_mut(), &pictures);
        let narrow = run(engine(model, Some(Dtype::Bf16)).as_mut(), &pictures);
        for (wide, narrow) in wide[at].iter().zip(&narrow[at]) {
            assert!((wide.iter().sum::<f32>() - 1.0).abs() < 1e-4);
            assert_eq!(best(wide), best(narrow), "{model}");
            let worst = wide.iter().zip(narrow).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 0.06, "{model}: bf16 is off by {worst}");
        }
        for (wide, narrow) in wide[0].iter().zip(&narrow[0]) {
            assert!(cosine(wide, narrow) > 0.99, "{model}: {}", cosine(wide, narrow));
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    for (model, scale) in [("efficientnet-lite0", 1.0), ("open-nsfw", 100.0)] {
        let mut engine = engine(model, Some(Dtype::F32));
        let pictures: Vec<Vec<f32>> = (0..3).map(|seed| picture(seed, scale)).collect();
        let together = run(engine.as_mut(), &pictures);
        for (row, picture) in pictures.iter().enumerate() {
            let alone = run(engine.as_mut(), std::slice::from_ref(picture));
            for (output, alone) in alone.iter().enumerate() {
                let worst = alone[0].iter().zip(&together[output][row]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-4, "{model}: output {output} is off by {worst}");
            }
        }
    }
}
