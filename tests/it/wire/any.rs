//! Schemas and batches of every kind that Arrow IPC carries.

use std::{collections::HashMap, sync::Arc};

use arrow_array::{types::*, *};
use arrow_buffer::{BooleanBuffer, Buffer, MutableBuffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{
    DataType, Field, FieldRef, Fields, IntervalUnit, Schema, SchemaRef, TimeUnit, UnionFields, UnionMode,
};
use proptest::prelude::*;

use super::Random;

/// A column's type, and whether it may hold nulls.
pub(super) fn columns() -> impl Strategy<Value = Vec<(DataType, bool)>> {
    prop::collection::vec((data_type(), any::<bool>()), 0..6)
}

fn data_type() -> impl Strategy<Value = DataType> {
    let leaf = prop_oneof![8 => flat(), 1 => dictionary()];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let field = (inner.clone(), any::<bool>()).prop_map(|(inner, nullable)| field("item", inner, nullable));
        let several = prop::collection::vec((inner.clone(), any::<bool>()), 0..4).prop_map(fields);
        // A union is as nullable as what it holds, and the standard encoder forgets that it is.
        let filled = inner.prop_map(|inner| if inner.is_null() { DataType::Int8 } else { inner });
        let alternatives = prop::collection::vec((filled, Just(false)), 1..4).prop_map(fields);
        let entries = (key(), field.clone()).prop_map(|(key, value)| {
            let value = value.as_ref().clone().with_name("value");
            self::field("entries", DataType::Struct(vec![Field::new("key", key, false), value].into()), false)
        });
        prop_oneof![
            field.clone().prop_map(DataType::List),
            field.clone().prop_map(DataType::LargeList),
            field.clone().prop_map(DataType::ListView),
            field.clone().prop_map(DataType::LargeListView),
            (field, 1..4).prop_map(|(field, size)| DataType::FixedSizeList(field, size)),
            several.prop_map(DataType::Struct),
            entries.prop_map(|entries| DataType::Map(entries, false)),
            (alternatives, any::<bool>()).prop_map(|(fields, sparse)| {
                // The ids of a union need not count up from 0.
                let ids: Vec<i8> = (0..fields.len()).map(|at| at as i8 * 3).collect();
                let mode = if sparse { UnionMode::Sparse } else { UnionMode::Dense };
                DataType::Union(UnionFields::try_new(ids, fields.iter().cloned()).unwrap(), mode)
            }),
        ]
    })
}

fn flat() -> impl Strategy<Value = DataType> {
    use DataType::*;
    prop::sample::select(vec![
        Null,
        Boolean,
        Int8,
        Int16,
        Int32,
        Int64,
        UInt8,
        UInt16,
        UInt32,
        UInt64,
        Float16,
        Float32,
        Float64,
        Decimal32(9, 2),
        Decimal64(18, 0),
        Decimal128(38, 10),
        Decimal256(76, -3),
        Utf8,
        LargeUtf8,
        Utf8View,
        Binary,
        LargeBinary,
        BinaryView,
        FixedSizeBinary(1),
        FixedSizeBinary(7),
        Date32,
        Date64,
        Time32(TimeUnit::Second),
        Time32(TimeUnit::Millisecond),
        Time64(TimeUnit::Microsecond),
        Time64(TimeUnit::Nanosecond),
        Timestamp(TimeUnit::Second, None),
        Timestamp(TimeUnit::Millisecond, Some("+01:30".into())),
        Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Timestamp(TimeUnit::Nanosecond, None),
        Duration(TimeUnit::Microsecond),
        Interval(IntervalUnit::YearMonth),
        Interval(IntervalUnit::DayTime),
        Interval(IntervalUnit::MonthDayNano),
    ])
}

fn key() -> impl Strategy<Value = DataType> {
    prop::sample::select(vec![DataType::Utf8, DataType::Int32, DataType::Utf8View, DataType::FixedSizeBinary(7)])
}

fn dictionary() -> impl Strategy<Value = DataType> {
    use DataType::*;
    let keys = prop::sample::select(vec![Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64]);
    let texts = Dictionary(Box::new(Int8), Box::new(Utf8));
    let values = prop::sample::select(vec![
        Utf8,
        LargeUtf8,
        Utf8View,
        Binary,
        Int64,
        Boolean,
        Decimal128(20, 2),
        FixedSizeBinary(7),
        List(field("item", Int32, true)),
        // Dictionaries in a dictionary.
        Struct(fields(vec![(texts.clone(), true), (Int16, false)])),
        List(field("item", texts, true)),
    ]);
    (keys, values).prop_map(|(keys, values)| Dictionary(Box::new(keys), Box::new(values)))
}

/// Whose nullability and metadata the standard encoder forgets.
fn forgotten(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Union(..))
}

