//! DoPut: a stream into a table, all of it or nothing.

use arrow_flight::PutResult;
use serde_json::json;

use super::{
    command::Command,
    service::{Caller, Flight, counted},
};
use crate::{
    engine::{Mode, TableName},
    error::Result,
    telemetry::Direction,
    wire::Upload,
};

impl Flight {
    /// Answers when the rows are durable.
    pub(super) async fn put(&self, upload: Upload, caller: &Caller) -> Result<PutResult> {
        let table = match Command::from_descriptor(&upload.descriptor)? {
            Command::Table(table) => table,
            Command::Text(name) => TableName::parse(&name)?,
            Command::FlightSql(command) => return self.sql_put(command, upload, caller).await,
        };
        let input = counted(&caller.call, Direction::Received, upload.batches().await?);
        let staged = self.engine.ingest(&caller.identity.rights, &table, Mode::CreateOrAppend, input, false).await?;
        let (rows, bytes) = (staged.rows, staged.bytes);
        staged.commit().await?;
        Ok(PutResult { app_metadata: json!({"rows": rows, "bytes": bytes}).to_string().into() })
    }
}
