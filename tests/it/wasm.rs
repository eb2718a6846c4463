//! WebAssembly exchangers: rows cross a module's memory unharmed, and a module that means harm harms nobody.
//!
//! The modules are WAT, so that the tests need no compiler for WebAssembly.

use std::{sync::Arc, time::Duration};

use arrow_array::{
    ArrayRef, Decimal128Array, DictionaryArray, FixedSizeListArray, Int16Array, Int32Array, Int64Array, ListArray,
    NullArray, RecordBatch, StringArray, StringViewArray, StructArray,
    cast::AsArray,
    types::{Int8Type, Int64Type, UInt64Type},
};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, Field, Schema};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures::{SinkExt, StreamExt, channel::mpsc};
use mallard::{
    client::Client,
    config::{Config, Size, Span},
    error::Error,
    stream::RecordBatchStream,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{TestServer, collect, people, rows, test_config};

/// What every module needs: memory that is handed out once, and a message.
const COMMON: &str = r#"
  (memory (export "memory") 4)
  (global $next (mut i32) (i32.const 0x20000))
  (func (export "mallard_abi_version") (result i32) (i32.const 1))
  (func $alloc (export "mallard_alloc") (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 63)) (i32.const -64)))
    (global.set $next (i32.add (local.get $at) (local.get $size)))
    (if (i32.gt_u (global.get $next) (i32.mul (memory.size) (i32.const 65536)))
      (then (if (i32.eq (memory.grow (i32.add (i32.shr_u (local.get $size) (i32.const 16)) (i32.const 1))) (i32.const -1))
        (then (return (i32.const 0))))))
    (local.get $at))
  (data (i32.const 0x400) "the module's own words\00")
  ;; Copies a structure and those of its children: pointers to 0x10000, structures from 0x11000. So the host sees bytes
  ;; where it would see its own columns.
  (func $copied (param $in i32) (param $out i32) (param $size i32) (param $count i32) (param $children i32)
    (local $i i32) (local $at i32)
    (memory.copy (local.get $out) (local.get $in) (local.get $size))
    (i32.store (i32.add (local.get $out) (local.get $children)) (i32.const 0x10000))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (i32.load (i32.add (local.get $in) (local.get $count)))))
      (local.set $at (i32.add (i32.const 0x11000) (i32.mul (local.get $i) (local.get $size))))
      (memory.copy (local.get $at)
        (i32.load (i32.add (i32.load (i32.add (local.get $in) (local.get $children))) (i32.mul (local.get $i) (i32.const 4))))
        (local.get $size))
      (i32.store (i32.add (i32.const 0x10000) (i32.mul (local.get $i) (i32.const 4))) (local.get $at))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next))))
"#;

const SAME_SCHEMA: &str = "(memory.copy (local.get $out) (local.get $in) (i32.const 48)) (i32.const 0)";
const SAME_ROWS: &str = "(memory.copy (local.get $out) (local.get $in) (i32.const 64)) (i32.const 1)";
const COPIED_SCHEMA: &str =
    "(call $copied (local.get $in) (local.get $out) (i32.const 48) (i32.const 24) (i32.const 32)) (i32.const 0)";
const COPIED_ROWS: &str =
    "(call $copied (local.get $in) (local.get $out) (i32.const 64) (i32.const 32) (i32.const 44)) (i32.const 1)";

/// The text of a module of these two bodies, and what else it has.
fn wat_of(open: &str, batch: &str, more: &str) -> String {
    format!(
        r#"(module {COMMON}
  (func (export "mallard_open") (param $in i32) (param $params i32) (param $length i32) (param $out i32) (result i32) {open})
  (func $batch (export "mallard_batch") (param $in i32) (param $out i32) (result i32) {batch})
  {more})"#
    )
}

fn module(open: &str, batch: &str, more: &str) -> Vec<u8> {
    wat::parse_str(wat_of(open, batch, more)).unwrap_or_else(|error| panic!("{error}"))
}

/// Answers the columns as they are, after these instructions.
fn passing(instructions: &str) -> Vec<u8> {
    module(SAME_SCHEMA, &format!("{instructions} {SAME_ROWS}"), "")
}

/// Answers bytes, after these instructions have changed the copied structures.
fn changed(instructions: &str) -> Vec<u8> {
    let batch = COPIED_ROWS.replace(" (i32.const 1)", &format!(" {instructions} (i32.const 1)"));
    module(SAME_SCHEMA, &batch, "")
}

const WORDS: &str = r#"(func (export "mallard_error") (result i32) (i32.const 0x400))"#;

async fn act(client: &Client, name: &str, body: Value) -> Result<Vec<Value>, Error> {
    let mut results = client.action(name, &body).await?.boxed();
    let mut all = Vec::new();
    while let Some(result) = results.next().await {
        all.push(serde_json::from_slice(&result?).unwrap_or_default());
    }
    Ok(all)
}

async fn register(client: &Client, name: &str, module: &[u8]) -> Result<(), Error> {
    let body = json!({"name": name, "wasm": BASE64_STANDARD.encode(module), "replace": true});
    act(client, "add_exchange", body).await.map(drop)
}

async fn exchange(client: &Client, name: &str, input: RecordBatchStream) -> Result<Vec<RecordBatch>, Error> {
    collect(client.exchange(name, input).await?).await
}

