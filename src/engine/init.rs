//! The start script: SQL that the server itself runs, with all rights, when it has opened the database.

use std::path::Path;

use duckdb::{Parameters, connection::Connection, enums::TokenType, tokens::SqlTokenIterator};

use crate::{
    config::Database,
    error::{Error, Result},
};

/// One statement of the file.
struct Step<'a> {
    sql: &'a str,
    /// Where it begins, counted from 1.
    line: usize,
}

/// Runs the statements of `database.init` in their order, before settings are locked. What a session sets is gone with it.
pub(super) fn run(database: &Database, connection: &Connection) -> Result<()> {
    let Some(file) = &database.init else { return Ok(()) };
    let text = read(file)?;
    for Step { sql, line } in steps(connection, file, &text)? {
        connection.execute(sql, Parameters::None).map_err(|error| failed(file, line, &error.message))?;
    }
    // In a transaction that is open, no other begins.
    if connection.execute("BEGIN TRANSACTION", Parameters::None).is_err() {
        return Err(Error::Sql(format!(
            "{} (database.init): a transaction is open at the end, or was aborted; end it with COMMIT",
            file.display()
        )));
    }
    connection.execute("ROLLBACK", Parameters::None).map_err(|error| failed(file, 1, &error.message)).map(drop)
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file)
        .map_err(|error| Error::Io(format!("{} (database.init): cannot be read: {error}", file.display())))
}

fn failed(file: &Path, line: usize, message: &str) -> Error {
    // DuckDB counts lines from the statement's first.
    let within = message.split("LINE ").nth(1).and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
    let line = line + within.map_or(0, |within| within.saturating_sub(1));
    Error::Sql(format!("{}:{line} (database.init): {message}", file.display()))
}

/// The statements, at semicolons that are in no string, name or comment.
fn steps<'a>(connection: &Connection, file: &Path, text: &'a str) -> Result<Vec<Step<'a>>> {
    let line_of = |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
    let (mut steps, mut first, mut end) = (Vec::new(), None, 0);
    let tokens = SqlTokenIterator::new(connection, text).map_err(|error| failed(file, 1, &error.message))?;
    for token in tokens {
        let token = token.map_err(|error| failed(file, line_of(end), &error.message))?;
        match token.token_type {
            TokenType::Comment => {}
            TokenType::Terminator => {
                steps.extend(
                    first.take().and_then(|at| Some(Step { sql: text.get(at..token.start)?, line: line_of(at) })),
                );
            }
            _ => {
                first.get_or_insert(token.start);
                end = token.start + token.length;
            }
        }
    }
    steps.extend(first.and_then(|at| Some(Step { sql: text.get(at..)?, line: line_of(at) })));
    Ok(steps)
}

/// What is wrong with the file, without running it.
pub(super) fn examine(database: &Database) -> Option<Error> {
    read(database.init.as_deref()?).err()
}
