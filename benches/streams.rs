//! Encode, decode and round trip by shape and rows, and DuckDB's way out by rows per record batch.
//!
//! Bytes and copies per iteration: the standard encoder writes every buffer once, into the message's body (tonic would
//! copy that once more), and the wire path none. Decoding reads the body once (validation); the standard path gets it
//! aligned by chance, or copies it, and the wire path copies it out of the frames. A round trip adds the kernel's copies. `cargo bench` runs all; `cargo bench -- scan` one group.

use std::{hint::black_box, sync::Arc, time::Duration};

use arrow_array::{ArrayRef, Float64Array, Int16Array, Int64Array, RecordBatch, StringArray};
use arrow_flight::FlightData;
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures::{StreamExt, TryStreamExt};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use mallard::{
    client::Client,
    config::{Compression, Config, Listen, Size},
    engine::Engine,
    location::Location,
    server::Server,
    stream::{RecordBatchStream, batch_bytes},
    telemetry::Metrics,
    wire::{self, Sending},
};
use prost::Message;
use tokio::runtime::Runtime;
use tonic::{Status, body::Body};

const SENDING: Sending = Sending { message_size: Size::mib(2), compression: Compression::None };
const ROWS: [usize; 3] = [1_000, 30_720, 122_880];

/// Name and a batch of so many rows.
fn shapes(rows: usize) -> Vec<(&'static str, RecordBatch)> {
    let numbers = 0..rows as i64;
    let column = |array: ArrayRef| array;
    let ints = || column(Arc::new(Int64Array::from_iter_values(numbers.clone())));
    let smalls = column(Arc::new(Int16Array::from_iter_values(numbers.clone().map(|n| n as i16))));
    let nulls = column(Arc::new(Float64Array::from_iter(numbers.clone().map(|n| (n % 3 != 0).then_some(n as f64)))));
    let texts = column(Arc::new(StringArray::from_iter_values(numbers.clone().map(|n| format!("text number {n}")))));
    let batch = |columns: Vec<(&str, ArrayRef)>| RecordBatch::try_from_iter(columns).expect("equal lengths");
    vec![
        ("ints", batch(vec![("a", ints()), ("b", ints()), ("c", smalls)])),
        ("nulls", batch(vec![("a", ints()), ("b", nulls)])),
        ("texts", batch(vec![("a", ints()), ("b", texts)])),
    ]
}

fn stream(batch: &RecordBatch) -> RecordBatchStream {
    RecordBatchStream::from_batches(batch.schema(), vec![batch.clone()])
}

/// The data frames of a body.
async fn frames(mut body: Body) -> Vec<Bytes> {
    let mut frames = Vec::new();
    while let Some(frame) = body.frame().await {
        frames.extend(frame.expect("no error").into_data());
    }
    frames
}

/// The messages as they are in an HTTP/2 body.
fn body_of(messages: &[FlightData]) -> Bytes {
    let mut body = Vec::new();
    for message in messages {
        body.push(0);
        body.extend(u32::try_from(message.encoded_len()).expect("small").to_be_bytes());
        message.encode(&mut body).expect("a vector has room");
    }
    body.into()
}

/// HTTP/2 frames as our own server and client take them.
const FRAME: usize = 1024 * 1024;

fn encode(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("encode");
    for rows in ROWS {
        for (shape, batch) in shapes(rows) {
            group.throughput(Throughput::Bytes(batch_bytes(&batch)));
            group.bench_function(BenchmarkId::new(format!("wire/{shape}"), rows), |bencher| {
                bencher.to_async(&runtime).iter(async || {
                    let body = wire::respond(std::future::ready(Ok(stream(&batch))), SENDING).into_body();
                    black_box(frames(body).await)
                });
            });
            group.bench_function(BenchmarkId::new(format!("standard/{shape}"), rows), |bencher| {
                bencher.to_async(&runtime).iter(async || {
                    let messages: Vec<_> = wire::encode(stream(&batch), SENDING, None).collect().await;
                    black_box(messages)
                });
            });
        }
    }
}

