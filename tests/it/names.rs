//! One file is one database, by whatever name it is opened; and files that are gone or replaced are not passed over.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use mallard::config::Config;
use serde_json::json;

use crate::{
    faults::{server, stderr},
    process::mallard,
    support::{TestServer, checkpoint, count, run, test_config},
};

/// A server in this directory with this database; it is ended if it serves after all.
fn serve_in(directory: &Path, db: &Path) -> Output {
    let mut command = mallard();
    command.current_dir(directory);
    command.args(["serve", "--location", "grpc://127.0.0.1:0", "--admin", "off", "--db"]).arg(db);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let patience = Instant::now() + Duration::from_secs(30);
    while child.try_wait().unwrap().is_none() && Instant::now() < patience {
        std::thread::yield_now();
    }
    let _ = child.kill();
    child.wait_with_output().unwrap()
}

fn run_mallard(arguments: &[&str]) -> Output {
    mallard().args(arguments).output().unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o777
}

/// A directory with `one/db.duckdb`, and other names of it.
struct Names {
    root: tempfile::TempDir,
    db: PathBuf,
}

impl Names {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for directory in ["one", "two"] {
            std::fs::create_dir(root.path().join(directory)).unwrap();
        }
        let db = root.path().join("one/db.duckdb");
        Self { root, db }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Symbolic links to the file, also to a link, and through a link to the directory.
    fn links(&self) -> Vec<PathBuf> {
        let (beside, away, chained) =
            (self.at("one/beside.duckdb"), self.at("two/away.duckdb"), self.at("two/chained"));
        symlink("db.duckdb", &beside).unwrap();
        symlink(&self.db, &away).unwrap();
        symlink("../one/beside.duckdb", &chained).unwrap();
        symlink("one", self.at("directory")).unwrap();
        vec![beside, away, chained, self.at("directory/db.duckdb")]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn second_server_by_any_other_name_is_refused_and_changes_nothing() {
    let names = Names::new();
    let first = server(&names.db, json!({}));
    let client = first.client(None).await;
    run(&client, "CREATE TABLE t AS SELECT 1 AS i").await;
    let mut others = names.links();
    let (near, far) = (names.at("one/hard.duckdb"), names.at("two/hard.duckdb"));
    std::fs::hard_link(&names.db, &near).unwrap();
    std::fs::hard_link(&names.db, &far).unwrap();
    others.extend([near, far.clone(), PathBuf::from("one/db.duckdb"), PathBuf::from("./two/../one/db.duckdb")]);
    for other in &others {
        let refused = serve_in(names.root.path(), other);
        assert_eq!(refused.status.code(), Some(75), "{}: {}", other.display(), stderr(&refused));
        assert!(stderr(&refused).contains(&format!("pid {}", first.id())), "{}", stderr(&refused));
        assert_eq!(mode(&names.db), 0, "{}: it is sealed as before", other.display());
    }
    // The lock is the file's, also where the one beside its name is lost, and where what it says is lost.
    std::fs::remove_file(names.at("one/db.duckdb.lock")).unwrap();
    for other in [&names.db, &far] {
        let refused = serve_in(names.root.path(), other);
        assert_eq!((refused.status.code(), mode(&names.db)), (Some(75), 0), "{}", stderr(&refused));
    }
    let far = far.to_str().unwrap();
    for arguments in [&["doctor", "--verify", "--db", far][..], &["restore", "/dev/null", "--db", far, "--force"]] {
        let refused = run_mallard(arguments);
        assert!(!refused.status.success() && mode(&names.db) == 0, "{arguments:?}: {}", stderr(&refused));
    }
    run(&client, "INSERT INTO t VALUES (2)").await;
    assert_eq!(count(&client, "t").await, 2);
    first.stop();
    assert_ne!(mode(&names.db), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_is_not_sealed_has_one_server_whatever_its_name() {
    let names = Names::new();
    let mut config = test_config();
    config.database.seal = false;
    let config = |db: &Path| {
        let mut config: Config = config.clone();
        config.database.path = db.to_str().unwrap().into();
        config
    };
    let first = TestServer::with(config(&names.db)).await;
    run(&first.client().await, "CREATE TABLE t AS SELECT 1 AS i").await;
    let mut others = names.links();
    others.push(names.at("two/hard.duckdb"));
    std::fs::hard_link(&names.db, names.at("two/hard.duckdb")).unwrap();
    for other in &others {
        let refused = mallard::server::Server::start(config(other)).await.err().expect("it is refused");
        assert!(matches!(refused, mallard::error::Error::InUse(_)), "{}: {refused}", other.display());
    }
    first.server.stop(std::future::pending()).await.unwrap();
    for other in &others {
        let server = TestServer::with(config(other)).await;
        assert_eq!(count(&server.client().await, "t").await, 1, "{}", other.display());
        server.server.stop(std::future::pending()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_and_the_mode_survive_a_crash_whichever_link_the_next_start_follows() {
    let names = Names::new();
    let mut links = names.links();
    links.push(names.db.clone());
    // The first of them is made through a link that leads to nothing yet.
    for (place, link) in links.iter().enumerate() {
        let server = server(link, json!({}));
        let client = server.client(None).await;
        let catalog = crate::support::row(&client, "SELECT current_database()").await;
        assert_eq!(
            catalog[0],
            link.file_stem().unwrap().to_str().unwrap(),
            "the catalog has the name that was asked for"
        );
        if place == 0 {
            run(&client, "CREATE TABLE t (i INTEGER)").await;
            checkpoint(&client).await;
        }
        assert_eq!(count(&client, "t").await, place as u64, "before {}", link.display());
        run(&client, &format!("INSERT INTO t VALUES ({place})")).await;
        server.kill();
        assert_eq!(mode(&names.db), 0);
        assert!(names.at("one/db.duckdb.wal").exists(), "the log is beside the file");
    }
    let last = server(&names.db, json!({}));
    assert_eq!(count(&last.client(None).await, "t").await, 5);
    last.stop();
    assert!(mode(&names.db) & 0o600 == 0o600 && std::fs::symlink_metadata(&links[0]).unwrap().is_symlink());
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_is_beside_another_name_is_not_missed() {
    for unseal in [false, true] {
        let names = Names::new();
        let (near, far) = (names.at("one/hard.duckdb"), names.at("two/hard.duckdb"));
        let first = server(&names.db, json!({}));
        let client = first.client(None).await;
        run(&client, "CREATE TABLE t AS SELECT 1 AS i").await;
        checkpoint(&client).await;
        run(&client, "INSERT INTO t VALUES (2)").await;
        std::fs::hard_link(&names.db, &near).unwrap();
        std::fs::hard_link(&names.db, &far).unwrap();
        first.kill();
        if unseal {
            std::fs::set_permissions(&names.db, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        let before = mode(&names.db);
        let refused = serve_in(names.root.path(), &near);
        let code = if unseal { 65 } else { 75 };
        assert_eq!((refused.status.code(), mode(&names.db)), (Some(code), before), "{}", stderr(&refused));
        if !unseal {
            // Nothing beside it tells of the log, but the seal says that a server had it by another name.
            let refused = serve_in(names.root.path(), &far);
            assert_eq!((refused.status.code(), mode(&names.db)), (Some(75), 0), "{}", stderr(&refused));
        }
        let again = server(&names.db, json!({}));
        assert_eq!(count(&again.client(None).await, "t").await, 2, "by its own name it has all");
        again.stop();
        let by_link = server(&near, json!({}));
        by_link.logs("several names").await;
        assert_eq!(count(&by_link.client(None).await, "t").await, 2);
        by_link.stop();
    }
    // A log beside a symbolic link is what another program leaves, which does not follow it.
    let names = Names::new();
    let link = names.links().remove(1);
    let made = server(&names.db, json!({}));
    run(&made.client(None).await, "CREATE TABLE t AS SELECT 1 AS i").await;
    made.kill();
    std::fs::rename(names.at("one/db.duckdb.wal"), names.at("two/away.duckdb.wal")).unwrap();
    let refused = serve_in(names.root.path(), &link);
    assert_eq!(refused.status.code(), Some(65), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("away.duckdb.wal"), "{}", stderr(&refused));
    std::fs::rename(names.at("two/away.duckdb.wal"), names.at("one/db.duckdb.wal")).unwrap();
    let again = server(&link, json!({}));
    assert_eq!(count(&again.client(None).await, "t").await, 1);
    again.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_work_on_the_file_and_not_on_the_link() {
    let names = Names::new();
    let links = names.links();
    let link = links[1].to_str().unwrap();
    let mut config = test_config();
    config.database.path = link.into();
    let backups = names.at("backups");
    std::fs::create_dir(&backups).unwrap();
    config.database.backup_directory = Some(backups.clone());
    let first = TestServer::with(config).await;
    run(&first.client().await, "CREATE TABLE t AS SELECT range AS i FROM range(3)").await;
    let uri = first.uri();
    let backup = tokio::task::spawn_blocking(move || run_mallard(&["backup", &uri])).await.unwrap();
    assert!(backup.status.success(), "{}", stderr(&backup));
    let doctor = || {
        let link = link.to_string();
        tokio::task::spawn_blocking(move || run_mallard(&["doctor", "--json", "--db", &link]))
    };
    assert!(String::from_utf8_lossy(&doctor().await.unwrap().stdout).contains("sealed"), "the file's own state");
    run(&first.client().await, "INSERT INTO t VALUES (3)").await;
    first.server.stop(std::future::pending()).await.unwrap();

    // What all users' rows are in is nobody else's to read.
    let mut backup = None;
    for entry in std::fs::read_dir(&backups).unwrap().flatten() {
        let path = entry.path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        if path.extension().is_some_and(|ending| ending == "duckdb") {
            backup = Some(path);
        }
    }
    let backup = backup.expect("a backup");
    std::fs::set_permissions(&names.db, std::fs::Permissions::from_mode(0o640)).unwrap();
    let verified = run_mallard(&["doctor", "--verify", "--db", link]);
    assert!(verified.status.success(), "{}", stderr(&verified));
    let restored = run_mallard(&["restore", backup.to_str().unwrap(), "--db", link, "--force"]);
    assert!(restored.status.success(), "{}", stderr(&restored));
    assert!(std::fs::symlink_metadata(link).unwrap().is_symlink(), "the link is left, and the file behind it is new");
    assert_eq!(mode(&names.db), 0o640, "who may read the database has not changed");
    let again = server(Path::new(link), json!({}));
    assert_eq!(count(&again.client(None).await, "t").await, 3);
    again.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_is_lost_under_a_server_is_told_and_nothing_is_acknowledged_into_it() {
    let names = Names::new();
    let (away, link) = (names.at("one/away.duckdb"), names.at("two/link.duckdb"));
    symlink(&names.db, &link).unwrap();
    let backups = names.at("backups");
    std::fs::create_dir(&backups).unwrap();
    let server = server(&link, json!({ "backups": backups }));
    let client = server.client(None).await;
    run(&client, "CREATE TABLE t AS SELECT 1 AS i").await;
    let ready = async || crate::admin::fetch(server.admin, "/readyz?verbose").await;
    let lose: [(&str, &dyn Fn(), &dyn Fn()); 3] = [
        ("removed or renamed", &|| std::fs::rename(&names.db, &away).unwrap(), &|| {
            std::fs::rename(&away, &names.db).unwrap()
        }),
        (
            "replaced",
            &|| {
                std::fs::hard_link(&names.db, &away).unwrap();
                std::fs::write(names.at("other"), "another").unwrap();
                std::fs::rename(names.at("other"), &names.db).unwrap();
            },
            &|| std::fs::rename(&away, &names.db).unwrap(),
        ),
        (
            "replaced",
            &|| {
                std::fs::write(names.at("other"), "another").unwrap();
                std::fs::remove_file(&link).unwrap();
                symlink(names.at("other"), &link).unwrap();
            },
            &|| {
                std::fs::remove_file(&link).unwrap();
                symlink(&names.db, &link).unwrap();
            },
        ),
    ];
    for (how, lose, put_back) in lose {
        assert_eq!(ready().await.0, 200);
        let mut session = server.client(None).await;
        session.open_session().await.unwrap();
        session.statement("BEGIN").await.unwrap();
        session.statement("INSERT INTO t VALUES (-1)").await.unwrap();
        lose();
        // At once, and not when it is looked at next.
        let refusals = [
            client.query("INSERT INTO t VALUES (-2)").await.err(),
            client.query("INSERT INTO t VALUES (-3) RETURNING i").await.err(),
            client.query("CREATE TABLE other (i INTEGER)").await.err(),
            client.put(&["p".to_string()], crate::support::people(1, 10)).await.err(),
            session.statement("COMMIT").await.err(),
        ];
        for refused in refusals {
            let refused = refused.expect(how);
            assert!(
                refused.code() == tonic::Code::FailedPrecondition && refused.to_string().contains(how),
                "{refused}"
            );
            assert!(!refused.to_string().contains("one/"), "no path of the server's: {refused}");
        }
        crate::support::until("it is not ready", async || ready().await.0 == 503).await;
        assert!(ready().await.1.contains("removed, renamed or replaced"), "{:?}", ready().await);
        assert!(!client.healthy().await.unwrap());
        assert_eq!(server.metric("mallard_database_file_lost").await, 1.0);
        server.logs(how).await;
        assert_eq!(count(&client, "t").await, 1, "reads go on");
        crate::exchange::act(&client, "backup", serde_json::Value::Null).await.expect("a backup saves what is there");
        put_back();
        crate::support::until("it is ready again", async || ready().await.0 == 200).await;
        assert!(client.healthy().await.unwrap());
    }
    run(&client, "INSERT INTO t VALUES (2)").await;
    server.kill();
    let again = crate::faults::server(&link, json!({}));
    assert_eq!(count(&again.client(None).await, "t").await, 2);
    again.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_is_removed_under_a_server_is_replaced_by_a_checkpoint() {
    let names = Names::new();
    let first = server(&names.db, json!({}));
    let client = first.client(None).await;
    run(&client, "CREATE TABLE t AS SELECT 1 AS i").await;
    run(&client, "INSERT INTO t VALUES (2)").await;
    std::fs::remove_file(names.at("one/db.duckdb.wal")).unwrap();
    first.logs("a checkpoint holds").await;
    run(&client, "INSERT INTO t VALUES (3)").await;
    first.kill();
    let again = server(&names.db, json!({}));
    assert_eq!(count(&again.client(None).await, "t").await, 3, "a crash loses nothing");
    again.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn start_does_not_make_an_empty_database_where_one_was_lost() {
    // How the last server ended, what was removed, and whether the next start may begin anew.
    let cases: [(&str, bool, &[&str], bool); 5] = [
        ("crash", true, &["db.duckdb", "db.duckdb.wal"], false),
        ("crash that left a log", true, &["db.duckdb"], false),
        ("orderly stop, removed while it ran", false, &["db.duckdb", "db.duckdb.wal"], false),
        ("crash, the lock removed on purpose", true, &["db.duckdb", "db.duckdb.wal", "db.duckdb.lock"], true),
        ("nothing was there", false, &[], true),
    ];
    for (what, crash, removed, may_begin) in cases {
        let names = Names::new();
        if !removed.is_empty() {
            let first = server(&names.db, json!({}));
            run(&first.client(None).await, "CREATE TABLE t AS SELECT 1 AS i").await;
            if crash {
                first.kill();
            } else {
                std::fs::remove_file(&names.db).unwrap();
                first.stop();
            }
            for file in removed {
                // DuckDB removes its log by itself.
                let _ = std::fs::remove_file(names.at("one").join(file));
            }
        }
        if may_begin {
            server(&names.db, json!({})).stop();
            continue;
        }
        for _ in 0..2 {
            let refused = serve_in(names.root.path(), &names.db);
            assert_eq!(refused.status.code(), Some(65), "{what}: {}", stderr(&refused));
            assert!(stderr(&refused).contains("to begin with an empty database"), "{what}: {}", stderr(&refused));
            assert!(!names.db.exists(), "{what}: nothing was made");
        }
    }
    // Once it was closed in order it may be removed, and the next start begins anew.
    let names = Names::new();
    server(&names.db, json!({})).stop();
    std::fs::remove_file(&names.db).unwrap();
    server(&names.db, json!({})).stop();
}
