//! TLS on the Flight port: certificates in memory, replaced while connections come and go, and the handshake.
//!
//! A connection keeps the certificate it began with. The name in a verified client certificate is handed on as it is;
//! who that may be is decided in `auth`.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer, X509Error},
};

use crate::{
    auth::ClientCertificate,
    config::{self, ClientAuth, TlsVersion},
    error::{Error, Result},
    reload::Files,
    telemetry::Metrics,
};

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Tls(Arc<Inner>);

struct Inner {
    settings: config::Tls,
    patience: Duration,
    current: RwLock<Arc<ServerConfig>>,
    metrics: Metrics,
}

impl Tls {
    /// `None` where no certificate is configured. Reads files.
    pub(super) fn new(settings: &config::Tls, patience: Duration, metrics: Metrics) -> Result<Option<Self>> {
        if settings.certificate.is_none() {
            return Ok(None);
        }
        let (current, not_after) = read(settings)?;
        metrics.certificate_not_after.set(not_after);
        let current = RwLock::new(Arc::new(current));
        Ok(Some(Self(Arc::new(Inner { settings: settings.clone(), patience, current, metrics }))))
    }

    /// What [`Tls::reload`] reads.
    pub(super) fn files(settings: &config::Tls) -> Files {
        let paths = [&settings.certificate, &settings.key, &settings.client_ca];
        Files::now(paths.into_iter().flatten().cloned())
    }

    /// For connections from now on; all of it, or an error and nothing.
    pub(super) fn reload(&self) -> Result<()> {
        let (next, not_after) = read(&self.0.settings)?;
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        self.0.metrics.certificate_not_after.set(not_after);
        Ok(())
    }

    /// The stream inside, and the client's certificate if it showed one; within limits.handshake_timeout.
    pub(super) async fn handshake<IO>(&self, io: IO) -> io::Result<(TlsStream<IO>, Option<ClientCertificate>)>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let current = self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let shaking = async {
            match TlsAcceptor::from(current).accept(io).into_fallible().await {
                Ok(stream) => Ok(stream),
                Err((error, mut io)) => {
                    // The alert says what is wrong; it is lost where the socket closes with unread input.
                    let _ = io.shutdown().await;
                    Err(error)
                }
            }
        };
        let shaken = tokio::time::timeout(self.0.patience, shaking).await;
        let (outcome, result) = match shaken {
            Ok(Ok(stream)) => ("ok", Ok(stream)),
            Ok(Err(error)) => ("failed", Err(error)),
            Err(_elapsed) => (
                "timeout",
                Err(io::Error::new(io::ErrorKind::TimedOut, "no handshake within limits.handshake_timeout")),
            ),
        };
        self.0.metrics.handshake(outcome);
        let stream = result?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let certificate = certificate.map(|shown| ClientCertificate::new(name(shown)));
        Ok((stream, certificate))
    }
}

/// What new connections are accepted with, and the second since 1970 in which its certificate ends.
fn read(settings: &config::Tls) -> Result<(ServerConfig, i64)> {
    let chain = certificates("tls.certificate", settings.certificate.as_deref())?;
    let not_after = valid_until("tls.certificate", &chain)?;
    let key = private_key("tls.key", settings.key.as_deref())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: &[&SupportedProtocolVersion] = match settings.min_version {
        TlsVersion::Tls12 => &[&TLS13, &TLS12],
        TlsVersion::Tls13 => &[&TLS13],
    };
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_protocol_versions(versions).map_err(Error::internal)?;
    let builder = match settings.client_auth {
        ClientAuth::Off => builder.with_no_client_auth(),
        asked => {
            let mut roots = RootCertStore::empty();
            for root in certificates("tls.client_ca", settings.client_ca.as_deref())? {
                roots.add(root).map_err(|error| Error::invalid(format!("tls.client_ca: {error}")))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier =
                if asked == ClientAuth::Optional { verifier.allow_unauthenticated() } else { verifier }.build();
            let verifier = verifier.map_err(|error| Error::invalid(format!("tls.client_ca: {error}")))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => Error::invalid("tls.key: does not belong to tls.certificate"),
        other => Error::invalid(format!("tls.certificate or tls.key: {other}")),
    })?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    if settings.client_auth != ClientAuth::Off {
        // A session that is resumed brings its certificate along, and nobody looks at it again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok((config, not_after))
}

/// The second since 1970 in which the configured certificate ends, which is good now and fits its key.
pub fn certificate_ends(settings: &config::Tls) -> Result<i64> {
    read(settings).map(|(_, not_after)| not_after)
}

fn file(key: &str, path: Option<&Path>) -> Result<(PathBuf, Vec<u8>)> {
    let path = path.ok_or_else(|| Error::invalid(format!("{key}: is not given")))?;
    let text = std::fs::read(path).map_err(|error| Error::Io(format!("{key}: {}: {error}", path.display())))?;
    Ok((path.to_path_buf(), text))
}

fn certificates(key: &str, path: Option<&Path>) -> Result<Vec<CertificateDer<'static>>> {
    let (path, text) = file(key, path)?;
    let wrong = |why: String| Error::invalid(format!("{key}: {}: {why}", path.display()));
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() { Err(wrong("holds no certificate in PEM".into())) } else { Ok(found) }
}

fn private_key(key: &str, path: Option<&Path>) -> Result<PrivateKeyDer<'static>> {
    let (path, text) = file(key, path)?;
    // The error says what is missing, and nothing of the text.
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| Error::invalid(format!("{key}: {}: {error}", path.display())))
}

/// The second since 1970 in which the first of the chain's certificates ends; all of them have to be good now.
fn valid_until(key: &str, chain: &[CertificateDer<'_>]) -> Result<i64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let mut until = i64::MAX;
    for certificate in chain {
        let certificate = parse(certificate).map_err(|error| Error::invalid(format!("{key}: {error}")))?;
        let validity = certificate.validity();
        let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        if now < from {
            return Err(Error::invalid(format!("{key}: is not valid before {}", validity.not_before)));
        }
        if now > to {
            return Err(Error::invalid(format!("{key}: has expired on {}", validity.not_after)));
        }
        until = until.min(to);
    }
    Ok(until)
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, X509Error> {
    X509Certificate::from_der(certificate).map(|(_, parsed)| parsed).map_err(X509Error::from)
}

/// The first DNS name, address or URI among the certificate's alternative names, else its common name.
fn name(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = parse(certificate).ok()?;
    let alternatives = certificate.subject_alternative_name().ok()?;
    let mut names = alternatives.iter().flat_map(|extension| &extension.value.general_names);
    let alternative = names.find_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some(name.to_string()),
        _ => None,
    });
    let common = || certificate.subject().iter_common_name().next()?.as_str().ok().map(str::to_string);
    alternative.or_else(common)
}
