//! A cluster on one machine: a real etcd, gateways and workers, each a process of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::process::{Exit, Process};
use crate::server::{binary, free_address};
use crate::{Client, Collector, Etcd, Network, Outside, Repository, get, within};

/// How long a node may take to be ready.
const READY: Duration = Duration::from_secs(120);

/// Where a process runs: on this host, or on one of a network.
#[derive(Clone)]
pub(crate) struct Place {
    namespace: Option<String>,
    /// Three addresses that nobody else there listens at.
    pub(crate) addresses: [SocketAddr; 3],
}

impl Place {
    pub(crate) fn of(network: Option<&Network>, host: &str) -> Self {
        let Some(network) = network else {
            return Self { namespace: None, addresses: [(); 3].map(|()| free_address()) };
        };
        // nobody else is on that host
        let addresses = [8001, 8002, 8003].map(|port| SocketAddr::new(network.address(host), port));
        Self { namespace: Some(network.namespace(host)), addresses }
    }

    pub(crate) fn spawn(&self, program: &Path, arguments: &[String]) -> Process {
        self.spawn_with(program, arguments, &[])
    }

    fn spawn_with(&self, program: &Path, arguments: &[String], environment: &[(String, String)]) -> Process {
        Process::spawn_within(self.namespace.as_deref(), program, arguments, environment)
    }
}

