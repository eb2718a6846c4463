//! Bad input gets the right code and a message that names the thing; the server goes on.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use arrow_flight::{Action, FlightData, FlightDescriptor, Ticket, encode::FlightDataEncoderBuilder};
use arrow_ipc::{CompressionType, writer::IpcWriteOptions};
use arrow_schema::Schema;
use futures::{StreamExt, TryStreamExt, stream};
use mallard::config::Size;
use tonic::{Code, Status};

use crate::support::{TestServer, count, row, run, test_config};

async fn get(server: &TestServer, ticket: &[u8]) -> Result<(), Status> {
    let answer = server.stock().await.do_get(Ticket::new(ticket.to_vec())).await?;
    answer.into_inner().try_for_each(async |_| Ok(())).await
}

async fn put(server: &TestServer, messages: Vec<FlightData>) -> Result<(), Status> {
    let answer = server.stock().await.do_put(stream::iter(messages)).await?;
    answer.into_inner().try_for_each(async |_| Ok(())).await
}

async fn exchange(server: &TestServer, messages: Vec<FlightData>) -> Result<(), Status> {
    let answer = server.stock().await.do_exchange(stream::iter(messages)).await?;
    answer.into_inner().try_for_each(async |_| Ok(())).await
}

async fn act(server: &TestServer, name: &str, body: &str) -> Result<(), Status> {
    let answer = server.stock().await.do_action(Action::new(name, body.to_string())).await?;
    answer.into_inner().try_for_each(async |_| Ok(())).await
}

fn check(what: &str, outcome: Result<(), Status>, code: Code, says: &str) {
    let status = outcome.expect_err(what);
    assert_eq!(status.code(), code, "{what}: {status}");
    assert!(status.message().contains(says), "{what} says {says:?}: {}", status.message());
}

fn numbers(rows: usize) -> RecordBatch {
    let column = Arc::new(Int64Array::from_iter_values(0..rows as i64)) as ArrayRef;
    RecordBatch::try_from_iter([("i", column)]).unwrap()
}

async fn messages(batches: Vec<RecordBatch>, descriptor: FlightDescriptor, size: usize) -> Vec<FlightData> {
    FlightDataEncoderBuilder::new()
        .with_flight_descriptor(Some(descriptor))
        .with_max_flight_data_size(size)
        .build(stream::iter(batches.into_iter().map(Ok)))
        .try_collect()
        .await
        .unwrap()
}

