//! A cable between two namespaces that can be long, narrow and lossy: frames go through this process, which holds them
//! back or drops them. `tc netem` does the same where the kernel has it; many have it not.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_tun::Tun;

/// Frames that wait on the way; more are dropped, as a router does.
const QUEUE: usize = 2000;
/// A frame at most; larger than what the devices send.
const FRAME: usize = 4096;

/// What a cable does to what it carries, each way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// How long a frame is under way.
    pub delay: Duration,
    /// Share of the frames that are lost.
    pub loss: f64,
    /// Bytes per second at most; none: as fast as it goes.
    pub rate: Option<f64>,
}

/// See the module. The devices go with it.
pub(crate) struct Wire {
    link: Arc<Mutex<Link>>,
    _stop: oneshot::Sender<()>,
}

impl Wire {
    /// A cable whose ends are the Ethernet devices of these names, in the namespace of this process; or why it cannot
    /// be made.
    pub(crate) fn new(near: &str, far: &str) -> Result<Self, String> {
        let link = Arc::new(Mutex::new(Link::default()));
        let (stop, stopped) = oneshot::channel::<()>();
        let (made, ready) = std::sync::mpsc::channel();
        let (names, shared) = ([near.to_owned(), far.to_owned()], link.clone());
        // a thread of its own: a test that is busy must not make it longer than it is
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let [near, far] = names.map(|name| Tun::builder().name(&name).tap().build());
                let (near, far) = match (near, far) {
                    (Ok(near), Ok(far)) => (near, far),
                    (Err(error), _) | (_, Err(error)) => {
                        let _ = made.send(Err(format!("an Ethernet device: {error}")));
                        return;
                    }
                };
                let _ = made.send(Ok(()));
                tokio::select! {
                    () = carry(&near[0], &far[0], &shared, 1) => {}
                    () = carry(&far[0], &near[0], &shared, 2) => {}
                    _ = stopped => {}
                }
            });
        });
        ready.recv().expect("a cable")?;
        Ok(Self { link, _stop: stop })
    }

    pub(crate) fn set(&self, link: Link) {
        *self.link.lock().expect("nobody has panicked with it") = link;
    }
}

/// Carries frames one way.
async fn carry(from: &Tun, to: &Tun, link: &Mutex<Link>, seed: u64) {
    let (queue, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(QUEUE);
    let mut random = SmallRng::seed_from_u64(seed);
    let departing = async {
        let mut frame = [0; FRAME];
        let mut free = Instant::now();
        loop {
            // a device that is down for now says so
            let Ok(length) = from.recv(&mut frame).await else {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            let link = *link.lock().expect("nobody has panicked with it");
            if random.random_bool(link.loss) {
                continue;
            }
            free = free.max(Instant::now());
            if let Some(rate) = link.rate {
                #[allow(clippy::cast_precision_loss)]
                let takes = Duration::from_secs_f64(length as f64 / rate);
                free += takes;
            }
            let _ = queue.try_send((free + link.delay, frame[..length].to_vec()));
        }
    };
    let delivering = async {
        while let Some((due, frame)) = arriving.recv().await {
            tokio::time::sleep_until(due).await;
            let _ = to.send(&frame).await;
        }
    };
    tokio::join!(departing, delivering);
}
