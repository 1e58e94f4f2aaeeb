//! What does not make sense in a configuration although every value is of the right kind: out of range, or at odds with
//! another key. Nothing is opened or looked up, so that a file can be checked on another host than its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use sensorium_runtime::config::Objection;

use super::Config;

/// Collects objections.
#[derive(Default)]
struct Found(Vec<Objection>);

impl Found {
    fn add(&mut self, objection: Objection) {
        self.0.push(objection);
    }

    fn when(&mut self, wrong: bool, key: &str, expected: &str) {
        if wrong {
            self.add(Objection::new(key, expected));
        }
    }

    /// 0 would switch off what cannot be.
    fn at_least_one(&mut self, counts: &[(&str, u64)]) {
        for (key, count) in counts {
            self.when(*count == 0, key, "expected at least 1");
        }
    }

    /// From 0 to 1.
    fn share(&mut self, key: &str, value: f64) {
        self.when(!(0.0..=1.0).contains(&value), key, "expected a number from 0 to 1");
    }

    /// All of these are set, or none.
    fn together(&mut self, keys: &[(&str, bool)]) {
        let Some((set, _)) = keys.iter().find(|(_, set)| *set) else { return };
        let missing: Vec<&str> = keys.iter().filter(|(_, set)| !set).map(|(key, _)| *key).collect();
        if !missing.is_empty() {
            let objection = Objection::new(set, format!("expected {} beside it, or none of them", missing.join(", ")));
            self.add(missing.iter().fold(objection, |objection, key| objection.beside(key)));
        }
    }

    /// A key that means nothing without another.
    fn needs(&mut self, (key, set): (&str, bool), (other, there): (&str, bool)) {
        if set && !there {
            self.add(Objection::new(key, format!("expected {other} beside it")).beside(other));
        }
    }

    /// URLs of one of these schemes, or hosts without one.
    fn urls(&mut self, key: &str, urls: &[String], schemes: &[&str]) {
        let known = |url: &String| {
            let (scheme, host) = url.split_once("://").unwrap_or((schemes[0], url));
            schemes.contains(&scheme) && !host.is_empty()
        };
        if !urls.iter().all(known) {
            let expected: Vec<String> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
            self.add(Objection::new(key, format!("expected URLs with {}", expected.join(" or "))));
        }
    }
}

fn set(file: Option<&PathBuf>) -> bool {
    file.is_some()
}

impl Config {
    /// All that is out of range, or at odds with another key.
    pub fn check(&self) -> Vec<Objection> {
        let mut found = Found::default();
        self.node(&mut found);
        self.doors(&mut found);
        self.outside(&mut found);
        self.models(&mut found);
        found.0
    }

