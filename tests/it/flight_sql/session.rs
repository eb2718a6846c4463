//! Sessions: by login or cookie, their options, their end.

use std::{collections::HashMap, time::Duration};

use arrow_flight::{
    CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus,
    sql::{ActionCancelQueryRequest, ActionCancelQueryResult, Any, ProstMessageExt},
};
use futures::TryStreamExt;
use mallard::config::Span;
use prost::Message;
use tonic::Code;

use super::{Sql, action, refused, table, texts, update};
use crate::support::{TestServer, USER, test_config, until, with_login};

/// Flight's messages, which arrow-flight does not have.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(bool, optional, tag = "2")]
    flag: Option<bool>,
    #[prost(sfixed64, optional, tag = "3")]
    number: Option<i64>,
}

/// SetSessionOptionsRequest and GetSessionOptionsResult.
#[derive(Clone, PartialEq, Message)]
struct Options {
    #[prost(map = "string, message", tag = "1")]
    options: HashMap<String, Value>,
}

/// SetSessionOptionsResult.
#[derive(Clone, PartialEq, Message)]
struct Refused {
    #[prost(map = "string, message", tag = "1")]
    errors: HashMap<String, Why>,
}

#[derive(Clone, PartialEq, Message)]
struct Why {
    #[prost(int32, tag = "1")]
    value: i32,
}

fn text(value: &str) -> Value {
    Value { text: Some(value.into()), ..Value::default() }
}

/// Sets options; which were refused, and why.
async fn set(client: &mut Sql, options: &[(&str, Value)]) -> Vec<(String, i32)> {
    let options = options.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    let body = Options { options }.encode_to_vec();
    let (result, _) = action(client, "SetSessionOptions", body, &[]).await.unwrap();
    let refused = Refused::decode(&*result).unwrap();
    refused.errors.into_iter().map(|(name, why)| (name, why.value)).collect()
}

async fn get(client: &mut Sql) -> HashMap<String, Value> {
    let (result, _) = action(client, "GetSessionOptions", Vec::new(), &[]).await.unwrap();
    Options::decode(&*result).unwrap().options
}

