//! DuckDB's types as ODBC and JDBC know types: GetXdbcTypeInfo, and what GetTables notes of each column.

use arrow_flight::sql::{
    Nullable, Searchable, XdbcDataType as Code, XdbcDatetimeSubcode as Subcode,
    metadata::{XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder},
};

use crate::error::{Error, Result};

/// One of DuckDB's types.
#[derive(Debug, Clone, Copy)]
pub(super) struct Type {
    name: &'static str,
    code: Code,
    /// Digits of exact numbers, bits of approximate ones, characters of text and of what is written as text.
    pub(super) size: Option<i32>,
    /// 10 of exact numbers, 2 of approximate ones.
    radix: Option<i32>,
    unsigned: Option<bool>,
    scale: Option<(i32, i32)>,
    /// Of dates, times and intervals, which have a general code in common.
    general: Option<(Code, Subcode)>,
    /// What stands around a literal of it.
    quotes: Option<(&'static str, &'static str)>,
    parameters: &'static [&'static str],
}

const fn plain(name: &'static str, code: Code) -> Type {
    let (size, radix, unsigned, scale, general) = (None, None, None, None, None);
    Type { name, code, size, radix, unsigned, scale, general, quotes: None, parameters: &[] }
}

const fn exact(name: &'static str, code: Code, digits: i32, unsigned: bool) -> Type {
    let of = plain(name, code);
    Type { size: Some(digits), radix: Some(10), unsigned: Some(unsigned), scale: Some((0, 0)), ..of }
}

const fn approximate(name: &'static str, code: Code, bits: i32) -> Type {
    Type { size: Some(bits), radix: Some(2), unsigned: Some(false), ..plain(name, code) }
}

const fn text(name: &'static str, code: Code, size: i32) -> Type {
    Type { size: Some(size), quotes: Some(("'", "'")), ..plain(name, code) }
}

const fn moment(name: &'static str, code: Code, size: i32, subcode: Subcode, prefix: &'static str) -> Type {
    let of = text(name, code, size);
    Type { general: Some((Code::XdbcDatetime, subcode)), quotes: Some((prefix, "'")), ..of }
}

/// The protocol's name for 1 is that of a year; of dates it is ODBC's SQL_CODE_DATE.
const DATE: Subcode = Subcode::XdbcSubcodeYear;

