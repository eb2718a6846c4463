//! Servers that answer what no server should: a client of them, and a server that pulls from them, keeps its memory and goes on.

use std::{convert::Infallible, process::Command};

use bytes::Bytes;
use futures::StreamExt;
use http::Response;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mallard::{client::Client, location::Location};
use serde_json::json;
use tokio::net::TcpListener;
use tonic::Code;

use crate::{
    process::Process,
    support::row,
    wire::limits::{announced_body, body_that_stays_open},
};

/// A server that answers every call with this, and nothing behind it.
async fn answering(front: Bytes) -> Location {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = Location::Tcp { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let front = front.clone();
            let answer = service_fn(move |_| {
                let body = body_that_stays_open(front.clone());
                let response = Response::builder().header("content-type", "application/grpc").body(body).unwrap();
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(connection.serve_connection(TokioIo::new(socket), answer));
        }
    });
    location
}

#[tokio::test(flavor = "multi_thread")]
async fn announced_gigabytes_do_not_end_a_server_that_pulls() {
    // What the process may have reserved in all is less than what is announced.
    let mut command = Command::new("sh");
    let limited = "ulimit -d 3000000 && exec \"$0\" serve --location grpc://127.0.0.1:0 --admin 127.0.0.1:0";
    command.args(["-c", limited, env!("CARGO_BIN_EXE_mallard")]);
    command.env("MALLARD__LOG__FORMAT", "json").env("MALLARD__LIMITS__STALL_TIMEOUT", "5s");
    let server = Process::spawn(command);
    let (client, other) = (server.client(None).await, server.client(None).await);
    for length in [u32::MAX as usize, (64 << 20) + 1] {
        let source = answering(announced_body(length)).await;
        let pull = json!({"from": source.to_string(), "query": "SELECT 1", "to": "t"});
        let mut steps = client.action("transfer", &pull).await.unwrap().boxed();
        let error = loop {
            match steps.next().await {
                Some(Ok(_progress)) => {}
                Some(Err(error)) => break error,
                None => panic!("it cannot succeed"),
            }
        };
        assert_eq!(error.code(), Code::ResourceExhausted, "{length}: {error}");
        assert!(error.to_string().contains("limits.max_message_size"), "{error}");
    }
    // As long as they are allowed, and more of them than there is memory: nothing of them has come.
    let source = answering(announced_body(64 << 20)).await;
    let mut pulls = Vec::new();
    for at in 0..12 {
        let pull = json!({"from": source.to_string(), "query": "SELECT 1", "to": format!("t{at}")});
        let mut steps = client.action("transfer", &pull).await.unwrap().boxed();
        steps.next().await.expect("it is on its way").unwrap();
        pulls.push(steps);
    }
    assert!(server.memory() < 512 << 20, "{} bytes are resident", server.memory());
    assert_eq!(row(&other, "SELECT 42").await, ["42"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_refuses_what_is_larger_than_it_takes() {
    let source = answering(announced_body((1 << 30) + 1)).await;
    let client = Client::connect(&source, None).await.unwrap();
    let Err(error) = client.query("SELECT 1").await else { panic!("it has no schema") };
    assert!(error.to_string().contains("the limit is 1073741824 bytes"), "{error}");
    // gRPC's own messages are not believed, either: a FlightInfo of a gigabyte.
    let info = arrow_flight::FlightDescriptor::new_cmd("SELECT 1");
    let error = client.info(info).await.expect_err("it is too large");
    assert!(error.to_string().contains("too large"), "{error}");
}
