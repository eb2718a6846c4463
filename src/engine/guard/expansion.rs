//! What a text expands to while DuckDB binds it: the columns that stars stand for, the bodies of macros, and joins.
//!
//! DuckDB's planner asks neither for a deadline nor for an interrupt nor for memory, and doubles with each of
//! `SELECT *, * FROM (..)` around another one: 19 of them, 369 bytes, took 23 s (2.0.0, two cores). So the size that
//! a text would reach is estimated on DuckDB's parse tree before the text is bound, and what is larger than the limits is
//! refused. A text without many stars, joins and macros is not looked at: reading its tokens says so.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use duckdb::{Parameters, connection::Connection, query_result::StatementType};
use serde_json::Value;

use super::{
    super::{Shared, pool::lock},
    Token,
    tokens::{self, is_word},
    tree::{self, Text},
};
use crate::{
    engine::literal,
    error::{Error, Result},
};

/// Texts with fewer stars are not looked at: with three doublings of the widest table, they stay small.
const FEW_STARS: usize = 4;

/// The same of joins, where CTEs may be joined with themselves.
const FEW_JOINS: usize = 4;

/// Columns of a table function whose columns are not known before it is bound.
const COLUMNS_OF_FUNCTION: u64 = 32;

/// Refuses a text that expands beyond `limits.sql_joins` or `limits.sql_expansion`. Whether the catalog was looked at for that.
pub(super) fn check(text: &Text<'_>, version: Option<u64>) -> Result<bool> {
    let Text { shared, connection, tokens, .. } = *text;
    let through_views = joins_of_views(text, version)?;
    let joins = joins(tokens).saturating_add(through_views);
    // DuckDB draws an explained plan as wide as it is deep, which takes the cube of its operators.
    let most = shared.config.limits.sql_joins / if text.explained { 4 } else { 1 };
    if joins > most {
        let explained = if text.explained { ", as EXPLAIN of it may have" } else { "" };
        let what = format!("the SQL text has {joins} joins and set operations, more than {most}{explained}");
        return Err(Error::Limit { what, key: "limits.sql_joins" });
    }
    let elements = array_elements(tokens);
    if elements > MOST_ELEMENTS {
        return Err(Error::invalid(format!(
            "an array type of the SQL text has {elements} elements in each value, more than {MOST_ELEMENTS}"
        )));
    }
    let lambdas = lambdas(tokens);
    if lambdas > shared.config.limits.sql_expansion as u64 {
        let what = format!("DuckDB would bind the lambdas of the SQL text, which stand in each other, {lambdas} times");
        return Err(Error::Limit { what, key: "limits.sql_expansion" });
    }
    let stars: usize = (0..tokens.len()).map(|at| stars_at(tokens, at)).sum();
    let with = tokens.iter().any(|token| is_word(Some(token), "with"));
    let called = called(shared, tokens);
    let few = stars < FEW_STARS && !(with && joins >= FEW_JOINS);
    if few && called.is_empty() {
        return Ok(false);
    }
    let mut expansion = Expansion {
        shared,
        connection,
        limit: shared.config.limits.sql_expansion as u64,
        sum: 0,
        tables: HashMap::new(),
        macros: HashMap::new(),
        costs: HashMap::new(),
    };
    expansion.load_macros(called)?;
    if few && expansion.macros.is_empty() {
        return Ok(true);
    }
    expansion.load_tables(tokens)?;
    match text.tree()? {
        Some(tree) => drop(expansion.columns(&tree["statements"][0]["node"], &mut Vec::new())?),
        // Without a tree, each SELECT list is taken to be nested in the one before.
        None => expansion.text(tokens)?,
    }
    Ok(true)
}

