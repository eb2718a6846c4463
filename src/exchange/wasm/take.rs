//! Rows on their way out of a module's memory, where nothing is trusted: every address, length, offset and text is
//! checked, every copy counts against a bound, and arrays are built with Arrow's own full validation.
//!
//! Columns of the input need not come back as bytes. The address of an input column's structure stands for that column,
//! and a structure whose `dictionary` is that address stands for some of its rows, by index. The host answers both with
//! the buffers that it has.

use arrow_array::{
    Array, ArrayRef, Decimal32Array, Decimal64Array, Decimal128Array, Decimal256Array, OffsetSizeTrait, RecordBatch,
    RecordBatchOptions, UInt32Array, make_array,
};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, ScalarBuffer};
use arrow_data::ArrayData;
use arrow_schema::{DataType, Field, SchemaRef};
use arrow_select::take::take;

use super::{
    abi::{Memory, array, position},
    give::Placed,
};

/// How much one call may answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) rows: usize,
    pub(super) bytes: usize,
}

/// Why rows were not taken.
pub(super) enum Refused {
    Malformed(String),
    TooManyRows(usize),
    TooManyBytes,
}

impl<T: Into<String>> From<T> for Refused {
    fn from(why: T) -> Self {
        Self::Malformed(why.into())
    }
}

/// The input of a call, which its answer may refer to.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) batch: &'a RecordBatch,
    pub(super) placed: Placed,
}

impl<'a> Given<'a> {
    /// The column whose structure is at this address.
    fn column(self, at: u32) -> Option<&'a ArrayRef> {
        let columns = self.batch.columns();
        position(at, self.placed.columns, array::SIZE, columns.len()).map(|index| &columns[index])
    }
}

/// Reads the batch whose structure is at `at`.
pub(super) fn rows(
    memory: Memory<'_>,
    at: u32,
    schema: &SchemaRef,
    given: Option<Given<'_>>,
    bounds: Bounds,
) -> Result<RecordBatch, Refused> {
    let mut reader = Rowwise { memory, given, left: bounds.bytes, indices: None };
    let root = Structure::read(memory, at)?;
    if root.length > bounds.rows {
        return Err(Refused::TooManyRows(root.length));
    }
    if root.buffers > 1 || reader.buffer(&root, 0)? != 0 {
        return Err("a batch has no nulls of its own".into());
    }
    root.expect_children(schema.fields().len())?;
    let mut columns = Vec::with_capacity(schema.fields().len());
    for (index, field) in schema.fields().iter().enumerate() {
        let named = |refused| match refused {
            Refused::Malformed(why) => Refused::Malformed(format!("column \"{}\": {why}", field.name())),
            other => other,
        };
        let child = memory.u32(root.child_pointers, 4 * index)?;
        let data = reader.array(child, field.data_type(), root.offset, root.length).map_err(named)?;
        columns.push(make_array(data));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(root.length));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options).map_err(|error| error.to_string().into())
}

/// The numbers of a `struct ArrowArray`.
struct Structure {
    length: usize,
    offset: usize,
    buffers: usize,
    children: usize,
    buffer_pointers: u32,
    child_pointers: u32,
    dictionary: u32,
}

impl Structure {
    fn read(memory: Memory<'_>, at: u32) -> Result<Self, String> {
        let number = |name: &str, member: usize| {
            let value = memory.i64(at, member)?;
            // No number of rows or buffers that fits the memory is larger, and sums of two cannot overflow.
            let value = u32::try_from(value).map_err(|_| format!("its {name} is {value}"))?;
            Ok::<_, String>(value as usize)
        };
        Ok(Self {
            length: number("length", array::LENGTH)?,
            offset: number("offset", array::OFFSET)?,
            buffers: number("number of buffers", array::N_BUFFERS)?,
            children: number("number of children", array::N_CHILDREN)?,
            buffer_pointers: memory.u32(at, array::BUFFERS)?,
            child_pointers: memory.u32(at, array::CHILDREN)?,
            dictionary: memory.u32(at, array::DICTIONARY)?,
        })
    }

    fn expect_buffers(&self, count: usize) -> Result<(), String> {
        if self.buffers == count { Ok(()) } else { Err(format!("it has {} buffers instead of {count}", self.buffers)) }
    }

    fn expect_children(&self, count: usize) -> Result<(), String> {
        match self.children {
            children if children == count => Ok(()),
            children => Err(format!("it has {children} children instead of {count}")),
        }
    }
}

