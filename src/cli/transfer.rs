//! `mallard transfer`

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{
    connect::{LoginArguments, endpoints, login},
    moves,
    progress::{Meter, grouped},
};
use crate::{config::Compression, error::Result, location::Location};

#[derive(Args)]
pub(super) struct Arguments {
    /// Server to read from, as the other server reaches it
    from: Location,
    /// Server that pulls
    to: Location,
    /// Table to transfer
    #[arg(long, required_unless_present = "query", conflicts_with = "query")]
    table: Option<String>,
    /// SQL whose rows to transfer; needs --into
    #[arg(long, value_name = "SQL", requires = "into")]
    query: Option<String>,
    /// Table to store in; by default the name of --table
    #[arg(long, value_name = "TABLE")]
    into: Option<String>,
    /// What to do with the table there
    #[arg(long, value_enum, default_value_t = Mode::Create)]
    mode: Mode,
    /// With --mode replace: create a table anew that the columns do not fit; its keys, defaults, indexes and comments are lost
    #[arg(long)]
    force: bool,
    /// Pull over so many connections at once; rows are then stored in no order
    #[arg(long, default_value_t = 1, value_parser = endpoints(), value_name = "COUNT")]
    endpoints: u16,
    /// Exchangers of the server that pulls, which the rows pass before they are stored, such as 'a | b {"key": 1}'
    #[arg(long, value_name = "CHAIN")]
    through: Option<String>,
    #[command(flatten)]
    login: LoginArguments,
    /// User at the server to read from; by default the same login as at the other. Password: MALLARD_FROM_PASSWORD,
    /// --from-password-file or a prompt
    #[arg(long, env = "MALLARD_FROM_USER")]
    from_user: Option<String>,
    /// File that holds the password of --from-user
    #[arg(long, env = "MALLARD_FROM_PASSWORD_FILE", value_name = "FILE")]
    from_password_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    /// It must not exist
    Create,
    /// Add to it
    Append,
    /// Replace its rows; its keys, defaults, indexes and comments stay
    Replace,
}

pub(super) async fn run(arguments: Arguments) -> Result<()> {
    let there = match &arguments.from_user {
        Some(user) => login(Some(user), arguments.from_password_file.as_ref(), "MALLARD_FROM_PASSWORD")?,
        None => arguments.login.login()?,
    };
    let mode = match arguments.mode {
        Mode::Create => "create",
        Mode::Append => "append",
        Mode::Replace => "replace",
    };
    let mut body = json!({"from": arguments.from.to_string(), "mode": mode});
    let optional = [
        ("table", arguments.table.as_deref()),
        ("query", arguments.query.as_deref()),
        ("exchange", arguments.through.as_deref()),
        ("to", arguments.into.as_deref()),
        ("username", there.as_ref().map(|login| login.user.as_str())),
        ("password", there.as_ref().map(|login| login.password.reveal())),
        ("compression", arguments.login.compression.map(Compression::word)),
    ];
    if arguments.force {
        body["force"] = true.into();
    }
    if arguments.endpoints > 1 {
        body["endpoints"] = arguments.endpoints.into();
    }
    for (key, value) in optional {
        if let Some(value) = value {
            body[key] = value.into();
        }
    }
    let client = arguments.login.connect(&arguments.to).await?;
    let meter = Meter::start("transfer", None);
    let done = moves::pull(&client, &body, &meter).await?;
    meter.finish();
    let how = match &done.hash {
        Some(hash) => format!("verified: count and hash {hash} are equal on both sides"),
        None if arguments.through.is_some() => "verified by count only: they passed exchangers".to_string(),
        None => "verified by count only: the values were cast into the existing table".to_string(),
    };
    println!("{} rows, {:.1} MB in {:.3} s; {how}", grouped(done.rows), done.bytes as f64 / 1e6, done.seconds);
    Ok(())
}
