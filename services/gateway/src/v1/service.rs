//! The three calls.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use sensorium_actors::request::Parameters;
use sensorium_proto::v1::sensorium_server::Sensorium;
use sensorium_proto::v1::*;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::{convert, embed, generate};
use crate::context::context;
use crate::server::Door;
use crate::trace::{Method, Timed, request_span};
use sensorium_plane::status::from_error;

/// See the module.
pub struct SensoriumService {
    door: Arc<Door>,
}

impl SensoriumService {
    /// The service behind `door`.
    pub fn new(door: Arc<Door>) -> Self {
        Self { door }
    }
}

#[tonic::async_trait]
impl Sensorium for SensoriumService {
    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        let _timed = Timed::start(Method::Embed);
        let span = request_span("Embed", "", request.metadata());
        async {
            let (metadata, extensions, message) = request.into_parts();
            let context = context(&metadata, &extensions, &Parameters::default())?;
            let embedded = embed::embed(&self.door, message, &context, &extensions).await;
            embedded.map_err(|error| from_error(&error))
        }
        .instrument(span)
        .await
    }

    type UnderstandStream = Pin<Box<dyn Stream<Item = Result<UnderstandEvent, Status>> + Send>>;

    async fn understand(
        &self,
        request: Request<UnderstandRequest>,
    ) -> Result<Response<Self::UnderstandStream>, Status> {
        let span = request_span("Understand", "", request.metadata());
        let context = span.in_scope(|| context(request.metadata(), request.extensions(), &Parameters::default()))?;
        let input = convert::input(request.into_inner()).map_err(|error| from_error(&error))?;
        let events = self.door.understanding.run(input, context).map_err(|error| from_error(&error))?;
        let timed = Timed::start(Method::Understand);
        let told = events.map(move |event| {
            let _until_the_last = &timed;
            event.map(convert::event).map_err(|error| from_error(&error))
        });
        Ok(Response::new(Box::pin(told)))
    }

    type GenerateStream = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        let span = request_span("Generate", &request.get_ref().model, request.metadata());
        let context = span.in_scope(|| context(request.metadata(), request.extensions(), &Parameters::default()))?;
        let pieces = generate::generate(self.door.clone(), request.into_inner(), context).instrument(span).await;
        let pieces = pieces.map_err(|error| from_error(&error))?;
        let timed = Timed::start(Method::Generate);
        Ok(Response::new(Box::pin(pieces.map(move |piece| {
            let _until_the_last = &timed;
            piece.map_err(|error| from_error(&error))
        }))))
    }
}
