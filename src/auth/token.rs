//! Signed, expiring tokens: bearer tokens and the tickets of GetFlightInfo. JWTs under HMAC-SHA256 with a key that
//! never leaves the server.
//!
//! A bearer token belongs to a session, which begins with a login. It is replaced by a fresh one while it is used, until
//! the session is as old as it may become. It carries no rights, only a fingerprint of what its user was at the login, so
//! that it ends with a change of that.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use ring::hmac;
use serde::{Deserialize, Serialize};

use super::Identity;
use crate::{
    access::Issuer,
    clock::Clock,
    config::{self, Secret},
    error::{Error, Result},
};

/// A ticket starts with it, so that no SQL text is taken for one.
const TICKET_PREFIX: &[u8] = b"mallard-ticket:";

const BEARER: &str = "bearer";
const TICKET: &str = "ticket";

/// Keys that no longer sign but still verify, at most: a change in each of the last few minutes.
const PREVIOUS_KEYS: usize = 8;

pub(super) struct Tokens {
    keys: RwLock<Keys>,
    key_file: Option<PathBuf>,
    life: Duration,
    session_max: Duration,
    clock: Clock,
    /// Tells this process from others that have the same key: replicas, and itself before a restart.
    process: String,
}

struct Keys {
    current: Arc<Key>,
    /// With the time, since 1970, from which on nothing that they have signed is good any more.
    previous: Vec<(Arc<Key>, Duration)>,
}

struct Key {
    bytes: Vec<u8>,
    signing: EncodingKey,
    checking: DecodingKey,
    fingerprints: hmac::Key,
}

/// What begins with a login and ends with its last token, or when it is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub id: String,
    /// Milliseconds since 1970.
    pub(super) since: u64,
    /// The last second, since 1970, in which a token of it may be good.
    pub(super) until: u64,
}

/// A bearer token that we have signed, and that has not expired.
pub(super) struct Bearer {
    pub(super) user: String,
    pub(super) session: Session,
    exp: u64,
    fingerprint: String,
    key: Arc<Key>,
}

#[derive(Serialize, Deserialize)]
struct BearerClaims {
    aud: String,
    sub: String,
    exp: u64,
    sid: String,
    /// When the session began, in milliseconds since 1970.
    since: u64,
    fingerprint: String,
}

/// What a ticket of GetFlightInfo stands for.
#[derive(Debug, Serialize, Deserialize)]
pub struct TicketClaims {
    aud: String,
    sub: String,
    /// The last second, since 1970, in which the ticket is good.
    pub exp: u64,
    /// The result's; it tells tickets of the same statement apart.
    pub id: String,
    pub sql: String,
    /// What whoever answers it has noted beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Who has vouched for `sub`; none where that is the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
    /// Whether the types of its rows were told in forms that lose nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lossless: Option<bool>,
    /// Where the result has several endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
}

/// One of the endpoints of a result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// From 0.
    pub index: usize,
    /// How many there are.
    pub of: usize,
    process: String,
}

impl TicketClaims {
    /// For how long the ticket is good.
    pub fn left(&self) -> Duration {
        Duration::from_secs(self.exp.saturating_add(1)).saturating_sub(Clock::default().now())
    }
}

impl Key {
    fn new(bytes: Vec<u8>) -> Self {
        let (signing, checking) = (EncodingKey::from_secret(&bytes), DecodingKey::from_secret(&bytes));
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &bytes), b"mallard fingerprints");
        let fingerprints = hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref());
        Self { bytes, signing, checking, fingerprints }
    }

    /// Of what a user was at the login. Under a key, so that who reads a token cannot try passwords on it.
    fn fingerprint(&self, proof: &Secret) -> String {
        URL_SAFE_NO_PAD.encode(&hmac::sign(&self.fingerprints, proof.reveal().as_bytes()).as_ref()[..16])
    }

    fn sign(&self, claims: &impl Serialize) -> Result<String> {
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &self.signing).map_err(Error::internal)
    }
}

impl Bearer {
    /// Whether its user is still what they were at the login.
    pub(super) fn fits(&self, proof: &Secret) -> bool {
        self.key.fingerprint(proof) == self.fingerprint
    }
}

