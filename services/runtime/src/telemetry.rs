//! Logs, traces and metrics of a process.
//!
//! `RUST_LOG` filters; logs are JSON when they do not go to a terminal. Traces go out by OTLP where
//! `OTEL_EXPORTER_OTLP_ENDPOINT` says, with the standard `OTEL_*` variables; without it nothing is exported.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// Seconds: from a near-cache hit to a job of an hour. Five steps for each power of ten below a minute, so that a
/// quantile that is read off them is wrong by half of it at most.
const SECONDS: [f64; 35] = [
    0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1,
    0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0,
];
/// Rows of a batch.
const SIZES: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// How often samples of histograms are put into their buckets. Until then each one is kept as it is.
const UPKEEP: Duration = Duration::from_secs(5);

/// Why telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `RUST_LOG` is not a filter.
    #[error("RUST_LOG: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The trace exporter cannot be made.
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// The recorder of metrics cannot be installed.
    #[error("metrics: {0}")]
    Metrics(#[from] BuildError),
    /// There is no thread for the upkeep of metrics.
    #[error("metrics: cannot start a thread: {0}")]
    Upkeep(#[from] std::io::Error),
    /// Somebody has set up logging before.
    #[error("logs: {0}")]
    Logs(#[from] tracing_subscriber::util::TryInitError),
}

/// Changes the log filter of the process; the error says what is wrong with it.
pub type SetFilter = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Handles to the process's telemetry.
pub struct Telemetry {
    metrics: PrometheusHandle,
    filter: reload::Handle<EnvFilter, Registry>,
    traces: Option<SdkTracerProvider>,
    endpoint: Option<String>,
}

/// Sets up logs, traces and metrics.
pub fn init() -> Result<Telemetry, Error> {
    let endpoint = std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
    let asked = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let (lines_filter, filter_handle) = reload::Layer::new(filter(asked.as_deref().unwrap_or("info"))?);
    let lines = if std::io::stderr().is_terminal() {
        fmt::layer().with_writer(std::io::stderr).with_target(false).compact().boxed()
    } else {
        fmt::layer().with_writer(std::io::stderr).json().flatten_event(true).boxed()
    };
    let traces = endpoint.as_ref().map(|_| exporter()).transpose()?;
    let export = traces.as_ref().map(|traces| {
        // what is exported does not depend on what is logged
        let spans = EnvFilter::new(SPANS.map(|target| format!("{target}=info")).join(","));
        tracing_opentelemetry::layer().with_tracer(traces.tracer("sensorium")).with_filter(spans)
    });
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    tracing_subscriber::registry().with(lines.with_filter(lines_filter)).with(export).try_init()?;
    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Full("sensorium_batch_size".to_owned()), &SIZES)?
        .install_recorder()?;
    keep_up(metrics.clone())?;
    Ok(Telemetry { metrics, filter: filter_handle, traces, endpoint })
}

/// Puts samples into their buckets for as long as the process runs, also where nobody ever scrapes. On a thread of its
/// own: a lane that is busy must not put it off, nor it the lane.
fn keep_up(metrics: PrometheusHandle) -> std::io::Result<()> {
    let upkeep = move || {
        loop {
            std::thread::park_timeout(UPKEEP);
            metrics.run_upkeep();
        }
    };
    std::thread::Builder::new().name("metrics".to_owned()).spawn(upkeep).map(drop)
}

/// Where spans of single requests, tasks of jobs, batches and sequences are made.
const SPANS: [&str; 5] = [
    "sensorium_gateway::trace",
    "sensorium_plane::service",
    "sensorium_actors::jobs::carry",
    "sensorium_actors::replica::forward",
    "sensorium_actors::replica::generate",
];

/// A filter for log lines. Spans of requests cost microseconds each, so they are made only where somebody exports them,
/// not for the lines; actors' own are noise to anybody but ractor's authors.
fn filter(text: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    let mut filter = EnvFilter::try_new(text)?.add_directive("ractor=warn".parse()?);
    for target in SPANS {
        filter = filter.add_directive(format!("{target}=warn").parse()?);
    }
    Ok(filter)
}

fn exporter() -> Result<SdkTracerProvider, ExporterBuildError> {
    let http = std::env::var("OTEL_EXPORTER_OTLP_PROTOCOL").is_ok_and(|protocol| protocol.starts_with("http"));
    let exporter = if http {
        SpanExporter::builder().with_http().build()?
    } else {
        SpanExporter::builder().with_tonic().build()?
    };
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).build())
}

impl Telemetry {
    /// The metrics in Prometheus' text format.
    pub fn render(&self) -> Arc<dyn Fn() -> String + Send + Sync> {
        let metrics = self.metrics.clone();
        Arc::new(move || metrics.render())
    }

    /// Changes the log filter while running.
    pub fn set_filter(&self) -> SetFilter {
        let handle = self.filter.clone();
        Arc::new(move |text| {
            let filter = filter(text).map_err(|error| error.to_string())?;
            handle.reload(filter).map_err(|error| error.to_string())
        })
    }

    /// Where traces go.
    pub fn endpoint(&self) -> Option<String> {
        self.endpoint.clone()
    }

    /// Sends what has not been sent.
    pub fn flush(self) {
        if let Some(traces) = self.traces
            && let Err(error) = traces.shutdown()
        {
            tracing::warn!(%error, "some spans were not exported");
        }
    }
}
