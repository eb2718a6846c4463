//! Spans on their way to an OpenTelemetry collector, on a runtime of their own: a collector that is slow or gone costs
//! spans, never a query.
//!
//! The SDK reads most OTEL_ variables itself (endpoint, headers, timeouts, sampler, resource, batch sizes); those it
//! does not read (OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER, OTEL_PROPAGATORS, and the protocol) are read here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry::{global, propagation::TextMapPropagator, trace::TracerProvider};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response, hyper::HyperClient};
use opentelemetry_otlp::{
    Protocol, WithExportConfig, WithHttpConfig, WithTonicConfig, tonic_types::transport::ClientTlsConfig,
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    propagation::{BaggagePropagator, TraceContextPropagator},
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use tokio::runtime::{Handle, Runtime};
use tracing_subscriber::{Layer, Registry, filter::filter_fn};

use crate::config::{TraceExporter, TraceProtocol, Traces};

/// How long the last spans may take to leave when the process ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// What keeps spans flowing; dropping it sends those that wait.
pub(super) struct Exporting {
    provider: SdkTracerProvider,
    _background: Option<Background>,
}

impl Drop for Exporting {
    fn drop(&mut self) {
        // What could not be sent in time has been logged where it failed.
        let _ = self.provider.shutdown_with_timeout(FAREWELL);
    }
}

/// The runtime that exports. It may be dropped anywhere; nothing waits for what it still does.
struct Background(Option<Runtime>);

impl Background {
    fn start() -> Result<Self, String> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let built = builder.worker_threads(1).thread_name("traces").enable_all().build();
        built.map(|runtime| Self(Some(runtime))).map_err(|error| format!("traces: {error}"))
    }

    fn runtime(&self) -> &Runtime {
        self.0.as_ref().expect("taken only when dropped")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

type SpanLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// The exporter that configuration and environment ask for, and the layer that hands it the spans.
pub(super) fn exporting(traces: &Traces) -> Result<Option<(Exporting, SpanLayer)>, String> {
    let builder = SdkTracerProvider::builder().with_resource(resource());
    let (builder, background) = match wanted(traces)? {
        TraceExporter::None | TraceExporter::Auto => return Ok(None),
        TraceExporter::Console => (builder.with_simple_exporter(Console), None),
        TraceExporter::Otlp => {
            let background = Background::start()?;
            let exporter = {
                let _inside = background.runtime().enter();
                otlp(traces, background.runtime().handle())?
            };
            (builder.with_batch_exporter(exporter), Some(background))
        }
    };
    let provider = builder.build();
    set_propagator()?;
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("mallard"))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false);
    // Spans of ours only; log lines are no part of them.
    let ours = filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("mallard"));
    Ok(Some((Exporting { provider, _background: background }, layer.with_filter(ours).boxed())))
}

/// A variable that is set and not empty, as the specification wants it.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
}

fn wanted(traces: &Traces) -> Result<TraceExporter, String> {
    if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(TraceExporter::None);
    }
    let exporter = match variable("OTEL_TRACES_EXPORTER").as_deref() {
        None => traces.exporter,
        Some("none") => TraceExporter::None,
        Some("otlp") => TraceExporter::Otlp,
        Some("console") => TraceExporter::Console,
        Some(other) => return Err(format!("OTEL_TRACES_EXPORTER: \"{other}\" is not one of otlp, console, none")),
    };
    let endpoint = endpoint_variable().is_some() || !traces.endpoint.is_empty();
    Ok(match exporter {
        TraceExporter::Auto if endpoint => TraceExporter::Otlp,
        exporter => exporter,
    })
}

fn endpoint_variable() -> Option<String> {
    variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"))
}

