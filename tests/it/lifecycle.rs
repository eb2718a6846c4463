//! Start, health, and a stop that is orderly and never held up.

use std::time::{Duration, Instant};

use futures::StreamExt;
use mallard::{client::Client, config::Span, location::Location, server::Server};
use tokio::io::AsyncWriteExt;
use tonic::Code;

use crate::{
    process::Process,
    support::{TestServer, USER, collect, count, people, row, rows, run, table, test_config, until, with_login},
};

#[tokio::test(flavor = "multi_thread")]
async fn silent_connection_does_not_hold_up_the_stop() {
    let mut config = test_config();
    config.server.grace_period = Span(Duration::from_secs(60));
    let server = TestServer::with(config).await;
    let Location::Tcp { host, port } = server.server.location().clone() else { panic!("TCP") };
    let _silent = tokio::net::TcpStream::connect((host.clone(), port)).await.unwrap();
    // Another that began an HTTP/2 preface and went quiet, and an idle one that works.
    let mut half = tokio::net::TcpStream::connect((host, port)).await.unwrap();
    half.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let client = server.client().await;
    assert_eq!(row(&client, "SELECT 1").await, ["1"]);
    let stopped = tokio::time::timeout(Duration::from_secs(30), server.server.stop(std::future::pending()));
    stopped.await.expect("the stop does not wait for them").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn running_stream_may_finish_while_new_calls_are_refused() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t AS SELECT range AS i, repeat('x', 100) AS s FROM range(2000000)").await;
    let mut stream = client.query("FROM t").await.unwrap();
    let first = stream.next().await.unwrap().unwrap().num_rows();
    let stopping = tokio::spawn(server.server.stop(std::future::pending()));
    until("new calls are refused", || async {
        client.query("SELECT 1").await.is_err_and(|error| error.code() == Code::Unavailable)
    })
    .await;
    assert_eq!(first + rows(&collect(stream).await.expect("the stream is whole")), 2_000_000);
    stopping.await.unwrap().unwrap();
}

/// Begun by the action or as a text: both may be finished, and nothing else begins.
#[tokio::test(flavor = "multi_thread")]
async fn open_transaction_may_be_finished_while_the_server_drains() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = with_login(test_config());
    config.database.path = directory.path().join("m.duckdb").to_string_lossy().into_owned();
    config.server.grace_period = Span(Duration::from_secs(60));
    let server = TestServer::with(config.clone()).await;
    let (mut client, session, other) =
        (server.sql_of(USER).await, server.client_of(USER).await, server.client_of(USER).await);
    run(&other, "CREATE TABLE t (i INTEGER)").await;
    let transaction = client.begin_transaction().await.unwrap();
    let insert = "INSERT INTO t VALUES (1)".to_string();
    client.execute_update(insert.clone(), Some(transaction.clone())).await.unwrap();
    run(&session, "BEGIN").await;
    run(&session, &insert).await;
    let stopping = tokio::spawn(server.server.stop(std::future::pending()));
    let unavailable = |error: &mallard::error::Error| error.code() == Code::Unavailable;
    until("new calls are refused", || async { other.query("SELECT 1").await.is_err_and(|error| unavailable(&error)) })
        .await;
    // Statements of every kind go on in them.
    client.execute_update(insert.clone(), Some(transaction.clone())).await.unwrap();
    let counted = crate::flight_sql::table_in(&mut client, "SELECT count(*) FROM t", Some(&transaction)).await;
    assert_eq!(counted, ["2"]);
    let mut prepared = client.prepare(insert.clone(), Some(transaction.clone())).await.unwrap();
    prepared.execute_update().await.unwrap();
    prepared.close().await.unwrap();
    run(&session, &insert).await;
    // Nothing else does, whoever asks.
    let empty = client.begin_transaction().await.expect("ADBC's drivers begin the next one with each commit");
    let refusals = [
        client.execute_update(insert.clone(), Some(empty)).await.map(drop),
        client.execute("SELECT 1".into(), None).await.map(drop),
        client.execute_update(insert.clone(), None).await.map(drop),
        client.prepare(insert.clone(), None).await.map(drop),
    ];
    for refusal in refusals {
        assert_eq!(crate::flight_sql::refused(refusal).0, Code::Unavailable);
    }
    assert!(other.put(&table("t"), people(1, 1)).await.is_err_and(|error| unavailable(&error)));
    assert!(other.table(&table("t")).await.is_err_and(|error| unavailable(&error)));
    assert!(other.list("*").await.is_err_and(|error| unavailable(&error)));
    assert!(other.query("SET VARIABLE v = 1").await.is_err_and(|error| unavailable(&error)));
    client.end_transaction(transaction, arrow_flight::sql::EndTransaction::Commit).await.unwrap();
    assert!(!stopping.is_finished(), "the other is still open");
    run(&session, "COMMIT").await;
    stopping.await.unwrap().unwrap();
    let second = TestServer::with(config).await;
    assert_eq!(count(&second.client_of(USER).await, "t").await, 5);
}

