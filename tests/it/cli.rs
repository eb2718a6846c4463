//! The command line as its user sees it: output, errors, exit codes.

use std::process::{Command, Output, Stdio};

use crate::support::{PASSWORD, TestServer, USER, count, row, run, test_config, until, with_login};

fn mallard(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mallard"));
    command.args(arguments).env_remove("MALLARD_USER").env_remove("MALLARD_PASSWORD").stdin(Stdio::null());
    command
}

/// Runs away from the async threads, which the servers under test need.
async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().expect("the binary runs")).await.unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn query_writes_data_to_stdout_in_every_format() {
    let server = TestServer::start().await;
    let uri = server.uri();
    let directory = tempfile::tempdir().unwrap();
    let sql = "SELECT i, 'row ' || i AS name FROM range(3) r(i)";
    let csv = output(mallard(&["query", &uri, sql, "--format", "csv"])).await;
    assert_eq!(stdout(&csv), "i,name\n0,row 0\n1,row 1\n2,row 2\n");
    assert_eq!(stderr(&csv), "");
    let json = output(mallard(&["query", &uri, sql, "--format", "json"])).await;
    assert_eq!(stdout(&json).lines().next(), Some("{\"i\":0,\"name\":\"row 0\"}"));
    let merged = output(mallard(&["query", &uri, sql, "--format", "csv", "--endpoints", "3"])).await;
    assert_eq!((merged.status.code(), &merged.stdout), (Some(0), &csv.stdout));
    let table = output(mallard(&["query", &uri, sql])).await;
    assert!(stdout(&table).contains("│     2 │ row 2   │"), "{}", stdout(&table));
    let arrow = output(mallard(&["query", &uri, sql, "--format", "arrow"])).await;
    let read = arrow_ipc::reader::StreamReader::try_new(arrow.stdout.as_slice(), None).unwrap();
    assert_eq!(read.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 3);
    assert_eq!(output(mallard(&["query", &uri, sql, "--format", "parquet"])).await.status.code(), Some(1));

    // What was written is what is read back.
    let client = server.client().await;
    for ending in ["parquet", "csv", "json", "arrow"] {
        let file = directory.path().join(format!("rows.{ending}"));
        let file = file.to_str().unwrap();
        let written = output(mallard(&["query", &uri, sql, "-o", file])).await;
        assert!(written.status.success(), "{}", stderr(&written));
        assert_eq!(stdout(&written), "");
        let put = output(mallard(&["put", &uri, &format!("main.{ending}"), file])).await;
        assert!(put.status.success(), "{}", stderr(&put));
        assert_eq!(count(&client, ending).await, 3);
    }
    // Redirected standard output is appended to, not truncated.
    let file = directory.path().join("redirected");
    for _ in 0..2 {
        let append = std::fs::OpenOptions::new().create(true).append(true).open(&file).unwrap();
        let mut command = mallard(&["query", &uri, "SELECT 1 AS one", "--format", "csv"]);
        command.stdout(append);
        output(command).await;
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "one\n1\none\n1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_integers_are_whole_in_files_or_refused() {
    let server = TestServer::start().await;
    let (uri, client) = (server.uri(), server.client().await);
    let directory = tempfile::tempdir().unwrap();
    // Neither of them is a DOUBLE.
    let huge = "99999999999999999999999999999999999999::HUGEINT";
    let unsigned = "12345678901234567890123456789012345678::UHUGEINT";
    for (at, value) in [
        huge.to_string(),
        unsigned.to_string(),
        format!("-{huge}"),
        format!("[{huge}, NULL, -9007199254740993]"),
        format!("{{'a': {unsigned}, 'b': [{huge}]}}"),
        format!("MAP {{1::HUGEINT: {unsigned}}}"),
        format!("[{huge}, {huge}]::HUGEINT[2]"),
        "NULL::HUGEINT".to_string(),
        "sum(range)".to_string(),
    ]
    .iter()
    .enumerate()
    {
        let sql = format!("SELECT {value} AS v FROM range(3) GROUP BY ALL");
        let expected = row(&client, &format!("SELECT v::VARCHAR FROM ({sql})")).await;
        for ending in ["parquet", "csv", "json", "arrow"] {
            let file = directory.path().join(format!("huge.{ending}"));
            let written = output(mallard(&["query", &uri, &sql, "-o", file.to_str().unwrap()])).await;
            assert!(written.status.success(), "{value}: {}", stderr(&written));
            if !matches!(ending, "parquet" | "arrow") {
                // A text, whose numbers are whole.
                let text = std::fs::read_to_string(&file).unwrap();
                let digits: String = expected[0].chars().filter(char::is_ascii_digit).collect();
                let mut written = text.chars().filter(char::is_ascii_digit);
                assert!(digits.is_empty() || digits.chars().all(|digit| written.any(|other| other == digit)), "{text}");
                continue;
            }
            let table = format!("huge{at}{ending}");
            let put = output(mallard(&["put", &uri, &table, file.to_str().unwrap()])).await;
            assert!(put.status.success(), "{value}: {}", stderr(&put));
            assert_eq!(row(&client, &format!("SELECT v::VARCHAR FROM {table}")).await, expected, "{value} in {ending}");
            let stored = row(&client, &format!("SELECT typeof(v) FROM {table}")).await;
            assert_eq!(stored[0].contains("DECIMAL(38,0)"), ending == "parquet", "{value}: {stored:?}");
        }
    }
    // What no DECIMAL holds is refused, and leaves no file.
    for value in [
        "100000000000000000000000000000000000000::HUGEINT",
        "340282366920938463463374607431768211455::UHUGEINT",
        "[1, (-170141183460469231731687303715884105727)::HUGEINT]",
    ] {
        let file = directory.path().join("refused.parquet");
        let sql = format!("SELECT 1 AS i, {value} AS huge");
        let refused = output(mallard(&["query", &uri, &sql, "-o", file.to_str().unwrap()])).await;
        let says = stderr(&refused);
        assert!(!refused.status.success() && says.contains("\"huge\"") && says.contains("VARCHAR"), "{value}: {says}");
        assert!(!file.exists(), "{value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_and_what_next_with_their_exit_code() {
    let server = TestServer::with(with_login(test_config())).await;
    let uri = server.uri();
    let directory = tempfile::tempdir().unwrap();
    let password = directory.path().join("password");
    std::fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    let password = password.to_str().unwrap();
    let login = ["--user", USER, "--password-file", password];
    let with_login = |arguments: &[&str]| mallard(&[arguments, &login].concat());

    for (command, code, says) in [
        (with_login(&["query", &uri, "SELECT 1"]), 0, ""),
        (with_login(&["query", &uri, "SELEC 1"]), 1, "syntax error"),
        (with_login(&["query", &uri, "FROM nope"]), 5, "nope"),
        (with_login(&["put", &uri, "t", "/nowhere/x.csv"]), 1, "/nowhere/x.csv"),
        (with_login(&["put", &uri, "t", "x.doc"]), 1, "x.doc"),
        (with_login(&["actions", &uri, "nope"]), 5, "nope"),
        (mallard(&["query", &uri, "SELECT 1"]), 4, "--user"),
        (mallard(&["query", &uri, "SELECT 1", "--user", USER]), 4, "MALLARD_PASSWORD"),
        (mallard(&["query", "grpc://127.0.0.1:1", "SELECT 1"]), 3, "127.0.0.1:1"),
        (mallard(&["query", "http://x", "SELECT 1"]), 2, "unknown scheme"),
        (mallard(&["health", &uri]), 0, ""),
        (mallard(&["health", "grpc://127.0.0.1:1"]), 3, "cannot connect"),
        (mallard(&["nope"]), 2, "nope"),
    ] {
        let shown = format!("{command:?}");
        let done = output(command).await;
        assert_eq!(done.status.code(), Some(code), "{shown}: {}", stderr(&done));
        assert!(stderr(&done).contains(says), "{shown} says {says:?}: {}", stderr(&done));
    }
    let mut wrong = mallard(&["query", &uri, "SELECT 1", "--user", USER]);
    wrong.env("MALLARD_PASSWORD", "canary-secret");
    let wrong = output(wrong).await;
    assert_eq!(wrong.status.code(), Some(4));
    assert!(!stderr(&wrong).contains("canary-secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn exchange_transfer_and_actions_work_from_the_command_line() {
    let (one, two) = (TestServer::start().await, TestServer::start().await);
    run(&one.client().await, "CREATE TABLE t AS SELECT range AS i FROM range(1000)").await;
    let moved = output(mallard(&["transfer", &one.uri(), &two.uri(), "--table", "t"])).await;
    assert!(stdout(&moved).contains("1,000 rows") && stdout(&moved).contains("verified"), "{moved:?}");
    let some = ["--query", "SELECT i FROM t WHERE i < 3", "--into", "few", "--mode", "replace", "--endpoints", "2"];
    let moved = output(mallard(&[&["transfer", &one.uri(), &two.uri()], &some[..]].concat())).await;
    assert!(moved.status.success(), "{moved:?}");
    assert_eq!(count(&two.client().await, "few").await, 3);

    let body = "{\"name\": \"double\", \"sql\": \"SELECT i * 2 AS i FROM input\"}";
    assert!(output(mallard(&["actions", &one.uri(), "add_exchange", body])).await.status.success());
    let listed = output(mallard(&["actions", &one.uri(), "list_exchanges"])).await;
    assert!(stdout(&listed).contains("\"double\""));
    let sent = ["exchange", &one.uri(), "double", "--query", "SELECT 21 AS i", "--format", "csv"];
    assert_eq!(stdout(&output(mallard(&sent)).await), "i\n42\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_query_is_cancelled_on_the_server() {
    let server = TestServer::start().await;
    let sql = "SELECT a.range FROM range(10000000000) a";
    let child = mallard(&["query", &server.uri(), sql, "--format", "csv"]).stdout(Stdio::null()).spawn().unwrap();
    crate::support::until("it runs", || async { server.metric("mallard_queries_running").await == 1.0 }).await;
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let mut child = child;
    let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    assert_eq!(status.code(), Some(130));
    crate::support::until("it has ended", || async { server.metric("mallard_queries_running").await == 0.0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_is_shown_and_checked() {
    let mut show = mallard(&["config", "show", "--db", "x.duckdb"]);
    show.env("MALLARD__AUTH__USERS__BOB__PASSWORD", "canary-secret").env("MALLARD__LOG__LEVEL", "debug");
    let shown = output(show).await;
    let text = stdout(&shown);
    for line in [
        "database.path = \"x.duckdb\"  # command line",
        "log.level = \"debug\"  # environment MALLARD__LOG__LEVEL",
        "auth.users.bob.password = \"(redacted)\"  # environment MALLARD__AUTH__USERS__BOB__PASSWORD",
    ] {
        assert!(text.contains(line), "{line} in:\n{text}");
    }
    assert!(!text.contains("canary-secret"));
    let checked = output(mallard(&["config", "check", "--location", "grpc://0.0.0.0:1"])).await;
    assert_eq!(checked.status.code(), Some(2));
    assert!(stderr(&checked).contains("auth.allow_anonymous"));
    let served = output(mallard(&["serve", "--location", "grpc://0.0.0.0:0", "--admin", "off"])).await;
    assert_eq!(served.status.code(), Some(2), "it does not even open a port");
}

#[tokio::test(flavor = "multi_thread")]
async fn user_hash_makes_a_hash_that_logs_in() {
    use std::io::Write;
    let mut child = mallard(&["user", "hash"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hunter2\n").unwrap();
    let made = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let hash = stdout(&made).trim().to_string();
    let mut config = test_config();
    config.auth.enabled = true;
    let credential = mallard::config::Credential::Hash(mallard::config::Secret::new(hash));
    config.auth.users.insert("bob".into(), mallard::config::User::new(credential, "reader"));
    let server = TestServer::with(config).await;
    let mut query = mallard(&["query", &server.uri(), "SELECT 1", "--user", "bob"]);
    query.env("MALLARD_PASSWORD", "hunter2");
    assert!(output(query).await.status.success());
}

/// `mallard user ...` with this on standard input.
async fn user(arguments: &[&str], password: &str) -> Output {
    use std::io::Write;
    let mut command = mallard(&[&["user"], arguments].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may have ended without reading.
    let _ = child.stdin.take().unwrap().write_all(password.as_bytes());
    tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn users_file_is_changed_while_a_server_uses_it() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("users.toml");
    let file = ["--file", path.to_str().unwrap()];
    let with_file =
        |arguments: &[&str]| [arguments, &file].concat().iter().map(|text| text.to_string()).collect::<Vec<_>>();
    let run = async |arguments: &[&str], password: &str| {
        let arguments = with_file(arguments);
        user(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), password).await
    };
    assert!(run(&["add", "ann", "--role", "writer"], "one").await.status.success());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // As somebody may have written it.
    let text = std::fs::read_to_string(&path).unwrap();
    let old = mallard::auth::hash_password("old").unwrap();
    std::fs::write(&path, format!("# our users\nben = \"{old}\"\n\n{text}read = [\"x.*\"] # grants\n")).unwrap();
    let mut config = test_config();
    config.auth.enabled = true;
    config.auth.users_file = Some(path.clone());
    let server = TestServer::with(config).await;
    let may = async |name: &str, password: &str, sql: &str| {
        let mut query = mallard(&["query", &server.uri(), sql, "--user", name]);
        query.env("MALLARD_PASSWORD", password);
        output(query).await.status.success()
    };
    assert!(may("ann", "one", "CREATE TABLE t (i INT)").await && may("ben", "old", "SELECT 1").await);
    let there = run(&["add", "ann"], "two").await;
    assert!(!there.status.success() && stderr(&there).contains("--replace"), "{}", stderr(&there));
    assert!(run(&["add", "ann", "--replace"], "two").await.status.success());
    assert!(run(&["add", "ben", "--replace", "--role", "writer"], "three").await.status.success());
    assert!(run(&["add", "cay"], "four").await.status.success());
    until("the server has read them", async || may("cay", "four", "SELECT 1").await).await;
    assert!(may("ann", "two", "INSERT INTO t VALUES (1)").await && !may("ann", "one", "SELECT 1").await);
    assert!(
        may("ben", "three", "INSERT INTO t VALUES (1)").await && !may("cay", "four", "INSERT INTO t VALUES (1)").await
    );
    assert!(run(&["remove", "ben"], "").await.status.success());
    assert!(!run(&["remove", "ben"], "").await.status.success(), "there is none any more");
    until("he is gone", async || !may("ben", "three", "SELECT 1").await).await;
    let listed = run(&["list"], "").await;
    assert_eq!(stdout(&listed), "ann\twriter\tpassword\ncay\t(default role)\tpassword\n");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("read = [\"x.*\"] # grants"), "{text}");
    for (name, password) in [("a:b", "x"), ("", "x"), ("dan", "")] {
        assert!(!run(&["add", name], password).await.status.success(), "{name} {password}");
    }
    std::fs::write(&path, "broken = $argon2id").unwrap();
    let broken = run(&["list"], "").await;
    assert!(stderr(&broken).contains("line 1") && !stderr(&broken).contains("argon2id"), "{}", stderr(&broken));
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_name_the_commands() {
    let bash = output(mallard(&["completions", "bash"])).await;
    assert!(stdout(&bash).contains("transfer") && bash.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn demo_verifies_every_step_and_writes_its_report() {
    let directory = tempfile::tempdir().unwrap();
    let (json, markdown) = (directory.path().join("demo.json"), directory.path().join("demo.md"));
    let (json, markdown) = (json.to_str().unwrap(), markdown.to_str().unwrap());
    let done = output(mallard(&["demo", "--rows", "300000", "--json", json, "--markdown", markdown])).await;
    assert!(done.status.success(), "{}{}", stdout(&done), stderr(&done));
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(report["verified"], true);
    let operations = report["operations"].as_array().unwrap();
    let names: Vec<&str> = operations.iter().map(|operation| operation["operation"].as_str().unwrap()).collect();
    assert_eq!(names, ["PUT", "GET", "TRANSFER relayed", "TRANSFER pulled", "EXCHANGE", "EXCHANGE registered"]);
    for operation in operations {
        assert_eq!((&operation["verified"], &operation["rows"]), (&true.into(), &300_000.into()));
    }
    assert!(std::fs::read_to_string(markdown).unwrap().contains("Everything was verified."));
}

#[tokio::test(flavor = "multi_thread")]
async fn demo_uses_running_servers_and_leaves_nothing_behind() {
    let (one, two) =
        (TestServer::with(with_login(test_config())).await, TestServer::with(with_login(test_config())).await);
    let mut demo =
        mallard(&["demo", "--rows", "1000", "--server1", &one.uri(), "--server2", &two.uri(), "--user", USER]);
    demo.env("MALLARD_PASSWORD", PASSWORD);
    let done = output(demo).await;
    assert!(done.status.success(), "{}{}", stdout(&done), stderr(&done));
    let client = mallard::client::Client::connect(two.server.location(), Some(&crate::support::login())).await.unwrap();
    assert!(client.list("").await.unwrap().is_empty());
    let unreachable =
        ["demo", "--rows", "10", "--wait", "1s", "--server1", "grpc://127.0.0.1:1", "--server2", &two.uri()];
    assert_eq!(output(mallard(&unreachable)).await.status.code(), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn demo_takes_the_users_own_parquet_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("own.parquet");
    let server = TestServer::start().await;
    let sql = "SELECT i AS id, 'x' || i AS name FROM range(5000) r(i)";
    assert!(output(mallard(&["query", &server.uri(), sql, "-o", file.to_str().unwrap()])).await.status.success());
    let done = output(mallard(&["demo", "--parquet", file.to_str().unwrap()])).await;
    assert!(done.status.success(), "{}{}", stdout(&done), stderr(&done));
    assert!(stdout(&done).contains("5,000 rows"));
}

#[tokio::test(flavor = "multi_thread")]
async fn query_takes_values_for_its_parameters() {
    let server = TestServer::start().await;
    let uri = server.uri();
    let query = async |sql: &str, parameters: &[&str]| {
        let mut arguments = vec!["query", &uri, sql, "--format", "csv"];
        arguments.extend(parameters.iter().flat_map(|parameter| ["--param", parameter]));
        let output = output(mallard(&arguments)).await;
        assert!(output.status.success(), "{sql}: {}", stderr(&output));
        stdout(&output).lines().skip(1).collect::<Vec<_>>().join("\n")
    };
    for (sql, parameters, expected) in [
        ("SELECT $1 + 1 AS n, upper($2) AS s", &["41", "x'; DROP"][..], "42,X'; DROP"),
        ("SELECT ? - ?::DOUBLE AS n", &["1", "0.5"], "0.5"),
        ("SELECT $a - $b AS n", &["b=1", "a=10"], "9"),
        ("SELECT ? AS s", &["\"12\""], "12"),
        ("SELECT ? AS s", &["x=y"], "x=y"),
        ("SELECT ? IS NULL AS n, ? AS b", &["null", "true"], "true,true"),
    ] {
        assert_eq!(query(sql, parameters).await, expected, "{sql} with {parameters:?}");
    }
    run(&server.client().await, "CREATE TABLE t (i INTEGER)").await;
    let inserted = output(mallard(&["query", &uri, "INSERT INTO t VALUES (?)", "--param", "7"])).await;
    assert!(inserted.status.success() && stderr(&inserted).contains("1 row changed"), "{}", stderr(&inserted));
    assert_eq!(count(&server.client().await, "t").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_with_parameters_is_tried_out_without_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("late.sql");
    std::fs::write(&file, "SELECT i, $word AS word, typeof($least) AS t FROM input WHERE i >= $least").unwrap();
    let file = file.to_str().unwrap();
    let test = |arguments: &[&str]| {
        let rows = ["--query", "SELECT range AS i FROM range(4)", "--format", "csv"];
        mallard(&[&["exchange", "test", file], &rows[..], arguments].concat())
    };
    let whole = "{\"least\": {\"type\": \"DECIMAL(38,2)\"}, \"word\": \"none\"}";
    for (arguments, rows) in [
        (
            &["--param", "least=2", "--param", "word=it's = \"it\""][..],
            "2,\"it's = \"\"it\"\"\",BIGINT\n3,\"it's = \"\"it\"\"\",BIGINT\n",
        ),
        (&["--params", "{\"least\": 1, \"word\": \"w\"}", "--param", "least=3"], "3,w,BIGINT\n"),
        (&["--param", "least=2.5", "--param", "word=\"7\""], "3,7,DOUBLE\n"),
        (&["--declare", whole, "--param", "least=3"], "3,none,\"DECIMAL(38,2)\"\n"),
        (&["--declare", whole, "--param", "least=123456789012345678901234567890.12"], ""),
    ] {
        let tried = output(test(arguments)).await;
        assert!(tried.status.success(), "{arguments:?}: {}", stderr(&tried));
        assert_eq!(stdout(&tried), format!("i,word,t\n{rows}"), "{arguments:?}");
    }
    for (arguments, says) in [
        (&["--param", "least=2"][..], "$word"),
        (&["--param", "least=2", "--param", "word=w", "--param", "wrod=w"], "$wrod"),
        (&["--declare", whole, "--param", "word=w"], "`least`"),
        (&["--declare", whole, "--param", "least=x"], "the parameter least"),
        (&["--declare", whole, "--param", "least=1", "--param", "wrod=w"], "`wrod`"),
        (&["--declare", "{\"word\": \"w\", \"least\": {\"type\": \"NOTHING\"}}"], "NOTHING"),
        (&["--param", "least"], "NAME=VALUE"),
        (&["--params", "[1]"], "no JSON object"),
    ] {
        let refused = output(test(arguments)).await;
        assert!(!refused.status.success() && stderr(&refused).contains(says), "{arguments:?}: {}", stderr(&refused));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_given_on_the_command_line_keep_their_digits() {
    let server = TestServer::start().await;
    let uri = server.uri();
    for (given, kept) in [
        ("9007199254740993", "BIGINT,9007199254740993"),
        ("18446744073709551615", "\"DECIMAL(20,0)\",18446744073709551615"),
        ("-12345678901234567890123.456", "\"DECIMAL(26,3)\",-12345678901234567890123.456"),
        ("0.1", "DOUBLE,0.1"),
        ("1e3", "DOUBLE,1000.0"),
    ] {
        let sql = "SELECT typeof($x) AS t, $x::VARCHAR AS v";
        let answer = output(mallard(&["query", &uri, sql, "--param", &format!("x={given}"), "--format", "csv"])).await;
        assert_eq!(stdout(&answer), format!("t,v\n{kept}\n"), "{given}: {}", stderr(&answer));
    }
    let body =
        r#"{"name": "long", "sql": "SELECT $x::VARCHAR AS x FROM input", "params": {"x": 12345678901234567890123}}"#;
    let params = ["--params", r#"{"x": 12345678901234567890123}"#];
    for add in [
        mallard(&["actions", &uri, "add_exchange", body]),
        mallard(
            &[
                &["exchange", "add", &uri, "long", "--sql", "SELECT $x::VARCHAR AS x FROM input", "--replace"],
                &params[..],
            ]
            .concat(),
        ),
    ] {
        let added = output(add).await;
        assert!(added.status.success(), "{}", stderr(&added));
        for (chain, kept) in
            [("long", "12345678901234567890123"), ("long {\"x\": 98765432109876543210987}", "98765432109876543210987")]
        {
            let answer =
                output(mallard(&["exchange", &uri, chain, "--query", "SELECT 1 AS i", "--format", "csv"])).await;
            assert_eq!(stdout(&answer), format!("x\n{kept}\n"), "{}", stderr(&answer));
        }
    }
}
