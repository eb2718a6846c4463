//! DoExchange: a stream through exchangers, or the rows of SQL.

use super::{
    command::Command,
    service::{Caller, Flight, counted},
};
use crate::{
    error::{Error, Result},
    exchange::{Chain, within},
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
        identity.may_begin()?;
        let text = match Command::from_descriptor(&upload.descriptor)? {
            Command::Text(text) => text,
            Command::Table(_) | Command::FlightSql(_) => {
                return Err(Error::invalid("DoExchange takes a CMD descriptor: an exchanger's name, or SQL"));
            }
        };
        let output = match Chain::read(&text).transpose()? {
            Some(chain) => {
                let upload = upload.keep_app_metadata(chain.is_echo());
                let input = counted(call, Direction::Received, upload.batches().await?);
                let output = self.exchangers.run(&identity.rights, &chain, input, self.is_lossless(identity)).await;
                within(identity.rights.allowance, call.noting(output)?)
            }
            // The input, if there is one, is not read; the answer's end closes it.
            None => self.text_rows(identity, &text).await?,
        };
        Ok(counted(call, Direction::Sent, output))
    }
}
