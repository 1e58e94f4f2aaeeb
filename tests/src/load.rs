//! Requests that keep coming while something else happens.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;

use crate::{Ask, Client, PATIENCE};

/// What no fault may take from it, with a margin for machines that are busy.
const RECOVERY: Duration = Duration::from_secs(10);

/// Waits until `look` gives something: conditions that announce themselves to nobody.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Callers that send one request after the other until they are told to stop.
pub struct Load {
    callers: JoinSet<Vec<Status>>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    gaps: Arc<Mutex<Gaps>>,
}

/// How long nobody was answered, and how long somebody had to wait.
struct Gaps {
    last: Instant,
    longest: Duration,
    slowest: Duration,
}

impl Gaps {
    fn new() -> Self {
        Self { last: Instant::now(), longest: Duration::ZERO, slowest: Duration::ZERO }
    }

    fn answered(&mut self, asked: Instant) {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.slowest = self.slowest.max(now - asked);
        self.last = now;
    }
}

impl Load {
    /// Starts `callers`; `ask` makes the request of a caller and its turn.
    pub fn start(client: &Client, callers: usize, ask: impl Fn(usize, usize) -> Ask + Send + Sync + 'static) -> Self {
        let client = client.clone();
        Self::of(callers, move |caller, turn| {
            let (client, ask) = (client.clone(), ask(caller, turn));
            async move { client.infer(ask).await.map(drop) }
        })
    }

    /// Starts `callers` of anything; `call` makes the call of a caller and its turn.
    pub fn of<F>(callers: usize, call: impl Fn(usize, usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Status>> + Send,
    {
        let (stop, answered, call) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(call));
        let gaps = Arc::new(Mutex::new(Gaps::new()));
        let mut set = JoinSet::new();
        for caller in 0..callers {
            let (stop, answered, call, gaps) = (stop.clone(), answered.clone(), call.clone(), gaps.clone());
            set.spawn(async move {
                let mut failures = Vec::new();
                let mut turn = 0;
                while !stop.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    match call(caller, turn).await {
                        Ok(()) => {
                            answered.fetch_add(1, Ordering::Relaxed);
                            gaps.lock().expect("no caller has panicked").answered(asked);
                        }
                        Err(status) => failures.push(status),
                    }
                    turn += 1;
                }
                failures
            });
        }
        Self { callers: set, stop, answered, gaps }
    }

    /// Waits until so many more requests were answered.
    pub async fn answers(&self, more: usize) {
        let wanted = self.answered.load(Ordering::Relaxed) + more;
        eventually("answers under load", async || (self.answered.load(Ordering::Relaxed) >= wanted).then_some(()))
            .await;
    }

    /// Says how long the callers had to bear a fault, since this was last called: the time to recover from it.
    #[allow(clippy::print_stdout, reason = "measured figures belong to the output of a test")]
    pub fn recovered(&self, from: &str) {
        let (longest, slowest) = self.gaps();
        println!("{from}: at most {longest:?} between two answers, the slowest took {slowest:?}");
        assert!(longest < RECOVERY, "{from}: nobody was answered for {longest:?}");
    }

    /// The longest time without an answer and the slowest answer, since this was last called.
    pub fn gaps(&self) -> (Duration, Duration) {
        let gaps = std::mem::replace(&mut *self.gaps.lock().expect("no caller has panicked"), Gaps::new());
        (gaps.longest.max(gaps.last.elapsed()), gaps.slowest)
    }

    /// Stops; gives the number of answers, and all failures.
    pub async fn stop(mut self) -> (usize, Vec<Status>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        while let Some(caller) = crate::within(self.callers.join_next()).await {
            failures.extend(caller.expect("a caller"));
        }
        (self.answered.load(Ordering::Relaxed), failures)
    }
}
