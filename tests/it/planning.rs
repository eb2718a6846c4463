//! Planning runs nothing, whatever the text, and a reader changes nothing by any call.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int32Array, RecordBatch};
use arrow_flight::{
    Action, FlightData, FlightDescriptor, Ticket,
    flight_service_client::FlightServiceClient,
    sql::{
        ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any, CommandPreparedStatementQuery,
        CommandPreparedStatementUpdate, CommandStatementQuery, CommandStatementUpdate, ProstMessageExt,
    },
};
use bytes::Bytes;
use futures::{TryStreamExt, stream};
use mallard::client::Client;
use prost::Message;
use serde_json::json;
use tonic::{Request, Status, Streaming, transport::Channel};

use crate::{
    flight_sql::message,
    support::{PASSWORD, TestServer, row, run, test_config, with_users},
};

const ROLES: [&str; 3] = ["reader", "writer", "admin"];

/// One of every class that DuckDB's grammar has, and those that DuckDB makes several statements of.
const STATEMENTS: [&str; 78] = [
    "ALTER TABLE t ADD COLUMN x DOUBLE DEFAULT random()",
    "ALTER TABLE t ADD COLUMN IF NOT EXISTS x INTEGER DEFAULT nextval('s')",
    "/* a comment */ alter table main.t add column x UUID default uuid();",
    "ALTER TABLE t ADD COLUMN x INTEGER DEFAULT 7",
    "ALTER TABLE t ALTER i SET DEFAULT random()",
    "ALTER TABLE t ALTER i TYPE VARCHAR USING i || random()",
    "ALTER TABLE t RENAME i TO j",
    "ALTER TABLE t RENAME TO u",
    "ALTER TABLE t DROP COLUMN g",
    "ALTER VIEW v RENAME TO w",
    "ALTER SEQUENCE s OWNED BY t",
    "PIVOT t ON g USING count(*)",
    "PIVOT (SELECT nextval('s') AS i, 1 AS g) ON g USING count(*)",
    "PIVOT (SELECT nextval('s') AS i) ON i USING count(*)",
    "PIVOT (SELECT bump() AS i) ON i USING count(*)",
    "FROM (PIVOT t ON g USING count(*))",
    "WITH p AS (PIVOT t ON g USING count(*)) FROM p",
    "WITH x AS (INSERT INTO t VALUES (7, 7) RETURNING i) PIVOT x ON i USING count(*)",
    "WITH x AS (DELETE FROM t RETURNING i) FROM (PIVOT x ON i USING count(*))",
    "CREATE TABLE p AS PIVOT t ON g USING count(*)",
    "CREATE OR REPLACE TABLE t AS FROM (PIVOT t ON g USING count(*))",
    "INSERT INTO t SELECT 1, 2 FROM (PIVOT t ON g USING count(*))",
    "CREATE VIEW p AS PIVOT t ON g IN (0, 1) USING count(*)",
    "SELECT nextval('s')",
    "SELECT bump()",
    "SELECT setseed(0.5), nextval('s') FROM range(10)",
    "VALUES (nextval('s'))",
    "INSERT INTO t VALUES (nextval('s'), 1)",
    "INSERT INTO t VALUES (8, 8) RETURNING i",
    "INSERT OR REPLACE INTO keyed VALUES (1, 'x')",
    "INSERT INTO keyed VALUES (1, 'x') ON CONFLICT DO UPDATE SET w = 'y' RETURNING *",
    "UPDATE t SET i = i + 1",
    "UPDATE t SET i = nextval('s') RETURNING i",
    "DELETE FROM t",
    "DELETE FROM t RETURNING *",
    "TRUNCATE t",
    "MERGE INTO t USING (SELECT 0 AS i) AS o ON t.i = o.i WHEN MATCHED THEN DELETE",
    "MERGE INTO t USING (SELECT 0 AS i) AS o ON t.i = o.i WHEN MATCHED THEN UPDATE SET g = 9 RETURNING *",
    "WITH x AS (INSERT INTO t VALUES (9, 9) RETURNING i) SELECT * FROM x",
    "WITH x AS (UPDATE t SET g = 0 RETURNING i) SELECT * FROM x",
    "WITH x AS (DELETE FROM t RETURNING i) SELECT * FROM x",
    "SELECT (WITH x AS (DELETE FROM t RETURNING i) SELECT count(*) FROM x)",
    "CREATE TABLE n (i INTEGER)",
    "CREATE TABLE n AS SELECT nextval('s') AS i",
    "CREATE TEMP TABLE n AS SELECT nextval('s') AS i",
    "CREATE VIEW n AS SELECT * FROM t",
    "CREATE SCHEMA n",
    "CREATE SEQUENCE n",
    "CREATE TYPE n AS ENUM ('a')",
    "CREATE TYPE n AS ENUM (SELECT i::VARCHAR FROM t)",
    "CREATE INDEX n ON t (i)",
    "CREATE MACRO n() AS 1",
    "CREATE MACRO n() AS TABLE SELECT 1",
    "COMMENT ON TABLE t IS 'changed'",
    "DROP TABLE t",
    "DROP VIEW v",
    "DROP SEQUENCE s",
    "DROP MACRO bump",
    "DROP SCHEMA other CASCADE",
    "EXPLAIN INSERT INTO t VALUES (1, 1)",
    "EXPLAIN ANALYZE INSERT INTO t VALUES (1, 1)",
    "EXPLAIN (ANALYZE, FORMAT json) DELETE FROM t",
    "EXPLAIN ANALYZE SELECT nextval('s')",
    "SET VARIABLE a = nextval('s')",
    "SET VARIABLE a = (SELECT max(i) FROM t)",
    "SET schema = 'other'",
    "USE other",
    "RESET schema",
    "CALL pragma_version()",
    "PRAGMA table_info('t')",
    "PRAGMA show_tables",
    "DESCRIBE t",
    "SUMMARIZE t",
    "VACUUM",
    "ANALYZE",
    "CHECKPOINT",
    "SELECT 1; DELETE FROM t",
    "BEGIN; DELETE FROM t; COMMIT",
];

