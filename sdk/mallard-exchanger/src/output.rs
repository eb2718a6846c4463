//! Columns of the output. What is made here lives until the next call, and the host copies it before.

use std::{ptr, rc::Rc};

use crate::{
    abi::ArrowArray,
    input::{Batch, Input, Native},
};

/// The columns that a call answers, in the order of the output's schema. Without columns there are no rows.
#[derive(Default)]
pub struct Output {
    columns: Vec<Column>,
    pointers: Vec<*const ArrowArray>,
    no_nulls: Vec<*const u8>,
}

impl Output {
    /// Adds a column: a vector of values or of options, [`Strings`], a column of the input, some of its rows.
    pub fn push(&mut self, column: impl Into<Column>) {
        self.columns.push(column.into());
    }

    /// Adds all columns of the input as they are.
    pub fn pass(&mut self, input: &Batch) {
        for index in 0..input.schema().fields.len() {
            self.push(input.column(index));
        }
    }

    /// Adds these rows of all columns of the input.
    pub fn pass_rows(&mut self, input: &Batch, rows: &Rows) {
        for index in 0..input.schema().fields.len() {
            self.push(rows.of(input.column(index)));
        }
    }

    pub(crate) fn root(&mut self, columns: usize) -> Result<Option<ArrowArray>, String> {
        let rows = match self.columns.first() {
            Some(first) => first.rows(),
            None => return Ok(None),
        };
        if self.columns.len() != columns {
            return Err(format!("{} columns were answered, and the schema has {}", self.columns.len(), columns));
        }
        if let Some(other) = self.columns.iter().find(|column| column.rows() != rows) {
            return Err(format!("columns of {} and of {} rows were answered", rows, other.rows()));
        }
        self.pointers = self.columns.iter().map(Column::address).collect();
        self.no_nulls = vec![ptr::null()];
        Ok(Some(ArrowArray {
            n_buffers: 1,
            buffers: self.no_nulls.as_ptr(),
            n_children: columns as i64,
            children: self.pointers.as_ptr(),
            ..ArrowArray::empty(rows)
        }))
    }
}

impl Default for Column {
    fn default() -> Self {
        Column::made(0, Vec::new(), Vec::new())
    }
}

/// One column of the output.
pub struct Column(Kind);

enum Kind {
    /// The host's own.
    Given(*const ArrowArray, usize),
    Made(Box<Made>),
}

struct Made {
    array: ArrowArray,
    buffers: Vec<Buffer>,
    pointers: Vec<*const u8>,
    _children: Vec<Column>,
    _child_pointers: Vec<*const ArrowArray>,
}

impl Made {
    fn set_validity(&mut self, valid: &[bool]) {
        let mut validity = bits(valid.iter().copied());
        if let Some(Buffer::Bytes(before)) = self.buffers.first() {
            validity.iter_mut().zip(before).for_each(|(new, old)| *new &= old);
        }
        self.buffers[0] = Buffer::Bytes(validity);
        self.pointers[0] = self.buffers[0].address();
        self.array.buffers = self.pointers.as_ptr();
    }
}

enum Buffer {
    None,
    Bytes(Vec<u8>),
    Values(Box<dyn Values>),
    Rows(Rc<Vec<u32>>),
}

/// Keeps a vector, whatever it is of.
trait Values {
    fn address(&self) -> *const u8;
}

impl<T> Values for Vec<T> {
    fn address(&self) -> *const u8 {
        self.as_ptr() as *const u8
    }
}

impl Buffer {
    fn address(&self) -> *const u8 {
        match self {
            Buffer::None => ptr::null(),
            Buffer::Bytes(bytes) => bytes.as_ptr(),
            Buffer::Values(values) => values.address(),
            Buffer::Rows(rows) => rows.as_ptr() as *const u8,
        }
    }
}

impl Column {
    /// A BOOLEAN that is the same in every row.
    pub fn repeated(value: bool, rows: usize) -> Self {
        let bits = vec![if value { 0xff } else { 0 }; (rows + 7) / 8];
        Column::made(rows, vec![Buffer::None, Buffer::Bytes(bits)], Vec::new())
    }

