//! The form in which results leave: what every client reads, or DuckDB's types without loss.
//!
//! DuckDB converts to Arrow without loss, with Arrow's extension types. BOOLEAN becomes the 8-bit `arrow.bool8` on the
//! way, and leaves as plain bits in both forms, because nothing is lost. In the plain form, for clients that know no
//! extension types, HUGEINT and UHUGEINT leave as decimals, ENUM as its texts, and UUID, BIT, BIGNUM and TIME WITH TIME
//! ZONE as DuckDB writes them. DuckDB has a setting for something like it, which is the whole database's, turns
//! UHUGEINT above 2^127 into negative numbers and forgets the zones of times. UNION, which pandas and polars do not take,
//! leaves as a struct of its members, of which one is not NULL.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Decimal128Array, FixedSizeBinaryArray, Int8Array, RecordBatch,
    StringArray, StructArray, UnionArray, cast::AsArray, make_array,
};
use arrow_buffer::{BooleanBuffer, NullBuffer};
use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, UnionMode};
use futures::StreamExt;

use super::variant;
use crate::{
    error::{Error, Result},
    stream::RecordBatchStream,
};

const EXTENSION_NAME: &str = "ARROW:extension:name";
const EXTENSION_METADATA: &str = "ARROW:extension:metadata";

/// The largest precision of a 128-bit decimal.
const DIGITS: u8 = 38;

/// What a result is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Clients that know extension types.
    Lossless,
    /// Clients that know none.
    Plain,
    /// A Parquet file, in which DuckDB makes a DOUBLE of HUGEINT and UHUGEINT and tells nobody. Its other types are whole there.
    Parquet,
}

impl Form {
    pub(super) fn of(plain: bool) -> Self {
        if plain { Self::Plain } else { Self::Lossless }
    }
}

/// A type that leaves in another form.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Special {
    Bool8,
    Hugeint,
    Uhugeint,
    Uuid,
    Bit,
    Bignum,
    TimeTz,
    Enum,
    /// Text, but for its name.
    Json,
    Variant,
}

