//! cargo run --release --example exchange

use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch};
use arrow_cast::pretty::pretty_format_batches;
use futures::{StreamExt, TryStreamExt};
use mallard::{client::Client, stream::RecordBatchStream};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let uri = std::env::var("MALLARD_URI").unwrap_or("grpc://127.0.0.1:8815".into());
    let client = Client::connect(&uri.parse()?, None).await?;
    let numbers = Arc::new(Int64Array::from_iter_values(0..5)) as _;
    let batch = RecordBatch::try_from_iter([("n", numbers)])?;
    let input = || RecordBatchStream::from_batches(batch.schema(), vec![batch.clone()]);

    // One that every server has, and one of our own: a SELECT over the relation `input`.
    let own = json!({"name": "squares", "sql": "SELECT n, n * n AS square FROM input"});
    let registered: Vec<_> = client.action("add_exchange", &own).await?.collect().await;
    for result in registered {
        println!("{}", String::from_utf8_lossy(&result?));
    }
    for name in ["processed", "squares"] {
        let output: Vec<_> = client.exchange(name, input()).await?.try_collect().await?;
        println!("{name}:\n{}", pretty_format_batches(&output)?);
    }
    let dropped: Vec<_> = client.action("drop_exchange", &json!({"name": "squares"})).await?.try_collect().await?;
    println!("{}", String::from_utf8_lossy(&dropped[0]));
    Ok(())
}
