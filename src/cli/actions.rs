//! `mallard actions`

use bytes::Bytes;
use clap::Args;
use futures::StreamExt;

use super::connect::LoginArguments;
use crate::{
    error::{Error, Result},
    json::Json,
    location::Location,
};

#[derive(Args)]
pub(super) struct Arguments {
    /// Server, such as grpc://127.0.0.1:8815
    uri: Location,
    /// Action to run; without it all actions are listed
    name: Option<String>,
    /// JSON body of the action
    #[arg(requires = "name")]
    body: Option<String>,
    #[command(flatten)]
    login: LoginArguments,
}

pub(super) async fn run(arguments: Arguments) -> Result<()> {
    let client = arguments.login.connect(&arguments.uri).await?;
    let Some(name) = &arguments.name else {
        for action in client.list_actions().await? {
            println!("{:20}  {}", action.r#type, action.description);
        }
        return Ok(());
    };
    let body = arguments.body.as_deref().unwrap_or_default();
    if !body.is_empty() {
        Json::parse(body).map_err(|error| Error::invalid(format!("the body is not JSON: {error}")))?;
    }
    // As it was written: its numbers keep all of their digits.
    let mut results = client.action_with(name, Bytes::copy_from_slice(body.as_bytes())).await?;
    while let Some(result) = results.next().await {
        println!("{}", String::from_utf8_lossy(&result?));
    }
    Ok(())
}
