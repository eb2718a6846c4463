//! Which tables a text names, for callers who may not read or change all of them.
//!
//! DuckDB's own parse tree, as JSON, names the tables of SELECT, INSERT, UPDATE and DELETE with the scopes of their CTEs.
//! It has no such form of other statements: of those whose target and query can be told apart by their tokens the parts
//! are checked, and all others need grants on everything. This is what the names in a text mean to its reader; `shadow` asks
//! DuckDB what it binds.

use std::{cell::RefCell, collections::HashSet};

use duckdb::query_result::StatementType;
use serde_json::Value;

use super::{
    super::catalog::Catalogs,
    Allowed, Token,
    bound::Written,
    check_name, functions,
    tokens::is_word,
    tree::{self, Text},
};
use crate::{
    access::{Rights, fold},
    error::{Error, Result},
};

/// The last parts of the tables that the text names. There is a grant for each of them.
pub(super) fn check(text: &Text<'_>, rights: &Rights, given: &[&str]) -> Result<HashSet<String>> {
    let catalogs = text.shared.catalogs(text.connection)?;
    let named = RefCell::default();
    Names { text, rights, given, catalogs, home: None, named: &named, written: None }.statement()?;
    Ok(named.take())
}

/// The tables that the text names, and how each is used, whoever asks.
pub(super) fn written(text: &Text<'_>, rights: &Rights) -> Result<Vec<Written>> {
    let catalogs = text.shared.catalogs(text.connection)?;
    let (named, written) = (RefCell::default(), RefCell::default());
    let names = Names { text, rights, given: &[], catalogs, home: None, named: &named, written: Some(&written) };
    // What has no tree has named what its tokens tell.
    match names.statement() {
        Ok(()) | Err(Error::Denied { .. }) => Ok(written.take()),
        Err(error) => Err(error),
    }
}

/// One text and who sent it.
struct Names<'a> {
    text: &'a Text<'a>,
    rights: &'a Rights,
    /// Relations that the statement has from the server.
    given: &'a [&'a str],
    catalogs: &'a Catalogs,
    /// The schema of the view whose query this is, with its catalog where that is an attached one: DuckDB looks there first
    /// when the view is read.
    home: Option<&'a [String]>,
    named: &'a RefCell<HashSet<String>>,
    /// Where names are told instead of decided on.
    written: Option<&'a RefCell<Vec<Written>>>,
}

