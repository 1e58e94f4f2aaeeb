//! Between messages and requests, so that large ones hold nobody up.

use sensorium_actors::error::{Error, Result};
use sensorium_actors::request::Reply;
use sensorium_actors::shapes;
use sensorium_plane::parse_version;
use sensorium_proto::inference::{ModelInferRequest, ModelInferResponse};
use tonic::Extensions;

use super::codec::{self, Incoming};
use super::shared_memory::Regions;
use crate::bounds::{Charge, charge};
use crate::server::Door;

/// What an element of a BYTES tensor costs on its way, beside its bytes: keys, claims, entries of the cache, a row in the
/// queue. Few bytes may be thousands of them.
const ELEMENT: usize = 256;

/// More bytes than this are not converted or copied where other requests wait for their turn.
const INLINE: usize = 1 << 20;

/// Reads a request. What that copies, and `bytes` beside it, draws on the budget for as long as the charge is held.
pub(super) async fn decode(
    door: &Door,
    message: ModelInferRequest,
    regions: &Regions,
    extensions: &Extensions,
    bytes: usize,
) -> Result<(Incoming, Charge)> {
    // before anything is made of what the shapes say
    match door.understanding.named(&message.model_name) {
        Some(understanding) => {
            shapes::check(&shapes::accepts(understanding.manifest()), codec::claimed(&message))?;
        }
        None => {
            let version = parse_version(&message.model_version, "model_version")?;
            door.router.must_accept(&message.model_name, version, codec::claimed(&message))?;
        }
    }
    let copied = codec::bytes_to_copy(&message);
    let bytes = bytes.saturating_add(codec::elements(&message).saturating_mul(ELEMENT));
    // windows of more than a message may have are refused when they are read
    let charge = charge(extensions, bytes.saturating_add(copied.min(door.limits.max_message_bytes)))?;
    if copied <= INLINE {
        return Ok((codec::decode(message, regions)?, charge));
    }
    let regions = regions.clone();
    Ok((aside(move || codec::decode(message, &regions)).await?, charge))
}

/// Writes an answer.
pub(super) async fn encode(
    door: &Door,
    regions: &Regions,
    id: &str,
    wanted: &[codec::Wanted],
    reply: Reply,
) -> Result<ModelInferResponse> {
    let id = id.to_owned();
    if wanted.is_empty() {
        return codec::encode(reply, id, wanted, regions, &[]);
    }
    // a reply that nobody can describe any more is a reply all the same; boxed, since few requests ask for it
    let described = Box::pin(door.fleet.describe(&reply.model, Some(reply.version))).await.ok();
    let bytes = reply.bytes();
    let encode = move |wanted: &[codec::Wanted], regions: &Regions| {
        let labels = described.as_ref().map_or(&[][..], |described| &described.labels);
        codec::encode(reply, id, wanted, regions, labels)
    };
    if bytes <= INLINE || !wanted.iter().any(codec::Wanted::has_window) {
        return encode(wanted, regions);
    }
    let (wanted, regions) = (wanted.to_vec(), regions.clone());
    aside(move || encode(&wanted, &regions)).await
}

/// On a thread that nobody else waits for.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::Internal(format!("a copy aside: {error}"))))
}
