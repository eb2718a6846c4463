//! `mallard tables`

use clap::Args;
use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};

use super::connect::LoginArguments;
use crate::{client, error::Result, location::Location};

#[derive(Args)]
pub(super) struct Arguments {
    /// Server, such as grpc://127.0.0.1:8815
    uri: Location,
    /// Only those whose name is like this, where % stands for any text and _ for a character
    pattern: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    login: LoginArguments,
}

pub(super) async fn run(arguments: Arguments) -> Result<()> {
    let client = arguments.login.connect(&arguments.uri).await?;
    let tables = client.tables(arguments.pattern.as_deref()).await?;
    if arguments.json {
        for table in tables {
            println!("{}", serde_json::to_string(&table).map_err(crate::error::Error::internal)?);
        }
        return Ok(());
    }
    println!("{}", shown(&tables));
    Ok(())
}

/// One line a table.
pub(super) fn shown(tables: &[client::Table]) -> Table {
    let mut shown = Table::new();
    shown.load_preset(UTF8_HORIZONTAL_ONLY).set_header(["schema", "table", "type", "columns"]);
    for table in tables {
        let columns: Vec<String> =
            table.columns.iter().map(|column| format!("{} {}", column.name, column.r#type)).collect();
        shown.add_row([&table.schema, &table.name, &table.kind, &columns.join(", ")]);
    }
    shown
}
