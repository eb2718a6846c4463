//! From SQL text to exactly one parsed statement, and what kind of answer it has.

use duckdb::{
    connection::Connection, enums::TokenType, query_result::StatementType, statement::Statement,
    tokens::SqlTokenIterator,
};

use super::{Shared, names};
use crate::error::{Error, Result};

/// Parses `sql`, which must hold exactly one statement that may run outside a session.
pub(super) fn parse(shared: &Shared, connection: &Connection, sql: &str) -> Result<Statement<'static>> {
    let parsed = parse_any(shared, connection, sql)?;
    match kind(&parsed)? {
        StatementType::Transaction => Err(Error::Unsupported(
            "BEGIN, COMMIT and ROLLBACK need a session; here each statement is a transaction of its own".into(),
        )),
        StatementType::Prepare | StatementType::Execute => {
            Err(Error::Unsupported("PREPARE and EXECUTE need a session; send the statement itself".into()))
        }
        _ => Ok(parsed),
    }
}

/// Parses `sql`, which must hold exactly one statement.
pub(super) fn parse_any(shared: &Shared, connection: &Connection, sql: &str) -> Result<Statement<'static>> {
    let mut statements = connection.parse(sql).map_err(|error| shared.cause(&error))?;
    let first = match statements.next() {
        None => return Err(Error::invalid("the SQL text holds no statement")),
        Some(parsed) => parsed.map_err(|error| shared.cause(&error))?,
    };
    if let Some(second) = statements.next() {
        second.map_err(|error| shared.cause(&error))?;
        return Err(Error::invalid("the SQL text holds more than one statement; send one at a time"));
    }
    Ok(first)
}

/// What the text may be before DuckDB sees it.
pub(super) fn check_text(shared: &Shared, sql: &str) -> Result<()> {
    let limit = shared.config.limits.sql_length;
    if sql.len() > limit.bytes() {
        let what = format!("the SQL text is {} bytes long, more than {limit}", sql.len());
        return Err(Error::Limit { what, key: "limits.sql_length" });
    }
    if sql.trim().is_empty() {
        return Err(Error::invalid("the SQL text is empty"));
    }
    if sql.contains('\0') {
        return Err(Error::invalid("the SQL text holds a NUL character"));
    }
    Ok(())
}

pub(super) fn kind(statement: &Statement<'_>) -> Result<StatementType> {
    statement.get_type().map_err(|error| Error::Sql(error.message))
}

/// Whether the statement answers rows of its own, told without running it.
/// Whether a statement that changes nothing may answer rows.
pub(super) fn may_answer_rows(statement: &Statement<'_>) -> Result<bool> {
    Ok(matches!(
        kind(statement)?,
        StatementType::Select
            | StatementType::Explain
            | StatementType::Pragma
            | StatementType::Call
            | StatementType::Relation
            | StatementType::Multi
            | StatementType::Analyze
            | StatementType::Execute
    ))
}

pub(super) fn answers_rows(connection: &Connection, statement: &Statement<'_>) -> Result<bool> {
    let rows = match kind(statement)? {
        StatementType::Insert | StatementType::Update | StatementType::Delete | StatementType::MergeInto => {
            returns(connection, statement)?
        }
        StatementType::Select
        | StatementType::Explain
        | StatementType::Pragma
        | StatementType::Call
        | StatementType::Relation
        | StatementType::Multi
        | StatementType::Analyze => true,
        _ => false,
    };
    Ok(rows)
}

/// Whether a change has a RETURNING of its own: one of a CTE answers to the statement around it.
fn returns(connection: &Connection, statement: &Statement<'_>) -> Result<bool> {
    let sql = statement.get_text().map_err(|error| Error::Sql(error.message))?;
    let tokens = SqlTokenIterator::new(connection, sql).map_err(|error| Error::Sql(error.message))?;
    let (mut depth, mut before_name) = (0_i64, false);
    for token in tokens.flatten().filter(|token| token.token_type != TokenType::Comment) {
        let text = token.lexeme(sql).unwrap_or_default();
        match token.token_type {
            TokenType::Keyword if depth == 0 && !before_name && text.eq_ignore_ascii_case("returning") => {
                return Ok(true);
            }
            TokenType::Operator => {
                let count = |signs: [char; 3]| text.chars().filter(|sign| signs.contains(sign)).count() as i64;
                depth += count(['(', '[', '{']) - count([')', ']', '}']);
            }
            _ => {}
        }
        // A column may be called so.
        before_name = text.eq_ignore_ascii_case("as") || text.ends_with('.');
    }
    Ok(false)
}

