//! `mallard backup` and `mallard restore`

use std::path::PathBuf;

use clap::Args;
use futures::StreamExt;

use super::connect::LoginArguments;
use crate::{
    engine::{self, TableSum},
    error::{Error, Result},
    location::Location,
};

#[derive(Args)]
pub(super) struct BackupArguments {
    /// Server, such as grpc://127.0.0.1:8815; it writes into its database.backup_directory
    uri: Location,
    /// One JSON object a line: a table each, and the file
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    login: LoginArguments,
}

pub(super) async fn back_up(arguments: BackupArguments) -> Result<()> {
    let client = arguments.login.connect(&arguments.uri).await?;
    let mut results = client.action("backup", &serde_json::Value::Null).await?.boxed();
    let (mut tables, mut last) = (Vec::new(), serde_json::Value::Null);
    while let Some(result) = results.next().await {
        let result = result?;
        if arguments.json {
            println!("{}", String::from_utf8_lossy(&result));
        }
        match serde_json::from_slice::<TableSum>(&result) {
            Ok(table) => tables.push(table),
            Err(_) => last = serde_json::from_slice(&result).map_err(Error::internal)?,
        }
    }
    if !arguments.json {
        println!("{}", table_of(&tables));
        let (file, bytes) = (last["file"].as_str().unwrap_or_default(), last["bytes"].as_u64().unwrap_or_default());
        println!("{file}: {} tables, {}, verified", tables.len(), bytesize::ByteSize(bytes).display().iec());
        let attached: Vec<&str> =
            last["attached"].as_array().into_iter().flatten().filter_map(|name| name.as_str()).collect();
        if !attached.is_empty() {
            println!(
                "not in it: the attached databases {}, each of which needs a backup of its own",
                attached.join(", ")
            );
        }
    }
    Ok(())
}

#[derive(Args)]
pub(super) struct RestoreArguments {
    /// The backup: a file of the server's database.backup_directory, with its .json beside it
    backup: PathBuf,
    /// The database file to make
    #[arg(long, value_name = "FILE")]
    db: PathBuf,
    /// Put a database that is there aside, under another name
    #[arg(long)]
    force: bool,
}

pub(super) async fn restore(arguments: RestoreArguments) -> Result<()> {
    let RestoreArguments { backup, db, force } = arguments;
    let target = db.clone();
    let restored = tokio::task::spawn_blocking(move || engine::restore(&backup, &target, force));
    let restored = restored.await.map_err(Error::internal)??;
    println!("{}", table_of(&restored.tables));
    if let Some(kept) = &restored.kept {
        println!("the database that was there is now {}", kept.display());
    }
    let how =
        if restored.compared { "verified against its .json" } else { "readable; it has no .json to compare with" };
    println!("{} restored: {how}", db.display());
    Ok(())
}

fn table_of(sums: &[TableSum]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_BORDERS_ONLY).set_header(["table", "rows", "hash"]);
    for sum in sums {
        table.add_row([format!("{}.{}", sum.schema, sum.table), sum.rows.to_string(), sum.hash.clone()]);
    }
    table
}
