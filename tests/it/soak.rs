//! Load of every kind for a while: memory, descriptors and threads stay flat, and others are served.
//!
//! In a plain test run for a few seconds; `just soak` says for how long (MALLARD_SOAK_SECONDS), and with which seed
//! (MALLARD_SOAK_SEED), which is printed.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use futures::StreamExt;
use mallard::{
    client::Client,
    config::Secret,
    error::{Error, Result},
};
use serde_json::json;
use tokio::net::TcpStream;
use tonic::Code;

use crate::{
    process::Process,
    support::{PASSWORD, collect, login, people, row, rows, run, table, until},
    wire::Random,
};

pub(crate) fn seconds() -> Option<u64> {
    std::env::var("MALLARD_SOAK_SECONDS").ok()?.parse().ok()
}

fn seed() -> u64 {
    let given = std::env::var("MALLARD_SOAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("MALLARD_SOAK_SEED={seed}");
    seed
}

/// One thing that a client does, chosen at random.
async fn act(server: &Process, client: &Client, random: &mut Random, own: &str) -> Result<&'static str> {
    let uri = server.location.to_string();
    Ok(match random.below(10) {
        0..3 => {
            let number = random.below(1_000_000);
            assert_eq!(row(client, &format!("SELECT {number}")).await, [number.to_string()]);
            "small query"
        }
        3 => {
            let count = 1 + random.below(1_000_000);
            let sql = format!("SELECT range, range::VARCHAR AS s FROM range({count})");
            assert_eq!(rows(&collect(client.query(&sql).await?).await?), count);
            "large query"
        }
        4 => {
            let (batches, each) = (1 + random.below(8), 1 + random.below(20_000));
            client.put(&table(own), people(batches, each)).await?;
            assert_eq!(row(client, &format!("SELECT count(*) FROM {own}")).await, [(batches * each).to_string()]);
            run(client, &format!("DROP TABLE {own}")).await;
            "put"
        }
        5 => {
            let (batches, each) = (1 + random.below(8), 1 + random.below(20_000));
            let name = ["echo", "processed"][random.below(2)];
            let answer = collect(client.exchange(name, people(batches, each)).await?).await?;
            assert_eq!(rows(&answer), batches * each);
            "exchange"
        }
        6 => {
            let to = format!("{own}_copy");
            let body = json!({
                "from": uri, "username": login().user, "password": PASSWORD, "query": "FROM range(20000)", "to": to,
                "mode": "replace", "verify": true
            });
            let mut steps = client.action("transfer", &body).await?.boxed();
            while let Some(step) = steps.next().await {
                step?;
            }
            "transfer"
        }
        7 => {
            let wrong = mallard::client::Login { user: "nobody".into(), password: Secret::new("x") };
            let refused = Client::connect(&server.location, Some(&wrong)).await.err().map(|error| error.code());
            assert!(matches!(refused, Some(Code::Unauthenticated | Code::ResourceExhausted)), "{refused:?}");
            let fresh = Client::connect(&server.location, Some(&login())).await?;
            assert_eq!(row(&fresh, "SELECT 1").await, ["1"]);
            "login"
        }
        8 => {
            // A client that leaves in the middle: of what it reads, and of what it sends.
            let leaving = Client::connect(&server.location, Some(&login())).await?;
            let mut stream = leaving.query("SELECT range, repeat('x', 100) FROM range(100000000)").await?;
            stream.next().await.ok_or(Error::Cancelled)??;
            let endless = people(1_000_000, 1_000);
            let to = table(&format!("{own}_cut"));
            let putting = tokio::time::timeout(Duration::from_millis(20), leaving.put(&to, endless)).await;
            assert!(putting.is_err(), "it does not end by itself");
            "cut"
        }
        _ => {
            // One that says nothing, and one that says something else.
            let silent = TcpStream::connect(server.address()).await;
            drop(silent);
            client.healthy().await?;
            "silent socket"
        }
    })
}

struct Sample {
    memory: u64,
    descriptors: usize,
    threads: usize,
}

