//! DoPut: create, append, fit by name, all or nothing.

use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use futures::StreamExt;
use mallard::{error::Error, stream::RecordBatchStream};
use tonic::Code;

use crate::support::{TestServer, count, people, row, run, table, test_config, until};

fn one_column(name: &str, values: ArrayRef) -> RecordBatchStream {
    let schema = Arc::new(Schema::new(vec![Field::new(name, values.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema.clone(), vec![values]).unwrap();
    RecordBatchStream::from_batches(schema, vec![batch])
}

#[tokio::test(flavor = "multi_thread")]
async fn table_is_created_and_then_appended_to() {
    let server = TestServer::start().await;
    let client = server.client().await;
    // More than one row group, so that whole row groups move as well.
    let stored = client.put(&table("people"), people(30, 10_000)).await.unwrap();
    assert_eq!(stored.rows, 300_000);
    assert_eq!(count(&client, "people").await, 300_000);
    client.put(&table("people"), people(3, 7)).await.unwrap();
    assert_eq!(
        row(&client, "SELECT count(*), sum(id)::BIGINT, max(name) FROM people").await,
        ["300021", "44999850210", "name 9999"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_keep_their_order() {
    let server = TestServer::start().await;
    let client = server.client().await;
    client.put(&table("people"), people(50, 10_000)).await.unwrap();
    let out_of_order =
        "SELECT count(*) FROM (SELECT id, lag(id) OVER (ORDER BY rowid) AS before FROM people) WHERE id < before";
    assert_eq!(row(&client, out_of_order).await, ["0"]);
}

/// A stream that gives the batches behind the ones it has only when `more` says so.
fn held_back(
    first: Vec<RecordBatch>,
    rest: Vec<RecordBatch>,
    more: tokio::sync::oneshot::Receiver<()>,
) -> RecordBatchStream {
    let schema = first[0].schema();
    let rest = futures::stream::once(async move {
        more.await.unwrap();
        futures::stream::iter(rest.into_iter().map(Ok))
    });
    RecordBatchStream::new(schema, futures::stream::iter(first.into_iter().map(Ok)).chain(rest.flatten()))
}

fn numbers(range: std::ops::Range<i64>) -> RecordBatch {
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, true)]));
    RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from_iter_values(range))]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_senders_hold_no_worker_and_lose_nothing() {
    let mut config = test_config();
    config.database.threads = 2;
    config.ingest.workers = 2;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    // More senders than DuckDB has workers, in the middle of a row group.
    let (senders, waiting): (Vec<_>, Vec<_>) = (0..4)
        .map(|number| {
            let (more, told) = tokio::sync::oneshot::channel();
            let stream = held_back(vec![numbers(0..200_000)], vec![numbers(200_000..300_000)], told);
            let client = client.clone();
            let put = async move { client.put(&table(&format!("slow{number}")), stream).await };
            (more, tokio::spawn(put))
        })
        .unzip();
    until("all four wait outside of DuckDB", || async { server.metric("mallard_ingests_waiting").await == 4.0 }).await;
    client.put(&table("quick"), people(30, 10_000)).await.unwrap();
    assert_eq!(count(&client, "quick").await, 300_000);
    for more in senders {
        more.send(()).unwrap();
    }
    for put in waiting {
        assert_eq!(put.await.unwrap().unwrap().rows, 300_000);
    }
    for number in 0..4 {
        let out_of_order = format!("SELECT count(*) FILTER (id <> rowid), count(*) FROM slow{number}");
        assert_eq!(row(&client, &out_of_order).await, ["0", "300000"]);
    }
}

/// Whatever a sender's pauses make of the statements, and whatever was in the table, all rows are found, in order.
#[tokio::test(flavor = "multi_thread")]
async fn pauses_lose_no_rows_whatever_their_place() {
    let mut config = test_config();
    config.database.threads = 2;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let waiting = || async { server.metric("mallard_ingests_waiting").await == 1.0 };
    let received = || server.metric("mallard_rows_total{direction=\"received\"}");
    let sizes = [0, 1, 5, 2048, 122_879, 122_880, 122_881, 300_000];
    let mut cases = Vec::new();
    for first in sizes {
        cases.extend(sizes.map(|second| vec![first, second]));
    }
    cases.extend([vec![5, 300_000, 5, 300_000], vec![300_000, 5, 5, 300_000], vec![1, 1, 1, 250_000]]);
    for (number, parts) in cases.into_iter().enumerate() {
        let name = format!("paused{number}");
        let (sender, mut batches) = tokio::sync::mpsc::channel(1);
        let schema = numbers(0..0).schema();
        let stream = futures::stream::poll_fn(move |cx| batches.poll_recv(cx));
        let put = tokio::spawn({
            let (client, name) = (client.clone(), name.clone());
            let stream = RecordBatchStream::new(schema, stream);
            async move { client.put(&table(&name), stream).await }
        });
        let (mut at, before) = (0, received().await);
        for part in &parts {
            until("the server waits for rows", waiting).await;
            sender.send(Ok(numbers(at..at + part))).await.unwrap();
            at += part;
            if *part > 0 {
                // It may be waiting again before anybody looks.
                until("the rows are there", || async { received().await >= before + at as f64 }).await;
            }
        }
        drop(sender);
        assert_eq!(put.await.unwrap().unwrap().rows, at as u64, "{parts:?}");
        // Appended to what is there.
        let more = RecordBatchStream::from_batches(numbers(0..0).schema(), vec![numbers(at..at + 200_000)]);
        client.put(&table(&name), more).await.unwrap();
        at += 200_000;
        let seen = row(&client, &format!("SELECT count(*) FILTER (id <> rowid), count(*) FROM {name}")).await;
        assert_eq!(seen, ["0".to_string(), at.to_string()], "{parts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_batches_keep_their_order() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let sizes = [1, 7, 100, 2047, 2048, 3, 0, 5000, 1, 1];
    let (mut at, mut batches) = (0, Vec::new());
    for size in sizes.iter().cycle().take(400) {
        batches.push(numbers(at..at + size));
        at += size;
    }
    let stream = RecordBatchStream::from_batches(batches[0].schema(), batches);
    assert_eq!(client.put(&table("small"), stream).await.unwrap().rows, at as u64);
    let seen = row(&client, "SELECT count(*) FILTER (id <> rowid), count(*) FROM small").await;
    assert_eq!(seen, ["0".to_string(), at.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unordered_ingest_stores_the_same_rows() {
    let mut config = test_config();
    config.ingest.preserve_order = false;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    client.put(&table("people"), people(50, 10_000)).await.unwrap();
    assert_eq!(
        row(&client, "SELECT count(*), sum(id)::BIGINT, count(DISTINCT id) FROM people").await,
        ["500000", "124999750000", "500000"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_stream_creates_the_table() {
    let server = TestServer::start().await;
    let client = server.client().await;
    assert_eq!(client.put(&table("nobody"), people(0, 0)).await.unwrap().rows, 0);
    assert_eq!(count(&client, "nobody").await, 0);
    client.put(&table("nobody"), people(20, 10_000)).await.unwrap();
    assert_eq!(count(&client, "nobody").await, 200_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_quoted_and_never_pasted() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE victim AS SELECT 1 AS one").await;
    for name in ["x; DROP TABLE victim; --", "quo\"ted", "select", "ünïcode 🦆"] {
        client.put(&table(name), people(1, 2)).await.unwrap();
        assert_eq!(count(&client, &format!("\"{}\"", name.replace('"', "\"\""))).await, 2);
    }
    assert_eq!(count(&client, "victim").await, 1);
    run(&client, "CREATE SCHEMA s").await;
    client.put(&["s".into(), "t".into()], people(1, 2)).await.unwrap();
    client.put(&["memory".into(), "s".into(), "t".into()], people(1, 2)).await.unwrap();
    assert_eq!(count(&client, "s.t").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_matched_by_name_and_cast_only_without_loss() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t (Name VARCHAR, extra INTEGER DEFAULT 7, id INTEGER)").await;
    client.put(&table("t"), people(1, 2)).await.unwrap();
    assert_eq!(row(&client, "SELECT id, name, extra FROM t ORDER BY id DESC").await, ["1", "name 1", "7"]);

    let integers = || Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef;
    let doubles = || Arc::new(Float64Array::from(vec![1.5, 2.5])) as ArrayRef;
    let texts = || Arc::new(StringArray::from(vec!["1", "2"])) as ArrayRef;
    let check = async |column: &str, values: ArrayRef, fits: bool| {
        run(&client, &format!("CREATE OR REPLACE TABLE c (x {column})")).await;
        let outcome = client.put(&table("c"), one_column("x", values)).await;
        match outcome {
            Ok(_) => assert!(fits, "{column} took it"),
            Err(error) => {
                assert!(!fits, "{column}: {error}");
                assert_eq!(error.code(), Code::InvalidArgument);
                assert!(error.to_string().contains("\"x\""), "names the column: {error}");
            }
        }
        assert_eq!(count(&client, "c").await, if fits { 2 } else { 0 });
    };
    check("BIGINT", integers(), true).await;
    check("TINYINT", integers(), true).await;
    check("HUGEINT", integers(), true).await;
    check("DECIMAL(10, 2)", integers(), true).await;
    check("DOUBLE", integers(), false).await;
    check("VARCHAR", integers(), false).await;
    check("FLOAT", doubles(), false).await;
    check("INTEGER", doubles(), false).await;
    check("INTEGER", texts(), false).await;
    check("DATE", texts(), false).await;
    check("ENUM('1', '2')", texts(), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn value_out_of_range_leaves_nothing() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t (x TINYINT)").await;
    let values = Arc::new(Int64Array::from_iter_values(0..1000));
    let refused = client.put(&table("t"), one_column("x", values)).await.expect_err("1000 is no TINYINT");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!(count(&client, "t").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn constraint_violation_leaves_nothing() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t (id BIGINT PRIMARY KEY, name VARCHAR)").await;
    run(&client, "INSERT INTO t VALUES (199999, 'here first')").await;
    let refused = client.put(&table("t"), people(20, 10_000)).await.expect_err("the key is taken");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(count(&client, "t").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_fails_half_way_leaves_nothing() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let good = people(20, 10_000);
    let schema = good.schema();
    let failing = good.chain(futures::stream::iter([Err(Error::Invalid("the disk caught fire".into()))]));
    let failed = client.put(&table("t"), RecordBatchStream::new(schema, failing)).await.expect_err("the input failed");
    assert_eq!(failed.to_string(), "the disk caught fire");
    until("the ingest has ended", || async { server.metric("mallard_queries_running").await == 0.0 }).await;
    assert_eq!(client.query("FROM t").await.err().expect("rolled back").code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_that_does_not_fit_is_refused_before_any_row_is_sent() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t (other DATE)").await;
    let silent = RecordBatchStream::new(people(0, 0).schema(), futures::stream::pending());
    let refused = tokio::time::timeout(std::time::Duration::from_secs(30), client.put(&table("t"), silent)).await;
    let refused = refused.expect("an answer although the input is open").expect_err("it does not fit");
    assert!(refused.to_string().contains("\"id\""), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_leaves_half_way_leaves_nothing() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t (id BIGINT, name VARCHAR)").await;
    let good = people(20, 10_000);
    let schema = good.schema();
    let endless = RecordBatchStream::new(schema, good.chain(futures::stream::pending()));
    let putting = tokio::spawn({
        let client = client.clone();
        async move { client.put(&table("t"), endless).await }
    });
    until("all rows have arrived", || async {
        server.metric("mallard_rows_total{direction=\"received\"}").await == 200_000.0
    })
    .await;
    assert_eq!(count(&client, "t").await, 0, "nothing is seen before the commit");
    putting.abort();
    until("the ingest has ended", || async { server.metric("mallard_queries_running").await == 0.0 }).await;
    assert_eq!(count(&client, "t").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn dictionaries_and_enums_come_back_as_enums() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE birds AS SELECT (CASE i % 3 WHEN 0 THEN 'duck' WHEN 1 THEN 'teal' END)::ENUM('duck', 'teal', 'eider') AS kind, [kind] AS kinds FROM range(100000) r(i)").await;
    let birds = client.query("FROM birds").await.unwrap();
    assert!(matches!(birds.schema().field(0).data_type(), DataType::Dictionary(..)));
    client.put(&table("again"), birds).await.unwrap();
    let types = row(&client, "SELECT string_agg(column_type, '; ') FROM (DESCRIBE again)").await;
    assert_eq!(types, ["ENUM('duck', 'teal', 'eider'); ENUM('duck', 'teal', 'eider')[]"]);
    assert_eq!(row(&client, "SELECT count(*) FROM (FROM birds EXCEPT ALL FROM again)").await, ["0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn declared_type_that_is_no_type_is_refused() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE victim AS SELECT 1 AS one").await;
    let metadata: std::collections::HashMap<_, _> =
        [("mallard.duckdb_type".to_string(), "INTEGER); DROP TABLE victim; --".to_string())].into();
    let field = Field::new("x", DataType::Int64, true).with_metadata(metadata);
    let stream = RecordBatchStream::from_batches(Arc::new(Schema::new(vec![field])), vec![]);
    let refused = client.put(&table("t"), stream).await.expect_err("that is no type");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.to_string().contains("\"x\""), "{refused}");
    assert_eq!(count(&client, "victim").await, 1);
}

/// Whoever comes first creates the table; the others wait for it, and create it themselves where it comes to nothing.
#[tokio::test(flavor = "multi_thread")]
async fn several_puts_at_once_into_a_table_that_is_not_there_all_land() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for round in 0..4 {
        let name = format!("fresh{round}");
        // However the name is written.
        let paths = [
            vec![name.clone()],
            vec!["main".into(), name.to_uppercase()],
            vec!["memory".into(), "main".into(), name.clone()],
        ];
        let puts = (0..8).map(|number| {
            let (client, path) = (client.clone(), paths[number % paths.len()].clone());
            async move { client.put(&path, people(2, 1000)).await }
        });
        for put in futures::future::join_all(puts).await {
            assert_eq!(put.expect("it lands").rows, 2000);
        }
        assert_eq!(count(&client, &name).await, 16_000);
    }
    // The first one fails after others have come: nothing of it is there, and they land.
    let (more, told) = tokio::sync::oneshot::channel();
    let first = held_back(vec![numbers(0..10)], vec![numbers(10..20)], told);
    let failing = {
        let client = client.clone();
        tokio::spawn(async move { client.put(&table("failed"), first).await })
    };
    until("the first has created it", || async { server.metric("mallard_ingests_waiting").await == 1.0 }).await;
    let others = (0..3).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            client.put(&table("failed"), one_column("id", Arc::new(Int64Array::from(vec![7])))).await
        })
    });
    let others: Vec<_> = others.collect();
    until("the others are there", || async { server.metric("mallard_queries_running").await == 4.0 }).await;
    failing.abort();
    drop(more);
    for other in others {
        assert_eq!(other.await.unwrap().expect("it lands").rows, 1);
    }
    assert_eq!(row(&client, "SELECT count(*), min(id), max(id) FROM failed").await, ["3", "7", "7"]);
}

/// A statement may create the table at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn put_lands_beside_a_statement_that_creates_the_table() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut sql = server.sql().await;
    let transaction = sql.begin_transaction().await.unwrap();
    sql.execute_update("CREATE TABLE t (id BIGINT, name VARCHAR)".into(), Some(transaction.clone())).await.unwrap();
    let put = {
        let client = client.clone();
        tokio::spawn(async move { client.put(&table("t"), people(1, 10)).await })
    };
    until("it waits", || async { server.metric("mallard_queries_running").await == 1.0 }).await;
    sql.end_transaction(transaction, arrow_flight::sql::EndTransaction::Commit).await.unwrap();
    assert_eq!(put.await.unwrap().expect("it lands").rows, 10);
    assert_eq!(count(&client, "t").await, 10);
}
