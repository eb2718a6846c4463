//! The bytes of our messages: gRPC's prefix, protobuf's fields, the body's place, the trailers; and how batches are split.

use std::sync::Arc;

use arrow_array::{
    Array, DictionaryArray, FixedSizeBinaryArray, Int32Array, Int64Array, LargeListArray, ListArray, RecordBatch,
    RecordBatchOptions, StringArray, StructArray, cast::AsArray, types::Int32Type,
};
use arrow_buffer::{Buffer, MutableBuffer, OffsetBuffer};
use arrow_flight::FlightDescriptor;
use arrow_schema::{DataType, Field, Schema};
use mallard::config::Compression;
use tonic::Code;

use super::*;

/// Where bodies begin within a message.
const ALIGNMENT: usize = 64;

/// Smaller buffers are copied together.
const COALESCED: usize = 16 * 1024;

/// One message taken apart by hand.
struct Fields<'a> {
    descriptor: Option<&'a [u8]>,
    header: &'a [u8],
    body: Option<&'a [u8]>,
    body_at: usize,
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut bits) = (0, 0);
    loop {
        let (first, rest) = bytes.split_first().expect("a number that ends");
        *bytes = rest;
        value |= u64::from(first & 0x7f) << bits;
        bits += 7;
        if first & 0x80 == 0 {
            return value;
        }
    }
}

fn fields(message: &[u8]) -> Fields<'_> {
    let mut rest = message;
    let mut field = |key: &[u8]| {
        let after = rest.strip_prefix(key)?;
        rest = after;
        let length = varint(&mut rest) as usize;
        let (field, after) = rest.split_at(length);
        rest = after;
        Some(field)
    };
    // In the order of their numbers: 1, 2 and 1000, each with a length.
    let descriptor = field(&[0x0a]);
    let header = field(&[0x12]).expect("a header");
    let body = field(&[0xc2, 0x3e]);
    assert!(rest.is_empty(), "nothing follows the body");
    Fields { descriptor, header, body, body_at: message.len() - body.map_or(0, <[u8]>::len) }
}

fn numbers(rows: usize) -> RecordBatch {
    batch([("n", Arc::new(Int64Array::from_iter_values(0..rows as i64)) as ArrayRef)])
}

#[tokio::test]
async fn messages_are_framed_to_the_byte() {
    let texts = StringArray::from_iter((0..5_000).map(|row| (row % 7 > 0).then(|| format!("text {row}"))));
    let columns = [("n", numbers(5_000).column(0).clone()), ("s", Arc::new(texts) as ArrayRef)];
    let whole = batch(columns);
    let (schema, batches) = (whole.schema(), [whole.clone(), whole.slice(13, 3_000)]);
    let descriptor = FlightDescriptor::new_path(vec!["t".into()]);
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let expected = standard(&schema, &batches, sending(2 << 20, compression), Some(descriptor.clone())).await;
        let request = uploaded(&schema, &batches, sending(2 << 20, compression), descriptor.clone()).await.concat();
        let messages = unframed(&request);
        assert_eq!(messages.len(), expected.len());
        for (at, (message, expected)) in messages.into_iter().zip(expected).enumerate() {
            let Fields { descriptor: found, header, body, body_at } = fields(message);
            assert_eq!(found, (at == 0).then(|| descriptor.encode_to_vec()).as_deref(), "the first has the descriptor");
            let padding = header.strip_prefix(expected.data_header.as_ref()).expect("the standard header in front");
            assert!(padding.len() < ALIGNMENT && padding.iter().all(|byte| *byte == 0), "zeros behind it");
            assert_eq!(body.unwrap_or_default(), expected.data_body, "the standard body");
            match body {
                Some(_) => assert_eq!(body_at % ALIGNMENT, 0, "the body is aligned within the message"),
                None => assert!(padding.is_empty() && expected.data_body.is_empty(), "no body, no field for it"),
            }
        }
        let (segments, trailers) = framed(&schema, &batches, sending(2 << 20, compression)).await;
        assert_eq!(unframed(&segments.concat()).len(), 3, "the schema and two batches");
        assert_eq!(trailers, good_trailers());
    }
}

