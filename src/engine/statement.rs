//! From SQL text to exactly one parsed statement, and what kind of answer it has.

use duckdb::{
    connection::Connection, enums::TokenType, query_result::StatementType, statement::Statement,
    tokens::SqlTokenIterator,
};

use super::Shared;
use crate::error::{Error, Result};

/// Parses `sql`, which must hold exactly one statement that may run outside a session.
pub(super) fn parse(shared: &Shared, connection: &Connection, sql: &str) -> Result<Statement<'static>> {
    let mut statements = connection.parse(sql).map_err(|error| shared.cause(&error))?;
    let first = match statements.next() {
        None => return Err(Error::invalid("the SQL text holds no statement")),
        Some(parsed) => parsed.map_err(|error| shared.cause(&error))?,
    };
    if let Some(second) = statements.next() {
        second.map_err(|error| shared.cause(&error))?;
        return Err(Error::invalid("the SQL text holds more than one statement; send one at a time"));
    }
    match kind(&first)? {
        StatementType::Transaction => Err(Error::Unsupported(
            "BEGIN, COMMIT and ROLLBACK need a session; here each statement is a transaction of its own".into(),
        )),
        StatementType::Prepare | StatementType::Execute => {
            Err(Error::Unsupported("PREPARE and EXECUTE need a session; send the statement itself".into()))
        }
        _ => Ok(first),
    }
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
pub(super) fn answers_rows(connection: &Connection, statement: &Statement<'_>) -> Result<bool> {
    let rows = match kind(statement)? {
        StatementType::Insert | StatementType::Update | StatementType::Delete | StatementType::MergeInto => {
            let sql = statement.get_text().map_err(|error| Error::Sql(error.message))?;
            let tokens = SqlTokenIterator::new(connection, sql).map_err(|error| Error::Sql(error.message))?;
            let returning = |lexeme: &str| lexeme.eq_ignore_ascii_case("returning");
            tokens
                .flatten()
                .any(|token| token.token_type == TokenType::Keyword && token.lexeme(sql).is_some_and(returning))
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
