//! Flight SQL's questions about catalogs, tables, keys, types and abilities: complete, true, and blind to what the
//! caller may not read.

use std::collections::HashMap;

use arrow_array::{Array, Int32Array, RecordBatch, UInt32Array, UnionArray, cast::AsArray, types::Int32Type};
use arrow_flight::{
    FlightInfo, IpcMessage,
    sql::{
        CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys,
        CommandGetPrimaryKeys, CommandGetTables, CommandGetXdbcTypeInfo, EndTransaction, SqlInfo,
        client::FlightSqlServiceClient,
    },
};
use arrow_schema::{Schema, SchemaRef};
use futures::TryStreamExt;
use mallard::config::RoleSettings;
use tonic::transport::Channel;

use crate::support::{PASSWORD, TestServer, USER, collect, row, run, test_config, with_login, with_users};

type Client = FlightSqlServiceClient<Channel>;

async fn stock(server: &TestServer) -> Client {
    FlightSqlServiceClient::new(server.channel().await)
}

/// The rows that a FlightInfo leads to; their schema is the one that it told.
async fn rows(client: &mut Client, info: FlightInfo) -> RecordBatch {
    let told: Schema = info.clone().try_decode_schema().unwrap();
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    let batches: Vec<RecordBatch> = (&mut stream).try_collect().await.unwrap();
    assert_eq!(**stream.schema().unwrap(), told);
    arrow_select::concat::concat_batches(stream.schema().unwrap(), &batches).unwrap()
}

/// Columns of text, row by row.
fn texts(rows: &RecordBatch, columns: &[&str]) -> Vec<Vec<String>> {
    let value = |row: usize, column: &str| {
        let column = rows.column_by_name(column).unwrap_or_else(|| panic!("no column {column}"));
        arrow_cast::display::array_value_to_string(column, row).unwrap()
    };
    (0..rows.num_rows()).map(|row| columns.iter().map(|column| value(row, column)).collect()).collect()
}

fn of<const N: usize>(rows: &[[&str; N]]) -> Vec<Vec<String>> {
    rows.iter().map(|row| row.iter().map(|text| text.to_string()).collect()).collect()
}

fn named(pattern: &str) -> CommandGetTables {
    CommandGetTables { table_name_filter_pattern: Some(pattern.into()), ..Default::default() }
}

/// The schema of the only row.
fn table_schema(rows: &RecordBatch) -> Schema {
    assert_eq!(rows.num_rows(), 1);
    schema_at(rows, 0)
}