/// Everything that a statement may change: rows, definitions, and where sequences stand.
async fn hash(admin: &Client) -> Vec<String> {
    let mut all = row(
        admin,
        "SELECT md5(string_agg(one, '\n' ORDER BY one)) FROM (\
           SELECT sql || coalesce(comment, '') AS one FROM duckdb_tables() WHERE NOT internal \
           UNION ALL SELECT sql FROM duckdb_views() WHERE NOT internal \
           UNION ALL SELECT sql FROM duckdb_sequences() UNION ALL SELECT sql FROM duckdb_indexes() \
           UNION ALL SELECT schema_name FROM duckdb_schemas() WHERE NOT internal \
           UNION ALL SELECT type_name FROM duckdb_types() WHERE NOT internal \
           UNION ALL SELECT function_name FROM duckdb_functions() WHERE NOT internal)",
    )
    .await;
    for table in ["t", "keyed", "other.o"] {
        all.extend(row(admin, &format!("SELECT count(*)::VARCHAR || ' ' || sum(hash(x)) FROM {table} AS x")).await);
    }
    all.extend(row(admin, "SELECT last_value::VARCHAR || '' FROM duckdb_sequences() WHERE sequence_name = 's'").await);
    all
}

async fn filled() -> (TestServer, Client) {
    let server = TestServer::with(with_users(test_config(), &ROLES.map(|role| (role, role)))).await;
    let admin = server.client_of("admin").await;
    for sql in [
        "CREATE TABLE t AS SELECT range::INTEGER AS i, (range % 3)::INTEGER AS g FROM range(10)",
        "CREATE TABLE keyed (k INTEGER PRIMARY KEY, w VARCHAR)",
        "INSERT INTO keyed VALUES (1, 'one')",
        "CREATE VIEW v AS SELECT * FROM t",
        "CREATE SEQUENCE s",
        "CREATE MACRO bump() AS nextval('s')",
        "CREATE SCHEMA other",
        "CREATE TABLE other.o AS SELECT 1 AS i",
    ] {
        run(&admin, sql).await;
    }
    run(&admin, "SELECT nextval('s')").await;
    (server, admin)
}

/// A caller of every RPC that takes SQL. Answers do not matter here.
struct Caller {
    client: FlightServiceClient<Channel>,
    bearer: String,
}