impl Special {
    /// What a field of DuckDB's is, apart from what is inside of it.
    fn of(field: &Field, form: Form) -> Option<Self> {
        if form == Form::Parquet {
            return Self::of(field, Form::Plain).filter(|special| matches!(special, Self::Hugeint | Self::Uhugeint));
        }
        let name = field.metadata().get(EXTENSION_NAME).map(|name| name.to_string());
        if name.as_deref() == Some("arrow.bool8") {
            return Some(Self::Bool8);
        }
        if form != Form::Plain {
            return None;
        }
        match (name.as_deref(), field.data_type()) {
            (Some("arrow.uuid"), DataType::FixedSizeBinary(16)) => Some(Self::Uuid),
            (Some("arrow.json"), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => Some(Self::Json),
            (Some("arrow.parquet.variant"), DataType::Struct(parts)) if variant::is_readable(parts) => {
                Some(Self::Variant)
            }
            (Some("arrow.opaque"), storage) => {
                let told = field.metadata().get(EXTENSION_METADATA)?;
                let told: serde_json::Value = serde_json::from_str(told).ok()?;
                match (told.get("type_name")?.as_str()?, storage) {
                    ("hugeint", DataType::FixedSizeBinary(16)) => Some(Self::Hugeint),
                    ("uhugeint", DataType::FixedSizeBinary(16)) => Some(Self::Uhugeint),
                    ("bit", DataType::Binary) => Some(Self::Bit),
                    ("bignum", DataType::Binary) => Some(Self::Bignum),
                    ("time_tz", DataType::FixedSizeBinary(8)) => Some(Self::TimeTz),
                    _ => None,
                }
            }
            (None, DataType::Dictionary(_, values)) if **values == DataType::Utf8 => Some(Self::Enum),
            _ => None,
        }
    }

    fn data_type(self, from: &DataType) -> DataType {
        match self {
            Self::Bool8 => DataType::Boolean,
            Self::Hugeint | Self::Uhugeint => DataType::Decimal128(DIGITS, 0),
            Self::Json => from.clone(),
            Self::Uuid | Self::Bit | Self::Bignum | Self::TimeTz | Self::Enum | Self::Variant => DataType::Utf8,
        }
    }

    fn array(self, array: ArrayRef) -> Result<ArrayRef> {
        let of = "DuckDB stores the type as its field says";
        Ok(match self {
            Self::Bool8 => {
                let bytes: &Int8Array = array.as_any().downcast_ref().expect(of);
                Arc::new(BooleanArray::from_unary(bytes, |byte| byte != 0))
            }
            Self::Hugeint => decimals(array.as_any().downcast_ref().expect(of), i128::from_le_bytes)?,
            // Too large for a signed number is too large for the decimal, too.
            Self::Uhugeint => decimals(array.as_any().downcast_ref().expect(of), |bytes| {
                i128::try_from(u128::from_le_bytes(bytes)).unwrap_or(i128::MAX)
            })?,
            Self::Uuid => texts(array.as_fixed_size_binary(), uuid),
            Self::TimeTz => texts(array.as_fixed_size_binary(), time_tz),
            Self::Bit => binary_texts(array.as_binary(), bits),
            Self::Bignum => binary_texts(array.as_binary(), bignum),
            Self::Enum => arrow_cast::cast(&array, &DataType::Utf8).map_err(Error::internal)?,
            Self::Json => array,
            Self::Variant => variant::texts(array.as_struct())?,
        })
    }
}

/// The name of an extension type: DuckDB's own of an opaque one.
pub(super) fn opaque(field: &Field) -> Option<String> {
    let name = field.metadata().get(EXTENSION_NAME)?;
    if name != "arrow.opaque" {
        // JSON is a text.
        return Some(name.clone()).filter(|name| name != "arrow.json");
    }
    let told: serde_json::Value = serde_json::from_str(field.metadata().get(EXTENSION_METADATA)?).ok()?;
    Some(told.get("type_name")?.as_str()?.to_string())
}

pub(super) fn changes(field: &Field, form: Form) -> bool {
    Special::of(field, form).is_some()
        || is_opened(field.data_type(), form)
        || children(field.data_type()).iter().any(|child| changes(child, form))
}

/// Whether it is a union that leaves as a struct.
fn is_opened(data_type: &DataType, form: Form) -> bool {
    form == Form::Plain && matches!(data_type, DataType::Union(_, UnionMode::Sparse))
}

/// The field as it leaves.
pub(super) fn field(from: &FieldRef, form: Form) -> FieldRef {
    if !changes(from, form) {
        return from.clone();
    }
    let to = from.as_ref().clone();
    if let Some(special) = Special::of(from, form) {
        let mut metadata = from.metadata().clone();
        metadata.retain(|key, _| !key.starts_with("ARROW:extension:"));
        return Arc::new(to.with_data_type(special.data_type(from.data_type())).with_metadata(metadata));
    }
    let of = |child: &FieldRef| field(child, form);
    let data_type = match from.data_type() {
        DataType::List(child) => DataType::List(of(child)),
        DataType::LargeList(child) => DataType::LargeList(of(child)),
        DataType::ListView(child) => DataType::ListView(of(child)),
        DataType::LargeListView(child) => DataType::LargeListView(of(child)),
        DataType::FixedSizeList(child, size) => DataType::FixedSizeList(of(child), *size),
        DataType::Map(child, sorted) => DataType::Map(of(child), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(of).collect()),
        DataType::Union(fields, _) if is_opened(from.data_type(), form) => {
            let members = fields.iter().map(|(_, child)| of(child).as_ref().clone().with_nullable(true));
            return Arc::new(to.with_data_type(DataType::Struct(members.collect())).with_nullable(true));
        }
        DataType::Union(fields, mode) => {
            DataType::Union(fields.iter().map(|(id, child)| (id, of(child))).collect(), *mode)
        }
        other => other.clone(),
    };
    Arc::new(to.with_data_type(data_type))
}

/// The column as it leaves; `from` is the field that DuckDB gave it.
pub(super) fn array(from: &FieldRef, column: ArrayRef, form: Form) -> Result<ArrayRef> {
    part(from, column, form).map_err(|error| match error {
        Error::Sql(what) => Error::Sql(format!("column \"{}\": {what}", from.name())),
        other => other,
    })
}

/// The same of a column's part.
fn part(from: &FieldRef, column: ArrayRef, form: Form) -> Result<ArrayRef> {
    if !changes(from, form) {
        return Ok(column);
    }
    if let Some(special) = Special::of(from, form) {
        return special.array(column);
    }
    if let (Some(union), true) = (column.as_union_opt(), is_opened(from.data_type(), form)) {
        return members(from, union, form);
    }
    let data = column.to_data();
    let mut parts = Vec::new();
    for (child, inner) in children(from.data_type()).iter().zip(data.child_data()) {
        parts.push(part(child, make_array(inner.clone()), form)?.to_data());
    }
    let builder = data.into_builder().data_type(field(from, form).data_type().clone()).child_data(parts);
    // SAFETY: children became arrays of the same length and nulls, of the types that `field` names; offsets and lengths
    // are as DuckDB made them.
    Ok(make_array(unsafe { builder.build_unchecked() }))
}

/// A union as a struct: in each row the member that it holds has its value, and the others are NULL.
fn members(from: &FieldRef, union: &UnionArray, form: Form) -> Result<ArrayRef> {
    let (DataType::Union(fields, _), DataType::Struct(to)) = (from.data_type(), field(from, form).data_type().clone())
    else {
        return Err(Error::internal("a union is none"));
    };
    let (ids, mut held, mut columns) = (union.type_ids(), vec![false; union.len()], Vec::new());
    for (id, child) in fields.iter() {
        let member = part(child, union.child(id).clone(), form)?;
        let nulls = member.logical_nulls();
        let is_held = |row: usize| ids[row] == id && nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
        let valid = BooleanBuffer::collect_bool(union.len(), is_held);
        valid.set_indices().for_each(|row| held[row] = true);
        columns.push(match member.data_type() {
            DataType::Null => member,
            _ => {
                let builder = member.to_data().into_builder().nulls(Some(NullBuffer::new(valid)));
                // SAFETY: only rows became NULL, which any of the member's buffers allow.
                make_array(unsafe { builder.build_unchecked() })
            }
        });
    }
    let nulls = NullBuffer::from(held);
    StructArray::try_new_with_length(to, columns, Some(nulls), union.len())
        .map(|array| Arc::new(array) as ArrayRef)
        .map_err(Error::internal)
}

/// The stream as it is written into a Parquet file.
pub(super) fn for_parquet(input: RecordBatchStream) -> Result<RecordBatchStream> {
    let from = input.schema();
    if let Some(field) = from.fields().iter().find(|field| hides_hugeint(field)) {
        return Err(Error::Unsupported(format!(
            "column \"{}\": a HUGEINT in {} cannot be written to a Parquet file; cast it to VARCHAR",
            field.name(),
            field.data_type()
        )));
    }
    Ok(formed(input, Form::Parquet))
}

/// The stream for clients that read no extension types.
pub fn plain_types(input: RecordBatchStream) -> RecordBatchStream {
    formed(input, Form::Plain)
}

fn formed(input: RecordBatchStream, form: Form) -> RecordBatchStream {
    let from = input.schema();
    if !from.fields().iter().any(|field| changes(field, form)) {
        return input;
    }
    let fields: Fields = from.fields().iter().map(|from| field(from, form)).collect();
    let schema = Arc::new(Schema::new_with_metadata(fields, from.metadata().clone()));
    let to = schema.clone();
    let batches = input.map(move |batch| {
        let batch = batch?;
        let columns = from.fields().iter().zip(batch.columns());
        let columns = columns.map(|(from, column)| array(from, column.clone(), form)).collect::<Result<_>>()?;
        RecordBatch::try_new(to.clone(), columns).map_err(Error::internal)
    });
    RecordBatchStream::new(schema, batches)
}

/// Whether a HUGEINT is in a layout that [`array`] does not know.
fn hides_hugeint(field: &Field) -> bool {
    let is_hugeint = matches!(opaque(field).as_deref(), Some("hugeint" | "uhugeint"));
    let inside = match field.data_type() {
        DataType::RunEndEncoded(_, values) => opaque(values).is_some() || hides_hugeint(values),
        other => children(other).iter().any(|child| hides_hugeint(child)),
    };
    inside || (is_hugeint && *field.data_type() != DataType::FixedSizeBinary(16))
}

pub(super) fn children(data_type: &DataType) -> Vec<FieldRef> {
    match data_type {
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => vec![field.clone()],
        DataType::Struct(fields) => fields.iter().cloned().collect(),
        DataType::Union(fields, _) => fields.iter().map(|(_, field)| field.clone()).collect(),
        _ => Vec::new(),
    }
}

fn decimals(values: &FixedSizeBinaryArray, number: fn([u8; 16]) -> i128) -> Result<ArrayRef> {
    let largest = 10_i128.pow(u32::from(DIGITS)) - 1;
    let mut decimals = Vec::with_capacity(values.len());
    for value in values {
        let Some(bytes) = value else {
            decimals.push(None);
            continue;
        };
        let value = number(bytes.try_into().expect("16 bytes each"));
        if value.unsigned_abs() > largest.unsigned_abs() {
            return Err(Error::Sql(format!(
                "a number of more than {DIGITS} digits does not fit decimal128({DIGITS}, 0), as which it leaves plainly and into Parquet files: cast it to VARCHAR, or ask for lossless types (header x-mallard-types: lossless)"
            )));
        }
        decimals.push(Some(value));
    }
    let decimals = Decimal128Array::from(decimals).with_precision_and_scale(DIGITS, 0).map_err(Error::internal)?;
    Ok(Arc::new(decimals))
}

fn texts(values: &FixedSizeBinaryArray, text: fn(&[u8]) -> String) -> ArrayRef {
    Arc::new(values.iter().map(|value| value.map(text)).collect::<StringArray>())
}

fn binary_texts(values: &BinaryArray, text: fn(&[u8]) -> String) -> ArrayRef {
    Arc::new(values.iter().map(|value| value.map(text)).collect::<StringArray>())
}

pub(super) fn uuid(bytes: &[u8]) -> String {
    let hex = |part: &[u8]| part.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    [&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[8..10], &bytes[10..]].map(hex).join("-")
}

/// The first byte says how many bits of the second are padding.
fn bits(bytes: &[u8]) -> String {
    let Some((padding, bytes)) = bytes.split_first() else { return String::new() };
    let all = bytes.iter().map(|byte| format!("{byte:08b}")).collect::<String>();
    all.get(usize::from(*padding)..).unwrap_or_default().to_string()
}

/// Microseconds in the upper 40 bits, and in the lower 24 how far the zone's offset is below the largest one.
fn time_tz(bytes: &[u8]) -> String {
    const LARGEST_OFFSET: i64 = 16 * 3600 - 1;
    let stored = u64::from_le_bytes(bytes.try_into().expect("8 bytes each"));
    let (micros, offset) = (stored >> 24, LARGEST_OFFSET - (stored & 0xff_ffff) as i64);
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let mut text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction > 0 {
        text.push_str(format!(".{fraction:06}").trim_end_matches('0'));
    }
    let (sign, offset) = (if offset < 0 { '-' } else { '+' }, offset.abs());
    text.push_str(&format!("{sign}{:02}", offset / 3600));
    if offset % 3600 > 0 {
        text.push_str(&format!(":{:02}", offset / 60 % 60));
    }
    if offset % 60 > 0 {
        text.push_str(&format!(":{:02}", offset % 60));
    }
    text
}

/// Three bytes of a header, whose first bit is set in numbers that are not negative, then the number's bytes from the
/// most significant one; of a negative number all bits are inverted.
fn bignum(bytes: &[u8]) -> String {
    const GROUP: u64 = 1_000_000_000;
    let Some((header, digits)) = bytes.split_at_checked(3) else { return String::new() };
    let negative = header[0] & 0x80 == 0;
    // Groups of nine decimal digits, from the least significant one.
    let mut groups: Vec<u64> = vec![0];
    for byte in digits {
        let mut carry = u64::from(if negative { !byte } else { *byte });
        for group in &mut groups {
            let value = *group * 256 + carry;
            (*group, carry) = (value % GROUP, value / GROUP);
        }
        if carry > 0 {
            groups.push(carry);
        }
    }
    let (first, rest) = groups.split_last().expect("one group at least");
    let mut text = format!("{}{first}", if negative { "-" } else { "" });
    rest.iter().rev().for_each(|group| text.push_str(&format!("{group:09}")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_duckdb() {
        assert_eq!(bits(&[5, 0b1111_1101]), "101");
        assert_eq!(bits(&[0, 0b1010_1010, 1]), "1010101000000001");
        assert_eq!(bignum(&[0x80, 0, 1, 1]), "1");
        assert_eq!(bignum(&[0x7f, 0xff, 0xfe, !1]), "-1");
        assert_eq!(bignum(&[0x80, 0, 9, 1, 0, 0, 0, 0, 0, 0, 0, 0]), "18446744073709551616");
        assert_eq!(uuid(&[0x12; 16]), "12121212-1212-1212-1212-121212121212");
    }
}