/// The stars of one token: signs behind which no product is, and COLUMNS.
fn stars_at(tokens: &[Token<'_>], at: usize) -> usize {
    let token = &tokens[at];
    if !token.is_operator() {
        return usize::from(is_word(Some(token), "columns"));
    }
    let before = at.checked_sub(1).map(|before| &tokens[before]);
    let opens = |sign: char| matches!(sign, ',' | '.' | '(');
    let mut stars = 0;
    let mut last = None;
    for sign in token.text.chars() {
        if sign == '*' {
            stars += usize::from(match last {
                Some(sign) => opens(sign),
                None => before.is_none_or(|token| token.is_keyword() || token.opens()),
            });
        }
        last = Some(sign);
    }
    stars
}

/// Unions that count as one join: they are planned so much sooner, and programs write hundreds.
const UNIONS: usize = 16;

/// JOIN, commas between relations, and set operations.
fn joins(tokens: &[Token<'_>]) -> usize {
    const ENDS: [&str; 11] =
        ["where", "group", "having", "window", "qualify", "order", "limit", "offset", "select", "returning", "set"];
    // For each open bracket, and outside of all: whether a FROM clause is read.
    let (mut clauses, mut joins, mut unions) = (vec![false], 0, 0);
    for token in tokens {
        if token.is_keyword() {
            let word = token.name();
            let from = clauses.last_mut().expect("never empty");
            match word.as_str() {
                "from" | "using" => *from = true,
                "join" => joins += 1,
                "except" | "intersect" => (joins, *from) = (joins + 1, false),
                "union" => (unions, *from) = (unions + 1, false),
                word if ENDS.contains(&word) => *from = false,
                _ => {}
            }
            continue;
        }
        if !token.is_operator() {
            continue;
        }
        for sign in token.text.chars() {
            match sign {
                '(' | '[' | '{' => clauses.push(false),
                ')' | ']' | '}' if clauses.len() > 1 => drop(clauses.pop()),
                ',' => joins += usize::from(clauses.last() == Some(&true)),
                _ => {}
            }
        }
    }
    joins + unions / UNIONS
}

/// DuckDB allocates 2,048 values of an array type at once, and takes more than 2^48 bytes for a defect of its own, after which
/// the database has to be opened anew.
const MOST_ELEMENTS: u64 = 1 << 26;

/// The largest array type of a text: INTEGER[3][4] has 12 elements, and so has STRUCT(a INTEGER[3])[4]. Larger sizes than
/// DuckDB's largest are places in a list.
fn array_elements(tokens: &[Token<'_>]) -> u64 {
    const LARGEST: u64 = 100_000;
    // For each open bracket: the largest in it, and of what it stands behind.
    let (mut open, mut behind, mut size) = (vec![(1_u64, 1_u64)], 1_u64, None);
    let mut largest = 1;
    for token in tokens {
        if !token.is_operator() {
            let number = token.text.parse::<u64>().ok();
            (size, behind) = (number.filter(|number| *number <= LARGEST), if number.is_some() { behind } else { 1 });
            continue;
        }
        for sign in token.text.chars() {
            match sign {
                '(' | '[' | '{' => {
                    open.push((1, behind));
                    behind = 1;
                }
                ')' | ']' | '}' if open.len() > 1 => {
                    let (within, before) = open.pop().unwrap_or((1, 1));
                    behind = match (sign, size) {
                        (']', Some(size)) => before.saturating_mul(size),
                        (']', None) => before.max(within),
                        _ => within,
                    };
                    largest = largest.max(behind);
                    let around = open.last_mut().expect("the outermost is never closed");
                    around.0 = around.0.max(behind);
                }
                _ => behind = 1,
            }
            size = None;
        }
    }
    largest
}

/// How often DuckDB binds lambdas: each one's body twice, and so those in it. `[body FOR x IN list]` is one.
fn lambdas(tokens: &[Token<'_>]) -> u64 {
    #[derive(Default)]
    struct Bracket {
        /// Of what stands in front of the lambda, or in a bracket without one.
        beside: u64,
        body: u64,
        lambda: bool,
        comprehension: bool,
    }
    impl Bracket {
        fn cost(&self) -> u64 {
            let once = self.beside.saturating_add(self.body);
            match self.lambda || self.comprehension {
                true => once.saturating_add(if self.lambda { self.body } else { self.beside }).saturating_add(1),
                false => once,
            }
        }
    }
    let mut open = vec![Bracket::default()];
    let close = |open: &mut Vec<Bracket>| {
        let cost = open.pop().map_or(0, |closed| closed.cost());
        let around = open.last_mut().expect("the outermost is never closed");
        let sum = if around.lambda { &mut around.body } else { &mut around.beside };
        *sum = sum.saturating_add(cost);
    };
    for token in tokens {
        let innermost = open.last_mut().expect("never empty");
        if is_word(Some(token), "lambda") {
            innermost.lambda = true;
        } else if is_word(Some(token), "for") {
            innermost.comprehension = true;
        }
        for sign in token.text.chars().filter(|_| token.is_operator()) {
            match sign {
                '(' | '[' | '{' => open.push(Bracket::default()),
                ')' | ']' | '}' if open.len() > 1 => close(&mut open),
                _ => {}
            }
        }
    }
    while open.len() > 1 {
        close(&mut open);
    }
    open[0].cost()
}

/// The relations that stand in FROM clauses, by the last part of their names.
fn relations(tokens: &[Token<'_>]) -> Vec<String> {
    let mut relations = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let qualifies = tokens.get(at + 1).is_some_and(|next| next.text == ".");
        if !token.is_name() || qualifies {
            continue;
        }
        let mut first = at;
        while first >= 2 && tokens[first - 1].text == "." && tokens[first - 2].is_name() {
            first -= 2;
        }
        let Some(before) = first.checked_sub(1).map(|before| &tokens[before]) else { continue };
        let opens = ["describe", "from", "join", "pivot", "summarize", "table", "using"];
        let in_from = || {
            let clauses = ["from", "group", "having", "join", "on", "order", "select", "set", "values", "where"];
            let last = tokens[..first].iter().rfind(|one| one.is_keyword() && clauses.contains(&one.name().as_str()));
            last.is_some_and(|one| matches!(one.name().as_str(), "from" | "join" | "on"))
        };
        if opens.iter().any(|word| is_word(Some(before), word)) || (before.opens() && in_from()) {
            relations.push(token.name());
        }
    }
    relations
}

/// The joins of the views that a text reads, and of those that these read.
fn joins_of_views(text: &Text<'_>, version: Option<u64>) -> Result<usize> {
    let Text { shared, connection, tokens, .. } = *text;
    let read = relations(tokens);
    // A text that reads no view is most often told so without a look at the catalog.
    if let Some(version) = version {
        let known = lock(&shared.views).as_ref().filter(|(of, _)| *of == version).map(|(_, names)| names.clone());
        let names = match known {
            Some(names) => names,
            None => {
                let sql = "SELECT lower(view_name) FROM duckdb_views() WHERE NOT internal";
                let names: Arc<HashSet<String>> =
                    Arc::new(shared.rows(connection, sql, Parameters::None)?.into_iter().flatten().collect());
                *lock(&shared.views) = Some((version, names.clone()));
                names
            }
        };
        if !read.iter().any(|name| names.contains(name)) {
            return Ok(0);
        }
    } else if text.kind == StatementType::Select && joins(tokens) == 0 && !shared.catalogs(connection)?.change_outside()
    {
        // What a transaction or a session has made itself was looked at when it was created.
        return Ok(0);
    }
    let mut views: HashMap<String, (usize, Vec<String>)> = HashMap::new();
    let mut wanted: HashSet<String> = read.iter().cloned().collect();
    while !wanted.is_empty() {
        let listed: Vec<String> = wanted.iter().map(|name| literal(name)).collect();
        let sql = format!(
            "SELECT lower(view_name), sql FROM duckdb_views() WHERE NOT internal AND lower(view_name) IN ({})",
            listed.join(", ")
        );
        let mut next = HashSet::new();
        for row in shared.rows(connection, &sql, Parameters::None)? {
            let [name, sql] = row.as_slice() else { continue };
            let Ok(tokens) = tokens::read(shared, connection, sql) else { continue };
            let (own, inner) = (joins(&tokens), relations(&tokens));
            next.extend(inner.iter().cloned());
            // The largest of those that are called so.
            let view = views.entry(name.clone()).or_default();
            if own.saturating_add(inner.len()) >= view.0.saturating_add(view.1.len()) {
                *view = (own, inner);
            }
        }
        wanted = next.into_iter().filter(|name| !views.contains_key(name)).collect();
        wanted.retain(|name| listed.iter().all(|known| *known != literal(name)));
    }
    let mut sums = HashMap::new();
    Ok(read.iter().fold(0, |sum: usize, name| sum.saturating_add(joins_of_view(name, &views, &mut sums))))
}

fn joins_of_view(
    name: &str,
    views: &HashMap<String, (usize, Vec<String>)>,
    sums: &mut HashMap<String, usize>,
) -> usize {
    if let Some(known) = sums.get(name) {
        return *known;
    }
    let Some((own, inner)) = views.get(name) else { return 0 };
    // A view that reads itself is DuckDB's to refuse.
    sums.insert(name.to_string(), 0);
    let sum = inner.iter().fold(*own, |sum, name| sum.saturating_add(joins_of_view(name, views, sums)));
    sums.insert(name.to_string(), sum);
    sum
}

/// What the text calls and DuckDB does not have built in: macros, if there are any.
fn called(shared: &Shared, tokens: &[Token<'_>]) -> HashSet<String> {
    let opens = |at: usize| tokens.get(at + 1).is_some_and(|next| next.text.starts_with('('));
    let calls = tokens.iter().enumerate().filter(|(at, token)| token.is_name() && opens(*at));
    calls.map(|(_, token)| token.name()).filter(|name| !shared.built_ins().has(name)).collect()
}

/// One overload.
struct Macro {
    parameters: HashSet<String>,
    /// The parse tree of the query, or of `SELECT` with the expression.
    tree: Value,
    is_table: bool,
}

/// What a call of a scalar macro expands to.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// Calls and operators of its own.
    own: u64,
    /// How often an argument stands in it.
    arguments: u64,
}

struct Expansion<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
    limit: u64,
    /// Columns of all nodes so far.
    sum: u64,
    /// Columns by name; the widest where several tables have it.
    tables: HashMap<String, u64>,
    macros: HashMap<String, Vec<Macro>>,
    /// Nothing while one is being looked at: a macro that calls itself.
    costs: HashMap<String, Option<(u64, Cost)>>,
}

type Scope = Vec<(String, u64)>;

impl Expansion<'_> {
    fn too_large(&self, size: u64) -> Error {
        let what = format!("the SQL text expands to {size} columns or calls, more than {}", self.limit);
        Error::Limit { what, key: "limits.sql_expansion" }
    }

    fn bounded(&mut self, size: u64) -> Result<u64> {
        self.sum = self.sum.saturating_add(size);
        if size > self.limit || self.sum > self.limit.saturating_mul(4) {
            return Err(self.too_large(size));
        }
        Ok(size)
    }

    /// The macros of these names, and those that they call.
    fn load_macros(&mut self, names: HashSet<String>) -> Result<()> {
        let mut wanted: Vec<String> = names.into_iter().collect();
        while !wanted.is_empty() {
            let listed: Vec<String> = wanted.iter().map(|name| literal(name)).collect();
            let found = self.shared.rows(
                self.connection,
                &format!(
                    "SELECT lower(function_name), lower(array_to_string(parameters, chr(0))), macro_definition, \
                     function_type FROM duckdb_functions() WHERE NOT internal AND macro_definition IS NOT NULL AND \
                     lower(function_name) IN ({})",
                    listed.join(", ")
                ),
                Parameters::None,
            )?;
            wanted.clear();
            for row in found {
                let [name, parameters, definition, kind] = row.as_slice() else { continue };
                let is_table = kind == "table_macro";
                let body = if is_table { definition.clone() } else { format!("SELECT {definition}") };
                let Some(tree) = tree::of(self.shared, self.connection, &body)? else { continue };
                names_in(&tree, &mut wanted);
                let parameters = parameters.split('\0').map(str::to_string).collect();
                self.macros.entry(name.clone()).or_default().push(Macro { parameters, tree, is_table });
            }
            wanted.retain(|name| !self.shared.built_ins().has(name) && !self.macros.contains_key(name));
            wanted.sort();
            wanted.dedup();
        }
        Ok(())
    }

    /// The columns of the tables and views that the text and its macros may name.
    fn load_tables(&mut self, tokens: &[Token<'_>]) -> Result<()> {
        let mut names: HashSet<String> = tokens.iter().filter(|token| token.is_name()).map(Token::name).collect();
        for one in self.macros.values().flatten() {
            tables_in(&one.tree, &mut names);
        }
        let listed: Vec<String> = names.iter().map(|name| literal(name)).collect();
        if listed.is_empty() {
            return Ok(());
        }
        let listed = listed.join(", ");
        let found = self.shared.rows(
            self.connection,
            &format!(
                "SELECT name, max(columns)::VARCHAR FROM (\
                   SELECT lower(table_name) AS name, column_count AS columns FROM duckdb_tables() \
                   WHERE lower(table_name) IN ({listed}) \
                   UNION ALL SELECT lower(view_name), column_count FROM duckdb_views() \
                   WHERE lower(view_name) IN ({listed})) GROUP BY name"
            ),
            Parameters::None,
        )?;
        self.tables = found
            .into_iter()
            .filter_map(|row| <[String; 2]>::try_from(row).ok())
            .filter_map(|[name, columns]| Some((name, columns.parse().ok()?)))
            .collect();
        Ok(())
    }

    /// The columns that a query node answers.
    fn columns(&mut self, node: &Value, scope: &mut Scope) -> Result<u64> {
        let outer = scope.len();
        for cte in node["cte_map"]["map"].as_array().into_iter().flatten() {
            let name = cte["key"].as_str().unwrap_or_default().to_lowercase();
            let query = &cte["value"]["query_node"];
            // A recursive one has the columns of the part that does not recur.
            let columns = self.columns(query, scope)?;
            scope.push((name, columns));
        }
        let columns = match node["type"].as_str().unwrap_or_default() {
            "SELECT_NODE" => self.select(node, scope)?,
            "RECURSIVE_CTE_NODE" => {
                let columns = self.columns(&node["left"], scope)?;
                let name = node["cte_name"].as_str().unwrap_or_default().to_lowercase();
                scope.push((name, columns));
                self.columns(&node["right"], scope)?;
                columns
            }
            _ => {
                let mut widest = 0;
                for child in node["children"].as_array().into_iter().flatten() {
                    widest = widest.max(self.columns(child, scope)?);
                }
                self.parts(node, &["children", "cte_map"], scope)?;
                widest
            }
        };
        scope.truncate(outer);
        Ok(columns)
    }

    fn select(&mut self, node: &Value, scope: &mut Scope) -> Result<u64> {
        let width = self.relation(&node["from_table"], scope)?;
        let mut columns: u64 = 0;
        for item in node["select_list"].as_array().into_iter().flatten() {
            columns = columns.saturating_add(if has_star(item) { width.max(1) } else { 1 });
        }
        self.bounded(columns)?;
        self.parts(node, &["from_table", "cte_map"], scope)?;
        Ok(columns)
    }

    /// The columns of what stands in a FROM clause.
    fn relation(&mut self, node: &Value, scope: &mut Scope) -> Result<u64> {
        match node["type"].as_str().unwrap_or_default() {
            "EMPTY" => Ok(0),
            "JOIN" => {
                let (left, right) = (self.relation(&node["left"], scope)?, self.relation(&node["right"], scope)?);
                self.parts(node, &["left", "right"], scope)?;
                self.bounded(left.saturating_add(right))
            }
            "SUBQUERY" => self.columns(&node["subquery"]["node"], scope),
            "BASE_TABLE" => {
                let path = node["qualified_name"]["path"].as_array();
                let name = path.and_then(|path| path.last()).and_then(Value::as_str).unwrap_or_default().to_lowercase();
                let cte = scope.iter().rev().find(|(cte, _)| *cte == name).map(|(_, columns)| *columns);
                Ok(cte.or_else(|| self.tables.get(&name).copied()).unwrap_or(COLUMNS_OF_FUNCTION))
            }
            "TABLE_FUNCTION" => {
                let name = node["function"]["function_name"].as_str().unwrap_or_default().to_lowercase();
                self.parts(&node["function"]["arguments"], &[], scope)?;
                match self.macros.contains_key(&name) {
                    true => self.called(&name).map(|(columns, _)| columns),
                    false => Ok(COLUMNS_OF_FUNCTION),
                }
            }
            "EXPRESSION_LIST" => {
                self.parts(node, &[], scope)?;
                Ok(node["values"][0].as_array().map_or(0, |row| row.len() as u64))
            }
            // PIVOT and what DuckDB may have next: all that stands in it, beside each other.
            _ => {
                let mut columns: u64 = COLUMNS_OF_FUNCTION;
                for (key, part) in node.as_object().into_iter().flatten() {
                    if part["type"].is_string() && !part["class"].is_string() && key != "query" {
                        columns = columns.saturating_add(self.relation(part, scope)?);
                    } else if key == "query" {
                        columns = columns.saturating_add(self.columns(part, scope)?);
                    } else {
                        self.parts(part, &[], scope)?;
                    }
                }
                self.bounded(columns)
            }
        }
    }

    /// Subqueries and calls of macros among the expressions below a node.
    fn parts(&mut self, node: &Value, without: &[&str], scope: &mut Scope) -> Result<()> {
        self.walk(node, without, scope, self.macros.is_empty())
    }

    /// `counted` says that the calls below this node have been counted with one above it.
    fn walk(&mut self, node: &Value, without: &[&str], scope: &mut Scope, mut counted: bool) -> Result<()> {
        match node {
            Value::Array(items) => items.iter().try_for_each(|item| self.walk(item, &[], scope, counted)),
            Value::Object(fields) => {
                if !counted && node["class"].is_string() {
                    let cost = self.cost(node, &HashSet::new())?;
                    self.bounded(cost.own)?;
                    counted = true;
                }
                for (key, value) in fields.iter().filter(|(key, _)| !without.contains(&key.as_str())) {
                    match key.as_str() {
                        "subquery" => drop(self.columns(&value["node"], scope)?),
                        _ if value["type"].as_str().is_some_and(|kind| kind.ends_with("_NODE")) => {
                            self.columns(value, scope)?;
                        }
                        _ => self.walk(value, &[], scope, counted)?,
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What the calls of macros in an expression expand to; what is written there is within the length of the text.
    fn cost(&mut self, node: &Value, parameters: &HashSet<String>) -> Result<Cost> {
        let mut cost = Cost::default();
        match node {
            Value::Array(items) => {
                for item in items {
                    cost = cost.and(self.cost(item, parameters)?);
                }
            }
            Value::Object(fields) => {
                if node["class"] == "COLUMN_REF" {
                    let last = node["column_names"].as_array().and_then(|names| names.last()).and_then(Value::as_str);
                    let given = last.is_some_and(|name| parameters.contains(&name.to_lowercase()));
                    return Ok(Cost { own: 0, arguments: u64::from(given) });
                }
                for value in fields.values() {
                    cost = cost.and(self.cost(value, parameters)?);
                }
                if node["class"] == "LAMBDA" {
                    cost = Cost {
                        own: cost.own.saturating_mul(2).saturating_add(1),
                        arguments: cost.arguments.saturating_mul(2),
                    };
                }
                let name = node["function_name"].as_str().map(str::to_lowercase);
                if let Some(name) = name.filter(|name| node["class"] == "FUNCTION" && self.macros.contains_key(name)) {
                    let (_, body) = self.called(&name)?;
                    cost = Cost {
                        own: body.own.saturating_add(body.arguments.max(1).saturating_mul(cost.own)),
                        arguments: body.arguments.max(1).saturating_mul(cost.arguments),
                    };
                } else if node["class"] == "FUNCTION" && !parameters.is_empty() {
                    cost.own = cost.own.saturating_add(1);
                }
                if cost.own.max(cost.arguments) > self.limit {
                    return Err(self.too_large(cost.own.max(cost.arguments)));
                }
            }
            _ => {}
        }
        Ok(cost)
    }

    /// The columns of a table macro, and what a call of a scalar one expands to.
    fn called(&mut self, name: &str) -> Result<(u64, Cost)> {
        match self.costs.get(name) {
            Some(Some(known)) => return Ok(*known),
            Some(None) => return Err(Error::invalid(format!("the macro {name} calls itself"))),
            None => drop(self.costs.insert(name.to_string(), None)),
        }
        let overloads = self.macros.remove(name).unwrap_or_default();
        let (mut columns, mut cost) = (0, Cost::default());
        // There while its body is looked at, so that a call of itself is seen.
        self.macros.insert(name.to_string(), Vec::new());
        for Macro { parameters, tree, is_table } in &overloads {
            let node = &tree["statements"][0]["node"];
            // A scalar one without parameters costs what is written in it, too.
            let mut named = parameters.clone();
            named.insert(String::new());
            let one = self.cost(node, &named)?;
            cost = Cost { own: cost.own.max(one.own).max(1), arguments: cost.arguments.max(one.arguments) };
            let answered = self.columns(node, &mut Vec::new())?;
            if *is_table {
                columns = columns.max(answered);
            }
        }
        self.macros.insert(name.to_string(), overloads);
        self.costs.insert(name.to_string(), Some((columns, cost)));
        Ok((columns, cost))
    }

    /// For a text of which there is no tree.
    fn text(&mut self, tokens: &[Token<'_>]) -> Result<()> {
        let widest = self.tables.values().copied().max().unwrap_or(COLUMNS_OF_FUNCTION);
        let (mut size, mut stars) = (widest, 0_u64);
        for (at, token) in tokens.iter().enumerate() {
            if is_word(Some(token), "select") || is_word(Some(token), "from") {
                size = size.saturating_mul(stars.max(1));
                stars = 0;
            }
            stars += stars_at(tokens, at) as u64;
        }
        self.bounded(size.saturating_mul(stars.max(1))).map(drop)
    }
}

impl Cost {
    fn and(self, other: Self) -> Self {
        Self { own: self.own.saturating_add(other.own), arguments: self.arguments.saturating_add(other.arguments) }
    }
}

/// Whether a star stands in an expression, outside of its subqueries.
fn has_star(node: &Value) -> bool {
    match node {
        Value::Array(items) => items.iter().any(has_star),
        Value::Object(fields) => {
            node["class"] == "STAR" || fields.iter().any(|(key, value)| key != "subquery" && has_star(value))
        }
        _ => false,
    }
}

/// The functions that a tree calls.
fn names_in(node: &Value, names: &mut Vec<String>) {
    match node {
        Value::Array(items) => items.iter().for_each(|item| names_in(item, names)),
        Value::Object(fields) => {
            names.extend(node["function_name"].as_str().map(str::to_lowercase));
            fields.values().for_each(|value| names_in(value, names));
        }
        _ => {}
    }
}

/// The tables that a tree names.
fn tables_in(node: &Value, names: &mut HashSet<String>) {
    match node {
        Value::Array(items) => items.iter().for_each(|item| tables_in(item, names)),
        Value::Object(fields) => {
            if node["type"] == "BASE_TABLE" {
                let path = node["qualified_name"]["path"].as_array();
                names.extend(path.and_then(|path| path.last()).and_then(Value::as_str).map(str::to_lowercase));
            }
            fields.values().for_each(|value| tables_in(value, names));
        }
        _ => {}
    }
}
