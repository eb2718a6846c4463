//! cargo run --release --example query -- "SELECT 42 AS answer"

use arrow_cast::pretty::pretty_format_batches;
use futures::TryStreamExt;
use mallard::{
    client::{Client, Login},
    config::Secret,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let uri = std::env::var("MALLARD_URI").unwrap_or("grpc://127.0.0.1:8815".into());
    let sql = std::env::args().nth(1).unwrap_or("SELECT 42 AS answer".into());
    let login = match (std::env::var("MALLARD_USER"), std::env::var("MALLARD_PASSWORD")) {
        (Ok(user), Ok(password)) => Some(Login { user, password: Secret::new(password) }),
        _ => None,
    };
    let client = Client::connect(&uri.parse()?, login.as_ref()).await?;
    // Batches come as DuckDB makes them; dropping the stream cancels the query on the server.
    let batches: Vec<_> = client.query(&sql).await?.try_collect().await?;
    println!("{}", pretty_format_batches(&batches)?);
    Ok(())
}