#[tokio::test]
async fn buffers_of_16_kib_are_segments_and_smaller_ones_are_coalesced() {
    for (bytes, expected) in [
        (COALESCED - 8, vec!["all"]),
        (COALESCED, vec!["front", "column"]),
        (COALESCED + 8, vec!["front", "column", "padding"]),
    ] {
        let batch = numbers(bytes / 8);
        let (segments, _) = framed(&batch.schema(), std::slice::from_ref(&batch), plain()).await;
        // Behind the schema's.
        let segments = &segments[1..];
        assert_eq!(segments.len(), expected.len(), "{bytes} bytes: {expected:?}");
        let column = batch.column(0).to_data().buffers()[0].as_ptr();
        assert_eq!(segments.iter().any(|segment| segment.as_ptr() == column), bytes >= COALESCED, "{bytes} bytes");
        let message = segments.concat();
        let body = fields(unframed(&message)[0]).body.unwrap().len();
        assert_eq!(body, bytes.next_multiple_of(ALIGNMENT));
        assert_eq!(
            received([segments_with_schema(&batch).await, message].map(Bytes::from), 1 << 20).await.unwrap().1,
            [batch]
        );
    }
}

/// The schema's message alone.
async fn segments_with_schema(batch: &RecordBatch) -> Vec<u8> {
    framed(&batch.schema(), &[], plain()).await.0.concat()
}

#[tokio::test]
async fn messages_without_bytes_have_no_body() {
    let nothing = Arc::new(Schema::empty());
    let rows = |rows| {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(nothing.clone(), vec![], &options).unwrap()
    };
    for batch in [rows(0), rows(70_000), numbers(0)] {
        let (segments, _) = framed(&batch.schema(), std::slice::from_ref(&batch), plain()).await;
        let bytes = Bytes::from(segments.concat());
        let messages = unframed(&bytes);
        assert!(messages.iter().all(|message| fields(message).body.is_none()));
        assert_eq!(messages.len(), 2);
        assert_eq!(received([bytes.clone()], 1 << 20).await.unwrap().1, [batch]);
    }
}

#[tokio::test]
async fn last_columns_without_bytes_are_sent() {
    // Their buffers are empty, and the encoder names them all the same.
    let empty = Arc::new(StringArray::from(vec![""; 10])) as ArrayRef;
    let fieldless = StructArray::new_empty_fields(10, None);
    for last in [empty, Arc::new(fieldless)] {
        let batch = batch([("n", numbers(10).column(0).clone()), ("last", last)]);
        let batches = [batch.clone(), batch.slice(0, 0), batch];
        let (segments, trailers) = framed(&batches[0].schema(), &batches, plain()).await;
        assert_eq!(trailers, good_trailers());
        assert_eq!(received(segments, 1 << 20).await.unwrap().1, batches);
    }
}

#[tokio::test]
async fn batches_are_split_by_what_their_rows_hold() {
    let rows = 10_000;
    let values = Arc::new(Int64Array::from_iter_values(0..rows as i64 * 100)) as ArrayRef;
    let item = Arc::new(Field::new("item", DataType::Int64, true));
    let lengths = || std::iter::repeat_n(100, rows);
    let list = ListArray::new(item.clone(), OffsetBuffer::from_lengths(lengths()), values.clone(), None);
    let large = LargeListArray::new(item, OffsetBuffer::from_lengths(lengths()), values, None);
    let inner = Arc::new(Field::new("item", list.data_type().clone(), true));
    let nested = ListArray::new(inner, OffsetBuffer::from_lengths([1; 10_000]), Arc::new(list.clone()), None);
    let words = StringArray::from_iter_values((0..100).map(|word| word.to_string().repeat(60_000)));
    let keys = Int32Array::from_iter_values((0..rows as i32).map(|row| row % 100));
    let dictionary = DictionaryArray::<Int32Type>::new(keys, Arc::new(words));
    let columns: [(ArrayRef, usize); 4] = [
        // Of 8 MB each.
        (Arc::new(list), 8),
        (Arc::new(large), 8),
        (Arc::new(nested), 8),
        // 10 MB, which no splitting makes less; its message and that of the keys.
        (Arc::new(dictionary), 2),
    ];
    for (column, expected) in columns {
        let batch = batch([("c", column)]);
        let (schema, batches) = (batch.schema(), [batch]);
        let sending = sending(1 << 20, Compression::None);
        let (segments, _) = framed(&schema, &batches, sending).await;
        let bytes = segments.concat();
        let messages = unframed(&bytes).len() - 1;
        assert!((expected..=2 * expected).contains(&messages), "{schema}: {messages} messages");
        assert_eq!(standard(&schema, &batches, sending, None).await.len() - 1, messages, "as the standard path has it");
    }
}

