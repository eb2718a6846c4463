//! A client that stands still in the middle of a stream does not hold what others need; a slow one is left alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, cast::AsArray, types::Int64Type};
use futures::StreamExt;
use mallard::{
    config::{Size, Span},
    stream::RecordBatchStream,
};
use tonic::Code;

use crate::{
    process::Process,
    support::{TestServer, collect, count, people, row, rows, run, table, test_config, until},
};

const SENT: &str = "mallard_streams_stalled_total{direction=\"sent\"}";
const RECEIVED: &str = "mallard_streams_stalled_total{direction=\"received\"}";

async fn server(standard_path: bool, patience: Duration) -> TestServer {
    let mut config = test_config();
    config.wire.standard_path = standard_path;
    config.limits.stall_timeout = Span(patience);
    TestServer::with(config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_that_takes_nothing_is_cut_and_its_statement_ends() {
    for standard_path in [false, true] {
        let server = server(standard_path, Duration::from_secs(1)).await;
        let client = server.client().await;
        let other = server.client().await;
        let mut stream = client.query("SELECT range, repeat('x', 100) FROM range(10000000000)").await.unwrap();
        stream.next().await.unwrap().unwrap();
        until("it is noticed", || async { server.metric(SENT).await == 1.0 }).await;
        until("its statement ends", || async { server.metric("mallard_queries_running").await == 0.0 }).await;
        assert_eq!(row(&other, "SELECT 1").await, ["1"]);
        // What is there may still be read; then the end is an error, and says why where the reader comes back in time.
        let error = collect(stream).await.expect_err("never silently short");
        match error.code() {
            Code::DeadlineExceeded => assert!(error.to_string().contains("limits.stall_timeout (1s)"), "{error}"),
            code => assert_eq!(code, Code::Cancelled, "{error}"),
        }
        assert_eq!(row(&client, "SELECT 1").await, ["1"], "the connection goes on");
        let handled = "grpc_server_handled_total{grpc_code=\"DeadlineExceeded\",grpc_method=\"DoGet\",grpc_service=\"arrow.flight.protocol.FlightService\",grpc_type=\"server_stream\"}";
        assert_eq!(server.metric(handled).await, 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_that_stays_away_finds_its_stream_reset() {
    let server = server(false, Duration::from_millis(200)).await;
    let client = server.client().await;
    let mut stream = client.query("SELECT range, repeat('x', 100) FROM range(10000000000)").await.unwrap();
    stream.next().await.unwrap().unwrap();
    until("it is noticed", || async { server.metric(SENT).await == 1.0 }).await;
    // Twice the timeout has certainly passed once another, which is noticed later, has been reset; here it is enough that
    // the stream ends, in an error, without anybody reading.
    let error = collect(stream).await.expect_err("never silently short");
    assert!(matches!(error.code(), Code::Cancelled | Code::DeadlineExceeded), "{error}");
}

/// Rows, and then silence.
fn silent_after(batches: usize) -> RecordBatchStream {
    let good = people(batches, 10_000);
    let schema = good.schema();
    RecordBatchStream::new(schema, good.chain(futures::stream::pending()))
}

#[tokio::test(flavor = "multi_thread")]
async fn sender_that_sends_nothing_is_cut_and_rolled_back() {
    for standard_path in [false, true] {
        let server = server(standard_path, Duration::from_millis(500)).await;
        let client = server.client().await;
        client.put(&table("people"), people(1, 100)).await.unwrap();
        let error = client.put(&table("people"), silent_after(3)).await.expect_err("cut");
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        assert!(error.to_string().contains("sent nothing for limits.stall_timeout (500ms)"), "{error}");
        assert_eq!(server.metric(RECEIVED).await, 1.0);
        until("nothing runs", || async { server.metric("mallard_queries_running").await == 0.0 }).await;
        assert_eq!(count(&client, "people").await, 100);
        // Nothing is locked.
        client.put(&table("people"), people(1, 100)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exchange_in_which_nobody_moves_is_cut() {
    let server = server(false, Duration::from_millis(500)).await;
    let client = server.client().await;
    let mut echoed = client.exchange("echo", silent_after(3)).await.unwrap();
    let ended = loop {
        match echoed.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("it was cut, and says so"),
        }
    };
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended}");
    assert_eq!(server.metric(RECEIVED).await, 1.0);
    until("it has ended", || async { server.metric("mallard_exchanges_running").await == 0.0 }).await;
}

const BUFFERED: &str = "mallard_exchange_buffer_bytes";

/// So many batches of 800 KB: id BIGINT counting up, name VARCHAR. How many have been sent.
fn sent(batches: usize) -> (RecordBatchStream, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let name = Arc::new(StringArray::from(vec![""; EACH])) as ArrayRef;
    let batch = move |at: usize| {
        let ids = Int64Array::from_iter_values((at * EACH) as i64..((at + 1) * EACH) as i64);
        RecordBatch::try_from_iter([("id", Arc::new(ids) as ArrayRef), ("name", name.clone())]).unwrap()
    };
    let schema = batch(0).schema();
    let rows = futures::stream::iter(0..batches).map(move |at| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(batch(at))
    });
    (RecordBatchStream::new(schema, rows), count)
}

const EACH: usize = 65_536;

/// What is beyond all windows together, some 100 MB.
const MANY: usize = 130;

#[tokio::test(flavor = "multi_thread")]
async fn client_that_sends_everything_before_it_reads_gets_all_of_the_answer() {
    for (standard_path, exchanger) in [(false, "echo"), (true, "processed"), (false, "SQL")] {
        let mut config = test_config();
        config.wire.standard_path = standard_path;
        let server = TestServer::with(config).await;
        let client = server.client().await;
        if exchanger == "SQL" {
            let body = serde_json::json!({"name": "SQL", "sql": "SELECT id + 1 AS id, name FROM input"});
            client.action("add_exchange", &body).await.unwrap().for_each(async |result| drop(result.unwrap())).await;
        }
        let (input, count) = sent(MANY);
        let answer = client.exchange(&format!("{exchanger} "), input).await.unwrap();
        // The client's own window takes no more before that, and its task sends without anybody reading.
        until("all is sent", || async { count.load(Ordering::Relaxed) == MANY }).await;
        until("it waits on disk", || async { server.metric(BUFFERED).await > 0.0 }).await;
        let batches = collect(answer).await.unwrap_or_else(|error| panic!("{exchanger}: {error}"));
        let mut next = if exchanger == "SQL" { 1 } else { 0 };
        for batch in &batches {
            for id in batch.column(0).as_primitive::<Int64Type>().values() {
                assert_eq!(*id, next, "{exchanger}");
                next += 1;
            }
        }
        assert_eq!(rows(&batches), MANY * EACH, "{exchanger}");
        until("the room is free again", || async { server.metric(BUFFERED).await == 0.0 }).await;
        assert_eq!(server.metric(SENT).await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_sends_more_than_may_wait_is_told_to_read_while_it_sends() {
    for (standard_path, room) in [(false, Size(0)), (false, Size::mib(20)), (true, Size::mib(20))] {
        let mut config = test_config();
        config.wire.standard_path = standard_path;
        config.exchange.buffer_disk = room;
        config.exchange.buffer_timeout = Span(Duration::from_millis(500));
        let server = TestServer::with(config).await;
        let client = server.client().await;
        let (input, count) = sent(MANY);
        let answer = client.exchange("echo", input).await.unwrap();
        // It can send to the end, or it would never come to read why the exchange has failed.
        until("all is sent", || async { count.load(Ordering::Relaxed) == MANY }).await;
        let error = collect(answer).await.expect_err("more than may wait");
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(
            error.to_string().contains("exchange.buffer_disk") && error.to_string().contains("read while"),
            "{error}"
        );
        until("it has ended", || async { server.metric("mallard_exchanges_running").await == 0.0 }).await;
        until("the room is free again", || async { server.metric(BUFFERED).await == 0.0 }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_that_the_volume_has_no_room_for_is_told_to_its_client_and_ends_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    // No file of the process may be longer, as on a volume that is full.
    let server =
        crate::faults::server(&directory.path().join("full.duckdb"), serde_json::json!({"file_size": 8_000_000}));
    let client = server.client(None).await;
    let (input, count) = sent(MANY);
    let answer = client.exchange("echo", input).await.unwrap();
    until("all is sent", || async { count.load(Ordering::Relaxed) == MANY }).await;
    let error = collect(answer).await.expect_err("it has no room");
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert!(
        error.to_string().contains("cannot be kept on disk") && error.to_string().contains("read while"),
        "{error}"
    );
    assert_eq!(crate::support::row(&client, "SELECT 42").await, ["42"]);
    let (input, _) = sent(3);
    let small = collect(client.exchange("echo", input).await.unwrap()).await.unwrap();
    assert_eq!(rows(&small), 3 * EACH);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_leaves_gives_back_the_room_of_its_answer() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let (input, count) = sent(MANY);
    let answer = client.exchange("echo", input).await.unwrap();
    until("all is sent", || async { count.load(Ordering::Relaxed) == MANY }).await;
    until("it waits on disk", || async { server.metric(BUFFERED).await > 0.0 }).await;
    drop(answer);
    drop(client);
    until("the room is free again", || async { server.metric(BUFFERED).await == 0.0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_reads_while_it_sends_needs_no_disk() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let (input, _) = sent(MANY);
    let mut answer = client.exchange("echo", input).await.unwrap();
    let mut most: f64 = 0.0;
    let mut read = 0;
    while let Some(batch) = answer.next().await {
        read += batch.unwrap().num_rows();
        if read % (10 * EACH) == 0 {
            most = most.max(server.metric(BUFFERED).await);
        }
    }
    assert_eq!((read, most), (MANY * EACH, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_not_stalled() {
    let server = server(false, Duration::from_secs(1)).await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t AS SELECT range AS i, repeat('x', 100) AS s FROM range(3000000)").await;
    // Each takes or sends something well within the timeout, for several times as long.
    async fn pause() {
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    let reading = async {
        let (mut stream, mut rows) = (client.query("FROM t").await.unwrap(), 0);
        while let Some(batch) = stream.next().await {
            rows += batch.unwrap().num_rows();
            pause().await;
        }
        rows
    };
    let sending = async {
        let good = people(40, 10);
        let schema = good.schema();
        let slow = good.then(async |batch| {
            pause().await;
            batch
        });
        client.put(&table("slow"), RecordBatchStream::new(schema, slow)).await.unwrap().rows
    };
    let (read, sent) = tokio::join!(reading, sending);
    assert_eq!((read, sent), (3_000_000, 400));
    assert_eq!((server.metric(SENT).await, server.metric(RECEIVED).await), (0.0, 0.0));
    // A statement that takes its time is nobody's stall.
    let long = "SELECT count(*) FROM range(300000) a, range(20000) b WHERE (a.range * b.range) % 7 = 3";
    assert_eq!(row(&client, long).await.len(), 1);
    assert_eq!(server.metric(SENT).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_readers_are_bounded_and_ended() {
    let server = Process::serve(&[
        ("MALLARD__LIMITS__STALL_TIMEOUT", "3s"),
        ("MALLARD__LIMITS__QUERIES", "40"),
        ("MALLARD__LIMITS__QUERIES_PER_USER", "0"),
        ("MALLARD__LOG__LEVEL", "info"),
    ]);
    let client = server.client(None).await;
    for _ in 0..20 {
        assert_eq!(row(&client, "SELECT 1").await, ["1"]);
    }
    let base = server.memory();
    let mut held = Vec::new();
    for _ in 0..32 {
        let stalled = server.client(None).await;
        let mut stream = stalled.query("SELECT range, range * 2 FROM range(100000000)").await.unwrap();
        stream.next().await.unwrap().unwrap();
        held.push((stalled, stream));
    }
    let (mut most, mut answered) = (0, 0);
    let noticed = async {
        while server.metric(SENT).await < 32.0 {
            most = most.max(server.memory().saturating_sub(base));
            assert_eq!(row(&client, "SELECT 1").await, ["1"]);
            answered += 1;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), noticed).await.expect("all are cut");
    until("their statements end", || async { server.metric("mallard_queries_running").await == 0.0 }).await;
    println!("measured: 32 stalled readers: {} KiB more, {answered} queries answered meanwhile", most >> 10);
    assert!(most < 128 << 20, "{most} bytes more");
    for (_client, stream) in held {
        assert!(collect(stream).await.is_err(), "never silently short");
    }
}
