//! Which models there are, beyond the lives of those who hold them.

use std::collections::BTreeSet;
use std::time::Duration;

use etcd_client::{Client, GetOptions, PutOptions};
use tokio::time::Instant;

use super::super::Registration;
use super::{Etcd, LIST, Result, within};

/// For so long a model is remembered that nobody holds.
const REMEMBERED: Duration = Duration::from_secs(3600);

fn prefix(options: &Etcd) -> String {
    format!("{}/held/", options.prefix)
}

/// What a worker has left of itself, on this connection.
#[derive(Default)]
pub(super) struct Memory {
    left: Option<(BTreeSet<String>, Instant)>,
}

impl Memory {
    /// Leaves the names of its models, unless it has done so of late. One that has none yet leaves what it had when it was started
    /// the last time. Returns whether it left anything.
    pub(super) async fn leave(&mut self, options: &Etcd, client: &mut Client, own: &Registration) -> Result<bool> {
        let names: BTreeSet<String> = own.models.iter().map(|held| held.name.clone()).collect();
        let left = |(left, at): &(BTreeSet<String>, Instant)| *left == names && at.elapsed() < REMEMBERED / 3;
        if self.left.as_ref().map_or(names.is_empty(), left) {
            return Ok(false);
        }
        let seconds = i64::try_from(REMEMBERED.as_secs()).unwrap_or(i64::MAX);
        let lease = within(client.lease_grant(seconds, None)).await?.id();
        let put = PutOptions::new().with_lease(lease);
        let value = serde_json::to_vec(&names)?;
        within(client.put(format!("{}{}", prefix(options), own.node), value, Some(put))).await?;
        self.left = Some((names, Instant::now()));
        Ok(true)
    }
}

/// Names of all models that anybody holds, or has held within the last hour.
pub(super) async fn all(options: &Etcd, client: &Client) -> Result<BTreeSet<String>> {
    let mut lists = client.kv_client().max_decoding_message_size(LIST);
    let list = within(lists.get(prefix(options), Some(GetOptions::new().with_prefix()))).await?;
    // what cannot be read is of another build, and tells nothing
    let names = list.kvs().iter().filter_map(|kv| serde_json::from_slice::<BTreeSet<String>>(kv.value()).ok());
    Ok(names.flatten().collect())
}
