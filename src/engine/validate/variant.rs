//! VARIANT as Parquet's variant encoding: a dictionary of names, and a value that refers to it.
//!
//! DuckDB decodes both without a bound on depth, and follows offsets that may lead to the same bytes again and again. So each
//! value is read here first, as far as its bytes go: a value may not have more parts than bytes.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, StructArray, cast::AsArray};
use arrow_schema::DataType;

use super::{payload::malformed, range::without, rows::Rows};
use crate::error::{Error, Result};

const MAX_DEPTH: usize = 100;

const DAY_MICROS: i64 = 86_400_000_000;

/// The array, without values that do not count and that cannot be read.
pub(super) fn check(storage: &StructArray, rows: &Rows<'_>, refuse: &dyn Fn(u64, String) -> Error) -> Result<ArrayRef> {
    let part = |name: &str| storage.column_by_name(name).ok_or_else(|| Error::invalid("a VARIANT has two fields"));
    let (metadata, values) = (part("metadata")?, part("value")?);
    let mut beyond = Vec::new();
    for row in 0..storage.len() {
        if storage.is_null(row) || metadata.is_null(row) || values.is_null(row) {
            continue;
        }
        if let Err(why) = read(bytes(metadata, row), bytes(values, row)) {
            let why = malformed("variant", bytes(values, row), &why);
            match rows.row_of(row) {
                Some(at) => return Err(refuse(at, why)),
                None => beyond.push(row),
            }
        }
    }
    Ok(without(&(Arc::new(storage.clone()) as ArrayRef), &beyond))
}

fn bytes(array: &ArrayRef, row: usize) -> &[u8] {
    match array.data_type() {
        DataType::Binary => array.as_binary::<i32>().value(row),
        DataType::LargeBinary => array.as_binary::<i64>().value(row),
        _ => array.as_binary_view().value(row),
    }
}

fn read(metadata: &[u8], value: &[u8]) -> Result<(), String> {
    let names = names(metadata)?;
    let mut reader = Reader { names, parts: value.len() };
    let end = reader.value(value, 0)?;
    if end == value.len() { Ok(()) } else { Err(format!("it ends at byte {end}")) }
}

