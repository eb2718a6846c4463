//! Sessions that were closed before their tokens had expired.
//!
//! Kept until they would have ended anyhow, so many of each user: whoever closes more of them within that time ends all of
//! their sessions so far, and nothing grows. Lives in memory: a restart forgets it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::Session;

pub(super) struct Closed {
    of_each_user: usize,
    users: Mutex<HashMap<String, OfUser>>,
}

#[derive(Default)]
struct OfUser {
    /// By id, with the last second in which they could be used.
    sessions: HashMap<String, u64>,
    /// Those that began then, in milliseconds since 1970, or before are closed, and when that may be forgotten.
    before: Option<(u64, u64)>,
}

impl Closed {
    pub(super) fn new(of_each_user: usize) -> Self {
        Self { of_each_user, users: Mutex::default() }
    }

    /// `now` since 1970.
    pub(super) fn close(&self, user: &str, session: &Session, now: Duration) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = now.as_secs();
        users.retain(|_, user| {
            user.sessions.retain(|_, until| *until >= seconds);
            user.before = user.before.filter(|(_, until)| *until >= seconds);
            !user.sessions.is_empty() || user.before.is_some()
        });
        let of_user = users.entry(user.to_string()).or_default();
        if of_user.sessions.len() >= self.of_each_user {
            tracing::warn!(user, "more sessions closed than auth.closed_sessions; all of the user's are closed");
            // One that begins now would last as long as this one.
            let until = seconds.saturating_add(session.until.saturating_sub(session.since / 1000)).saturating_add(1);
            of_user.sessions.clear();
            of_user.before = Some((u64::try_from(now.as_millis()).unwrap_or(u64::MAX), until));
        }
        of_user.sessions.insert(session.id.clone(), session.until);
    }

    pub(super) fn contains(&self, user: &str, session: &Session) -> bool {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.get(user).is_some_and(|user| {
            user.sessions.contains_key(&session.id) || user.before.is_some_and(|(at, _)| session.since <= at)
        })
    }

    pub(super) fn count(&self) -> usize {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.values().map(|user| user.sessions.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(number: u64, since: u64) -> Session {
        Session { id: number.to_string(), since, until: since / 1000 + 10 }
    }

    #[test]
    fn closed_until_it_would_have_ended_and_bounded() {
        let closed = Closed::new(3);
        let at = |millis| Duration::from_millis(millis);
        closed.close("alice", &session(0, 1000), at(1000));
        assert!(closed.contains("alice", &session(0, 1000)) && !closed.contains("bob", &session(0, 1000)));
        assert!(!closed.contains("alice", &session(9, 1000)));
        (1..4).for_each(|number| closed.close("alice", &session(number, 2000), at(3000)));
        assert!((0..4).all(|number| closed.contains("alice", &session(number, 2000))));
        assert!(closed.contains("alice", &session(9, 3000)), "one more than are kept closes all so far");
        assert!(!closed.contains("alice", &session(10, 3001)));
        assert_eq!(closed.count(), 1);
        closed.close("bob", &session(5, 60_000), at(60_000));
        assert_eq!(closed.count(), 1, "what has ended is forgotten");
    }
}