impl Tokens {
    pub(super) fn new(config: &config::Auth) -> Result<Self> {
        let key = config.signing_key.as_ref();
        let key = Key::new(key.map_or_else(random_bytes::<32>, |key| key.reveal().as_bytes().to_vec()));
        let tokens = Self {
            keys: RwLock::new(Keys { current: Arc::new(key), previous: Vec::new() }),
            key_file: config.signing_key_file.clone(),
            life: config.token_ttl.0,
            session_max: config.session_max.0,
            clock: config.clock.clone(),
            process: random_hex(),
        };
        // It may have changed since the configuration was read.
        tokens.reload()?;
        Ok(tokens)
    }

    /// Reads the signing key again. The one before verifies until nothing that it has signed is good any more.
    pub(super) fn reload(&self) -> Result<()> {
        let Some(path) = &self.key_file else { return Ok(()) };
        let key = config::read_signing_key(path)
            .map_err(|why| Error::invalid(format!("auth.signing_key_file {}: {why}", path.display())))?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if keys.current.bytes != key.reveal().as_bytes() {
            let current = Arc::new(Key::new(key.reveal().as_bytes().to_vec()));
            let now = self.clock.now();
            keys.previous.retain(|(key, until)| *until > now && key.bytes != current.bytes);
            let before = std::mem::replace(&mut keys.current, current);
            keys.previous.insert(0, (before, now + self.life + Duration::from_secs(1)));
            keys.previous.truncate(PREVIOUS_KEYS);
        }
        Ok(())
    }

