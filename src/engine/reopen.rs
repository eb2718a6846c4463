//! A database that DuckDB has invalidated: who notices it, whose statement it was, and how it is opened again in this
//! process.
//!
//! After a fatal or internal error DuckDB refuses every further statement of the instance. The instance can be closed once
//! nothing holds a connection to it, and the file opened again: DuckDB then replays the log, as it would in a new process.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{Engine, Served, Shared, hold::Hold, open, pool::lock, wal};
use crate::{
    access::{Issuer, Principal, Rights},
    config::Limits,
    error::{Error, Result},
    telemetry::{self, Event},
};

/// Within which reopenings count against `database.reopens`.
const REOPENS_WINDOW: Duration = Duration::from_secs(3600);

/// How often it is looked whether all statements have ended.
const LOOK: Duration = Duration::from_millis(5);

/// What DuckDB says of every statement after the one that has invalidated the database.
const AFTERWARDS: &str = "FATAL Error: Failed: database has been invalidated";

/// A statement that may be to blame.
#[derive(Clone, Copy)]
pub(super) struct Suspect<'a> {
    pub(super) rights: &'a Rights,
    pub(super) class: &'a str,
    pub(super) objects: &'a [String],
}

impl Shared {
    /// DuckDB may tell of a database that it has invalidated under any code (after a checkpoint that found no room, as
    /// an IO error), and a client may put the same words into an error of its own. So a question of ours decides.
    pub(super) fn recognise(&self, error: Error, suspect: Option<Suspect<'_>>) -> Error {
        let (message, broken) = match &error {
            Error::Fatal(_) | Error::Invalidated(_) | Error::Reopening => return error,
            Error::Broken(message) => (message.clone(), true),
            Error::Internal(message) | Error::Io(message) | Error::Corrupt(message) => {
                (message.clone(), self.is_invalidated())
            }
            other => {
                let message = other.to_string();
                let broken = message.contains("invalidated") && self.is_invalidated();
                (message, broken)
            }
        };
        if !broken {
            return error;
        }
        let is_cause = matches!(error, Error::Broken(_) | Error::Internal(_)) && !message.starts_with(AFTERWARDS);
        if is_cause && !self.blamed.swap(true, Ordering::AcqRel) {
            self.blame(&message, suspect);
        }
        let first = !self.broken.send_replace(true);
        match self.may_reopen() {
            true if is_cause || first => Error::Fatal(message),
            true => invalidated(),
            false => Error::Broken(message),
        }
    }

    /// Whether tables cannot be read for what has happened to the database; a statement that reads none works in an
    /// invalidated one, too.
    fn is_invalidated(&self) -> bool {
        match self.ask() {
            Ok(()) | Err(Error::Limit { .. } | Error::Cancelled | Error::Draining | Error::Reopening) => false,
            Err(_) => true,
        }
    }

    /// A statement was the first to meet the error. Errors of the storage are told, and are not its user's.
    fn blame(&self, message: &str, suspect: Option<Suspect<'_>>) {
        let Some(Suspect { rights, class, objects }) = suspect else {
            tracing::error!(cause = message, "a statement of the server's own met a fatal error in DuckDB");
            return;
        };
        let origin = rights.origin.as_ref();
        let issuer = rights.issuer.to_string();
        let trace_id = origin.map(|origin| origin.trace_id.as_str());
        let event = Event {
            event: "fatal_error",
            user: Some(&rights.user),
            issuer: Some(&issuer),
            role: Some(&rights.role_name),
            peer: origin.and_then(|origin| origin.peer.as_deref()),
            trace_id,
            class: Some(class),
            objects,
            outcome: telemetry::outcome::<()>(&Err(Error::Fatal(String::new()))),
            ..Event::default()
        };
        tracing::error!(
            user = rights.user,
            trace_id = trace_id.unwrap_or_default(),
            class,
            cause = message,
            "a statement met a fatal error in DuckDB"
        );
        let audit = self.metrics.audit.get();
        audit.inspect(|audit| audit.write(&event));
        let of_statement = message.starts_with("INTERNAL Error");
        if of_statement && self.offenders.count(rights) {
            let Limits { fatal_errors, fatal_error_ban, .. } = &self.config.limits;
            tracing::warn!(user = rights.user, fatal_errors, ban = %fatal_error_ban, "a user is refused for a while");
            let refused = telemetry::outcome(&self.offenders.check(rights));
            let event = Event { event: "user_refused", outcome: refused, rule: Some(KEY), ..event };
            audit.inspect(|audit| audit.write(&event));
        }
    }

