//! The action `transfer`: one server pulls from another, verified, in one transaction.

use futures::StreamExt;
use mallard::{client::Client, error::Result, transfer::Progress};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{PASSWORD, TestServer, USER, count, login, row, run, test_config, until, with_login};

async fn transfer(to: &Client, body: Value) -> Result<Vec<Progress>> {
    let mut results = to.action("transfer", &body).await?.boxed();
    let mut steps = Vec::new();
    while let Some(result) = results.next().await {
        steps.push(serde_json::from_slice(&result?).expect("a transfer's progress"));
    }
    Ok(steps)
}

#[tokio::test(flavor = "multi_thread")]
async fn table_arrives_whole_and_is_proven_equal() {
    let (source, target) = (TestServer::start().await, TestServer::start().await);
    let (there, here) = (source.client().await, target.client().await);
    run(&there, "CREATE TABLE t AS SELECT range AS i, 'row ' || range AS s, range % 7 = 0 AS b FROM range(500000)")
        .await;
    let steps = transfer(&here, json!({"from": source.uri(), "table": "t"})).await.unwrap();
    let last = steps.last().unwrap();
    assert!(last.done && last.verified == Some(true) && last.rows == 500_000, "{last:?}");
    assert!(last.bytes > 500_000 * 16);
    let fingerprint = "SELECT count(*), sum(hash(t))::VARCHAR FROM t";
    assert_eq!(row(&here, fingerprint).await, row(&there, fingerprint).await);
    assert_eq!(row(&here, fingerprint).await[1], *last.hash.as_ref().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn query_and_modes() {
    let (source, target) = (TestServer::start().await, TestServer::start().await);
    let (there, here) = (source.client().await, target.client().await);
    run(&there, "CREATE TABLE t AS SELECT range AS i FROM range(1000)").await;
    let body = |mode: &str| json!({"from": source.uri(), "query": "SELECT i FROM t WHERE i < 10; ", "to": "few", "mode": mode});
    transfer(&here, body("create")).await.unwrap();
    assert_eq!(transfer(&here, body("create")).await.unwrap_err().code(), Code::AlreadyExists);
    let appended = transfer(&here, body("append")).await.unwrap();
    assert_eq!(appended.last().unwrap().verified, Some(true), "the part that was appended is compared");
    assert_eq!(count(&here, "few").await, 20);
    transfer(&here, body("replace")).await.unwrap();
    assert_eq!(count(&here, "few").await, 10);
    // Values that are cast on the way have another hash; the count is compared and the answer says so.
    run(&here, "CREATE TABLE small (i SMALLINT)").await;
    let cast = json!({"from": source.uri(), "table": "t", "to": "small", "mode": "append"});
    let last = transfer(&here, cast).await.unwrap().pop().unwrap();
    assert_eq!((last.verified, last.rows), (Some(false), 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_connections_bring_the_same_rows() {
    let source = TestServer::with(with_login(test_config())).await;
    let target = TestServer::start().await;
    let there = Client::connect(source.server.location(), Some(&login())).await.unwrap();
    let here = target.client().await;
    run(&there, "CREATE TABLE t AS SELECT range AS i, 'row ' || range AS s FROM range(500000)").await;
    for (what, name) in [("table", "t"), ("query", "FROM t")] {
        let mut body = json!({"from": source.uri(), "to": "copy", "mode": "replace", "endpoints": 3,
            "username": USER, "password": PASSWORD});
        body[what] = name.into();
        let last = transfer(&here, body).await.unwrap().pop().unwrap();
        assert_eq!((last.rows, last.verified), (500_000, Some(true)));
        let fingerprint = |table: &str| format!("SELECT count(*), sum(hash(t))::VARCHAR FROM {table} t");
        assert_eq!(row(&here, &fingerprint("copy")).await, row(&there, &fingerprint("t")).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_for_the_other_side_come_in_the_body() {
    let source = TestServer::with(with_login(test_config())).await;
    let target = TestServer::start().await;
    let there = Client::connect(source.server.location(), Some(&login())).await.unwrap();
    let here = target.client().await;
    run(&there, "CREATE TABLE t AS SELECT 1 AS i").await;
    let none = transfer(&here, json!({"from": source.uri(), "table": "t"})).await.unwrap_err();
    assert_eq!(none.code(), Code::Unauthenticated);
    let wrong = json!({"from": source.uri(), "table": "t", "username": USER, "password": "canary-secret"});
    let wrong = transfer(&here, wrong).await.unwrap_err();
    assert_eq!(wrong.code(), Code::Unauthenticated);
    assert!(!wrong.to_string().contains("canary-secret"));
    transfer(&here, json!({"from": source.uri(), "table": "t", "username": USER, "password": PASSWORD})).await.unwrap();
    assert_eq!(count(&here, "t").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_stores_nothing_and_says_why() {
    let (source, target) = (TestServer::start().await, TestServer::start().await);
    let (there, here) = (source.client().await, target.client().await);
    run(&there, "CREATE TABLE t AS SELECT range AS i FROM range(1000000)").await;
    let failing = "SELECT CASE WHEN i = 999999 THEN error('broke at the end') ELSE i::VARCHAR END AS i FROM t";
    let check = async |body: Value, code: Code, says: &str| {
        let error = transfer(&here, body).await.expect_err(says);
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(here.query("FROM gone").await.err().expect("nothing stored").code(), Code::NotFound);
    };
    let from = source.uri();
    check(json!({"from": from, "query": failing, "to": "gone"}), Code::InvalidArgument, "broke at the end").await;
    check(json!({"from": from, "table": "nope", "to": "gone"}), Code::NotFound, "nope").await;
    check(json!({"from": "grpc://127.0.0.1:1", "table": "t", "to": "gone"}), Code::Unavailable, "127.0.0.1:1").await;
    check(json!({"from": "http://x", "table": "t", "to": "gone"}), Code::InvalidArgument, "unknown scheme").await;
    check(json!({"from": from, "to": "gone"}), Code::InvalidArgument, "table or query").await;
    check(json!({"from": from, "query": "SELECT 1"}), Code::InvalidArgument, "\"to\"").await;
    check(json!({"from": from, "table": "t", "user": "x", "to": "gone"}), Code::InvalidArgument, "user").await;
    check(json!({"from": from, "table": "t", "endpoints": 0, "to": "gone"}), Code::InvalidArgument, "1 to 64").await;
    check(json!({"from": from, "table": "t", "endpoints": 65, "to": "gone"}), Code::InvalidArgument, "1 to 64").await;
    check(json!({"from": from, "query": failing, "endpoints": 3, "to": "gone"}), Code::InvalidArgument, "broke at")
        .await;
    check(json!({"from": from, "table": "t", "username": "x", "to": "gone"}), Code::InvalidArgument, "go together")
        .await;
    check(json!({"from": from, "table": "t", "password": 4711, "to": "gone"}), Code::InvalidArgument, "must be a text")
        .await;
    // Rows that differ from one reading to the next cannot be proven equal.
    let unsteady = json!({"from": from, "query": "SELECT random() AS r FROM t", "to": "gone"});
    check(unsteady, Code::Aborted, "nothing was stored").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_that_stops_half_way_leaves_nothing() {
    let (source, target) = (TestServer::start().await, TestServer::start().await);
    let here = target.client().await;
    let body = json!({"from": source.uri(), "query": "SELECT a.range AS i FROM range(10000000000) a", "to": "gone"});
    let pulling = tokio::spawn({
        let here = here.clone();
        async move { transfer(&here, body).await }
    });
    until("rows arrive", || async { source.metric("mallard_rows_total{direction=\"sent\"}").await > 1e6 }).await;
    source.server.stop(std::future::ready(())).await.unwrap();
    let error = pulling.await.unwrap().expect_err("the source is gone");
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert_eq!(here.query("FROM gone").await.err().expect("nothing stored").code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn caller_that_leaves_ends_the_transfer_on_both_sides() {
    let (source, target) = (TestServer::start().await, TestServer::start().await);
    let here = target.client().await;
    let body = json!({"from": source.uri(), "query": "SELECT a.range AS i FROM range(10000000000) a", "to": "gone"});
    let mut results = here.action("transfer", &body).await.unwrap().boxed();
    results.next().await.unwrap().unwrap();
    drop(results);
    for server in [&source, &target] {
        until("no query runs", || async { server.metric("mallard_queries_running").await == 0.0 }).await;
    }
    assert_eq!(here.query("FROM gone").await.err().expect("nothing stored").code(), Code::NotFound);
}