#[tokio::test(flavor = "multi_thread")]
async fn options_hold_for_the_session_and_all_are_told() {
    let server = TestServer::with(with_login(test_config())).await;
    let (mut client, mut other) = (server.sql_of(USER).await, server.sql_of(USER).await);
    update(&mut client, "CREATE SCHEMA s").await;
    update(&mut client, "CREATE TABLE s.t AS SELECT range AS i FROM range(100)").await;
    let before = get(&mut client).await;
    assert_eq!(before["catalog"], text("memory"));
    assert_eq!(before["schema"], text("main"));
    assert_eq!(before["timezone"], text("UTC"));
    for zone in ["Europe/Berlin", "UTC"] {
        assert!(set(&mut client, &[("timezone", text(zone))]).await.is_empty());
        assert_eq!(table(&mut client, "SELECT current_setting('TimeZone')").await, [zone]);
        assert_eq!(get(&mut client).await["timezone"], text(zone));
    }
    assert_eq!(set(&mut client, &[("timezone", text("Nowhere/Land"))]).await, [("timezone".to_string(), 2)]);
    assert_eq!(get(&mut client).await["timezone"], text("UTC"));
    assert_eq!(before["lossless_types"].flag, Some(false));
    let rows = Value { number: Some(10), ..Value::default() };
    assert!(set(&mut client, &[("schema", text("s")), ("batch_rows", rows.clone())]).await.is_empty());
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["100"]);
    let info = client.execute("FROM t".into(), None).await.unwrap();
    assert!(super::rows(&mut client, info).await.1.iter().all(|batch| batch.num_rows() <= 10));
    assert_eq!(get(&mut client).await["schema"], text("s"));
    assert_eq!(get(&mut client).await["batch_rows"], rows);
    assert_eq!(refused(other.execute("FROM t".into(), None).await).0, Code::NotFound, "another session");
    // A name that is none, and values that are none: the others are set.
    let zero = Value { number: Some(0), ..Value::default() };
    for lossless in [false, true, false] {
        let asked = Value { flag: Some(lossless), ..Value::default() };
        assert!(set(&mut client, &[("lossless_types", asked.clone())]).await.is_empty());
        assert_eq!(get(&mut client).await["lossless_types"], asked);
        let sql = "SELECT 1::HUGEINT AS h".to_string();
        let mut prepared = client.prepare(sql.clone(), None).await.unwrap();
        let announced = prepared.dataset_schema().unwrap().clone();
        let ways = [client.execute(sql, None).await.unwrap(), prepared.execute().await.unwrap()];
        for info in ways {
            let (schema, _) = super::rows(&mut client, info).await;
            assert_eq!(
                *schema.field(0).data_type() != arrow_schema::DataType::Decimal128(38, 0),
                lossless,
                "{schema:?}"
            );
            assert_eq!(schema, announced);
        }
    }
    let mut errors = set(
        &mut client,
        &[("nothing", text("x")), ("schema", text("nowhere")), ("batch_rows", zero), ("lossless_types", text("x"))],
    )
    .await;
    errors.sort();
    let expected = [("batch_rows", 2), ("lossless_types", 2), ("nothing", 1), ("schema", 2)];
    assert_eq!(errors, expected.map(|(name, why)| (name.to_string(), why)));
    assert_eq!(get(&mut client).await["schema"], text("s"), "as it was");
    // Nothing takes an option back.
    assert!(set(&mut client, &[("schema", Value::default())]).await.is_empty());
    assert_eq!(get(&mut client).await["schema"], text("main"));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_and_temporary_objects_as_texts_stay_in_the_session() {
    let server = TestServer::with(with_login(test_config())).await;
    let (mut client, mut other) = (server.sql_of(USER).await, server.sql_of(USER).await);
    update(&mut client, "CREATE SCHEMA s").await;
    update(&mut client, "CREATE TABLE s.t AS SELECT 1 AS i").await;
    update(&mut client, "USE s").await;
    table(&mut client, "CREATE TEMP TABLE mine AS SELECT 'a'::ENUM('a', 'b') AS e").await;
    update(&mut client, "SET VARIABLE x = 41").await;
    assert_eq!(table(&mut client, "SELECT i, e, getvariable('x') + 1 FROM t, mine").await, ["1|a|42"]);
    assert_eq!(table(&mut client, "SELECT current_schema()").await, ["s"]);
    for sql in ["FROM t", "FROM mine"] {
        assert_eq!(refused(other.execute(sql.into(), None).await).0, Code::NotFound, "{sql}");
    }
    assert_eq!(server.metric("mallard_client_sessions").await, 1.0);
    // And are listed for it alone.
    let asked =
        arrow_flight::sql::CommandGetTables { table_name_filter_pattern: Some("mine".into()), ..Default::default() };
    for (client, expected) in [(&mut client, vec!["temp|main|mine|LOCAL TEMPORARY"]), (&mut other, vec![])] {
        let info = client.get_tables(asked.clone()).await.unwrap();
        assert_eq!(texts(&super::rows(client, info).await.1), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_are_not_got_around_by_another_default_schema() {
    let mut config = with_login(test_config());
    let narrow = mallard::config::RoleSettings {
        base: Some(mallard::access::Role::Writer),
        read: Some(vec!["t".into()]),
        write: Some(vec!["t".into()]),
        ..Default::default()
    };
    config.auth.roles.insert("narrow".into(), narrow);
    let server = TestServer::with(crate::support::with_users(config, &[("ann", "narrow")])).await;
    let (mut admin, mut ann) = (server.sql_of(USER).await, server.sql_of("ann").await);
    update(&mut admin, "CREATE SCHEMA hr").await;
    update(&mut admin, "CREATE TABLE t AS SELECT 1 AS i").await;
    update(&mut admin, "CREATE TABLE hr.t AS SELECT 42 AS i").await;
    assert_eq!(table(&mut ann, "SELECT i FROM t").await, ["1"]);
    for sql in ["USE hr", "SET schema = 'hr'", "SET search_path = 'hr'", "USE memory.hr"] {
        let refusal = refused(ann.execute_update(sql.into(), None).await);
        assert_eq!(refusal.0, Code::PermissionDenied, "{sql}: {}", refusal.1);
    }
    assert_eq!(set(&mut ann, &[("schema", text("hr"))]).await, [("schema".to_string(), 2)]);
    assert_eq!(table(&mut ann, "SELECT i FROM t").await, ["1"]);
}

/// As the JDBC driver and ADBC's cookie middleware do it where there is no login.
#[tokio::test(flavor = "multi_thread")]
async fn cookie_is_a_session_where_there_is_no_login() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    update(&mut client, "CREATE SCHEMA s").await;
    update(&mut client, "CREATE TABLE s.t AS SELECT 42 AS i").await;
    let body = Options { options: [("schema".to_string(), text("s"))].into() }.encode_to_vec();
    let (_, headers) = action(&mut client, "SetSessionOptions", body.clone(), &[]).await.unwrap();
    let cookie = headers.get("set-cookie").unwrap().to_str().unwrap().split(';').next().unwrap().to_string();
    assert!(cookie.starts_with("arrow_flight_session_id=") && cookie.len() > 40, "{cookie}");
    assert_eq!(
        table(&mut client, "FROM t").await,
        ["42"],
        "a client that sends no cookies is in the connection's session"
    );
    let refusal = refused(server.sql().await.execute("FROM t".into(), None).await);
    assert_eq!(refusal.0, Code::NotFound, "another connection");
    let mut with_cookie = server.sql().await;
    with_cookie.set_header("cookie", cookie.clone());
    assert_eq!(table(&mut with_cookie, "FROM t").await, ["42"]);
    update(&mut with_cookie, "BEGIN").await;
    update(&mut with_cookie, "INSERT INTO t VALUES (43)").await;
    update(&mut with_cookie, "ROLLBACK").await;
    assert_eq!(table(&mut with_cookie, "SELECT count(*) FROM t").await, ["1"]);
    // Asked again with it, no other one is handed out.
    let known = [("cookie", format!("other=1; {cookie}"))];
    let (_, headers) = action(&mut client, "SetSessionOptions", body.clone(), &known).await.unwrap();
    assert!(headers.get("set-cookie").is_none());
    // One that a client makes up is nobody's.
    let invented = [("cookie", "arrow_flight_session_id=abc".to_string())];
    let (_, headers) = action(&mut client, "SetSessionOptions", body, &invented).await.unwrap();
    assert!(!headers.get("set-cookie").unwrap().to_str().unwrap().contains("abc;"));
    let mut stranger = server.sql().await;
    stranger.set_header("cookie", "arrow_flight_session_id=abc");
    assert_eq!(refused(stranger.execute_update("BEGIN".into(), None).await).0, Code::FailedPrecondition);
    // Closed, it is none any more.
    action(&mut client, "CloseSession", Vec::new(), &[("cookie", cookie)]).await.unwrap();
    assert_eq!(refused(with_cookie.execute("FROM t".into(), None).await).0, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_a_session_rolls_back_and_frees_what_it_held() {
    let server = TestServer::with(with_login(test_config())).await;
    let (mut client, mut other) = (server.sql_of(USER).await, server.sql_of(USER).await);
    update(&mut client, "CREATE TABLE t (i INTEGER)").await;
    update(&mut client, "CREATE TEMP TABLE mine (i INTEGER)").await;
    let transaction = client.begin_transaction().await.unwrap();
    client.execute_update("INSERT INTO t VALUES (1)".into(), Some(transaction.clone())).await.unwrap();
    client.prepare("SELECT 1".into(), None).await.unwrap();
    let kept = ["mallard_client_sessions", "mallard_transactions_open", "mallard_prepared_statements"];
    for name in kept {
        assert_eq!(server.metric(name).await, 1.0, "{name}");
    }
    action(&mut client, "CloseSession", Vec::new(), &[]).await.unwrap();
    for name in kept {
        assert_eq!(server.metric(name).await, 0.0, "{name}");
    }
    assert_eq!(refused(client.execute("SELECT 1".into(), None).await).0, Code::Unauthenticated);
    assert_eq!(refused(other.execute("SELECT 1".into(), Some(transaction)).await).0, Code::NotFound);
    // Nothing holds the table any more.
    until("the table can be dropped", || {
        let mut other = other.clone();
        async move { other.execute_update("DROP TABLE IF EXISTS t".into(), None).await.is_ok() }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_used_is_freed() {
    let mut config = with_login(test_config());
    config.session.idle_timeout = Span(Duration::from_millis(300));
    let server = TestServer::with(config).await;
    let mut client = server.sql_of(USER).await;
    update(&mut client, "CREATE TEMP TABLE mine (i INTEGER)").await;
    let mut prepared = client.prepare("SELECT 1".into(), None).await.unwrap();
    until("all is freed", || async {
        server.metric("mallard_client_sessions").await + server.metric("mallard_prepared_statements").await == 0.0
    })
    .await;
    assert_eq!(refused(prepared.execute().await).0, Code::NotFound);
    assert_eq!(refused(client.execute("FROM mine".into(), None).await).0, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_a_user_are_bounded() {
    let mut config = with_login(test_config());
    config.session.sessions_per_user = 1;
    let server = TestServer::with(config).await;
    let (mut first, mut second) = (server.sql_of(USER).await, server.sql_of(USER).await);
    update(&mut first, "CREATE TEMP TABLE mine (i INTEGER)").await;
    let (code, says) = refused(second.execute_update("CREATE TEMP TABLE mine (i INTEGER)".into(), None).await);
    assert!(code == Code::ResourceExhausted && says.contains("session.sessions_per_user"), "{says}");
    // What needs no session goes on.
    assert_eq!(table(&mut second, "SELECT 1").await, ["1"]);
    action(&mut first, "CloseSession", Vec::new(), &[]).await.unwrap();
    update(&mut second, "CREATE TEMP TABLE mine (i INTEGER)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_transactions_do_not_hold_up_the_stop_and_are_rolled_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kept.duckdb").to_string_lossy().into_owned();
    let mut config = test_config();
    config.database.path = path.clone();
    let server = TestServer::with(config.clone()).await;
    let mut client = server.sql().await;
    update(&mut client, "CREATE TABLE t AS SELECT 1 AS i").await;
    let transaction = client.begin_transaction().await.unwrap();
    client.execute_update("INSERT INTO t VALUES (2)".into(), Some(transaction)).await.unwrap();
    drop(client);
    server.server.stop(std::future::pending()).await.unwrap();
    let server = TestServer::with(config).await;
    assert_eq!(table(&mut server.sql().await, "SELECT count(*) FROM t").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn running_query_is_cancelled_by_either_action() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    for older in [false, true] {
        let sql = "SELECT range AS n FROM range(1000000000000)";
        let info = client.execute(sql.into(), None).await.unwrap();
        let mut stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
        stream.try_next().await.unwrap().unwrap();
        if older {
            let body = ActionCancelQueryRequest { info: info.encode_to_vec().into() }.as_any().encode_to_vec();
            let (result, _) = action(&mut client, "CancelQuery", body, &[]).await.unwrap();
            let result: ActionCancelQueryResult = Any::decode(&*result).unwrap().unpack().unwrap().unwrap();
            assert_eq!(result.result, 1);
        } else {
            let body = CancelFlightInfoRequest::new(info).encode_to_vec();
            let (result, _) = action(&mut client, "CancelFlightInfo", body, &[]).await.unwrap();
            let result = CancelFlightInfoResult::decode(&*result).unwrap();
            assert_eq!(result.status(), CancelStatus::Cancelled);
        }
        let ended = loop {
            match stream.try_next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended as if it were whole"),
                Err(error) => break error,
            }
        };
        assert!(ended.to_string().contains("ancelled"), "{ended}");
    }
    until("nothing runs", || async { server.metric("mallard_queries_running").await == 0.0 }).await;
    // What has run already cannot be cancelled any more.
    let info = client.execute("CREATE TABLE t (i INTEGER)".into(), None).await.unwrap();
    let body = CancelFlightInfoRequest::new(info).encode_to_vec();
    let (result, _) = action(&mut client, "CancelFlightInfo", body, &[]).await.unwrap();
    assert_eq!(CancelFlightInfoResult::decode(&*result).unwrap().status(), CancelStatus::NotCancellable);
}
