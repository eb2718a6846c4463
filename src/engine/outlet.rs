//! The channel between an engine thread and whoever reads its rows: bounded in batches and in bytes.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_select::concat::concat_batches;
use tokio::sync::{Semaphore, mpsc};

use super::{pool::Cancel, seen::Waiting};
use crate::{
    error::{Error, Result},
    stream::batch_bytes,
    telemetry::Metrics,
};

/// Batches that wait, beside DuckDB's own streaming buffer.
const CHANNEL_BATCHES: usize = 2;

/// Bytes that wait, in units of a KiB. One batch that is larger passes alone.
const CHANNEL_UNITS: u32 = 32 * 1024;

/// A batch above this is sent in pieces of this size, each with bytes of its own.
const PIECE_BYTES: u64 = 16 * 1024 * 1024;

/// The sending end.
pub(super) struct Outlet {
    rows: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
}

pub(super) fn outlet() -> (Outlet, mpsc::Receiver<Waiting>) {
    let (rows, batches) = mpsc::channel(CHANNEL_BATCHES);
    (Outlet { rows, room: Arc::new(Semaphore::new(CHANNEL_UNITS as usize)) }, batches)
}

impl Outlet {
    /// Waits on this engine thread until the batch has room.
    pub(super) fn send(&self, batch: RecordBatch, cancel: &Cancel, metrics: &Metrics) -> Result<()> {
        let bytes = batch_bytes(&batch);
        if bytes <= PIECE_BYTES || batch.num_rows() < 2 {
            return self.put(batch, bytes, cancel, metrics);
        }
        let pieces = bytes.div_ceil(PIECE_BYTES).min(batch.num_rows() as u64) as usize;
        let length = batch.num_rows().div_ceil(pieces);
        for start in (0..batch.num_rows()).step_by(length) {
            let piece = batch.slice(start, length.min(batch.num_rows() - start));
            // A slice alone would keep all of it. With a second batch its rows are copied; a type that cannot be is kept.
            let piece = concat_batches(&batch.schema(), [&piece, &piece.slice(0, 0)]).unwrap_or(piece);
            let bytes = batch_bytes(&piece);
            self.put(piece, bytes, cancel, metrics)?;
        }
        Ok(())
    }

    fn put(&self, batch: RecordBatch, bytes: u64, cancel: &Cancel, metrics: &Metrics) -> Result<()> {
        let units = u32::try_from(bytes / 1024 + 1).unwrap_or(CHANNEL_UNITS).min(CHANNEL_UNITS);
        let sending = async {
            let room = self.room.clone().acquire_many_owned(units).await.map_err(Error::internal)?;
            self.rows.send(Waiting::new(batch, room, metrics)).await.map_err(|_| Error::Cancelled)
        };
        tokio::pin!(sending);
        let gone = async { self.rows.closed().await };
        tokio::pin!(gone);
        let either = futures::future::select(sending, gone);
        match cancel.wait(either)? {
            futures::future::Either::Left((sent, _)) => sent,
            futures::future::Either::Right(_) => Err(Error::Cancelled),
        }
    }
}
