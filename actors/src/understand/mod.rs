//! Understanding: text, image and audio in one shared space, and an answer from what they say.
//!
//! Any deployment may bring a pair of encoders with a common space. The default pack has none, so the text space of
//! the sentence encoder is the shared one: images come to it by ConSE ([`space`]), audio by its transcript. Branches
//! run in parallel, each within its budget; one that fails or is late is left out, with its reason, and the answer is
//! marked `degraded`: answering without a sense at the deadline beats failing.

pub mod answer;
pub mod branch;
pub mod budget;
pub mod ensemble;
pub mod evidence;
pub mod fusion;
pub mod guard;
mod input;
pub mod report;
pub mod space;

use std::sync::Arc;
use std::time::Duration;

use async_stream::{stream, try_stream};
use dashmap::DashMap;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use sensorium_cluster::membership::Policy;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;

pub use self::input::Input;
pub(crate) use self::input::check;
use self::report::{Answer, Branch, Report, State, Timing};
use self::space::LabelSpace;
use crate::admission::Permit;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, Modality};
use crate::request::Context;
use crate::route::Router;

/// Which models understand, and how strictly.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Sentence encoder: the shared space.
    pub text: String,
    /// Image classifier whose labels are projected into the shared space.
    pub image: String,
    /// Speech recogniser whose transcript is projected into the shared space.
    pub audio: String,
    /// Writes the answer.
    pub generator: String,
    /// Judges images; empty: none.
    pub image_guard: String,
    /// Judges texts and transcripts; empty: none.
    pub text_guard: String,
    /// Score from which the image guard acts.
    pub image_guard_threshold: f32,
    /// Score from which the text guard acts.
    pub text_guard_threshold: f32,
    /// Whether an image over the threshold is contained or only annotated.
    pub image_guard_blocks: bool,
    /// Whether a text over the threshold is contained or only annotated. The guard of the default pack is known for
    /// false positives.
    pub text_guard_blocks: bool,
    /// Share of the time left that branches may use; the rest is for the answer.
    pub branch_budget: f64,
    /// Cosines from which a pair agrees, and below which it conflicts.
    pub thresholds: fusion::Thresholds,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            text: "minilm".to_owned(),
            image: "efficientnet-lite0".to_owned(),
            audio: "whisper-base".to_owned(),
            generator: "smollm2-135m".to_owned(),
            image_guard: "open-nsfw".to_owned(),
            text_guard: "prompt-guard".to_owned(),
            image_guard_threshold: 0.8,
            text_guard_threshold: 0.9,
            image_guard_blocks: false,
            text_guard_blocks: false,
            branch_budget: 0.7,
            thresholds: fusion::Thresholds::default(),
        }
    }
}

/// What happens while understanding.
#[derive(Clone, Debug)]
pub enum Event {
    /// A branch has finished, or was left out.
    Branch(Branch),
    /// All branches are in.
    Fusion(fusion::Fusion),
    /// A piece of the answer.
    Delta(String),
    /// Everything once more; the last event.
    Done(Box<Report>),
}

/// Asks for the class names of an image model.
pub type Labels = Arc<dyn Fn(String) -> BoxFuture<'static, Result<Vec<String>>> + Send + Sync>;

/// A label space, and the versions that it was made with: their weights and labels are one unit with it.
type Made = (String, Arc<LabelSpace>);

/// A cheap handle.
#[derive(Clone)]
pub struct Understanding {
    router: Router,
    options: Arc<Options>,
    labels: Labels,
    space: Arc<Mutex<Option<Made>>>,
    manifest: Arc<Manifest>,
    /// What holders of models have told, for when they are gone.
    policies: Arc<DashMap<String, Policy>>,
    /// Guards that could not judge, and when that was said.
    away: Arc<DashMap<String, Option<Instant>>>,
}

impl Understanding {
    /// `labels` gives the class names of the image model.
    pub fn new(router: Router, options: Options, labels: Labels) -> Result<Self> {
        let manifest = Arc::new(ensemble::manifest()?);
        Ok(Self {
            router,
            options: Arc::new(options),
            labels,
            space: Arc::default(),
            manifest,
            policies: Arc::default(),
            away: Arc::default(),
        })
    }

    /// Which models understand.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The label space of the versions that are served, made on first use. Whoever gives up waiting for it does not undo
    /// what has been made so far.
    ///
    /// # Errors
    /// If a model is not held, or does not answer.
    pub async fn space(&self) -> Result<Arc<LabelSpace>> {
        let (text, image) = (&self.options.text, &self.options.image);
        let versions =
            format!("{} {}", self.router.held(text, None)?.namespace, self.router.held(image, None)?.namespace);
        let mut made = self.space.clone().lock_owned().await;
        if let Some((of, space)) = &*made
            && *of == versions
        {
            return Ok(space.clone());
        }
        let this = self.clone();
        let making = tokio::spawn(async move {
            let labels = (this.labels)(this.options.image.clone()).await?;
            let space = Arc::new(LabelSpace::embed(&this.router, &this.options.text, labels).await?);
            *made = Some((versions, space.clone()));
            Ok(space)
        });
        making.await.map_err(|error| Error::Internal(format!("the label space: {error}")))?
    }

