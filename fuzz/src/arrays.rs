//! Columns of any type that bytes describe: what a decoder may hand to the check.

use std::{collections::HashMap, sync::Arc};

use arrow_array::{
    Array, ArrayRef, BinaryViewArray, BooleanArray, DictionaryArray, RecordBatch, RunArray, StringViewArray,
    make_array,
    types::{Int16Type, UInt8Type},
};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_data::ArrayData;
use arrow_schema::{DataType, Field, FieldRef, Fields, IntervalUnit, Schema, TimeUnit, UnionFields, UnionMode};

const EXTENSIONS: [(&str, &str); 10] = [
    ("arrow.uuid", ""),
    ("arrow.bool8", ""),
    ("arrow.json", ""),
    ("geoarrow.wkb", "{}"),
    ("arrow.parquet.variant", ""),
    ("arrow.opaque", r#"{"type_name":"hugeint","vendor_name":"DuckDB"}"#),
    ("arrow.opaque", r#"{"type_name":"uhugeint","vendor_name":"DuckDB"}"#),
    ("arrow.opaque", r#"{"type_name":"time_tz","vendor_name":"DuckDB"}"#),
    ("arrow.opaque", r#"{"type_name":"bit","vendor_name":"DuckDB"}"#),
    ("arrow.opaque", r#"{"type_name":"bignum","vendor_name":"DuckDB"}"#),
];

/// Bytes that are zeros behind their end.
pub struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.next()) % bound.max(1)
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        // Whole runs of one byte reach the ends of ranges.
        match self.next() {
            0 => vec![0; count],
            1 => vec![255; count],
            _ => (0..count).map(|_| self.next()).collect(),
        }
    }

    fn nulls(&mut self, count: usize) -> Option<NullBuffer> {
        match self.next() % 4 {
            0 => Some(NullBuffer::new_null(count)),
            1 => Some(BooleanBuffer::collect_bool(count, |_| self.next() & 1 == 0).into()),
            _ => None,
        }
    }

    /// Rising, from 0 or more.
    fn offsets(&mut self, count: usize) -> Vec<i32> {
        let mut last = self.below(2) as i32;
        let mut offsets = vec![last];
        offsets.extend((0..count).map(|_| {
            last += self.below(4) as i32;
            last
        }));
        offsets
    }
}

/// One or two columns of the same length.
pub fn batch(bytes: &mut Bytes<'_>) -> Option<RecordBatch> {
    let rows = bytes.below(9);
    let columns: Vec<(FieldRef, ArrayRef)> = (0..1 + bytes.below(2)).map(|_| column(bytes, rows, 0)).collect();
    let fields = columns.iter().enumerate().map(|(at, (field, _))| field.as_ref().clone().with_name(format!("c{at}")));
    let schema = Schema::new(fields.collect::<Vec<_>>());
    RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|(_, array)| array).collect()).ok()
}

fn column(bytes: &mut Bytes<'_>, rows: usize, depth: usize) -> (FieldRef, ArrayRef) {
    let array = match bytes.next() % 3 {
        // A part of a longer one.
        0 => array(bytes, rows + 3, depth).slice(bytes.below(3), rows),
        _ => array(bytes, rows, depth),
    };
    let field = Field::new("item", array.data_type().clone(), true);
    let field = match bytes.next() {
        at if at % 2 == 0 => field,
        at => {
            let (name, metadata) = EXTENSIONS[usize::from(at / 2) % EXTENSIONS.len()];
            let metadata = [("ARROW:extension:name", name), ("ARROW:extension:metadata", metadata)];
            field.with_metadata(HashMap::from(metadata.map(|(key, value)| (key.to_string(), value.to_string()))))
        }
    };
    (Arc::new(field), array)
}

