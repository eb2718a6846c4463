//! What a peer may not send: the right code, nothing allocated for it, and the server goes on.

use std::sync::Arc;

use arrow_array::{DictionaryArray, Int8Array, Int64Array, LargeListArray, NullArray, StringArray, types::Int8Type};
use arrow_buffer::OffsetBuffer;
use arrow_flight::{
    FlightData,
    encode::{DictionaryHandling, FlightDataEncoderBuilder},
};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_schema::{DataType, Field, Schema};
use futures::FutureExt;
use http::Request;
use mallard::{config::Compression, wire::FLIGHT_SERVICE};
use prost::encoding::encode_varint;
use tonic::{Code, transport::Channel};
use tower::{Service, ServiceExt};

use super::{heap::peak, *};
use crate::support::{TestServer, count, row, test_config};

/// Calls an RPC with a body of just these bytes, and reads the answer to its end.
pub(super) async fn call(channel: &Channel, rpc: &str, pieces: Vec<Bytes>) -> Result<(), Status> {
    let request = Request::post(format!("/{FLIGHT_SERVICE}/{rpc}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body(pieces))
        .unwrap();
    let mut channel = channel.clone();
    let response = channel.ready().await.unwrap().call(request).await;
    let response = response.map_err(|error| Status::from_error(Box::new(error)))?;
    if let Some(status) = Status::from_header_map(response.headers()) {
        return if status.code() == Code::Ok { Ok(()) } else { Err(status) };
    }
    let mut answer = response.into_body();
    let mut ended = Err(Status::data_loss("no trailers"));
    while let Some(frame) = std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut answer), cx)).await {
        if let Ok(trailers) = frame?.into_trailers() {
            let status = Status::from_header_map(&trailers).expect("trailers carry a status");
            ended = if status.code() == Code::Ok { Ok(()) } else { Err(status) };
        }
    }
    ended
}

fn number(value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_varint(value, &mut bytes);
    bytes
}

/// A gRPC message of raw bytes.
fn raw(message: &[u8]) -> Bytes {
    announced(message.len(), message)
}

/// The front of a gRPC message that is said to be longer.
fn announced(length: usize, front: &[u8]) -> Bytes {
    [&[0][..], &(length as u32).to_be_bytes(), front].concat().into()
}

fn numbers(rows: usize) -> RecordBatch {
    batch([("n", Arc::new(Int64Array::from_iter_values(0..rows as i64)) as ArrayRef)])
}

fn header(length: usize) -> Vec<u8> {
    [vec![0x12], number(length as u64)].concat()
}

