//! VARIANT as JSON text, for clients that read no extension types: DuckDB gives Parquet's variant encoding, and what is written
//! here is what its cast to JSON writes.

use std::{fmt::Write, sync::Arc};

use arrow_array::{Array, ArrayRef, StructArray, builder::StringBuilder, cast::AsArray};
use arrow_schema::{DataType, Fields};

use crate::error::{Error, Result};

/// It is read with recursion.
const MAX_DEPTH: usize = 1000;

/// The texts of values that DuckDB has encoded, or that were checked when they came in.
pub(super) fn texts(storage: &StructArray) -> Result<ArrayRef> {
    let part = |name: &str| storage.column_by_name(name).and_then(|part| part.as_binary_opt::<i32>());
    let (Some(metadata), Some(values)) = (part("metadata"), part("value")) else {
        return Err(Error::internal("a VARIANT has other parts than metadata and value"));
    };
    let mut texts = StringBuilder::new();
    for row in 0..storage.len() {
        if storage.is_null(row) || values.is_null(row) {
            texts.append_null();
            continue;
        }
        let mut text = String::new();
        write(&mut text, metadata.value(row), values.value(row), 0).ok_or_else(|| {
            Error::Sql(format!("a VARIANT is nested deeper than {MAX_DEPTH} levels, or damaged: cast it to VARCHAR"))
        })?;
        texts.append_value(text);
    }
    Ok(Arc::new(texts.finish()))
}

/// Whether these are the parts of a VARIANT that [`texts`] reads.
pub(super) fn is_readable(fields: &Fields) -> bool {
    let binary = |name: &str| fields.iter().any(|field| field.name() == name && *field.data_type() == DataType::Binary);
    fields.len() == 2 && binary("metadata") && binary("value")
}

/// Writes the value at the beginning of `value`; nothing where its bytes end before it does, or it is too deep.
fn write(text: &mut String, metadata: &[u8], value: &[u8], depth: usize) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
    let (header, rest) = value.split_first()?;
    let (basic, about) = (header & 3, header >> 2);
    match basic {
        0 => primitive(text, about, rest)?,
        1 => quoted(text, std::str::from_utf8(rest.get(..usize::from(about))?).ok()?),
        _ => {
            let object = basic == 2;
            let large = about & if object { 0x10 } else { 4 } != 0;
            let count_size = if large { 4 } else { 1 };
            let (offset_size, id_size) = (usize::from(about & 3) + 1, usize::from(about >> 2 & 3) + 1);
            let count = number(rest, 0, count_size)?;
            let offsets = count_size + if object { count * id_size } else { 0 };
            let values = offsets + (count + 1) * offset_size;
            text.push(if object { '{' } else { '[' });
            for part in 0..count {
                if part > 0 {
                    text.push(',');
                }
                if object {
                    quoted(text, name(metadata, number(rest, count_size + part * id_size, id_size)?)?);
                    text.push(':');
                }
                let at = number(rest, offsets + part * offset_size, offset_size)?;
                write(text, metadata, rest.get(values + at..)?, depth + 1)?;
            }
            text.push(if object { '}' } else { ']' });
        }
    }
    Some(())
}

