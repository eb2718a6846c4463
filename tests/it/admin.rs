//! The admin port: probes and metrics.

use std::{net::SocketAddr, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use mallard::config::Span;
use tokio::net::TcpStream;

use crate::support::{TestServer, people, row, table, test_config, until};

/// Status and body of a GET.
pub(crate) async fn fetch(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("the admin port answers");
    let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("an HTTP status");
    (code, answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_answer() {
    let server = TestServer::start().await;
    assert_eq!(server.admin("/livez").await, (200, "ok\n".to_string()));
    assert_eq!(server.admin("/readyz").await, (200, "ready\n".to_string()));
    let verbose = server.admin("/readyz?verbose").await;
    assert_eq!(verbose, (200, "[+]state ok\n[+]database ok\nready\n".to_string()));
    assert_eq!(server.admin("/nope").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_happened() {
    let server = TestServer::start().await;
    let client = server.client().await;
    client.put(&table("people"), people(3, 1000)).await.unwrap();
    row(&client, "SELECT count(*) FROM people").await;
    assert!(client.query("FROM nope").await.is_err());
    for (name, value) in [
        ("mallard_rows_total{direction=\"received\"}", 3000.0),
        ("mallard_rows_total{direction=\"sent\"}", 1.0),
        ("mallard_queries_total{outcome=\"error\",statement=\"select\"}", 1.0),
        (
            "grpc_server_started_total{grpc_method=\"DoPut\",grpc_service=\"arrow.flight.protocol.FlightService\",grpc_type=\"bidi_stream\"}",
            1.0,
        ),
        (
            "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"DoPut\",grpc_service=\"arrow.flight.protocol.FlightService\",grpc_type=\"bidi_stream\"}",
            1.0,
        ),
        (
            "grpc_server_handled_total{grpc_code=\"NotFound\",grpc_method=\"DoGet\",grpc_service=\"arrow.flight.protocol.FlightService\",grpc_type=\"server_stream\"}",
            1.0,
        ),
        ("mallard_streams_open", 0.0),
        ("mallard_queries_running", 0.0),
        ("mallard_ready", 1.0),
    ] {
        // A call's end is counted just after its client has seen it.
        until(&format!("{name} {value}"), || async { server.metric(name).await == value }).await;
    }
    let (_, text) = server.admin("/metrics").await;
    for name in [
        "mallard_build_info{",
        "process_resident_memory_bytes",
        "grpc_server_handling_seconds_bucket",
        "mallard_pool_size",
    ] {
        assert!(text.contains(name), "{name} in:\n{text}");
    }
}

/// Connections to the admin port that send this, and then nothing.
async fn standing(address: SocketAddr, count: usize, sent: &str) -> Vec<TcpStream> {
    let mut connections = Vec::new();
    for _ in 0..count {
        let mut connection = TcpStream::connect(address).await.unwrap();
        // Where there are too many, the server may have ended it already.
        let _ = connection.write_all(sent.as_bytes()).await;
        connections.push(connection);
    }
    connections
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_stand_still_are_bounded_and_end() {
    const SENT: [&str; 5] = [
        "",
        "GET /livez",
        "GET /livez HTTP/1.1\r\nhost: admin\r\nx-slow: ",
        // A body that does not come, and an answer after which nothing is asked.
        "GET /livez HTTP/1.1\r\nhost: admin\r\ncontent-length: 1000000000\r\n\r\n",
        "GET /livez HTTP/1.1\r\nhost: admin\r\n\r\n",
    ];
    let mut config = test_config();
    config.admin.connections = 8;
    config.admin.timeout = Span(Duration::from_secs(1));
    let server = TestServer::with(config).await;
    let address = server.server.admin_address().unwrap();
    for sent in SENT {
        let mut connections = standing(address, 50, sent).await;
        // Whoever comes then gets an answer, at once: the oldest make room.
        assert_eq!(server.admin("/readyz").await, (200, "ready\n".to_string()), "{sent:?}");
        // And each of them ends, without a word or with its one answer.
        for connection in &mut connections {
            let mut answer = Vec::new();
            let ended = tokio::time::timeout(Duration::from_secs(20), connection.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "{sent:?} keeps its connection");
        }
    }
    // One that is within the limits and in time is answered in full.
    let mut slow = standing(address, 1, "GET /livez HTTP/1.1\r\n").await.remove(0);
    slow.write_all(b"host: admin\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n"), "{answer}");
}
