//! The connections to one worker: made when it is called, watched while they are there, and closed when nobody has called
//! it for a while. A gateway that knows a thousand workers and calls sixty keeps the connections of sixty.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use sensorium_cluster::membership::Link;
use sensorium_runtime::lanes::Lanes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::connection::{Connection, Way};
use crate::error::is_answer;
use crate::remote::Dial;

/// How often a worker that is suspected is asked whether it is there, and how long it may take to say so.
const PROBE: Duration = Duration::from_millis(250);
const PROBE_ANSWER: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Line {
    way: Arc<Way>,
    /// Connections that each lane has.
    each: usize,
    lanes: Option<Lanes>,
    idle: Duration,
    link: watch::Receiver<Link>,
    /// First those of the first lane.
    open: Mutex<Option<Vec<Connection>>>,
    next: AtomicUsize,
    born: Instant,
    /// When it was last called, in milliseconds after `born`.
    used: AtomicU64,
    reachable: AtomicBool,
    /// When the worker last answered, in milliseconds after `born`.
    heard: AtomicU64,
    /// A call has suspected the worker: it is asked at once.
    suspected: Arc<Notify>,
}

impl Line {
    /// A line that is not open yet.
    pub(crate) fn new(way: Way, dial: &Dial, link: watch::Receiver<Link>) -> Arc<Self> {
        let reachable = way.barred.is_none();
        Arc::new(Self {
            way: Arc::new(way),
            each: dial.connections.div_ceil(dial.lanes.as_ref().map_or(1, |lanes| lanes.handles().len())).max(1),
            lanes: dial.lanes.clone(),
            idle: dial.idle,
            link,
            open: Mutex::new(None),
            next: AtomicUsize::new(0),
            born: Instant::now(),
            used: AtomicU64::new(0),
            reachable: AtomicBool::new(reachable),
            heard: AtomicU64::new(0),
            suspected: Arc::default(),
        })
    }

    /// A connection for a call: those of the caller's lane take turns, or all of them if it is on none.
    pub(crate) fn connection(self: &Arc<Self>) -> Connection {
        let turn = self.next.fetch_add(1, Relaxed);
        let mut open = self.open.lock();
        self.used.store(self.now(), Relaxed);
        let connections = open.get_or_insert_with(|| self.dial());
        let own = match (&self.lanes, Lanes::current()) {
            (Some(_), Some(lane)) => &connections[lane * self.each..(lane + 1) * self.each],
            _ => &connections[..],
        };
        own[turn % own.len()].clone()
    }

    /// None of them is there before it is called.
    fn dial(self: &Arc<Self>) -> Vec<Connection> {
        let here = [Handle::current()];
        let lanes = self.lanes.as_ref().map_or(&here[..], Lanes::handles);
        let lanes = lanes.iter().flat_map(|lane| std::iter::repeat_n(lane, self.each));
        let connections: Vec<_> = lanes.map(|lane| Connection::new(self.way.clone(), lane.clone())).collect();
        tokio::spawn(watch_over(Arc::downgrade(self), connections[0].clone()));
        connections
    }

    /// Whether the worker can be reached, as its calls have told.
    pub(crate) fn is_reachable(&self) -> bool {
        self.reachable.load(Relaxed)
    }

    /// The worker has answered a call.
    pub(crate) fn heard(&self) {
        self.heard.store(self.now(), Relaxed);
    }

