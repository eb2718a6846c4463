//! Who calls: users, password hashes, tokens, and the layer that turns a header into an [`Identity`].

mod certificate;
mod closed;
mod connection;
mod failures;
mod jwks;
mod jwt;
mod layer;
mod password;
mod token;
mod turns;
mod users;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use jsonwebtoken::Algorithm;

pub use certificate::ClientCertificate;
pub use connection::{Connection, Standing};
pub use layer::{AuthLayer, SESSION_COOKIE};
pub use password::hash_password;
pub use token::{Place, Session, TicketClaims};

use crate::{
    access::{Issuer, Principal, Rights, Roles},
    clock::Clock,
    config::{Config, Secret},
    error::{Error, Result},
    telemetry::{Audit, Event, Metrics},
};
use closed::Closed;
use failures::Failures;
use jwt::Claimed;
use password::Workspaces;
use token::Tokens;
use turns::Turns;
use users::Users;

/// Who a call comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub rights: Arc<Rights>,
    /// Where a login of ours began one.
    pub session: Option<Session>,
    /// The session that a cookie of the call names, whoever made it up.
    pub cookie: Option<String>,
    /// Whether types leave in forms that lose nothing, where the call says so.
    pub lossless: Option<bool>,
    /// By which it came; none where that was not the network.
    pub connection: Option<Connection>,
    /// Whether nothing speaks against that connection being one client's alone, so that it can stand for a session.
    pub has_connection_alone: bool,
    /// The server drains: the call may only go on with a transaction that is open.
    pub draining: bool,
}

impl From<Arc<Rights>> for Identity {
    fn from(rights: Arc<Rights>) -> Self {
        Self {
            user: rights.user.clone(),
            rights,
            session: None,
            cookie: None,
            lossless: None,
            connection: None,
            has_connection_alone: false,
            draining: false,
        }
    }
}

impl Identity {
    pub fn principal(&self) -> Principal {
        self.rights.principal()
    }

    /// Fails for what belongs to no open transaction while the server drains.
    pub fn may_begin(&self) -> Result<()> {
        if self.draining { Err(Error::Draining) } else { Ok(()) }
    }

    fn within(rights: Arc<Rights>, session: Session) -> Self {
        Self { session: Some(session), ..rights.into() }
    }
}

/// The name of everyone where authentication is off.
pub const ANONYMOUS: &str = "anonymous";

/// Clients send base64 with padding (pyarrow) and without (ADBC).
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Users whose last use is remembered.
const USERS_SEEN: usize = 10_000;

/// Checks credentials and makes tokens. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

struct Inner {
    enabled: bool,
    users: Users,
    roles: Roles,
    /// From a certificate's name to a user's.
    certificates: BTreeMap<String, String>,
    anonymous: Arc<Rights>,
    /// Verified where the user is unknown, so that both take the same work.
    decoy: Secret,
    tokens: Tokens,
    closed: Closed,
    issuer: Option<jwt::Issuer>,
    clock: Clock,
    turns: Turns,
    workspaces: Workspaces,
    failures: Failures,
    max_logins: usize,
    /// When each principal's login was last used.
    used: Mutex<HashMap<Principal, Instant>>,
    session: Duration,
    /// Whether connections may stand for sessions.
    sessions_per_connection: bool,
    metrics: Metrics,
}

impl Authenticator {
    /// Reads the users and the keys of the configuration. Blocks while plain passwords are hashed.
    pub fn new(config: &Config, metrics: Metrics) -> Result<Self> {
        let (auth, clock) = (&config.auth, config.auth.clock.clone());
        let roles = Roles::new(auth).on(&config.database);
        Ok(Self(Arc::new(Inner {
            enabled: auth.enabled,
            users: Users::new(auth, roles.clone())?,
            anonymous: roles.rights(ANONYMOUS, Some(&auth.anonymous_role), &[], &[])?.vouched_by(Issuer::Anonymous),
            roles,
            certificates: auth.certificates.clone(),
            decoy: Secret::new(hash_password("a password that nobody has")?),
            tokens: Tokens::new(auth)?,
            closed: Closed::new(auth.closed_sessions),
            issuer: jwt::Issuer::new(&config.jwt, clock.clone(), metrics.clone())?,
            clock,
            turns: Turns::new(auth.max_logins),
            workspaces: Workspaces::default(),
            failures: Failures::new(auth.login_failures, auth.login_failures_per_address),
            max_logins: auth.max_logins,
            used: Mutex::default(),
            session: auth.token_ttl.0,
            sessions_per_connection: config.session.per_connection,
            metrics,
        })))
    }

