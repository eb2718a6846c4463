//! Servers that answer what no server should: a client of them, and a server that pulls from them, keeps its memory and goes on.

use std::{convert::Infallible, process::Command, sync::Arc};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
    encode::FlightDataEncoderBuilder,
    flight_service_server::{FlightService, FlightServiceServer},
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mallard::{client::Client, location::Location};
use serde_json::json;
use tokio::net::TcpListener;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::{
    process::Process,
    support::{TestServer, row, run},
    wire::{
        Random,
        limits::{announced_body, body_that_stays_open},
        mutated::spoil,
    },
};

/// A server that answers every call with this, and nothing behind it.
async fn answering(front: Bytes) -> Location {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = Location::Tcp { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let front = front.clone();
            let answer = service_fn(move |_| {
                let body = body_that_stays_open(front.clone());
                let response = http::Response::builder().header("content-type", "application/grpc").body(body).unwrap();
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(connection.serve_connection(TokioIo::new(socket), answer));
        }
    });
    location
}

#[tokio::test(flavor = "multi_thread")]
async fn announced_gigabytes_do_not_end_a_server_that_pulls() {
    // What the process may have reserved in all is less than what is announced.
    let mut command = Command::new("sh");
    let limited = "ulimit -d 3000000 && exec \"$0\" serve --location grpc://127.0.0.1:0 --admin 127.0.0.1:0";
    command.args(["-c", limited, env!("CARGO_BIN_EXE_mallard")]);
    command.env("MALLARD__LOG__FORMAT", "json").env("MALLARD__LIMITS__STALL_TIMEOUT", "5s");
    let server = Process::spawn(command);
    let (client, other) = (server.client(None).await, server.client(None).await);
    for length in [u32::MAX as usize, (64 << 20) + 1] {
        let source = answering(announced_body(length)).await;
        let pull = json!({"from": source.to_string(), "query": "SELECT 1", "to": "t"});
        let mut steps = client.action("transfer", &pull).await.unwrap().boxed();
        let error = loop {
            match steps.next().await {
                Some(Ok(_progress)) => {}
                Some(Err(error)) => break error,
                None => panic!("it cannot succeed"),
            }
        };
        assert_eq!(error.code(), Code::ResourceExhausted, "{length}: {error}");
        assert!(error.to_string().contains("limits.max_message_size"), "{error}");
    }
    // As long as they are allowed, and more of them than there is memory: nothing of them has come.
    let source = answering(announced_body(64 << 20)).await;
    let mut pulls = Vec::new();
    for at in 0..12 {
        let pull = json!({"from": source.to_string(), "query": "SELECT 1", "to": format!("t{at}")});
        let mut steps = client.action("transfer", &pull).await.unwrap().boxed();
        steps.next().await.expect("it is on its way").unwrap();
        pulls.push(steps);
    }
    assert!(server.memory() < 512 << 20, "{} bytes are resident", server.memory());
    assert_eq!(row(&other, "SELECT 42").await, ["42"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_refuses_what_is_larger_than_it_takes() {
    let source = answering(announced_body((1 << 30) + 1)).await;
    let client = Client::connect(&source, None).await.unwrap();
    let Err(error) = client.query("SELECT 1").await else { panic!("it has no schema") };
    assert!(error.to_string().contains("the limit is 1073741824 bytes"), "{error}");
    // gRPC's own messages are not believed, either: a FlightInfo of a gigabyte.
    let info = arrow_flight::FlightDescriptor::new_cmd("SELECT 1");
    let error = client.info(info).await.expect_err("it is too large");
    assert!(error.to_string().contains("too large"), "{error}");
}

/// A source of transfers that answers what a test says.
struct Source {
    /// The schema that GetFlightInfo tells, as an IPC message.
    told: Bytes,
    rows: Vec<FlightData>,
    /// What it answers to the question for count and hash of the rows.
    sums: Vec<FlightData>,
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl FlightService for Source {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;
    type DoExchangeStream = Answers<FlightData>;

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let ticket = Ticket { ticket: request.into_inner().cmd };
        let endpoint = vec![FlightEndpoint { ticket: Some(ticket), ..Default::default() }];
        let schema = self.told.clone();
        // More rows than there are atoms.
        let info =
            FlightInfo { schema, endpoint, total_records: i64::MAX, total_bytes: i64::MIN, ..Default::default() };
        Ok(Response::new(info))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let asked = request.into_inner().ticket;
        let is_sum = asked.windows(4).any(|word| word == b"hash");
        let answer = if is_sum { &self.sums } else { &self.rows };
        Ok(Response::new(futures::stream::iter(answer.clone().into_iter().map(Ok)).boxed()))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(Status::unimplemented("handshake"))
    }
    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(Status::unimplemented("list_flights"))
    }
    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented("poll_flight_info"))
    }
    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        Err(Status::unimplemented("get_schema"))
    }
    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        Err(Status::unimplemented("do_put"))
    }
    async fn do_action(&self, _: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        Err(Status::unimplemented("do_action"))
    }
    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Err(Status::unimplemented("list_actions"))
    }
    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Status::unimplemented("do_exchange"))
    }
}

