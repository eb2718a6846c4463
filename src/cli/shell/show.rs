//! Rows on the terminal: as a table, in a pager where they are many, with the time that they took.

use std::{
    io::{IsTerminal, Write},
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    cli::{
        files::{Format, OutputArguments},
        progress::{Measured, Meter, grouped},
    },
    engine::Engine,
    error::{Error, Result},
    stream::RecordBatchStream,
};

/// Rows of a table before it leaves out the middle: without a pager, and with one.
const ROWS: usize = 40;
const ROWS_IN_PAGER: usize = 10_000;

/// How results are shown.
pub(super) struct Shown {
    pub(super) format: Format,
    pub(super) timing: bool,
    pub(super) pager: bool,
}

impl Shown {
    pub(super) fn new(format: Format, interactive: bool) -> Self {
        Self { format, timing: interactive, pager: interactive && std::io::stdout().is_terminal() }
    }

    /// How many rows a statement has changed, where times are told.
    pub(super) fn changed(&self, rows: i64, took: Duration) {
        let seconds = took.as_secs_f64();
        match rows {
            _ if !self.timing => {}
            1 => eprintln!("1 row changed in {seconds:.3} s"),
            rows => eprintln!("{} rows changed in {seconds:.3} s", grouped(rows.unsigned_abs())),
        }
    }

    /// Shows them all.
    pub(super) async fn rows(&self, local: &Engine, rows: RecordBatchStream) -> Result<()> {
        let meter = if self.timing { Meter::start("query", None) } else { Meter::silent() };
        let rows = meter.watch(rows);
        let (text, measured) = match self.format {
            Format::Table => {
                let most = if self.pager { ROWS_IN_PAGER } else { ROWS };
                let width = if std::io::stdout().is_terminal() { 0 } else { 10_000 };
                let text = local.render(rows, most, width).await?;
                (Some(text), meter.finish())
            }
            format => {
                OutputArguments::of(format).put(rows).await?;
                (None, meter.finish())
            }
        };
        if let Some(text) = text {
            self.put(text.trim_end()).await?;
        }
        if self.timing {
            eprintln!("{}", timed(measured));
        }
        Ok(())
    }

    /// To standard output, through the pager where it is longer than the terminal.
    async fn put(&self, text: &str) -> Result<()> {
        let height = rustix::termios::tcgetwinsize(std::io::stdout()).map_or(0, |size| usize::from(size.ws_row));
        if !self.pager || height == 0 || text.lines().count() + 1 < height {
            // A reader that closes early (head) is no failure.
            let _ = writeln!(std::io::stdout(), "{text}");
            return Ok(());
        }
        let text = text.to_string();
        tokio::task::spawn_blocking(move || page(&text)).await.map_err(Error::internal)
    }
}

/// In $PAGER, or less; or as it is where neither is there.
fn page(text: &str) {
    let pager = std::env::var("PAGER").ok().filter(|pager| !pager.trim().is_empty());
    let mut words = pager.as_deref().unwrap_or("less -SFRX").split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("less"));
    let Ok(mut child) = command.args(words).stdin(Stdio::piped()).spawn() else {
        println!("{text}");
        return;
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A pager that is left before the end has read enough.
        let _ = writeln!(stdin, "{text}");
    }
    let _ = child.wait();
}

fn timed(measured: Measured) -> String {
    let seconds = measured.seconds;
    match measured.rows {
        1 => format!("1 row in {seconds:.3} s"),
        rows => format!("{} rows in {seconds:.3} s", grouped(rows)),
    }
}
