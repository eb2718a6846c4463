//! What one version of an exchanger has done since the server started.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

#[derive(Debug, Default)]
pub(super) struct Statistics {
    pub(super) uses: AtomicU64,
    pub(super) running: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) rows_in: AtomicU64,
    pub(super) rows_out: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
}

/// The same, read at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub uses: u64,
    pub running: u64,
    pub failed: u64,
    pub rows_in: u64,
    pub rows_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

impl Statistics {
    pub(super) fn read(&self) -> Counts {
        Counts {
            uses: self.uses.load(Relaxed),
            running: self.running.load(Relaxed),
            failed: self.failed.load(Relaxed),
            rows_in: self.rows_in.load(Relaxed),
            rows_out: self.rows_out.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
        }
    }
}