fn number(bytes: &[u8], at: usize, size: usize) -> Result<usize, String> {
    let taken = at.checked_add(size).and_then(|end| bytes.get(at..end)).ok_or("it is cut")?;
    Ok(taken.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

/// How many names the dictionary has.
fn names(metadata: &[u8]) -> Result<usize, String> {
    let header = *metadata.first().ok_or("its metadata is empty")?;
    if header & 0x0f != 1 {
        return Err(format!("its metadata has version {}", header & 0x0f));
    }
    let size = usize::from(header >> 6) + 1;
    let count = number(metadata, 1, size)?;
    let texts = 1 + size + (count.checked_add(1).and_then(|offsets| offsets.checked_mul(size)).ok_or("it is cut")?);
    let texts = metadata.get(texts..).ok_or("its metadata is cut")?;
    let mut last = number(metadata, 1 + size, size)?;
    if last != 0 {
        return Err("its names do not begin at 0".into());
    }
    for name in 1..=count {
        let next = number(metadata, 1 + size + name * size, size)?;
        let text = texts.get(last..next).ok_or("the offsets of its names do not rise within its metadata")?;
        std::str::from_utf8(text).map_err(|_| "a name is not UTF-8")?;
        last = next;
    }
    if last == texts.len() { Ok(count) } else { Err("its metadata is longer than its names".into()) }
}

struct Reader {
    names: usize,
    /// Parts that may still be read.
    parts: usize,
}

impl Reader {
    /// Where the value at the beginning of `bytes` ends.
    fn value(&mut self, bytes: &[u8], depth: usize) -> Result<usize, String> {
        self.parts = self.parts.checked_sub(1).ok_or("its parts overlap")?;
        if depth > MAX_DEPTH {
            return Err(format!("it is nested deeper than {MAX_DEPTH} levels"));
        }
        let header = *bytes.first().ok_or("it is cut")?;
        let (basic, about) = (header & 3, header >> 2);
        match basic {
            0 => primitive(about, bytes),
            1 => {
                let end = 1 + usize::from(about);
                text(bytes.get(1..end))?;
                Ok(end)
            }
            2 => {
                let (offset, id) = (usize::from(about & 3) + 1, usize::from(about >> 2 & 3) + 1);
                self.parts(bytes, if about & 0x10 == 0 { 1 } else { 4 }, offset, Some(id), depth)
            }
            _ => self.parts(bytes, if about & 4 == 0 { 1 } else { 4 }, usize::from(about & 3) + 1, None, depth),
        }
    }

    /// An object, whose fields have ids of names, or an array.
    fn parts(
        &mut self,
        bytes: &[u8],
        count_size: usize,
        offset_size: usize,
        id_size: Option<usize>,
        depth: usize,
    ) -> Result<usize, String> {
        let count = number(bytes, 1, count_size)?;
        let ids = 1 + count_size;
        if count > bytes.len() {
            return Err("it is cut".into());
        }
        let offsets = ids + count * id_size.unwrap_or(0);
        let values = offsets + (count + 1) * offset_size;
        let end = number(bytes, offsets + count * offset_size, offset_size)?;
        let values = bytes.get(values..).and_then(|rest| rest.get(..end)).ok_or("it is cut")?;
        for part in 0..count {
            if let Some(size) = id_size
                && number(bytes, ids + part * size, size)? >= self.names
            {
                return Err("a field's name is not in its metadata".into());
            }
            let at = number(bytes, offsets + part * offset_size, offset_size)?;
            self.value(values.get(at..).ok_or("it is cut")?, depth + 1)?;
        }
        Ok(offsets + (count + 1) * offset_size + end)
    }
}

fn text(bytes: Option<&[u8]>) -> Result<(), String> {
    std::str::from_utf8(bytes.ok_or("it is cut")?).map(drop).map_err(|_| "a text is not UTF-8".to_string())
}

fn primitive(kind: u8, bytes: &[u8]) -> Result<usize, String> {
    let rest = &bytes[1..];
    let wide = |size: usize| {
        let taken = rest.get(..size).ok_or("it is cut")?;
        let mut all = [if taken[size - 1] & 0x80 != 0 { 0xff } else { 0 }; 16];
        all[..size].copy_from_slice(taken);
        Ok::<_, String>(i128::from_le_bytes(all))
    };
    let size = match kind {
        0..=2 => 0,
        3 => 1,
        4 => 2,
        5 => 4,
        6 | 7 => 8,
        8..=10 => {
            let (size, digits) = [(4, 9), (8, 18), (16, 38)][usize::from(kind) - 8];
            let scale = *rest.first().ok_or("it is cut")?;
            let stored = rest.get(1..=size).ok_or("it is cut")?;
            let mut all = [if stored[size - 1] & 0x80 != 0 { 0xff } else { 0 }; 16];
            all[..size].copy_from_slice(stored);
            let most = 10_u128.pow(digits) - 1;
            if u32::from(scale) > digits || i128::from_le_bytes(all).unsigned_abs() > most {
                return Err(format!("a decimal has more than {digits} digits"));
            }
            1 + size
        }
        11 => {
            if wide(4)? == i128::from(i32::MIN) {
                return Err("a date is out of range".into());
            }
            4
        }
        12 | 13 => {
            let micros = wide(8)?;
            if micros < -9_223_372_022_400_000_000 && micros != -i128::from(i64::MAX) {
                return Err("a timestamp is out of range".into());
            }
            8
        }
        14 => 4,
        15 | 16 => {
            let length = number(bytes, 1, 4)?;
            let content = bytes.get(5..).and_then(|rest| rest.get(..length));
            match kind {
                16 => text(content)?,
                _ => content.map(drop).ok_or("it is cut")?,
            }
            4 + length
        }
        17 => {
            if !(0..=i128::from(DAY_MICROS)).contains(&wide(8)?) {
                return Err("a time is outside 00:00:00 to 24:00:00".into());
            }
            8
        }
        18 | 19 => {
            let nanos = wide(8)?;
            if nanos < -9_223_286_400_000_000_000 && nanos != -i128::from(i64::MAX) {
                return Err("a timestamp is out of range".into());
            }
            8
        }
        20 => 16,
        other => return Err(format!("it has the unknown type {other}")),
    };
    if rest.len() < size { Err("it is cut".into()) } else { Ok(1 + size) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_NAMES: &[u8] = &[1, 0, 0];

    #[test]
    fn values_end_where_their_bytes_end() {
        assert_eq!(read(NO_NAMES, &[0]), Ok(()));
        assert_eq!(read(NO_NAMES, &[5 << 2, 1, 0, 0, 0]), Ok(()));
        assert_eq!(read(&[1, 1, 0, 1, b'a'], &[2, 1, 0, 0, 1, 0]), Ok(()));
        for (metadata, value) in [
            (&[][..], &[0][..]),
            (NO_NAMES, &[]),
            (NO_NAMES, &[5 << 2, 1]),
            (NO_NAMES, &[0, 0]),
            (NO_NAMES, &[2, 1, 0, 0, 1, 0]),
            (&[1, 0, 0, 9], &[0]),
            (NO_NAMES, &[17 << 2, 0xfb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ] {
            assert!(read(metadata, value).is_err(), "{metadata:?} {value:?}");
        }
    }

    /// Each array holds the next one 200 times at the same place.
    #[test]
    fn parts_that_overlap_are_refused() {
        let mut value = vec![0];
        for _ in 0..8 {
            let mut outer = vec![3 | 3 << 2, 200];
            (0..200).for_each(|_| outer.extend(0_u32.to_le_bytes()));
            outer.extend((value.len() as u32).to_le_bytes());
            outer.extend(value);
            value = outer;
        }
        assert_eq!(read(NO_NAMES, &value), Err("its parts overlap".into()));
    }
}