impl Caller {
    async fn new(server: &TestServer, user: &str) -> Self {
        let mut client = server.stock().await;
        let basic = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{user}:{PASSWORD}"));
        let mut request = Request::new(stream::empty());
        request.metadata_mut().insert("authorization", format!("Basic {basic}").parse().unwrap());
        let answer = client.handshake(request).await.unwrap();
        let bearer = answer.metadata().get("authorization").unwrap().to_str().unwrap().to_string();
        Self { client, bearer }
    }

    fn with<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.bearer.parse().unwrap());
        request
    }

    async fn drain<T>(answer: Result<tonic::Response<Streaming<T>>, Status>) -> Result<Vec<T>, Status> {
        answer?.into_inner().try_collect().await
    }

    async fn prepare(&mut self, sql: &str) -> Result<Bytes, Status> {
        let request = ActionCreatePreparedStatementRequest { query: sql.into(), transaction_id: None };
        let action = Action::new("CreatePreparedStatement", request.as_any().encode_to_vec());
        let request = self.with(action);
        let results = Self::drain(self.client.do_action(request).await).await?;
        let result: ActionCreatePreparedStatementResult =
            Any::decode(results[0].body.clone()).unwrap().unpack().unwrap().unwrap();
        Ok(result.prepared_statement_handle)
    }

    async fn close(&mut self, handle: Bytes) {
        let request = arrow_flight::sql::ActionClosePreparedStatementRequest { prepared_statement_handle: handle };
        let action = Action::new("ClosePreparedStatement", request.as_any().encode_to_vec());
        let request = self.with(action);
        let _ = Self::drain(self.client.do_action(request).await).await;
    }

    /// Every call that plans.
    async fn plan(&mut self, sql: &str) {
        let query = message(&CommandStatementQuery { query: sql.into(), transaction_id: None });
        for descriptor in [FlightDescriptor::new_cmd(sql.to_string()), query.clone()] {
            let request = self.with(descriptor);
            let _ = self.client.get_schema(request).await;
        }
        let request = self.with(FlightDescriptor::new_cmd(sql.to_string()));
        let _ = self.client.get_flight_info(request).await;
        let request = self.with(FlightDescriptor::new_cmd(sql.to_string()));
        let _ = self.client.poll_flight_info(request).await;
        if let Ok(handle) = self.prepare(sql).await {
            let command = CommandPreparedStatementQuery { prepared_statement_handle: handle.clone() };
            let request = self.with(message(&command));
            let _ = self.client.get_schema(request).await;
            self.close(handle).await;
        }
    }

    /// Every call that may run it.
    async fn run(&mut self, sql: &str) {
        let query = message(&CommandStatementQuery { query: sql.into(), transaction_id: None });
        for ticket in [Bytes::from(sql.to_string()), query.cmd.clone()] {
            let request = self.with(Ticket::new(ticket));
            let _ = Self::drain(self.client.do_get(request).await).await;
        }
        let mut infos = Vec::new();
        for descriptor in [FlightDescriptor::new_cmd(sql.to_string()), query] {
            let request = self.with(descriptor);
            infos.push(self.client.get_flight_info(request).await);
        }
        if let Ok(handle) = self.prepare(sql).await {
            let command = CommandPreparedStatementQuery { prepared_statement_handle: handle.clone() };
            let request = self.with(message(&command));
            infos.push(self.client.get_flight_info(request).await);
            let update = CommandPreparedStatementUpdate { prepared_statement_handle: handle.clone() };
            self.put(message(&update)).await;
            for info in std::mem::take(&mut infos).into_iter().flatten() {
                for endpoint in info.into_inner().endpoint {
                    let request = self.with(endpoint.ticket.unwrap());
                    let _ = Self::drain(self.client.do_get(request).await).await;
                }
            }
            self.close(handle).await;
        }
        self.put(message(&CommandStatementUpdate { query: sql.into(), transaction_id: None })).await;
        let first =
            FlightData { flight_descriptor: Some(FlightDescriptor::new_cmd(sql.to_string())), ..Default::default() };
        let request = self.with(stream::iter([first]));
        let _ = Self::drain(self.client.do_exchange(request).await).await;
        let body = json!({"name": "mine", "sql": sql, "replace": true}).to_string();
        let request = self.with(Action::new("add_exchange", body));
        let _ = Self::drain(self.client.do_action(request).await).await;
    }

    async fn put(&mut self, descriptor: FlightDescriptor) {
        let first = FlightData { flight_descriptor: Some(descriptor), ..Default::default() };
        let request = self.with(stream::iter([first]));
        let _ = Self::drain(self.client.do_put(request).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn planning_changes_nothing_for_any_role_and_no_call_lets_a_reader_change_anything() {
    let (server, admin) = filled().await;
    let before = hash(&admin).await;
    for role in ROLES {
        let mut caller = Caller::new(&server, role).await;
        for sql in STATEMENTS {
            caller.plan(sql).await;
            if role == "reader" {
                caller.run(sql).await;
            }
            assert_eq!(hash(&admin).await, before, "{role}: {sql}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_duckdb_makes_several_of_runs_once_by_every_call() {
    let (server, admin) = filled().await;
    let mut writer = Caller::new(&server, "writer").await;
    let text = |column: &str| format!("ALTER TABLE t ADD COLUMN {column} DOUBLE DEFAULT random()");
    // DoGet of a text, GetFlightInfo and DoGet as ADBC does, the same prepared, and as updates.
    let request = writer.with(Ticket::new(text("a")));
    Caller::drain(writer.client.do_get(request).await).await.unwrap();
    let query = message(&CommandStatementQuery { query: text("b"), transaction_id: None });
    let request = writer.with(query);
    let info = writer.client.get_flight_info(request).await.unwrap().into_inner();
    let request = writer.with(info.endpoint[0].ticket.clone().unwrap());
    Caller::drain(writer.client.do_get(request).await).await.unwrap();
    let handle = writer.prepare(&text("c")).await.unwrap();
    let request = writer.with(message(&CommandPreparedStatementQuery { prepared_statement_handle: handle }));
    let info = writer.client.get_flight_info(request).await.unwrap().into_inner();
    let request = writer.with(info.endpoint[0].ticket.clone().unwrap());
    Caller::drain(writer.client.do_get(request).await).await.unwrap();
    let handle = writer.prepare(&text("d")).await.unwrap();
    let update = message(&CommandPreparedStatementUpdate { prepared_statement_handle: handle });
    let update_text = message(&CommandStatementUpdate { query: text("e"), transaction_id: None });
    for descriptor in [update, update_text] {
        let first = FlightData { flight_descriptor: Some(descriptor), ..Default::default() };
        let request = writer.with(stream::iter([first]));
        Caller::drain(writer.client.do_put(request).await).await.unwrap();
    }
    let columns =
        "SELECT string_agg(column_name, ' ' ORDER BY column_index) FROM duckdb_columns() WHERE table_name = 't'";
    assert_eq!(row(&admin, columns).await, ["i g a b c d e"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_bound_values_are_told_without_running_the_statement() {
    let (server, admin) = filled().await;
    let before = hash(&admin).await;
    let mut client = server.sql_of("writer").await;
    let number: ArrayRef = Arc::new(Int32Array::from(vec![5]));
    for (sql, expected) in [
        ("SELECT nextval('s') + $1 AS n, $1 AS p", "Int64 Int32"),
        ("SELECT [?, 1] AS l", "List"),
        ("WITH x AS (INSERT INTO t VALUES ($1, 1) RETURNING i) SELECT i FROM x", "Int32"),
        ("SELECT range + 10 * $1 AS n FROM range($1)", "Int64"),
        ("SELECT $1 + 0.5 AS \"a$1?\" -- $1 ?", "Decimal"),
    ] {
        let mut prepared = client.prepare(sql.into(), None).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        prepared.set_parameters(RecordBatch::try_from_iter([("1", number.clone())]).unwrap()).unwrap();
        let info = prepared.execute().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let schema = info.try_decode_schema().unwrap();
        let types: Vec<String> = schema.fields().iter().map(|field| field.data_type().to_string()).collect();
        for (told, expected) in types.iter().zip(expected.split(' ')) {
            assert!(told.starts_with(expected), "{sql}: {types:?}");
        }
        assert_eq!(hash(&admin).await, before, "{sql}");
    }
}
