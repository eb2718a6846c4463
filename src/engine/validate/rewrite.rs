//! Layouts that DuckDB's importer does not know or reads wrong, as ones that it reads right.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BooleanArray, FixedSizeListArray, GenericListArray, GenericListViewArray, Int32Array,
    IntervalMonthDayNanoArray, LargeListArray, OffsetSizeTrait, PrimitiveArray, UInt32Array, UnionArray,
    cast::AsArray,
    downcast_run_array,
    types::{
        ArrowPrimitiveType, Decimal128Type, Decimal256Type, DurationMicrosecondType, DurationMillisecondType,
        DurationNanosecondType, DurationSecondType, Int8Type, IntervalDayTimeType, IntervalMonthDayNano,
        TimestampMicrosecondType, TimestampMillisecondType, TimestampSecondType,
    },
};
use arrow_buffer::{ArrowNativeType, NullBuffer, OffsetBuffer, RunEndBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, TimeUnit};
use arrow_select::take::take;

/// What one column of a batch may hold once it is written out. A few bytes of a dictionary, runs or views may stand for
/// any number of rows.
const MAX_BYTES: u64 = 512 * 1024 * 1024;
const MAX_ELEMENTS: u64 = 1 << 24;

/// Another form of the same values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Convert {
    /// arrow-cast's, without loss.
    Cast,
    Null,
    Bool8,
    /// A timestamp of this unit, of which DuckDB wants microseconds.
    Micros(TimeUnit),
    Duration(TimeUnit),
    DayTime,
    Decimal,
}

impl Convert {
    /// The values were checked: those that count do not overflow.
    pub(super) fn array(self, array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
        Ok(match self {
            Self::Cast => arrow_cast::cast(array, to)?,
            Self::Null => Arc::new(Int32Array::new_null(array.len())),
            Self::Bool8 => Arc::new(BooleanArray::from_unary(array.as_primitive::<Int8Type>(), |byte| byte != 0)),
            Self::Micros(TimeUnit::Second) => {
                scaled::<TimestampSecondType, TimestampMicrosecondType>(array, to, 1_000_000)
            }
            Self::Micros(_) => scaled::<TimestampMillisecondType, TimestampMicrosecondType>(array, to, 1_000),
            Self::Duration(TimeUnit::Second) => {
                scaled::<DurationSecondType, DurationMicrosecondType>(array, to, 1_000_000)
            }
            Self::Duration(TimeUnit::Millisecond) => {
                scaled::<DurationMillisecondType, DurationMicrosecondType>(array, to, 1_000)
            }
            Self::Duration(TimeUnit::Microsecond) => array.clone(),
            Self::Duration(TimeUnit::Nanosecond) => {
                let nanos = array.as_primitive::<DurationNanosecondType>();
                Arc::new(nanos.unary::<_, DurationMicrosecondType>(|nanos| nanos / 1000))
            }
            Self::DayTime => {
                let intervals = array.as_primitive::<IntervalDayTimeType>();
                let values = intervals
                    .values()
                    .iter()
                    .map(|value| IntervalMonthDayNano::new(0, value.days, i64::from(value.milliseconds) * 1_000_000));
                Arc::new(IntervalMonthDayNanoArray::new(values.collect(), intervals.nulls().cloned()))
            }
            Self::Decimal => {
                let wide = array.as_primitive::<Decimal256Type>();
                let values = wide.unary::<_, Decimal128Type>(|value| value.to_i128().unwrap_or_default());
                Arc::new(values.with_data_type(to.clone()))
            }
        })
    }
}

fn scaled<F, T>(array: &ArrayRef, to: &DataType, by: i64) -> ArrayRef
where
    F: ArrowPrimitiveType<Native = i64>,
    T: ArrowPrimitiveType<Native = i64>,
{
    let values: PrimitiveArray<T> = array.as_primitive::<F>().unary(|value| value.wrapping_mul(by));
    Arc::new(values.with_data_type(to.clone()))
}

