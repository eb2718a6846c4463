//! Streams through exchangers are listed among what runs, whatever brings them, and are ended like statements.

use arrow_array::RecordBatch;
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture};
use mallard::{client::Client, error::Error, stream::RecordBatchStream};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{TestServer, collect, people, row, run, table, test_config, until, with_login, with_users};

async fn act(client: &Client, name: &str, body: Value) -> Result<Vec<Value>, Error> {
    let results: Vec<_> = client.action(name, &body).await?.try_collect().await?;
    Ok(results.iter().map(|result| serde_json::from_slice(result).unwrap_or_default()).collect())
}

/// The exchanges that run, as `queries` lists them.
async fn exchanges(client: &Client) -> Vec<Value> {
    let mut all = act(client, "queries", Value::Null).await.unwrap();
    all.retain(|one| one["class"] == "exchange");
    all
}

/// One batch, and then nothing, without an end.
fn open_end() -> RecordBatchStream {
    let one = people(1, 10);
    RecordBatchStream::new(one.schema(), one.chain(futures::stream::pending()))
}

async fn first_error(answer: RecordBatchStream) -> Error {
    collect(answer).await.expect_err("it was ended")
}

#[tokio::test(flavor = "multi_thread")]
async fn exchange_is_listed_and_ended_by_its_user_and_by_admins_alone() {
    let users = [("ann", "writer"), ("bob", "reader")];
    let mut config = with_users(with_login(test_config()), &users);
    config.admin.show_statements = true;
    let server = TestServer::with(config).await;
    let (root, ann, bob) =
        (server.client_of("alice").await, server.client_of("ann").await, server.client_of("bob").await);
    let sql = json!({"name": "same", "sql": "SELECT * FROM input WHERE id >= $least", "params": {"least": 0}});
    act(&ann, "add_exchange", sql).await.unwrap();
    for chain in
        ["echo", "same@1 {\"least\": 1} | mask {\"columns\": {\"name\": \"hash\"}, \"key\": \"canary-canary\"}"]
    {
        let mut answer = bob.exchange(chain, open_end()).await.unwrap();
        let first = answer.next().await.unwrap().unwrap();
        let listed = exchanges(&root).await;
        let [one] = listed.as_slice() else { panic!("{listed:?}") };
        assert_eq!((&one["user"], &one["queued"]), (&json!("bob"), &json!(false)), "{one}");
        assert_eq!(one["rows"], json!(first.num_rows()), "{one}");
        let text = one["text"].as_str().unwrap();
        assert!(["echo", "same@1 {?} | mask {?}"].contains(&text), "no values, and not {text}");
        assert!(server.admin("/").await.1.contains(text), "the status page lists it");
        assert_eq!(exchanges(&bob).await.len(), 1, "users see their own");
        assert!(exchanges(&ann).await.is_empty());
        let of_another = act(&ann, "kill", json!({"query": one["id"]})).await.expect_err("not hers");
        assert_eq!(of_another.code(), Code::NotFound, "{of_another}");
        let killer = if chain == "echo" { &root } else { &bob };
        assert_eq!(act(killer, "kill", json!({"query": one["id"]})).await.unwrap(), [json!({"ended": 1})]);
        assert!(exchanges(&root).await.is_empty());
        let ended = first_error(answer).await;
        assert_eq!(ended.code(), Code::Cancelled, "{ended}");
        let again = act(killer, "kill", json!({"query": one["id"]})).await.expect_err("it has ended");
        assert_eq!(again.code(), Code::NotFound, "{again}");
    }
    let answers = [bob.exchange("echo", open_end()).await.unwrap(), bob.exchange("same", open_end()).await.unwrap()];
    assert_eq!(act(&root, "kill", json!({"user": "bob"})).await.unwrap(), [json!({"ended": 2})]);
    for answer in answers {
        assert_eq!(first_error(answer).await.code(), Code::Cancelled);
    }
    until("nothing is used any more", || async {
        let listed = act(&root, "list_exchanges", Value::Null).await.unwrap();
        listed.iter().all(|one| one["running"] == 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exchange_whose_client_stands_still_is_ended_and_gives_back_what_it_holds() {
    let mut config = test_config();
    config.exchange.max_running = 1;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    act(&client, "add_exchange", json!({"name": "same", "sql": "SELECT id + 1 AS id FROM input"})).await.unwrap();
    // 2,000 batches of about 250 KiB, which nobody reads.
    let answer = client.exchange("same", people(2_000, 10_000)).await.unwrap();
    until("its windows are full", || async {
        let listed = exchanges(&client).await;
        listed.len() == 1 && listed[0]["rows"].as_u64().unwrap() > 0
    })
    .await;
    let id = exchanges(&client).await[0]["id"].clone();
    act(&client, "kill", json!({"query": id})).await.unwrap();
    assert!(exchanges(&client).await.is_empty());
    // The one place is free although its reader has not been told yet.
    until("another may run", || async { client.exchange("same", people(1, 1)).await.is_ok() }).await;
    let ended = first_error(answer).await;
    assert_eq!(ended.code(), Code::Cancelled, "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_gets_and_transfers_through_exchangers_are_ended_and_store_nothing() {
    let (source, server) = (TestServer::start().await, TestServer::start().await);
    let client = server.client().await;
    run(&source.client().await, "CREATE VIEW endless AS SELECT range AS id FROM range(100000000000)").await;
    run(&client, "CREATE TABLE kept AS SELECT 1 AS id").await;
    let put = || async {
        let through = client.clone().through(Some("echo")).unwrap();
        through.put(&table("put"), open_end()).await.map(drop)
    };
    let get = || async {
        let through = client.clone().through(Some("echo")).unwrap();
        let mut answer = through.query("SELECT range FROM range(100000000000)").await?;
        while answer.try_next().await?.is_some() {}
        Ok(())
    };
    let transfer = || async {
        let body = json!({"from": source.uri(), "table": "endless", "to": "transferred", "exchange": "echo"});
        act(&client, "transfer", body).await.map(drop)
    };
    let operations: [(&str, BoxFuture<'_, Result<(), Error>>); 3] =
        [("get", get().boxed()), ("transfer", transfer().boxed()), ("put", put().boxed())];
    for (what, mut operation) in operations {
        let runs = until("the exchange runs", || async { !exchanges(&client).await.is_empty() });
        tokio::select! {
            ended = &mut operation => panic!("the {what} has ended: {ended:?}"),
            () = runs => {}
        }
        let one = exchanges(&client).await.remove(0);
        assert_eq!(one["text"], "echo");
        assert_eq!(act(&client, "kill", json!({"query": one["id"]})).await.unwrap(), [json!({"ended": 1})], "{what}");
        assert_eq!(operation.await.expect_err(what).code(), Code::Cancelled, "{what}");
        until("nothing runs", || async { exchanges(&client).await.is_empty() }).await;
    }
    let tables = "SELECT string_agg(table_name, ' ') FROM duckdb_tables() WHERE NOT internal";
    assert_eq!(row(&client, tables).await, ["kept"]);
}

/// What `list_exchanges` says of the versions of a name: number, whether it is retired, how many streams use it.
async fn versions(client: &Client, name: &str) -> Vec<(u64, bool, u64)> {
    let listed = act(client, "list_exchanges", Value::Null).await.unwrap();
    let own = listed.iter().filter(|one| one["name"] == name);
    let read = |one: &Value| {
        let retired = one.get("retired").is_some_and(|retired| retired == true);
        (one["version"].as_u64().unwrap(), retired, one["running"].as_u64().unwrap())
    };
    own.map(read).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_and_dropped_versions_are_listed_while_streams_use_them() {
    let mut config = test_config();
    config.exchange.versions = 1;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let add = |sql: &str| json!({"name": "v", "sql": sql, "replace": true});
    let started = async |chain: &str| {
        let mut answer = client.exchange(chain, open_end()).await.unwrap();
        let first: RecordBatch = answer.next().await.unwrap().unwrap();
        (answer, first.schema().field(0).name().clone())
    };
    act(&client, "add_exchange", add("SELECT id AS one FROM input")).await.unwrap();
    let (first, one) = started("v").await;
    act(&client, "add_exchange", add("SELECT id AS two FROM input")).await.unwrap();
    let (second, two) = started("echo | v").await;
    assert_eq!((one.as_str(), two.as_str()), ("one", "two"));
    assert_eq!(versions(&client, "v").await, [(2, false, 1), (1, true, 1)]);
    // Listed, and not to be started.
    let gone = client.exchange("v@1", people(1, 1)).await.err().expect("it was replaced");
    assert_eq!(gone.code(), Code::NotFound);
    act(&client, "drop_exchange", json!({"name": "v"})).await.unwrap();
    assert_eq!(versions(&client, "v").await, [(2, true, 1), (1, true, 1)]);
    act(&client, "add_exchange", add("SELECT id AS three FROM input")).await.unwrap();
    assert_eq!(versions(&client, "v").await, [(1, false, 0), (2, true, 1), (1, true, 1)]);
    drop(first);
    until("the first is not used", || async { versions(&client, "v").await.len() == 2 }).await;
    let queries = exchanges(&client).await;
    let [running] = queries.as_slice() else { panic!("{queries:?}") };
    act(&client, "kill", json!({"query": running["id"]})).await.unwrap();
    until("the second is not used", || async { versions(&client, "v").await == [(1, false, 0)] }).await;
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_version_keeps_the_description_unless_it_has_one_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = test_config();
    config.database.path = directory.path().join("kept.db").display().to_string();
    let described = async |client: &Client| {
        let listed = act(client, "list_exchanges", Value::Null).await.unwrap();
        let one = listed.into_iter().find(|one| one["name"] == "v").unwrap();
        (one["version"].as_u64().unwrap(), one["description"].as_str().unwrap().to_string())
    };
    let server = TestServer::with(config.clone()).await;
    let client = server.client().await;
    for (given, told) in [
        (json!("first words"), "first words"),
        (Value::Null, "first words"),
        (json!("other words"), "other words"),
        (Value::Null, "other words"),
        // Without one, an exchanger is described by its SQL.
        (json!(""), "FROM input"),
        (Value::Null, "FROM input"),
        (json!("last words"), "last words"),
        (Value::Null, "last words"),
    ] {
        let mut body = json!({"name": "v", "sql": "FROM input", "replace": true});
        if given != Value::Null {
            body["description"] = given;
        }
        act(&client, "add_exchange", body).await.unwrap();
        assert_eq!(described(&client).await.1, told);
    }
    drop(client);
    server.server.stop(std::future::pending()).await.unwrap();
    let server = TestServer::with(config).await;
    let client = server.client().await;
    assert_eq!(described(&client).await, (8, "last words".to_string()));
    act(&client, "add_exchange", json!({"name": "v", "sql": "FROM input", "replace": true})).await.unwrap();
    assert_eq!(described(&client).await, (9, "last words".to_string()));
}