    /// Whether an invalidated database would be opened again now.
    pub(super) fn may_reopen(&self) -> bool {
        if matches!(*lock(&self.instance), Served::Unusable) {
            return false;
        }
        let mut reopened = lock(&self.reopened);
        reopened.retain(|at| at.elapsed() < REOPENS_WINDOW);
        self.config.database.file().is_some() && reopened.len() < self.config.database.reopens
    }
}

/// What other statements are told.
pub(super) fn invalidated() -> Error {
    Error::Invalidated(
        "another statement met a fatal error in DuckDB, and the database is being reopened: what this one, its \
         transaction or its session had under way is rolled back; begin it again"
            .into(),
    )
}

impl Engine {
    /// Whether an invalidated database would be opened again now, in place of the end of the process.
    pub fn may_reopen(&self) -> bool {
        self.shared.may_reopen()
    }

    /// Ends what runs, closes the invalidated database and opens its file again. Statements that do not end within
    /// `patience` keep it from that. Blocks, for as long as DuckDB replays the log.
    pub fn reopen(&self, patience: Duration) -> Result<()> {
        let _change = self.shared.definitions.change();
        let shared = &self.shared;
        let _alone = lock(&shared.reopening);
        let invalidated = {
            let mut instance = lock(&shared.instance);
            match instance.is_open() {
                true => std::mem::replace(&mut *instance, Served::Reopening),
                false => return Err(Error::Draining),
            }
        };
        drop(invalidated);
        let opened = self.closed(patience).and_then(|()| self.open_again());
        let mut instance = lock(&shared.instance);
        match opened {
            Ok(opened) => {
                lock(&shared.reopened).push(Instant::now());
                // Before a statement of the new instance may need them.
                shared.blamed.store(false, Ordering::Release);
                shared.broken.send_replace(false);
                *instance = Served::Open(opened);
                Ok(())
            }
            Err(error) => {
                *instance = Served::Unusable;
                Err(error)
            }
        }
    }

    /// Waits until nothing holds the instance any more.
    #[expect(clippy::disallowed_methods, reason = "a thread that may wait asks now and then whether others have ended")]
    fn closed(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            self.pool.interrupt_all(&invalidated());
            self.lose_lines(&invalidated());
            let left = self.shared.environment.instance_count().map_err(|error| self.shared.cause(&error))?;
            if left == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let what = humantime::format_duration(patience);
                return Err(Error::Broken(format!("a statement did not end within {what} of its interruption")));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn open_again(&self) -> Result<duckdb::instance::Instance> {
        let shared = &self.shared;
        let path = shared.file.as_deref().ok_or_else(|| Error::internal("a database in memory is lost"))?;
        if let Some(how) = lock(&shared.hold).as_ref().and_then(Hold::lost) {
            return Err(Error::Io(format!("{how} while it was open")));
        }
        // DuckDB opens it by its name, which a sealed file refuses.
        lock(&shared.hold).iter_mut().for_each(Hold::unseal);
        lock(&shared.beside).unseal()?;
        wal::check(path)?;
        open::instance(shared, &self.sources)
    }
}

const KEY: &str = "limits.fatal_errors";

/// Users whose statements have met fatal errors, and those who are refused for it.
pub(super) struct Offenders {
    most: usize,
    window: Duration,
    ban: Duration,
    users: Mutex<HashMap<Principal, Offender>>,
}

#[derive(Default)]
struct Offender {
    met: Vec<Instant>,
    refused_until: Option<Instant>,
}

impl Offenders {
    pub(super) fn new(limits: &Limits) -> Self {
        let Limits { fatal_errors, fatal_error_window, fatal_error_ban, .. } = limits;
        Self { most: *fatal_errors, window: fatal_error_window.0, ban: fatal_error_ban.0, users: Mutex::default() }
    }

