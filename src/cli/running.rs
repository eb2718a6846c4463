//! `mallard queries`, `mallard kill`, `mallard sessions`: what others do on a server, and ending it.

use clap::Args;
use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use futures::TryStreamExt;
use serde_json::{Value, json};

use super::connect::LoginArguments;
use crate::{
    error::{Error, Result},
    location::Location,
    printable::escaped,
};

/// Of `queries`, of `sessions` and of `exchangers`.
#[derive(Args)]
pub(super) struct ListArguments {
    /// Server, such as grpc://127.0.0.1:8815
    pub(super) uri: Location,
    /// One JSON object a line
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) login: LoginArguments,
}

#[derive(Args)]
pub(super) struct KillArguments {
    /// Server, such as grpc://127.0.0.1:8815
    uri: Location,
    /// Id of the statement or exchange, as `mallard queries` lists it
    #[arg(required_unless_present = "of_user", conflicts_with = "of_user")]
    query: Option<u64>,
    /// All statements and exchanges of this user
    #[arg(long, value_name = "NAME")]
    of_user: Option<String>,
    /// Who vouches for that name, where several principals have it: users, certificate, anonymous, or a JWT's issuer
    #[arg(long, requires = "of_user", value_name = "ISSUER")]
    issuer: Option<String>,
    #[command(flatten)]
    login: LoginArguments,
}

pub(super) async fn queries(arguments: ListArguments) -> Result<()> {
    let listed = ask(&arguments.login, &arguments.uri, "queries", &Value::Null).await?;
    show(&listed, &["id", "user", "issuer", "class", "seconds", "rows", "queued", "ending", "text"], arguments.json);
    Ok(())
}

pub(super) async fn sessions(arguments: ListArguments) -> Result<()> {
    let listed = ask(&arguments.login, &arguments.uri, "sessions", &Value::Null).await?;
    show(
        &listed,
        &["user", "issuer", "idle_seconds", "queries", "transactions", "prepared_statements"],
        arguments.json,
    );
    Ok(())
}

pub(super) async fn kill(arguments: KillArguments) -> Result<()> {
    let body = match (arguments.query, arguments.of_user) {
        (Some(id), _) => json!({"query": id}),
        (None, user) => match arguments.issuer {
            Some(issuer) => json!({"user": user, "issuer": issuer}),
            None => json!({"user": user}),
        },
    };
    let ended = ask(&arguments.login, &arguments.uri, "kill", &body).await?;
    let ended = ended.first().map_or(0, |answer| answer["ended"].as_u64().unwrap_or(0));
    eprintln!("ended {ended} statement{}", if ended == 1 { "" } else { "s" });
    Ok(())
}

pub(super) async fn ask(login: &LoginArguments, uri: &Location, action: &str, body: &Value) -> Result<Vec<Value>> {
    let client = login.connect(uri).await?;
    let results: Vec<_> = client.action(action, body).await?.try_collect().await?;
    let parsed = results.iter().map(|result| serde_json::from_slice(result));
    parsed.collect::<Result<_, _>>().map_err(|error| Error::Stream(format!("the answer is not JSON: {error}")))
}

pub(super) fn show(listed: &[Value], columns: &[&str], json: bool) {
    if json {
        listed.iter().for_each(|one| println!("{one}"));
        return;
    }
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_header(columns);
    for one in listed {
        table.add_row(columns.iter().map(|column| match &one[*column] {
            Value::String(text) => escaped(text).into_owned(),
            Value::Null => String::new(),
            Value::Number(number) if number.is_f64() => format!("{:.1}", number.as_f64().unwrap_or_default()),
            other => other.to_string(),
        }));
    }
    println!("{table}");
}
