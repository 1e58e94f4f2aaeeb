//! The twenty calls.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use prost::Message;
use sensorium_actors::error::{Error, Result};
use sensorium_actors::manifest::Manifest;
use sensorium_actors::request::ReplyStream;
use sensorium_plane::operator::Act;
use sensorium_plane::parse_version;
use sensorium_proto::inference::grpc_inference_service_server::GrpcInferenceService;
use sensorium_proto::inference::infer_parameter::ParameterChoice;
use sensorium_proto::inference::*;
use tokio::time::Instant;
use tonic::{Extensions, Request, Response, Status, Streaming};
use tracing::Instrument;

use super::codec::Incoming;
use super::convert::{decode, encode};
use super::metadata;
use super::order::Turns;
use super::settings::Settings;
use super::shared_memory::{Regions, SharedMemory};
use crate::auth::{identity, require_admin};
use crate::bounds::{charge, held};
use crate::context::{context, context_since};
use crate::server::Door;
use crate::trace;
use sensorium_plane::status::{from_error, from_transport};

/// What this server adds to the protocol.
const EXTENSIONS: [&str; 8] = [
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
];

/// See the module.
pub struct InferenceService {
    door: Arc<Door>,
    shared_memory: SharedMemory,
    settings: Settings,
}

type Answer<T> = std::result::Result<Response<T>, Status>;

impl InferenceService {
    /// The service behind `door`.
    pub fn new(door: Arc<Door>, settings: Settings) -> Self {
        let shared_memory = SharedMemory::new(&door.limits);
        Self { door, shared_memory, settings }
    }

    /// The regions of whoever asks.
    fn regions(&self, extensions: &tonic::Extensions) -> Regions {
        self.shared_memory.of(&identity(extensions).0)
    }

