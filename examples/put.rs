//! cargo run --release --example put

use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch, StringArray};
use mallard::{client::Client, stream::RecordBatchStream};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let uri = std::env::var("MALLARD_URI").unwrap_or("grpc://127.0.0.1:8815".into());
    let client = Client::connect(&uri.parse()?, None).await?;
    let ids = Arc::new(Int64Array::from(vec![1, 2, 3])) as _;
    let names = Arc::new(StringArray::from(vec![Some("mallard"), Some("teal"), None])) as _;
    let batch = RecordBatch::try_from_iter([("id", ids), ("name", names)])?;
    // Any stream of batches will do; all of it is stored in one transaction, or nothing. The client says its end explicitly
    // (x-mallard-end), so that a stream which fails here is never taken for a whole one there.
    let birds = RecordBatchStream::from_batches(batch.schema(), vec![batch]);
    let stored = client.put(&["birds".into()], birds).await?;
    println!("{} rows, {} bytes stored in birds", stored.rows, stored.bytes);
    Ok(())
}
