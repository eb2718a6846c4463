//! Who may be connected, how many, and for how long without doing anything.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures::StreamExt;
use mallard::{
    client::Client,
    config::{Config, Span},
    location::Location,
    stream::RecordBatchStream,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    process::{Process, mallard},
    support::{TestServer, collect, login, people, row, rows, run, test_config, until, until_within, with_login},
};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn socket(server: &TestServer) -> TcpStream {
    let Location::Tcp { host, port } = server.server.location().clone() else { panic!("it listens on TCP") };
    TcpStream::connect((host, port)).await.unwrap()
}

/// Whether the server ends the connection, with a FIN or a reset.
async fn ends(mut socket: TcpStream) -> bool {
    let mut discarded = [0; 1024];
    let ended = async { while socket.read(&mut discarded).await.is_ok_and(|count| count > 0) {} };
    tokio::time::timeout(Duration::from_secs(30), ended).await.is_ok()
}

fn short(millis: u64) -> Span {
    Span(Duration::from_millis(millis))
}

async fn closed(server: &TestServer, reason: &str) -> f64 {
    server.metric(&format!("mallard_connections_closed_total{{reason=\"{reason}\"}}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_never_begins_is_closed() {
    let mut config = test_config();
    config.limits.handshake_timeout = short(200);
    let server = TestServer::with(config).await;
    let silent = socket(&server).await;
    let mut half = socket(&server).await;
    half.write_all(&PREFACE[..12]).await.unwrap();
    let mut without_settings = socket(&server).await;
    without_settings.write_all(PREFACE).await.unwrap();
    for socket in [silent, half, without_settings] {
        assert!(ends(socket).await);
    }
    assert_eq!(closed(&server, "handshake").await, 3.0);
    // Something else than HTTP/2 does not even get so much time.
    let mut other = socket(&server).await;
    other.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert!(ends(other).await);
    assert_eq!(row(&server.client().await, "SELECT 1").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_without_a_login_does_not_stay() {
    let mut config = with_login(test_config());
    config.limits.unauthenticated_lifetime = short(300);
    config.limits.handshake_timeout = short(100);
    let server = TestServer::with(config).await;
    let known = Client::connect(server.server.location(), Some(&login())).await.unwrap();
    assert_eq!(row(&known, "SELECT 1").await, ["1"]);
    // Health checks need no login, and are none. Nor is one that was refused.
    let mut health = HealthClient::new(server.channel().await);
    health.check(HealthCheckRequest::default()).await.unwrap();
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let mut stranger = server.stock().await;
    let refused = stranger.do_get(arrow_flight::Ticket::new("SELECT 1")).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    until("both have to go", || async { closed(&server, "unauthenticated").await == 2.0 }).await;
    until("they are gone", || async { server.metric("mallard_connections").await == 1.0 }).await;
    assert!(watch.message().await.is_err() || watch.message().await.unwrap().is_none());
    let total = server.metric("mallard_connections_total").await;
    assert_eq!(row(&known, "SELECT 2").await, ["2"]);
    assert_eq!(server.metric("mallard_connections_total").await, total, "the known one is the same connection");
    assert_eq!(server.metric("mallard_connections_unauthenticated").await, 0.0);
    // A gRPC client connects again by itself.
    health.check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connection_is_asked_to_go_and_a_busy_one_is_not() {
    let mut config = test_config();
    config.limits.handshake_timeout = short(50);
    config.limits.idle_timeout = short(400);
    let server = TestServer::with(config).await;
    let busy = server.client().await;
    let mut stream = busy.query("FROM range(100000000)").await.unwrap();
    stream.next().await.unwrap().unwrap();
    let idle = server.client().await;
    assert_eq!(row(&idle, "SELECT 1").await, ["1"]);
    until("it has to go", || async { closed(&server, "idle").await == 1.0 }).await;
    until("it is gone", || async { server.metric("mallard_connections").await == 1.0 }).await;
    assert_eq!(row(&idle, "SELECT 2").await, ["2"], "it connects again");
    assert!(stream.next().await.unwrap().is_ok(), "nobody asked the busy one to go");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_limited_in_all_and_for_an_address() {
    let cases: [(&str, fn(&mut Config)); 2] = [
        ("connections", |config| config.limits.connections = 2),
        ("address", |config| config.limits.connections_per_address = 2),
    ];
    for (reason, limit) in cases {
        let mut config = test_config();
        limit(&mut config);
        let server = TestServer::with(config).await;
        let [one, two] = [server.client().await, server.client().await];
        for client in [&one, &two] {
            assert_eq!(row(client, "SELECT 1").await, ["1"]);
        }
        assert!(ends(socket(&server).await).await, "there is no room");
        let refused = format!("mallard_connections_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(server.metric(&refused).await, 1.0);
        drop(one);
        until("it has left", || async { server.metric("mallard_connections").await == 1.0 }).await;
        // One that says nothing makes room for one that does.
        let silent = socket(&server).await;
        until("it is inside", || async { server.metric("mallard_connections_unauthenticated").await == 1.0 }).await;
        assert_eq!(row(&server.client().await, "SELECT 1").await, ["1"]);
        assert!(ends(silent).await);
        assert_eq!(closed(&server, "evicted").await, 1.0);
        assert_eq!(row(&two, "SELECT 2").await, ["2"]);
    }
}

/// As many descriptors as this process may have at all.
pub(crate) fn many_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_sockets_that_say_nothing_keep_no_client_out() {
    many_descriptors();
    let server = Process::serve(&[("MALLARD__LIMITS__HANDSHAKE_TIMEOUT", "3s"), ("MALLARD__LOG__LEVEL", "info")]);
    let before = server.client(None).await;
    assert_eq!(row(&before, "SELECT 1").await, ["1"]);
    let (descriptors, memory) = (server.descriptors(), server.memory());
    let mut sockets = Vec::new();
    for at in 0..2_500 {
        let mut socket = TcpStream::connect(server.address()).await.unwrap();
        if at % 5 == 4 {
            // It may have been sent away already.
            let _ = socket.write_all(&PREFACE[..12]).await;
        }
        sockets.push(socket);
    }
    let start = Instant::now();
    let newcomer = server.client(None).await;
    assert_eq!(row(&newcomer, "SELECT 1").await, ["1"]);
    println!("measured: among 2,500 sockets a client connected and was answered in {:?}", start.elapsed());
    assert_eq!(row(&before, "SELECT 1").await, ["1"]);
    let grown = server.memory().saturating_sub(memory);
    assert!(grown < 50 << 20, "{grown} bytes more");
    for socket in sockets {
        assert!(ends(socket).await);
    }
    drop(newcomer);
    until("descriptors are back", || async { server.descriptors() <= descriptors }).await;
    let of =
        async |reason: &str| server.metric(&format!("mallard_connections_closed_total{{reason=\"{reason}\"}}")).await;
    let (evicted, silent) = (of("evicted").await, of("handshake").await);
    assert!(evicted + silent >= 2_500.0, "{evicted} evicted, {silent} timed out");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_client_frees_what_it_holds() {
    // `just soak` has the time for the defaults.
    let keepalive = if crate::soak::seconds().is_some() { "20s" } else { "1s" };
    let server = Process::serve(&[
        ("MALLARD__WIRE__KEEPALIVE_INTERVAL", keepalive),
        ("MALLARD__WIRE__KEEPALIVE_TIMEOUT", keepalive),
    ]);
    let observer = server.client(None).await;
    run(&observer, "CREATE TABLE t (i BIGINT)").await;
    let descriptors = server.descriptors();
    let uri = server.location.to_string();
    let reading = ["query", uri.as_str(), "SELECT range, repeat('x', 200) FROM range(1000000000)", "--format", "csv"];
    let mut stopped = mallard().args(reading).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let sent = "mallard_rows_total{direction=\"sent\"}";
    until("rows flow", || async { server.metric(sent).await > 1_000_000.0 }).await;
    let stopping = Command::new("kill").args(["-STOP", &stopped.id().to_string()]).status();
    assert!(stopping.unwrap().success());
    let start = Instant::now();
    let freed =
        || async { server.metric("mallard_queries_running").await == 0.0 && server.descriptors() <= descriptors };
    until_within(Duration::from_secs(45), "its statement has ended and its connection is closed", freed).await;
    println!("measured: a stopped client freed all after {:?} (keepalive {keepalive} + {keepalive})", start.elapsed());
    stopped.kill().unwrap();
    stopped.wait().unwrap();
    assert_eq!(row(&observer, "SELECT 1").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_has_so_many_streams_and_the_rest_waits() {
    let mut config = test_config();
    config.limits.streams_per_connection = 10;
    config.limits.queries = 32;
    config.limits.queue = 2_000;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    // Exchanges whose sender is silent.
    let silent = || RecordBatchStream::new(people(0, 0).schema(), futures::stream::pending());
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(client.exchange("echo", silent()).await.unwrap());
    }
    // The eleventh waits in the client until one of the ten has ended.
    let waiting = client.query("SELECT 42");
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_millis(300), waiting.as_mut()).await;
    assert!(early.is_err(), "only ten streams are open");
    assert_eq!(server.metric("mallard_streams_open").await, 10.0);
    drop(held);
    assert_eq!(rows(&collect(waiting.await.unwrap()).await.unwrap()), 1);
    let many = futures::stream::iter(0..1_000).map(async |at| row(&client, &format!("SELECT {at}")).await);
    let answers: Vec<_> = many.buffer_unordered(1_000).collect().await;
    assert_eq!(answers.len(), 1_000);
}
