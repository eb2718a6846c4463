//! Identities of an issuer outside: what its keys have signed for this server is good, and nothing else.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arrow_flight::{Action, FlightDescriptor, Ticket};
use axum::{Router, body::Bytes, http::StatusCode, routing::get};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD as BASE64},
};
use futures::TryStreamExt;
use mallard::config::{Config, Credential, Secret, Span, User};
use num_bigint::BigUint;
use ring::{
    digest, hmac,
    rand::{SecureRandom, SystemRandom},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
        Ed25519KeyPair, KeyPair,
    },
};
use serde_json::{Value, json};

use crate::{
    support::{PASSWORD, TestServer, USER, test_config, until, with_login},
    tokens::{call, refused},
};

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "mallard";

/// A key pair of the issuer's.
struct Signer {
    id: &'static str,
    key: Key,
}

enum Key {
    Ed25519(Ed25519KeyPair),
    Ec(&'static str, EcdsaKeyPair),
    Rsa(&'static Rsa),
}

impl Signer {
    fn ed25519(id: &'static str) -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self { id, key: Key::Ed25519(Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap()) }
    }

    fn ec(id: &'static str, curve: &'static str, algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self { id, key: Key::Ec(curve, EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).unwrap()) }
    }

    fn p256(id: &'static str) -> Self {
        Self::ec(id, "P-256", &ECDSA_P256_SHA256_FIXED_SIGNING)
    }

    fn rsa(id: &'static str) -> Self {
        static RSA: LazyLock<Rsa> = LazyLock::new(Rsa::generate);
        Self { id, key: Key::Rsa(&RSA) }
    }

    fn algorithm(&self) -> &'static str {
        match &self.key {
            Key::Ed25519(_) => "EdDSA",
            Key::Ec("P-256", _) => "ES256",
            Key::Ec(..) => "ES384",
            Key::Rsa(_) => "RS256",
        }
    }

    fn jwk(&self) -> Value {
        let id = self.id;
        match &self.key {
            Key::Ed25519(pair) => {
                json!({"kid": id, "kty": "OKP", "crv": "Ed25519", "x": BASE64.encode(pair.public_key())})
            }
            Key::Ec(curve, pair) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kid": id, "kty": "EC", "crv": curve, "x": BASE64.encode(x), "y": BASE64.encode(y), "use": "sig"})
            }
            Key::Rsa(rsa) => {
                json!({"kid": id, "kty": "RSA", "alg": "RS256", "n": BASE64.encode(rsa.n.to_bytes_be()), "e": "AQAB"})
            }
        }
    }

    fn sign(&self, text: &[u8]) -> Vec<u8> {
        match &self.key {
            Key::Ed25519(pair) => pair.sign(text).as_ref().to_vec(),
            Key::Ec(_, pair) => pair.sign(&SystemRandom::new(), text).unwrap().as_ref().to_vec(),
            Key::Rsa(rsa) => rsa.sign(text),
        }
    }

    fn token(&self, claims: &Value) -> String {
        self.with_header(&json!({"typ": "JWT", "alg": self.algorithm(), "kid": self.id}), claims)
    }

    fn with_header(&self, header: &Value, claims: &Value) -> String {
        token(header, claims, |text| self.sign(text))
    }
}

fn token(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let part = |value: &Value| BASE64.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = BASE64.encode(sign(signed.as_bytes()));
    format!("Bearer {signed}.{signature}")
}

/// RSA with 2048 bits, PKCS #1 1.5 and SHA-256, as RFC 8017 has it: nothing that is built for secrets.
struct Rsa {
    n: BigUint,
    d: BigUint,
}

impl Rsa {
    fn generate() -> Self {
        let (e, one) = (BigUint::from(65_537_u32), BigUint::from(1_u8));
        loop {
            let (p, q) = (prime(), prime());
            let phi = (&p - &one) * (&q - &one);
            if let (true, Some(d)) = (p != q, e.modinv(&phi)) {
                return Self { n: p * q, d };
            }
        }
    }

    fn sign(&self, text: &[u8]) -> Vec<u8> {
        const SHA256: [u8; 19] = [
            0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04,
            0x20,
        ];
        let hash = digest::digest(&digest::SHA256, text);
        let mut padded = vec![0, 1];
        padded.resize(256 - 1 - SHA256.len() - hash.as_ref().len(), 0xff);
        padded.push(0);
        padded.extend(SHA256);
        padded.extend(hash.as_ref());
        let signature = BigUint::from_bytes_be(&padded).modpow(&self.d, &self.n).to_bytes_be();
        [vec![0; 256 - signature.len()], signature].concat()
    }
}