    /// Lists of these items: row `i` has those from `offsets[i]` to `offsets[i + 1]`. No list is NULL: [`Lists`] knows which
    /// are, and so does [`Self::with_validity`].
    pub fn lists(offsets: Vec<i32>, items: impl Into<Column>) -> Self {
        let rows = offsets.len().saturating_sub(1);
        Column::made(rows, vec![Buffer::None, Buffer::Values(Box::new(offsets))], vec![items.into()])
    }

    /// The same for the type `"+L"`.
    pub fn large_lists(offsets: Vec<i64>, items: impl Into<Column>) -> Self {
        let rows = offsets.len().saturating_sub(1);
        Column::made(rows, vec![Buffer::None, Buffer::Values(Box::new(offsets))], vec![items.into()])
    }

    /// Lists of `size` items each, for the type `"+w:size"`. A list that is NULL has as many items, too.
    pub fn fixed_size_lists(size: usize, items: impl Into<Column>) -> Self {
        let items = items.into();
        let rows = if size == 0 { 0 } else { items.rows() / size };
        Column::made(rows, vec![Buffer::None], vec![items])
    }

    /// Structs of these parts. No struct is NULL, unless [`Self::with_validity`] says so.
    pub fn structs(parts: Vec<Column>) -> Self {
        let rows = parts.first().map_or(0, Column::rows);
        Column::made(rows, vec![Buffer::None], parts)
    }

    /// NULL where `valid` is false, whatever the column is of; what was NULL before stays so.
    ///
    /// Panics where `valid` has another number of rows, and for a column of the input as it is, which is the host's:
    /// [`Rows::of`] makes one of it that can have NULLs.
    pub fn with_validity(mut self, valid: &[bool]) -> Self {
        assert!(valid.len() == self.rows(), "{} rows have a validity of {}", self.rows(), valid.len());
        match &mut self.0 {
            Kind::Made(made) => made.set_validity(valid),
            Kind::Given(..) => panic!("a column of the input is passed on as it is"),
        }
        self
    }

    pub fn rows(&self) -> usize {
        match &self.0 {
            Kind::Given(_, rows) => *rows,
            Kind::Made(made) => made.array.length as usize,
        }
    }

    fn made(rows: usize, buffers: Vec<Buffer>, children: Vec<Column>) -> Self {
        let pointers: Vec<_> = buffers.iter().map(Buffer::address).collect();
        let child_pointers: Vec<_> = children.iter().map(Column::address).collect();
        let array = ArrowArray {
            n_buffers: pointers.len() as i64,
            buffers: pointers.as_ptr(),
            n_children: child_pointers.len() as i64,
            children: child_pointers.as_ptr(),
            ..ArrowArray::empty(rows)
        };
        let made = Made { array, buffers, pointers, _children: children, _child_pointers: child_pointers };
        Column(Kind::Made(Box::new(made)))
    }

    fn address(&self) -> *const ArrowArray {
        match &self.0 {
            Kind::Given(address, _) => *address,
            Kind::Made(made) => &made.array,
        }
    }
}

/// Numbers of rows of the input, in any order and as often as wanted; columns may share them.
#[derive(Clone, Default)]
pub struct Rows(Rc<Vec<u32>>);

impl Rows {
    pub fn new(rows: Vec<u32>) -> Self {
        Rows(Rc::new(rows))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These rows of a column, which need not be read: the host has them.
    pub fn of(&self, column: Input) -> Column {
        let mut rows = Column::made(self.0.len(), vec![Buffer::None, Buffer::Rows(self.0.clone())], Vec::new());
        if let Kind::Made(made) = &mut rows.0 {
            made.array.dictionary = column.array;
        }
        rows
    }
}

impl From<Input<'_>> for Column {
    fn from(input: Input<'_>) -> Self {
        Column(Kind::Given(input.array, input.rows()))
    }
}

impl<T: Native> From<Vec<T>> for Column {
    fn from(values: Vec<T>) -> Self {
        Column::made(values.len(), vec![Buffer::None, Buffer::Values(Box::new(values))], Vec::new())
    }
}

