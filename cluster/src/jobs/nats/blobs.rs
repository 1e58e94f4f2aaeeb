//! Blobs in NATS: a subject for each, on which its pieces lie one after the other.
//!
//! They lie in the stream of an object store, but are not written as the client writes objects: a write that fails for
//! want of room would leave its pieces there, under a name that nobody knows, and a removal leaves a marker for ever. Here
//! the subject tells the name, who wrote it and how many pieces it has: `C.<name>.<writer>.<pieces>`.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::object_store;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use futures::TryStreamExt;
use tokio::io::AsyncReadExt;

use super::super::Result;
use super::{Nats, Ready, unavailable};

/// Bytes of a piece.
const PIECE: usize = 256 << 10;
/// How long a blob of an earlier build may take.
const BLOB: Duration = Duration::from_secs(60);

/// How many pieces a subject says that there are.
fn pieces_of(subject: &str) -> Option<usize> {
    subject.rsplit_once('.')?.1.parse().ok()
}

impl Nats {
    fn bucket(&self) -> String {
        format!("$O.{}_blobs", self.options.prefix)
    }

    fn of_blob(&self, name: &str) -> String {
        format!("{}.C.{}", self.bucket(), URL_SAFE.encode(name))
    }

    pub(in crate::jobs) async fn put_blob(&self, name: &str, value: Bytes) -> Result<()> {
        let ready = self.ready().await?;
        let most = PIECE.min(self.largest());
        let count = value.len().div_ceil(most).max(1);
        // of two who write the same at once, one whole one is read
        let writer = self.client.new_inbox();
        let writer = writer.rsplit('.').next().unwrap_or_default();
        let subject = format!("{}.{writer}.{count}", self.of_blob(name));
        let written = async {
            for at in 0..count {
                let piece = value.slice(at * most..value.len().min((at + 1) * most));
                self.context.publish(subject.clone(), piece).await?.await?;
            }
            Ok::<_, async_nats::jetstream::context::PublishError>(())
        };
        let Err(error) = written.await else { return Ok(()) };
        let gone = ready.pieces.purge().filter(subject).await;
        if let Err(error) = gone {
            tracing::debug!(name, %error, "pieces of a blob are left to expire");
        }
        Err(self.unwritten(error))
    }

    pub(in crate::jobs) async fn blob(&self, name: &str) -> Result<Option<Bytes>> {
        let ready = self.ready().await?;
        let found = ready.pieces.info_with_subjects(format!("{}.>", self.of_blob(name))).await;
        let found: HashMap<String, usize> =
            found.map_err(|error| self.lost(error))?.try_collect().await.map_err(|error| self.lost(error))?;
        let Some((subject, count)) = found.into_iter().find(|(subject, there)| pieces_of(subject) == Some(*there))
        else {
            return self.earlier(&ready, name).await;
        };
        let (mut value, mut next) = (Vec::new(), 1);
        for _ in 0..count {
            let piece = ready.pieces.raw_message_builder().next_by_subject(&subject).sequence(next).send().await;
            let piece = piece.map_err(|error| self.lost(error))?;
            next = piece.sequence + 1;
            value.extend_from_slice(&piece.payload);
        }
        Ok(Some(value.into()))
    }

    /// A blob that an earlier build has written.
    async fn earlier(&self, ready: &Ready, name: &str) -> Result<Option<Bytes>> {
        let mut object = match ready.blobs.get(name).await {
            Ok(object) => object,
            Err(error) if error.kind() == object_store::GetErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.lost(error)),
        };
        let mut value = Vec::with_capacity(object.info().size);
        // one whose pieces are gone would be read for ever
        tokio::time::timeout(BLOB, object.read_to_end(&mut value)).await.map_err(unavailable)?.map_err(unavailable)?;
        Ok(Some(value.into()))
    }

    pub(in crate::jobs) async fn remove_blob(&self, name: &str) -> Result<()> {
        let ready = self.ready().await?;
        let mut subjects = vec![format!("{}.>", self.of_blob(name))];
        match ready.blobs.info(name).await {
            Ok(object) => {
                subjects.push(format!("{}.M.{}", self.bucket(), URL_SAFE.encode(name)));
                subjects.push(format!("{}.C.{}", self.bucket(), object.nuid));
            }
            Err(error) if error.kind() == object_store::InfoErrorKind::NotFound => {}
            Err(error) => return Err(unavailable(error)),
        }
        for subject in subjects {
            ready.pieces.purge().filter(subject).await.map_err(unavailable)?;
        }
        Ok(())
    }

    pub(in crate::jobs) async fn blobs(&self) -> Result<Vec<String>> {
        let ready = self.ready().await?;
        let mut names = Vec::new();
        // those of earlier builds are known by what describes them
        for kind in ["C", "M"] {
            let root = format!("{}.{kind}.", self.bucket());
            let subjects =
                ready.pieces.info_with_subjects(format!("{root}>")).await.map_err(|error| self.lost(error))?;
            let subjects: Vec<(String, usize)> = subjects.try_collect().await.map_err(|error| self.lost(error))?;
            names.extend(subjects.iter().filter_map(|(subject, _)| {
                let name = subject.strip_prefix(&root)?.split('.').next()?;
                String::from_utf8(URL_SAFE.decode(name).ok()?).ok()
            }));
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}
