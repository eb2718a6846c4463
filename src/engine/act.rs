//! What a text does to the connection that it runs on, told from its first words.
//!
//! Asked before the connection is chosen. What is told wrongly here runs on a connection where it has no effect for
//! others, or is refused there: DuckDB's own parser and the guard still see every text.

/// What a statement means beyond itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Begin {
        read_only: bool,
    },
    Commit,
    Rollback,
    /// DuckDB has none.
    Savepoint,
    /// A setting or a temporary object, which later statements are to find.
    Stays,
    Plain,
}

/// As many words are looked at.
const WORDS: usize = 8;

impl Act {
    pub fn of(sql: &str) -> Self {
        let words = words(sql, WORDS);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let only =
            |rest: &[&str]| rest.iter().all(|word| ["transaction", "work", "read", "write", "only"].contains(word));
        match words.as_slice() {
            ["begin", rest @ ..] | ["start", "transaction", rest @ ..] if only(rest) => {
                Self::Begin { read_only: rest.contains(&"only") }
            }
            ["commit" | "end", rest @ ..] if only(rest) => Self::Commit,
            ["rollback" | "abort", rest @ ..] if only(rest) => Self::Rollback,
            ["savepoint", ..] | ["release", ..] | ["rollback", ..] => Self::Savepoint,
            ["set" | "reset" | "use", ..] => Self::Stays,
            ["create", "or", "replace", rest @ ..] | ["create", rest @ ..]
                if matches!(rest, ["local" | "global", "temp" | "temporary", ..] | ["temp" | "temporary", ..]) =>
            {
                Self::Stays
            }
            // One that is called answers rows.
            ["pragma", _, "=", ..] => Self::Stays,
            _ => Self::Plain,
        }
    }
}

/// Whether it waits until nobody reads or writes any more, and lets nobody begin meanwhile.
pub(super) fn forces_checkpoint(sql: &str) -> bool {
    let words = words(sql, 3);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    matches!(words.as_slice(), ["force", "checkpoint", ..] | ["pragma" | "call", "force_checkpoint", ..])
}

/// The first words in lower case, without comments. Anything but words, and a semicolon at the end, is a word of its own.
fn words(sql: &str, most: usize) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut rest = sql;
    while words.len() < most {
        rest = rest.trim_start();
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, after)| after);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, after)| after);
        } else {
            let Some(first) = rest.chars().next() else { break };
            let end = match is_word(first) {
                true => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                false => first.len_utf8(),
            };
            words.push(rest[..end].to_lowercase());
            rest = &rest[end..];
        }
    }
    while words.last().is_some_and(|word| word == ";") {
        words.pop();
    }
    words
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_words_say_what_a_text_does_to_its_connection() {
        for (sql, expected) in [
            ("BEGIN", Act::Begin { read_only: false }),
            (" begin transaction ; ", Act::Begin { read_only: false }),
            ("/* x */ START TRANSACTION READ ONLY -- y", Act::Begin { read_only: true }),
            ("COMMIT;", Act::Commit),
            ("end", Act::Commit),
            ("ROLLBACK WORK", Act::Rollback),
            ("abort", Act::Rollback),
            ("SAVEPOINT a", Act::Savepoint),
            ("ROLLBACK TO a", Act::Savepoint),
            ("RELEASE SAVEPOINT a", Act::Savepoint),
            ("BEGIN; DROP TABLE t", Act::Plain),
            ("COMMIT; SELECT 1", Act::Plain),
            ("CREATE OR REPLACE TEMP TABLE t (i INT)", Act::Stays),
            ("create temporary view v as select 1", Act::Stays),
            ("CREATE LOCAL TEMPORARY TABLE t (i INT)", Act::Stays),
            ("PRAGMA default_null_order = 'nulls_last'", Act::Stays),
            ("PRAGMA table_info('t')", Act::Plain),
            ("CREATE TABLE temp AS SELECT 1 AS temp", Act::Plain),
            ("CREATE TABLE permanent (i INT)", Act::Plain),
            ("USE other", Act::Stays),
            ("SET TimeZone = 'UTC'", Act::Stays),
            ("UPDATE t SET i = 1", Act::Plain),
            ("SELECT 'BEGIN'", Act::Plain),
            ("'BEGIN'", Act::Plain),
            ("", Act::Plain),
        ] {
            assert_eq!(Act::of(sql), expected, "{sql}");
        }
    }
}
