//! Prepared statements: their schemas, values of all types, and any number of rows.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, DurationMicrosecondArray, Float64Array,
    Int32Array, Int64Array, IntervalMonthDayNanoArray, ListArray, RecordBatch, StringArray, StructArray,
    Time64MicrosecondArray, TimestampMicrosecondArray, UInt64Array, UnionArray, types::Int32Type,
};
use arrow_buffer::ScalarBuffer;
use arrow_flight::{
    Ticket,
    sql::{CommandPreparedStatementQuery, ProstMessageExt},
};
use arrow_schema::{DataType, Field, UnionFields};
use futures::TryStreamExt;
use prost::Message;
use tonic::Code;

use super::{Sql, refused, rows, table, texts, update};
use crate::support::TestServer;

fn values(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
}

fn ints(values: &[i32]) -> ArrayRef {
    Arc::new(Int32Array::from(values.to_vec()))
}

/// The answer of a prepared query as texts.
async fn query(client: &mut Sql, sql: &str, parameters: Option<RecordBatch>) -> Vec<String> {
    let mut prepared = client.prepare(sql.into(), None).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    if let Some(parameters) = parameters {
        prepared.set_parameters(parameters).unwrap();
    }
    let info = prepared.execute().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let answer = texts(&rows(client, info).await.1);
    prepared.close().await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_and_columns_are_told_before_values_are_there() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    update(&mut client, "CREATE TABLE t (i INTEGER, s VARCHAR, d DECIMAL(10, 2))").await;
    for (sql, parameters, columns) in [
        ("SELECT i, s FROM t WHERE d > ?", vec![("1", DataType::Decimal128(10, 2))], vec!["i", "s"]),
        ("SELECT $b::DATE AS x, i FROM t WHERE i = $a", vec![("b", DataType::Date32), ("a", DataType::Int32)], vec![]),
        (
            "INSERT INTO t VALUES (?, ?, ?)",
            vec![("1", DataType::Int32), ("2", DataType::Utf8), ("3", DataType::Decimal128(10, 2))],
            vec![],
        ),
        ("SELECT 1 AS one", vec![], vec!["one"]),
        ("CREATE TABLE u (i INTEGER)", vec![], vec![]),
        // What DuckDB cannot tell is a text, and the answer a guess of one column.
        ("SELECT ?", vec![("1", DataType::Utf8)], vec!["unknown"]),
    ] {
        let prepared = client.prepare(sql.into(), None).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let told = prepared.parameter_schema().unwrap();
        let told: Vec<_> =
            told.fields().iter().map(|field| (field.name().as_str(), field.data_type().clone())).collect();
        assert_eq!(told, parameters, "{sql}");
        let told = prepared.dataset_schema().unwrap();
        let told: Vec<_> = told.fields().iter().map(|field| field.name().as_str()).collect();
        if !columns.is_empty() {
            assert_eq!(told, columns, "{sql}");
        }
        prepared.close().await.unwrap();
    }
    assert_eq!(refused(client.prepare("SELECT nope FROM t".into(), None).await).0, Code::InvalidArgument);
    assert_eq!(refused(client.prepare("SELECT * FROM nope".into(), None).await).0, Code::NotFound);
    assert_eq!(server.metric("mallard_prepared_statements").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_all_types_arrive_as_they_are() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None])]);
    let structs = StructArray::from(vec![(Arc::new(Field::new("k", DataType::Int32, true)), ints(&[7]))]);
    for (column, duckdb_type, shown) in [
        (ints(&[-5]), "INTEGER", "-5"),
        (Arc::new(Int64Array::from(vec![i64::MIN])) as ArrayRef, "BIGINT", "-9223372036854775808"),
        (Arc::new(UInt64Array::from(vec![u64::MAX])), "UBIGINT", "18446744073709551615"),
        (Arc::new(Float64Array::from(vec![0.1])), "DOUBLE", "0.1"),
        (Arc::new(BooleanArray::from(vec![true])), "BOOLEAN", "true"),
        // What DuckDB says of a text that may still become anything.
        (Arc::new(StringArray::from(vec!["ä'; DROP TABLE t; --"])), "UNKNOWN", "ä'; DROP TABLE t; --"),
        (Arc::new(BinaryArray::from_vec(vec![b"\x00\xff"])), "BLOB", "\\x00\\xFF"),
        (Arc::new(Date32Array::from(vec![1])), "DATE", "1970-01-02"),
        (Arc::new(Time64MicrosecondArray::from(vec![1])), "TIME", "00:00:00.000001"),
        (Arc::new(TimestampMicrosecondArray::from(vec![1])), "TIMESTAMP", "1970-01-01 00:00:00.000001"),
        (Arc::new(DurationMicrosecondArray::from(vec![1_000_000])), "INTERVAL", "00:00:01"),
        (
            Arc::new(
                IntervalMonthDayNanoArray::new_scalar(arrow_array::types::IntervalMonthDayNano::new(1, 2, 3000))
                    .into_inner(),
            ),
            "INTERVAL",
            "1 month 2 days 00:00:00.000003",
        ),
        (
            Arc::new(Decimal128Array::from(vec![12345]).with_precision_and_scale(10, 2).unwrap()),
            "DECIMAL(10,2)",
            "123.45",
        ),
        (Arc::new(list), "INTEGER[]", "[1, NULL]"),
        (Arc::new(structs), "STRUCT(k INTEGER)", "{'k': 7}"),
    ] {
        let answer = query(
            &mut client,
            "SELECT typeof(?), $1::VARCHAR".replace('?', "$1").as_str(),
            Some(values(vec![("0", column)])),
        )
        .await;
        assert_eq!(answer, [format!("{duckdb_type}|{shown}")]);
    }
    let none: ArrayRef = Arc::new(Int32Array::from(vec![None]));
    assert_eq!(
        query(&mut client, "SELECT $1 IS NULL, typeof($1)", Some(values(vec![("0", none)]))).await,
        ["true|INTEGER"]
    );
}

