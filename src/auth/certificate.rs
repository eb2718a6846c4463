//! Who a verified client certificate stands for. Knows a name and no TLS: the server has verified the certificate.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Authenticator, Identity};
use crate::{
    access::Issuer,
    error::{Error, Result},
};

/// The name in the certificate that a connection was opened with; in the extensions of its requests.
#[derive(Debug, Clone)]
pub struct ClientCertificate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None` where the certificate has none that could be a user's.
    name: Option<String>,
    /// Whether its use has been counted: once a connection, though every call asks.
    counted: AtomicBool,
}

impl ClientCertificate {
    pub fn new(name: Option<String>) -> Self {
        Self(Arc::new(Inner { name, counted: AtomicBool::new(false) }))
    }
}

impl Authenticator {
    /// The user that the certificate's name is mapped to (`auth.certificates`), or whose name it is. Users are looked up
    /// for every call, so that one who is removed is out at once. `address` is where the connection comes from.
    pub(super) fn certified(&self, certificate: &ClientCertificate, address: Option<IpAddr>) -> Result<Identity> {
        let name = certificate.0.name.as_deref();
        let mapped = name.and_then(|name| self.0.certificates.get(name));
        let user = mapped.map(String::as_str).or(name);
        let known = user.and_then(|user| self.0.users.get(user));
        let shown = name.unwrap_or("(none)");
        if !certificate.0.counted.swap(true, Ordering::Relaxed) {
            let outcome = if known.is_some() { "ok" } else { "refused" };
            self.tell_login("mtls", user.unwrap_or(shown), address, outcome);
            if known.is_none() {
                tracing::warn!(certificate = shown, method = "mtls", "login refused");
            }
        }
        // A name that nobody has mapped is the certificate's, whoever else has one of the same spelling.
        let issuer = if mapped.is_some() { Issuer::Users } else { Issuer::Certificate };
        known.map(|known| self.is_used(known.rights.clone().vouched_by(issuer).into())).ok_or_else(|| {
            Error::Unauthenticated(format!(
                "the client certificate's name \"{shown}\" is no user here; map it with auth.certificates, or log in"
            ))
        })
    }
}
