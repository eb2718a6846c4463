//! Who calls: users, password hashes, tokens, and the layer that turns a header into an [`Identity`].

mod failures;
mod layer;
mod password;
mod token;
mod turns;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;

pub use layer::AuthLayer;
pub use password::hash_password;
pub use token::{Place, TicketClaims};

use crate::{
    access::{Rights, Roles},
    config::{self, Credential, Secret},
    error::{Error, Result},
    telemetry::Metrics,
};
use failures::Failures;
use token::Tokens;
use turns::Turns;

/// Who a call comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub rights: Arc<Rights>,
}

impl From<Arc<Rights>> for Identity {
    fn from(rights: Arc<Rights>) -> Self {
        Self { user: rights.user.clone(), rights }
    }
}

/// The name of everyone where authentication is off.
pub const ANONYMOUS: &str = "anonymous";

/// Clients send base64 with padding (pyarrow) and without (ADBC).
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Checks credentials and makes tokens. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

struct Inner {
    enabled: bool,
    users: HashMap<String, Known>,
    anonymous: Arc<Rights>,
    /// Verified where the user is unknown, so that both take the same work.
    decoy: Secret,
    tokens: Tokens,
    turns: Turns,
    failures: Failures,
    max_logins: usize,
    /// When each user's login was last used.
    used: Mutex<HashMap<String, Instant>>,
    session: Duration,
    metrics: Metrics,
}

/// One user: what their password is checked against, if they have one, and what they may do.
struct Known {
    hash: Option<Secret>,
    rights: Arc<Rights>,
}

/// One entry of the users file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Listed {
    Hash(String),
    User(ListedUser),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListedUser {
    password_hash: Option<String>,
    role: Option<String>,
    #[serde(default)]
    read: Vec<String>,
    #[serde(default)]
    write: Vec<String>,
}

impl From<Listed> for ListedUser {
    fn from(listed: Listed) -> Self {
        match listed {
            Listed::User(user) => user,
            Listed::Hash(hash) => Self { password_hash: Some(hash), role: None, read: Vec::new(), write: Vec::new() },
        }
    }
}

impl Authenticator {
    /// Reads the users of the configuration. Blocks while plain passwords are hashed.
    pub fn new(config: &config::Auth, metrics: Metrics) -> Result<Self> {
        let roles = Roles::new(config);
        let mut users = HashMap::new();
        for (name, user) in &config.users {
            let hash = match &user.credential {
                Some(Credential::Password(password)) => Some(Secret::new(hash_password(password.reveal())?)),
                Some(Credential::Hash(hash)) => Some(hash.clone()),
                None => None,
            };
            let rights = roles.rights(name, user.role.as_deref(), &user.read, &user.write)?;
            users.insert(name.clone(), Known { hash, rights });
        }
        if let Some(path) = &config.users_file {
            let shown = path.display();
            let text = std::fs::read_to_string(path)
                .map_err(|error| Error::Io(format!("auth.users_file {shown}: {error}")))?;
            let wrong = |why: String| Error::invalid(format!("auth.users_file {shown}: {why}"));
            let listed: HashMap<String, Listed> =
                toml::from_str(&text).map_err(|error| wrong(config::toml_mistake(&text, &error)))?;
            for (name, user) in listed {
                let user = ListedUser::from(user);
                let rights = roles
                    .rights(&name, user.role.as_deref(), &user.read, &user.write)
                    .map_err(|error| wrong(error.to_string()))?;
                users.insert(name, Known { hash: user.password_hash.map(Secret::new), rights });
            }
        }
        for (name, user) in &users {
            if let Some(hash) = &user.hash {
                password::check_format(hash.reveal()).map_err(|why| Error::invalid(format!("user {name}: {why}")))?;
            }
        }
        let anonymous = roles.rights(ANONYMOUS, Some(&config.anonymous_role), &[], &[])?;
        Ok(Self(Arc::new(Inner {
            enabled: config.enabled,
            users,
            anonymous,
            decoy: Secret::new(hash_password("a password that nobody has")?),
            tokens: Tokens::new(config.signing_key.as_ref(), config.token_ttl.0),
            turns: Turns::new(config.max_logins),
            failures: Failures::new(config.login_failures, config.login_failures_per_address),
            max_logins: config.max_logins,
            used: Mutex::default(),
            session: config.token_ttl.0,
            metrics,
        })))
    }

