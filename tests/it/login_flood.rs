//! Guessing passwords gives nothing away, and keeps nobody else out.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arrow_flight::{HandshakeRequest, flight_service_client::FlightServiceClient};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::stream;
use hyper_util::rt::TokioIo;
use mallard::{config::Config, location::Location};
use tokio::{net::TcpSocket, task::JoinSet};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use crate::support::{PASSWORD, TestServer, USER, test_config, until, with_login};

/// One address of this machine each, 127.0.0.N.
async fn from(server: &TestServer, last: u8) -> FlightServiceClient<Channel> {
    let Location::Tcp { port, .. } = server.server.location() else { panic!("not over TCP") };
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
    let connector = service_fn(move |_: Uri| async move {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)))?;
        socket.connect(peer).await.map(TokioIo::new)
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap();
    FlightServiceClient::new(channel)
}

async fn login(client: &FlightServiceClient<Channel>, user: &str, password: &str) -> Result<(), Status> {
    let mut request = Request::new(stream::empty::<HandshakeRequest>());
    let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    request.metadata_mut().insert("authorization", basic.parse().unwrap());
    client.clone().handshake(request).await.map(drop)
}

fn config(failures: usize, per_address: usize) -> Config {
    let mut config = with_login(test_config());
    config.auth.login_failures = failures;
    config.auth.login_failures_per_address = per_address;
    config
}

async fn limited(client: &FlightServiceClient<Channel>, user: &str, password: &str, key: &str) {
    let refused = login(client, user, password).await.expect_err("over the limit");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains(key), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_close_the_way_in_for_the_user_at_that_address_only() {
    let server = TestServer::with(config(3, 0)).await;
    let (guesser, elsewhere) = (from(&server, 2).await, from(&server, 3).await);
    for user in [USER, "nobody"] {
        for _ in 0..3 {
            assert_eq!(login(&guesser, user, "wrong").await.unwrap_err().code(), Code::Unauthenticated);
        }
        limited(&guesser, user, "wrong", "auth.login_failures ").await;
    }
    // Not even with the right one: an answer would tell that it was.
    limited(&guesser, USER, PASSWORD, "auth.login_failures ").await;
    login(&elsewhere, USER, PASSWORD).await.unwrap();
    let counted = "mallard_logins_total{method=\"basic\",outcome=\"limited\"}";
    assert_eq!(server.metric(counted).await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_names_from_one_address_are_one_guesser() {
    let server = TestServer::with(config(3, 5)).await;
    let guesser = from(&server, 2).await;
    login(&guesser, USER, PASSWORD).await.unwrap();
    for name in 0..5 {
        let refused = login(&guesser, &format!("user{name}"), "wrong").await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    limited(&guesser, "user5", "wrong", "auth.login_failures_per_address ").await;
    login(&guesser, USER, PASSWORD).await.expect("who has logged in from there before still may");
    login(&from(&server, 3).await, USER, PASSWORD).await.expect("others still may");
}

/// A thousand wrong passwords a second, from some addresses and for as many names, while a right user logs in.
async fn flood(server: &TestServer, addresses: std::ops::Range<u8>) -> Vec<Duration> {
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut guessers = JoinSet::new();
    for address in addresses.clone().cycle().take(8) {
        let client = from(server, address).await;
        let (stop, sent) = (stop.clone(), sent.clone());
        guessers.spawn(async move {
            let mut asked = JoinSet::new();
            let mut pace = tokio::time::interval(Duration::from_millis(8));
            while !stop.load(Ordering::Relaxed) {
                pace.tick().await;
                let client = client.clone();
                let number = sent.fetch_add(1, Ordering::Relaxed);
                let user = if number % 2 == 0 { USER.to_string() } else { format!("user{number}") };
                asked.spawn(async move {
                    let refused = login(&client, &user, "wrong").await.expect_err("it is wrong");
                    assert!(matches!(refused.code(), Code::Unauthenticated | Code::ResourceExhausted), "{refused:?}");
                });
                while let Some(done) = asked.try_join_next() {
                    done.unwrap();
                }
            }
            asked.join_all().await;
        });
    }
    until("the flood is there", async || sent.load(Ordering::Relaxed) > 500).await;
    let mut took = Vec::new();
    for _ in 0..10 {
        let right = from(server, 100).await;
        let start = Instant::now();
        tokio::time::timeout(Duration::from_secs(10), login(&right, USER, PASSWORD))
            .await
            .expect("in time")
            .expect("a right login");
        took.push(start.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(done) = guessers.join_next().await {
        done.unwrap();
    }
    took.sort();
    println!("measured: {} wrong passwords; right logins took {took:?}", sent.load(Ordering::Relaxed));
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn right_user_logs_in_while_others_guess() {
    // With the limits, and where the line alone has to be fair.
    for (failures, per_address) in [(10, 60), (0, 0)] {
        let server = TestServer::with(config(failures, per_address)).await;
        let took = flood(&server, 2..5).await;
        // What one login waits for at most: a turn of each address that waits, not of each guess.
        assert!(took[took.len() / 2] < Duration::from_secs(5), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_user_takes_as_long_as_a_wrong_password() {
    let server = TestServer::with(config(0, 0)).await;
    let client = from(&server, 2).await;
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    // Other work on the machine disturbs a round; what takes another time each time is never in the range.
    for round in 1.. {
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for pair in 0..14 {
            let mut both = [(USER, &mut known), ("nobody", &mut unknown)];
            if pair % 2 == 0 {
                both.reverse();
            }
            for (user, took) in both {
                let start = Instant::now();
                assert_eq!(login(&client, user, "wrong").await.unwrap_err().code(), Code::Unauthenticated);
                took.push(start.elapsed());
            }
        }
        let (known, unknown) = (median(&mut known), median(&mut unknown));
        let ratio = unknown / known;
        println!(
            "measured: median of a wrong password {known:.4} s, of an unknown user {unknown:.4} s, ratio {ratio:.3}"
        );
        if (0.8..1.25).contains(&ratio) {
            break;
        }
        assert!(round < 10, "{known} s and {unknown} s");
    }
}
