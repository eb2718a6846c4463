//! Nothing but health answers without identity, and every form of login works.

use arrow_flight::{Action, BasicAuth, Criteria, Empty, FlightData, FlightDescriptor, HandshakeRequest, Ticket};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use futures::{StreamExt, stream};
use mallard::{
    client::Client,
    config::{Credential, Secret, User},
};
use prost::Message;
use tonic::{Code, Request, Status, metadata::MetadataMap};

use crate::support::{PASSWORD, TestServer, USER, login, row, run, test_config, with_login};

async fn guarded() -> TestServer {
    TestServer::with(with_login(test_config())).await
}

fn with<T>(message: T, authorization: &str) -> Request<T> {
    let mut request = Request::new(message);
    if !authorization.is_empty() {
        request.metadata_mut().insert("authorization", authorization.parse().unwrap());
    }
    request
}

fn ticket(sql: &str) -> Ticket {
    Ticket::new(sql.to_string())
}

fn token(metadata: &MetadataMap) -> String {
    metadata.get("authorization").expect("a bearer token in the response's headers").to_str().unwrap().to_string()
}

/// Every RPC of the service, called with this header: its outcome's code. A new RPC belongs here.
async fn every_rpc(server: &TestServer, header: &str) -> Vec<(&'static str, Code)> {
    async fn drain<T>(outcome: Result<tonic::Response<tonic::Streaming<T>>, Status>) -> Code {
        match outcome {
            Err(status) => status.code(),
            Ok(response) => match response.into_inner().next().await {
                Some(Err(status)) => status.code(),
                _ => Code::Ok,
            },
        }
    }
    fn code<T>(outcome: Result<T, Status>) -> Code {
        outcome.err().map_or(Code::Ok, |status| status.code())
    }
    let mut client = server.stock().await;
    let sql = || FlightDescriptor::new_cmd("SELECT 1");
    let data = || stream::iter([FlightData { flight_descriptor: Some(sql()), ..FlightData::default() }]);
    vec![
        ("Handshake", drain(client.handshake(with(stream::empty::<HandshakeRequest>(), header)).await).await),
        ("ListFlights", drain(client.list_flights(with(Criteria::default(), header)).await).await),
        ("GetFlightInfo", code(client.get_flight_info(with(sql(), header)).await)),
        ("PollFlightInfo", code(client.poll_flight_info(with(sql(), header)).await)),
        ("GetSchema", code(client.get_schema(with(sql(), header)).await)),
        ("DoGet", drain(client.do_get(with(ticket("SELECT 1"), header)).await).await),
        ("DoPut", drain(client.do_put(with(data(), header)).await).await),
        ("DoExchange", drain(client.do_exchange(with(data(), header)).await).await),
        ("DoAction", drain(client.do_action(with(Action::new("list_exchanges", ""), header)).await).await),
        ("ListActions", drain(client.list_actions(with(Empty {}, header)).await).await),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rpc_is_closed_without_identity() {
    let server = guarded().await;
    for header in ["", "Bearer nonsense", "Basic bm9ib2R5", "Digest x", "Bearer "] {
        for (rpc, code) in every_rpc(&server, header).await {
            assert_eq!(code, Code::Unauthenticated, "{rpc} with {header:?}");
        }
    }
    let health = Client::connect(server.server.location(), None).await.unwrap();
    assert!(health.healthy().await.unwrap(), "health answers without identity");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rpc_is_open_with_identity() {
    let server = guarded().await;
    let answer = server.stock().await.handshake(with(stream::empty(), &basic(true, USER, PASSWORD))).await.unwrap();
    let bearer = token(answer.metadata());
    for (rpc, code) in every_rpc(&server, &bearer).await {
        // DoPut's stream has no schema, which it says.
        let expected = if rpc == "DoPut" { Code::InvalidArgument } else { Code::Ok };
        assert_eq!(code, expected, "{rpc}");
    }
}

fn basic(padded: bool, user: &str, password: &str) -> String {
    let engine = if padded { &STANDARD } else { &STANDARD_NO_PAD };
    format!("Basic {}", engine.encode(format!("{user}:{password}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_on_any_call_answers_a_token_that_opens_the_next() {
    let server = guarded().await;
    for padded in [true, false] {
        let answer = server.stock().await.do_get(with(ticket("SELECT 1"), &basic(padded, USER, PASSWORD))).await;
        let bearer = token(answer.unwrap().metadata());
        assert!(bearer.starts_with("Bearer "));
        server.stock().await.do_get(with(ticket("SELECT 1"), &bearer)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn payload_form_of_handshake_answers_a_token() {
    let server = guarded().await;
    let mut client = server.stock().await;
    let payload = |password: &str| {
        let payload = BasicAuth { username: USER.into(), password: password.into() }.encode_to_vec();
        stream::iter([HandshakeRequest { protocol_version: 0, payload: payload.into() }])
    };
    let answer = client.handshake(payload(PASSWORD)).await.unwrap();
    let in_header = token(answer.metadata());
    let in_payload = answer.into_inner().next().await.unwrap().unwrap().payload;
    assert_eq!(in_header.as_bytes(), [b"Bearer ", &in_payload[..]].concat());
    // Clients of this form send the token as a binary header of its own.
    let mut request = Request::new(ticket("SELECT 1"));
    request.metadata_mut().insert_bin("auth-token-bin", tonic::metadata::MetadataValue::from_bytes(&in_payload));
    client.do_get(request).await.unwrap();
    assert_eq!(client.handshake(payload("wrong")).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_password_and_unknown_user_get_the_same_answer() {
    let server = guarded().await;
    let mut answers = Vec::new();
    for (user, password) in [(USER, "wrong"), ("nobody", PASSWORD), (USER, ""), ("", "")] {
        let refused =
            server.stock().await.do_get(with(ticket("SELECT 1"), &basic(true, user, password))).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        answers.push(refused.message().to_string());
    }
    answers.dedup();
    assert_eq!(answers, ["wrong user or password"]);
    assert_eq!(server.metric("mallard_logins_total{method=\"basic\",outcome=\"refused\"}").await, 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_survives_a_restart_only_with_a_signing_key() {
    let answer = async |key: Option<&str>| {
        let mut config = with_login(test_config());
        config.auth.signing_key = key.map(Secret::new);
        let (first, second) = (TestServer::with(config.clone()).await, TestServer::with(config).await);
        let answer = first.stock().await.handshake(with(stream::empty(), &basic(true, USER, PASSWORD))).await.unwrap();
        let bearer = token(answer.metadata());
        second.stock().await.do_get(with(ticket("SELECT 1"), &bearer)).await.is_ok()
    };
    assert!(answer(Some("a key that is long enough")).await);
    assert!(!answer(None).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn ticket_is_bound_to_its_user_and_cannot_be_changed() {
    let mut config = with_login(test_config());
    config.auth.users.insert("bob".into(), User::new(Credential::Password(Secret::new("hunter2")), "writer"));
    let server = TestServer::with(config).await;
    let alice = Client::connect(server.server.location(), Some(&login())).await.unwrap();
    let bob = mallard::client::Login { user: "bob".into(), password: Secret::new("hunter2") };
    let bob = Client::connect(server.server.location(), Some(&bob)).await.unwrap();
    run(&alice, "CREATE TABLE t AS SELECT 1 AS i").await;
    let info = alice.info(FlightDescriptor::new_path(vec!["t".into()])).await.unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    assert!(alice.get(ticket.clone()).await.is_ok());
    assert_eq!(bob.get(ticket.clone()).await.err().expect("not bob's").code(), Code::PermissionDenied);
    let mut changed = ticket.ticket.to_vec();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    assert_eq!(alice.get(Ticket::new(changed)).await.err().expect("changed").code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_come_from_a_file_of_hashes_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("users.toml");
    let hash = mallard::auth::hash_password("s3cret").unwrap();
    assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
    std::fs::write(&path, format!("carol = \"{hash}\"\n")).unwrap();
    let mut config = test_config();
    config.auth.enabled = true;
    config.auth.users_file = Some(path);
    let server = TestServer::with(config).await;
    let carol = mallard::client::Login { user: "carol".into(), password: Secret::new("s3cret") };
    let client = Client::connect(server.server.location(), Some(&carol)).await.unwrap();
    assert_eq!(row(&client, "SELECT 1").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_with_a_password_may_use_a_server_without_login() {
    let server = TestServer::start().await;
    let client = Client::connect(server.server.location(), Some(&login())).await.unwrap();
    assert_eq!(row(&client, "SELECT 1").await, ["1"]);
}
