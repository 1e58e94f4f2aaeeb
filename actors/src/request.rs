//! A request on its way, and its answer.

mod parameters;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use std::time::Duration;

use futures::Stream;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

pub use self::parameters::{CAME, Parameter, Parameters, TRUNCATED};
use crate::error::{Error, Result};
use crate::tensor::{DataType, Tensor};

/// A tensor and its public name.
#[derive(Clone, Debug)]
pub struct NamedTensor {
    /// As in `model.toml`.
    pub name: String,
    /// The value.
    pub tensor: Tensor,
}

/// One inference.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which model.
    pub model: Arc<str>,
    /// Which version; `None` leaves it to the router.
    pub version: Option<u64>,
    /// The inputs that were given, in any order.
    pub inputs: Vec<NamedTensor>,
    /// What else was said.
    pub parameters: Parameters,
    /// Which outputs are wanted; empty: all.
    pub outputs: Vec<String>,
    /// A generation goes on from here: what a worker told before it was lost.
    pub resume: Option<Resume>,
    /// Only these files of the version may answer, since what they answer is to be kept; `None`: any.
    pub namespace: Option<Arc<str>>,
}

/// What has been told of a generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// Tokens that were generated.
    pub tokens: Vec<u32>,
    /// Bytes of text that were sent.
    pub sent: usize,
}

impl Resume {
    /// Takes note of a part.
    pub fn note(&mut self, reply: &Reply) {
        self.tokens.extend(&reply.tokens);
        let texts = reply.outputs.iter().filter(|output| output.tensor.dtype() == DataType::Bytes);
        // a part is one element: its length, and the text
        self.sent += texts.map(|output| output.tensor.data().len().saturating_sub(4)).sum::<usize>();
    }

    /// Whether nothing has been told.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty() && self.sent == 0
    }
}

impl Request {
    /// A request with one BYTES input of one element.
    pub fn of_bytes(model: &str, input: &str, content: impl AsRef<[u8]>) -> Self {
        Self {
            model: model.into(),
            version: None,
            inputs: vec![NamedTensor { name: input.to_owned(), tensor: Tensor::from_elements(&[content]) }],
            parameters: Parameters::default(),
            outputs: Vec::new(),
            resume: None,
            namespace: None,
        }
    }

    /// How big it is, for estimates of its time: kilobytes of input, at least one.
    #[allow(clippy::cast_precision_loss)]
    pub fn size(&self) -> f64 {
        let bytes: usize = self.inputs.iter().map(|input| input.tensor.data().len()).sum();
        (bytes as f64 / 1024.0).max(1.0)
    }

    /// The input of this name.
    pub fn input(&self, name: &str) -> Option<&Tensor> {
        self.inputs.iter().find(|input| input.name == name).map(|input| &input.tensor)
    }

    /// Whether the output of this name is to be made.
    pub fn wants(&self, output: &str) -> bool {
        self.outputs.is_empty() || self.outputs.iter().any(|name| name == output)
    }
}

/// An answer, or a part of one.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Which model answered.
    pub model: Arc<str>,
    /// Which version answered.
    pub version: u64,
    /// The outputs that were asked for.
    pub outputs: Vec<NamedTensor>,
    /// What else is to be said: `truncated`, `finish_reason`, token counts.
    pub parameters: Parameters,
    /// No further part follows.
    pub last: bool,
    /// Tokens that were generated since the part before. Not for clients: with them a generation goes on elsewhere.
    pub tokens: Vec<u32>,
}

impl Reply {
    /// Bytes of its outputs.
    pub fn bytes(&self) -> usize {
        self.outputs.iter().map(|output| output.tensor.data().len()).sum()
    }

    /// The output of this name; an internal error if the model did not give it.
    pub fn output(&self, name: &str) -> Result<&Tensor> {
        self.outputs
            .iter()
            .find(|output| output.name == name)
            .map(|output| &output.tensor)
            .ok_or_else(|| Error::Internal(format!("{} gave no output '{name}'", self.model)))
    }

    /// The numbers of an FP32 output, all of them finite.
    ///
    /// # Errors
    /// `Internal` if the model did not give it, or gave NaN or infinity: with those nothing can be compared, averaged or
    /// kept.
    pub fn numbers(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.output(name)?.to_f32().map_err(|error| Error::Internal(error.to_string()))?;
        match values.iter().find(|value| !value.is_finite()) {
            None => Ok(values),
            Some(value) => {
                let message = format!("{} gave {value} in its output '{name}', expected finite numbers", self.model);
                Err(Error::Internal(message))
            }
        }
    }
}

/// An answer in parts. It is bounded by construction: a generation has no more parts than `max_tokens`.
pub type ReplyStream = Pin<Box<dyn Stream<Item = Result<Reply>> + Send>>;

/// What travels with a request besides its content.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// When nobody waits any more.
    pub deadline: Option<Instant>,
    /// 1 is the highest; 0 takes the model's default.
    pub priority: u32,
    /// How long it may wait in a queue; `None` takes the model's default.
    pub queue_timeout: Option<Duration>,
    /// The request's trace, continued in the worker and its batch.
    pub span: Option<tracing::Span>,
    /// Time that the answer may take, where that is less than the deadline leaves: a branch's share.
    pub budget: Option<Duration>,
    /// On whose behalf; nothing is shared between tenants.
    pub tenant: Arc<str>,
    /// Models that it may ask; nothing: all.
    pub models: Option<Arc<[String]>>,
    /// It has time: a guard that is away is an error to wait for, rather than a text that is blocked.
    pub patient: bool,
}

impl Context {
    /// Whether the deadline has passed.
    pub fn expired(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Whether the model may be asked.
    ///
    /// # Errors
    /// `PermissionDenied` if not.
    pub fn permits(&self, model: &str) -> Result<()> {
        match &self.models {
            Some(models) if !models.iter().any(|allowed| allowed == model) => {
                let message =
                    format!("the caller may not ask model '{model}', only {}", crate::error::names(models.iter()));
                Err(Error::PermissionDenied(message))
            }
            _ => Ok(()),
        }
    }

    /// Waits for `future`, but not past the deadline.
    pub fn bound<'s, F>(&self, stage: &'s str, future: F) -> Bound<'s, F> {
        let late = self.deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        Bound { future, late, stage }
    }
}

pin_project! {
    /// See [`Context::bound`]. A future as large as the other one: requests are futures within futures, which are moved.
    #[must_use = "futures do nothing unless polled"]
    pub struct Bound<'s, F> {
        #[pin]
        future: F,
        late: Option<Pin<Box<Sleep>>>,
        stage: &'s str,
    }
}

impl<T, F: Future<Output = Result<T>>> Future for Bound<'_, F> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Result<T>> {
        let this = self.project();
        if let Poll::Ready(answer) = this.future.poll(context) {
            return Poll::Ready(answer);
        }
        match this.late {
            Some(late) => {
                ready!(late.as_mut().poll(context));
                Poll::Ready(Err(Error::DeadlineExceeded { stage: (*this.stage).to_owned() }))
            }
            None => Poll::Pending,
        }
    }
}
