//! Who has failed to log in too often to be asked again just now.
//!
//! Failures count for the user at the address and for the address, never for the user alone: nobody can lock another out
//! from elsewhere. What is kept is bounded, and the older half is forgotten when it is full.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::turns::Class;
use crate::error::{Error, Result};

/// In which the allowed failures come back, one after the other.
const WINDOW: Duration = Duration::from_secs(60);

/// Entries of each kind.
const REMEMBERED: usize = 16_384;

/// One attempt's user and address. The user as a keyed hash: a name may be long, and need not be anybody's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    user: u64,
    address: Option<IpAddr>,
}

pub(super) struct Failures {
    hasher: RandomState,
    /// Failures a minute of one user at one address, and of one address; 0 is no limit.
    of_user: usize,
    of_address: usize,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    users: HashMap<Origin, Level>,
    addresses: HashMap<Option<IpAddr>, Level>,
    /// When a user last logged in from an address.
    known: HashMap<Origin, Instant>,
}

/// How many failures count, as of then: they leak away over the window.
#[derive(Clone, Copy)]
struct Level {
    failures: f64,
    at: Instant,
}

impl Level {
    fn now(self, most: usize, now: Instant) -> f64 {
        let left = now.duration_since(self.at).as_secs_f64() / WINDOW.as_secs_f64() * most as f64;
        (self.failures - left).max(0.0)
    }
}

impl Failures {
    pub(super) fn new(of_user: usize, of_address: usize) -> Self {
        Self { hasher: RandomState::new(), of_user, of_address, seen: Mutex::default() }
    }

    pub(super) fn origin(&self, user: &str, address: Option<IpAddr>) -> Origin {
        Origin { user: self.hasher.hash_one(user), address: address.map(network) }
    }

    /// With whom this attempt waits for its turn.
    pub(super) fn class(&self, origin: &Origin) -> Class {
        match self.seen().known.contains_key(origin) {
            true => Class::Known(origin.user, origin.address),
            false => Class::Address(origin.address),
        }
    }

    /// Refuses who has failed too often. A user who has logged in from there before is not refused for what others do at
    /// the same address.
    pub(super) fn check(&self, origin: &Origin) -> Result<()> {
        let (seen, now) = (self.seen(), Instant::now());
        let has_failed = |level: Option<&Level>, most: usize| {
            most > 0 && level.is_some_and(|level| level.now(most, now) > most as f64 - 1.0)
        };
        let limit = |most: usize, whose: &str, key| {
            let what = format!("{most} logins{whose} from this address have failed within a minute");
            Err(Error::Limit { what, key })
        };
        if has_failed(seen.users.get(origin), self.of_user) {
            return limit(self.of_user, " of this user", "auth.login_failures");
        }
        if has_failed(seen.addresses.get(&origin.address), self.of_address) && !seen.known.contains_key(origin) {
            return limit(self.of_address, "", "auth.login_failures_per_address");
        }
        Ok(())
    }

    pub(super) fn failed(&self, origin: &Origin) {
        let (mut seen, now) = (self.seen(), Instant::now());
        count(&mut seen.users, *origin, self.of_user, now);
        count(&mut seen.addresses, origin.address, self.of_address, now);
    }

    pub(super) fn succeeded(&self, origin: &Origin) {
        let mut seen = self.seen();
        seen.users.remove(origin);
        remember(&mut seen.known, *origin, Instant::now(), |at| *at);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count<K: Eq + Hash + Copy>(levels: &mut HashMap<K, Level>, key: K, most: usize, now: Instant) {
    if most == 0 {
        return;
    }
    let before = levels.get(&key).map_or(0.0, |level| level.now(most, now));
    remember(levels, key, Level { failures: before + 1.0, at: now }, |level| level.at);
}

fn remember<K: Eq + Hash + Copy, V>(kept: &mut HashMap<K, V>, key: K, value: V, at: impl Fn(&V) -> Instant) {
    if kept.len() >= REMEMBERED && !kept.contains_key(&key) {
        let mut times: Vec<Instant> = kept.values().map(&at).collect();
        let (_, middle, _) = times.select_nth_unstable(REMEMBERED / 2);
        let middle = *middle;
        kept.retain(|_, value| at(value) > middle);
    }
    kept.insert(key, value);
}

/// What one party has as its own: an IPv4 address, or the 64 bits that a provider gives to one customer.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn user_is_refused_where_they_failed_and_nowhere_else() {
        let failures = Failures::new(3, 5);
        let [alice, elsewhere, bob] = [("alice", 1), ("alice", 2), ("bob", 1)].map(|(u, a)| failures.origin(u, at(a)));
        for _ in 0..3 {
            assert!(failures.check(&alice).is_ok());
            failures.failed(&alice);
        }
        assert!(failures.check(&alice).is_err());
        assert!(failures.check(&elsewhere).is_ok(), "nobody locks others out");
        assert!(failures.check(&bob).is_ok());
        failures.succeeded(&bob);
        for user in ["eve", "mallory"] {
            failures.failed(&failures.origin(user, at(1)));
        }
        let new = failures.check(&failures.origin("new", at(1))).expect_err("the address is at its limit");
        assert!(new.to_string().contains("auth.login_failures_per_address"), "{new}");
        assert!(failures.check(&bob).is_ok(), "who has logged in from there before is known");
        assert!(failures.class(&bob) != failures.class(&alice));
        let unlimited = Failures::new(0, 0);
        (0..100).for_each(|_| unlimited.failed(&alice));
        assert!(unlimited.check(&alice).is_ok());
    }

    #[test]
    fn failures_leak_away_and_memory_is_bounded() {
        let level = Level { failures: 10.0, at: Instant::now() };
        assert!(level.now(10, level.at + WINDOW / 2) < 5.1);
        assert!(level.now(10, level.at + WINDOW) < 0.1);
        let failures = Failures::new(10, 10);
        for name in 0..3 * REMEMBERED {
            let origin = failures.origin(&name.to_string(), Some(IpAddr::from((name as u32).to_be_bytes())));
            failures.failed(&origin);
            failures.succeeded(&origin);
            failures.failed(&origin);
        }
        let seen = failures.seen();
        assert!([seen.users.len(), seen.addresses.len(), seen.known.len()].iter().all(|kept| *kept <= REMEMBERED));
        let (one, other) = ("2001:db8::1".parse().map(network), "2001:db8::ffff:1".parse().map(network));
        assert_eq!(one, other);
        assert_eq!("::ffff:10.0.0.1".parse().map(network), Ok(IpAddr::from([10, 0, 0, 1])));
    }
}
