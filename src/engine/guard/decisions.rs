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

/// `T` is what was found out beside.
pub(in crate::engine) struct Decisions<T = ()> {
    most: usize,
    hasher: RandomState,
    kept: Mutex<Kept<T>>,
}

/// Those of one version.
struct Kept<T> {
    version: u64,
    allowed: HashMap<u64, Decision<T>>,
    /// The oldest first.
    order: VecDeque<u64>,
    bytes: usize,
}

struct Decision<T> {
    text: String,
    grants: Grants,
    size: usize,
    found: T,
}

impl<T> Kept<T> {
    fn of(version: u64) -> Self {
        Self { version, allowed: HashMap::new(), order: VecDeque::new(), bytes: 0 }
    }
}

impl<T: Clone> Decisions<T> {
    pub(in crate::engine) fn new(most: Size) -> Self {
        Self { most: most.bytes(), hasher: RandomState::new(), kept: Mutex::new(Kept::of(0)) }
    }

    fn key(&self, sql: &str, grants: &Grants) -> u64 {
        self.hasher.hash_one((sql, grants))
    }

    /// What was found on this text with these grants on this version.
    pub(super) fn get(&self, version: u64, sql: &str, rights: &Rights) -> Option<T> {
        let grants = rights.grants();
        let kept = lock(&self.kept);
        // Another text may have the same hash.
        let known = kept.allowed.get(&self.key(sql, grants)).filter(|_| kept.version == version);
        known.filter(|known| known.text == sql && known.grants == *grants).map(|known| known.found.clone())
    }

    /// `size` is what `found` takes.
    pub(super) fn remember(&self, version: u64, sql: &str, rights: &Rights, found: T, size: usize) {
        let size = sql.len() + size + OVERHEAD;
        // One text does not drive out all others.
        if size > self.most / 8 {
            return;
        }
        let grants = rights.grants();
        let key = self.key(sql, grants);
        let mut kept = lock(&self.kept);
        if kept.version != version {
            *kept = Kept::of(version);
        }
        let decision = Decision { text: sql.to_string(), grants: grants.clone(), size, found };
        if let Some(before) = kept.allowed.insert(key, decision) {
            kept.bytes -= before.size;
        } else {
            kept.order.push_back(key);
        }
        kept.bytes += size;
        while kept.bytes > self.most {
            let Some(oldest) = kept.order.pop_front().and_then(|oldest| kept.allowed.remove(&oldest)) else { break };
            kept.bytes -= oldest.size;
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
        decisions.remember(1, "SELECT 1", &all, 7, 8);
        assert_eq!(decisions.get(1, "SELECT 1", &all), Some(7));
        assert_eq!(decisions.get(1, "SELECT 1", &Rights::all("b")), Some(7));
        assert_eq!(decisions.get(1, "SELECT 2", &all), None);
        assert_eq!(decisions.get(1, "SELECT 1", &reader), None);
        assert_eq!(decisions.get(2, "SELECT 1", &all), None);
        for number in 0..1000 {
            decisions.remember(2, &format!("SELECT {number}"), &all, number, 8);
            decisions.remember(2, &format!("SELECT {number}"), &all, number, 8);
        }
        assert_eq!(decisions.get(2, "SELECT 999", &all), Some(999));
        assert_eq!(decisions.get(2, "SELECT 0", &all), None);
        assert_eq!(decisions.get(1, "SELECT 1", &all), None);
        let kept = lock(&decisions.kept);
        assert_eq!((kept.order.len(), kept.bytes <= 64 * 1024), (kept.allowed.len(), true));
        assert_eq!(kept.bytes, kept.allowed.values().map(|one| one.size).sum::<usize>());
    }
}
