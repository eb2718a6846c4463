//! A bearer token is good for its user, for its time and for its session, and nothing else is.

use std::{path::Path, time::Duration};

use arrow_flight::{Action, Empty, FlightDescriptor, HandshakeRequest, Ticket};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use futures::{StreamExt, stream};
use mallard::{
    client::Client,
    clock::Clock,
    config::{Config, Secret, Span},
};
use ring::hmac;
use serde_json::{Value, json};
use tonic::{Code, Request, Status, metadata::MetadataMap};

use crate::support::{PASSWORD, TestServer, USER, login, row, test_config, until, with_login};

const KEY: &str = "a key that is long enough";
const HOUR: Duration = Duration::from_secs(3600);

fn config() -> (Config, Clock) {
    let mut config = with_login(test_config());
    config.auth.signing_key = Some(Secret::new(KEY));
    let clock = config.auth.clock.clone();
    (config, clock)
}

/// One call with this `authorization` header: the headers of its answer.
pub(crate) async fn call(server: &TestServer, authorization: &str) -> Result<MetadataMap, Status> {
    let mut request = Request::new(Empty {});
    request.metadata_mut().insert("authorization", authorization.parse().unwrap());
    Ok(server.stock().await.list_actions(request).await?.metadata().clone())
}

pub(crate) async fn refused(server: &TestServer, authorization: &str, why: &str) {
    let refused = call(server, authorization).await.expect_err(why);
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    assert!(refused.message().contains(why), "{refused:?}, not {why}");
}

fn fresh(answered: &MetadataMap) -> Option<String> {
    answered.get("authorization").map(|header| header.to_str().unwrap().to_string())
}

async fn log_in(server: &TestServer, user: &str, password: &str) -> Result<String, Status> {
    let mut request = Request::new(stream::empty::<HandshakeRequest>());
    let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    request.metadata_mut().insert("authorization", basic.parse().unwrap());
    Ok(fresh(server.stock().await.handshake(request).await?.metadata()).expect("a bearer token"))
}

/// What CloseSession answers: Flight's CloseSessionResult.Status.
async fn close(server: &TestServer, bearer: &str) -> u8 {
    let mut request = Request::new(Action::new("CloseSession", ""));
    request.metadata_mut().insert("authorization", bearer.parse().unwrap());
    let answer = server.stock().await.do_action(request).await.unwrap().into_inner().next().await.unwrap().unwrap();
    // One field, the enumeration of tag 1.
    assert_eq!((answer.body.len(), answer.body[0]), (2, 8));
    answer.body[1]
}

