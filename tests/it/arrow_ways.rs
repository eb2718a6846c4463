//! The check of Arrow data holds on every way into DuckDB, and what DuckDB cannot say in Arrow is not said wrong.

use std::{collections::HashMap, sync::Arc};

use arrow_array::{
    Array, ArrayRef, DictionaryArray, FixedSizeBinaryArray, Int8Array, Int32Array, RecordBatch, StringArray,
    StructArray, Time32SecondArray, UnionArray, cast::AsArray, types::Int8Type,
};
use arrow_flight::{FlightData, encode::FlightDataEncoderBuilder, sql::CommandStatementIngest};
use arrow_schema::{DataType, Field, Schema, UnionFields};
use futures::TryStreamExt;
use mallard::stream::RecordBatchStream;
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    exchange::act,
    flight_sql::message,
    support::{TestServer, collect, row, run, table},
};

/// arrow.uuid over one byte each: as a column, and as a member of a union, whose field keeps the type.
pub(crate) fn exploits() -> Vec<(&'static str, RecordBatch)> {
    let metadata = HashMap::from([("ARROW:extension:name".to_string(), "arrow.uuid".to_string())]);
    let short = |size: i32| {
        let values = vec![Some(vec![7_u8; size as usize]); 64];
        FixedSizeBinaryArray::try_from_sparse_iter_with_size(values.into_iter(), size).unwrap()
    };
    let field = |data_type: &DataType| Field::new("p", data_type.clone(), true).with_metadata(metadata.clone());
    let batch =
        |field: Field, array: ArrayRef| RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![array]).unwrap();
    let of = |array: ArrayRef| batch(field(array.data_type()), array);
    let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1; 64]));
    let structs = StructArray::from(vec![(Arc::new(Field::new("a", DataType::Int32, true)), numbers.clone())]);
    let members: UnionFields = [(5, Arc::new(field(&DataType::FixedSizeBinary(1))))].into_iter().collect();
    let union = UnionArray::try_new(members, vec![5; 64].into(), None, vec![Arc::new(short(1))]).unwrap();
    let time = Time32SecondArray::from(vec![1, -5, 3]);
    vec![
        ("uuid over one byte", of(Arc::new(short(1)))),
        ("uuid over no byte", of(Arc::new(short(0)))),
        ("uuid over a struct", of(Arc::new(structs))),
        ("uuid over numbers", of(numbers)),
        ("uuid in a union", batch(Field::new("p", union.data_type().clone(), true), Arc::new(union))),
        ("a time before midnight", batch(Field::new("p", time.data_type().clone(), true), Arc::new(time))),
    ]
}

