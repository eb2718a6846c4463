//! One message's bytes through our parser and through prost: whatever both take is equal, and nothing depends on the cuts.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use mallard_fuzz::wire;

fuzz_target!(|bytes: &[u8]| {
    let Some((longest, message)) = bytes.split_first() else { return };
    let body = wire::prefixed(message);
    let (whole, ended) = wire::parsed([body.clone()]);
    let (cut, cut_ended) = wire::parsed(body.chunks(usize::from(*longest) + 1).map(Bytes::copy_from_slice));
    assert_eq!(whole, cut);
    assert_eq!(ended.is_ok(), cut_ended.is_ok());
    if let (Ok(()), Some(standard)) = (&ended, wire::standard(message)) {
        assert_eq!(whole, [standard]);
    }
    // Two in one body are two.
    if ended.is_ok() {
        let (twice, ended) = wire::parsed([[body.clone(), body].concat().into()]);
        ended.expect("each is whole");
        assert_eq!(twice, [whole.clone(), whole].concat());
    }
});
