//! Schemas and rows on their way into a module's memory.
//!
//! All that one call is given lies in one piece of memory, so the module allocates once: first the structures, then the
//! buffers, each at a multiple of 64. Offsets are always 0 there and offsets of texts and lists begin at 0, whatever
//! slices the host has; that is what makes reading simple for the module.

use arrow_array::{Array, OffsetSizeTrait, RecordBatch};
use arrow_buffer::{BooleanBuffer, Buffer, ScalarBuffer};
use arrow_data::ArrayData;
use arrow_schema::{DataType, Field, Schema, ffi::FFI_ArrowSchema};

use super::abi::{array, schema};

/// Buffers lie at multiples of this, as Arrow recommends.
const ALIGNMENT: usize = 64;

/// Where in its head the structure of the whole is.
const ROOT: usize = 0;

/// -1 as a null count: nobody has counted.
const UNKNOWN: usize = usize::MAX;

/// What is written into a module's memory once its address is known.
#[derive(Default)]
pub(super) struct Image {
    head: Vec<u8>,
    /// A pointer in the head, and what it points to.
    links: Vec<(usize, Target)>,
    data: Vec<(usize, Buffer)>,
    data_size: usize,
    /// Where in the head the structures of a batch's columns are, one behind the other.
    columns: usize,
}

/// Where an image was written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) root: u32,
    pub(super) columns: u32,
}

enum Target {
    Head(usize),
    Data(usize),
}

impl Image {
    /// The bytes that it takes, at any address.
    pub(super) fn size(&self) -> usize {
        self.data_start() + self.data_size + ALIGNMENT
    }

    fn data_start(&self) -> usize {
        self.head.len().next_multiple_of(ALIGNMENT)
    }

    /// Writes it into `memory` at `address`, where [`Self::size`] bytes are free and below 4 GiB.
    pub(super) fn write(mut self, memory: &mut [u8], address: u32) -> Placed {
        let base = (address as usize).next_multiple_of(ALIGNMENT);
        let data_start = base + self.data_start();
        for (at, target) in &self.links {
            let address = match target {
                Target::Head(offset) => base + offset,
                Target::Data(offset) => data_start + offset,
            };
            self.head[*at..*at + 4].copy_from_slice(&(address as u32).to_le_bytes());
        }
        memory[base..base + self.head.len()].copy_from_slice(&self.head);
        for (offset, buffer) in &self.data {
            let at = data_start + offset;
            memory[at..at + buffer.len()].copy_from_slice(buffer);
        }
        Placed { root: base as u32, columns: (base + self.columns) as u32 }
    }

    fn reserve(&mut self, size: usize) -> usize {
        let at = self.head.len().next_multiple_of(8);
        self.head.resize(at + size, 0);
        at
    }

    fn set_i64(&mut self, at: usize, value: usize) {
        self.head[at..at + 8].copy_from_slice(&(value as u64).to_le_bytes());
    }

    fn link_bytes(&mut self, at: usize, bytes: &[u8]) {
        let place = self.reserve(bytes.len());
        self.head[place..place + bytes.len()].copy_from_slice(bytes);
        self.links.push((at, Target::Head(place)));
    }

    fn link_text(&mut self, at: usize, text: &str) {
        let text: Vec<u8> = text.bytes().filter(|byte| *byte != 0).chain([0]).collect();
        self.link_bytes(at, &text);
    }

    fn link_buffer(&mut self, at: usize, buffer: Buffer) {
        self.links.push((at, Target::Data(self.data_size)));
        let end = self.data_size + buffer.len();
        self.data.push((self.data_size, buffer));
        self.data_size = end.next_multiple_of(ALIGNMENT);
    }

    /// Room for the structures of `count` children, one behind the other, and the array of pointers to them.
    fn children(&mut self, pointer: usize, count: usize, size: usize) -> usize {
        let first = self.reserve(count * size);
        let pointers = self.reserve(4 * count);
        self.links.push((pointer, Target::Head(pointers)));
        self.links.extend((0..count).map(|child| (pointers + 4 * child, Target::Head(first + size * child))));
        first
    }
}

// === schemas ===

impl Image {
    /// The structure of a schema. It tells every column, also those of types that no module can read.
    pub(super) fn of_schema(given: &Schema) -> Result<Self, String> {
        let mut image = Self::default();
        let root = image.reserve(schema::SIZE);
        debug_assert_eq!(root, ROOT);
        let fields = Field::new("", DataType::Struct(given.fields().clone()), false);
        image.field(root, &fields.with_metadata(given.metadata().clone()))?;
        Ok(image)
    }