fn refused(what: &str, outcome: Result<(), Status>) {
    let status = outcome.expect_err(what);
    assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
    assert!(status.message().contains("column \"p"), "{what}: {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_into_duckdb_is_checked() {
    let server = TestServer::start().await;
    let (client, mut sql) = (server.client().await, server.sql().await);
    act(&client, "add_exchange", json!({"name": "read", "sql": "SELECT count(p) FROM input"})).await.unwrap();
    act(&client, "add_exchange", json!({"name": "rows", "sql": "SELECT p, 1 AS one FROM input"})).await.unwrap();
    for (what, batch) in exploits() {
        let stream = || RecordBatchStream::from_batches(batch.schema(), vec![batch.clone()]);
        let put = client.put(&table("t"), stream()).await;
        refused(&format!("{what}, put"), put.map(drop).map_err(mallard::error::Error::into_status));
        for name in ["read", "rows"] {
            let answer = async { collect(client.exchange(name, stream()).await?).await };
            refused(&format!("{what}, {name}"), answer.await.map(drop).map_err(mallard::error::Error::into_status));
        }
        let command = CommandStatementIngest {
            table: "t".into(),
            table_definition_options: Some(arrow_flight::sql::TableDefinitionOptions { if_not_exist: 1, if_exists: 2 }),
            ..Default::default()
        };
        let rows = futures::stream::iter([Ok(batch.clone())]);
        let data = FlightDataEncoderBuilder::new().with_flight_descriptor(Some(message(&command))).build(rows);
        let data: Vec<FlightData> = data.try_collect().await.unwrap();
        let ingested = async {
            let answer = sql.inner_mut().do_put(futures::stream::iter(data)).await?;
            answer.into_inner().try_for_each(async |_| Ok(())).await
        };
        refused(&format!("{what}, ingest"), ingested.await);
        let mut prepared = sql.prepare("SELECT ? AS p".into(), None).await.unwrap();
        prepared.set_parameters(batch.clone()).unwrap();
        let error = match prepared.execute().await {
            Err(error) => error.to_string(),
            Ok(info) => {
                let ticket = info.endpoint[0].ticket.clone().unwrap();
                let answer = match sql.do_get(ticket).await {
                    Err(error) => Err(error.to_string()),
                    Ok(mut rows) => rows.try_next().await.map_err(|error| error.to_string()),
                };
                answer.expect_err(what)
            }
        };
        assert!(error.contains("column \\\"p") || error.contains("column \"p"), "{what}, bound: {error}");
    }
    assert_eq!(row(&client, "SELECT count(*) FROM duckdb_tables()").await, ["0"]);
}

/// Small batches whose dictionaries together have more values than their keys can count.
#[tokio::test(flavor = "multi_thread")]
async fn small_batches_of_different_dictionaries_are_taken() {
    let server = TestServer::start().await;
    let client = server.client().await;
    act(&client, "add_exchange", json!({"name": "read", "sql": "SELECT count(DISTINCT d), count(n) FROM input"}))
        .await
        .unwrap();
    let batches: Vec<RecordBatch> = (0..40)
        .map(|batch| {
            let words = StringArray::from_iter_values((0..100).map(|word| format!("{batch} {word}")));
            let keys = Int8Array::from_iter_values(0..100);
            let column: ArrayRef = Arc::new(DictionaryArray::<Int8Type>::new(keys, Arc::new(words)));
            let field = Arc::new(Field::new("x", column.data_type().clone(), true));
            let nested: ArrayRef = Arc::new(StructArray::from(vec![(field, column.clone())]));
            RecordBatch::try_from_iter_with_nullable([("d", column, true), ("n", nested, true)]).unwrap()
        })
        .collect();
    let stream = || RecordBatchStream::from_batches(batches[0].schema(), batches.clone());
    client.put(&table("t"), stream()).await.unwrap();
    let counted = "SELECT count(DISTINCT d), count(DISTINCT n.x), count(*) FILTER (d = n.x) FROM t";
    assert_eq!(row(&client, counted).await, ["4000", "4000", "4000"]);
    for chain in ["read", "echo", "checksum"] {
        let answer = client.exchange(chain, stream()).await.unwrap_or_else(|error| panic!("{chain}: {error}"));
        let answer = collect(answer).await.unwrap_or_else(|error| panic!("{chain}: {error}"));
        assert!(answer.iter().map(RecordBatch::num_rows).sum::<usize>() > 0, "{chain}");
    }
}

/// A union whose member is null is another value than a union that is null.
#[tokio::test(flavor = "multi_thread")]
async fn unions_with_a_null_member_move() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(
        &client,
        "CREATE TABLE a AS SELECT unnest([union_value(n := NULL::VARCHAR)::UNION(tag INTEGER, n VARCHAR), 'x', NULL, 5]) AS u",
    )
    .await;
    let rows = client.query("FROM a").await.unwrap();
    client.put(&table("b"), rows).await.unwrap();
    for name in ["a", "b"] {
        let seen = format!(
            "SELECT string_agg(coalesce(union_tag(u)::VARCHAR, '-') || coalesce(u::VARCHAR, '?'), ' ') FROM {name}"
        );
        assert_eq!(row(&client, &seen).await, ["nNULL nx -? tag5"], "{name}");
    }
    let types = "SELECT count(DISTINCT data_type) FROM duckdb_columns() WHERE column_name = 'u'";
    assert_eq!(row(&client, types).await, ["1"]);
}

