//! The way to Redis: what a URL means, and a connection that is made again whenever it breaks.

use std::sync::{Arc, Weak};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use redis::cluster::ClusterClient;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisResult,
    TlsCertificates, TlsMode,
};

use super::{Connection, Error, Far, Options, PATIENCE};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);
/// What an answer may take at most; look-ups give up sooner.
const ANSWER: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// How often a cache that nobody asks looks whether Redis is there: `status` tells of it.
const PING: Duration = Duration::from_secs(1);

/// Whom to connect to.
pub(super) enum Server {
    One(Box<Client>),
    Sentinel(Box<SentinelClient>),
    Cluster(Box<ClusterClient>),
}

impl Server {
    pub(super) fn parse(options: &Options) -> Result<Self, Error> {
        let shown = without_password(&options.url);
        let bad = |message: String| Error { url: shown.clone(), message };
        let expected = "expected redis://, rediss://, redis+sentinel:// or redis+cluster://";
        let (scheme, rest) = options.url.split_once("://").ok_or_else(|| bad(expected.to_owned()))?;
        let (tls, kind) = match scheme.split_once('+').unwrap_or((scheme, "")) {
            ("redis", kind) => (false, kind),
            ("rediss", kind) => (true, kind),
            _ => return Err(bad(expected.to_owned())),
        };
        let made = match kind {
            "" => one(options),
            "cluster" => cluster(options, tls, rest),
            "sentinel" => {
                let (hosts, master) = rest.split_once('/').unwrap_or((rest, ""));
                let master = master.split(['/', '?']).next().unwrap_or_default();
                if master.is_empty() {
                    return Err(bad("no master's name, expected redis+sentinel://HOST:PORT,…/MASTER".to_owned()));
                }
                sentinel(options, tls, hosts, master)
            }
            _ => return Err(bad(expected.to_owned())),
        };
        made.map_err(|error| bad(error.to_string()))
    }

    async fn connect(&mut self) -> RedisResult<Connection> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(ANSWER));
        Ok(match self {
            Self::One(client) => Connection::One(client.get_multiplexed_async_connection_with_config(&config).await?),
            Self::Sentinel(client) => Connection::One(client.get_async_connection_with_config(&config).await?),
            Self::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
        })
    }
}

/// A URL as it may stand in a log.
fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        _ => url.to_owned(),
    }
}

fn certificates(options: &Options) -> TlsCertificates {
    let identity = options.identity.clone();
    TlsCertificates {
        client_tls: identity.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
        root_cert: options.authority.clone(),
    }
}

fn one(options: &Options) -> RedisResult<Server> {
    let info = with_password(options, options.url.as_str().into_connection_info()?);
    let tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    let client = if tls { Client::build_with_tls(info, certificates(options))? } else { Client::open(info)? };
    Ok(Server::One(Box::new(client)))
}

fn with_password(options: &Options, info: ConnectionInfo) -> ConnectionInfo {
    if options.password.is_empty() {
        return info;
    }
    let settings = info.redis_settings().clone().set_password(&options.password);
    info.set_redis_settings(settings)
}

/// Each host of a list as a URL of its own; what stands before an `@` goes for all.
fn hosts(tls: bool, list: &str) -> impl Iterator<Item = String> {
    let (user, list) = list.rsplit_once('@').map_or(("", list), |(user, list)| (user, list));
    let user = if user.is_empty() { String::new() } else { format!("{user}@") };
    let scheme = if tls { "rediss" } else { "redis" };
    list.split(',').map(move |host| format!("{scheme}://{user}{}", host.trim()))
}

fn cluster(options: &Options, tls: bool, list: &str) -> RedisResult<Server> {
    let mut builder = ClusterClient::builder(hosts(tls, list)).connection_timeout(CONNECT).response_timeout(ANSWER);
    if !options.password.is_empty() {
        builder = builder.password(&options.password);
    }
    if tls {
        builder = builder.certs(certificates(options));
    }
    Ok(Server::Cluster(Box::new(builder.build()?)))
}

