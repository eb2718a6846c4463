//! Which connections are let in: so many in all, from one address, and of clients that nobody knows yet.
//!
//! A newcomer is only refused where those inside have shown who they are. Otherwise the connection that has been unknown for
//! longest, at the address that has the most of them, makes room: a flood of sockets that say nothing keeps no client out,
//! and mostly displaces itself.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

use crate::{config::Limits, telemetry::Metrics};

/// Cheap to clone; all listeners of a server share one.
#[derive(Clone)]
pub(super) struct Admission(Arc<Inner>);

struct Inner {
    most: usize,
    most_per_address: usize,
    most_unauthenticated: usize,
    inside: Mutex<Inside>,
    metrics: Metrics,
}

#[derive(Default)]
struct Inside {
    next: u64,
    count: usize,
    addresses: HashMap<IpAddr, usize>,
    /// Without an identity so far, the oldest first.
    unknown: BTreeMap<u64, Unknown>,
}

struct Unknown {
    address: Option<IpAddr>,
    leave: CancellationToken,
}

/// The right to be inside, given back when dropped.
pub(super) struct Admitted {
    id: u64,
    address: Option<IpAddr>,
    known: AtomicBool,
    leave: CancellationToken,
    admission: Admission,
}

impl Admission {
    pub(super) fn new(limits: &Limits, metrics: Metrics) -> Self {
        let or_any = |limit: usize| if limit == 0 { usize::MAX } else { limit };
        Self(Arc::new(Inner {
            most: or_any(limits.connections),
            most_per_address: or_any(limits.connections_per_address),
            most_unauthenticated: or_any(limits.unauthenticated_connections),
            inside: Mutex::default(),
            metrics,
        }))
    }

    /// Lets a connection in, or refuses it and counts that. A Unix socket's peer has no address.
    pub(super) fn admit(&self, peer: Option<IpAddr>) -> Option<Admitted> {
        let Inner { most, most_per_address, most_unauthenticated, metrics, .. } = &*self.0;
        let address = peer.map(network);
        let mut inside = self.lock();
        let of_address = address.and_then(|address| inside.addresses.get(&address).copied()).unwrap_or(0);
        let refused = if of_address >= *most_per_address && !self.evict(&mut inside, address) {
            Some("address")
        } else if inside.count >= *most && !self.evict(&mut inside, None) {
            Some("connections")
        } else {
            None
        };
        if let Some(reason) = refused {
            metrics.connection_refused(reason);
            return None;
        }
        if inside.unknown.len() >= *most_unauthenticated {
            self.evict(&mut inside, None);
        }
        let id = inside.next;
        inside.next += 1;
        inside.count += 1;
        if let Some(address) = address {
            *inside.addresses.entry(address).or_default() += 1;
        }
        let leave = CancellationToken::new();
        inside.unknown.insert(id, Unknown { address, leave: leave.clone() });
        metrics.connections_unauthenticated.set(inside.unknown.len().try_into().unwrap_or(i64::MAX));
        Some(Admitted { id, address, known: AtomicBool::new(false), leave, admission: self.clone() })
    }

    /// Sends away who has been unknown for longest, of this address or else of the one that has the most.
    fn evict(&self, inside: &mut Inside, address: Option<IpAddr>) -> bool {
        let mut counts: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for unknown in inside.unknown.values() {
            *counts.entry(unknown.address).or_default() += 1;
        }
        let most = counts.values().max().copied();
        // Of several addresses with as many, the one whose connection is the oldest.
        let chosen = |unknown: &Unknown| match address {
            Some(_) => unknown.address == address,
            None => counts.get(&unknown.address).copied() == most,
        };
        let oldest = inside.unknown.iter().find(|(_, unknown)| chosen(unknown)).map(|(id, _)| *id);
        let Some(unknown) = oldest.and_then(|id| inside.unknown.remove(&id)) else { return false };
        unknown.leave.cancel();
        // At once, and not when its task has ended: a burst would send away more than it needs.
        inside.release(unknown.address);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        // The sections are short and leave the data whole.
        self.0.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn release(&mut self, address: Option<IpAddr>) {
        self.count -= 1;
        let Some(address) = address else { return };
        if let Some(count) = self.addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&address);
            }
        }
    }
}

