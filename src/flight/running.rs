//! Streams that GetFlightInfo's tickets started, so that CancelFlightInfo can end them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::{error::Error, stream::RecordBatchStream};

/// By ticket id. An entry lives as long as its stream.
#[derive(Clone, Default)]
pub(super) struct Running(Arc<Mutex<HashMap<String, CancellationToken>>>);

struct Entry {
    running: Running,
    id: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.running.lock().remove(&self.id);
    }
}

impl Running {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream, which ends in CANCELLED once [`Running::cancel`] is called with the same id.
    pub(super) fn track(&self, id: &str, stream: RecordBatchStream) -> RecordBatchStream {
        let token = self.lock().entry(id.to_string()).or_default().clone();
        let entry = Entry { running: self.clone(), id: id.to_string() };
        let schema = stream.schema();
        let until_cancelled = stream.take_until(token.clone().cancelled_owned());
        let ending = futures::stream::once(async move { token.is_cancelled().then_some(Err(Error::Cancelled)) });
        let batches = until_cancelled.chain(ending.filter_map(futures::future::ready));
        RecordBatchStream::new(schema, batches).holding(entry)
    }

    /// Whether there was a stream to end.
    pub(super) fn cancel(&self, id: &str) -> bool {
        match self.lock().get(id) {
            Some(token) => {
                token.cancel();
                true
            }
            None => false,
        }
    }
}
