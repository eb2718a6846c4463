//! What clients keep between calls: transactions, prepared statements, settings, temporary tables.
//!
//! A login is a session: whoever shows its bearer token is in it. A client without a login may have a cookie, and without
//! either its connection is its session, which ends with the connection. Where a proxy may share the connection among
//! clients, there are handles alone, which stand for themselves. All of it belongs to a user, is bounded, and is freed when it has not
//! been used for a while, when the connections that it was used by have gone, when the session is closed, and when the
//! server stops. Nothing here knows Flight.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use crate::{
    access::{Principal, Rights},
    auth::{Connection, Identity},
    config,
    engine::{Ask, Bound, End, Engine, Line, Settings},
    error::{Error, Result},
    telemetry::Metrics,
};

/// How often it is looked for what has expired.
const SWEEP: Duration = Duration::from_millis(500);

/// The name of a transaction or a prepared statement: nobody guesses it, and for another user it names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Handle([u8; 16]);

impl Handle {
    fn new() -> Self {
        let mut bytes = [0_u8; 16];
        getrandom::fill(&mut bytes).expect("the operating system hands out random bytes");
        Self(bytes)
    }

    /// Bytes that are none name nothing.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    fn text(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The sessions of one server. Cheap to clone.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    engine: Arc<Engine>,
    limits: config::Session,
    metrics: Metrics,
    state: Mutex<State>,
    parameters: Arc<Parameters>,
}

/// What the values that are bound to statements take.
struct Parameters {
    limits: config::Session,
    /// By user.
    taken: Mutex<HashMap<Principal, u64>>,
}

/// The right to keep values for one statement, given back when it is dropped.
pub struct Reserved {
    parameters: Arc<Parameters>,
    user: Principal,
    bytes: u64,
}

impl Reserved {
    /// Takes so many bytes more, or says which limit is against it.
    pub fn grow(&mut self, more: u64) -> Result<()> {
        let config::Session { parameters_size, parameters_size_per_user, parameters_size_in_all, .. } =
            &self.parameters.limits;
        let mut taken = self.parameters.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let in_all: u64 = taken.values().sum();
        let own = taken.get(&self.user).copied().unwrap_or(0);
        for (bytes, most, key, whose) in [
            (self.bytes, parameters_size, "session.parameters_size", "the values to bind"),
            (own, parameters_size_per_user, "session.parameters_size_per_user", "the values that this user has bound"),
            (in_all, parameters_size_in_all, "session.parameters_size_in_all", "the values that users have bound"),
        ] {
            if bytes.saturating_add(more) > most.0 {
                return Err(Error::Limit { what: format!("{whose} would take more than {most}"), key });
            }
        }
        taken.insert(self.user.clone(), own + more);
        drop(taken);
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut taken = self.parameters.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let left = taken.get(&self.user).map_or(0, |bytes| bytes.saturating_sub(self.bytes));
        match left {
            0 => drop(taken.remove(&self.user)),
            left => drop(taken.insert(self.user.clone(), left)),
        }
    }
}

#[derive(Default)]
struct State {
    sessions: HashMap<String, Session>,
    transactions: HashMap<Handle, Transaction>,
    prepared: HashMap<Handle, Prepared>,
    /// Of sessions, and of what has none.
    present: HashMap<String, Present>,
}

/// By which connections an owner has come, and since when there is none of them any more.
#[derive(Default)]
struct Present {
    connections: Vec<Connection>,
    left: Option<Instant>,
}

struct Session {
    principal: Principal,
    /// Which it stands and falls with.
    connection: Option<Connection>,
    /// By which its cookie was handed out, until a client has sent it: some never do.
    unclaimed: Option<Connection>,
    used: Instant,
    settings: Settings,
    /// Where what its statements leave behind is; none as long as they leave nothing.
    home: Option<Line>,
    /// The transaction that has the home, begun by an action.
    lent: Option<Handle>,
    /// Why a transaction begun by a text was rolled back meanwhile, which its client does not know yet.
    lapsed: Option<Error>,
}

