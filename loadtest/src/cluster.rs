//! A cluster of our own for the length of a benchmark: etcd, NATS, Redis, gateways and workers, each a process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sensorium_proto::admin::GetClusterRequest;
use sensorium_proto::admin::admin_client::AdminClient;
use tokio::process::Command;

use crate::error::{Error, Result};
use crate::process::{Process, Ready, free_port};

/// How long a gateway may take to see a worker.
const SEEN_LIMIT: Duration = Duration::from_secs(60);

/// A folder that is removed with its value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("sensorium-bench-{}", free_port()?.port()));
        std::fs::create_dir_all(&path).map_err(Error::io(format!("cannot make {}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // what stays behind lies in the folder for temporary files
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What stands beside gateways and workers.
pub struct Outside {
    etcd: String,
    nats: String,
    redis: String,
    // processes end before their folder
    _processes: [Process; 3],
    _folder: Folder,
}

impl Outside {
    /// Starts etcd, NATS with JetStream, and Redis, all empty.
    ///
    /// # Errors
    /// If one of them is not installed, or does not start.
    pub async fn start() -> Result<Self> {
        let folder = Folder::new()?;
        let (client, peer, nats, redis) = (free_port()?, free_port()?, free_port()?, free_port()?);
        let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
        let data = |name: &str| folder.0.join(name);

        let mut command = Command::new(program("etcd")?);
        command.args(["--name", "one"]).arg("--data-dir").arg(data("etcd"));
        for (flag, url) in [("client", &client_url), ("peer", &peer_url)] {
            command.args([&format!("--listen-{flag}-urls"), url]);
        }
        command.args(["--advertise-client-urls", &client_url, "--initial-advertise-peer-urls", &peer_url]);
        command.args(["--initial-cluster", &format!("one={peer_url}")]);
        let etcd = Process::spawn("etcd", command, Ready::Http(client, "/health"))?;

        let mut command = Command::new(program("nats-server")?);
        command.args(["--addr", "127.0.0.1", "--port", &nats.port().to_string(), "--jetstream"]);
        command.arg("--store_dir").arg(data("nats"));
        let broker = Process::spawn("nats-server", command, Ready::Listens(nats))?;

        let mut command = Command::new(program("redis-server")?);
        command.args(["--bind", "127.0.0.1", "--port", &redis.port().to_string(), "--save", ""]);
        command.arg("--dir").arg(&folder.0);
        let store = Process::spawn("redis-server", command, Ready::Listens(redis))?;

        let mut processes = [etcd, broker, store];
        for process in &mut processes {
            process.ready().await?;
        }
        let (nats, redis) = (format!("nats://{nats}"), format!("redis://{redis}"));
        Ok(Self { etcd: client_url, nats, redis, _processes: processes, _folder: folder })
    }
}

/// A program of Debian's packages; some of them lie where only root looks.
fn program(name: &str) -> Result<PathBuf> {
    let folders = ["/usr/bin", "/usr/sbin", "/usr/local/bin"];
    let found = folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file());
    found.ok_or_else(|| Error::Child(format!("{name} is not installed: `make setup-tests` installs it")))
}

/// A gateway or a worker.
pub struct Node {
    /// Its name.
    pub name: String,
    grpc: SocketAddr,
    process: Process,
}

impl Node {
    /// Its gRPC address.
    pub fn target(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// Waits until it is ready.
    pub async fn ready(&mut self) -> Result<()> {
        self.process.ready().await.map(drop)
    }

    /// Kills it.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Asks it to drain, and waits until it is gone.
    pub async fn stop(self) -> Result<()> {
        self.process.stop().await
    }
}

/// Nodes that see each other, apart from those of another name in the same etcd.
pub struct Cluster<'a> {
    binary: &'a Path,
    outside: &'a Outside,
    name: &'static str,
}

impl<'a> Cluster<'a> {
    /// A cluster without nodes.
    pub fn new(binary: &'a Path, outside: &'a Outside, name: &'static str) -> Self {
        Self { binary, outside, name }
    }

    /// One more gateway, with further settings. It is not waited for: without workers it is not ready.
    pub fn gateway(&self, name: &str, settings: &[(&str, &str)]) -> Result<Node> {
        let mut settings = settings.to_vec();
        settings.extend([("nats", self.outside.nats.as_str()), ("redis", self.outside.redis.as_str())]);
        self.node("gateway", "--grpc", name, None, &settings, &[])
    }

    /// One more worker with these models, on one core alone if one is named, and ready.
    pub async fn worker(&self, name: &str, models: &str, core: Option<usize>) -> Result<Node> {
        let threads = if core.is_some() { "1" } else { "0" };
        let settings = [("compute.intra_op_threads", threads)];
        let mut worker = self.node("worker", "--listen", name, core, &settings, &["--models", models])?;
        worker.ready().await?;
        Ok(worker)
    }

    fn node(
        &self,
        role: &str,
        listen: &str,
        name: &str,
        core: Option<usize>,
        settings: &[(&str, &str)],
        more: &[&str],
    ) -> Result<Node> {
        let (grpc, http) = (free_port()?, free_port()?);
        let mut command = match core {
            None => Command::new(self.binary),
            Some(core) => {
                let mut pinned = Command::new("taskset");
                pinned.args(["--cpu-list", &core.to_string()]).arg(self.binary);
                pinned
            }
        };
        command.args([role, "--name", name, listen, &grpc.to_string(), "--http", &http.to_string()]);
        command.args(["--etcd", &self.outside.etcd, "--set", &format!("register.cluster={}", self.name)]);
        for (key, value) in settings {
            command.args(["--set", &format!("{key}={value}")]);
        }
        command.args(more);
        let process = Process::spawn(name, command, Ready::Http(http, "/readyz"))?;
        Ok(Node { name: name.to_owned(), grpc, process })
    }
}

/// Waits until a gateway sees exactly these workers, with all that they hold ready.
pub async fn sees(gateway: &Node, workers: &[&Node]) -> Result<()> {
    let target = gateway.target();
    let fail = |source| Error::Connect { target: target.clone(), source };
    let mut admin = AdminClient::connect(target.clone()).await.map_err(fail)?;
    let until = Instant::now() + SEEN_LIMIT;
    loop {
        let seen = admin.get_cluster(GetClusterRequest::default()).await.map_err(Error::refused("GetCluster"))?;
        let seen: Vec<_> = seen.into_inner().nodes.into_iter().filter(|node| node.role == "worker").collect();
        let ready = seen.iter().all(|node| {
            let wanted = workers.iter().any(|worker| worker.name == node.name);
            wanted && !node.models.is_empty() && node.models.iter().all(|model| model.state == "READY")
        });
        if ready && seen.len() == workers.len() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(Error::Child(format!("{} does not see its workers after {SEEN_LIMIT:?}", gateway.name)));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
