//! The parse tree of the query within a statement, as DuckDB's JSON. It is asked for once for each statement, and all parts
//! of the guard read the same one.

use std::cell::OnceCell;

use duckdb::{Parameters, connection::Connection, query_result::StatementType};
use serde_json::{Map, Value};

use super::{super::Shared, Token, tokens::is_word};
use crate::error::{Error, Result};

/// One statement of a client's.
pub(super) struct Text<'a> {
    pub(super) shared: &'a Shared,
    pub(super) connection: &'a Connection,
    pub(super) sql: &'a str,
    /// Those of the statement itself, where that is behind EXPLAIN, without semicolons at the end.
    pub(super) tokens: &'a [Token<'a>],
    pub(super) kind: StatementType,
    /// Whether it stands behind EXPLAIN.
    pub(super) explained: bool,
    tree: OnceCell<Option<Value>>,
}

impl<'a> Text<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        connection: &'a Connection,
        sql: &'a str,
        tokens: &'a [Token<'a>],
        kind: StatementType,
        explained: bool,
    ) -> Self {
        let length = tokens.iter().rposition(|token| token.text != ";").map_or(0, |last| last + 1);
        Self { shared, connection, sql, tokens: &tokens[..length], kind, explained, tree: OnceCell::new() }
    }

    /// The tree of the query that the statement holds; none where it has none that DuckDB has a tree of.
    pub(super) fn tree(&self) -> Result<Option<&Value>> {
        if let Some(tree) = self.tree.get() {
            return Ok(tree.as_ref());
        }
        let tree = match self.query() {
            Some(query) => of(self.shared, self.connection, &query)?,
            None => None,
        };
        Ok(self.tree.get_or_init(|| tree).as_ref())
    }

    fn part(&self, from: usize, to: usize) -> Option<&str> {
        Some(&self.sql[self.tokens.get(from)?.start..self.tokens.get(to)?.end()])
    }

    fn is(&self, at: usize, word: &str) -> bool {
        is_word(self.tokens.get(at), word)
    }

    /// The query within the statement as the text of one: DuckDB has trees of queries only.
    fn query(&self) -> Option<String> {
        use StatementType as Kind;
        let last = self.tokens.len().checked_sub(1)?;
        match self.kind {
            Kind::Select => self.part(0, last).map(str::to_string),
            // As the CTE of a query.
            Kind::Insert | Kind::Update | Kind::Delete => {
                Some(format!("WITH mallard_change AS ({}\n) SELECT 1", self.part(0, last)?))
            }
            Kind::Create | Kind::CreateFunc => {
                let what = created(self.tokens)?;
                let is_macro = self.is(what, "macro") || self.is(what, "function");
                let (from, to) = self.body()?;
                let table = self.is(from, "table");
                match (is_macro, table) {
                    (true, false) => Some(format!("SELECT {}\n", self.part(from, to)?)),
                    (true, true) => self.part(from + 1, to).map(str::to_string),
                    (false, _) => self.part(from, to).map(str::to_string),
                }
            }
            // The value of a variable; those of settings are literals.
            Kind::Set | Kind::VariableSet => {
                let variable = (0..=last).find(|at| self.is(*at, "variable"))?;
                // Behind the name.
                let sign = (variable + 2..=last).find(|at| self.tokens[*at].text == "=" || self.is(*at, "to"))?;
                Some(format!("SELECT {}\n", self.part(sign + 1, last)?))
            }
            _ => None,
        }
    }

    /// The first and the last token behind the first AS outside of brackets.
    fn body(&self) -> Option<(usize, usize)> {
        let mut depth = 0_i32;
        let at = self.tokens.iter().position(|token| {
            for sign in token.text.chars().filter(|_| token.is_operator()) {
                depth += i32::from(sign == '(') - i32::from(sign == ')');
            }
            depth == 0 && token.is_keyword() && is_word(Some(token), "as")
        })?;
        let last = self.tokens.len() - 1;
        // CREATE TABLE .. AS .. WITH [NO] DATA
        let ends = |words: &[&str]| {
            let from = self.tokens.len().checked_sub(words.len()).filter(|from| *from > at + 1)?;
            words.iter().enumerate().all(|(offset, word)| self.is(from + offset, word)).then_some(from - 1)
        };
        Some((at + 1, ends(&["with", "data"]).or_else(|| ends(&["with", "no", "data"])).unwrap_or(last)))
    }
}

