//! What the incoming messages of all streams of a server may hold together.
//!
//! A message asks before its first byte is kept, and its bytes count until the last array in them is dropped. One that
//! finds no room waits, and HTTP/2's windows make its sender wait: nobody who is inside needs anybody outside in order to go
//! on, except that a stream may keep what it has (dictionaries, rows that its reader does not take). So the wait has an end.
//! Small messages ask for 64 KiB at once, out of an eighth beside the rest, so that long ones are not in their way.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::parse::{Held, Wanted};
use crate::{
    config::{Limits, Size, Span},
    error::{Error, Result},
    telemetry::Metrics,
};

/// Permits are counted in these.
const UNIT: usize = 1024;

/// Which part of all is kept beside it for small messages, and how many units that is at least.
const SMALL_PART: usize = 8;
const SMALL_LEAST: usize = 1024;

/// Cheap to clone.
#[derive(Clone)]
pub struct Budget {
    units: Arc<Semaphore>,
    /// Of small messages.
    small: Arc<Semaphore>,
    size: Size,
    patience: Span,
    metrics: Metrics,
}

struct Taken {
    bytes: i64,
    metrics: Metrics,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.metrics.bytes_in_flight.sub(self.bytes);
    }
}

impl Budget {
    pub fn new(limits: &Limits, metrics: Metrics) -> Self {
        let size = limits.bytes_in_flight;
        let units = (size.bytes() / UNIT).min(Semaphore::MAX_PERMITS);
        let small = (units / SMALL_PART).max(SMALL_LEAST);
        let (units, small) = (Arc::new(Semaphore::new(units)), Arc::new(Semaphore::new(small)));
        Self { units, small, size, patience: limits.queue_timeout, metrics }
    }

    /// Waits until there is room for so many bytes.
    pub(super) async fn take(self, wanted: Wanted) -> Result<Held> {
        let Self { units, small, size, patience, metrics } = self;
        let (units, bytes) = match wanted {
            Wanted::Long(bytes) => (units, bytes),
            Wanted::Small(bytes) => (small, bytes),
        };
        // The configuration is checked to have room for the longest message.
        let wanted = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let permit = tokio::time::timeout(patience.0, units.acquire_many_owned(wanted)).await;
        let full = || Error::Limit {
            what: format!(
                "no room for {bytes} bytes within limits.queue_timeout ({patience}): messages on their way hold all of {size}"
            ),
            key: "limits.bytes_in_flight",
        };
        let permit = permit.map_err(|_elapsed| full())?.map_err(Error::internal)?;
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        metrics.bytes_in_flight.add(bytes);
        Ok(Arc::new(Taken { bytes, metrics, _permit: permit }))
    }
}
