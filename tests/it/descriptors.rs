//! A server that has no file descriptor and no thread left says so, keeps what it needs itself, and outlives it.

use std::{path::Path, process::Command, time::Duration};

use futures::StreamExt;
use mallard::{client::Client, error::Error};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tonic::Code;

use crate::{
    connections::PREFACE,
    exchange::act,
    process::{Process, mallard},
    support::{checkpoint, collect, count, people, row, rows, run, table},
};

/// More rows than fit into the memory limit of [`serve`].
const SPILLS: &str = "SELECT max(place) FROM (SELECT row_number() OVER (ORDER BY repeat(hash(range)::VARCHAR, 3)) AS place \
                      FROM range(1000000))";

/// With this many file descriptors at most, or as many as there are.
fn serve(directory: &Path, open_files: Option<u64>, login: bool) -> Process {
    let binary = mallard();
    let mut command = Command::new("sh");
    let limit = open_files.map_or(String::new(), |limit| format!("ulimit -n {limit} && "));
    command.args(["-c", &format!("{limit}exec \"$0\" \"$@\"")]).arg(binary.get_program());
    command.args(["serve", "--location", "grpc://127.0.0.1:0", "--admin", "127.0.0.1:0", "--db"]);
    command.arg(directory.join("db.duckdb"));
    command.stdin(std::process::Stdio::null());
    for (name, value) in binary.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let backups = directory.join("backups");
    std::fs::create_dir_all(&backups).unwrap();
    command
        .env("MALLARD__LOG__FORMAT", "json")
        .env("MALLARD__DATABASE__BACKUP_DIRECTORY", backups)
        .env("MALLARD__DATABASE__MEMORY_LIMIT", "64MiB")
        .env("MALLARD__AUDIT__FILE", directory.join("audit"))
        // Each sandbox is opened when it is asked for.
        .env("MALLARD__EXCHANGE__READY", "0");
    if login {
        command.env("MALLARD__AUTH__ENABLED", "true").env("MALLARD__AUTH__USERS__ROOT__PASSWORD", "a password");
        command.env("MALLARD__AUTH__USERS__ROOT__ROLE", "admin");
    }
    Process::spawn(command)
}

async fn add_exchanger(client: &Client) {
    act(client, "add_exchange", json!({"name": "sandboxed", "sql": "SELECT id FROM input"})).await.unwrap();
}

