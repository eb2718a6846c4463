//! What a value means, whatever the layout it is stored in: what was sent and what came back are compared as this.

use arrow_array::{Array, ArrayRef, RunArray, cast::AsArray, types::*};
use arrow_schema::{DataType, Field, IntervalUnit, TimeUnit};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    /// Any NaN is the same.
    Float(String),
    Text(String),
    Bytes(Vec<u8>),
    Decimal(String),
    Days(i64),
    /// Nanoseconds of a day, or since 1970; the ends of what 64 bits hold are infinities.
    Time(i128),
    Timestamp(i128),
    Interval(i32, i32, i128),
    List(Vec<Value>),
    Map(Vec<(Value, Value)>),
    Struct(Vec<(String, Value)>),
    Member(String, Box<Value>),
}

fn nanos(unit: &TimeUnit) -> i128 {
    match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    }
}

/// The value of a row. A union has no nulls of its own, so that a member which is null and the union that is are the same.
pub(super) fn value(field: &Field, array: &ArrayRef, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    macro_rules! primitive {
        ($type:ty) => {
            array.as_primitive::<$type>().value(row)
        };
    }
    let items = |field: &Field, items: ArrayRef| (0..items.len()).map(|item| value(field, &items, item)).collect();
    match field.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => Value::Bool(array.as_boolean().value(row)),
        DataType::Int8 if field.metadata().get("ARROW:extension:name").is_some_and(|name| name == "arrow.bool8") => {
            Value::Bool(primitive!(Int8Type) != 0)
        }
        DataType::Int8 => Value::Int(primitive!(Int8Type).into()),
        DataType::Int16 => Value::Int(primitive!(Int16Type).into()),
        DataType::Int32 => Value::Int(primitive!(Int32Type).into()),
        DataType::Int64 => Value::Int(primitive!(Int64Type).into()),
        DataType::UInt8 => Value::Int(primitive!(UInt8Type).into()),
        DataType::UInt16 => Value::Int(primitive!(UInt16Type).into()),
        DataType::UInt32 => Value::Int(primitive!(UInt32Type).into()),
        DataType::UInt64 => Value::Int(primitive!(UInt64Type).into()),
        DataType::Float16 => Value::Float(f32::from(primitive!(Float16Type)).to_string()),
        DataType::Float32 => Value::Float(primitive!(Float32Type).to_string()),
        DataType::Float64 => Value::Float(primitive!(Float64Type).to_string()),
        DataType::Utf8 => Value::Text(array.as_string::<i32>().value(row).into()),
        DataType::LargeUtf8 => Value::Text(array.as_string::<i64>().value(row).into()),
        DataType::Utf8View => Value::Text(array.as_string_view().value(row).into()),
        DataType::Binary => Value::Bytes(array.as_binary::<i32>().value(row).into()),
        DataType::LargeBinary => Value::Bytes(array.as_binary::<i64>().value(row).into()),
        DataType::BinaryView => Value::Bytes(array.as_binary_view().value(row).into()),
        DataType::FixedSizeBinary(_) => Value::Bytes(array.as_fixed_size_binary().value(row).into()),
        DataType::Decimal32(_, scale) => {
            Value::Decimal(Decimal32Type::format_decimal(primitive!(Decimal32Type), 9, *scale))
        }
        DataType::Decimal64(_, scale) => {
            Value::Decimal(Decimal64Type::format_decimal(primitive!(Decimal64Type), 18, *scale))
        }
        DataType::Decimal128(_, scale) => {
            Value::Decimal(Decimal128Type::format_decimal(primitive!(Decimal128Type), 38, *scale))
        }
        DataType::Decimal256(_, scale) => {
            Value::Decimal(Decimal256Type::format_decimal(primitive!(Decimal256Type), 76, *scale))
        }
        DataType::Date32 => Value::Days(primitive!(Date32Type).into()),
        DataType::Date64 => Value::Days(primitive!(Date64Type) / 86_400_000),
        DataType::Time32(TimeUnit::Second) => Value::Time(i128::from(primitive!(Time32SecondType)) * 1_000_000_000),
        DataType::Time32(_) => Value::Time(i128::from(primitive!(Time32MillisecondType)) * 1_000_000),
        DataType::Time64(TimeUnit::Microsecond) => Value::Time(i128::from(primitive!(Time64MicrosecondType)) * 1_000),
        DataType::Time64(_) => Value::Time(primitive!(Time64NanosecondType).into()),
        DataType::Timestamp(unit, _) => {
            let value = match unit {
                TimeUnit::Second => primitive!(TimestampSecondType),
                TimeUnit::Millisecond => primitive!(TimestampMillisecondType),
                TimeUnit::Microsecond => primitive!(TimestampMicrosecondType),
                TimeUnit::Nanosecond => primitive!(TimestampNanosecondType),
            };
            Value::Timestamp(match value {
                i64::MAX => i128::MAX,
                value if value == -i64::MAX => i128::MIN,
                value => i128::from(value) * nanos(unit),
            })
        }
        DataType::Duration(unit) => {
            let value = match unit {
                TimeUnit::Second => primitive!(DurationSecondType),
                TimeUnit::Millisecond => primitive!(DurationMillisecondType),
                TimeUnit::Microsecond => primitive!(DurationMicrosecondType),
                TimeUnit::Nanosecond => primitive!(DurationNanosecondType),
            };
            Value::Interval(0, 0, i128::from(value) * nanos(unit))
        }
        DataType::Interval(IntervalUnit::YearMonth) => Value::Interval(primitive!(IntervalYearMonthType), 0, 0),
        DataType::Interval(IntervalUnit::DayTime) => {
            let value = primitive!(IntervalDayTimeType);
            Value::Interval(0, value.days, i128::from(value.milliseconds) * 1_000_000)
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let value = primitive!(IntervalMonthDayNanoType);
            Value::Interval(value.months, value.days, value.nanoseconds.into())
        }
        DataType::List(item) => Value::List(items(item, array.as_list::<i32>().value(row))),
        DataType::LargeList(item) => Value::List(items(item, array.as_list::<i64>().value(row))),
        DataType::ListView(item) => Value::List(items(item, array.as_list_view::<i32>().value(row))),
        DataType::LargeListView(item) => Value::List(items(item, array.as_list_view::<i64>().value(row))),
        DataType::FixedSizeList(item, _) => Value::List(items(item, array.as_fixed_size_list().value(row))),
        DataType::Map(entries, _) => {
            let DataType::Struct(fields) = entries.data_type() else { unreachable!() };
            let parts = array.as_map().value(row);
            let part = |at: usize, entry| value(&fields[at], parts.column(at), entry);
            Value::Map((0..parts.len()).map(|entry| (part(0, entry), part(1, entry))).collect())
        }
        DataType::Struct(fields) => {
            let parts = array.as_struct().columns().iter().zip(fields);
            Value::Struct(parts.map(|(part, field)| (field.name().clone(), value(field, part, row))).collect())
        }
        DataType::Union(members, _) => {
            let union = array.as_union();
            let id = union.type_id(row);
            let (_, member) = members.iter().find(|(other, _)| *other == id).unwrap();
            match value(member, union.child(id), union.value_offset(row)) {
                Value::Null => Value::Null,
                value => Value::Member(member.name().clone(), Box::new(value)),
            }
        }
        DataType::Dictionary(_, values) => {
            let dictionary = array.as_any_dictionary();
            let inner = field.clone().with_data_type(values.as_ref().clone());
            value(&inner, dictionary.values(), dictionary.normalized_keys()[row])
        }
        DataType::RunEndEncoded(_, values) => {
            let inner = if values.metadata().is_empty() {
                field.clone().with_data_type(values.data_type().clone())
            } else {
                values.as_ref().clone()
            };
            let runs: &RunArray<Int16Type> = array.as_any().downcast_ref().unwrap();
            value(&inner, runs.values(), runs.get_physical_index(row))
        }
    }
}