/// A gateway or a worker.
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where gRPC listens.
    pub grpc: SocketAddr,
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// The process.
    pub process: Process,
    place: Place,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Node {
    fn spawn(
        role: &str,
        name: &str,
        listen: &str,
        place: Place,
        arguments: Vec<String>,
        environment: Vec<(String, String)>,
    ) -> Self {
        let [grpc, http, _] = place.addresses;
        let own = [role, "--name", name, listen, &grpc.to_string(), "--http", &http.to_string()];
        let arguments: Vec<String> = own.iter().map(|&own| own.to_owned()).chain(arguments).collect();
        let process = place.spawn_with(&binary(), &arguments, &environment);
        Self { name: name.to_owned(), grpc, http, process, place, arguments, environment }
    }

    /// Waits until it is ready.
    pub async fn ready(&mut self) {
        let until = Instant::now() + READY;
        while !get(self.http, "/readyz").await.is_ok_and(|(status, _)| status == 200) {
            self.process.must_run();
            assert!(Instant::now() < until, "{} is not ready:\n{}", self.name, self.process.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until its process answers, ready or not.
    pub async fn lives(&self) {
        crate::eventually("the node lives", async || {
            get(self.http, "/livez").await.ok().filter(|(status, _)| *status == 200)
        })
        .await;
    }

    /// Starts it again at the same place, whatever has become of it.
    pub fn resurrect(&mut self) {
        self.process.signal("KILL");
        self.start_again();
    }

    /// Asks it to stop, waits for that, and starts it again at the same place. How the one before ended.
    pub async fn restart(&mut self) -> Exit {
        self.process.signal("TERM");
        let exit = self.process.ended(Duration::from_secs(60)).await;
        self.start_again();
        exit
    }

    fn start_again(&mut self) {
        self.process = self.place.spawn_with(&binary(), &self.arguments, &self.environment);
    }

    /// Versions that it holds ready, as it says itself.
    async fn versions_ready(&self) -> usize {
        let metrics = get(self.http, "/metrics").await.map(|(_, text)| text).unwrap_or_default();
        let ready = metrics.lines().filter(|line| line.starts_with("sensorium_replicas_ready{"));
        ready.filter(|line| !line.ends_with(" 0")).count()
    }

    /// Clients of all services, over a connection of their own.
    pub async fn client(&self) -> Client {
        Client::connect(self.grpc).await
    }
}

/// etcd, gateways and workers.
pub struct Cluster {
    /// Where they are registered.
    pub etcd: Etcd,
    /// Where jobs are kept, if anywhere.
    pub nats: Option<Outside>,
    /// Where answers are kept, if anywhere.
    pub redis: Option<Outside>,
    /// `gateway-0`, `gateway-1`, …
    pub gateways: Vec<Node>,
    /// `worker-0`, `worker-1`, …
    pub workers: Vec<Node>,
    repository: Repository,
    settings: Vec<(String, String)>,
    network: Option<Network>,
    collector: Option<SocketAddr>,
}

impl Cluster {
    /// etcd alone, for nodes that serve `repository`.
    pub async fn new(repository: Repository) -> Self {
        Self::start_on(Etcd::start().await, None, repository)
    }

    /// The same on hosts of a network: `etcd`, and each node on the host of its name.
    pub async fn within(network: Network, repository: Repository) -> Self {
        let etcd = Etcd::start_at(Place::of(Some(&network), "etcd")).await;
        Self::start_on(etcd, Some(network), repository)
    }

    /// The same on an etcd that stands already.
    pub fn on(etcd: Etcd, repository: Repository) -> Self {
        Self::start_on(etcd, None, repository)
    }

    fn start_on(etcd: Etcd, network: Option<Network>, repository: Repository) -> Self {
        let settings = vec![
            ("register.lease_seconds".to_owned(), "2".to_owned()),
            ("compute.intra_op_threads".to_owned(), "1".to_owned()),
            ("drain_notice_ms".to_owned(), "200".to_owned()),
        ];
        let (gateways, workers) = (Vec::new(), Vec::new());
        Self { etcd, nats: None, redis: None, gateways, workers, repository, settings, network, collector: None }
    }

    /// The network that its hosts are on.
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("a cluster within a network")
    }

    /// So many gateways and workers, ready.
    pub async fn start(repository: Repository, gateways: usize, workers: usize) -> Self {
        Self::new(repository).await.of(gateways, workers).await
    }

    /// NATS for the gateways that are added from now on, which lets a task go to others after two seconds.
    #[must_use]
    pub async fn with_nats(mut self) -> Self {
        self.nats = Some(Outside::nats(self.network.as_ref()).await);
        self.set("jobs.ack_seconds", "2")
    }

    /// Redis for the gateways that are added from now on.
    #[must_use]
    pub async fn with_redis(mut self) -> Self {
        self.redis = Some(Outside::redis(self.network.as_ref()).await);
        self
    }

    /// A collector for the traces of all nodes that are added from now on.
    #[must_use]
    pub fn traced(mut self, collector: &Collector) -> Self {
        self.collector = Some(collector.address());
        self
    }

    fn environment(&self, name: &str) -> Vec<(String, String)> {
        self.collector.map(|address| Collector::environment(address, name)).unwrap_or_default()
    }

    /// So many gateways and workers, ready.
    #[must_use]
    pub async fn of(mut self, gateways: usize, workers: usize) -> Self {
        (0..workers).for_each(|_| self.add_worker(&[]));
        (0..gateways).for_each(|_| self.add_gateway());
        self.ready().await;
        self
    }

    /// A key for all nodes that are added from now on.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    fn arguments(&self) -> Vec<String> {
        let settings = self.settings.iter().flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={value}")]);
        ["--etcd".to_owned(), self.etcd.url()].into_iter().chain(settings).collect()
    }

    /// One more gateway; it is not waited for.
    pub fn add_gateway(&mut self) {
        self.add_gateway_with(&[]);
    }

    /// One more gateway, with further arguments; it is not waited for.
    pub fn add_gateway_with(&mut self, more: &[&str]) {
        let name = format!("gateway-{}", self.gateways.len());
        let place = Place::of(self.network.as_ref(), &name);
        let mut arguments = self.arguments();
        for (flag, scheme, outside) in [("--nats", "nats", &self.nats), ("--redis", "redis", &self.redis)] {
            if let Some(outside) = outside {
                arguments.extend([flag.to_owned(), format!("{scheme}://{}", outside.address())]);
            }
        }
        arguments.extend(more.iter().map(|&more| more.to_owned()));
        let environment = self.environment(&name);
        self.gateways.push(Node::spawn("gateway", &name, "--grpc", place, arguments, environment));
    }

    /// One more worker, with further arguments; it is not waited for.
    pub fn add_worker(&mut self, more: &[&str]) {
        let name = format!("worker-{}", self.workers.len());
        let repository = ["--repository".to_owned(), self.repository.path().display().to_string()];
        let arguments = self.arguments().into_iter().chain(repository).chain(more.iter().map(|&more| more.to_owned()));
        let place = Place::of(self.network.as_ref(), &name);
        let (arguments, environment) = (arguments.collect(), self.environment(&name));
        self.workers.push(Node::spawn("worker", &name, "--listen", place, arguments, environment));
    }

    /// Waits until all nodes are ready, and every gateway sees every worker.
    pub async fn ready(&mut self) {
        for node in self.workers.iter_mut().chain(&mut self.gateways) {
            node.ready().await;
        }
        let workers: Vec<String> = self.workers.iter().map(|worker| worker.name.clone()).collect();
        for gateway in &self.gateways {
            self.seen_by(gateway, &workers).await;
        }
    }

    /// Waits until a gateway sees exactly these workers, all with their models ready.
    pub async fn seen_by(&self, gateway: &Node, workers: &[String]) {
        let client = gateway.client().await;
        crate::eventually("the gateway sees the workers", async || {
            let mut expected: Vec<(String, usize)> = Vec::new();
            for worker in self.workers.iter().filter(|worker| workers.contains(&worker.name)) {
                expected.push((worker.name.clone(), worker.versions_ready().await));
            }
            let cluster = within(client.cluster()).await.ok()?;
            let seen = cluster.nodes.iter().filter(|node| node.role == "worker");
            let ready =
                |node: &sensorium_proto::admin::Node| node.models.iter().filter(|model| model.state == "READY").count();
            let mut seen: Vec<(String, usize)> = seen.map(|node| (node.name.clone(), ready(node))).collect();
            seen.sort_unstable();
            (seen == expected).then_some(())
        })
        .await;
    }
}