fn median<T: Ord + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values[values.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn mixed_load_leaves_memory_descriptors_and_threads_flat() {
    let seed = seed();
    let lasts = Duration::from_secs(seconds().unwrap_or(8));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("soak.duckdb");
    let server = Process::serve(&[
        ("MALLARD__DATABASE__PATH", path.to_str().unwrap()),
        ("MALLARD__DATABASE__MEMORY_LIMIT", "1GiB"),
        ("MALLARD__AUTH__ENABLED", "true"),
        ("MALLARD__AUTH__USERS__ALICE__PASSWORD", PASSWORD),
        ("MALLARD__AUTH__USERS__ALICE__ROLE", "admin"),
        ("MALLARD__AUTH__LOGIN_FAILURES", "0"),
        ("MALLARD__AUTH__LOGIN_FAILURES_PER_ADDRESS", "0"),
        ("MALLARD__LIMITS__HANDSHAKE_TIMEOUT", "2s"),
        ("MALLARD__LOG__LEVEL", "warn,mallard::server=info,mallard=info,mallard::rpc=warn"),
    ]);
    let (start, done, failed) = (Instant::now(), AtomicU64::new(0), AtomicU64::new(0));
    let load = futures::stream::iter(0..6_u64).for_each_concurrent(None, async |worker| {
        let mut random = Random::new(seed.wrapping_add(worker));
        let client = server.client(Some(&login())).await;
        let own = format!("own_{worker}");
        while start.elapsed() < lasts {
            match act(&server, &client, &mut random, &own).await {
                Ok(_) => done.fetch_add(1, Ordering::Relaxed),
                // Writers of one database may be in each other's way; nothing else may fail.
                Err(error) if error.code() == Code::Aborted => failed.fetch_add(1, Ordering::Relaxed),
                Err(error) => panic!("seed {seed}, worker {worker}: {error}"),
            };
        }
    });
    let mut samples = Vec::new();
    let sampling = async {
        while start.elapsed() < lasts {
            let (memory, descriptors, threads) = (server.memory(), server.descriptors(), server.threads());
            samples.push(Sample { memory, descriptors, threads });
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::join!(load, sampling);
    until("nothing runs", || async { server.metric("mallard_queries_running").await == 0.0 }).await;
    until("connections are closed", || async { server.metric("mallard_connections").await == 0.0 }).await;
    assert_eq!(server.metric("mallard_bytes_in_flight").await, 0.0);
    assert_eq!(server.metric("mallard_stream_buffer_bytes").await, 0.0);
    assert_eq!(server.metric("mallard_connections_unauthenticated").await, 0.0);
    let done = done.load(Ordering::Relaxed);
    let third = samples.len() / 3;
    let (early, late) = (&samples[third..2 * third], &samples[2 * third..]);
    let of = |samples: &[Sample]| {
        let memory = median(samples.iter().map(|sample| sample.memory)) >> 20;
        (
            memory,
            median(samples.iter().map(|sample| sample.descriptors)),
            median(samples.iter().map(|sample| sample.threads)),
        )
    };
    let (early, late) = (of(early), of(late));
    println!(
        "measured: {done} actions in {lasts:?}, {} conflicts; MiB, descriptors, threads: {early:?} in the second third, {late:?} in the last",
        failed.load(Ordering::Relaxed)
    );
    assert!(done > 20, "{done}");
    if seconds().is_some() {
        assert!(late.0 <= early.0 + early.0 / 10 + 32, "memory grows");
        assert!(late.1 <= early.1 + 16, "descriptors grow");
        assert!(late.2 <= early.2 + 8, "threads grow");
    }
    server.stop();
}

/// How long queries take beside what else the server does; the second of a hundred from above.
async fn p99(client: &Client, count: usize) -> Duration {
    let mut took = Vec::with_capacity(count);
    for at in 0..count {
        let start = Instant::now();
        assert_eq!(row(client, &format!("SELECT {at}")).await, [at.to_string()]);
        took.push(start.elapsed());
    }
    took.sort_unstable();
    took[count * 99 / 100]
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_reader_and_stalled_readers_leave_room_for_others() {
    // 5 GB in 16 bytes a row where it may take its time.
    let total: u64 = if seconds().is_some() { 312_500_000 } else { 12_500_000 };
    let server = Process::serve(&[
        ("MALLARD__LIMITS__STALL_TIMEOUT", "10s"),
        ("MALLARD__LIMITS__QUERIES", "48"),
        ("MALLARD__LIMITS__QUERIES_PER_USER", "0"),
        ("MALLARD__LOG__LEVEL", "info"),
    ]);
    let client = server.client(None).await;
    p99(&client, 200).await;
    let (idle, base) = (p99(&client, 2_000).await, server.memory());
    let sql = format!("SELECT range, range * 2 FROM range({total})");
    let slow_client = server.client(None).await;
    let mut slow = slow_client.query(&sql).await.unwrap();
    let mut stalled = Vec::new();
    for _ in 0..32 {
        let client = server.client(None).await;
        let mut stream = client.query(&sql).await.unwrap();
        stream.next().await.unwrap().unwrap();
        stalled.push((client, stream));
    }
    // Slow, and never still.
    let reading = tokio::spawn(async move {
        let mut read = 0_u64;
        while let Some(batch) = slow.next().await {
            read += batch.unwrap().num_rows() as u64;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        read
    });
    // The statements that now stand still have to have come that far.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let beside = p99(&client, 2_000).await;
    let mut most = server.memory().saturating_sub(base);
    while !reading.is_finished() {
        most = most.max(server.memory().saturating_sub(base));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let read = reading.await.unwrap();
    assert_eq!(read, total);
    let ended = "mallard_streams_stalled_total{direction=\"sent\"}";
    until("the stalled ones are ended", || async { server.metric(ended).await == 32.0 }).await;
    println!(
        "measured: {read} rows read slowly beside 32 stalled readers: {} MiB above base; p99 of others {beside:?}, idle {idle:?}",
        most >> 20
    );
    assert!(most < 128 << 20, "{most} bytes more");
    if seconds().is_some() {
        assert!(beside < 2 * idle, "others wait: {beside:?}, idle {idle:?}");
    }
    for (_client, stream) in stalled {
        assert!(collect(stream).await.is_err(), "never silently short");
    }
}