fn decode(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("decode");
    for rows in ROWS {
        for (shape, batch) in shapes(rows) {
            let encoded = wire::encode(stream(&batch), SENDING, None).try_collect::<Vec<_>>();
            let encoded = runtime.block_on(encoded).expect("encodes");
            group.throughput(Throughput::Bytes(batch_bytes(&batch)));
            let whole = body_of(&encoded);
            group.bench_function(BenchmarkId::new(format!("wire/{shape}"), rows), |bencher| {
                bencher.to_async(&runtime).iter(async || {
                    let pieces = whole.chunks(FRAME).map(|piece| Ok(Frame::data(whole.slice_ref(piece))));
                    let pieces: Vec<Result<_, Status>> = pieces.collect();
                    let body = Body::new(StreamBody::new(futures::stream::iter(pieces)));
                    let broken = |status: &Status| mallard::error::Error::Stream(status.to_string());
                    let decoded = wire::decode(wire::request(body, usize::MAX), broken).await.expect("decodes");
                    black_box(decoded.try_collect::<Vec<_>>().await.expect("decodes"))
                });
            });
            group.bench_function(BenchmarkId::new(format!("standard/{shape}"), rows), |bencher| {
                bencher.to_async(&runtime).iter(async || {
                    let messages = futures::stream::iter(encoded.clone().into_iter().map(Ok::<_, Status>));
                    let broken = |status: &Status| mallard::error::Error::Stream(status.to_string());
                    let decoded = wire::decode(messages, broken).await.expect("decodes");
                    black_box(decoded.try_collect::<Vec<_>>().await.expect("decodes"))
                });
            });
        }
    }
}

fn loopback() -> Config {
    let mut config = Config::default();
    config.server.location = Location::Tcp { host: "127.0.0.1".into(), port: 0 };
    config.admin.listen = Listen(None);
    config
}

fn roundtrip(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let server = runtime.block_on(Server::start(loopback())).expect("the server starts");
    let client = runtime.block_on(Client::connect(server.location(), None)).expect("connects");
    let mut group = criterion.benchmark_group("roundtrip");
    group.bench_function("query/1", |bencher| {
        bencher.to_async(&runtime).iter(async || {
            black_box(client.query("SELECT 1").await.expect("answers").try_collect::<Vec<_>>().await.expect("answers"))
        });
    });
    for rows in ROWS {
        for (shape, batch) in shapes(rows) {
            group.throughput(Throughput::Bytes(batch_bytes(&batch)));
            group.bench_function(BenchmarkId::new(format!("echo/{shape}"), rows), |bencher| {
                bencher.to_async(&runtime).iter(async || {
                    let answer = client.exchange("echo", stream(&batch)).await.expect("answers");
                    black_box(answer.try_collect::<Vec<_>>().await.expect("answers"))
                });
            });
        }
    }
}

/// DuckDB's scan of 6,000,000 flights into record batches of different sizes, without any transport.
fn scan(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("scan");
    group.sample_size(10).throughput(Throughput::Elements(6_000_000));
    for batch_rows in [2_048, 15_360, 30_720, 61_440, 122_880] {
        let mut config = loopback();
        config.database.batch_rows = batch_rows;
        let engine = Engine::open(&config, Metrics::unregistered()).expect("opens");
        let make = include_str!("../bench/flights.sql").replace("{rows}", "6000000");
        let drain = async |sql: &str| {
            let mut rows = engine.query(&mallard::access::Rights::all("bench"), sql).await.expect("runs");
            while let Some(batch) = rows.next().await {
                black_box(batch.expect("runs"));
            }
        };
        runtime.block_on(drain(&format!("CREATE TABLE flights AS {make}")));
        group.bench_function(BenchmarkId::from_parameter(batch_rows), |bencher| {
            bencher.to_async(&runtime).iter(async || drain("FROM flights").await);
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = encode, decode, roundtrip, scan
}
criterion_main!(benches);
