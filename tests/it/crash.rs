//! What was acknowledged survives any crash, and what was not is there in full or not at all.
//!
//! Four writers keep a ledger while the server is killed again and again, or ends by itself because its checkpoints are
//! made to fail. `MALLARD_SOAK_CRASHES` says how often (`just soak`), `MALLARD_TEST_SEED` repeats a run.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use arrow_array::{Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use futures::StreamExt;
use mallard::{
    client::Client,
    error::{Error, Result},
    stream::RecordBatchStream,
};
use serde_json::json;

use crate::{
    faults::server,
    process::Process,
    support::{TestServer, collect, run, table},
};

/// A writer's table, and rows of each unit of work.
const WRITERS: [(&str, usize); 4] = [("puts", 300), ("long_puts", 30_000), ("inserts", 300), ("transfers", 3000)];

#[derive(Default)]
struct Ledger {
    next: u64,
    acknowledged: Vec<BTreeSet<u64>>,
}

type Shared = Arc<Mutex<Ledger>>;

fn unit_of_rows(unit: u64, rows: usize) -> RecordBatchStream {
    let schema =
        Arc::new(Schema::new(vec![Field::new("unit", DataType::Int64, true), Field::new("n", DataType::Int64, true)]));
    let made = schema.clone();
    let batches = futures::stream::iter(0..3).map(move |_| {
        let units = Int64Array::from_value(unit as i64, rows / 3);
        let numbers = Int64Array::from_iter_values(0..rows as i64 / 3);
        Ok(RecordBatch::try_new(made.clone(), vec![Arc::new(units), Arc::new(numbers)]).unwrap())
    });
    RecordBatchStream::new(schema, batches)
}

async fn write(client: &Client, writer: usize, unit: u64, source: &str) -> Result<()> {
    let (name, rows) = WRITERS[writer];
    match name {
        "inserts" => {
            let sql = format!("INSERT INTO inserts SELECT {unit}, range FROM range({rows})");
            collect(client.query(&sql).await?).await.map(drop)
        }
        "transfers" => {
            let query = format!("SELECT {unit}::BIGINT AS unit, range AS n FROM range({rows})");
            let body = json!({ "from": source, "query": query, "to": name, "mode": "append" });
            let mut results = client.action("transfer", &body).await?.boxed();
            let mut done = false;
            while let Some(result) = results.next().await {
                let step: serde_json::Value = serde_json::from_slice(&result?).unwrap();
                done = step["done"] == true;
            }
            if done { Ok(()) } else { Err(Error::internal("a transfer ended without its last word")) }
        }
        _ => client.put(&table(name), unit_of_rows(unit, rows)).await.map(drop),
    }
}

/// Writes unit after unit, until the server is gone.
async fn write_on(client: Client, writer: usize, ledger: Shared, source: String) {
    let mut failures = 0;
    // A server whose checkpoints fail refuses before it ends.
    while failures < 20 {
        let unit = {
            let mut ledger = ledger.lock().unwrap();
            ledger.next += 1;
            ledger.next
        };
        match write(&client, writer, unit, &source).await {
            Ok(()) => drop(ledger.lock().unwrap().acknowledged[writer].insert(unit)),
            Err(_) => failures += 1,
        }
    }
}

/// Starts it, and tells how long that took.
async fn start(db: &Path, settings: serde_json::Value) -> (Process, Client, Duration) {
    let began = Instant::now();
    let server = server(db, settings);
    let took = began.elapsed();
    let client = server.client(None).await;
    (server, client, took)
}

async fn create(client: &Client) {
    for (name, _) in WRITERS {
        run(client, &format!("CREATE TABLE {name} (unit BIGINT, n BIGINT)")).await;
    }
}

/// Nothing lost, nothing partial; how many units there are.
async fn audit(client: &Client, ledger: &Shared) -> usize {
    let mut units = 0;
    for (writer, (name, rows)) in WRITERS.into_iter().enumerate() {
        let sql = format!("SELECT unit, count(*)::BIGINT AS c FROM {name} GROUP BY unit");
        let mut found = BTreeSet::new();
        for batch in collect(client.query(&sql).await.unwrap()).await.unwrap() {
            let column = |at: usize| batch.column(at).as_any().downcast_ref::<Int64Array>().unwrap().clone();
            for (unit, count) in column(0).values().iter().zip(column(1).values()) {
                assert_eq!(*count, rows as i64, "unit {unit} of {name} is there in part");
                found.insert(*unit as u64);
            }
        }
        let lost: Vec<u64> = ledger.lock().unwrap().acknowledged[writer].difference(&found).copied().collect();
        assert!(lost.is_empty(), "{name}: acknowledged and lost: {lost:?}");
        units += found.len();
    }
    units
}