/// A random prime of 1024 bits, the two highest set.
fn prime() -> BigUint {
    let random = SystemRandom::new();
    let small: Vec<u32> = (3..2000_u32).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0)).collect();
    let (one, two) = (BigUint::from(1_u8), BigUint::from(2_u8));
    loop {
        let mut bytes = [0_u8; 128];
        random.fill(&mut bytes).unwrap();
        bytes[0] |= 0xc0;
        bytes[127] |= 1;
        let n = BigUint::from_bytes_be(&bytes);
        if small.iter().any(|p| &n % *p == BigUint::from(0_u8)) {
            continue;
        }
        // Fermat's test: what passes for five bases at this size is a prime, but for chances that do not matter here.
        let less = &n - &one;
        if [2_u32, 3, 5, 7, 11].iter().all(|base| BigUint::from(*base).modpow(&less, &n) == one) && less != two {
            return n;
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Good ones of "dora".
fn claims() -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "dora", "exp": now() + 300, "role": "db-readers"})
}

fn changed(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

fn jwks(signers: &[&Signer]) -> String {
    json!({"keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>()}).to_string()
}

/// With an issuer whose keys are in a file.
fn config(directory: &tempfile::TempDir, keys: &str) -> Config {
    let path = directory.path().join("jwks.json");
    std::fs::write(&path, keys).unwrap();
    let mut config = with_login(test_config());
    config.jwt.issuer = Some(ISSUER.into());
    config.jwt.audience = Some(AUDIENCE.into());
    config.jwt.jwks_file = Some(path);
    config.jwt.roles.insert("db-readers".into(), "reader".into());
    config.jwt.roles.insert("db-admins".into(), "admin".into());
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_the_issuer_are_good_with_each_algorithm() {
    let directory = tempfile::tempdir().unwrap();
    let signers = [Signer::ed25519("one"), Signer::p256("two"), Signer::rsa("three")];
    let keys = jwks(&signers.each_ref());
    let server = TestServer::with(config(&directory, &keys)).await;
    for signer in &signers {
        let algorithm = signer.algorithm();
        let answered = call(&server, &signer.token(&claims())).await.unwrap_or_else(|why| panic!("{algorithm}: {why}"));
        assert!(answered.get("authorization").is_none(), "the issuer gives out fresh ones, not this server");
        let header = json!({"alg": algorithm});
        call(&server, &signer.with_header(&header, &claims())).await.expect("a token need not name its key");
        call(&server, &signer.token(&changed("aud", json!(["other", AUDIENCE])))).await.expect("one of its audiences");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_token_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (ed, p256, rsa) = (Signer::ed25519("ed"), Signer::p256("p256"), Signer::rsa("rsa"));
    let p384 = Signer::ec("p384", "P-384", &ECDSA_P384_SHA384_FIXED_SIGNING);
    let shared =
        json!({"kid": "shared", "kty": "oct", "alg": "HS256", "k": BASE64.encode("a shared secret of the issuer")});
    let mut keys: Value = serde_json::from_str(&jwks(&[&ed, &p256, &rsa, &p384])).unwrap();
    keys["keys"].as_array_mut().unwrap().push(shared);
    // Said to be for encryption, and for another algorithm.
    let (encrypting, pss) = (Signer::ed25519("encrypting"), Signer::rsa("pss"));
    for (signer, name, value) in [(&encrypting, "use", "enc"), (&pss, "alg", "PS256")] {
        let mut jwk = signer.jwk();
        jwk[name] = json!(value);
        keys["keys"].as_array_mut().unwrap().push(jwk);
    }
    let mut config = config(&directory, &keys.to_string());
    config.auth.signing_key = Some(Secret::new("our own key, for our own tokens"));
    let server = TestServer::with(config).await;
    let mac = |key: &[u8]| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        move |text: &[u8]| hmac::sign(&key, text).as_ref().to_vec()
    };
    let hs256 = |id: &str| json!({"typ": "JWT", "alg": "HS256", "kid": id});
    let public = |signer: &Signer, field: &str| BASE64.decode(signer.jwk()[field].as_str().unwrap()).unwrap();
    let named = |algorithm: &str, id: &str| json!({"alg": algorithm, "kid": id});
    call(&server, &ed.token(&claims())).await.expect("the good one");
    for (what, bearer, why) in [
        ("alg none", token(&named("none", "ed"), &claims(), |_| Vec::new()), ""),
        ("no algorithm", ed.with_header(&json!({"kid": "ed"}), &claims()), ""),
        // The classic: the public key is known, so it must be no secret.
        ("HS256 with the RSA modulus", token(&hs256("rsa"), &claims(), mac(&public(&rsa, "n"))), ""),
        ("HS256 with the Ed25519 key", token(&hs256("ed"), &claims(), mac(&public(&ed, "x"))), ""),
        ("HS256 with the JWK's text", token(&hs256("rsa"), &claims(), mac(rsa.jwk().to_string().as_bytes())), ""),
        ("HS256 with the shared key", token(&hs256("shared"), &claims(), mac(b"a shared secret of the issuer")), ""),
        ("HS256 with our own key", token(&hs256(""), &claims(), mac(b"our own key, for our own tokens")), ""),
        ("the algorithm of another key", ed.with_header(&named("EdDSA", "rsa"), &claims()), "key that is not known"),
        ("the name of another key", ed.with_header(&named("RS256", "rsa"), &claims()), "signature"),
        ("ES384", p384.token(&claims()), ""),
        ("ES256 with P-384", p384.with_header(&named("ES256", "p384"), &claims()), "key that is not known"),
        ("PS256", rsa.with_header(&named("PS256", "rsa"), &claims()), ""),
        ("a key for encryption", encrypting.token(&claims()), "key that is not known"),
        ("a key for another algorithm", pss.token(&claims()), "key that is not known"),
        ("an unknown key", Signer::ed25519("new").token(&claims()), "key that is not known"),
        ("the right name of a wrong key", Signer::ed25519("ed").token(&claims()), "signature"),
        (
            "a key in the header",
            {
                let mine = Signer::ed25519("ed");
                mine.with_header(&json!({"alg": "EdDSA", "jwk": mine.jwk()}), &claims())
            },
            "signature",
        ),
        (
            "critical headers",
            ed.with_header(&json!({"alg": "EdDSA", "kid": "ed", "crit": ["b64"], "b64": false}), &claims()),
            "critical",
        ),
        ("wrong issuer", ed.token(&changed("iss", json!("https://evil.example"))), "issuer"),
        ("wrong case of the issuer", ed.token(&changed("iss", json!(ISSUER.to_uppercase()))), "issuer"),
        ("no issuer", ed.token(&without("iss")), "issuer"),
        ("wrong audience", ed.token(&changed("aud", json!("other"))), "audience"),
        ("wrong audiences", ed.token(&changed("aud", json!(["other", 1]))), "audience"),
        ("no audience", ed.token(&without("aud")), "audience"),
        ("no expiry", ed.token(&without("exp")), "no expiry"),
        ("an expiry that is no number", ed.token(&changed("exp", json!("9999999999"))), "no expiry"),
        ("expired beyond the leeway", ed.token(&changed("exp", json!(now() - 31))), "has expired"),
        ("from the future beyond it", ed.token(&changed("nbf", json!(now() + 60))), "not valid yet"),
        ("a start that is no number", ed.token(&changed("nbf", json!("soon"))), "nbf"),
        ("no user", ed.token(&without("sub")), "no user"),
        ("an empty user", ed.token(&changed("sub", json!(""))), "no user"),
        ("a user of two lines", ed.token(&changed("sub", json!("a\nb"))), "no name"),
        ("a user who reads as another", ed.token(&changed("sub", json!("eve\u{202e}nimda"))), "no name"),
        ("a user with a hidden character", ed.token(&changed("sub", json!("ali\u{200b}ce"))), "no name"),
        ("claims that are no object", ed.token(&json!(["a"])), ""),
    ] {
        let answer = call(&server, &bearer).await.err().unwrap_or_else(|| panic!("{what} is let in"));
        assert_eq!(answer.code(), tonic::Code::Unauthenticated, "{what}: {answer:?}");
        assert!(answer.message().contains(why), "{what}: {answer:?}");
    }
}

/// What creating a table answers.
async fn create(server: &TestServer, table: &str, bearer: &str) -> Result<(), tonic::Status> {
    let mut request = tonic::Request::new(arrow_flight::Ticket::new(format!("CREATE TABLE {table} (i INT)")));
    request.metadata_mut().insert("authorization", bearer.parse().unwrap());
    let mut rows = server.stock().await.do_get(request).await?.into_inner();
    while rows.message().await?.is_some() {}
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn claim_is_mapped_to_a_role() {
    let directory = tempfile::tempdir().unwrap();
    let signer = Signer::ed25519("one");
    let mut config = config(&directory, &jwks(&[&signer]));
    let strict = TestServer::with(config.clone()).await;
    config.jwt.role_claim = "realm_access.roles".into();
    config.jwt.default_role = Some("reader".into());
    config.jwt.user_claim = "email".into();
    let nested = TestServer::with(config).await;
    let role = |value: Value| signer.token(&changed("role", value));
    create(&strict, "a", &role(json!("db-admins"))).await.expect("an admin");
    create(&strict, "b", &role(json!(["other", "db-readers", "db-admins"]))).await.expect("the one that may do most");
    for (bearer, why) in [
        (role(json!("db-readers")), "reader"),
        (role(json!(["db-readers", "admin", 1])), "reader"),
        (role(json!("admin")), "has no role here"),
        (role(json!("db-admins db-readers")), "has no role here"),
        (role(json!({"db-admins": true})), "has no role here"),
        (signer.token(&without("role")), "has no role here"),
        // A user of that name here has other rights, and they are not this one's.
        (
            signer.token(&json!({"iss": ISSUER, "aud": AUDIENCE, "sub": crate::support::USER, "exp": now() + 9})),
            "no role",
        ),
    ] {
        let denied = create(&strict, "c", &bearer).await.expect_err(why);
        assert_eq!(denied.code(), tonic::Code::PermissionDenied, "{denied:?}");
        assert!(denied.message().contains(why), "{denied:?}, not {why}");
    }
    let email = |roles: Value| {
        let mut claims = without("sub");
        claims["email"] = json!("dora@example.com");
        claims["realm_access"] = json!({"roles": roles});
        signer.token(&claims)
    };
    create(&nested, "a", &email(json!(["db-admins"]))).await.unwrap();
    let denied = create(&nested, "b", &email(json!([]))).await.expect_err("the default role");
    assert!(denied.message().contains("dora@example.com"), "{denied:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn issuers_clock_may_be_off_by_the_leeway() {
    let directory = tempfile::tempdir().unwrap();
    let signer = Signer::ed25519("one");
    let config = config(&directory, &jwks(&[&signer]));
    let clock = config.auth.clock.clone();
    let server = TestServer::with(config).await;
    call(&server, &signer.token(&changed("exp", json!(now() - 15)))).await.expect("within the leeway of 30 s");
    call(&server, &signer.token(&changed("nbf", json!(now() + 15)))).await.expect("within the leeway of 30 s");
    call(&server, &signer.token(&changed("exp", json!(now() as f64 + 10.5)))).await.expect("RFC 7519 allows fractions");
    let (early, late) = (signer.token(&changed("nbf", json!(now() + 3600))), signer.token(&claims()));
    refused(&server, &early, "not valid yet").await;
    clock.go_ahead(Duration::from_secs(3600));
    refused(&server, &late, "has expired").await;
    refused(&server, &early, "has expired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_a_file_are_read_again_and_broken_ones_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (Signer::ed25519("old"), Signer::p256("new"));
    let server = TestServer::with(config(&directory, &jwks(&[&old]))).await;
    let put = |text: &str| {
        let beside = directory.path().join("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, directory.path().join("jwks.json")).unwrap();
    };
    for (number, broken) in
        ["{\"keys\": []}", "<html>", "{\"keys\": [{\"kty\": \"oct\", \"k\": \"AAAA\"}]}"].iter().enumerate()
    {
        put(broken);
        let counted = "mallard_config_reloads_total{outcome=\"refused\",what=\"keys\"}";
        until("it is refused", async || server.metric(counted).await == number as f64 + 1.0).await;
        call(&server, &old.token(&claims())).await.expect("the keys there were");
    }
    put(&jwks(&[&new]));
    until("the new key is known", async || call(&server, &new.token(&claims())).await.is_ok()).await;
    refused(&server, &old.token(&claims()), "key that is not known").await;
}

/// An issuer that answers its keys over HTTP, and counts how often it was asked.
async fn issuer(keys: Arc<std::sync::Mutex<(StatusCode, Bytes)>>) -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let answer = move || {
        let (keys, counted) = (keys.clone(), counted.clone());
        async move {
            counted.fetch_add(1, Ordering::SeqCst);
            keys.lock().unwrap().clone()
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/keys", get(answer))).await.unwrap() });
    (url, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_from_a_url_are_fetched_when_needed_and_not_more_often() {
    let (old, new) = (Signer::ed25519("old"), Signer::p256("new"));
    let keys = Arc::new(std::sync::Mutex::new((StatusCode::OK, Bytes::from(jwks(&[&old])))));
    let (url, asked) = issuer(keys.clone()).await;
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&directory, "");
    config.jwt.jwks_file = None;
    config.jwt.jwks_url = Some(url);
    config.jwt.allow_jwks_url = true;
    let patient = TestServer::with(config.clone()).await;
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    // Many at once, and only one question.
    let (bearer, unknown) = (old.token(&claims()), new.token(&claims()));
    let calls = futures::future::join_all((0..8).map(|_| call(&patient, &bearer))).await;
    assert!(calls.iter().all(Result::is_ok), "{calls:?}");
    for _ in 0..20 {
        refused(&patient, &unknown, "key that is not known").await;
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1, "unknown keys are no way to make it ask");
    *keys.lock().unwrap() = (StatusCode::OK, Bytes::from(jwks(&[&new])));
    call(&patient, &bearer).await.expect("what is known is not asked for");

    // After the pause an unknown key is a reason to ask, and the withdrawn one is gone.
    config.jwt.jwks_pause = Span(Duration::ZERO);
    let eager = TestServer::with(config.clone()).await;
    call(&eager, &unknown).await.unwrap();
    refused(&eager, &bearer, "key that is not known").await;
    for broken in [
        (StatusCode::INTERNAL_SERVER_ERROR, Bytes::from(jwks(&[&old]))),
        (StatusCode::FOUND, Bytes::from(jwks(&[&old]))),
        (StatusCode::OK, Bytes::from("no keys")),
        (StatusCode::OK, Bytes::from(format!("{}{}", " ".repeat(1024 * 1024), jwks(&[&old])))),
    ] {
        *keys.lock().unwrap() = broken;
        refused(&eager, &bearer, "key that is not known").await;
        call(&eager, &unknown).await.expect("the keys there were stay");
    }
    assert!(eager.metric("mallard_jwks_fetches_total{outcome=\"error\"}").await >= 4.0);

    // Without an unknown key: withdrawn ones go when the keys are old.
    *keys.lock().unwrap() = (StatusCode::OK, Bytes::from(jwks(&[&old])));
    config.jwt.jwks_pause = Span(Duration::from_secs(3600));
    config.jwt.jwks_refresh = Span(Duration::ZERO);
    let refreshing = TestServer::with(config).await;
    call(&refreshing, &bearer).await.unwrap();
    *keys.lock().unwrap() = (StatusCode::OK, Bytes::from(jwks(&[&new])));
    until("the old key goes", async || call(&refreshing, &bearer).await.is_err()).await;
    call(&refreshing, &unknown).await.unwrap();
}

#[test]
fn configuration_of_an_issuer_is_checked() {
    let check = |set: &[(&str, &str)]| {
        let environment = set
            .iter()
            .map(|(key, value)| (format!("MALLARD__{}", key.to_uppercase().replace('.', "__")), value.to_string()));
        mallard::config::load(None, environment, &[]).map(drop).map_err(|mistakes| mistakes.to_string())
    };
    let good = [
        ("auth.enabled", "true"),
        ("jwt.issuer", ISSUER),
        ("jwt.audience", AUDIENCE),
        ("jwt.jwks_file", "/keys.json"),
        ("jwt.default_role", "reader"),
    ];
    let with = |name: &'static str, value: &'static str| {
        let mut set: Vec<_> = good.iter().copied().filter(|(key, _)| *key != name).collect();
        set.extend((!value.is_empty()).then_some((name, value)));
        set
    };
    let url = |url: &'static str| {
        let mut set = with("jwt.jwks_file", "");
        set.extend([("jwt.jwks_url", url), ("jwt.allow_jwks_url", "true")]);
        set
    };
    check(&good).unwrap();
    check(&url("https://issuer.example/keys")).unwrap();
    check(&url("http://127.0.0.1:8080/keys")).unwrap();
    for (set, why) in [
        (with("jwt.audience", ""), "needs jwt.audience"),
        (with("jwt.issuer", ""), "without jwt.issuer"),
        (with("jwt.jwks_file", ""), "needs its public keys"),
        (with("jwt.default_role", ""), "gives nobody a role"),
        (with("jwt.default_role", "boss"), "there is no role"),
        (with("jwt.roles.x", "boss"), "there is no role"),
        (with("jwt.leeway", "61s"), "at most 60s"),
        (with("auth.enabled", "false"), "auth.enabled is false"),
        (with("jwt.jwks_url", "https://issuer.example/keys"), "give one of them"),
        (url("http://issuer.example/keys"), "https"),
        (url("ftp://issuer.example/keys"), "https"),
        ([with("jwt.jwks_file", ""), vec![("jwt.jwks_url", "https://issuer.example/keys")]].concat(), "allow_jwks_url"),
    ] {
        let mistakes = check(&set).expect_err(why);
        assert!(mistakes.contains(why), "{mistakes}, not {why}");
    }
}

/// A call of [`USER`], as the issuer or as this server knows them.
fn asking<T>(authorization: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("authorization", authorization.parse().unwrap());
    request
}

async fn act(
    server: &TestServer,
    authorization: &str,
    action: &str,
    body: &Value,
) -> Result<Vec<Value>, tonic::Status> {
    let action = Action::new(action.to_string(), body.to_string());
    let answers = server.stock().await.do_action(asking(authorization, action)).await?.into_inner();
    let answers: Vec<_> = answers.try_collect().await?;
    Ok(answers.iter().map(|answer| serde_json::from_slice(&answer.body).unwrap()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn same_name_of_another_issuer_is_another_principal() {
    let directory = tempfile::tempdir().unwrap();
    let signer = Signer::ed25519("one");
    let mut config = config(&directory, &jwks(&[&signer]));
    config.limits.queries = 4;
    config.limits.queries_per_user = 1;
    config.auth.users.insert("boss".into(), User::new(Credential::Password(Secret::new(PASSWORD)), "admin"));
    let server = TestServer::with(config).await;
    let basic = |user: &str| format!("Basic {}", STANDARD.encode(format!("{user}:{PASSWORD}")));
    let (local, boss) = (basic(USER), basic("boss"));
    let mut admin = changed("sub", json!(USER));
    admin["role"] = json!("db-admins");
    let issued = signer.token(&changed("sub", json!(USER)));
    let endless = || Ticket::new("SELECT range FROM range(100000000000)");
    // Each has a quota of their own.
    let mut of_local = server.stock().await.do_get(asking(&local, endless())).await.unwrap().into_inner();
    let mut of_issued = server.stock().await.do_get(asking(&issued, endless())).await.unwrap().into_inner();
    assert!(of_local.message().await.unwrap().is_some() && of_issued.message().await.unwrap().is_some());
    // A reader sees their own, and ends nothing of the other one's.
    let own = act(&server, &issued, "queries", &Value::Null).await.unwrap();
    assert_eq!(own.len(), 1, "{own:?}");
    assert_eq!((&own[0]["user"], &own[0]["issuer"]), (&json!(USER), &json!(ISSUER)));
    let others = json!({"user": USER, "issuer": "users"});
    assert_eq!(act(&server, &issued, "kill", &others).await.unwrap(), [json!({"ended": 0})]);
    // An admin has to say whom they mean.
    let unclear = act(&server, &boss, "kill", &json!({"user": USER})).await.expect_err("there are two");
    assert_eq!(unclear.code(), tonic::Code::InvalidArgument, "{unclear:?}");
    assert!(unclear.message().contains(ISSUER), "{unclear:?}");
    let meant = json!({"user": USER, "issuer": ISSUER});
    assert_eq!(act(&server, &boss, "kill", &meant).await.unwrap(), [json!({"ended": 1})]);
    let ended = loop {
        match of_issued.message().await {
            Ok(Some(_)) => {}
            ended => break ended.expect_err("it was ended"),
        }
    };
    assert_eq!(ended.code(), tonic::Code::Cancelled, "{ended:?}");
    assert!(of_local.message().await.unwrap().is_some(), "the other one's goes on");
    drop(of_local);
    // What one was handed out, the other cannot use.
    let descriptor = FlightDescriptor::new_cmd("SELECT 42");
    let info = server.stock().await.get_flight_info(asking(&local, descriptor)).await.unwrap().into_inner();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let refused = server.stock().await.do_get(asking(&issued, ticket.clone())).await.expect_err("not theirs");
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused:?}");
    server.stock().await.do_get(asking(&local, ticket)).await.expect("their own");
    // Both are listed.
    let listed = act(&server, &signer.token(&admin), "sessions", &Value::Null).await.unwrap();
    let issuers: Vec<&Value> = listed.iter().filter(|one| one["user"] == USER).map(|one| &one["issuer"]).collect();
    assert!(issuers.contains(&&json!("users")) && issuers.contains(&&json!(ISSUER)), "{listed:?}");
}