/// flightsql-dbapi sends each value as a union of the types it knows.
#[tokio::test(flavor = "multi_thread")]
async fn member_of_a_union_is_the_value() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    let fields =
        UnionFields::try_new([0, 1], [Field::new("i", DataType::Int64, true), Field::new("s", DataType::Utf8, true)])
            .unwrap();
    let union = |type_id: i8| -> ArrayRef {
        let children: Vec<ArrayRef> =
            vec![Arc::new(Int64Array::from(vec![41])), Arc::new(StringArray::from(vec!["x"]))];
        Arc::new(
            UnionArray::try_new(
                fields.clone(),
                ScalarBuffer::from(vec![type_id]),
                Some(ScalarBuffer::from(vec![0])),
                children,
            )
            .unwrap(),
        )
    };
    let answer =
        query(&mut client, "SELECT $1 + 1, upper($2)", Some(values(vec![("0", union(0)), ("1", union(1))]))).await;
    assert_eq!(answer, ["42|X"]);
    // Of another type in each row.
    let children: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1, 2])), Arc::new(StringArray::from(vec!["x"]))];
    let mixed = UnionArray::try_new(
        fields.clone(),
        ScalarBuffer::from(vec![0, 0, 1]),
        Some(ScalarBuffer::from(vec![0, 1, 0])),
        children,
    );
    let mixed: ArrayRef = Arc::new(mixed.unwrap());
    let answer = query(&mut client, "SELECT $1::VARCHAR || '!'", Some(values(vec![("0", mixed)]))).await;
    assert_eq!(answer, ["1!", "2!", "x!"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_places_of_parameters() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    let two = |first: &str, second: &str| values(vec![(first, ints(&[10])), (second, ints(&[3]))]);
    for (sql, parameters, expected) in [
        ("SELECT ? - ?", two("0", "1"), "7"),
        ("SELECT $2 - $1", two("0", "1"), "-7"),
        ("SELECT $1 - $2 + $1", two("a", "b"), "17"),
        ("SELECT $a - $b", two("a", "b"), "7"),
        ("SELECT $a - $b", two("b", "a"), "-7"),
        ("SELECT $A - $b", two("$B", "$a"), "-7"),
        // Names that are not the statement's: by place.
        ("SELECT $a - $b", two("0", "1"), "7"),
    ] {
        assert_eq!(query(&mut client, sql, Some(parameters)).await, [expected], "{sql}");
    }
    let mut prepared = client.prepare("SELECT ? + ?::INTEGER".into(), None).await.unwrap();
    prepared.set_parameters(values(vec![("0", ints(&[1]))])).unwrap();
    let (code, says) = refused(prepared.execute().await);
    assert!(code == Code::InvalidArgument && says.contains("2 parameters"), "{code:?} {says}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_row_of_values_is_an_execution() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    let many = values(vec![("0", ints(&[1, 2, 3]))]);
    // The rows of each, one after the other.
    let sql = "SELECT range + 10 * $1 AS n FROM range($1)";
    assert_eq!(query(&mut client, sql, Some(many.clone())).await, ["10", "20", "21", "30", "31", "32"]);
    let none = many.slice(0, 0);
    assert!(query(&mut client, "SELECT $1::INTEGER AS n", Some(none.clone())).await.is_empty());

    update(&mut client, "CREATE TABLE t (i INTEGER PRIMARY KEY, s VARCHAR)").await;
    let mut insert = client.prepare("INSERT INTO t VALUES ($1, 'row ' || $1)".into(), None).await.unwrap();
    insert.set_parameters(values(vec![("0", ints(&(0..5000).collect::<Vec<_>>()))])).unwrap();
    assert_eq!(insert.execute_update().await.unwrap(), 5000);
    assert_eq!(table(&mut client, "SELECT count(*), max(s) FROM t").await, ["5000|row 999"]);
    // All of them or none.
    insert.set_parameters(values(vec![("0", ints(&[6000, 6001, 1]))])).unwrap();
    assert_eq!(refused(insert.execute_update().await).0, Code::FailedPrecondition);
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["5000"]);
    insert.set_parameters(values(vec![("0", ints(&[6000]))])).unwrap();
    // As a query, too, it runs once: where its FlightInfo is asked for.
    let info = insert.execute().await.unwrap();
    assert_eq!(info.total_records, 1);
    rows(&mut client, info).await;
    insert.set_parameters(none).unwrap();
    assert_eq!(insert.execute_update().await.unwrap(), 0);
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["5001"]);
    let mut returning = client.prepare("DELETE FROM t WHERE i = ? RETURNING s".into(), None).await.unwrap();
    returning.set_parameters(values(vec![("0", ints(&[1, 2, 99_999]))])).unwrap();
    let info = returning.execute().await.unwrap();
    assert_eq!(texts(&rows(&mut client, info).await.1), ["row 1", "row 2"]);
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["4999"]);
}

