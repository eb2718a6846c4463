//! The public keys of whoever issues identities: a JWKS (RFC 7517) in a file or at a URL.
//!
//! Each key verifies with one algorithm, which is the key's and never the token's to choose. Knows no claims.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header::ACCEPT};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;

use crate::{
    config::{self, JwksSource},
    error::{Error, Result},
    telemetry::Metrics,
};

/// Largest JWKS that is read.
const MAX_SIZE: usize = 1024 * 1024;

/// Keys of one JWKS that are looked at.
const MAX_KEYS: usize = 100;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct VerifyingKey {
    id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct KeySet(Arc<Inner>);

struct Inner {
    keys: RwLock<Arc<Vec<VerifyingKey>>>,
    source: Source,
    metrics: Metrics,
}

enum Source {
    File(PathBuf),
    Url(Box<Fetching>),
}

struct Fetching {
    uri: Uri,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    /// At least so long between two fetches for keys that are not known.
    pause: Duration,
    /// The keys are fetched again when they are this old, so that withdrawn ones go.
    refresh: Duration,
    /// When the last fetch began. The second lock is held while one is under way: others wait for it and do not fetch.
    last: Mutex<Option<Instant>>,
    under_way: tokio::sync::Mutex<()>,
}

impl KeySet {
    /// A file is read now and has to be right; a URL is asked when the first token comes.
    pub(super) fn new(config: &config::Jwt, source: &JwksSource, metrics: Metrics) -> Result<Self> {
        let (keys, source) = match source {
            JwksSource::File(path) => (read(path)?, Source::File(path.clone())),
            JwksSource::Url(uri) => (Vec::new(), Source::Url(Box::new(Fetching::new(config, uri)?))),
        };
        Ok(Self(Arc::new(Inner { keys: RwLock::new(Arc::new(keys)), source, metrics })))
    }

    /// Reads the file again, if there is one; the keys there were stay where it is broken.
    pub(super) fn reload(&self) -> Result<()> {
        if let Source::File(path) = &self.0.source {
            self.0.put(read(path)?);
        }
        Ok(())
    }

    /// The keys that may have signed a token with this header: the one it names, else all of that algorithm.
    pub(super) async fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Found {
        let known = self.0.find(id, algorithm);
        let Source::Url(fetching) = &self.0.source else { return known };
        if known.is_empty() {
            let asked = Instant::now();
            let _under_way = fetching.under_way.lock().await;
            // Somebody else's fetch may have ended meanwhile.
            if fetching.is_due(fetching.pause, asked) {
                self.0.fetch(fetching).await;
            }
            return self.0.find(id, algorithm);
        }
        if fetching.is_due(fetching.refresh, Instant::now()) {
            let keys = self.0.clone();
            tokio::spawn(async move {
                let Source::Url(fetching) = &keys.source else { return };
                if let Ok(_under_way) = fetching.under_way.try_lock() {
                    keys.fetch(fetching).await;
                }
            });
        }
        known
    }
}

/// Some keys of a set.
pub(super) struct Found {
    all: Arc<Vec<VerifyingKey>>,
    which: Vec<usize>,
}

impl Found {
    pub(super) fn is_empty(&self) -> bool {
        self.which.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &VerifyingKey> {
        self.which.iter().map(|index| &self.all[*index])
    }
}

impl Inner {
    fn put(&self, keys: Vec<VerifyingKey>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Found {
        let all = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        let fits = |key: &VerifyingKey| key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id);
        let which = (0..all.len()).filter(|index| fits(&all[*index])).collect();
        Found { all, which }
    }

    async fn fetch(&self, fetching: &Fetching) {
        *fetching.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let fetched = tokio::time::timeout(PATIENCE, fetching.fetch()).await;
        let fetched = fetched.unwrap_or_else(|_elapsed| Err("it does not answer".into()));
        self.metrics.jwks_fetched(fetched.is_ok());
        match fetched {
            Ok(keys) => {
                tracing::info!(keys = keys.len(), "jwt.jwks_url read");
                self.put(keys);
            }
            Err(error) => tracing::error!(error, "jwt.jwks_url cannot be used; the keys there were stay in use"),
        }
    }
}

impl Fetching {
    fn new(config: &config::Jwt, uri: &Uri) -> Result<Self> {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|error| Error::Io(format!("jwt.jwks_url: {error}")))?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            uri: uri.clone(),
            client: Client::builder(TokioExecutor::new()).build(connector),
            pause: config.jwks_pause.0,
            refresh: config.jwks_refresh.0,
            last: Mutex::new(None),
            under_way: tokio::sync::Mutex::new(()),
        })
    }

    /// Whether the last fetch is so long ago, as seen then.
    fn is_due(&self, pause: Duration, then: Instant) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_none_or(|last| then.saturating_duration_since(last) >= pause && then >= last)
    }

    async fn fetch(&self) -> Result<Vec<VerifyingKey>, String> {
        let request = Request::get(self.uri.clone()).header(ACCEPT, "application/json").body(Empty::new());
        let answer = self.client.request(request.map_err(|error| error.to_string())?).await;
        let answer = answer.map_err(|error| with_causes(&error))?;
        // Redirects are not followed: they would lead where nobody has allowed it.
        if answer.status() != StatusCode::OK {
            return Err(format!("it answers {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_SIZE).collect().await;
        parse(&body.map_err(|error| format!("the answer is cut or longer than 1 MiB: {error}"))?.to_bytes())
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message
}

fn read(path: &Path) -> Result<Vec<VerifyingKey>> {
    let wrong = |why: String| Error::invalid(format!("jwt.jwks_file {}: {why}", path.display()));
    parse(&std::fs::read(path).map_err(|error| wrong(error.to_string()))?).map_err(wrong)
}

/// The keys that we can verify with; others in the set are for other purposes.
fn parse(text: &[u8]) -> Result<Vec<VerifyingKey>, String> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    if text.len() > MAX_SIZE {
        return Err("it is longer than 1 MiB".into());
    }
    let set: Set = serde_json::from_slice(text).map_err(|error| format!("it is no JWKS: {error}"))?;
    if set.keys.len() > MAX_KEYS {
        return Err(format!("it has more than {MAX_KEYS} keys"));
    }
    let keys: Vec<VerifyingKey> = set.keys.into_iter().filter_map(verifying).collect();
    if keys.is_empty() {
        return Err("it has no key for EdDSA (Ed25519), ES256 (P-256) or RS256".into());
    }
    Ok(keys)
}

fn verifying(key: serde_json::Value) -> Option<VerifyingKey> {
    let jwk: Jwk = serde_json::from_value(key).ok()?;
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        // Symmetric ones above all: who verifies with them could sign.
        _ => return None,
    };
    let of_algorithm = jwk.common.key_algorithm.is_none_or(|given| given == named);
    let for_signatures = jwk.common.public_key_use.as_ref().is_none_or(|given| *given == PublicKeyUse::Signature);
    if !of_algorithm || !for_signatures {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some(VerifyingKey { id: jwk.common.key_id, algorithm, key })
}
