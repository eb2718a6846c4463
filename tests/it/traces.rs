//! Spans, as a real OTLP receiver gets them.

use std::{
    collections::HashMap,
    net::SocketAddr,
    process::Output,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind},
};
use prost::Message;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::{
    process::{Process, mallard},
    support::{collect, row, run},
};

/// Everything that was exported to it, over gRPC or HTTP.
#[derive(Clone, Default)]
struct Collector {
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    /// A collector that takes calls and never answers.
    hangs: bool,
}

/// A span with its attributes as texts and the service it came from.
#[derive(Debug, Clone)]
struct Seen {
    span: Span,
    service: String,
    attributes: HashMap<String, String>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        self.requests.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn texts(attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue]) -> HashMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let pairs =
        attributes.iter().filter_map(|pair| Some((pair.key.clone(), text(pair.value.as_ref()?.value.as_ref()?))));
    pairs.collect()
}

impl Collector {
    async fn grpc(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = TraceServiceServer::new(self.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    async fn http(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/v1/traces", post(Self::take)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }

    async fn take(State(collector): State<Self>, body: Bytes) -> Vec<u8> {
        collector.requests.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
        ExportTraceServiceResponse::default().encode_to_vec()
    }

    fn spans(&self) -> Vec<Seen> {
        let mut spans = Vec::new();
        for resource in self.requests.lock().unwrap().iter().flat_map(|request| &request.resource_spans) {
            let service = texts(&resource.resource.as_ref().unwrap().attributes)["service.name"].clone();
            for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
                let attributes = texts(&span.attributes);
                spans.push(Seen { span: span.clone(), service: service.clone(), attributes });
            }
        }
        spans
    }

    fn names(&self) -> Vec<(String, i32, String)> {
        self.spans().into_iter().map(|seen| (seen.service, seen.span.kind, seen.span.name)).collect()
    }

    async fn until_there_is(&self, what: &str, is_it: impl Fn(&Seen) -> bool) -> Seen {
        let came = async {
            loop {
                if let Some(seen) = self.spans().into_iter().find(&is_it) {
                    return seen;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(std::time::Duration::from_secs(30), came).await {
            Ok(seen) => seen,
            Err(_) => panic!("{what} never came; there are {:#?}", self.names()),
        }
    }
}

/// Soon, so that a test waits for little.
const SOON: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "50");

fn is(service: &str, kind: SpanKind, name: &str) -> impl Fn(&Seen) -> bool {
    move |seen| seen.service == service && seen.span.kind == kind as i32 && seen.span.name == name
}

const DO_ACTION: &str = "arrow.flight.protocol.FlightService/DoAction";
const DO_GET: &str = "arrow.flight.protocol.FlightService/DoGet";

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_is_one_trace_through_client_servers_and_statements() {
    let collector = Collector::default();
    let endpoint = format!("http://{}", collector.grpc().await);
    let traced = |service: &'static str| {
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.clone()),
            ("OTEL_SERVICE_NAME", service.into()),
            (SOON.0, SOON.1.into()),
        ]
    };
    let serve = |service| {
        let environment = traced(service);
        Process::serve(&environment.each_ref().map(|(name, value)| (*name, value.as_str())))
    };
    let (first, second) = (serve("first"), serve("second"));
    let client = first.client(None).await;
    run(&client, "CREATE TABLE birds AS SELECT i, 'canary ' || i AS name FROM range(1000) r(i)").await;
    let mut transfer = mallard();
    transfer.args(["transfer", &first.location.to_string(), &second.location.to_string()]);
    transfer.args(["--query", "SELECT * FROM birds WHERE name <> 'secret' AND i < 900", "--into", "birds"]);
    transfer.envs(traced("client"));
    let Output { status, stderr, .. } = tokio::task::spawn_blocking(move || transfer.output().unwrap()).await.unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));

    let root = collector
        .until_there_is("the command", |seen| seen.service == "client" && seen.span.name == "mallard transfer")
        .await;
    let asked = collector.until_there_is("the client's call", is("client", SpanKind::Client, DO_ACTION)).await;
    let answered =
        collector.until_there_is("the second server's answer", is("second", SpanKind::Server, DO_ACTION)).await;
    let stored = collector
        .until_there_is("the ingest", |seen| seen.service == "second" && seen.span.name == "INGEST birds")
        .await;
    let trace = &root.span.trace_id;
    let read = |seen: &Seen| {
        seen.service == "first" && seen.attributes.get("db.response.returned_rows").is_some_and(|rows| rows == "900")
    };
    let read = collector.until_there_is("the first server's statement", read).await;
    let parent = |child: &Seen| {
        let id = child.span.parent_span_id.clone();
        move |seen: &Seen| seen.span.span_id == id
    };
    let served = collector.until_there_is("the first server's answer", parent(&read)).await;
    let pulled = collector.until_there_is("the second server's call", parent(&served)).await;
    assert!(is("first", SpanKind::Server, DO_GET)(&served) && is("second", SpanKind::Client, DO_GET)(&pulled));
    for seen in [&asked, &answered, &stored, &pulled, &served, &read] {
        assert_eq!(&seen.span.trace_id, trace, "{seen:?}");
    }
    assert_eq!(asked.span.parent_span_id, root.span.span_id);
    assert_eq!(answered.span.parent_span_id, asked.span.span_id);
    assert_eq!(stored.span.parent_span_id, answered.span.span_id);
    assert_eq!(pulled.span.parent_span_id, answered.span.span_id);

    // Under the current conventions.
    let expected = [("rpc.system.name", "grpc"), ("rpc.method", DO_GET), ("rpc.response.status_code", "OK")];
    for (name, value) in expected {
        assert_eq!(served.attributes.get(name).map(String::as_str), Some(value), "{served:?}");
        assert_eq!(pulled.attributes.get(name).map(String::as_str), Some(value), "{pulled:?}");
    }
    assert_eq!(pulled.attributes["server.address"], "127.0.0.1");
    assert_eq!(served.attributes["network.peer.address"], "127.0.0.1");
    let expected = [
        ("db.system.name", "duckdb"),
        ("db.operation.name", "SELECT"),
        ("db.query.summary", "SELECT birds"),
        ("db.query.text", "SELECT * FROM birds WHERE name <> ? AND i < ?"),
        ("db.response.returned_rows", "900"),
    ];
    for (name, value) in expected {
        assert_eq!(read.attributes.get(name).map(String::as_str), Some(value), "{read:?}");
    }
    assert_eq!(read.span.name, "SELECT birds");

    // An error is one where it is the server's own; the client's call is one in any case.
    assert!(client.query("SELECT * FROM nope").await.is_err());
    let failed = collector
        .until_there_is("the failed call", |seen| {
            is("first", SpanKind::Server, DO_GET)(seen) && seen.attributes["rpc.response.status_code"] == "NOT_FOUND"
        })
        .await;
    assert!(!failed.attributes.contains_key("error.type"), "{failed:?}");
    // Log lines name the same trace.
    drop(client);
    let lines = second.stop().join("\n");
    let id: String = trace.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(lines.contains(&format!("\"trace_id\":\"{id}\"")), "{id} in {lines}");
    first.stop();
    for seen in collector.spans() {
        assert!(!format!("{seen:?}").contains("canary") && !format!("{seen:?}").contains("secret"), "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_trace_goes_on_over_http_too() {
    let collector = Collector::default();
    let endpoint = format!("http://{}", collector.http().await);
    let process = Process::serve(&[
        ("MALLARD__TRACES__ENDPOINT", &endpoint),
        ("MALLARD__TRACES__PROTOCOL", "http/protobuf"),
        ("MALLARD__TRACES__STATEMENT_TEXT", "full"),
        SOON,
    ]);
    let channel = format!("http://{}", process.location.to_string().trim_start_matches("grpc://"));
    let channel = tonic::transport::Channel::from_shared(channel).unwrap().connect().await.unwrap();
    let mut stock = arrow_flight::flight_service_client::FlightServiceClient::new(channel);
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let mut request = Request::new(arrow_flight::Ticket::new("SELECT 'seven' AS s"));
    request.metadata_mut().insert("traceparent", format!("00-{trace}-{parent}-01").parse().unwrap());
    let mut answer = stock.do_get(request).await.unwrap().into_inner();
    while answer.message().await.unwrap().is_some() {}
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let seen = collector.until_there_is("the answer", is("mallard", SpanKind::Server, DO_GET)).await;
    assert_eq!((hex(&seen.span.trace_id).as_str(), hex(&seen.span.parent_span_id).as_str()), (trace, parent));
    let statement = collector.until_there_is("the statement", |seen| seen.span.name == "SELECT").await;
    assert_eq!(statement.attributes["db.query.text"], "SELECT 'seven' AS s");
    let lines = process.stop().join("\n");
    assert!(lines.contains(&format!("\"trace_id\":\"{trace}\"")), "{lines}");
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_sent_only_where_they_are_asked_for() {
    let collector = Collector::default();
    let endpoint = format!("http://{}", collector.grpc().await);
    for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_TRACES_SAMPLER", "always_off")]
    {
        let process = Process::serve(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), SOON, off]);
        row(&process.client(None).await, "SELECT 1").await;
        process.stop();
        assert!(collector.spans().is_empty(), "{off:?}");
    }
    // Without a propagator a trace ends at the process.
    let process = Process::serve(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_PROPAGATORS", "none"), SOON]);
    let channel = process.location.to_string().replace("grpc://", "http://");
    let channel = tonic::transport::Channel::from_shared(channel).unwrap().connect().await.unwrap();
    let mut request = Request::new(arrow_flight::Ticket::new("SELECT 1"));
    let sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    request.metadata_mut().insert("traceparent", sent.parse().unwrap());
    let mut stock = arrow_flight::flight_service_client::FlightServiceClient::new(channel);
    let mut answer = stock.do_get(request).await.unwrap().into_inner();
    while answer.message().await.unwrap().is_some() {}
    let seen = collector.until_there_is("the answer", is("mallard", SpanKind::Server, DO_GET)).await;
    assert!(seen.span.parent_span_id.is_empty(), "{seen:?}");
    process.stop();

    for (name, value) in [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_PROPAGATORS", "b3"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier pigeon"),
    ] {
        let mut command = mallard();
        command.args(["serve", "--location", "grpc://127.0.0.1:0", "--admin", "off"]);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).env(name, value);
        let refused = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(name) && stderr.contains(value), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_shows_spans_without_a_collector() {
    let process = Process::serve(&[("OTEL_TRACES_EXPORTER", "console")]);
    row(&process.client(None).await, "SELECT 1").await;
    let lines = process.stop();
    let span = lines.iter().find(|line| line.contains("\"span\":\"SELECT\"")).unwrap_or_else(|| panic!("{lines:?}"));
    assert!(span.contains("\"db.query.text\":\"SELECT ?\""), "{span}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_or_is_gone_loses_spans_and_no_query() {
    let hanging = Collector { hangs: true, ..Collector::default() };
    let hanging = format!("http://{}", hanging.grpc().await);
    for endpoint in [hanging.as_str(), "http://127.0.0.1:1"] {
        // A queue that is full at once.
        let process = Process::serve(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "4"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2"),
            SOON,
        ]);
        let client = process.client(None).await;
        for _ in 0..50 {
            collect(client.query("SELECT 1").await.unwrap()).await.unwrap();
        }
        drop(client);
        process.stop();
    }
}
