//! Schemas on their way out of a module's memory, where nothing is trusted: every address, count and text is checked, and
//! what all of it comes to is bounded.

use std::{collections::HashMap, sync::Arc};

use arrow_array::types::{
    Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, validate_decimal_precision_and_scale,
};
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, ffi::FFI_ArrowSchema};

use super::{
    abi::{Memory, position, schema},
    give::{Placed, is_supported},
};

/// Columns, nested ones too, of an output.
const MAX_FIELDS: usize = 4096;
const MAX_DEPTH: usize = 16;
/// Bytes of all names, formats and metadata of an output schema together.
const MAX_TEXT: usize = 1024 * 1024;

/// Reads an output schema. Where a column of it is the structure of an input column, it is that column as the host has it.
pub(super) fn schema(memory: Memory<'_>, at: u32, input: &Schema, placed: Placed) -> Result<SchemaRef, String> {
    let mut reader = Fieldwise { memory, input, placed, fields: MAX_FIELDS, text: MAX_TEXT };
    let root = reader.field(at, 0)?;
    let DataType::Struct(fields) = root.data_type() else {
        return Err("the format of the output schema is not \"+s\", a struct of the columns".into());
    };
    // What no module can give by its bytes may still come back as it is.
    let comes = |field: &Field| input.fields().iter().any(|given| given.data_type() == field.data_type());
    if let Some(field) = fields.iter().find(|field| !is_supported(field.data_type()) && !comes(field)) {
        return Err(format!("column \"{}\": a module cannot make {}", field.name(), field.data_type()));
    }
    Ok(Arc::new(Schema::new_with_metadata(fields.clone(), root.metadata().clone())))
}

fn too_long() -> String {
    format!("texts of more than {MAX_TEXT} bytes")
}

/// What is left to read.
struct Fieldwise<'a> {
    memory: Memory<'a>,
    input: &'a Schema,
    placed: Placed,
    fields: usize,
    text: usize,
}

impl Fieldwise<'_> {
    fn field(&mut self, at: u32, depth: usize) -> Result<Field, String> {
        self.fields = self.fields.checked_sub(1).ok_or_else(|| format!("it has more than {MAX_FIELDS} columns"))?;
        if depth > MAX_DEPTH {
            return Err(format!("its columns are nested more than {MAX_DEPTH} deep"));
        }
        let given = position(at, self.placed.columns, schema::SIZE, self.input.fields().len());
        if let Some(index) = given {
            return Ok(self.input.field(index).clone());
        }
        let memory = self.memory;
        let format = self.text(memory.u32(at, schema::FORMAT)?)?;
        let name = self.text(memory.u32(at, schema::NAME)?)?;
        let flags = memory.i64(at, schema::FLAGS)?;
        let named = |why: String| format!("column \"{name}\": {why}");
        let n_children = memory.i64(at, schema::N_CHILDREN)?;
        let count = usize::try_from(n_children).ok().filter(|count| *count <= self.fields);
        let count = count.ok_or_else(|| named(format!("{n_children} children; there may be {}", self.fields)))?;
        let pointers = memory.u32(at, schema::CHILDREN)?;
        let children = (0..count).map(|child| self.field(memory.u32(pointers, 4 * child)?, depth + 1));
        let children: Vec<Field> = children.collect::<Result<_, _>>()?;
        let mut data_type = data_type(&format, children, flags).map_err(named)?;
        let dictionary = memory.u32(at, schema::DICTIONARY)?;
        if dictionary != 0 {
            if !data_type.is_dictionary_key_type() {
                return Err(named(format!("a dictionary's keys are integers, not {data_type}")));
            }
            let values = self.field(dictionary, depth + 1)?;
            data_type = DataType::Dictionary(Box::new(data_type), Box::new(values.data_type().clone()));
        }
        let metadata = self.metadata(memory.u32(at, schema::METADATA)?).map_err(named)?;
        let ordered = flags & schema::DICTIONARY_ORDERED != 0;
        let field = Field::new(name, data_type, flags & schema::NULLABLE != 0).with_metadata(metadata);
        Ok(field.with_dict_is_ordered(ordered))
    }

    fn text(&mut self, at: u32) -> Result<String, String> {
        if at == 0 {
            return Ok(String::new());
        }
        let text = self.memory.text(at, self.text)?;
        self.text -= text.len();
        Ok(text.to_string())
    }

    fn metadata(&mut self, at: u32) -> Result<HashMap<String, String>, String> {
        if at == 0 {
            return Ok(HashMap::new());
        }
        let mut position = at;
        let count = self.length(&mut position)?;
        // Each has two lengths at least.
        if count > self.text / 8 {
            return Err(too_long());
        }
        let mut metadata = HashMap::new();
        for _ in 0..count {
            let key = self.entry(&mut position)?;
            let value = self.entry(&mut position)?;
            metadata.insert(key, value);
        }
        Ok(metadata)
    }

    fn length(&mut self, position: &mut u32) -> Result<usize, String> {
        self.text = self.text.checked_sub(4).ok_or_else(too_long)?;
        let length = self.memory.u32(*position, 0)?;
        *position = position.checked_add(4).ok_or("metadata beyond 4 GiB")?;
        Ok(length as usize)
    }

    fn entry(&mut self, position: &mut u32) -> Result<String, String> {
        let length = self.length(position)?;
        self.text = self.text.checked_sub(length).ok_or_else(too_long)?;
        let bytes = self.memory.bytes(*position, length)?;
        *position = position.checked_add(length as u32).ok_or("metadata beyond 4 GiB")?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "its metadata is not UTF-8".to_string())
    }
}

