//! Stored values that their type does not have, such as a TIME of -5 s. DuckDB believes what it has stored: a cast of one
//! to text may be an internal error, which invalidates the database, and again after each restart.
//!
//! They are read as Arrow, which DuckDB makes without looking at them, and looked at here.

use arrow_array::{
    Array, ArrayRef, GenericByteArray, OffsetSizeTrait,
    cast::AsArray,
    types::{ByteArrayType, Date32Type, Decimal32Type, Decimal64Type, Decimal128Type, UInt64Type},
};
use arrow_schema::{DataType, Field, TimeUnit};

use super::{
    plain,
    validate::{
        payload,
        range::{FIRST_MICROS, FIRST_NANOS},
    },
};
use crate::error::{Error, Result};

/// How many of a column are told one by one.
const TOLD: usize = 100;

/// Microseconds of a day.
const DAY: i64 = 86_400_000_000;

/// A value that its type does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// With the way to what is inside of it: `s.field`, `l[]`.
    pub column: String,
    /// DuckDB's `rowid`, which `WHERE rowid = ..` finds; the row's place, from 0, in a table that has a column of this name.
    pub row: i64,
    pub says: String,
}

/// Those of one column.
#[derive(Debug, Default)]
pub(super) struct Misfits {
    pub(super) told: Vec<Misfit>,
    /// How many there are.
    pub(super) count: u64,
}

impl Misfits {
    /// Looks at a part of a column; `rows` are the row ids of its elements.
    pub(super) fn look(&mut self, field: &Field, array: &ArrayRef, rows: &[i64]) -> Result<()> {
        let rows: Vec<Option<i64>> = rows.iter().copied().map(Some).collect();
        self.within(field.name(), field, array, &rows)
    }