    /// A statement of this user was the first to meet a fatal error. Whether the user is refused from now on. Callers
    /// without an identity are not told apart, so nobody is refused for them.
    fn count(&self, rights: &Rights) -> bool {
        if self.most == 0 || self.ban.is_zero() || matches!(rights.issuer, Issuer::Anonymous | Issuer::Server) {
            return false;
        }
        let now = Instant::now();
        let mut users = self.users();
        users.retain(|_, offender| {
            offender.met.retain(|met| now.duration_since(*met) < self.window);
            !offender.met.is_empty() || offender.refused_until.is_some_and(|until| until > now)
        });
        let offender = users.entry(rights.principal()).or_default();
        offender.met.push(now);
        let refused = offender.met.len() >= self.most;
        if refused {
            offender.refused_until = now.checked_add(self.ban);
        }
        refused
    }

    /// An error where this user is refused.
    pub(super) fn check(&self, rights: &Rights) -> Result<()> {
        let users = self.users();
        if users.is_empty() {
            return Ok(());
        }
        let Some(until) = users.get(&rights.principal()).and_then(|offender| offender.refused_until) else {
            return Ok(());
        };
        match until.checked_duration_since(Instant::now()) {
            None => Ok(()),
            Some(left) => Err(Error::Limit {
                what: format!(
                    "statements of user \"{}\" have met {} fatal errors in DuckDB, each of which interrupted everybody; \
                     the user is refused for another {}",
                    rights.user,
                    self.most,
                    humantime::format_duration(Duration::from_secs(left.as_secs() + 1))
                ),
                key: KEY,
            }),
        }
    }

    fn users(&self) -> std::sync::MutexGuard<'_, HashMap<Principal, Offender>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::Roles,
        config::{Config, Span},
        telemetry::Metrics,
    };

    #[test]
    fn user_is_refused_at_the_configured_count_and_only_for_a_while() {
        let roles = Roles::new(&Config::default().auth);
        let of = |issuer: Issuer, user: &str| {
            roles.rights(user, None, &[], &[]).expect("the default role").vouched_by(issuer)
        };
        let [ann, bob] = ["ann", "bob"].map(|user| of(Issuer::Users, user));
        let mut limits = Config::default().limits;
        limits.fatal_errors = 2;
        limits.fatal_error_ban = Span(Duration::from_secs(600));
        let offenders = Offenders::new(&limits);
        assert!(!offenders.count(&ann) && offenders.check(&ann).is_ok());
        assert!(!offenders.count(&bob));
        assert!(offenders.count(&ann));
        let refused = offenders.check(&ann).expect_err("twice").to_string();
        assert!(refused.contains("limits.fatal_errors") && refused.contains("ann"), "{refused}");
        for other in [&bob, &of(Issuer::Jwt("https://issuer.example".into()), "ann")] {
            assert!(offenders.check(other).is_ok());
        }
        offenders.users().get_mut(&ann.principal()).expect("she is there").refused_until = Some(Instant::now());
        assert!(offenders.check(&ann).is_ok(), "the time is over");
        for nobody in [of(Issuer::Anonymous, "anonymous"), Rights::all("mallard")] {
            assert!((0..9).all(|_| !offenders.count(&nobody)), "nobody is refused for all");
        }

        limits.fatal_error_window = Span(Duration::ZERO);
        let offenders = Offenders::new(&limits);
        assert!(!offenders.count(&ann) && !offenders.count(&ann), "the first one is too old to count");
        limits.fatal_errors = 0;
        let offenders = Offenders::new(&limits);
        assert!((0..9).all(|_| !offenders.count(&ann)), "nobody is refused");
    }

    #[test]
    fn statement_that_does_not_end_keeps_the_database_from_being_reopened() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = Config::default();
        config.database.path = directory.path().join("held.duckdb").to_string_lossy().into_owned();
        let engine = Engine::open(&config, Metrics::unregistered()).expect("it opens");
        let held = engine.shared.connect().expect("it is open");
        let refused = engine.reopen(Duration::from_millis(20)).expect_err("a connection is open");
        assert!(matches!(refused, Error::Broken(_)) && !engine.may_reopen(), "{refused}");
        drop(held);

        let engine = {
            engine.close(Duration::from_secs(5));
            Engine::open(&config, Metrics::unregistered()).expect("it opens again")
        };
        let held = engine.shared.connect().expect("it is open");
        let ending = std::thread::spawn(move || drop(held));
        engine.reopen(Duration::from_secs(20)).expect("the connection was closed");
        ending.join().expect("it ends");
        engine.shared.ask().expect("it answers");
    }
}