/// Whether it changes rows, which a query may do in a CTE.
pub(super) fn changes(connection: &Connection, statement: &Statement<'_>) -> Result<bool> {
    match kind(statement)? {
        StatementType::Insert | StatementType::Update | StatementType::Delete | StatementType::MergeInto => Ok(true),
        StatementType::Select | StatementType::Multi => holds_change(connection, statement),
        _ => Ok(false),
    }
}

/// What may be different after a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing but rows of tables.
    Rows,
    /// Settings of its connection.
    Settings,
    /// Tables, views and all else that has a name. Every statement that is not known to leave them alone: EXPLAIN ANALYZE
    /// runs what it explains.
    Definitions,
}

pub(super) fn effect(connection: &Connection, statement: &Statement<'_>) -> Result<Effect> {
    use StatementType as Kind;
    Ok(match kind(statement)? {
        Kind::Select | Kind::Insert | Kind::Update | Kind::Delete | Kind::MergeInto => Effect::Rows,
        Kind::Set | Kind::VariableSet => Effect::Settings,
        // A type of its connection's own.
        Kind::Multi if expansion(connection, statement)? == Expansion::Pivot => Effect::Settings,
        _ => Effect::Definitions,
    })
}

/// Whether it changes what there is besides rows.
pub(super) fn defines(statement: &Statement<'_>) -> Result<bool> {
    use StatementType as Kind;
    Ok(matches!(kind(statement)?, Kind::Create | Kind::CreateFunc | Kind::Drop | Kind::Alter))
}

fn holds_change(connection: &Connection, statement: &Statement<'_>) -> Result<bool> {
    let sql = statement.get_text().map_err(|error| Error::Sql(error.message))?;
    let tokens = SqlTokenIterator::new(connection, sql).map_err(|error| Error::Sql(error.message))?;
    let tokens = tokens.flatten().filter(|token| token.token_type != TokenType::Comment);
    let verbs = ["insert", "merge", "delete", "update", "truncate"];
    let is_verb = |word: &str| verbs.iter().any(|verb| word.eq_ignore_ascii_case(verb));
    let words = tokens.filter(|token| token.lexeme(sql).is_some_and(is_verb));
    let words: Vec<_> = words.map(|token| token.start..token.start + token.length).collect();
    Ok(names::keyword(connection, sql, &words).is_some())
}

/// Whether it can be ended half way without harm to its transaction. A SELECT may change something in a CTE; DuckDB then
/// aborts the transaction all the same.
pub(super) fn only_reads(statement: &Statement<'_>) -> Result<bool> {
    Ok(matches!(
        kind(statement)?,
        StatementType::Select
            | StatementType::Explain
            | StatementType::Pragma
            | StatementType::Call
            | StatementType::Relation
            | StatementType::Multi
    ))
}

/// Whether bare names mean something else after it.
pub(super) fn moves_names(statement: &Statement<'_>) -> Result<bool> {
    if !matches!(kind(statement)?, StatementType::Set | StatementType::VariableSet) {
        return Ok(false);
    }
    let text = statement.get_text().map_err(|error| Error::Sql(error.message))?.to_lowercase();
    Ok(text.starts_with("use") || ["schema", "search_path"].iter().any(|word| text.contains(word)))
}

/// What a statement is that DuckDB makes several of: ALTER with a default that is no constant, or anything around a PIVOT
/// without its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expansion {
    /// It reads.
    Pivot,
    Change,
    /// It holds a word that may change something, further behind.
    Unclear,
}

pub(super) fn expansion(connection: &Connection, statement: &Statement<'_>) -> Result<Expansion> {
    Ok(expansion_of(connection, statement.get_text().map_err(|error| Error::Sql(error.message))?))
}

/// The same, told from the text.
pub(super) fn expansion_of(connection: &Connection, sql: &str) -> Expansion {
    const READS: [&str; 6] = ["from", "pivot", "pivot_wider", "select", "table", "with"];
    const CHANGES: [&str; 9] = ["alter", "copy", "create", "delete", "drop", "insert", "merge", "truncate", "update"];
    let Ok(tokens) = SqlTokenIterator::new(connection, sql) else { return Expansion::Change };
    let (mut first, mut changes, mut counts) = (None, Vec::new(), false);
    for token in tokens.flatten().filter(|token| token.token_type != TokenType::Comment) {
        let lexeme = token.lexeme(sql).unwrap_or_default();
        let among = |words: &[&str]| words.iter().any(|word| lexeme.eq_ignore_ascii_case(word));
        if first.is_none() && !lexeme.starts_with(['(', ';']) {
            first = Some(among(&READS));
        } else if among(&CHANGES) {
            changes.push(token.start..token.start + token.length);
        }
        // A sequence is the one thing that an expression changes.
        counts |= lexeme.trim_matches(['"', '`']).eq_ignore_ascii_case("nextval");
    }
    match first {
        Some(true) if counts || names::keyword(connection, sql, &changes).is_some() => Expansion::Unclear,
        Some(true) => Expansion::Pivot,
        _ => Expansion::Change,
    }
}

