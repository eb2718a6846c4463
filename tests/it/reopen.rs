//! A statement that makes DuckDB invalidate the whole database interrupts the others and does not end the server: the
//! database is reopened in the process, with all that was acknowledged.

use std::{os::unix::fs::MetadataExt, path::Path, time::Duration};

use arrow_flight::sql::EndTransaction;
use futures::{StreamExt, TryStreamExt};
use mallard::{
    client::Client,
    config::{Config, Span},
    error::Error,
};
use serde_json::{Value, json};
use tonic::Code;
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
};

use crate::{
    faults,
    flight_sql::{refused, table as rows_of, table_in, update},
    process::{mallard, text},
    support::{TestServer, collect, count, people, row, run, table, test_config, until, with_users},
};

/// What any reader can reach where DuckDB has a defect: an assertion fails while the rows are made.
const FATAL: &str = "SELECT fail(range) FROM range(1)";

/// Where there is a function `fail`.
const FAIL: (&str, &str) = ("fatal_function", "fail");

const ENDLESS: &str = "SELECT a.range FROM range(1000000000000) a";

fn on_file(directory: &Path) -> Config {
    let mut config = test_config();
    config.database.path = directory.join("reopened.duckdb").to_str().unwrap().into();
    config.database.debug.push((FAIL.0.into(), FAIL.1.into()));
    config
}

async fn failing(client: &Client, sql: &str) -> Error {
    match client.query(sql).await {
        Ok(rows) => collect(rows).await.expect_err(sql),
        Err(error) => error,
    }
}

