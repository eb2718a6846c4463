//! Which columns of a SELECT's answer are plain references to columns of `input`, and how they get the Arrow type back that
//! they came with.
//!
//! DuckDB has one type where Arrow has several (texts, views and dictionaries are VARCHAR), so a column that only passes
//! through it leaves as another one. What is not known to be a plain reference has DuckDB's type.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, IntervalDayTimeArray, IntervalYearMonthArray, NullArray, RecordBatch, RecordBatchOptions,
    cast::AsArray, new_empty_array, types::IntervalMonthDayNanoType,
};
use arrow_buffer::IntervalDayTime;
use arrow_cast::{CastOptions, can_cast_types, cast_with_options};
use arrow_schema::{ArrowError, DataType, Field, FieldRef, IntervalUnit, Schema, SchemaRef};
use serde_json::Value;

use super::sandbox::INPUT;
use crate::error::{Error, Result};

/// Columns of one relation in FROM: names in lower case, and which column of the input each is.
#[derive(Clone)]
struct Relation {
    name: String,
    /// `None` where they are not known.
    columns: Option<Vec<(String, Option<usize>)>>,
}

/// Of each column of the answer, which column of the input it is. `tree` is DuckDB's, of one statement. `None` where even
/// their number is not known.
pub(super) fn origins(tree: &Value, input: &Schema) -> Option<Vec<Option<usize>>> {
    let names: Vec<String> = input.fields().iter().map(|field| field.name().to_lowercase()).collect();
    let mut sorted = names.clone();
    sorted.sort();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        // DuckDB gives them names of its own.
        return None;
    }
    let own = names.into_iter().enumerate().map(|(index, name)| (name, Some(index))).collect();
    let mut scope = vec![Relation { name: INPUT.to_string(), columns: Some(own) }];
    let columns = query(&tree["statements"][0]["node"], &mut scope)?;
    Some(columns.into_iter().map(|(_, origin)| origin).collect())
}

/// Whether no row of the answer can have a NULL that the input has not: one relation, and no grouping.
pub(super) fn is_plain(tree: &Value) -> bool {
    let node = &tree["statements"][0]["node"];
    node["from_table"]["type"] == "BASE_TABLE" && node["group_expressions"].is_null() && node["group_sets"].is_null()
}

fn query(node: &Value, scope: &mut Vec<Relation>) -> Option<Vec<(String, Option<usize>)>> {
    if node["type"] != "SELECT_NODE" {
        return None;
    }
    let outer = scope.len();
    for cte in node["cte_map"]["map"].as_array().into_iter().flatten() {
        let name = cte["key"].as_str()?.to_lowercase();
        let aliased = cte["value"]["aliases"].as_array().is_some_and(|aliases| !aliases.is_empty());
        let columns = query(&cte["value"]["query_node"], scope).filter(|_| !aliased);
        scope.push(Relation { name, columns });
    }
    let mut relations = Vec::new();
    from(&node["from_table"], scope, &mut relations);
    scope.truncate(outer);
    let mut columns = Vec::new();
    for item in node["select_list"].as_array()? {
        select(item, &relations, &mut columns)?;
    }
    Some(columns)
}

