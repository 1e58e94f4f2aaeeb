//! Well-behaved callers beside a hostile one, and what must not happen to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Status;

use crate::process::resident_bytes_of;
use crate::{Ask, Load, Server, chaos, eventually};

/// What a hostile caller may make a server's resident memory grow by.
const GROWTH: u64 = 64 << 20;
/// What of it may stay: allocators keep some pages for the next request.
const REMAINDER: u64 = 32 << 20;
/// How long callers are measured without a hostile one.
const QUIET: Duration = Duration::from_secs(3);
/// A neighbour may wait so many times as long as without the hostile caller…
const SLOWER: u32 = 10;
/// …or so long, on a machine that is busy with other tests.
const NOISE: Duration = Duration::from_secs(3);
const CALLERS: usize = 4;

/// Callers of `identity` and `minilm`, with the server's memory and restarts watched meanwhile.
///
/// A model that the server does not hold is not asked.
pub struct Neighbours<'a> {
    server: &'a Server,
    load: Load,
    slowest: Duration,
    memory: u64,
    peak: Arc<AtomicU64>,
    sampler: JoinHandle<()>,
    restarts: f64,
}

impl<'a> Neighbours<'a> {
    /// Starts them, and measures them for a while on their own.
    pub async fn beside(server: &'a Server) -> Self {
        let client = server.client().await;
        let mut asks: Vec<fn(usize, usize) -> Ask> = Vec::new();
        if client.infer(chaos("identity", 0.0, 0.0)).await.is_ok() {
            asks.push(|_, _| chaos("identity", 0.0, 1.0));
        }
        if client.infer(Ask::text("warm")).await.is_ok() {
            asks.push(|caller, turn| Ask::text(&format!("neighbour {caller} asks for the {turn}th time")));
        }
        assert!(!asks.is_empty(), "the server holds neither identity nor minilm");
        let load = Load::of(CALLERS, move |caller, turn| {
            let (client, ask) = (client.clone(), asks[caller % asks.len()](caller, turn));
            async move {
                let answer = client.infer(ask).await.map(drop);
                // a steady load, not a flood
                tokio::time::sleep(Duration::from_millis(5)).await;
                answer
            }
        });
        tokio::time::sleep(QUIET).await;
        let (_, slowest) = load.gaps();
        let memory = server.resident_bytes();
        let peak = Arc::new(AtomicU64::new(memory));
        let sampler = tokio::spawn({
            let (process, peak) = (server.process_id(), peak.clone());
            async move {
                while let Some(now) = resident_bytes_of(process) {
                    peak.fetch_max(now, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        });
        let restarts = restarts(server).await;
        Self { server, load, slowest, memory, peak, sampler, restarts }
    }

    /// Nobody but the hostile caller noticed anything: no neighbour had an error or was held up, no replica restarted,
    /// memory grew by little and came back.
    pub async fn were_not_hurt(self, by: &str) {
        self.were_not_hurt_within(by, GROWTH).await;
    }

    /// The same where memory may grow by more: of what is known to be held, and bounded, such as a model.
    pub async fn were_not_hurt_within(self, by: &str, growth: u64) {
        let (server, before) = (self.server, self.restarts);
        self.were_not_hurt_but_for(by, growth).await;
        let restarts = restarts(server).await - before;
        assert!(restarts < 0.1, "{by}: {restarts} actors restarted");
    }

    /// The same where an operator restarts actors, and a replica may take a while to be loaded again.
    pub async fn were_not_hurt_but_for_restarts(self, by: &str) {
        self.were_not_hurt_but_for(by, 2 * GROWTH).await;
    }

    #[allow(clippy::print_stdout, reason = "measured figures belong to the output of a test")]
    async fn were_not_hurt_but_for(self, by: &str, growth: u64) {
        self.load.answers(2 * CALLERS).await;
        let (longest, slowest) = self.load.gaps();
        let (answered, failures) = self.load.stop().await;
        let report: Vec<String> = failures.iter().take(3).map(Status::to_string).collect();
        assert!(failures.is_empty(), "{by}: {} neighbours failed, such as {report:?}", failures.len());
        self.sampler.abort();
        let grown = self.peak.load(Ordering::Relaxed).saturating_sub(self.memory);
        println!(
            "{by}: {answered} answered; slowest {:?}, {slowest:?} beside it; {} MiB more at the peak",
            self.slowest,
            grown >> 20
        );
        let most = (self.slowest * SLOWER).max(NOISE);
        assert!(longest.max(slowest) < most, "{by}: a neighbour waited {slowest:?}, {:?} without it", self.slowest);
        assert!(grown < growth, "{by}: memory grew by {} MiB", grown >> 20);
        let until = Instant::now() + Duration::from_secs(60);
        eventually("memory comes back", async || {
            let kept = self.server.resident_bytes().saturating_sub(self.memory);
            assert!(Instant::now() < until || kept < REMAINDER, "{by}: {} MiB did not come back", kept >> 20);
            (kept < REMAINDER).then_some(())
        })
        .await;
    }
}

async fn restarts(server: &Server) -> f64 {
    server.metric("sensorium_actor_restarts_total", &[]).await
}
