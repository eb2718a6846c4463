//! cargo run --release --example exchangers [ROWS]
//!
//! Registers an exchanger of its own, sends rows through it (24,000,000 unless told otherwise), and reads every row back.

use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch, cast::AsArray, types::Int64Type};
use arrow_schema::{DataType, Field, Schema};
use futures::{StreamExt, TryStreamExt};
use mallard::{client::Client, error::Error, stream::RecordBatchStream};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rows: i64 = std::env::args().nth(1).map_or(Ok(24_000_000), |rows| rows.parse())?;
    let uri = std::env::var("MALLARD_URI").unwrap_or("grpc://127.0.0.1:8815".into());
    let client = Client::connect(&uri.parse()?, None).await?;
    let own = json!({"name": "my_own", "sql": "SELECT *, true AS processed FROM input", "replace": true});
    let added: Vec<_> = client.action("add_exchange", &own).await?.try_collect().await?;
    println!("registered {}", String::from_utf8_lossy(&added[0]));

    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
    let made = schema.clone();
    let batches = futures::stream::iter((0..rows).step_by(100_000)).map(move |start| {
        let ids = Int64Array::from_iter_values(start..rows.min(start + 100_000));
        RecordBatch::try_new(made.clone(), vec![Arc::new(ids)]).map_err(Error::internal)
    });
    let mut output = client.exchange("my_own", RecordBatchStream::new(schema, batches)).await?;
    let (mut back, mut processed, mut total) = (0, 0, 0);
    while let Some(batch) = output.next().await {
        let batch = batch?;
        back += batch.num_rows() as i64;
        processed += batch.column(1).as_boolean().true_count() as i64;
        total += batch.column(0).as_primitive::<Int64Type>().values().iter().sum::<i64>();
    }
    assert_eq!((back, processed, total), (rows, rows, rows * (rows - 1) / 2));
    println!("{back} rows came back, all of them with processed = true");
    let _dropped: Vec<_> = client.action("drop_exchange", &json!({"name": "my_own"})).await?.try_collect().await?;
    Ok(())
}
