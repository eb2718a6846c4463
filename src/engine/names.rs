//! Whether words of a text are names in it or keywords: asked of DuckDB's parser, by writing them in double quotes.
//!
//! No statement and no clause begins with a name in quotes, so a text that parses with a word in quotes has it as a name,
//! wherever it stands. A text without such words costs nothing; one with them is parsed once more.

use std::ops::Range;

use duckdb::connection::Connection;

/// So many words are tried one by one for the one to be named in an error.
const TRIED: usize = 16;

/// The first of these words that is a keyword, as far as it can be told which one is.
pub(super) fn keyword(connection: &Connection, sql: &str, words: &[Range<usize>]) -> Option<Range<usize>> {
    let first = words.first()?;
    if parses(connection, &quoted(sql, words)) {
        return None;
    }
    let mut tried = words.iter().take(TRIED);
    let found = tried.find(|word| !parses(connection, &quoted(sql, std::slice::from_ref(*word))));
    Some(found.unwrap_or(first).clone())
}

/// The text with these words in quotes; they are in the order of the text.
fn quoted(sql: &str, words: &[Range<usize>]) -> String {
    let mut text = String::with_capacity(sql.len() + 2 * words.len());
    let mut end = 0;
    for word in words {
        text.push_str(&sql[end..word.start]);
        text.push('"');
        text.push_str(&sql[word.clone()]);
        text.push('"');
        end = word.end;
    }
    text.push_str(&sql[end..]);
    text
}

/// Whether it is one statement.
pub(super) fn parses(connection: &Connection, sql: &str) -> bool {
    let Ok(mut statements) = connection.parse(sql) else { return false };
    matches!((statements.next(), statements.next()), (Some(Ok(_)), None))
}
