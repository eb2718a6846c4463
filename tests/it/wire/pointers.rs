//! Where bytes are: on the way out the columns' own buffers leave, on the way in a message's body is one aligned buffer that
//! its arrays point into.

use std::sync::{Arc, Mutex};

use arrow_array::{
    Array, BooleanArray, Decimal128Array, FixedSizeBinaryArray, Float32Array, Int64Array, TimestampNanosecondArray,
};
use arrow_buffer::{BooleanBuffer, Buffer, MutableBuffer, NullBuffer, ScalarBuffer};
use arrow_schema::DataType;
use mallard::{
    access::Rights,
    config::Config,
    engine::Engine,
    exchange::{Chain, Registry},
    telemetry::Metrics,
};

use super::*;

/// Enough for each buffer, also a bitmap, to have 16 KiB.
const ROWS: usize = 200_000;

fn wide() -> RecordBatch {
    fn values<T: arrow_buffer::ArrowNativeType>() -> ScalarBuffer<T> {
        ScalarBuffer::new(MutableBuffer::from_len_zeroed(ROWS * size_of::<T>()).into(), 0, ROWS)
    }
    let bits = || BooleanBuffer::collect_bool(ROWS, |row| row % 3 > 0);
    let nulls = || Some(NullBuffer::new(bits()));
    batch([
        ("number", Arc::new(Int64Array::new(values(), nulls())) as ArrayRef),
        ("float", Arc::new(Float32Array::new(values(), None))),
        ("instant", Arc::new(TimestampNanosecondArray::new(values(), nulls()).with_timezone("UTC"))),
        ("amount", Arc::new(Decimal128Array::new(values(), None).with_precision_and_scale(20, 2).unwrap())),
        ("id", Arc::new(FixedSizeBinaryArray::new(16, Buffer::from_vec(vec![7_u8; ROWS * 16]), nulls()))),
        ("flag", Arc::new(BooleanArray::new(bits(), nulls()))),
    ])
}

/// Where each buffer of a batch's columns lies, and its length in bytes.
fn places(batch: &RecordBatch) -> Vec<(usize, usize)> {
    let mut places = Vec::new();
    for column in batch.columns() {
        let data = column.to_data();
        let bits = |offset: usize, buffer: &Buffer| (buffer.as_ptr() as usize + offset / 8, data.len().div_ceil(8));
        if let Some(nulls) = data.nulls() {
            places.push(bits(nulls.offset(), nulls.buffer()));
        }
        let buffer = &data.buffers()[0];
        places.push(match data.data_type() {
            DataType::Boolean => bits(data.offset(), buffer),
            data_type => {
                let width = match data_type {
                    DataType::FixedSizeBinary(width) => *width as usize,
                    _ => data_type.primitive_width().expect("the others are primitive"),
                };
                (buffer.as_ptr() as usize + data.offset() * width, data.len() * width)
            }
        });
    }
    places
}

fn assert_leave_as_they_are(places: &[(usize, usize)], segments: &[Bytes]) {
    for (at, length) in places {
        assert!(
            segments.iter().any(|segment| segment.as_ptr() as usize == *at && segment.len().abs_diff(*length) < 64),
            "a buffer of {length} bytes was copied"
        );
    }
}

#[tokio::test]
async fn columns_leave_without_a_copy() {
    let whole = wide();
    // A slice at whole bytes of the bitmaps, as splitting makes them.
    for batch in [whole.clone(), whole.slice(4_096, 150_000)] {
        let all = places(&batch);
        assert_eq!(all.len(), 10, "every buffer is looked at");
        let (segments, _) =
            framed(&batch.schema(), std::slice::from_ref(&batch), sending(1 << 30, Compression::None)).await;
        assert_leave_as_they_are(&all, &segments);
    }
    // Split by rows into several messages: every byte of every column is still where it was, but for bitmaps, which have
    // become small.
    let (segments, _) =
        framed(&whole.schema(), std::slice::from_ref(&whole), sending(4 << 20, Compression::None)).await;
    for (at, length) in places(&whole).into_iter().filter(|(_, length)| *length > ROWS) {
        let end = at + length;
        let inside = segments.iter().filter(|segment| (at..end).contains(&(segment.as_ptr() as usize)));
        let sent: usize = inside.map(Bytes::len).sum();
        assert!(sent.abs_diff(length) < 64, "{sent} of {length} bytes left as they are");
    }
}