fn resource() -> Resource {
    let resource =
        Resource::builder().with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    let named = variable("OTEL_SERVICE_NAME").is_some()
        || variable("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|text| text.contains("service.name="));
    if named { resource.build() } else { resource.with_service_name("mallard").build() }
}

fn otlp(traces: &Traces, runtime: &Handle) -> Result<OnRuntime, String> {
    let variable_protocol =
        variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL"));
    let protocol = match variable_protocol.as_deref() {
        None => traces.protocol,
        Some("grpc") => TraceProtocol::Grpc,
        Some("http/protobuf") => TraceProtocol::Http,
        Some(other) => {
            return Err(format!("OTEL_EXPORTER_OTLP_PROTOCOL: \"{other}\" is not one of grpc, http/protobuf"));
        }
    };
    // Variables win over the configuration's endpoint; the SDK reads them.
    let endpoint = (endpoint_variable().is_none() && !traces.endpoint.is_empty()).then_some(&traces.endpoint);
    let target = endpoint.cloned().or_else(endpoint_variable).unwrap_or_default();
    let secure = target.starts_with("https://");
    let builder = opentelemetry_otlp::SpanExporter::builder();
    let built = match protocol {
        TraceProtocol::Grpc => {
            let mut builder = builder.with_tonic();
            if secure {
                builder = builder.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
            }
            match endpoint {
                Some(endpoint) => builder.with_endpoint(endpoint).build(),
                None => builder.build(),
            }
        }
        TraceProtocol::Http => {
            let client = OverHttp::new(runtime.clone(), secure)?;
            let builder = builder.with_http().with_protocol(Protocol::HttpBinary).with_http_client(client);
            match endpoint {
                Some(endpoint) => {
                    builder.with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/'))).build()
                }
                None => builder.build(),
            }
        }
    };
    let exporter = built.map_err(|error| format!("traces: {error}"))?;
    Ok(OnRuntime { exporter: Arc::new(exporter), runtime: runtime.clone(), failing: Arc::default() })
}

fn set_propagator() -> Result<(), String> {
    let names = variable("OTEL_PROPAGATORS").unwrap_or_else(|| "tracecontext,baggage".into());
    let mut propagators: Vec<Box<dyn TextMapPropagator + Send + Sync>> = Vec::new();
    for name in names.split(',').map(str::trim) {
        match name {
            "tracecontext" => propagators.push(Box::new(TraceContextPropagator::new())),
            "baggage" => propagators.push(Box::new(BaggagePropagator::new())),
            "none" => {}
            other => return Err(format!("OTEL_PROPAGATORS: \"{other}\" is not one of tracecontext, baggage, none")),
        }
    }
    global::set_text_map_propagator(opentelemetry::propagation::TextMapCompositePropagator::new(propagators));
    Ok(())
}

/// An exporter whose work is done on the traces' own runtime, and whose failures are told once.
#[derive(Debug)]
struct OnRuntime {
    exporter: Arc<opentelemetry_otlp::SpanExporter>,
    runtime: Handle,
    failing: Arc<AtomicBool>,
}

impl SpanExporter for OnRuntime {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exporter = self.exporter.clone();
        let exported = self.runtime.spawn(async move { exporter.export(batch).await }).await;
        let outcome = exported.unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())));
        match &outcome {
            Err(error) if !self.failing.swap(true, Ordering::Relaxed) => {
                tracing::warn!(%error, "cannot export spans; some are lost until the collector answers");
            }
            Ok(()) if self.failing.swap(false, Ordering::Relaxed) => tracing::info!("spans are exported again"),
            _ => {}
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }
}

/// HTTP with and without TLS. The SDK exports on a thread that knows no runtime, so requests are made on the traces'.
#[derive(Debug)]
struct OverHttp {
    client: Arc<dyn HttpClient>,
    runtime: Handle,
}

impl OverHttp {
    fn new(runtime: Handle, secure: bool) -> Result<Self, String> {
        const TIMEOUT: Duration = Duration::from_secs(10);
        let client: Arc<dyn HttpClient> = if secure {
            let connector = hyper_rustls::HttpsConnectorBuilder::new()
                .with_native_roots()
                .map_err(|error| format!("traces: {error}"))?
                .https_only()
                .enable_http1()
                .build();
            Arc::new(HyperClient::new(connector, TIMEOUT, None))
        } else {
            Arc::new(HyperClient::with_default_connector(TIMEOUT, None))
        };
        Ok(Self { client, runtime })
    }
}

#[tonic::async_trait]
impl HttpClient for OverHttp {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}

/// One JSON object a line on standard error, for a look without a collector.
#[derive(Debug)]
struct Console;

impl SpanExporter for Console {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        for span in batch {
            let attributes: serde_json::Map<String, serde_json::Value> = span
                .attributes
                .iter()
                .map(|attribute| (attribute.key.to_string(), attribute.value.to_string().into()))
                .collect();
            let took = span.end_time.duration_since(span.start_time).unwrap_or_default();
            eprintln!(
                "{}",
                serde_json::json!({
                    "span": span.name,
                    "trace_id": span.span_context.trace_id().to_string(),
                    "span_id": span.span_context.span_id().to_string(),
                    "parent_span_id": span.parent_span_id.to_string(),
                    "kind": format!("{:?}", span.span_kind),
                    "seconds": took.as_secs_f64(),
                    "attributes": attributes,
                })
            );
        }
        Ok(())
    }
}
