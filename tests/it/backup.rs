//! A backup is a consistent copy, verified, made while others write; restoring puts it back and loses nothing.

use std::{path::Path, process::Output};

use futures::StreamExt;
use mallard::{client::Client, config::Config};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    process::{Process, mallard},
    support::{TestServer, count, row, run, test_config},
};

async fn back_up(client: &Client) -> mallard::error::Result<Vec<Value>> {
    let mut results = client.action("backup", &Value::Null).await?.boxed();
    let mut found = Vec::new();
    while let Some(result) = results.next().await {
        found.push(serde_json::from_slice(&result?).unwrap());
    }
    Ok(found)
}

fn with_backups(directory: &Path) -> Config {
    let mut config = test_config();
    config.database.path = directory.join("db.duckdb").to_str().unwrap().into();
    let backups = directory.join("backups");
    std::fs::create_dir_all(&backups).unwrap();
    config.database.backup_directory = Some(backups);
    config
}

async fn command(arguments: &[&str]) -> Output {
    let mut command = mallard();
    command.args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_under_writers_is_consistent_and_restores_with_all_that_a_database_holds() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::with(with_backups(directory.path())).await;
    let client = server.client().await;
    for sql in [
        "CREATE SCHEMA s",
        "CREATE TYPE mood AS ENUM ('good', 'bad')",
        "CREATE SEQUENCE q START 10",
        "CREATE TABLE parent (i INTEGER PRIMARY KEY, m mood DEFAULT 'good', v VARCHAR NOT NULL UNIQUE, CHECK (i > 0))",
        "CREATE TABLE child (i INTEGER REFERENCES parent (i), n BIGINT DEFAULT nextval('q'))",
        "INSERT INTO parent (i, v) SELECT range + 1, 'x' || range FROM range(1000)",
        "INSERT INTO child (i) SELECT i FROM parent LIMIT 5",
        "CREATE INDEX of_child ON child (n)",
        "CREATE VIEW v AS SELECT * FROM child JOIN parent USING (i)",
        "CREATE MACRO add_one(a) AS a + 1",
        "COMMENT ON TABLE parent IS 'a comment'",
        "CREATE TABLE s.w AS SELECT * FROM range(300000)",
        // Always as many rows here as there.
        "CREATE TABLE left_side (i BIGINT)",
        "CREATE TABLE right_side (i BIGINT)",
    ] {
        run(&client, sql).await;
    }
    let writing = tokio::spawn({
        let client = server.client().await;
        async move {
            for i in 0.. {
                // One statement, two tables: a backup has both of its rows or none.
                let sql = format!("WITH l AS (INSERT INTO left_side VALUES ({i}) RETURNING i) SELECT * FROM l");
                if client.query(&sql).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    });
    crate::support::until("rows come", || async { count(&client, "left_side").await > 20 }).await;
    let made = back_up(&client).await.unwrap();
    let before = count(&client, "left_side").await;
    crate::support::until("they still come", || async { count(&client, "left_side").await > before }).await;
    writing.abort();
    let (last, tables) = made.split_last().unwrap();
    assert_eq!((&last["verified"], &last["tables"]), (&json!(true), &json!(5)), "{made:?}");
    let file = last["file"].as_str().unwrap();
    assert!(!file.contains('/'), "no path of the server's: {file}");
    assert!(server.metric("mallard_backup_last_success_timestamp_seconds").await > 1e9);
    assert_eq!(server.metric("mallard_backups_total{outcome=\"ok\"}").await, 1.0);
    assert!(client.list("").await.unwrap().iter().all(|info| !format!("{info:?}").contains("partial")));

    let backup = directory.path().join("backups").join(file);
    let (backup, restored) = (backup.to_str().unwrap(), directory.path().join("restored.duckdb"));
    let into = restored.to_str().unwrap();
    let done = command(&["restore", backup, "--db", into]).await;
    assert!(done.status.success() && text(&done).contains("verified against"), "{}", text(&done));
    let mut config = test_config();
    config.database.path = into.into();
    let again = TestServer::with(config).await;
    let client = again.client().await;
    for table in tables {
        let name = format!("{}.{}", table["schema"].as_str().unwrap(), table["table"].as_str().unwrap());
        assert_eq!(json!(count(&client, &name).await), table["rows"], "{name}");
    }
    assert_eq!(row(&client, "SELECT count(*), max(n), add_one(1) FROM v").await, ["5", "14", "2"]);
    assert_eq!(row(&client, "SELECT comment FROM duckdb_tables() WHERE table_name = 'parent'").await, ["a comment"]);
    assert_eq!(row(&client, "SELECT index_name FROM duckdb_indexes()").await, ["of_child"]);
    run(&client, "INSERT INTO child (i) VALUES (7)").await;
    assert_eq!(row(&client, "SELECT max(n) FROM child").await, ["15"], "the sequence goes on");
    for (sql, code) in [
        ("INSERT INTO parent (i, v) VALUES (1, 'new')", Code::FailedPrecondition),
        ("INSERT INTO parent (i, v) VALUES (5000, 'x1')", Code::FailedPrecondition),
        ("INSERT INTO child (i) VALUES (9999)", Code::FailedPrecondition),
    ] {
        assert_eq!(client.query(sql).await.err().expect(sql).code(), code, "{sql}");
    }

    let refused = command(&["restore", backup, "--db", into, "--force"]).await;
    assert_eq!(refused.status.code(), Some(75), "a server has it: {}", text(&refused));
    again.server.stop(std::future::pending()).await.unwrap();
    let refused = command(&["restore", backup, "--db", into]).await;
    assert!(refused.status.code() == Some(1) && text(&refused).contains("--force"), "{}", text(&refused));
    let kept = command(&["restore", backup, "--db", into, "--force"]).await;
    assert!(kept.status.success() && text(&kept).contains("restored.duckdb.before-"), "{}", text(&kept));
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_backup_is_not_restored() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::with(with_backups(directory.path())).await;
    run(&server.client().await, "CREATE TABLE t AS SELECT range AS i, hash(range) AS h FROM range(200000)").await;
    let made = back_up(&server.client().await).await.unwrap();
    let backup = directory.path().join("backups").join(made.last().unwrap()["file"].as_str().unwrap());
    let into = directory.path().join("into.duckdb");
    let restore = async || command(&["restore", backup.to_str().unwrap(), "--db", into.to_str().unwrap()]).await;
    let whole = std::fs::read(&backup).unwrap();
    let mut damaged = whole.clone();
    for byte in &mut damaged[whole.len() / 2..whole.len() / 2 + 100_000] {
        *byte ^= 0x10;
    }
    std::fs::write(&backup, &damaged).unwrap();
    let refused = restore().await;
    assert_eq!(refused.status.code(), Some(65), "{}", text(&refused));
    std::fs::write(&backup, &whole).unwrap();
    let sums = format!("{}.json", backup.display());
    let said = std::fs::read_to_string(&sums).unwrap();
    std::fs::write(&sums, said.replace("200000", "199999")).unwrap();
    let refused = restore().await;
    assert_eq!(refused.status.code(), Some(65), "{}", text(&refused));
    assert!(!into.exists(), "nothing half restored is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_needs_its_directory_and_the_command_shows_what_it_made() {
    let plain = TestServer::start().await;
    let error = back_up(&plain.client().await).await.expect_err("there is no directory");
    assert!(error.code() == Code::Unimplemented && error.to_string().contains("database.backup_directory"), "{error}");

    let directory = tempfile::tempdir().unwrap();
    let mut config = with_backups(directory.path());
    config.database.path = ":memory:".into();
    let left = directory.path().join("backups/.memory-1.duckdb.partial");
    std::fs::write(&left, "of a crash").unwrap();
    let server = TestServer::with(config).await;
    run(&server.client().await, "CREATE TABLE t AS SELECT 1 AS i").await;
    let done = command(&["backup", &server.uri()]).await;
    assert!(done.status.success() && text(&done).contains("1 tables"), "{}", text(&done));
    assert!(!left.exists(), "what a crash left is gone");
    let names: Vec<_> = std::fs::read_dir(directory.path().join("backups")).unwrap().flatten().collect();
    assert_eq!(names.len(), 2, "the backup and its sums: {names:?}");

    std::fs::remove_dir_all(directory.path().join("backups")).unwrap();
    let failed = command(&["backup", &server.uri()]).await;
    assert!(failed.status.code() == Some(1) && text(&failed).contains("backup_directory"), "{}", text(&failed));
    assert!(!text(&failed).contains(directory.path().to_str().unwrap()), "no path of the server's: {}", text(&failed));
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_in_the_middle_of_a_restore_mixes_no_two_databases() {
    let directory = tempfile::tempdir().unwrap();
    let made = {
        let server = TestServer::with(with_backups(directory.path())).await;
        run(&server.client().await, "CREATE TABLE t AS SELECT 'of the backup' AS v").await;
        back_up(&server.client().await).await.unwrap()
    };
    let backup = directory.path().join("backups").join(made.last().unwrap()["file"].as_str().unwrap());
    let db = directory.path().join("other.duckdb");
    let path = db.to_str().unwrap();
    let server = Process::serve(&[("MALLARD__DATABASE__PATH", path)]);
    run(&server.client(None).await, "CREATE TABLE t AS SELECT 'of before' AS v").await;
    server.kill();
    let log = directory.path().join("other.duckdb.wal");
    assert!(log.exists(), "a crash leaves the log");
    let restored = command(&["restore", backup.to_str().unwrap(), "--db", path, "--force"]).await;
    assert!(restored.status.success(), "{}", text(&restored));
    let aside = std::fs::read_dir(directory.path()).unwrap().flatten().map(|entry| entry.path());
    let aside = aside.into_iter().find(|path| {
        let path = path.to_string_lossy();
        path.contains(".before-") && path.ends_with(".wal")
    });
    let aside = aside.expect("it is put aside");

    // As a crash before the last step leaves it.
    std::fs::rename(&aside, &log).unwrap();
    let refused = command(&["serve", "--location", "grpc://127.0.0.1:0", "--admin", "off", "--db", path]).await;
    assert_eq!(refused.status.code(), Some(65), "{}", text(&refused));
    std::fs::rename(&log, &aside).unwrap();

    let server = Process::serve(&[("MALLARD__DATABASE__PATH", path)]);
    assert_eq!(row(&server.client(None).await, "FROM t").await, ["of the backup"]);
    server.stop();
    let before = aside.with_extension("");
    let server = Process::serve(&[("MALLARD__DATABASE__PATH", before.to_str().unwrap())]);
    assert_eq!(row(&server.client(None).await, "FROM t").await, ["of before"], "nothing of it is lost");
    server.stop();
}
