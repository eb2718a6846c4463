//! DoExchange: exchangers stream, and clients register their own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arrow_array::{Array, cast::AsArray};
use futures::StreamExt;
use mallard::{client::Client, config::Size, stream::RecordBatchStream, transfer::first_row};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{TestServer, collect, people, row, rows, run, test_config, until};

pub(crate) async fn act(client: &Client, name: &str, body: Value) -> Result<Vec<String>, mallard::error::Error> {
    let mut results = client.action(name, &body).await?.boxed();
    let mut texts = Vec::new();
    while let Some(result) = results.next().await {
        texts.push(String::from_utf8(result?.to_vec()).unwrap());
    }
    Ok(texts)
}

#[tokio::test(flavor = "multi_thread")]
async fn built_in_exchangers_answer_every_row() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let echoed = collect(client.exchange("echo", people(30, 10_000)).await.unwrap()).await.unwrap();
    assert_eq!(echoed, collect(people(30, 10_000)).await.unwrap());

    for name in ["processed", "my_streaming_exchanger"] {
        let answer = collect(client.exchange(name, people(30, 10_000)).await.unwrap()).await.unwrap();
        assert_eq!(rows(&answer), 300_000);
        for batch in &answer {
            let processed = batch.column_by_name("processed").unwrap().as_boolean();
            assert_eq!((processed.true_count(), processed.null_count()), (batch.num_rows(), 0));
            assert_eq!(batch.num_columns(), 3);
        }
    }

    let counted = first_row(client.exchange("count", people(3, 5)).await.unwrap()).await.unwrap();
    assert_eq!(counted[..2], ["15", "3"]);
    let none = first_row(client.exchange("count", people(0, 0)).await.unwrap()).await.unwrap();
    assert_eq!(none, ["0", "0", "0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_starts_before_the_input_ends() {
    let server = TestServer::start().await;
    let client = server.client().await;
    act(&client, "add_exchange", json!({"name": "plus", "sql": "SELECT id + 1 AS next FROM input"})).await.unwrap();
    for name in ["echo", "processed", "plus"] {
        // One batch, then silence: what can be answered is answered.
        let good = people(1, 10_000);
        let schema = good.schema();
        let endless = RecordBatchStream::new(schema, good.chain(futures::stream::pending()));
        assert!(first_answer(&client, name, endless).await > 0, "{name}");
    }
}

/// Rows of the first batch that comes back.
async fn first_answer(client: &Client, name: &str, input: RecordBatchStream) -> usize {
    let mut answer = client.exchange(name, input).await.unwrap();
    let first = tokio::time::timeout(Duration::from_secs(30), answer.next()).await;
    first.expect("an answer while the input is open").unwrap().unwrap().num_rows()
}

#[tokio::test(flavor = "multi_thread")]
async fn input_is_held_back_while_nobody_reads() {
    let mut config = test_config();
    // Otherwise the answer would wait there, and the input could go on.
    config.exchange.buffer_disk = Size(0);
    let server = TestServer::with(config).await;
    let client = server.client().await;
    for name in ["echo", "processed"] {
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = sent.clone();
        // 2,000 batches of about 250 KiB: far more than windows and channels hold.
        let input = people(2_000, 10_000).inspect(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let mut answer = client.exchange(name, input).await.unwrap();
        answer.next().await.unwrap().unwrap();
        until("sending has stopped", || async {
            let before = sent.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(300)).await;
            sent.load(Ordering::Relaxed) == before
        })
        .await;
        let held = sent.load(Ordering::Relaxed);
        assert!(held < 1_000, "{name} took {held} of 2000 batches that nobody reads");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_exchanger_is_registered_used_listed_and_dropped() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let body = json!({"name": "initials", "sql": "SELECT *, true AS processed, left(name, 1) AS i FROM input WHERE id >= 5;", "description": "first letters"});
    act(&client, "add_exchange", body.clone()).await.unwrap();
    let listed = act(&client, "list_exchanges", Value::Null).await.unwrap();
    assert!(
        listed
            .iter()
            .any(|entry| entry.contains("initials") && entry.contains("first letters") && entry.contains("sql"))
    );
    let answer = collect(client.exchange("initials", people(1000, 1000)).await.unwrap()).await.unwrap();
    assert_eq!(rows(&answer), 999_995);
    let ids: Vec<i64> = answer
        .iter()
        .flat_map(|batch| batch.column(0).as_primitive::<arrow_array::types::Int64Type>().values().to_vec())
        .collect();
    assert!(ids.is_sorted(), "a row-wise SELECT keeps the order");
    assert!(answer.iter().all(|batch| batch.column(2).as_boolean().true_count() == batch.num_rows()));

    assert_eq!(act(&client, "add_exchange", body).await.unwrap_err().code(), Code::AlreadyExists);
    act(&client, "drop_exchange", json!({"name": "initials"})).await.unwrap();
    let gone = client.exchange("initials", people(1, 1)).await.err().expect("dropped");
    assert_eq!(gone.code(), Code::NotFound);
    assert_eq!(act(&client, "drop_exchange", json!({"name": "initials"})).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(act(&client, "drop_exchange", json!({"name": "echo"})).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_exchanger_may_aggregate() {
    let server = TestServer::start().await;
    let client = server.client().await;
    act(&client, "add_exchange", json!({"name": "total", "sql": "SELECT count(*), sum(id)::BIGINT FROM input"}))
        .await
        .unwrap();
    let answer = first_row(client.exchange("total", people(100, 1000)).await.unwrap()).await.unwrap();
    assert_eq!(answer, ["100000", "4999950000"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_exchanger_sees_its_input_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret.csv");
    std::fs::write(&file, "a\n1\n").unwrap();
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE secrets AS SELECT 42 AS answer").await;
    let refused_at_once = ["INSERT INTO input VALUES (1)", "SELECT 1; SELECT 2", "DROP TABLE input", "SELEC 1", ""];
    for sql in refused_at_once {
        let refused = act(&client, "add_exchange", json!({"name": "bad", "sql": sql})).await.expect_err(sql);
        assert!(matches!(refused.code(), Code::InvalidArgument | Code::Unimplemented), "{sql}: {refused}");
    }
    let reaches_out = json!({"name": "bad", "sql": format!("SELECT * FROM read_csv('{}')", file.display())});
    let refused = act(&client, "add_exchange", reaches_out).await.expect_err("files");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let refused =
        act(&client, "add_exchange", json!({"name": "bad", "sql": "FROM secrets"})).await.expect_err("tables");
    assert!(refused.code() == Code::NotFound && refused.to_string().contains("exchange.tables"), "{refused}");
    let refused_in_use = ["SELECT nothing FROM input".to_string(), "SELECT a.id FROM input a, input b".to_string()];
    for (index, sql) in refused_in_use.iter().enumerate() {
        let name = format!("bad{index}");
        act(&client, "add_exchange", json!({"name": name, "sql": sql})).await.unwrap();
        let refused = match client.exchange(&name, people(2, 10)).await {
            Ok(answer) => collect(answer).await.map(|_| ()),
            Err(error) => Err(error),
        };
        let refused = refused.expect_err(sql);
        assert_ne!(refused.code(), Code::Internal, "{sql}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn running_sql_exchangers_are_bounded() {
    let mut config = test_config();
    config.exchange.max_running = 1;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    act(&client, "add_exchange", json!({"name": "same", "sql": "FROM input"})).await.unwrap();
    let good = people(1, 1);
    let endless = RecordBatchStream::new(good.schema(), good.chain(futures::stream::pending()));
    let running = client.exchange("same", endless).await.unwrap();
    let refused = client.exchange("same", people(1, 1)).await.err().expect("one runs");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.to_string().contains("exchange.max_running"), "{refused}");
    drop(running);
    until("the place is free", || async { client.exchange("same", people(1, 1)).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registered_exchangers_are_bounded() {
    let mut config = test_config();
    config.exchange.max_registered = 1;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    act(&client, "add_exchange", json!({"name": "one", "sql": "FROM input"})).await.unwrap();
    let refused = act(&client, "add_exchange", json!({"name": "two", "sql": "FROM input"})).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.to_string().contains("exchange.max_registered"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_in_the_descriptor_answers_its_rows() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t AS SELECT range AS i FROM range(10)").await;
    let answer = collect(client.exchange("SELECT sum(i) FROM t", people(1, 1)).await.unwrap()).await.unwrap();
    assert_eq!(rows(&answer), 1);
    assert_eq!(row(&client, "SELECT count(*) FROM t").await, ["10"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn clash_with_an_existing_column_is_a_clear_error() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let once = client.exchange("processed", people(1, 1)).await.unwrap();
    let refused = client.exchange("processed", once).await.err().expect("it is there already");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.to_string().contains("\"processed\""), "{refused}");
}