#[tokio::test]
async fn row_that_no_message_can_hold_is_an_error() {
    // 5 GiB of which not one page is touched: five times the same zeros.
    let gigabyte = Buffer::from(MutableBuffer::from_len_zeroed(1 << 30));
    let column = || Arc::new(FixedSizeBinaryArray::new(1 << 30, gigabyte.clone(), None)) as ArrayRef;
    let batch = batch(["a", "b", "c", "d", "e"].map(|name| (name, column())));
    let (segments, trailers) = framed(&batch.schema(), &[batch], plain()).await;
    assert_eq!(segments.len(), 1, "the schema");
    let status = Status::from_header_map(&trailers).unwrap();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("4 GiB"), "{status}");
}

#[tokio::test]
async fn answer_that_fails_ends_in_its_status_behind_whole_messages() {
    let good = numbers(10);
    let failing = futures::stream::iter([Ok(good.clone()), Err(Error::NotFound("table \"gone\" not found".into()))]);
    let stream = RecordBatchStream::new(good.schema(), failing);
    let response = wire::respond(std::future::ready(Ok(stream)), plain());
    let (segments, trailers) = drain(response.into_body()).await;
    assert_eq!(unframed(&segments.concat()).len(), 2);
    let stream =
        wire::decode(wire::response(answer(segments, trailers), usize::MAX, None).unwrap(), broken).await.unwrap();
    let items: Vec<_> = stream.collect().await;
    assert_eq!(items[0].as_ref().unwrap(), &good);
    let error = items[1].as_ref().unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert_eq!(items.len(), 2);
}

#[tokio::test]
async fn answer_that_is_not_whole_is_data_loss() {
    let good = numbers(3);
    let bytes = Bytes::from(framed(&good.schema(), std::slice::from_ref(&good), plain()).await.0.concat());
    for (what, length, trailers) in [
        ("no trailers", bytes.len(), None),
        ("trailers without a status", bytes.len(), Some(HeaderMap::new())),
        ("cut, no trailers", bytes.len() - 1, None),
        ("cut, but the status is OK", bytes.len() - 1, Some(good_trailers())),
        ("cut within a prefix", bytes.len() + 3, Some(good_trailers())),
    ] {
        let sent = [bytes.clone(), Bytes::from_static(&[0; 3])].concat();
        let response = answer([Bytes::from(sent).slice(..length)], trailers);
        let ended = match wire::decode(wire::response(response, usize::MAX, None).unwrap(), broken).await {
            Ok(stream) => stream.try_collect::<Vec<_>>().await.map(|batches| batches.len()),
            Err(error) => Err(error),
        };
        assert_eq!(ended.expect_err(what).code(), Code::DataLoss, "{what}");
    }
    let whole = wire::response(answer([bytes], Some(good_trailers())), usize::MAX, None).unwrap();
    let whole: Vec<_> = wire::decode(whole, broken).await.unwrap().try_collect().await.unwrap();
    assert_eq!(whole[0].column(0).as_primitive::<arrow_array::types::Int64Type>().values(), &[0, 1, 2]);
}