/// An INSERT of nothing but parameters is one statement for all rows, and must be the same as one for each.
#[tokio::test(flavor = "multi_thread")]
async fn many_rows_of_an_insert_are_as_if_inserted_one_by_one() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    let numbers: ArrayRef = Arc::new(StringArray::from(vec!["1", "2", "3"]));
    let words: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("c")]));
    for (insert, second) in [
        ("INSERT INTO t VALUES (?, ?)", "a"),
        ("insert into main.t values(?,?);", "a"),
        ("INSERT INTO \"t\" (s, i) VALUES ($2, $1)", "a"),
        ("INSERT INTO t (i, s) VALUES ($1, $2)", "a"),
        // These run for each row.
        ("INSERT INTO t VALUES ($1, $2 || '!')", "a!"),
        ("INSERT INTO t (i, s) SELECT $1, $2", "a"),
        ("INSERT INTO t (i, s) VALUES ($a, $b)", "a"),
        ("INSERT INTO t VALUES (?, ?) ON CONFLICT DO NOTHING", "a"),
    ] {
        update(&mut client, "CREATE OR REPLACE TABLE t (i INTEGER PRIMARY KEY, s VARCHAR)").await;
        let mut prepared =
            client.prepare(insert.into(), None).await.unwrap_or_else(|error| panic!("{insert}: {error}"));
        prepared.set_parameters(values(vec![("0", numbers.clone()), ("1", words.clone())])).unwrap();
        let outcome = prepared.execute_update().await;
        let inserted = outcome.unwrap_or_else(|error| panic!("{insert}: {error}"));
        assert_eq!(inserted, 3, "{insert}");
        let third = second.replace('a', "c");
        let expected = [format!("1|{second}"), "2|NULL".to_string(), format!("3|{third}")];
        assert_eq!(table(&mut client, "FROM t ORDER BY i").await, expected, "{insert}");
    }
    // A value that does not fit ends all of it.
    let mut prepared = client.prepare("INSERT INTO t (i, s) VALUES (?, ?)".into(), None).await.unwrap();
    prepared.set_parameters(values(vec![("0", words.clone()), ("1", words)])).unwrap();
    assert_eq!(refused(prepared.execute_update().await).0, Code::InvalidArgument);
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_is_used_again_and_its_values_stay_until_others_are_bound() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    let mut prepared = client.prepare("SELECT $1 + 1".into(), None).await.unwrap();
    prepared.set_parameters(values(vec![("0", ints(&[1]))])).unwrap();
    let first = prepared.execute().await.unwrap();
    assert_eq!(texts(&rows(&mut client, first.clone()).await.1), ["2"]);
    // Other types, and so another schema.
    prepared.set_parameters(values(vec![("0", Arc::new(Float64Array::from(vec![0.5])) as ArrayRef)])).unwrap();
    let second = prepared.execute().await.unwrap();
    assert_eq!(texts(&rows(&mut client, second).await.1), ["1.5"]);
    // A FlightInfo is of the values that were bound when it was asked for.
    let stale = client.do_get(first.endpoint[0].ticket.clone().unwrap()).await;
    assert_eq!(refused(stale).0, Code::FailedPrecondition);
    // Nothing bound.
    let mut unbound = client.prepare("SELECT $1::INTEGER".into(), None).await.unwrap();
    let info = unbound.execute().await.unwrap();
    assert_eq!(refused(client.do_get(info.endpoint[0].ticket.clone().unwrap()).await).0, Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn handle_that_is_closed_or_another_users_is_not_found() {
    let users = [("ann", "admin"), ("bob", "admin")];
    let config = crate::support::with_users(crate::support::test_config(), &users);
    let server = TestServer::with(config).await;
    let (mut ann, mut bob) = (server.sql_of("ann").await, server.sql_of("bob").await);
    let request =
        arrow_flight::sql::ActionCreatePreparedStatementRequest { query: "SELECT 42".into(), transaction_id: None };
    let (created, _) =
        super::action(&mut ann, "CreatePreparedStatement", request.as_any().encode_to_vec(), &[]).await.unwrap();
    let created = arrow_flight::sql::Any::decode(&*created).unwrap();
    let created: arrow_flight::sql::ActionCreatePreparedStatementResult = created.unpack().unwrap().unwrap();
    let command =
        CommandPreparedStatementQuery { prepared_statement_handle: created.prepared_statement_handle.clone() };
    assert_eq!(created.prepared_statement_handle.len(), 16);
    let ticket = Ticket::new(command.as_any().encode_to_vec());
    assert_eq!(refused(bob.do_get(ticket.clone()).await).0, Code::NotFound);
    let batches: Vec<_> = ann.do_get(ticket.clone()).await.unwrap().try_collect().await.unwrap();
    assert_eq!(texts(&batches), ["42"]);
    let close = arrow_flight::sql::ActionClosePreparedStatementRequest {
        prepared_statement_handle: created.prepared_statement_handle,
    };
    let close = close.as_any().encode_to_vec();
    let refusal = super::action(&mut bob, "ClosePreparedStatement", close.clone(), &[]).await.unwrap_err();
    assert_eq!(refusal.code(), Code::NotFound);
    super::action(&mut ann, "ClosePreparedStatement", close.clone(), &[]).await.unwrap();
    assert_eq!(refused(ann.do_get(ticket).await).0, Code::NotFound);
    let again = super::action(&mut ann, "ClosePreparedStatement", close, &[]).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_and_their_values_are_bounded() {
    let mut config = crate::support::test_config();
    config.session.prepared_statements_per_user = 2;
    config.session.parameters_size = mallard::config::Size(1000);
    let server = TestServer::with(config).await;
    let mut client = server.sql().await;
    let mut first = client.prepare("SELECT $1::VARCHAR".into(), None).await.unwrap();
    let second = client.prepare("SELECT 2".into(), None).await.unwrap();
    let (code, says) = refused(client.prepare("SELECT 3".into(), None).await);
    assert!(code == Code::ResourceExhausted && says.contains("session.prepared_statements_per_user"), "{says}");
    second.close().await.unwrap();
    let third = client.prepare("SELECT 3".into(), None).await.unwrap();
    third.close().await.unwrap();
    let long: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(2000)]));
    first.set_parameters(values(vec![("0", long)])).unwrap();
    let (code, says) = refused(first.execute().await);
    assert!(code == Code::ResourceExhausted && says.contains("session.parameters_size"), "{says}");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_idle_statements_leave_room_for_everybodys_streams_and_have_bounds_of_their_own() {
    use mallard::config::Size;
    let mut config = crate::support::with_users(crate::support::test_config(), &[("ann", "writer"), ("bob", "writer")]);
    config.limits.max_message_size = Size::mib(2);
    config.limits.bytes_in_flight = Size::mib(4);
    config.limits.queue_timeout = mallard::config::Span(std::time::Duration::from_secs(1));
    config.session.parameters_size = Size::mib(2);
    config.session.parameters_size_per_user = Size::mib(6);
    config.session.parameters_size_in_all = Size::mib(9);
    let server = TestServer::with(config).await;
    let (mut ann, mut bob) = (server.sql_of("ann").await, server.sql_of("bob").await);
    // Nested, sliced and as views: whatever it is, it is copied out of its message.
    let million = || {
        let text: ArrayRef = Arc::new(StringArray::from(vec!["skipped".to_string(), "x".repeat(1 << 20)]).slice(1, 1));
        values(vec![("0", text)])
    };
    async fn keep(client: &mut Sql, values: RecordBatch) -> Result<(), (Code, String)> {
        let mut kept = client.prepare("SELECT length($1::VARCHAR)".into(), None).await.unwrap();
        kept.set_parameters(values).unwrap();
        match kept.execute().await {
            Ok(info) => {
                assert_eq!(texts(&rows(client, info).await.1), ["1048576"]);
                // Not closed: its client keeps it.
                Ok(())
            }
            failed => Err(refused(failed)),
        }
    }
    for _ in 0..5 {
        keep(&mut ann, million()).await.unwrap();
    }
    // The messages that they came in are gone, and there is room for a stream of all that is allowed.
    crate::support::until("nothing is in flight", || async { server.metric("mallard_bytes_in_flight").await == 0.0 })
        .await;
    let client = server.client_of("bob").await;
    client.put(&crate::support::table("t"), crate::support::people(8, 60_000)).await.unwrap();

    let (code, says) = keep(&mut ann, million()).await.expect_err("ann has all that one user may have");
    assert!(code == Code::ResourceExhausted && says.contains("session.parameters_size_per_user"), "{says}");
    for _ in 0..3 {
        keep(&mut bob, million()).await.unwrap();
    }
    let (code, says) = keep(&mut bob, million()).await.expect_err("there is no more");
    assert!(code == Code::ResourceExhausted && says.contains("session.parameters_size_in_all"), "{says}");
    // What is closed makes room for others.
    super::action(&mut ann, "CloseSession", Vec::new(), &[]).await.unwrap();
    keep(&mut bob, million()).await.unwrap();
}

