//! Streams that GetFlightInfo's tickets started, so that CancelFlightInfo can end them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, Result},
    stream::RecordBatchStream,
};

/// By ticket id: how many uses run, and what ends them.
#[derive(Clone, Default)]
pub(super) struct Running(Arc<Mutex<HashMap<String, (usize, CancellationToken)>>>);

/// One use of a ticket, from before its statement starts until its stream is dropped.
pub(super) struct Use {
    running: Running,
    id: String,
    token: CancellationToken,
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut running = self.running.lock();
        if let Some((uses, _)) = running.get_mut(&self.id) {
            *uses -= 1;
            if *uses == 0 {
                running.remove(&self.id);
            }
        }
    }
}

impl Running {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (usize, CancellationToken)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, id: &str) -> Use {
        let mut running = self.lock();
        let (uses, token) = running.entry(id.to_string()).or_default();
        *uses += 1;
        Use { running: self.clone(), id: id.to_string(), token: token.clone() }
    }

    /// Whether there was something to end.
    pub(super) fn cancel(&self, id: &str) -> bool {
        match self.lock().get(id) {
            Some((_, token)) => {
                token.cancel();
                true
            }
            None => false,
        }
    }
}

impl Use {
    /// Starts the stream and lets it end in CANCELLED once [`Running::cancel`] is called with the same id.
    pub(super) async fn run(
        self,
        starting: impl Future<Output = Result<RecordBatchStream>>,
    ) -> Result<RecordBatchStream> {
        let stream = self.token.run_until_cancelled(starting).await.ok_or(Error::Cancelled)??;
        let (schema, token) = (stream.schema(), self.token.clone());
        let until_cancelled = stream.take_until(token.clone().cancelled_owned());
        let ending = futures::stream::once(async move { token.is_cancelled().then_some(Err(Error::Cancelled)) });
        let batches = until_cancelled.chain(ending.filter_map(futures::future::ready));
        Ok(RecordBatchStream::new(schema, batches).holding(self))
    }
}
