//! Rows of any width: batches are cut by bytes, and what a stream holds does not grow with the width of its rows.

use std::sync::Arc;

use arrow_array::{Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use futures::StreamExt;
use mallard::stream::{RecordBatchStream, batch_bytes};
use serde_json::json;

use crate::{
    process::Process,
    support::{row, run},
};

/// What one stream may add: some of DuckDB's vectors of 2,048 such rows, and a few batches.
const MEMORY: u64 = 700 << 20;

/// Bytes in a row's text.
const WIDE: usize = 36_000;

/// Rows and bytes of the text of a stream, and its largest batch.
async fn sums(mut stream: RecordBatchStream) -> (usize, usize, u64) {
    let (mut rows, mut bytes, mut largest) = (0, 0, 0);
    while let Some(batch) = stream.next().await {
        let batch = batch.unwrap();
        let texts = batch.column(1).as_any().downcast_ref::<StringArray>().expect("a text");
        rows += batch.num_rows();
        bytes += texts.value_data().len().min(texts.iter().flatten().map(str::len).sum());
        largest = largest.max(batch_bytes(&batch));
    }
    (rows, bytes, largest)
}

#[tokio::test(flavor = "multi_thread")]
async fn wide_rows_leave_in_batches_of_some_megabytes_also_where_narrow_ones_came_first() {
    let server = Process::serve(&[]);
    let client = server.client(None).await;
    row(&client, "SELECT 1").await;
    let base = server.memory();
    // More than a string column of Arrow may have in one batch.
    let wide = format!("SELECT range AS i, repeat('x', {WIDE}) AS s FROM range(61440)");
    let (rows, bytes, largest) = sums(client.query(&wide).await.unwrap()).await;
    assert_eq!((rows, bytes), (61_440, 61_440 * WIDE));
    assert!(largest <= 16 << 20, "{largest}");
    let jump = format!(
        "SELECT range AS i, repeat('x', CASE WHEN range < 500000 THEN 5 ELSE {WIDE} END) AS s FROM range(504096)"
    );
    let (rows, bytes, _) = sums(client.query(&jump).await.unwrap()).await;
    assert_eq!((rows, bytes), (504_096, 500_000 * 5 + 4096 * WIDE));
    // Lists, whose items alone are of one size.
    let lists = client.query("SELECT range AS i, range(5000) AS l FROM range(10000)").await.unwrap();
    let rows = lists.fold(0, async |rows, batch| rows + batch.unwrap().num_rows()).await;
    assert_eq!(rows, 10_000);
    // A whole table, of which DuckDB knows the longest text.
    run(&client, "CREATE TABLE t AS SELECT range AS i, repeat('x', (range % 40)::INTEGER) AS s FROM range(200000)")
        .await;
    let (rows, bytes, _) = sums(client.query("FROM t").await.unwrap()).await;
    assert_eq!((rows, bytes), (200_000, 200_000 / 40 * 780));
    run(&client, &format!("INSERT INTO t SELECT range, repeat('y', {WIDE}) FROM range(3000)")).await;
    let (rows, bytes, largest) = sums(client.query("FROM t").await.unwrap()).await;
    assert_eq!((rows, bytes), (203_000, 200_000 / 40 * 780 + 3000 * WIDE));
    assert!(largest <= 16 << 20, "{largest}");
    let more = server.memory().saturating_sub(base);
    assert!(more < MEMORY, "{} MiB more", more >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_that_stands_still_before_wide_rows_holds_a_few_vectors() {
    let server = Process::serve(&[]);
    let client = server.client(None).await;
    row(&client, "SELECT 1").await;
    let base = server.memory();
    let endless = format!("SELECT range AS i, repeat('x', {WIDE}) AS s FROM range(100000000)");
    let mut standing = client.query(&endless).await.unwrap();
    standing.next().await.unwrap().unwrap();
    // Until it grows no more.
    let last = std::cell::Cell::new(0);
    crate::support::until("it holds what it will hold", || {
        let now = server.memory();
        let before = last.replace(now);
        async move {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            now == before
        }
    })
    .await;
    let more = server.memory().saturating_sub(base);
    assert!(more < MEMORY, "{} MiB more", more >> 20);
    assert_eq!(row(&server.client(None).await, "SELECT 42").await, ["42"]);
    drop(standing);
}

#[tokio::test(flavor = "multi_thread")]
async fn wide_rows_pass_exchangers_and_transfers() {
    let (server, other) = (Process::serve(&[]), Process::serve(&[]));
    let client = server.client(None).await;
    let base = server.memory();
    let schema =
        Arc::new(Schema::new(vec![Field::new("i", DataType::Int64, true), Field::new("s", DataType::Utf8, true)]));
    let made = schema.clone();
    let batches = futures::stream::iter(0..100).map(move |at: i64| {
        let ids = Int64Array::from_iter_values(at * 200..(at + 1) * 200);
        let texts = StringArray::from_iter_values((0..200).map(|_| "x".repeat(WIDE)));
        Ok(RecordBatch::try_new(made.clone(), vec![Arc::new(ids), Arc::new(texts)]).unwrap())
    });
    let input = RecordBatchStream::new(schema, batches);
    // One column goes around DuckDB, and one is computed.
    let sql = "SELECT i + 1 AS j, s, s || 'y' AS t FROM input";
    let added = client.action("add_exchange", &json!({"name": "wide", "sql": sql})).await.unwrap();
    added.for_each(async |answer| drop(answer.unwrap())).await;
    let (rows, bytes, _) = sums(client.exchange("wide", input).await.unwrap()).await;
    assert_eq!((rows, bytes), (20_000, 20_000 * WIDE));
    let more = server.memory().saturating_sub(base);
    assert!(more < MEMORY, "exchange: {} MiB more", more >> 20);
    let query = format!("SELECT range AS i, repeat('x', {WIDE}) AS s FROM range(8000)");
    let pull = json!({"from": other.location.to_string(), "query": query, "to": "pulled"});
    let mut steps = client.action("transfer", &pull).await.unwrap().boxed();
    while let Some(step) = steps.next().await {
        step.unwrap();
    }
    let sum = row(&client, "SELECT count(*), sum(length(s))::BIGINT FROM pulled").await;
    assert_eq!(sum, ["8000", &(8000 * WIDE).to_string()]);
    let more = server.memory().saturating_sub(base);
    assert!(more < 2 * MEMORY, "{} MiB more, the table among them", more >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn vector_of_more_than_two_gigabytes_says_what_to_do_and_leaves_in_smaller_batches() {
    let server = Process::serve(&[("MALLARD__LIMITS__PROCESS_MEMORY", "0")]);
    let client = server.client(None).await;
    let sql = "SELECT range AS i, repeat('x', 1100000) AS s FROM range(2048)";
    let refused = match client.query(sql).await {
        Ok(rows) => crate::support::collect(rows).await.map(drop),
        Err(error) => Err(error),
    };
    let refused = refused.expect_err("offsets of 32 bits do not reach that far");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    assert!(refused.to_string().contains("batch_rows"), "{refused}");
    drop((client, server));
    let server = Process::serve(&[("MALLARD__DATABASE__BATCH_ROWS", "64")]);
    let (rows, bytes, largest) = sums(server.client(None).await.query(sql).await.unwrap()).await;
    assert_eq!((rows, bytes), (2048, 2048 * 1_100_000));
    assert!(largest <= 80 << 20, "{largest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn narrow_texts_of_any_query_leave_in_long_batches() {
    let server = Process::serve(&[]);
    let client = server.client(None).await;
    let sql = "SELECT range AS i, 'text ' || range AS s FROM range(1000000) WHERE range % 5 > 0 ORDER BY i";
    let (mut rows, mut batches, mut before) = (0, 0, 0);
    let mut stream = client.query(sql).await.unwrap();
    while let Some(batch) = stream.next().await {
        let batch = batch.unwrap();
        let ids = batch.column(0).as_any().downcast_ref::<Int64Array>().expect("a number");
        let texts = batch.column(1).as_any().downcast_ref::<StringArray>().expect("a text");
        for (id, text) in ids.values().iter().zip(texts) {
            assert!(*id > before && text == Some(format!("text {id}").as_str()), "{id}: {text:?}");
            before = *id;
        }
        (rows, batches) = (rows + batch.num_rows(), batches + 1);
    }
    assert_eq!(rows, 800_000);
    // Vector by vector there are 390.
    assert!(batches < 200, "{batches}");
}