/// DuckDB's microseconds times 1000 wrap around.
#[tokio::test(flavor = "multi_thread")]
async fn intervals_that_arrow_cannot_hold_are_refused() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for sql in [
        "SELECT to_microseconds(9223372036854776) AS i",
        "SELECT [INTERVAL '3000000 hours'] AS i",
        "SELECT {'a': INTERVAL '-3000000 hours'} AS i",
    ] {
        let answer = async { collect(client.query(sql).await?).await };
        let error = answer.await.expect_err(sql);
        assert_eq!(error.code(), Code::InvalidArgument, "{sql}: {error}");
        assert!(error.to_string().contains("292 years"), "{sql}: {error}");
    }
    let kept = collect(client.query("SELECT to_microseconds(9223372036854775) AS i").await.unwrap()).await.unwrap();
    let kept = kept[0].column(0).as_primitive::<arrow_array::types::IntervalMonthDayNanoType>().value(0);
    assert_eq!(kept.nanoseconds, 9_223_372_036_854_775_000);
}

/// Intervals whose microseconds fit the nanoseconds of Arrow leave as they are, and all others are refused with column and row,
/// on every path out and wherever they are.
#[tokio::test(flavor = "multi_thread")]
async fn intervals_leave_as_they_are_or_are_refused() {
    let server = TestServer::start().await;
    let client = server.client().await;
    act(&client, "add_exchange", json!({"name": "pass", "sql": "SELECT to_microseconds(us) AS i FROM input"}))
        .await
        .unwrap();
    act(&client, "add_exchange", json!({"name": "whole", "sql": "SELECT max(to_microseconds(us)) AS i FROM input"}))
        .await
        .unwrap();
    const LAST: i64 = i64::MAX / 1000;
    // 125 times 2^64 is a multiple of 1000: what wraps around so often looks like a whole number of microseconds.
    let around =
        |turns: i128| i64::try_from((turns << 64) / 1000).unwrap_or(if turns < 0 { i64::MIN } else { i64::MAX });
    let fine = [0, 1, -1, 999, LAST, -LAST, LAST - 1, 86_400_000_000];
    let mut beyond = vec![i64::MIN, i64::MIN + 1, i64::MAX, i64::MAX - 1, LAST + 1, -LAST - 1];
    for turns in [1, 2, 124, 125, 126, 250, 375, 499, 500] {
        for near in [-1_000, -1, 0, 1, 5, 9_000_000_000_000_000] {
            beyond.extend([around(turns), around(-turns)].iter().filter_map(|us| us.checked_add(near)));
        }
    }
    beyond.retain(|us| us.checked_mul(1000).is_none());
    let at = |us: i64| format!("to_microseconds(({us})::BIGINT)");
    let wraps: [(&str, fn(&str) -> String); 8] = [
        ("\"i\"", |i| i.to_string()),
        ("\"i[]\"", |i| format!("[NULL, {i}]")),
        ("\"i[]\"", |i| format!("array_value(INTERVAL 1 DAY, {i})")),
        ("\"i.a\"", |i| format!("{{'a': {i}}}")),
        ("\"i.value\"", |i| format!("MAP {{'k': {i}}}")),
        ("\"i.b\"", |i| format!("union_value(b := {i})::UNION(a INTEGER, b INTERVAL)")),
        ("\"i[].a[]\"", |i| format!("[{{'a': [{i}]}}]")),
        ("\"i.key\"", |i| format!("MAP {{{i}: 1}}")),
    ];
    for (number, us) in beyond.iter().enumerate() {
        for (place, (path, wrap)) in wraps.iter().enumerate() {
            if (number + place) % 8 != 0 {
                continue;
            }
            let (good, bad) = (wrap(&at(LAST)), wrap(&at(*us)));
            let sql = format!("SELECT i FROM (VALUES (1, {good}), (2, NULL), (3, {bad})) AS t(n, i) ORDER BY n");
            let error = async { collect(client.query(&sql).await?).await }.await.expect_err(&sql);
            assert_eq!(error.code(), Code::InvalidArgument, "{sql}: {error}");
            let said = format!("column {path}, row 3: an interval of {us} microseconds");
            assert!(error.to_string().contains(&said), "{sql}: {error}");
        }
    }
    let nanos = |batches: &[RecordBatch]| -> Vec<i64> {
        let of = |batch: &RecordBatch| {
            let column = batch.column(0).as_primitive::<arrow_array::types::IntervalMonthDayNanoType>().clone();
            column.iter().flatten().map(|value| value.nanoseconds).collect::<Vec<_>>()
        };
        batches.iter().flat_map(of).collect()
    };
    let values = fine.map(|us| format!("({})", at(us))).join(", ");
    let sent: Vec<i64> = fine.iter().map(|us| us * 1000).collect();
    run(&client, "CREATE TABLE kept (i INTERVAL)").await;
    // Every path out: a statement, RETURNING, PIVOT's like that is planned late, values, an exchanger by rows and as a whole.
    for sql in [
        format!("SELECT * FROM (VALUES {values}) AS t(i)"),
        format!("INSERT INTO kept VALUES {values} RETURNING i"),
        "FROM kept".to_string(),
    ] {
        assert_eq!(nanos(&collect(client.query(&sql).await.unwrap()).await.unwrap()), sent, "{sql}");
    }
    let of = |us: &[i64]| {
        let column: ArrayRef = Arc::new(arrow_array::Int64Array::from(us.to_vec()));
        let batch = RecordBatch::try_from_iter([("us", column)]).unwrap();
        RecordBatchStream::from_batches(batch.schema(), vec![batch])
    };
    assert_eq!(nanos(&collect(client.exchange("pass", of(&fine)).await.unwrap()).await.unwrap()), sent);
    assert_eq!(nanos(&collect(client.exchange("whole", of(&fine)).await.unwrap()).await.unwrap()), [LAST * 1000]);
    for us in beyond.iter().copied().step_by(7) {
        let insert = format!("INSERT INTO kept VALUES ({}) RETURNING i", at(us));
        let pivot = format!("PIVOT (SELECT 'i' AS name, {} AS value) ON name USING first(value)", at(us));
        for sql in [insert, pivot] {
            let error = async { collect(client.query(&sql).await?).await }.await.expect_err(&sql);
            assert!(
                error.code() == Code::InvalidArgument && error.to_string().contains("row 1: an interval"),
                "{sql}: {error}"
            );
        }
        for (name, input) in [("pass", vec![1, us]), ("whole", vec![i64::MAX - 5])] {
            let answer = async { collect(client.exchange(name, of(&input)).await?).await };
            let error = answer.await.expect_err(name).to_string();
            assert!(error.contains(&format!("row {}: an interval", input.len())), "{name}: {error}");
        }
    }
    assert_eq!(row(&client, "SELECT count(*) FROM kept").await, [fine.len().to_string()]);
}

