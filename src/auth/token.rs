//! Signed, expiring tokens: bearer tokens and the tickets of GetFlightInfo. JWTs under HMAC-SHA256 with a key that
//! never leaves the server.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use serde::{Deserialize, Serialize};

use super::Identity;
use crate::{
    config::Secret,
    error::{Error, Result},
};

/// A ticket starts with it, so that no SQL text is taken for one.
const TICKET_PREFIX: &[u8] = b"mallard-ticket:";

const BEARER: &str = "bearer";
const TICKET: &str = "ticket";

pub(super) struct Tokens {
    signing: EncodingKey,
    checking: DecodingKey,
    life: Duration,
    /// Tells this process from others that have the same key: replicas, and itself before a restart.
    process: String,
}

#[derive(Serialize, Deserialize)]
struct BearerClaims {
    aud: String,
    sub: String,
    exp: u64,
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
        let end = Duration::from_secs(self.exp.saturating_add(1));
        end.saturating_sub(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }
}

impl Tokens {
    pub(super) fn new(key: Option<&Secret>, life: Duration) -> Self {
        let key = key.map_or_else(random_bytes::<32>, |key| key.reveal().as_bytes().to_vec());
        let (signing, checking) = (EncodingKey::from_secret(&key), DecodingKey::from_secret(&key));
        Self { signing, checking, life, process: random_hex() }
    }

    fn expiry(&self) -> u64 {
        // Whole seconds, rounded up: a token never lives shorter than configured.
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + self.life;
        at.as_secs() + u64::from(at.subsec_nanos() > 0)
    }

    pub(super) fn bearer(&self, identity: &Identity) -> Result<String> {
        self.sign(&BearerClaims { aud: BEARER.into(), sub: identity.user.clone(), exp: self.expiry() })
    }

    /// The user that a bearer token was made for.
    pub(super) fn user(&self, token: &str) -> Result<String> {
        let claims: BearerClaims = self.check(token, BEARER).map_err(|kind| {
            Error::Unauthenticated(match kind {
                ErrorKind::ExpiredSignature => "the bearer token has expired; log in again".into(),
                _ => "the bearer token is not valid here; log in again".into(),
            })
        })?;
        Ok(claims.sub)
    }

    pub(super) fn tickets(&self, identity: &Identity, sql: &str, count: usize) -> Result<(Vec<Vec<u8>>, Duration)> {
        let (sub, sql, exp, id) = (identity.user.clone(), sql.to_string(), self.expiry(), random_hex());
        let mut claims = TicketClaims { aud: TICKET.into(), sub, exp, id, sql, place: None };
        let tickets = (0..count).map(|index| {
            claims.place = (count > 1).then(|| Place { index, of: count, process: self.process.clone() });
            Ok([TICKET_PREFIX, self.sign(&claims)?.as_bytes()].concat())
        });
        Ok((tickets.collect::<Result<_>>()?, self.life))
    }

    pub(super) fn read_ticket(&self, identity: &Identity, ticket: &[u8]) -> Result<Option<TicketClaims>> {
        let Some(token) = ticket.strip_prefix(TICKET_PREFIX) else { return Ok(None) };
        let token = std::str::from_utf8(token).unwrap_or_default();
        let claims: TicketClaims = self.check(token, TICKET).map_err(|kind| {
            Error::invalid(match kind {
                ErrorKind::ExpiredSignature => "the ticket has expired; ask GetFlightInfo for a new one",
                _ => "the ticket is not one of this server's",
            })
        })?;
        if claims.sub != identity.user {
            return Err(Error::Denied { rule: "ticket", what: "the ticket was handed out to another user".into() });
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

    fn sign(&self, claims: &impl Serialize) -> Result<String> {
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &self.signing).map_err(Error::internal)
    }

    fn check<T: for<'a> Deserialize<'a>>(&self, token: &str, audience: &str) -> Result<T, ErrorKind> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        validation.set_audience(&[audience]);
        match jsonwebtoken::decode(token, &self.checking, &validation) {
            Ok(data) => Ok(data.claims),
            Err(error) => Err(error.into_kind()),
        }
    }
}

fn random_hex() -> String {
    random_bytes::<12>().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random_bytes<const N: usize>() -> Vec<u8> {
    let mut bytes = vec![0_u8; N];
    getrandom::fill(&mut bytes).expect("the operating system hands out random bytes");
    bytes
}