    fn node(&self, found: &mut Found) {
        let limits = &self.limits;
        found.at_least_one(&[
            ("capacity", self.capacity.into()),
            ("compute.decoded_bytes", self.compute.decoded_bytes as u64),
            ("plane.connections", self.plane.connections as u64),
            ("plane.idle_seconds", self.plane.idle_seconds),
            ("plane.keep_alive_ms", self.plane.keep_alive_ms),
            ("plane.keep_alive_timeout_ms", self.plane.keep_alive_timeout_ms),
            ("limits.max_message_bytes", limits.max_message_bytes as u64),
            ("limits.max_inflight", limits.max_inflight.into()),
            ("limits.max_streams", limits.max_streams.into()),
            ("limits.stream_requests", limits.stream_requests as u64),
            ("limits.max_parts", limits.max_parts as u64),
            ("limits.keep_alive_seconds", limits.keep_alive_seconds),
            ("limits.keep_alive_timeout_seconds", limits.keep_alive_timeout_seconds),
        ]);
        // a name is the root of actors' paths, and the end of a key in etcd
        found.when(self.name.contains('/'), "name", "expected a name without /");
        let path = &self.metrics_path;
        found.when(!path.is_empty() && !path.starts_with('/'), "metrics_path", "expected a path that begins with /");
        let port = self.advertise.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        let whole = port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0));
        found.when(!self.advertise.is_empty() && !whole, "advertise", "expected HOST:PORT");
        for (key, address) in [("grpc", self.grpc), ("listen", self.listen)] {
            if self.http.is_some_and(|http| clash(http, address)) {
                found.add(Objection::new("http", format!("expected another address than {key}")).beside(key));
            }
        }
        let drain = self.drain_seconds.saturating_mul(1000);
        if drain > 0 && self.drain_notice_ms > drain {
            found.add(Objection::new("drain_notice_ms", "expected no more than drain_seconds").beside("drain_seconds"));
        }
    }

    fn doors(&self, found: &mut Found) {
        let (tls, plane, auth) = (&self.tls, &self.plane, &self.auth);
        let certificate = ("tls.certificate", set(tls.certificate.as_ref()));
        found.together(&[certificate, ("tls.key", set(tls.key.as_ref()))]);
        found.needs(("tls.client_ca", set(tls.client_ca.as_ref())), certificate);
        let authority = ("plane.ca", set(plane.ca.as_ref()));
        let (own, key) = (set(plane.certificate.as_ref()), set(plane.key.as_ref()));
        found.together(&[("plane.certificate", own), ("plane.key", key), authority]);
        found.needs(("plane.server_name", !plane.server_name.is_empty()), authority);
        let signers = ("auth.jwks", set(auth.jwks.as_ref()));
        // a key may sign for many services
        found.needs(signers, ("auth.audience", !auth.audience.is_empty()));
        found.needs(("auth.audience", !auth.audience.is_empty()), signers);
        found.needs(("auth.issuer", !auth.issuer.is_empty()), signers);
    }

    fn outside(&self, found: &mut Found) {
        let (register, cache, jobs) = (&self.register, &self.cache, &self.jobs);
        found.at_least_one(&[
            ("register.lease_seconds", register.lease_seconds),
            ("cache.ttl_seconds", cache.ttl_seconds),
            ("cache.max_value_bytes", cache.max_value_bytes as u64),
            ("cache.timeout_ms", cache.timeout_ms),
            ("jobs.retention_seconds", jobs.retention_seconds),
            ("jobs.ack_seconds", jobs.ack_seconds),
            ("jobs.max_queued", jobs.max_queued.into()),
            ("jobs.max_queued_per_tenant", jobs.max_queued_per_tenant.into()),
            ("jobs.max_bytes", jobs.max_bytes),
            ("jobs.tasks.tenant_bytes", jobs.tasks.tenant_bytes),
            ("jobs.tasks.max_items", jobs.tasks.max_items),
            ("jobs.tasks.max_deliveries", jobs.tasks.max_deliveries),
            ("jobs.tasks.task_seconds", jobs.tasks.task_seconds),
        ]);
        let named = !register.cluster.is_empty() && !register.cluster.contains('/');
        found.when(!named, "register.cluster", "expected a name without /");
        // with its envelope it has to fit into a message of NATS, of a MiB unless that was changed
        let inline = jobs.tasks.inline_bytes;
        found.when(inline > 262_144, "jobs.tasks.inline_bytes", "expected 262144 at most");
        // JetStream keeps no more copies of a stream
        found.when(!(1..=5).contains(&jobs.replicas), "jobs.replicas", "expected 1 to 5");

        found.urls("etcd", &self.etcd, &["http", "https"]);
        found.urls("nats", &self.nats, &["nats", "tls", "ws", "wss"]);
        let redis = ["redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"];
        let scheme = self.redis.split_once("://").map_or("", |(scheme, _)| scheme);
        let is_redis = self.redis.is_empty() || redis.contains(&scheme);
        found.when(!is_redis, "redis", "expected redis://, rediss://, redis+sentinel:// or redis+cluster://");

        for (certificate, key, both) in [
            ("register.certificate", "register.key", (&register.certificate, &register.key)),
            ("cache.certificate", "cache.key", (&cache.certificate, &cache.key)),
            ("jobs.certificate", "jobs.key", (&jobs.certificate, &jobs.key)),
        ] {
            found.together(&[(certificate, set(both.0.as_ref())), (key, set(both.1.as_ref()))]);
        }
        let authority = ("register.ca", set(register.ca.as_ref()));
        found.needs(("register.certificate", set(register.certificate.as_ref())), authority);
        found.needs(("etcd", self.etcd.iter().any(|url| url.starts_with("https://"))), authority);
        let clear = self.etcd.iter().any(|url| url.starts_with("http://"));
        if authority.1 && clear {
            found.add(Objection::new("register.ca", "expected https:// in all of etcd beside it").beside("etcd"));
        }
        let user = ("register.user", !register.user.is_empty());
        found.needs(("register.password", !register.password.is_empty()), user);
        let redis = ("redis", !self.redis.is_empty());
        found.needs(("cache.password", !cache.password.is_empty()), redis);
        found.needs(("cache.ca", set(cache.ca.as_ref())), redis);
        if set(cache.ca.as_ref()) && redis.1 && is_redis && !scheme.starts_with("rediss") {
            found.add(Objection::new("cache.ca", "expected rediss:// in redis beside it").beside("redis"));
        }
        let nats = ("nats", !self.nats.is_empty());
        found.needs(("jobs.credentials", set(jobs.credentials.as_ref())), nats);
        found.needs(("jobs.ca", set(jobs.ca.as_ref())), nats);
    }

    fn models(&self, found: &mut Found) {
        let understand = &self.understand;
        found.share("understand.branch_budget", understand.branch_budget);
        found.share("understand.image_guard_threshold", understand.image_guard_threshold.into());
        found.share("understand.text_guard_threshold", understand.text_guard_threshold.into());
        let pairs = &understand.thresholds;
        for (key, pair) in
            [("text_image", pairs.text_image), ("text_audio", pairs.text_audio), ("image_audio", pairs.image_audio)]
        {
            let key = |name: &str| format!("understand.thresholds.{key}.{name}");
            for (name, cosine) in [("agree", pair.agree), ("conflict", pair.conflict)] {
                found.when(!cosine.is_finite(), &key(name), "expected a finite number");
            }
            if pair.conflict > pair.agree {
                let expected = format!("expected no more than {}", key("agree"));
                found.add(Objection::new(&key("conflict"), expected).beside(&key("agree")));
            }
        }
        found.when(self.models.iter().any(|model| model.contains('/')), "models", "expected names without /");
    }
}