fn from(node: &Value, scope: &mut Vec<Relation>, relations: &mut Vec<Relation>) {
    let alias = node["alias"].as_str().filter(|alias| !alias.is_empty()).map(str::to_lowercase);
    let mut found = match node["type"].as_str() {
        Some("BASE_TABLE") => {
            let name = node["table_name"].as_str().unwrap_or_default().to_lowercase();
            let path = node["qualified_name"]["path"].as_array().map_or(0, Vec::len);
            let known = scope.iter().rfind(|relation| relation.name == name && path == 1);
            Relation { columns: known.and_then(|relation| relation.columns.clone()), name }
        }
        Some("SUBQUERY") => Relation { name: String::new(), columns: query(&node["subquery"]["node"], scope) },
        Some("JOIN") => {
            let using = node["using_columns"].as_array().is_some_and(|columns| !columns.is_empty());
            let one_side = matches!(node["join_type"].as_str(), Some("SEMI" | "ANTI"));
            let merges = using || node["ref_type"] == "NATURAL";
            let before = relations.len();
            from(&node["left"], scope, relations);
            if !one_side {
                from(&node["right"], scope, relations);
            }
            if (merges && !one_side)
                || !matches!(
                    node["join_type"].as_str(),
                    None | Some("INNER" | "LEFT" | "RIGHT" | "OUTER" | "SEMI" | "ANTI")
                )
            {
                // One column stands for two.
                relations[before..].iter_mut().for_each(|relation| relation.columns = None);
            }
            return;
        }
        _ => Relation { name: String::new(), columns: None },
    };
    if let Some(alias) = alias {
        found.name = alias;
    }
    let renamed = node["column_name_alias"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if let Some(columns) = &mut found.columns {
        columns.iter_mut().zip(renamed).for_each(|(column, name)| column.0 = name.to_lowercase());
    }
    relations.push(found);
}

/// Adds the columns of one item of a select list.
fn select(item: &Value, relations: &[Relation], columns: &mut Vec<(String, Option<usize>)>) -> Option<()> {
    const PLACE: [&str; 5] = ["class", "type", "query_location", "query_location_length", "alias"];
    let only = |known: &[&str]| {
        item.as_object().is_some_and(|fields| {
            fields.keys().all(|key| PLACE.contains(&key.as_str()) || known.contains(&key.as_str()))
        })
    };
    match item["class"].as_str()? {
        "STAR" if only(&["exclude_list", "relation_name"]) => {
            let mut excluded = Vec::new();
            for name in item["exclude_list"].as_array().into_iter().flatten() {
                excluded.push(name.as_str()?.to_lowercase());
            }
            let of = item["relation_name"].as_str().unwrap_or_default().to_lowercase();
            for relation in relations.iter().filter(|relation| of.is_empty() || relation.name == of) {
                let all = relation.columns.as_ref()?.iter();
                columns.extend(all.filter(|(name, _)| !excluded.contains(name)).cloned());
            }
        }
        "COLUMN_REF" if only(&["column_names"]) => {
            let path: Vec<String> =
                item["column_names"].as_array()?.iter().filter_map(Value::as_str).map(str::to_lowercase).collect();
            let (of, name) = match path.as_slice() {
                [name] => (None, name.clone()),
                [of, name] => (Some(of), name.clone()),
                _ => (None, String::new()),
            };
            let among = relations.iter().filter(|relation| of.is_none_or(|of| relation.name == *of));
            let mut found =
                among.flat_map(|relation| relation.columns.iter().flatten()).filter(|(known, _)| *known == name);
            let origin = match (found.next(), found.next()) {
                (Some((_, origin)), None) => *origin,
                _ => None,
            };
            let alias = item["alias"].as_str().filter(|alias| !alias.is_empty()).map(str::to_lowercase);
            columns.push((alias.unwrap_or(name), origin));
        }
        // It may stand for several columns.
        _ if has_star(item) => return None,
        _ => columns.push((item["alias"].as_str().unwrap_or_default().to_lowercase(), None)),
    }
    Some(())
}

fn has_star(node: &Value) -> bool {
    match node {
        Value::Array(items) => items.iter().any(has_star),
        // count(*) is one column.
        Value::Object(fields) if fields.get("class").is_some_and(|class| class == "STAR") => {
            fields.contains_key("columns") || fields.contains_key("expr") || fields.contains_key("unpacked")
        }
        Value::Object(fields) => fields.values().any(has_star),
        _ => false,
    }
}

/// Gives columns the types back that they came with.
pub(super) struct Restored {
    pub(super) schema: SchemaRef,
    /// The columns that are cast.
    targets: Vec<Option<DataType>>,
}

impl Restored {
    /// `lossless` are the answer's columns in DuckDB's lossless form, `answer` as they would leave. Nothing where no column
    /// gets another type. Which columns are taken in the lossless form is answered beside it.
    pub(super) fn new(
        origins: &[Option<usize>],
        plain: bool,
        input: &Schema,
        answer: &Schema,
        lossless: &Schema,
    ) -> Option<(Self, Vec<bool>)> {
        if origins.len() != answer.fields().len() {
            return None;
        }
        let (mut fields, mut targets, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for (index, origin) in origins.iter().enumerate() {
            let (from, to) = (lossless.field(index), origin.map(|origin| input.field(origin)));
            let restored = to.filter(|to| can_restore(from, to));
            kept.push(restored.is_some());
            targets.push(restored.map(Field::data_type).filter(|to| *to != from.data_type()).cloned());
            fields.push(match restored {
                Some(to) => {
                    let nullable = to.is_nullable() || !plain;
                    Arc::new(to.clone().with_name(answer.field(index).name()).with_nullable(nullable))
                }
                None => answer.fields()[index].clone(),
            });
        }
        let changes = fields.iter().zip(answer.fields()).any(|(field, plain)| field != plain);
        changes.then(|| (Self { schema: Arc::new(Schema::new(fields)), targets }, kept))
    }

    /// The batch with its types. It is several where a dictionary has no room for all of its values.
    pub(super) fn batches(&self, batch: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let mut columns = Vec::with_capacity(batch.num_columns());
        for (column, target) in batch.columns().iter().zip(&self.targets) {
            match target.as_ref().map_or_else(|| Ok(column.clone()), |target| restore(column, target)) {
                Ok(column) => columns.push(column),
                Err(_) if batch.num_rows() > 1 => {
                    let half = batch.num_rows() / 2;
                    let mut parts = self.batches(&batch.slice(0, half))?;
                    parts.extend(self.batches(&batch.slice(half, batch.num_rows() - half))?);
                    return Ok(parts);
                }
                Err(error) => {
                    let name = self.schema.field(columns.len()).name();
                    return Err(Error::invalid(format!("column \"{name}\": {error}")));
                }
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(vec![RecordBatch::try_new_with_options(self.schema.clone(), columns, &options).map_err(Error::internal)?])
    }
}

fn can_restore(from: &Field, to: &Field) -> bool {
    // What has an extension's name has its own form.
    let same = from.extension_type_name() == to.extension_type_name();
    if from.data_type() == to.data_type() {
        return same;
    }
    (same || from.extension_type_name().is_none())
        && restore(&new_empty_array(from.data_type()), to.data_type()).is_ok()
}

/// The type of the values themselves, in place of dictionaries and runs of them.
fn decoded(data_type: &DataType) -> DataType {
    let of = |field: &FieldRef| Arc::new(field.as_ref().clone().with_data_type(decoded(field.data_type())));
    match data_type {
        DataType::Dictionary(_, values) => decoded(values),
        DataType::RunEndEncoded(_, values) => decoded(values.data_type()),
        DataType::List(item) => DataType::List(of(item)),
        DataType::LargeList(item) => DataType::LargeList(of(item)),
        DataType::ListView(item) => DataType::ListView(of(item)),
        DataType::LargeListView(item) => DataType::LargeListView(of(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(of(item), *size),
        DataType::Map(entries, sorted) => DataType::Map(of(entries), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(of).collect()),
        other => other.clone(),
    }
}

fn restore(column: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    let months_days_nanos = column.as_primitive_opt::<IntervalMonthDayNanoType>();
    match (to, months_days_nanos) {
        (DataType::Null, _) => Ok(Arc::new(NullArray::new(column.len()))),
        (DataType::Interval(IntervalUnit::YearMonth), Some(intervals)) => {
            let months: IntervalYearMonthArray = intervals.iter().map(|one| one.map(|one| one.months)).collect();
            Ok(Arc::new(months))
        }
        (DataType::Interval(IntervalUnit::DayTime), Some(intervals)) => {
            let day_time = |one: arrow_buffer::IntervalMonthDayNano| {
                IntervalDayTime::new(one.days, i32::try_from(one.nanoseconds / 1_000_000).unwrap_or(i32::MAX))
            };
            let days: IntervalDayTimeArray = intervals.iter().map(|one| one.map(day_time)).collect();
            Ok(Arc::new(days))
        }
        _ if can_cast_types(column.data_type(), to) => {
            let options = CastOptions { safe: false, ..CastOptions::default() };
            // Two steps: arrow-rs does not convert between units of time while it makes a dictionary.
            let values = cast_with_options(column, &decoded(to), &options)?;
            let cast = cast_with_options(&values, to, &options)?;
            match cast.data_type() == to {
                true => Ok(cast),
                false => Err(ArrowError::CastError(format!("{} does not become {to}", column.data_type()))),
            }
        }
        _ => Err(ArrowError::CastError(format!("{} does not become {to}", column.data_type()))),
    }
}