    /// An element that has no row belongs to none: what is below a NULL, or between lists.
    fn within(&mut self, path: &str, field: &Field, array: &ArrayRef, rows: &[Option<i64>]) -> Result<()> {
        if !has_rules(field) {
            return Ok(());
        }
        let rows: Vec<Option<i64>> =
            rows.iter().enumerate().map(|(at, row)| row.filter(|_| array.is_valid(at))).collect();
        if let Some(rule) = Rule::of(field) {
            for (at, row) in rows.iter().enumerate() {
                if let (Some(row), Err(says)) = (row, row.map_or(Ok(()), |_| rule.check(array, at))) {
                    self.count += 1;
                    if self.told.len() < TOLD {
                        self.told.push(Misfit { column: path.into(), row: *row, says });
                    }
                }
            }
            return Ok(());
        }
        // The rows of the elements of lists, where these begin and end.
        let spread = |child: &ArrayRef, bounds: &dyn Fn(usize) -> std::ops::Range<usize>| {
            let mut inner = vec![None; child.len()];
            for (at, row) in rows.iter().enumerate().filter(|(_, row)| row.is_some()) {
                inner.get_mut(bounds(at)).into_iter().flatten().for_each(|slot| *slot = *row);
            }
            inner
        };
        let unknown = || Error::internal(format!("{} of column {path}", array.data_type()));
        let items = format!("{path}[]");
        match field.data_type() {
            DataType::List(item) => {
                let list = array.as_list_opt::<i32>().ok_or_else(unknown)?;
                let inner = spread(list.values(), &|at| bounds(list.value_offsets(), at));
                self.within(&items, item, list.values(), &inner)
            }
            DataType::LargeList(item) => {
                let list = array.as_list_opt::<i64>().ok_or_else(unknown)?;
                let inner = spread(list.values(), &|at| bounds(list.value_offsets(), at));
                self.within(&items, item, list.values(), &inner)
            }
            DataType::FixedSizeList(item, size) => {
                let list = array.as_fixed_size_list_opt().ok_or_else(unknown)?;
                let size = usize::try_from(*size).unwrap_or(0);
                let inner = spread(list.values(), &|at| at * size..(at + 1) * size);
                self.within(&items, item, list.values(), &inner)
            }
            DataType::Map(entries, _) => {
                let map = array.as_map_opt().ok_or_else(unknown)?;
                let all: ArrayRef = std::sync::Arc::new(map.entries().clone());
                let inner = spread(&all, &|at| bounds(map.value_offsets(), at));
                self.within(path, entries, &all, &inner)
            }
            DataType::Struct(fields) => {
                let parts = array.as_struct_opt().ok_or_else(unknown)?;
                for (field, part) in fields.iter().zip(parts.columns()) {
                    self.within(&format!("{path}.{}", field.name()), field, part, &rows)?;
                }
                Ok(())
            }
            DataType::Union(members, _) => {
                let union = array.as_union_opt().ok_or_else(unknown)?;
                for (id, field) in members.iter() {
                    let member = union.child(id);
                    let mut inner = vec![None; member.len()];
                    for (at, row) in rows.iter().enumerate().filter(|(at, _)| union.type_id(*at) == id) {
                        inner.get_mut(union.value_offset(at)).into_iter().for_each(|slot| *slot = *row);
                    }
                    self.within(&format!("{path}.{}", field.name()), field, member, &inner)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn bounds<O: OffsetSizeTrait>(offsets: &[O], at: usize) -> std::ops::Range<usize> {
    offsets[at].as_usize()..offsets[at + 1].as_usize()
}

/// Whether a type has fewer values than its storage, or something inside of it has.
pub(super) fn has_rules(field: &Field) -> bool {
    Rule::of(field).is_some() || plain::children(field.data_type()).iter().any(|child| has_rules(child))
}

#[derive(Debug, Clone, Copy)]
enum Rule {
    Date,
    Time(TimeUnit),
    Timestamp(TimeUnit),
    /// Digits.
    Decimal(u8),
    TimeTz,
    Bit,
    Bignum,
    Text,
    Enum,
}

impl Rule {
    fn of(field: &Field) -> Option<Self> {
        Some(match (plain::opaque(field).as_deref(), field.data_type()) {
            (Some("time_tz"), DataType::FixedSizeBinary(8)) => Self::TimeTz,
            (Some("bit"), DataType::Binary | DataType::LargeBinary) => Self::Bit,
            (Some("bignum"), DataType::Binary | DataType::LargeBinary) => Self::Bignum,
            (Some(_), _) => return None,
            (None, DataType::Date32) => Self::Date,
            (None, DataType::Time64(unit)) => Self::Time(*unit),
            (None, DataType::Timestamp(unit, _)) => Self::Timestamp(*unit),
            (
                None,
                DataType::Decimal32(digits, _) | DataType::Decimal64(digits, _) | DataType::Decimal128(digits, _),
            ) => Self::Decimal(*digits),
            (None, DataType::Utf8 | DataType::LargeUtf8) => Self::Text,
            (None, DataType::Dictionary(..)) => Self::Enum,
            (None, _) => return None,
        })
    }

    fn check(self, array: &ArrayRef, at: usize) -> Result<(), String> {
        match (self, array.data_type()) {
            (Self::Date, _) => match array.as_primitive::<Date32Type>().value(at) {
                i32::MIN => Err(format!("date {} is before the first DATE, 5877642-06-25 (BC)", i32::MIN)),
                _ => Ok(()),
            },
            (Self::Time(unit), _) => {
                let value = sixty_four(array, at);
                let (day, name) = match unit {
                    TimeUnit::Nanosecond => (DAY * 1000, "ns"),
                    _ => (DAY, "us"),
                };
                match (0..=day).contains(&value) {
                    true => Ok(()),
                    false => Err(format!("time {value} {name} is outside 00:00:00 to 24:00:00")),
                }
            }
            (Self::Timestamp(unit), _) => {
                let value = sixty_four(array, at);
                let (first, scale, name) = match unit {
                    TimeUnit::Second => (FIRST_MICROS / 1_000_000, 1_000_000, "s"),
                    TimeUnit::Millisecond => (FIRST_MICROS / 1000, 1000, "ms"),
                    TimeUnit::Microsecond => (FIRST_MICROS, 1, "us"),
                    TimeUnit::Nanosecond => (FIRST_NANOS, 1, "ns"),
                };
                let last = (i64::MAX - 1) / scale;
                match (first..=last).contains(&value) || value == i64::MAX || value == -i64::MAX {
                    true => Ok(()),
                    false => Err(format!("timestamp {value} {name} is outside the range of its type")),
                }
            }
            (Self::Decimal(digits), stored) => {
                let value = match stored {
                    DataType::Decimal32(..) => array.as_primitive::<Decimal32Type>().value(at).into(),
                    DataType::Decimal64(..) => array.as_primitive::<Decimal64Type>().value(at).into(),
                    _ => array.as_primitive::<Decimal128Type>().value(at),
                };
                match value.unsigned_abs() < 10_u128.pow(digits.into()) {
                    true => Ok(()),
                    false => Err(format!("decimal {value} (without its point) has more than {digits} digits")),
                }
            }
            (Self::TimeTz, _) => payload::time_tz(array.as_fixed_size_binary().value(at)),
            (Self::Bit, DataType::LargeBinary) => payload::bit(bytes(array.as_binary::<i64>(), at)),
            (Self::Bit, _) => payload::bit(bytes(array.as_binary::<i32>(), at)),
            (Self::Bignum, DataType::LargeBinary) => payload::bignum(bytes(array.as_binary::<i64>(), at)),
            (Self::Bignum, _) => payload::bignum(bytes(array.as_binary::<i32>(), at)),
            (Self::Text, DataType::LargeUtf8) => text(bytes(array.as_string::<i64>(), at)),
            (Self::Text, _) => text(bytes(array.as_string::<i32>(), at)),
            (Self::Enum, _) => {
                let dictionary = array.as_any_dictionary();
                let keys = arrow_cast::cast(&dictionary.keys().slice(at, 1), &DataType::UInt64);
                let key = keys.ok().map_or(u64::MAX, |keys| keys.as_primitive::<UInt64Type>().value(0));
                match key < dictionary.values().len() as u64 {
                    true => Ok(()),
                    false => Err(format!("enum number {key} names none of its {} values", dictionary.values().len())),
                }
            }
        }
    }
}

/// The number behind a TIME or a TIMESTAMP of any unit.
fn sixty_four(array: &ArrayRef, at: usize) -> i64 {
    let data = array.to_data();
    data.buffers()[0].typed_data::<i64>()[data.offset() + at]
}

/// The bytes of a text or a blob, which need not be UTF-8 yet.
fn bytes<T: ByteArrayType>(array: &GenericByteArray<T>, at: usize) -> &[u8] {
    &array.value_data()[bounds(array.value_offsets(), at)]
}

fn text(bytes: &[u8]) -> Result<(), String> {
    std::str::from_utf8(bytes).map(drop).map_err(|error| format!("text is not UTF-8: {error}"))
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use arrow_array::{
        BinaryArray, Decimal128Array, DictionaryArray, Int8Array, ListArray, StringArray, UInt8Array, types::UInt8Type,
    };
    use arrow_buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};

    use super::*;

    fn opaque(name: &str) -> Field {
        let metadata = HashMap::from([
            ("ARROW:extension:name".to_string(), "arrow.opaque".to_string()),
            (
                "ARROW:extension:metadata".to_string(),
                format!("{{\"type_name\":\"{name}\",\"vendor_name\":\"DuckDB\"}}"),
            ),
        ]);
        Field::new("c", DataType::Binary, true).with_metadata(metadata)
    }

    fn found(field: &Field, array: ArrayRef) -> Vec<i64> {
        let rows: Vec<i64> = (10..).take(array.len()).collect();
        let mut misfits = Misfits::default();
        misfits.look(field, &array, &rows).expect("it can be read");
        assert_eq!(misfits.count, misfits.told.len() as u64);
        misfits.told.iter().map(|misfit| misfit.row).collect()
    }

    #[test]
    fn malformed_storage_is_found_and_what_counts_for_nothing_is_not() {
        let bits: [&[u8]; 6] = [&[5, 0b1111_1101], &[], &[0], &[8, 0xff], &[5, 0b0111_1101], &[0, 0]];
        assert_eq!(found(&opaque("bit"), Arc::new(BinaryArray::from_iter_values(bits))), [11, 12, 13, 14]);
        let numbers: [&[u8]; 5] = [&[0x80, 0, 1, 1], &[0x7f, 0xff, 0xfe, !1], &[], &[0x80, 0, 2, 1], &[0x80, 0, 0]];
        assert_eq!(found(&opaque("bignum"), Arc::new(BinaryArray::from_iter_values(numbers))), [12, 13, 14]);
        assert_eq!(found(&opaque("geometry"), Arc::new(BinaryArray::from_iter_values(numbers))), [] as [i64; 0]);

        let decimals = Decimal128Array::from(vec![Some(9999), Some(10_000), None, Some(-10_000), Some(-9999)]);
        let decimals = decimals.with_precision_and_scale(4, 2).expect("a decimal");
        let field = Field::new("c", decimals.data_type().clone(), true);
        assert_eq!(found(&field, Arc::new(decimals)), [11, 13]);

        let data = Buffer::from(&b"good\xffbad"[..]);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(vec![0, 4, 8]));
        // SAFETY: the offsets are within the data; that it is no UTF-8 is what is tried, and only its bytes are read.
        let texts = unsafe { StringArray::new_unchecked(offsets, data, None) };
        assert_eq!(found(&Field::new("c", DataType::Utf8, true), Arc::new(texts)), [11]);

        let keys = UInt8Array::from(vec![0, 2, 1]);
        let values: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
        // SAFETY: a key beyond the values is what is tried, and no value is read by it.
        let names = unsafe { DictionaryArray::<UInt8Type>::new_unchecked(keys, values) };
        let field = Field::new("c", names.data_type().clone(), true);
        assert_eq!(found(&field, Arc::new(names)), [11]);
        assert!(!has_rules(&Field::new("c", Int8Array::from(vec![1]).data_type().clone(), true)));

        // Lists: of the second row, of a NULL, and of the part of a slice.
        let item = Arc::new(Field::new("item", DataType::Time64(TimeUnit::Microsecond), true));
        let times = arrow_array::Time64MicrosecondArray::from(vec![0, -1, -1, -1, 5]);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(vec![0, 1, 2, 3, 5]));
        let nulls = NullBuffer::from(vec![true, true, false, true]);
        let lists = ListArray::new(item, offsets, Arc::new(times), Some(nulls));
        let field = Field::new("c", lists.data_type().clone(), true);
        assert_eq!(found(&field, Arc::new(lists.clone())), [11, 13]);
        assert_eq!(found(&field, Arc::new(lists.slice(2, 2))), [11]);
    }
}