    /// Makes the label space ahead of the images that need it: when there is somebody to make it with, and again when
    /// versions change; and remembers by which models others are replaced while their holders can tell. Never returns.
    pub async fn keep_ready(self) {
        let mut turns = tokio::time::interval(Duration::from_secs(1));
        loop {
            turns.tick().await;
            for modality in Modality::ALL {
                self.policy(self.model(modality));
            }
            if let Err(error) = self.space().await {
                tracing::debug!(%error, "images have no place in the shared space yet");
            }
        }
    }

    /// The permit at the door, for those who ask for parts of an understanding.
    ///
    /// # Errors
    /// As the door's.
    pub fn enter(&self, context: &Context) -> Result<Permit> {
        self.router.admission().enter(context)
    }

    /// Looks, listens, reads, and answers. Events come as they happen.
    pub fn run(&self, input: Input, context: Context) -> Result<impl Stream<Item = Result<Event>> + Send + use<>> {
        let permit = self.router.admission().enter(&context)?;
        let events = self.run_within(input, context)?;
        Ok(events.map(move |event| {
            let _until_the_last = &permit;
            event
        }))
    }

    /// The same within a request that has been admitted already.
    pub fn run_within(
        &self,
        input: Input,
        context: Context,
    ) -> Result<impl Stream<Item = Result<Event>> + Send + use<>> {
        let present = input.modalities();
        if present.is_empty() {
            return Err(Error::invalid("parts", "empty, expected text, image or audio"));
        }
        input.check()?;
        let this = self.clone();
        Ok(try_stream! {
            let started = Instant::now();
            let mut timings = Vec::new();
            let budget = this.branch_deadline(&input, &context);
            let mut branches = Vec::new();
            {
                let mut running: FuturesUnordered<_> =
                    present.iter().map(|&modality| this.branch(modality, &input, &context, budget)).collect();
                while let Some(branch) = running.next().await {
                    let branch = branch?;
                    timings.push(Timing { stage: branch.modality.to_string(), seconds: branch.seconds });
                    yield Event::Branch(branch.clone());
                    branches.push(branch);
                }
            }
            timings.push(Timing::since("branches", started));
            let mut conclusion = std::pin::pin!(this.conclude(&input, branches, &context, (started, timings)));
            while let Some(event) = conclusion.next().await {
                if let Event::Done(report) = &event
                    && let Some(mistake) = report.answer.mistake(&input.question)
                {
                    Err(mistake)?;
                }
                yield event;
            }
        })
    }

    /// What the senses say together, and the answer. `before` is when the understanding began, and how long its stages
    /// took so far.
    pub fn conclude<'a>(
        &'a self,
        input: &'a Input,
        mut branches: Vec<Branch>,
        context: &'a Context,
        (started, mut timings): (Instant, Vec<Timing>),
    ) -> impl Stream<Item = Event> + Send + 'a {
        stream! {
            branches.sort_by_key(|branch| branch.modality);
            let weights = |modality| input.emphasis(modality).weight;
            let fusion = fusion::fuse(&branches, weights, &self.options.thresholds);
            yield Event::Fusion(fusion.clone());

            let mut answer = Answer::of(&branches);
            if !input.no_answer {
                let writing = Instant::now();
                let mut pieces = std::pin::pin!(self.answer(input, &branches, context));
                while let Some(piece) = pieces.next().await {
                    match piece {
                        Ok(answer::Piece::Evidence(used)) => answer.evidence = used,
                        Ok(answer::Piece::Text(text)) => {
                            answer.text.push_str(&text);
                            yield Event::Delta(text);
                        }
                        Ok(answer::Piece::End(end)) => answer.end(end),
                        // the senses have spoken: without an answer in words this is still one
                        Err(error) => {
                            answer.reason = error.to_string();
                            answer.error = Some(error);
                        }
                    }
                }
                timings.push(Timing::since("answer", writing));
            }
            timings.push(Timing::since("total", started));
            // late, failed, or answered by a smaller model
            let missing = branches.iter().any(|branch| match branch.state {
                State::Late | State::Failed => true,
                State::Ok => !branch.reason.is_empty(),
                _ => false,
            });
            let degraded = missing || !answer.reason.is_empty();
            yield Event::Done(Box::new(Report { branches, fusion, answer, degraded, timings }));
        }
    }

    /// When a branch is left out.
    fn branch_deadline(&self, input: &Input, context: &Context) -> Option<Instant> {
        let left = context.deadline?.saturating_duration_since(Instant::now());
        let share = if input.no_answer { 0.95 } else { self.options.branch_budget };
        Some(Instant::now() + left.mul_f64(share.clamp(0.05, 1.0)))
    }
}