/// What needs descriptors, each by its name with how it ended.
async fn use_all(client: &Client) -> Vec<(&'static str, Result<(), Error>)> {
    let sql = async |sql: &str| collect(client.query(sql).await?).await.map(drop);
    let exchanged = async {
        let answer = collect(client.exchange("sandboxed", people(2, 10)).await?).await?;
        assert_eq!(rows(&answer), 20);
        Ok(())
    };
    let backed_up = async {
        let mut results = client.action("backup", &Value::Null).await?.boxed();
        while let Some(result) = results.next().await {
            result?;
        }
        Ok(())
    };
    let added = async {
        let body = json!({"name": "added", "sql": "SELECT id FROM input", "replace": true});
        act(client, "add_exchange", body).await.map(drop)
    };
    vec![
        ("select", sql("SELECT count(*) FROM t").await),
        ("exchange", exchanged.await),
        ("add an exchanger", added.await),
        ("insert", sql("INSERT INTO t VALUES (1)").await),
        ("put", client.put(&table("p"), people(3, 1000)).await.map(drop)),
        ("spill", sql(SPILLS).await),
        ("checkpoint", sql("CHECKPOINT").await),
        ("insert again", sql("INSERT INTO t VALUES (2)").await),
        ("backup", backed_up.await),
        ("checkpoint again", sql("FORCE CHECKPOINT").await),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_leave_the_descriptors_that_the_server_needs_itself() {
    // Who has logged in is not sent away for others: the first has the connections of readers, the second raw sockets.
    for (open_files, login) in [(128, false), (64, true)] {
        let directory = tempfile::tempdir().unwrap();
        let server = serve(directory.path(), Some(open_files), login);
        server.logs("limits.connections is lowered").await;
        let who = mallard::client::Login { user: "root".into(), password: mallard::config::Secret::new("a password") };
        let who = login.then_some(&who);
        let client = server.client(who).await;
        run(&client, "CREATE TABLE t AS SELECT range AS i FROM range(1000)").await;
        add_exchanger(&client).await;
        let (mut clients, mut sockets) = (Vec::new(), Vec::new());
        for _ in 0..2 * open_files {
            if !login {
                let connected = Client::connect(&server.location, None);
                let Ok(Ok(one)) = tokio::time::timeout(Duration::from_secs(1), connected).await else { break };
                let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(1), one.query("SELECT 1")).await else {
                    break;
                };
                clients.push(one);
            } else {
                let connected = TcpStream::connect(server.address());
                let Ok(Ok(mut socket)) = tokio::time::timeout(Duration::from_secs(1), connected).await else { break };
                // One that was sent away meanwhile takes no more.
                let _ = socket.write_all(PREFACE).await;
                sockets.push(socket);
            }
        }
        assert!(login || (10..open_files as usize).contains(&clients.len()), "{} connections", clients.len());
        for (what, outcome) in use_all(&client).await {
            assert!(outcome.is_ok(), "{what} with {open_files} descriptors: {outcome:?}");
        }
        drop((clients, sockets));
        // Once the server has seen that they are gone.
        let newcomer = async || {
            let Ok(client) = Client::connect(&server.location, who).await else { return false };
            let counted = async { collect(client.query("SELECT 1 FROM t").await?).await };
            counted.await.is_ok_and(|batches| rows(&batches) == 1002)
        };
        crate::support::until("a newcomer is let in and sees all rows", newcomer).await;
        let audit = std::fs::read_to_string(directory.path().join("audit")).unwrap();
        assert!(audit.contains("backup"), "the audit log goes on: {audit}");
        let log = server.stop();
        let accepts: Vec<_> = log.iter().filter(|line| line.contains("Too many open files")).collect();
        assert!(accepts.is_empty(), "{accepts:?}");
    }
}

/// From now on the process may open no file, or as many as before.
fn limit(server: &Process, resource: Resource, current: Option<u64>) {
    let pid = Pid::from_raw(server.pid() as i32);
    // It has inherited the hard limit.
    let maximum = rustix::process::getrlimit(resource).maximum;
    prlimit(pid, resource, Rlimit { current, maximum }).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn process_outlives_each_call_with_no_descriptor_left_and_says_what_it_lacks() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(directory.path(), None, false);
    let client = server.client(None).await;
    run(&client, "CREATE TABLE t AS SELECT range AS i FROM range(1000)").await;
    add_exchanger(&client).await;
    for logged in [false, true] {
        if logged {
            // The log is open, and stays so.
            run(&client, "INSERT INTO t VALUES (0)").await;
        } else {
            checkpoint(&client).await;
        }
        let before = count(&client, "t").await;
        limit(&server, Resource::Nofile, Some(3));
        let mut inserted = 0;
        let mut failed = Vec::new();
        for (what, outcome) in use_all(&client).await {
            match outcome {
                Ok(()) => inserted += u64::from(what.starts_with("insert")),
                Err(error) => {
                    assert_eq!(error.code(), Code::ResourceExhausted, "{what}: {error}");
                    assert!(error.to_string().contains("RLIMIT_NOFILE"), "{what}: {error}");
                    failed.push(what);
                }
            }
        }
        for what in ["exchange", "spill", "backup"] {
            assert!(failed.contains(&what), "{what} needs a descriptor: {failed:?}");
        }
        limit(&server, Resource::Nofile, Some(1000));
        assert_eq!(count(&client, "t").await, before + inserted, "what was refused is not there: {failed:?}");
        for (what, outcome) in use_all(&server.client(None).await).await {
            assert!(outcome.is_ok(), "{what} works again: {outcome:?}");
        }
    }
    let rows = count(&client, "t").await;
    server.kill();
    let again = serve(directory.path(), None, false);
    assert_eq!(count(&again.client(None).await, "t").await, rows, "all that was acknowledged");
    again.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_for_which_no_thread_can_be_started_is_refused_and_the_next_one_works() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(directory.path(), None, false);
    let client = server.client(None).await;
    assert_eq!(row(&client, "SELECT 42").await, ["42"]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let data = status.lines().find_map(|line| line.strip_prefix("VmData:")).unwrap();
    let data = data.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
    // Room for what a statement needs, and not for the stack of another engine thread.
    limit(&server, Resource::Data, Some(data + (16 << 20)));
    // Each has an engine thread while it is not read; some of those of the start may be there still.
    let (mut reading, mut refused) = (Vec::new(), None);
    while refused.is_none() && reading.len() < 6 {
        match client.query("SELECT * FROM range(100000000)").await {
            Ok(stream) => reading.push(stream),
            Err(error) => refused = Some(error),
        }
    }
    let refused = refused.expect("there is no room for a thread's stack");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.to_string().contains("thread"), "{refused}");
    drop(reading);
    let works = async || client.query("SELECT 44").await.is_ok();
    crate::support::until("the thread is free again", works).await;
    limit(&server, Resource::Data, None);
    assert_eq!(row(&client, "SELECT 45").await, ["45"]);
    server.stop();
}