impl Source {
    fn of(rows: Vec<FlightData>) -> Self {
        let told = rows.first().map(|first| first.data_header.clone()).unwrap_or_default();
        Self { told, rows, sums: Vec::new() }
    }

    async fn start(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let serving = tonic::transport::Server::builder().add_service(FlightServiceServer::new(self));
        tokio::spawn(serving.serve_with_incoming(incoming));
        format!("grpc://127.0.0.1:{port}")
    }
}

async fn encoded(batches: Vec<RecordBatch>) -> Vec<FlightData> {
    let rows = futures::stream::iter(batches.into_iter().map(Ok));
    FlightDataEncoderBuilder::new().build(rows).try_collect().await.unwrap()
}

fn numbers(name: &str, numbers: Vec<i64>) -> RecordBatch {
    RecordBatch::try_from_iter([(name, Arc::new(Int64Array::from(numbers)) as ArrayRef)]).unwrap()
}

/// Whatever a source says of its rows, the target has them as they should be, or says why not and stays as it was.
#[tokio::test(flavor = "multi_thread")]
async fn sources_of_transfers_that_lie_change_nothing() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE kept AS SELECT 7::BIGINT AS p").await;
    let (good, other) = (encoded(vec![numbers("p", vec![1, 2, 3])]).await, encoded(vec![numbers("q", vec![1])]).await);
    let text = StringArray::from(vec!["a", "b", "c"]);
    let text = encoded(vec![RecordBatch::try_from_iter([("p", Arc::new(text) as ArrayRef)]).unwrap()]).await;
    let with = |change: &dyn Fn(&mut Vec<FlightData>)| {
        let mut rows = good.clone();
        change(&mut rows);
        Source::of(rows)
    };
    let cut = |bytes: &Bytes| bytes.slice(..bytes.len() / 2);
    let mut sources = vec![
        ("nothing", Source::of(Vec::new())),
        ("no schema", with(&|rows| drop(rows.remove(0)))),
        ("half a schema", with(&|rows| rows[0].data_header = cut(&rows[0].data_header))),
        ("half a batch", with(&|rows| rows[1].data_body = cut(&rows[1].data_body))),
        ("half a header", with(&|rows| rows[1].data_header = cut(&rows[1].data_header))),
        ("a batch of another schema", with(&|rows| rows[1] = text[1].clone())),
        ("a second schema", with(&|rows| rows.push(text[0].clone()))),
        ("no values", with(&|rows| rows[1].data_body = Bytes::new())),
    ];
    for (what, batch) in crate::arrow_ways::exploits() {
        sources.push((what, Source::of(encoded(vec![batch]).await)));
    }
    // Other names and types than were told, and rows that have other sums.
    let mut told = Source::of(good.clone());
    told.told = other[0].data_header.clone();
    told.sums = encoded(vec![numbers("c", vec![3])]).await;
    sources.push(("another schema than it told, and no hash", told));
    let mut sums = Source::of(good.clone());
    let pair = [
        ("rows", Arc::new(Int64Array::from(vec![4])) as ArrayRef),
        ("hash", Arc::new(StringArray::from(vec!["0"])) as ArrayRef),
    ];
    sums.sums = encoded(vec![RecordBatch::try_from_iter(pair).unwrap()]).await;
    sources.push(("another count", sums));
    let mut random = Random::new(3);
    for _ in 0..60 {
        let mut rows = good.clone();
        let at = random.below(rows.len());
        let mut header = rows[at].data_header.to_vec();
        spoil(&mut header, &mut random);
        rows[at].data_header = header.into();
        sources.push(("spoilt", Source::of(rows)));
    }
    for (number, (what, source)) in sources.into_iter().enumerate() {
        let from = source.start().await;
        let (mode, to) = [("create", "made"), ("append", "kept"), ("replace", "kept")][number % 3];
        let pull = json!({"from": from, "query": "SELECT 1", "to": to, "mode": mode});
        let steps = async { client.action("transfer", &pull).await?.try_collect::<Vec<_>>().await };
        // The sums of those that are spoilt and still right are not answered.
        let error = steps.await.expect_err(what);
        let theirs = !matches!(error.code(), Code::Internal | Code::Unknown | Code::Unavailable | Code::Cancelled);
        assert!(theirs, "{number}, {what}: {:?} {error}", error.code());
        assert_eq!(row(&client, "SELECT string_agg(p::VARCHAR, ' ') FROM kept").await, ["7"], "{number}, {what}");
        assert_eq!(row(&client, "SELECT count(*) FROM duckdb_tables()").await, ["1"], "{number}, {what}");
    }
}