/// The type that a format of the C Data Interface names.
fn data_type(format: &str, mut children: Vec<Field>, flags: i64) -> Result<DataType, String> {
    let count = children.len();
    let only = |children: &mut Vec<Field>| Arc::new(children.remove(0));
    let data_type = match (format, count) {
        ("+s", _) => DataType::Struct(Fields::from(children)),
        ("+l", 1) => DataType::List(only(&mut children)),
        ("+L", 1) => DataType::LargeList(only(&mut children)),
        ("+m", 1) => {
            let entries = only(&mut children);
            match entries.data_type() {
                DataType::Struct(pair) if pair.len() == 2 => {}
                other => return Err(format!("a map's child is a struct of key and value, not {other}")),
            }
            DataType::Map(entries, flags & schema::MAP_KEYS_SORTED != 0)
        }
        (fixed, 1) if fixed.starts_with("+w:") => {
            let size = fixed[3..].parse().ok().filter(|size| *size >= 0);
            let size = size.ok_or_else(|| format!("the format \"{fixed}\" has no size"))?;
            DataType::FixedSizeList(only(&mut children), size)
        }
        (leaf, 0) if !leaf.starts_with('+') => {
            let described = FFI_ArrowSchema::try_new(leaf, Vec::new(), None);
            described.and_then(|described| DataType::try_from(&described)).map_err(|error| error.to_string())?
        }
        (other, count) => return Err(format!("the format \"{other}\" with {count} children is not supported")),
    };
    let valid = match data_type {
        DataType::Decimal32(p, s) => validate_decimal_precision_and_scale::<Decimal32Type>(p, s),
        DataType::Decimal64(p, s) => validate_decimal_precision_and_scale::<Decimal64Type>(p, s),
        DataType::Decimal128(p, s) => validate_decimal_precision_and_scale::<Decimal128Type>(p, s),
        DataType::Decimal256(p, s) => validate_decimal_precision_and_scale::<Decimal256Type>(p, s),
        DataType::FixedSizeBinary(size) if size < 0 => return Err(format!("a binary of the size {size}")),
        _ => Ok(()),
    };
    valid.map(|()| data_type).map_err(|error| error.to_string())
}