/// ADBC's drivers close the statement of partitions before these are read, and its cursor with it.
#[tokio::test(flavor = "multi_thread")]
async fn tickets_of_a_statement_are_good_when_it_is_closed() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    update(&mut client, "CREATE TABLE t AS SELECT range AS i FROM range(1000)").await;
    for transacted in [false, true] {
        for (query, value, expected) in [
            ("SELECT count(*) FROM t", None, "1000"),
            ("SELECT count(*) FROM t WHERE i >= ?", Some(10), "990"),
            ("SELECT ? + 1", Some(41), "42"),
        ] {
            let transaction = match transacted {
                true => Some(client.begin_transaction().await.unwrap()),
                false => None,
            };
            let mut prepared = client.prepare(query.into(), transaction.clone()).await.unwrap();
            if let Some(value) = value {
                let column = std::sync::Arc::new(arrow_array::Int64Array::from(vec![value])) as arrow_array::ArrayRef;
                prepared.set_parameters(arrow_array::RecordBatch::try_from_iter([("1", column)]).unwrap()).unwrap();
            }
            let info = prepared.execute().await.unwrap();
            prepared.close().await.unwrap();
            assert_eq!(texts(&super::rows(&mut client, info).await.1), [expected], "{query} {transacted}");
            if let Some(transaction) = transaction {
                client.end_transaction(transaction, arrow_flight::sql::EndTransaction::Commit).await.unwrap();
            }
        }
    }
}
