//! Roles and grants: each role may do what it is for and nothing else, on every RPC and every action.

use arrow_flight::{
    Action, Criteria, Empty, FlightData, FlightDescriptor, HandshakeRequest, Ticket,
    encode::FlightDataEncoderBuilder,
    flight_service_client::FlightServiceClient,
    sql::{
        ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any, CommandGetTables,
        CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementIngest, CommandStatementQuery,
        CommandStatementUpdate, ProstMessageExt,
    },
};
use bytes::Bytes;
use futures::{TryStreamExt, stream};
use mallard::{
    client::Client,
    config::{Config, RoleSettings},
};
use prost::Message;
use serde_json::json;
use tonic::{Code, Request, Status, transport::Channel};

use crate::flight_sql::message;
use crate::support::{
    PASSWORD, TestServer, USER, collect, people, row, run, table, test_config, with_login, with_users,
};

const ROLES: [&str; 3] = ["reader", "writer", "admin"];

/// A server with a user of each role, named like it.
async fn with_every_role() -> TestServer {
    TestServer::with(with_users(with_login(test_config()), &ROLES.map(|role| (role, role)))).await
}

/// Every RPC and every action, and whether a role may call it. A call is refused when its code is PERMISSION_DENIED.
const MATRIX: [(&str, [bool; 3]); 41] = [
    ("Handshake", [true, true, true]),
    ("ListFlights", [true, true, true]),
    ("GetFlightInfo", [true, true, true]),
    ("PollFlightInfo", [true, true, true]),
    ("GetSchema", [true, true, true]),
    ("DoGet", [true, true, true]),
    ("DoGet of a change", [false, true, true]),
    ("DoPut", [false, true, true]),
    ("DoExchange", [true, true, true]),
    ("DoExchange of a change", [false, true, true]),
    ("GetFlightInfo CommandStatementQuery", [true, true, true]),
    ("GetFlightInfo CommandStatementQuery of a change", [false, true, true]),
    ("GetSchema CommandStatementQuery", [true, true, true]),
    ("GetFlightInfo CommandPreparedStatementQuery", [true, true, true]),
    ("GetFlightInfo CommandGetTables", [true, true, true]),
    ("DoGet CommandStatementQuery", [true, true, true]),
    ("DoPut CommandStatementUpdate", [false, true, true]),
    ("DoPut CommandPreparedStatementUpdate", [false, true, true]),
    ("DoPut CommandStatementIngest", [false, true, true]),
    ("ListActions", [true, true, true]),
    ("DoAction add_exchange", [false, true, true]),
    ("DoAction drop_exchange", [false, true, true]),
    ("DoAction list_exchanges", [true, true, true]),
    ("DoAction transfer", [false, true, true]),
    ("DoAction queries", [true, true, true]),
    ("DoAction kill", [true, true, true]),
    ("DoAction sessions", [false, false, true]),
    ("DoAction backup", [false, false, true]),
    ("DoAction BeginTransaction", [true, true, true]),
    ("DoAction EndTransaction", [true, true, true]),
    ("DoAction BeginSavepoint", [true, true, true]),
    ("DoAction EndSavepoint", [true, true, true]),
    ("DoAction CreatePreparedStatement", [true, true, true]),
    ("DoAction CreatePreparedSubstraitPlan", [true, true, true]),
    ("DoAction ClosePreparedStatement", [true, true, true]),
    ("DoAction CancelQuery", [true, true, true]),
    ("DoAction SetSessionOptions", [true, true, true]),
    ("DoAction GetSessionOptions", [true, true, true]),
    ("DoAction CancelFlightInfo", [true, true, true]),
    ("DoAction RenewFlightEndpoint", [true, true, true]),
    // The last one: what comes after it would have no identity any more.
    ("DoAction CloseSession", [true, true, true]),
];

