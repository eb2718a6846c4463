//! The wall clock, for what expires at a time that others know, too: tokens. A value, so that a test can go ahead of time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Cheap to clone; clones show the same time.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    ahead_millis: Arc<AtomicU64>,
}

impl Clock {
    /// Since 1970.
    pub fn now(&self) -> Duration {
        let ahead = Duration::from_millis(self.ahead_millis.load(Ordering::Relaxed));
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + ahead
    }

    /// From now on it is later, by that much.
    pub fn go_ahead(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.ahead_millis.fetch_add(millis, Ordering::Relaxed);
    }
}
