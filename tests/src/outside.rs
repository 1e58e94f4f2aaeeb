//! NATS and Redis, each a process of its own whose data outlive it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Identity;
use crate::cluster::Place;
use crate::etcd::program;
use crate::netns::Network;
use crate::process::Process;
use crate::server::free_address;

/// How long one may take to answer.
const READY: Duration = Duration::from_secs(60);

fn storage_file(data: &str) -> String {
    format!("{data}.conf")
}

/// The configuration of a NATS that stores so many bytes and no more.
fn write_storage(address: SocketAddr, data: &str, bytes: u64) {
    let lines = [
        format!("host: {}\nport: {}", address.ip(), address.port()),
        format!("jetstream {{ store_dir: \"{data}\", max_file_store: {bytes} }}\n"),
    ];
    std::fs::write(storage_file(data), lines.join("\n")).expect("its configuration");
}

/// A server of Debian's packages.
pub struct Outside {
    program: &'static str,
    folder: TempDir,
    place: Place,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Outside {
    /// NATS with JetStream, on the host `nats` of a network if there is one.
    pub async fn nats(network: Option<&Network>) -> Self {
        Self::start_at(Place::of(network, "nats"), "nats-server", |address, data| {
            vec![
                "-a".into(),
                address.ip().to_string(),
                "-p".into(),
                address.port().to_string(),
                "-js".into(),
                "-sd".into(),
                data,
            ]
        })
        .await
    }

    /// NATS whose JetStream stores so many bytes and no more.
    pub async fn nats_that_stores(bytes: u64) -> Self {
        Self::start("nats-server", |address, data| {
            write_storage(address, &data, bytes);
            vec!["-c".into(), storage_file(&data)]
        })
        .await
    }

    /// Starts that NATS anew, with other room than before.
    pub async fn store(&mut self, bytes: u64) {
        self.stop().await;
        write_storage(self.address(), &self.folder.path().join("data").display().to_string(), bytes);
        self.resume().await;
    }

    /// Redis without a password, on the host `redis` of a network if there is one.
    pub async fn redis(network: Option<&Network>) -> Self {
        Self::redis_at(Place::of(network, "redis"), &[]).await
    }

    /// Redis with further arguments.
    pub async fn redis_with(more: &[&str]) -> Self {
        Self::redis_at(Place::of(None, "redis"), more).await
    }

    async fn redis_at(place: Place, more: &[&str]) -> Self {
        Self::start_at(place, "redis-server", |address, data| {
            let (host, port) = (address.ip().to_string(), address.port().to_string());
            let own = ["--bind", &host, "--port", &port, "--dir", &data, "--save", "", "--appendonly", "no"];
            own.iter().chain(more).map(|&argument| argument.to_owned()).collect()
        })
        .await
    }

    /// A replica of another Redis.
    pub async fn redis_replica(master: &Self) -> Self {
        let (host, port) = (master.address().ip().to_string(), master.address().port().to_string());
        Self::redis_with(&["--replicaof", &host, &port, "--repl-diskless-sync-delay", "0"]).await
    }

    /// Redis as a cluster of one, which holds no slots yet.
    pub async fn redis_cluster() -> Self {
        // its bus would stand 10000 above its port, where somebody else may be
        let bus = free_address().port().to_string();
        Self::redis_with(&["--cluster-enabled", "yes", "--cluster-port", &bus]).await
    }

    /// Redis that speaks TLS at the address that is given back as well; `ca` is of clients' certificates.
    pub async fn redis_with_tls(own: &Identity, ca: &Path) -> (Self, SocketAddr) {
        let secure = free_address();
        let (port, ca) = (secure.port().to_string(), ca.display().to_string());
        let [certificate, key] = [&own.certificate, &own.key].map(|file| file.display().to_string());
        let more = ["--tls-port", &port, "--tls-cert-file", &certificate, "--tls-key-file", &key];
        let more: Vec<&str> = more.into_iter().chain(["--tls-ca-cert-file", &ca]).collect();
        (Self::redis_with(&more).await, secure)
    }

    /// NATS that speaks TLS alone, with clients of `ca`, and asks for a password.
    pub async fn nats_with_tls(own: &Identity, ca: &Path, user: &str, password: &str) -> Self {
        let (own, ca) = (own.clone(), ca.display().to_string());
        let (user, password) = (user.to_owned(), password.to_owned());
        Self::start("nats-server", |address, data| {
            let (port, host) = (address.port().to_string(), address.ip().to_string());
            let [certificate, key] = [&own.certificate, &own.key].map(|file| file.display().to_string());
            let words = ["-a", &host, "-p", &port, "-js", "-sd", &data, "--user", &user, "--pass", &password];
            let tls = ["--tlsverify", "--tlscert", &certificate, "--tlskey", &key, "--tlscacert", &ca];
            words.iter().chain(&tls).map(|&word| word.to_owned()).collect()
        })
        .await
    }

    /// A sentinel that watches over `master`, under this name.
    pub async fn sentinel(master: &Self, name: &str) -> Self {
        let watched = master.address();
        Self::start("redis-server", |address, data| {
            let file = format!("{data}/sentinel.conf");
            let lines = [
                format!("port {}\nbind {}\ndir {data}", address.port(), address.ip()),
                format!("sentinel monitor {name} {} {} 1", watched.ip(), watched.port()),
                format!("sentinel down-after-milliseconds {name} 1000\nsentinel failover-timeout {name} 5000\n"),
            ];
            std::fs::write(&file, lines.join("\n")).expect("its configuration");
            vec![file, "--sentinel".to_owned()]
        })
        .await
    }

    async fn start(program: &'static str, arguments: impl FnOnce(SocketAddr, String) -> Vec<String>) -> Self {
        Self::start_at(Place::of(None, program), program, arguments).await
    }

    async fn start_at(
        place: Place,
        program: &'static str,
        arguments: impl FnOnce(SocketAddr, String) -> Vec<String>,
    ) -> Self {
        let folder = TempDir::new().expect("a folder");
        let data = folder.path().join("data");
        std::fs::create_dir(&data).expect("a folder");
        let arguments = arguments(place.addresses[0], data.display().to_string());
        let mut outside = Self { program, folder, place, arguments, process: None };
        outside.resume().await;
        outside
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.place.addresses[0]
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("it runs")
    }

    /// Kills it.
    pub async fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.signal("KILL");
            process.wait(Duration::from_secs(10)).await;
        }
    }

    /// Forgets all that it was told; to be called while it is stopped.
    pub fn forget(&self) {
        let data = self.folder.path().join("data");
        std::fs::remove_dir_all(&data).expect("its data");
        std::fs::create_dir(&data).expect("a folder");
    }

    /// Starts it again, at the same place.
    pub async fn resume(&mut self) {
        let mut process = self.place.spawn(&program(self.program), &self.arguments);
        let until = Instant::now() + READY;
        while !self.answers().await {
            process.must_run();
            assert!(Instant::now() < until, "{} does not answer:\n{}", self.program, process.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.process = Some(process);
    }

    /// Both say something to who says PING, whatever it is.
    async fn answers(&self) -> bool {
        let talk = async {
            let mut stream = TcpStream::connect(self.address()).await?;
            stream.write_all(b"PING\r\n").await?;
            stream.read_u8().await
        };
        tokio::time::timeout(Duration::from_secs(1), talk).await.is_ok_and(|said| said.is_ok())
    }
}
