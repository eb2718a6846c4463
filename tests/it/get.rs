//! DoGet: rows, statuses, types, bounds, cancellation.

use std::time::Duration;

use arrow_array::cast::AsArray;
use futures::StreamExt;
use mallard::config::Span;
use tonic::Code;

use crate::support::{TestServer, collect, people, row, rows, run, test_config, until};

/// Runs for hours unless it is interrupted, and answers rows from the start.
const ENDLESS: &str = "SELECT a.range FROM range(10000000000) a, range(1000) b";

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_in_order_and_in_large_batches() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t AS SELECT range AS i FROM range(300000)").await;
    let batches = collect(client.query("FROM t").await.unwrap()).await.unwrap();
    assert_eq!(rows(&batches), 300_000);
    assert!(batches.len() < 20, "batches of {} rows", batches[0].num_rows());
    let ids: Vec<i64> = batches
        .iter()
        .flat_map(|batch| batch.column(0).as_primitive::<arrow_array::types::Int64Type>().values().to_vec())
        .collect();
    assert!(ids.is_sorted() && ids[0] == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_without_rows_runs_once_and_answers_one_row() {
    let server = TestServer::start().await;
    let client = server.client().await;
    assert_eq!(row(&client, "CREATE TABLE t (n INTEGER)").await, ["OK", "0"]);
    assert_eq!(row(&client, "INSERT INTO t VALUES (1), (2)").await, ["OK", "2"]);
    assert_eq!(row(&client, "UPDATE t SET n = n + 1").await, ["OK", "2"]);
    assert_eq!(row(&client, "INSERT INTO t VALUES (7) RETURNING n * 2").await, ["14"]);
    assert_eq!(row(&client, "SELECT count(*), sum(n)::BIGINT FROM t").await, ["3", "12"]);
    assert_eq!(row(&client, "PRAGMA table_info('t')").await[1], "n");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_makes_the_round_trip() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let all = client.query("SELECT * FROM test_all_types()").await.unwrap();
    client.put(&["all_types".into()], all).await.unwrap();
    let types = "SELECT string_agg(column_name || ' ' || column_type, ', ') FROM (DESCRIBE";
    let sent = row(&client, &format!("{types} FROM test_all_types())")).await;
    assert_eq!(row(&client, &format!("{types} all_types)")).await, sent);
    for (one, other) in [("test_all_types()", "all_types"), ("all_types", "test_all_types()")] {
        let missing = row(&client, &format!("SELECT count(*) FROM (FROM {one} EXCEPT ALL FROM {other})")).await;
        assert_eq!(missing, ["0"], "rows of {one} that are not in {other}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_types_are_there_for_clients_that_read_no_extensions() {
    let mut config = test_config();
    config.database.lossless_types = false;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let sql = "SELECT sum(range) AS total, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::UUID AS id FROM range(10)";
    assert_eq!(row(&client, sql).await, ["45", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn booleans_leave_as_plain_arrow_booleans() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let answer = client.query("SELECT true AS b, [true, NULL] AS l, {'x': false} AS s").await.unwrap();
    let schema = answer.schema();
    assert_eq!(schema.field(0).data_type(), &arrow_schema::DataType::Boolean);
    let batches = collect(answer).await.unwrap();
    assert!(batches[0].column(0).as_boolean().value(0));
    let list = batches[0].column(1).as_list::<i32>().value(0);
    assert!(list.as_boolean().value(0) && list.is_null(1));
    assert!(!batches[0].column(2).as_struct().column(0).as_boolean().value(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_stream_interrupts_query() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut stream = client.query(ENDLESS).await.unwrap();
    stream.next().await.unwrap().unwrap();
    assert_eq!(server.metric("mallard_queries_running").await, 1.0);
    drop(stream);
    until("no query runs", || async { server.metric("mallard_queries_running").await == 0.0 }).await;
    assert_eq!(server.metric("mallard_queries_total{outcome=\"cancelled\",statement=\"select\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_call_interrupts_query_that_has_no_rows_yet() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let query = client.query("SELECT sum(a.range * b.range) FROM range(10000000) a, range(1000000) b");
    // The call is dropped while it waits for the schema or the first row.
    let first = async { query.await.unwrap().next().await };
    let _ = tokio::time::timeout(Duration::from_millis(300), first).await;
    until("no query runs", || async { server.metric("mallard_queries_running").await == 0.0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_reader_holds_back_the_query() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut stream = client.query("SELECT i, 'some text to fill it ' || i FROM range(50000000) r(i)").await.unwrap();
    stream.next().await.unwrap().unwrap();
    // While nobody reads, what was produced stays within windows and channels.
    until("production has stopped", || async {
        let before = server.metric("mallard_rows_total{direction=\"sent\"}").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.metric("mallard_rows_total{direction=\"sent\"}").await == before
    })
    .await;
    assert!(server.metric("mallard_rows_total{direction=\"sent\"}").await < 10_000_000.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn full_pool_names_the_limit_and_its_key() {
    let mut config = test_config();
    config.limits.queries = 1;
    config.limits.queue = 1;
    config.limits.queue_timeout = Span(Duration::from_millis(100));
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let _running = client.query(ENDLESS).await.unwrap();
    let refused = client.query("SELECT 1").await.err().expect("the only engine thread is busy");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.to_string().contains("limits.queries"), "{refused}");
    assert_eq!(server.admin("/readyz").await.0, 200, "busy is not broken");
}

#[tokio::test(flavor = "multi_thread")]
async fn full_queue_names_the_limit_and_its_key() {
    let mut config = test_config();
    config.limits.queries = 1;
    config.limits.queue = 0;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let _running = client.query(ENDLESS).await.unwrap();
    let refused = client.query("SELECT 1").await.err().expect("nobody may wait");
    assert!(refused.to_string().contains("limits.queue"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_timeout_ends_the_stream() {
    let mut config = test_config();
    config.limits.statement_timeout = Span(Duration::from_millis(200));
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let ended = match client.query(ENDLESS).await {
        Ok(stream) => collect(stream).await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert_eq!(ended.expect_err("it would run for hours").code(), Code::DeadlineExceeded);
    until("no query runs", || async { server.metric("mallard_queries_running").await == 0.0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_timeout_ends_what_nobody_reads_or_sends() {
    let mut config = test_config();
    config.limits.statement_timeout = Span(Duration::from_millis(300));
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let _unread = client.query(ENDLESS).await.unwrap();
    until("no query runs", || async { server.metric("mallard_queries_running").await == 0.0 }).await;
    let silent = people(0, 0).schema();
    let silent = mallard::stream::RecordBatchStream::new(silent, futures::stream::pending());
    let ended = client.put(&["t".into()], silent).await.expect_err("nothing was sent");
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_stay_small_although_rows_are_not_equally_long() {
    let server = TestServer::start().await;
    let sql = "SELECT CASE WHEN i < 100 THEN repeat('x', 100000) ELSE 'y' END AS s FROM range(61440) r(i)";
    // A stock client refuses messages above 4 MiB.
    let answer = server.stock().await.do_get(arrow_flight::Ticket::new(sql)).await.unwrap().into_inner();
    let messages: Vec<_> = answer.collect().await;
    assert!(messages.iter().all(Result::is_ok), "{:?}", messages.iter().find(|message| message.is_err()));
}

#[tokio::test(flavor = "multi_thread")]
async fn words_of_a_client_break_nothing() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let refused = match client.query("SELECT error('database has been invalidated')").await {
        Ok(stream) => collect(stream).await.expect_err("an error"),
        Err(error) => error,
    };
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(client.healthy().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory_is_a_limit_and_the_next_query_works() {
    let mut config = test_config();
    config.database.memory_limit = Some(mallard::config::Size::mib(64));
    config.database.max_temp_size = Some(mallard::config::Size(0));
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let sql = "SELECT count(*) FROM (SELECT DISTINCT hash(range)::VARCHAR || repeat('x', 100) FROM range(10000000))";
    let ended = match client.query(sql).await {
        Ok(stream) => collect(stream).await.map(|_| ()),
        Err(error) => Err(error),
    };
    let error = ended.expect_err("64 MiB are not enough");
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert!(error.to_string().contains("database.memory_limit"), "{error}");
    assert_eq!(row(&client, "SELECT 1").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_concurrent_queries_are_answered() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let queries = (0..200).map(|n| {
        let client = client.clone();
        async move { row(&client, &format!("SELECT {n}")).await == [n.to_string()] }
    });
    let answers: Vec<bool> = futures::future::join_all(queries).await;
    assert!(answers.into_iter().all(|right| right));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_a_statement_leaves_behind_meets_another() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TEMP TABLE mine AS SELECT 1").await;
    assert_eq!(client.query("FROM mine").await.err().expect("another connection").code(), Code::NotFound);
    run(&client, "SET VARIABLE secret = 'x'").await;
    assert_eq!(row(&client, "SELECT getvariable('secret') IS NULL").await, ["true"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_reaches_no_files_and_no_settings() {
    let directory = tempfile::tempdir().unwrap();
    let outside = directory.path().join("outside.csv");
    std::fs::write(&outside, "a\n1\n").unwrap();
    let server = TestServer::start().await;
    let client = server.client().await;
    let file = outside.display();
    for sql in [
        format!("FROM read_csv('{file}')"),
        format!("SELECT * FROM read_blob('{file}')"),
        format!("COPY (SELECT 1) TO '{file}'"),
        format!("ATTACH '{file}.db'"),
        "SET enable_external_access = true".into(),
        "SET memory_limit = '1GB'".into(),
        "SET lock_configuration = false".into(),
        "INSTALL httpfs".into(),
        "SELECT * FROM mallard_stream(1::UBIGINT)".into(),
    ] {
        let refused = match client.query(&sql).await {
            Ok(stream) => collect(stream).await.map(|_| ()),
            Err(error) => Err(error),
        };
        assert!(refused.is_err(), "{sql} was let through");
        assert_ne!(refused.unwrap_err().code(), Code::Internal, "{sql}");
    }
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "a\n1\n");
}
