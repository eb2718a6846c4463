//! `mallard sql`: statements typed at a prompt, from standard input, or given as an argument, in one session.

mod commands;
mod line;
mod show;

use std::{
    io::{BufRead, IsTerminal},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use clap::Args;

use super::{INTERRUPTED, connect::LoginArguments, files};
use crate::{
    client::{Answered, Client},
    engine::{Engine, Part, Script},
    error::{Error, Result},
    location::Location,
    printable::escaped_lines,
};
use commands::Next;
use line::{Lines, Read};
use show::Shown;

#[derive(Args)]
pub(super) struct Arguments {
    /// Server, such as grpc://127.0.0.1:8815
    uri: Location,
    /// Run these statements and leave
    #[arg(short, long, value_name = "SQL")]
    command: Option<String>,
    /// Run the statements of this file and leave
    #[arg(short, long, value_name = "FILE", conflicts_with = "command")]
    file: Option<PathBuf>,
    /// Format of the rows; .format changes it
    #[arg(long, value_enum, default_value = "table")]
    format: files::Format,
    #[command(flatten)]
    login: LoginArguments,
}

/// What a shell is: a server, the command line's own DuckDB, which reads and shows what is typed and answered, and how.
struct Shell {
    client: Client,
    local: Engine,
    shown: Shown,
    lines: Option<Lines>,
}

pub(super) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let script = match (&arguments.command, &arguments.file) {
        (Some(text), _) => Some(text.clone()),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path);
            Some(text.map_err(|error| Error::Io(format!("{}: {error}", path.display())))?)
        }
        (None, None) => None,
    };
    let mut client = arguments.login.connect(&arguments.uri).await?;
    client.open_session().await?;
    let interactive = script.is_none() && std::io::stdin().is_terminal();
    let mut shell = Shell {
        client,
        local: files::local().await?,
        shown: Shown::new(arguments.format, interactive),
        lines: interactive.then(Lines::open).transpose()?,
    };
    let outcome = match &script {
        Some(text) => shell.script(text).await,
        None if interactive => shell.prompt().await,
        None => shell.input().await,
    };
    if let Err(error) = shell.client.close_session().await {
        tracing::debug!(%error, "the session could not be closed; the server frees it soon");
    }
    outcome
}

impl Shell {
    /// Statements of an argument or a file.
    async fn script(&mut self, text: &str) -> Result<ExitCode> {
        let Script { mut statements, unfinished, .. } = self.local.script(text).await?;
        statements.extend(unfinished);
        let whole = self.all(&statements).await?;
        Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(INTERRUPTED) })
    }

    /// Runs them one after the other; false where Ctrl-C has cancelled one.
    async fn all(&mut self, statements: &[Part]) -> Result<bool> {
        let count = statements.len();
        for (at, Part { sql, line }) in statements.iter().enumerate() {
            let ran = self.statement(sql).await;
            let ran = ran.map_err(|error| if count > 1 { error.of_statement(at + 1, count, *line) } else { error });
            if !ran? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Standard input that is no terminal: statement after statement as they come; the first error ends it.
    async fn input(&mut self) -> Result<ExitCode> {
        let mut text = String::new();
        loop {
            let (line, read) = tokio::task::spawn_blocking(|| {
                let mut line = String::new();
                let read = std::io::stdin().lock().read_line(&mut line);
                (line, read)
            })
            .await
            .map_err(Error::internal)?;
            let ended = read.map_err(|error| Error::Io(format!("standard input: {error}")))? == 0;
            if text.trim().is_empty() && line.starts_with('.') {
                match self.run_command(line.trim()).await? {
                    Next::Prompt => continue,
                    Next::Leave => return Ok(ExitCode::SUCCESS),
                }
            }
            text.push_str(&line);
            if ended {
                return self.script(&text).await;
            }
            // Only such a line can end a statement.
            if line.contains(';') {
                let script = self.local.script(&text).await?;
                if !self.all(&script.statements).await? {
                    return Ok(ExitCode::from(INTERRUPTED));
                }
                text = script.rest;
            }
        }
    }

    /// A prompt on a terminal: errors are shown and it goes on.
    async fn prompt(&mut self) -> Result<ExitCode> {
        eprintln!("Connected to {}. Statements end with a semicolon; .help tells more.", self.client.peer());
        self.learn().await;
        let mut text = String::new();
        loop {
            let lines = self.lines.take().ok_or_else(|| Error::internal("the prompt is in use"))?;
            let first = text.is_empty();
            let (lines, read) = tokio::task::spawn_blocking(move || {
                let mut lines = lines;
                let read = lines.read(first);
                (lines, read)
            })
            .await
            .map_err(Error::internal)?;
            let lines = self.lines.insert(lines);
            let line = match read? {
                Read::Line(line) => line,
                Read::Interrupted => {
                    text.clear();
                    continue;
                }
                Read::End => return Ok(ExitCode::SUCCESS),
            };
            if first && line.trim_start().starts_with('.') {
                lines.remember(line.trim());
                match self.run_command(line.trim()).await {
                    Ok(Next::Prompt) => {}
                    Ok(Next::Leave) => return Ok(ExitCode::SUCCESS),
                    Err(error) => eprintln!("error: {}", escaped_lines(&error.to_string())),
                }
                continue;
            }
            text.push_str(&line);
            text.push('\n');
            let script = match self.local.script(&text).await {
                Ok(script) => script,
                Err(error) => {
                    eprintln!("error: {}", escaped_lines(&error.to_string()));
                    text.clear();
                    continue;
                }
            };
            if !script.statements.is_empty() {
                let done = text.len() - script.rest.len();
                self.remember(text[..done].trim());
            }
            text = if script.unfinished.is_some() { script.rest } else { String::new() };
            match self.all(&script.statements).await {
                Ok(true) => {}
                Ok(false) => eprintln!("cancelled"),
                Err(error) => eprintln!("error: {}", escaped_lines(&error.to_string())),
            }
        }
    }

    fn remember(&mut self, text: &str) {
        if let Some(lines) = &mut self.lines {
            lines.remember(text);
        }
    }

    /// Runs one statement and shows its rows; false where Ctrl-C has cancelled it, on the server, too.
    async fn statement(&mut self, sql: &str) -> Result<bool> {
        let running = async {
            let started = Instant::now();
            match self.client.statement(sql).await? {
                Answered::Rows(rows) => self.shown.rows(&self.local, rows).await.map(|()| false),
                Answered::Changed(rows) => {
                    self.shown.changed(rows, started.elapsed());
                    Ok(true)
                }
            }
        };
        let changed = tokio::select! {
            done = running => done?,
            _ = tokio::signal::ctrl_c() => {
                // The statement is dropped, and its cancellation has this long to reach the server.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                return Ok(false);
            }
        };
        if changed && self.lines.is_some() {
            self.learn().await;
        }
        Ok(true)
    }

    /// Takes the names of tables and columns for completion. A server that does not tell them is used without.
    async fn learn(&mut self) {
        if let (Some(lines), Ok(tables)) = (&mut self.lines, self.client.tables(None).await) {
            lines.learn(&tables);
        }
    }
}