/// The class of a text that was not let through.
pub(super) fn class_of_text(connection: &Connection, sql: &str) -> &'static str {
    let first = connection.parse(sql).ok().and_then(|mut statements| statements.next()?.ok());
    first.and_then(|statement| statement.get_type().ok()).map_or("other", class)
}

/// What kind of statement it is, as the metrics' label says it.
pub(super) fn class(kind: StatementType) -> &'static str {
    match kind {
        StatementType::Select => "select",
        StatementType::Insert => "insert",
        StatementType::Update => "update",
        StatementType::Delete => "delete",
        StatementType::MergeInto => "merge",
        StatementType::Create | StatementType::CreateFunc => "create",
        StatementType::Drop => "drop",
        StatementType::Alter => "alter",
        StatementType::Copy | StatementType::CopyDatabase => "copy",
        StatementType::Explain => "explain",
        _ => "other",
    }
}

/// A statement for people who must not see its values.
pub(super) struct Description {
    /// What it does: SELECT, INSERT ..
    pub(super) operation: String,
    /// The operation and the tables it names, of few different values.
    pub(super) summary: String,
    /// The tables it names, as they are written.
    pub(super) targets: Vec<String>,
    /// The text, each literal a `?`, without comments.
    pub(super) text: String,
}

/// A summary names so many tables at most.
const MAX_TARGETS: usize = 4;

/// What may stand in front of a table's name, or in its place.
const NO_NAMES: [&str; 9] = ["exists", "if", "lateral", "not", "only", "select", "values", "where", "with"];

pub(super) fn describe(connection: &Connection, sql: &str, class: &str) -> Description {
    let operation = class.to_uppercase();
    let (mut text, mut targets) = (String::new(), Vec::<String>::new());
    // Between FROM, INTO, JOIN .. and the first word that is no part of a name.
    // And whether a comma is followed by one more.
    let (mut naming, mut listing, mut end) = (false, false, 0);
    let Ok(tokens) = SqlTokenIterator::new(connection, sql) else {
        return Description { summary: operation.clone(), operation, targets, text: "?".into() };
    };
    for token in tokens.flatten() {
        // A text that cannot be cut is not shown.
        let Some(lexeme) = token.lexeme(sql) else { break };
        let gap = token.start > end;
        end = token.start + token.length;
        if matches!(token.token_type, TokenType::Comment) {
            continue;
        }
        if gap && !text.is_empty() {
            text.push(' ');
        }
        match token.token_type {
            TokenType::StringLiteral | TokenType::NumberLiteral => text.push('?'),
            _ => text.push_str(lexeme),
        }
        match token.token_type {
            TokenType::Keyword => {
                let among = |words: &[&str]| words.iter().any(|word| lexeme.eq_ignore_ascii_case(word));
                let opens = among(&["from", "into", "join", "table", "update", "view"]);
                match targets.last_mut().filter(|name| naming && (name.is_empty() || name.ends_with('.'))) {
                    // A table may be called what is a keyword elsewhere.
                    Some(name) if !opens && !among(&NO_NAMES) => name.push_str(lexeme),
                    _ => {
                        listing &= among(&["as"]);
                        naming = opens;
                    }
                }
                if opens {
                    listing = among(&["from"]);
                    targets.push(String::new());
                }
            }
            TokenType::Identifier
                if naming && targets.last().is_some_and(|name| name.is_empty() || name.ends_with('.')) =>
            {
                targets.last_mut().into_iter().for_each(|name| name.push_str(lexeme));
            }
            // Behind a table's name: its alias.
            TokenType::Identifier => naming = false,
            // The tokenizer takes a lone dot for the beginning of a number.
            _ if naming && lexeme == "." => targets.last_mut().into_iter().for_each(|name| name.push('.')),
            _ if listing && lexeme == "," => {
                naming = true;
                targets.push(String::new());
            }
            _ => (naming, listing) = (false, false),
        }
    }
    let mut summary = operation.clone();
    targets.retain(|name| !name.is_empty());
    for target in targets.iter().take(MAX_TARGETS) {
        summary.push(' ');
        summary.push_str(target);
    }
    Description { operation, summary, targets, text }
}