fn small_limits() -> Config {
    let mut config = test_config();
    config.wasm.call_time = Span(Duration::from_millis(200));
    config.wasm.stream_time = Span(Duration::from_millis(600));
    config.wasm.memory = Size::mib(8);
    config.wasm.module_size = Size(256 * 1024);
    config.wasm.function_size = Size(64 * 1024);
    config.wasm.output_size = Size::mib(16);
    config.wasm.output_rows = 100_000;
    config
}

/// A stream through a good module that stays open beside what is tried.
struct Beside {
    send: mpsc::Sender<Result<RecordBatch, Error>>,
    answer: RecordBatchStream,
    passed: usize,
}

impl Beside {
    async fn start(client: &Client) -> Self {
        register(client, "beside", &changed("")).await.unwrap();
        let (mut send, receive) = mpsc::channel(1);
        send.send(Ok(one_batch().await)).await.unwrap();
        let input = RecordBatchStream::new(people(1, 1).schema(), receive);
        let answer = client.exchange("beside", input).await.unwrap();
        let mut beside = Self { send, answer, passed: 0 };
        beside.take().await;
        beside
    }

    async fn take(&mut self) {
        let answer = tokio::time::timeout(Duration::from_secs(30), self.answer.next()).await;
        let batch = answer.expect("the other stream answers").expect("it goes on").expect("it is well");
        assert_eq!(batch, one_batch().await);
        self.passed += batch.num_rows();
    }

    async fn still_flows(&mut self) {
        self.send.send(Ok(one_batch().await)).await.unwrap();
        self.take().await;
    }

    async fn end(mut self) -> usize {
        self.send.close_channel();
        assert!(self.answer.next().await.is_none());
        self.passed
    }
}