fn array(bytes: &mut Bytes<'_>, rows: usize, depth: usize) -> ArrayRef {
    if depth < 4 && bytes.next() % 2 == 0 {
        return nested(bytes, rows, depth).unwrap_or_else(|| arrow_array::new_null_array(&DataType::Null, rows));
    }
    let zone = || Some("UTC".into());
    let units = [TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond];
    let unit = units[bytes.below(4)];
    let types = [
        DataType::Int8,
        DataType::Int32,
        DataType::UInt64,
        DataType::Float16,
        DataType::Float64,
        DataType::Date32,
        DataType::Date64,
        DataType::Time32(TimeUnit::Second),
        DataType::Time32(TimeUnit::Millisecond),
        DataType::Time64(TimeUnit::Microsecond),
        DataType::Time64(TimeUnit::Nanosecond),
        DataType::Timestamp(unit, None),
        DataType::Timestamp(unit, zone()),
        DataType::Duration(unit),
        DataType::Interval(IntervalUnit::YearMonth),
        DataType::Interval(IntervalUnit::DayTime),
        DataType::Interval(IntervalUnit::MonthDayNano),
        DataType::Decimal32(5, 2),
        DataType::Decimal64(15, 0),
        DataType::Decimal128(38, 10),
        DataType::Decimal128(3, -1),
        DataType::Decimal256(38, 0),
        DataType::FixedSizeBinary(16),
        DataType::FixedSizeBinary(8),
        DataType::FixedSizeBinary(1),
        DataType::FixedSizeBinary(0),
        DataType::Binary,
        DataType::Utf8,
        DataType::BinaryView,
        DataType::Utf8View,
        DataType::Boolean,
        DataType::Null,
    ];
    let data_type = types[bytes.below(types.len())].clone();
    let nulls = if data_type == DataType::Null { None } else { bytes.nulls(rows) };
    let builder = ArrayData::builder(data_type.clone()).len(rows).nulls(nulls.clone());
    let data = match &data_type {
        DataType::Null => builder.build(),
        DataType::Boolean => {
            let values = BooleanBuffer::collect_bool(rows, |_| bytes.next() & 1 == 0);
            return Arc::new(BooleanArray::new(values, nulls));
        }
        DataType::FixedSizeBinary(size) => {
            builder.add_buffer(Buffer::from_vec(bytes.take(rows * *size as usize))).build()
        }
        DataType::Binary | DataType::Utf8 => {
            let offsets = bytes.offsets(rows);
            let values = bytes.take(offsets[rows] as usize).into_iter();
            let values: Vec<u8> =
                values.map(|byte| if data_type == DataType::Utf8 { byte & 0x7f } else { byte }).collect();
            builder.add_buffer(Buffer::from_vec(offsets)).add_buffer(Buffer::from_vec(values)).build()
        }
        DataType::BinaryView | DataType::Utf8View => {
            let values: Vec<Option<Vec<u8>>> = (0..rows)
                .map(|row| {
                    let size = bytes.below(40);
                    let value = bytes.take(size).into_iter().map(|byte| byte & 0x7f).collect();
                    nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)).then_some(value)
                })
                .collect();
            if data_type == DataType::BinaryView {
                return Arc::new(BinaryViewArray::from_iter(values));
            }
            let texts = values.into_iter().map(|value| value.map(|value| String::from_utf8(value).expect("ASCII")));
            return Arc::new(StringViewArray::from_iter(texts));
        }
        primitive => {
            let width = primitive.primitive_width().expect("the others are above");
            let values = Buffer::from_slice_ref(bytes.take(rows * width));
            builder.add_buffer(values).build()
        }
    };
    make_array(data.expect("buffers of these sizes"))
}

