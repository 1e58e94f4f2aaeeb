//! A node's key in the register, on a lease that is renewed for as long as the node lives.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, LeaseKeepAliveStream, LeaseKeeper, PutOptions};
use tokio::sync::watch;

use super::super::{Refusal, Registration, Written};
use super::held::Memory;
use super::{Error, Etcd, Result, note, within};

/// What a node has in the register: a lease, and what was written on it. Both outlive a connection that breaks, and an
/// etcd that grants no new lease while it has no space.
struct Kept {
    lease: i64,
    written: Option<Registration>,
}

/// Keeps a node's key until `wanted` is `None` or nobody wants anything any more.
pub(in crate::membership) async fn keep(
    options: Arc<Etcd>,
    mut wanted: watch::Receiver<Option<Registration>>,
    written: watch::Sender<Written>,
    refusal: Arc<watch::Sender<Refusal>>,
) {
    let mut backoff = options.backoff();
    let mut told = String::new();
    let mut kept = None;
    loop {
        let Err(error) = hold(&options, &mut wanted, &written, &refusal, &mut kept).await else { return };
        let refused = error.is_refusal();
        let now = if refused { Written::Refused } else { Written::OutOfReach };
        let registered = matches!(written.send_replace(now), Written::This(_));
        let error = error.to_string();
        if registered || error != told {
            tracing::warn!(error, "not registered, trying again");
        }
        if refused {
            note(&refusal, Some(error.clone()));
        }
        told = error;
        if wanted.borrow().is_none() {
            return; // the lease runs out by itself
        }
        if registered {
            backoff = options.backoff();
        }
        let pause = backoff.next().unwrap_or(Duration::from_secs(1));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            gone = wanted.wait_for(Option::is_none) => {
                let _ = gone;
                return;
            }
        }
    }
}

/// The lease that there was, if it lives, or a new one.
async fn lease(
    options: &Etcd,
    client: &mut Client,
    kept: &mut Option<Kept>,
) -> Result<(i64, LeaseKeeper, LeaseKeepAliveStream)> {
    if let Some(Kept { lease, .. }) = *kept {
        match within(client.lease_keep_alive(lease)).await {
            Ok((keeper, answers)) => return Ok((lease, keeper, answers)),
            // it has run out, or etcd has lost it with its data
            Err(Error::Etcd(etcd_client::Error::LeaseKeepAliveError(_))) => *kept = None,
            Err(error) => return Err(error),
        }
    }
    let seconds = i64::try_from(options.lease.as_secs_f64().ceil() as u64).unwrap_or(10).max(1);
    let lease = within(client.lease_grant(seconds, None)).await?.id();
    *kept = Some(Kept { lease, written: None });
    let (keeper, answers) = within(client.lease_keep_alive(lease)).await?;
    Ok((lease, keeper, answers))
}

async fn hold(
    options: &Etcd,
    wanted: &mut watch::Receiver<Option<Registration>>,
    written: &watch::Sender<Written>,
    refusal: &watch::Sender<Refusal>,
    kept: &mut Option<Kept>,
) -> Result<()> {
    let mut client = options.connect().await?;
    let (lease, mut keeper, mut answers) = lease(options, &mut client, kept).await?;
    let mut renew = tokio::time::interval(options.lease / 3);
    let mut memory = Memory::default();
    loop {
        let now = wanted.borrow_and_update().clone();
        let Some(now) = now else {
            within(client.lease_revoke(lease)).await?;
            return Ok(());
        };
        let outcome = write(options, &mut client, &mut memory, lease, &now, kept).await;
        if kept.as_ref().is_some_and(|kept| kept.written.as_ref() == Some(&now)) {
            let node = now.node.clone();
            written.send_if_modified(|written| {
                if !matches!(written, Written::This(_)) {
                    tracing::info!(node, lease, "registered");
                }
                let changed = !matches!(written, Written::This(known) if **known == now);
                if changed {
                    *written = Written::This(Box::new(now));
                }
                changed
            });
        } else if outcome.as_ref().is_err_and(Error::is_refusal) {
            written
                .send_if_modified(|written| !matches!(std::mem::replace(written, Written::Refused), Written::Refused));
        }
        match outcome {
            Ok(true) => note(refusal, None),
            Ok(false) => {}
            // the lease is renewed all the same: others read what the register holds of the node
            Err(error) if error.is_refusal() => note(refusal, Some(error.to_string())),
            Err(error) => return Err(error),
        }
        tokio::select! {
            _ = renew.tick() => {
                within(keeper.keep_alive()).await?;
                let answer = within(answers.message()).await?.ok_or_else(|| Error::Ended("lease".to_owned()))?;
                if answer.ttl() <= 0 {
                    *kept = None;
                    return Err(Error::LeaseGone);
                }
            }
            changed = wanted.changed() => {
                if changed.is_err() {
                    within(client.lease_revoke(lease)).await?;
                    return Ok(());
                }
            }
        }
    }
}

/// Writes what the register does not hold yet. Returns whether there was anything.
async fn write(
    options: &Etcd,
    client: &mut Client,
    memory: &mut Memory,
    lease: i64,
    now: &Registration,
    kept: &mut Option<Kept>,
) -> Result<bool> {
    let mut wrote = false;
    if kept.as_ref().is_none_or(|kept| kept.written.as_ref() != Some(now)) {
        let put = PutOptions::new().with_lease(lease);
        within(client.put(options.key(&now.node), serde_json::to_vec(now)?, Some(put))).await?;
        *kept = Some(Kept { lease, written: Some(now.clone()) });
        wrote = true;
    }
    Ok(memory.leave(options, client, now).await? || wrote)
}
