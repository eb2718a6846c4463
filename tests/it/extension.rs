//! Extensions of the configuration are loaded before clients come, their functions are there within the guard's rules, and one
//! that was built for something else, cut off or not signed is told by its name.
//!
//! The extension is a crate of its own, tests/extension, which Cargo builds here.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use mallard::{
    access::Role,
    client::Client,
    config::{Config, RoleSettings},
    engine::Engine,
    error::Error,
    server::Server,
};
use serde_json::json;
use tonic::Code;

use crate::{
    exchange::act,
    process::mallard,
    support::{TestServer, USER, collect, people, row, rows, run, test_config, with_login, with_users},
};

/// The shared library, which is no extension before its description is behind it.
fn library() -> &'static [u8] {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("extension");
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/extension/Cargo.toml");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "--quiet", "--manifest-path"]).arg(manifest).arg("--target-dir").arg(&target);
        // What the outer build was told is not for this one.
        cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("RUSTFLAGS").env_remove("DUCKDB_LIB_DIR");
        let built = cargo.output().expect("cargo runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        std::fs::read(target.join("debug/libmallard_test_extension.so")).expect("it was built")
    })
}

/// What stands behind an extension: its fields in reverse order, and 256 bytes of a signature.
fn footer(platform: &str, version: &str, kind: &str, signature: u8) -> Vec<u8> {
    let fields = ["", "", "", kind, "v0.1.0", version, platform, "4"];
    let mut bytes: Vec<u8> = fields
        .iter()
        .flat_map(|field| {
            let mut bytes = field.as_bytes().to_vec();
            bytes.resize(32, 0);
            bytes
        })
        .collect();
    bytes.resize(512, signature);
    bytes
}

async fn platform() -> String {
    let server = TestServer::start().await;
    row(&server.client().await, "SELECT platform FROM pragma_platform()").await.remove(0)
}

/// Another file of that name: one that was loaded is mapped into memory, and must not change.
fn write(file: &Path, end: &[u8]) {
    let _ = std::fs::remove_file(file);
    std::fs::write(file, [library(), end].concat()).unwrap();
}

/// The extension in a directory, for this DuckDB.
async fn extension_in(directory: &Path) -> PathBuf {
    let file = directory.join("mallard_test.duckdb_extension");
    write(&file, &footer(&platform().await, Engine::duckdb_version(), "C_STRUCT_UNSTABLE", 0));
    file
}

fn with(extension: &str) -> Config {
    let mut config = test_config();
    config.database.extensions = vec![extension.into()];
    config.database.allow_unsigned_extensions = true;
    config
}

