//! Texts of several statements, taken apart as DuckDB's tokenizer sees them.

use std::sync::Arc;

use duckdb::{connection::Connection, enums::TokenType, tokens::SqlTokenIterator};

use super::{Engine, Shared, guard, statement};
use crate::{
    access::Rights,
    error::{Error, Result},
};

/// A text, as far as it is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    pub statements: Vec<Part>,
    /// What comes after the last semicolon.
    pub rest: String,
    /// The statement in it, where there is one.
    pub unfinished: Option<Part>,
}

/// One statement of a text, without the semicolon that ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub sql: String,
    /// On which line of the text it begins, from 1.
    pub line: usize,
}

impl Part {
    fn of(text: &str, start: usize, end: usize) -> Self {
        let whole = text.get(start..end).unwrap_or_default();
        let begin = start + (whole.len() - whole.trim_start().len());
        let line = 1 + text.get(..begin).unwrap_or_default().matches('\n').count();
        Self { sql: whole.trim().to_string(), line }
    }
}

/// Whether a text may hold more than one statement, told at once.
pub fn may_hold_several(text: &str) -> bool {
    text.trim_end_matches(|end: char| end == ';' || end.is_whitespace()).contains(';')
}

impl Engine {
    /// Where statements end: at semicolons that are in no string, name or comment.
    pub async fn script(&self, text: &str) -> Result<Script> {
        let text = text.to_string();
        self.call(&Rights::all("local"), move |shared, connection| cut(shared, connection, &text)).await
    }

    /// The statements of a client's text, as many as there may be in one, each of which DuckDB's parser takes.
    pub async fn parts(&self, rights: &Arc<Rights>, text: &str) -> Result<Vec<Part>> {
        statement::check_text(&self.shared, text)?;
        let text = text.to_string();
        self.call(rights, move |shared, connection| {
            guard::read(shared, connection, &text)?;
            let Script { statements: mut parts, rest: _, unfinished } = cut(shared, connection, &text)?;
            parts.extend(unfinished);
            let most = shared.config.limits.statements_per_text;
            if parts.len() > most {
                let what =
                    format!("the SQL text holds {} statements, more than {most}; nothing of it was run", parts.len());
                return Err(Error::Limit { what, key: "limits.statements_per_text" });
            }
            for (at, part) in parts.iter().enumerate() {
                let parsed = statement::parse_any(shared, connection, &part.sql);
                parsed.map_err(|error| error.of_statement(at + 1, parts.len(), part.line))?;
            }
            Ok(parts)
        })
        .await
    }
}

fn cut(shared: &Shared, connection: &Connection, text: &str) -> Result<Script> {
    let tokens = SqlTokenIterator::new(connection, text).map_err(|error| shared.cause(&error))?;
    let (mut statements, mut start, mut some) = (Vec::new(), 0, None);
    for token in tokens {
        let token = token.map_err(|error| shared.cause(&error))?;
        match token.token_type {
            TokenType::Terminator => {
                statements.extend(some.map(|begin| Part::of(text, begin, token.start)));
                (start, some) = (token.start + token.length, None);
            }
            TokenType::Comment => {}
            // Comments in front stay in the text before.
            _ => some = some.or(Some(token.start)),
        }
    }
    let rest = text.get(start..).unwrap_or_default().to_string();
    Ok(Script { statements, rest, unfinished: some.map(|begin| Part::of(text, begin, text.len())) })
}
