//! Streams, bucket and object store: made by whoever comes first, and given the settings of every gateway that starts.
//!
//! None of them has an age at which things are forgotten: a job that takes longer than what it was given is kept would
//! lose it in silence. What is over is removed by those who know that it is.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::object_store;
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy};

use super::queues::Queue;
use super::{Nats, Options, Ready, Result, unavailable};

/// For so long equal ids are one message.
const SAME: Duration = Duration::from_secs(120);
/// The consumer of earlier builds, which would have all flows to itself.
const EARLIER: &str = "intake";

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Nats {
    /// The stream of this configuration, made or changed: settings of a gateway that starts hold from then on.
    async fn stream(&self, config: stream::Config) -> Result<stream::Stream> {
        let name = config.name.clone();
        self.context.create_or_update_stream(config).await.map_err(unavailable)?;
        self.context.get_stream(name).await.map_err(unavailable)
    }

    pub(super) async fn make(&self) -> Result<Ready> {
        let Options { prefix, replicas, bounds, .. } = &self.options;
        let (context, replicas) = (&self.context, *replicas);
        // the stream of a bucket, by ADR-8: the client would ask for the account first, whose answer it does not
        // understand from servers before 2.10
        let bucket = format!("{prefix}_jobs");
        let config = stream::Config {
            name: format!("KV_{bucket}"),
            subjects: vec![format!("$KV.{bucket}.>")],
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            num_replicas: replicas,
            ..stream::Config::default()
        };
        context.create_or_update_stream(config).await.map_err(unavailable)?;
        let records = context.get_key_value(bucket).await.map_err(unavailable)?;
        let blobs = format!("{prefix}_blobs");
        let blobs = match context.get_object_store(&blobs).await {
            Ok(there) => {
                let stream = context.get_stream(format!("OBJ_{blobs}")).await.map_err(unavailable)?;
                let there_is = &stream.cached_info().config;
                let config = stream::Config { max_age: Duration::ZERO, num_replicas: replicas, ..there_is.clone() };
                context.update_stream(config).await.map_err(unavailable)?;
                there
            }
            Err(_) => {
                let config =
                    object_store::Config { bucket: blobs, num_replicas: replicas, ..object_store::Config::default() };
                context.create_object_store(config).await.map_err(unavailable)?
            }
        };
        let pieces = context.get_stream(format!("OBJ_{prefix}_blobs")).await.map_err(unavailable)?;
        let plain = |name: &str, subjects: Vec<String>| stream::Config {
            name: format!("{prefix}_{name}"),
            subjects,
            num_replicas: replicas,
            duplicate_window: SAME,
            ..stream::Config::default()
        };
        let dead = self.stream(plain("dead", vec![format!("{prefix}.dead")])).await?;
        let mut queues = HashMap::new();
        for &name in self.names {
            // messages of earlier builds have no flow
            let subject = format!("{prefix}.jobs.{name}");
            let subjects = vec![subject.clone(), format!("{subject}.>")];
            let config = stream::Config {
                retention: RetentionPolicy::WorkQueue,
                // what does not fit is refused, not what waits thrown away
                discard: DiscardPolicy::New,
                discard_new_per_subject: true,
                max_messages: whole(bounds.queued),
                max_messages_per_subject: whole(bounds.queued_per_flow),
                ..plain(&format!("queue_{name}"), subjects)
            };
            let stream = self.stream(config).await?;
            if let Err(error) = stream.delete_consumer(EARLIER).await {
                tracing::debug!(queue = name, %error, "no consumer of an earlier build");
            }
            queues.insert(name, Queue::new(stream, subject, self.options.patience));
        }
        self.reserve(replicas).await?;
        Ok(Ready { records, blobs, pieces, dead, queues })
    }
}
