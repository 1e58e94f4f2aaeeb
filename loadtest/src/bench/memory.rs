//! Resident memory is weighed after every model has worked once: before that, weights may not have been touched.

use std::path::Path;

use bytes::Bytes;
use sensorium_proto::inference::RepositoryIndexRequest;
use sensorium_proto::v1::part::Content;
use sensorium_proto::v1::{Part, Sampling, UnderstandRequest};

use crate::error::{Error, Result};
use crate::work::{Client, Work, picture};

/// Makes one request to each model, guards and speech detection by way of an understanding. Returns which models
/// are loaded, and what was left out.
pub(super) async fn touch(target: &str, clip: Option<&Path>) -> Result<String> {
    let mut client = Client::connect(target).await?;
    let clip = clip.map(|path| std::fs::read(path).map_err(Error::io(format!("cannot read {}", path.display()))));
    let clip = clip.transpose()?.map(Bytes::from);
    let index = client.inference.repository_index(RepositoryIndexRequest { ready: true, ..Default::default() }).await;
    let index = index.map_err(Error::refused("RepositoryIndex"))?.into_inner();
    let mut loaded: Vec<String> = index.models.into_iter().map(|model| model.name).collect();
    loaded.sort();
    loaded.dedup();
    for name in &loaded {
        let work = match (name.as_str(), &clip) {
            ("identity", _) => Work::Identity,
            ("minilm", _) => Work::Minilm(23),
            ("efficientnet-lite0", _) => Work::Image(picture()),
            ("smollm2-135m", _) => Work::Generate(16),
            ("whisper-base", Some(clip)) => Work::Audio("whisper-base", clip.clone()),
            ("whisper-tiny-en", Some(clip)) => Work::Audio("whisper-tiny-en", clip.clone()),
            _ => continue,
        };
        work.call(&mut client, 0).await.map_err(Error::refused(format!("a request to {name}")))?;
    }
    let text = Content::Text("What is there to see and to hear?".to_owned());
    let contents = [Some(text), Some(Content::Image(picture())), clip.clone().map(Content::Audio)];
    let parts = contents.into_iter().flatten().map(|content| Part { content: Some(content) }).collect();
    let sampling = Some(Sampling { max_tokens: 16, ..Default::default() });
    let request = UnderstandRequest { parts, sampling, ..Default::default() };
    let events = client.sensorium.understand(request).await.map_err(Error::refused("Understand"))?;
    let mut events = events.into_inner();
    while events.message().await.map_err(Error::refused("Understand"))?.is_some() {}
    let left_out = if clip.is_some() { "" } else { "; speech was left out, as no --clip was given" };
    Ok(format!("after one request to each of {}{left_out}", loaded.join(", ")))
}