    fn field(&mut self, at: usize, field: &Field) -> Result<(), String> {
        let data_type = field.data_type();
        self.link_text(at + schema::NAME, field.name());
        let mut flags = if field.is_nullable() { schema::NULLABLE } else { 0 };
        if matches!(data_type, DataType::Map(_, true)) {
            flags |= schema::MAP_KEYS_SORTED;
        }
        if let DataType::Dictionary(key, value) = data_type {
            if field.dict_is_ordered() == Some(true) {
                flags |= schema::DICTIONARY_ORDERED;
            }
            self.link_text(at + schema::FORMAT, &format(key)?);
            let dictionary = self.reserve(schema::SIZE);
            self.links.push((at + schema::DICTIONARY, Target::Head(dictionary)));
            self.field(dictionary, &Field::new("", value.as_ref().clone(), true))?;
        } else {
            self.link_text(at + schema::FORMAT, &format(data_type)?);
            let children = children(data_type);
            if !children.is_empty() {
                self.set_i64(at + schema::N_CHILDREN, children.len());
                let first = self.children(at + schema::CHILDREN, children.len(), schema::SIZE);
                if at == ROOT {
                    self.columns = first;
                }
                for (index, child) in children.into_iter().enumerate() {
                    self.field(first + index * schema::SIZE, child)?;
                }
            }
        }
        self.set_i64(at + schema::FLAGS, flags as usize);
        if !field.metadata().is_empty() {
            self.link_bytes(at + schema::METADATA, &metadata(field));
        }
        Ok(())
    }
}

fn format(data_type: &DataType) -> Result<String, String> {
    let described = FFI_ArrowSchema::try_from(data_type).map_err(|error| error.to_string())?;
    Ok(described.format().to_string())
}

fn children(data_type: &DataType) -> Vec<&Field> {
    match data_type {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => vec![item.as_ref()],
        DataType::Struct(fields) => fields.iter().map(AsRef::as_ref).collect(),
        DataType::Union(fields, _) => fields.iter().map(|(_, field)| field.as_ref()).collect(),
        DataType::RunEndEncoded(ends, values) => vec![ends.as_ref(), values.as_ref()],
        _ => Vec::new(),
    }
}

/// As the C Data Interface has it: a count, then each key and value with its length in front.
fn metadata(field: &Field) -> Vec<u8> {
    let length = |value: usize| (value as i32).to_le_bytes();
    let mut bytes = length(field.metadata().len()).to_vec();
    let mut entries: Vec<_> = field.metadata().iter().collect();
    entries.sort();
    for text in entries.into_iter().flat_map(|(key, value)| [key, value]) {
        bytes.extend(length(text.len()));
        bytes.extend(text.as_bytes());
    }
    bytes
}

// === rows ===

/// Whether a module can be given, and can give, columns of this type.
pub(super) fn is_supported(data_type: &DataType) -> bool {
    match data_type {
        DataType::Null | DataType::Boolean | DataType::FixedSizeBinary(_) => true,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary => true,
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => is_supported(item.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| is_supported(field.data_type())),
        DataType::Dictionary(_, value) => is_supported(value),
        other => other.primitive_width().is_some(),
    }
}

impl Image {
    /// The structure of a batch. Columns that are not read have a length and no buffers.
    pub(super) fn of_rows(batch: &RecordBatch, reads: &[bool]) -> Result<Self, String> {
        let mut image = Self::default();
        let root = image.reserve(array::SIZE);
        image.set_i64(root + array::LENGTH, batch.num_rows());
        image.set_i64(root + array::N_CHILDREN, batch.num_columns());
        image.columns = image.children(root + array::CHILDREN, batch.num_columns(), array::SIZE);
        image.buffers(root, vec![None]);
        for (index, (column, read)) in batch.columns().iter().zip(reads).enumerate() {
            let at = image.columns + index * array::SIZE;
            if *read {
                image.array(at, &column.to_data())?;
            } else {
                image.set_i64(at + array::LENGTH, column.len());
                image.set_i64(at + array::NULL_COUNT, UNKNOWN);
            }
        }
        Ok(image)
    }