/// What no well-made client sends: its front, its code, and what the answer says.
fn malformed() -> Vec<(&'static str, Bytes, Code, &'static str)> {
    let eleven = [0x80; 10].into_iter().chain([1]).collect::<Vec<u8>>();
    let mut cases = vec![
        (
            "a message over the limit",
            announced((64 << 20) + 1, &[]),
            Code::ResourceExhausted,
            "limits.max_message_size",
        ),
        ("4 GiB", announced(u32::MAX as usize, &[]), Code::ResourceExhausted, "limits.max_message_size"),
        (
            "a header over 16 MiB",
            announced(17 << 20, &header((16 << 20) + 1)),
            Code::InvalidArgument,
            "a header of 16777217 bytes",
        ),
        (
            "a header longer than its message",
            announced(100, &header(1_000)),
            Code::InvalidArgument,
            "longer than its message",
        ),
        (
            "a body of 2^60 bytes",
            announced(100, &[vec![0xc2, 0x3e], number(1 << 60)].concat()),
            Code::InvalidArgument,
            "longer than its message",
        ),
        ("a key of eleven bytes", raw(&eleven), Code::InvalidArgument, "more than 64 bits"),
        (
            "a length of eleven bytes",
            raw(&[vec![0x12], eleven.clone()].concat()),
            Code::InvalidArgument,
            "more than 64 bits",
        ),
        (
            "an unknown number of eleven bytes",
            raw(&[vec![0x98, 0x06], eleven.clone()].concat()),
            Code::InvalidArgument,
            "more than 64 bits",
        ),
        ("field 0", raw(&[0x02, 0]), Code::InvalidArgument, "field number"),
        ("field 2^32", raw(&number(1 << 35 | 2)), Code::InvalidArgument, "field number"),
        ("a message that ends within a number", raw(&[0x98, 0x06, 0x80]), Code::InvalidArgument, "ends within a field"),
        (
            "a message that ends within 8 bytes",
            raw(&[0x99, 0x06, 1, 2, 3]),
            Code::InvalidArgument,
            "ends within a field",
        ),
        ("a message that ends behind a key", raw(&[0x12]), Code::InvalidArgument, "ends within a field"),
        ("no FlightDescriptor's bytes", raw(&[0x0a, 2, 0xff, 0xff]), Code::InvalidArgument, "FlightDescriptor"),
        (
            "a body that ends within a message",
            announced(100, &[0x12, 50, 1, 2]),
            Code::InvalidArgument,
            "within a message",
        ),
        ("a body that ends within a prefix", Bytes::from_static(&[0, 0]), Code::InvalidArgument, "within a message"),
        (
            "a compressed message in a plain call",
            Bytes::from_static(&[1, 0, 0, 0, 0]),
            Code::InvalidArgument,
            "grpc-encoding",
        ),
        (
            "a compressed flag that is none",
            Bytes::from_static(&[7, 0, 0, 0, 0]),
            Code::InvalidArgument,
            "grpc-encoding",
        ),
        ("nothing", Bytes::new(), Code::InvalidArgument, "empty"),
    ];
    for (kind, what) in [(3, "a group"), (4, "a group's end"), (6, "wire type 6"), (7, "wire type 7")] {
        // Of field 99.
        let key = number(99 << 3 | kind);
        cases.push((what, raw(&[key, vec![0; 8]].concat()), Code::InvalidArgument, "wire type"));
    }
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_get_their_code_and_the_server_goes_on() {
    let mut config = test_config();
    config.wire.standard_path = false;
    let server = TestServer::with(config).await;
    let (channel, client) = (server.channel().await, server.client().await);
    let good = numbers(10);
    let (table, echo) = (FlightDescriptor::new_path(vec!["t".into()]), FlightDescriptor::new_cmd("echo"));
    for (rpc, descriptor) in [("DoPut", table), ("DoExchange", echo)] {
        for (what, bytes, code, says) in malformed() {
            let ended = call(&channel, rpc, vec![bytes.clone()]).await.expect_err(what);
            assert_eq!(ended.code(), code, "{rpc}, {what}: {ended}");
            assert!(ended.message().contains(says), "{rpc}, {what}: {ended}");
            if bytes.is_empty() {
                continue;
            }
            // The same behind good messages.
            let mut pieces = uploaded(&good.schema(), std::slice::from_ref(&good), plain(), descriptor.clone()).await;
            pieces.push(bytes);
            let ended = call(&channel, rpc, pieces).await.expect_err(what);
            assert_eq!(ended.code(), code, "{rpc}, {what}, later: {ended}");
        }
    }
    assert_eq!(client.query("FROM t").await.err().expect("nothing is stored").code(), Code::NotFound);
    assert_eq!(row(&client, "SELECT 42").await, ["42"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_are_skipped_and_parts_are_merged() {
    let server = TestServer::start().await;
    let good = numbers(1_000);
    let descriptor = FlightDescriptor::new_path(vec!["t".into()]);
    let request = uploaded(&good.schema(), std::slice::from_ref(&good), plain(), descriptor).await.concat();
    let unknown: [Vec<u8>; 5] = [
        [number(99 << 3), number(u64::MAX)].concat(),
        [number(99 << 3 | 1), vec![7; 8]].concat(),
        [number(99 << 3 | 2), number(300), vec![7; 300]].concat(),
        [number(99 << 3 | 5), vec![7; 4]].concat(),
        // The metadata of the application, which nobody here reads.
        [number(3 << 3 | 2), number(3), vec![7; 3]].concat(),
    ];
    let unknown = unknown.concat();
    let around: Vec<Bytes> =
        unframed(&request).into_iter().map(|message| raw(&[&unknown, message, &unknown].concat())).collect();
    // Messages of nothing, and of metadata alone.
    let more = [raw(&[]), raw(&unknown)];
    let mut random = Random::new(5);
    let bytes = Bytes::from([around, more.to_vec()].concat().concat());
    let channel = server.channel().await;
    call(&channel, "DoPut", random.pieces(bytes.clone())).await.unwrap();
    call(&channel, "DoPut", vec![bytes]).await.unwrap();
    assert_eq!(count(&server.client().await, "t").await, 2_000);

    // A descriptor in two parts is one.
    let whole = FlightDescriptor::new_path(vec!["a".into(), "b".into()]);
    let part = |bytes: Vec<u8>| [vec![0x0a], number(bytes.len() as u64), bytes].concat();
    let front = FlightDescriptor { path: vec!["a".into()], ..whole.clone() }.encode_to_vec();
    let back = FlightDescriptor { r#type: 0, path: vec!["b".into()], ..FlightDescriptor::default() }.encode_to_vec();
    let message = raw(&[part(front), part(back)].concat());
    let mut messages = Box::pin(wire::request(body([message]), 1_000));
    assert_eq!(messages.next().await.unwrap().unwrap().flight_descriptor, Some(whole));
}

#[test]
fn what_is_only_announced_is_not_allocated() {
    let poll = |front: Bytes, max_message: usize| {
        let mut messages = Box::pin(wire::request(body_that_stays_open(front), max_message));
        peak(|| messages.next().now_or_never())
    };
    // The largest header that is allowed, and one field after the other that says it is as long.
    let (waiting, bytes) = poll(announced(64 << 20, &header(16 << 20)), 64 << 20);
    assert!(waiting.is_none() && bytes < 1 << 20, "{bytes} bytes for a header that is only announced");
    let (refused, bytes) = poll(announced(64 << 20, &header((16 << 20) + 1)), 64 << 20);
    assert!(refused.unwrap().unwrap().is_err() && bytes < 1 << 16, "{bytes} bytes for a header that is too long");
    let (refused, bytes) = poll(announced(u32::MAX as usize, &[]), 64 << 20);
    assert!(refused.unwrap().unwrap().is_err() && bytes < 1 << 16, "{bytes} bytes for a message that is too long");
}

/// What a peer announces costs nothing; what it has sent costs at most a few times its bytes. On servers and on clients.
#[test]
fn buffer_of_a_message_grows_with_the_bytes_that_have_come() {
    for length in [100 << 20, 1 << 30, u32::MAX as usize] {
        let mut sent = vec![announced_body(length)];
        for mib in [0_usize, 1, 10, 40] {
            sent.truncate(1);
            sent.extend((0..mib * 16).map(|_| Bytes::from_static(&[7; 64 << 10])));
            let open = || bodies_that_stay_open(sent.clone());
            let mut asked = Box::pin(wire::request(open(), usize::MAX));
            let mut answered = Box::pin(wire::response(Response::new(open()), usize::MAX, None).unwrap());
            for (side, (waiting, bytes)) in
                [("server", peak(|| asked.next().now_or_never())), ("client", peak(|| answered.next().now_or_never()))]
            {
                assert!(waiting.is_none(), "{side}: the message is not whole");
                let most = (5 << 20) + 3 * (mib << 20);
                assert!(bytes < most, "{side}: {bytes} bytes for {length} announced and {mib} MiB sent");
            }
        }
    }
    // The limit holds on both sides, too.
    let refused = wire::response(answer([announced_body(2 << 20)], None), 1 << 20, None).unwrap();
    let refused = Box::pin(refused).next().now_or_never().flatten().expect("it ends").expect_err("too large");
    assert!(refused.message().contains("the limit is 1048576 bytes"), "{refused}");
}

/// The front of a message of FlightData whose body is said to be all of it.
pub(crate) fn announced_body(length: usize) -> Bytes {
    announced(length, &[vec![0xc2, 0x3e], number(length as u64 - 20)].concat())
}

pub(crate) fn body_that_stays_open(front: Bytes) -> Body {
    bodies_that_stay_open(vec![front])
}

fn bodies_that_stay_open(pieces: Vec<Bytes>) -> Body {
    struct Open(std::vec::IntoIter<Bytes>);
    impl http_body::Body for Open {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match self.0.next() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                None => Poll::Pending,
            }
        }
    }
    Body::new(Open(pieces.into_iter()))
}

#[test]
fn small_messages_hold_small_buffers() {
    // A reader that gathers the batches of a client that sends each row alone.
    let schema = numbers(1).schema();
    let batches: Vec<RecordBatch> = (0..2_000).map(|_| numbers(1)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (segments, _) = framed(&schema, &batches, plain()).await;
        let mut messages = Box::pin(wire::request(body(segments), 64 << 20));
        let (held, bytes) = peak(|| {
            let mut held = Vec::new();
            while let Some(message) = messages.next().now_or_never().expect("all of it is there") {
                held.push(message.unwrap());
            }
            held
        });
        assert_eq!(held.len(), 2_001);
        assert!(bytes < 4 << 20, "{bytes} bytes for {} messages of one row", held.len());
    });
}

/// Messages with their batch's header changed by hand: every number `from` in it becomes `to`.
fn forged(mut messages: Vec<FlightData>, from: i64, to: i64) -> Vec<Bytes> {
    let mut changed = 0;
    for message in messages.iter_mut().skip(1) {
        let mut header = message.data_header.to_vec();
        for at in (0..header.len().saturating_sub(8)).step_by(4) {
            if header[at..at + 8] == from.to_le_bytes() {
                header[at..at + 8].copy_from_slice(&to.to_le_bytes());
                changed += 1;
            }
        }
        message.data_header = header.into();
    }
    assert!(changed > 0, "there is a {from} in a header");
    messages.iter().map(prefixed).collect()
}

#[tokio::test]
async fn columns_without_bytes_cannot_be_endless() {
    // One row, a list of 12,345 nulls, which is said to have 2^40.
    let item = Arc::new(Field::new("item", DataType::Null, true));
    let list = |length: usize| {
        let nulls = Arc::new(NullArray::new(length)) as ArrayRef;
        LargeListArray::new(item.clone(), OffsetBuffer::from_lengths([length]), nulls, None)
    };
    let good = batch([("l", Arc::new(list(12_345)) as ArrayRef)]);
    let messages = standard(&good.schema(), std::slice::from_ref(&good), plain(), None).await;
    assert_eq!(received(messages.iter().map(prefixed), 1 << 20).await.unwrap().1, [good]);
    let mut endless = messages.clone();
    let mut body = endless[1].data_body.to_vec();
    for at in (0..body.len()).step_by(8) {
        if body[at..at + 8] == 12_345_i64.to_le_bytes() {
            body[at..at + 8].copy_from_slice(&(1_i64 << 40).to_le_bytes());
        }
    }
    endless[1].data_body = body.into();
    let refused = received(forged(endless, 12_345, 1 << 40), 1 << 20).await.expect_err("2^40 nulls");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.to_string().contains("elements"), "{refused}");

    // Rows without columns.
    let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(12_345));
    let rows = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).unwrap();
    let messages = standard(&rows.schema(), std::slice::from_ref(&rows), plain(), None).await;
    let refused = received(forged(messages, 12_345, 1 << 40), 1 << 20).await.expect_err("2^40 rows");
    assert!(refused.to_string().contains("rows"), "{refused}");
    let messages = standard(&rows.schema(), &[rows], plain(), None).await;
    assert!(received(forged(messages, 12_345, -1), 1 << 20).await.is_err());
}