    /// For how long the worker has answered nothing.
    pub(crate) fn silent_for(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.heard.load(Relaxed)))
    }

    /// A call could not reach it. Returns whether that is news. A long call may have outlived the line: it is opened anew,
    /// as only a line that is open is watched until the worker is back.
    pub(crate) fn suspect(self: &Arc<Self>) -> bool {
        let mut open = self.open.lock();
        open.get_or_insert_with(|| self.dial());
        let is_news = self.reachable.swap(false, Relaxed);
        self.suspected.notify_one();
        is_news
    }

    /// Closes the connections if nobody has called for a while; a call that runs keeps its own until it ends. One that
    /// is suspected is watched until it is back.
    fn close_if_idle(&self) -> bool {
        let mut open = self.open.lock();
        let since = Duration::from_millis(self.now().saturating_sub(self.used.load(Relaxed)));
        let idle = since >= self.idle && self.is_reachable();
        if idle {
            *open = None;
        }
        idle
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Asks a worker whether it is there, while it is suspected or the register is out of reach. Ends with the connections.
async fn watch_over(line: Weak<Line>, connection: Connection) {
    let mut health = HealthClient::with_origin(connection.clone(), connection.origin());
    let mut missed = 0;
    let Some(suspected) = line.upgrade().map(|line| line.suspected.clone()) else { return };
    loop {
        // the sooner of the two
        let _ = tokio::time::timeout(PROBE, suspected.notified()).await;
        let Some(line) = line.upgrade() else { return };
        if line.close_if_idle() {
            return;
        }
        if line.is_reachable() && *line.link.borrow() == Link::Current {
            missed = 0;
            continue;
        }
        let answer = health.check(HealthCheckRequest { service: String::new() });
        // whatever it answers, it is there
        let there = match tokio::time::timeout(PROBE_ANSWER, answer).await {
            Ok(Ok(_)) => true,
            Ok(Err(status)) => is_answer(&status),
            Err(_) => false,
        };
        missed = if there { 0 } else { missed + 1 };
        if there {
            line.heard();
            line.reachable.store(true, Relaxed);
        } else if missed >= 2 {
            line.reachable.store(false, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::net::TcpListener;
    use tonic::transport::Server;
    use tonic_health::ServingStatus;
    use tonic_health::server::HealthReporter;

    use super::*;

    /// A server that says how many connections it has been given.
    async fn server() -> (SocketAddr, Arc<AtomicUsize>, HealthReporter) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let incoming = futures::stream::unfold(listener, move |listener| {
            let count = count.clone();
            async move {
                let (stream, _) = listener.accept().await.ok()?;
                count.fetch_add(1, Relaxed);
                Some((Ok::<_, std::io::Error>(stream), listener))
            }
        });
        let (reporter, health) = tonic_health::server::health_reporter();
        tokio::spawn(Server::builder().add_service(health).serve_with_incoming(incoming));
        (address, accepted, reporter)
    }

    fn line(address: SocketAddr, idle: Duration) -> Arc<Line> {
        let (told, link) = watch::channel(Link::Current);
        drop(told);
        let dial = Dial { idle, ..Dial::default() };
        Line::new(dial.way(format!("http://{address}").parse().unwrap(), None), &dial, link)
    }

    fn client(line: &Arc<Line>) -> HealthClient<Connection> {
        let connection = line.connection();
        HealthClient::with_origin(connection.clone(), connection.origin())
    }

    async fn call(line: &Arc<Line>) {
        client(line).check(HealthCheckRequest { service: String::new() }).await.unwrap();
    }

    async fn closed(line: &Line) {
        let closed = async {
            while line.open.lock().is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), closed).await.expect("closed after a while without calls");
    }

    #[tokio::test]
    async fn connections_are_made_by_calls_and_closed_when_there_are_none() {
        let (address, accepted, _) = server().await;
        let line = line(address, Duration::from_millis(100));
        assert!(line.open.lock().is_none() && accepted.load(Relaxed) == 0, "nobody has called yet");
        for _ in 0..10 {
            call(&line).await;
        }
        assert_eq!(accepted.load(Relaxed), 2, "calls take turns on the connections there are");
        closed(&line).await;
        call(&line).await;
        assert_eq!(accepted.load(Relaxed), 3, "and made again by the next");
    }

    #[tokio::test]
    async fn a_stream_outlives_the_line() {
        let (address, _, reporter) = server().await;
        let line = line(address, Duration::from_millis(50));
        let request = HealthCheckRequest { service: String::new() };
        let mut stream = client(&line).watch(request).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        closed(&line).await;
        reporter.set_service_status("", ServingStatus::NotServing).await;
        let told = stream.message().await.unwrap().unwrap();
        assert_eq!(told.status(), tonic_health::pb::health_check_response::ServingStatus::NotServing);
    }

    #[tokio::test]
    async fn a_worker_that_is_suspected_is_watched_until_it_is_back() {
        let (address, ..) = server().await;
        // nobody has called it, or it was closed since
        let line = line(address, Duration::ZERO);
        assert!(line.suspect() && !line.is_reachable());
        let back = async {
            while !line.is_reachable() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), back).await.expect("it answers");
        assert!(line.silent_for() < line.born.elapsed(), "and was heard");
    }
}