    fn array(&mut self, at: usize, data: &ArrayData) -> Result<(), String> {
        self.set_i64(at + array::LENGTH, data.len());
        self.set_i64(at + array::NULL_COUNT, data.null_count());
        let validity = data.nulls().filter(|nulls| nulls.null_count() > 0).map(|nulls| nulls.inner().sliced());
        let (offset, length) = (data.offset(), data.len());
        let fixed = |width: usize| data.buffers()[0].slice_with_length(offset * width, length * width);
        match data.data_type() {
            DataType::Null => {}
            DataType::Boolean => {
                let bits = BooleanBuffer::new(data.buffers()[0].clone(), offset, length);
                self.buffers(at, vec![validity, Some(bits.sliced())]);
            }
            DataType::Utf8 | DataType::Binary => {
                let (offsets, first, last) = rebased::<i32>(data)?;
                let bytes = data.buffers()[1].slice_with_length(first, last - first);
                self.buffers(at, vec![validity, Some(offsets), Some(bytes)]);
            }
            DataType::LargeUtf8 | DataType::LargeBinary => {
                let (offsets, first, last) = rebased::<i64>(data)?;
                let bytes = data.buffers()[1].slice_with_length(first, last - first);
                self.buffers(at, vec![validity, Some(offsets), Some(bytes)]);
            }
            DataType::List(_) | DataType::Map(_, _) => {
                let (offsets, first, last) = rebased::<i32>(data)?;
                self.buffers(at, vec![validity, Some(offsets)]);
                self.nested(at, &[data.child_data()[0].slice(first, last - first)])?;
            }
            DataType::LargeList(_) => {
                let (offsets, first, last) = rebased::<i64>(data)?;
                self.buffers(at, vec![validity, Some(offsets)]);
                self.nested(at, &[data.child_data()[0].slice(first, last - first)])?;
            }
            DataType::FixedSizeList(_, size) => {
                let size = usize::try_from(*size).map_err(|_| "a list of a negative size")?;
                self.buffers(at, vec![validity]);
                self.nested(at, &[data.child_data()[0].slice(offset * size, length * size)])?;
            }
            DataType::Struct(_) => {
                self.buffers(at, vec![validity]);
                let children: Vec<_> = data.child_data().iter().map(|child| child.slice(offset, length)).collect();
                self.nested(at, &children)?;
            }
            DataType::Dictionary(key, _) => {
                let width = key.primitive_width().ok_or("a dictionary without integer keys")?;
                self.buffers(at, vec![validity, Some(fixed(width))]);
                let dictionary = self.reserve(array::SIZE);
                self.links.push((at + array::DICTIONARY, Target::Head(dictionary)));
                self.array(dictionary, &data.child_data()[0])?;
            }
            DataType::FixedSizeBinary(width) => {
                let width = usize::try_from(*width).map_err(|_| "a binary of a negative size")?;
                self.buffers(at, vec![validity, Some(fixed(width))]);
            }
            other => {
                let width = other.primitive_width().ok_or_else(|| format!("{other} cannot be given to a module"))?;
                self.buffers(at, vec![validity, Some(fixed(width))]);
            }
        }
        Ok(())
    }

    fn nested(&mut self, at: usize, children: &[ArrayData]) -> Result<(), String> {
        self.set_i64(at + array::N_CHILDREN, children.len());
        let first = self.children(at + array::CHILDREN, children.len(), array::SIZE);
        children.iter().enumerate().try_for_each(|(index, child)| self.array(first + index * array::SIZE, child))
    }

    fn buffers(&mut self, at: usize, buffers: Vec<Option<Buffer>>) {
        self.set_i64(at + array::N_BUFFERS, buffers.len());
        let pointers = self.reserve(4 * buffers.len());
        self.links.push((at + array::BUFFERS, Target::Head(pointers)));
        for (index, buffer) in buffers.into_iter().enumerate() {
            if let Some(buffer) = buffer {
                self.link_buffer(pointers + 4 * index, buffer);
            }
        }
    }
}

/// The offsets of a slice so that they begin at 0, and which part of the values they mean.
fn rebased<O: OffsetSizeTrait>(data: &ArrayData) -> Result<(Buffer, usize, usize), String> {
    // Arrow lets an array without rows have no offsets.
    if data.is_empty() {
        return Ok((Buffer::from_vec(vec![O::default()]), 0, 0));
    }
    let offsets: ScalarBuffer<O> = ScalarBuffer::new(data.buffers()[0].clone(), data.offset(), data.len() + 1);
    let (first, last) = (offsets[0], offsets[data.len()]);
    let buffer = match first.as_usize() {
        0 => offsets.into_inner(),
        _ => Buffer::from_vec(offsets.iter().map(|offset| *offset - first).collect()),
    };
    Ok((buffer, first.as_usize(), last.as_usize()))
}