#[tokio::test]
async fn forged_lengths_before_compression_are_refused() {
    let good = numbers(100_000);
    for compression in [Compression::Lz4, Compression::Zstd] {
        let messages = standard(&good.schema(), std::slice::from_ref(&good), sending(2 << 20, compression), None).await;
        for declared in [1_i64 << 60, i64::MAX, 1 << 30, 1, -2, i64::MIN] {
            let mut forged = messages.clone();
            let mut body = forged[1].data_body.to_vec();
            body[..8].copy_from_slice(&declared.to_le_bytes());
            forged[1].data_body = body.into();
            let (refused, bytes) = peak(|| received(forged.iter().map(prefixed), 64 << 20).now_or_never());
            let refused = refused.expect("all of it is there").expect_err("a length that is not true");
            assert_eq!(refused.code(), Code::InvalidArgument, "{declared}: {refused}");
            assert!(bytes < 64 << 20, "{bytes} bytes for a declared {declared}");
        }
    }
}

#[tokio::test]
async fn dictionaries_cannot_grow_for_ever() {
    let words = |words: &[&str]| {
        let keys = Int8Array::from_iter_values(0..words.len() as i8);
        let words = StringArray::from_iter_values(words);
        batch([("w", Arc::new(DictionaryArray::<Int8Type>::new(keys, Arc::new(words))) as ArrayRef)])
    };
    let batches = [words(&["a"]), words(&["a", "b"])];
    let options = IpcWriteOptions::default().with_dictionary_handling(arrow_ipc::writer::DictionaryHandling::Delta);
    let messages = FlightDataEncoderBuilder::new()
        .with_options(options)
        .with_dictionary_handling(DictionaryHandling::Resend)
        .build(futures::stream::iter(batches.clone().map(Ok)));
    let messages: Vec<FlightData> = messages.try_collect().await.unwrap();
    let pieces: Vec<Bytes> = messages.iter().map(prefixed).collect();
    assert_eq!(pieces.len(), 5, "schema, dictionary, batch, delta, batch");
    assert_eq!(received(pieces.clone(), 1 << 20).await.unwrap().1, batches);

    // Bytes that nobody uses are kept, too: the arrays point into the whole body.
    let mut delta = messages[3].clone();
    delta.data_body = [delta.data_body.as_ref(), &vec![0; 60 << 20]].concat().into();
    let delta = prefixed(&delta);
    let endless = pieces[..2].iter().cloned().chain(std::iter::repeat_n(delta, 9));
    let refused = received(endless, 64 << 20).await.expect_err("540 MiB of deltas");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.to_string().contains("dictionaries"), "{refused}");
}
