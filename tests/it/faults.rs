//! One process has the database, what a server says when it cannot have it, and its end when the database is unusable.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use futures::StreamExt;
use mallard::{
    config::{Config, LogFormat, Size},
    engine::guard,
    error::Error,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    process::{Process, mallard},
    support::{TestServer, checkpoint, count, people, row, run, table, test_config},
};

/// Where the server process of [`server`] finds its settings.
const SETTINGS: &str = "FAULT_TEST_SERVER";

/// Not a test by itself: the process that [`server`] starts, which has a configuration that no key reaches.
#[test]
fn server_process() {
    let Ok(settings) = std::env::var(SETTINGS) else { return };
    let settings: Value = serde_json::from_str(&settings).unwrap();
    let mut config: Config = test_config();
    config.log.format = LogFormat::Json;
    config.database.path = settings["db"].as_str().unwrap().into();
    config.database.backup_directory = settings["backups"].as_str().map(PathBuf::from);
    config.limits.process_memory = settings["process_memory"].as_u64().map(Size);
    if let Some(reopens) = settings["reopens"].as_u64() {
        config.database.reopens = reopens as usize;
    }
    for (name, value) in settings["debug"].as_object().into_iter().flatten() {
        config.database.debug.push((name.clone(), value.as_str().unwrap().into()));
    }
    if let Some(bytes) = settings["file_size"].as_u64() {
        use rustix::process::{Resource, Rlimit, setrlimit};
        setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), maximum: Some(bytes) }).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let code = runtime.block_on(mallard::cli::serve(config));
    runtime.shutdown_timeout(Duration::from_millis(200));
    std::process::exit(code.into());
}

/// This test binary as a server.
pub(crate) fn command(db: &Path, mut settings: Value) -> Command {
    settings["db"] = db.to_str().unwrap().into();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "faults::server_process", "--nocapture", "--test-threads", "1"]);
    command.env(SETTINGS, settings.to_string()).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    command
}

pub(crate) fn server(db: &Path, settings: Value) -> Process {
    Process::spawn(command(db, settings))
}