impl Names<'_> {
    fn statement(&self) -> Result<()> {
        let tokens = self.text.tokens;
        if self.text.kind == StatementType::MergeInto && self.written.is_some() {
            return self.merged(tokens);
        }
        match self.text.kind {
            StatementType::Select => self.query(),
            StatementType::Delete if is_word(tokens.first(), "truncate") => {
                let at = 1 + usize::from(is_word(tokens.get(1), "table"));
                self.target(&tokens[at.min(tokens.len())..])
            }
            StatementType::Insert | StatementType::Update | StatementType::Delete => self.query(),
            StatementType::Create => self.created(tokens),
            StatementType::Drop => self.dropped(tokens),
            StatementType::Alter => self.altered(tokens),
            // The value of a variable may be a query; those of settings are literals.
            StatementType::Set | StatementType::VariableSet => {
                let variable = tokens.iter().any(|token| is_word(Some(token), "variable"));
                if variable && !is_word(tokens.first(), "reset") { self.query() } else { Ok(()) }
            }
            _ => Err(self.unclear(tokens)),
        }
    }

    /// The target and the source of a MERGE, where both are names.
    fn merged(&self, tokens: &[Token<'_>]) -> Result<()> {
        let behind = |word: &str| {
            let at = tokens.iter().position(|token| is_word(Some(token), word))?;
            name(&tokens[at + 1..]).map(|(name, _)| name)
        };
        behind("into").map_or(Ok(()), |target| self.may(&target, Rights::may_write, "change"))?;
        behind("using").map_or(Ok(()), |source| self.may(&source, Rights::may_read, "read"))
    }

    fn unclear(&self, tokens: &[Token<'_>]) -> Error {
        let what = tokens.first().map_or("", |token| token.text).to_uppercase();
        self.rights.denied("grant", format!("{what} of this form is for those with grants on all tables"))
    }

    fn query(&self) -> Result<()> {
        let tree = self.text.tree()?.ok_or_else(|| self.unclear(self.text.tokens))?;
        self.walk(tree, &mut self.given.iter().map(|name| fold(name)).collect())
    }

    /// CREATE TABLE and CREATE VIEW, with a query or without.
    fn created(&self, tokens: &[Token<'_>]) -> Result<()> {
        let what = tree::created(tokens);
        let Some(what) = what.filter(|what| is_word(tokens.get(*what), "table") || is_word(tokens.get(*what), "view"))
        else {
            return Err(self.unclear(tokens));
        };
        let rest = skip_words(&tokens[what + 1..], &["if", "not", "exists"]);
        let (name, rest) = name(rest).ok_or_else(|| self.unclear(tokens))?;
        self.may(&name, Rights::may_write, "change")?;
        let main = ["main".to_string()];
        let home = match name.as_slice() {
            [schema, _] if !self.catalogs.is_served(schema) => std::slice::from_ref(schema),
            [catalog, schema, _] if self.catalogs.is_served(catalog) => std::slice::from_ref(schema),
            [place @ .., _] if place.len() == 2 => place,
            _ => &main,
        };
        let inner = Names { home: is_word(tokens.get(what), "view").then_some(home), ..*self };
        // The first AS outside of brackets is the query's.
        let mut depth = 0_i32;
        for (at, token) in rest.iter().enumerate() {
            for character in token.text.chars().filter(|_| !token.is_name()) {
                depth += i32::from(character == '(') - i32::from(character == ')');
            }
            if is_word(Some(token), "references") || is_word(Some(token), "like") {
                let (other, _) = self::name(&rest[at + 1..]).ok_or_else(|| self.unclear(tokens))?;
                self.may(&other, Rights::may_read, "read")?;
            }
            if depth == 0 && token.is_keyword() && is_word(Some(token), "as") {
                return inner.query();
            }
        }
        // Without a query, a column's default or check may hold none.
        let queries = ["select", "from", "values"];
        match rest.iter().any(|token| token.is_keyword() && queries.contains(&token.name().as_str())) {
            true => Err(self.unclear(tokens)),
            false => Ok(()),
        }
    }

    fn dropped(&self, tokens: &[Token<'_>]) -> Result<()> {
        if !is_word(tokens.get(1), "table") && !is_word(tokens.get(1), "view") {
            return Err(self.unclear(tokens));
        }
        self.target(skip_words(&tokens[2..], &["if", "exists"]))
    }

    /// One name, and then nothing but RESTRICT or CASCADE. (DuckDB drops one object at a time.)
    fn target(&self, tokens: &[Token<'_>]) -> Result<()> {
        match name(tokens) {
            Some((target, [])) => self.may(&target, Rights::may_write, "change"),
            Some((target, [word])) if is_word(Some(word), "restrict") || is_word(Some(word), "cascade") => {
                self.may(&target, Rights::may_write, "change")
            }
            _ => Err(self.unclear(tokens)),
        }
    }

    /// Columns of one table. A new name or schema could take it out of its grant or over another one's table.
    fn altered(&self, tokens: &[Token<'_>]) -> Result<()> {
        if !is_word(tokens.first(), "alter") || !(is_word(tokens.get(1), "table") || is_word(tokens.get(1), "view")) {
            return Err(self.unclear(tokens));
        }
        let (target, rest) = name(skip_words(&tokens[2..], &["if", "exists"])).ok_or_else(|| self.unclear(tokens))?;
        self.may(&target, Rights::may_write, "change")?;
        let simple = ["add", "drop", "alter"].iter().any(|word| is_word(rest.first(), word));
        let renamed_column = is_word(rest.first(), "rename") && !is_word(rest.get(1), "to");
        let forbidden = ["references", "select", "from", "schema"];
        let more = rest.iter().any(|token| token.is_keyword() && forbidden.contains(&token.name().as_str()));
        if (simple || renamed_column) && !more { Ok(()) } else { Err(self.unclear(tokens)) }
    }

    /// Checks every name below a node. `scope` are the CTEs that are seen there.
    fn walk(&self, node: &Value, scope: &mut Vec<String>) -> Result<()> {
        match node {
            Value::Array(items) => items.iter().try_for_each(|item| self.walk(item, scope)),
            Value::Object(fields) => {
                let outer = scope.len();
                self.enter(node, scope)?;
                self.named(node, scope)?;
                for (key, value) in fields.iter().filter(|(key, _)| *key != "cte_map") {
                    // The table of a change is checked as one, by `named`.
                    if key == "table" && is_change(node) {
                        continue;
                    }
                    self.walk(value, scope)?;
                }
                scope.truncate(outer);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The CTEs of a node, one after the other, are seen in it from here on.
    fn enter(&self, node: &Value, scope: &mut Vec<String>) -> Result<()> {
        for cte in node["cte_map"]["map"].as_array().into_iter().flatten() {
            let name = cte["key"].as_str().unwrap_or_default();
            self.cte(name, &cte["value"], scope)?;
            scope.push(fold(name));
        }
        Ok(())
    }

    /// A CTE sees those before it, and itself only where it is recursive: in the part that recurs.
    fn cte(&self, name: &str, value: &Value, scope: &mut Vec<String>) -> Result<()> {
        let Value::Object(fields) = value else { return self.walk(value, scope) };
        for (key, part) in fields {
            let recursive = key == "query_node" && part["type"] == "RECURSIVE_CTE_NODE";
            let Value::Object(node) = part else { continue };
            if !recursive {
                self.walk(part, scope)?;
                continue;
            }
            let outer = scope.len();
            self.enter(part, scope)?;
            for (key, side) in node.iter().filter(|(key, _)| *key != "cte_map") {
                let itself = key == "right";
                if itself {
                    scope.push(fold(name));
                }
                self.walk(side, scope)?;
                if itself {
                    scope.pop();
                }
            }
            scope.truncate(outer);
        }
        Ok(())
    }

    /// The name that this node itself holds.
    fn named(&self, node: &Value, scope: &[String]) -> Result<()> {
        let kind = node["type"].as_str().unwrap_or_default();
        match kind {
            "BASE_TABLE" => {
                let name = path(node);
                match name.as_slice() {
                    [one] if scope.contains(&fold(one)) => Ok(()),
                    // How a recursive CTE that keeps keys reads what it has.
                    [first, one] if first.eq_ignore_ascii_case("recurring") && scope.contains(&fold(one)) => Ok(()),
                    [one] => {
                        if self.written.is_some() {
                            return self.may(&name, Rights::may_read, "read");
                        }
                        if let Some(home) = self.home {
                            self.may(&[home, std::slice::from_ref(one)].concat(), Rights::may_read, "read")?;
                        }
                        self.may(&name, Rights::may_read, "read")
                    }
                    _ => self.may(&name, Rights::may_read, "read"),
                }
            }
            "INSERT_QUERY_NODE" => self.may(&path(node), Rights::may_write, "change"),
            "UPDATE_QUERY_NODE" | "DELETE_QUERY_NODE" => self.may(&path(&node["table"]), Rights::may_write, "change"),
            "COPY_QUERY_NODE" => Err(self.rights.denied("keyword", "COPY in a CTE is not allowed")),
            // DESCRIBE and SUMMARIZE have the query they describe; SHOW TABLES has none.
            "SHOW_REF" if node["query"].is_object() => Ok(()),
            _ if self.written.is_some() && ["COPY_QUERY_NODE", "SHOW_REF", "TABLE_FUNCTION"].contains(&kind) => Ok(()),
            "SHOW_REF" => Err(self
                .rights
                .denied("catalog", "SHOW tells of tables without a grant; ListFlights lists those with one")),
            "TABLE_FUNCTION" => {
                let name = node["function"]["function_name"].as_str().unwrap_or_default();
                let name = fold(name);
                match functions::is_harmless(&name) {
                    true => Ok(()),
                    false => Err(self
                        .rights
                        .denied("function", format!("the table function {name} needs grants on all tables"))),
                }
            }
            // Any other node with the name of something would be one that nobody here has thought of.
            "FUNCTION" | "WINDOW" | "AGGREGATE" | "TYPE" => Ok(()),
            _ if node["class"].is_string() || path(node).is_empty() => Ok(()),
            _ => Err(self.rights.denied("grant", format!("{kind} needs grants on all tables"))),
        }
    }

    fn may(&self, name: &[String], allowed: Allowed, verb: &str) -> Result<()> {
        let system = ["information_schema", "pg_catalog", "system", "temp"];
        let (last, before) = name.split_last().ok_or_else(|| Error::invalid("a table without a name"))?;
        if let Some(written) = self.written {
            let usage = match (verb, self.text.kind) {
                ("read", _) => "read",
                (_, StatementType::Create) => "create",
                (_, StatementType::Drop) => "drop",
                _ => "write",
            };
            written.borrow_mut().push((name.to_vec(), usage));
            return Ok(());
        }
        let of_system = before.iter().any(|part| system.contains(&fold(part).as_str()));
        if of_system || self.text.shared.built_ins().views.contains(&fold(last)) {
            return Err(self.rights.denied(
                "catalog",
                format!("{} tells of tables without a grant; ListFlights lists those with one", name.join(".")),
            ));
        }
        check_name(self.rights, name, self.catalogs, allowed, verb)?;
        self.named.borrow_mut().insert(fold(last));
        Ok(())
    }
}

fn is_change(node: &Value) -> bool {
    matches!(node["type"].as_str(), Some("UPDATE_QUERY_NODE" | "DELETE_QUERY_NODE"))
}

fn path(node: &Value) -> Vec<String> {
    let parts = node["qualified_name"]["path"].as_array();
    parts.into_iter().flatten().filter_map(|part| part.as_str().map(str::to_string)).collect()
}

/// A qualified name at the front, and what is behind it.
pub(super) fn name<'t, 's>(tokens: &'t [Token<'s>]) -> Option<(Vec<String>, &'t [Token<'s>])> {
    let mut parts = Vec::new();
    let mut at = 0;
    loop {
        let token = tokens.get(at).filter(|token| token.is_name())?;
        parts.push(token.identifier());
        at += 1;
        match tokens.get(at) {
            Some(dot) if dot.text == "." => at += 1,
            _ => return Some((parts, &tokens[at..])),
        }
    }
}

pub(super) fn skip_words<'t, 's>(tokens: &'t [Token<'s>], words: &[&str]) -> &'t [Token<'s>] {
    let there = words.iter().enumerate().all(|(at, word)| is_word(tokens.get(at), word));
    if there { &tokens[words.len()..] } else { tokens }
}
