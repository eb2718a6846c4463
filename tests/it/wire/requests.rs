//! Thousands of small messages that are almost right: tickets, descriptors, handles, Any messages, actions. The server answers each,
//! or refuses it with a code of its own, keeps its memory and goes on.

use arrow_flight::{Action, CancelFlightInfoRequest, Criteria, FlightDescriptor, RenewFlightEndpointRequest, Ticket};
use futures::StreamExt;
use prost::Message;
use tonic::Code;

use super::{limits::call, mutated::spoil, *};
use crate::{process::Process, support::row};

/// What each RPC may be asked.
async fn originals(server: &Process) -> Vec<(&'static str, Vec<u8>)> {
    let client = server.client(None).await;
    let info = client.info(FlightDescriptor::new_cmd("SELECT 42")).await.unwrap();
    let handle = info.endpoint[0].ticket.clone().unwrap();
    // Flight SQL: an Any whose field 1 is a text or a handle.
    let commands = [
        ("CommandStatementQuery", &b"SELECT 1"[..]),
        ("TicketStatementQuery", &handle.ticket[..]),
        ("CommandGetTables", b"%"),
    ];
    let any = commands.map(|(name, first)| prost_types::Any {
        type_url: format!("type.googleapis.com/arrow.flight.protocol.sql.{name}"),
        value: [&[0x0a, first.len().min(127) as u8], first].concat(),
    });
    let cancel = CancelFlightInfoRequest { info: Some(info.clone()) }.encode_to_vec();
    let renew = RenewFlightEndpointRequest { endpoint: Some(info.endpoint[0].clone()) }.encode_to_vec();
    let mut texts = vec![b"SELECT 42".to_vec(), b"FROM t".to_vec(), b"echo".to_vec(), handle.ticket.to_vec()];
    texts.extend(any.iter().map(Message::encode_to_vec));
    let mut requests = Vec::new();
    for text in texts {
        requests.push(("DoGet", Ticket::new(text.clone()).encode_to_vec()));
        for rpc in ["GetFlightInfo", "GetSchema", "PollFlightInfo"] {
            requests.push((rpc, FlightDescriptor::new_cmd(text.clone()).encode_to_vec()));
        }
        requests.push(("ListFlights", Criteria { expression: text.into() }.encode_to_vec()));
    }
    let path = FlightDescriptor::new_path(vec!["main".into(), "t".into()]);
    requests.extend(["GetFlightInfo", "GetSchema", "PollFlightInfo"].map(|rpc| (rpc, path.encode_to_vec())));
    let added = r#"{"name": "mine", "sql": "SELECT * FROM input", "description": "a text"}"#;
    for (name, body) in [
        ("add_exchange", added.into()),
        ("drop_exchange", r#"{"name": "mine"}"#.into()),
        ("list_exchanges", vec![]),
        ("CancelFlightInfo", cancel),
        ("RenewFlightEndpoint", renew),
    ] {
        requests.push(("DoAction", Action::new(name, body).encode_to_vec()));
    }
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_mutated_requests_are_answered_or_refused() {
    let server = Process::serve(&[
        ("MALLARD__LIMITS__STATEMENT_TIMEOUT", "5s"),
        ("MALLARD__LIMITS__QUEUE", "1000"),
        ("MALLARD__LOG__LEVEL", "info"),
    ]);
    let client = server.client(None).await;
    row(&client, "CREATE TABLE t AS SELECT 1 AS i").await;
    let originals = originals(&server).await;
    let uri = server.location.to_string().replace("grpc://", "http://");
    let channel = tonic::transport::Channel::from_shared(uri).unwrap().connect().await.unwrap();
    let ask = async |seed: u64| {
        let mut random = Random::new(seed);
        let (rpc, mut message) = originals[random.below(originals.len())].clone();
        for _ in 0..1 + random.below(3) {
            spoil(&mut message, &mut random);
        }
        let framed = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
        let answer = call(&channel, rpc, random.pieces(framed.into())).await;
        let wrong = answer.as_ref().is_err_and(|status| {
            // tonic's own word for a message that is no protobuf.
            let malformed = status.code() == Code::Internal && status.message().contains("failed to decode Protobuf");
            matches!(status.code(), Code::Internal | Code::Unknown | Code::Unavailable | Code::DataLoss) && !malformed
        });
        assert!(!wrong, "seed {seed}: {rpc}: {answer:?}");
        answer.is_ok()
    };
    let mut warm = futures::stream::iter(0..1_000).map(&ask).buffer_unordered(16);
    while warm.next().await.is_some() {}
    let base = server.memory();
    let mut asked = futures::stream::iter(1_000..10_000).map(&ask).buffer_unordered(16);
    let (mut answered, mut refused) = (0, 0);
    while let Some(ok) = asked.next().await {
        if ok { answered += 1 } else { refused += 1 }
    }
    let grown = server.memory().saturating_sub(base);
    println!("measured: mutated messages: {answered} answered, {refused} refused, {} KiB more", grown >> 10);
    assert!(answered > 100 && refused > 1_000, "the mutations do too little or too much");
    assert!(grown < 50 << 20, "{grown} bytes more");
    assert_eq!(row(&client, "SELECT 42").await, ["42"]);
    let log = server.stop();
    let broken: Vec<_> =
        log.iter().filter(|line| line.contains("panicked") || line.contains("internal error")).collect();
    assert!(broken.is_empty(), "{broken:?}");
}
