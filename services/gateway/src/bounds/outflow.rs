//! An answer on its way to its caller. Until it has been taken it counts as being in work, and it is not kept for ever
//! for somebody who takes nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http_body::Frame;
use parking_lot::Mutex;
use sensorium_actors::admission::Permit;
use sensorium_actors::error::Error;
use sensorium_plane::status;
use sensorium_runtime::lanes::Lanes;
use slab::Slab;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;

use super::Charge;

/// Bytes that are handed on at a time: so much may lie in the transport's buffers when an answer counts as taken.
const PIECE: usize = 32 << 10;
/// How often answers are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What an answer holds until it is taken: the place of its request, and its bytes. Handlers leave it in the extensions
/// of their response.
#[derive(Clone)]
pub struct Held(#[allow(dead_code, reason = "held, not read")] Arc<(Permit, Charge)>);

impl Held {
    /// The place of a request, and the bytes of its answer.
    pub fn new(permit: Permit, charge: Charge) -> Self {
        Self(Arc::new((permit, charge)))
    }
}

/// Answers that have not been taken, by lane.
pub struct Unread {
    lanes: Vec<Mutex<Slab<Arc<Mutex<Answer>>>>>,
    stall: Duration,
}

struct Answer {
    body: Option<Body>,
    held: Option<Held>,
    /// What of a frame has not been handed on.
    rest: Bytes,
    /// When the transport was given something; nothing while it waits for more.
    given: Option<Instant>,
}

impl Unread {
    /// Of a process with so many lanes; an answer of which nothing is taken for `stall` is given up.
    pub fn start(lanes: usize, stall: Duration) -> Arc<Self> {
        metrics::describe_counter!(
            "sensorium_stalled_total",
            "Calls that were ended since nothing of the request came, or nothing of the answer was taken"
        );
        let lanes = (0..lanes.max(1)).map(|_| Mutex::default()).collect();
        let unread = Arc::new(Self { lanes, stall });
        let watched = Arc::downgrade(&unread);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(unread) = watched.upgrade() else { return };
                unread.give_up();
            }
        });
        unread
    }

    /// Follows an answer to its end.
    pub(super) fn follow(self: &Arc<Self>, body: Body, held: Option<Held>) -> Outflow {
        let answer = Answer { body: Some(body), held, rest: Bytes::new(), given: Some(Instant::now()) };
        let answer = Arc::new(Mutex::new(answer));
        let lane = Lanes::current().unwrap_or(0).min(self.lanes.len() - 1);
        let key = self.lanes[lane].lock().insert(answer.clone());
        Outflow { answer, unread: self.clone(), lane, key }
    }

    fn give_up(&self) {
        let now = Instant::now();
        for lane in &self.lanes {
            let all: Vec<_> = lane.lock().iter().map(|(_, answer)| answer.clone()).collect();
            for answer in all {
                let mut answer = answer.lock();
                if answer.given.is_some_and(|given| now.saturating_duration_since(given) > self.stall) {
                    metrics::counter!("sensorium_stalled_total", "direction" => "answer").increment(1);
                    let dropped = (answer.body.take(), answer.held.take(), std::mem::take(&mut answer.rest));
                    answer.given = None;
                    // a generation that ends with it may call for this lock
                    parking_lot::MutexGuard::unlocked(&mut answer, || drop(dropped));
                }
            }
        }
    }
}

/// See the module.
pub(super) struct Outflow {
    answer: Arc<Mutex<Answer>>,
    unread: Arc<Unread>,
    lane: usize,
    key: usize,
}

impl Drop for Outflow {
    fn drop(&mut self) {
        self.unread.lanes[self.lane].lock().remove(self.key);
    }
}

impl Answer {
    fn give(&mut self, mut data: Bytes) -> Frame<Bytes> {
        self.rest = if data.len() > PIECE { data.split_off(PIECE) } else { Bytes::new() };
        self.given = Some(Instant::now());
        Frame::data(data)
    }
}

impl http_body::Body for Outflow {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut answer = self.answer.lock();
        if !answer.rest.is_empty() {
            let rest = std::mem::take(&mut answer.rest);
            return Poll::Ready(Some(Ok(answer.give(rest))));
        }
        answer.given = None;
        let Some(body) = &mut answer.body else {
            // given up: said once, to whoever looks after all
            return Poll::Ready(answer.given_up(self.unread.stall));
        };
        let frame = ready!(Pin::new(body).poll_frame(context));
        Poll::Ready(match frame.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => Some(Ok(answer.give(data))),
            last => {
                answer.held = None;
                match last {
                    Some(Ok(Err(trailers))) => Some(Ok(trailers)),
                    Some(Err(status)) => Some(Err(status)),
                    _ => None,
                }
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        let answer = self.answer.lock();
        answer.rest.is_empty() && answer.body.as_ref().is_some_and(http_body::Body::is_end_stream)
    }
}

impl Answer {
    fn given_up(&mut self, stall: Duration) -> Option<Result<Frame<Bytes>, Status>> {
        self.body = Some(Body::empty());
        let stage = format!("waiting for the caller, who took nothing of the answer for {} s", stall.as_secs());
        let mut told = status::from_error(&Error::DeadlineExceeded { stage }).into_http::<()>();
        told.headers_mut().remove(CONTENT_TYPE);
        Some(Ok(Frame::trailers(std::mem::take(told.headers_mut()))))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;
    use crate::bounds::Budget;
    use sensorium_actors::admission::{Admission, Options};
    use sensorium_actors::request::Context as Caller;
    use sensorium_plane::inbound::Share;

    /// An answer of so many bytes, and the door that it holds a place at.
    fn answer(unread: &Arc<Unread>, bytes: usize) -> (Outflow, Admission, Budget) {
        let (admission, budget) = (Admission::new(Options::bound(8)), Budget::new(1 << 20, 1 << 10));
        let held =
            Held::new(admission.enter(&Caller::default()).unwrap(), budget.take(Share::default(), bytes).unwrap());
        let body = Body::new(Full::new(Bytes::from(vec![7; bytes])).map_err(|never| match never {}));
        (unread.follow(body, Some(held)), admission, budget)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_until_it_is_taken() {
        let unread = Unread::start(1, Duration::from_secs(30));
        let (mut outflow, admission, _) = answer(&unread, 100_000);
        let mut bytes = 0;
        while let Some(frame) = outflow.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            assert!(data.len() <= PIECE);
            assert_eq!(admission.in_flight(), 1);
            bytes += data.len();
            // slow, but not stalled
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        assert_eq!((bytes, admission.in_flight()), (100_000, 0));
        drop(outflow);
        assert!(unread.lanes[0].lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_is_given_up() {
        let unread = Unread::start(1, Duration::from_secs(30));
        let (mut outflow, admission, budget) = answer(&unread, 100_000);
        outflow.frame().await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_secs(33)).await;
        assert_eq!(admission.in_flight(), 0);
        let all: Vec<_> = (0..4).map(|_| budget.take(Share::default(), 1 << 18)).collect();
        assert!(all.iter().all(Result::is_ok), "its bytes are given back");
        let trailers = outflow.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "4");
        assert!(outflow.frame().await.is_none());
    }
}
