//! IPC compression: asked for by configuration, by a call's header, and by our own client.

use arrow_flight::{FlightData, FlightDescriptor, Ticket, encode::FlightDataEncoderBuilder};
use futures::{StreamExt, TryStreamExt};
use mallard::config::Compression;
use serde_json::json;
use tonic::{Code, Request, codec::CompressionEncoding::Gzip};

use crate::support::{TestServer, collect, count, people, row, run, table, test_config};

const ROWS: &str = "SELECT range AS i, 'the same text ' || range % 3 AS s, (range % 2)::VARCHAR::ENUM('0', '1') AS e FROM range(50000)";

/// What a stock client gets for a query, with that header or without.
async fn messages(server: &TestServer, header: Option<&'static str>) -> Result<Vec<FlightData>, tonic::Status> {
    let mut request = Request::new(Ticket::new(ROWS));
    if let Some(word) = header {
        request.metadata_mut().insert("x-mallard-ipc-compression", word.parse().unwrap());
    }
    server.stock().await.do_get(request).await?.into_inner().try_collect().await
}

/// The codec of each record batch.
fn codecs(messages: &[FlightData]) -> Vec<Option<arrow_ipc::CompressionType>> {
    let batch = |message: &FlightData| {
        let header = arrow_ipc::root_as_message(&message.data_header).unwrap();
        let batch = header.header_as_record_batch()?;
        Some(batch.compression().map(|compression| compression.codec()))
    };
    messages.iter().filter_map(batch).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn header_of_a_call_wins_over_the_configuration() {
    let lz4 = Some(arrow_ipc::CompressionType::LZ4_FRAME);
    let zstd = Some(arrow_ipc::CompressionType::ZSTD);
    for (configured, header, expected) in [
        (Compression::None, None, None),
        (Compression::None, Some("zstd"), zstd),
        (Compression::Lz4, None, lz4),
        (Compression::Lz4, Some("none"), None),
    ] {
        let mut config = test_config();
        config.wire.compression = configured;
        let server = TestServer::with(config).await;
        let got = messages(&server, header).await.unwrap();
        let codecs = codecs(&got);
        assert!(!codecs.is_empty() && codecs.iter().all(|codec| *codec == expected), "{configured:?} {header:?}");
        let decoded =
            arrow_flight::decode::FlightRecordBatchStream::new_from_flight_data(futures::stream::iter(got).map(Ok));
        let rows: usize = decoded.map_ok(|batch| batch.num_rows()).try_fold(0, async |a, b| Ok(a + b)).await.unwrap();
        assert_eq!(rows, 50_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_answers_are_smaller() {
    let server = TestServer::start().await;
    let mut sizes = Vec::new();
    for header in ["none", "lz4", "zstd"] {
        let got = messages(&server, Some(header)).await.unwrap();
        sizes.push(got.iter().map(|message| message.data_body.len()).sum::<usize>());
    }
    assert!(sizes[1] * 2 < sizes[0] && sizes[2] < sizes[1], "{sizes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_compression_is_refused_by_name() {
    let server = TestServer::start().await;
    let status = messages(&server, Some("brotli")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "the header x-mallard-ipc-compression must be one of none, lz4, zstd");
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_compresses_both_ways() {
    let server = TestServer::start().await;
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let client = server.client().await.compressing(Some(compression));
        let name = format!("people_{}", compression.word());
        assert_eq!(client.put(&table(&name), people(30, 10_000)).await.unwrap().rows, 300_000);
        assert_eq!(count(&client, &name).await, 300_000);
        let answer = collect(client.exchange("processed", people(3, 1000)).await.unwrap()).await.unwrap();
        assert_eq!(crate::support::rows(&answer), 3000);
    }
    let client = server.client().await;
    let differ = "SELECT count(*) FROM (FROM people_none EXCEPT ALL FROM people_zstd)";
    assert_eq!(row(&client, differ).await, ["0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer_compresses_where_it_is_asked_to() {
    let (source, target) = (TestServer::start().await, TestServer::start().await);
    let (there, here) = (source.client().await, target.client().await);
    run(&there, "CREATE TABLE t AS SELECT range AS i, 'row ' || range AS s FROM range(100000)").await;
    let body = |word: &str| json!({"from": source.uri(), "table": "t", "compression": word});
    let steps: Vec<_> = here.action("transfer", &body("zstd")).await.unwrap().try_collect().await.unwrap();
    assert!(steps.last().is_some_and(|last| String::from_utf8_lossy(last).contains("\"verified\":true")));
    let refused = here.action("transfer", &body("brotli")).await.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.to_string().contains("compression must be one of none, lz4, zstd"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_compression_is_taken_and_used_where_the_client_compresses() {
    let server = TestServer::start().await;
    let mut compressing = server.stock().await.send_compressed(Gzip).accept_compressed(Gzip);
    let input = people(3, 1000).map_err(|error| arrow_flight::error::FlightError::ExternalError(Box::new(error)));
    let descriptor = FlightDescriptor::new_path(vec!["people".into()]);
    let upload = FlightDataEncoderBuilder::new().with_flight_descriptor(Some(descriptor)).build(input);
    let stored =
        compressing.do_put(upload.map(Result::unwrap)).await.unwrap().into_inner().next().await.unwrap().unwrap();
    assert!(stored.app_metadata.starts_with(b"{\"rows\":3000,"), "{stored:?}");
    assert_eq!(count(&server.client().await, "people").await, 3000);

    let answer = compressing.do_get(Ticket::new(ROWS)).await.unwrap();
    assert_eq!(answer.metadata().get("grpc-encoding").unwrap(), "gzip");
    let messages: Vec<FlightData> = answer.into_inner().try_collect().await.unwrap();
    assert!(codecs(&messages).iter().all(Option::is_none));

    // gRPC's C++ clients say that they accept it, and never mean it.
    let mut accepting = server.stock().await.accept_compressed(Gzip);
    let answer = accepting.do_get(Ticket::new(ROWS)).await.unwrap();
    assert!(answer.metadata().get("grpc-encoding").is_none());
}