/// Until the server takes calls again, through a client that was connected before.
async fn serves(client: &Client) {
    until("the server serves again", async || client.healthy().await.unwrap_or(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fatal_error_of_one_statement_aborts_the_others_and_the_server_serves_on() {
    let directory = tempfile::tempdir().unwrap();
    let config = on_file(directory.path());
    let server = TestServer::with(config.clone()).await;
    let (ann, bob) = (server.client().await, server.client().await);
    run(&ann, "CREATE TABLE t AS SELECT range AS i FROM range(1000)").await;
    ann.put(&table("sent"), people(3, 700)).await.unwrap();
    let definition = json!({"name": "doubled", "sql": "SELECT id * 2 AS id FROM input"});
    ann.action("add_exchange", &definition).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
    let mut health = HealthClient::new(server.channel().await);
    let mut health = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let mut status = async || health.message().await.unwrap().unwrap().status;
    assert_eq!(status().await, ServingStatus::Serving as i32);
    let mut running = ann.query(ENDLESS).await.unwrap();
    assert!(running.next().await.unwrap().is_ok());

    let cause = failing(&bob, FATAL).await;
    assert_eq!(cause.code(), Code::Internal, "{cause}");
    assert!(cause.to_string().contains("incident") && cause.to_string().contains("reopened"), "{cause}");
    let told = loop {
        match running.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("cut short with OK"),
        }
    };
    assert_eq!(told.code(), Code::Aborted, "{told}");
    assert_eq!(status().await, ServingStatus::NotServing as i32);
    assert_eq!(status().await, ServingStatus::Serving as i32);

    // The same connections, and what runs on any server's.
    for client in [&ann, &bob] {
        assert_eq!((count(client, "t").await, count(client, "sent").await), (1000, 2100));
    }
    bob.put(&table("sent"), people(1, 5)).await.unwrap();
    assert_eq!(count(&ann, "sent").await, 2105);
    let doubled = ann.exchange("doubled", people(1, 10)).await.unwrap();
    assert_eq!(crate::support::rows(&collect(doubled).await.unwrap()), 10);
    for (name, value) in [("enable_external_access", "false"), ("lock_configuration", "true")] {
        let sql = format!("SELECT value FROM duckdb_settings() WHERE name = '{name}'");
        assert_eq!(row(&ann, &sql).await, [value], "{name}");
    }
    assert_eq!(failing(&ann, "SET threads = 1").await.code(), Code::PermissionDenied);
    assert_eq!(server.metric("mallard_database_reopened_total").await, 1.0);
    assert_eq!(server.metric("mallard_database_invalidated").await, 0.0);
    assert_eq!(server.metric("mallard_ready").await, 1.0);
    assert_eq!((server.admin("/readyz").await.0, server.admin("/livez").await.0), (200, 200));
    assert!(server.admin("/").await.1.contains("reopened after a fatal error"), "the status page says so");
    // The lock and the seal are this server's as before.
    let taken = mallard::server::Server::start(config.clone()).await.err().expect("the file is held");
    assert!(matches!(taken, Error::InUse(_)), "{taken}");
    assert_eq!(std::fs::metadata(&config.database.path).unwrap().mode() & 0o777, 0);
    // And it stops in order.
    server.server.stop(std::future::pending()).await.unwrap();
    let server = TestServer::with(config).await;
    assert_eq!(count(&server.client().await, "sent").await, 2105);
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_is_refused_while_the_database_is_reopened() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = on_file(directory.path());
    // The log is replayed slowly, because there is much of it.
    config.database.debug.push(("checkpoint_threshold".into(), "1TB".into()));
    let server = TestServer::with(config).await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t AS SELECT range AS i, hash(range)::VARCHAR AS s FROM range(0)").await;
    run(&client, "INSERT INTO t SELECT range, hash(range)::VARCHAR FROM range(100000)").await;
    let rounds: u32 = std::env::var("MALLARD_TEST_ROUNDS").map_or(40, |rounds| rounds.parse().unwrap());
    for _ in 0..rounds {
        run(&client, "UPDATE t SET i = i + 1, s = s || 'x'").await;
    }
    let log = server.metric("mallard_wal_size_bytes").await;
    let began = std::time::Instant::now();
    let (cause, seen) = tokio::join!(failing(&client, FATAL), async {
        let mut seen = Vec::new();
        while server.metric("mallard_database_reopened_total").await == 0.0 {
            seen.push((server.admin("/readyz?verbose").await, server.admin("/livez").await.0));
            // Not before: one that runs beside it might meet the error first.
            let last = &mut seen.last_mut().unwrap().0;
            if last.0 == 503 {
                let refused = client.query("SELECT count(*) FROM t").await.err();
                last.1.push_str(&refused.map_or("ok".into(), |error| format!("{:?}", error.code())));
            }
        }
        seen
    });
    assert_eq!(cause.code(), Code::Internal, "{cause}");
    let during = seen.iter().find(|((code, body), _)| *code == 503 && body.ends_with("Unavailable"));
    let ((_, body), alive) = during.unwrap_or_else(|| panic!("never not ready: {seen:?}"));
    assert!(body.contains("[-]database being reopened") && *alive == 200, "{body} {alive}");
    serves(&client).await;
    println!("a log of {:.0} MiB: serves again after {:.2?}", log / 1024.0 / 1024.0, began.elapsed());
    assert_eq!(row(&client, "SELECT min(i)::BIGINT, count(*) FROM t").await, [&rounds.to_string(), "100000"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_and_sessions_are_told_and_begin_anew() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::with(with_users(on_file(directory.path()), &[("ann", "admin"), ("bob", "reader")])).await;
    let [mut open, mut begun, mut temporary, mut other] = [
        server.sql_of("ann").await,
        server.sql_of("ann").await,
        server.sql_of("ann").await,
        server.sql_of("ann").await,
    ];
    update(&mut open, "CREATE TABLE t (i INTEGER)").await;
    let transaction = open.begin_transaction().await.unwrap();
    open.execute_update("INSERT INTO t VALUES (1)".into(), Some(transaction.clone())).await.unwrap();
    update(&mut begun, "BEGIN").await;
    update(&mut begun, "INSERT INTO t VALUES (2)").await;
    update(&mut temporary, "CREATE TEMP TABLE mine AS SELECT 1 AS i").await;
    let mut prepared = other.prepare("SELECT count(*) FROM t".into(), None).await.unwrap();
    let rolled_back = other.begin_transaction().await.unwrap();
    other.execute_update("INSERT INTO t VALUES (3)".into(), Some(rolled_back.clone())).await.unwrap();

    let bob = server.client_of("bob").await;
    assert_eq!(failing(&bob, FATAL).await.code(), Code::Internal);
    serves(&bob).await;

    // A transaction that is named: until its client ends it.
    for _ in 0..2 {
        let (code, says) =
            refused(open.execute_update("INSERT INTO t VALUES (1)".into(), Some(transaction.clone())).await);
        assert!(code == Code::Aborted && says.contains("rolled back"), "{code:?} {says}");
    }
    assert_eq!(refused(open.end_transaction(transaction.clone(), EndTransaction::Commit).await).0, Code::Aborted);
    assert_eq!(refused(open.end_transaction(transaction, EndTransaction::Commit).await).0, Code::NotFound);
    let again = open.begin_transaction().await.unwrap();
    assert_eq!(table_in(&mut open, "SELECT count(*) FROM t", Some(&again)).await, ["0"]);
    open.end_transaction(again, EndTransaction::Commit).await.unwrap();
    // What was lost is what a rollback is for.
    other.end_transaction(rolled_back, EndTransaction::Rollback).await.unwrap();
    // One begun as a text: nothing passes for a part of it.
    for _ in 0..2 {
        assert_eq!(refused(begun.execute_update("INSERT INTO t VALUES (2)".into(), None).await).0, Code::Aborted);
    }
    assert_eq!(refused(begun.execute_update("COMMIT".into(), None).await).0, Code::Aborted);
    update(&mut begun, "INSERT INTO t VALUES (4)").await;
    // Temporary tables are gone, and their client hears of it once.
    assert_eq!(refused(temporary.execute("SELECT * FROM mine".into(), None).await).0, Code::Aborted);
    assert_eq!(refused(temporary.execute("SELECT * FROM mine".into(), None).await).0, Code::NotFound);
    update(&mut temporary, "CREATE TEMP TABLE mine AS SELECT 2 AS i").await;
    assert_eq!(rows_of(&mut temporary, "SELECT * FROM mine").await, ["2"]);
    // A prepared statement is a text, and as good as before.
    let info = prepared.execute().await.unwrap();
    assert_eq!(crate::flight_sql::texts(&crate::flight_sql::rows(&mut other, info).await.1), ["1"]);
    assert_eq!(server.metric("mallard_transactions_open").await, 0.0);
}

fn events(path: &Path, event: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|line| line["event"] == event).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn user_whose_statements_did_it_twice_is_refused_for_a_while_and_named_in_the_audit_log() {
    let directory = tempfile::tempdir().unwrap();
    let audit = directory.path().join("audit.jsonl");
    let users = [("ann", "reader"), ("bob", "reader"), ("root", "admin")];
    let mut config = with_users(on_file(directory.path()), &users);
    config.audit.file = Some(audit.clone());
    config.limits.fatal_error_ban = Span(Duration::from_secs(3));
    let server = TestServer::with(config).await;
    let clients = server.clients(&users).await;
    let [ann, bob, root] = clients.as_slice() else { unreachable!() };
    run(root, "CREATE TABLE t AS SELECT 1 AS i").await;
    // An error of that name is nobody's fatal error, and neither is one that meets an invalidated database.
    for _ in 0..3 {
        let harmless = failing(bob, "SELECT error('INTERNAL Error: database has been invalidated')").await;
        assert_eq!(harmless.code(), Code::InvalidArgument, "{harmless}");
    }
    for time in 1..=2 {
        let mut others = bob.query(ENDLESS).await.unwrap();
        assert!(others.next().await.unwrap().is_ok());
        assert_eq!(failing(ann, FATAL).await.code(), Code::Internal);
        assert_eq!(collect(others).await.expect_err("it is interrupted").code(), Code::Aborted);
        let reopened = async || server.metric("mallard_database_reopened_total").await == f64::from(time);
        until("it is reopened", reopened).await;
        serves(ann).await;
    }
    let refusals = [ann.query("SELECT 1").await.map(drop), ann.exchange("echo", people(1, 1)).await.map(drop)];
    let [refused, exchange] = refusals;
    let refused = refused.expect_err("twice is too often");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.to_string().contains("limits.fatal_errors") && refused.to_string().contains("ann"), "{refused}");
    exchange.expect("what runs no statement of DuckDB's is not refused");
    for client in [bob, root] {
        assert_eq!(count(client, "t").await, 1, "others are served");
    }
    let named = async || events(&audit, "user_refused").len() == 1 && events(&audit, "fatal_error").len() == 2;
    until("the audit log names the user", named).await;
    for line in events(&audit, "user_refused").iter().chain(&events(&audit, "fatal_error")) {
        assert_eq!((&line["user"], &line["class"]), (&json!("ann"), &json!("select")), "{line}");
        assert!(line["trace_id"].is_string() && line["peer"].is_string(), "{line}");
    }
    assert_eq!(events(&audit, "user_refused")[0]["rule"], "limits.fatal_errors");
    until("the time is over", async || ann.query("SELECT 1").await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn database_in_memory_and_one_that_was_reopened_too_often_end_the_process() {
    let directory = tempfile::tempdir().unwrap();
    for (db, reopens) in [(Path::new(":memory:"), 10), (&directory.path().join("often.duckdb"), 2)] {
        let server = faults::server(db, json!({ "reopens": reopens, "debug": { FAIL.0: FAIL.1 } }));
        let client = server.client(None).await;
        run(&client, "CREATE TABLE t AS SELECT 1 AS i").await;
        let in_memory = db == Path::new(":memory:");
        for _ in 0..if in_memory { 0 } else { reopens } {
            assert_eq!(failing(&client, FATAL).await.code(), Code::Internal);
            serves(&client).await;
            assert_eq!(count(&client, "t").await, 1);
        }
        let last = failing(&client, FATAL).await;
        assert!(last.code() == Code::Internal && last.to_string().contains("restarts"), "{last}");
        let (code, lines) = server.ended().await;
        assert_eq!(code, Some(70), "{lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_was_replaced_meanwhile_is_not_reopened() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("replaced.duckdb");
    let server = faults::server(&db, json!({ "debug": { FAIL.0: FAIL.1 } }));
    let client = server.client(None).await;
    run(&client, "CREATE TABLE t AS SELECT 1 AS i").await;
    std::fs::rename(&db, directory.path().join("moved.duckdb")).unwrap();
    assert_eq!(failing(&client, FATAL).await.code(), Code::Internal);
    let (code, lines) = server.ended().await;
    assert_eq!(code, Some(70), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("removed or renamed")), "{lines:?}");
    assert!(!db.exists(), "no empty database takes its place");
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoint_that_fails_is_survived_with_all_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    for point in ["BEFORE_HEADER", "AFTER_FREE_LIST_WRITE", "BEFORE_TRUNCATE", "BEFORE_WAL_FINISH"] {
        let mut config = on_file(directory.path());
        config.database.path = directory.path().join(format!("{point}.duckdb")).to_str().unwrap().into();
        config.database.debug.push(("debug_checkpoint_abort".into(), point.into()));
        // Whose statement it was does not matter: the storage has failed.
        config = with_users(config, &[("ann", "admin")]);
        let server = TestServer::with(config).await;
        let client = server.client_of("ann").await;
        run(&client, "CREATE TABLE t AS SELECT range AS i FROM range(1000)").await;
        for time in 1..=3 {
            client.put(&table("sent"), people(2, 500)).await.unwrap();
            let mut running = client.query(ENDLESS).await.unwrap();
            assert!(running.next().await.unwrap().is_ok());
            let failed = failing(&client, "CHECKPOINT").await;
            assert_eq!(failed.code(), Code::Internal, "{point}: {failed}");
            assert_eq!(collect(running).await.expect_err("it is interrupted").code(), Code::Aborted, "{point}");
            serves(&client).await;
            assert_eq!((count(&client, "t").await, count(&client, "sent").await), (1000, 1000 * time), "{point}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_the_stored_value_that_its_type_does_not_have() {
    let directory = tempfile::tempdir().unwrap();
    let config = on_file(directory.path());
    let db = config.database.path.clone();
    let server = TestServer::with(config.clone()).await;
    let client = server.client().await;
    run(&client, "CREATE SCHEMA s").await;
    let values = "SELECT i, make_timestamp(CASE i WHEN 70000 THEN -9223372036854775808 ELSE i END) AS ts FROM range(100000) t(i)";
    run(&client, &format!("CREATE TABLE s.bad AS SELECT i, ts, [{{'at': ts}}] AS nested FROM ({values})")).await;
    run(&client, "CREATE TABLE good AS SELECT TIMESTAMP 'infinity' AS ts, DATE '-infinity' AS d, TIME '24:00:00' AS t")
        .await;
    let refused = failing(&client, "SELECT max(ts::VARCHAR) FROM s.bad").await;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    server.server.stop(std::future::pending()).await.unwrap();

    let verify = |form: &[&str]| {
        let output = mallard().args(["doctor", "--verify", "--db", &db]).args(form).output().unwrap();
        (output.status.code(), text(&output.stdout))
    };
    let (code, report) = verify(&["--json"]);
    assert_eq!(code, Some(1), "{report}");
    let report: Value = serde_json::from_str(&report).unwrap();
    let of = |name: &str| report["tables"].as_array().unwrap().iter().find(|table| table["table"] == name).unwrap();
    let places: Vec<_> = of("bad")["values"]
        .as_array()
        .unwrap()
        .iter()
        .map(|value| (value["column"].clone(), value["rowid"].clone()))
        .collect();
    assert_eq!(places, [(json!("ts"), json!(70_000)), (json!("nested[].at"), json!(70_000))]);
    assert!(of("good")["values"].is_null() && of("bad")["rows"] == 100_000, "{report}");
    let (_, shown) = verify(&[]);
    assert!(shown.contains("table s.bad, column ts, rowid 70000: timestamp -9223372036854775808 us"), "{shown}");

    // And what it says mends it.
    let server = TestServer::with(config).await;
    let client = server.client().await;
    run(&client, "UPDATE s.bad SET ts = NULL, nested = NULL WHERE rowid = 70000").await;
    run(&client, "SELECT max(ts::VARCHAR) FROM s.bad").await;
    server.server.stop(std::future::pending()).await.unwrap();
    let (code, report) = verify(&[]);
    assert_eq!(code, Some(0), "{report}");
}