fn claims(bearer: &str) -> Value {
    let part = bearer.trim_start_matches("Bearer ").split('.').nth(1).unwrap().to_string();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn forged(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
    format!("Bearer {signed}.{signature}")
}

fn mac(algorithm: hmac::Algorithm, key: &str) -> impl Fn(&[u8]) -> Vec<u8> {
    let key = hmac::Key::new(algorithm, key.as_bytes());
    move |text| hmac::sign(&key, text).as_ref().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn token_expires_when_it_is_not_used() {
    let (config, clock) = config();
    let server = TestServer::with(config).await;
    let bearer = log_in(&server, USER, PASSWORD).await.unwrap();
    clock.go_ahead(HOUR - Duration::from_secs(5));
    call(&server, &bearer).await.unwrap();
    clock.go_ahead(Duration::from_secs(10));
    refused(&server, &bearer, "expired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn used_token_is_replaced_until_the_session_is_as_old_as_it_may_become() {
    let (config, clock) = config();
    let server = TestServer::with(config).await;
    let first = log_in(&server, USER, PASSWORD).await.unwrap();
    assert_eq!(fresh(&call(&server, &first).await.unwrap()), None, "most of its life is left");
    let (mut bearer, mut passed) = (first.clone(), Duration::ZERO);
    while passed < 23 * HOUR {
        clock.go_ahead(HOUR / 2 + HOUR / 4);
        passed += HOUR / 2 + HOUR / 4;
        let next = fresh(&call(&server, &bearer).await.unwrap()).expect("a fresh one");
        assert_eq!(claims(&next)["sid"], claims(&first)["sid"]);
        bearer = next;
    }
    assert_eq!(
        claims(&bearer)["exp"].as_u64().unwrap(),
        claims(&first)["since"].as_u64().unwrap().div_ceil(1000) + 24 * 3600
    );
    clock.go_ahead(HOUR / 2);
    passed += HOUR / 2;
    assert_eq!(fresh(&call(&server, &bearer).await.unwrap()), None, "its end is the session's");
    clock.go_ahead(24 * HOUR - passed + Duration::from_secs(2));
    refused(&server, &bearer, "expired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_follows_fresh_tokens() {
    let (config, clock) = config();
    let server = TestServer::with(config).await;
    let client = Client::connect(server.server.location(), Some(&login())).await.unwrap();
    for _ in 0..4 {
        clock.go_ahead(HOUR / 2 + HOUR / 4);
        assert_eq!(row(&client, "SELECT 1").await, ["1"]);
        clock.go_ahead(HOUR / 2 + HOUR / 4);
        client.info(FlightDescriptor::new_cmd("SELECT 1")).await.unwrap();
        clock.go_ahead(HOUR / 2 + HOUR / 4);
        client.list_actions().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shorter_session_max_holds_for_tokens_that_are_out_already() {
    let (mut config, clock) = config();
    let first = TestServer::with(config.clone()).await;
    config.auth.session_max = Span(HOUR);
    let second = TestServer::with(config).await;
    clock.go_ahead(HOUR / 2);
    let mut bearer = log_in(&first, USER, PASSWORD).await.unwrap();
    clock.go_ahead(HOUR / 2 + HOUR / 4);
    bearer = fresh(&call(&first, &bearer).await.unwrap()).unwrap();
    call(&second, &bearer).await.unwrap();
    clock.go_ahead(HOUR / 2);
    call(&first, &bearer).await.unwrap();
    refused(&second, &bearer, "auth.session_max").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_session_has_no_valid_token() {
    let (config, clock) = config();
    let server = TestServer::with(config).await;
    let (first, other) =
        (log_in(&server, USER, PASSWORD).await.unwrap(), log_in(&server, USER, PASSWORD).await.unwrap());
    clock.go_ahead(HOUR / 2 + HOUR / 4);
    let second = fresh(&call(&server, &first).await.unwrap()).unwrap();
    assert_eq!(close(&server, &first).await, 1, "CLOSED");
    for bearer in [&first, &second] {
        refused(&server, bearer, "closed").await;
    }
    call(&server, &other).await.expect("another session of the same user");
    assert_eq!(server.metric("mallard_sessions_closed").await, 1.0);
    let listed = Client::connect(server.server.location(), Some(&login())).await.unwrap().list_actions().await.unwrap();
    assert!(listed.iter().any(|action| action.r#type == "CloseSession"));
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_sessions_are_bounded_and_none_of_them_comes_back() {
    let (mut config, _) = config();
    config.auth.closed_sessions = 2;
    let server = TestServer::with(config).await;
    let mut bearers = Vec::new();
    for _ in 0..5 {
        bearers.push(log_in(&server, USER, PASSWORD).await.unwrap());
    }
    for bearer in &bearers[..3] {
        assert_eq!(close(&server, bearer).await, 1);
    }
    for bearer in &bearers {
        refused(&server, bearer, "closed").await;
    }
    let after = log_in(&server, USER, PASSWORD).await.unwrap();
    call(&server, &after).await.expect("a new login is a new session");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_login_there_is_no_session_to_close() {
    let server = TestServer::start().await;
    assert_eq!(close(&server, "Bearer anything").await, 3, "NOT_CLOSEABLE");
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_tokens_are_refused() {
    let (config, _) = config();
    let server = TestServer::with(config).await;
    let good = log_in(&server, USER, PASSWORD).await.unwrap();
    let good_claims = claims(&good);
    let header = |algorithm: &str| json!({"typ": "JWT", "alg": algorithm});
    let again = forged(&header("HS256"), &good_claims, mac(hmac::HMAC_SHA256, KEY));
    call(&server, &again).await.expect("the test forges as the server signs");
    let with = |name: &str, value: Value| {
        let mut changed = good_claims.clone();
        changed[name] = value;
        forged(&header("HS256"), &changed, mac(hmac::HMAC_SHA256, KEY))
    };
    for (what, bearer) in [
        ("alg none", forged(&header("none"), &good_claims, |_| Vec::new())),
        ("alg None", forged(&header("None"), &good_claims, |_| Vec::new())),
        ("no alg", forged(&json!({}), &good_claims, mac(hmac::HMAC_SHA256, KEY))),
        ("another HMAC", forged(&header("HS512"), &good_claims, mac(hmac::HMAC_SHA512, KEY))),
        ("RS256 in name", forged(&header("RS256"), &good_claims, mac(hmac::HMAC_SHA256, KEY))),
        ("EdDSA in name", forged(&header("EdDSA"), &good_claims, mac(hmac::HMAC_SHA256, KEY))),
        ("another key", forged(&header("HS256"), &good_claims, mac(hmac::HMAC_SHA256, "another key"))),
        ("an empty key", forged(&header("HS256"), &good_claims, mac(hmac::HMAC_SHA256, ""))),
        ("no signature", good.rsplit_once('.').unwrap().0.to_string() + "."),
        ("a ticket's audience", with("aud", json!("ticket"))),
        ("another user", with("sub", json!("bob"))),
        ("another fingerprint", with("fingerprint", json!(""))),
        ("no expiry", with("exp", Value::Null)),
        ("an old expiry", with("exp", json!(1))),
        ("a session from long ago", with("since", json!(1))),
    ] {
        let refused = call(&server, &bearer).await.expect_err(what);
        assert_eq!(refused.code(), Code::Unauthenticated, "{what}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ticket_is_no_token_and_a_token_no_ticket() {
    let (config, _) = config();
    let server = TestServer::with(config).await;
    let client = Client::connect(server.server.location(), Some(&login())).await.unwrap();
    let info = client.info(FlightDescriptor::new_cmd("SELECT 1")).await.unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap().ticket;
    let token = String::from_utf8(ticket.to_vec()).unwrap().replace("mallard-ticket:", "");
    refused(&server, &format!("Bearer {token}"), "not valid").await;
    let bearer = log_in(&server, USER, PASSWORD).await.unwrap();
    let ticket = bearer.replace("Bearer ", "mallard-ticket:");
    let answer = client.get(Ticket::new(ticket)).await.err().expect("no ticket");
    assert_eq!(answer.code(), Code::InvalidArgument, "{answer}");
}

/// 10,000 changed tokens: flipped bits, cut, with parts of others.
#[tokio::test(flavor = "multi_thread")]
async fn mutated_tokens_are_refused_and_do_no_harm() {
    let (config, clock) = config();
    let server = TestServer::with(config).await;
    let mut tokens = Vec::new();
    for _ in 0..3 {
        tokens.push(log_in(&server, USER, PASSWORD).await.unwrap().replace("Bearer ", ""));
        clock.go_ahead(Duration::from_secs(1));
    }
    let seed: u64 = std::env::var("MALLARD_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(5);
    println!("seed {seed}");
    let mut state = seed;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mutated: Vec<String> = (0..10_000)
        .map(|_| {
            let token = &tokens[random(tokens.len())];
            let mut bytes = token.clone().into_bytes();
            match random(4) {
                0 => {
                    let at = random(bytes.len());
                    // The last character's low bits are none of the signature's.
                    let at = at.min(bytes.len() - 2);
                    bytes[at] ^= 1 << random(7);
                }
                1 => bytes.truncate(random(bytes.len())),
                2 => {
                    let mut parts: Vec<&str> = token.split('.').collect();
                    let other: Vec<&str> = tokens[random(tokens.len())].split('.').collect();
                    let (from, to) = (random(3), random(3));
                    parts[to] = other[from];
                    bytes = parts.join(".").into_bytes();
                }
                _ => {
                    let at = random(bytes.len());
                    let noise: Vec<u8> = (0..1 + random(64)).map(|_| 0x21 + random(0x5e) as u8).collect();
                    bytes.splice(at..at, noise);
                }
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
        .filter(|mutated| !tokens.contains(mutated))
        .collect();
    assert!(mutated.len() > 9_000, "{}", mutated.len());
    let mut client = server.stock().await;
    // A connection that never logs in may not say so much.
    let mut known = Request::new(Empty {});
    known.metadata_mut().insert("authorization", format!("Bearer {}", tokens[2]).parse().unwrap());
    client.list_actions(known).await.unwrap();
    let calls = mutated.iter().map(|token| {
        let mut client = client.clone();
        async move {
            let mut request = Request::new(Empty {});
            // Control characters cannot be in a header.
            let Ok(header) = format!("Bearer {token}").parse() else { return };
            request.metadata_mut().insert("authorization", header);
            let refused = client.list_actions(request).await.expect_err(token);
            assert_eq!(refused.code(), Code::Unauthenticated, "{token}: {refused:?}");
        }
    });
    stream::iter(calls).buffer_unordered(32).collect::<Vec<()>>().await;
    call(&server, &format!("Bearer {}", tokens[0])).await.expect("it still serves");
}

/// A server whose users and signing key are in files.
struct WithFiles {
    server: TestServer,
    clock: Clock,
    directory: tempfile::TempDir,
}

impl WithFiles {
    async fn start(users: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (mut config, clock) = config();
        config.auth.users.clear();
        config.auth.users_file = Some(directory.path().join("users.toml"));
        config.auth.signing_key_file = Some(directory.path().join("key"));
        std::fs::write(directory.path().join("users.toml"), users_file(users)).unwrap();
        std::fs::write(directory.path().join("key"), KEY).unwrap();
        Self { server: TestServer::with(config).await, clock, directory }
    }

    fn replace(&self, name: &str, text: &str) {
        replace(&self.directory.path().join(name), text);
    }

    async fn reloads(&self, what: &str, outcome: &str) -> f64 {
        self.server.metric(&format!("mallard_config_reloads_total{{outcome=\"{outcome}\",what=\"{what}\"}}")).await
    }
}

fn users_file(users: &[(&str, &str)]) -> String {
    let line =
        |(user, password): &(&str, &str)| format!("{user} = \"{}\"\n", mallard::auth::hash_password(password).unwrap());
    users.iter().map(line).collect()
}

fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_or_changed_user_has_no_valid_token() {
    let files = WithFiles::start(&[("ann", "one"), ("ben", "two"), ("cay", "three")]).await;
    let server = &files.server;
    let [ann, ben, cay] = [("ann", "one"), ("ben", "two"), ("cay", "three")];
    let [ann, ben, cay] =
        [log_in(server, ann.0, ann.1).await, log_in(server, ben.0, ben.1).await, log_in(server, cay.0, cay.1).await];
    let (ann, ben, cay) = (ann.unwrap(), ben.unwrap(), cay.unwrap());
    let text = std::fs::read_to_string(files.directory.path().join("users.toml")).unwrap();
    let kept = text.lines().find(|line| line.starts_with("ann")).unwrap();
    // Ben is gone, Cay has another password, and Dan is new.
    files.replace("users.toml", &format!("{kept}\n{}", users_file(&[("cay", "four"), ("dan", "five")])));
    until("the users are read again", async || call(server, &ben).await.is_err()).await;
    refused(server, &ben, "log in again").await;
    refused(server, &cay, "log in again").await;
    call(server, &ann).await.expect("nothing of Ann has changed");
    assert_eq!(log_in(server, "ben", "two").await.unwrap_err().code(), Code::Unauthenticated);
    log_in(server, "cay", "four").await.unwrap();
    log_in(server, "dan", "five").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_users_and_keys_are_refused_and_those_there_were_stay() {
    let files = WithFiles::start(&[("ann", "one")]).await;
    let ann = log_in(&files.server, "ann", "one").await.unwrap();
    for (number, broken) in ["ann = ", "ann = \"secret\"", "ann = 1", "[ann]\nrule = \"x\""].iter().enumerate() {
        files.replace("users.toml", broken);
        until("the users are refused", async || files.reloads("users", "refused").await == number as f64 + 1.0).await;
        call(&files.server, &ann).await.unwrap();
        log_in(&files.server, "ann", "one").await.unwrap();
    }
    files.replace("key", "short");
    until("the key is refused", async || files.reloads("keys", "refused").await == 1.0).await;
    call(&files.server, &ann).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn key_before_verifies_until_all_its_tokens_have_expired() {
    let files = WithFiles::start(&[("ann", "one")]).await;
    let (server, clock) = (&files.server, &files.clock);
    let old = log_in(server, "ann", "one").await.unwrap();
    files.replace("key", "another key that is long enough");
    until("the key is read again", async || files.reloads("keys", "ok").await == 1.0).await;
    call(server, &old).await.expect("the key before still verifies");
    let sign = |key: &str| forged(&json!({"typ": "JWT", "alg": "HS256"}), &claims(&old), mac(hmac::HMAC_SHA256, key));
    let new = log_in(server, "ann", "one").await.unwrap();
    let again = forged(
        &json!({"typ": "JWT", "alg": "HS256"}),
        &claims(&new),
        mac(hmac::HMAC_SHA256, "another key that is long enough"),
    );
    call(server, &again).await.expect("the new key signs");
    clock.go_ahead(HOUR / 2 + HOUR / 4);
    let fresh = fresh(&call(server, &old).await.unwrap()).expect("a fresh one, by the new key");
    clock.go_ahead(HOUR / 2);
    refused(server, &old, "").await;
    let mut later = claims(&old);
    later["exp"] = json!(later["exp"].as_u64().unwrap() + 3600);
    let stolen = forged(&json!({"typ": "JWT", "alg": "HS256"}), &later, mac(hmac::HMAC_SHA256, KEY));
    refused(server, &stolen, "not valid").await;
    assert_ne!(sign(KEY), stolen);
    call(server, &fresh).await.unwrap();
}

/// Users and key are replaced again and again, also by broken ones, while clients call: no call of theirs fails.
#[tokio::test(flavor = "multi_thread")]
async fn swapping_users_and_keys_under_load_fails_no_call() {
    let files = WithFiles::start(&[("ann", "one")]).await;
    let kept = std::fs::read_to_string(files.directory.path().join("users.toml")).unwrap();
    let login = mallard::client::Login { user: "ann".into(), password: Secret::new("one") };
    let stop = tokio_util::sync::CancellationToken::new();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let client = Client::connect(files.server.server.location(), Some(&login)).await.unwrap();
        let stop = stop.clone();
        callers.spawn(async move {
            let mut calls = 0;
            while !stop.is_cancelled() {
                assert_eq!(row(&client, "SELECT 42").await, ["42"]);
                calls += 1;
            }
            calls
        });
    }
    for number in 0..3 {
        let counts = [files.reloads("users", "ok").await, files.reloads("keys", "refused").await];
        files.replace("users.toml", &format!("{kept}{}", users_file(&[(&format!("user{number}"), "x")])));
        files.replace("key", "broken");
        until("one is taken and one refused", async || {
            files.reloads("users", "ok").await > counts[0] && files.reloads("keys", "refused").await > counts[1]
        })
        .await;
        let counts = [files.reloads("users", "refused").await, files.reloads("keys", "ok").await];
        files.replace("users.toml", "ann = broken");
        files.replace("key", &format!("{KEY}, number {number}"));
        until("the other way round", async || {
            files.reloads("users", "refused").await > counts[0] && files.reloads("keys", "ok").await > counts[1]
        })
        .await;
    }
    stop.cancel();
    let calls: usize = callers.join_all().await.into_iter().sum();
    println!("measured: {calls} calls while users and keys were swapped, none failed");
    assert!(calls > 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_calls_do_not_end_their_connection() {
    let (config, _) = config();
    let server = TestServer::with(config).await;
    let client = server.stock().await;
    for number in 0..1000 {
        let mut request = Request::new(Empty {});
        request.metadata_mut().insert("authorization", "Bearer x".parse().unwrap());
        let refused = client.clone().list_actions(request).await.expect_err("it is wrong");
        assert_eq!(refused.code(), Code::Unauthenticated, "call {number}: {refused:?}");
    }
}