impl Admitted {
    /// Completes when the connection has to make room.
    pub(super) async fn evicted(&self) {
        self.leave.cancelled().await;
    }

    /// A call on the connection has passed the auth layer. Whether that is news.
    pub(super) fn authenticated(&self) -> bool {
        if self.is_authenticated() {
            return false;
        }
        let mut inside = self.admission.lock();
        if inside.unknown.remove(&self.id).is_none() {
            return false;
        }
        self.known.store(true, Ordering::Release);
        self.report(&inside);
        true
    }

    pub(super) fn is_authenticated(&self) -> bool {
        self.known.load(Ordering::Acquire)
    }

    fn report(&self, inside: &Inside) {
        let unknown = inside.unknown.len().try_into().unwrap_or(i64::MAX);
        self.admission.0.metrics.connections_unauthenticated.set(unknown);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut inside = self.admission.lock();
        // One that was evicted has been released then.
        if inside.unknown.remove(&self.id).is_some() || self.is_authenticated() {
            inside.release(self.address);
            self.report(&inside);
        }
    }
}

/// What counts as one address: with IPv6 a whole /64, which is what one customer gets.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{Admission, Admitted};
    use crate::{config::Config, telemetry::Metrics};

    fn admission(connections: usize, per_address: usize, unauthenticated: usize) -> Admission {
        let mut limits = Config::default().limits;
        limits.connections = connections;
        limits.connections_per_address = per_address;
        limits.unauthenticated_connections = unauthenticated;
        Admission::new(&limits, Metrics::unregistered())
    }

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    fn is_evicted(admitted: &Admitted) -> bool {
        admitted.leave.is_cancelled()
    }

    #[test]
    fn unknown_connections_make_room_and_known_ones_stay() {
        let admission = admission(3, 0, 0);
        let [one, two] = [(); 2].map(|()| admission.admit(address("10.0.0.1")).expect("room"));
        let other = admission.admit(address("10.0.0.2")).expect("room");
        assert!(one.authenticated() && !one.authenticated());
        let newest = admission.admit(address("10.0.0.3")).expect("an unknown one makes room");
        assert_eq!([&one, &two, &other, &newest].map(is_evicted), [false, true, false, false]);
        assert!(!two.authenticated(), "too late");
        assert!(other.authenticated() && newest.authenticated());
        assert!(admission.admit(address("10.0.0.4")).is_none(), "all are known");
        drop(two);
        assert!(admission.admit(address("10.0.0.4")).is_none(), "it had been counted out");
        drop(one);
        assert!(admission.admit(address("10.0.0.4")).is_some());
    }

    #[test]
    fn address_that_floods_displaces_itself() {
        let admission = admission(0, 0, 4);
        let quiet = admission.admit(address("10.0.0.1")).expect("room");
        let flood: Vec<_> = (0..100).map(|_| admission.admit(address("10.0.0.2")).expect("room")).collect();
        assert!(!is_evicted(&quiet));
        assert_eq!(flood.iter().filter(|one| !is_evicted(one)).count(), 3);
    }

    #[test]
    fn limit_of_an_address_holds_for_its_network_alone() {
        let admission = admission(0, 1, 0);
        let known = admission.admit(address("2001:db8::1")).expect("room");
        known.authenticated();
        assert!(admission.admit(address("2001:db8::2")).is_none());
        assert!(admission.admit(address("2001:db8:0:1::2")).is_some());
        assert!(admission.admit(address("::ffff:10.0.0.1")).is_some());
        let unix = [(); 3].map(|()| admission.admit(None));
        assert!(unix.iter().all(Option::is_some));
    }
}