struct Transaction {
    principal: Principal,
    /// The session, or itself.
    owner: String,
    line: Line,
    begun: Instant,
    /// Begun while the server drains, as ADBC's drivers do with each commit: nothing runs in it any more.
    late: bool,
}

/// A statement that is kept.
#[derive(Clone)]
pub struct Prepared {
    principal: Principal,
    /// The session, or itself.
    owner: String,
    used: Instant,
    pub sql: String,
    /// Of which it is a part.
    pub transaction: Option<Handle>,
    pub bound: Option<Bound>,
    /// How often values were bound to it.
    pub binding: u64,
}

/// One session, as admins see it.
#[derive(Debug)]
pub struct Listed {
    pub principal: Principal,
    pub idle_seconds: f64,
    pub transactions: usize,
    pub prepared_statements: usize,
}

impl Listed {
    /// Nothing is kept.
    pub fn of(principal: Principal) -> Self {
        Self { principal, idle_seconds: 0.0, transactions: 0, prepared_statements: 0 }
    }
}

impl Sessions {
    pub fn new(limits: &config::Session, engine: Arc<Engine>, metrics: Metrics) -> Self {
        let parameters = Arc::new(Parameters { limits: limits.clone(), taken: Mutex::default() });
        let inner = Arc::new(Inner { engine, limits: limits.clone(), metrics, state: Mutex::default(), parameters });
        let swept = Arc::downgrade(&inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                let Some(inner) = Weak::upgrade(&swept) else { return };
                Self(inner).sweep().await;
            }
        });
        Self(inner)
    }

    /// Where a statement of this caller runs, and with which settings; `transaction` is the one that it names.
    pub fn place(&self, identity: &Identity, transaction: Option<Handle>) -> Result<Ask> {
        let ask = self.placed(identity, transaction)?;
        let open = ask.line.as_ref().is_some_and(Line::in_transaction);
        if !open {
            identity.may_begin()?;
        }
        Ok(ask)
    }

    fn placed(&self, identity: &Identity, transaction: Option<Handle>) -> Result<Ask> {
        let mut state = self.lock();
        let (settings, home) = match state.own(identity) {
            None => (Settings::default(), None),
            Some(session) => {
                session.used = Instant::now();
                if transaction.is_none() {
                    let lost = session.renew();
                    if let Some(why) = session.lapsed.clone().or(lost) {
                        return Err(why);
                    }
                }
                (session.settings.clone(), session.home.clone().filter(|_| session.lent.is_none()))
            }
        };
        let settings = Settings { lossless: identity.lossless.or(settings.lossless), ..settings };
        let line = match transaction {
            Some(handle) => {
                let open = state.transaction(identity, handle)?;
                if open.late {
                    return Err(Error::Draining);
                }
                Some(open.line.clone())
            }
            None => home,
        };
        Ok(Ask { line, settings, ..Ask::default() })
    }

    /// The same of what joins the session's open transaction without naming it.
    pub fn joining(&self, identity: &Identity) -> Result<Ask> {
        let mut ask = self.placed(identity, None)?;
        if let Some(id) = session_id(identity).filter(|_| ask.line.is_none()) {
            let state = self.lock();
            let own = |open: &&Transaction| open.principal == identity.principal() && open.owner == id;
            let latest = state.transactions.values().filter(own).max_by_key(|open| open.begun);
            ask.line = latest.map(|open| open.line.clone());
        }
        if !ask.line.as_ref().is_some_and(Line::in_transaction) {
            identity.may_begin()?;
        }
        Ok(ask)
    }

    /// The line of a transaction, which stays the session's from now on where it has none yet: a statement of the transaction
    /// leaves there what is to outlive it.
    pub fn settle(&self, identity: &Identity, transaction: Handle) -> Result<()> {
        let mut state = self.lock();
        let line = state.transaction(identity, transaction)?.line.clone();
        if !has_session(identity) && state.own(identity).is_none() {
            return Ok(());
        }
        let session = self.session(&mut state, identity)?;
        if session.home.is_none() && session.lent.is_none() {
            (session.home, session.lent) = (Some(line), Some(transaction));
        }
        Ok(())
    }

    /// The connection of the caller's session, for what is to stay there.
    pub fn home(&self, identity: &Identity) -> Result<Line> {
        let mut state = self.lock();
        let engine = &self.0.engine;
        let session = self.session(&mut state, identity)?;
        if session.lent.is_some() {
            return Err(Error::State(
                "the session's connection is in a transaction; name that transaction, or end it first".into(),
            ));
        }
        if let Some(lost) = session.renew() {
            return Err(lost);
        }
        if !session.home.as_ref().is_some_and(Line::in_transaction) {
            identity.may_begin()?;
        }
        Ok(session.home.get_or_insert_with(|| engine.line()).clone())
    }

    fn lapsed(&self) -> Error {
        let limit = self.0.limits.transaction_timeout;
        Error::State(format!("the transaction was idle for session.transaction_timeout ({limit}) and was rolled back"))
    }

    // === transactions ===

    /// Begins a transaction that is named by what this answers.
    pub async fn begin(&self, identity: &Identity) -> Result<Handle> {
        let handle = Handle::new();
        let line = {
            let mut state = self.lock();
            let (principal, limits) = (identity.principal(), &self.0.limits);
            let own = state.transactions.values().filter(|open| open.principal == principal).count();
            bounded(
                own,
                limits.transactions_per_user,
                "session.transactions_per_user",
                "transactions of this user are open",
            )?;
            bounded(state.transactions.len(), limits.transactions, "session.transactions", "transactions are open")?;
            let home = state.own(identity).filter(|session| session.lent.is_none());
            let home = match home {
                Some(session) => match session.renew() {
                    Some(lost) => return Err(lost),
                    None => Some(session),
                },
                None => None,
            };
            // What the session has made is seen in the transaction, too.
            let home = home.and_then(|session| {
                let line = session.home.clone().filter(|line| !line.in_transaction())?;
                session.lent = Some(handle);
                Some(line)
            });
            let line = home.unwrap_or_else(|| self.0.engine.line());
            let (owner, begun) = (owner(identity, handle), Instant::now());
            state.note(identity, &owner);
            state
                .transactions
                .insert(handle, Transaction { principal, owner, line: line.clone(), begun, late: identity.draining });
            line
        };
        self.gauge();
        let begun = self.0.engine.begin(&identity.rights, &line, false, false).await;
        if begun.is_err() {
            self.forget(handle);
        }
        begun.map(|()| handle)
    }

    pub async fn end(&self, identity: &Identity, handle: Handle, commit: bool) -> Result<()> {
        let line = self.lock().transaction(identity, handle)?.line.clone();
        if !commit {
            line.interrupt(&Error::State("its transaction was rolled back".into()));
        }
        let ended = match line.lost() {
            // It is rolled back already.
            Some(_) if !commit => Ok(()),
            Some(lost) => Err(lost),
            None => self.0.engine.end(&identity.rights, &line, if commit { End::Commit } else { End::Rollback }).await,
        };
        if line.lost().is_some() {
            // This client knows.
            let mut state = self.lock();
            let lent = state.sessions.values_mut().filter(|session| session.lent == Some(handle));
            lent.for_each(|session| session.home = None);
        }
        // Another statement still has it: it is as it was.
        if !matches!(&ended, Err(Error::Limit { .. } | Error::Killed(_))) {
            self.forget(handle);
        }
        ended
    }

    fn forget(&self, handle: Handle) {
        let mut state = self.lock();
        state.transactions.remove(&handle);
        let lent = state.sessions.values_mut().filter(|session| session.lent == Some(handle));
        lent.for_each(|session| session.lent = None);
        drop(state);
        self.gauge();
    }

    /// BEGIN as a text: from now on, all statements of the session are in its transaction.
    pub async fn begin_text(&self, identity: &Identity, read_only: bool) -> Result<()> {
        let line = self.home(identity)?;
        if let Some(session) = self.lock().own(identity) {
            session.lapsed = None;
        }
        let begun = self.0.engine.begin(&identity.rights, &line, read_only, false).await;
        self.gauge();
        begun
    }

    /// BEGIN as a text within a transaction that was begun by an action.
    pub async fn begin_within(&self, identity: &Identity, handle: Handle, read_only: bool) -> Result<()> {
        let line = self.lock().transaction(identity, handle)?.line.clone();
        if !line.in_transaction() {
            identity.may_begin()?;
        }
        let begun = self.0.engine.begin(&identity.rights, &line, read_only, true).await;
        self.gauge();
        begun
    }

    /// COMMIT or ROLLBACK as a text within a transaction that was begun by an action. Its handle stays good: what comes next with
    /// it is in another transaction, which the client's driver ends as it would have ended the first.
    pub async fn end_within(&self, identity: &Identity, handle: Handle, commit: bool) -> Result<()> {
        let line = self.lock().transaction(identity, handle)?.line.clone();
        if let Some(lost) = line.lost() {
            return Err(lost);
        }
        if !commit && line.in_transaction() {
            line.interrupt(&Error::State("its transaction was rolled back".into()));
        }
        let end = if commit { End::CommitWithin } else { End::RollbackWithin };
        let ended = self.0.engine.end(&identity.rights, &line, end).await;
        self.gauge();
        ended
    }

    /// COMMIT or ROLLBACK as a text.
    pub async fn end_text(&self, identity: &Identity, commit: bool) -> Result<()> {
        let lapsed = self.lock().own(identity).and_then(|session| {
            session.renew();
            session.lapsed.take()
        });
        if let Some(why) = lapsed {
            self.gauge();
            return if commit { Err(why) } else { Ok(()) };
        }
        let line = self.home(identity)?;
        if !commit && line.in_transaction() {
            line.interrupt(&Error::State("its transaction was rolled back".into()));
        }
        let ended = self.0.engine.end(&identity.rights, &line, if commit { End::Commit } else { End::Rollback }).await;
        self.gauge();
        ended
    }

    // === prepared statements ===

    pub fn prepare(&self, identity: &Identity, sql: &str, transaction: Option<Handle>) -> Result<Handle> {
        let mut state = self.lock();
        let (principal, limits) = (identity.principal(), &self.0.limits);
        let own = state.prepared.values().filter(|kept| kept.principal == principal).count();
        let (most, most_of_user) = (limits.prepared_statements, limits.prepared_statements_per_user);
        bounded(
            own,
            most_of_user,
            "session.prepared_statements_per_user",
            "prepared statements of this user are kept",
        )?;
        bounded(state.prepared.len(), most, "session.prepared_statements", "prepared statements are kept")?;
        let handle = Handle::new();
        let prepared = Prepared {
            principal,
            owner: owner(identity, handle),
            used: Instant::now(),
            sql: sql.to_string(),
            transaction,
            bound: None,
            binding: 0,
        };
        state.note(identity, &prepared.owner);
        state.prepared.insert(handle, prepared);
        drop(state);
        self.gauge();
        Ok(handle)
    }

    pub fn prepared(&self, identity: &Identity, handle: &[u8]) -> Result<Prepared> {
        let mut state = self.lock();
        let prepared = state.prepared_mut(identity, handle)?;
        prepared.used = Instant::now();
        Ok(prepared.clone())
    }

    /// Binds values to it; those from before are gone.
    pub fn bind(&self, identity: &Identity, handle: &[u8], bound: Option<Bound>) -> Result<()> {
        let mut state = self.lock();
        let prepared = state.prepared_mut(identity, handle)?;
        prepared.bound = bound;
        prepared.binding += 1;
        Ok(())
    }

    pub fn close_prepared(&self, identity: &Identity, handle: &[u8]) -> Result<()> {
        let mut state = self.lock();
        state.prepared_mut(identity, handle)?;
        Handle::from_bytes(handle).and_then(|handle| state.prepared.remove(&handle));
        drop(state);
        self.gauge();
        Ok(())
    }

    /// Values that the caller is about to bind to a statement.
    pub fn reserve(&self, identity: &Identity) -> Reserved {
        Reserved { parameters: self.0.parameters.clone(), user: identity.principal(), bytes: 0 }
    }

    // === sessions ===

    /// Whether the caller is in a session, or in a login that becomes one when it keeps something.
    pub fn has_one(&self, identity: &Identity) -> bool {
        has_session(identity) || self.lock().own(identity).is_some()
    }

    /// The settings of the caller's session.
    pub fn settings(&self, identity: &Identity) -> Settings {
        let mut state = self.lock();
        state.own(identity).map(|session| session.settings.clone()).unwrap_or_default()
    }

    pub fn set_settings(&self, identity: &Identity, settings: Settings) -> Result<()> {
        let mut state = self.lock();
        self.session(&mut state, identity)?.settings = settings;
        Ok(())
    }

    /// A session for a caller without a login of ours: the value of the cookie that stands for it.
    pub fn open(&self, identity: &mut Identity) -> Result<Option<String>> {
        if identity.session.is_some() || self.lock().own(identity).is_some() {
            return Ok(None);
        }
        let cookie = Handle::new().text();
        let caller = Identity { cookie: Some(cookie.clone()), ..identity.clone() };
        let id = format!("{COOKIE}{cookie}");
        let mut state = self.lock();
        let settings = state.own(identity).map(|session| session.settings.clone()).unwrap_or_default();
        if let Some(connection) = &identity.connection {
            state.forget_unclaimed(connection);
        }
        self.create(&mut state, &caller, &id)?;
        if let Some(session) = state.sessions.get_mut(&id) {
            session.settings = settings;
        }
        drop(state);
        *identity = caller;
        self.gauge();
        Ok(Some(cookie))
    }

    /// Gives the settings of a session whose cookie was just handed out to that of the connection, too: the client may be one
    /// that sends no cookies.
    pub fn mirror(&self, identity: &Identity) -> Result<()> {
        let settings = self.settings(identity);
        let without = Identity { cookie: None, ..identity.clone() };
        if has_session(&without) {
            self.set_settings(&without, settings)?;
        }
        let mut state = self.lock();
        let session = session_id(identity).and_then(|id| state.sessions.get_mut(&id));
        session.into_iter().for_each(|session| session.unclaimed = identity.connection.clone());
        Ok(())
    }

    /// Frees all that the caller's session holds. Whether there was one.
    pub fn close(&self, identity: &Identity) -> bool {
        let Some(id) = session_id(identity) else { return false };
        let closed = Error::State("the session was closed".into());
        let mut state = self.lock();
        let principal = identity.principal();
        let ours = |owner: &str, of: &Principal| *owner == id && *of == principal;
        let known = state.sessions.get(&id).is_some_and(|session| session.principal == identity.principal());
        let session = if known { state.sessions.remove(&id) } else { None };
        let mut lines: Vec<Line> = session.into_iter().filter_map(|session| session.home).collect();
        state.transactions.retain(|_, open| {
            let gone = ours(&open.owner, &open.principal);
            lines.extend(gone.then(|| open.line.clone()));
            !gone
        });
        state.prepared.retain(|_, kept| !ours(&kept.owner, &kept.principal));
        drop(state);
        lines.iter().for_each(|line| line.close(closed.clone()));
        self.gauge();
        known || !lines.is_empty()
    }

    /// Frees all that a principal keeps.
    pub fn close_of(&self, principal: &Principal, by: &str) {
        let mut state = self.lock();
        let mut lines = Vec::new();
        state.sessions.retain(|_, session| {
            let gone = session.principal == *principal;
            lines.extend(session.home.take_if(|_| gone));
            !gone
        });
        state.transactions.retain(|_, open| {
            let gone = open.principal == *principal;
            lines.extend(gone.then(|| open.line.clone()));
            !gone
        });
        state.prepared.retain(|_, kept| kept.principal != *principal);
        drop(state);
        lines.iter().for_each(|line| line.close(Error::Killed(by.to_string())));
        self.gauge();
    }

    /// What principals keep, by principal.
    pub fn list(&self) -> Vec<Listed> {
        let state = self.lock();
        let mut users: HashMap<&Principal, Listed> = HashMap::new();
        fn of<'a, 'm>(
            users: &'m mut HashMap<&'a Principal, Listed>,
            principal: &'a Principal,
            idle: Duration,
        ) -> &'m mut Listed {
            let idle = idle.as_secs_f64();
            let listed = users.entry(principal).or_insert_with(|| Listed {
                principal: principal.clone(),
                idle_seconds: idle,
                transactions: 0,
                prepared_statements: 0,
            });
            listed.idle_seconds = listed.idle_seconds.min(idle);
            listed
        }
        state.sessions.values().for_each(|session| {
            let open = session.lent.is_none() && session.home.as_ref().is_some_and(Line::in_transaction);
            of(&mut users, &session.principal, session.used.elapsed()).transactions += usize::from(open);
        });
        state
            .transactions
            .values()
            .for_each(|open| of(&mut users, &open.principal, open.line.idle()).transactions += 1);
        state.prepared.values().for_each(|kept| {
            of(&mut users, &kept.principal, kept.used.elapsed()).prepared_statements += 1;
        });
        users.into_values().collect()
    }

    /// The caller's session, which begins where it was not known.
    fn session<'s>(&self, state: &'s mut State, identity: &Identity) -> Result<&'s mut Session> {
        if let Some(id) = session_id(identity).filter(|id| has_session(identity) && !state.sessions.contains_key(id)) {
            self.create(state, identity, &id)?;
            self.0.metrics.client_sessions.set(count(&state.sessions));
        }
        let session = state.own(identity).ok_or_else(|| {
            Error::State(
                "this needs a session: log in, or call SetSessionOptions and send its cookie with each call (the connection \
                 is no session where a proxy passes calls on, with session.per_connection = false, and beside a cookie)"
                    .into(),
            )
        })?;
        session.used = Instant::now();
        Ok(session)
    }

    fn create(&self, state: &mut State, identity: &Identity, id: &str) -> Result<()> {
        let (principal, limits) = (identity.principal(), &self.0.limits);
        // Of connections that have only been set to something there are no more than connections.
        let kept = |session: &&Session| session.connection.is_none() || session.home.is_some();
        let all = state.sessions.values().filter(kept);
        let own = all.clone().filter(|session| session.principal == principal).count();
        bounded(own, limits.sessions_per_user, "session.sessions_per_user", "sessions of this user are kept")?;
        bounded(all.count(), limits.sessions, "session.sessions", "sessions are kept")?;
        let connection =
            identity.connection.clone().filter(|_| identity.session.is_none() && identity.cookie.is_none());
        let session = Session {
            principal,
            connection,
            unclaimed: None,
            used: Instant::now(),
            settings: Settings::default(),
            home: None,
            lent: None,
            lapsed: None,
        };
        state.sessions.insert(id.to_string(), session);
        state.note(identity, id);
        Ok(())
    }

    /// Frees what was not used for too long, and what clients that have gone have left.
    async fn sweep(&self) {
        let config::Session { idle_timeout, transaction_timeout, disconnect_timeout, .. } = self.0.limits;
        let is_over = |idle: Duration, limit: config::Span| limit.limit().is_some_and(|limit| idle > limit);
        let alone = Error::State(format!(
            "the connections of its client were gone for session.disconnect_timeout ({disconnect_timeout}), and it was rolled back"
        ));
        let ended = Error::State("the connection that was its session has ended, and it was rolled back".into());
        let (mut gone, mut lapsing) = (Vec::new(), Vec::new());
        {
            let mut state = self.lock();
            let State { sessions, transactions, prepared, present } = &mut *state;
            let left: HashSet<String> = present
                .extract_if(|_, present| {
                    present.left().is_some_and(|since| is_over(since.elapsed(), disconnect_timeout))
                })
                .map(|(owner, _)| owner)
                .collect();
            transactions.retain(|handle, open| {
                let left = left.contains(&open.owner);
                let over = left || is_over(open.line.idle(), transaction_timeout);
                if over {
                    gone.push((open.line.clone(), if left { alone.clone() } else { self.lapsed() }));
                    // The connection has gone, too.
                    let lent = sessions.values_mut().filter(|session| session.lent == Some(*handle));
                    lent.for_each(|session| (session.home, session.lent) = (None, None));
                }
                !over
            });
            prepared.retain(|_, kept| !left.contains(&kept.owner) && !is_over(kept.used.elapsed(), idle_timeout));
            sessions.retain(|id, session| {
                if session.connection.as_ref().is_some_and(|connection| !connection.stands()) {
                    // Nobody can come back to it. A transaction that has the line goes on as long as its handle may.
                    let line = session.home.take().filter(|_| session.lent.is_none());
                    gone.extend(line.map(|line| (line, ended.clone())));
                    return false;
                }
                let open = session.lent.is_none() && session.home.as_ref().is_some_and(Line::in_transaction);
                if left.contains(id) {
                    gone.extend(session.home.take().map(|line| (line, alone.clone())));
                    session.lapsed = open.then(|| alone.clone()).or_else(|| session.lapsed.take());
                    // A client that comes back after all must not take its next statement for a part of that transaction.
                    return session.lapsed.is_some();
                }
                let home = session.home.as_ref();
                let idle = home.map_or(Duration::MAX, Line::idle).min(session.used.elapsed());
                if let (true, Some(line)) = (open && is_over(idle, transaction_timeout), home) {
                    lapsing.push(line.clone());
                    session.lapsed = Some(self.lapsed());
                }
                let over = session.lent.is_none() && is_over(idle, idle_timeout);
                if let (true, Some(line)) = (over, home) {
                    gone.push((line.clone(), Error::State("the session was idle for session.idle_timeout".into())));
                }
                !over
            });
            let owners = transactions.values().map(|open| &open.owner).chain(prepared.values().map(|kept| &kept.owner));
            let owners: HashSet<&String> = owners.chain(sessions.keys()).collect();
            present.retain(|owner, _| owners.contains(owner));
        }
        gone.into_iter().for_each(|(line, reason)| line.close(reason));
        for line in lapsing {
            // Its client is told by the next statement.
            if let Err(error) = self.0.engine.end(&Rights::all("mallard"), &line, End::Rollback).await {
                tracing::debug!(%error, "an idle transaction could not be rolled back");
            }
        }
        self.gauge();
    }

    /// How many transactions are open whose clients are still there.
    pub fn transactions_in_reach(&self) -> usize {
        let state = self.lock();
        let begun_by_text =
            |session: &Session| session.lent.is_none() && session.home.as_ref().is_some_and(Line::has_work);
        let texts = state.sessions.iter().filter(|(_, session)| begun_by_text(session)).map(|(id, _)| id);
        let named = state.transactions.values().filter(|open| open.line.has_work()).map(|open| &open.owner);
        named.chain(texts).filter(|owner| state.present.get(*owner).is_none_or(Present::stands)).count()
    }

    fn gauge(&self) {
        let state = self.lock();
        let texts = state
            .sessions
            .values()
            .filter(|session| session.lent.is_none() && session.home.as_ref().is_some_and(Line::in_transaction));
        let open = state.transactions.len() + texts.count();
        let metrics = &self.0.metrics;
        metrics.client_sessions.set(count(&state.sessions));
        metrics.transactions_open.set(i64::try_from(open).unwrap_or(i64::MAX));
        metrics.prepared_statements.set(count(&state.prepared));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// What went with a database that was reopened is told once, an open transaction until its client ends it; the session
    /// then begins anew.
    fn renew(&mut self) -> Option<Error> {
        let line = self.home.take_if(|line| line.lost().is_some())?;
        let lost = line.lost();
        if self.lent.is_none() && line.in_transaction() {
            self.lapsed = lost.clone();
        }
        lost
    }
}