struct Rowwise<'a> {
    memory: Memory<'a>,
    given: Option<Given<'a>>,
    /// Bytes that the answer may still have.
    left: usize,
    /// The last rows by index, and where they were: columns share them.
    indices: Option<([u32; 2], [usize; 2], UInt32Array)>,
}

impl<'a> Rowwise<'a> {
    /// Rows `start` to `start + length` of the array whose structure is at `at`.
    fn array(&mut self, at: u32, data_type: &DataType, start: usize, length: usize) -> Result<ArrayData, Refused> {
        if let Some(column) = self.given.and_then(|given| given.column(at)) {
            return self.referred(column, data_type, start, length);
        }
        let found = Structure::read(self.memory, at)?;
        if start + length > found.length {
            return Err(format!("it has {} rows, and {} are needed", found.length, start + length).into());
        }
        let start = start + found.offset;
        if let Some(column) = self.given.and_then(|given| given.column(found.dictionary)) {
            return self.gathered(&found, column, data_type, start, length);
        }
        if matches!(data_type, DataType::Dictionary(..)) != (found.dictionary != 0) {
            return Err(format!("it has {} dictionary", if found.dictionary == 0 { "no" } else { "a" }).into());
        }
        if data_type == &DataType::Null {
            found.expect_buffers(0)?;
            found.expect_children(0)?;
            return Ok(ArrayData::new_null(data_type, length));
        }
        let (buffers, children) = self.parts(&found, data_type, start, length)?;
        let validity = self.bits(self.buffer(&found, 0)?, start, length)?;
        let data = ArrayData::builder(data_type.clone())
            .len(length)
            .nulls(validity.map(NullBuffer::new))
            .buffers(buffers)
            .child_data(children);
        let data = data.build().map_err(|error| error.to_string())?;
        check_decimals(&data)?;
        Ok(data)
    }

    /// An input column as it is.
    fn referred(
        &mut self,
        column: &ArrayRef,
        data_type: &DataType,
        start: usize,
        length: usize,
    ) -> Result<ArrayData, Refused> {
        same_type(column, data_type)?;
        if start + length > column.len() {
            return Err(format!("it has {} rows, and {} are needed", column.len(), start + length).into());
        }
        let data = column.slice(start, length).to_data();
        self.charge(slice_bytes(&data))?;
        Ok(data)
    }

    /// Some rows of an input column, in any order and as often as they are named.
    fn gathered(
        &mut self,
        found: &Structure,
        column: &ArrayRef,
        data_type: &DataType,
        start: usize,
        length: usize,
    ) -> Result<ArrayData, Refused> {
        same_type(column, data_type)?;
        found.expect_buffers(2)?;
        let place = ([self.buffer(found, 0)?, self.buffer(found, 1)?], [start, length]);
        let indices = match &self.indices {
            Some((buffers, range, indices)) if (*buffers, *range) == place => indices.clone(),
            _ => {
                let indices = self.indices(place.0, start, length, column.len())?;
                self.indices = Some((place.0, place.1, indices.clone()));
                indices
            }
        };
        let run = indices.values().first().filter(|_| indices.null_count() == 0).copied();
        if let Some(first) = run.filter(|first| indices.values().iter().zip(*first..).all(|(a, b)| *a == b)) {
            return self.referred(column, data_type, first as usize, length);
        }
        self.charge(gathered_bytes(&column.to_data(), &indices))?;
        Ok(take(column, &indices, None).map_err(|error| error.to_string())?.to_data())
    }

    /// Row numbers, each below `rows` where it is not null, and 0 where it is.
    fn indices(&mut self, buffers: [u32; 2], start: usize, length: usize, rows: usize) -> Result<UInt32Array, Refused> {
        let validity = self.bits(buffers[0], start, length)?.map(NullBuffer::new);
        let bytes = self.slice(buffers[1], start, length, 4)?;
        let numbers = bytes.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")));
        let mut numbers: Vec<u32> = numbers.collect();
        for (row, number) in numbers.iter_mut().enumerate() {
            if validity.as_ref().is_some_and(|validity| validity.is_null(row)) {
                *number = 0;
            } else if *number as usize >= rows {
                return Err(format!("it names row {number} of an input of {rows} rows").into());
            }
        }
        Ok(UInt32Array::new(numbers.into(), validity))
    }

