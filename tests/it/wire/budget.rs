//! Incoming messages of all streams share what the server has for them: more wait, and are told for what they have waited.

use std::time::Duration;

use http::Request;
use mallard::{
    config::{Size, Span},
    wire::FLIGHT_SERVICE,
};
use tonic::Code;
use tower::{Service, ServiceExt};

use super::{limits::body_that_stays_open, *};
use crate::support::{TestServer, people, table, test_config, until};

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn messages_wait_for_room_and_not_for_ever() {
    let mut config = test_config();
    config.limits.max_message_size = Size::mib(1);
    config.limits.bytes_in_flight = Size::mib(1);
    config.limits.queue_timeout = Span(Duration::from_secs(1));
    config.limits.stall_timeout = Span(Duration::from_secs(10));
    config.wire.standard_path = false;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let held = async || server.metric("mallard_bytes_in_flight").await;
    // Of many at once each gets through, because what is inside goes on.
    let many = futures::stream::iter(0..4).map(async |at| {
        let name = table(&format!("t{at}"));
        client.put(&name, people(4, 20_000)).await
    });
    let stored: Vec<_> = many.buffer_unordered(4).collect().await;
    for stored in stored {
        assert_eq!(stored.unwrap().rows, 80_000);
    }
    until("everything is given back", || async { held().await == 0.0 }).await;

    // A message that has begun and does not go on.
    let announced = [&[0][..], &(MIB as u32).to_be_bytes()].concat();
    let request = Request::post(format!("/{FLIGHT_SERVICE}/DoPut"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body_that_stays_open(announced.into()))
        .unwrap();
    let mut channel = server.channel().await;
    let stuck = channel.ready().await.unwrap().call(request).await.unwrap();
    until("it is counted", || async { held().await == MIB as f64 }).await;
    let error = client.put(&table("late"), people(4, 20_000)).await.expect_err("there is no room");
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert!(error.to_string().contains("raise limits.bytes_in_flight"), "{error}");
    // Small messages need none.
    client.put(&table("small"), people(4, 100)).await.unwrap();
    drop((stuck, channel));
    // The client has gone, or it counts as one that stands still.
    until("its bytes are given back", || async { held().await == 0.0 }).await;
    client.put(&table("late"), people(4, 20_000)).await.unwrap();
}
