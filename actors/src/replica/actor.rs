//! The replica: the actor that starts a device thread, watches over it, and dies with it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;

use super::cores::Cores;
use super::device::Hands;
use super::forward::panic_text;
use super::warm::WarmUp;
use super::{forward, generate};
use crate::batching::batcher::{self, Batch, Offer};
use crate::engine::{self, Loader, Model};
use crate::error::Error;
use crate::manifest::Manifest;
use crate::metrics::VersionMetrics;
use crate::supervision::tree::{State as TreeState, Tree};
use crate::worker::served::Served;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What a replica is told by its own thread, and by its clock.
pub enum Message {
    /// The model is loaded and warm.
    Ready {
        /// Bytes it holds.
        memory: u64,
    },
    /// The model cannot be loaded.
    LoadFailed(String),
    /// The thread has ended; why, if it failed.
    Ended(Result<(), String>),
    /// Look whether the device is still alive.
    Watch,
}

/// What a replica starts with.
#[derive(Clone)]
pub struct Arguments {
    /// Its place in the tree.
    pub path: String,
    /// Which of its version's replicas.
    pub number: usize,
    /// The version.
    pub served: Arc<Served>,
    /// Who hands out batches.
    pub batcher: ActorRef<batcher::Message>,
    /// What all replicas of the process share.
    pub shared: Arc<Shared>,
}

/// What all replicas of a process share.
pub struct Shared {
    /// Makes engines.
    pub loader: Arc<dyn Loader>,
    /// The turns of the device.
    pub cores: Arc<Cores>,
    /// The tree.
    pub tree: Tree,
    /// Device threads that were written off as hung and have not come back; past a limit the process has to go.
    pub hung_threads: watch::Sender<usize>,
}

/// The model cannot be loaded: starting the replica again would not help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LoadFailed(String);

impl From<&str> for LoadFailed {
    fn from(reason: &str) -> Self {
        Self(reason.to_owned())
    }
}

/// What a device thread works with.
pub struct Thread {
    /// Batches come here.
    pub intake: Receiver<Batch>,
    /// Entries in work.
    pub hands: Arc<Hands>,
    /// Who hands out batches.
    pub batcher: ActorRef<batcher::Message>,
    /// The turns of the device.
    pub cores: Arc<Cores>,
    /// The model.
    pub manifest: Arc<Manifest>,
    /// Figures.
    pub metrics: Arc<VersionMetrics>,
    id: u64,
    sender: Sender<Batch>,
    withdrawn: Cell<bool>,
}

impl Thread {
    /// Tells the batcher what can be taken.
    pub fn offer(&self, credits: usize, per_row: bool) {
        if self.withdrawn.get() {
            return;
        }
        // the first offer is that of an idle replica
        let offer = Offer { replica: self.id, intake: self.sender.clone(), credits, capacity: credits, per_row };
        let _ = self.batcher.cast(batcher::Message::Offer(offer));
    }

    /// Blocks for the next batch; `None` once the replica has been stopped.
    pub fn next_batch(&self, closed: &Receiver<()>) -> Option<Batch> {
        crossbeam_channel::select_biased! {
            recv(closed) -> _ => None,
            recv(self.intake) -> batch => batch.ok(),
        }
    }

    /// Whether the replica has been stopped.
    pub fn is_closed(closed: &Receiver<()>) -> bool {
        closed.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected)
    }

    /// Takes no more; what was handed over too late to be executed goes back.
    pub fn withdraw(&self) {
        if self.withdrawn.replace(true) {
            return;
        }
        let _ = self.batcher.cast(batcher::Message::Withdraw(self.id));
        for batch in self.intake.try_iter() {
            let _ = self.batcher.cast(batcher::Message::Return(batch));
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.withdrawn.set(false); // a batch may have come between the withdrawal and now
        self.withdraw();
    }
}

/// See the module.
pub struct Replica;

/// What the replica owns.
pub struct State {
    args: Arguments,
    hands: Arc<Hands>,
    /// Keeps the thread's intake open; the thread ends when this and the batcher's offer are gone.
    closing: Option<Sender<()>>,
    counted: bool,
    /// Bytes that the model holds.
    memory: u64,
}

impl Actor for Replica {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<Message>, args: Arguments) -> Result<State, ActorProcessingErr> {
        let hands = Arc::new(Hands::default());
        // one batch in the hands and as many sequences as a decoder can be offered at once
        let (sender, intake) = crossbeam_channel::bounded(args.served.manifest.generation.max_sequences.max(1) + 1);
        let (closing, closed) = crossbeam_channel::bounded(0);
        let thread = Thread {
            intake,
            hands: hands.clone(),
            batcher: args.batcher.clone(),
            cores: args.shared.cores.clone(),
            manifest: args.served.manifest.clone(),
            metrics: args.served.metrics.clone(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            sender,
            withdrawn: Cell::new(false),
        };
        let for_thread = args.clone();
        let watch = watch_interval(&args.served.manifest);
        let replica = myself.clone();
        let hung = args.shared.hung_threads.clone();
        std::thread::Builder::new().name(format!("device-{}", args.served.manifest.name)).spawn(move || {
            let lived = catch_unwind(AssertUnwindSafe(|| live(&thread, &for_thread, &replica, &closed)));
            let last_word = lived.unwrap_or_else(|panic| {
                let reason = format!("panicked: {}", panic_text(&*panic));
                if let Some(held) = thread.hands.empty() {
                    let told = format!("replica of {} failed: {reason}", thread.manifest.name);
                    forward::isolate(&thread.manifest, &thread.batcher, held, &Error::Internal(told));
                }
                Message::Ended(Err(reason))
            });
            if thread.hands.close() {
                // written off as hung, and back after all: it is no burden any more
                hung.send_modify(|count| *count -= 1);
                metrics::gauge!("sensorium_hung_device_threads").decrement(1);
            }
            drop(thread);
            // an actor that has gone away needs no word
            let _ = replica.cast(last_word);
        })?;
        myself.send_interval(watch, || Message::Watch);
        Ok(State { args, hands, closing: Some(closing), counted: false, memory: 0 })
    }