#[rustfmt::skip]
const TYPES: [Type; 35] = [
    Type { size: Some(1), ..plain("BOOLEAN", Code::XdbcBit) },
    exact("TINYINT", Code::XdbcTinyint, 3, false),
    exact("SMALLINT", Code::XdbcSmallint, 5, false),
    exact("INTEGER", Code::XdbcInteger, 10, false),
    exact("BIGINT", Code::XdbcBigint, 19, false),
    exact("HUGEINT", Code::XdbcNumeric, 39, false),
    exact("UTINYINT", Code::XdbcTinyint, 3, true),
    exact("USMALLINT", Code::XdbcSmallint, 5, true),
    exact("UINTEGER", Code::XdbcInteger, 10, true),
    exact("UBIGINT", Code::XdbcBigint, 20, true),
    exact("UHUGEINT", Code::XdbcNumeric, 39, true),
    approximate("FLOAT", Code::XdbcReal, 24),
    approximate("DOUBLE", Code::XdbcDouble, 53),
    Type { scale: Some((0, 38)), parameters: &["precision", "scale"], ..exact("DECIMAL", Code::XdbcDecimal, 38, false) },
    Type { size: None, scale: Some((0, 0)), ..exact("BIGNUM", Code::XdbcNumeric, 0, false) },
    text("VARCHAR", Code::XdbcVarchar, i32::MAX),
    text("JSON", Code::XdbcVarchar, i32::MAX),
    text("ENUM", Code::XdbcVarchar, i32::MAX),
    text("UUID", Code::XdbcChar, 36),
    text("BIT", Code::XdbcVarchar, i32::MAX),
    Type { quotes: Some(("'", "'::BLOB")), ..text("BLOB", Code::XdbcVarbinary, i32::MAX) },
    Type { quotes: None, ..text("GEOMETRY", Code::XdbcVarbinary, i32::MAX) },
    moment("DATE", Code::XdbcDate, 10, DATE, "DATE '"),
    moment("TIME", Code::XdbcTime, 15, Subcode::XdbcSubcodeTime, "TIME '"),
    moment("TIME_NS", Code::XdbcTime, 18, Subcode::XdbcSubcodeTime, "TIME_NS '"),
    moment("TIME WITH TIME ZONE", Code::XdbcTime, 24, Subcode::XdbcSubcodeTimeWithTimezone, "TIMETZ '"),
    moment("TIMESTAMP", Code::XdbcTimestamp, 26, Subcode::XdbcSubcodeTimestamp, "TIMESTAMP '"),
    moment("TIMESTAMP_S", Code::XdbcTimestamp, 19, Subcode::XdbcSubcodeTimestamp, "TIMESTAMP_S '"),
    moment("TIMESTAMP_MS", Code::XdbcTimestamp, 23, Subcode::XdbcSubcodeTimestamp, "TIMESTAMP_MS '"),
    moment("TIMESTAMP_NS", Code::XdbcTimestamp, 29, Subcode::XdbcSubcodeTimestamp, "TIMESTAMP_NS '"),
    moment("TIMESTAMP WITH TIME ZONE", Code::XdbcTimestamp, 32, Subcode::XdbcSubcodeTimestampWithTimezone, "TIMESTAMPTZ '"),
    // Months, days and microseconds in one value, which no code of ODBC's stands for.
    Type { general: Some((Code::XdbcInterval, Subcode::XdbcSubcodeUnknown)), quotes: Some(("INTERVAL '", "'")), ..plain("INTERVAL", Code::XdbcInterval) },
    Type { quotes: Some(("[", "]")), ..plain("LIST", Code::XdbcUnknownType) },
    Type { quotes: Some(("{", "}")), ..plain("STRUCT", Code::XdbcUnknownType) },
    Type { quotes: Some(("MAP {", "}")), ..plain("MAP", Code::XdbcUnknownType) },
];

impl Type {
    /// Of a type as DuckDB writes it; nothing is known of the few that are not in the table.
    pub(super) fn of(duckdb_type: &str) -> Option<&'static Self> {
        let name = match duckdb_type {
            // Arrays of a fixed size, too.
            nested if nested.ends_with(']') => "LIST",
            other => other.split('(').next().unwrap_or(other).trim_end(),
        };
        TYPES.iter().find(|one| one.name == name)
    }

    pub(super) fn is_case_sensitive(&self) -> bool {
        matches!(self.name, "VARCHAR" | "JSON" | "ENUM")
    }
}

/// The table for GetXdbcTypeInfo.
pub(super) fn types() -> Result<XdbcTypeInfoData> {
    let mut builder = XdbcTypeInfoDataBuilder::new();
    for one in TYPES {
        builder.append(XdbcTypeInfo {
            type_name: one.name.into(),
            data_type: one.code,
            column_size: one.size,
            literal_prefix: one.quotes.map(|(prefix, _)| prefix.into()),
            literal_suffix: one.quotes.map(|(_, suffix)| suffix.into()),
            create_params: Some(one.parameters.iter().map(|name| name.to_string()).collect()),
            nullable: Nullable::NullabilityNullable,
            case_sensitive: one.is_case_sensitive(),
            searchable: if one.quotes == Some(("'", "'")) { Searchable::Full } else { Searchable::Basic },
            unsigned_attribute: one.unsigned,
            fixed_prec_scale: false,
            auto_increment: one.unsigned.map(|_| false),
            local_type_name: Some(one.name.into()),
            minimum_scale: one.scale.map(|(least, _)| least),
            maximum_scale: one.scale.map(|(_, most)| most),
            sql_data_type: one.general.map_or(one.code, |(general, _)| general),
            datetime_subcode: one.general.map(|(_, subcode)| subcode),
            num_prec_radix: one.radix,
            interval_precision: None,
        });
    }
    builder.build().map_err(Error::internal)
}
