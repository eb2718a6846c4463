//! Identities that somebody else vouches for: a JWT as bearer token, signed by the issuer of the configuration.
//!
//! What has to hold: a signature by one of the issuer's keys with that key's own algorithm (EdDSA, ES256 or RS256; never
//! one with a shared secret, and never none), our issuer, our audience, not expired, and not from the future. Then a claim
//! is the user, and another says which role of ours they have.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, Validation};
use serde_json::{Map, Value};

use super::jwks::KeySet;
use crate::{
    clock::Clock,
    config,
    error::{Error, Result},
    printable,
    telemetry::Metrics,
};

/// Longest name of a user.
const MAX_USER: usize = 256;

pub(super) struct Issuer {
    name: String,
    audience: String,
    leeway: Duration,
    user_claim: String,
    role_claim: String,
    roles: BTreeMap<String, String>,
    default_role: Option<String>,
    keys: KeySet,
    clock: Clock,
}

/// What a token says.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) issuer: Arc<str>,
    pub(super) user: String,
    /// Names of roles of ours; any of them may be used.
    pub(super) roles: Vec<String>,
}

impl Issuer {
    /// `None` where the configuration has none.
    pub(super) fn new(config: &config::Jwt, clock: Clock, metrics: Metrics) -> Result<Option<Self>> {
        let (Some(name), Some(audience)) = (&config.issuer, &config.audience) else { return Ok(None) };
        let Some(source) = config.jwks().map_err(Error::Invalid)? else { return Ok(None) };
        Ok(Some(Self {
            name: name.clone(),
            audience: audience.clone(),
            leeway: config.leeway.0,
            user_claim: config.user_claim.clone(),
            role_claim: config.role_claim.clone(),
            roles: config.roles.clone(),
            default_role: config.default_role.clone(),
            keys: KeySet::new(config, &source, metrics)?,
            clock,
        }))
    }

    pub(super) fn reload(&self) -> Result<()> {
        self.keys.reload()
    }

    /// Checks a token that says it is signed with `algorithm`.
    pub(super) async fn check(&self, token: &str, algorithm: Algorithm) -> Result<Claimed> {
        let refused = |why: &str| Error::Unauthenticated(format!("the token is not valid here: {why}"));
        let header = token.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let header: Option<Map<String, Value>> = header.and_then(|header| serde_json::from_slice(&header).ok());
        let header = header.ok_or_else(|| refused("its header is malformed"))?;
        // RFC 7515, 4.1.11: who does not understand what it names must refuse the token.
        if header.contains_key("crit") {
            return Err(refused("it has critical headers"));
        }
        let keys = self.keys.find(header.get("kid").and_then(Value::as_str), algorithm).await;
        if keys.is_empty() {
            return Err(refused("it is signed with a key that is not known here"));
        }
        let mut validation = Validation::new(algorithm);
        // All claims are checked below, by our own clock and rules.
        validation.required_spec_claims.clear();
        (validation.validate_exp, validation.validate_aud) = (false, false);
        let mut signed = keys.iter().filter(|key| key.algorithm == algorithm).filter_map(|key| {
            jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &validation).ok().map(|data| data.claims)
        });
        let claims = signed.next().ok_or_else(|| refused("its signature is wrong"))?;
        self.accept(&claims).map_err(refused)?;
        let user = self.user(&claims).map_err(refused)?;
        let roles = self.roles(&claims);
        if roles.is_empty() {
            // The identity is proven, and has nothing here.
            let claim = &self.role_claim;
            return Err(Error::Denied {
                rule: "role",
                what: format!(
                    "user \"{user}\" has no role here: nothing in the claim \"{claim}\" is in jwt.roles, and there is \
                     no jwt.default_role"
                ),
            });
        }
        Ok(Claimed { issuer: self.name.as_str().into(), user, roles })
    }

    fn accept(&self, claims: &Map<String, Value>) -> Result<(), &'static str> {
        if claims.get("iss").and_then(Value::as_str) != Some(self.name.as_str()) {
            return Err("it is from another issuer");
        }
        let for_us = match claims.get("aud") {
            Some(Value::String(audience)) => *audience == self.audience,
            Some(Value::Array(all)) => all.iter().any(|audience| audience.as_str() == Some(self.audience.as_str())),
            _ => false,
        };
        if !for_us {
            return Err("it is for another audience");
        }
        let (now, leeway) = (self.clock.now().as_secs_f64(), self.leeway.as_secs_f64());
        let seconds = |claim: &Value| claim.as_f64().filter(|seconds| seconds.is_finite());
        let expiry = claims.get("exp").and_then(seconds).ok_or("it has no expiry")?;
        if now >= expiry + leeway {
            return Err("it has expired");
        }
        if let Some(from) = claims.get("nbf") {
            let from = seconds(from).ok_or("its claim nbf is no time")?;
            if now + leeway < from {
                return Err("it is not valid yet");
            }
        }
        Ok(())
    }

    fn user(&self, claims: &Map<String, Value>) -> Result<String, &'static str> {
        let user = claim(claims, &self.user_claim).and_then(Value::as_str);
        let user = user.filter(|user| !user.is_empty()).ok_or("it names no user")?;
        if user.len() > MAX_USER || !printable::is_printable(user) {
            return Err("its user is no name");
        }
        Ok(user.to_string())
    }

    fn roles(&self, claims: &Map<String, Value>) -> Vec<String> {
        let values: Vec<&str> = match claim(claims, &self.role_claim) {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(some)) => some.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let mut roles: Vec<String> = values.into_iter().filter_map(|value| self.roles.get(value).cloned()).collect();
        if roles.is_empty() {
            roles.extend(self.default_role.clone());
        }
        roles
    }
}

/// The claim of that name, or along the dots in it: `realm_access.roles`.
fn claim<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    claims.get(name).or_else(|| {
        let (first, rest) = name.split_once('.')?;
        claim(claims.get(first)?.as_object()?, rest)
    })
}
