//! Thousands of messages that are almost right: they are batches or errors, never a panic that escapes, never memory without
//! bound, and a server that got them answers the next.

use std::{panic::AssertUnwindSafe, sync::Arc};

use arrow_array::{Array, StringArray};
use arrow_flight::FlightData;
use arrow_schema::DataType;
use futures::FutureExt;
use mallard::config::Compression;
use tonic::Code;

use super::{heap::peak, limits::call, *};
use crate::support::{TestServer, row, test_config};

/// What a server takes by default.
const MAX_MESSAGE: usize = 64 << 20;

/// What decoding may hold: what compressed buffers may declare, and room for the message and for validation.
const MAX_HELD: usize = 640 << 20;

/// Streams to begin with: each kind of layout, plain and compressed.
fn originals(descriptor: &FlightDescriptor) -> Vec<Vec<FlightData>> {
    use DataType::*;
    let item = |data_type| Arc::new(arrow_schema::Field::new("item", data_type, true));
    let pair =
        arrow_schema::Fields::from(vec![item(Utf8).as_ref().clone(), arrow_schema::Field::new("n", Int64, true)]);
    let entries = vec![arrow_schema::Field::new("key", Utf8, false), arrow_schema::Field::new("value", Int32, true)];
    let entries = Arc::new(arrow_schema::Field::new("entries", Struct(entries.into()), false));
    let either = arrow_schema::UnionFields::try_new([0, 5], [item(Int32), item(Utf8)]).unwrap();
    let schemas: [Vec<DataType>; 6] = [
        vec![Int64, Utf8, Boolean, Decimal128(20, 2)],
        vec![List(item(Int32)), Struct(pair), Map(entries, false), FixedSizeList(item(Float32), 3)],
        vec![Dictionary(Box::new(Int8), Box::new(Utf8)), List(item(Dictionary(Box::new(Int32), Box::new(Utf8))))],
        vec![Utf8View, BinaryView, LargeUtf8, LargeList(item(Null)), Null],
        vec![Union(either.clone(), arrow_schema::UnionMode::Dense), Union(either, arrow_schema::UnionMode::Sparse)],
        vec![ListView(item(Int64)), FixedSizeBinary(16), Struct(arrow_schema::Fields::empty())],
    ];
    let mut streams = Vec::new();
    let mut random = Random::new(1);
    for columns in schemas {
        let columns: Vec<_> = columns.into_iter().map(|data_type| (data_type, true)).collect();
        let schema = any::schema(&columns, &mut random);
        let batches = [any::batch(&schema, 40, &mut random), any::batch(&schema, 7, &mut random)];
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let sending = sending(2 << 20, compression);
            let messages = standard(&schema, &batches, sending, Some(descriptor.clone()));
            streams.push(messages.now_or_never().expect("the batches are there"));
        }
    }
    streams
}

/// A number that is likely to break something.
fn edge(random: &mut Random) -> u64 {
    let edges = [0, 1, 7, 255, 1 << 16, i32::MAX as u64, 1 << 32, 1 << 40, i64::MAX as u64, u64::MAX, -8_i64 as u64];
    edges[random.below(edges.len())]
}

/// Flips bits, overwrites numbers, or cuts.
pub(crate) fn spoil(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        return;
    }
    match random.below(6) {
        0..3 => {
            for _ in 0..1 + random.below(8) {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
        }
        3..5 => {
            let width = [1, 2, 4, 8][random.below(4)];
            // Flatbuffers and buffers keep numbers at multiples of their width.
            let at = random.below(bytes.len()) / width * width;
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&edge(random).to_le_bytes()[..end - at]);
        }
        _ => bytes.truncate(random.below(bytes.len())),
    }
}

