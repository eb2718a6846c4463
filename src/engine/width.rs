//! How many rows a record batch has, so that it stays within some megabytes whatever its rows are like.
//!
//! DuckDB is told the rows of an array when a statement starts, and cannot be told otherwise later. So where the types alone
//! bound a row, batches are as long as that allows; where they do not (texts, lists), a batch has the rows of one of DuckDB's
//! own vectors, which it has made anyway: what is narrow for a million rows may be wide behind them. A whole table that is read
//! is the exception, because DuckDB knows the longest text of each of its columns.

use arrow_schema::{DataType, Schema};
use duckdb::{Parameters, connection::Connection};

use super::{
    Shared,
    catalog::{TableName, quote},
};

/// What a batch is to have at most.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// The rows of DuckDB's vectors.
pub(super) const VECTOR_ROWS: usize = 2048;

/// Rows of a batch of columns of these DuckDB types, `most` at most. `longest` has the bytes of the longest value of each
/// column, where they are known.
pub(super) fn rows_of_types(types: &[String], longest: Option<&[usize]>, most: usize) -> usize {
    let width = |(at, duckdb_type): (usize, &String)| match (fixed(duckdb_type), longest) {
        (Some(width), _) => Some(width),
        (None, Some(longest)) if matches!(duckdb_type.as_str(), "VARCHAR" | "BLOB") => {
            longest.get(at).map(|longest| longest.saturating_add(4))
        }
        _ => None,
    };
    let widths: Option<Vec<usize>> = types.iter().enumerate().map(width).collect();
    rows(widths.filter(|widths| !widths.is_empty()).map(|widths| widths.iter().sum()), most)
}

/// The same of columns of Arrow types.
pub(super) fn rows_of_schema(schema: &Schema, most: usize) -> usize {
    let widths: Option<Vec<usize>> = schema.fields().iter().map(|field| fixed_arrow(field.data_type())).collect();
    rows(widths.map(|widths| widths.iter().sum()), most)
}

fn rows(width: Option<usize>, most: usize) -> usize {
    let Some(width) = width else { return most.min(VECTOR_ROWS) };
    let fitting = BATCH_BYTES / width.max(1);
    let whole = match fitting {
        // Parts of a vector that are of one size.
        0..VECTOR_ROWS => (fitting.max(1) + 1).next_power_of_two() / 2,
        _ => fitting / VECTOR_ROWS * VECTOR_ROWS,
    };
    whole.clamp(1, most.max(1))
}

/// The bytes of a value, where all values of the type have as many.
fn fixed(duckdb_type: &str) -> Option<usize> {
    if let Some(front) = duckdb_type.strip_suffix(']') {
        let (item, length) = front.rsplit_once('[')?;
        return fixed(item)?.checked_mul(length.parse().ok()?);
    }
    Some(match duckdb_type {
        "BOOLEAN" | "TINYINT" | "UTINYINT" => 1,
        "SMALLINT" | "USMALLINT" => 2,
        "INTEGER" | "UINTEGER" | "FLOAT" | "DATE" => 4,
        "BIGINT"
        | "UBIGINT"
        | "DOUBLE"
        | "TIME"
        | "TIMESTAMP"
        | "TIMESTAMP_S"
        | "TIMESTAMP_MS"
        | "TIMESTAMP_NS"
        | "TIMESTAMP WITH TIME ZONE" => 8,
        "HUGEINT" | "UHUGEINT" | "INTERVAL" | "TIME WITH TIME ZONE" => 16,
        // As text, for clients that do not know the type.
        "UUID" => 40,
        decimal if decimal.starts_with("DECIMAL(") => 16,
        words if words.starts_with("ENUM(") => 4,
        _ => return None,
    })
}

fn fixed_arrow(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Boolean | DataType::Null => Some(1),
        DataType::FixedSizeBinary(size) => usize::try_from(*size).ok(),
        DataType::Dictionary(keys, _) => keys.primitive_width(),
        DataType::FixedSizeList(item, size) => fixed_arrow(item.data_type())?.checked_mul(usize::try_from(*size).ok()?),
        other => other.primitive_width(),
    }
}

/// The longest value of each column of the table that the statement reads whole, where it does no more than that.
pub(super) fn longest(shared: &Shared, connection: &Connection, sql: &str, names: &[String]) -> Option<Vec<usize>> {
    let table = whole_table(sql)?;
    let asked: Vec<String> = names.iter().map(|name| format!("stats({})", quote(name))).collect();
    let sql = format!("SELECT {} FROM {} LIMIT 1", asked.join(", "), table.sql());
    let told = shared.rows(connection, &sql, Parameters::None).ok()?;
    let length = |told: &String| {
        let (_, behind) = told.rsplit_once("Max String Length: ")?;
        behind.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    // A column of another type has none, and needs none.
    told.first().map(|row| row.iter().map(|told| length(told).unwrap_or(usize::MAX / 4096)).collect())
}

/// The table of `FROM t` and `SELECT * FROM t`.
fn whole_table(sql: &str) -> Option<TableName> {
    let mut rest = sql.trim().trim_end_matches(';').trim_end();
    for word in ["select", "*", "from"] {
        match rest.get(..word.len()) {
            Some(front) if front.eq_ignore_ascii_case(word) => rest = rest[word.len()..].trim_start(),
            _ if word == "from" => return None,
            _ => {}
        }
    }
    // What stands between quotation marks is a part of a name; elsewhere a name has neither blanks nor signs.
    let outside = rest.split('"').step_by(2);
    let named = outside.flat_map(str::chars).all(|c| c.is_alphanumeric() || matches!(c, '_' | '.'));
    if named { TableName::parse(rest).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_as_many_rows_as_fit_and_few_where_nothing_is_known() {
        let rows = |types: &[&str], longest: Option<&[usize]>| {
            let types: Vec<String> = types.iter().map(|name| name.to_string()).collect();
            rows_of_types(&types, longest, 61_440)
        };
        assert_eq!(rows(&["BIGINT", "DOUBLE", "DECIMAL(18,3)", "ENUM('[]', 'b')"], None), 61_440);
        assert_eq!(rows(&["FLOAT[1536]"], None), 1024);
        assert_eq!(rows(&["FLOAT[1000][1000][3]"], None), 1);
        assert_eq!(rows(&vec!["DOUBLE"; 64], None), 16_384);
        for unknown in
            ["VARCHAR", "BLOB", "BIT", "INTEGER[]", "MAP(INTEGER, INTEGER)", "STRUCT(a INTEGER)", "JSON", "x"]
        {
            assert_eq!(rows(&["BIGINT", unknown], None), 2048, "{unknown}");
        }
        assert_eq!(rows(&[], None), 2048);
        assert_eq!(rows(&["BIGINT", "VARCHAR"], Some(&[0, 100])), 61_440);
        assert_eq!(rows(&["BIGINT", "VARCHAR"], Some(&[0, 36_000])), 128);
        assert_eq!(rows(&["BIGINT", "VARCHAR[]"], Some(&[0, 10])), 2048);
        for (sql, table) in [
            ("FROM t", Some("\"t\"")),
            (" select * from main.\"a b\" ; ", Some("\"main.a b\"")),
            ("SELECT * FROM t WHERE i", None),
            ("SELECT a FROM t", None),
            ("FROM t, u", None),
            ("FROM range(3)", None),
            ("SELECT 1", None),
        ] {
            assert_eq!(whole_table(sql).map(|table| table.to_string()).as_deref(), table, "{sql}");
        }
    }
}
