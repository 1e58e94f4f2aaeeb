//! The way of an image into the text space: ConSE, the convex combination of the label embeddings (Norouzi et al.,
//! "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014).

use crate::error::{Error, Result};
use crate::pipeline::top;
use crate::request::{Context, NamedTensor, Parameters, Request};
use crate::route::Router;
use crate::tensor::Tensor;

/// Labels that take part, as in the paper's best results.
const COMBINED: usize = 10;
/// Labels that are embedded in one request: others find their place between two.
const TOGETHER: usize = 64;

/// The embeddings of all class labels.
pub struct LabelSpace {
    labels: Vec<String>,
    embeddings: Vec<f32>,
    width: usize,
}

impl LabelSpace {
    /// Embeds the labels with the sentence encoder.
    pub async fn embed(router: &Router, encoder: &str, labels: Vec<String>) -> Result<Self> {
        if labels.is_empty() {
            return Err(Error::FailedPrecondition {
                reason: "NO_LABELS",
                message: "the image model has no labels to project its images with".to_owned(),
            });
        }
        let sentences: Vec<String> = labels.iter().map(|label| format!("a photo of {}", first_name(label))).collect();
        let (mut embeddings, mut width) = (Vec::new(), 0);
        for sentences in sentences.chunks(TOGETHER) {
            let request = Request {
                model: encoder.into(),
                version: None,
                inputs: vec![NamedTensor { name: "text".to_owned(), tensor: Tensor::from_elements(sentences) }],
                parameters: Parameters::default(),
                outputs: Vec::new(),
                resume: None,
                namespace: None,
            };
            let reply = router.infer_within(&request, &Context::default()).await?;
            let tensor = reply.output("embedding")?;
            width = tensor.shape().get(1).and_then(|&width| usize::try_from(width).ok()).unwrap_or(0);
            embeddings.extend(reply.numbers("embedding")?);
        }
        Ok(Self { labels, embeddings, width })
    }

    /// The most probable labels.
    pub fn labels<'a>(&'a self, probabilities: &[f32], count: usize) -> Vec<(&'a str, f32)> {
        let ranked = top(probabilities, count).into_iter();
        ranked.filter_map(|(class, probability)| Some((self.labels.get(class)?.as_str(), probability))).collect()
    }

    /// FP32 `[width]` of length 1 for FP32 `[classes]` probabilities.
    pub fn project(&self, probabilities: &[f32]) -> Vec<f32> {
        let mut sum = vec![0.0f32; self.width];
        for (class, probability) in top(probabilities, COMBINED) {
            if let Some(embedding) = self.embeddings.get(class * self.width..(class + 1) * self.width) {
                sum.iter_mut().zip(embedding).for_each(|(s, e)| *s += probability * e);
            }
        }
        let length = sum.iter().map(|value| value * value).sum::<f32>().sqrt().max(1e-12);
        sum.iter_mut().for_each(|value| *value /= length);
        sum
    }
}

/// ImageNet gives synonyms, separated by commas.
pub fn first_name(label: &str) -> &str {
    label.split(',').next().unwrap_or(label).trim()
}