fn schema_at(rows: &RecordBatch, row: usize) -> Schema {
    let bytes = rows["table_schema"].as_binary::<i32>().value(row).to_vec();
    Schema::try_from(IpcMessage(bytes.into())).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn catalogs_schemas_and_tables_are_listed_and_filtered() {
    let server = TestServer::start().await;
    let ours = server.client().await;
    for sql in [
        "CREATE SCHEMA sales",
        "CREATE TABLE sales.a_b (i INTEGER)",
        "CREATE TABLE sales.axb (i INTEGER)",
        "CREATE TABLE \"it's 100%\" (i INTEGER)",
        "CREATE VIEW seen AS SELECT 1 AS one",
    ] {
        run(&ours, sql).await;
    }
    let mut client = stock(&server).await;
    let info = client.get_catalogs().await.unwrap();
    assert_eq!(texts(&rows(&mut client, info).await, &["catalog_name"]), of(&[["memory"]]));
    for (catalog, pattern, expected) in [
        (None, None, of(&[["memory", "main"], ["memory", "sales"]])),
        (Some("memory"), Some("s%"), of(&[["memory", "sales"]])),
        (Some("MEMORY"), Some("SALE_"), of(&[["memory", "sales"]])),
        (Some("other"), None, of::<2>(&[])),
        // Tables without a catalog, which there are none of.
        (Some(""), None, of::<2>(&[])),
        (None, Some("'; DROP TABLE seen; --"), of::<2>(&[])),
    ] {
        let asked = CommandGetDbSchemas {
            catalog: catalog.map(str::to_string),
            db_schema_filter_pattern: pattern.map(str::to_string),
        };
        let info = client.get_db_schemas(asked.clone()).await.unwrap();
        assert_eq!(texts(&rows(&mut client, info).await, &["catalog_name", "db_schema_name"]), expected, "{asked:?}");
    }
    let all = [
        ["main", "it's 100%", "TABLE"],
        ["main", "seen", "VIEW"],
        ["sales", "a_b", "TABLE"],
        ["sales", "axb", "TABLE"],
    ];
    for (asked, expected) in [
        (CommandGetTables::default(), of(&all)),
        (named("a_b"), of(&all[2..])),
        (named("a\\_b"), of(&all[2..3])),
        (named("A\\_B"), of(&all[2..3])),
        (named("%100\\%"), of(&all[..1])),
        (named("it's 100%"), of(&all[..1])),
        (named("nothing"), of::<3>(&[])),
        (CommandGetTables { table_types: vec!["VIEW".into()], ..named("%") }, of(&all[1..2])),
        (CommandGetTables { table_types: vec!["VIEW".into(), "TABLE".into()], ..named("%") }, of(&all)),
        (CommandGetTables { table_types: vec!["SYSTEM TABLE".into()], ..named("%") }, of::<3>(&[])),
        (CommandGetTables { db_schema_filter_pattern: Some("sal%".into()), ..Default::default() }, of(&all[2..])),
        (CommandGetTables { catalog: Some("".into()), ..Default::default() }, of::<3>(&[])),
    ] {
        let info = client.get_tables(asked.clone()).await.unwrap();
        let found = texts(&rows(&mut client, info).await, &["db_schema_name", "table_name", "table_type"]);
        assert_eq!(found, expected, "{asked:?}");
    }
    let info = client.get_table_types().await.unwrap();
    let types = texts(&rows(&mut client, info).await, &["table_type"]);
    assert_eq!(types, of(&[["LOCAL TEMPORARY"], ["TABLE"], ["VIEW"]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn table_schemas_are_those_of_queries_with_not_null_and_what_bi_tools_ask_for() {
    let server = TestServer::start().await;
    let ours = server.client().await;
    for sql in [
        "CREATE TYPE mood AS ENUM ('sad', 'it''s fine')",
        "CREATE SCHEMA s",
        "CREATE TYPE s.feet AS STRUCT (\"a b\" INTEGER, m mood)",
        "CREATE TABLE everything AS FROM test_all_types()",
        "CREATE SEQUENCE numbers",
        "CREATE TABLE noted (id BIGINT PRIMARY KEY DEFAULT nextval('numbers'), price DECIMAL(10, 2), m mood, f s.feet, \
         \"odd \"\"name\" VARCHAR, twice BIGINT GENERATED ALWAYS AS (id * 2))",
        "COMMENT ON COLUMN noted.price IS 'without tax'",
        "CREATE TABLE gone (i INTEGER)",
        "CREATE VIEW broken AS FROM gone",
        "DROP TABLE gone",
        "CREATE VIEW seen AS SELECT id, price FROM noted",
    ] {
        run(&ours, sql).await;
    }
    let mut client = stock(&server).await;
    client.set_header("x-mallard-types", "lossless");
    for table in ["everything", "noted", "seen"] {
        let asked = CommandGetTables { include_schema: true, ..named(table) };
        let info = client.get_tables(asked).await.unwrap();
        let told = table_schema(&rows(&mut client, info).await);
        let queried: SchemaRef = ours.query(&format!("FROM {table} LIMIT 0")).await.unwrap().schema();
        assert_eq!(told.fields().len(), queried.fields().len(), "{table}");
        for (told, queried) in told.fields().iter().zip(queried.fields()) {
            assert_eq!((told.name(), told.data_type()), (queried.name(), queried.data_type()), "{table}");
            for (key, value) in queried.metadata().iter() {
                assert_eq!(told.metadata().get(key), Some(value), "{key} of {table}.{}", told.name());
            }
        }
    }
    let asked = CommandGetTables { include_schema: true, ..named("noted") };
    let info = client.get_tables(asked).await.unwrap();
    let noted = table_schema(&rows(&mut client, info).await);
    for (column, nullable, notes) in [
        ("id", false, [("TYPE_NAME", Some("BIGINT")), ("PRECISION", Some("19")), ("IS_AUTO_INCREMENT", Some("1"))]),
        ("price", true, [("TYPE_NAME", Some("DECIMAL(10,2)")), ("PRECISION", Some("10")), ("SCALE", Some("2"))]),
        (
            "price",
            true,
            [("REMARKS", Some("without tax")), ("TABLE_NAME", Some("noted")), ("IS_AUTO_INCREMENT", Some("0"))],
        ),
        ("m", true, [("TYPE_NAME", Some("ENUM('sad', 'it''s fine')")), ("SCALE", None), ("IS_READ_ONLY", Some("0"))]),
        ("odd \"name", true, [("CATALOG_NAME", Some("memory")), ("DB_SCHEMA_NAME", Some("main")), ("REMARKS", None)]),
        ("twice", true, [("IS_READ_ONLY", Some("1")), ("IS_SEARCHABLE", Some("1")), ("IS_CASE_SENSITIVE", Some("0"))]),
    ] {
        let field = noted.field_with_name(column).unwrap();
        assert_eq!(field.is_nullable(), nullable, "{column}");
        for (key, expected) in notes {
            let noted = field.metadata().get(&format!("ARROW:FLIGHT:SQL:{key}"));
            assert_eq!(noted.map(String::as_str), expected, "{key} of {column}");
        }
    }
    // A view over something that is gone is in the list, and the others are, too.
    let info = client.get_tables(CommandGetTables { include_schema: true, ..Default::default() }).await.unwrap();
    let all = rows(&mut client, info).await;
    assert_eq!(texts(&all, &["table_name"]), of(&[["broken"], ["everything"], ["noted"], ["seen"]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_told_column_by_column_from_both_sides() {
    let server = TestServer::start().await;
    let ours = server.client().await;
    for sql in [
        "CREATE TABLE parents (a INTEGER, b VARCHAR, c INTEGER UNIQUE, PRIMARY KEY (b, a))",
        "CREATE TABLE children (id INTEGER PRIMARY KEY, pb VARCHAR, pa INTEGER, pc INTEGER REFERENCES parents (c), \
         FOREIGN KEY (pb, pa) REFERENCES parents (b, a))",
        "CREATE TABLE keyless (i INTEGER)",
    ] {
        run(&ours, sql).await;
    }
    let mut client = stock(&server).await;
    for (table, expected) in [
        ("parents", of(&[["b", "1"], ["a", "2"]])),
        ("PARENTS", of(&[["b", "1"], ["a", "2"]])),
        ("children", of(&[["id", "1"]])),
        ("keyless", of::<2>(&[])),
        ("paren%", of::<2>(&[])),
    ] {
        let asked = CommandGetPrimaryKeys { catalog: None, db_schema: Some("main".into()), table: table.into() };
        let info = client.get_primary_keys(asked).await.unwrap();
        let found = texts(&rows(&mut client, info).await, &["column_name", "key_sequence"]);
        assert_eq!(found, expected, "{table}");
    }
    let columns = ["fk_table_name", "fk_column_name", "pk_table_name", "pk_column_name", "key_sequence", "update_rule"];
    let mut keys = of(&[
        ["children", "pc", "parents", "c", "1", "3"],
        ["children", "pb", "parents", "b", "1", "3"],
        ["children", "pa", "parents", "a", "2", "3"],
    ]);
    keys.sort();
    let info = client
        .get_exported_keys(CommandGetExportedKeys { catalog: None, db_schema: None, table: "parents".into() })
        .await
        .unwrap();
    let exported = rows(&mut client, info).await;
    let mut found = texts(&exported, &columns);
    found.sort();
    assert_eq!(found, keys);
    // Each key is named, and so is the one that it refers to.
    assert!(texts(&exported, &["fk_key_name", "pk_key_name"]).iter().flatten().all(|name| !name.is_empty()));
    let info = client
        .get_imported_keys(CommandGetImportedKeys {
            catalog: Some("memory".into()),
            db_schema: None,
            table: "children".into(),
        })
        .await
        .unwrap();
    let mut found = texts(&rows(&mut client, info).await, &columns);
    found.sort();
    assert_eq!(found, keys);
    for (parent, child, count) in [("parents", "children", 3), ("children", "parents", 0), ("keyless", "children", 0)] {
        let asked = CommandGetCrossReference {
            pk_table: parent.into(),
            fk_table: child.into(),
            fk_db_schema: Some("main".into()),
            ..Default::default()
        };
        let info = client.get_cross_reference(asked).await.unwrap();
        assert_eq!(rows(&mut client, info).await.num_rows(), count, "{parent} and {child}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_caller_may_not_read_is_in_no_metadata() {
    let mut config = with_login(test_config());
    let narrow = RoleSettings {
        read: Some(vec!["sales.*".into()]),
        base: Some(mallard::access::Role::Reader),
        ..Default::default()
    };
    config.auth.roles.insert("narrow".into(), narrow);
    let server = TestServer::with(with_users(config, &[("ann", "narrow")])).await;
    let admin = server.client_of(USER).await;
    for sql in [
        "CREATE SCHEMA sales",
        "CREATE SCHEMA hr",
        "CREATE TABLE sales.orders (id INTEGER PRIMARY KEY)",
        "CREATE TABLE hr.salaries (id INTEGER PRIMARY KEY)",
        "CREATE TABLE hr.raises (id INTEGER REFERENCES hr.salaries (id))",
        "CREATE TABLE secrets (id INTEGER PRIMARY KEY)",
    ] {
        run(&admin, sql).await;
    }
    let mut ann = stock(&server).await;
    ann.handshake("ann", PASSWORD).await.unwrap();
    let info = ann.get_db_schemas(CommandGetDbSchemas::default()).await.unwrap();
    assert_eq!(texts(&rows(&mut ann, info).await, &["db_schema_name"]), of(&[["sales"]]));
    for include_schema in [false, true] {
        let info = ann.get_tables(CommandGetTables { include_schema, ..Default::default() }).await.unwrap();
        assert_eq!(texts(&rows(&mut ann, info).await, &["table_name"]), of(&[["orders"]]));
    }
    for (table, count) in [("orders", 1), ("salaries", 0), ("secrets", 0)] {
        let info =
            ann.get_primary_keys(CommandGetPrimaryKeys { table: table.into(), ..Default::default() }).await.unwrap();
        assert_eq!(rows(&mut ann, info).await.num_rows(), count, "{table}");
    }
    let asked = CommandGetExportedKeys { table: "salaries".into(), ..Default::default() };
    let info = ann.get_exported_keys(asked).await.unwrap();
    assert_eq!(rows(&mut ann, info).await.num_rows(), 0);
    let info = ann.get_sql_info(vec![SqlInfo::FlightSqlServerReadOnly]).await.unwrap();
    assert_eq!(infos(&rows(&mut ann, info).await)[&(SqlInfo::FlightSqlServerReadOnly as u32)], "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_sees_its_own_transaction_and_temporary_tables() {
    let server = TestServer::with(with_login(test_config())).await;
    let (mut ours, mut others) = (stock(&server).await, stock(&server).await);
    for client in [&mut ours, &mut others] {
        client.handshake(USER, PASSWORD).await.unwrap();
    }
    async fn tables(client: &mut Client) -> Vec<Vec<String>> {
        let info = client.get_tables(CommandGetTables { include_schema: true, ..named("%") }).await.unwrap();
        texts(&rows(client, info).await, &["catalog_name", "table_name", "table_type"])
    }
    ours.execute_update("CREATE TEMP TABLE here (i INTEGER)".into(), None).await.unwrap();
    let here = ["temp", "here", "LOCAL TEMPORARY"];
    assert_eq!(tables(&mut ours).await, of(&[here]));
    let transaction = ours.begin_transaction().await.unwrap();
    ours.execute_update("CREATE TABLE inside (i INTEGER)".into(), Some(transaction.clone())).await.unwrap();
    assert_eq!(tables(&mut ours).await, of(&[["memory", "inside", "TABLE"], here]));
    assert_eq!(tables(&mut others).await, of::<3>(&[]));
    ours.end_transaction(transaction, EndTransaction::Rollback).await.unwrap();
    assert_eq!(tables(&mut ours).await, of(&[here]));
}

/// The ids with their values as text.
fn infos(rows: &RecordBatch) -> HashMap<u32, String> {
    let ids = rows.column(0).as_any().downcast_ref::<UInt32Array>().unwrap();
    let values = rows.column(1).as_any().downcast_ref::<UnionArray>().unwrap();
    let text = |row: usize| arrow_cast::display::array_value_to_string(&values.value(row), 0).unwrap();
    (0..rows.num_rows()).map(|row| (ids.value(row), text(row))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_id_of_sql_info_is_answered_from_facts() {
    let server = TestServer::start().await;
    let mut client = stock(&server).await;
    let info = client.get_sql_info(vec![]).await.unwrap();
    let all = infos(&rows(&mut client, info).await);
    // All that the protocol names.
    for id in (0..1000_u32).filter(|id| SqlInfo::try_from(*id as i32).is_ok()) {
        assert!(all.contains_key(&id), "id {id} has no value");
    }
    for (id, expected) in [
        (SqlInfo::FlightSqlServerName, "Mallard"),
        (SqlInfo::FlightSqlServerVersion, concat!("duckdb v2.0.0, Mallard ", env!("CARGO_PKG_VERSION"))),
        (SqlInfo::FlightSqlServerReadOnly, "false"),
        (SqlInfo::FlightSqlServerSql, "true"),
        (SqlInfo::FlightSqlServerSubstrait, "false"),
        (SqlInfo::FlightSqlServerTransaction, "1"),
        (SqlInfo::FlightSqlServerCancel, "true"),
        (SqlInfo::FlightSqlServerBulkIngestion, "true"),
        (SqlInfo::SqlIdentifierQuoteChar, "\""),
        (SqlInfo::SqlSearchStringEscape, "\\"),
        (SqlInfo::SqlNullOrdering, "3"),
        (SqlInfo::SqlMaxStatementLength, "262144"),
    ] {
        assert_eq!(all[&(id as u32)], expected, "{id:?}");
        let info = client.get_sql_info(vec![id]).await.unwrap();
        let one = infos(&rows(&mut client, info).await);
        assert_eq!(one, HashMap::from([(id as u32, expected.to_string())]));
    }
    for (id, words) in [
        (SqlInfo::SqlKeywords, ["SELECT", "QUALIFY"]),
        (SqlInfo::SqlNumericFunctions, ["abs", "round"]),
        (SqlInfo::SqlStringFunctions, ["upper", "substring"]),
        (SqlInfo::SqlSystemFunctions, ["version", "current_schema"]),
        (SqlInfo::SqlDatetimeFunctions, ["date_trunc", "now"]),
    ] {
        let told = &all[&(id as u32)];
        for word in words {
            let there = told.trim_matches(['[', ']']).split(", ").any(|one| one == word);
            assert!(there, "{word} is not among {id:?}: {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conversions_that_sql_info_tells_are_those_of_the_engine() {
    // Each of the protocol's types with DuckDB's, and a text that is a value of it.
    const TYPES: [(i32, &str, &str); 20] = [
        (0, "BIGINT", "1"),
        (1, "BLOB", "12"),
        (2, "BOOLEAN", "true"),
        (3, "VARCHAR", "x"),
        (4, "DATE", "2020-01-01"),
        (5, "DECIMAL(10, 2)", "1"),
        (6, "DOUBLE", "1"),
        (7, "INTEGER", "1"),
        (8, "INTERVAL", "1 day"),
        (9, "INTERVAL", "1 month"),
        (10, "BLOB", "12"),
        (11, "VARCHAR", "x"),
        (12, "DECIMAL(10, 2)", "1"),
        (13, "FLOAT", "1"),
        (14, "SMALLINT", "1"),
        (15, "TIME", "01:02:03"),
        (16, "TIMESTAMP", "2020-01-01 01:02:03"),
        (17, "TINYINT", "1"),
        (18, "BLOB", "12"),
        (19, "VARCHAR", "x"),
    ];
    let server = TestServer::start().await;
    let ours = server.client().await;
    let mut client = stock(&server).await;
    let info = client.get_sql_info(vec![SqlInfo::SqlSupportsConvert]).await.unwrap();
    let answer = rows(&mut client, info).await;
    let map = answer.column(1).as_any().downcast_ref::<UnionArray>().unwrap().value(0);
    let map = map.as_map();
    let mut told: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in 0..map.keys().len() {
        let targets = map.values().as_list::<i32>().value(entry);
        told.insert(
            map.keys().as_primitive::<Int32Type>().value(entry),
            targets.as_primitive::<Int32Type>().values().to_vec(),
        );
    }
    // A table of values, so that nothing is computed before it runs.
    for (from, from_type, text) in TYPES {
        run(&ours, &format!("CREATE OR REPLACE TABLE one AS SELECT '{text}'::{from_type} AS v")).await;
        for (to, to_type, of_target) in TYPES {
            if from_type == "VARCHAR" {
                run(&ours, &format!("CREATE OR REPLACE TABLE one AS SELECT '{of_target}' AS v")).await;
            }
            let outcome = match ours.query(&format!("SELECT CAST(v AS {to_type}) FROM one")).await {
                Ok(stream) => collect(stream).await.map(drop),
                Err(error) => Err(error),
            };
            assert_eq!(outcome.is_ok(), told[&from].contains(&to), "{from_type} to {to_type}: {outcome:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn xdbc_types_are_all_of_the_engines_and_filtered_by_code() {
    let server = TestServer::start().await;
    let mut client = stock(&server).await;
    let info = client.get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: None }).await.unwrap();
    let all = rows(&mut client, info).await;
    let codes: Vec<i32> = all["data_type"].as_any().downcast_ref::<Int32Array>().unwrap().values().to_vec();
    assert!(codes.is_sorted(), "{codes:?}");
    let names: Vec<String> = texts(&all, &["type_name"]).into_iter().flatten().collect();
    let ours = server.client().await;
    let distinct = "SELECT DISTINCT logical_type FROM duckdb_types() WHERE database_name = 'system'";
    for batch in collect(ours.query(distinct).await.unwrap()).await.unwrap() {
        for one in batch.column(0).as_string::<i32>().iter().flatten() {
            // What no column of a table is, or only inside of others.
            let nameless = ["NULL", "TYPE", "ARRAY", "UNION", "TUPLE", "VARIANT", "TIMESTAMPTZ_NS"];
            assert!(names.iter().any(|name| name == one) || nameless.contains(&one), "{one} is not told");
        }
    }
    let info = client.get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: Some(3) }).await.unwrap();
    let decimal =
        texts(&rows(&mut client, info).await, &["type_name", "column_size", "maximum_scale", "num_prec_radix"]);
    assert_eq!(decimal, of(&[["DECIMAL", "38", "38", "10"]]));
    let info = client.get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: Some(4711) }).await.unwrap();
    assert_eq!(rows(&mut client, info).await.num_rows(), 0);
}

/// Transactions that the database has begun; each statement of ours is one, and so is each that is bound.
async fn begun(client: &mallard::client::Client) -> u64 {
    row(client, "SELECT txid_current()").await[0].parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_for_5000_tables_and_their_schemas_are_as_many_as_for_one() {
    let server = TestServer::start().await;
    let (ours, mut client) = (server.client().await, stock(&server).await);
    let mut costs = Vec::new();
    for tables in [0..1, 1..5000] {
        for table in tables.clone() {
            let columns = "id BIGINT NOT NULL, name VARCHAR, price DECIMAL(10, 2), tags VARCHAR[]";
            run(&ours, &format!("CREATE TABLE t{table} ({columns})")).await;
        }
        let before = begun(&ours).await;
        let info = client.get_tables(CommandGetTables { include_schema: true, ..Default::default() }).await.unwrap();
        let listed = rows(&mut client, info).await;
        costs.push(begun(&ours).await - before);
        assert_eq!(listed.num_rows(), tables.end);
        assert_eq!(schema_at(&listed, tables.end - 1).fields().len(), 4);
    }
    // ListFlights binds each table.
    let before = begun(&ours).await;
    assert_eq!(ours.list("*").await.unwrap().len(), 5000);
    let each = begun(&ours).await - before;
    // Some things are asked for once.
    assert!(costs[1] <= costs[0] && costs[0] < 10 && each > 5000, "{costs:?} together, {each} table by table");
}