impl State {
    /// The caller's session, which it uses here.
    fn own(&mut self, identity: &Identity) -> Option<&mut Session> {
        let id = session_id(identity)?;
        self.sessions.get(&id).filter(|session| session.principal == identity.principal())?;
        self.note(identity, &id);
        let session = self.sessions.get_mut(&id)?;
        session.unclaimed = None;
        Some(session)
    }

    /// Frees all but the last few of the sessions whose cookies went out by this connection and never came back.
    fn forget_unclaimed(&mut self, connection: &Connection) {
        let unclaimed = self.sessions.iter().filter(|(_, session)| session.unclaimed.as_ref() == Some(connection));
        let mut unclaimed: Vec<_> = unclaimed.map(|(id, session)| (session.used, id.clone())).collect();
        unclaimed.sort();
        for (_, id) in unclaimed.iter().rev().skip(UNCLAIMED) {
            self.sessions.remove(id);
        }
    }

    fn transaction(&mut self, identity: &Identity, handle: Handle) -> Result<&Transaction> {
        let open = self.transactions.get(&handle).filter(|open| open.principal == identity.principal());
        let owner = open.map(|open| open.owner.clone()).ok_or_else(|| {
            Error::NotFound(
                "no such transaction: it has ended, was rolled back when its client had gone or had left it idle for \
                 session.transaction_timeout, or never was"
                    .into(),
            )
        })?;
        self.note(identity, &owner);
        self.transactions.get(&handle).ok_or_else(|| Error::internal("a transaction is gone while it is held"))
    }

