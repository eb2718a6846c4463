//! Who a verified client certificate stands for. Knows a name and no TLS: the server has verified the certificate.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{Authenticator, Identity};
use crate::error::{Error, Result};

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
    /// for every call, so that one who is removed is out at once.
    pub(super) fn certified(&self, certificate: &ClientCertificate) -> Result<Identity> {
        let name = certificate.0.name.as_deref();
        let known = name.and_then(|name| self.0.users.get(self.0.certificates.get(name).map_or(name, String::as_str)));
        let first = !certificate.0.counted.swap(true, Ordering::Relaxed);
        if first {
            self.0.metrics.login("mtls", if known.is_some() { "ok" } else { "refused" });
        }
        let shown = name.unwrap_or("(none)");
        known.map(|known| self.is_used(known.rights.clone().into())).ok_or_else(|| {
            if first {
                tracing::warn!(certificate = shown, method = "mtls", "login refused");
            }
            Error::Unauthenticated(format!(
                "the client certificate's name \"{shown}\" is no user here; map it with auth.certificates, or log in"
            ))
        })
    }
}
