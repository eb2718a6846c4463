//! Columns of the input. Offsets of what the host gives are 0, which is part of the ABI and makes this short.

use std::{mem::size_of, ops::Range, slice, str};

use crate::{abi::ArrowArray, Field, Schema};

/// Some rows of the input.
pub struct Batch<'a> {
    schema: &'a Schema,
    array: &'a ArrowArray,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(schema: &'a Schema, array: &'a ArrowArray) -> Self {
        Batch { schema, array }
    }

    pub fn rows(&self) -> usize {
        self.array.length as usize
    }

    pub fn schema(&self) -> &'a Schema {
        self.schema
    }

    /// The column at this place. Panics where the input has no such place.
    pub fn column(&self, index: usize) -> Input<'a> {
        let field = &self.schema.fields[index];
        // SAFETY: the host gives as many columns as the schema has.
        Input { field, array: unsafe { &**self.array.children.add(index) } }
    }
}

/// A column of the input, or of a column.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    field: &'a Field,
    pub(crate) array: &'a ArrowArray,
}

impl<'a> Input<'a> {
    pub fn field(&self) -> &'a Field {
        self.field
    }

    pub fn rows(&self) -> usize {
        self.array.length as usize
    }

    pub fn is_null(&self, row: usize) -> bool {
        let validity = self.buffer(0);
        // SAFETY: the bitmap has a bit for every row.
        self.field.format == "n" || !validity.is_null() && !unsafe { bit(validity, row, self.rows()) }
    }

    /// The values of a column of numbers, dates, times or decimals; where [`Self::is_null`] they mean nothing.
    pub fn values<T: Native>(&self) -> Result<&'a [T], String> {
        if !T::fits(&self.field.format) {
            return Err(self.is_not(T::NAME));
        }
        let values = self.checked(1)? as *const T;
        // SAFETY: the host gives a value for every row, aligned to 64.
        Ok(unsafe { slice::from_raw_parts(values, self.rows()) })
    }

    /// The values of a BOOLEAN column.
    pub fn bools(&self) -> Result<Bools<'a>, String> {
        match self.field.format.as_str() {
            "b" => Ok(Bools { bits: self.checked(1)?, input: *self }),
            _ => Err(self.is_not("BOOLEAN")),
        }
    }

    /// The values of a text or binary column.
    pub fn texts(&self) -> Result<Texts<'a>, String> {
        let large = match self.field.format.as_str() {
            "u" | "z" => false,
            "U" | "Z" => true,
            _ => return Err(self.is_not("a text")),
        };
        Ok(Texts { offsets: self.checked(1)?, bytes: self.checked(2)?, large, input: *self })
    }

    /// A part of a struct, the items of a list, or the entries of a map. A part has values of its own where the struct is
    /// NULL, which mean nothing: [`Self::is_null`] of the struct says so.
    pub fn child(&self, index: usize) -> Option<Input<'a>> {
        let field = self.field.children.get(index)?;
        // SAFETY: the host gives as many children as the type has; a column that is not read has none.
        (self.array.n_children > index as i64).then(|| Input { field, array: unsafe { &**self.array.children.add(index) } })
    }

    /// Where the items of a row begin and end, in a list of any kind or in a map; `None` where the list is NULL.
    pub fn items(&self, row: usize) -> Result<Option<Range<usize>>, String> {
        assert!(row < self.rows(), "there is no row {}", row);
        let format = self.field.format.as_str();
        let size = format.strip_prefix("+w:").map(|size| size.parse::<usize>());
        let range = match (format, size) {
            ("+l" | "+m", _) => {
                let offsets = self.checked(1)? as *const i32;
                // SAFETY: there is one offset more than rows.
                unsafe { *offsets.add(row) as usize..*offsets.add(row + 1) as usize }
            }
            ("+L", _) => {
                let offsets = self.checked(1)? as *const i64;
                // SAFETY: there is one offset more than rows.
                unsafe { *offsets.add(row) as usize..*offsets.add(row + 1) as usize }
            }
            (_, Some(Ok(size))) => row * size..(row + 1) * size,
            _ => return Err(self.is_not("a list")),
        };
        Ok(Some(range).filter(|_| !self.is_null(row)))
    }

    fn buffer(&self, index: usize) -> *const u8 {
        if self.array.n_buffers <= index as i64 {
            return std::ptr::null();
        }
        // SAFETY: there are that many.
        unsafe { *self.array.buffers.add(index) }
    }

    fn checked(&self, index: usize) -> Result<*const u8, String> {
        let buffer = self.buffer(index);
        if buffer.is_null() {
            return Err(format!("column \"{}\" is not read: Exchanger::reads says so", self.field.name));
        }
        Ok(buffer)
    }

    fn is_not(&self, what: &str) -> String {
        format!("column \"{}\" is of the type \"{}\", not {}", self.field.name, self.field.format, what)
    }
}