/// Where a CREATE says what it creates.
pub(super) fn created(tokens: &[Token<'_>]) -> Option<usize> {
    const MODIFIERS: [&str; 9] =
        ["create", "or", "replace", "temp", "temporary", "local", "global", "persistent", "unlogged"];
    tokens.iter().position(|token| !MODIFIERS.iter().any(|word| is_word(Some(token), word)))
}

/// The tree of one query; none where DuckDB has none.
pub(in crate::engine) fn of(shared: &Shared, connection: &Connection, query: &str) -> Result<Option<Value>> {
    let rows = shared.rows(
        connection,
        "SELECT json_serialize_sql($1::VARCHAR, skip_default := true)::VARCHAR",
        Parameters::positional(&[&query]),
    )?;
    let text = rows.into_iter().flatten().next().unwrap_or_default();
    let tree = read(&text)?;
    Ok(Some(tree).filter(|tree| tree["statements"].as_array().is_some_and(|all| all.len() == 1)))
}

/// More levels than a text has that DuckDB binds, by its own max_expression_depth; few enough for the stack of whoever walks
/// the tree.
const DEEPEST: usize = 4096;

/// JSON as DuckDB writes it. serde_json reads 128 levels at most, so here a stack of our own holds them.
fn read(text: &str) -> Result<Value> {
    let bytes = text.as_bytes();
    let odd = || Error::internal("DuckDB's JSON of a parse tree cannot be read");
    // Those that are open, each with the key that its next value has.
    let mut open: Vec<(Value, Option<String>)> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let value = match bytes[at] {
            b' ' | b'\t' | b'\n' | b'\r' | b',' | b':' => {
                at += 1;
                continue;
            }
            b'{' | b'[' => {
                if open.len() == DEEPEST {
                    let what = format!("the parse tree of the SQL text is more than {DEEPEST} levels deep");
                    return Err(Error::Limit { what, key: "limits.sql_depth" });
                }
                open.push((if bytes[at] == b'{' { Value::Object(Map::new()) } else { Value::Array(Vec::new()) }, None));
                at += 1;
                continue;
            }
            b'}' | b']' => {
                at += 1;
                open.pop().ok_or_else(odd)?.0
            }
            b'"' => {
                let mut end = at + 1;
                while *bytes.get(end).ok_or_else(odd)? != b'"' {
                    end += 1 + usize::from(bytes[end] == b'\\');
                }
                let string: String = serde_json::from_str(&text[at..=end]).map_err(|_| odd())?;
                at = end + 1;
                match open.last_mut() {
                    Some((Value::Object(_), key @ None)) => {
                        *key = Some(string);
                        continue;
                    }
                    _ => string.into(),
                }
            }
            _ => {
                let length = bytes[at..].iter().position(|byte| b",]} \t\n\r".contains(byte));
                let end = length.map_or(bytes.len(), |length| at + length);
                let scalar = serde_json::from_str(&text[at..end]).map_err(|_| odd())?;
                at = end;
                scalar
            }
        };
        match open.last_mut() {
            None => return Ok(value),
            Some((Value::Array(items), _)) => items.push(value),
            Some((Value::Object(fields), key)) => drop(fields.insert(key.take().ok_or_else(odd)?, value)),
            Some(_) => return Err(odd()),
        }
    }
    Err(odd())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter("JSON has no others", |number| number.is_finite()).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        scalar.prop_recursive(6, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_is_read_as_serde_json_reads_it(value in json(), pretty in any::<bool>()) {
            let text = if pretty { format!("{value:#}") } else { value.to_string() };
            prop_assert_eq!(read(&text).expect("it is JSON"), serde_json::from_str::<Value>(&text).expect("it is JSON"));
        }

        #[test]
        fn what_is_no_json_is_an_error_or_json_and_no_panic(text in "[\\[\\]{}\",:\\\\0-9a-z ]{0,40}") {
            let _ = read(&text);
        }
    }

    #[test]
    fn deep_json_is_there_or_refused() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        let mut value = &read(&nested(DEEPEST)).expect("as deep as allowed");
        let mut levels = 1;
        while let Some(inner) = value.get(0) {
            (value, levels) = (inner, levels + 1);
        }
        assert_eq!(levels, DEEPEST);
        assert!(matches!(read(&nested(DEEPEST + 1)), Err(Error::Limit { key: "limits.sql_depth", .. })));
    }
}
