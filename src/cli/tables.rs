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
    // Where all are of one catalog, as they are without attached databases, it is not worth a column.
    let catalogs = tables.iter().any(|table| table.catalog != tables[0].catalog);
    let header = ["catalog", "schema", "table", "type", "columns"];
    shown.load_preset(UTF8_HORIZONTAL_ONLY).set_header(&header[usize::from(!catalogs)..]);
    for table in tables {
        let columns: Vec<String> =
            table.columns.iter().map(|column| format!("{} {}", column.name, column.r#type)).collect();
        let columns = columns.join(", ");
        let row = [&table.catalog, &table.schema, &table.name, &table.kind, &columns];
        shown.add_row(&row[usize::from(!catalogs)..]);
    }
    shown
}