fn ledger() -> Shared {
    Arc::new(Mutex::new(Ledger { next: 0, acknowledged: vec![BTreeSet::new(); WRITERS.len()] }))
}

fn begin(client: &Client, ledger: &Shared, source: &str, writers: &mut tokio::task::JoinSet<()>) {
    for writer in 0..WRITERS.len() {
        writers.spawn(write_on(client.clone(), writer, ledger.clone(), source.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_server_loses_nothing_acknowledged_and_keeps_nothing_in_part() {
    let crashes: u64 = std::env::var("MALLARD_SOAK_CRASHES").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let seed: u64 = std::env::var("MALLARD_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    println!("seed {seed}, {crashes} crashes");
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("crash.duckdb");
    let source = TestServer::start().await;
    let ledger = ledger();
    // Many checkpoints, so that crashes meet some.
    let settings = || json!({ "debug": { "checkpoint_threshold": "500KB" } });
    let (mut server, mut client, _) = start(&db, settings()).await;
    create(&client).await;
    let mut slowest = Duration::ZERO;
    for crash in 0..crashes {
        let mut writers = tokio::task::JoinSet::new();
        begin(&client, &ledger, &source.uri(), &mut writers);
        // After so many acknowledgements, so that a slow machine crashes at work, too.
        let acknowledged = || ledger.lock().unwrap().acknowledged.iter().map(BTreeSet::len).sum::<usize>();
        let goal = acknowledged() + 3 + (seed.wrapping_mul(crash + 1).wrapping_mul(0x9e37_79b9) >> 7) as usize % 60;
        crate::support::until("work is acknowledged", || async { acknowledged() >= goal }).await;
        server.kill();
        while writers.join_next().await.is_some() {}
        let took;
        (server, client, took) = start(&db, settings()).await;
        slowest = slowest.max(took);
        audit(&client, &ledger).await;
    }
    let units = audit(&client, &ledger).await;
    let acknowledged: usize = ledger.lock().unwrap().acknowledged.iter().map(BTreeSet::len).sum();
    println!(
        "measured: {crashes} crashes, {acknowledged} units acknowledged, {units} there, slowest restart {slowest:?}"
    );
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_checkpoint_at_any_point_loses_nothing_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let source = TestServer::start().await;
    for point in [
        "BEFORE_HEADER",
        "BEFORE_HEADER_NON_FATAL",
        "AFTER_FREE_LIST_WRITE",
        "BEFORE_TRUNCATE",
        "BEFORE_WAL_FINISH",
        "BEFORE_MOVING_RECOVERY",
        "BEFORE_DELETING_CHECKPOINT_WAL",
    ] {
        let db = directory.path().join(format!("{point}.duckdb"));
        let ledger = ledger();
        let (first, client, _) = start(&db, json!({})).await;
        create(&client).await;
        first.stop();
        let failing = json!({ "debug": { "debug_checkpoint_abort": point, "checkpoint_threshold": "500KB" } });
        let (second, client, _) = start(&db, failing).await;
        let mut writers = tokio::task::JoinSet::new();
        begin(&client, &ledger, &source.uri(), &mut writers);
        // Where no checkpoint is made to fail, writers go on, and a kill ends it.
        let ended = async { while writers.join_next().await.is_some() {} };
        let by_itself = tokio::time::timeout(Duration::from_secs(2), ended).await.is_ok();
        second.kill();
        writers.shutdown().await;
        let (third, client, _) = start(&db, json!({})).await;
        let units = audit(&client, &ledger).await;
        let acknowledged: usize = ledger.lock().unwrap().acknowledged.iter().map(BTreeSet::len).sum();
        println!("measured: {point}: {acknowledged} acknowledged, {units} there, ended by itself: {by_itself}");
        third.stop();
    }
}
