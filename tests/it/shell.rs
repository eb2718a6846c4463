//! `mallard sql` and `mallard tables` without a terminal; tests/e2e/test_shell.py has the prompt.

use std::{
    io::Write,
    process::{Output, Stdio},
};

use crate::{
    process::{mallard, text},
    support::{PASSWORD, TestServer, USER, row, run, test_config, with_login},
};

async fn shell(arguments: &[&str], input: &str) -> Output {
    let mut command = mallard();
    command
        .env("MALLARD_PASSWORD", PASSWORD)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let input = input.to_string();
    let running = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        // One that ends at an error reads no more.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    });
    running.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_of_an_input_run_one_after_the_other_and_the_first_error_ends_it() {
    let server = TestServer::start().await;
    let uri = server.uri();
    let script = "CREATE TABLE t (i INTEGER, v VARCHAR);\n-- a ; in a comment\nINSERT INTO t VALUES (1, 'a;b'),\n (2, $$;$$);;\n\
         SELECT * FROM t ORDER BY i; SELECT count(*) AS n FROM t";
    let done = shell(&["sql", &uri, "--format", "csv"], script).await;
    assert!(done.status.success(), "{}", text(&done.stderr));
    let shown = text(&done.stdout);
    assert!(shown.ends_with("i,v\n1,a;b\n2,;\nn\n2\n"), "{shown}");

    let failed = shell(&["sql", &uri], "SELECT 1 AS before; SELECT * FROM missing; DROP TABLE t;").await;
    assert_eq!(failed.status.code(), Some(5), "{}", text(&failed.stderr));
    assert!(text(&failed.stdout).contains("before") && text(&failed.stderr).contains("missing"), "{failed:?}");
    assert_eq!(row(&server.client().await, "SELECT count(*) FROM t").await, ["2"], "what comes behind is not run");

    let one = shell(&["sql", &uri, "--command", "SELECT 40 + 2 AS answer", "--format", "json"], "").await;
    assert_eq!(text(&one.stdout), "{\"answer\":42}\n", "{}", text(&one.stderr));
    let empty = shell(&["sql", &uri], "  -- nothing\n;;").await;
    assert!(empty.status.success() && empty.stdout.is_empty(), "{empty:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_listed_with_their_columns() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE flights (fl_date DATE, delay SMALLINT NOT NULL)").await;
    run(&client, "CREATE VIEW late AS FROM flights WHERE delay > 0").await;
    let uri = server.uri();
    let all = shell(&["tables", &uri], "").await;
    let shown = text(&all.stdout);
    for part in ["flights", "late", "VIEW", "fl_date DATE, delay SMALLINT"] {
        assert!(shown.contains(part), "{part}: {shown} {}", text(&all.stderr));
    }
    let some = shell(&["tables", &uri, "la%", "--json"], "").await;
    let listed: serde_json::Value = serde_json::from_slice(&some.stdout).expect("one line");
    assert_eq!(
        (&listed["name"], &listed["kind"], &listed["columns"][1]["type"]),
        (&"late".into(), &"VIEW".into(), &"SMALLINT".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn shell_runs_statements_in_one_session() {
    for (config, login) in [(with_login(test_config()), &["--user", USER][..]), (test_config(), &[])] {
        let server = TestServer::with(config).await;
        let uri = server.uri();
        let arguments = [&["sql", &uri], login].concat();
        let done = shell(
        &arguments,
        "CREATE TABLE t (i INTEGER);\nBEGIN;\nINSERT INTO t\n  VALUES (1), (2);\nCREATE TEMP TABLE mine AS SELECT 40 AS j;\n\
         SELECT sum(i) + max(j) AS answer FROM t, mine;\nROLLBACK;\n.tables\nSELECT count(*) AS left_over FROM t",
    )
    .await;
        let shown = text(&done.stdout);
        assert!(done.status.success(), "{}", text(&done.stderr));
        assert!(shown.contains("answer") && shown.contains("43"), "{shown}");
        assert!(shown.contains("i INTEGER") && shown.contains("left_over"), "{shown}");
        let left = if login.is_empty() { 0.0 } else { 1.0 };
        let ended = async || server.metric("mallard_client_sessions").await == left;
        crate::support::until("the connection's session has ended with it", ended).await;
        assert!(shown.trim_end().lines().rev().any(|line| line.contains(" 0 ")), "{shown}");
    }
}
