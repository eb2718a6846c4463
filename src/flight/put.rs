//! DoPut: a stream into a table, all of it or nothing; through exchangers before it is stored, where the call says so.

use arrow_flight::PutResult;
use futures::TryStreamExt;
use serde_json::json;

use super::{
    command::Command,
    service::{Caller, Flight, counted},
};
use crate::{
    engine::{Mode, TableName},
    error::{Error, Result},
    exchange::Chain,
    telemetry::Direction,
    wire::{EndRule, Upload},
};

impl Flight {
    /// Answers when the rows are durable.
    pub(super) async fn put(&self, upload: Upload, caller: &Caller, chain: Option<Chain>) -> Result<PutResult> {
        let table = match Command::from_descriptor(&upload.descriptor)? {
            Command::Table(table) => table,
            Command::Text(name) => TableName::parse(&name)?,
            Command::FlightSql(_) if chain.is_some() => {
                return Err(Error::Unsupported(
                    "rows of Flight SQL's DoPut pass no exchanger; send them to a table".into(),
                ));
            }
            Command::FlightSql(command) => return self.sql_put(command, upload, caller).await,
        };
        caller.identity.may_begin()?;
        let upload = upload.require_end(self.config.put.require_end.then_some(EndRule::Configuration));
        let requires_end = upload.requires_end();
        let input = counted(&caller.call, Direction::Received, upload.batches().await?);
        let (input, left) = input.lent();
        let input = self.through(caller, chain, input).await?;
        let staged = self.engine.ingest(&caller.identity.rights, &table, Mode::CreateOrAppend, input, false).await?;
        // An exchanger need not read its input to the end; whether that was whole shows only there.
        if requires_end && let Ok(mut left) = left.await {
            while left.try_next().await?.is_some() {}
        }
        let (rows, bytes) = (staged.rows, staged.bytes);
        staged.commit().await?;
        Ok(PutResult { app_metadata: json!({"rows": rows, "bytes": bytes}).to_string().into() })
    }
}
