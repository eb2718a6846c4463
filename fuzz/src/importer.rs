//! Reads an array as DuckDB's importer does: by the types of the schema, not by what the array says of itself. An index beyond
//! a buffer panics.

use arrow_data::ArrayData;
use arrow_schema::{DataType, Field, TimeUnit};

/// Reads these rows of a column that was checked, and looks at the values that DuckDB takes on trust.
pub fn read(field: &Field, data: &ArrayData, from: usize, rows: usize) {
    let extension = field.metadata().get("ARROW:extension:name").map(|name| name.to_string());
    let told = field.metadata().get("ARROW:extension:metadata").map(|told| told.to_string()).unwrap_or_default();
    let (first, valid) =
        (data.offset() + from, |row: usize| data.nulls().is_none_or(|nulls| nulls.is_valid(from + row)));
    let fixed = |buffer: usize, row: usize, width: usize| {
        let values = data.buffers()[buffer].as_slice();
        values[(first + row) * width..][..width].to_vec()
    };
    let number = |bytes: Vec<u8>| {
        bytes
            .iter()
            .rev()
            .fold(if bytes.last().is_some_and(|last| last & 0x80 != 0) { -1 } else { 0 }, |sum: i128, byte| {
                sum << 8 | i128::from(*byte)
            })
    };
    let offsets = |row: usize, large: bool| {
        let width = if large { 8 } else { 4 };
        let at = |row: usize| usize::try_from(number(fixed(0, row, width))).expect("offsets are not negative");
        (at(row), at(row + 1))
    };
    match (extension.as_deref(), field.data_type()) {
        (_, DataType::Null) => {}
        (_, DataType::Boolean) => {
            let bits = data.buffers()[0].as_slice();
            (0..rows).for_each(|row| _ = std::hint::black_box(bits[(first + row) / 8]));
        }
        (Some("arrow.uuid"), _) => (0..rows).for_each(|row| drop(fixed(0, row, 16))),
        (Some("arrow.opaque"), _) if told.contains("huge") => (0..rows).for_each(|row| drop(fixed(0, row, 16))),
        (Some("arrow.opaque"), _) if told.contains("time_tz") => {
            for row in (0..rows).filter(|row| valid(*row)) {
                let value = u64::from_le_bytes(fixed(0, row, 8).try_into().expect("eight bytes"));
                assert!(value >> 24 <= 86_400_000_000, "a TIMETZ past 24 h");
            }
        }
        (name, DataType::Binary | DataType::Utf8 | DataType::LargeBinary | DataType::LargeUtf8) => {
            let large = matches!(field.data_type(), DataType::LargeBinary | DataType::LargeUtf8);
            for row in 0..rows {
                let (start, end) = offsets(row, large);
                let value = &data.buffers()[1].as_slice()[start..end];
                if valid(row) && name == Some("arrow.opaque") {
                    assert!(value.len() >= 2, "a BIT or a BIGNUM without its parts");
                }
                std::hint::black_box(value.iter().fold(0, |sum, byte| sum ^ byte));
            }
        }
        (_, DataType::BinaryView | DataType::Utf8View) => {
            for row in (0..rows).filter(|row| valid(*row)) {
                let view = fixed(0, row, 16);
                let word = |at: usize| u32::from_le_bytes(view[at..at + 4].try_into().expect("four bytes")) as usize;
                if word(0) > 12 {
                    std::hint::black_box(&data.buffers()[1 + word(8)].as_slice()[word(12)..][..word(0)]);
                }
            }
        }
        (_, DataType::FixedSizeBinary(size)) => (0..rows).for_each(|row| drop(fixed(0, row, *size as usize))),
        (_, DataType::List(item) | DataType::LargeList(item) | DataType::Map(item, _)) => {
            let large = matches!(field.data_type(), DataType::LargeList(_));
            if rows > 0 {
                let (start, end) = (offsets(0, large).0, offsets(rows - 1, large).1);
                assert!(end <= data.child_data()[0].len() && start <= end);
                (0..rows).for_each(|row| assert!(offsets(row, large).0 <= offsets(row, large).1));
                read(item, &data.child_data()[0], start, end - start);
            }
        }
        (_, DataType::FixedSizeList(item, size)) => {
            let size = *size as usize;
            assert!((first + rows) * size <= data.child_data()[0].len());
            read(item, &data.child_data()[0], first * size, rows * size);
        }
        (_, DataType::Struct(fields)) => {
            for (field, child) in fields.iter().zip(data.child_data()) {
                assert!(first + rows <= child.len());
                read(field, child, first, rows);
            }
            assert_eq!(fields.len(), data.child_data().len());
        }
        (_, DataType::Union(fields, _)) => {
            (0..rows).for_each(|row| assert!((fixed(0, row, 1)[0] as usize) < fields.len()));
            for ((_, field), child) in fields.iter().zip(data.child_data()) {
                assert!(first + rows <= child.len());
                read(field, child, first, rows);
            }
        }
        (_, DataType::Dictionary(keys, _)) => {
            let values = &data.child_data()[0];
            let width = keys.primitive_width().expect("keys are integers");
            for row in (0..rows).filter(|row| valid(*row)) {
                let mut key = fixed(0, row, width);
                key.push(0);
                assert!(number(key) < values.len() as i128, "a key beyond the dictionary");
            }
            let inner = field.clone().with_data_type(values.data_type().clone());
            read(&inner, values, 0, values.len());
        }
        (_, data_type) => {
            let width = data_type.primitive_width().expect("the others are above");
            for row in 0..rows {
                let value = number(fixed(0, row, width));
                if !valid(row) {
                    continue;
                }
                let per_second = |unit: &TimeUnit| match unit {
                    TimeUnit::Second => 1,
                    TimeUnit::Millisecond => 1_000,
                    TimeUnit::Microsecond => 1_000_000,
                    TimeUnit::Nanosecond => 1_000_000_000,
                };
                match data_type {
                    DataType::Time32(unit) | DataType::Time64(unit) => {
                        assert!((0..=86_400 * per_second(unit)).contains(&value), "a TIME outside of a day");
                    }
                    DataType::Timestamp(..) => assert_ne!(value, i128::from(i64::MIN)),
                    DataType::Decimal32(precision, _)
                    | DataType::Decimal64(precision, _)
                    | DataType::Decimal128(precision, _) => {
                        assert!(value.unsigned_abs() < 10_u128.pow(u32::from(*precision)), "a DECIMAL of more digits");
                    }
                    _ => {}
                }
            }
        }
    }
}