async fn one_batch() -> RecordBatch {
    collect(people(1, 1000)).await.unwrap().remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn module_is_registered_used_listed_and_dropped() {
    let server = TestServer::start().await;
    let client = server.client().await;
    register(&client, "same", &passing("")).await.unwrap();
    register(&client, "copied", &module(COPIED_SCHEMA, COPIED_ROWS, "")).await.unwrap();
    let listed = act(&client, "list_exchanges", Value::Null).await.unwrap();
    let same = listed.iter().find(|entry| entry["name"] == "same").unwrap();
    assert_eq!(same["kind"], "wasm");
    let input = collect(people(30, 10_000)).await.unwrap();
    for name in ["same", "copied", "copied | same | copied"] {
        assert_eq!(exchange(&client, name, people(30, 10_000)).await.unwrap(), input, "{name}");
    }
    assert!(server.metric("mallard_exchanges_total{kind=\"wasm\",outcome=\"ok\"}").await >= 2.0);
    act(&client, "drop_exchange", json!({"name": "same"})).await.unwrap();
    assert_eq!(exchange(&client, "same", people(1, 1)).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_are_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = test_config();
    config.database.path = folder.path().join("kept.duckdb").to_string_lossy().into_owned();
    let server = TestServer::with(config.clone()).await;
    register(&server.client().await, "kept", &changed("")).await.unwrap();
    server.server.stop(std::future::pending()).await.unwrap();
    let server = TestServer::with(config).await;
    let answer = exchange(&server.client().await, "kept", people(3, 1000)).await.unwrap();
    assert_eq!(answer, collect(people(3, 1000)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_crosses_the_memory_and_equals_itself() {
    let server = TestServer::start().await;
    let client = server.client().await;
    register(&client, "copied", &module(COPIED_SCHEMA, COPIED_ROWS, "")).await.unwrap();
    // DuckDB's own, all but its UNION, which Arrow's unions are.
    let sql = "SELECT * EXCLUDE (\"union\") FROM test_all_types()";
    let sent = collect(client.query(sql).await.unwrap()).await.unwrap();
    let again = exchange(&client, "copied", client.query(sql).await.unwrap()).await.unwrap();
    assert_eq!(sent[0].schema(), again[0].schema());
    assert_eq!(sent, again);

    // Arrow's, as slices whose offsets are not 0, as lists of nothing, and without rows.
    let batch = arrow_types();
    for (start, length) in [(0, 8), (3, 4), (7, 1), (1, 7)] {
        let slice = batch.slice(start, length);
        let input =
            RecordBatchStream::from_batches(batch.schema(), vec![slice.clone(), batch.slice(0, 0), slice.clone()]);
        let answer = exchange(&client, "copied", input).await.unwrap();
        assert_eq!(answer, [slice.clone(), slice], "{start} {length}");
    }
}

fn arrow_types() -> RecordBatch {
    let some = |row: usize| row % 3 != 1;
    let numbers = || Arc::new(Int32Array::from_iter((0..8).map(|row| some(row).then_some(row as i32 * 7)))) as ArrayRef;
    let texts = Arc::new(StringArray::from_iter((0..8).map(|row| some(row).then(|| "ä".repeat(row))))) as ArrayRef;
    let item = Arc::new(Field::new("item", DataType::Int32, true));
    let lists = ListArray::from_iter_primitive::<arrow_array::types::Int32Type, _, _>(
        (0..8).map(|row| some(row).then(|| (0..row as i32).map(Some).collect::<Vec<_>>())),
    );
    let pairs = Int32Array::from_iter_values(0..16);
    let pairs = FixedSizeListArray::new(item, 2, Arc::new(pairs), Some(NullBuffer::from_iter((0..8).map(some))));
    let parts = StructArray::from(vec![
        (Arc::new(Field::new("n", DataType::Int32, true)), numbers()),
        (Arc::new(Field::new("t", DataType::Utf8, true)), texts.clone()),
    ]);
    let words: DictionaryArray<Int8Type> = ["a", "b", "a", "c", "b", "a", "d", "a"].into_iter().collect();
    let bools = arrow_array::BooleanArray::from_iter((0..8).map(|row| some(row).then_some(row % 2 == 0)));
    let decimals =
        Decimal128Array::from_iter_values((0..8).map(|row| row * 1001)).with_precision_and_scale(9, 3).unwrap();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("numbers", numbers()),
        ("texts", texts),
        ("lists", Arc::new(lists)),
        ("pairs", Arc::new(pairs)),
        ("parts", Arc::new(parts)),
        ("words", Arc::new(words)),
        ("bools", Arc::new(bools)),
        ("decimals", Arc::new(decimals)),
        ("nothing", Arc::new(NullArray::new(8))),
    ];
    let nullable = columns.into_iter().map(|(name, column)| (name, column, true));
    RecordBatch::try_from_iter_with_nullable(nullable).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn types_that_no_module_reads_are_passed_on_and_refused_when_read() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let unread = r#"(func (export "mallard_reads") (param i32) (result i32) (i32.const 0))"#;
    register(&client, "unread", &module(SAME_SCHEMA, SAME_ROWS, unread)).await.unwrap();
    register(&client, "reading", &passing("")).await.unwrap();
    register(&client, "unread_bytes", &module(SAME_SCHEMA, COPIED_ROWS, unread)).await.unwrap();
    let views = StringViewArray::from_iter_values(["short", "one that is longer than twelve bytes"]);
    let batch = RecordBatch::try_from_iter([("views", Arc::new(views) as ArrayRef)]).unwrap();
    let input = || RecordBatchStream::from_batches(batch.schema(), vec![batch.clone()]);
    assert_eq!(exchange(&client, "unread", input()).await.unwrap(), std::slice::from_ref(&batch));
    let refused = exchange(&client, "reading", input()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.to_string().contains("column \"views\": a module cannot read Utf8View"), "{refused}");
    let bytes = exchange(&client, "unread_bytes", people(1, 1)).await.unwrap_err();
    assert!(bytes.to_string().contains("column \"id\": it has 0 buffers instead of 2"), "{bytes}");
    assert_eq!(collect(client.query("SELECT 1").await.unwrap()).await.unwrap().len(), 1);
}

/// Answers the first column's rows by number: those with even numbers twice, all columns.
#[tokio::test(flavor = "multi_thread")]
async fn rows_by_number_are_the_hosts_own() {
    let server = TestServer::start().await;
    let client = server.client().await;
    // 0x8000: two pointers, no validity and the numbers at 0x9000, which are 4 of 10 rows, one of them twice.
    let numbers = r#"
        (i64.store (local.get $out) (i64.const 4))
        (i32.store (i32.const 0x8004) (i32.const 0x9000))
        (i32.store (i32.const 0x9000) (i32.const 8)) (i32.store (i32.const 0x9004) (i32.const 2))
        (i32.store (i32.const 0x9008) (i32.const 2)) (i32.store (i32.const 0x900c) (i32.const 9))
        (i64.store (i32.const 0x11000) (i64.const 4)) (i64.store (i32.const 0x11040) (i64.const 4))
        (i64.store (i32.const 0x11018) (i64.const 2)) (i64.store (i32.const 0x11058) (i64.const 2))
        (i32.store (i32.const 0x11028) (i32.const 0x8000)) (i32.store (i32.const 0x11068) (i32.const 0x8000))
        (i32.store (i32.const 0x11030) (i32.load (i32.load (i32.add (local.get $in) (i32.const 44)))))
        (i32.store (i32.const 0x11070) (i32.load offset=4 (i32.load (i32.add (local.get $in) (i32.const 44)))))
    "#;
    register(&client, "picked", &changed(numbers)).await.unwrap();
    let answer = exchange(&client, "picked", people(1, 10)).await.unwrap();
    assert_eq!(answer[0].column(0).as_primitive::<Int64Type>().values(), &[8, 2, 2, 9]);
    let names: Vec<_> = answer[0].column(1).as_string::<i32>().iter().flatten().collect();
    assert_eq!(names, ["name 8", "name 2", "name 2", "name 9"]);
    // The last of them is beyond the input.
    let refused = exchange(&client, "picked", people(1, 9)).await.unwrap_err();
    assert!(refused.to_string().contains("column \"id\": it names row 9 of an input of 9 rows"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gathering_module_answers_when_the_input_has_ended() {
    let server = TestServer::start().await;
    let client = server.client().await;
    // One column `rows` of one row, in the end.
    let counts = r#"
      (data (i32.const 0x500) "+s\00") (data (i32.const 0x510) "L\00") (data (i32.const 0x520) "rows\00")
      (global $rows (mut i64) (i64.const 0))
      (global $told (mut i32) (i32.const 0))
      (func (export "mallard_finish") (param $out i32) (result i32)
        (if (global.get $told) (then (return (i32.const 0))))
        (global.set $told (i32.const 1))
        (i64.store (i32.const 0x9000) (global.get $rows))
        (i32.store (i32.const 0x8004) (i32.const 0x9000))
        (i64.store (local.get $out) (i64.const 1)) (i64.store offset=32 (local.get $out) (i64.const 1))
        (i32.store offset=44 (local.get $out) (i32.const 0x10000))
        (i32.store (i32.const 0x10000) (i32.const 0x11000))
        (i64.store (i32.const 0x11000) (i64.const 1)) (i64.store (i32.const 0x11018) (i64.const 2))
        (i32.store (i32.const 0x11028) (i32.const 0x8000))
        (i32.const 1))"#;
    let open = r#"
        (i32.store (local.get $out) (i32.const 0x500)) (i64.store offset=24 (local.get $out) (i64.const 1))
        (i32.store offset=32 (local.get $out) (i32.const 0x10000)) (i32.store (i32.const 0x10000) (i32.const 0x11000))
        (i32.store (i32.const 0x11000) (i32.const 0x510)) (i32.store (i32.const 0x11004) (i32.const 0x520))
        (i32.const 0)"#;
    let batch = "(global.set $rows (i64.add (global.get $rows) (i64.load (local.get $in)))) (i32.const 0)";
    register(&client, "counted", &module(open, batch, counts)).await.unwrap();
    for (batches, expected) in [(0, 0), (7, 7000)] {
        let answer = exchange(&client, "counted", people(batches, 1000)).await.unwrap();
        let schema = Schema::new(vec![Field::new("rows", DataType::UInt64, false)]);
        assert_eq!(answer[0].schema().as_ref(), &schema);
        assert_eq!(answer[0].column(0).as_primitive::<UInt64Type>().values(), &[expected]);
    }
}

/// A module that fails with the parameters that it was given as its words.
pub(crate) fn told() -> Vec<u8> {
    let told =
        r#"(global $told (mut i32) (i32.const 0)) (func (export "mallard_error") (result i32) (global.get $told))"#;
    module("(global.set $told (local.get $params)) (i32.const -1)", SAME_ROWS, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_reach_the_module_as_json() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let echo = told();
    let body = json!({"name": "told", "wasm": BASE64_STANDARD.encode(&echo), "params": {"above": {"type": "INTEGER", "default": 15}, "column": {"type": "VARCHAR"}}});
    act(&client, "add_exchange", body).await.unwrap();
    for (descriptor, expected) in [
        (r#"told {"column": "ä\"b"}"#, r#"{"column":"ä\"b","above":15}"#),
        (r#"told {"above": 3, "column": null}"#, r#"{"above":3,"column":null}"#),
        ("told", "column"),
        (r#"told {"column": "a", "below": 1}"#, "below"),
    ] {
        let error = exchange(&client, descriptor, people(1, 1)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.to_string().contains(expected), "{descriptor}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_that_cannot_be_exchangers_are_refused_when_registered() {
    let server = TestServer::with(small_limits()).await;
    let client = server.client().await;
    let mut beside = Beside::start(&client).await;
    let text = |text: &str| wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"));
    let whole = passing("");
    let without = |export: &str| {
        let text = wat_of(SAME_SCHEMA, SAME_ROWS, "").replace(&format!("(export \"{export}\")"), "");
        wat::parse_str(&text).unwrap()
    };
    let mut large = whole.clone();
    // A custom section that says nothing.
    large.extend([0, 0x80, 0x80, 0x10, 1, b'x']);
    large.resize(large.len() + 262_142, 0);
    let cases: Vec<(&str, Vec<u8>, Code, &str)> = vec![
        ("nothing", vec![], Code::InvalidArgument, "not a WebAssembly module"),
        ("text", b"SELECT * FROM input".to_vec(), Code::InvalidArgument, "not a WebAssembly module"),
        ("truncated", whole[..whole.len() / 2].to_vec(), Code::InvalidArgument, "not a WebAssembly module"),
        ("empty", text("(module)"), Code::InvalidArgument, "memory"),
        ("no batch", without("mallard_batch"), Code::InvalidArgument, "mallard_batch (i32, i32) -> i32"),
        ("no memory", without("memory"), Code::InvalidArgument, "memory"),
        ("no alloc", without("mallard_alloc"), Code::InvalidArgument, "mallard_alloc"),
        ("no version", without("mallard_abi_version"), Code::InvalidArgument, "mallard_abi_version"),
        (
            "other type",
            module(
                SAME_SCHEMA,
                SAME_ROWS,
                r#"(func (export "mallard_finish") (param i64) (result i32) (i32.const 0))"#,
            ),
            Code::InvalidArgument,
            "mallard_finish is not a function (i32) -> i32",
        ),
        (
            "WASI",
            text(
                r#"(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32))))"#,
            ),
            Code::InvalidArgument,
            "imports \"fd_write\" from \"wasi_snapshot_preview1\"",
        ),
        (
            "memory of others",
            text(r#"(module (import "env" "memory" (memory 1)))"#),
            Code::InvalidArgument,
            "imports \"memory\" from \"env\"",
        ),
        (
            "start loops",
            module(SAME_SCHEMA, SAME_ROWS, "(func $start (loop $l (br $l))) (start $start)"),
            Code::ResourceExhausted,
            "wasm.call_time",
        ),
        (
            "start traps",
            module(SAME_SCHEMA, SAME_ROWS, "(func $start unreachable) (start $start)"),
            Code::InvalidArgument,
            "unreachable",
        ),
        (
            "other version",
            text(&wat_of(SAME_SCHEMA, SAME_ROWS, "").replacen("(i32.const 1))", "(i32.const 2))", 1)),
            Code::InvalidArgument,
            "version 2",
        ),
        (
            "large memory",
            text(&wat_of(SAME_SCHEMA, SAME_ROWS, "").replace("\"memory\") 4)", "\"memory\") 4000)")),
            Code::ResourceExhausted,
            "wasm.memory",
        ),
        (
            "large table",
            module(SAME_SCHEMA, SAME_ROWS, "(table 10000000 funcref)"),
            Code::ResourceExhausted,
            "wasm.table_elements",
        ),
        ("two memories", text("(module (memory 1) (memory 1))"), Code::InvalidArgument, "memories"),
        ("shared memory", text("(module (memory 1 1 shared))"), Code::InvalidArgument, "threads"),
        ("memory64", text("(module (memory i64 1))"), Code::InvalidArgument, "memory64"),
        ("component", text("(component)"), Code::InvalidArgument, "component"),
        (
            "large function",
            module(SAME_SCHEMA, SAME_ROWS, &function(0, 30_000)),
            Code::ResourceExhausted,
            "wasm.function_size",
        ),
        (
            "many variables",
            module(SAME_SCHEMA, SAME_ROWS, &function(49_000, 500)),
            Code::ResourceExhausted,
            "wasm.function_size",
        ),
        ("large", large, Code::ResourceExhausted, "wasm.module_size"),
    ];
    let tried = cases.len();
    for (name, module, code, message) in cases {
        let error = register(&client, "hostile", &module).await.expect_err(name);
        assert_eq!(error.code(), code, "{name}: {error}");
        assert!(error.to_string().contains(message), "{name}: {error}");
        beside.still_flows().await;
    }
    let body = json!({"name": "hostile", "wasm": "not base64!"});
    assert_eq!(act(&client, "add_exchange", body).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(exchange(&client, "hostile", people(1, 1)).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(beside.end().await, 1000 * (1 + tried));
}

/// A function with so many variables and additions.
fn function(locals: usize, additions: usize) -> String {
    let locals = "i32 ".repeat(locals);
    let additions = "(local.set 0 (i32.add (local.get 0) (i32.const 1)))".repeat(additions);
    format!("(func (param i32) (local {locals}) {additions})")
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_schemas_are_refused_before_there_are_rows() {
    let server = TestServer::with(small_limits()).await;
    let client = server.client().await;
    let mut beside = Beside::start(&client).await;
    let after = |more: &str| COPIED_SCHEMA.replace(" (i32.const 0)", &format!(" {more} (i32.const 0)"));
    let wrong = Code::InvalidArgument;
    let cases: Vec<(&str, String, Code, &str)> = vec![
        ("loop", "(loop $l (br $l)) (i32.const 0)".into(), Code::ResourceExhausted, "wasm.call_time"),
        ("trap", "unreachable".into(), wrong, "unreachable"),
        ("own words", "(i32.const -1)".into(), wrong, "the module's own words"),
        ("nothing filled in", "(i32.const 0)".into(), wrong, "its output schema is malformed"),
        ("2^31 columns", after("(i64.store offset=24 (local.get $out) (i64.const 0x80000000))"), wrong, "2147483648 children"),
        ("-1 columns", after("(i64.store offset=24 (local.get $out) (i64.const -1))"), wrong, "-1 children"),
        ("columns outside", after("(i32.store offset=32 (local.get $out) (i32.const -8))"), wrong, "outside of its memory"),
        ("column outside", after("(i32.store (i32.const 0x10000) (i32.const -16))"), wrong, "outside of its memory"),
        ("cycle", after("(i32.store (i32.const 0x10004) (local.get $out))"), wrong, "nested more than 16 deep"),
        // Sixteen levels of two columns each would be 65,536.
        (
            "bush",
            after("(i32.store (i32.const 0x10000) (local.get $out)) (i32.store (i32.const 0x10004) (local.get $out))"),
            wrong,
            "nested more than 16 deep",
        ),
        ("cycle of dictionaries", after("(i32.store (i32.const 0x11000) (i32.const 0x540)) (i32.store offset=36 (i32.const 0x11000) (i32.const 0x11000))"), wrong, "deep"),
        ("format outside", after("(i32.store (i32.const 0x11000) (i32.const -1))"), wrong, "outside of its memory"),
        ("format without end", after("(memory.fill (i32.const 0x30000) (i32.const 97) (i32.const 0x10000)) (i32.store (i32.const 0x11000) (i32.const 0x3fff0))"), wrong, "has no end"),
        ("unknown format", after("(i32.store (i32.const 0x11000) (i32.const 0x400))"), wrong, "column \"id\""),
        ("name not UTF-8", after("(i32.store (i32.const 0x11004) (i32.const 0x560))"), wrong, "not UTF-8"),
        ("list without items", after("(i32.store (i32.const 0x11000) (i32.const 0x550))"), wrong, "\"+l\" with 0 children"),
        ("metadata outside", after("(i32.store (i32.const 0x11008) (i32.const 0x3fffe))"), wrong, "outside of its memory"),
        ("metadata of 2^31 texts", after("(i32.store (i32.const 0x11008) (i32.const 0x570))"), wrong, "1048576 bytes"),
        ("keys of a dictionary", after("(i32.store offset=36 (i32.const 0x11030) (i32.const 0x11000))"), wrong, "keys are integers"),
        ("no struct", "(memory.copy (local.get $out) (i32.load (i32.load offset=32 (local.get $in))) (i32.const 48)) (i32.const 0)".into(), wrong, "a struct of the columns"),
    ];
    let more = format!(
        r#"{WORDS} (data (i32.const 0x540) "i\00") (data (i32.const 0x550) "+l\00") (data (i32.const 0x560) "\ff\fe\00")
        (data (i32.const 0x570) "\ff\ff\ff\7f")"#
    );
    let tried = cases.len();
    for (name, open, code, message) in cases {
        let more = if name == "trap" { more.replace(WORDS, "") } else { more.clone() };
        register(&client, "hostile", &module(&open, SAME_ROWS, &more)).await.unwrap();
        let error = client.exchange("hostile", people(1, 1)).await.err().expect(name);
        assert_eq!(error.code(), code, "{name}: {error}");
        assert!(error.to_string().contains(message), "{name}: {error}");
        assert!(error.to_string().contains("exchanger \"hostile\""), "{name}: {error}");
        beside.still_flows().await;
    }
    assert_eq!(beside.end().await, 1000 * (1 + tried));
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_rows_end_their_own_stream_only() {
    let server = TestServer::with(small_limits()).await;
    let client = server.client().await;
    let mut beside = Beside::start(&client).await;
    let wrong = Code::InvalidArgument;
    let root = |member: &str, value: &str| format!("(i64.store offset={member} (local.get $out) (i64.const {value}))");
    // Column 0 is id BIGINT at 0x11000, column 1 name VARCHAR at 0x11040.
    let id = |member: u32, value: &str| format!("(i64.store (i32.const {}) (i64.const {value}))", 0x11000 + member);
    let name = |member: u32, value: &str| format!("(i64.store (i32.const {}) (i64.const {value}))", 0x11040 + member);
    let buffer = |column: u32, index: u32, value: &str| {
        format!("(i32.store (i32.add (i32.load (i32.const {})) (i32.const {})) {value})", column + 0x28, 4 * index)
    };
    let offset = |index: u32, value: &str| {
        format!(
            "(i32.store (i32.add (i32.load offset=4 (i32.load (i32.const 0x11068))) (i32.const {})) (i32.const {value}))",
            4 * index
        )
    };
    let cases: Vec<(&str, String, Code, &str)> = vec![
        ("2^31 rows", root("0", "0x80000000"), Code::ResourceExhausted, "wasm.output_rows"),
        ("2^62 rows", root("0", "0x4000000000000000"), wrong, "its length"),
        ("-1 rows", root("0", "-1"), wrong, "its length is -1"),
        ("offset of all", root("16", "5"), wrong, "rows, and"),
        ("2^31 columns", root("32", "0x80000000"), wrong, "2147483648 children instead of 2"),
        ("one column", root("32", "1"), wrong, "1 children instead of 2"),
        ("columns outside", "(i32.store offset=44 (local.get $out) (i32.const -4))".into(), wrong, "outside of its memory"),
        ("column outside", "(i32.store (i32.const 0x10000) (i32.const -64))".into(), wrong, "outside of its memory"),
        ("column is all", "(i32.store (i32.const 0x10000) (local.get $out))".into(), wrong, "2 children instead of 0"),
        ("columns swapped", "(i32.store (i32.const 0x10000) (i32.load offset=4 (i32.load offset=44 (local.get $in))))".into(), wrong, "declared as Int64 and refers to an input column of Utf8"),
        ("few rows", id(0, "10"), wrong, "column \"id\": it has 10 rows"),
        ("column of 2^40 rows", id(0, "0x10000000000"), wrong, "column \"id\": its length"),
        ("offset", id(16, "0x7fffffff"), wrong, "column \"id\""),
        ("offset -8", id(16, "-8"), wrong, "column \"id\": its offset is -8"),
        ("2^31 buffers", id(24, "0x80000000"), wrong, "buffers"),
        ("no buffers", id(24, "0"), wrong, "0 buffers instead of 2"),
        ("children of numbers", id(32, "1"), wrong, "1 children instead of 0"),
        ("buffers outside", "(i32.store (i32.const 0x11028) (i32.const -4))".into(), wrong, "outside of its memory"),
        ("values outside", buffer(0x11000, 1, "(i32.const -64)"), wrong, "outside"),
        ("values half outside", buffer(0x11000, 1, "(i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 64))"), wrong, "outside"),
        ("no values", buffer(0x11000, 1, "(i32.const 0)"), wrong, "address 0"),
        ("validity outside", buffer(0x11000, 0, "(i32.const -1)"), wrong, "outside"),
        ("a dictionary", "(i32.store (i32.const 0x11030) (i32.const 0x11040))".into(), wrong, "it has a dictionary"),
        ("offsets fall", offset(1, "1000000"), wrong, "do not rise"),
        ("offsets below 0", offset(0, "-5"), wrong, "do not rise"),
        ("offsets outside", offset(1000, "0x7fffffff"), wrong, "outside"),
        ("texts outside", buffer(0x11040, 2, "(i32.const -1)"), wrong, "outside"),
        ("texts not UTF-8", "(i32.store8 (i32.load offset=8 (i32.load (i32.const 0x11068))) (i32.const 0xff))".into(), wrong, "column \"name\""),
        ("few texts", name(0, "999"), wrong, "999 rows"),
        ("loop", "(loop $l (br $l))".into(), Code::ResourceExhausted, "computed for longer than 200ms at once: raise wasm.call_time"),
        ("trap", "unreachable".into(), wrong, "unreachable"),
        ("recursion", "(drop (call $batch (local.get $in) (local.get $out)))".into(), wrong, "call stack exhausted"),
        ("beyond the memory", "(i32.store (i32.const -4) (i32.const 1))".into(), wrong, "out of bounds memory access"),
        ("division", "(drop (i32.div_u (i32.const 1) (i32.load (i32.const 0x8000))))".into(), wrong, "divide by zero"),
        ("table", "(call_indirect (i32.const 9))".into(), wrong, "undefined element"),
        (
            "memory growth",
            "(block $full (loop $l (br_if $full (i32.eq (memory.grow (i32.const 16)) (i32.const -1))) (br $l))) unreachable".into(),
            Code::ResourceExhausted,
            "wasm.memory",
        ),
    ];
    let tried = cases.len();
    for (name, instructions, code, message) in cases {
        // The first batch is well: the failure is in the middle of the stream.
        let guarded = format!("(if (i32.ge_u (global.get $calls) (i32.const 1)) (then {instructions}))");
        let counted = format!("{guarded} (global.set $calls (i32.add (global.get $calls) (i32.const 1)))");
        let batch = COPIED_ROWS.replace(" (i32.const 1)", &format!(" {counted} (i32.const 1)"));
        let more = "(global $calls (mut i32) (i32.const 0)) (table 4 funcref)";
        register(&client, "hostile", &module(SAME_SCHEMA, &batch, more)).await.unwrap();
        let mut answer = client.exchange("hostile", people(3, 1000)).await.unwrap();
        assert_eq!(answer.next().await.unwrap().unwrap().num_rows(), 1000, "{name}");
        let error = answer.next().await.unwrap().expect_err(name);
        assert_eq!(error.code(), code, "{name}: {error}");
        assert!(error.to_string().contains(message), "{name}: {error}");
        assert!(error.to_string().contains("exchanger \"hostile\""), "{name}: {error}");
        assert!(error.to_string().contains("at row 1001 of its input"), "{name}: {error}");
        beside.still_flows().await;
    }
    assert_eq!(beside.end().await, 1000 * (1 + tried));
    // Nothing is held: as many run again as may.
    for _ in 0..40 {
        assert_eq!(rows(&exchange(&client, "beside", people(1, 10)).await.unwrap()), 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn module_tells_its_own_words_and_where() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let failing = "(if (i64.ge_s (i64.load (i32.load offset=4 (i32.load offset=40 (i32.load (i32.load offset=44 (local.get $in)))))) (i64.const 2000)) (then (return (i32.const -1))))";
    register(&client, "failing", &module(SAME_SCHEMA, &format!("{failing} {SAME_ROWS}"), WORDS)).await.unwrap();
    let error = exchange(&client, "failing", people(5, 1000)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let told = "exchanger \"failing\": the module's own words, in the rows up to 3000 (at row 2001 of its input)";
    assert!(error.to_string().contains(told), "{error}");
    // Without words, and with words that never end.
    for (more, told) in [
        ("", "mallard_batch answered -1 and no message"),
        (r#"(func (export "mallard_error") (result i32) (i32.const -1))"#, "and no message"),
        (r#"(func (export "mallard_error") (result i32) (loop $l (br $l)) (i32.const 0))"#, "and no message"),
        (
            r#"(func (export "mallard_error") (result i32) (memory.fill (i32.const 0x20000) (i32.const 97) (i32.const 0x20000)) (i32.const 0x20000))"#,
            &"a".repeat(1024),
        ),
    ] {
        let mut config = test_config();
        config.wasm.call_time = Span(Duration::from_millis(100));
        let server = TestServer::with(config).await;
        let client = server.client().await;
        register(&client, "failing", &module(SAME_SCHEMA, "(i32.const -1)", more)).await.unwrap();
        let error = exchange(&client, "failing", people(1, 10)).await.unwrap_err();
        assert!(error.to_string().contains(told) && error.to_string().len() < 2000, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_grows_beyond_its_limit_is_refused() {
    let server = TestServer::with(small_limits()).await;
    let client = server.client().await;
    let mut beside = Beside::start(&client).await;
    // Every row is the first one, 100,000 times: a text of 10,000 bytes comes to a gigabyte.
    let repeated = r#"
        (i64.store (local.get $out) (i64.const 100000))
        (i32.store (i32.const 0x8004) (i32.const 0x40000))
        (if (i32.eq (memory.grow (i32.const 8)) (i32.const -1)) (then unreachable))
        (memory.fill (i32.const 0x40000) (i32.const 0) (i32.const 400000))
        (i64.store (i32.const 0x11000) (i64.const 100000)) (i64.store (i32.const 0x11018) (i64.const 2))
        (i32.store (i32.const 0x11028) (i32.const 0x8000))
        (i32.store (i32.const 0x11030) (i32.load (i32.load (i32.add (local.get $in) (i32.const 44)))))
    "#;
    let unread = r#"(func (export "mallard_reads") (param i32) (result i32) (i32.const 0))"#;
    let batch = COPIED_ROWS.replace(" (i32.const 1)", &format!(" {repeated} (i32.const 1)"));
    register(&client, "repeated", &module(SAME_SCHEMA, &batch, unread)).await.unwrap();
    let nested: ArrayRef = {
        let values = Int64Array::from_iter_values(0..1250);
        let item = Arc::new(Field::new("item", DataType::Int64, true));
        Arc::new(FixedSizeListArray::new(item, 1250, Arc::new(values), None))
    };
    let large: Vec<(&str, ArrayRef)> =
        vec![("text", Arc::new(StringArray::from(vec!["x".repeat(10_000)]))), ("list", nested)];
    for (name, column) in large {
        let batch = RecordBatch::try_from_iter([(name, column)]).unwrap();
        let input = RecordBatchStream::from_batches(batch.schema(), vec![batch]);
        let error = exchange(&client, "repeated", input).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{name}: {error}");
        assert!(error.to_string().contains("wasm.output_size"), "{name}: {error}");
        beside.still_flows().await;
    }
    // Numbers are small enough.
    let batch = RecordBatch::try_from_iter([("n", Arc::new(Int16Array::from(vec![7])) as ArrayRef)]).unwrap();
    let input = RecordBatchStream::from_batches(batch.schema(), vec![batch]);
    assert_eq!(rows(&exchange(&client, "repeated", input).await.unwrap()), 100_000);
    beside.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_answers_end_with_the_streams_time() {
    let mut config = small_limits();
    config.exchange.max_growth = 0;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    // Each answer to the end of the input takes some time, and there is always another.
    let finish = r#"(func (export "mallard_finish") (param $out i32) (result i32)
        (local $i i32)
        (loop $l (local.set $i (i32.add (local.get $i) (i32.const 1))) (br_if $l (i32.lt_u (local.get $i) (i32.const 1000000))))
        (i32.const 1))"#;
    let empty = "(i32.store (local.get $out) (i32.const 0x500)) (i32.const 0)";
    let more = format!(r#"{finish} (data (i32.const 0x500) "+s\00")"#);
    register(&client, "endless", &module(empty, "(i32.const 0)", &more)).await.unwrap();
    let error = exchange(&client, "endless", people(1, 1)).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.to_string().contains("computed for longer than 600ms in all: raise wasm.stream_time"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_limited_and_come_back() {
    let mut config = test_config();
    config.wasm.instances = 1;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let beside = Beside::start(&client).await;
    let error = exchange(&client, "beside", people(1, 1)).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.to_string().contains("wasm.instances"), "{error}");
    // Dropping the stream in the middle gives its instance back.
    drop(beside);
    crate::support::until("the instance is free again", || async {
        exchange(&client, "beside", people(1, 1)).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_client_ends_a_call_that_computes() {
    let mut config = test_config();
    config.wasm.instances = 1;
    config.wasm.call_time = Span(Duration::from_secs(3600));
    let server = TestServer::with(config).await;
    let client = server.client().await;
    register(&client, "loop", &passing("(loop $l (br $l))")).await.unwrap();
    register(&client, "good", &passing("")).await.unwrap();
    let mut answer = client.exchange("loop", people(1, 1)).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), answer.next()).await.is_err());
    drop(answer);
    crate::support::until("the looping call has ended", || async {
        exchange(&client, "good", people(1, 1)).await.is_ok()
    })
    .await;
}

/// What a module answers is checked like everything else that comes, before DuckDB reads it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_module_answers_is_checked_before_duckdb_reads_it() {
    let server = TestServer::start().await;
    let client = server.client().await;
    act(&client, "add_exchange", json!({"name": "read", "sql": "SELECT x, 1 AS one FROM input LIMIT 10"}))
        .await
        .unwrap();
    act(&client, "add_exchange", json!({"name": "each", "sql": "SELECT x FROM input WHERE x IS NOT NULL"}))
        .await
        .unwrap();
    let format = "(i32.store (i32.const 0x11000) (i32.const 0x540))";
    let uuid = format!("{format} (i32.store (i32.const 0x11008) (i32.const 0x600))");
    let name = "\\14\\00\\00\\00ARROW:extension:name\\0a\\00\\00\\00arrow.uuid";
    let four: ArrayRef = Arc::new(Int32Array::from(vec![5, -5, 7]));
    let eight: ArrayRef = Arc::new(Int64Array::from(vec![5, i64::MIN, 7]));
    for (what, told, format, input, says) in [
        ("a time before midnight", &format.to_string(), "tts", &four, "row 2: time32 value -5 s"),
        ("a timestamp", &format.to_string(), "tss:", &eight, "row 2: timestamp value"),
        ("a uuid over numbers", &uuid, "i", &four, "arrow.uuid is stored as"),
        ("a decimal of negative scale", &format.to_string(), "d:5,-2,32", &four, "column \"x\""),
    ] {
        let open = COPIED_SCHEMA.replace(" (i32.const 0)", &format!(" {told} (i32.const 0)"));
        let more = format!(r#"(data (i32.const 0x540) "{format}\00") (data (i32.const 0x600) "\01\00\00\00{name}")"#);
        register(&client, "answers", &module(&open, COPIED_ROWS, &more)).await.unwrap();
        for chain in ["answers | read", "answers | each"] {
            let batch = RecordBatch::try_from_iter([("x", input.clone())]).unwrap();
            let stream = RecordBatchStream::from_batches(batch.schema(), vec![batch]);
            let error = exchange(&client, chain, stream).await.expect_err(what);
            assert_eq!(error.code(), Code::InvalidArgument, "{what}, {chain}: {error}");
            assert!(error.to_string().contains(says), "{what}, {chain}: {error}");
        }
    }
    assert_eq!(rows(&exchange(&client, "each", ids()).await.unwrap()), 3);
}

fn ids() -> RecordBatchStream {
    let column: ArrayRef = Arc::new(Int32Array::from(vec![1, 2, 3]));
    let batch = RecordBatch::try_from_iter([("x", column)]).unwrap();
    RecordBatchStream::from_batches(batch.schema(), vec![batch])
}