    pub fn enabled(&self) -> bool {
        self.0.enabled
    }

    /// Reads the users file again. Who is gone, or has another password now, has no valid token any more.
    pub fn reload_users(&self) -> Result<()> {
        self.0.users.reload()
    }

    /// Reads the files of the signing key and of the issuer's keys again.
    pub fn reload_keys(&self) -> Result<()> {
        let issuer = self.0.issuer.as_ref().map_or(Ok(()), jwt::Issuer::reload);
        // Neither keeps the other from being read.
        self.0.tokens.reload().and(issuer)
    }

    /// The users whose login was used within a token's life.
    pub fn sessions(&self) -> usize {
        let mut used = self.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, at| at.elapsed() < self.0.session);
        used.len()
    }

    /// The same, by principal, with how long ago each called.
    pub fn used(&self) -> Vec<(Principal, Duration)> {
        self.sessions();
        let used = self.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut used: Vec<_> = used.iter().map(|(principal, at)| (principal.clone(), at.elapsed())).collect();
        used.sort();
        used
    }

    /// Logins that wait for their turn.
    pub fn logins_waiting(&self) -> usize {
        self.0.turns.waiting()
    }

    /// Closed sessions that are remembered.
    pub fn sessions_closed(&self) -> usize {
        self.0.closed.count()
    }

    fn is_used(&self, identity: Identity) -> Identity {
        let mut used = self.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        match used.get_mut(&identity.principal()) {
            Some(at) => *at = Instant::now(),
            None => {
                // An issuer outside may know any number of users.
                if used.len() >= USERS_SEEN {
                    used.retain(|_, at| at.elapsed() < self.0.session);
                }
                if used.len() < USERS_SEEN {
                    used.insert(identity.principal(), Instant::now());
                }
            }
        }
        identity
    }

    /// Who everyone is where authentication is off.
    fn anonymous(&self) -> Identity {
        self.0.anonymous.clone().into()
    }

    /// Counts an attempt to log in, and writes it into the audit log.
    fn tell_login(&self, method: &str, user: &str, address: Option<IpAddr>, outcome: &'static str) {
        self.0.metrics.login(method, outcome);
        if let Some(audit) = self.0.metrics.audit.get() {
            let peer = address.map(|address| address.to_string());
            let (user, peer) = (Some(user), peer.as_deref());
            let write = if outcome == "limited" { Audit::write_of_stranger } else { Audit::write };
            let event = Event { event: "login", user, peer, method: Some(method), outcome, ..Event::default() };
            write(audit, &event);
        }
    }

    /// Checks a password; the identity and a fresh bearer token. `method` says where the password was: `basic` or
    /// `handshake`, and `address` where it comes from.
    pub async fn login(
        &self,
        method: &str,
        user: &str,
        password: Secret,
        address: Option<IpAddr>,
    ) -> Result<(Identity, String)> {
        if !self.0.enabled {
            let (token, _) = self.0.tokens.bearer(ANONYMOUS, &Secret::new(""))?;
            return Ok((self.anonymous(), token));
        }
        let tell = |outcome| self.tell_login(method, user, address, outcome);
        let known = self.0.users.get(user);
        let hash = known.as_ref().and_then(|known| known.hash.as_ref());
        let (hash, has_one) = (hash.unwrap_or(&self.0.decoy).clone(), hash.is_some());
        let origin = self.0.failures.origin(user, address);
        let limited = |error: Error| {
            tell("limited");
            // Many a second, maybe; what led to it was worth a warning each.
            tracing::debug!(method, %error, "login refused");
            error
        };
        self.0.failures.check(&origin).map_err(limited)?;
        let turn = self.0.turns.take(self.0.failures.class(&origin)).await.ok_or_else(|| {
            let what = format!("{} logins are under way already", self.0.max_logins);
            limited(Error::Limit { what, key: "auth.max_logins" })
        })?;
        // Others may have failed while this one waited.
        self.0.failures.check(&origin).map_err(limited)?;
        let authenticator = self.clone();
        let matches = tokio::task::spawn_blocking(move || {
            // Given back when the work is done, also where the client has left.
            let _turn = turn;
            authenticator.0.workspaces.verify(&hash, &password)
        });
        let matches = matches.await.map_err(Error::internal)?;
        let Some(known) = known.filter(|_| matches && has_one) else {
            self.0.failures.failed(&origin);
            tell("refused");
            tracing::warn!(user, method, "login refused");
            return Err(Error::Unauthenticated("wrong user or password".into()));
        };
        self.0.failures.succeeded(&origin);
        tell("ok");
        let (token, session) = self.0.tokens.bearer(user, &known.proof)?;
        let identity = self.is_used(Identity::within(known.rights.clone(), session));
        Ok((identity, token))
    }

    /// The identity behind an `authorization` header, and a token where the header asked for one (Basic) or where a fresh
    /// one is due.
    pub async fn authenticate(&self, header: &str, address: Option<IpAddr>) -> Result<(Identity, Option<String>)> {
        let malformed = || Error::Unauthenticated("the authorization header is neither Basic nor Bearer".into());
        let (scheme, value) = header.trim().split_once(' ').ok_or_else(malformed)?;
        if scheme.eq_ignore_ascii_case("bearer") {
            if !self.0.enabled {
                return Ok((self.anonymous(), None));
            }
            return self.bearer(value.trim()).await;
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(malformed());
        }
        let wrong = || Error::Unauthenticated("the Basic header is not base64 of user:password".into());
        let decoded = BASE64.decode(value.trim()).map_err(|_| wrong())?;
        let decoded = String::from_utf8(decoded).map_err(|_| wrong())?;
        let (user, password) = decoded.split_once(':').ok_or_else(wrong)?;
        let (identity, token) = self.login("basic", user, Secret::new(password), address).await?;
        Ok((identity, Some(token)))
    }

    /// The identity behind a bearer token, ours or the issuer's: the algorithm says whose it must be, and has to be that
    /// of the key. A fresh one of ours where it is due.
    async fn bearer(&self, token: &str) -> Result<(Identity, Option<String>)> {
        let algorithm = jsonwebtoken::decode_header(token).map(|header| header.alg);
        if let (Some(issuer), Ok(algorithm)) = (&self.0.issuer, algorithm)
            && matches!(algorithm, Algorithm::EdDSA | Algorithm::ES256 | Algorithm::RS256)
        {
            let claimed = issuer.check(token, algorithm).await?;
            return Ok((self.is_used(self.claimed(&claimed)?.into()), None));
        }
        let bearer = self.0.tokens.read_bearer(token)?;
        if self.0.closed.contains(&bearer.user, &bearer.session) {
            return Err(Error::Unauthenticated("the session was closed; log in again".into()));
        }
        // Who the user is, and what they may do, is looked up each time: a token carries neither.
        let changed = || Error::Unauthenticated("the user of the bearer token has changed since; log in again".into());
        let known = self.0.users.get(&bearer.user).filter(|known| bearer.fits(&known.proof)).ok_or_else(changed)?;
        let fresh = self.0.tokens.renewed(&bearer, &known.proof)?;
        Ok((self.is_used(Identity::within(known.rights.clone(), bearer.session)), fresh))
    }

    /// Of the roles that a token's claims lead to, the one that may do most.
    fn claimed(&self, claimed: &Claimed) -> Result<Arc<Rights>> {
        let Claimed { issuer, user, roles } = claimed;
        let mut rights = Vec::new();
        for role in roles {
            rights.push(self.0.roles.rights(user, Some(role), &[], &[])?);
        }
        // The first of several that may do as much.
        let most = rights.into_iter().rev().max_by_key(|rights| rights.role);
        most.map(|rights| rights.vouched_by(Issuer::Jwt(issuer.clone())))
            .ok_or_else(|| Error::Denied { rule: "role", what: format!("user \"{user}\" has no role here") })
    }

    /// Ends the caller's session: none of its tokens is good any more. Whether it could be closed: where there was no
    /// login of ours, there is none.
    pub fn close_session(&self, identity: &Identity) -> bool {
        if let Some(session) = &identity.session {
            self.0.closed.close(&identity.user, session, self.0.clock.now());
        }
        identity.session.is_some()
    }

    /// Tickets that GetFlightInfo hands out for one result: bound to the user, the statement and the note, and where they
    /// are several, to their place in the result and to this process.
    pub fn tickets(
        &self,
        identity: &Identity,
        sql: &str,
        note: Option<String>,
        count: usize,
    ) -> Result<(Vec<Vec<u8>>, Duration)> {
        self.0.tokens.tickets(identity, sql, note, count)
    }

    /// The same ticket, with a new expiration time.
    pub fn renewed_ticket(&self, claims: TicketClaims) -> Result<(Vec<u8>, Duration)> {
        self.0.tokens.renewed_ticket(claims)
    }

    /// The claims of such a ticket, or `None` where the bytes are no ticket of ours.
    pub fn read_ticket(&self, identity: &Identity, ticket: &[u8]) -> Result<Option<TicketClaims>> {
        self.0.tokens.read_ticket(identity, ticket)
    }
}
