//! Columns that an exchanger passes on keep the Arrow type that they came with, and functions that no DuckDB has are refused
//! before there are columns.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BinaryViewArray, Date64Array, Decimal128Array, DictionaryArray, DurationMicrosecondArray,
    DurationSecondArray, FixedSizeBinaryArray, Int32Array, Int64Array, LargeBinaryArray, LargeListArray,
    LargeStringArray, ListArray, RecordBatch, StringArray, StringViewArray, StructArray, Time32SecondArray,
    TimestampMillisecondArray, TimestampSecondArray,
    types::{Int8Type, Int32Type, Int64Type},
};
use arrow_cast::cast;
use arrow_schema::{DataType, Field, Schema};
use arrow_select::concat::concat_batches;
use mallard::{client::Client, stream::RecordBatchStream};
use serde_json::json;
use tonic::Code;

use crate::{
    exchange::act,
    support::{TestServer, collect},
};

/// Columns of types that DuckDB has no form of its own for, and some that it has. `id` counts up from `first`.
fn batch(first: i64, rows: usize) -> RecordBatch {
    let some = move |row: usize| row % 5 != 1;
    let texts = || (0..rows).map(move |row| some(row).then(|| format!("a text of many letters {}", row % 100)));
    let numbers = |row: usize| some(row).then_some(first + row as i64);
    let words = StringArray::from_iter(texts());
    let dictionary: DictionaryArray<Int8Type> =
        texts().collect::<Vec<_>>().iter().map(|text| text.as_deref()).collect();
    let lists = || (0..rows).map(move |row| some(row).then(|| (0..row as i64 % 3).map(Some).collect::<Vec<_>>()));
    let of_views = Field::new("item", DataType::Utf8View, true);
    let views_in_lists =
        cast(&ListArray::from_iter_primitive::<Int64Type, _, _>(lists()), &DataType::List(Arc::new(of_views)));
    let parts = StructArray::from(vec![
        (
            Arc::new(Field::new("large", DataType::LargeUtf8, true)),
            Arc::new(LargeStringArray::from_iter(texts())) as ArrayRef,
        ),
        (
            Arc::new(Field::new("n", DataType::Int32, true)),
            Arc::new(Int32Array::from_iter((0..rows).map(|row| some(row).then_some(row as i32)))),
        ),
    ]);
    let uuids: Vec<[u8; 16]> = (0..rows).map(|row| [row as u8; 16]).collect();
    let uuids = FixedSizeBinaryArray::try_from_iter(uuids.iter()).unwrap();
    let moments = TimestampMillisecondArray::from_iter((0..rows).map(numbers)).with_timezone("Europe/Berlin");
    let decimals = Decimal128Array::from_iter((0..rows).map(|row| numbers(row).map(i128::from)))
        .with_precision_and_scale(20, 3)
        .unwrap();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from_iter_values(first..first + rows as i64))),
        ("Words", Arc::new(words.clone())),
        ("dictionary", Arc::new(dictionary)),
        (
            "numbered",
            cast(
                &Int64Array::from_iter((0..rows).map(|row| some(row).then_some(row as i64 % 7))),
                &DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Int64)),
            )
            .unwrap(),
        ),
        ("views", Arc::new(StringViewArray::from_iter(texts()))),
        ("binary_views", Arc::new(BinaryViewArray::from_iter(texts()))),
        ("large", Arc::new(LargeStringArray::from_iter(texts()))),
        ("large_binary", Arc::new(LargeBinaryArray::from_iter(texts()))),
        ("large_lists", Arc::new(LargeListArray::from_iter_primitive::<Int64Type, _, _>(lists()))),
        (
            "lists",
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists().map(|list| {
                list.map(|list| list.into_iter().map(|one| one.map(|one| one as i32)).collect::<Vec<_>>())
            }))),
        ),
        ("views_in_lists", views_in_lists.unwrap()),
        ("parts", Arc::new(parts)),
        ("seconds", Arc::new(DurationSecondArray::from_iter((0..rows).map(numbers)))),
        ("micros", Arc::new(DurationMicrosecondArray::from_iter((0..rows).map(numbers)))),
        ("day", Arc::new(Date64Array::from_iter((0..rows).map(|row| numbers(row).map(|day| day * 86_400_000))))),
        ("noon", Arc::new(Time32SecondArray::from_iter((0..rows).map(|row| some(row).then_some(row as i32 % 86_400))))),
        ("whole_seconds", Arc::new(TimestampSecondArray::from_iter((0..rows).map(numbers)))),
        ("moments", Arc::new(moments)),
        ("decimals", Arc::new(decimals)),
        ("bytes", Arc::new(uuids)),
        ("nothing", Arc::new(arrow_array::NullArray::new(rows))),
    ];
    let fields: Vec<Field> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), *name != "id")).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, column)| column).collect())
        .unwrap()
}

fn input() -> RecordBatchStream {
    let batches = vec![batch(0, 3000), batch(3000, 1), batch(3001, 999)];
    RecordBatchStream::from_batches(batches[0].schema(), batches)
}