    async fn post_stop(&self, _: ActorRef<Message>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.closing.take();
        state.uncount();
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Ready { memory } => {
                state.args.shared.tree.set(&state.args.path, TreeState::Running);
                state.memory = memory;
                state.args.served.note_replica(state.args.number, None);
                state.count();
                let path = state.args.shared.tree.shown(&state.args.path);
                tracing::info!(path, memory_bytes = memory, "replica ready");
                Ok(())
            }
            Message::LoadFailed(reason) => Err(LoadFailed(reason).into()),
            Message::Ended(Ok(())) => Ok(()),
            Message::Ended(Err(reason)) => {
                state.uncount();
                Err(reason.into())
            }
            Message::Watch => state.watch(),
        }
    }
}

impl State {
    fn watch(&mut self) -> Result<(), ActorProcessingErr> {
        let limit = Duration::from_millis(self.args.served.manifest.replicas.hang_timeout_ms);
        let silence = self.hands.silence();
        if silence < limit {
            return Ok(());
        }
        let Some(held) = self.hands.write_off() else { return Ok(()) };
        self.uncount();
        self.args.shared.tree.set(&self.args.path, TreeState::Hung);
        self.args.shared.hung_threads.send_modify(|count| *count += 1);
        metrics::counter!("sensorium_hung_device_threads_total").increment(1);
        metrics::gauge!("sensorium_hung_device_threads").increment(1);
        let reason = format!("device silent for {} ms", silence.as_millis());
        let manifest = &self.args.served.manifest;
        let told = Error::Internal(format!("replica of {} hung: {reason}", manifest.name));
        forward::isolate(manifest, &self.args.batcher, held, &told);
        Err(reason.into())
    }

    fn count(&mut self) {
        if !std::mem::replace(&mut self.counted, true) {
            self.args.served.ready().send_modify(|ready| *ready += 1);
            self.args.served.metrics.replicas_ready.increment(1);
            self.args.served.metrics.stats.memory_bytes.fetch_add(self.memory, Ordering::Relaxed);
        }
    }

    fn uncount(&mut self) {
        if std::mem::replace(&mut self.counted, false) {
            self.args.served.ready().send_modify(|ready| *ready -= 1);
            self.args.served.metrics.replicas_ready.decrement(1);
            self.args.served.metrics.stats.memory_bytes.fetch_sub(self.memory, Ordering::Relaxed);
        }
    }
}

impl Drop for State {
    /// A replica that fails is dropped without `post_stop`.
    fn drop(&mut self) {
        self.uncount();
    }
}

fn watch_interval(manifest: &Manifest) -> Duration {
    Duration::from_millis((manifest.replicas.hang_timeout_ms / 4).clamp(10, 1000))
}

/// The whole life of a device thread: load, warm up, work. Returns its last word.
fn live(thread: &Thread, args: &Arguments, replica: &ActorRef<Message>, closed: &Receiver<()>) -> Message {
    let served = &args.served;
    let warm_up = WarmUp::of(served);
    let loaded = catch_unwind(AssertUnwindSafe(|| -> Result<Model, engine::Error> {
        let mut model = args.shared.loader.load(&served.manifest, &served.directory)?;
        warm_up.run(thread, &mut model)?;
        Ok(model)
    }));
    thread.hands.rest();
    let loaded = match loaded {
        Ok(Ok(model)) => served.check_files().map(|()| model),
        // whatever fails before the first request is a matter of the files, or of a device that has no room for them
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(format!("panicked while loading: {}", panic_text(&*panic))),
    };
    // stopped while loading
    if Thread::is_closed(closed) {
        return Message::Ended(Ok(()));
    }
    let model = match loaded {
        Ok(model) => model,
        Err(reason) => return Message::LoadFailed(reason),
    };
    let memory = match &model {
        Model::Forward(engine) => engine.memory_bytes(),
        Model::Decode(decoder) => decoder.memory_bytes(),
    };
    let _ = replica.cast(Message::Ready { memory });
    Message::Ended(match (model, served.generator()) {
        (Model::Forward(mut engine), _) => forward::run(thread, engine.as_mut(), &warm_up, closed),
        (Model::Decode(mut decoder), Some(generator)) => generate::run(thread, decoder.as_mut(), &generator, closed),
        (Model::Decode(_), None) => Err("a decoder needs the text-generation pipeline".to_owned()),
    })
}