impl<T: Native + Default> From<Vec<Option<T>>> for Column {
    fn from(values: Vec<Option<T>>) -> Self {
        let validity = bits(values.iter().map(Option::is_some));
        let known: Vec<T> = values.iter().map(|value| value.unwrap_or_default()).collect();
        Column::made(known.len(), vec![Buffer::Bytes(validity), Buffer::Values(Box::new(known))], Vec::new())
    }
}

impl From<Vec<bool>> for Column {
    fn from(values: Vec<bool>) -> Self {
        let set = bits(values.iter().copied());
        Column::made(values.len(), vec![Buffer::None, Buffer::Bytes(set)], Vec::new())
    }
}

impl From<Vec<Option<bool>>> for Column {
    fn from(values: Vec<Option<bool>>) -> Self {
        let validity = bits(values.iter().map(Option::is_some));
        let set = bits(values.iter().map(|value| *value == Some(true)));
        Column::made(values.len(), vec![Buffer::Bytes(validity), Buffer::Bytes(set)], Vec::new())
    }
}

fn bits(values: impl ExactSizeIterator<Item = bool>) -> Vec<u8> {
    let mut bytes = vec![0; (values.len() + 7) / 8];
    for (row, value) in values.enumerate() {
        bytes[row / 8] |= (value as u8) << (row % 8);
    }
    bytes
}

/// Lists, one after the other, of items that are kept elsewhere.
///
/// ```
/// use mallard_exchanger::{Column, Lists};
///
/// let mut lists = Lists::new();
/// lists.push(2); // [7, 8]
/// lists.push(0); // []
/// lists.push_null(); // NULL
/// let column: Column = lists.of(vec![7_i32, 8]);
/// assert_eq!(column.rows(), 3);
/// ```
pub struct Lists {
    offsets: Vec<i32>,
    known: Vec<bool>,
}

impl Lists {
    pub fn new() -> Self {
        Lists { offsets: vec![0], known: Vec::new() }
    }

    /// A list of the next so many items.
    pub fn push(&mut self, items: usize) {
        let end = self.offsets.last().map_or(0, |last| *last) + items as i32;
        self.offsets.push(end);
        self.known.push(true);
    }

    /// NULL, which is not a list of nothing.
    pub fn push_null(&mut self) {
        self.push(0);
        if let Some(last) = self.known.last_mut() {
            *last = false;
        }
    }

    pub fn rows(&self) -> usize {
        self.known.len()
    }

    /// The lists, of these items.
    pub fn of(self, items: impl Into<Column>) -> Column {
        let lists = Column::lists(self.offsets, items);
        if self.known.contains(&false) {
            lists.with_validity(&self.known)
        } else {
            lists
        }
    }
}

impl Default for Lists {
    fn default() -> Self {
        Lists::new()
    }
}

/// Texts or binaries, one after the other.
pub struct Strings {
    offsets: Vec<i32>,
    bytes: Vec<u8>,
    known: Vec<bool>,
}

impl Strings {
    pub fn new() -> Self {
        Strings { offsets: vec![0], bytes: Vec::new(), known: Vec::new() }
    }

    pub fn push(&mut self, text: &str) {
        self.push_bytes(text.as_bytes());
    }

    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.end(true);
    }

    pub fn push_null(&mut self) {
        self.end(false);
    }

    fn end(&mut self, known: bool) {
        self.offsets.push(self.bytes.len() as i32);
        self.known.push(known);
    }
}

impl Default for Strings {
    fn default() -> Self {
        Strings::new()
    }
}

impl From<Strings> for Column {
    fn from(strings: Strings) -> Self {
        let validity = if strings.known.contains(&false) {
            Buffer::Bytes(bits(strings.known.iter().copied()))
        } else {
            Buffer::None
        };
        let buffers = vec![validity, Buffer::Values(Box::new(strings.offsets)), Buffer::Bytes(strings.bytes)];
        Column::made(strings.known.len(), buffers, Vec::new())
    }
}
