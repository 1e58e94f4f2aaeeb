//! The order of a stream's answers: requests are worked on side by side, and what answers once answers in their order.

use tokio::sync::oneshot;

/// Gives each request of a stream its turn.
#[derive(Default)]
pub struct Turns {
    last: Option<oneshot::Receiver<()>>,
}

impl Turns {
    /// The turn after all that were given before.
    pub fn next(&mut self) -> Turn {
        let (over, ended) = oneshot::channel();
        Turn { before: self.last.replace(ended), _over: over }
    }
}

/// When a request may answer. Its turn is over when this is dropped.
pub struct Turn {
    before: Option<oneshot::Receiver<()>>,
    _over: oneshot::Sender<()>,
}

impl Turn {
    /// Returns when all turns before this one are over. Once it has come, it stays.
    pub async fn comes(&mut self) {
        if let Some(before) = &mut self.before {
            // nothing is ever sent: that the sender is gone tells
            let _ = before.await;
            self.before = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn turns_come_one_after_the_other() {
        let mut turns = Turns::default();
        let [mut first, mut second, mut third] = [turns.next(), turns.next(), turns.next()];
        assert!(first.comes().now_or_never().is_some());
        assert!(second.comes().now_or_never().is_none() && third.comes().now_or_never().is_none());
        drop(first);
        assert!(third.comes().now_or_never().is_none(), "the second has not been");
        assert!(second.comes().now_or_never().is_some() && second.comes().now_or_never().is_some(), "it stays");
        // a request that is given up holds up nobody
        drop(second);
        assert!(third.comes().now_or_never().is_some());
        drop(third);
        assert!(turns.next().comes().now_or_never().is_some());
    }
}
