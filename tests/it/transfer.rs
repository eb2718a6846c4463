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

/// What a table is beside its rows.
async fn described(client: &Client) -> Vec<Vec<String>> {
    let mut texts = Vec::new();
    for sql in [
        "SELECT sql, comment FROM duckdb_tables() WHERE table_name = 't'",
        "SELECT string_agg(sql, ' ' ORDER BY sql) FROM duckdb_indexes() WHERE table_name = 't'",
        "SELECT string_agg(comment, ' ' ORDER BY column_index) FROM duckdb_columns() WHERE table_name = 't'",
    ] {
        texts.push(row(client, sql).await);
    }
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn replacing_rows_keeps_the_table() {
    let (source, target) = (TestServer::start().await, TestServer::start().await);
    let (there, here) = (source.client().await, target.client().await);
    for sql in [
        "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
        "INSERT INTO parent VALUES (0), (1), (2)",
        "CREATE TABLE t (v VARCHAR NOT NULL DEFAULT 'x', id BIGINT PRIMARY KEY, p INTEGER REFERENCES parent (id), \
         u BIGINT UNIQUE CHECK (u >= 0), g BIGINT GENERATED ALWAYS AS (id + 1), d INTEGER DEFAULT 7)",
        "CREATE INDEX by_v ON t (v)",
        "COMMENT ON TABLE t IS 'the table'",
        "COMMENT ON COLUMN t.v IS 'the column'",
        // The same keys, in part, as those that come.
        "INSERT INTO t (v, id, p, u) SELECT 'old', range, range % 3, range FROM range(300000)",
    ] {
        run(&here, sql).await;
    }
    let before = described(&here).await;
    run(&there, "CREATE TABLE t AS SELECT range + 100000 AS id, range AS u, 'new ' || range AS v, (range % 3)::INTEGER AS p FROM range(300000)").await;
    let body = |query: &str| json!({"from": source.uri(), "query": query, "to": "t", "mode": "replace"});
    for query in ["FROM t", "FROM t", "SELECT *, id + 1 AS g, 8::INTEGER AS d FROM t"] {
        let last = transfer(&here, body(query)).await.unwrap_or_else(|error| panic!("{query}: {error}")).pop().unwrap();
        assert_eq!((last.rows, last.verified), (300_000, Some(true)), "{query}");
        let seen = "SELECT count(*), min(id), max(id), count(*) FILTER (v LIKE 'new %'), count(DISTINCT u), count(*) FILTER (g = id + 1), \
                    min(d) FROM t";
        let default = if query.contains("AS d") { "8" } else { "7" };
        assert_eq!(
            row(&here, seen).await,
            ["300000", "100000", "399999", "300000", "300000", "300000", default],
            "{query}"
        );
        assert_eq!(row(&here, "SELECT v FROM t WHERE id = 100005").await, ["new 5"]);
        assert_eq!(described(&here).await, before, "{query}");
    }
    let taken = here.query("INSERT INTO t (id, u) VALUES (100000, 900000)").await.err().expect("the key is still one");
    assert_eq!(taken.code(), Code::FailedPrecondition, "{taken}");
    // Nothing instead of something.
    transfer(&here, body("FROM t WHERE false")).await.unwrap();
    assert_eq!(count(&here, "t").await, 0);
    assert_eq!(described(&here).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_do_not_fit_replace_nothing_unless_forced() {
    let (source, target) = (TestServer::start().await, TestServer::start().await);
    let (there, here) = (source.client().await, target.client().await);
    run(&there, "CREATE TABLE t AS SELECT range AS id, 'x' AS v, range AS twice FROM range(10)").await;
    run(&here, "CREATE TABLE t (id BIGINT PRIMARY KEY, v VARCHAR NOT NULL)").await;
    run(&here, "INSERT INTO t VALUES (1, 'old')").await;
    let before = described(&here).await;
    let body = |query: &str, force: bool| json!({"from": source.uri(), "query": query, "to": "t", "mode": "replace", "force": force});
    for (query, code, says) in [
        ("FROM t", Code::InvalidArgument, "column \"twice\" is not in table"),
        ("SELECT id FROM t", Code::InvalidArgument, "column \"v\" of table \"t\" is not in the stream"),
        ("SELECT 'a' AS id, v FROM t", Code::InvalidArgument, "column \"id\" is VARCHAR in the stream"),
        ("SELECT id, NULL::VARCHAR AS v FROM t", Code::FailedPrecondition, "NOT NULL"),
        ("SELECT 1::BIGINT AS id, v FROM t", Code::FailedPrecondition, "uplicate key"),
    ] {
        let refused = transfer(&here, body(query, false)).await.expect_err(query);
        assert_eq!(refused.code(), code, "{query}: {refused}");
        assert!(refused.to_string().contains(says), "{query}: {refused}");
        let force = refused.to_string().contains("--force") && refused.to_string().contains("\"force\": true");
        assert_eq!(force, code == Code::InvalidArgument, "{query}: {refused}");
        assert_eq!(row(&here, "FROM t").await, ["1", "old"], "{query}");
        assert_eq!(described(&here).await, before, "{query}");
    }
    // What fits keeps its table whatever is asked for.
    transfer(&here, body("SELECT v, id FROM t", true)).await.unwrap();
    assert_eq!(described(&here).await, before);
    let last = transfer(&here, body("FROM t", true)).await.unwrap().pop().unwrap();
    assert_eq!((last.rows, last.verified), (10, Some(true)));
    assert_ne!(described(&here).await, before);
    assert_eq!(row(&here, "SELECT * FROM t WHERE id = 3").await, ["3", "x", "3"]);
    let wrong = transfer(&here, json!({"from": source.uri(), "table": "t", "mode": "append", "force": true})).await;
    assert_eq!(wrong.unwrap_err().code(), Code::InvalidArgument);

    // Rows that others refer to stay.
    run(&here, "CREATE TABLE main (id BIGINT PRIMARY KEY)").await;
    run(&here, "INSERT INTO main VALUES (100), (101)").await;
    run(&here, "CREATE TABLE detail (id BIGINT REFERENCES main (id))").await;
    run(&here, "INSERT INTO detail VALUES (100)").await;
    let ids = json!({"from": source.uri(), "query": "SELECT id FROM t", "to": "main", "mode": "replace"});
    let refused = transfer(&here, ids.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.to_string().contains("cannot be replaced while rows of another table refer to them"), "{refused}");
    assert_eq!(count(&here, "main").await, 2);
    run(&here, "DELETE FROM detail").await;
    transfer(&here, ids).await.unwrap();
    assert_eq!(count(&here, "main").await, 10);
    assert!(here.query("INSERT INTO detail VALUES (100)").await.is_err(), "the reference is still one");
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