/// One stream with one to three things wrong with it, as the pieces of a body.
fn mutated(originals: &[Vec<FlightData>], random: &mut Random) -> Vec<Bytes> {
    let mut messages = originals[random.below(originals.len())].clone();
    let mut bytes = None;
    for _ in 0..1 + random.below(3) {
        let at = random.below(messages.len());
        match random.below(8) {
            0..3 => {
                let mut header = messages[at].data_header.to_vec();
                spoil(&mut header, random);
                messages[at].data_header = header.into();
            }
            3 => {
                let mut body = messages[at].data_body.to_vec();
                spoil(&mut body, random);
                messages[at].data_body = body.into();
            }
            // Messages of other streams, gone, twice, or in another order; headers of one and bodies of another.
            4 => {
                let other = &originals[random.below(originals.len())];
                messages[at] = other[random.below(other.len())].clone();
            }
            5 => {
                let other = &originals[random.below(originals.len())];
                messages[at].data_body = other[random.below(other.len())].data_body.clone();
            }
            6 if messages.len() > 1 => {
                let message = messages.remove(at);
                if random.one_in(2) {
                    messages.insert(random.below(messages.len()), message);
                }
            }
            _ => {
                // Lengths and keys of gRPC and protobuf, too.
                let mut framed = messages.iter().flat_map(prefixed).collect::<Vec<u8>>();
                if random.one_in(2) {
                    let message = messages[..at].iter().map(|message| prefixed(message).len()).sum::<usize>();
                    let place = message + random.below(16);
                    framed[place] = edge(random) as u8;
                } else {
                    spoil(&mut framed, random);
                }
                bytes = Some(framed);
            }
        }
    }
    let bytes = bytes.unwrap_or_else(|| messages.iter().flat_map(prefixed).collect());
    random.pieces(bytes.into())
}

/// Panics of arrow-ipc that the decoder catches say nothing here; thousands of them would hide what matters.
fn without_caught_panics_shown<T>(work: impl FnOnce() -> T) -> T {
    thread_local! {
        static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !QUIET.get() {
            shown(panic);
        }
    }));
    QUIET.set(true);
    let made = work();
    QUIET.set(false);
    made
}

#[test]
fn ten_thousand_mutated_streams_are_batches_or_errors() {
    let originals = originals(&FlightDescriptor::new_cmd("echo"));
    for messages in &originals {
        received(messages.iter().map(prefixed), MAX_MESSAGE).now_or_never().unwrap().expect("unchanged, each is read");
    }
    let (mut read, mut refused) = (0, 0);
    let escaped = without_caught_panics_shown(|| {
        (0..10_000_u64).find_map(|seed| {
            let pieces = mutated(&originals, &mut Random::new(seed));
            let work = AssertUnwindSafe(|| received(pieces, MAX_MESSAGE).now_or_never().expect("all of it is there"));
            let (ended, held) = peak(|| std::panic::catch_unwind(work));
            let wrong = match ended {
                Err(_) => Some("a panic escaped".to_string()),
                _ if held > MAX_HELD => Some(format!("{held} bytes were held")),
                Ok(Ok((_, batches))) => {
                    read += 1;
                    let columns = batches.iter().flat_map(RecordBatch::columns);
                    columns
                        .map(|column| column.to_data().validate_full())
                        .find_map(Result::err)
                        .map(|why| why.to_string())
                }
                Ok(Err(error)) => {
                    refused += 1;
                    // The parser's word for a flag that is gRPC's, which a server answers as the client's mistake.
                    let flag = error.to_string().contains("grpc-encoding");
                    (error.code() == Code::Internal && !flag).then(|| error.to_string())
                }
            };
            wrong.map(|wrong| format!("seed {seed}: {wrong}"))
        })
    });
    assert_eq!(escaped, None);
    assert!(
        read > 100 && refused > 5_000,
        "{read} were read and {refused} refused: the mutations do too little or too much"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn server_lives_on_three_hundred_mutated_streams() {
    let mut config = test_config();
    config.wire.standard_path = false;
    let server = TestServer::with(config).await;
    let channel = server.channel().await;
    let put = |at: u64| FlightDescriptor::new_path(vec![format!("m{at}")]);
    for seed in 0..300_u64 {
        let (rpc, descriptor) = match seed % 2 {
            0 => ("DoPut", put(seed)),
            _ => ("DoExchange", FlightDescriptor::new_cmd(["echo", "processed", "count"][seed as usize % 3])),
        };
        let pieces = mutated(&originals(&descriptor), &mut Random::new(seed));
        if let Err(status) = call(&channel, rpc, pieces).await {
            let ours = !matches!(status.code(), Code::Internal | Code::Unknown | Code::Unavailable | Code::DataLoss);
            assert!(ours, "{rpc}, seed {seed}: {status}");
        }
    }
    let names = Arc::new(StringArray::from(vec!["still", "here"])) as ArrayRef;
    let good = batch([("s", names)]);
    let client = server.client().await;
    client.put(&["t".into()], stream_of(&good.schema(), &[good])).await.unwrap();
    assert_eq!(row(&client, "SELECT count(*), max(s) FROM t").await, ["2", "still"]);
    assert_eq!(server.metric("mallard_queries_running").await, 0.0);
}