/// The values of a dictionary or of runs, one for each row.
pub(super) fn decode(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if let Some(dictionary) = array.as_any_dictionary_opt() {
        let keys: Vec<u32> = match dictionary.values().is_empty() {
            true => vec![0; dictionary.len()],
            // Of a key that is null, any place will do.
            false => dictionary.normalized_keys().into_iter().map(|key| key as u32).collect(),
        };
        let indices = UInt32Array::new(keys.into(), dictionary.keys().nulls().cloned());
        return gathered(dictionary.values(), &indices);
    }
    let array: &dyn Array = array;
    downcast_run_array! {
        array => {
            let indices = run_indices(array.run_ends());
            gathered(array.values(), &UInt32Array::from(indices))
        },
        _ => Err(ArrowError::InvalidArgumentError("neither a dictionary nor runs".into())),
    }
}

fn run_indices<E: ArrowNativeType>(ends: &RunEndBuffer<E>) -> Vec<u32> {
    let (start, length) = (ends.offset(), ends.len());
    let mut indices = Vec::with_capacity(length);
    for (run, end) in ends.values().iter().enumerate() {
        let until = end.as_usize().saturating_sub(start).min(length);
        if until > indices.len() {
            indices.resize(until, run as u32);
        }
        if indices.len() == length {
            break;
        }
    }
    indices
}

fn gathered(values: &ArrayRef, indices: &UInt32Array) -> Result<ArrayRef, ArrowError> {
    if values.data_type().primitive_width().is_none() {
        let weights = weights(values);
        let valid = indices.iter().flatten();
        let bytes: u64 = valid.map(|index| weights.get(index as usize).copied().unwrap_or_default()).sum();
        within_bounds(bytes, 0)?;
    }
    take(values, indices, None)
}

fn within_bounds(bytes: u64, elements: u64) -> Result<(), ArrowError> {
    if bytes > MAX_BYTES || elements > MAX_ELEMENTS {
        return Err(ArrowError::InvalidArgumentError(format!(
            "its values take {bytes} bytes once they are written out, more than {MAX_BYTES}: send fewer rows in a batch"
        )));
    }
    Ok(())
}

/// About how many bytes each element has.
fn weights(array: &ArrayRef) -> Vec<u64> {
    fn offsets<O: OffsetSizeTrait>(offsets: &[O]) -> Vec<u64> {
        offsets.windows(2).map(|pair| (pair[1] - pair[0]).as_usize() as u64 + 8).collect()
    }
    fn lists<O: OffsetSizeTrait>(offsets: &[O], values: &ArrayRef) -> Vec<u64> {
        let sums = sums(&weights(values));
        let weight = |pair: &[O]| sums[pair[1].as_usize()] - sums[pair[0].as_usize()] + 8;
        offsets.windows(2).map(weight).collect()
    }
    match array.data_type() {
        DataType::Utf8 => offsets(array.as_string::<i32>().value_offsets()),
        DataType::LargeUtf8 => offsets(array.as_string::<i64>().value_offsets()),
        DataType::Binary => offsets(array.as_binary::<i32>().value_offsets()),
        DataType::LargeBinary => offsets(array.as_binary::<i64>().value_offsets()),
        DataType::FixedSizeBinary(size) => vec![*size as u64; array.len()],
        DataType::List(_) => lists(array.as_list::<i32>().value_offsets(), array.as_list::<i32>().values()),
        DataType::LargeList(_) => lists(array.as_list::<i64>().value_offsets(), array.as_list::<i64>().values()),
        DataType::Map(..) => {
            let entries: ArrayRef = Arc::new(array.as_map().entries().clone());
            lists(array.as_map().value_offsets(), &entries)
        }
        DataType::FixedSizeList(_, size) => {
            let (sums, size) = (sums(&weights(array.as_fixed_size_list().values())), *size as usize);
            (0..array.len()).map(|list| sums[(list + 1) * size] - sums[list * size] + 1).collect()
        }
        DataType::Struct(_) => total(array.as_struct().columns().iter(), array.len()),
        DataType::Union(fields, _) => {
            let union = array.as_union();
            match union.offsets() {
                None => total(fields.iter().map(|(id, _)| union.child(id)), array.len()),
                Some(places) => {
                    let members: Vec<_> = (0..128)
                        .map(|id| {
                            fields
                                .iter()
                                .find(|(member, _)| *member == id as i8)
                                .map(|(id, _)| weights(union.child(id)))
                        })
                        .collect();
                    let weight =
                        |(id, place): (&i8, &i32)| members[*id as usize].as_ref().map_or(1, |all| all[*place as usize]);
                    union.type_ids().iter().zip(places.iter()).map(weight).collect()
                }
            }
        }
        // Views and encoded values share what they mean.
        other => vec![other.primitive_width().unwrap_or(16) as u64; array.len()],
    }
}

