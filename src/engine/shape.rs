//! What a SELECT over the relation `input` does with it, told from DuckDB's parse tree: whether each row is worked on for
//! itself, and which tables are read beside it.
//!
//! What is not known to be row by row is taken to need the whole input: that is slower and never wrong.

use std::{collections::BTreeSet, sync::Arc};

use duckdb::{Parameters, connection::Connection};
use serde_json::Value;

use super::{
    Shared, calls,
    carry::Carry,
    guard::{self, BuiltIns},
    sandbox::INPUT,
};
use crate::error::{Error, Result};

/// How a query reads the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Not at all.
    Nothing,
    /// What it answers for one row does not depend on the others.
    EachRow,
    /// All of it, or some of it in an order.
    Whole,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    pub reads: Reads,
    /// Tables that are not the input, as they are written.
    pub tables: BTreeSet<String>,
    /// What it leaves for DuckDB to compute, where it passes on columns of each row as they are.
    pub carry: Option<Carry>,
    /// DuckDB's parse tree.
    pub(super) tree: Arc<Value>,
}

impl Shape {
    /// Of SQL of ours over all of the input, whose answer has DuckDB's types.
    pub fn whole() -> Self {
        Self { reads: Reads::Whole, tables: BTreeSet::new(), carry: None, tree: Arc::default() }
    }

    pub(super) fn of(shared: &Shared, connection: &Connection, sql: &str) -> Result<Self> {
        // Nothing where DuckDB has no tree of it.
        let tree = guard::tree_of(shared, connection, sql)?.unwrap_or_default();
        let mut walk = Walk {
            built_ins: shared.built_ins(),
            scope: vec![(INPUT.to_string(), Reads::EachRow)],
            tables: BTreeSet::new(),
            changes: false,
        };
        let reads = match &tree["statements"][0]["node"] {
            Value::Null => Reads::Whole,
            node => walk.query(node),
        };
        if walk.changes {
            return Err(Error::invalid("an exchanger is one SELECT, and changes nothing in a part of it"));
        }
        let tables = walk.tables;
        let split = Carry::split(&tree, shared.built_ins()).filter(|_| reads == Reads::EachRow);
        let carry = match split {
            Some((items, rest)) => {
                let sql = "SELECT json_deserialize_sql($1::JSON)";
                let rows = shared.rows(connection, sql, Parameters::positional(&[&rest.to_string().as_str()]))?;
                rows.into_iter().flatten().next().map(|sql| Carry::new(sql, items))
            }
            None => None,
        };
        if tables.is_empty() {
            // Beside tables it may call what the server's users have created.
            calls::check(shared, connection, sql, &tree)?;
        }
        Ok(Self { reads, tables, carry, tree: Arc::new(tree) })
    }
}

struct Walk<'a> {
    built_ins: &'a BuiltIns,
    /// Names that are no tables: the input and CTEs, the innermost last.
    scope: Vec<(String, Reads)>,
    tables: BTreeSet<String>,
    /// Whether a CTE inserts, updates or deletes.
    changes: bool,
}

