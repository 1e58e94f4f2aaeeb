//! The baseline of the front door: a bare tonic server that gives back the bytes it got.
//!
//! It speaks the same RPC with the same messages and the same HTTP/2 settings, so that the difference to a real
//! server is the real server's work: admission, routing, batching, replicas.

use std::net::SocketAddr;

use sensorium_proto::inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use sensorium_proto::inference::model_infer_response::InferOutputTensor;
use sensorium_proto::inference::*;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::error::{Error, Result};

/// A running echo; it ends when this is dropped.
pub struct Echo {
    address: SocketAddr,
    // dropping the sender is the signal
    _stop: oneshot::Sender<()>,
}

impl Echo {
    /// Starts on a free port of the loopback, on a runtime of its own: the load generator's tasks do not queue
    /// behind the server's.
    pub async fn start() -> Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(Error::io("echo: cannot listen"))?;
        listener.set_nonblocking(true).map_err(Error::io("echo: cannot listen"))?;
        let address = listener.local_addr().map_err(Error::io("echo: no address"))?;
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_name("echo")
            .build()
            .map_err(Error::io("echo: cannot start a runtime"))?;
        let serve = async move {
            let listener = TcpListener::from_std(listener)?;
            let ended = tonic::transport::Server::builder()
                .tcp_nodelay(true)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(8 << 20)
                .add_service(GrpcInferenceServiceServer::new(Service))
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
                    let _ = stopped.await;
                });
            ended.await.map_err(std::io::Error::other)
        };
        let thread = std::thread::Builder::new().name("echo-main".to_owned());
        // the socket listens already: a client that comes early waits in its backlog
        thread.spawn(move || runtime.block_on(serve)).map_err(Error::io("echo: cannot start a thread"))?;
        Ok(Self { address, _stop: stop })
    }

    /// Where to call it.
    pub fn target(&self) -> String {
        format!("http://{}", self.address)
    }
}

struct Service;

fn reply(request: ModelInferRequest) -> ModelInferResponse {
    let outputs = request.inputs.into_iter().map(|input| InferOutputTensor {
        name: "OUTPUT0".to_owned(),
        datatype: input.datatype,
        shape: input.shape,
        ..Default::default()
    });
    ModelInferResponse {
        model_name: request.model_name,
        model_version: "1".to_owned(),
        id: request.id,
        outputs: outputs.collect(),
        raw_output_contents: request.raw_input_contents,
        ..Default::default()
    }
}

/// The service, with all but `model_infer` refused. A macro, as the trait has no defaults.
macro_rules! service {
    ($($method:ident($request:ty) -> $response:ty;)*) => {
        #[tonic::async_trait]
        impl GrpcInferenceService for Service {
            type ModelStreamInferStream = tokio_stream::Empty<Result<ModelStreamInferResponse, Status>>;

            async fn model_infer(
                &self,
                request: Request<ModelInferRequest>,
            ) -> Result<Response<ModelInferResponse>, Status> {
                Ok(Response::new(reply(request.into_inner())))
            }

            $(async fn $method(&self, _: Request<$request>) -> Result<Response<$response>, Status> {
                Err(Status::unimplemented("the echo knows ModelInfer only"))
            })*
        }
    };
}

service! {
    server_live(ServerLiveRequest) -> ServerLiveResponse;
    server_ready(ServerReadyRequest) -> ServerReadyResponse;
    model_ready(ModelReadyRequest) -> ModelReadyResponse;
    server_metadata(ServerMetadataRequest) -> ServerMetadataResponse;
    model_metadata(ModelMetadataRequest) -> ModelMetadataResponse;
    model_stream_infer(tonic::Streaming<ModelInferRequest>) -> Self::ModelStreamInferStream;
    model_config(ModelConfigRequest) -> ModelConfigResponse;
    model_statistics(ModelStatisticsRequest) -> ModelStatisticsResponse;
    repository_index(RepositoryIndexRequest) -> RepositoryIndexResponse;
    repository_model_load(RepositoryModelLoadRequest) -> RepositoryModelLoadResponse;
    repository_model_unload(RepositoryModelUnloadRequest) -> RepositoryModelUnloadResponse;
    system_shared_memory_status(SystemSharedMemoryStatusRequest) -> SystemSharedMemoryStatusResponse;
    system_shared_memory_register(SystemSharedMemoryRegisterRequest) -> SystemSharedMemoryRegisterResponse;
    system_shared_memory_unregister(SystemSharedMemoryUnregisterRequest) -> SystemSharedMemoryUnregisterResponse;
    cuda_shared_memory_status(CudaSharedMemoryStatusRequest) -> CudaSharedMemoryStatusResponse;
    cuda_shared_memory_register(CudaSharedMemoryRegisterRequest) -> CudaSharedMemoryRegisterResponse;
    cuda_shared_memory_unregister(CudaSharedMemoryUnregisterRequest) -> CudaSharedMemoryUnregisterResponse;
    trace_setting(TraceSettingRequest) -> TraceSettingResponse;
    log_settings(LogSettingsRequest) -> LogSettingsResponse;
}
