//! A peer's bytes through parser and decoder: batches that are what they say, or an error.

#![no_main]

use arrow_array::Array;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use mallard_fuzz::wire;

fuzz_target!(init: {
    // libFuzzer's hook ends the process at once; the decoder catches arrow-ipc's panics, and those that it does not end the
    // process behind it.
    let ending = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !wire::DECODING.get() {
            ending(panic);
        }
    }));
}, |bytes: &[u8]| {
    // The first byte says how the rest is cut.
    let Some((longest, body)) = bytes.split_first() else { return };
    let pieces = body.chunks(usize::from(*longest) + 1).map(Bytes::copy_from_slice);
    let (messages, _) = wire::parsed(pieces);
    let Ok((schema, batches)) = wire::decoded(messages) else { return };
    for batch in &batches {
        assert_eq!(batch.schema(), schema);
        for column in batch.columns() {
            column.to_data().validate_full().expect("what is decoded is valid");
        }
    }
    // What was read can be sent, and is read as the same again. (Comparing nested floats and unions of any kind is the
    // property test's.)
    let Ok(again) = wire::framed(&schema, &batches, None) else { return };
    if again.len() > wire::MAX_MESSAGE {
        return;
    }
    let (messages, ended) = wire::parsed([again]);
    ended.expect("our own framing");
    let (schema_again, batches_again) = wire::decoded(messages).expect("our own messages");
    assert_eq!(schema_again, schema);
    let rows = |batches: &[arrow_array::RecordBatch]| batches.iter().map(|batch| batch.num_rows()).sum::<usize>();
    assert_eq!(rows(&batches_again), rows(&batches));
});