/// The same wherever the union is, but that a union which is NULL and one whose first member is null are one in Arrow.
#[tokio::test(flavor = "multi_thread")]
async fn unions_with_a_null_member_move_inside_of_others() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let null = "union_value(n := NULL::VARCHAR)::UNION(i INTEGER, n VARCHAR)";
    let one = "UNION(i INTEGER, n VARCHAR)";
    for (value, of, tags) in [
        (format!("[{null}, 5, NULL, 'x']"), format!("{one}[]"), "list_transform(u, lambda m: union_tag(m))"),
        (
            format!("[{null}, 'x']"),
            format!("{one}[2]"),
            "list_transform(u::UNION(i INTEGER, n VARCHAR)[], lambda m: union_tag(m))",
        ),
        (format!("{{'a': {null}, 'b': 1}}"), format!("STRUCT(a {one}, b INTEGER)"), "union_tag(u.a)"),
        (
            format!("MAP {{'k': {null}, 'l': 5}}"),
            format!("MAP(VARCHAR, {one})"),
            "list_transform(map_values(u), lambda m: union_tag(m))",
        ),
        (format!("[{{'a': [{null}]}}]"), format!("STRUCT(a {one}[])[]"), "union_tag(u[1].a[1])"),
        (
            format!("union_value(b := {null})"),
            format!("UNION(a INTEGER, b {one})"),
            "[union_tag(u)::VARCHAR, union_tag(u.b)::VARCHAR]",
        ),
        (
            "union_value(b := [NULL::INTEGER])::UNION(a INTEGER, b INTEGER[])".into(),
            "UNION(a INTEGER, b INTEGER[])".into(),
            "[union_tag(u)::VARCHAR, len(u.b)::VARCHAR]",
        ),
    ] {
        run(&client, &format!("CREATE OR REPLACE TABLE a AS SELECT ({value})::{of} AS u FROM range(3)")).await;
        run(&client, "INSERT INTO a VALUES (NULL)").await;
        run(&client, "DROP TABLE IF EXISTS b").await;
        client
            .put(&table("b"), client.query("FROM a").await.unwrap())
            .await
            .unwrap_or_else(|error| panic!("{of}: {error}"));
        let seen = |from: &str| format!("SELECT string_agg(({tags})::VARCHAR || ' ' || u::VARCHAR, '; ') FROM {from}");
        let there = row(&client, &seen("a")).await;
        assert!(there[0].len() > 3, "{of}: {there:?}");
        assert_eq!(row(&client, &seen("b")).await, there, "{of}");
        let types = "SELECT count(DISTINCT data_type) FROM duckdb_columns() WHERE column_name = 'u'";
        assert_eq!(row(&client, types).await, ["1"], "{of}");
    }
}

