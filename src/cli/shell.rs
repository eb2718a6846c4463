//! `mallard sql`: statements at a prompt, in one session.
//!
//! A statement ends with a semicolon and may have several lines. Ctrl-C ends what runs and leaves the session as it is,
//! an open transaction, too. From a file or a pipe, statements run one after the other until one fails.

use std::{
    io::{BufRead, IsTerminal, Write},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use clap::Args;
use rustyline::{
    Config, Editor, Helper, Highlighter, Hinter, Validator, completion::Completer, error::ReadlineError,
    history::FileHistory,
};

use super::{connect::LoginArguments, files::local, tables};
use crate::{
    client::{Answered, Client},
    engine::Engine,
    error::{Error, Result},
    location::Location,
};

#[derive(Args)]
pub(super) struct Arguments {
    /// Server, such as grpc://127.0.0.1:8815
    uri: Location,
    /// Rows of a result that are shown; longer ones show their first and last
    #[arg(long, default_value_t = 40, value_name = "COUNT")]
    rows: usize,
    #[command(flatten)]
    login: LoginArguments,
}

const HELP: &str = "\
statements end with a semicolon; Ctrl-C ends the one that runs, Ctrl-D the shell
.tables [GLOB]   tables and their columns
.rows COUNT      rows of a result that are shown
.timer on|off    whether each statement tells how long it took
.help .quit";

/// Words that are completed beside the names of tables and columns.
const KEYWORDS: [&str; 32] = [
    "ALTER",
    "BEGIN",
    "BETWEEN",
    "BY",
    "COMMIT",
    "CREATE",
    "DELETE",
    "DESCRIBE",
    "DISTINCT",
    "DROP",
    "EXPLAIN",
    "FROM",
    "GROUP",
    "HAVING",
    "INSERT",
    "INTO",
    "JOIN",
    "LEFT",
    "LIMIT",
    "ORDER",
    "ROLLBACK",
    "SELECT",
    "SET",
    "SHOW",
    "SUMMARIZE",
    "TABLE",
    "UNION",
    "UPDATE",
    "USING",
    "VALUES",
    "WHERE",
    "WITH",
];

struct Shell {
    client: Client,
    /// The command line's own DuckDB, which shows rows as people know them.
    local: Engine,
    rows: usize,
    timer: bool,
    names: Names,
}

pub(super) async fn run(arguments: Arguments) -> Result<()> {
    let client = arguments.login.connect(&arguments.uri).await?;
    let interactive = std::io::stdin().is_terminal();
    let mut shell =
        Shell { client, local: local().await?, rows: arguments.rows, timer: interactive, names: Names::default() };
    if interactive { shell.prompt(&arguments.uri).await } else { shell.script().await }
}

impl Shell {
    async fn prompt(&mut self, uri: &Location) -> Result<()> {
        eprintln!("connected to {uri}; .help says what there is");
        self.learn().await;
        let failed = |error: ReadlineError| Error::Io(format!("the terminal: {error}"));
        let config = Config::builder().auto_add_history(false).build();
        let mut editor: Editor<Names, FileHistory> = Editor::with_config(config).map_err(failed)?;
        editor.set_helper(Some(self.names.clone()));
        let history = history();
        if let Some(path) = &history {
            // There is none the first time.
            let _ = editor.load_history(path);
        }
        let mut statement = String::new();
        loop {
            let prompt = if statement.is_empty() { "mallard> " } else { "    ...> " };
            let reading = tokio::task::spawn_blocking(move || {
                let line = editor.readline(prompt);
                (editor, line)
            });
            let (returned, line) = reading.await.map_err(Error::internal)?;
            editor = returned;
            let line = match line {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => {
                    statement.clear();
                    continue;
                }
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(failed(error)),
            };
            if statement.is_empty() && line.trim().starts_with('.') {
                // A history that cannot be kept is none.
                let _ = editor.add_history_entry(line.trim());
                if !self.command(line.trim()).await {
                    break;
                }
                continue;
            }
            if !statement.is_empty() {
                statement.push('\n');
            }
            statement.push_str(&line);
            if statement.trim().is_empty() {
                statement.clear();
                continue;
            }
            if !statement.trim_end().ends_with(';') {
                continue;
            }
            let _ = editor.add_history_entry(statement.trim());
            if let Err(error) = self.statement(&statement).await {
                eprintln!("error: {error}");
            }
            let changed =
                ["create", "drop", "alter"].iter().any(|verb| statement.trim_start().to_lowercase().starts_with(verb));
            if changed {
                self.learn().await;
            }
            statement.clear();
        }
        if let Some(path) = &history {
            let _ = editor.save_history(path);
        }
        Ok(())
    }

    /// Statements from standard input, until one fails.
    async fn script(&mut self) -> Result<()> {
        let failed = |error: std::io::Error| Error::Io(format!("standard input: {error}"));
        let mut statement = String::new();
        let lines = tokio::task::spawn_blocking(|| std::io::stdin().lock().lines().collect::<Result<Vec<_>, _>>());
        for line in lines.await.map_err(Error::internal)?.map_err(failed)? {
            if statement.is_empty() && line.trim().starts_with('.') {
                if !self.command(line.trim()).await {
                    return Ok(());
                }
                continue;
            }
            statement.push_str(&line);
            statement.push('\n');
            if line.trim_end().ends_with(';') {
                self.statement(&statement).await?;
                statement.clear();
            }
        }
        if statement.trim().is_empty() { Ok(()) } else { self.statement(&statement).await }
    }

    /// Whether the shell goes on.
    async fn command(&mut self, line: &str) -> bool {
        let mut words = line.split_whitespace();
        match (words.next().unwrap_or_default(), words.next()) {
            (".quit" | ".exit", _) => return false,
            (".help", _) => eprintln!("{HELP}"),
            (".timer", Some("on")) => self.timer = true,
            (".timer", Some("off")) => self.timer = false,
            (".rows", Some(count)) if count.parse::<usize>().is_ok_and(|count| count > 0) => {
                self.rows = count.parse().unwrap_or(self.rows);
            }
            (".tables", glob) => match tables::list(&self.client, glob.unwrap_or("*")).await {
                Ok(tables) => tables.iter().for_each(|(name, schema)| {
                    let columns: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                    println!("{name} ({})", columns.join(", "));
                }),
                Err(error) => eprintln!("error: {error}"),
            },
            (other, _) => eprintln!("error: {other} is no command of this form\n{HELP}"),
        }
        true
    }

    /// Runs one statement, unless Ctrl-C ends it: dropping it cancels it on the server.
    async fn statement(&self, sql: &str) -> Result<()> {
        let started = Instant::now();
        let running = async {
            match self.client.statement(sql).await? {
                Answered::Rows(rows) => {
                    let width = if std::io::stdout().is_terminal() { 0 } else { 10_000 };
                    let text = self.local.render(rows, self.rows, width).await?;
                    // A reader that closes early (head) is no failure.
                    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
                }
                Answered::Changed(count) if self.timer => {
                    eprintln!("{count} row{} changed", if count == 1 { "" } else { "s" })
                }
                Answered::Changed(_) => {}
            }
            Ok::<_, Error>(())
        };
        tokio::select! {
            outcome = running => outcome?,
            _ = tokio::signal::ctrl_c() => return Err(Error::Cancelled),
        }
        if self.timer {
            eprintln!("{:.3} s", started.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// The names that can be completed.
    async fn learn(&self) {
        // Without them nothing is completed.
        let Ok(tables) = tables::list(&self.client, "*").await else { return };
        let mut names: Vec<String> = KEYWORDS.map(str::to_string).to_vec();
        for (name, schema) in &tables {
            names.push(name.clone());
            names.extend(name.strip_prefix("main.").map(str::to_string));
            names.extend(schema.fields().iter().map(|field| field.name().clone()));
        }
        names.sort();
        names.dedup();
        *self.names.0.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }
}

/// In the directory for state (XDG), which a shell may make.
fn history() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    let directory = state.join("mallard");
    std::fs::create_dir_all(&directory).ok()?;
    Some(directory.join("history"))
}

/// What is completed, shared with the editor's thread.
#[derive(Clone, Default, Helper, Hinter, Highlighter, Validator)]
struct Names(Arc<Mutex<Vec<String>>>);

impl Completer for Names {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        place: usize,
        _context: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
        let start = line[..place]
            .rfind(|c| !is_name(c))
            .map_or(0, |at| at + line[at..].chars().next().map_or(1, char::len_utf8));
        let begun = line[start..place].to_lowercase();
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = names.iter().filter(|name| !begun.is_empty() && name.to_lowercase().starts_with(&begun));
        Ok((start, fitting.cloned().collect()))
    }
}