async fn failing(client: &Client, sql: &str) -> Error {
    match client.query(sql).await {
        Ok(rows) => collect(rows).await.expect_err(sql),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_of_an_extension_are_there_for_queries_grants_and_exchangers() {
    let directory = tempfile::tempdir().unwrap();
    let file = extension_in(directory.path()).await;
    let mut config = with_login(with(file.to_str().unwrap()));
    config.database.path = directory.path().join("m.duckdb").to_str().unwrap().into();
    config.database.debug.push(("fatal_function".into(), "fail".into()));
    config.database.extension_functions = vec!["mallard_count_*".into()];
    let narrow = RoleSettings { base: Some(Role::Reader), read: Some(vec!["seen".into()]), ..Default::default() };
    config.auth.roles.insert("narrow".into(), narrow);
    let users = [("ann", "narrow"), ("bob", "reader")];
    let server = TestServer::with(with_users(config.clone(), &users)).await;
    let admin = server.client_of(USER).await;
    run(&admin, "CREATE TABLE seen AS SELECT number FROM mallard_count_to(3000)").await;
    run(&admin, "CREATE TABLE hidden AS SELECT 1 AS number").await;
    let sum = "SELECT sum(mallard_twice(number))::VARCHAR FROM seen";
    assert_eq!(row(&admin, sum).await, ["9003000"]);
    let bob = server.client_of("bob").await;
    assert_eq!(row(&bob, "SELECT count(*), max(number) FROM mallard_count_to(5000)").await, ["5000", "5000"]);
    // With grants on some tables, scalar functions are there, and table functions are not.
    let ann = server.client_of("ann").await;
    assert_eq!(row(&ann, sum).await, ["9003000"]);
    for sql in ["SELECT mallard_twice(number) FROM hidden", "SELECT * FROM mallard_count_to(3)"] {
        assert_eq!(failing(&ann, sql).await.code(), Code::PermissionDenied, "{sql}");
    }
    let definition = json!({"name": "twice", "sql": "SELECT mallard_twice(id) AS id FROM input"});
    act(&admin, "add_exchange", definition).await.unwrap();
    let doubled = admin.exchange("twice", people(2, 10)).await.unwrap();
    assert_eq!(rows(&collect(doubled).await.unwrap()), 20);
    // It is there again when the database is opened anew.
    let fatal = "SELECT fail(range) FROM range(1)";
    assert_eq!(failing(&admin, fatal).await.code(), Code::Internal);
    crate::support::until("the server serves again", async || admin.healthy().await.unwrap_or(false)).await;
    assert_eq!(row(&admin, sum).await, ["9003000"]);
    for sql in [format!("LOAD '{}'", file.display()), "INSTALL httpfs".into(), "LOAD mallard_test".into()] {
        assert_eq!(failing(&admin, &sql).await.code(), Code::PermissionDenied, "{sql}");
    }
    server.server.stop(std::future::pending()).await.unwrap();

    // Unless they are named, table functions are for admins.
    config.database.extension_functions = Vec::new();
    let server = TestServer::with(with_users(config, &users)).await;
    assert_eq!(row(&server.client_of(USER).await, "SELECT count(*) FROM mallard_count_to(3)").await, ["3"]);
    let denied = failing(&server.client_of("bob").await, "SELECT count(*) FROM mallard_count_to(3)").await;
    assert!(denied.code() == Code::PermissionDenied, "{denied}");
    assert!(denied.to_string().contains("database.extension_functions"), "{denied}");
    assert_eq!(row(&server.client_of("bob").await, sum).await, ["9003000"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn extension_that_does_not_fit_is_told_by_name_before_a_port_opens() {
    let directory = tempfile::tempdir().unwrap();
    let right = extension_in(directory.path()).await;
    let (platform, version) = (platform().await, Engine::duckdb_version());
    let wrong = directory.path().join("wrong.duckdb_extension");
    let start = async |config: Config| Server::start(config).await.err().map(|error| (error.to_string(), error.code()));
    let cut = footer(&platform, version, "C_STRUCT_UNSTABLE", 0);
    for (end, said) in [
        (footer("osx_arm64", version, "C_STRUCT_UNSTABLE", 0), "osx_arm64"),
        (footer(&platform, "v1.4.2", "CPP", 0), "v1.4.2"),
        (footer(&platform, "v1.4.2", "", 0), "v1.4.2"),
        (footer(&platform, "v9.9.9", "C_STRUCT_UNSTABLE", 0), "v9.9.9"),
        (footer(&platform, "v9.9.9", "C_STRUCT", 0), "v9.9.9"),
        (footer(&platform, version, "NO_SUCH_KIND", 0), ""),
        (cut[..500].to_vec(), "cut off"),
        (Vec::new(), "cut off"),
        // It has the entry point of another name.
        (cut.clone(), "wrong"),
    ] {
        write(&wrong, &end);
        let (error, code) = start(with(wrong.to_str().unwrap())).await.expect(said);
        assert!(error.contains("wrong.duckdb_extension") && error.contains(said), "{said}: {error}");
        assert_ne!(code, Code::Internal, "{error}");
    }
    for (bytes, said) in [(&b""[..], "shorter"), (&[0x1f, 0x8b, 8, 0], "gunzip"), (&[7; 600], "cut off")] {
        let _ = std::fs::remove_file(&wrong);
        std::fs::write(&wrong, bytes).unwrap();
        let (error, _) = start(with(wrong.to_str().unwrap())).await.expect(said);
        assert!(error.contains("wrong.duckdb_extension") && error.contains(said), "{said}: {error}");
    }
    std::fs::remove_file(&wrong).unwrap();
    std::fs::create_dir(&wrong).unwrap();
    assert!(start(with(wrong.to_str().unwrap())).await.expect("a directory").0.contains("wrong"));

    // Signatures: none, and one of nobody's.
    let mut signed = with(right.to_str().unwrap());
    signed.database.allow_unsigned_extensions = false;
    let (error, _) = start(signed.clone()).await.expect("it is not signed");
    assert!(error.contains("no signature") && error.contains("database.allow_unsigned_extensions"), "{error}");
    write(&right, &footer(&platform, version, "C_STRUCT_UNSTABLE", 5));
    let (error, _) = start(signed).await.expect("nobody has signed it");
    assert!(error.contains("signature") && error.contains("mallard_test"), "{error}");

    // By its name, from a directory, in DuckDB's layout too; and what is not there says where it was looked for.
    for place in [directory.path().to_path_buf(), directory.path().join(version).join(&platform)] {
        std::fs::create_dir_all(&place).unwrap();
        let moved = place.join("mallard_test.duckdb_extension");
        write(&moved, &cut);
        let mut named = with("mallard_test");
        named.database.extension_directory = Some(directory.path().to_path_buf());
        let server = TestServer::with(named).await;
        assert_eq!(row(&server.client().await, "SELECT mallard_twice(21)").await, ["42"]);
        drop(server);
        std::fs::remove_file(moved).unwrap();
    }
    let mut missing = with("mallard_test");
    missing.database.extension_directory = Some(directory.path().to_path_buf());
    let (error, _) = start(missing.clone()).await.expect("it is not there");
    assert!(
        error.contains("mallard_test.duckdb_extension") && error.contains("database.extension_repository"),
        "{error}"
    );
    // A repository that is a directory, or cannot be reached.
    let repository = directory.path().join("repository");
    missing.database.extension_repository = Some(repository.to_str().unwrap().into());
    let (error, _) = start(missing).await.expect("there is no such repository");
    assert!(error.contains("mallard_test") && error.contains("repository"), "{error}");
    // What is linked in needs no file.
    let mut linked = with("json");
    linked.database.extensions.push("PARQUET".into());
    drop(TestServer::with(linked).await);

    // The checks of the configuration say the same, and run nothing.
    write(&right, &footer("osx_arm64", version, "CPP", 0));
    let mut check = mallard();
    check.args(["config", "check"]).env("MALLARD__DATABASE__EXTENSIONS", right.to_str().unwrap());
    let output = tokio::task::spawn_blocking(move || check.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("osx_arm64") && said.contains("mallard_test"), "{said}");
}