/// A MAP of DuckDB's has each key once, which its importer does not look at.
#[tokio::test(flavor = "multi_thread")]
async fn maps_with_a_key_twice_are_refused() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let batch = |keys: ArrayRef, sizes: &[i32], valid: Option<Vec<bool>>| {
        let mut offsets = vec![0];
        sizes.iter().for_each(|size| offsets.push(offsets[offsets.len() - 1] + size));
        let values: ArrayRef = Arc::new(Int32Array::from_iter_values(0..keys.len() as i32));
        let fields =
            vec![Field::new("key", keys.data_type().clone(), false), Field::new("value", DataType::Int32, true)];
        let entries = StructArray::new(fields.into(), vec![keys, values], None);
        let entry = Arc::new(Field::new("entries", entries.data_type().clone(), false));
        let offsets = arrow_buffer::OffsetBuffer::new(offsets.into());
        let map = arrow_array::MapArray::new(entry, offsets, entries, valid.map(Into::into), false);
        RecordBatch::try_from_iter_with_nullable([("p", Arc::new(map) as ArrayRef, true)]).unwrap()
    };
    let words = |words: &[&str]| Arc::new(StringArray::from(words.to_vec())) as ArrayRef;
    let many: ArrayRef = Arc::new(Int32Array::from_iter_values((0..40).chain([7])));
    let encoded: ArrayRef = Arc::new(["a", "b", "a"].into_iter().collect::<DictionaryArray<Int8Type>>());
    let inner = StructArray::from(vec![(Arc::new(Field::new("a", DataType::Utf8, true)), words(&["x", "y", "x"]))]);
    for (what, wrong) in [
        ("texts", batch(words(&["a", "b", "c", "c"]), &[2, 2], None)),
        ("many", batch(many, &[0, 41], None)),
        ("encoded", batch(encoded, &[0, 3], None)),
        ("structs", batch(Arc::new(inner), &[0, 3], None)),
    ] {
        let stream = RecordBatchStream::from_batches(wrong.schema(), vec![wrong]);
        let error = client.put(&table("m"), stream).await.expect_err(what);
        assert!(error.to_string().contains("column \"p\", row 2: a map has the same key twice"), "{what}: {error}");
        assert_eq!(error.code(), Code::InvalidArgument);
    }
    // The same key in different maps, and twice in one that is null.
    let fine = batch(words(&["a", "b", "a", "c", "c", "a"]), &[2, 1, 2, 1], Some(vec![true, true, false, true]));
    client.put(&table("m"), RecordBatchStream::from_batches(fine.schema(), vec![fine])).await.unwrap();
    assert_eq!(row(&client, "SELECT string_agg(p::VARCHAR, ' ') FROM m").await, ["{a=0, b=1} {a=2} {a=5}"]);
}