    /// The buffers behind the validity, and the children.
    fn parts(
        &mut self,
        found: &Structure,
        data_type: &DataType,
        start: usize,
        length: usize,
    ) -> Result<(Vec<Buffer>, Vec<ArrayData>), Refused> {
        let nested = data_type.is_nested();
        found.expect_children(match data_type {
            DataType::Struct(fields) => fields.len(),
            _ => nested as usize,
        })?;
        match data_type {
            DataType::Boolean => {
                found.expect_buffers(2)?;
                let bits = self.known_bits(self.buffer(found, 1)?, start, length)?;
                Ok((vec![bits.into_inner()], Vec::new()))
            }
            DataType::Utf8 | DataType::Binary => self.texts::<i32>(found, start, length),
            DataType::LargeUtf8 | DataType::LargeBinary => self.texts::<i64>(found, start, length),
            DataType::List(item) | DataType::Map(item, _) => self.lists::<i32>(found, item, start, length),
            DataType::LargeList(item) => self.lists::<i64>(found, item, start, length),
            DataType::FixedSizeList(item, size) => {
                found.expect_buffers(1)?;
                let size = usize::try_from(*size).map_err(|_| "a list of a negative size")?;
                let times = |number: usize| number.checked_mul(size).filter(|product| *product <= u32::MAX as usize);
                let (start, length) = times(start).zip(times(length)).ok_or("its lists are larger than its memory")?;
                let child = self.memory.u32(found.child_pointers, 0)?;
                Ok((Vec::new(), vec![self.array(child, item.data_type(), start, length)?]))
            }
            DataType::Struct(fields) => {
                found.expect_buffers(1)?;
                let mut children = Vec::with_capacity(fields.len());
                for (index, field) in fields.iter().enumerate() {
                    let child = self.memory.u32(found.child_pointers, 4 * index)?;
                    children.push(self.array(child, field.data_type(), start, length)?);
                }
                Ok((Vec::new(), children))
            }
            DataType::Dictionary(key, value) => {
                found.expect_buffers(2)?;
                let width = key.primitive_width().ok_or("its keys are no integers")?;
                let keys = self.copied(self.buffer(found, 1)?, start, length, width)?;
                let values = Structure::read(self.memory, found.dictionary)?;
                Ok((vec![keys], vec![self.array(found.dictionary, value, 0, values.length)?]))
            }
            other => {
                found.expect_buffers(2)?;
                let width = match other {
                    DataType::FixedSizeBinary(width) => usize::try_from(*width).ok(),
                    other => other.primitive_width(),
                };
                let width = width.ok_or_else(|| format!("{other} is not supported"))?;
                Ok((vec![self.copied(self.buffer(found, 1)?, start, length, width)?], Vec::new()))
            }
        }
    }

    fn texts<O: OffsetSizeTrait>(
        &mut self,
        found: &Structure,
        start: usize,
        length: usize,
    ) -> Result<(Vec<Buffer>, Vec<ArrayData>), Refused> {
        found.expect_buffers(3)?;
        let (offsets, first, size) = self.offsets::<O>(self.buffer(found, 1)?, start, length)?;
        let bytes = self.copied(self.buffer(found, 2)?, first, size, 1)?;
        Ok((vec![offsets, bytes], Vec::new()))
    }

    fn lists<O: OffsetSizeTrait>(
        &mut self,
        found: &Structure,
        item: &Field,
        start: usize,
        length: usize,
    ) -> Result<(Vec<Buffer>, Vec<ArrayData>), Refused> {
        found.expect_buffers(2)?;
        let (offsets, first, size) = self.offsets::<O>(self.buffer(found, 1)?, start, length)?;
        let child = self.memory.u32(found.child_pointers, 0)?;
        Ok((vec![offsets], vec![self.array(child, item.data_type(), first, size)?]))
    }

    /// Offsets that begin at 0, where their values begin, and how many values they mean.
    fn offsets<O: OffsetSizeTrait>(
        &mut self,
        at: u32,
        start: usize,
        length: usize,
    ) -> Result<(Buffer, usize, usize), Refused> {
        // Without rows there need not be one.
        if length == 0 {
            return Ok((Buffer::from_vec(vec![O::default()]), 0, 0));
        }
        let copied = self.copied(at, start, length + 1, size_of::<O>())?;
        let offsets: ScalarBuffer<O> = ScalarBuffer::new(copied.clone(), 0, length + 1);
        let (first, last) = (offsets[0], offsets[length]);
        // No memory has more, and 0 is not above.
        let sane = |offset: &O| (0..=i64::from(u32::MAX)).contains(&offset.to_i64().unwrap_or(-1));
        if !offsets.iter().all(sane) || !offsets.windows(2).all(|pair| pair[0] <= pair[1]) {
            return Err("its offsets do not rise from 0".into());
        }
        let buffer = match first.as_usize() {
            0 => copied,
            _ => Buffer::from_vec(offsets.iter().map(|offset| *offset - first).collect()),
        };
        Ok((buffer, first.as_usize(), last.as_usize() - first.as_usize()))
    }