    pub fn enabled(&self) -> bool {
        self.0.enabled
    }

    /// The users whose login was used within a token's life.
    pub fn sessions(&self) -> usize {
        let mut used = self.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, at| at.elapsed() < self.0.session);
        used.len()
    }

    /// Logins that wait for their turn.
    pub fn logins_waiting(&self) -> usize {
        self.0.turns.waiting()
    }

    /// Who everyone is where authentication is off.
    fn anonymous(&self) -> Identity {
        self.0.anonymous.clone().into()
    }

    fn is_used(&self, identity: Identity) -> Identity {
        let mut used = self.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        match used.get_mut(&identity.user) {
            Some(at) => *at = Instant::now(),
            None => drop(used.insert(identity.user.clone(), Instant::now())),
        }
        identity
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
            let identity = self.anonymous();
            let token = self.0.tokens.bearer(&identity)?;
            return Ok((identity, token));
        }
        let known = self.0.users.get(user).and_then(|known| Some((known.hash.clone()?, known.rights.clone())));
        let hash = known.as_ref().map_or(&self.0.decoy, |(hash, _)| hash).clone();
        let origin = self.0.failures.origin(user, address);
        let limited = |error: Error| {
            self.0.metrics.login(method, "limited");
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
        let matches = tokio::task::spawn_blocking(move || {
            // Given back when the work is done, also where the client has left.
            let _turn = turn;
            password::verify(&hash, &password)
        });
        let matches = matches.await.map_err(Error::internal)?;
        let Some((_, rights)) = known.filter(|_| matches) else {
            self.0.failures.failed(&origin);
            self.0.metrics.login(method, "refused");
            tracing::warn!(user, method, "login refused");
            return Err(Error::Unauthenticated("wrong user or password".into()));
        };
        self.0.failures.succeeded(&origin);
        self.0.metrics.login(method, "ok");
        let identity = self.is_used(rights.into());
        let token = self.0.tokens.bearer(&identity)?;
        Ok((identity, token))
    }

    /// The identity behind an `authorization` header, and a token where the header asked for one (Basic).
    pub async fn authenticate(&self, header: &str, address: Option<IpAddr>) -> Result<(Identity, Option<String>)> {
        let malformed = || Error::Unauthenticated("the authorization header is neither Basic nor Bearer".into());
        let (scheme, value) = header.trim().split_once(' ').ok_or_else(malformed)?;
        if scheme.eq_ignore_ascii_case("bearer") {
            if !self.0.enabled {
                return Ok((self.anonymous(), None));
            }
            let user = self.0.tokens.user(value.trim())?;
            // What the token's user may do is looked up each time: a token carries no rights.
            let gone = || Error::Unauthenticated("the bearer token's user is not known here any more".into());
            let rights = self.0.users.get(&user).ok_or_else(gone)?.rights.clone();
            return Ok((self.is_used(rights.into()), None));
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

    /// Tickets that GetFlightInfo hands out for one result: bound to the user and the statement, and where they are
    /// several, to their place in the result and to this process.
    pub fn tickets(&self, identity: &Identity, sql: &str, count: usize) -> Result<(Vec<Vec<u8>>, Duration)> {
        self.0.tokens.tickets(identity, sql, count)
    }

    /// The claims of such a ticket, or `None` where the bytes are no ticket of ours.
    pub fn read_ticket(&self, identity: &Identity, ticket: &[u8]) -> Result<Option<TicketClaims>> {
        self.0.tokens.read_ticket(identity, ticket)
    }
}