/// What nothing has run in has nothing to commit: clients without autocommit have one open all the time.
#[tokio::test(flavor = "multi_thread")]
async fn empty_transaction_does_not_hold_up_the_stop() {
    let mut config = test_config();
    config.server.grace_period = Span(Duration::from_secs(3600));
    let server = TestServer::with(config).await;
    let mut client = server.sql().await;
    client.begin_transaction().await.unwrap();
    let stopped = tokio::time::timeout(Duration::from_secs(60), server.server.stop(std::future::pending()));
    stopped.await.expect("the stop does not wait for it").unwrap();
}

/// FORCE CHECKPOINT lets nobody begin while it waits for an open transaction, so it does not wait for long.
#[tokio::test(flavor = "multi_thread")]
async fn forced_checkpoint_does_not_stall_others_for_long() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = test_config();
    config.database.path = directory.path().join("m.duckdb").to_string_lossy().into_owned();
    let server = TestServer::with(config).await;
    let (client, other, mut writer) = (server.client().await, server.client().await, server.sql().await);
    run(&client, "CREATE TABLE t AS SELECT range AS i, repeat('x', 100) AS s FROM range(1000000)").await;
    // One who reads and stands still is not in its way.
    let mut stands_still = client.query("FROM t").await.unwrap();
    let first = stands_still.next().await.unwrap().unwrap().num_rows();
    collect(other.query("FORCE CHECKPOINT").await.unwrap()).await.unwrap();
    let transaction = writer.begin_transaction().await.unwrap();
    writer.execute_update("UPDATE t SET s = 'y' WHERE i = 1".into(), Some(transaction.clone())).await.unwrap();
    let forced = tokio::spawn(async move { collect(other.query("force checkpoint").await?).await });
    let refused = forced.await.unwrap().expect_err("a transaction is open");
    assert!(refused.code() == Code::Aborted && refused.to_string().contains("FORCE CHECKPOINT"), "{refused}");
    assert_eq!(row(&client, "SELECT 1").await, ["1"]);
    assert_eq!(first + rows(&collect(stands_still).await.unwrap()), 1_000_000, "the reader lost nothing");
    writer.end_transaction(transaction, arrow_flight::sql::EndTransaction::Commit).await.unwrap();
    assert_eq!(count(&client, "t").await, 1_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn second_signal_interrupts_what_runs() {
    let mut config = test_config();
    config.server.grace_period = Span(Duration::from_secs(3600));
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let mut stream = client.query("SELECT a.range FROM range(10000000000) a").await.unwrap();
    stream.next().await.unwrap().unwrap();
    let start = Instant::now();
    let stopping = tokio::spawn(server.server.stop(std::future::ready(())));
    let error = collect(stream).await.expect_err("it was cut, and says so");
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    stopping.await.unwrap().unwrap();
    // The grace period is an hour.
    assert!(start.elapsed() < Duration::from_secs(600));
}

#[tokio::test(flavor = "multi_thread")]
async fn grace_period_ends_what_does_not() {
    let mut config = test_config();
    config.server.grace_period = Span(Duration::from_millis(200));
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let mut stream = client.query("SELECT a.range FROM range(10000000000) a").await.unwrap();
    stream.next().await.unwrap().unwrap();
    // Nobody reads the stream.
    server.server.stop(std::future::pending()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_the_server() {
    let mut config = test_config();
    config.server.drain_delay = Span(Duration::from_secs(2));
    let server = TestServer::with(config).await;
    let client = server.client().await;
    assert!(client.healthy().await.unwrap());
    assert_eq!(server.admin("/readyz").await.0, 200);
    let admin = server.server.admin_address().unwrap();
    let stopping = tokio::spawn(server.server.stop(std::future::pending()));
    until("health says NOT_SERVING", || async { client.healthy().await.is_ok_and(|serving| !serving) }).await;
    // Not ready any more, but during the drain delay calls that still come are taken.
    assert_eq!(row(&client, "SELECT 1").await, ["1"]);
    let ready = crate::admin::fetch(admin, "/readyz?verbose").await;
    assert_eq!(ready.0, 503);
    assert!(ready.1.contains("[-]state draining"), "{}", ready.1);
    assert_eq!(crate::admin::fetch(admin, "/livez").await.0, 200);
    stopping.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_in_a_file_are_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = test_config();
    config.database.path = directory.path().join("m.duckdb").to_string_lossy().into_owned();
    let first = TestServer::with(config.clone()).await;
    first.client().await.put(&table("people"), people(20, 10_000)).await.unwrap();
    first.server.stop(std::future::pending()).await.unwrap();
    assert!(!directory.path().join("m.duckdb.wal").exists(), "a checkpoint was written");
    let second = TestServer::with(config).await;
    assert_eq!(count(&second.client().await, "people").await, 200_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn second_server_on_the_same_file_or_port_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = test_config();
    config.database.path = directory.path().join("not a database").to_string_lossy().into_owned();
    std::fs::write(&config.database.path, b"this is no DuckDB file, only text that is long enough to look at").unwrap();
    let error = Server::start(config.clone()).await.err().expect("no database");
    assert!(error.to_string().contains("cannot open database"), "{error}");

    let running = TestServer::start().await;
    config = test_config();
    config.server.location = running.server.location().clone();
    let error = Server::start(config).await.err().expect("the port is taken");
    assert!(error.to_string().contains("cannot listen on"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unix_socket_serves_and_is_cleaned_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mallard.sock");
    // Left over from a server that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mut config = test_config();
    config.server.location = Location::Unix(path.clone());
    let server = TestServer::with(config.clone()).await;
    let client = Client::connect(server.server.location(), None).await.unwrap();
    client.put(&table("people"), people(20, 10_000)).await.unwrap();
    assert_eq!(rows(&collect(client.query("FROM people").await.unwrap()).await.unwrap()), 200_000);
    let error = Server::start(config).await.err().expect("one listens already");
    assert!(error.to_string().contains("another server"), "{error}");
    server.server.stop(std::future::pending()).await.unwrap();
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_clients_do_not_keep_the_database_from_closing() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = test_config();
    config.server.grace_period = Span(Duration::from_millis(200));
    config.database.path = directory.path().join("m.duckdb").to_string_lossy().into_owned();
    let server = TestServer::with(config).await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t AS SELECT 1 AS i").await;
    // One that does not read, one that does not send.
    let mut unread = client.query("SELECT a.range, 'some text' FROM range(10000000000) a").await.unwrap();
    unread.next().await.unwrap().unwrap();
    let good = people(20, 10_000);
    let schema = good.schema();
    let silent = mallard::stream::RecordBatchStream::new(schema, good.chain(futures::stream::pending()));
    let putting = tokio::spawn({
        let client = client.clone();
        async move { client.put(&table("p"), silent).await }
    });
    until("rows have arrived", || async { server.metric("mallard_rows_total{direction=\"received\"}").await > 0.0 })
        .await;
    server.server.stop(std::future::pending()).await.unwrap();
    assert_eq!(putting.await.unwrap().expect_err("cut").code(), Code::Unavailable);
    assert!(!directory.path().join("m.duckdb.wal").exists(), "a checkpoint was written and the database closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_watch_does_not_hold_up_the_stop() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let mut config = test_config();
    config.server.grace_period = Span(Duration::from_secs(3600));
    let server = TestServer::with(config).await;
    let mut health = HealthClient::new(server.channel().await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let stopped = tokio::time::timeout(Duration::from_secs(60), server.server.stop(std::future::pending()));
    stopped.await.expect("the stop does not wait for it").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_answers_on_tcp_and_on_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mallard.sock");
    let mut config = test_config();
    config.server.unix_socket = Some(path.clone());
    let server = TestServer::with(config).await;
    let over_tcp = server.client().await;
    let over_unix = Client::connect(&Location::Unix(path.clone()), None).await.unwrap();
    over_unix.put(&table("people"), people(3, 1000)).await.unwrap();
    assert_eq!(count(&over_tcp, "people").await, 3000);
    assert_eq!(count(&over_unix, "people").await, 3000);
    server.server.stop(std::future::pending()).await.unwrap();
    assert!(!path.exists(), "the socket's file is left behind");
    assert_eq!(over_unix.query("SELECT 1").await.err().unwrap().code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_cuts_no_stream_short_and_is_in_time() {
    let server = Process::serve(&[
        ("MALLARD__SERVER__GRACE_PERIOD", "20s"),
        ("MALLARD__LIMITS__QUERIES", "32"),
        ("MALLARD__LIMITS__QUERIES_PER_USER", "0"),
    ]);
    let _silent = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    let client = server.client(None).await;
    run(&client, "CREATE TABLE t AS SELECT range AS i, repeat('x', 100) AS s FROM range(1000000)").await;
    let begun = futures::stream::iter(0..20).map(async |at| {
        let client = server.client(None).await;
        // The last of them would go on for ever, and is read by nobody until the end.
        let sql = if at < 19 { "FROM t" } else { "SELECT range, repeat('x', 100) FROM range(100000000000)" };
        let mut stream = client.query(sql).await.unwrap();
        let first = stream.next().await.unwrap().unwrap().num_rows();
        (client, stream, first)
    });
    let mut streams: Vec<_> = begun.buffered(20).collect().await;
    let (_endless_client, endless, _) = streams.pop().unwrap();
    let start = Instant::now();
    let stopping = tokio::task::spawn_blocking(move || server.stop());
    let finishing = streams
        .into_iter()
        .map(async |(_client, stream, first)| first + rows(&collect(stream).await.expect("it is whole")));
    assert_eq!(futures::future::join_all(finishing).await, [1_000_000; 19]);
    // It exits with 0, which `stop` asserts: the grace period, what an interrupt may take, and a checkpoint.
    stopping.await.unwrap();
    println!("measured: stopped after {:?} of a grace period of 20 s", start.elapsed());
    collect(endless).await.expect_err("never silently short");
}
