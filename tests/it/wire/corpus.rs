//! The fuzzer's seeds (fuzz/corpus, written by `cargo run --example seeds` there), replayed: what both parsers take is equal, and
//! what is decoded is valid.

use std::{collections::BTreeMap, path::Path};

use arrow_flight::FlightData;
use futures::FutureExt;

use super::*;

const MAX_MESSAGE: usize = 64 << 20;

/// By name: how the pieces are cut, and the bytes.
fn corpus(target: &str) -> BTreeMap<String, (usize, Bytes)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let read = files.map(|path| {
        let bytes = Bytes::from(std::fs::read(&path).unwrap());
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, (usize::from(bytes[0]) + 1, bytes.slice(1..)))
    });
    read.collect()
}

fn cut(bytes: &Bytes, longest: usize) -> Vec<Bytes> {
    bytes.chunks(longest).map(Bytes::copy_from_slice).collect()
}

#[test]
fn streams_of_the_corpus_are_decoded_and_valid() {
    let corpus = corpus("messages");
    assert!(corpus.len() >= 9);
    for (name, (longest, bytes)) in corpus {
        let (schema, batches) = received(cut(&bytes, longest), MAX_MESSAGE)
            .now_or_never()
            .expect("all of it is there")
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!batches.is_empty(), "{name}");
        for batch in &batches {
            assert_eq!(batch.schema(), schema, "{name}");
            for column in batch.columns() {
                column.to_data().validate_full().unwrap();
            }
        }
    }
}

#[test]
fn messages_of_the_corpus_are_the_same_to_both_parsers() {
    let corpus = corpus("framing");
    assert!(corpus.len() >= 20);
    for (name, (_, bytes)) in corpus {
        let standard = FlightData::decode(bytes.clone()).unwrap();
        let framed = prefixed(&standard);
        for longest in [1, 7, 256, usize::MAX] {
            let messages = wire::request(body(cut(&framed, longest)), MAX_MESSAGE);
            let parsed: Vec<_> = messages.try_collect().now_or_never().expect("all of it is there").unwrap();
            assert_eq!(parsed, std::slice::from_ref(&standard), "{name}, cut every {longest} bytes");
        }
    }
}