    fn prepared_mut(&mut self, identity: &Identity, handle: &[u8]) -> Result<&mut Prepared> {
        let handle = Handle::from_bytes(handle);
        let known =
            handle.and_then(|handle| self.prepared.get(&handle)).filter(|kept| kept.principal == identity.principal());
        if let Some(owner) = known.map(|kept| kept.owner.clone()) {
            self.note(identity, &owner);
        }
        let known = handle.and_then(|handle| self.prepared.get_mut(&handle));
        known.filter(|kept| kept.principal == identity.principal()).ok_or_else(|| {
            Error::NotFound(
                "no such prepared statement: it was closed, its client had gone, it was idle for session.idle_timeout, \
                 or never was"
                    .into(),
            )
        })
    }

    /// What this owner keeps is used by the caller's connection.
    fn note(&mut self, identity: &Identity, owner: &str) {
        let Some(connection) = &identity.connection else { return };
        let present = match self.present.get_mut(owner) {
            Some(present) => present,
            None => self.present.entry(owner.to_string()).or_default(),
        };
        present.left = None;
        if !present.connections.contains(connection) {
            present.connections.retain(Connection::stands);
            present.connections.push(connection.clone());
        }
    }
}

impl Present {
    fn stands(&self) -> bool {
        self.connections.iter().any(Connection::stands)
    }