unsafe fn bit(bits: *const u8, row: usize, rows: usize) -> bool {
    assert!(row < rows, "there is no row {}", row);
    *bits.add(row / 8) >> (row % 8) & 1 == 1
}

/// Booleans of a column.
#[derive(Clone, Copy)]
pub struct Bools<'a> {
    bits: *const u8,
    input: Input<'a>,
}

impl Bools<'_> {
    /// `None` where it is NULL.
    pub fn get(&self, row: usize) -> Option<bool> {
        // SAFETY: there is a bit for every row.
        let value = unsafe { bit(self.bits, row, self.input.rows()) };
        Some(value).filter(|_| !self.input.is_null(row))
    }
}

/// Texts or binaries of a column.
#[derive(Clone, Copy)]
pub struct Texts<'a> {
    offsets: *const u8,
    bytes: *const u8,
    large: bool,
    input: Input<'a>,
}

impl<'a> Texts<'a> {
    /// `None` where it is NULL.
    pub fn get(&self, row: usize) -> Option<&'a str> {
        // SAFETY: the host gives valid UTF-8 in text columns; binaries are for `bytes`.
        self.bytes(row).map(|bytes| unsafe { str::from_utf8_unchecked(bytes) })
    }

    /// `None` where it is NULL.
    pub fn bytes(&self, row: usize) -> Option<&'a [u8]> {
        assert!(row < self.input.rows(), "there is no row {}", row);
        if self.input.is_null(row) {
            return None;
        }
        // SAFETY: there is one offset more than rows, and they rise within the bytes.
        unsafe {
            let (start, end) = if self.large {
                let offsets = self.offsets as *const i64;
                (*offsets.add(row) as usize, *offsets.add(row + 1) as usize)
            } else {
                let offsets = self.offsets as *const i32;
                (*offsets.add(row) as usize, *offsets.add(row + 1) as usize)
            };
            Some(slice::from_raw_parts(self.bytes.add(start), end - start))
        }
    }
}

/// What the values of a column are in Rust.
pub trait Native: Copy + 'static {
    const NAME: &'static str;

    /// Whether columns of this type hold such values.
    fn fits(format: &str) -> bool;
}

macro_rules! native {
    ($($rust:ty: $name:literal, $fits:expr;)+) => {
        $(impl Native for $rust {
            const NAME: &'static str = $name;

            fn fits(format: &str) -> bool {
                debug_assert!(size_of::<$rust>() > 0);
                let fits: fn(&str) -> bool = $fits;
                fits(format)
            }
        })+
    };
}

native! {
    i8: "i8", |format| format == "c";
    u8: "u8", |format| format == "C";
    i16: "i16", |format| format == "s";
    u16: "u16", |format| format == "S";
    i32: "i32", |format| matches!(format, "i" | "tdD" | "tts" | "ttm" | "tiM");
    u32: "u32", |format| format == "I";
    i64: "i64", |format| matches!(format, "l" | "tdm" | "ttu" | "ttn") || format.starts_with("ts") || format.starts_with("tD");
    u64: "u64", |format| format == "L";
    f32: "f32", |format| format == "f";
    f64: "f64", |format| format == "g";
    i128: "i128", |format| format.starts_with("d:") && format.matches(',').count() == 1;
}