fn serve(db: &Path) -> Output {
    let mut command = mallard();
    command.args(["serve", "--location", "grpc://127.0.0.1:0", "--admin", "off", "--db"]).arg(db);
    // One that serves after all is ended.
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let patience = Instant::now() + Duration::from_secs(30);
    while child.try_wait().unwrap().is_none() && Instant::now() < patience {
        std::thread::yield_now();
    }
    let _ = child.kill();
    child.wait_with_output().unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn second_server_on_one_file_is_refused_and_the_first_serves_on() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("one.duckdb");
    let first = server(&db, json!({}));
    let client = first.client(None).await;
    run(&client, "CREATE TABLE t AS SELECT 1 AS i").await;
    // DuckDB's own lock goes when anything in the process closes the file; ours does not.
    let second = serve(&db);
    assert_eq!(second.status.code(), Some(75), "{}", stderr(&second));
    assert!(stderr(&second).contains(&format!("pid {}", first.id())), "{}", stderr(&second));
    assert!(stderr(&second).contains("one.duckdb"), "{}", stderr(&second));
    let mut config = test_config();
    config.database.path = db.to_str().unwrap().into();
    assert!(matches!(mallard::server::Server::start(config).await, Err(Error::InUse(_))));
    run(&client, "INSERT INTO t VALUES (2)").await;
    assert_eq!(count(&client, "t").await, 2);
    first.stop();
    assert_eq!(std::fs::read_to_string(directory.path().join("one.duckdb.lock")).unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_in_one_process_cannot_have_one_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = test_config();
    config.database.path = directory.path().join("one.duckdb").to_str().unwrap().into();
    let first = TestServer::with(config.clone()).await;
    let refused = mallard::server::Server::start(config.clone()).await.err().expect("it is refused");
    assert!(matches!(refused, Error::InUse(_)), "{refused}");
    first.server.stop(std::future::pending()).await.unwrap();
    TestServer::with(config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn database_is_sealed_while_it_is_open_and_after_a_crash_the_next_start_manages() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("sealed.duckdb");
    let first = server(&db, json!({}));
    assert_eq!(mode(&db), 0);
    let client = first.client(None).await;
    run(&client, "CREATE TABLE t AS SELECT range AS i FROM range(200000)").await;
    checkpoint(&client).await;
    run(&client, "CREATE TABLE copied AS SELECT i, 'text ' || i AS s FROM t ORDER BY hash(i)").await;
    run(&client, "INSERT INTO t SELECT * FROM t").await;
    if !rustix::process::geteuid().is_root() {
        assert!(std::fs::File::open(&db).is_err(), "the seal keeps others out");
    }
    first.stop();
    assert_ne!(mode(&db), 0, "an orderly stop gives the mode back");

    std::fs::set_permissions(&db, std::fs::Permissions::from_mode(0o640)).unwrap();
    let second = server(&db, json!({}));
    run(&second.client(None).await, "INSERT INTO t VALUES (1)").await;
    second.kill();
    assert_eq!(mode(&db), 0, "nobody was left to give it back");
    let third = server(&db, json!({}));
    let client = third.client(None).await;
    assert_eq!((count(&client, "t").await, count(&client, "copied").await), (400_001, 200_000));
    third.stop();
    assert_eq!(mode(&db), 0o640, "as it was before the crash");
}

#[tokio::test(flavor = "multi_thread")]
async fn start_says_why_it_cannot_have_the_database_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole.duckdb");
    let first = server(&whole, json!({}));
    let client = first.client(None).await;
    run(&client, "CREATE TABLE t AS SELECT range AS i FROM range(100000)").await;
    checkpoint(&client).await;
    for i in 0..20 {
        run(&client, &format!("INSERT INTO t VALUES ({i})")).await;
    }
    first.kill();
    std::fs::set_permissions(&whole, std::fs::Permissions::from_mode(0o644)).unwrap();
    let database = std::fs::read(&whole).unwrap();
    let log = std::fs::read(directory.path().join("whole.duckdb.wal")).unwrap();

    let mut flipped = database.clone();
    flipped[9] ^= 0xff;
    let mut header = database.clone();
    for byte in &mut header[4096..3 * 4096] {
        *byte ^= 0x55;
    }
    let mut broken_log = log.clone();
    *broken_log.last_mut().unwrap() ^= 0xff;
    let cases: [(&str, &[u8], Option<&[u8]>, i32, &str); 4] = [
        ("text", b"this is no database but a text, and long enough for a header", None, 65, "text.duckdb"),
        ("magic", &flipped, Some(&log), 65, "mallard restore"),
        ("header", &header, Some(&log), 65, "mallard doctor --verify"),
        ("log", &database, Some(&broken_log), 65, "log.duckdb.wal"),
    ];
    for (name, database, log, code, says) in cases {
        let db = directory.path().join(format!("{name}.duckdb"));
        let wal = directory.path().join(format!("{name}.duckdb.wal"));
        std::fs::write(&db, database).unwrap();
        if let Some(log) = log {
            std::fs::write(&wal, log).unwrap();
        }
        let before = mode(&db);
        let refused = serve(&db);
        assert_eq!(refused.status.code(), Some(code), "{name}: {}", stderr(&refused));
        assert!(stderr(&refused).contains(says), "{name} says {says}: {}", stderr(&refused));
        assert!(std::fs::read(&db).unwrap() == database, "{name}: the database was changed");
        assert!(log.is_none_or(|log| std::fs::read(&wal).unwrap() == log), "{name}: the log was changed");
        assert_eq!(mode(&db), before, "{name}");
    }
    for (place, says) in [("/nowhere/x.duckdb", "/nowhere/x.duckdb"), ("/sys/x.duckdb", "directory")] {
        let refused = serve(Path::new(place));
        assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
        assert!(stderr(&refused).contains(says), "{}", stderr(&refused));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn process_of_a_database_that_is_not_reopened_ends_by_itself_and_the_next_has_all_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    for point in ["BEFORE_HEADER", "AFTER_FREE_LIST_WRITE", "BEFORE_TRUNCATE", "BEFORE_WAL_FINISH"] {
        let db = directory.path().join(format!("{point}.duckdb"));
        let first = server(&db, json!({ "reopens": 0, "debug": { "debug_checkpoint_abort": point } }));
        let client = first.client(None).await;
        run(&client, "CREATE TABLE t AS SELECT range AS i FROM range(1000)").await;
        client.put(&table("sent"), people(2, 500)).await.unwrap();
        // Not finished when the database ends: it is told, and not cut short with OK.
        let mut running = client.query("SELECT a.range FROM range(1000000000) a, t").await.unwrap();
        assert!(running.next().await.unwrap().is_ok());
        let failed = match client.query("CHECKPOINT").await {
            Ok(rows) => crate::support::collect(rows).await.expect_err("the checkpoint is made to fail"),
            Err(error) => error,
        };
        assert_eq!(failed.code(), Code::Internal, "{point}: {failed}");
        let told = loop {
            match running.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break Some(error),
                None => break None,
            }
        };
        assert!(told.is_some_and(|error| error.code() != Code::Ok), "{point}: cut short with OK");
        let (code, lines) = first.ended().await;
        assert_eq!(code, Some(70), "{point}: {lines:?}");
        let second = server(&db, json!({}));
        let client = second.client(None).await;
        assert_eq!((count(&client, "t").await, count(&client, "sent").await), (1000, 1000), "{point}");
        second.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_bomb_meets_the_process_limit_and_the_next_query_works() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(&directory.path().join("m.duckdb"), json!({ "process_memory": 1_500_000_000_u64 }));
    let client = server.client(None).await;
    for bomb in ["SELECT length(repeat('x', 2000000000))", "SELECT length(repeat(repeat('x', 1000000), 1900))"] {
        let outcome = match client.query(bomb).await {
            Ok(rows) => crate::support::collect(rows).await.map(drop),
            Err(error) => Err(error),
        };
        let error = outcome.expect_err(bomb);
        assert_eq!(error.code(), Code::ResourceExhausted, "{bomb}: {error}");
        assert_eq!(row(&client, "SELECT sum(range)::BIGINT FROM range(1000)").await, ["499500"]);
    }
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn write_that_finds_no_room_is_refused_and_reads_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("full.duckdb");
    // A file that may not grow stands for a full disk; the log meets it first.
    let first = server(&db, json!({ "file_size": 4_000_000, "debug": { "checkpoint_threshold": "1TB" } }));
    let client = first.client(None).await;
    run(&client, "CREATE TABLE t(i BIGINT, s VARCHAR)").await;
    let (mut stored, mut refused) = (0, None);
    for _ in 0..200 {
        let insert = "INSERT INTO t SELECT range, hash(range)::VARCHAR || hash(range + 1) FROM range(2000)";
        let outcome = match client.query(insert).await {
            Ok(rows) => crate::support::collect(rows).await.map(drop),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => stored += 2000,
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let refused = refused.expect("4 MB do not take it all");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(count(&client, "t").await, stored, "reads go on, and nothing of the refused write is there");
    first.kill();
    let second = server(&db, json!({}));
    let client = second.client(None).await;
    assert_eq!(count(&client, "t").await, stored);
    run(&client, "INSERT INTO t VALUES (1, 'room again')").await;
    second.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_at_open_are_the_strict_ones() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for (name, value) in [
        ("autoinstall_known_extensions", "false"),
        ("autoload_known_extensions", "false"),
        ("allow_community_extensions", "false"),
        ("allow_unsigned_extensions", "false"),
        ("allow_extension_repositories", "forbidden"),
        ("allow_persistent_secrets", "false"),
        ("allow_unredacted_secrets", "false"),
        ("enable_external_access", "false"),
        ("lock_configuration", "true"),
    ] {
        let sql = format!("SELECT value FROM duckdb_settings() WHERE name = '{name}'");
        assert_eq!(row(&client, &sql).await, [value], "{name}");
    }
    // What stays open is what sessions may change, and what the server sets for one connection.
    let sql = "SELECT unnest(value[2:-2].split(', ')) AS name FROM duckdb_settings() WHERE name = 'allowed_configs'";
    let open = row(&client, &format!("SELECT string_agg(lower(name), ',') FROM ({sql})")).await.remove(0);
    let open: Vec<&str> = open.split(',').collect();
    let sessions = [guard::settings::SESSION, guard::settings::OFF_ONLY].concat();
    let servers = ["operator_memory_limit", "max_streaming_buffer_size"];
    let listed = |name: &&&str| sessions.iter().any(|(names, _)| names.contains(name)) || servers.contains(name);
    assert_eq!(open.iter().filter(|name| !listed(name)).collect::<Vec<_>>(), [&""; 0], "{open:?}");
    for name in ["timezone", "calendar", servers[0], servers[1]] {
        assert!(open.contains(&name), "{name} in {open:?}");
    }
}
