//! Flipped bits in the database or its log are never silently wrong: the file is refused, or the block is, or the data is
//! unharmed. Only the last commit of a log may be lost without a word: damage there looks like a write that a crash tore.

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    faults::{server, stderr},
    process::mallard,
    support::{checkpoint, row, run},
};

/// Which bits: repeatable, and printed.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = std::env::var("MALLARD_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_125);
        println!("seed {seed}; another with MALLARD_TEST_SEED");
        Self(seed)
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// How many flips of each file; more in a soak.
fn flips() -> u64 {
    std::env::var("MALLARD_SOAK_FLIPS").ok().and_then(|flips| flips.parse().ok()).unwrap_or(30)
}

/// Each table's rows and hash, or that it cannot be read; and the exit code.
fn read(db: &Path) -> (Option<i32>, Vec<(String, Option<String>)>, String) {
    let mut command = mallard();
    command.args(["doctor", "--verify", "--json", "--db"]).arg(db);
    let output = command.output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let tables = report["tables"].as_array().cloned().unwrap_or_default();
    let sums = tables.iter().map(|table| {
        let sum = table["rows"].as_u64().map(|rows| format!("{rows} {}", table["hash"].as_str().unwrap()));
        (table["table"].as_str().unwrap().to_string(), sum)
    });
    (output.status.code(), sums.collect(), stderr(&output))
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_of_the_database_are_refused_or_harmless() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("whole.duckdb");
    let first = server(&db, json!({}));
    let client = first.client(None).await;
    run(&client, "CREATE TABLE numbers AS SELECT range AS i, hash(range) AS h, range / 7 AS d FROM range(100000)")
        .await;
    run(&client, "CREATE TABLE texts AS SELECT 'text ' || hash(range) AS t, [range, NULL] AS l FROM range(50000)")
        .await;
    run(&client, "CREATE TABLE small (k INTEGER PRIMARY KEY, v VARCHAR)").await;
    run(&client, "INSERT INTO small SELECT range, 'v' || range FROM range(500)").await;
    first.stop();
    let (code, expected, _) = read(&db);
    assert_eq!((code, expected.len()), (Some(0), 3));
    let whole = std::fs::read(&db).unwrap();
    let mut dice = Dice::new();
    let (mut refused, mut unreadable, mut harmless) = (0, 0, 0);
    for flip in 0..flips() {
        let mut bytes = whole.clone();
        // A third of them in the headers and the first blocks, where few bytes mean much.
        let reach = if flip % 3 == 0 { 16 * 1024 } else { bytes.len() as u64 };
        let at = (dice.next() % reach) as usize;
        bytes[at] ^= 1 << (dice.next() % 8);
        let copy = directory.path().join("flipped.duckdb");
        std::fs::write(&copy, &bytes).unwrap();
        let (code, found, says) = read(&copy);
        assert!(std::fs::read(&copy).unwrap() == bytes, "byte {at}: the file was changed");
        match code {
            Some(0) => {
                assert_eq!(found, expected, "byte {at}: silently wrong");
                harmless += 1;
            }
            Some(1) if !found.is_empty() => {
                let right = found.iter().zip(&expected).all(|(found, expected)| found.1.is_none() || found == expected);
                assert!(found.len() == expected.len() && right, "byte {at}: {found:?}");
                unreadable += 1;
            }
            Some(65) => {
                assert!(says.contains("flipped.duckdb"), "byte {at}: {says}");
                refused += 1;
            }
            // Refused for what the flip made of it: another version, another size.
            Some(1) => refused += 1,
            code => panic!("byte {at}: exit code {code:?}: {says}"),
        }
    }
    println!(
        "measured: flipped bits of the database: {refused} refused, {unreadable} with an unreadable table, {harmless} harmless"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_of_the_log_are_refused_or_cost_the_last_commit() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("whole.duckdb");
    let first = server(&db, json!({}));
    let client = first.client(None).await;
    run(&client, "CREATE TABLE t (i BIGINT, s VARCHAR)").await;
    checkpoint(&client).await;
    // Every state that there was.
    let sum = mallard::engine::Fingerprint::sql("t");
    let mut history = vec![row(&client, &sum).await.join(" ")];
    for i in 0..40 {
        run(&client, &format!("INSERT INTO t SELECT range + {i}, 'text ' || range FROM range(2)")).await;
        history.push(row(&client, &sum).await.join(" "));
    }
    first.kill();
    let (database, log) =
        (std::fs::read(&db).unwrap(), std::fs::read(directory.path().join("whole.duckdb.wal")).unwrap());
    let copy = directory.path().join("flipped.duckdb");
    let wal = directory.path().join("flipped.duckdb.wal");
    std::fs::write(&copy, &database).unwrap();
    std::fs::write(&wal, &log).unwrap();
    assert_eq!(read(&copy).1[0].1.as_ref(), history.last(), "the log has all of it");
    let mut dice = Dice::new();
    let (mut refused, mut torn, mut harmless) = (0, 0, 0);
    // Each byte of the head and of the first entries, and then anywhere.
    let anywhere: Vec<usize> = (0..flips()).map(|_| (dice.next() % log.len() as u64) as usize).collect();
    for at in (0..80).chain(anywhere) {
        let mut bytes = log.clone();
        bytes[at] ^= 1 << (dice.next() % 8);
        std::fs::write(&wal, &bytes).unwrap();
        let (code, found, says) = read(&copy);
        assert!(std::fs::read(&wal).unwrap() == bytes, "byte {at}: the log was changed");
        assert!(std::fs::read(&copy).unwrap() == database, "byte {at}: the database was changed");
        match code {
            Some(0) => {
                let state = found[0].1.as_ref().unwrap();
                let place = history.iter().position(|once| once == state);
                match place.unwrap_or_else(|| panic!("byte {at}: a state that never was: {state}")) {
                    last if last + 1 == history.len() => harmless += 1,
                    place => {
                        assert_eq!(place + 2, history.len(), "byte {at}: more than the last commit is lost");
                        torn += 1;
                    }
                }
            }
            Some(65) => {
                assert!(says.contains("flipped.duckdb.wal"), "byte {at}: {says}");
                refused += 1;
            }
            code => panic!("byte {at}: exit code {code:?}: {says}"),
        }
    }
    println!("measured: flipped bits of the log: {refused} refused, {torn} like a torn tail, {harmless} harmless");
}
