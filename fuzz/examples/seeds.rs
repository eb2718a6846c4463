//! Writes real streams as the corpora that the targets begin with.

use std::{fs, path::Path, sync::Arc};

use arrow_array::{
    ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int64Array, ListArray, RecordBatch, StringArray,
    StringViewArray, StructArray,
    types::{Int8Type, Int32Type},
};
use arrow_flight::FlightDescriptor;
use mallard_fuzz::wire;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let numbers = Arc::new(Int64Array::from(vec![Some(1), None, Some(3)])) as ArrayRef;
    let texts = Arc::new(StringArray::from(vec![Some("a"), None, Some("a longer text")])) as ArrayRef;
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), None, Some(vec![])]);
    let pair = StructArray::try_from(vec![("n", numbers.clone()), ("s", texts.clone())])?;
    let columns: [(&str, ArrayRef); 8] = [
        ("number", numbers),
        ("text", texts),
        ("float", Arc::new(Float64Array::from(vec![0.5, -1.0, f64::NAN]))),
        ("flag", Arc::new(BooleanArray::from(vec![true, false, true]))),
        ("list", Arc::new(list)),
        ("pair", Arc::new(pair)),
        ("word", Arc::new(["x", "y", "x"].into_iter().collect::<DictionaryArray<Int8Type>>())),
        ("view", Arc::new(StringViewArray::from(vec!["short", "", "too long for the view itself"]))),
    ];
    let all = RecordBatch::try_from_iter(columns.clone())?;
    let each = columns.into_iter().map(|column| RecordBatch::try_from_iter([column]));
    for (at, batch) in each.chain([Ok(all)]).enumerate() {
        let batch = batch?;
        let batches = [batch.clone(), batch.slice(1, 2)];
        let body = wire::framed(&batch.schema(), &batches, Some(FlightDescriptor::new_cmd("echo")))?;
        write(&corpus.join("messages").join(at.to_string()), &body)?;
        let mut rest = &body[..];
        for number in 0.. {
            let [0, a, b, c, d, ..] = *rest else { break };
            let (message, others) = rest[5..].split_at(u32::from_be_bytes([a, b, c, d]) as usize);
            write(&corpus.join("framing").join(format!("{at}-{number}")), message)?;
            rest = others;
        }
    }
    Ok(())
}

/// With the byte in front that says how the rest is cut.
fn write(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(file.parent().expect("a file in a corpus"))?;
    fs::write(file, [&[255], bytes].concat())
}