    async fn infer(
        &self,
        incoming: Incoming,
        context: &sensorium_actors::request::Context,
        extensions: &Extensions,
    ) -> Result<Response<ModelInferResponse>> {
        let permit = self.door.router.admission().enter(context)?;
        let reply = match self.door.understanding.named(&incoming.request.model) {
            Some(understanding) => Box::pin(understanding.infer_within(&incoming.request, context)).await?,
            None => self.door.router.infer_accepted(&incoming.request, context).await?,
        };
        // as a message, and as the bytes that are made of it
        let charge = charge(extensions, 2 * reply.bytes())?;
        let regions = self.shared_memory.of(&context.tenant);
        let answer = encode(&self.door, &regions, &incoming.id, &incoming.wanted, reply).await?;
        Ok(held(answer, permit, charge))
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for InferenceService {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Answer<ServerLiveResponse> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Answer<ServerReadyResponse> {
        Ok(Response::new(ServerReadyResponse { ready: self.door.readiness.is_ready() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Answer<ModelReadyResponse> {
        let ModelReadyRequest { name, version } = request.into_inner();
        let ready = parse_version(&version, "version").and_then(|version| {
            if self.door.understanding.named(&name).is_some() {
                return Ok(true);
            }
            match self.door.router.held(&name, version) {
                // unknown, unloaded, or nobody holds it at the moment: Triton's clients take no error for an answer
                Err(Error::Unavailable { .. } | Error::NotFound { .. }) => Ok(false),
                held => Ok(held?.is_ready()),
            }
        });
        Ok(Response::new(ModelReadyResponse { ready: ready.map_err(|error| from_error(&error))? }))
    }

    async fn server_metadata(&self, _: Request<ServerMetadataRequest>) -> Answer<ServerMetadataResponse> {
        Ok(Response::new(ServerMetadataResponse {
            name: "sensorium".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn model_metadata(&self, request: Request<ModelMetadataRequest>) -> Answer<ModelMetadataResponse> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        let (manifest, versions) = described(&self.door, &name, &version).await.map_err(|error| from_error(&error))?;
        Ok(Response::new(metadata::metadata(&manifest, &versions)))
    }

    async fn model_config(&self, request: Request<ModelConfigRequest>) -> Answer<ModelConfigResponse> {
        let ModelConfigRequest { name, version } = request.into_inner();
        let (manifest, _) = described(&self.door, &name, &version).await.map_err(|error| from_error(&error))?;
        Ok(Response::new(ModelConfigResponse { config: Some(metadata::config(&manifest)) }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Answer<ModelInferResponse> {
        let _timed = trace::Timed::start(trace::Method::ModelInfer);
        let span = trace::request_span("ModelInfer", &request.get_ref().model_name, request.metadata());
        async move {
            let (metadata, extensions, message) = request.into_parts();
            let decoded = decode(&self.door, message, &self.regions(&extensions), &extensions, 0).await;
            let (incoming, _until_answered) = decoded.map_err(|error| from_error(&error))?;
            let context = context(&metadata, &extensions, &incoming.request.parameters)?;
            self.infer(incoming, &context, &extensions).await.map_err(|error| from_error(&error))
        }
        .instrument(span)
        .await
    }

    type ModelStreamInferStream =
        Pin<Box<dyn Stream<Item = std::result::Result<ModelStreamInferResponse, Status>> + Send>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Answer<Self::ModelStreamInferStream> {
        let (metadata, extensions, messages) = request.into_parts();
        let (door, regions) = (self.door.clone(), self.regions(&extensions));
        // what answers once answers in the order of the requests; pieces of the others come as they are ready
        let width = door.limits.stream_requests;
        let received = Instant::now();
        let mut turns = Turns::default();
        // Triton's clients may ask for errors that end the stream, with a status
        let strict = metadata.get("triton_grpc_error").is_some_and(|value| value == "true");
        let answers = messages
            .map(move |message| {
                let (door, regions) = (door.clone(), regions.clone());
                let (metadata, extensions) = (metadata.clone(), extensions.clone());
                let decoupled = message.as_ref().is_ok_and(|message| is_decoupled(&door, message));
                let mut turn = (!decoupled).then(|| turns.next());
                async_stream::stream! {
                    let message = match message {
                        Ok(message) => message,
                        Err(status) => {
                            // it ends the stream: what was asked before is answered before
                            if let Some(turn) = &mut turn {
                                turn.comes().await;
                            }
                            yield Err(from_transport(status));
                            return;
                        }
                    };
                    let id = message.id.clone();
                    let answers = stream_one(door, regions, (metadata, extensions), message, received, decoupled);
                    let mut answers = std::pin::pin!(answers);
                    while let Some(answer) = answers.next().await {
                        if let Some(turn) = &mut turn {
                            turn.comes().await;
                        }
                        match answer {
                            Err(error) if strict => yield Err(from_error(&error)),
                            answer => yield Ok(answer.unwrap_or_else(|error| failed(&id, &error))),
                        }
                    }
                }
                .boxed()
            })
            .flatten_unordered(width);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn model_statistics(&self, request: Request<ModelStatisticsRequest>) -> Answer<ModelStatisticsResponse> {
        let ModelStatisticsRequest { name, version } = request.into_inner();
        let version = parse_version(&version, "version").map_err(|error| from_error(&error))?;
        let model_stats = self.door.fleet.statistics(&name, version).await.map_err(|error| from_error(&error))?;
        Ok(Response::new(ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(&self, request: Request<RepositoryIndexRequest>) -> Answer<RepositoryIndexResponse> {
        let ready_only = request.into_inner().ready;
        let mut models = self.door.fleet.index().await.map_err(|error| from_error(&error))?;
        models.retain(|model| !ready_only || model.state == "READY");
        Ok(Response::new(RepositoryIndexResponse { models }))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Answer<RepositoryModelLoadResponse> {
        require_admin(request.extensions())?;
        let act = Act::begin(&request, "load", &request.get_ref().model_name);
        act.end(self.door.fleet.load(&request.into_inner()).await.map_err(|error| failed_to_load(&error)))?;
        self.door.router.refresh().await;
        Ok(Response::new(RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Answer<RepositoryModelUnloadResponse> {
        require_admin(request.extensions())?;
        let act = Act::begin(&request, "unload", &request.get_ref().model_name);
        act.end(self.door.fleet.unload(&request.into_inner().model_name).await.map_err(|error| from_error(&error)))?;
        self.door.router.refresh().await;
        Ok(Response::new(RepositoryModelUnloadResponse {}))
    }

    async fn system_shared_memory_status(
        &self,
        request: Request<SystemSharedMemoryStatusRequest>,
    ) -> Answer<SystemSharedMemoryStatusResponse> {
        let regions = self.regions(request.extensions());
        let regions = regions.status(&request.into_inner().name).map_err(|error| from_error(&error))?;
        Ok(Response::new(SystemSharedMemoryStatusResponse { regions }))
    }

    async fn system_shared_memory_register(
        &self,
        request: Request<SystemSharedMemoryRegisterRequest>,
    ) -> Answer<SystemSharedMemoryRegisterResponse> {
        require_admin(request.extensions())?;
        let act = Act::begin(&request, "register_shared_memory", &request.get_ref().name);
        let regions = self.regions(request.extensions());
        act.end(regions.register(request.into_inner()).map_err(|error| from_error(&error)))?;
        Ok(Response::new(SystemSharedMemoryRegisterResponse {}))
    }

    async fn system_shared_memory_unregister(
        &self,
        request: Request<SystemSharedMemoryUnregisterRequest>,
    ) -> Answer<SystemSharedMemoryUnregisterResponse> {
        require_admin(request.extensions())?;
        let act = Act::begin(&request, "unregister_shared_memory", &request.get_ref().name);
        self.regions(request.extensions()).unregister(&request.into_inner().name);
        act.end(Ok(()))?;
        Ok(Response::new(SystemSharedMemoryUnregisterResponse {}))
    }

    async fn cuda_shared_memory_status(
        &self,
        request: Request<CudaSharedMemoryStatusRequest>,
    ) -> Answer<CudaSharedMemoryStatusResponse> {
        let name = request.into_inner().name;
        if name.is_empty() {
            return Ok(Response::new(CudaSharedMemoryStatusResponse::default()));
        }
        Err(no_cuda())
    }

    async fn cuda_shared_memory_register(
        &self,
        _: Request<CudaSharedMemoryRegisterRequest>,
    ) -> Answer<CudaSharedMemoryRegisterResponse> {
        Err(no_cuda())
    }

    async fn cuda_shared_memory_unregister(
        &self,
        request: Request<CudaSharedMemoryUnregisterRequest>,
    ) -> Answer<CudaSharedMemoryUnregisterResponse> {
        require_admin(request.extensions())?;
        // there is none to forget, and unknown names are fine, as with system shared memory
        Ok(Response::new(CudaSharedMemoryUnregisterResponse {}))
    }

    async fn trace_setting(&self, request: Request<TraceSettingRequest>) -> Answer<TraceSettingResponse> {
        require_admin(request.extensions())?;
        let act = changes(&request, "trace_settings", |message| message.settings.keys());
        let settings = self.settings.trace(request.into_inner()).map_err(|error| from_error(&error));
        let settings = act.into_iter().fold(settings, |settings, act| act.end(settings))?;
        Ok(Response::new(TraceSettingResponse { settings }))
    }

    async fn log_settings(&self, request: Request<LogSettingsRequest>) -> Answer<LogSettingsResponse> {
        require_admin(request.extensions())?;
        let act = changes(&request, "log_settings", |message| message.settings.keys());
        let settings = self.settings.log(request.into_inner()).map_err(|error| from_error(&error));
        let settings = act.into_iter().fold(settings, |settings, act| act.end(settings))?;
        Ok(Response::new(LogSettingsResponse { settings }))
    }
}

/// The act of changing these settings; nothing for a request that only reads them.
fn changes<'a, T, K: Iterator<Item = &'a String>>(
    request: &'a Request<T>,
    act: &'static str,
    settings: impl Fn(&'a T) -> K,
) -> Option<Act> {
    let names: Vec<&str> = settings(request.get_ref()).map(String::as_str).collect();
    (!names.is_empty()).then(|| Act::begin(request, act, &names.join(", ")))
}

/// The words that Triton's clients look for, before what is wrong.
fn failed_to_load(error: &Error) -> Status {
    let status = from_error(error);
    let message = format!("failed to load: {}", status.message());
    let details = Bytes::copy_from_slice(status.details());
    Status::with_details_and_metadata(status.code(), message, details, status.metadata().clone())
}

/// Whether a request may be answered any number of times.
fn is_decoupled(door: &Door, message: &ModelInferRequest) -> bool {
    let model = message.model_name.as_str();
    let version = parse_version(&message.model_version, "model_version").ok().flatten();
    door.understanding.named(model).is_some() || door.router.is_decoupled(model, version)
}

fn no_cuda() -> Status {
    from_error(&Error::Unimplemented("CUDA shared memory needs a GPU, and this server has none".to_owned()))
}

/// One request of a stream, with its answers.
fn stream_one(
    door: Arc<Door>,
    regions: Regions,
    (metadata, extensions): (tonic::metadata::MetadataMap, tonic::Extensions),
    message: ModelInferRequest,
    received: Instant,
    decoupled: bool,
) -> impl Stream<Item = Result<ModelStreamInferResponse>> {
    async_stream::try_stream! {
        let _timed = trace::Timed::start(trace::Method::ModelStreamInfer);
        let span = trace::request_span("ModelStreamInfer", &message.model_name, &metadata);
        let bytes = message.encoded_len();
        let (incoming, _until_answered) = decode(&door, message, &regions, &extensions, bytes).await?;
        let context = span.in_scope(|| context_since(&metadata, &extensions, &incoming.request.parameters, received));
        let context = context.map_err(|status| Error::invalid("grpc-timeout", status.message()))?;
        let Incoming { mut request, id, wanted } = incoming;
        let empty_final = request.parameters.flag("triton_enable_empty_final_response")?.unwrap_or(false);
        // what answers once marks that answer as the last one
        let empty_final = empty_final && decoupled;
        request.parameters.0.remove("triton_enable_empty_final_response");
        let mut replies: ReplyStream = match door.understanding.named(&request.model) {
            Some(understanding) => understanding.stream(request, context).await?,
            None => door.router.stream(request, context).await?,
        };
        let mut last = None;
        while let Some(reply) = replies.next().await {
            let reply = reply?;
            last = Some((reply.model.clone(), reply.version));
            let over = reply.last;
            let mut response = encode(&door, &regions, &id, &wanted, reply).await?;
            mark_final(&mut response, over && !empty_final);
            yield ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) };
        }
        if let Some((model, version)) = last.filter(|_| empty_final) {
            let mut response = ModelInferResponse {
                model_name: model.to_string(),
                model_version: version.to_string(),
                id,
                ..Default::default()
            };
            mark_final(&mut response, true);
            yield ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) };
        }
    }
}

fn mark_final(response: &mut ModelInferResponse, value: bool) {
    let choice = Some(ParameterChoice::BoolParam(value));
    response.parameters.insert("triton_final_response".to_owned(), InferParameter { parameter_choice: choice });
}

/// An error of one request does not end the stream. Its id stands in the text as well: Triton's own client hands on
/// nothing else of an answer that has an error.
fn failed(id: &str, error: &Error) -> ModelStreamInferResponse {
    let code = error.code();
    let error_message = if id.is_empty() {
        format!("[{code}] {error}")
    } else {
        let id: String = id.chars().take(128).collect();
        format!("[{code}] [request id: {id}] {error}")
    };
    ModelStreamInferResponse {
        error_message,
        infer_response: Some(ModelInferResponse { id: id.to_owned(), ..Default::default() }),
    }
}

async fn described(door: &Door, name: &str, version: &str) -> Result<(Manifest, Vec<u64>)> {
    let version = parse_version(version, "version")?;
    if let Some(understanding) = door.understanding.named(name) {
        return Ok((understanding.manifest().clone(), vec![1]));
    }
    let described = door.fleet.describe(name, version).await?;
    Ok((described.manifest.clone(), door.fleet.versions(name)))
}
