//! Whatever the schema: both paths, and each with the other's other half, carry equal batches.

use std::sync::OnceLock;

use arrow_array::{Array, RecordBatch};
use arrow_flight::{FlightData, FlightDescriptor};
use arrow_schema::{DataType, SchemaRef};
use bytes::Bytes;
use futures::TryStreamExt;
use mallard::{config::Compression, wire};
use proptest::{prelude::*, test_runner::RngSeed};
use prost::Message;

use super::*;

#[derive(Debug)]
struct Case {
    columns: Vec<(DataType, bool)>,
    rows: Vec<usize>,
    seed: u64,
    message_size: usize,
    compression: Compression,
}

fn cases() -> impl Strategy<Value = Case> {
    let rows = prop_oneof![1 => Just(0_usize), 6 => 1..80_usize, 1 => 80..600_usize];
    let message_size = prop::sample::select(vec![300_usize, 5_000, 40_000, 2 << 20]);
    let compression = prop::sample::select(vec![Compression::None, Compression::Lz4, Compression::Zstd]);
    (any::columns(), prop::collection::vec(rows, 0..5), any::<u64>(), message_size, compression).prop_map(
        |(columns, rows, seed, message_size, compression)| Case { columns, rows, seed, message_size, compression },
    )
}

/// Compressing takes threads that may block, and those a runtime.
pub(super) fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap())
}

proptest! {
    // The same cases in every run; PROPTEST_CASES and PROPTEST_RNG_SEED ask for others.
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        rng_seed: std::env::var("PROPTEST_RNG_SEED").map_or(RngSeed::Fixed(4), |seed| RngSeed::Fixed(seed.parse().unwrap())),
        ..ProptestConfig::default()
    })]

    #[test]
    fn both_paths_and_their_halves_crosswise_carry_equal_batches(case in cases()) {
        runtime().block_on(check(case));
    }
}

async fn check(case: Case) {
    let mut random = Random::new(case.seed);
    let schema = any::schema(&case.columns, &mut random);
    let batches: Vec<RecordBatch> = case.rows.iter().map(|rows| any::batch(&schema, *rows, &mut random)).collect();
    let sending = sending(case.message_size, case.compression);
    let descriptor = FlightDescriptor::new_cmd("echo");
    let same = |what: &str, (decoded_schema, decoded): (SchemaRef, Vec<RecordBatch>)| {
        assert_eq!(decoded_schema, schema, "{what}");
        assert_same(what, &decoded, &batches);
    };

    // Out the standard way, in both ways.
    let messages = standard(&schema, &batches, sending, Some(descriptor.clone())).await;
    same("standard out, standard in", decoded_standard(messages.clone()).await);
    let bytes: Bytes = messages.iter().flat_map(prefixed).collect();
    let pieces = random.pieces(bytes);
    same("standard out, our way in", received(pieces.clone(), usize::MAX).await.unwrap());
    let upload = wire::open(wire::request(body(pieces), usize::MAX), broken).await.unwrap();
    assert_eq!(upload.descriptor, descriptor);
    let stream = upload.batches().await.unwrap();
    same("standard out, our way in as an upload", (stream.schema(), stream.try_collect().await.unwrap()));

    // Out our way, in both ways, as an answer and as a request.
    let (segments, trailers) = framed(&schema, &batches, sending).await;
    let bytes = Bytes::from(segments.concat());
    let messages = unframed(&bytes).into_iter().map(|message| FlightData::decode(message).unwrap()).collect();
    same("our way out, standard in", decoded_standard(messages).await);
    for pieces in [segments, random.pieces(bytes)] {
        let response = wire::response(answer(pieces, Some(trailers.clone())), usize::MAX, None).unwrap();
        let stream = wire::decode(response, broken).await.unwrap();
        same("our way out, our way in", (stream.schema(), stream.try_collect().await.unwrap()));
    }
    let sent = uploaded(&schema, &batches, sending, descriptor.clone()).await;
    let upload = wire::open(wire::request(body(sent), usize::MAX), broken).await.unwrap();
    assert_eq!(upload.descriptor, descriptor);
    let stream = upload.batches().await.unwrap();
    same("our way out as an upload, our way in", (stream.schema(), stream.try_collect().await.unwrap()));
}

/// Equal rows in the same order, however they are cut into batches.
fn assert_same(what: &str, ones: &[RecordBatch], others: &[RecordBatch]) {
    let mut others = others.iter().filter(|batch| batch.num_rows() > 0).cloned();
    let mut other = None;
    for batch in ones {
        let mut at = 0;
        while at < batch.num_rows() {
            let rest = other.take().or_else(|| others.next()).unwrap_or_else(|| panic!("{what}: too many rows"));
            let rows = (batch.num_rows() - at).min(rest.num_rows());
            let (one, first) = (batch.slice(at, rows), rest.slice(0, rows));
            for (column, field) in batch.schema().fields().iter().enumerate() {
                let (one, first) = (one.column(column), first.column(column));
                assert_eq!(one.data_type(), first.data_type(), "{what}");
                assert_eq!(one.as_ref(), first.as_ref() as &dyn Array, "{what}: {field}");
            }
            at += rows;
            other = (rows < rest.num_rows()).then(|| rest.slice(rows, rest.num_rows() - rows));
        }
    }
    assert!(other.is_none() && others.next().is_none(), "{what}: too few rows");
}
