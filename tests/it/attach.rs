//! Databases that the configuration attaches are catalogs beside the main one, for SQL, rows, metadata and grants; their files
//! are held as the main one is. The start script runs before any client.

use std::{
    fmt::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use arrow_flight::sql::{CommandGetDbSchemas, CommandGetTables, client::FlightSqlServiceClient};
use futures::TryStreamExt;
use mallard::{
    access::Role,
    client::Client,
    config::{Attachment, Config, OptionValue, RoleSettings},
    error::Error,
    server::Server,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    exchange::act,
    process::mallard,
    support::{TestServer, USER, collect, count, people, row, rows, run, test_config, with_login, with_users},
};

const FATAL: &str = "SELECT fail(range) FROM range(1)";

/// A database file with `main.items` (three rows), `s.prices` and a view of both.
async fn made(file: &Path) {
    let mut config = test_config();
    config.database.path = file.to_str().unwrap().into();
    let server = TestServer::with(config).await;
    let client = server.client().await;
    for sql in [
        "CREATE TABLE items (id INTEGER PRIMARY KEY, name VARCHAR)",
        "INSERT INTO items VALUES (1, 'a'), (2, 'b'), (3, 'c')",
        "CREATE SCHEMA s",
        "CREATE TABLE s.prices (id INTEGER, price DECIMAL(8, 2))",
        "INSERT INTO s.prices VALUES (1, 1.5), (2, 2.5)",
        "CREATE VIEW priced AS SELECT name, price FROM items JOIN s.prices USING (id)",
        "CREATE MACRO twice(x) AS 2 * x",
    ] {
        run(&client, sql).await;
    }
    server.server.stop(std::future::pending()).await.unwrap();
}

fn at(name: &str, file: &Path, read_only: bool) -> Attachment {
    Attachment { name: name.into(), path: file.to_str().unwrap().into(), read_only, ..Attachment::default() }
}

/// A main database on disk, `lake` which is only read and `extra` which is written.
async fn config_in(directory: &Path) -> Config {
    let [lake, extra] = ["lake file.duckdb", "extra.duckdb"].map(|name| directory.join(name));
    made(&lake).await;
    let mut config = test_config();
    config.database.path = directory.join("m.duckdb").to_str().unwrap().into();
    config.database.attach = vec![at("lake", &lake, true), at("Extra", &extra, false)];
    config
}

async fn failing(client: &Client, sql: &str) -> Error {
    match client.query(sql).await {
        Ok(rows) => collect(rows).await.expect_err(sql),
        Err(error) => error,
    }
}

fn path(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| part.to_string()).collect()
}