#[tokio::test]
async fn arrays_point_into_one_aligned_buffer() {
    let batch = wide();
    let sending = sending(1 << 30, Compression::None);
    let body = standard(&batch.schema(), std::slice::from_ref(&batch), sending, None).await[1].data_body.len();
    let bytes = Bytes::from(framed(&batch.schema(), std::slice::from_ref(&batch), sending).await.0.concat());
    for mut random in (1..20).map(Random::new) {
        let (_, decoded) = received(random.pieces(bytes.clone()), usize::MAX).await.unwrap();
        let places = places(&decoded[0]);
        let first = places.iter().map(|(at, _)| *at).min().unwrap();
        assert!(places.iter().all(|(at, _)| at % 64 == 0), "aligned");
        assert!(places.iter().all(|(at, length)| at + length <= first + body), "within the message's body");
        assert_eq!(decoded, std::slice::from_ref(&batch));
    }
}

#[tokio::test]
async fn buffers_are_used_again_once_nobody_has_them() {
    let batch = wide();
    let batches = [batch.clone(), batch.clone(), batch.clone(), batch];
    let (segments, _) = framed(&batches[0].schema(), &batches, sending(1 << 30, Compression::None)).await;
    let mut stream = wide_stream(segments).await;
    let first = stream.next().await.unwrap().unwrap();
    let place = places(&first);
    let held = stream.next().await.unwrap().unwrap();
    assert_ne!(places(&held), place, "the first is still held");
    drop(first);
    let third = stream.next().await.unwrap().unwrap();
    assert_eq!(places(&third), place, "the first one's buffer");
    assert_eq!(third, batches[2]);
    assert_eq!(held, batches[1], "unchanged");
}

async fn wide_stream(segments: Vec<Bytes>) -> RecordBatchStream {
    wire::decode(wire::request(body(segments), usize::MAX), broken).await.unwrap()
}

#[tokio::test]
async fn what_goes_through_processed_is_copied_once_on_the_way_in_and_never_on_the_way_out() {
    let batch = wide();
    let batches = [batch.clone(), batch.slice(8_000, 190_000), batch];
    let descriptor = FlightDescriptor::new_cmd("processed");
    let request = uploaded(&batches[0].schema(), &batches, sending(1 << 30, Compression::None), descriptor).await;

    let upload = wire::open(wire::request(body(request), usize::MAX), broken).await.unwrap();
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let seen = arrived.clone();
    let input = upload.batches().await.unwrap().inspect(move |batch| seen.lock().unwrap().extend(places(batch)));
    let (config, metrics) = (Config::default(), Metrics::new(""));
    let engine = Arc::new(Engine::open(&config, metrics.clone()).unwrap());
    let exchangers = Registry::load(&config, engine, metrics).await.unwrap();
    let processed = Chain::parse("processed").unwrap();
    let output = exchangers.run(&Rights::all("someone"), &processed, input, true).await.unwrap();
    let response = wire::respond(std::future::ready(Ok(output)), sending(1 << 30, Compression::None));
    let (segments, trailers) = drain(response.into_body()).await;

    assert_eq!(trailers, Some(good_trailers()));
    let arrived = arrived.lock().unwrap();
    assert_eq!(arrived.len(), 30, "every buffer is looked at");
    assert!(arrived.iter().all(|(at, _)| at % 64 == 0), "aligned");
    assert_leave_as_they_are(&arrived, &segments);
}
