//! A close ends only what is its own: whatever a client leaves unread in a transaction, the transaction goes on.

use std::{sync::Arc, time::Duration};

use arrow_array::{Int64Array, RecordBatch};
use arrow_flight::{FlightInfo, sql::EndTransaction};
use futures::TryStreamExt;
use tonic::Code;

use super::{Sql, refused, table, table_in, update};
use crate::support::TestServer;

/// How many orders of closing and going on are tried; the long form has 10,000.
fn rounds() -> usize {
    std::env::var("MALLARD_TEST_INTERLEAVINGS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(160)
}

/// Numbers that are as good as any, and the same in each run.
struct Choices(u64);

impl Choices {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn of<'a>(&mut self, among: &[&'a str]) -> &'a str {
        among[self.below(among.len())]
    }
}

/// Statements that only read, of every length, kind and way of running.
const READS: [&str; 9] = [
    "SELECT 1",
    "SELECT plus_one(41)",
    "SELECT i FROM big WHERE i % 1000 = 7",
    "SELECT i, s FROM big",
    "SELECT i, s FROM big ORDER BY i DESC",
    "SELECT a.i FROM big AS a JOIN big AS b USING (i)",
    "SELECT sum(a.i * b.i) FROM big AS a, (FROM big LIMIT 40) AS b",
    "EXPLAIN SELECT * FROM big",
    "DESCRIBE big",
];

/// The same with a parameter.
const BOUND: [&str; 4] = [
    "SELECT ?::BIGINT + 1",
    "SELECT i, s FROM big WHERE i >= ?",
    "SELECT plus_one(i) FROM big WHERE i > ? LIMIT 10",
    "SELECT count(*), max(s) FROM big WHERE i > ?",
];

/// What was read of the rows, and left.
async fn some_of(
    client: &mut Sql,
    info: &FlightInfo,
    choices: &mut Choices,
) -> Option<arrow_flight::decode::FlightRecordBatchStream> {
    let most = [0, 1, 1, 2, usize::MAX][choices.below(5)];
    let given_up = choices.below(8) == 0;
    let starting = client.do_get(info.endpoint[0].ticket.clone().expect("a ticket"));
    if given_up {
        // Before it has answered.
        let _ = tokio::time::timeout(Duration::ZERO, starting).await;
        return None;
    }
    let mut rows = starting.await.expect("the rows begin");
    let mut read = 0;
    while read < most && rows.try_next().await.expect("the rows go on").is_some() {
        read += 1;
    }
    Some(rows)
}

/// One statement that is left somewhere in its middle, or read to its end.
async fn leave(client: &mut Sql, transaction: &bytes::Bytes, choices: &mut Choices) {
    let transaction = Some(transaction.clone());
    if choices.below(2) == 0 {
        let info = client.execute(choices.of(&READS).into(), transaction).await.expect("it is planned");
        some_of(client, &info, choices).await;
        return;
    }
    let mut prepared = client.prepare(choices.of(&BOUND).into(), transaction).await.expect("it is prepared");
    let value = RecordBatch::try_from_iter([("1", Arc::new(Int64Array::from(vec![5])) as _)]);
    prepared.set_parameters(value.expect("one value")).expect("it is bound");
    let info = prepared.execute().await.expect("it is planned");
    let mut rows = some_of(client, &info, choices).await;
    if choices.below(2) == 0 {
        rows = None;
    }
    prepared.close().await.expect("it is closed");
    drop(rows);
}

async fn client_with(server: &TestServer, seed: u64, rounds: usize) -> usize {
    let (mut client, mut choices, mut inserted) = (server.sql().await, Choices(seed), 0);
    for round in 0..rounds {
        let transaction = client.begin_transaction().await.expect("it begins");
        for step in 0..1 + choices.below(3) {
            let insert = format!("INSERT INTO t VALUES ({seed}, {round}, {step})");
            assert_eq!(client.execute_update(insert, Some(transaction.clone())).await.expect("it is inserted"), 1);
            inserted += 1;
            leave(&mut client, &transaction, &mut choices).await;
            if choices.below(3) == 0 {
                let macros = "CREATE OR REPLACE TEMP MACRO own(a) AS a + 2";
                client.execute_update(macros.into(), Some(transaction.clone())).await.expect("a macro");
                assert_eq!(table_in(&mut client, "SELECT own(40)", Some(&transaction)).await, ["42"]);
            }
        }
        client.end_transaction(transaction, EndTransaction::Commit).await.expect("it is committed");
    }
    inserted
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_transaction_is_lost_when_reads_in_it_are_left_anywhere() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    update(&mut client, "CREATE TABLE t (client BIGINT, round BIGINT, step BIGINT)").await;
    update(&mut client, "CREATE TABLE big AS SELECT range AS i, repeat('x', 60) AS s FROM range(150000)").await;
    update(&mut client, "CREATE MACRO plus_one(a) AS a + 1").await;
    let clients = 4;
    let each = (0..clients).map(|seed| client_with(&server, seed, rounds() / clients as usize));
    let inserted: usize = futures::future::join_all(each).await.into_iter().sum();
    assert_eq!(table(&mut client, "SELECT count(DISTINCT (client, round, step)) FROM t").await, [inserted.to_string()]);
    assert_eq!(server.metric("mallard_transactions_open").await, 0.0);
}

/// What changes something and is cancelled while it runs is not committed, and the client is told.
#[tokio::test(flavor = "multi_thread")]
async fn cancelled_change_aborts_its_transaction_and_the_next_statement_says_so() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    update(&mut client, "CREATE TABLE t (i BIGINT)").await;
    let transaction = client.begin_transaction().await.unwrap();
    client.execute_update("INSERT INTO t VALUES (1)".into(), Some(transaction.clone())).await.unwrap();
    let mut other = server.sql().await;
    let (long, within) =
        ("INSERT INTO t SELECT a.range FROM range(10000000) a, range(10000000) b", transaction.clone());
    let running = tokio::spawn(async move { other.execute_update(long.into(), Some(within)).await.map(drop) });
    crate::support::until("it runs", || async { server.metric("mallard_queries_running").await > 0.0 }).await;
    running.abort();
    let (code, says) =
        refused(client.execute_update("INSERT INTO t VALUES (2)".into(), Some(transaction.clone())).await);
    assert!(code == Code::FailedPrecondition && says.contains("ROLLBACK"), "{code:?} {says}");
    assert!(says.contains("aborted"), "{says}");
    let (code, says) = refused(client.end_transaction(transaction, EndTransaction::Commit).await);
    assert!(code == Code::FailedPrecondition && says.contains("rolled back"), "{code:?} {says}");
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["0"]);
}
