//! A text as DuckDB's tokenizer cuts it, and the limits that hold before DuckDB parses it.

use duckdb::{connection::Connection, enums::TokenType, tokens::SqlTokenIterator};

use super::super::Shared;
use crate::{
    access::fold,
    error::{Error, Result},
};

/// One token that is no comment.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) struct Token<'a> {
    pub(super) kind: TokenType,
    pub(in crate::engine) text: &'a str,
    pub(in crate::engine) start: usize,
}

impl Token<'_> {
    /// A keyword may be a name, too, where the grammar lets it.
    pub(in crate::engine) fn is_name(&self) -> bool {
        matches!(self.kind, TokenType::Keyword | TokenType::Identifier)
    }

    pub(in crate::engine) fn is_keyword(&self) -> bool {
        self.kind == TokenType::Keyword
    }

    pub(in crate::engine) fn is_operator(&self) -> bool {
        // The tokenizer takes a lone dot for the beginning of a number.
        self.kind == TokenType::Operator || self.text == "."
    }

    /// Whether something begins behind it: a bracket, a list's next, a name's next part.
    pub(super) fn opens(&self) -> bool {
        self.is_operator() && self.text.ends_with(['(', ',', '.', '['])
    }

    pub(in crate::engine) fn end(&self) -> usize {
        self.start + self.text.len()
    }

    pub(super) fn is_text(&self) -> bool {
        self.kind == TokenType::StringLiteral
    }

    /// Without quotes, as DuckDB compares names.
    pub(in crate::engine) fn name(&self) -> String {
        fold(&self.identifier())
    }

    /// Without quotes, of which DuckDB has two kinds.
    pub(super) fn identifier(&self) -> String {
        for (quote, twice) in [("\"", "\"\""), ("`", "``")] {
            if let Some(inner) = self.text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
                return inner.replace(twice, quote);
            }
        }
        self.text.to_string()
    }
}

/// Whether it is this bare word.
pub(super) fn is_word(token: Option<&Token<'_>>, word: &str) -> bool {
    token.is_some_and(|token| token.is_name() && token.text.eq_ignore_ascii_case(word))
}

/// The tokens of a text whose nesting is within the limit.
pub(in crate::engine) fn read<'a>(shared: &Shared, connection: &Connection, sql: &'a str) -> Result<Vec<Token<'a>>> {
    let cut = SqlTokenIterator::new(connection, sql).map_err(|error| shared.cause(&error))?;
    let mut tokens = Vec::new();
    for token in cut {
        let token = token.map_err(|error| shared.cause(&error))?;
        if token.token_type == TokenType::Comment {
            continue;
        }
        let text = token.lexeme(sql).ok_or_else(|| Error::invalid("the SQL text cannot be cut into tokens"))?;
        tokens.push(Token { kind: token.token_type, text, start: token.start });
    }
    check_nesting(shared, &tokens)?;
    Ok(tokens)
}

/// What the planner takes long over before it counts expressions: brackets, CASE, chains of operators in front of a value,
/// and of parts of a name. (DuckDB's own max_expression_depth bounds the rest: chains of operators, CTEs and joins.)
fn check_nesting(shared: &Shared, tokens: &[Token<'_>]) -> Result<()> {
    let limit = shared.config.limits.sql_depth;
    let (mut depth, mut signs, mut parts, mut deepest) = (0_usize, 0_usize, 0_usize, 0_usize);
    for token in tokens {
        let is = |word: &str| is_word(Some(token), word);
        if token.is_operator() {
            for character in token.text.chars() {
                match character {
                    '(' | '[' | '{' => depth += 1,
                    ')' | ']' | '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
        }
        if is("case") {
            depth += 1;
        } else if is("end") {
            depth = depth.saturating_sub(1);
        }
        signs =
            if is("not") || (token.is_operator() && !token.text.starts_with(['(', ')', ','])) { signs + 1 } else { 0 };
        parts = match token.text {
            "." => parts + 1,
            _ if token.is_name() => parts,
            _ => 0,
        };
        deepest = deepest.max(depth).max(signs).max(parts);
    }
    if deepest > limit {
        let what = format!("the SQL text nests {deepest} deep, more than {limit}");
        return Err(Error::Limit { what, key: "limits.sql_depth" });
    }
    Ok(())
}
