//! A collector of traces, as OpenTelemetry's exporters find it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A span that has ended.
#[derive(Clone, Debug)]
pub struct Span {
    /// Who made it: the name of its service.
    pub service: String,
    /// What it is called.
    pub name: String,
    /// Its id, and that of the span that it is a part of.
    pub id: Vec<u8>,
    /// Empty if it is a part of none.
    pub parent: Vec<u8>,
    trace: Vec<u8>,
}

type Spans = Arc<Mutex<Vec<Span>>>;

/// See the module.
pub struct Collector {
    spans: Spans,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

struct Service(Spans);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut all = self.0.lock().expect("nobody has panicked with it");
        for told in request.into_inner().resource_spans {
            let attributes = told.resource.unwrap_or_default().attributes;
            let service = attributes.into_iter().find(|attribute| attribute.key == "service.name");
            let service = match service.and_then(|service| service.value?.value) {
                Some(Value::StringValue(name)) => name,
                other => return Err(Status::invalid_argument(format!("service.name: {other:?}, expected a string"))),
            };
            all.extend(told.scope_spans.into_iter().flat_map(|scope| scope.spans).map(|span| Span {
                service: service.clone(),
                name: span.name,
                id: span.span_id,
                parent: span.parent_span_id,
                trace: span.trace_id,
            }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// On a free port.
    pub async fn start() -> Self {
        let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let address = incoming.local_addr().expect("its address");
        let spans = Spans::default();
        let service = TraceServiceServer::new(Service(spans.clone()));
        let server = Server::builder().add_service(service).serve_with_incoming(incoming);
        let serving = tokio::spawn(async move { server.await.expect("the collector") });
        Self { spans, address, serving }
    }

    /// What makes a process of this name export to it.
    pub(crate) fn environment(address: SocketAddr, service: &str) -> Vec<(String, String)> {
        let of = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}")),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".to_owned()),
            ("OTEL_SERVICE_NAME", service.to_owned()),
            ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()),
        ];
        of.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All spans of a trace that have come so far; `trace` is hexadecimal.
    pub fn trace(&self, trace: &str) -> Vec<Span> {
        let trace = u128::from_str_radix(trace, 16).expect("a trace's id").to_be_bytes();
        let all = self.spans.lock().expect("nobody has panicked with it");
        all.iter().filter(|span| span.trace == trace).cloned().collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
