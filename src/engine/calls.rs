//! Functions and types that a SELECT names and DuckDB has not, told before there are columns: whatever those are, it would
//! fail.

use std::collections::BTreeSet;

use duckdb::connection::Connection;
use serde_json::Value;

use super::{Shared, catalog::quote, statement};
use crate::error::{Error, Result};

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Named {
    Function,
    Window,
    Table,
    Type,
}

/// Types that are words of the grammar, and no types by themselves.
const MADE_OF_OTHERS: [&str; 8] = ["array", "enum", "list", "map", "row", "struct", "tuple", "union"];

/// The first name that DuckDB does not know, in its own words. `tree` is DuckDB's.
pub(super) fn check(shared: &Shared, connection: &Connection, sql: &str, tree: &Value) -> Result<()> {
    let (mut names, mut seen) = (Vec::new(), BTreeSet::new());
    collect(tree, false, &mut names);
    for (named, name, at) in names {
        let built_in = match named {
            Named::Function => shared.built_ins().is_of_one_row(&name.to_lowercase()),
            _ => false,
        };
        if built_in || !seen.insert((named, name.to_lowercase())) {
            continue;
        }
        let quoted = quote(&name);
        let probe = match named {
            Named::Function => format!("SELECT {quoted}()"),
            Named::Window => format!("SELECT {quoted}() OVER ()"),
            Named::Table => format!("SELECT * FROM {quoted}()"),
            Named::Type => format!("SELECT NULL::{quoted}"),
        };
        let bound = statement::parse(shared, connection, &probe)
            .and_then(|statement| statement.bind(connection).map(drop).map_err(|error| shared.cause(&error)));
        let Err(error) = bound else { continue };
        let told = error.to_string();
        // Others depend on the arguments, which are the input's.
        if told.contains(&format!(" with name {name} does not exist")) {
            let words = told.split("\n\nLINE ").next().unwrap_or_default();
            return Err(Error::Sql(format!("{words}{}", pointed(sql, at))));
        }
    }
    Ok(())
}

fn collect(node: &Value, of_table: bool, names: &mut Vec<(Named, String, usize)>) {
    match node {
        Value::Array(items) => items.iter().for_each(|item| collect(item, false, names)),
        Value::Object(fields) => {
            let text = |key: &str| fields.get(key).and_then(Value::as_str).unwrap_or_default();
            let at = fields.get("query_location").and_then(Value::as_u64).unwrap_or(0) as usize;
            let is_operator = fields.get("is_operator").is_some_and(|is| is == true);
            let named = match text("class") {
                "FUNCTION" if is_operator => None,
                "FUNCTION" if of_table => Some((Named::Table, text("function_name"))),
                "FUNCTION" => Some((Named::Function, text("function_name"))),
                "WINDOW" => Some((Named::Window, text("function_name"))),
                "TYPE" if !MADE_OF_OTHERS.contains(&text("type_name").to_lowercase().as_str()) => {
                    Some((Named::Type, text("type_name")))
                }
                _ => None,
            };
            names.extend(named.filter(|(_, name)| !name.is_empty()).map(|(named, name)| (named, name.to_string(), at)));
            let of_table = text("type") == "TABLE_FUNCTION";
            for (key, value) in fields {
                collect(value, of_table && key == "function", names);
            }
        }
        _ => {}
    }
}

/// Where it is in the text, as DuckDB points at it.
fn pointed(sql: &str, at: usize) -> String {
    let Some(before) = sql.get(..at) else { return String::new() };
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let text = sql[start..].lines().next().unwrap_or_default();
    let head = format!("LINE {line}: ");
    let gap = " ".repeat(head.len() + before[start..].chars().count());
    format!("\n\n{head}{text}\n{gap}^")
}