/// Both cannot be listened on. Port 0 is a free one.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use sensorium_runtime::config::{Error, read};

    use super::*;

    pub fn check(text: &str) -> Vec<(String, String)> {
        let file = std::env::temp_dir().join(format!("sensorium-check-{}.toml", uuid::Uuid::new_v4()));
        std::fs::write(&file, text).unwrap();
        let outcome = read(Some(&file), std::iter::empty(), &[], Config::check);
        std::fs::remove_file(&file).unwrap();
        match outcome {
            Ok(_) => Vec::new(),
            Err(Error::Mistakes(mistakes)) => mistakes.into_iter().map(|found| (found.key, found.message)).collect(),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn the_defaults_and_a_whole_cluster_are_sound() {
        assert_eq!(Config::default().check(), []);
        let text = r#"
            grpc = "0.0.0.0:8001"
            http = "0.0.0.0:8002"
            advertise = "worker-1.workers:8101"
            etcd = ["https://etcd-0:2379"]
            nats = "nats://nats:4222"
            redis = "rediss://redis:6379"
            [register]
            ca = "ca.pem"
            certificate = "c.pem"
            key = "k.pem"
            user = "u"
            password = "p"
            [cache]
            ca = "ca.pem"
        "#;
        assert_eq!(check(text), []);
    }

    #[test]
    fn every_value_out_of_range_and_every_contradiction_is_named() {
        let text = r#"
            name = "a/b"
            capacity = 0
            advertise = "nowhere"
            grpc = "0.0.0.0:8001"
            http = "127.0.0.1:8001"
            metrics_path = "metrics"
            etcd = ["ftp://etcd"]
            redis = "http://redis"
            [plane]
            connections = 0
            ca = "ca.pem"
            [tls]
            client_ca = "clients.pem"
            [auth]
            jwks = "signers.json"
            [register]
            cluster = ""
            lease_seconds = 0
            certificate = "c.pem"
            password = "p"
            [cache]
            key = "k.pem"
            timeout_ms = 0
            [jobs]
            replicas = 9
            credentials = "nats.creds"
            [understand]
            branch_budget = 1.5
            [understand.thresholds.text_image]
            agree = 0.1
            conflict = 0.2
            [understand.thresholds.text_audio]
            agree = nan
            conflict = -inf
        "#;
        let found = check(text);
        let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
        for key in [
            "name",
            "capacity",
            "advertise",
            "http",
            "metrics_path",
            "etcd",
            "redis",
            "plane.connections",
            "plane.ca",
            "tls.client_ca",
            "auth.jwks",
            "register.cluster",
            "register.lease_seconds",
            "register.password",
            "cache.key",
            "cache.timeout_ms",
            "jobs.replicas",
            "jobs.credentials",
            "understand.branch_budget",
            "understand.thresholds.text_image.conflict",
            "understand.thresholds.text_audio.agree",
            "understand.thresholds.text_audio.conflict",
        ] {
            assert!(keys.contains(&key), "{key} in {found:?}");
        }
        let certificate: Vec<_> = found.iter().filter(|(key, _)| key == "register.certificate").collect();
        assert_eq!(certificate.len(), 2, "without its key and without an authority: {found:?}");
        assert_eq!(found.len(), 24, "{found:?}");
    }
}