async fn refused(config: Config) -> Error {
    Server::start(config).await.err().expect("the server does not start")
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_files_are_read_joined_and_written_by_every_way_in() {
    let directory = tempfile::tempdir().unwrap();
    let config = config_in(directory.path()).await;
    let server = TestServer::with(config.clone()).await;
    let client = server.client().await;
    assert_eq!(row(&client, "SELECT current_database()").await, ["m"]);
    run(&client, "CREATE TABLE here AS SELECT 2 AS id, 'mine' AS what").await;
    let joined = "SELECT name, what, price::VARCHAR FROM here JOIN lake.items USING (id) JOIN lake.s.prices USING (id)";
    assert_eq!(row(&client, joined).await, ["b", "mine", "2.50"]);
    assert_eq!(row(&client, "SELECT count(*), lake.main.twice(2) FROM lake.priced").await, ["2", "4"]);
    let refused = failing(&client, "INSERT INTO lake.items VALUES (4, 'd')").await;
    assert!(refused.to_string().contains("read-only"), "{refused}");

    for sql in [
        "CREATE SCHEMA extra.s",
        "CREATE TABLE extra.s.t (i BIGINT, name VARCHAR)",
        "INSERT INTO extra.s.t SELECT id, name FROM lake.items",
        "UPDATE extra.s.t SET name = upper(name) WHERE i = 2",
        "CREATE VIEW extra.s.v AS SELECT name FROM extra.s.t",
    ] {
        run(&client, sql).await;
    }
    assert_eq!(row(&client, "SELECT string_agg(name, '' ORDER BY i) FROM extra.s.t").await, ["aBc"]);
    let sent = path(&["extra", "main", "sent"]);
    client.put(&sent, people(2, 10)).await.unwrap();
    client.put(&sent, people(1, 5)).await.unwrap();
    assert_eq!(count(&client, "extra.main.sent").await, 25);
    client.put(&path(&["Extra", "sent"]), people(1, 5)).await.unwrap();
    assert_eq!(count(&client, "extra.sent").await, 30);
    let read = client.put(&path(&["lake", "main", "sent"]), people(1, 1)).await.expect_err("it is only read");
    assert_ne!(read.code(), Code::Internal, "{read}");
    let missing = client.put(&path(&["nowhere", "main", "sent"]), people(1, 1)).await.expect_err("no such catalog");
    assert!(matches!(missing.code(), Code::PermissionDenied | Code::NotFound | Code::InvalidArgument), "{missing}");

    // One transaction writes one database.
    let mut sql = FlightSqlServiceClient::new(server.channel().await);
    let transaction = sql.begin_transaction().await.unwrap();
    sql.execute_update("INSERT INTO here VALUES (9, 'x')".into(), Some(transaction.clone())).await.unwrap();
    let both = sql.execute_update("INSERT INTO extra.s.t VALUES (9, 'x')".into(), Some(transaction)).await;
    let both = both.expect_err("two databases").to_string();
    assert!(both.contains("single attached database") || both.contains("single transaction"), "{both}");

    // From it and into it.
    let other = TestServer::start().await;
    let from = server.uri();
    let request = json!({"from": from, "table": "extra.s.t", "to": "copied"});
    act(&other.client().await, "transfer", request).await.unwrap();
    assert_eq!(count(&other.client().await, "copied").await, 3);
    let request = json!({"from": other.uri(), "table": "copied", "to": "extra.s.back"});
    act(&client, "transfer", request).await.unwrap();
    assert_eq!(count(&client, "extra.s.back").await, 3);

    // Nothing more can be attached, and nothing detached.
    for sql in [
        "ATTACH ':memory:' AS more",
        "DETACH lake",
        "LOAD json",
        "INSTALL icu",
        "CREATE SECRET s (TYPE s3)",
        "SET allowed_directories = ['/']",
        "COPY FROM DATABASE lake TO extra",
        "SELECT * FROM read_csv('/etc/passwd')",
    ] {
        assert_eq!(failing(&client, sql).await.code(), Code::PermissionDenied, "{sql}");
    }
    server.server.stop(std::future::pending()).await.unwrap();
    assert_eq!(std::fs::metadata(directory.path().join("extra.duckdb")).unwrap().mode() & 0o777 & 0o600, 0o600);
    let server = TestServer::with(config).await;
    assert_eq!(count(&server.client().await, "extra.sent").await, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_and_listings_have_attached_catalogs_as_far_as_grants_go() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = with_login(config_in(directory.path()).await);
    let reads = |patterns: &[&str]| RoleSettings {
        base: Some(Role::Reader),
        read: Some(patterns.iter().map(|pattern| pattern.to_string()).collect()),
        ..Default::default()
    };
    config.auth.roles.insert("all".into(), reads(&["*"]));
    config.auth.roles.insert("served".into(), reads(&["*.*"]));
    config.auth.roles.insert("items".into(), reads(&["lake.main.i*", "here"]));
    let users = [("all", "all"), ("served", "served"), ("items", "items")];
    let server = TestServer::with(with_users(config, &users)).await;
    run(&server.client_of(USER).await, "CREATE TABLE here (i INTEGER)").await;
    let everything = [
        "Extra",
        "lake",
        "m",
        "lake.main.items",
        "lake.main.priced",
        "lake.s.prices",
        "m.main.here",
        "/here",
        "lake/items",
        "lake/priced",
        "lake/prices",
    ];
    for (user, expected) in [
        ("all", &everything[..]),
        ("served", &["m", "m.main.here", "/here"]),
        ("items", &["lake", "m", "lake.main.items", "m.main.here", "/here", "lake/items"]),
    ] {
        let mut sql = server.sql_of(user).await;
        let mut seen = Vec::new();
        let info = sql.get_catalogs().await.unwrap();
        seen.extend(column(&mut sql, info, &["catalog_name"]).await);
        let info = sql.get_tables(CommandGetTables::default()).await.unwrap();
        seen.extend(column(&mut sql, info, &["catalog_name", "db_schema_name", "table_name"]).await);
        let client = server.client_of(user).await;
        for flight in client.list("").await.unwrap() {
            let path = flight.flight_descriptor.unwrap().path;
            let catalog = if path.len() == 3 { path[0].clone() } else { String::new() };
            seen.push(format!("{catalog}/{}", path.last().unwrap()));
        }
        assert_eq!(seen, expected, "{user}");
        let info = sql.get_db_schemas(CommandGetDbSchemas { catalog: Some("lake".into()), ..Default::default() }).await;
        let schemas = column(&mut sql, info.unwrap(), &["db_schema_name"]).await;
        let expected: &[&str] = match user {
            "all" => &["main", "s"],
            "items" => &["main"],
            _ => &[],
        };
        assert_eq!(schemas, expected, "{user}");
        let keys = sql.get_primary_keys(arrow_flight::sql::CommandGetPrimaryKeys {
            catalog: Some("lake".into()),
            db_schema: Some("main".into()),
            table: "items".into(),
        });
        let info = keys.await.unwrap();
        let keys = column(&mut sql, info, &["catalog_name", "column_name"]).await;
        assert_eq!(keys, if user == "served" { vec![] } else { vec!["lake.id"] }, "{user}");
    }
}

async fn column(
    sql: &mut FlightSqlServiceClient<tonic::transport::Channel>,
    info: arrow_flight::FlightInfo,
    names: &[&str],
) -> Vec<String> {
    let stream = sql.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    let batches: Vec<_> = stream.try_collect().await.unwrap();
    let mut texts = Vec::new();
    for batch in &batches {
        for row in 0..batch.num_rows() {
            let value = |name: &&str| {
                arrow_cast::display::array_value_to_string(batch.column_by_name(name).unwrap(), row).unwrap()
            };
            texts.push(names.iter().map(value).collect::<Vec<_>>().join("."));
        }
    }
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_with_a_catalog_hold_in_attached_databases_and_nowhere_else() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = with_login(config_in(directory.path()).await);
    let narrow = RoleSettings {
        base: Some(Role::Writer),
        read: Some(vec!["lake.main.items".into(), "mine".into()]),
        write: Some(vec!["extra.scratch.*".into()]),
        ..Default::default()
    };
    config.auth.roles.insert("narrow".into(), narrow);
    let all = RoleSettings { base: Some(Role::Reader), read: Some(vec!["*.*".into()]), ..Default::default() };
    config.auth.roles.insert("served".into(), all);
    let users = [("ann", "narrow"), ("bob", "served"), ("eve", "reader")];
    let server = TestServer::with(with_users(config, &users)).await;
    let admin = server.client_of(USER).await;
    for sql in [
        "CREATE TABLE mine AS SELECT 1 AS id",
        "CREATE TABLE hidden AS SELECT 1 AS id",
        "CREATE SCHEMA extra.scratch",
        "CREATE SCHEMA scratch",
        "CREATE TABLE scratch.t (i INTEGER)",
        "CREATE TABLE extra.main.hidden (i INTEGER)",
    ] {
        run(&admin, sql).await;
    }
    let ann = server.client_of("ann").await;
    for sql in [
        "SELECT count(*) FROM lake.main.items",
        "SELECT count(*) FROM lake.items",
        "SELECT count(*) FROM LAKE.MAIN.ITEMS",
        "SELECT m.id FROM mine m JOIN lake.main.items i ON m.id = i.id",
        "WITH prices AS (SELECT id FROM lake.items) SELECT count(*) FROM prices",
        "CREATE TABLE extra.scratch.t AS SELECT * FROM lake.items",
        "INSERT INTO extra.scratch.t SELECT id + 10, name FROM lake.main.items",
        "INSERT INTO extra.scratch.t (id) SELECT id FROM mine",
        "UPDATE extra.scratch.t SET name = 'x' WHERE id = 1",
        "DELETE FROM extra.scratch.t WHERE id IN (SELECT id FROM lake.items WHERE id = 2)",
        "ALTER TABLE extra.scratch.t ADD COLUMN more INTEGER",
        "SELECT count(*) FROM extra.scratch.t",
        "DROP TABLE extra.scratch.t",
        "CREATE TABLE extra.scratch.again (i INTEGER PRIMARY KEY)",
        "INSERT INTO extra.scratch.again VALUES (1) ON CONFLICT DO NOTHING",
    ] {
        if let Err(error) = try_run(&ann, sql).await {
            panic!("{sql}: {error}");
        }
    }
    ann.put(&path(&["extra", "scratch", "sent"]), people(1, 3)).await.unwrap();
    for sql in [
        "SELECT * FROM lake.s.prices",
        "SELECT * FROM lake.priced",
        "SELECT * FROM lake.main.priced",
        "SELECT lake.main.twice(1)",
        "SELECT * FROM hidden",
        "SELECT * FROM extra.main.hidden",
        "SELECT * FROM extra.hidden",
        "SELECT * FROM scratch.t",
        "CREATE TABLE scratch.mine (i INTEGER)",
        "CREATE TABLE extra.main.mine (i INTEGER)",
        "CREATE VIEW extra.scratch.v AS SELECT * FROM lake.s.prices",
        "CREATE VIEW extra.scratch.w AS SELECT * FROM hidden",
        "INSERT INTO extra.scratch.again SELECT id FROM lake.s.prices",
        "INSERT INTO lake.main.items VALUES (5, 'e')",
        "SELECT * FROM duckdb_tables()",
        "SELECT * FROM information_schema.tables",
        "SELECT * FROM lake.information_schema.tables",
        "USE lake",
        "SELECT (SELECT max(price) FROM lake.s.prices) FROM lake.items",
        "SELECT * FROM lake.items, lake.s.prices",
    ] {
        let denied = failing(&ann, sql).await;
        assert_eq!(denied.code(), Code::PermissionDenied, "{sql}: {denied}");
    }
    for target in [&["extra", "main", "sent"][..], &["scratch", "sent"], &["lake", "main", "items"]] {
        let denied = ann.put(&path(target), people(1, 3)).await.expect_err("no grant");
        assert_eq!(denied.code(), Code::PermissionDenied, "{target:?}: {denied}");
    }
    // Without a catalog, a pattern is of the served database.
    let bob = server.client_of("bob").await;
    assert_eq!(count(&bob, "hidden").await, 1);
    for sql in ["SELECT * FROM lake.items", "SELECT * FROM extra.main.hidden", "SELECT * FROM duckdb_tables()"] {
        assert_eq!(failing(&bob, sql).await.code(), Code::PermissionDenied, "{sql}");
    }
    // A role that is not narrowed reads all catalogs, and writes none.
    let eve = server.client_of("eve").await;
    assert_eq!(count(&eve, "lake.s.prices").await, 2);
    let catalogs = "SELECT string_agg(DISTINCT database_name, ' ' ORDER BY database_name) FROM duckdb_tables()";
    assert_eq!(row(&eve, catalogs).await, ["Extra lake m"]);
    assert_eq!(failing(&eve, "INSERT INTO extra.main.hidden VALUES (1)").await.code(), Code::PermissionDenied);
}

async fn try_run(client: &Client, sql: &str) -> mallard::error::Result<usize> {
    Ok(rows(&collect(client.query(sql).await?).await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_attached_databases_are_held_and_a_file_is_attached_once() {
    let directory = tempfile::tempdir().unwrap();
    let config = config_in(directory.path()).await;
    let server = TestServer::with(config.clone()).await;
    let (lake, extra) = (directory.path().join("lake file.duckdb"), directory.path().join("extra.duckdb"));
    assert_eq!(std::fs::metadata(&extra).unwrap().mode() & 0o777, 0, "what is written is sealed");
    assert_ne!(std::fs::metadata(&lake).unwrap().mode() & 0o777, 0, "what is read is not");
    let on = |file: &Path| {
        let mut other = test_config();
        other.database.path = file.to_str().unwrap().into();
        other
    };
    for file in [&lake, &extra] {
        let taken = refused(on(file)).await;
        assert!(matches!(taken, Error::InUse(_)), "{taken}");
    }
    // Another may read what is only read.
    let mut reader = test_config();
    reader.database.attach = vec![at("lake", &lake, true)];
    let second = TestServer::with(reader.clone()).await;
    assert_eq!(count(&second.client().await, "lake.items").await, 3);
    reader.database.attach = vec![at("extra", &extra, true)];
    let taken = refused(reader.clone()).await;
    assert!(matches!(taken, Error::InUse(_)), "{taken}");
    reader.database.attach = vec![at("lake", &lake, false)];
    let taken = refused(reader).await;
    assert!(matches!(taken, Error::InUse(_)), "{taken}");
    for server in [server, second] {
        server.server.stop(std::future::pending()).await.unwrap();
    }

    let link = directory.path().join("link.duckdb");
    std::os::unix::fs::symlink(&lake, &link).unwrap();
    let hard = directory.path().join("hard.duckdb");
    std::fs::hard_link(&lake, &hard).unwrap();
    for other in [&link, &hard, &lake] {
        for read_only in [true, false] {
            let mut twice = test_config();
            twice.database.attach = vec![at("one", &lake, true), at("two", other, read_only)];
            let error = refused(twice).await;
            let said = error.to_string();
            assert!(said.contains("\"two\"") && said.contains("\"one\"") && said.contains("same file"), "{said}");
            let mut own = on(&lake);
            own.database.attach = vec![at("two", other, read_only)];
            let said = refused(own).await.to_string();
            assert!(said.contains("\"two\"") && said.contains("main database"), "{said}");
        }
    }
    let text = directory.path().join("notes.duckdb");
    std::fs::write(&text, "no database\n".repeat(2000)).unwrap();
    for (attached, expected) in [
        (at("gone", &directory.path().join("gone.duckdb"), true), "gone"),
        (at("notes", &text, false), "notes"),
        (at("notes", &text, true), "notes"),
        (Attachment { r#type: Some("nosuchtype".into()), ..at("typed", &directory.path().join("x"), false) }, "typed"),
        (at("deep", &directory.path().join("no/such/x.duckdb"), false), "deep"),
    ] {
        let mut wrong = test_config();
        wrong.database.attach = vec![attached];
        let error = refused(wrong).await;
        assert!(error.to_string().contains(expected) && error.code() != Code::Internal, "{error}");
    }
    // A password in what an extension takes is not told.
    let mut secret = test_config();
    secret.database.attach = vec![Attachment {
        name: "pg".into(),
        path: "host=nowhere password=hunter22".into(),
        r#type: Some("nosuchtype".into()),
        options: [("token".to_string(), OptionValue::Text("hunter33".into()))].into(),
        ..Attachment::default()
    }];
    let said = refused(secret).await.to_string();
    assert!(said.contains("\"pg\"") && !said.contains("hunter"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_databases_and_the_start_script_are_there_again_after_a_fatal_error_and_not_in_backups() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config_in(directory.path()).await;
    let init = directory.path().join("init.sql");
    std::fs::write(&init, "CREATE TEMP TABLE gone (i INTEGER);\nATTACH ':memory:' AS scratch;\nCREATE TABLE scratch.t AS SELECT 7 AS i;\n")
        .unwrap();
    config.database.debug.push(("fatal_function".into(), "fail".into()));
    config.database.init = Some(init);
    let backups = directory.path().join("backups");
    std::fs::create_dir(&backups).unwrap();
    config.database.backup_directory = Some(backups.clone());
    let server = TestServer::with(config).await;
    let client = server.client().await;
    run(&client, "CREATE TABLE extra.t AS SELECT 1 AS i").await;
    run(&client, "UPDATE scratch.t SET i = 8").await;
    let cause = failing(&client, FATAL).await;
    assert_eq!(cause.code(), Code::Internal, "{cause}");
    crate::support::until("the server serves again", async || client.healthy().await.unwrap_or(false)).await;
    assert_eq!(row(&client, "SELECT extra.t.i, scratch.t.i FROM extra.t, scratch.t").await, ["1", "7"]);
    assert_eq!(count(&client, "lake.items").await, 3);
    run(&client, "INSERT INTO extra.t VALUES (2)").await;
    assert_eq!(std::fs::metadata(directory.path().join("extra.duckdb")).unwrap().mode() & 0o777, 0);

    run(&client, "CREATE TABLE mine (i INTEGER)").await;
    let made: Vec<_> = client.action("backup", &Value::Null).await.unwrap().try_collect().await.unwrap();
    let last: Value = serde_json::from_slice(made.last().unwrap()).unwrap();
    assert_eq!(last["attached"], json!(["Extra", "lake", "scratch"]), "{last}");
    assert_eq!(made.len(), 2, "a table and the file");
}

#[tokio::test(flavor = "multi_thread")]
async fn start_script_runs_in_order_as_the_server_and_an_error_names_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let init: PathBuf = directory.path().join("init.sql");
    let csv = directory.path().join("rows.csv");
    std::fs::write(&csv, "a,b\n1,2\n3,4\n").unwrap();
    let mut config = test_config();
    config.database.init = Some(init.clone());
    let whole = format!(
        "-- a comment; with a semicolon\n\nCREATE TABLE t AS SELECT * FROM read_csv('{}');\n/* another; */ INSERT INTO t\n\
         VALUES (5, length('a;b'));\nBEGIN;\nCREATE VIEW v AS\n  SELECT sum(a) AS s FROM t;\nCOMMIT;\nSET GLOBAL \
         default_null_order = 'nulls_first';\nCREATE MACRO twice(x) AS x * 2",
        csv.display()
    );
    std::fs::write(&init, &whole).unwrap();
    let server = TestServer::with(config.clone()).await;
    let client = server.client().await;
    assert_eq!(row(&client, "SELECT s::VARCHAR, twice(4), (SELECT max(b) FROM t) FROM v").await, ["9", "8", "4"]);
    assert_eq!(row(&client, "SELECT x FROM (VALUES (1), (NULL)) t(x) ORDER BY x").await, [""]);
    assert_eq!(failing(&client, "SELECT * FROM read_csv('x.csv')").await.code(), Code::PermissionDenied);

    let mut long = String::new();
    for number in 0..500 {
        writeln!(long, "CREATE TABLE t{number} (i INTEGER);").unwrap();
    }
    for (text, line, said) in [
        ("SELECT 1;\nSELECT 2;\n\n  SELECT\n  nonsense\n;\nSELECT 4;".to_string(), 5, "nonsense"),
        ("SELECT 1; SELECT 2;\nSELEC 3;".to_string(), 2, "SELEC"),
        ("\n\nINSERT INTO missing VALUES (1);".to_string(), 3, "missing"),
        (format!("{long}SELECT error('at the end');"), 501, "at the end"),
        ("SELECT 1;\nSELECT 'open;\n".to_string(), 2, "init.sql"),
        ("CREATE TABLE t (i INTEGER); -- ok\nBEGIN;\nINSERT INTO t VALUES (1);".to_string(), 0, "COMMIT"),
    ] {
        std::fs::write(&init, &text).unwrap();
        let error = refused(config.clone()).await.to_string();
        let place = if line == 0 { init.display().to_string() } else { format!("{}:{line} ", init.display()) };
        assert!(error.starts_with(&place) && error.contains(said), "{error}\nnot at {place}");
    }
    // The process says it, and ends.
    std::fs::write(&init, "SELECT 1;\nSELECT 2;\nSELECT three;\n").unwrap();
    let arguments = ["serve", "--location", "grpc://127.0.0.1:0", "--admin", "off"];
    let mut command = mallard();
    command.args(arguments).env("MALLARD__DATABASE__INIT", &init);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("init.sql:3 "), "{:?} {said}", output.status);
    // A database on disk gets nothing from a script that does not reach its end of a transaction.
    std::fs::remove_file(&init).unwrap();
    let error = refused(config).await.to_string();
    assert!(error.contains("init.sql") && error.contains("database.init"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_of_attached_databases_is_checked_and_told_without_secrets() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("m.toml");
    let lake = directory.path().join("lake.duckdb");
    made(&lake).await;
    let lake = lake.display();
    let check = async |command: &str, text: String, environment: &[(&str, String)]| {
        std::fs::write(&config, text).unwrap();
        let mut mallard = mallard();
        mallard.args(["config", command, "--config"]).arg(&config);
        mallard.envs(environment.iter().map(|(name, value)| (*name, value)));
        let output = tokio::task::spawn_blocking(move || mallard.output().unwrap()).await.unwrap();
        let said = [&output.stdout[..], &output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let list = format!("[[database.attach]]\nname = \"lake\"\npath = \"{lake}\"\nread_only = true\n");
    let named =
        format!("[database.attach.lake]\npath = \"{lake}\"\nread_only = true\noptions = {{ recovery_mode = \"x\" }}\n");
    let inline = format!("[{{ name = \"lake\", path = \"{lake}\", read_only = true }}]");
    let json = json!([{"name": "lake", "path": lake.to_string(), "read_only": true}]).to_string();
    for (text, environment) in [
        (list.clone(), vec![]),
        (named, vec![]),
        (format!("database.attach = {inline}"), vec![]),
        (String::new(), vec![("MALLARD__DATABASE__ATTACH", inline)]),
        (String::new(), vec![("MALLARD__DATABASE__ATTACH", json)]),
        (
            String::new(),
            vec![
                ("MALLARD__DATABASE__ATTACH__LAKE__PATH", lake.to_string()),
                ("MALLARD__DATABASE__ATTACH__LAKE__READ_ONLY", "true".into()),
            ],
        ),
    ] {
        let (code, said) = check("check", text.clone(), &environment).await;
        assert_eq!(code, Some(0), "{text}: {said}");
        let (_, shown) = check("show", text.clone(), &environment).await;
        let line = shown.lines().find(|line| line.starts_with("database.attach = ")).unwrap();
        assert!(
            line.contains("lake.duckdb") && line.contains("read_only = true") && !line.contains("# default"),
            "{line}"
        );
    }
    let (_, shown) = check(
        "show",
        "[database.attach.pg]\ntype = \"postgres\"\npath = \"host=x password=hunter22\"\noptions = { secret = \"hunter33\" }\n".into(),
        &[],
    )
    .await;
    assert!(shown.contains("postgres") && !shown.contains("hunter"), "{shown}");
    for (text, said) in [
        ("[[database.attach]]\nname = \"x\"\n", "no path"),
        ("[[database.attach]]\npath = \"x.duckdb\"\n", "no name"),
        ("[[database.attach]]\nname = \"temp\"\npath = \"x.duckdb\"\n", "temp"),
        ("[[database.attach]]\nname = \"memory\"\npath = \"x.duckdb\"\n", "main database"),
        ("[database]\npath = \"x.duckdb\"\nattach = [{ name = \"y\", path = \"x.duckdb\" }]\n", "own file"),
        ("[database]\nattach = [{ name = \"y\", path = \"a\" }, { name = \"Y\", path = \"b\" }]\n", "case"),
        ("[database]\nattach = [{ name = \"y\", path = \"a\", readonly = true }]\n", "readonly"),
        ("[database]\nattach = [{ name = \"y\", path = \"a\", options = { TYPE = \"x\" } }]\n", "type"),
        ("[database]\nattach = \"what\"\n", "must be a list"),
        ("[database]\nattach = [{ name = \"y\", path = \"/no/such/a.duckdb\" }]\n", "does not exist"),
        ("[database]\nattach = [{ name = \"y\", path = \"gone.duckdb\", read_only = true }]\n", "does not exist"),
        ("[database]\ninit = \"/no/such/init.sql\"\n", "init.sql"),
        ("[database]\nextensions = [\"/no/such.duckdb_extension\"]\n", "such.duckdb_extension"),
        ("[database]\nextensions = [\"x.so\"]\n", "duckdb_extension"),
        ("[database]\nextensions = [\"nosuchname\"]\n", "extension_directory"),
        ("[database]\nextension_repository = \"core\"\n", "extension_directory"),
    ] {
        let (code, told) = check("check", text.into(), &[]).await;
        assert!(code == Some(2) && told.contains(said), "{text}: {code:?} {told}");
    }
}

/// The audit log names what is in attached catalogs as DuckDB binds it.
#[tokio::test(flavor = "multi_thread")]
async fn audit_log_names_the_catalog_of_what_a_statement_reaches() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let mut config = config_in(directory.path()).await;
    config.audit.file = Some(path.clone());
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let text = || std::fs::read_to_string(&path).unwrap_or_default();
    let statements = || {
        let lines: Vec<Value> = text().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        lines.into_iter().filter(|line| line["event"] == "statement").collect::<Vec<_>>()
    };
    let (items, prices) = ("read table lake.main.items", "read table lake.s.prices");
    let cases: [(&str, &[&str]); 17] = [
        ("CREATE TABLE items (id INTEGER)", &["create table m.main.items"]),
        ("FROM items", &["read table m.main.items"]),
        ("FROM LAKE.Items", &[items]),
        ("FROM lake.main.items, lake.s.prices", &[items, prices]),
        ("FROM lake.priced", &["read view lake.main.priced", items, prices]),
        ("SELECT lake.twice(1)", &["read macro lake.main.twice"]),
        ("CREATE TABLE extra.t AS SELECT id FROM lake.items", &["create table Extra.main.t", items]),
        ("INSERT INTO extra.t SELECT id FROM items", &["write table Extra.main.t", "read table m.main.items"]),
        ("UPDATE Extra.main.t SET id = 1", &["write table Extra.main.t"]),
        ("CREATE SCHEMA extra.s", &["create schema Extra.s.s"]),
        ("CREATE SEQUENCE extra.s.numbers", &["create sequence Extra.s.numbers"]),
        ("SELECT nextval('extra.s.numbers')", &["advance sequence Extra.s.numbers"]),
        ("CREATE SEQUENCE extra.numbers", &["create sequence Extra.main.numbers"]),
        ("SELECT nextval('extra.numbers')", &["advance sequence Extra.main.numbers"]),
        ("CREATE MACRO twice(x) AS x + x", &["create macro m.main.twice"]),
        ("SELECT twice(1)", &["read macro m.main.twice"]),
        ("DROP TABLE extra.main.t", &["drop table Extra.main.t"]),
    ];
    let mut count = 0;
    for (sql, reached) in cases {
        collect(client.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))).await.unwrap();
        count += 1;
        crate::support::until("the statement is written", async || statements().len() >= count).await;
        let bound = statements()[count - 1]["bound"].as_array().cloned().unwrap_or_default();
        let word = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_string();
        let one = |one: &Value| ["catalog", "schema", "name"].map(|key| word(one, key)).join(".");
        let mut told: Vec<String> =
            bound.iter().map(|of| format!("{} {} {}", word(of, "use"), word(of, "kind"), one(of))).collect();
        told.sort();
        let mut reached = reached.to_vec();
        reached.sort();
        assert_eq!(told, reached, "{sql}");
    }
}