fn nested(bytes: &mut Bytes<'_>, rows: usize, depth: usize) -> Option<ArrayRef> {
    use arrow_array::{
        FixedSizeListArray, LargeListArray, ListArray, ListViewArray, MapArray, StructArray, UnionArray,
    };
    let depth = depth + 1;
    Some(match bytes.next() % 9 {
        0 => {
            let offsets = bytes.offsets(rows);
            let count = offsets[rows] as usize + bytes.below(2);
            let (field, values) = column(bytes, count, depth);
            Arc::new(ListArray::try_new(field, OffsetBuffer::new(offsets.into()), values, bytes.nulls(rows)).ok()?)
        }
        1 => {
            let offsets: Vec<i64> = bytes.offsets(rows).into_iter().map(i64::from).collect();
            let (field, values) = column(bytes, offsets[rows] as usize, depth);
            Arc::new(LargeListArray::try_new(field, OffsetBuffer::new(offsets.into()), values, bytes.nulls(rows)).ok()?)
        }
        2 => {
            let size = bytes.below(4);
            let (field, values) = column(bytes, rows * size, depth);
            let nulls = bytes.nulls(rows);
            Arc::new(FixedSizeListArray::try_new_with_length(field, size as i32, values, nulls, rows).ok()?)
        }
        3 => {
            let count = bytes.below(8);
            let (field, values) = column(bytes, count, depth);
            let places = |bytes: &mut Bytes<'_>| (bytes.below(count + 1), bytes.below(4));
            let views: Vec<(usize, usize)> = (0..rows).map(|_| places(bytes)).collect();
            let offsets: ScalarBuffer<i32> = views.iter().map(|(offset, _)| *offset as i32).collect();
            let sizes = views.iter().map(|(offset, size)| (*size).min(count - offset) as i32).collect();
            Arc::new(ListViewArray::try_new(field, offsets, sizes, values, bytes.nulls(rows)).ok()?)
        }
        4 => {
            let columns: Vec<_> = (0..bytes.below(3)).map(|_| column(bytes, rows, depth)).collect();
            let name = |(at, (field, _)): (usize, &(FieldRef, ArrayRef))| {
                let name = ["metadata", "value", "c"][at.min(2)];
                field.as_ref().clone().with_name(name)
            };
            let fields: Fields = columns.iter().enumerate().map(name).collect();
            let arrays = columns.into_iter().map(|(_, array)| array).collect();
            Arc::new(StructArray::try_new_with_length(fields, arrays, bytes.nulls(rows), rows).ok()?)
        }
        5 => {
            let offsets = bytes.offsets(rows);
            let count = offsets[rows] as usize;
            let ((key, keys), (value, values)) = (column(bytes, count, depth), column(bytes, count, depth));
            let (key, value) = (key.as_ref().clone().with_name("key"), value.as_ref().clone().with_name("value"));
            let entries = StructArray::try_new(vec![key, value].into(), vec![keys, values], None).ok()?;
            let field = Arc::new(Field::new("entries", entries.data_type().clone(), false));
            let offsets = OffsetBuffer::new(offsets.into());
            Arc::new(MapArray::try_new(field, offsets, entries, bytes.nulls(rows), false).ok()?)
        }
        6 => {
            let mode = if bytes.next() % 2 == 0 { UnionMode::Sparse } else { UnionMode::Dense };
            let count = if mode == UnionMode::Sparse { rows } else { 1 + bytes.below(3) };
            let members: Vec<_> = (0..1 + bytes.below(3)).map(|_| column(bytes, count, depth)).collect();
            let ids: Vec<i8> = (0..members.len()).map(|at| (at * 5 % 7) as i8).collect();
            let fields = ids
                .iter()
                .zip(&members)
                .map(|(id, (field, _))| (*id, Arc::new(field.as_ref().clone().with_name(format!("m{id}")))));
            let fields: UnionFields = fields.collect();
            let chosen = (0..rows).map(|_| ids[bytes.below(ids.len())]).collect();
            let offsets = (mode == UnionMode::Dense).then(|| (0..rows).map(|_| bytes.below(count) as i32).collect());
            let arrays = members.into_iter().map(|(_, array)| array).collect();
            Arc::new(UnionArray::try_new(fields, chosen, offsets, arrays).ok()?)
        }
        7 => {
            let count = bytes.below(6);
            let (_, values) = column(bytes, count, depth);
            let keys = (0..rows).map(|_| {
                let key = bytes.next();
                (count > 0 && key % 5 != 0).then(|| key % count.max(1) as u8)
            });
            Arc::new(DictionaryArray::<UInt8Type>::try_new(keys.collect(), values).ok()?)
        }
        _ => {
            let count = 1 + bytes.below(4);
            let (_, values) = column(bytes, count, depth);
            let mut end = 0_i16;
            let ends = (0..count).map(|run| {
                end += 1 + if run + 1 == count { rows as i16 } else { bytes.below(3) as i16 };
                end
            });
            let runs = RunArray::<Int16Type>::try_new(&ends.collect(), &values).ok()?;
            Arc::new(runs.slice(bytes.below(runs.len() - rows + 1), rows))
        }
    })
}
