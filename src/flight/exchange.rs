//! DoExchange: a stream through an exchanger, or the rows of SQL.

use super::{
    command::Command,
    service::{Caller, Flight, counted},
};
use crate::{
    error::{Error, Result},
    exchange::is_name,
    stream::RecordBatchStream,
    telemetry::Direction,
    wire::Upload,
};

impl Flight {
    pub(super) async fn exchange(
        &self,
        upload: Upload,
        Caller { identity, call }: &Caller,
    ) -> Result<RecordBatchStream> {
        let text = match Command::from_descriptor(&upload.descriptor)? {
            Command::Text(text) => text,
            Command::Table(_) | Command::FlightSql(_) => {
                return Err(Error::invalid("DoExchange takes a CMD descriptor: an exchanger's name, or SQL"));
            }
        };
        let output = match self.exchangers.get(text.trim()) {
            Some(_) if !identity.rights.may_exchange(text.trim()) => {
                return Err(identity.rights.denied("grant", format!("no grant to use the exchanger {}", text.trim())));
            }
            Some(exchanger) => {
                let mut underway = self.metrics.exchange(exchanger.kind());
                let input = counted(call, Direction::Received, upload.batches().await?);
                let output =
                    exchanger.start(input).await.inspect_err(|error| underway.end::<()>(&Err(error.clone())))?;
                output.ending(move |outcome| underway.end(&outcome))
            }
            None if is_name(text.trim()) => return Err(self.exchangers.unknown(text.trim())),
            // The input, if there is one, is not read; the answer's end closes it.
            None => self.engine.query(&identity.rights, &text).await?,
        };
        Ok(counted(call, Direction::Sent, output))
    }
}
