//! A real etcd, in the clear or with TLS and users.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use etcd_client::{
    AlarmAction, AlarmType, Certificate, Client, ConnectOptions, Identity as Pem, Permission, TlsOptions,
};
use tempfile::TempDir;

use crate::cluster::Place;
use crate::process::Process;
use crate::{Authority, Identity, get};

/// How long it may take to be healthy.
const READY: Duration = Duration::from_secs(120);

/// A program of Debian's packages.
pub(crate) fn program(name: &str) -> PathBuf {
    let folders = ["/usr/bin", "/usr/sbin", "/usr/local/bin"];
    let found = folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed: `make setup-tests` installs it"))
}

/// Certificates that it asks for and shows.
struct Tls {
    ca: PathBuf,
    own: Identity,
}

/// etcd, whose data outlive its process.
pub struct Etcd {
    folder: TempDir,
    place: Place,
    tls: Option<Tls>,
    token_seconds: u64,
    process: Option<Process>,
}

impl Etcd {
    /// Starts it, empty.
    pub async fn start() -> Self {
        Self::start_at(Place::of(None, "etcd")).await
    }

    /// Starts it, empty, for clients with a certificate of this authority. Tokens of users who do not use them end
    /// after so many seconds.
    pub async fn start_secure(authority: &Authority, token_seconds: u64) -> Self {
        let tls = Tls { ca: authority.file(), own: authority.issue("etcd") };
        Self::start_with(Place::of(None, "etcd"), Some(tls), token_seconds).await
    }

    pub(crate) async fn start_at(place: Place) -> Self {
        Self::start_with(place, None, 300).await
    }

    async fn start_with(place: Place, tls: Option<Tls>, token_seconds: u64) -> Self {
        let folder = TempDir::new().expect("a folder");
        let mut etcd = Self { folder, place, tls, token_seconds, process: None };
        etcd.resume().await;
        etcd
    }

    /// Its URL.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.place.addresses[0])
    }

    /// A client of the test's own, as a user.
    async fn client(&self, user: Option<(&str, &str)>) -> Client {
        let mut options = ConnectOptions::new();
        if let Some(Tls { ca, own }) = &self.tls {
            let read = |path: &Path| std::fs::read(path).expect("a PEM file");
            let identity = Pem::from_pem(read(&own.certificate), read(&own.key));
            options =
                options.with_tls(TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca))).identity(identity));
        }
        if let Some((user, password)) = user {
            options = options.with_user(user, password);
        }
        Client::connect([self.url()], Some(options)).await.expect("a client of etcd")
    }

    /// From now on it asks for users: there are `root`, whose password is `root`, and `user`, who may read and write
    /// what begins with `prefix`.
    pub async fn ask_for_users(&self, user: &str, password: &str, prefix: &str) {
        let mut client = self.client(None).await;
        client.role_add("nodes").await.expect("a role");
        let permission = Permission::read_write(prefix).with_prefix();
        client.role_grant_permission("nodes", permission).await.expect("a permission");
        for (user, password, role) in [("root", "root", "root"), (user, password, "nodes")] {
            client.user_add(user, password, None).await.expect("a user");
            client.user_grant_role(user, role).await.expect("the user's role");
        }
        client.auth_enable().await.expect("authentication");
    }

    /// Gives a user another password.
    pub async fn change_password(&self, user: &str, password: &str) {
        let mut client = self.client(Some(("root", "root"))).await;
        client.user_change_password(user, password).await.expect("the new password");
    }

    /// Its process, to freeze it.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("it has not been stopped")
    }

    /// Raises the alarm that a full disk raises, or takes it back.
    pub async fn has_no_space(&self, full: bool) {
        let mut client = self.client(None).await;
        let action = if full { AlarmAction::Activate } else { AlarmAction::Deactivate };
        client.alarm(action, AlarmType::Nospace, None).await.expect("the alarm");
    }

    /// Forgets how what it holds came about.
    pub async fn compact(&self) {
        let mut client = etcd_client::Client::connect([self.url()], None).await.expect("etcd");
        let now = client.get("now", None).await.expect("its revision").header().expect("a header").revision();
        client.compact(now, None).await.expect("a compaction");
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
        std::fs::remove_dir_all(self.folder.path().join("data")).expect("etcd's data");
    }

    /// Starts it again, at the same place.
    pub async fn resume(&mut self) {
        let [_, peer, health_address] = self.place.addresses;
        let (client, peer, health) = (self.url(), format!("http://{peer}"), format!("http://{health_address}"));
        let path = |path: &Path| path.display().to_string();
        let data = path(&self.folder.path().join("data"));
        let (cluster, token_seconds) = (format!("one={peer}"), self.token_seconds.to_string());
        let mut arguments = vec![
            ("--name", "one".to_owned()),
            ("--data-dir", data),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer),
            ("--initial-cluster", cluster),
            // in the clear, also where clients need TLS
            ("--listen-metrics-urls", health),
            ("--auth-token-ttl", token_seconds),
        ];
        if let Some(Tls { ca, own }) = &self.tls {
            arguments.extend([
                ("--cert-file", path(&own.certificate)),
                ("--key-file", path(&own.key)),
                ("--trusted-ca-file", path(ca)),
            ]);
        }
        let mut arguments: Vec<String> =
            arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
        arguments.extend(self.tls.is_some().then(|| "--client-cert-auth".to_owned()));
        let mut process = self.place.spawn(&program("etcd"), &arguments);
        let until = Instant::now() + READY;
        while !get(health_address, "/health").await.is_ok_and(|(_, body)| body.contains("true")) {
            process.must_run();
            assert!(Instant::now() < until, "etcd is not healthy:\n{}", process.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.process = Some(process);
    }
}
