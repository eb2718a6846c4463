//! Columns that a SELECT over `input` passes on as they came go around DuckDB, which computes the others alone.
//!
//! DuckDB copies every column of an answer twice on its way out. Where a SELECT has a row for each row of its input, and in
//! the same order, its plain columns are the input's own arrays.

use std::{collections::HashSet, sync::Arc};

use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use serde_json::{Value, json};

use super::{guard::BuiltIns, sandbox::INPUT, source::Source};
use crate::error::{Error, Result};

/// A SELECT without the columns that it passes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carry {
    /// What is left for DuckDB.
    pub(super) sql: String,
    items: Vec<Item>,
}

/// What an item of the select list stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    Every { but: Vec<String> },
    Named(String),
    Computed,
}

impl Carry {
    pub(super) fn new(sql: String, items: Vec<Item>) -> Self {
        Self { sql, items }
    }

    /// The items of a SELECT whose rows are those of the input, and the tree of what is to be computed; nothing where more is
    /// done than that. `tree` is DuckDB's, of one statement.
    pub(super) fn split(tree: &Value, built_ins: &BuiltIns) -> Option<(Vec<Item>, Value)> {
        let node = &tree["statements"][0]["node"];
        let from = &node["from_table"];
        let plain = only(node, &["type", "cte_map", "select_list", "from_table", "aggregate_handling"])
            && node["type"] == "SELECT_NODE"
            && node["cte_map"].as_object().is_some_and(|ctes| ctes.is_empty())
            && node["aggregate_handling"] == "STANDARD_HANDLING"
            && only(
                from,
                &["type", "alias", "query_location", "query_location_length", "table_name", "qualified_name"],
            )
            && from["type"] == "BASE_TABLE"
            && from["table_name"].as_str().is_some_and(|name| name.eq_ignore_ascii_case(INPUT));
        let list = node["select_list"]
            .as_array()
            .filter(|list| plain && !list.iter().any(|item| makes_rows(item, built_ins)))?;
        let items: Vec<Item> = list.iter().map(Item::of).collect();
        if items.iter().all(|item| *item == Item::Computed) {
            return None;
        }
        let mut computed: Vec<Value> = list
            .iter()
            .zip(&items)
            .filter(|(_, item)| **item == Item::Computed)
            .map(|(expression, _)| expression.clone())
            .collect();
        if computed.is_empty() {
            // Rows have to be counted.
            computed.push(json!({
                "class": "CONSTANT", "type": "VALUE_CONSTANT", "literal": {"kind": "BOOLEAN", "text": "true"}
            }));
        }
        let mut rest = tree.clone();
        rest["statements"][0]["node"]["select_list"] = Value::Array(computed);
        Some((items, rest))
    }

    /// How the answer is put together: the columns that are passed on have the types that they came with.
    pub(super) fn resolve(&self, input: &Schema, answer: &SchemaRef, computed: &Schema) -> Option<Carried> {
        let mut places = Vec::new();
        let names: Vec<String> = input.fields().iter().map(|field| field.name().to_ascii_lowercase()).collect();
        if names.iter().collect::<HashSet<_>>().len() < names.len() {
            // DuckDB gives them names of its own.
            return None;
        }
        let mut expressions = 0;
        for item in &self.items {
            match item {
                Item::Every { but } => {
                    let all = names.iter().enumerate().filter(|(_, name)| !but.contains(name));
                    places.extend(all.map(|(column, _)| Place::Input(column)));
                }
                Item::Named(name) => places.push(Place::Input(names.iter().position(|known| known == name)?)),
                Item::Computed => {
                    places.push(Place::Computed(expressions));
                    expressions += 1;
                }
            }
        }
        // An expression may stand for several columns.
        if places.len() != answer.fields().len() || expressions.max(1) != computed.fields().len() {
            return None;
        }
        let mut fields = Vec::with_capacity(places.len());
        for (place, field) in places.iter().zip(answer.fields()) {
            match place {
                // As it came: type, metadata, and whether it has NULLs.
                Place::Input(column) => fields.push(input.field(*column).clone().with_name(field.name())),
                Place::Computed(column) => {
                    let own = computed.field(*column);
                    if own.data_type() != field.data_type() || own.extension_type_name() != field.extension_type_name()
                    {
                        return None;
                    }
                    fields.push(field.as_ref().clone());
                }
            }
        }
        Some(Carried { schema: Arc::new(Schema::new(fields)), places, rest: None })
    }
}

impl Item {
    fn of(expression: &Value) -> Self {
        const PLACE: [&str; 4] = ["class", "type", "query_location", "query_location_length"];
        match expression["class"].as_str() {
            Some("STAR") if only(expression, &[&PLACE[..], &["exclude_list"]].concat()) => {
                let excluded = expression["exclude_list"].as_array().into_iter().flatten();
                match excluded.map(|name| Some(name.as_str()?.to_ascii_lowercase())).collect() {
                    Some(but) => Self::Every { but },
                    None => Self::Computed,
                }
            }
            Some("COLUMN_REF") if only(expression, &[&PLACE[..], &["alias", "column_names"]].concat()) => {
                match expression["column_names"].as_array().map(Vec::as_slice) {
                    Some([Value::String(name)]) => Self::Named(name.to_ascii_lowercase()),
                    _ => Self::Computed,
                }
            }
            _ => Self::Computed,
        }
    }
}

fn makes_rows(expression: &Value, built_ins: &BuiltIns) -> bool {
    match expression {
        Value::Array(items) => items.iter().any(|item| makes_rows(item, built_ins)),
        Value::Object(fields) => {
            let called = fields.get("function_name").and_then(Value::as_str);
            called.is_some_and(|name| built_ins.makes_rows(&name.to_ascii_lowercase()))
                || fields.values().any(|value| makes_rows(value, built_ins))
        }
        _ => false,
    }
}

/// Whether an object of DuckDB's tree says nothing else.
fn only(node: &Value, known: &[&str]) -> bool {
    node.as_object().is_some_and(|fields| fields.keys().all(|key| known.contains(&key.as_str())))
}

/// Puts together what DuckDB has computed and what came in.
pub(super) struct Carried {
    pub(super) schema: SchemaRef,
    places: Vec<Place>,
    /// Of the last batch that came in.
    rest: Option<RecordBatch>,
}

enum Place {
    Input(usize),
    Computed(usize),
}

impl Carried {
    /// The next batch of an answer, made of the first of these rows, which are taken; nothing when there are none.
    pub(super) fn next(&mut self, computed: &mut RecordBatch, source: &Source) -> Result<Option<RecordBatch>> {
        if computed.num_rows() == 0 {
            return Ok(None);
        }
        let came = loop {
            let came = self.rest.take().or_else(|| source.next_kept());
            let came = came.ok_or_else(|| Error::internal("a SELECT had more rows than its input"))?;
            if came.num_rows() > 0 {
                break came;
            }
        };
        let rows = came.num_rows().min(computed.num_rows());
        let columns = self.places.iter().map(|place| match place {
            Place::Input(column) => came.column(*column).slice(0, rows),
            Place::Computed(column) => computed.column(*column).slice(0, rows),
        });
        let batch = RecordBatch::try_new(self.schema.clone(), columns.collect()).map_err(Error::internal)?;
        self.rest = (rows < came.num_rows()).then(|| came.slice(rows, came.num_rows() - rows));
        *computed = computed.slice(rows, computed.num_rows() - rows);
        Ok(Some(batch))
    }
}
