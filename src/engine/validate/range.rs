//! Values that are in the range of their type, as DuckDB has it.
//!
//! A column is looked at twice at most: a pass without branches over all its values, null or not, and only where that finds
//! something a second one that asks which of them count. A value counts where it is valid and belongs to a row; one that does
//! not count becomes null, so that DuckDB's importer does not meet it.

use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, FixedSizeBinaryArray, PrimitiveArray,
    cast::AsArray,
    make_array,
    types::{
        Date32Type, Date64Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, DecimalType,
        DurationMicrosecondType, DurationMillisecondType, DurationNanosecondType, DurationSecondType,
        IntervalMonthDayNanoType, Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType,
        TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
    },
};
use arrow_buffer::{BooleanBuffer, NullBuffer, i256};
use arrow_schema::{DataType, TimeUnit};

use super::{payload, rows::Rows};
use crate::error::Result;

/// What the valid values of a column have to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rule {
    Date,
    /// Whole days.
    DateMillis,
    Time(TimeUnit),
    Timestamp(TimeUnit),
    /// With a time zone, in a unit that becomes microseconds.
    Instant(TimeUnit),
    Duration(TimeUnit),
    Interval,
    /// Precision and scale.
    Decimal(u8, i8),
    TimeTz,
    Bit,
    Bignum,
    Json,
    Geometry,
}

const DAY_MILLIS: i64 = 86_400_000;

/// The first TIMESTAMP, 290309-12-22 (BC), and the last one in microseconds. Infinity and its negative lie outside.
pub(in crate::engine) const FIRST_MICROS: i64 = -9_223_372_022_400_000_000;
const LAST_MICROS: i64 = i64::MAX - 1;

/// The first TIMESTAMP_NS, 1677-09-22.
pub(in crate::engine) const FIRST_NANOS: i64 = -9_223_286_400_000_000_000;

/// Tells the row and the reason.
type Refuse<'a> = &'a dyn Fn(u64, String) -> crate::error::Error;

