//! A union whose member is null, and a union that is null: Arrow has no validity for unions, and DuckDB tells them apart.
//!
//! DuckDB's importer makes both NULL. Its cast from a struct of the tag and the members does not, so a column that holds unions
//! goes that way. As DuckDB writes it, a union that is NULL is one whose first member is null; so it is read back as NULL.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, StructArray, UInt8Array};
use arrow_buffer::ScalarBuffer;
use arrow_schema::{ArrowError, DataType, Field, FieldRef, Fields, IntervalUnit, TimeUnit};

use super::{
    super::{catalog::quote, plain::children},
    extension::Extension,
    range::without,
};

/// The struct's fields; DuckDB takes the first one for the tag, whatever its name.
pub(super) fn fields<'a>(members: impl Iterator<Item = &'a FieldRef>) -> Fields {
    let members: Vec<FieldRef> = members.cloned().collect();
    let mut name = String::from("tag");
    while members.iter().any(|member| member.name().eq_ignore_ascii_case(&name)) {
        name.push('_');
    }
    std::iter::once(Arc::new(Field::new(name, DataType::UInt8, true))).chain(members).collect()
}

/// No member but the one that the tag names has a value.
pub(super) fn tagged(type_ids: &ScalarBuffer<i8>, members: Vec<ArrayRef>) -> Result<ArrayRef, ArrowError> {
    let tags: UInt8Array = (0..type_ids.len())
        .map(|row| match type_ids[row] {
            0 if members[0].is_null(row) => None,
            place => Some(place as u8),
        })
        .collect();
    let nulls = tags.nulls().cloned();
    let mut columns: Vec<ArrayRef> = vec![Arc::new(tags)];
    for (place, member) in members.iter().enumerate() {
        let others = (0..member.len()).filter(|row| type_ids[*row] as usize != place && member.is_valid(*row));
        columns.push(if *member.data_type() == DataType::Null {
            member.clone()
        } else {
            without(member, &others.collect::<Vec<usize>>())
        });
    }
    let fields = columns.iter().map(|column| Field::new("", column.data_type().clone(), true)).collect();
    Ok(Arc::new(StructArray::try_new_with_length(fields, columns, nulls, type_ids.len())?))
}

/// How many unions lie in one another.
pub(super) fn depth(data_type: &DataType) -> usize {
    let inside = children(data_type).iter().map(|child| depth(child.data_type())).max().unwrap_or_default();
    inside + usize::from(matches!(data_type, DataType::Union(..)))
}

/// DuckDB's name for the type that its importer makes of a field; nothing where that is not certain. Unions of a greater
/// depth than `structs` are structs of their tag and their members.
pub(super) fn duckdb_type(field: &Field, structs: usize) -> Option<String> {
    let extension = Extension::of(field).ok()?;
    let named = |fields: &mut dyn Iterator<Item = &FieldRef>| {
        let parts = fields.map(|part| Some(format!("{} {}", quote(part.name()), duckdb_type(part, structs)?)));
        Some(parts.collect::<Option<Vec<String>>>()?.join(", "))
    };
    Some(match (extension, field.data_type()) {
        (Some(Extension::Uuid), _) => "UUID".into(),
        (Some(Extension::Json), _) => "JSON".into(),
        (Some(Extension::Hugeint), _) => "HUGEINT".into(),
        (Some(Extension::Uhugeint), _) => "UHUGEINT".into(),
        (Some(Extension::TimeTz), _) => "TIME WITH TIME ZONE".into(),
        (Some(Extension::Bit), _) => "BIT".into(),
        (Some(Extension::Bignum), _) => "BIGNUM".into(),
        (Some(Extension::Variant), _) => "VARIANT".into(),
        (Some(Extension::Geometry(told)), _) if matches!(told.as_str(), "" | "{}") => "GEOMETRY".into(),
        (Some(Extension::Bool8 | Extension::Geometry(_)), _) => return None,
        (None, data_type) => match data_type {
            DataType::Boolean => "BOOLEAN".into(),
            DataType::Int8 => "TINYINT".into(),
            DataType::Int16 => "SMALLINT".into(),
            DataType::Int32 => "INTEGER".into(),
            DataType::Int64 => "BIGINT".into(),
            DataType::UInt8 => "UTINYINT".into(),
            DataType::UInt16 => "USMALLINT".into(),
            DataType::UInt32 => "UINTEGER".into(),
            DataType::UInt64 => "UBIGINT".into(),
            DataType::Float32 => "FLOAT".into(),
            DataType::Float64 => "DOUBLE".into(),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "VARCHAR".into(),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                "BLOB".into()
            }
            DataType::Date32 => "DATE".into(),
            DataType::Time32(_) | DataType::Time64(TimeUnit::Microsecond) => "TIME".into(),
            DataType::Time64(_) => "TIME_NS".into(),
            DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => "TIMESTAMP WITH TIME ZONE".into(),
            DataType::Timestamp(TimeUnit::Nanosecond, Some(_)) => "TIMESTAMPTZ_NS".into(),
            DataType::Timestamp(TimeUnit::Second, None) => "TIMESTAMP_S".into(),
            DataType::Timestamp(TimeUnit::Millisecond, None) => "TIMESTAMP_MS".into(),
            DataType::Timestamp(TimeUnit::Microsecond, None) => "TIMESTAMP".into(),
            DataType::Timestamp(TimeUnit::Nanosecond, None) => "TIMESTAMP_NS".into(),
            DataType::Duration(_) | DataType::Interval(IntervalUnit::YearMonth | IntervalUnit::MonthDayNano) => {
                "INTERVAL".into()
            }
            DataType::Decimal32(width, scale)
            | DataType::Decimal64(width, scale)
            | DataType::Decimal128(width, scale) => {
                format!("DECIMAL({width}, {scale})")
            }
            DataType::List(item) | DataType::LargeList(item) => format!("{}[]", duckdb_type(item, structs)?),
            DataType::FixedSizeList(item, size) => format!("{}[{size}]", duckdb_type(item, structs)?),
            DataType::Struct(fields) if !fields.is_empty() => format!("STRUCT({})", named(&mut fields.iter())?),
            DataType::Map(entries, _) => {
                let DataType::Struct(parts) = entries.data_type() else { return None };
                format!("MAP({}, {})", duckdb_type(&parts[0], structs)?, duckdb_type(&parts[1], structs)?)
            }
            DataType::Union(members, _) if depth(field.data_type()) > structs => {
                let fields = fields(members.iter().map(|(_, member)| member));
                format!("STRUCT({})", named(&mut fields.iter())?)
            }
            DataType::Union(members, _) => format!("UNION({})", named(&mut members.iter().map(|(_, member)| member))?),
            _ => return None,
        },
    })
}
