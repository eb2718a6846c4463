//! Columns of any type, layout and value: refused, or all that DuckDB's importer reads of them is there and in its range.

#![no_main]

use arrow_array::Array;
use libfuzzer_sys::fuzz_target;
use mallard_fuzz::{arrays, engine, importer};

thread_local! {
    /// The check catches arrow-rs's panics.
    static CHECKING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fuzz_target!(init: {
    let ending = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !CHECKING.get() {
            ending(panic);
        }
    }));
}, |bytes: &[u8]| {
    let Some(batch) = arrays::batch(&mut arrays::Bytes(bytes)) else { return };
    // A decoder hands on nothing else.
    if !batch.columns().iter().all(|column| column.to_data().validate_full().is_ok()) {
        return;
    }
    CHECKING.set(true);
    let checked = engine::checked(&batch);
    CHECKING.set(false);
    let Ok((schema, rows)) = checked else { return };
    for (field, column) in schema.fields().iter().zip(rows.columns()) {
        let data = column.to_data();
        data.validate_full().expect("what is checked is valid");
        importer::read(field, &data, 0, column.len());
    }
});
