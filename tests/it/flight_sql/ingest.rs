//! CommandStatementIngest in every mode.

use arrow_flight::{
    FlightData,
    encode::FlightDataEncoderBuilder,
    error::FlightError,
    sql::{
        CommandStatementIngest, DoPutUpdateResult, EndTransaction, TableDefinitionOptions, TableExistsOption as Exists,
        TableNotExistOption as Missing,
    },
};
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use tonic::{Code, Status};

use super::{Sql, message, table, table_in, update};
use crate::support::{TestServer, USER, people, test_config, with_login};

fn into(name: &str, missing: Missing, exists: Exists) -> CommandStatementIngest {
    CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: missing.into(),
            if_exists: exists.into(),
        }),
        table: name.into(),
        schema: None,
        catalog: None,
        temporary: false,
        transaction_id: None,
        options: Default::default(),
    }
}

/// Five rows; how many the server has stored.
async fn ingest(client: &mut Sql, command: &CommandStatementIngest) -> Result<i64, Status> {
    let rows = people(1, 5).map_err(|error| FlightError::Tonic(Box::new(error.into_status())));
    let data = FlightDataEncoderBuilder::new().with_flight_descriptor(Some(message(command))).build(rows);
    let data: Vec<FlightData> = data.try_collect().await.unwrap();
    let mut request = tonic::Request::new(futures::stream::iter(data));
    if let Some(token) = client.token() {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let result = client.inner_mut().do_put(request).await?.into_inner().try_next().await?.expect("a result");
    Ok(DoPutUpdateResult::decode(result.app_metadata).unwrap().record_count)
}

#[tokio::test(flavor = "multi_thread")]
async fn modes_do_what_they_say_where_the_table_is_there_and_where_it_is_not() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    for (missing, exists, where_missing, where_there) in [
        (Missing::Create, Exists::Fail, Ok("5"), Err(Code::AlreadyExists)),
        (Missing::Create, Exists::Append, Ok("5"), Ok("6")),
        (Missing::Create, Exists::Replace, Ok("5"), Ok("5")),
        (Missing::Fail, Exists::Append, Err(Code::NotFound), Ok("6")),
        (Missing::Fail, Exists::Replace, Err(Code::NotFound), Ok("5")),
        (Missing::Fail, Exists::Fail, Err(Code::InvalidArgument), Err(Code::InvalidArgument)),
        (Missing::Unspecified, Exists::Append, Err(Code::InvalidArgument), Err(Code::InvalidArgument)),
    ] {
        for (there, expected) in [(false, where_missing), (true, where_there)] {
            update(&mut client, "DROP TABLE IF EXISTS t").await;
            if there {
                update(&mut client, "CREATE TABLE t AS SELECT 1::BIGINT AS id, 'x' AS name").await;
            }
            let what = format!("{missing:?} {exists:?} there={there}");
            let outcome = ingest(&mut client, &into("t", missing, exists)).await;
            match expected {
                Ok(count) => {
                    assert_eq!(outcome.unwrap_or_else(|error| panic!("{what}: {error}")), 5, "{what}");
                    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, [count], "{what}");
                }
                Err(code) => {
                    let refusal = outcome.expect_err(&what);
                    assert_eq!(refusal.code(), code, "{what}: {refusal}");
                    if there {
                        assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["1"], "{what}");
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn catalog_and_schema_are_where_the_table_is() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    update(&mut client, "CREATE SCHEMA s").await;
    let base = into("t", Missing::Create, Exists::Fail);
    ingest(&mut client, &CommandStatementIngest { schema: Some("s".into()), ..base.clone() }).await.unwrap();
    ingest(&mut client, &CommandStatementIngest { catalog: Some("memory".into()), ..base.clone() }).await.unwrap();
    assert_eq!(table(&mut client, "SELECT count(*) FROM s.t, main.t").await, ["25"]);
    let nowhere = CommandStatementIngest { schema: Some("nowhere".into()), ..base };
    assert_eq!(ingest(&mut client, &nowhere).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_is_a_part_of_the_transaction_it_names_or_of_the_sessions_open_one() {
    let server = TestServer::with(with_login(test_config())).await;
    let (mut client, mut other) = (server.sql_of(USER).await, server.sql_of(USER).await);
    update(&mut client, "CREATE TABLE t (id BIGINT, name VARCHAR)").await;
    let append = into("t", Missing::Fail, Exists::Append);
    // Named, not named (as ADBC's driver has it), and begun by a text.
    for named in [true, false] {
        let transaction = client.begin_transaction().await.unwrap();
        let transaction_id = named.then(|| transaction.clone());
        ingest(&mut client, &CommandStatementIngest { transaction_id, ..append.clone() }).await.unwrap();
        assert_eq!(table_in(&mut client, "SELECT count(*) FROM t", Some(&transaction)).await, ["5"], "{named}");
        assert_eq!(table(&mut other, "SELECT count(*) FROM t").await, ["0"], "{named}");
        client.end_transaction(transaction, EndTransaction::Rollback).await.unwrap();
        assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["0"], "{named}");
    }
    update(&mut client, "BEGIN").await;
    ingest(&mut client, &append).await.unwrap();
    assert_eq!(table(&mut other, "SELECT count(*) FROM t").await, ["0"]);
    update(&mut client, "COMMIT").await;
    assert_eq!(table(&mut other, "SELECT count(*) FROM t").await, ["5"]);
    // One that fails leaves nothing behind, and the transaction is told to be over.
    let transaction = client.begin_transaction().await.unwrap();
    client.execute_update("INSERT INTO t VALUES (9, 'x')".into(), Some(transaction.clone())).await.unwrap();
    let failing = CommandStatementIngest {
        transaction_id: Some(transaction.clone()),
        ..into("t", Missing::Create, Exists::Fail)
    };
    assert_eq!(ingest(&mut client, &failing).await.unwrap_err().code(), Code::AlreadyExists);
    let refusal = super::refused(client.execute("SELECT 1".into(), Some(transaction.clone())).await);
    assert!(refusal.0 == Code::FailedPrecondition || refusal.0 == Code::InvalidArgument, "{refusal:?}");
    client.end_transaction(transaction, EndTransaction::Rollback).await.unwrap();
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["5"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_that_is_cut_within_a_transaction_takes_the_transaction_with_it() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    update(&mut client, "CREATE TABLE t (id BIGINT, name VARCHAR)").await;
    let transaction = client.begin_transaction().await.unwrap();
    let command = CommandStatementIngest {
        transaction_id: Some(transaction.clone()),
        ..into("t", Missing::Fail, Exists::Append)
    };
    let rows = people(3, 200_000).map_err(|error| FlightError::Tonic(Box::new(error.into_status())));
    let data = FlightDataEncoderBuilder::new().with_flight_descriptor(Some(message(&command))).build(rows);
    let data: Vec<FlightData> = data.try_collect().await.unwrap();
    let half = data.len() / 2;
    // Half of it, and then the client is gone.
    let (gone, wait) = tokio::sync::oneshot::channel::<()>();
    let sent = futures::stream::iter(data.into_iter().take(half)).chain(futures::stream::once(async move {
        let _ = wait.await;
        FlightData::default()
    }));
    let answer = client.inner_mut().do_put(sent).await.unwrap();
    crate::support::until("rows arrive", || async { server.metric("mallard_ingests_waiting").await > 0.0 }).await;
    drop((answer, gone));
    crate::support::until("the statement has ended", || async {
        server.metric("mallard_queries_running").await == 0.0
    })
    .await;
    let refusal = client.execute_update("INSERT INTO t VALUES (1, 'x')".into(), Some(transaction.clone())).await;
    assert_eq!(super::refused(refusal).0, Code::FailedPrecondition);
    assert!(client.end_transaction(transaction, EndTransaction::Commit).await.is_err());
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_table_is_the_sessions_alone() {
    let server = TestServer::with(with_login(test_config())).await;
    let (mut client, mut other) = (server.sql_of(USER).await, server.sql_of(USER).await);
    let temporary = |missing, exists| CommandStatementIngest { temporary: true, ..into("t", missing, exists) };
    ingest(&mut client, &temporary(Missing::Create, Exists::Fail)).await.unwrap();
    ingest(&mut client, &temporary(Missing::Fail, Exists::Append)).await.unwrap();
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["10"]);
    ingest(&mut client, &temporary(Missing::Create, Exists::Replace)).await.unwrap();
    assert_eq!(table(&mut client, "SELECT count(*) FROM temp.t").await, ["5"]);
    assert_eq!(super::refused(other.execute("SELECT * FROM t".into(), None).await).0, Code::NotFound);
    // Within a transaction it is seen, too, and what that made is gone with it.
    let transaction = client.begin_transaction().await.unwrap();
    assert_eq!(table_in(&mut client, "SELECT count(*) FROM t", Some(&transaction)).await, ["5"]);
    let more = CommandStatementIngest { temporary: true, ..into("u", Missing::Create, Exists::Fail) };
    ingest(&mut client, &more).await.unwrap();
    assert_eq!(table_in(&mut client, "SELECT count(*) FROM u", Some(&transaction)).await, ["5"]);
    client.end_transaction(transaction, EndTransaction::Rollback).await.unwrap();
    assert_eq!(super::refused(client.execute("SELECT * FROM u".into(), None).await).0, Code::NotFound);
    let elsewhere = CommandStatementIngest { schema: Some("s".into()), ..temporary(Missing::Create, Exists::Fail) };
    assert_eq!(ingest(&mut client, &elsewhere).await.unwrap_err().code(), Code::InvalidArgument);
}

/// Whatever a session has made temporary, rows that are not to be temporary are in the table that everybody sees.
#[tokio::test(flavor = "multi_thread")]
async fn ingest_that_is_not_temporary_passes_a_temporary_table_of_the_same_name_by() {
    let server = TestServer::with(with_login(test_config())).await;
    let (mut client, mut other) = (server.sql_of(USER).await, server.sql_of(USER).await);
    update(&mut client, "CREATE SCHEMA s").await;
    let modes = [
        (Missing::Create, Exists::Fail),
        (Missing::Fail, Exists::Append),
        (Missing::Create, Exists::Append),
        (Missing::Create, Exists::Replace),
        (Missing::Fail, Exists::Replace),
    ];
    let names =
        [(None, None), (None, Some("main")), (Some("memory"), Some("main")), (Some("memory"), None), (None, Some("s"))];
    for shadow in ["CREATE OR REPLACE TEMP TABLE", "CREATE OR REPLACE TEMP VIEW"] {
        for (missing, exists) in modes {
            for (catalog, schema) in names {
                for there in [false, true] {
                    let place = if schema == Some("s") { "memory.s.t" } else { "memory.main.t" };
                    update(&mut client, "DROP TABLE IF EXISTS memory.main.t").await;
                    update(&mut client, "DROP TABLE IF EXISTS memory.s.t").await;
                    if there {
                        update(&mut client, &format!("CREATE TABLE {place} AS SELECT 1::BIGINT AS id, 'x' AS name"))
                            .await;
                    }
                    update(&mut client, &format!("{shadow} \"T\" AS SELECT 7::BIGINT AS id, 'mine' AS name")).await;
                    let what = format!("{shadow} {missing:?} {exists:?} {catalog:?} {schema:?} there={there}");
                    let (catalog, schema) = (catalog.map(String::from), schema.map(String::from));
                    let command = CommandStatementIngest { catalog, schema, ..into("t", missing, exists) };
                    let outcome = ingest(&mut client, &command).await;
                    let code = match (there, missing, exists) {
                        (false, Missing::Fail, _) => Some(Code::NotFound),
                        (true, _, Exists::Fail) => Some(Code::AlreadyExists),
                        _ => None,
                    };
                    match code {
                        Some(code) => assert_eq!(outcome.expect_err(&what).code(), code, "{what}"),
                        None => {
                            assert_eq!(outcome.unwrap_or_else(|error| panic!("{what}: {error}")), 5, "{what}");
                            let count = if there && exists == Exists::Append { "6" } else { "5" };
                            let seen = table(&mut other, &format!("SELECT count(*) FROM {place}")).await;
                            assert_eq!(seen, [count], "{what}");
                        }
                    }
                    assert_eq!(table(&mut client, "SELECT name FROM temp.main.t").await, ["mine"], "{what}");
                    let kind = shadow.rsplit(' ').next().expect("a kind");
                    update(&mut client, &format!("DROP {kind} temp.main.t")).await;
                }
            }
        }
    }
    // In a transaction, too, and where the session is in another schema.
    update(&mut client, "USE memory.s").await;
    update(&mut client, "DROP TABLE IF EXISTS memory.s.t").await;
    update(&mut client, "CREATE TEMP TABLE t AS SELECT 7::BIGINT AS id, 'mine' AS name").await;
    update(&mut client, "BEGIN").await;
    ingest(&mut client, &into("t", Missing::Create, Exists::Append)).await.unwrap();
    update(&mut client, "COMMIT").await;
    assert_eq!(table(&mut other, "SELECT count(*) FROM memory.s.t").await, ["5"]);
    // What would be gone with its connection is refused.
    for (catalog, schema) in [(Some("temp"), Some("main")), (Some("TEMP"), None), (None, Some("temp"))] {
        let (catalog, schema) = (catalog.map(String::from), schema.map(String::from));
        let command = CommandStatementIngest { catalog, schema, ..into("u", Missing::Create, Exists::Append) };
        assert_eq!(ingest(&mut client, &command).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(ingest(&mut server.sql().await, &command).await.unwrap_err().code(), Code::Unauthenticated);
    }
}

/// A DoPut, a descriptor and a transfer name tables that everybody sees, too.
#[tokio::test(flavor = "multi_thread")]
async fn put_and_descriptors_pass_a_temporary_table_by() {
    let server = TestServer::with(with_login(test_config())).await;
    let mut client = server.sql_of(USER).await;
    update(&mut client, "CREATE TEMP TABLE t AS SELECT 'mine' AS only").await;
    let login =
        mallard::client::Client::connect(server.server.location(), Some(&crate::support::login())).await.unwrap();
    for (descriptor, rows) in [(vec!["t"], 5), (vec!["main", "t"], 10), (vec!["memory", "main", "t"], 15)] {
        let path: Vec<String> = descriptor.iter().map(|part| part.to_string()).collect();
        assert_eq!(login.put(&path, crate::support::people(1, 5)).await.unwrap().rows, 5);
        assert_eq!(crate::support::count(&login, "memory.main.t").await, rows);
    }
    for path in [vec!["temp", "main", "u"], vec!["temp", "u"]] {
        let path: Vec<String> = path.iter().map(|part| part.to_string()).collect();
        let refusal = login.put(&path, crate::support::people(1, 5)).await.unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
    }
    let path = arrow_flight::FlightDescriptor::new_path(vec!["t".into()]);
    let info = login.info(path).await.unwrap();
    assert_eq!(info.total_records, 15);
    let stream = login.get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    assert_eq!(stream.schema().fields().len(), 2);
    assert_eq!(crate::support::rows(&crate::support::collect(stream).await.unwrap()), 15);
    assert_eq!(table(&mut client, "SELECT * FROM temp.main.t").await, ["mine"]);
}

/// Eight at once into a table that is not there, in every mode: each lands, or is refused because it is there by then.
#[tokio::test(flavor = "multi_thread")]
async fn several_ingests_at_once_into_a_table_that_is_not_there_all_land() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    for round in 0..3 {
        for (exists, expected) in [(Exists::Append, "40"), (Exists::Replace, "5"), (Exists::Fail, "5")] {
            let name = format!("t{round}_{exists:?}");
            let at_once = (0..8).map(|_| async {
                let mut client = server.sql().await;
                ingest(&mut client, &into(&name, Missing::Create, exists)).await
            });
            let outcomes = futures::future::join_all(at_once).await;
            let refused: Vec<Code> = outcomes.into_iter().filter_map(|outcome| Some(outcome.err()?.code())).collect();
            match exists {
                Exists::Fail => assert_eq!(refused, [Code::AlreadyExists; 7]),
                _ => assert_eq!(refused, [], "{exists:?}"),
            }
            assert_eq!(table(&mut client, &format!("SELECT count(*) FROM {name}")).await, [expected], "{exists:?}");
        }
    }
}
