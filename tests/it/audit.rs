//! Who did what is written down, without what they wrote; and it can be seen and ended while it runs.

use std::path::Path;

use futures::{StreamExt, TryStreamExt};
use mallard::{
    client::{Client, Login},
    config::Secret,
    error::Error,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{PASSWORD, TestServer, collect, people, row, run, table, test_config, until, with_users};

async fn serve(audit: Option<&Path>) -> (TestServer, Client, Client) {
    let mut config = with_users(test_config(), &[("root", "admin"), ("ann", "reader")]);
    config.audit.file = audit.map(Into::into);
    let server = TestServer::with(config).await;
    let (root, ann) = (server.client_of("root").await, server.client_of("ann").await);
    (server, root, ann)
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_login_call_and_statement_is_a_line_without_a_literal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (server, root, ann) = serve(Some(&path)).await;
    run(&root, "CREATE TABLE birds AS SELECT 'canary-literal-1' AS name").await;
    root.put(&table("people"), people(1, 7)).await.unwrap();
    assert_eq!(row(&ann, "SELECT count(*) FROM birds WHERE name = 'canary-literal-2' OR true").await, ["1"]);
    ann.query("INSERT INTO birds VALUES ('canary-literal-3')").await.err().expect("a reader");
    run(&root, "CREATE SCHEMA hr").await;
    run(&root, "CREATE TABLE hr.pay AS SELECT 1 AS i").await;
    let several = "SELECT p.i FROM birds AS b, hr.pay p JOIN main.\"people\" ON true JOIN hr.pay q ON true LIMIT 1";
    assert_eq!(row(&ann, several).await, ["1"]);
    ann.action("sessions", &Value::Null).await.err().expect("not an admin");
    ann.query("SELECT 'canary-literal-4' FROM nothing").await.err().expect("no such table");
    let wrong = Login { user: "ann".into(), password: Secret::new("canary-password") };
    Client::connect(server.server.location(), Some(&wrong)).await.err().expect("a wrong password");
    let there = async || {
        let lines = lines(&path);
        let has = |wanted: Value| {
            lines.iter().any(|line| wanted.as_object().unwrap().iter().all(|(key, value)| line[key] == *value))
        };
        has(json!({"event": "login", "user": "ann", "outcome": "ok"}))
            && has(json!({"event": "login", "user": "ann", "outcome": "refused"}))
            && has(
                json!({"event": "statement", "user": "root", "role": "admin", "class": "create", "objects": ["birds"], "outcome": "OK"}),
            )
            && has(
                json!({"event": "statement", "user": "root", "class": "ingest", "objects": ["people"], "outcome": "OK"}),
            )
            && has(
                json!({"event": "statement", "user": "ann", "objects": ["birds", "hr.pay", "main.\"people\"", "hr.pay"]}),
            )
            && has(
                json!({"event": "call", "user": "ann", "action": "sessions", "outcome": "PERMISSION_DENIED", "rule": "role"}),
            )
            && has(json!({"event": "call", "user": "root", "outcome": "OK", "rows_received": 7}))
            && has(
                json!({"event": "statement", "user": "ann", "class": "select", "objects": ["birds"], "outcome": "OK", "rows_sent": 1}),
            )
            && has(
                json!({"event": "statement", "user": "ann", "class": "insert", "objects": ["birds"], "outcome": "PERMISSION_DENIED", "rule": "role"}),
            )
            && has(
                json!({"event": "statement", "user": "ann", "class": "select", "objects": ["nothing"], "outcome": "NOT_FOUND"}),
            )
    };
    until("all of it is written", there).await;
    let all = lines(&path);
    for line in &all {
        assert!(line["time"].as_str().unwrap().ends_with('Z') && line["peer"].is_string(), "{line}");
    }
    // A statement is found by its call's trace.
    let statement = all.iter().find(|line| line["class"] == "insert").unwrap();
    let call = all.iter().find(|line| line["event"] == "call" && line["trace_id"] == statement["trace_id"]).unwrap();
    assert_eq!((&call["outcome"], &call["user"]), (&json!("PERMISSION_DENIED"), &json!("ann")));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("canary") && !text.contains("SELECT") && !text.contains(PASSWORD), "{text}");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // Moved away, as log rotation does.
    std::fs::rename(&path, directory.path().join("audit.jsonl.1")).unwrap();
    let anew = async || {
        row(&ann, "SELECT 1").await;
        path.exists()
    };
    until("the file is made anew", anew).await;
    assert_eq!(server.metric("mallard_audit_lost_total").await, 0.0);
}