    /// Since when none of the connections stands.
    fn left(&mut self) -> Option<Instant> {
        if self.stands() {
            return None;
        }
        Some(*self.left.get_or_insert_with(Instant::now))
    }
}

/// Tells ids of cookies from those of logins.
const COOKIE: &str = "cookie ";

/// So many cookies that went out by one connection may wait to be sent back.
const UNCLAIMED: usize = 4;

fn session_id(identity: &Identity) -> Option<String> {
    match (&identity.session, &identity.cookie) {
        (Some(session), _) => Some(session.id.clone()),
        (None, Some(cookie)) => Some(format!("{COOKIE}{cookie}")),
        (None, None) => {
            let connection = identity.connection.as_ref().filter(|_| identity.has_connection_alone)?;
            // Several principals may come by one connection.
            Some(format!("connection {} {:?}", connection.id(), identity.principal()))
        }
    }
}

/// Whether the caller's session begins by itself, when there is something to keep: that of a login or of a connection.
fn has_session(identity: &Identity) -> bool {
    identity.session.is_some() || (identity.cookie.is_none() && session_id(identity).is_some())
}

/// Whose a transaction or prepared statement is: the session's, or nobody's but its own.
fn owner(identity: &Identity, handle: Handle) -> String {
    session_id(identity).unwrap_or_else(|| format!("handle {}", handle.text()))
}

fn bounded(there: usize, most: usize, key: &'static str, what: &str) -> Result<()> {
    if there < most { Ok(()) } else { Err(Error::Limit { what: format!("{most} {what} already"), key }) }
}

fn count<K, V>(map: &HashMap<K, V>) -> i64 {
    i64::try_from(map.len()).unwrap_or(i64::MAX)
}