fn path(name: &str) -> FlightDescriptor {
    FlightDescriptor::new_path(vec![name.into()])
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets() {
    let server = TestServer::start().await;
    let long = format!("SELECT '{}'", "x".repeat(300_000));
    let url = "type.googleapis.com/arrow.flight.protocol.sql.TicketStatementQuery";
    // google.protobuf.Any: field 1 is the type's URL.
    let any = [&[0x0a, url.len() as u8], url.as_bytes()].concat();
    for (what, ticket, code, says) in [
        ("unknown table", b"FROM nope".to_vec(), Code::NotFound, "nope"),
        ("broken SQL", b"SELEC 1".to_vec(), Code::InvalidArgument, "SELEC"),
        ("unknown column", b"SELECT nope".to_vec(), Code::InvalidArgument, "nope"),
        ("two statements", b"SELECT 1; SELECT 2".to_vec(), Code::InvalidArgument, "more than one statement"),
        ("a second statement that is broken", b"SELECT 1; SELEC".to_vec(), Code::InvalidArgument, "SELEC"),
        ("empty ticket", b"".to_vec(), Code::InvalidArgument, "empty"),
        ("blank ticket", b" \n".to_vec(), Code::InvalidArgument, "empty"),
        ("nothing but a comment", b"-- nothing".to_vec(), Code::InvalidArgument, "no statement"),
        ("not UTF-8", b"SELECT '\xff\xfe'".to_vec(), Code::InvalidArgument, "UTF-8"),
        ("NUL", b"SELECT 1\0".to_vec(), Code::InvalidArgument, "NUL"),
        ("long SQL", long.into_bytes(), Code::ResourceExhausted, "limits.sql_length"),
        ("no transaction", b"COMMIT".to_vec(), Code::FailedPrecondition, "no transaction"),
        ("Flight SQL's ticket that is none", any, Code::InvalidArgument, "TicketStatementQuery"),
        ("false ticket", b"mallard-ticket:a.b.c".to_vec(), Code::InvalidArgument, "not one of this server's"),
        (
            "error in the middle of rows",
            b"SELECT error('quack') FROM range(10)".to_vec(),
            Code::InvalidArgument,
            "quack",
        ),
        ("failing cast", b"SELECT 'x'::INTEGER".to_vec(), Code::InvalidArgument, "x"),
        ("exists already", b"CREATE SCHEMA main".to_vec(), Code::AlreadyExists, "main"),
        ("parameter without value", b"SELECT $1".to_vec(), Code::InvalidArgument, "1"),
    ] {
        check(what, get(&server, &ticket).await, code, says);
    }
    get(&server, b"SELECT 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_sql_does_not_overflow_the_stack() {
    let server = TestServer::start().await;
    // Some 900 chained CTEs overflow a stack of 2 MiB.
    let mut sql = String::from("WITH c0 AS (SELECT 1 AS i)");
    for n in 1..1500 {
        sql.push_str(&format!(", c{n} AS (SELECT i FROM c{})", n - 1));
    }
    sql.push_str(" SELECT * FROM c1499");
    // Answered or refused, but alive.
    let _ = get(&server, sql.as_bytes()).await;
    let _ = get(&server, format!("SELECT {}1{}", "(".repeat(20_000), ")".repeat(20_000)).as_bytes()).await;
    get(&server, b"SELECT 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t (x VARCHAR)").await;
    run(&client, "CREATE TABLE d (i DATE)").await;
    let good = messages(vec![numbers(10)], path("new"), 1 << 20).await;

    let mut without_descriptor = good.clone();
    without_descriptor[0].flight_descriptor = None;
    let mut empty_path = good.clone();
    empty_path[0].flight_descriptor = Some(FlightDescriptor::new_path(vec![]));
    let mut long_path = good.clone();
    long_path[0].flight_descriptor = Some(FlightDescriptor::new_path(vec!["a".into(); 4]));
    let mut garbage = good.clone();
    garbage[1].data_header = b"this is no flatbuffer at all".to_vec().into();
    let mut cut_body = good.clone();
    cut_body[1].data_body = cut_body[1].data_body.slice(..8);
    let no_schema = vec![FlightData { flight_descriptor: Some(path("new")), ..FlightData::default() }];
    let mut batch_first = good.clone();
    batch_first[1].flight_descriptor = Some(path("new"));
    batch_first.remove(0);
    let no_columns = messages(vec![], path("new"), 1 << 20).await;
    assert!(no_columns.is_empty());
    let no_columns: Vec<FlightData> = FlightDataEncoderBuilder::new()
        .with_flight_descriptor(Some(path("new")))
        .with_schema(Arc::new(Schema::empty()))
        .build(stream::empty())
        .try_collect()
        .await
        .unwrap();
    for (what, upload, says) in [
        ("no descriptor", without_descriptor, "FlightDescriptor"),
        ("empty path", empty_path, "one to three parts"),
        ("long path", long_path, "one to three parts"),
        ("garbage header", garbage, "Arrow IPC"),
        ("cut body", cut_body, "Arrow IPC"),
        ("no schema", no_schema, "before its schema"),
        ("a batch before the schema", batch_first, ""),
        ("no columns", no_columns, "at least one"),
        ("nothing", vec![], "empty"),
        ("schema that does not fit", messages(vec![numbers(10)], path("t"), 1 << 20).await, "\"i\""),
        ("type that cannot be cast", messages(vec![numbers(10)], path("d"), 1 << 20).await, "\"i\" is BIGINT"),
    ] {
        check(what, put(&server, upload).await, Code::InvalidArgument, says);
    }
    for table in ["t", "d"] {
        assert_eq!(count(&client, table).await, 0);
    }
    assert_eq!(client.query("FROM new").await.err().expect("nothing was stored").code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_batches_are_taken_and_forged_lengths_are_not() {
    let server = TestServer::start().await;
    for compression in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
        let options = IpcWriteOptions::default().try_with_compression(Some(compression)).unwrap();
        let compressed: Vec<FlightData> = FlightDataEncoderBuilder::new()
            .with_flight_descriptor(Some(path("c")))
            .with_options(options)
            .build(stream::iter([Ok(numbers(100_000))]))
            .try_collect()
            .await
            .unwrap();
        put(&server, compressed.clone()).await.unwrap();
        let mut forged = compressed;
        let mut body = forged[1].data_body.to_vec();
        body[..8].copy_from_slice(&(1_i64 << 60).to_le_bytes());
        forged[1].data_body = body.into();
        check("forged length", put(&server, forged).await, Code::InvalidArgument, "decompression");
    }
    assert_eq!(row(&server.client().await, "SELECT count(*), sum(i)::BIGINT FROM c").await, ["200000", "9999900000"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn message_over_the_limit_names_the_key() {
    let mut config = test_config();
    config.limits.max_message_size = Size::mib(1);
    let server = TestServer::with(config).await;
    let large = messages(vec![numbers(1_000_000)], path("t"), 1 << 30).await;
    check("message", put(&server, large.clone()).await, Code::ResourceExhausted, "limits.max_message_size");
    let mut through = large;
    through[0].flight_descriptor = Some(FlightDescriptor::new_cmd("echo"));
    check("message", exchange(&server, through).await, Code::ResourceExhausted, "limits.max_message_size");
    let small = messages(vec![numbers(1_000_000)], path("t"), 1 << 19).await;
    put(&server, small).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn exchangers_and_actions() {
    let server = TestServer::start().await;
    let unknown = messages(vec![numbers(3)], FlightDescriptor::new_cmd("nope"), 1 << 20).await;
    check("unknown exchanger", exchange(&server, unknown).await, Code::NotFound, "echo");
    let by_path = messages(vec![numbers(3)], path("echo"), 1 << 20).await;
    check("PATH", exchange(&server, by_path).await, Code::InvalidArgument, "CMD");
    let broken = messages(vec![numbers(3)], FlightDescriptor::new_cmd("SELEC 1"), 1 << 20).await;
    check("broken SQL", exchange(&server, broken).await, Code::InvalidArgument, "SELEC");

    for (action, body, code, says) in [
        ("nope", "", Code::NotFound, "add_exchange"),
        ("add_exchange", "", Code::InvalidArgument, "add_exchange"),
        ("add_exchange", "{", Code::InvalidArgument, "line 1"),
        ("add_exchange", "{\"name\": \"x\"}", Code::InvalidArgument, "sql"),
        ("add_exchange", "{\"name\": \"x\", \"sql\": \"FROM input\", \"sq1\": 1}", Code::InvalidArgument, "sq1"),
        ("add_exchange", "{\"name\": \"a b\", \"sql\": \"FROM input\"}", Code::InvalidArgument, "a b"),
        ("add_exchange", "{\"name\": \"echo\", \"sql\": \"FROM input\"}", Code::AlreadyExists, "echo"),
        ("transfer", "[]", Code::InvalidArgument, "transfer"),
        ("CancelFlightInfo", "\u{1}\u{2}\u{3}", Code::InvalidArgument, "CancelFlightInfo"),
    ] {
        check(action, act(&server, action, body).await, code, says);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mutated_uploads_get_grpc_errors_and_the_server_lives() {
    let server = TestServer::start().await;
    let good = messages(vec![numbers(100), numbers(100)], path("m"), 1 << 20).await;
    // A small deterministic generator; the seed is in the message of a failure.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for _ in 0..300 {
        let mut mutated = good.clone();
        let message = next() % mutated.len();
        let bytes = if next() % 2 == 0 { &mut mutated[message].data_header } else { &mut mutated[message].data_body };
        let mut changed = bytes.to_vec();
        for _ in 0..1 + next() % 4 {
            if !changed.is_empty() {
                let at = next() % changed.len();
                changed[at] = next() as u8;
            }
        }
        if next() % 4 == 0 {
            changed.truncate(next() % (changed.len() + 1));
        }
        *bytes = changed.into();
        if let Err(status) = put(&server, mutated).await {
            assert_ne!(status.code(), Code::Internal, "{status}");
        }
    }
    assert_eq!(row(&server.client().await, "SELECT 1").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_never_show_the_servers_paths() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = test_config();
    let file = directory.path().join("private-name.duckdb");
    config.database.path = file.to_string_lossy().into_owned();
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let shown = file.to_string_lossy().into_owned();
    for sql in [format!("ATTACH '{shown}' AS again"), format!("SELECT '{shown}'::INTEGER")] {
        let outcome = client.query(&sql).await;
        let message = match outcome {
            Ok(mut stream) => stream.next().await.unwrap().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(!message.contains(directory.path().to_str().unwrap()), "{sql}: {message}");
    }
}

/// Clients of the original demonstration, and of other Python servers, send pickles.
#[tokio::test(flavor = "multi_thread")]
async fn pickled_bytes_are_told_what_to_send_in_their_place() {
    let server = TestServer::start().await;
    let mut stock = server.stock().await;
    for protocol in 2..=5 {
        let mut pickled = vec![0x80, protocol];
        pickled.extend(b"\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x94\x8c\x04eval\x94\x93\x94.");
        for (action, instead) in [
            ("add_exchange", "\"sql\""),
            ("add_exchange", "docs/exchangers.md"),
            ("drop_exchange", "{\"name\": NAME"),
            ("transfer", "\"from\": location"),
            ("kill", "{\"query\": id}"),
            ("CancelFlightInfo", "CancelFlightInfoRequest"),
            ("CreatePreparedStatement", "ActionCreatePreparedStatementRequest"),
        ] {
            let sent = Action::new(action, pickled.clone());
            let refused = match stock.do_action(sent).await {
                Ok(answer) => answer.into_inner().try_collect::<Vec<_>>().await.map(drop),
                Err(refused) => Err(refused),
            };
            check(action, refused.clone(), Code::InvalidArgument, "Python pickle");
            check(action, refused, Code::InvalidArgument, instead);
        }
        check("ticket", get(&server, &pickled).await, Code::InvalidArgument, "the ticket is a Python pickle");
        let descriptor = Some(FlightDescriptor::new_cmd(pickled));
        let sent = FlightData { flight_descriptor: descriptor, ..Default::default() };
        check("DoExchange", exchange(&server, vec![sent.clone()]).await, Code::InvalidArgument, "Python pickle");
        check("DoPut", put(&server, vec![sent]).await, Code::InvalidArgument, "Python pickle");
    }
    // Other bodies that are no JSON are told what they have to be, too.
    check(
        "drop_exchange",
        act(&server, "drop_exchange", "my_exchanger").await,
        Code::InvalidArgument,
        "{\"name\": NAME",
    );
}
