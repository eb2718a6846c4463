//! DoGet: rows, statuses, types, bounds, cancellation.

use std::time::Duration;

use arrow_array::cast::AsArray;
use futures::StreamExt;
use mallard::config::Span;
use tonic::Code;

use crate::support::{TestServer, USER, collect, people, row, rows, run, test_config, until, with_login};

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
async fn plain_types_are_value_for_value_what_duckdb_writes() {
    use arrow_array::Array;
    use arrow_schema::{DataType, IntervalUnit, TimeUnit};
    let mut config = test_config();
    config.database.lossless_types = mallard::config::LosslessTypes::Off;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let text = || DataType::Utf8;
    let whole = DataType::Decimal128(38, 0);
    for (value, data_type, expected) in [
        ("true", DataType::Boolean, "true"),
        ("12.34::DECIMAL(10, 2)", DataType::Decimal128(10, 2), "12.34"),
        ("-99999999999999999999999999999999999999::HUGEINT", whole.clone(), "-99999999999999999999999999999999999999"),
        ("sum(1)", whole.clone(), "1"),
        ("99999999999999999999999999999999999999::UHUGEINT", whole, "99999999999999999999999999999999999999"),
        ("'A0EEBC99-9c0b-4ef8-bb6d-6bb9bd380a11'::UUID", text(), "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("'10101010101'::BIT", text(), "10101010101"),
        ("'sad'::ENUM ('happy', 'sad')", text(), "sad"),
        ("'{\"a\": [1]}'::JSON", text(), "{\"a\": [1]}"),
        (
            "-123456789012345678901234567890123456789012345678901234567890::BIGNUM",
            text(),
            "-123456789012345678901234567890123456789012345678901234567890",
        ),
        ("0::BIGNUM", text(), "0"),
        ("'1000000000000000000'::BIGNUM", text(), "1000000000000000000"),
        ("'23:59:59.5+15:59:59'::TIMETZ", text(), "23:59:59.5+15:59:59"),
        ("'00:00:00-03:30'::TIMETZ", text(), "00:00:00-03:30"),
        ("'01:02:03+02'::TIMETZ", text(), "01:02:03+02"),
        (
            "INTERVAL '14 months 3 days 5 seconds'",
            DataType::Interval(IntervalUnit::MonthDayNano),
            "14 mons 3 days 5.000000000 secs",
        ),
        (
            "TIMESTAMP_NS '2024-02-29 12:00:00.123456789'",
            DataType::Timestamp(TimeUnit::Nanosecond, None),
            "2024-02-29T12:00:00.123456789",
        ),
    ] {
        // Among others that are NULL, and inside of lists, structs and maps.
        let sql =
            format!("SELECT {value} AS v, [NULL, {value}] AS l, {{'x': {value}}} AS s, MAP {{'k': {value}}} AS m");
        let answer = client.query(&sql).await.unwrap_or_else(|error| panic!("{value}: {error}"));
        let schema = answer.schema();
        assert_eq!(schema.field(0).data_type(), &data_type, "{value}");
        let extensions = format!("{schema:?}").matches("ARROW:extension").count();
        assert_eq!(extensions, 0, "{value}: {schema:?}");
        let batches = collect(answer).await.unwrap();
        let shown = |array: &dyn Array, row| arrow_cast::display::array_value_to_string(array, row).unwrap();
        assert_eq!(shown(batches[0].column(0), 0), expected, "{value}");
        let list = batches[0].column(1).as_list::<i32>().value(0);
        assert!(list.is_null(0) && shown(&list, 1) == expected, "{value} in a list");
        assert_eq!(shown(batches[0].column(2).as_struct().column(0), 0), expected, "{value} in a struct");
        assert_eq!(shown(batches[0].column(3).as_map().values(), 0), expected, "{value} in a map");
        // What is told before is what comes.
        let told: arrow_schema::Schema =
            client.info(arrow_flight::FlightDescriptor::new_cmd(sql)).await.unwrap().try_decode_schema().unwrap();
        assert_eq!(told, *schema, "{value}");
    }
    let zoned = client.query("SELECT TIMESTAMPTZ '2024-02-29 12:00:00+02' AS v").await.unwrap();
    assert!(matches!(zoned.schema().field(0).data_type(), DataType::Timestamp(TimeUnit::Microsecond, Some(_))));
    // What does not fit is an error, and never another number.
    for value in
        ["340282366920938463463374607431768211455::UHUGEINT", "(-170141183460469231731687303715884105727)::HUGEINT"]
    {
        let sql = format!("SELECT {value} AS v");
        let outcome = match client.query(&sql).await {
            Ok(answer) => collect(answer).await.map(drop),
            Err(error) => Err(error),
        };
        let error = outcome.expect_err(value).to_string();
        assert!(error.contains("column \"v\"") && error.contains("38 digits"), "{error}");
    }
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
    // Without a login the connection is the session: what stays there is seen by nobody else.
    let (client, other) = (server.client().await, server.client().await);
    run(&client, "CREATE TEMP TABLE mine AS SELECT 1").await;
    assert_eq!(other.query("FROM mine").await.err().expect("another connection").code(), Code::NotFound);
    run(&client, "SET VARIABLE secret = 'x'").await;
    assert_eq!(row(&other, "SELECT getvariable('secret') IS NULL").await, ["true"]);
}

/// With a login there is a session, and what a text changes stays in it: for plain Flight as for Flight SQL.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_text_leaves_behind_stays_in_the_session_of_its_login() {
    let server = TestServer::with(with_login(test_config())).await;
    let (client, other) = (server.client_of(USER).await, server.client_of(USER).await);
    run(&client, "CREATE TABLE t (i INTEGER)").await;
    run(&client, "CREATE SCHEMA s").await;
    for (leaves, asks, own, others) in [
        ("CREATE TEMP TABLE mine AS SELECT 41 AS i", "SELECT i FROM mine", "41", None),
        ("CREATE TEMP MACRO plus(a) AS a + 1", "SELECT plus(i) FROM mine", "42", None),
        ("SET VARIABLE secret = 'x'", "SELECT getvariable('secret') IS NULL", "false", Some("true")),
        ("USE memory.s", "SELECT current_schema()", "s", Some("main")),
        ("SET schema = 'main'", "SELECT current_schema()", "main", Some("main")),
        ("BEGIN", "INSERT INTO t VALUES (1)", "OK", Some("OK")),
        ("ROLLBACK", "SELECT count(*) FROM t", "1", Some("1")),
        ("BEGIN TRANSACTION", "DELETE FROM t", "OK", None),
        ("COMMIT", "SELECT count(*) FROM t", "0", Some("0")),
    ] {
        let said = row(&client, leaves).await;
        assert_eq!(said[0], "OK", "{leaves}");
        assert_eq!(row(&client, asks).await[0], own, "{leaves}");
        match others {
            Some(others) => assert_eq!(row(&other, asks).await[0], others, "{leaves}"),
            None if leaves.starts_with("BEGIN") => {}
            None => assert!(other.query(asks).await.is_err(), "{leaves}"),
        }
    }
    // Planned, described and exchanged, too.
    let info = client.info(arrow_flight::FlightDescriptor::new_cmd("FROM mine")).await.unwrap();
    assert_eq!(info.clone().try_decode_schema().unwrap().field(0).name(), "i");
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    assert_eq!(crate::support::rows(&collect(client.get(ticket).await.unwrap()).await.unwrap()), 1);
    let refused = client.query("PREPARE p AS SELECT 1").await.err().expect("it would be gone");
    assert!(refused.code() == Code::Unimplemented && refused.to_string().contains("send the statement"), "{refused}");
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
