//! The prompt: editing, history, and completion of names and keywords.

use std::path::PathBuf;

use rustyline::{
    CompletionType, Config, Context, Editor, Helper, completion::Completer, error::ReadlineError,
    highlight::Highlighter, hint::Hinter, history::FileHistory, validate::Validator,
};

use crate::{
    client::Table,
    error::{Error, Result},
};

const KEYWORDS: [&str; 48] = [
    "ALTER",
    "ANTI",
    "AS",
    "ASC",
    "ASOF",
    "BETWEEN",
    "BY",
    "CASE",
    "CREATE",
    "CROSS",
    "DELETE",
    "DESC",
    "DESCRIBE",
    "DISTINCT",
    "DROP",
    "ELSE",
    "END",
    "EXCEPT",
    "EXISTS",
    "EXPLAIN",
    "FROM",
    "FULL",
    "GROUP",
    "HAVING",
    "INNER",
    "INSERT",
    "INTERSECT",
    "INTO",
    "IS",
    "JOIN",
    "LEFT",
    "LIKE",
    "LIMIT",
    "NOT",
    "NULL",
    "OFFSET",
    "ORDER",
    "QUALIFY",
    "RETURNING",
    "SELECT",
    "SUMMARIZE",
    "TABLE",
    "THEN",
    "UNION",
    "UPDATE",
    "VALUES",
    "WHERE",
    "WITH",
];

/// Lines of history that are kept.
const HISTORY: usize = 10_000;

/// A prompt on a terminal.
pub(super) struct Lines {
    editor: Editor<Names, FileHistory>,
    history: Option<PathBuf>,
}

/// What was typed.
pub(super) enum Read {
    Line(String),
    /// Ctrl-C
    Interrupted,
    /// Ctrl-D
    End,
}

impl Lines {
    pub(super) fn open() -> Result<Self> {
        let config = Config::builder()
            .completion_type(CompletionType::List)
            // What begins with a space is not kept.
            .history_ignore_space(true)
            .max_history_size(HISTORY)
            .map_err(failed)?
            .build();
        let mut editor = Editor::with_config(config).map_err(failed)?;
        editor.set_helper(Some(Names::default()));
        let history = history_file();
        if let Some(history) = &history {
            // There is none the first time.
            let _ = editor.load_history(history);
        }
        Ok(Self { editor, history })
    }

    /// Blocks until a line is there.
    pub(super) fn read(&mut self, first: bool) -> Result<Read> {
        match self.editor.readline(if first { "mallard> " } else { "    ...> " }) {
            Ok(line) => Ok(Read::Line(line)),
            Err(ReadlineError::Interrupted) => Ok(Read::Interrupted),
            Err(ReadlineError::Eof) => Ok(Read::End),
            Err(error) => Err(failed(error)),
        }
    }

    /// Puts it into the history, whose file is the user's alone.
    pub(super) fn remember(&mut self, text: &str) {
        let added = self.editor.add_history_entry(text).unwrap_or(false);
        if let (true, Some(history)) = (added, &self.history) {
            // A history that cannot be written is not worth a word at each statement.
            let _ = self.editor.append_history(history);
        }
    }

    pub(super) fn learn(&mut self, tables: &[Table]) {
        let Some(names) = self.editor.helper_mut() else { return };
        let columns = tables.iter().flat_map(|table| table.columns.iter().map(|column| column.name.clone()));
        let qualified = tables.iter().map(|table| format!("{}.{}", table.schema, table.name));
        names.0 = tables.iter().map(|table| table.name.clone()).chain(columns).chain(qualified).collect();
        names.0.sort();
        names.0.dedup();
    }
}

/// Where other programs keep what they remember of their use (XDG base directories).
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    let directory = state.join("mallard");
    std::fs::create_dir_all(&directory).ok()?;
    Some(directory.join("history"))
}

#[expect(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn failed(error: ReadlineError) -> Error {
    Error::Io(format!("the terminal: {error}"))
}

/// Names of tables and columns.
#[derive(Default)]
struct Names(Vec<String>);

impl Helper for Names {}

impl Hinter for Names {
    type Hint = String;
}

impl Highlighter for Names {}

impl Validator for Names {}

impl Completer for Names {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(completions(&self.0, line, at))
    }
}

/// What the word that ends at `at` may become, and where it begins: names, and keywords in the case that was begun.
fn completions(names: &[String], line: &str, at: usize) -> (usize, Vec<String>) {
    let before = &line[..at];
    let part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '"');
    let start =
        before.rfind(|c| !part(c)).map_or(0, |found| found + before[found..].chars().next().map_or(0, char::len_utf8));
    let word = before[start..].trim_start_matches('"').to_lowercase();
    if word.is_empty() {
        return (start, Vec::new());
    }
    let begins = |name: &&String| name.to_lowercase().starts_with(&word);
    let mut found: Vec<String> = names.iter().filter(begins).map(|name| quoted(name)).collect();
    let lower = before[start..].chars().all(|c| !c.is_uppercase());
    let keywords = KEYWORDS.iter().filter(|keyword| keyword.to_lowercase().starts_with(&word));
    found.extend(keywords.map(|keyword| if lower { keyword.to_lowercase() } else { keyword.to_string() }));
    (start, found)
}

/// In double quotes where it is no plain name.
fn quoted(name: &str) -> String {
    let plain = |part: &str| {
        !part.starts_with(|first: char| first.is_ascii_digit())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.'))
    };
    if plain(name) { name.to_string() } else { crate::engine::quote(name) }
}

#[cfg(test)]
mod tests {
    use super::completions;

    #[test]
    fn names_and_keywords_are_completed() {
        let names = ["flights", "main.flights", "Odd name", "fl_date"].map(str::to_string);
        for (line, start, expected) in [
            ("SELECT fl", 7, vec!["flights", "fl_date"]),
            ("from main.f", 5, vec!["main.flights"]),
            ("sel", 0, vec!["select"]),
            ("SEL", 0, vec!["SELECT"]),
            ("SELECT count(*) FROM od", 21, vec!["\"Odd name\""]),
            ("SELECT ", 7, vec![]),
        ] {
            assert_eq!(
                completions(&names, line, line.len()),
                (start, expected.iter().map(|s| s.to_string()).collect()),
                "{line}"
            );
        }
    }
}
