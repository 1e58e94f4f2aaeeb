//! A steady load of requests and of jobs: whatever happens meanwhile, none fails, none is lost and none is done twice.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use sensorium_proto::v1::Job;
use sensorium_tests::jobs::header;
use sensorium_tests::{Client, Cluster, Doors, Load, Repository, eventually, within};
use tokio::task::JoinHandle;
use tonic::Code;

use super::jobs::{complete, texts};
use super::{load, load_at};

/// Items of each job: more than a gateway works on at a time.
pub(super) const ITEMS: usize = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// `identity` and `minilm`, for a cluster that can take jobs.
pub(super) fn models() -> Repository {
    Repository::new().with(&["identity", "minilm"])
}

/// Nodes that are added from now on take jobs of texts.
pub(super) async fn with_jobs(cluster: Cluster) -> Cluster {
    cluster.set("understand.text_guard", "").set("jobs.tasks.backoff_ms", "50").with_nats().await
}

/// `identity` and `minilm` on so many workers, behind so many gateways that take jobs.
pub(super) async fn cluster(gateways: usize, workers: usize) -> Cluster {
    with_jobs(Cluster::new(models()).await).await.of(gateways, workers).await
}

/// See the module. It is a [`Load`] of requests, with jobs beside it.
pub(super) struct Steady {
    requests: Load,
    jobs: JoinHandle<Vec<Job>>,
    stop: Arc<AtomicBool>,
    doors: Doors,
}

impl Deref for Steady {
    type Target = Load;

    fn deref(&self) -> &Load {
        &self.requests
    }
}

impl Steady {
    /// At one gateway.
    pub(super) fn at(client: &Client) -> Self {
        Self::beside(load(client), Doors::new(vec![client.clone()]), ITEMS)
    }

    /// At several, of callers that turn to another one when one is not to be had.
    pub(super) fn at_any(doors: &Doors) -> Self {
        Self::beside(load_at(doors), doors.clone(), ITEMS)
    }

    /// One job after the other, of so many items, beside these requests.
    pub(super) fn beside(requests: Load, doors: Doors, items: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, at) = (stop.clone(), doors.clone());
        let jobs = tokio::spawn(async move {
            let mut done = Vec::new();
            while !stopped.load(Relaxed) {
                done.push(within(do_one(&at, &format!("job-{}", done.len()), items)).await);
            }
            done
        });
        Self { requests, jobs, stop, doors }
    }

    /// Ends it, and looks whether all of it was done, once.
    pub(super) async fn none_lost(self) {
        self.none_lost_beside(&[]).await;
    }

    /// The same beside jobs of others.
    pub(super) async fn none_lost_beside(self, others: &[Job]) {
        super::none_failed(self.requests).await;
        self.stop.store(true, Relaxed);
        let jobs = within(self.jobs).await.expect("jobs");
        assert!(!jobs.is_empty());
        let client = eventually("a gateway that answers", async || {
            let client = self.doors.any();
            client.cluster().await.ok().map(|_| client)
        });
        let client = client.await;
        let mut items = 0;
        for job in &jobs {
            complete(client, job, job.total as usize).await;
            items += job.total;
        }
        let mut known: Vec<String> = client.all_jobs(100).await.unwrap().into_iter().map(|job| job.id).collect();
        let mut made: Vec<String> = jobs.iter().chain(others).map(|job| job.id.clone()).collect();
        known.sort_unstable();
        made.sort_unstable();
        assert_eq!(known, made, "a job for each key");
        assert_eq!(client.dead().await.unwrap().len(), 0);
        println!("{} jobs with {items} items, none lost, none doubled", jobs.len());
    }
}

/// Submits a job, again if nothing is heard of it, and waits until it is over.
async fn do_one(doors: &Doors, key: &str, items: usize) -> Job {
    let job = loop {
        match doors.any().submit(header(key), texts(key, items)).await {
            Ok(job) => break job,
            Err(status) => {
                let again = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::DeadlineExceeded];
                assert!(again.contains(&status.code()), "{status:?}");
            }
        }
        tokio::time::sleep(PAUSE).await;
    };
    loop {
        if let Ok(over) = doors.any().finish(&job.id).await {
            return over;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