fn field(name: &str, data_type: DataType, nullable: bool) -> FieldRef {
    let nullable = (nullable || data_type.is_null()) && !forgotten(&data_type);
    Arc::new(Field::new(name, data_type, nullable))
}

fn fields(types: Vec<(DataType, bool)>) -> Fields {
    types.into_iter().enumerate().map(|(at, (inner, nullable))| field(&format!("f{at}"), inner, nullable)).collect()
}

/// With metadata, and with names that repeat.
pub(super) fn schema(columns: &[(DataType, bool)], random: &mut Random) -> SchemaRef {
    let metadata = |random: &mut Random| {
        if random.one_in(3) { HashMap::from([("origin".into(), "ünï".into())]) } else { HashMap::new() }
    };
    let fields: Vec<Field> = columns
        .iter()
        .map(|(data_type, nullable)| {
            let name = ["a", "b", "", "ünïcode 🦆"][random.below(4)];
            let field =
                Field::new(name, data_type.clone(), (*nullable || data_type.is_null()) && !forgotten(data_type));
            if forgotten(data_type) { field } else { field.with_metadata(metadata(random)) }
        })
        .collect();
    Arc::new(Schema::new_with_metadata(fields, metadata(random)))
}

/// A batch of so many rows, perhaps a slice of a longer one.
pub(super) fn batch(schema: &SchemaRef, rows: usize, random: &mut Random) -> RecordBatch {
    let (before, after) = around(random);
    let all = before + rows + after;
    let columns = schema.fields().iter().map(|field| array(field, all, random)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(all));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options).unwrap().slice(before, rows)
}

/// What a slice leaves out in front and behind.
fn around(random: &mut Random) -> (usize, usize) {
    if random.one_in(3) { (random.below(21), random.below(9)) } else { (0, 0) }
}

fn array(field: &Field, rows: usize, random: &mut Random) -> ArrayRef {
    let (before, after) = around(random);
    let all = before + rows + after;
    let nulls = (field.is_nullable() && !random.one_in(3)).then(|| {
        let often = 2 + random.below(8);
        NullBuffer::new(BooleanBuffer::collect_bool(all, |_| !random.one_in(often)))
    });
    make(field, all, nulls, random).slice(before, rows)
}