async fn call(server: &TestServer, bearer: &str, entry: &str) -> Code {
    async fn drain<T>(outcome: Result<tonic::Response<tonic::Streaming<T>>, Status>) -> Code {
        match outcome {
            Err(status) => status.code(),
            Ok(response) => response.into_inner().try_collect::<Vec<_>>().await.err().map_or(Code::Ok, |e| e.code()),
        }
    }
    fn code<T>(outcome: Result<T, Status>) -> Code {
        outcome.err().map_or(Code::Ok, |status| status.code())
    }
    fn with<T>(message: T, bearer: &str) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", bearer.parse().unwrap());
        request
    }
    async fn data(descriptor: FlightDescriptor) -> Vec<FlightData> {
        let rows = people(1, 3).map_err(|error| arrow_flight::error::FlightError::Tonic(Box::new(error.into_status())));
        FlightDataEncoderBuilder::new()
            .with_flight_descriptor(Some(descriptor))
            .build(rows)
            .try_collect()
            .await
            .unwrap()
    }
    /// The handle; none where it was refused.
    async fn prepared(client: &mut FlightServiceClient<Channel>, query: &str, bearer: &str) -> Bytes {
        let request = ActionCreatePreparedStatementRequest { query: query.into(), transaction_id: None };
        let body = request.as_any().encode_to_vec();
        let answer = client.do_action(with(Action::new("CreatePreparedStatement", body), bearer)).await;
        let Ok(answer) = answer else { return Bytes::new() };
        let result = answer.into_inner().try_next().await.unwrap().expect("a result");
        let result: ActionCreatePreparedStatementResult = Any::decode(result.body).unwrap().unpack().unwrap().unwrap();
        result.prepared_statement_handle
    }
    let mut client = server.stock().await;
    let sql = || FlightDescriptor::new_cmd("FROM shared");
    let change = "INSERT INTO shared VALUES (2)";
    let path = || FlightDescriptor::new_path(vec!["put_here".into()]);
    let query = |query: &str| message(&CommandStatementQuery { query: query.into(), transaction_id: None });
    match entry {
        "Handshake" => drain(client.handshake(with(stream::empty::<HandshakeRequest>(), bearer)).await).await,
        "ListFlights" => drain(client.list_flights(with(Criteria::default(), bearer)).await).await,
        "GetFlightInfo" => code(client.get_flight_info(with(sql(), bearer)).await),
        "PollFlightInfo" => code(client.poll_flight_info(with(sql(), bearer)).await),
        "GetSchema" => code(client.get_schema(with(sql(), bearer)).await),
        "DoGet" => drain(client.do_get(with(Ticket::new("FROM shared"), bearer)).await).await,
        "DoGet of a change" => drain(client.do_get(with(Ticket::new(change), bearer)).await).await,
        "DoPut" => drain(client.do_put(with(stream::iter(data(path()).await), bearer)).await).await,
        "DoExchange" => {
            let echo = data(FlightDescriptor::new_cmd("echo")).await;
            drain(client.do_exchange(with(stream::iter(echo), bearer)).await).await
        }
        "DoExchange of a change" => {
            let change = data(FlightDescriptor::new_cmd(change)).await;
            drain(client.do_exchange(with(stream::iter(change), bearer)).await).await
        }
        "GetFlightInfo CommandStatementQuery" => code(client.get_flight_info(with(query("FROM shared"), bearer)).await),
        "GetFlightInfo CommandStatementQuery of a change" => {
            code(client.get_flight_info(with(query(change), bearer)).await)
        }
        "GetSchema CommandStatementQuery" => code(client.get_schema(with(query("FROM shared"), bearer)).await),
        "GetFlightInfo CommandPreparedStatementQuery" => {
            let handle = prepared(&mut client, "FROM shared", bearer).await;
            let command = CommandPreparedStatementQuery { prepared_statement_handle: handle };
            code(client.get_flight_info(with(message(&command), bearer)).await)
        }
        "GetFlightInfo CommandGetTables" => {
            code(client.get_flight_info(with(message(&CommandGetTables::default()), bearer)).await)
        }
        "DoGet CommandStatementQuery" => {
            drain(client.do_get(with(Ticket::new(query("FROM shared").cmd), bearer)).await).await
        }
        "DoPut CommandPreparedStatementUpdate" => {
            let handle = prepared(&mut client, change, bearer).await;
            if handle.is_empty() {
                // It was refused when it was to be prepared.
                return Code::PermissionDenied;
            }
            let update = CommandPreparedStatementUpdate { prepared_statement_handle: handle };
            let first = FlightData { flight_descriptor: Some(message(&update)), ..Default::default() };
            drain(client.do_put(with(stream::iter([first]), bearer)).await).await
        }
        "DoPut CommandStatementIngest" => {
            let ingest = CommandStatementIngest { table: "ingested".into(), ..Default::default() };
            drain(client.do_put(with(stream::iter(data(message(&ingest)).await), bearer)).await).await
        }
        "DoPut CommandStatementUpdate" => {
            let update = CommandStatementUpdate { query: change.into(), transaction_id: None };
            let first = FlightData { flight_descriptor: Some(message(&update)), ..Default::default() };
            drain(client.do_put(with(stream::iter([first]), bearer)).await).await
        }
        "ListActions" => drain(client.list_actions(with(Empty {}, bearer)).await).await,
        action => {
            let name = action.strip_prefix("DoAction ").expect("an action").to_string();
            let body = match name.as_str() {
                "add_exchange" => json!({"name": "mine", "sql": "FROM input"}).to_string(),
                "kill" => json!({"user": "nobody"}).to_string(),
                "drop_exchange" => json!({"name": "nothing"}).to_string(),
                // Nobody listens there.
                "transfer" => json!({"from": "grpc://127.0.0.1:1", "table": "t", "to": "pulled"}).to_string(),
                _ => String::new(),
            };
            drain(client.do_action(with(Action::new(name, body), bearer)).await).await
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_may_call_what_the_matrix_says_and_nothing_else() {
    let server = with_every_role().await;
    run(&server.client_of(USER).await, "CREATE TABLE shared AS SELECT 1 AS i").await;
    for (place, role) in ROLES.into_iter().enumerate() {
        let mut request = Request::new(stream::empty::<HandshakeRequest>());
        let basic = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{role}:{PASSWORD}"));
        request.metadata_mut().insert("authorization", format!("Basic {basic}").parse().unwrap());
        let answer = server.stock().await.handshake(request).await.unwrap();
        let bearer = answer.metadata().get("authorization").unwrap().to_str().unwrap().to_string();
        for (entry, allowed) in MATRIX {
            let code = call(&server, &bearer, entry).await;
            assert_ne!(code, Code::Unauthenticated, "{entry} as {role}");
            assert_eq!(code != Code::PermissionDenied, allowed[place], "{entry} as {role}: {code:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn matrix_names_every_rpc_and_every_action() {
    let methods = rpcs();
    assert!(methods.len() >= 10, "{methods:?}");
    for method in methods {
        let there = MATRIX.iter().any(|(entry, _)| entry.split(' ').next() == Some(&method));
        assert!(there, "{method} is not in the matrix");
    }
    let server = with_every_role().await;
    let admin = server.client_of("admin").await;
    let actions: Vec<String> = admin.list_actions().await.unwrap().into_iter().map(|action| action.r#type).collect();
    for action in &actions {
        let entry = format!("DoAction {action}");
        assert!(MATRIX.iter().any(|(name, _)| *name == entry), "the action {action} is not in the matrix");
    }
    for (entry, _) in MATRIX {
        if let Some(action) = entry.strip_prefix("DoAction ") {
            assert!(actions.iter().any(|name| name == action), "the matrix has {action}, which is none");
        }
    }
    // What one may not call is not listed.
    let reader = server.client_of("reader").await.list_actions().await.unwrap();
    assert!(reader.iter().all(|action| action.r#type != "transfer"));
}

/// The methods that our FlightService implements; the compiler sees to it that these are all the trait has.
fn rpcs() -> Vec<String> {
    let source = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/flight/service.rs")).unwrap();
    let (_, implementation) = source.split_once("impl FlightService for Flight").unwrap();
    let methods = implementation.lines().filter_map(|line| line.strip_prefix("    async fn ")?.split_once('('));
    let camel = |name: &str| -> String {
        name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect::<Vec<_>>().concat()
    };
    methods.map(|(name, _)| camel(name)).collect()
}

/// ann may read `sales.*` and write `scratch.*`; everything else is there and not hers.
async fn with_grants() -> (TestServer, Client, Client) {
    let mut config: Config = with_login(test_config());
    let narrow = RoleSettings {
        base: Some(mallard::access::Role::Writer),
        read: Some(vec!["sales.*".into()]),
        write: Some(vec!["scratch.*".into()]),
        exchangers: Some(vec!["echo".into()]),
        ..Default::default()
    };
    config.auth.roles.insert("narrow".into(), narrow);
    let server = TestServer::with(with_users(config, &[("ann", "narrow")])).await;
    let admin = server.client_of(USER).await;
    for sql in [
        "CREATE SCHEMA sales",
        "CREATE SCHEMA scratch",
        "CREATE SCHEMA hr",
        "CREATE TABLE sales.orders AS SELECT range AS id, 'o' || range AS name FROM range(10)",
        "CREATE TABLE hr.salaries AS SELECT range AS id, 100 * range AS salary FROM range(10)",
        "CREATE TABLE secrets AS SELECT 42 AS answer",
        "CREATE VIEW sales.bands AS SELECT id, salary > 500 AS high FROM hr.salaries",
        "CREATE MACRO sales.paid() AS TABLE SELECT count(*) AS n FROM hr.salaries",
    ] {
        run(&admin, sql).await;
    }
    let ann = server.client_of("ann").await;
    (server, admin, ann)
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_hold_for_every_form_of_statement() {
    let (_server, admin, ann) = with_grants().await;
    for (sql, expected) in [
        ("SELECT count(*) FROM sales.orders", "10"),
        ("FROM (SELECT max(id) FROM SALES.\"Orders\")", "9"),
        ("WITH secrets AS (SELECT 1 AS x FROM sales.orders) SELECT count(*) FROM secrets", "10"),
        (
            "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT sum(n)::INT FROM t",
            "15",
        ),
        ("SELECT count(*) FROM sales.bands", "10"),
        ("SELECT sum(range)::INT FROM range(4)", "6"),
        (
            "SELECT count(*) FROM sales.orders a JOIN sales.bands b USING (id) WHERE id IN (SELECT id FROM sales.orders)",
            "10",
        ),
        ("SELECT column_name FROM (DESCRIBE sales.orders) LIMIT 1", "id"),
        ("CREATE TABLE scratch.t AS SELECT * FROM sales.orders", "OK"),
        ("INSERT INTO scratch.t SELECT 11, 'x'", "OK"),
        ("WITH new AS (SELECT 12 AS id, 'y' AS name) INSERT INTO scratch.t SELECT * FROM new", "OK"),
        ("UPDATE scratch.t SET name = 'z' WHERE id > (SELECT max(id) FROM sales.orders)", "OK"),
        ("DELETE FROM scratch.t WHERE id = 12", "OK"),
        ("INSERT INTO scratch.t VALUES (13, 'w') RETURNING id", "13"),
        ("CREATE OR REPLACE TABLE scratch.u (id INTEGER PRIMARY KEY, t TEXT DEFAULT 'x', CHECK (id > 0))", "OK"),
        ("CREATE VIEW scratch.v AS SELECT count(*) AS n FROM scratch.t", "OK"),
        ("ALTER TABLE scratch.t ADD COLUMN more INTEGER", "OK"),
        ("TRUNCATE scratch.t", "OK"),
        ("DROP VIEW scratch.v", "OK"),
        ("DROP TABLE IF EXISTS scratch.u", "OK"),
    ] {
        assert_eq!(row(&ann, sql).await[0], expected, "{sql}");
    }
    assert!(!collect(ann.query("EXPLAIN SELECT * FROM sales.orders").await.unwrap()).await.unwrap().is_empty());
    for sql in [
        "FROM secrets",
        "FROM hr.salaries",
        "FROM memory.hr.salaries",
        "FROM memory.main.secrets",
        "SELECT (SELECT answer FROM secrets)",
        "SELECT 1 WHERE EXISTS (FROM secrets)",
        "SELECT (WITH secrets AS (SELECT 1) SELECT count(*) FROM secrets), (SELECT answer FROM secrets)",
        "WITH secrets AS (SELECT * FROM secrets) SELECT * FROM secrets",
        "WITH RECURSIVE secrets AS (SELECT * FROM secrets) SELECT * FROM secrets",
        "WITH RECURSIVE secrets AS (SELECT answer FROM secrets UNION ALL SELECT 1 FROM secrets) FROM secrets",
        "WITH a AS (FROM b), b AS (SELECT 1) FROM a, secrets",
        "FROM sales.orders, secrets",
        "FROM sales.orders JOIN hr.salaries USING (id)",
        "FROM sales.orders UNION ALL FROM hr.salaries",
        "(FROM sales.orders) EXCEPT (FROM hr.salaries)",
        "TABLE secrets",
        "DESCRIBE secrets",
        "SUMMARIZE hr.salaries",
        "SHOW TABLES",
        "SHOW ALL TABLES",
        "EXPLAIN FROM secrets",
        "EXPLAIN ANALYZE FROM hr.salaries",
        "EXPLAIN (FORMAT json) FROM hr.salaries",
        "FROM (PIVOT hr.salaries ON id IN (1, 2) USING sum(salary))",
        "PIVOT hr.salaries ON id USING sum(salary)",
        "FROM duckdb_tables()",
        "FROM duckdb_tables",
        "FROM information_schema.tables",
        "FROM pg_catalog.pg_class",
        "FROM sqlite_master",
        "FROM pragma_table_info('secrets')",
        "PRAGMA table_info('secrets')",
        "PRAGMA show_tables",
        "CALL duckdb_columns()",
        "FROM summary((FROM sales.orders))",
        "FROM query('FROM secrets')",
        "FROM query_table('secrets')",
        "FROM query_table(['secrets'])",
        "FROM sales.paid()",
        "INSERT INTO sales.orders VALUES (1, 'x')",
        "INSERT INTO secrets VALUES (1)",
        "INSERT INTO scratch.copy1 SELECT * FROM secrets",
        "UPDATE sales.orders SET id = 1",
        "UPDATE scratch.t SET name = (SELECT answer FROM secrets)",
        "DELETE FROM secrets",
        "DELETE FROM scratch.t USING hr.salaries WHERE true",
        "TRUNCATE secrets",
        "WITH gone AS (DELETE FROM secrets RETURNING *) FROM gone",
        "WITH stolen AS (INSERT INTO scratch.x SELECT * FROM secrets RETURNING *) FROM stolen",
        "MERGE INTO scratch.t USING secrets ON true WHEN MATCHED THEN DELETE",
        "CREATE TABLE mine AS SELECT 1",
        "CREATE TABLE scratch.stolen AS FROM secrets",
        "CREATE TABLE scratch.stolen AS (FROM secrets) WITH DATA",
        "CREATE TABLE scratch.stolen (id INTEGER REFERENCES main.secrets (answer))",
        "CREATE VIEW scratch.stolen AS SELECT * FROM hr.salaries",
        "CREATE TEMP VIEW scratch AS FROM secrets",
        "CREATE MACRO scratch.stolen() AS TABLE FROM secrets",
        "CREATE MACRO scratch.stolen() AS (SELECT answer FROM secrets)",
        "CREATE SCHEMA other",
        "CREATE INDEX i ON secrets (answer)",
        "DROP TABLE secrets",
        "DROP SCHEMA hr CASCADE",
        "ALTER TABLE secrets RENAME TO mine",
        "ALTER TABLE scratch.t RENAME TO secrets2",
        "ALTER TABLE secrets ADD COLUMN x INTEGER",
        "COMMENT ON TABLE secrets IS 'x'",
        "VACUUM",
        "ANALYZE",
        "CHECKPOINT",
    ] {
        let refused = ann.query(sql).await.err().unwrap_or_else(|| panic!("{sql} was let through"));
        assert_eq!(refused.code(), Code::PermissionDenied, "{sql}: {refused}");
    }
    // DuckDB's hints name what is like the name that was asked for.
    for sql in ["FROM sales.salaries", "FROM scratch.secrets", "SELECT * FROM sales.orders WHERE salary > 1"] {
        let hint = ann.query(sql).await.err().expect("it is not there").to_string();
        assert!(!hint.contains("hr") && !hint.contains("Did you mean \"main"), "{sql}: {hint}");
        let info = ann.info(FlightDescriptor::new_cmd(sql)).await.expect_err("it is not there").to_string();
        assert!(!info.contains("hr") && !info.contains("Did you mean \"main"), "{sql}: {info}");
    }
    let hint = admin.query("FROM sales.salaries").await.err().unwrap().to_string();
    assert!(hint.contains("hr.salaries"), "{hint}");
    assert_eq!(row(&admin, "SELECT count(*) FROM secrets").await, ["1"]);
    assert_eq!(row(&admin, "SELECT count(*) FROM hr.salaries").await, ["10"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_hold_for_calls_without_sql_and_what_is_not_granted_is_not_listed() {
    let (_server, admin, ann) = with_grants().await;
    let listed: Vec<String> =
        ann.list("").await.unwrap().into_iter().map(|info| info.flight_descriptor.unwrap().path.join(".")).collect();
    assert_eq!(listed, ["sales.bands", "sales.orders"]);
    let path = |parts: &[&str]| FlightDescriptor::new_path(parts.iter().map(|part| part.to_string()).collect());
    assert!(ann.info(path(&["sales", "orders"])).await.is_ok());
    for hidden in [&["secrets"][..], &["hr", "salaries"], &["memory", "hr", "salaries"], &["nothing"]] {
        let refused = ann.info(path(hidden)).await.expect_err("not granted");
        assert_eq!(refused.code(), Code::PermissionDenied, "{hidden:?}: {refused}");
    }
    assert_eq!(ann.put(&["scratch".into(), "people".into()], people(1, 5)).await.unwrap().rows, 5);
    for hidden in [vec!["secrets".to_string()], vec!["sales".into(), "orders".into()], vec!["new".into()]] {
        let refused = ann.put(&hidden, people(1, 5)).await.expect_err("not granted");
        assert_eq!(refused.code(), Code::PermissionDenied, "{hidden:?}: {refused}");
    }
    assert!(ann.exchange("echo", people(1, 1)).await.is_ok());
    let refused = ann.exchange("count", people(1, 1)).await.err().expect("not granted");
    assert_eq!(refused.code(), Code::PermissionDenied);
    // A transfer stores rows here with the rights of whoever asked.
    let other = TestServer::start().await;
    other.client().await.put(&table("people"), people(1, 5)).await.unwrap();
    for (to, expected) in [("scratch.pulled", None), ("secrets2", Some(Code::PermissionDenied))] {
        let request = json!({"from": other.uri(), "table": "people", "to": to});
        let outcome = match ann.action("transfer", &request).await {
            Ok(results) => results.try_collect::<Vec<_>>().await.map(drop),
            Err(error) => Err(error),
        };
        assert_eq!(outcome.err().map(|error| error.code()), expected, "{to}");
    }
    assert_eq!(row(&admin, "SELECT count(*) FROM scratch.pulled").await, ["5"]);
}
