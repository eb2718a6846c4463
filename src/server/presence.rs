//! Whether the database is still in the files that its path leads to, looked at while the server runs.
//!
//! DuckDB keeps its files open and does not notice that one was removed, renamed or replaced: everything goes on, and what is
//! written is gone with the process. A server that has lost its database file is not ready, and the engine refuses writes;
//! reads and backups go on, which saves what is there. A log that was removed is replaced by a checkpoint.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    gate::{Gate, State},
    report,
};
use crate::{engine::Engine, telemetry::Metrics};

/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(2);

pub(super) struct Presence {
    pub(super) gate: Gate,
    pub(super) health: HealthReporter,
    pub(super) metrics: Metrics,
}

impl Presence {
    /// Looks until the engine is gone.
    pub(super) async fn watch(self, engine: Weak<Engine>) {
        let mut seconds = tokio::time::interval(INTERVAL);
        seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut known = None;
        loop {
            seconds.tick().await;
            let Some(engine) = engine.upgrade() else { return };
            let looked = engine.clone();
            // A disk that hangs holds up nothing but this.
            let Ok((file, log)) = tokio::task::spawn_blocking(move || (looked.lost_file(), looked.lost_log())).await
            else {
                continue;
            };
            if log {
                tracing::error!("the write-ahead log was removed while it is open; writing a checkpoint in its place");
                self.checkpoint(&engine).await;
            }
            if file != known {
                known = file;
                self.tell(file).await;
            }
        }
    }

    async fn tell(&self, lost: Option<&'static str>) {
        self.metrics.file_lost.set(lost.is_some().into());
        // A server that stops, or reopens its database, says what it is itself.
        let is_serving = self.gate.state() == State::Serving && self.metrics.invalidated.get() == 0;
        match lost {
            Some(how) => {
                tracing::error!(
                    "{how} while it is open: not ready any more, and writes are refused; what is in the database is lost when \
                     the server ends, unless a backup is made (mallard backup) or the file is put back"
                );
                self.metrics.ready.set(0);
                report(&self.health, ServingStatus::NotServing).await;
            }
            None => {
                tracing::warn!("the database file is in its place again");
                if is_serving {
                    self.metrics.ready.set(1);
                    report(&self.health, ServingStatus::Serving).await;
                }
            }
        }
    }

    async fn checkpoint(&self, engine: &Arc<Engine>) {
        match engine.checkpoint().await {
            Ok(()) => tracing::warn!("a checkpoint holds what was in the removed log"),
            Err(error) => tracing::error!(%error, "no checkpoint; it is tried again"),
        }
    }
}