impl Rule {
    /// The array, without values that do not count and that DuckDB does not have.
    pub(super) fn check(self, array: &ArrayRef, rows: &Rows<'_>, refuse: Refuse<'_>) -> Result<ArrayRef> {
        let look = Look { array, rows, refuse };
        match (self, array.data_type()) {
            (Self::Date, _) => look.at::<Date32Type>(small_32, |days| match days {
                i32::MIN => Err(format!("date32 value {days} is before the first DATE, 5877642-06-25 (BC)")),
                _ => Ok(()),
            }),
            (Self::DateMillis, _) => look.at::<Date64Type>(
                |_| false,
                |millis| {
                    let days = millis / DAY_MILLIS;
                    match days.abs() < i64::from(i32::MAX) {
                        true if millis % DAY_MILLIS == 0 => Ok(()),
                        true => Err(format!("date64 value {millis} ms is not a whole day")),
                        false => Err(format!("date64 value {millis} ms is outside the range of DATE")),
                    }
                },
            ),
            (Self::Time(unit), _) => {
                let name = if matches!(unit, TimeUnit::Second | TimeUnit::Millisecond) { "time32" } else { "time64" };
                let text = |value: i64| format!("{name} value {value} {} is outside 00:00:00 to 24:00:00", short(unit));
                let day = 86_400 * per_second(unit);
                let in_day = |value: i64| if (0..=day).contains(&value) { Ok(()) } else { Err(text(value)) };
                let all_32 = |values: &[i32]| within(values.iter().map(|value| i64::from(*value)), 0, day);
                let all_64 = |values: &[i64]| within(values.iter().copied(), 0, day);
                match unit {
                    TimeUnit::Second => look.at::<Time32SecondType>(all_32, |value| in_day(value.into())),
                    TimeUnit::Millisecond => look.at::<Time32MillisecondType>(all_32, |value| in_day(value.into())),
                    TimeUnit::Microsecond => look.at::<Time64MicrosecondType>(all_64, in_day),
                    TimeUnit::Nanosecond => look.at::<Time64NanosecondType>(all_64, in_day),
                }
            }
            (Self::Timestamp(unit) | Self::Instant(unit), _) => {
                let scale = match unit {
                    TimeUnit::Second => 1_000_000,
                    TimeUnit::Millisecond => 1_000,
                    TimeUnit::Microsecond | TimeUnit::Nanosecond => 1,
                };
                let first = if unit == TimeUnit::Nanosecond { FIRST_NANOS } else { FIRST_MICROS / scale };
                let last = LAST_MICROS / scale;
                let infinite = matches!(self, Self::Timestamp(_));
                let good = |value: i64| match value {
                    value if (first..=last).contains(&value) => Ok(()),
                    i64::MAX if infinite => Ok(()),
                    value if infinite && value == -i64::MAX => Ok(()),
                    value => Err(format!("timestamp value {value} {} is outside the range of DuckDB's", short(unit))),
                };
                let all = |values: &[i64]| match scale {
                    1 => small_64(values),
                    _ => within(values.iter().copied(), first, last),
                };
                match unit {
                    TimeUnit::Second => look.at::<TimestampSecondType>(all, good),
                    TimeUnit::Millisecond => look.at::<TimestampMillisecondType>(all, good),
                    TimeUnit::Microsecond => look.at::<TimestampMicrosecondType>(all, good),
                    TimeUnit::Nanosecond => look.at::<TimestampNanosecondType>(all, good),
                }
            }
            (Self::Duration(unit), _) => {
                let beyond =
                    |value: i64| format!("duration value {value} {} is outside the range of INTERVAL", short(unit));
                let scaled = |value: i64, by: i64| match value.checked_mul(by) {
                    Some(micros) if micros != i64::MIN => Ok(()),
                    _ => Err(beyond(value)),
                };
                match unit {
                    TimeUnit::Second => look.at::<DurationSecondType>(|_| false, |value| scaled(value, 1_000_000)),
                    TimeUnit::Millisecond => {
                        look.at::<DurationMillisecondType>(|_| false, |value| scaled(value, 1_000))
                    }
                    TimeUnit::Microsecond => look.at::<DurationMicrosecondType>(small_64, |value| scaled(value, 1)),
                    TimeUnit::Nanosecond => look.at::<DurationNanosecondType>(
                        |_| false,
                        |value| match value % 1000 {
                            0 => Ok(()),
                            _ => Err(format!("duration value {value} ns is finer than the microseconds of INTERVAL")),
                        },
                    ),
                }
            }
            (Self::Interval, _) => look.at::<IntervalMonthDayNanoType>(
                |_| false,
                |value| match value.nanoseconds % 1000 {
                    0 => Ok(()),
                    _ => Err(format!(
                        "interval value {} ns is finer than the microseconds of INTERVAL",
                        value.nanoseconds
                    )),
                },
            ),
            (Self::Decimal(precision, scale), data_type) => {
                let text = |value: String| format!("{value} has more digits than decimal({precision}, {scale})");
                match data_type {
                    DataType::Decimal32(..) => {
                        let most = 10_i32.checked_pow(precision.into()).map_or(i32::MAX, |power| power - 1);
                        let all = |values: &[i32]| {
                            within(values.iter().map(|v| i64::from(*v)), -i64::from(most), most.into())
                        };
                        look.at::<Decimal32Type>(all, |value| match value.unsigned_abs() <= most.unsigned_abs() {
                            true => Ok(()),
                            false => Err(text(Decimal32Type::format_decimal(value, precision, scale))),
                        })
                    }
                    DataType::Decimal64(..) => {
                        let most = 10_i64.checked_pow(precision.into()).map_or(i64::MAX, |power| power - 1);
                        let all =
                            |values: &[i64]| values.iter().all(|value| value.unsigned_abs() <= most.unsigned_abs());
                        look.at::<Decimal64Type>(all, |value| match value.unsigned_abs() <= most.unsigned_abs() {
                            true => Ok(()),
                            false => Err(text(Decimal64Type::format_decimal(value, precision, scale))),
                        })
                    }
                    DataType::Decimal128(..) => {
                        let most = 10_u128.pow(precision.into()) - 1;
                        let all = |values: &[i128]| values.iter().all(|value| value.unsigned_abs() <= most);
                        look.at::<Decimal128Type>(all, |value| match value.unsigned_abs() <= most {
                            true => Ok(()),
                            false => Err(text(Decimal128Type::format_decimal(value, precision, scale))),
                        })
                    }
                    _ => {
                        let most = i256::from_i128(10_i128.pow(precision.into()) - 1);
                        let least = most.wrapping_neg();
                        look.at::<Decimal256Type>(
                            |_| false,
                            |value| match value >= least && value <= most {
                                true => Ok(()),
                                false => Err(text(Decimal256Type::format_decimal(value, precision, scale))),
                            },
                        )
                    }
                }
            }
            (Self::TimeTz, _) => look.at_binary(payload::time_tz),
            (Self::Bit, _) => look.at_binary(payload::bit),
            (Self::Bignum, _) => look.at_binary(payload::bignum),
            (Self::Geometry, _) => look.at_binary(payload::geometry),
            (Self::Json, _) => look.at_binary(payload::json),
        }
    }
}