async fn through(client: &Client, chain: &str) -> RecordBatch {
    let answer = client.exchange(chain, input()).await.unwrap_or_else(|error| panic!("{chain}: {error}"));
    let schema = answer.schema();
    let batches = collect(answer).await.unwrap_or_else(|error| panic!("{chain}: {error}"));
    assert!(
        batches.iter().all(|batch| batch.schema().fields() == schema.fields()),
        "{chain}: another schema than was said first"
    );
    concat_batches(&schema, &batches).unwrap()
}

async fn through_sql(client: &Client, sql: &str) -> RecordBatch {
    act(client, "add_exchange", json!({"name": "q", "sql": sql, "replace": true}))
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    through(client, "q").await
}

/// Values as texts, whatever the dictionaries.
fn equal(what: &str, answer: &RecordBatch, expected: &RecordBatch) {
    assert_eq!(answer.num_rows(), expected.num_rows(), "{what}");
    for (index, field) in expected.schema().fields().iter().enumerate() {
        let name = field.name();
        let own = answer.schema().field_with_name(name).unwrap().clone();
        assert_eq!(own.data_type(), field.data_type(), "{what}: {name}");
        let (answer, expected) = (answer.column_by_name(name).unwrap(), expected.column(index));
        let dense = |column: &ArrayRef| match column.data_type() {
            DataType::Dictionary(_, values) => cast(column, values).unwrap(),
            _ => column.clone(),
        };
        assert!(dense(answer) == dense(expected), "{what}: {name} has other values");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_pass_keep_their_arrow_types() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let all = through(&client, "echo").await;
    let even = through(&client, "filter {\"where\": [{\"column\": \"id\", \"op\": \"<\", \"value\": 100}]}").await;
    for sql in [
        "FROM input",
        "SELECT * FROM input",
        "SELECT *, true AS processed FROM input",
        "SELECT *, id + 1 AS next, upper(Words) AS shout FROM input",
        "SELECT * FROM input WHERE true OR id < 0",
        "SELECT id + 1 AS next, * FROM input WHERE id >= 0",
        "SELECT i.* FROM input AS i WHERE i.id >= 0",
        "FROM (SELECT * FROM input WHERE id >= 0) WHERE id < 1000000",
        "WITH a AS (SELECT * FROM input WHERE id >= 0) SELECT a.* FROM a",
        "SELECT input.* FROM input, (VALUES (1)) v(k)",
        "SELECT input.*, k FROM input LEFT JOIN (VALUES (1)) v(k) ON input.id >= 0",
        "FROM input ORDER BY id",
    ] {
        equal(sql, &through_sql(&client, sql).await, &all);
    }
    for sql in ["FROM input WHERE id < 100", "FROM input LIMIT 100", "SELECT * FROM input WHERE id < 100 ORDER BY id"] {
        let answer = through_sql(&client, sql).await;
        equal(sql, &answer, &even);
        if sql.contains("WHERE") {
            assert_eq!(answer.schema(), even.schema(), "{sql}");
        }
    }
    // Under other names, some of them, and not what is computed of them.
    let answer = through_sql(
        &client,
        "SELECT views AS v, \"WORDS\", dictionary || 'x' AS d, input.large FROM input WHERE id < 100",
    )
    .await;
    let types: Vec<_> =
        answer.schema().fields().iter().map(|field| (field.name().clone(), field.data_type().clone())).collect();
    let expected =
        [("v", DataType::Utf8View), ("Words", DataType::Utf8), ("d", DataType::Utf8), ("large", DataType::LargeUtf8)];
    assert_eq!(types[..1], [(expected[0].0.to_string(), expected[0].1.clone())]);
    assert_eq!(
        types.iter().map(|(_, data_type)| data_type.clone()).collect::<Vec<_>>(),
        expected.map(|(_, data_type)| data_type)
    );
    // Built-in ones.
    for chain in [
        "select {\"except\": [\"Words\"]}",
        "sample {\"first\": 100}",
        "validate {\"rules\": [{\"column\": \"id\", \"min\": 0}], \"failing\": \"mark\"}",
        "mask {\"columns\": {\"Words\": \"null\"}}",
    ] {
        let answer = through(&client, chain).await;
        for field in all.schema().fields().iter() {
            if let Ok(own) = answer.schema().field_with_name(field.name()) {
                assert_eq!(own.data_type(), field.data_type(), "{chain}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dictionary_that_has_no_room_for_all_values_leaves_as_several_batches() {
    let server = TestServer::start().await;
    let client = server.client().await;
    // Each batch has 100 words of its own, which together are more than an Int8 counts.
    let batches: Vec<RecordBatch> = (0..20)
        .map(|batch| {
            let words: Vec<String> = (0..3000).map(|row| format!("{batch} {}", row % 100)).collect();
            let words: DictionaryArray<Int8Type> = words.iter().map(|word| Some(word.as_str())).collect();
            RecordBatch::try_from_iter([("word", Arc::new(words) as ArrayRef)]).unwrap()
        })
        .collect();
    let expected: Vec<String> =
        (0..20).flat_map(|batch| (0..3000).map(move |row| format!("{batch} {}", row % 100))).collect();
    act(&client, "add_exchange", json!({"name": "q", "sql": "FROM input WHERE word <> ''"})).await.unwrap();
    let answer = client.exchange("q", RecordBatchStream::from_batches(batches[0].schema(), batches)).await.unwrap();
    let answer = collect(answer).await.unwrap();
    let mut words = Vec::new();
    for batch in &answer {
        assert_eq!(
            batch.column(0).data_type(),
            &DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8))
        );
        let texts = cast(batch.column(0), &DataType::Utf8).unwrap();
        let texts = texts.as_any().downcast_ref::<StringArray>().unwrap();
        words.extend(texts.iter().flatten().map(str::to_string));
    }
    assert_eq!(words, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_duckdb_does_not_know_are_refused_when_they_are_registered() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for (sql, words) in [
        ("SELECT nosuch(id) FROM input", &["nosuch", "does not exist", "LINE 1: SELECT nosuch(id)"][..]),
        ("SELECT uper(name) AS n FROM input", &["uper", "Did you mean \"upper\""]),
        ("SELECT id FROM input WHERE\n  nosuch(id) > 1", &["nosuch", "LINE 2:   nosuch(id)"]),
        ("SELECT id, name.nosuch(1) FROM input", &["nosuch"]),
        ("SELECT (SELECT max(nosuch(x)) FROM (VALUES (1)) v(x)) FROM input", &["nosuch"]),
        ("SELECT list_transform([id], lambda x: nosuch(x)) FROM input", &["nosuch"]),
        ("SELECT nosuch(id) OVER () FROM input", &["nosuch"]),
        ("SELECT id FROM input, nosuch(3)", &["nosuch"]),
        ("WITH a AS (SELECT upper(nosuch(id)) AS b FROM input) FROM a", &["nosuch"]),
        ("SELECT id::NOSUCH FROM input", &["NOSUCH"]),
        ("SELECT TRY_CAST(id AS NOSUCH) FROM input", &["NOSUCH"]),
    ] {
        let body = json!({"name": "x", "sql": sql, "replace": true});
        let refused = act(&client, "add_exchange", body).await.expect_err(sql);
        assert!(matches!(refused.code(), Code::InvalidArgument | Code::NotFound), "{sql}: {refused}");
        words.iter().for_each(|word| assert!(refused.to_string().contains(word), "{sql}: {refused}"));
    }
    // What depends on the columns waits for them.
    for sql in [
        "SELECT nocolumn FROM input",
        "SELECT upper(id, id) FROM input",
        "SELECT nocolumn.part FROM input",
        "SELECT coalesce(id, 1), nullif(id, 1), unnest([id]), if(true, id, 1), id IN (1, 2) FROM input",
        "SELECT row_number() OVER (), rank() OVER (ORDER BY id), first_value(id) OVER () FROM input",
        "SELECT id::DECIMAL(9, 2), id::STRUCT(a INTEGER[]), id::ENUM('a'), id::MAP(INTEGER, TEXT), id::UNION(a INT), id::TIMESTAMP WITH TIME ZONE FROM input",
        "SELECT count(DISTINCT id), grouping(name) FROM input GROUP BY CUBE (name)",
    ] {
        act(&client, "add_exchange", json!({"name": "x", "sql": sql, "replace": true}))
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_function_and_type_that_duckdb_has_is_known() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let names = async |sql: &str| {
        let batches = collect(client.query(sql).await.unwrap()).await.unwrap();
        let mut names = Vec::new();
        for batch in &batches {
            let texts = batch.column(0).as_any().downcast_ref::<StringArray>().unwrap();
            names.extend(texts.iter().flatten().map(str::to_string));
        }
        names
    };
    let functions = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type IN ('scalar', 'aggregate', 'macro') \
                     AND function_name SIMILAR TO '[a-z][a-z0-9_]*' ORDER BY 1";
    let mut functions = names(functions).await;
    assert!(functions.len() > 400, "{}", functions.len());
    let types = names("SELECT DISTINCT type_name FROM duckdb_types() WHERE database_name = 'system' ORDER BY 1").await;
    let casts: Vec<String> = types.iter().map(|name| format!("TRY_CAST(NULL AS \"{name}\")")).collect();
    let mut refused = 0;
    loop {
        let calls: Vec<String> = functions.iter().map(|name| format!("\"{name}\"(id)")).chain(casts.clone()).collect();
        let sql = format!("SELECT {} FROM input", calls.join(", "));
        match act(&client, "add_exchange", json!({"name": "all", "sql": sql, "replace": true})).await {
            Ok(_) => break,
            Err(denied) if denied.code() == Code::PermissionDenied && refused < 20 => {
                refused += 1;
                let told = denied.to_string();
                let before = functions.len();
                functions.retain(|name| !told.contains(&format!("function {name} ")));
                assert!(functions.len() < before, "{told}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
