//! Who creates a table that is not there: one stream at a time for each table, so that several at once all land.
//!
//! DuckDB ends the second of two transactions that create the same table, at once and for good. So whoever creates one
//! holds its turn until the transaction has ended, and the next one then finds the table, or creates it in its place.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use tokio::sync::{Mutex as Turns, OwnedMutexGuard};

use super::pool::lock;

/// The right to create one table, until it is dropped.
pub(super) type Turn = OwnedMutexGuard<()>;

/// Those that create tables now, by the tables' names.
#[derive(Default)]
pub(super) struct Creations(Mutex<HashMap<String, Weak<Turns<()>>>>);

impl Creations {
    /// Where to take the turn for this table.
    pub(super) fn of(&self, table: &str) -> Arc<Turns<()>> {
        let mut creations = lock(&self.0);
        creations.retain(|_, turns| turns.strong_count() > 0);
        let turns = creations.get(table).and_then(Weak::upgrade).unwrap_or_default();
        creations.insert(table.to_string(), Arc::downgrade(&turns));
        turns
    }
}