    fn current(&self) -> Arc<Key> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).current.clone()
    }

    /// The last second in which something made now is good.
    fn expiry(&self) -> u64 {
        whole_seconds(self.clock.now() + self.life)
    }

    /// The last second of a session that began then, in milliseconds since 1970.
    fn end(&self, since: u64) -> u64 {
        whole_seconds(Duration::from_millis(since).saturating_add(self.session_max))
    }

    /// The first token of a new session. `proof` is what the user is now.
    pub(super) fn bearer(&self, user: &str, proof: &Secret) -> Result<(String, Session)> {
        let since = u64::try_from(self.clock.now().as_millis()).unwrap_or(u64::MAX);
        let session = Session { id: random_hex(), since, until: self.end(since) };
        Ok((self.token(user, &session, self.expiry().min(session.until), proof)?, session))
    }

    fn token(&self, user: &str, session: &Session, exp: u64, proof: &Secret) -> Result<String> {
        let key = self.current();
        let fingerprint = key.fingerprint(proof);
        let (aud, sub, sid, since) = (BEARER.into(), user.into(), session.id.clone(), session.since);
        key.sign(&BearerClaims { aud, sub, exp, sid, since, fingerprint })
    }

    pub(super) fn read_bearer(&self, token: &str) -> Result<Bearer> {
        let (claims, key) = self.check::<BearerClaims>(token, BEARER, |claims| claims.exp).map_err(|kind| {
            Error::Unauthenticated(match kind {
                ErrorKind::ExpiredSignature => "the bearer token has expired; log in again".into(),
                _ => "the bearer token is not valid here; log in again".into(),
            })
        })?;
        let BearerClaims { sub: user, exp, sid: id, since, fingerprint, .. } = claims;
        let until = self.end(since);
        // auth.session_max may have become shorter since.
        if self.clock.now().as_secs() > until {
            return Err(Error::Unauthenticated("the session has lasted for auth.session_max; log in again".into()));
        }
        Ok(Bearer { user, session: Session { id, since, until }, exp, fingerprint, key })
    }

    /// A fresh token of the same session, once less than half of a token's life is left of this one.
    pub(super) fn renewed(&self, bearer: &Bearer, proof: &Secret) -> Result<Option<String>> {
        let left = Duration::from_secs(bearer.exp).saturating_sub(self.clock.now());
        let exp = self.expiry().min(bearer.session.until);
        if left >= self.life / 2 || exp <= bearer.exp {
            return Ok(None);
        }
        self.token(&bearer.user, &bearer.session, exp, proof).map(Some)
    }

    pub(super) fn tickets(
        &self,
        identity: &Identity,
        sql: &str,
        note: Option<String>,
        count: usize,
    ) -> Result<(Vec<Vec<u8>>, Duration)> {
        let (sub, sql, exp, id) = (identity.user.clone(), sql.to_string(), self.expiry(), random_hex());
        let iss = issuer(identity);
        let mut claims =
            TicketClaims { aud: TICKET.into(), sub, exp, id, sql, note, iss, lossless: identity.lossless, place: None };
        let key = self.current();
        let tickets = (0..count).map(|index| {
            claims.place = (count > 1).then(|| Place { index, of: count, process: self.process.clone() });
            Ok([TICKET_PREFIX, key.sign(&claims)?.as_bytes()].concat())
        });
        Ok((tickets.collect::<Result<_>>()?, self.life))
    }

    /// The same ticket with a new expiration time: what was cancelled under its id stays so.
    pub(super) fn renewed_ticket(&self, claims: TicketClaims) -> Result<(Vec<u8>, Duration)> {
        let claims = TicketClaims { exp: self.expiry(), ..claims };
        Ok(([TICKET_PREFIX, self.current().sign(&claims)?.as_bytes()].concat(), self.life))
    }

    pub(super) fn read_ticket(&self, identity: &Identity, ticket: &[u8]) -> Result<Option<TicketClaims>> {
        let Some(token) = ticket.strip_prefix(TICKET_PREFIX) else { return Ok(None) };
        let token = std::str::from_utf8(token).unwrap_or_default();
        let (claims, _) = self.check::<TicketClaims>(token, TICKET, |claims| claims.exp).map_err(|kind| {
            Error::invalid(match kind {
                ErrorKind::ExpiredSignature => "the ticket has expired; ask GetFlightInfo for a new one",
                _ => "the ticket is not one of this server's",
            })
        })?;
        if claims.sub != identity.user || claims.iss != issuer(identity) {
            let what = "the ticket was handed out to another user".into();
            return Err(Error::Denied { rule: "ticket", what });
        }
        // Nobody else knows which of its endpoints were read already, and reading one again would repeat rows.
        if claims.place.as_ref().is_some_and(|place| place.process != self.process) {
            return Err(Error::NotFound(
                "the ticket is one of several of another server, or from before a restart; ask GetFlightInfo again"
                    .into(),
            ));
        }
        Ok(Some(claims))
    }

    /// The claims that one of our keys has signed for this audience, and that key. `exp` finds the last second in which
    /// they are good.
    fn check<T: for<'a> Deserialize<'a>>(
        &self,
        token: &str,
        audience: &str,
        exp: impl Fn(&T) -> u64,
    ) -> Result<(T, Arc<Key>), ErrorKind> {
        let mut validation = Validation::new(Algorithm::HS256);
        // By the clock that is ours, below.
        validation.validate_exp = false;
        validation.set_audience(&[audience]);
        let now = self.clock.now();
        let keys: Vec<Arc<Key>> = {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            let previous = keys.previous.iter().filter(|(_, until)| *until > now).map(|(key, _)| key);
            [&keys.current].into_iter().chain(previous).cloned().collect()
        };
        let mut mistake = ErrorKind::InvalidSignature;
        for key in keys {
            match jsonwebtoken::decode::<T>(token, &key.checking, &validation) {
                Ok(data) if now.as_secs() > exp(&data.claims) => return Err(ErrorKind::ExpiredSignature),
                Ok(data) => return Ok((data.claims, key)),
                Err(error) => mistake = error.into_kind(),
            }
            if !matches!(mistake, ErrorKind::InvalidSignature) {
                break;
            }
        }
        Err(mistake)
    }
}

/// Who has vouched for the caller's name, as tickets say it.
fn issuer(identity: &Identity) -> Option<String> {
    Some(&identity.rights.issuer).filter(|issuer| **issuer != Issuer::Users).map(Issuer::to_string)
}

/// Rounded up: nothing lives shorter than configured.
fn whole_seconds(at: Duration) -> u64 {
    at.as_secs().saturating_add(u64::from(at.subsec_nanos() > 0))
}

fn random_hex() -> String {
    random_bytes::<12>().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random_bytes<const N: usize>() -> Vec<u8> {
    let mut bytes = vec![0_u8; N];
    getrandom::fill(&mut bytes).expect("the operating system hands out random bytes");
    bytes
}