/// Each object once as `use kind catalog.schema.name`, whatever the text calls it.
#[tokio::test(flavor = "multi_thread")]
async fn statements_are_logged_with_what_they_reach() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (_server, root, _ann) = serve(Some(&path)).await;
    for sql in [
        "CREATE SCHEMA hr",
        "CREATE TABLE hr.pay AS SELECT 1 AS i",
        "CREATE VIEW hr.seen AS SELECT i FROM pay",
        "CREATE MACRO most() AS (SELECT max(i) FROM hr.seen)",
        "CREATE SEQUENCE numbers",
        "CREATE TABLE t (i INTEGER)",
        "CREATE TABLE \"weird \u{202e}name\" (i INTEGER)",
    ] {
        run(&root, sql).await;
    }
    root.put(&table("people"), people(1, 7)).await.unwrap();
    let statements = || lines(&path).into_iter().filter(|line| line["event"] == "statement").collect::<Vec<_>>();
    let mut count = 8;
    until("what was prepared is written", async || statements().len() == count).await;
    let pay = "read table memory.hr.pay";
    let seen = "read view memory.hr.seen";
    let t = |usage: &str| format!("{usage} table memory.main.t");
    let mut cases: Vec<(&str, Vec<String>)> = Vec::new();
    let mut case = |sql: &'static str, reached: &[&str]| {
        cases.push((sql, reached.iter().map(|one| one.to_string()).collect()));
    };
    case("SELECT 1", &[]);
    case("FROM HR.Pay", &[pay]);
    case("SELECT * FROM memory.hr.pay AS t, hr.pay", &[pay]);
    case("WITH pay AS (SELECT 1 AS i) FROM pay", &[]);
    case("WITH t AS (SELECT 1 AS i) FROM t, memory.main.t AS other", &[&t("read")]);
    case("SELECT * FROM hr.seen", &[seen, pay]);
    case("SELECT most()", &["read macro memory.main.most", seen, pay]);
    case("SELECT nextval('numbers'), nextval('main.numbers')", &["advance sequence memory.main.numbers"]);
    case("INSERT INTO t SELECT i FROM hr.pay", &[&t("write"), pay]);
    case("UPDATE t SET i = (SELECT max(i) FROM hr.seen)", &[&t("write"), seen, pay]);
    case("DELETE FROM t USING hr.pay p WHERE t.i = p.i", &[&t("write"), pay]);
    case("MERGE INTO t USING hr.pay p ON t.i = p.i WHEN MATCHED THEN DELETE", &[&t("write"), pay]);
    case("WITH x AS (INSERT INTO t VALUES (1) RETURNING i) FROM x, hr.pay", &[&t("write"), pay]);
    case("SET VARIABLE v = (SELECT max(i) FROM hr.pay)", &[pay]);
    case("EXPLAIN ANALYZE SELECT * FROM hr.seen", &[seen, pay]);
    case("DESCRIBE hr.pay", &[pay]);
    case("CREATE TABLE made AS FROM hr.pay", &["create table memory.main.made", pay]);
    case("CREATE VIEW hr.other AS SELECT 1 AS i", &["create table memory.hr.other"]);
    case("ALTER TABLE t ADD COLUMN j INTEGER", &[&t("write")]);
    case("DROP TABLE made", &["drop table memory.main.made"]);
    case("CREATE TYPE mood AS ENUM ('a')", &["create type memory.main.mood"]);
    case("DROP TYPE mood", &["drop type memory.main.mood"]);
    case("FROM \"weird \u{202e}name\"", &["read table memory.main.weird \\u{202e}name"]);
    for (sql, mut reached) in cases {
        // Once remembered and once not.
        for _ in 0..if sql.contains("FROM") && !sql.starts_with("CREATE") { 2 } else { 1 } {
            collect(root.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))).await.unwrap();
            count += 1;
            until("the statement is written", async || statements().len() >= count).await;
            let bound = statements()[count - 1]["bound"].as_array().cloned().unwrap_or_default();
            let one = |one: &Value| {
                let word = |key: &str| one[key].as_str().unwrap_or_default();
                format!("{} {} {}.{}.{}", word("use"), word("kind"), word("catalog"), word("schema"), word("name"))
            };
            let mut told: Vec<String> = bound.iter().map(one).collect();
            told.sort();
            reached.sort();
            assert_eq!(told, reached, "{sql}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_log_that_cannot_be_written_keeps_the_port_closed() {
    let mut config = test_config();
    config.audit.file = Some("/nowhere/audit.jsonl".into());
    let refused = mallard::server::Server::start(config).await.err().expect("no such folder");
    assert!(refused.to_string().contains("audit.file"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_without_identity_cannot_fill_the_log_and_the_stop_waits_for_the_last_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (server, root, _ann) = serve(Some(&path)).await;
    let mut stranger = server.stock().await;
    for _ in 0..500 {
        stranger.list_actions(arrow_flight::Empty {}).await.expect_err("no identity");
    }
    let lost = server.metric("mallard_audit_lost_total").await;
    assert!(lost > 0.0);
    run(&root, "CREATE TABLE last AS SELECT 1").await;
    server.server.stop(std::future::pending()).await.unwrap();
    let all = lines(&path);
    let strangers = all.iter().filter(|line| line["outcome"] == "UNAUTHENTICATED").count();
    assert_eq!(strangers + lost as usize, 500);
    assert!(all.iter().any(|line| line["class"] == "create" && line["objects"] == json!(["last"])), "{all:?}");
}

async fn act(client: &Client, name: &str, body: Value) -> Result<Vec<Value>, Error> {
    let results: Vec<_> = client.action(name, &body).await?.try_collect().await?;
    Ok(results.iter().map(|result| serde_json::from_slice(result).unwrap()).collect())
}

const ENDLESS: &str = "SELECT range, 'canary' FROM range(100000000000)";

#[tokio::test(flavor = "multi_thread")]
async fn running_statements_are_seen_and_ended_by_their_user_and_by_admins() {
    let (server, root, ann) = serve(None).await;
    let mut of_root = root.query(ENDLESS).await.unwrap();
    let mut of_ann = ann.query(ENDLESS).await.unwrap();
    let all = act(&root, "queries", Value::Null).await.unwrap();
    assert_eq!(all.len(), 2);
    assert!(all.iter().all(|query| !query["text"].as_str().unwrap().contains("canary")), "{all:?}");
    let id = |user: &str| all.iter().find(|query| query["user"] == user).unwrap()["id"].clone();
    let own = act(&ann, "queries", Value::Null).await.unwrap();
    assert_eq!(own.len(), 1);
    assert_eq!(own[0]["user"], "ann");
    // Another's is not there for her.
    let refused = act(&ann, "kill", json!({"query": id("root")})).await.expect_err("not hers");
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    assert_eq!(act(&ann, "kill", json!({"user": "root"})).await.unwrap(), [json!({"ended": 0})]);
    assert_eq!(act(&ann, "kill", json!({"query": id("ann")})).await.unwrap(), [json!({"ended": 1})]);
    let ended = loop {
        if let Err(error) = of_ann.next().await.expect("it ends in an error") {
            break error;
        }
    };
    assert_eq!(ended.code(), Code::Cancelled, "{ended}");
    // A waiting statement can be ended, too.
    let again = ann.query(ENDLESS).await.unwrap();
    assert_eq!(act(&root, "sessions", Value::Null).await.unwrap().len(), 2);
    assert_eq!(act(&root, "kill", json!({"user": "ann"})).await.unwrap(), [json!({"ended": 1})]);
    let ended = collect(again).await.expect_err("an admin ended it");
    assert_eq!(ended.code(), Code::Cancelled, "{ended}");
    assert_eq!(server.metric("mallard_query_cancellations_total{reason=\"admin\"}").await, 2.0);
    assert!(of_root.next().await.unwrap().is_ok(), "another's goes on");
    for wrong in [json!({}), json!({"query": 1, "user": "x"}), json!({"querry": 1}), json!({"query": 999_999})] {
        act(&root, "kill", wrong).await.expect_err("no such statement");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_statement_is_ended_before_it_runs() {
    let mut config = test_config();
    config.limits.queries = 1;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let running = client.query(ENDLESS).await.unwrap();
    let (waiting, ended) = tokio::join!(client.query("SELECT 1"), async {
        until("it waits", async || server.metric("mallard_queries_queued").await == 1.0).await;
        let queries = act(&client, "queries", Value::Null).await.unwrap();
        let waiting = queries.iter().find(|query| query["queued"] == true).unwrap();
        act(&client, "kill", json!({"query": waiting["id"]})).await
    });
    assert_eq!(ended.unwrap(), [json!({"ended": 1})]);
    let ended = waiting.err().expect("it was ended");
    assert_eq!(ended.code(), Code::Cancelled, "{ended}");
    drop(running);
}

/// DuckDB's planner cannot be interrupted, so what is told of a statement that it plans must be true all the same.
#[tokio::test(flavor = "multi_thread")]
async fn statement_that_is_planned_is_listed_until_its_thread_is_free() {
    let mut config = test_config();
    config.limits.sql_joins = 1000;
    let server = TestServer::with(config).await;
    let (client, other) = (server.client().await, server.client().await);
    let relations: Vec<String> = (0..300).map(|at| format!("range(2) t{at}")).collect();
    let long = format!("SELECT count(*) FROM {}", relations.join(", "));
    let plans = async || act(&other, "queries", Value::Null).await.unwrap();
    let planning = client.info(arrow_flight::FlightDescriptor::new_cmd(long));
    let (planned, ()) = tokio::join!(planning, async {
        until("it is planned", async || {
            plans().await.iter().any(|one| one["class"] == "plan" && one["queued"] == false)
        })
        .await;
        let id = plans().await[0]["id"].clone();
        assert_eq!(act(&other, "kill", json!({"query": id})).await.unwrap(), [json!({"ended": 1})]);
        let still: Vec<Value> = plans().await;
        assert!(still.iter().all(|one| one["ending"] == true), "{still:?}");
    });
    let ended = planned.expect_err("it was ended");
    assert_eq!(ended.code(), Code::Cancelled, "{ended}");
    until("its thread is free", async || plans().await.is_empty()).await;
}
