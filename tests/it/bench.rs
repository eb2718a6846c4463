//! `mallard bench`: what it measures it verifies, and it leaves nothing behind.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
};

use serde_json::{Value, json};

use crate::{
    process::{mallard, text},
    support::{PASSWORD, TestServer, USER, login, row, run, test_config, with_login},
};

const ROWS: u64 = 200_000;
const MOVES: [&str; 5] = ["GET", "PUT", "TRANSFER relayed", "TRANSFER pulled", "EXCHANGE"];

/// Runs away from the async threads, which the servers under test need.
async fn bench(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = mallard();
    command.arg("bench").args(arguments).envs(environment.iter().copied());
    tokio::task::spawn_blocking(move || command.output().expect("the binary runs")).await.unwrap()
}

async fn no_tables_are_left(server: &TestServer) {
    let client = mallard::client::Client::connect(server.server.location(), Some(&login())).await.unwrap();
    assert!(client.list("").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_is_verified_and_reported_and_the_tables_are_gone() {
    let (one, two) =
        (TestServer::with(with_login(test_config())).await, TestServer::with(with_login(test_config())).await);
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("new/report");
    let (first, second) = (one.uri(), two.uri());
    let rows = ROWS.to_string();
    let few = ["--rounds", "2", "--seconds", "0.1", "--clients", "3", "--user", USER, "--format", "json"];
    for (workload, endpoints) in [("flights", "1"), ("lineitem", "3")] {
        let asked = [&first, &second, "--workload", workload, "--endpoints", endpoints, "--rows", &rows];
        let written = ["--report", report.to_str().unwrap()];
        let done = bench(&[&asked[..], &written, &few].concat(), &[("MALLARD_PASSWORD", PASSWORD)]).await;
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        let said: Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!((&said["verified"], &said["workload"]), (&true.into(), &workload.into()));
        assert_eq!(said["endpoints"].to_string(), endpoints);
        let operations = said["operations"].as_array().unwrap();
        let names: Vec<&str> = operations.iter().map(|operation| operation["operation"].as_str().unwrap()).collect();
        assert_eq!(names, MOVES);
        for operation in operations {
            assert_eq!((&operation["verified"], &operation["rows"]), (&true.into(), &ROWS.into()), "{operation}");
            assert_eq!(operation["samples"].as_array().unwrap().len(), 2);
        }
        let small: Vec<&Value> = said["small"].as_array().unwrap().iter().map(|small| &small["clients"]).collect();
        assert_eq!(small, [1, 3]);
        reports_are_written(&report, &said);
        no_tables_are_left(&one).await;
        no_tables_are_left(&two).await;
    }
}

fn reports_are_written(report: &Path, said: &Value) {
    let read = |name: &str| std::fs::read_to_string(report.join(name)).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&read("bench.json")).unwrap(), *said);
    let (markdown, html) = (read("bench.md"), read("bench.html"));
    for name in MOVES.into_iter().chain(["3 clients", "Everything was verified."]) {
        assert!(markdown.contains(name) && html.contains(name), "{name}");
    }
    assert!(html.contains("<svg") && !html.contains("http://") && !html.contains("https://"), "one page for itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_has_no_transfers_and_chosen_operations_are_the_only_ones() {
    let server = TestServer::start().await;
    let uri = server.uri();
    let rows = ROWS.to_string();
    let few = ["--rows", &rows, "--rounds", "1", "--seconds", "0.1"];
    let all = bench(&[&[uri.as_str()], &few[..]].concat(), &[]).await;
    assert_eq!(all.status.code(), Some(0), "{}", text(&all.stderr));
    let shown = text(&all.stdout);
    for name in ["GET", "PUT", "EXCHANGE", "1 client", "8 clients", "Everything was verified."] {
        assert!(shown.contains(name), "{name} in:\n{shown}");
    }
    assert!(!shown.contains("TRANSFER"), "{shown}");
    let some =
        bench(&[&[uri.as_str(), "--operation", "exchange,get", "--format", "json"], &few[..]].concat(), &[]).await;
    let said: Value = serde_json::from_slice(&some.stdout).unwrap();
    let names: Vec<&Value> = said["operations"].as_array().unwrap().iter().map(|made| &made["operation"]).collect();
    assert_eq!((names, &said["small"]), (vec![&json!("GET"), &json!("EXCHANGE")], &json!([])));
    assert!(server.client().await.list("").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_measured_is_told_with_its_exit_code() {
    let server = TestServer::with(with_login(test_config())).await;
    let uri = server.uri();
    for (arguments, password, code, says) in [
        (&["--rows", "10"][..], "", 2, "<URI>"),
        (&[&uri, "--user", USER], "canary-secret", 4, "--user"),
        (&[&uri], "", 4, "--user"),
        (&["grpc://127.0.0.1:1"], "", 3, "127.0.0.1:1"),
        (&[&uri, "--operation", "pull", "--user", USER], PASSWORD, 1, "URI2"),
        (&[&uri, "--operation", "fly"], "", 2, "fly"),
        (&[&uri, "--rounds", "0"], "", 2, "--rounds"),
    ] {
        let done = bench(arguments, &[("MALLARD_PASSWORD", password)]).await;
        let stderr = text(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(says) && !stderr.contains("canary-secret"), "{arguments:?} says {says}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_dropped_after_an_error() {
    let (one, full) = (TestServer::start().await, {
        let mut config = test_config();
        config.database.memory_limit = Some(mallard::config::Size::mib(12));
        config.database.max_temp_size = Some(mallard::config::Size::mib(1));
        TestServer::with(config).await
    });
    let (first, second) = (one.uri(), full.uri());
    let asked = [&first, &second, "--operation", "get,relay", "--rows", "6000000", "--rounds", "1", "--format", "json"];
    let done = bench(&asked, &[]).await;
    assert!(!done.status.success());
    let said: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(said["verified"] == false && said["failure"].is_string(), "{said}");
    assert!(text(&done.stderr).contains(said["failure"].as_str().unwrap()));
    for server in [one, full] {
        assert!(server.client().await.list("").await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_dropped_after_an_interrupt() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let asked = ["bench", &server.uri(), "--operation", "put,get", "--rows", &ROWS.to_string(), "--rounds", "1000000"];
    let mut command = mallard();
    let mut child = command.args(asked).stdout(Stdio::null()).spawn().unwrap();
    let filled = "SELECT count(*) FROM duckdb_tables() WHERE table_name LIKE 'mallard\\_bench\\_%' ESCAPE '\\'";
    crate::support::until("it has a table", || async { row(&client, filled).await != ["0"] }).await;
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(client.list("").await.unwrap().is_empty());
}

/// `mallard bench --stdin`.
struct Agent {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Agent {
    fn start() -> Self {
        let mut child = mallard();
        let child = child.args(["bench", "--stdin"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = child.env("MALLARD_USER", USER).env("MALLARD_PASSWORD", PASSWORD).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    fn ask(&mut self, request: Value) -> Value {
        self.say(&request.to_string())
    }

    #[expect(clippy::disallowed_methods, reason = "a worker may wait, the others serve")]
    fn say(&mut self, line: &str) -> Value {
        tokio::task::block_in_place(|| {
            writeln!(self.input, "{line}").unwrap();
            let mut answer = String::new();
            self.output.read_line(&mut answer).unwrap();
            serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{line} was answered {answer:?}: {error}"))
        })
    }

    /// Ends its input; it ends by itself.
    fn end(mut self) {
        drop(self.input);
        assert!(self.child.wait().unwrap().success());
        let mut rest = String::new();
        self.output.read_line(&mut rest).unwrap();
        assert_eq!(rest, "");
    }
}

const HASH: &str = "SELECT count(*)::VARCHAR, sum(hash(t))::VARCHAR FROM";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn agent_moves_rows_whose_count_and_hash_are_the_servers() {
    let (one, two) =
        (TestServer::with(with_login(test_config())).await, TestServer::with(with_login(test_config())).await);
    let connect = async |server: &TestServer| {
        mallard::client::Client::connect(server.server.location(), Some(&login())).await.unwrap()
    };
    let (first, second) = (connect(&one).await, connect(&two).await);
    let servers = json!([one.uri(), two.uri()]);
    let mut agent = Agent::start();
    for (workload, select) in
        [("flights", include_str!("../../bench/flights.sql")), ("lineitem", include_str!("../../bench/lineitem.sql"))]
    {
        let select = select.replace("{rows}", &ROWS.to_string());
        run(&first, &format!("CREATE TABLE {workload} AS {select}")).await;
        let expected = row(&first, &format!("{HASH} {workload} t")).await;
        let check = |what: &str, answer: &Value| {
            assert_eq!(answer["operation"], what, "{answer}");
            assert_eq!((&answer["rows"], &answer["hash"]), (&json!(ROWS), &json!(expected[1])), "{answer}");
            for key in ["bytes", "seconds", "cpu_seconds", "rss_before", "rss_peak"] {
                assert!(answer[key].as_f64().unwrap() > 0.0, "{key} in {answer}");
            }
        };
        check("generate", &agent.ask(json!({"operation": "generate", "workload": workload, "rows": ROWS})));
        for (operation, stores_on, endpoints) in [
            ("get", None, 1),
            ("get", None, 3),
            ("put", Some(&first), 1),
            ("relay", Some(&second), 1),
            ("pull", Some(&second), 1),
            ("pull", Some(&second), 3),
            ("exchange", None, 1),
        ] {
            let request = json!({"operation": operation, "servers": servers, "table": workload, "to": "arrived",
                "exchanger": "processed", "verify": true, "endpoints": endpoints});
            let answer = agent.ask(request.clone());
            check(operation, &answer);
            assert_eq!(answer["first_batch_after_input_rows"].is_u64(), operation == "exchange", "{answer}");
            let Some(client) = stores_on else { continue };
            assert_eq!(row(client, &format!("{HASH} arrived t")).await, expected, "{operation}");
            run(client, "DROP TABLE arrived").await;
        }
        for operation in ["scan", "insert", "insert"] {
            check(operation, &agent.ask(json!({"operation": operation, "verify": true})));
        }
        let unverified = agent.ask(json!({"operation": "get", "servers": servers, "table": workload}));
        assert_eq!((&unverified["rows"], &unverified["hash"]), (&json!(ROWS), &Value::Null));
    }
    agent.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn agent_asks_small_queries_and_names_what_it_cannot_do() {
    let server = TestServer::with(with_login(test_config())).await;
    let servers = json!([server.uri()]);
    let mut agent = Agent::start();
    let alone = agent.ask(json!({"operation": "small", "servers": servers, "clients": 1, "count": 25}));
    assert_eq!((&alone["rows"], &alone["latencies_ms"]["count"]), (&json!(25), &json!(25)), "{alone}");
    let many = agent.ask(json!({"operation": "small", "servers": servers, "clients": 8, "seconds": 0.1}));
    let latency = |name: &str| many["latencies_ms"][name].as_f64().unwrap();
    assert!(latency("p50") <= latency("p90") && latency("p90") <= latency("p99") && latency("p99") <= latency("max"));
    assert!(latency("per_second") > 0.0 && many["rows"].as_u64().unwrap() > 0, "{many}");

    for (line, says) in [
        (r#"{"operation": "fly"}"#, "\"fly\""),
        ("garbage", "not a request"),
        (r#"{"operation": "get"}"#, "servers[0]"),
        (r#"{"operation": "put", "servers": ["grpc://127.0.0.1:1"]}"#, "127.0.0.1:1"),
        (r#"{"operation": "insert"}"#, "generate"),
        (r#"{"operation": "scan", "table": "nothing"}"#, "nothing"),
        (r#"{"operation": "small", "servers": ["http://x"]}"#, "unknown scheme"),
    ] {
        let answer = agent.say(line);
        assert!(answer["error"].as_str().is_some_and(|error| error.contains(says)), "{line} says {says}: {answer}");
        assert_eq!(answer.as_object().unwrap().len(), 1, "an error stands in place of all others");
    }
    agent.end();
}
