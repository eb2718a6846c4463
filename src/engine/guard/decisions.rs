//! What was decided on texts, so that the catalog is not asked a second time for the same text of a caller with the same grants.
//!
//! A decision holds for one version of the definitions (`engine/definitions.rs`) and for one set of grants, both of which
//! are part of it. Only statements that see nothing but what everybody sees are remembered: none of an open transaction, of
//! a connection that may have temporary tables, or of one whose bare names are looked for in another schema. What was refused
//! is decided anew each time.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::Mutex,
};

use super::super::pool::lock;
use crate::{
    access::{Grants, Rights},
    config::Size,
};

/// What a decision takes beside its text.
const OVERHEAD: usize = 512;

pub(in crate::engine) struct Decisions {
    most: usize,
    hasher: RandomState,
    kept: Mutex<Kept>,
}

/// Those of one version.
#[derive(Default)]
struct Kept {
    version: u64,
    allowed: HashMap<u64, (String, Grants)>,
    /// The oldest first.
    order: VecDeque<u64>,
    bytes: usize,
}

impl Decisions {
    pub(in crate::engine) fn new(most: Size) -> Self {
        Self { most: most.bytes(), hasher: RandomState::new(), kept: Mutex::default() }
    }

    fn key(&self, sql: &str, grants: &Grants) -> u64 {
        self.hasher.hash_one((sql, grants))
    }

    /// Whether this text was let through with these grants on this version.
    pub(super) fn allows(&self, version: u64, sql: &str, rights: &Rights) -> bool {
        let grants = rights.grants();
        let kept = lock(&self.kept);
        // Another text may have the same hash.
        let known = kept.allowed.get(&self.key(sql, grants));
        kept.version == version && known.is_some_and(|(text, of)| text == sql && of == grants)
    }

    pub(super) fn remember(&self, version: u64, sql: &str, rights: &Rights) {
        let size = sql.len() + OVERHEAD;
        // One text does not drive out all others.
        if size > self.most / 8 {
            return;
        }
        let grants = rights.grants();
        let key = self.key(sql, grants);
        let mut kept = lock(&self.kept);
        if kept.version != version {
            *kept = Kept { version, ..Kept::default() };
        }
        if let Some((text, _)) = kept.allowed.insert(key, (sql.to_string(), grants.clone())) {
            kept.bytes -= text.len() + OVERHEAD;
        } else {
            kept.order.push_back(key);
        }
        kept.bytes += size;
        while kept.bytes > self.most {
            let Some((text, _)) = kept.order.pop_front().and_then(|oldest| kept.allowed.remove(&oldest)) else { break };
            kept.bytes -= text.len() + OVERHEAD;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_holds_for_its_text_its_grants_and_its_version_and_all_of_them_are_bounded() {
        let decisions = Decisions::new(Size(64 * 1024));
        let (all, reader) = (Rights::all("a"), Rights::reader("a"));
        decisions.remember(1, "SELECT 1", &all);
        assert!(decisions.allows(1, "SELECT 1", &all) && decisions.allows(1, "SELECT 1", &Rights::all("b")));
        assert!(!decisions.allows(1, "SELECT 2", &all));
        assert!(!decisions.allows(1, "SELECT 1", &reader));
        assert!(!decisions.allows(2, "SELECT 1", &all));
        for number in 0..1000 {
            decisions.remember(2, &format!("SELECT {number}"), &all);
            decisions.remember(2, &format!("SELECT {number}"), &all);
        }
        assert!(decisions.allows(2, "SELECT 999", &all) && !decisions.allows(2, "SELECT 0", &all));
        assert!(!decisions.allows(1, "SELECT 1", &all));
        let kept = lock(&decisions.kept);
        assert_eq!((kept.order.len(), kept.bytes <= 64 * 1024), (kept.allowed.len(), true));
        assert_eq!(kept.bytes, kept.allowed.values().map(|(text, _)| text.len() + OVERHEAD).sum::<usize>());
    }
}
