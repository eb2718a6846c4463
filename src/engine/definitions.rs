//! Which version of the tables, views and other definitions there is: whatever was decided on another version is decided anew.
//!
//! DuckDB has such a number, but tells it to nobody. This one counts the changes that the server makes, each from before it
//! begins until it is committed or rolled back: between the two, nobody knows which of the two versions a statement sees.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

#[derive(Default)]
pub(super) struct Definitions(Arc<Changes>);

#[derive(Default)]
struct Changes {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A change that may become visible at any time until this is dropped.
pub(super) struct Change(Arc<Changes>);

impl Definitions {
    pub(super) fn change(&self) -> Change {
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        Change(self.0.clone())
    }

    /// The version that every statement sees; none while a change is under way.
    pub(super) fn version(&self) -> Option<u64> {
        // In this order: where both are the same, no change was under way when the second was read.
        let ended = self.0.ended.load(Ordering::SeqCst);
        Some(self.0.begun.load(Ordering::SeqCst)).filter(|begun| *begun == ended)
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_told_between_changes_only_and_never_twice() {
        let definitions = Definitions::default();
        let first = definitions.version().expect("nothing changes");
        let (one, other) = (definitions.change(), definitions.change());
        drop(one);
        assert_eq!(definitions.version(), None);
        drop(other);
        assert_ne!(definitions.version().expect("nothing changes any more"), first);
    }
}