    /// A buffer's address; 0 where an array has none.
    fn buffer(&self, found: &Structure, index: usize) -> Result<u32, String> {
        if index < found.buffers { self.memory.u32(found.buffer_pointers, 4 * index) } else { Ok(0) }
    }

    /// Bits `start` to `start + length`, or none at the address 0.
    fn bits(&mut self, at: u32, start: usize, length: usize) -> Result<Option<BooleanBuffer>, Refused> {
        if at == 0 { Ok(None) } else { self.known_bits(at, start, length).map(Some) }
    }

    fn known_bits(&mut self, at: u32, start: usize, length: usize) -> Result<BooleanBuffer, Refused> {
        if length == 0 {
            return Ok(BooleanBuffer::new_unset(0));
        }
        let bytes = self.copied(at, start / 8, (start % 8 + length).div_ceil(8), 1)?;
        let bits = BooleanBuffer::new(bytes, start % 8, length).sliced();
        Ok(BooleanBuffer::new(bits, 0, length))
    }

    /// Items `start` to `start + length` of an array of items of `width` bytes.
    fn slice(&self, at: u32, start: usize, length: usize, width: usize) -> Result<&'a [u8], String> {
        let outside = || format!("{length} items of {width} bytes from item {start} are outside of its memory");
        if at == 0 && length > 0 {
            return Err("its values are at the address 0".into());
        }
        let (skipped, size) = start.checked_mul(width).zip(length.checked_mul(width)).ok_or_else(outside)?;
        let at = u32::try_from(skipped).ok().and_then(|skipped| at.checked_add(skipped)).ok_or_else(outside)?;
        self.memory.bytes(at, size)
    }

    fn copied(&mut self, at: u32, start: usize, length: usize, width: usize) -> Result<Buffer, Refused> {
        let bytes = self.slice(at, start, length, width)?;
        self.charge(bytes.len())?;
        Ok(Buffer::from(bytes))
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Refused> {
        self.left = self.left.checked_sub(bytes).ok_or(Refused::TooManyBytes)?;
        Ok(())
    }
}

fn same_type(column: &ArrayRef, data_type: &DataType) -> Result<(), String> {
    match column.data_type() {
        same if same == data_type => Ok(()),
        other => Err(format!("it is declared as {data_type} and refers to an input column of {other}")),
    }
}

fn slice_bytes(data: &ArrayData) -> usize {
    data.get_slice_memory_size().unwrap_or(usize::MAX)
}

/// At least the bytes of the rows that `indices` names.
fn gathered_bytes(column: &ArrayData, indices: &UInt32Array) -> usize {
    fn of_texts<O: OffsetSizeTrait>(column: &ArrayData, indices: &UInt32Array) -> usize {
        let offsets: ScalarBuffer<O> =
            ScalarBuffer::new(column.buffers()[0].clone(), column.offset(), column.len() + 1);
        let length = |row: usize| offsets[row + 1].as_usize() - offsets[row].as_usize();
        let lengths = indices.values().iter().map(|row| length(*row as usize));
        lengths.fold(indices.len() * size_of::<O>(), usize::saturating_add)
    }
    match column.data_type() {
        DataType::Utf8 | DataType::Binary => of_texts::<i32>(column, indices),
        DataType::LargeUtf8 | DataType::LargeBinary => of_texts::<i64>(column, indices),
        DataType::Boolean => indices.len() / 8,
        DataType::FixedSizeBinary(width) => indices.len().saturating_mul(usize::try_from(*width).unwrap_or(0)),
        flat if flat.primitive_width().is_some() => indices.len() * flat.primitive_width().unwrap_or(0),
        _ => {
            // No row is repeated more often than the one that is repeated most often.
            let mut times = vec![0_usize; column.len()];
            indices.values().iter().for_each(|row| times[*row as usize] += 1);
            slice_bytes(column).saturating_mul(times.into_iter().max().unwrap_or(0))
        }
    }
}