/// Time that passed since `started`.
fn seconds(started: Instant) -> f64 {
    Duration::as_secs_f64(&started.elapsed())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use futures::FutureExt;
    use sensorium_cluster::bus::Bus;
    use sensorium_cluster::membership::{Held, Lease, Membership, Registration, Role};

    use super::*;
    use crate::admission::{self, Admission};
    use crate::request::{NamedTensor, Parameters, Reply, ReplyStream, Request};
    use crate::route::client::Client;
    use crate::supervision::tree::Tree;
    use crate::tensor::Tensor;

    /// Embeds into one dimension, a request a second.
    #[derive(Default)]
    struct Encoder {
        rows: AtomicUsize,
    }

    impl Client for Encoder {
        fn name(&self) -> &'static str {
            "worker"
        }

        fn infer<'a>(&'a self, request: &'a Request, _: &'a Context) -> BoxFuture<'a, Result<Reply>> {
            async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let rows = request.inputs[0].tensor.shape()[0];
                let count = usize::try_from(rows).unwrap();
                self.rows.fetch_add(count, Relaxed);
                let tensor = Tensor::from_f32(vec![rows, 1], &vec![1.0; count]).unwrap();
                Ok(Reply {
                    model: request.model.clone(),
                    version: 1,
                    outputs: vec![NamedTensor { name: "embedding".to_owned(), tensor }],
                    parameters: Parameters::default(),
                    last: true,
                    tokens: Vec::new(),
                })
            }
            .boxed()
        }

        fn stream(&self, _: Request, _: Context) -> BoxFuture<'_, Result<ReplyStream>> {
            async { Err(Error::Cancelled) }.boxed()
        }
    }

    fn holding(image: &str) -> Registration {
        let held = |name: &str, namespace: &str| Held {
            name: name.to_owned(),
            version: 1,
            state: "READY".to_owned(),
            namespace: namespace.to_owned(),
            ..Held::default()
        };
        let models = vec![held("minilm", "minilm/1/a"), held("efficientnet-lite0", image)];
        Registration { node: "worker".into(), role: Role::Worker, capacity: 1, models, ..Registration::default() }
    }

    /// An understanding behind one worker, what that has embedded, and its lease.
    async fn understanding(labels: usize) -> (Understanding, Arc<Encoder>, Lease) {
        let encoder = Arc::new(Encoder::default());
        let membership = Membership::embedded();
        let lease = membership.register(holding("efficientnet-lite0/1/a"));
        let connect = {
            let encoder = encoder.clone();
            move |_: &Registration| -> Option<Arc<dyn Client>> { Some(encoder.clone()) }
        };
        let options = crate::route::Options { name: "gateway".into(), zone: String::new(), cache: None, subset: 0 };
        let admission = Admission::new(admission::Options::bound(8));
        let router =
            Router::start(options, &membership, Arc::new(connect), admission, Bus::new("here"), Tree::default());
        let router = router.await.unwrap();
        router.refresh().await;
        let names = (0..labels).map(|label| format!("label {label}")).collect::<Vec<_>>();
        let labels: Labels = Arc::new(move |_| {
            let names = names.clone();
            async move { Ok(names) }.boxed()
        });
        (Understanding::new(router, Options::default(), labels).unwrap(), encoder, lease)
    }

    #[tokio::test(start_paused = true)]
    async fn a_label_space_is_made_once_however_often_callers_give_up() {
        let (understanding, encoder, _lease) = understanding(1000).await;
        let mut given_up = 0;
        let space = loop {
            match tokio::time::timeout(Duration::from_millis(300), understanding.space()).await {
                Ok(space) => break space.unwrap(),
                Err(_) => given_up += 1,
            }
            assert!(given_up < 1000, "it is never made");
        };
        assert!(given_up > 3, "nobody had to wait");
        assert_eq!(encoder.rows.load(Relaxed), 1000);
        assert_eq!(space.project(&[0.5; 1000]), [1.0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_label_space_is_kept_ahead_of_images_and_made_anew_for_other_weights() {
        let (understanding, encoder, lease) = understanding(100).await;
        let keeping = tokio::spawn(understanding.clone().keep_ready());
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(encoder.rows.load(Relaxed), 100);
        lease.update(|registration| *registration = holding("efficientnet-lite0/1/b"));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(encoder.rows.load(Relaxed), 200);
        let made = understanding.space().now_or_never().expect("it is at hand");
        assert_eq!(made.unwrap().labels(&[1.0], 1), [("label 0", 1.0)]);
        keeping.abort();
    }
}
