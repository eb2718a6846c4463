//! `mallard tables`

use arrow_schema::Schema;
use clap::Args;
use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use serde_json::json;

use super::connect::LoginArguments;
use crate::{
    client::Client,
    error::{Error, Result},
    location::Location,
};

#[derive(Args)]
pub(super) struct Arguments {
    /// Server, such as grpc://127.0.0.1:8815
    uri: Location,
    /// Those whose schema.table matches this glob, such as sales.*
    #[arg(default_value = "*")]
    glob: String,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    login: LoginArguments,
}

pub(super) async fn run(arguments: Arguments) -> Result<()> {
    let client = arguments.login.connect(&arguments.uri).await?;
    let tables = list(&client, &arguments.glob).await?;
    if arguments.json {
        for (name, schema) in &tables {
            let columns = schema
                .fields()
                .iter()
                .map(|field| json!({"name": field.name(), "type": field.data_type().to_string()}));
            println!("{}", json!({"table": name, "columns": columns.collect::<Vec<_>>()}));
        }
        return Ok(());
    }
    let mut shown = Table::new();
    shown.load_preset(UTF8_HORIZONTAL_ONLY).set_header(["table", "columns"]);
    for (name, schema) in &tables {
        let columns = schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type()));
        shown.add_row([name.clone(), columns.collect::<Vec<_>>().join(", ")]);
    }
    println!("{shown}");
    Ok(())
}

/// The tables that the caller may read and whose `schema.table` matches, with their columns.
pub(super) async fn list(client: &Client, glob: &str) -> Result<Vec<(String, Schema)>> {
    let mut tables = Vec::new();
    for info in client.list(glob).await? {
        let name = info.flight_descriptor.as_ref().map(|descriptor| descriptor.path.join(".")).unwrap_or_default();
        let schema = info.try_decode_schema().map_err(|error| Error::Stream(format!("{name}: no schema: {error}")))?;
        tables.push((name, schema));
    }
    Ok(tables)
}