/// Arrow's validation leaves out whether decimals have no more digits than they may.
fn check_decimals(data: &ArrayData) -> Result<(), String> {
    let checked = match *data.data_type() {
        DataType::Decimal32(precision, _) => Decimal32Array::from(data.clone()).validate_decimal_precision(precision),
        DataType::Decimal64(precision, _) => Decimal64Array::from(data.clone()).validate_decimal_precision(precision),
        DataType::Decimal128(precision, _) => Decimal128Array::from(data.clone()).validate_decimal_precision(precision),
        DataType::Decimal256(precision, _) => Decimal256Array::from(data.clone()).validate_decimal_precision(precision),
        _ => Ok(()),
    };
    checked.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{
        BooleanArray, DictionaryArray, Int32Array, ListArray, StringArray, StructArray,
        types::{Int8Type, Int32Type},
    };
    use proptest::prelude::*;

    use super::{super::give::Image, *};

    const BOUNDS: Bounds = Bounds { rows: 1 << 20, bytes: 1 << 24 };

    fn batch() -> RecordBatch {
        let rows = 0..20;
        let numbers = Int32Array::from_iter(rows.clone().map(|row| (row % 5 != 3).then_some(row)));
        let texts = StringArray::from_iter(rows.clone().map(|row| (row % 4 != 1).then(|| "é".repeat(row as usize))));
        let lists = rows.clone().map(|row| (row % 6 != 2).then(|| vec![Some(row); row as usize % 4]));
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(lists);
        let bools = BooleanArray::from_iter(rows.clone().map(|row| (row % 7 != 0).then_some(row % 2 == 0)));
        let words = rows.map(|row| ["a", "b", "c"][row as usize % 3]).collect::<DictionaryArray<Int8Type>>();
        let parts = StructArray::from(vec![
            (Arc::new(Field::new("n", DataType::Int32, true)), Arc::new(numbers.clone()) as ArrayRef),
            (Arc::new(Field::new("l", lists.data_type().clone(), true)), Arc::new(lists.clone()) as ArrayRef),
        ]);
        RecordBatch::try_from_iter_with_nullable([
            ("numbers", Arc::new(numbers) as ArrayRef, true),
            ("texts", Arc::new(texts), true),
            ("lists", Arc::new(lists), true),
            ("bools", Arc::new(bools), true),
            ("words", Arc::new(words), true),
            ("parts", Arc::new(parts), true),
        ])
        .unwrap()
    }

    /// A memory that holds the batch, and where.
    fn written(batch: &RecordBatch) -> (Vec<u8>, Placed) {
        let image = Image::of_rows(batch, &[true; 6]).unwrap();
        let mut memory = vec![0; 64 + image.size()];
        let placed = image.write(&mut memory, 64);
        (memory, placed)
    }

    fn read(memory: &[u8], placed: Placed, schema: &SchemaRef) -> Result<RecordBatch, Refused> {
        super::rows(Memory(memory), placed.root, schema, None, BOUNDS)
    }

    #[test]
    fn what_is_given_is_taken_as_it_was() {
        for (start, length) in [(0, 20), (3, 9), (19, 1), (8, 12)] {
            let slice = batch().slice(start, length);
            let (memory, placed) = written(&slice);
            assert!(read(&memory, placed, &slice.schema()).is_ok_and(|taken| taken == slice), "{start} {length}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// Whatever a module leaves in its memory is either rows that Arrow holds for valid, or refused.
        #[test]
        fn damaged_memory_is_refused_or_valid(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), structures in any::<bool>()) {
            let batch = batch();
            let (mut memory, placed) = written(&batch);
            // Half of the cases hit the structures, which come first.
            let range = if structures { 64..64 + 1600 } else { 0..memory.len() };
            for (index, byte) in damage {
                memory[range.start + index.index(range.len())] = byte;
            }
            if let Ok(taken) = read(&memory, placed, &batch.schema()) {
                for column in taken.columns() {
                    prop_assert!(column.to_data().validate_full().is_ok());
                }
            }
        }

        #[test]
        fn damaged_schema_is_refused_or_read(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let schema = batch().schema();
            let image = Image::of_schema(&schema).unwrap();
            let mut memory = vec![0; 64 + image.size()];
            let placed = image.write(&mut memory, 64);
            let elsewhere = Placed { columns: u32::MAX, ..placed };
            let whole = super::super::declare::schema(Memory(&memory), placed.root, &schema, elsewhere);
            prop_assert_eq!(whole.as_ref(), Ok(&schema));
            for (index, byte) in damage {
                let at = index.index(memory.len());
                memory[at] = byte;
            }
            drop(super::super::declare::schema(Memory(&memory), placed.root, &schema, elsewhere));
        }
    }
}