fn number(bytes: &[u8], at: usize, size: usize) -> Option<usize> {
    let taken = bytes.get(at..at + size)?;
    Some(taken.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

/// A name of the dictionary.
fn name(metadata: &[u8], id: usize) -> Option<&str> {
    let size = usize::from(metadata.first()? >> 6) + 1;
    let count = number(metadata, 1, size)?;
    let offset = |name: usize| number(metadata, 1 + size + name * size, size);
    let texts = metadata.get(1 + size + (count + 1) * size..)?;
    std::str::from_utf8(texts.get(offset(id)?..offset(id + 1)?)?).ok()
}

fn quoted(text: &mut String, content: &str) {
    text.push_str(&serde_json::Value::from(content).to_string());
}

fn primitive(text: &mut String, kind: u8, rest: &[u8]) -> Option<()> {
    let signed = |from: usize, size: usize| {
        let taken = rest.get(from..from + size)?;
        let mut all = [if taken[size - 1] & 0x80 != 0 { 0xff } else { 0 }; 16];
        all[..size].copy_from_slice(taken);
        Some(i128::from_le_bytes(all))
    };
    let long = || i64::try_from(signed(0, 8)?).ok();
    match kind {
        0 => text.push_str("null"),
        1 => text.push_str("true"),
        2 => text.push_str("false"),
        3..=6 => text.push_str(&signed(0, 1 << (kind - 3))?.to_string()),
        7 => float(text, f64::from_le_bytes(rest.get(..8)?.try_into().ok()?)),
        8..=10 => {
            let scale = *rest.first()?;
            text.push_str(&decimal(signed(1, 4 << (kind - 8))?, usize::from(scale)));
        }
        11 => quoted(text, &date(i64::try_from(signed(0, 4)?).ok()?)),
        12 | 13 => quoted(text, &timestamp(long()?, 1_000_000, kind == 12)),
        14 => float(text, f64::from(f32::from_le_bytes(rest.get(..4)?.try_into().ok()?))),
        15 => quoted(text, &blob(rest.get(4..4 + number(rest, 0, 4)?)?)),
        16 => quoted(text, std::str::from_utf8(rest.get(4..4 + number(rest, 0, 4)?)?).ok()?),
        17 => quoted(text, &time(long()?, 1_000_000)),
        18 | 19 => quoted(text, &timestamp(long()?, 1_000_000_000, kind == 18)),
        20 => quoted(text, &super::plain::uuid(rest.get(..16)?)),
        _ => return None,
    }
    Some(())
}

fn float(text: &mut String, value: f64) {
    match value {
        value if value.is_nan() => text.push_str("NaN"),
        f64::INFINITY => text.push_str("Infinity"),
        f64::NEG_INFINITY => text.push_str("-Infinity"),
        value => {
            let _ = write!(text, "{value:?}");
        }
    }
}

fn decimal(unscaled: i128, scale: usize) -> String {
    let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let (sign, point) = (if unscaled < 0 { "-" } else { "" }, if scale > 0 { "." } else { "" });
    format!("{sign}{whole}{point}{fraction}")
}

/// Days since 1970 in the proleptic Gregorian calendar.
fn date(days: i64) -> String {
    if days.abs() == i64::from(i32::MAX) {
        return if days > 0 { "infinity" } else { "-infinity" }.into();
    }
    // Years that begin in March, so that a leap day is a year's last: 146,097 days make 400 of them.
    let from_0000_03_01 = days + 719_468;
    let (era, day) = (from_0000_03_01.div_euclid(146_097), from_0000_03_01.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    match year {
        1.. => format!("{year:04}-{month:02}-{day:02}"),
        _ => format!("{:04}-{month:02}-{day:02} (BC)", 1 - year),
    }
}

fn time(ticks: i64, per_second: i64) -> String {
    let (seconds, fraction) = (ticks / per_second, ticks % per_second);
    let mut text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction > 0 {
        let digits = per_second.ilog10() as usize;
        text.push_str(format!(".{fraction:0digits$}").trim_end_matches('0'));
    }
    text
}

fn timestamp(ticks: i64, per_second: i64, zoned: bool) -> String {
    if ticks == i64::MAX || ticks == -i64::MAX {
        return if ticks > 0 { "infinity" } else { "-infinity" }.into();
    }
    let day = 86_400 * per_second;
    let zone = if zoned { "+00" } else { "" };
    format!("{} {}{zone}", date(ticks.div_euclid(day)), time(ticks.rem_euclid(day), per_second))
}

/// Printable ASCII as it is, and all other bytes by their codes.
fn blob(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        if (b' '..=b'~').contains(&byte) && !matches!(byte, b'\\' | b'\'' | b'"') {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "\\x{byte:02X}");
        }
    }
    text
}
