//! Texts of several statements, taken apart as DuckDB's tokenizer sees them. For the command line.

use duckdb::{enums::TokenType, tokens::SqlTokenIterator};

use super::Engine;
use crate::{access::Rights, error::Result};

/// A text, as far as it is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Each without the semicolon that ends it.
    pub statements: Vec<String>,
    /// What comes after the last semicolon.
    pub rest: String,
    /// Whether the rest holds something to run.
    pub unfinished: bool,
}

impl Engine {
    /// Where statements end: at semicolons that are in no string, name or comment.
    pub async fn script(&self, text: &str) -> Result<Script> {
        let text = text.to_string();
        self.call(&Rights::all("local"), move |shared, connection| {
            let tokens = SqlTokenIterator::new(connection, &text).map_err(|error| shared.cause(&error))?;
            let (mut statements, mut start, mut some) = (Vec::new(), 0, false);
            for token in tokens {
                let token = token.map_err(|error| shared.cause(&error))?;
                match token.token_type {
                    TokenType::Terminator => {
                        if some {
                            statements.extend(text.get(start..token.start).map(|sql| sql.trim().to_string()));
                        }
                        (start, some) = (token.start + token.length, false);
                    }
                    TokenType::Comment => {}
                    _ => some = true,
                }
            }
            let rest = text.get(start..).unwrap_or_default().to_string();
            Ok(Script { statements, rest, unfinished: some })
        })
        .await
    }
}