fn make(field: &Field, rows: usize, nulls: Option<NullBuffer>, random: &mut Random) -> ArrayRef {
    let data_type = field.data_type();
    macro_rules! primitive {
        ($kind:ty) => {{
            let width = size_of::<<$kind as ArrowPrimitiveType>::Native>();
            let values = ScalarBuffer::new(bytes(rows * width, random), 0, rows);
            Arc::new(PrimitiveArray::<$kind>::new(values, nulls).with_data_type(data_type.clone()))
        }};
    }
    macro_rules! keyed {
        ($kind:ty) => {{
            // One of a few dictionaries, so that batches repeat them and change them.
            let mut same = Random::new(random.below(3) as u64);
            let DataType::Dictionary(_, values) = data_type else { unreachable!("matched as a dictionary") };
            let values =
                array(&Field::new("", values.as_ref().clone(), field.is_nullable()), 1 + same.below(9), &mut same);
            let key = |_| random.below(values.len()) as <$kind as ArrowPrimitiveType>::Native;
            let keys = PrimitiveArray::<$kind>::new((0..rows).map(key).collect(), nulls);
            Arc::new(DictionaryArray::new(keys, values))
        }};
    }
    let valid = |row: usize| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
    downcast_primitive! {
        data_type => (primitive),
        DataType::Null => Arc::new(NullArray::new(rows)),
        DataType::Boolean => {
            Arc::new(BooleanArray::new(BooleanBuffer::collect_bool(rows, |_| random.one_in(2)), nulls))
        }
        DataType::Utf8 => Arc::new((0..rows).map(|row| valid(row).then(|| text(random))).collect::<StringArray>()),
        DataType::LargeUtf8 => {
            Arc::new((0..rows).map(|row| valid(row).then(|| text(random))).collect::<LargeStringArray>())
        }
        DataType::Utf8View => {
            Arc::new((0..rows).map(|row| valid(row).then(|| text(random))).collect::<StringViewArray>())
        }
        DataType::Binary => Arc::new((0..rows).map(|row| valid(row).then(|| text(random))).collect::<BinaryArray>()),
        DataType::LargeBinary => {
            Arc::new((0..rows).map(|row| valid(row).then(|| text(random))).collect::<LargeBinaryArray>())
        }
        DataType::BinaryView => {
            Arc::new((0..rows).map(|row| valid(row).then(|| text(random))).collect::<BinaryViewArray>())
        }
        DataType::FixedSizeBinary(width) => {
            Arc::new(FixedSizeBinaryArray::new(*width, bytes(rows * *width as usize, random), nulls))
        }
        DataType::List(item) => {
            let offsets = offsets::<i32>(rows, random);
            let values = array(item, offsets.last() as usize + random.below(3), random);
            Arc::new(ListArray::new(item.clone(), offsets, values, nulls))
        }
        DataType::LargeList(item) => {
            let offsets = offsets::<i64>(rows, random);
            let values = array(item, offsets.last() as usize + random.below(3), random);
            Arc::new(LargeListArray::new(item.clone(), offsets, values, nulls))
        }
        DataType::Map(entries, ordered) => {
            let offsets = offsets::<i32>(rows, random);
            let values = array(entries, offsets.last() as usize + random.below(3), random);
            let values = values.as_any().downcast_ref::<StructArray>().unwrap().clone();
            Arc::new(MapArray::new(entries.clone(), offsets, values, nulls, *ordered))
        }
        DataType::ListView(item) => {
            let values = array(item, 1 + random.below(rows + 9), random);
            let (offsets, sizes) = views::<i32>(rows, values.len(), random);
            Arc::new(ListViewArray::new(item.clone(), offsets, sizes, values, nulls))
        }
        DataType::LargeListView(item) => {
            let values = array(item, 1 + random.below(rows + 9), random);
            let (offsets, sizes) = views::<i64>(rows, values.len(), random);
            Arc::new(LargeListViewArray::new(item.clone(), offsets, sizes, values, nulls))
        }
        DataType::FixedSizeList(item, size) => {
            let values = array(item, rows * *size as usize, random);
            Arc::new(FixedSizeListArray::new(item.clone(), *size, values, nulls))
        }
        DataType::Struct(fields) => {
            let children = fields.iter().map(|field| array(field, rows, random)).collect();
            Arc::new(StructArray::try_new_with_length(fields.clone(), children, nulls, rows).unwrap())
        }
        DataType::Union(fields, mode) => {
            let ids: Vec<i8> = fields.iter().map(|(id, _)| id).collect();
            let chosen: Vec<usize> = (0..rows).map(|_| random.below(ids.len())).collect();
            let type_ids = chosen.iter().map(|at| ids[*at]).collect();
            let mut lengths = vec![0; ids.len()];
            let offsets = chosen.iter().map(|at| { lengths[*at] += 1; lengths[*at] - 1 }).collect();
            let sparse = *mode == UnionMode::Sparse;
            let length = |at: usize| if sparse { rows } else { lengths[at] as usize };
            let children = fields.iter().enumerate().map(|(at, (_, field))| array(field, length(at), random)).collect();
            let offsets = (!sparse).then_some(offsets);
            Arc::new(UnionArray::try_new(fields.clone(), type_ids, offsets, children).unwrap())
        }
        DataType::Dictionary(keys, _) => match keys.as_ref() {
            DataType::Int8 => keyed!(Int8Type),
            DataType::Int16 => keyed!(Int16Type),
            DataType::Int32 => keyed!(Int32Type),
            DataType::Int64 => keyed!(Int64Type),
            DataType::UInt8 => keyed!(UInt8Type),
            DataType::UInt16 => keyed!(UInt16Type),
            DataType::UInt32 => keyed!(UInt32Type),
            DataType::UInt64 => keyed!(UInt64Type),
            other => unreachable!("{other} is no key"),
        },
        other => unreachable!("no {other} is asked for"),
    }
}

fn bytes(length: usize, random: &mut Random) -> Buffer {
    let mut bytes = MutableBuffer::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// Short and long ones: a view keeps up to 12 bytes in itself.
fn text(random: &mut Random) -> String {
    let length = if random.one_in(20) { 300 } else { 16 };
    (0..random.below(length)).map(|_| ['a', '0', 'ü', '🦆'][random.below(4)]).collect()
}

/// Of lists that need not begin at the first value.
fn offsets<O: OffsetSizeTrait>(rows: usize, random: &mut Random) -> OffsetBuffer<O> {
    let mut at = random.below(4);
    let mut offsets = vec![O::usize_as(at)];
    for _ in 0..rows {
        at += random.below(4);
        offsets.push(O::usize_as(at));
    }
    OffsetBuffer::new(offsets.into())
}

/// Lists that may overlap and come in any order.
fn views<O: OffsetSizeTrait>(rows: usize, values: usize, random: &mut Random) -> (ScalarBuffer<O>, ScalarBuffer<O>) {
    let mut lists = || {
        let first = random.below(values);
        (O::usize_as(first), O::usize_as(random.below((values - first).min(4))))
    };
    let (offsets, sizes): (Vec<O>, Vec<O>) = (0..rows).map(|_| lists()).unzip();
    (offsets.into(), sizes.into())
}