/// A column that is looked at.
struct Look<'a> {
    array: &'a ArrayRef,
    rows: &'a Rows<'a>,
    refuse: Refuse<'a>,
}

impl Look<'_> {
    /// `all` says at once that every value is good, and may be wrong to deny it; `good` says it of one.
    fn at<T: ArrowPrimitiveType>(
        &self,
        all: impl Fn(&[T::Native]) -> bool,
        good: impl Fn(T::Native) -> Result<(), String>,
    ) -> Result<ArrayRef> {
        let values: &PrimitiveArray<T> = self.array.as_primitive();
        if all(values.values()) {
            return Ok(self.array.clone());
        }
        self.each(|element| good(values.value(element)))
    }

    fn at_binary(&self, good: fn(&[u8]) -> Result<(), String>) -> Result<ArrayRef> {
        let array = self.array;
        match array.data_type() {
            DataType::Binary => self.each(|element| good(array.as_binary::<i32>().value(element))),
            DataType::LargeBinary => self.each(|element| good(array.as_binary::<i64>().value(element))),
            DataType::BinaryView => self.each(|element| good(array.as_binary_view().value(element))),
            DataType::Utf8 => self.each(|element| good(array.as_string::<i32>().value(element).as_bytes())),
            DataType::LargeUtf8 => self.each(|element| good(array.as_string::<i64>().value(element).as_bytes())),
            DataType::Utf8View => self.each(|element| good(array.as_string_view().value(element).as_bytes())),
            _ => {
                let array: &FixedSizeBinaryArray = array.as_fixed_size_binary();
                self.each(|element| good(array.value(element)))
            }
        }
    }

    fn each(&self, good: impl Fn(usize) -> Result<(), String>) -> Result<ArrayRef> {
        let nulls = self.array.nulls();
        let mut beyond = Vec::new();
        for element in 0..self.array.len() {
            if nulls.is_some_and(|nulls| nulls.is_null(element)) {
                continue;
            }
            if let Err(why) = good(element) {
                match self.rows.row_of(element) {
                    Some(row) => return Err((self.refuse)(row, why)),
                    None => beyond.push(element),
                }
            }
        }
        Ok(without(self.array, &beyond))
    }
}

/// The same array, where these elements are null.
pub(super) fn without(array: &ArrayRef, elements: &[usize]) -> ArrayRef {
    if elements.is_empty() {
        return array.clone();
    }
    let mut valid: Vec<bool> = (0..array.len()).map(|element| array.is_valid(element)).collect();
    elements.iter().for_each(|element| valid[*element] = false);
    let nulls = NullBuffer::new(BooleanBuffer::from(valid));
    let data = array.to_data().into_builder().nulls(Some(nulls));
    // SAFETY: only the validity is another one, of as many elements.
    make_array(unsafe { data.build_unchecked() })
}

/// Whether all values are in the range, which is less than half of all numbers. A value far outside may be taken for one
/// outside, and never for one inside.
fn within(values: impl Iterator<Item = i64>, first: i64, last: i64) -> bool {
    let span = last.wrapping_sub(first);
    debug_assert!(span >= 0, "a range of less than half of all numbers");
    // The sign shows a value below the first one, or beyond the last one.
    let signs = values.fold(0, |signs, value| {
        let above = value.wrapping_sub(first);
        signs | above | span.wrapping_sub(above) | (value ^ first) & (value ^ above)
    });
    signs >= 0
}

/// Whether all values are far from the ends of what 64 bits hold.
fn small_64(values: &[i64]) -> bool {
    values.iter().fold(0, |signs, value| signs | (value ^ (value << 1))) >= 0
}

fn small_32(values: &[i32]) -> bool {
    values.iter().fold(0, |signs, value| signs | (value ^ (value << 1))) >= 0
}

fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

fn short(unit: TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_outside_passes_the_quick_look(
            value in prop_oneof![any::<i64>(), -10_i64..100_000_000_000, Just(i64::MIN), Just(i64::MAX)],
            first in -9_223_372_022_400_i64..=0,
            span in 0_i64..18_000_000_000_000,
        ) {
            let last = first + span;
            prop_assert_eq!(within([value].into_iter(), first, last), (first..=last).contains(&value));
            if !(FIRST_MICROS..=LAST_MICROS).contains(&value) || !(FIRST_NANOS..=LAST_MICROS).contains(&value) {
                prop_assert!(!small_64(&[value]));
            }
        }
    }
}
