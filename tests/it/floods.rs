//! HTTP/2 frames that no client sends, in numbers: the server keeps its memory, and goes on serving others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{connections::PREFACE, process::Process, support::row};

/// What an attack may cost.
const MEMORY: u64 = 50 << 20;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
    [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HPACK, a literal that is indexed: it stays in the table of those that may be named by a number.
fn indexed(name: &str, value: &str) -> Vec<u8> {
    [&[0x40][..], &text(name), &text(value)].concat()
}

fn text(text: &str) -> Vec<u8> {
    let (mut bytes, length) = (Vec::new(), text.len());
    match length {
        0..127 => bytes.push(length as u8),
        _ => {
            // An integer with a prefix of 7 bits (RFC 7541, 5.1).
            bytes.push(127);
            let mut rest = length - 127;
            while rest >= 128 {
                bytes.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            bytes.push(rest as u8);
        }
    }
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// The headers of a call: :method POST and :scheme http of the static table, then literals.
fn call(method: &str) -> Vec<u8> {
    let path = format!("/arrow.flight.protocol.FlightService/{method}");
    let literal = |name: &str, value: &str| [&[0][..], &text(name), &text(value)].concat();
    [
        vec![0x83, 0x86],
        literal(":path", &path),
        literal(":authority", "localhost"),
        literal("content-type", "application/grpc"),
        literal("te", "trailers"),
    ]
    .concat()
}

/// Sends the attack's pieces, again over a new connection where the server ends one, while a client asks and memory is
/// measured. `reads`: whether the attacker reads what comes back.
async fn flood(name: &str, reads: bool, pieces: impl Fn(u64) -> Vec<u8>, count: u64) {
    let server = Process::serve(&[("MALLARD__LOG__LEVEL", "info")]);
    let client = server.client(None).await;
    for _ in 0..20 {
        assert_eq!(row(&client, "SELECT 42").await, ["42"]);
    }
    let base = server.memory();
    let (sent, over) = (AtomicU64::new(0), Arc::new(AtomicBool::new(false)));
    let mut connections = 0_u64;
    let attack = async {
        while sent.load(Ordering::Relaxed) < count {
            connections += 1;
            let stream = TcpStream::connect(server.address()).await.unwrap();
            let (mut from, mut to) = stream.into_split();
            let reading = tokio::spawn(async move {
                let mut discarded = vec![0; 1 << 16];
                while reads && from.read(&mut discarded).await.is_ok_and(|count| count > 0) {}
                if !reads {
                    std::future::pending::<()>().await;
                }
            });
            let mut opening = PREFACE.to_vec();
            opening.extend(frame(SETTINGS, 0, 0, &[]));
            let mut at = 0;
            let mut alive = to.write_all(&opening).await.is_ok();
            while alive && sent.load(Ordering::Relaxed) < count {
                let mut batch = Vec::new();
                let mut made = 0;
                while batch.len() < 64 << 10 && made < 5_000 {
                    batch.extend(pieces(at));
                    at += 1;
                    made += 1;
                }
                // A server that takes nothing any more has defended itself, too.
                alive =
                    tokio::time::timeout(Duration::from_secs(2), to.write_all(&batch)).await.is_ok_and(|r| r.is_ok());
                sent.fetch_add(made, Ordering::Relaxed);
                if !alive && !reads {
                    sent.store(count, Ordering::Relaxed);
                }
            }
            reading.abort();
        }
        over.store(true, Ordering::Relaxed);
    };
    let (mut most, mut answered) = (0, 0_u64);
    let watching = async {
        while !over.load(Ordering::Relaxed) {
            assert_eq!(row(&client, "SELECT 42").await, ["42"], "{name}: others are served");
            answered += 1;
            most = most.max(server.memory().saturating_sub(base));
        }
    };
    tokio::time::timeout(Duration::from_secs(120), async { tokio::join!(attack, watching) }).await.expect("it ends");
    assert_eq!(row(&server.client(None).await, "SELECT 42").await, ["42"], "{name}: newcomers are served");
    most = most.max(server.memory().saturating_sub(base));
    println!("measured: {name}: {connections} connections, {answered} queries answered, {} KiB more", most >> 10);
    assert!(most < MEMORY, "{name}: {most} bytes more");
    let log = server.stop();
    let panics: Vec<_> = log.iter().filter(|line| line.contains("panicked")).collect();
    assert!(panics.is_empty(), "{name}: {panics:?}");
}

/// The identifier of a client's stream.
fn stream(at: u64) -> u32 {
    (2 * at + 1) as u32
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_reset() {
    let pieces = |at| {
        let begun = frame(HEADERS, END_HEADERS, stream(at), &call("DoGet"));
        [begun, frame(RST_STREAM, 0, stream(at), &8_u32.to_be_bytes())].concat()
    };
    flood("rapid reset", true, pieces, 50_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_that_the_server_is_made_to_send() {
    // A window that is enlarged by nothing is an error of the stream.
    let pieces = |at| {
        let begun = frame(HEADERS, END_HEADERS, stream(at), &call("DoGet"));
        [begun, frame(WINDOW_UPDATE, 0, stream(at), &0_u32.to_be_bytes())].concat()
    };
    flood("made-you-reset", true, pieces, 50_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_without_an_end() {
    let block = [&[0][..], &text("x-filler"), &text(&"a".repeat(8_000))].concat();
    let pieces = move |at| match at {
        0 => frame(HEADERS, 0, 1, &call("DoGet")),
        _ => frame(CONTINUATION, 0, 1, &block),
    };
    flood("CONTINUATION flood", true, pieces, 20_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_frames_of_nothing() {
    let pieces = |at| match at {
        0 => frame(HEADERS, END_HEADERS, 1, &call("DoPut")),
        _ => frame(DATA, 0, 1, &[]),
    };
    flood("empty DATA", true, pieces, 300_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pings() {
    flood("PING flood", true, |at| frame(PING, 0, 0, &at.to_be_bytes()), 300_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_whose_answers_nobody_reads() {
    flood("PING flood, unread", false, |at| frame(PING, 0, 0, &at.to_be_bytes()), 1_000_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings() {
    // SETTINGS_INITIAL_WINDOW_SIZE, again and again.
    let pieces = |at: u64| frame(SETTINGS, 0, 0, &[&[0, 4][..], &(65_535 + at as u32 % 1_000).to_be_bytes()].concat());
    flood("SETTINGS flood", true, pieces, 200_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_whose_answers_nobody_reads() {
    flood("SETTINGS flood, unread", false, |_| frame(SETTINGS, 0, 0, &[]), 1_000_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn priorities_and_windows_of_streams_that_are_not_there() {
    let pieces = |at| match at % 2 {
        0 => frame(PRIORITY, 0, stream(at), &[0, 0, 0, 0, 16]),
        _ => frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()),
    };
    flood("PRIORITY and WINDOW_UPDATE flood", true, pieces, 200_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_unfold() {
    // Each byte after the first header names it again: 4 KB a byte, 60 MB a frame.
    let pieces = |at| {
        let named = [call("DoGet"), indexed("x-bomb", &"a".repeat(4_000)), vec![0x80 | 62; 15_000 - 4_100]].concat();
        frame(HEADERS, END_HEADERS | END_STREAM, stream(at), &named)
    };
    flood("HPACK bomb", true, pieces, 2_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_limit() {
    // Uploads that begin and never go on.
    let pieces = |at| frame(HEADERS, END_HEADERS, stream(at), &call("DoPut"));
    flood("1,000 streams a connection", true, pieces, 20_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_before_a_login() {
    // Windows that are full, of clients that nobody knows: no more than a little of each is read.
    let server = Process::serve(&[
        ("MALLARD__AUTH__ENABLED", "true"),
        ("MALLARD__AUTH__USERS__ALICE__PASSWORD", crate::support::PASSWORD),
        ("MALLARD__AUTH__USERS__ALICE__ROLE", "admin"),
    ]);
    let client = server.client(Some(&crate::support::login())).await;
    assert_eq!(row(&client, "SELECT 42").await, ["42"]);
    let base = server.memory();
    let filled = frame(DATA, 0, 1, &vec![0; 16_000]);
    let mut sockets = Vec::new();
    for _ in 0..100 {
        let mut socket = TcpStream::connect(server.address()).await.unwrap();
        let opening =
            [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END_HEADERS, 1, &call("Handshake"))].concat();
        socket.write_all(&opening).await.unwrap();
        for _ in 0..600 {
            let sending = tokio::time::timeout(Duration::from_millis(50), socket.write_all(&filled)).await;
            if !matches!(sending, Ok(Ok(()))) {
                break;
            }
        }
        sockets.push(socket);
    }
    let grown = server.memory().saturating_sub(base);
    println!("measured: 100 connections that fill their windows before a login: {} KiB more", grown >> 10);
    assert!(grown < MEMORY, "{grown} bytes more");
    assert_eq!(row(&client, "SELECT 42").await, ["42"]);
    assert_eq!(row(&server.client(Some(&crate::support::login())).await, "SELECT 42").await, ["42"]);
}