impl Walk<'_> {
    fn query(&mut self, node: &Value) -> Reads {
        let kind = node["type"].as_str().unwrap_or_default();
        self.changes |= kind.ends_with("_QUERY_NODE");
        let outer = self.scope.len();
        for cte in node["cte_map"]["map"].as_array().into_iter().flatten() {
            let name = cte["key"].as_str().unwrap_or_default().to_ascii_lowercase();
            let body = &cte["value"]["query_node"];
            if body["type"] == "RECURSIVE_CTE_NODE" {
                // It reads itself, too.
                self.scope.push((name.clone(), Reads::Nothing));
                let reads = if self.touches(body) { Reads::Whole } else { Reads::Nothing };
                self.scope.pop();
                self.scope.push((name, reads));
                continue;
            }
            let reads = self.query(body);
            self.scope.push((name, reads));
        }
        let reads = match node["type"].as_str() {
            Some("SELECT_NODE") => self.select(node),
            _ if self.fields_touch(node, &["cte_map"]) => Reads::Whole,
            _ => Reads::Nothing,
        };
        self.scope.truncate(outer);
        reads
    }

    fn select(&mut self, node: &Value) -> Reads {
        let from = self.relation(&node["from_table"]);
        if self.fields_touch(node, &["cte_map", "from_table"]) {
            return Reads::Whole;
        }
        let empty = |key: &str| match &node[key] {
            Value::Array(items) => items.is_empty(),
            other => other.is_null(),
        };
        let plain = ["modifiers", "group_expressions", "group_sets", "having", "qualify", "sample"]
            .iter()
            .all(|key| empty(key))
            && node["aggregate_handling"] == "STANDARD_HANDLING";
        match from {
            Reads::EachRow if !plain || self.gathers(&node["select_list"]) => Reads::Whole,
            from => from,
        }
    }

    fn relation(&mut self, node: &Value) -> Reads {
        let reads = match node["type"].as_str() {
            Some("BASE_TABLE") => self.named(node),
            Some("SUBQUERY") => self.query(&node["subquery"]["node"]),
            Some("JOIN") => self.join(node),
            _ if self.fields_touch(node, &[]) => Reads::Whole,
            _ => Reads::Nothing,
        };
        if reads == Reads::EachRow && !node["sample"].is_null() { Reads::Whole } else { reads }
    }

    fn join(&mut self, node: &Value) -> Reads {
        let (left, right) = (self.relation(&node["left"]), self.relation(&node["right"]));
        if self.fields_touch(node, &["left", "right"]) {
            return Reads::Whole;
        }
        let one_of = |key: &str, words: &[&str]| node[key].as_str().is_some_and(|word| words.contains(&word));
        match (left, right) {
            (Reads::Nothing, Reads::Nothing) => Reads::Nothing,
            (Reads::EachRow, Reads::Nothing)
                if one_of("join_type", &["INNER", "LEFT", "SEMI", "ANTI"])
                    && one_of("ref_type", &["REGULAR", "CROSS", "NATURAL", "ASOF", "DEPENDENT"]) =>
            {
                Reads::EachRow
            }
            (Reads::Nothing, Reads::EachRow)
                if one_of("join_type", &["INNER"]) && one_of("ref_type", &["REGULAR", "CROSS", "NATURAL"]) =>
            {
                Reads::EachRow
            }
            _ => Reads::Whole,
        }
    }

    /// What a name in FROM stands for.
    fn named(&mut self, node: &Value) -> Reads {
        let parts = node["qualified_name"]["path"].as_array().into_iter().flatten();
        let path: Vec<&str> = parts.filter_map(Value::as_str).collect();
        match path.as_slice() {
            [one] => {
                let name = one.to_ascii_lowercase();
                if let Some((_, reads)) = self.scope.iter().rfind(|(known, _)| *known == name) {
                    return *reads;
                }
                if self.built_ins.views.contains(&name) {
                    return Reads::Nothing;
                }
            }
            // The input under the name of where it lies.
            [.., last] if last.eq_ignore_ascii_case(INPUT) => return Reads::Whole,
            _ => {}
        }
        self.tables.insert(path.join("."));
        Reads::Nothing
    }

    /// Whether an expression's value comes from more than one row.
    fn gathers(&self, node: &Value) -> bool {
        match node {
            Value::Array(items) => items.iter().any(|item| self.gathers(item)),
            Value::Object(fields) => {
                let name = node["function_name"].as_str().unwrap_or_default().to_ascii_lowercase();
                let gathers = match node["class"].as_str() {
                    Some("WINDOW") => true,
                    Some("FUNCTION") => !self.built_ins.is_of_one_row(&name),
                    _ => false,
                };
                // A subquery has rows of its own.
                gathers || fields.iter().any(|(key, value)| key != "subquery" && self.gathers(value))
            }
            _ => false,
        }
    }

    /// Whether anything below reads the input.
    fn touches(&mut self, node: &Value) -> bool {
        match node {
            Value::Array(items) => {
                let mut touched = false;
                for item in items {
                    touched |= self.touches(item);
                }
                touched
            }
            Value::Object(_) => match node["type"].as_str() {
                Some(kind) if kind.ends_with("_NODE") && kind != "RECURSIVE_CTE_NODE" => {
                    self.query(node) != Reads::Nothing
                }
                Some("BASE_TABLE") => self.named(node) != Reads::Nothing,
                _ => self.fields_touch(node, &[]),
            },
            _ => false,
        }
    }

    fn fields_touch(&mut self, node: &Value, but: &[&str]) -> bool {
        let fields = node.as_object().into_iter().flatten();
        // All are looked at, because all name tables.
        let mut touched = false;
        for (_, value) in fields.filter(|(key, _)| !but.contains(&key.as_str())) {
            touched |= self.touches(value);
        }
        touched
    }
}