fn total<'a>(columns: impl Iterator<Item = &'a ArrayRef>, length: usize) -> Vec<u64> {
    let mut total = vec![1; length];
    for column in columns {
        total.iter_mut().zip(weights(column)).for_each(|(total, weight)| *total += weight);
    }
    total
}

/// What lies in front of each element, and all of it at the end.
fn sums(weights: &[u64]) -> Vec<u64> {
    let mut sum = 0;
    std::iter::once(0)
        .chain(weights.iter().map(|weight| {
            sum += weight;
            sum
        }))
        .collect()
}

/// List views as lists.
pub(super) fn list_of<O: OffsetSizeTrait>(views: &GenericListViewArray<O>) -> Result<GenericListArray<O>, ArrowError> {
    let field = match views.data_type() {
        DataType::ListView(field) | DataType::LargeListView(field) => field.clone(),
        other => return Err(ArrowError::InvalidArgumentError(format!("{other} is no list view"))),
    };
    let nulls = views.nulls();
    let is_valid = |view: usize| nulls.is_none_or(|nulls| nulls.is_valid(view));
    let mut offsets = vec![0_u64];
    let mut total = 0_u64;
    for view in 0..views.len() {
        if is_valid(view) {
            total += views.value_size(view).as_usize() as u64;
        }
        offsets.push(total);
    }
    let values = views.values();
    if total > values.len() as u64 {
        let sums = sums(&weights(values));
        let weight = |view: usize| {
            let first = views.value_offset(view).as_usize();
            sums[first + views.value_size(view).as_usize()] - sums[first]
        };
        within_bounds((0..views.len()).filter(|view| is_valid(*view)).map(weight).sum(), total)?;
    }
    let mut indices = Vec::with_capacity(total as usize);
    for view in (0..views.len()).filter(|view| is_valid(*view)) {
        let first = views.value_offset(view).as_usize();
        indices.extend((first..first + views.value_size(view).as_usize()).map(|place| place as u32));
    }
    let offsets = offsets.into_iter().map(|offset| O::from_usize(offset as usize)).collect::<Option<Vec<O>>>();
    let offsets =
        offsets.ok_or_else(|| ArrowError::InvalidArgumentError("it has too many elements for a list".into()))?;
    let values = take(values, &UInt32Array::from(indices), None)?;
    GenericListArray::try_new(field, OffsetBuffer::new(offsets.into()), values, nulls.cloned())
}

/// Fixed-size lists as lists.
pub(super) fn unfixed(fixed: &FixedSizeListArray) -> Result<LargeListArray, ArrowError> {
    let DataType::FixedSizeList(field, _) = fixed.data_type() else { unreachable!("the type of such an array") };
    let size = i64::from(fixed.value_length());
    let offsets: Vec<i64> = (0..=fixed.len() as i64).map(|list| list * size).collect();
    LargeListArray::try_new(
        field.clone(),
        OffsetBuffer::new(offsets.into()),
        fixed.values().clone(),
        fixed.nulls().cloned(),
    )
}

/// A union as the places of the members and, for each member, as many values as the union has.
pub(super) fn sparse(
    union: &UnionArray,
    members: impl Iterator<Item = i8>,
) -> Result<(ScalarBuffer<i8>, Vec<ArrayRef>), ArrowError> {
    let ids: Vec<i8> = members.collect();
    let mut places = [0_i8; 128];
    (0..).zip(&ids).for_each(|(place, id)| places[*id as usize] = place);
    let type_ids: ScalarBuffer<i8> = union.type_ids().iter().map(|id| places[*id as usize]).collect();
    let mut children = Vec::with_capacity(ids.len());
    for id in ids {
        let child = union.child(id);
        children.push(match union.offsets() {
            None => child.clone(),
            Some(offsets) => {
                let valid: NullBuffer = union.type_ids().iter().map(|other| *other == id).collect::<Vec<bool>>().into();
                let indices = offsets.iter().zip(valid.iter());
                let indices: Vec<u32> = indices.map(|(offset, ours)| if ours { *offset as u32 } else { 0 }).collect();
                gathered(child, &UInt32Array::new(indices.into(), Some(valid)))?
            }
        });
    }
    Ok((type_ids, children))
}
