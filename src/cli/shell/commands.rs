//! What begins with a dot: commands of the shell's own.

use clap::ValueEnum;

use super::Shell;
use crate::{
    cli::{files::Format, tables},
    engine::quote,
    error::{Error, Result},
};

const HELP: &str = "\
.tables [LIKE]        tables and views, with their columns
.schema TABLE         the columns of a table (as DESCRIBE)
.format table|json|csv  how rows are shown
.timing on|off        whether the time of each statement is told
.pager on|off         whether long tables go to $PAGER (less)
.quit                 leave, as Ctrl-D does
Ctrl-C cancels the statement that runs. Lines that begin with a space stay out of the history.";

pub(super) enum Next {
    Prompt,
    Leave,
}

impl Shell {
    pub(super) async fn run_command(&mut self, line: &str) -> Result<Next> {
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim().trim_end_matches(';');
        match (name, argument) {
            (".quit" | ".exit", _) => return Ok(Next::Leave),
            (".help", _) => println!("{HELP}"),
            (".tables", pattern) => {
                let pattern = Some(pattern).filter(|pattern| !pattern.is_empty());
                println!("{}", tables::shown(&self.client.tables(pattern).await?));
            }
            (".schema", "") => return Err(Error::invalid(".schema needs a table")),
            (".schema", table) => {
                let name: Vec<String> = table.split('.').map(|part| quote(part.trim_matches('"'))).collect();
                let rows = self.client.query(&format!("DESCRIBE {}", name.join("."))).await?;
                self.shown.rows(&self.local, rows).await?;
            }
            (".format", name) => match Format::from_str(name, true) {
                Ok(format @ (Format::Table | Format::Json | Format::Csv)) => self.shown.format = format,
                _ => return Err(Error::invalid(format!("\"{name}\" is no format: table, json or csv"))),
            },
            (".timing", word) => self.shown.timing = on(word)?,
            (".pager", word) => self.shown.pager = on(word)?,
            _ => return Err(Error::invalid(format!("{name} is no command; .help lists them"))),
        }
        Ok(Next::Prompt)
    }
}

fn on(word: &str) -> Result<bool> {
    match word {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(Error::invalid(format!("\"{word}\" is neither on nor off"))),
    }
}