fn sentinel(options: &Options, tls: bool, list: &str, master: &str) -> RedisResult<Server> {
    let infos: RedisResult<Vec<ConnectionInfo>> =
        hosts(false, list).map(IntoConnectionInfo::into_connection_info).collect();
    let infos = infos?;
    let settings = infos.first().map(|info| info.redis_settings().clone()).unwrap_or_default();
    let addresses = infos.iter().map(|info| info.addr().clone());
    let mut builder = SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?;
    let password = if options.password.is_empty() { settings.password() } else { Some(options.password.as_str()) };
    if let Some(password) = password {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(user) = settings.username() {
        builder = builder.set_client_to_redis_username(user);
    }
    if tls {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        builder = builder.set_client_to_redis_certificates(certificates(options));
    }
    Ok(Server::Sentinel(Box::new(builder.build()?)))
}

/// Connects, and connects again whenever it is told that the connection is broken, for as long as the cache lives.
pub(super) async fn keep(mut server: Server, far: Weak<Far>) {
    let pauses = || {
        let builder = ExponentialBuilder::new().with_min_delay(FIRST_PAUSE).with_max_delay(LONGEST_PAUSE);
        builder.with_jitter().without_max_times().build()
    };
    let mut pause = pauses();
    let mut said = false;
    loop {
        let connected = tokio::time::timeout(CONNECT, server.connect()).await;
        let Some(cache) = far.upgrade() else { return };
        match connected {
            Ok(Ok(connection)) => {
                cache.connection.store(Some(Arc::new(connection)));
                (pause, said) = (pauses(), false);
                let broken = cache.broken.clone();
                drop(cache);
                until_broken(&far, &broken).await;
                let Some(cache) = far.upgrade() else { return };
                // a cluster's connection knows its nodes, and mends itself. One that still answers is used until there is another
                if cache.reads.unwell_since().is_some() {
                    cache.connection.store(None);
                }
            }
            outcome => {
                let error = match outcome {
                    Ok(Err(error)) => error.to_string(),
                    _ => "no answer".to_owned(),
                };
                if !said {
                    tracing::warn!(error, "cannot connect to redis, the cache goes on without it");
                    said = true;
                }
                cache.reads.is_down(error);
                drop(cache);
                tokio::time::sleep(pause.next().unwrap_or(LONGEST_PAUSE)).await;
            }
        }
    }
}

/// Pings now and then, so that a quiet cache knows, too, how Redis fares.
async fn until_broken(far: &Weak<Far>, broken: &tokio::sync::Notify) {
    loop {
        let Some(cache) = far.upgrade() else { return };
        let ping = redis::cmd("PING");
        cache.read(cache.timeout * PATIENCE, async |mut connection| ping.exec_async(&mut connection).await).await;
        if cache.writes.unwell_since().is_some() {
            cache.try_writing().await;
        }
        drop(cache);
        tokio::select! {
            () = broken.notified() => return,
            () = tokio::time::sleep(PING) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Server, Error> {
        let options = Options {
            url: url.to_owned(),
            password: String::new(),
            authority: None,
            identity: None,
            timeout: Duration::from_millis(5),
            prefix: "sensorium".to_owned(),
        };
        Server::parse(&options)
    }

    #[test]
    fn urls_of_all_kinds_are_understood() {
        assert!(matches!(parse("redis://127.0.0.1:6379/2"), Ok(Server::One(_))));
        assert!(matches!(parse("redis+cluster://:secret@a:1,b:2"), Ok(Server::Cluster(_))));
        assert!(matches!(parse("redis+sentinel://a:26379,b:26379/mymaster"), Ok(Server::Sentinel(_))));
    }

    #[test]
    fn mistakes_are_named_and_passwords_are_not() {
        let told = |url: &str| parse(url).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(told("http://127.0.0.1").contains("expected redis://"));
        assert!(told("127.0.0.1:6379").contains("expected redis://"));
        let sentinel = told("redis+sentinel://:secret@a:26379");
        assert!(sentinel.contains("MASTER") && !sentinel.contains("secret"), "{sentinel}");
    }
}
