//! Metrics and logs tell what happens, and no secret.

use std::collections::BTreeSet;

use futures::StreamExt;
use mallard::{
    client::{Client, Login},
    config::Secret,
};
use serde_json::{Value, json};

use crate::{
    process::Process,
    support::{TestServer, collect, login, people, row, run, table, test_config, until, with_login},
};

const FLIGHT: &str = "grpc_service=\"arrow.flight.protocol.FlightService\"";

#[tokio::test(flavor = "multi_thread")]
async fn every_label_set_is_there_from_the_start() {
    let server = TestServer::start().await;
    let (_, text) = server.admin("/metrics").await;
    let zero = [
        format!("grpc_server_started_total{{grpc_method=\"DoExchange\",{FLIGHT},grpc_type=\"bidi_stream\"}}"),
        format!(
            "grpc_server_handled_total{{grpc_code=\"DataLoss\",grpc_method=\"GetSchema\",{FLIGHT},grpc_type=\"unary\"}}"
        ),
        "mallard_queries_total{outcome=\"timeout\",statement=\"merge\"}".into(),
        "mallard_query_cancellations_total{reason=\"drain\"}".into(),
        "mallard_denials_total{reason=\"permission\"}".into(),
        "mallard_exchanges_total{kind=\"sql\",outcome=\"error\"}".into(),
        "mallard_transfers_total{outcome=\"cancelled\"}".into(),
        "mallard_logins_total{method=\"handshake\",outcome=\"refused\"}".into(),
        "mallard_query_duration_seconds_count{statement=\"ingest\"}".into(),
        "mallard_database_invalidated".into(),
        "mallard_database_reopened_total".into(),
        "mallard_draining".into(),
    ];
    for name in zero {
        assert!(text.contains(&format!("{name} 0\n")), "{name} in:\n{text}");
    }
    // Labels are few: nothing that a client says becomes one.
    let client = server.client().await;
    assert!(client.query("FROM made_up_by_a_client").await.is_err());
    assert!(client.exchange("made_up_by_a_client", people(1, 1)).await.is_err());
    let (_, after) = server.admin("/metrics").await;
    let names = |text: &str| -> BTreeSet<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("mallard_duckdb_"));
        samples.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_string())).collect()
    };
    let new: Vec<String> = names(&after).difference(&names(&text)).cloned().collect();
    assert!(new.is_empty(), "{new:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documentation_lists_every_metric_with_its_meaning() {
    let mut config = test_config();
    let directory = tempfile::tempdir().unwrap();
    config.database.path = directory.path().join("m.duckdb").to_str().unwrap().to_string();
    let server = TestServer::with(config).await;
    let (_, text) = server.admin("/metrics").await;
    let shown: BTreeSet<(String, String)> = (text.lines())
        .filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '))
        .map(|(name, help)| (name.to_string(), help.to_string()))
        .collect();
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/observability.md")).unwrap();
    let documented: BTreeSet<(String, String)> = (text.lines())
        .filter(|line| ["counter", "gauge", "histogram"].iter().any(|kind| line.contains(&format!("` | {kind} |"))))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            (cells[0].trim_matches('`').to_string(), cells[3].to_string())
        })
        .collect();
    assert_eq!(documented, shown);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_statements_streams_exchanges_and_transfers() {
    let first = TestServer::start().await;
    let second = TestServer::start().await;
    let client = first.client().await;
    client.put(&table("people"), people(3, 1000)).await.unwrap();
    run(&client, "UPDATE people SET name = 'x' WHERE id = 1").await;
    collect(client.exchange("echo", people(2, 10)).await.unwrap()).await.unwrap();
    let half = json!({"name": "half", "sql": "SELECT * FROM input WHERE id % 2 = 0"});
    let mut added = client.action("add_exchange", &half).await.unwrap().boxed();
    added.next().await.unwrap().unwrap();
    until("it is registered", || async { first.metric("mallard_exchangers_registered").await == 1.0 }).await;
    collect(client.exchange("half", people(2, 10)).await.unwrap()).await.unwrap();
    let pulling = second.client().await;
    let mut steps = pulling.action("transfer", &json!({"from": first.uri(), "table": "people"})).await.unwrap().boxed();
    while let Some(step) = steps.next().await {
        step.unwrap();
    }
    let mut failing = pulling.action("transfer", &json!({"from": first.uri(), "table": "nope"})).await.unwrap().boxed();
    assert!(failing.next().await.unwrap().is_err());
    for (server, name, value) in [
        (&first, "mallard_queries_total{outcome=\"ok\",statement=\"ingest\"}", 1.0),
        (&first, "mallard_queries_total{outcome=\"ok\",statement=\"update\"}", 1.0),
        (&first, "mallard_exchanges_total{kind=\"builtin\",outcome=\"ok\"}", 1.0),
        (&first, "mallard_exchanges_total{kind=\"sql\",outcome=\"ok\"}", 1.0),
        (&first, "mallard_exchanges_running", 0.0),
        (&first, "mallard_rows_total{direction=\"received\"}", 3040.0),
        (&first, "mallard_stream_buffer_bytes", 0.0),
        (&second, "mallard_transfers_total{outcome=\"ok\"}", 1.0),
        (&second, "mallard_transfers_total{outcome=\"error\"}", 1.0),
        (&second, "mallard_transfers_running", 0.0),
        (&second, "mallard_transfer_rows_total", 3000.0),
        (&second, "mallard_connections", 1.0),
    ] {
        until(&format!("{name} {value}"), || async { server.metric(name).await == value }).await;
    }
    assert!(second.metric("mallard_transfer_bytes_total").await > 3000.0 * 8.0);
    let put = format!("{{grpc_method=\"DoPut\",{FLIGHT},grpc_type=\"bidi_stream\"}}");
    // A schema, three batches and the explicit end came, one result went.
    assert_eq!(first.metric(&format!("grpc_server_msg_received_total{put}")).await, 5.0);
    assert_eq!(first.metric(&format!("grpc_server_msg_sent_total{put}")).await, 1.0);
    for histogram in ["mallard_query_time_to_first_batch_seconds", "mallard_query_queue_duration_seconds"] {
        assert!(first.metric(&format!("{histogram}_count")).await >= 2.0, "{histogram}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_memory_files_and_checkpoints() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = test_config();
    config.database.path = directory.path().join("m.duckdb").to_str().unwrap().to_string();
    config.database.temp_directory = directory.path().join("spill").to_str().unwrap().to_string();
    let server = TestServer::with(config).await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t AS SELECT i, repeat('x', 100) AS filler FROM range(20_000) r(i)").await;
    run(&client, "INSERT INTO t SELECT i, '' FROM range(1000) r(i)").await;
    assert!(server.metric("mallard_wal_size_bytes").await > 0.0);
    assert!(server.metric("mallard_duckdb_memory_bytes{tag=\"BASE_TABLE\"}").await > 0.0);
    assert!(server.metric("mallard_duckdb_memory_limit_bytes").await > 1e6);
    for volume in ["database", "temp"] {
        let free = server.metric(&format!("mallard_volume_free_bytes{{volume=\"{volume}\"}}")).await;
        let size = server.metric(&format!("mallard_volume_size_bytes{{volume=\"{volume}\"}}")).await;
        assert!(0.0 < free && free <= size, "{volume}: {free} of {size}");
    }
    let before = server.metric("mallard_checkpoints_total").await;
    collect(client.query("CHECKPOINT").await.unwrap()).await.unwrap();
    until("the checkpoint is noticed", || async { server.metric("mallard_checkpoints_total").await == before + 1.0 })
        .await;
    assert_eq!(server.metric("mallard_wal_size_bytes").await, 0.0);
    assert!(server.metric("mallard_database_size_bytes").await > 10_000.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_logins_denials_sessions_and_deadlines() {
    let mut config = with_login(test_config());
    config.limits.statement_timeout = mallard::config::Span(std::time::Duration::from_millis(100));
    let server = TestServer::with(config).await;
    assert!(server.client().await.query("SELECT 1").await.is_err());
    let wrong = Login { user: "alice".into(), password: Secret::new("wrong") };
    assert!(Client::connect(server.server.location(), Some(&wrong)).await.is_err());
    assert_eq!(server.metric("mallard_sessions").await, 0.0);
    let client = Client::connect(server.server.location(), Some(&login())).await.unwrap();
    let endless =
        "SELECT count(*) FROM range(1_000_000_000_000) a, range(1_000_000_000) b WHERE hash(a.range + b.range) = 1";
    let outcome = match client.query(endless).await {
        Ok(stream) => collect(stream).await.map(drop),
        Err(error) => Err(error),
    };
    assert_eq!(outcome.unwrap_err().code(), tonic::Code::DeadlineExceeded);
    for (name, value) in [
        ("mallard_logins_total{method=\"basic\",outcome=\"ok\"}", 1.0),
        ("mallard_logins_total{method=\"basic\",outcome=\"refused\"}", 1.0),
        ("mallard_denials_total{reason=\"unauthenticated\"}", 2.0),
        ("mallard_queries_total{outcome=\"timeout\",statement=\"select\"}", 1.0),
        ("mallard_query_cancellations_total{reason=\"deadline\"}", 1.0),
        ("mallard_sessions", 1.0),
    ] {
        until(&format!("{name} {value}"), || async { server.metric(name).await == value }).await;
    }
}

/// Never in any output: literals of SQL, and secrets.
const CANARIES: [&str; 4] = ["canary-literal-7", "canary-password-7", "canary-key-0123456789", "987654321012345"];

#[tokio::test(flavor = "multi_thread")]
async fn one_log_line_tells_each_call_and_no_secret() {
    let process = Process::serve(&[
        ("MALLARD__AUTH__ENABLED", "true"),
        ("MALLARD__AUTH__USERS__ALICE__PASSWORD", "canary-password-7"),
        ("MALLARD__AUTH__USERS__ALICE__ROLE", "writer"),
        ("MALLARD__AUTH__SIGNING_KEY", "canary-key-0123456789"),
        ("MALLARD__ADMIN__SHOW_STATEMENTS", "true"),
    ]);
    let alice = Login { user: "alice".into(), password: Secret::new("canary-password-7") };
    let client = process.client(Some(&alice)).await;
    client.put(&table("people"), people(2, 500)).await.unwrap();
    let sql = "SELECT name FROM people WHERE name <> 'canary-literal-7' AND id < 987654321012345 -- canary-literal-7";
    assert_eq!(
        collect(client.query(sql).await.unwrap()).await.unwrap().iter().map(|b| b.num_rows()).sum::<usize>(),
        1000
    );
    for wrong in
        ["SELECT 'canary-literal-7' FROM nope", "SELEC 'canary-literal-7'", "SELECT 'canary-literal-7'::INTEGER"]
    {
        let outcome = match client.query(wrong).await {
            Ok(stream) => collect(stream).await.map(drop),
            Err(error) => Err(error),
        };
        assert!(outcome.is_err());
    }
    let body = json!({"from": "grpc://127.0.0.1:1", "username": "u", "password": "canary-password-7", "table": "t"});
    let mut failing = client.action("transfer", &body).await.unwrap().boxed();
    assert!(failing.next().await.unwrap().is_err());

    // A statement that runs shows itself on the status page without its values.
    let running = client
        .query("SELECT i, 'canary-literal-7' AS c FROM range(987654321012345) r(i) /* canary-literal-7 */")
        .await
        .unwrap();
    let (_, page) = crate::admin::fetch(process.admin, "/").await;
    assert!(page.contains("SELECT i, ? AS c FROM range(?) r(i)"), "{page}");
    drop(running);
    let (_, metrics) = crate::admin::fetch(process.admin, "/metrics").await;
    let (_, ready) = crate::admin::fetch(process.admin, "/readyz?verbose").await;
    let lines = process.stop();

    let calls: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
        .filter(|line: &Value| line["message"] == "answered")
        .collect();
    let methods: Vec<&str> =
        calls.iter().map(|line| line["method"].as_str().unwrap().rsplit('/').next().unwrap()).collect();
    assert_eq!(methods, ["Handshake", "DoPut", "DoGet", "DoGet", "DoGet", "DoGet", "DoAction", "DoGet"]);
    for call in &calls {
        assert_eq!(call["user"], "alice", "{call}");
        assert_eq!(call["trace_id"].as_str().unwrap().len(), 32, "{call}");
        assert!(call["seconds"].as_f64().unwrap() >= 0.0, "{call}");
    }
    assert_eq!((&calls[1]["code"], &calls[1]["rows_received"]), (&json!("OK"), &json!(1000)));
    assert!(calls[1]["bytes_received"].as_u64().unwrap() > 1000);
    assert_eq!((&calls[2]["code"], &calls[2]["rows_sent"]), (&json!("OK"), &json!(1000)));
    assert_eq!(calls[3]["code"], "NOT_FOUND");
    assert_eq!(calls[4]["code"], "INVALID_ARGUMENT");
    assert_eq!(calls[7]["code"], "CANCELLED");
    let outputs = [lines.join("\n"), page, metrics, ready];
    for canary in CANARIES {
        for output in &outputs {
            assert!(!output.contains(canary), "{canary} in:\n{output}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_page_is_one_safe_page() {
    let server = TestServer::start().await;
    let client = server.client().await;
    row(&client, "SELECT 1").await;
    run(&client, "CREATE TABLE \"<em>wild</em>\" AS SELECT 1 AS i").await;
    let running = client.query("SELECT * FROM \"<em>wild</em>\", range(100_000_000_000)").await.unwrap();
    let (code, page) = server.admin("/").await;
    assert_eq!(code, 200);
    drop(running);
    // Nobody logs in here: that something runs is shown, and not what.
    assert!(page.contains("<code>select</code>") && !page.contains("wild"), "{page}");
    for there in [
        "ready",
        &format!("version {}", env!("CARGO_PKG_VERSION")),
        "client = flight.FlightClient(\"grpc://admin:",
        "mallard query grpc://admin:",
        "connections: 1,",
    ] {
        assert!(page.contains(there), "{there} in:\n{page}");
    }
    // What clients name is text, and nothing is loaded or run.
    for forbidden in ["<em>", "<script", "src=", "url(", "http://", "https://"] {
        assert!(!page.contains(forbidden), "{forbidden} in:\n{page}");
    }
    let mut config = test_config();
    config.admin.show_statements = true;
    let shown = TestServer::with(config).await;
    let client = shown.client().await;
    run(&client, "CREATE TABLE \"<em>wild</em>\" AS SELECT 1 AS i").await;
    let running = client.query("SELECT * FROM \"<em>wild</em>\", range(100_000_000_000)").await.unwrap();
    let (_, page) = shown.admin("/").await;
    drop(running);
    assert!(page.contains("wild") && !page.contains("<em>"), "what clients name is text: {page}");
    let mut config = test_config();
    config.server.public_location = Some("grpc://db.example.com:443".parse().unwrap());
    let (_, page) = TestServer::with(config).await.admin("/").await;
    assert!(page.contains("FlightClient(\"grpc://db.example.com:443\")"), "{page}");
}

#[test]
fn the_arrow_version_is_the_one_that_is_linked() {
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
    let packages = lock.parse::<toml::Table>().unwrap();
    let packages = packages["package"].as_array().unwrap();
    let arrow = packages.iter().find(|package| package["name"].as_str() == Some("arrow-array")).unwrap();
    assert_eq!(arrow["version"].as_str(), Some(mallard::telemetry::ARROW_VERSION));
}
