//! Several endpoints over one result: every row exactly once, or an error for everyone.

use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_flight::{
    Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightDescriptor, FlightInfo,
    RenewFlightEndpointRequest, Ticket,
};
use futures::{StreamExt, future::join_all};
use mallard::{
    client::{Client, ENDPOINTS_HEADER, Login},
    config::{Config, Credential, Secret, Span, User},
    error::{Error, Result},
    stream::RecordBatchStream,
};
use prost::Message;
use tonic::{Code, Request};

use crate::support::{PASSWORD, TestServer, USER, collect, login, row, rows, run, test_config, until, with_login};

/// Runs for hours unless it is interrupted, and answers rows from the start.
const ENDLESS: &str = "SELECT a.range FROM range(10000000000) a, range(1000) b";
const ROWS: usize = 500_000;

fn sql(text: &str) -> FlightDescriptor {
    FlightDescriptor::new_cmd(text.to_string())
}

fn asking(descriptor: FlightDescriptor, endpoints: &str) -> Request<FlightDescriptor> {
    let mut request = Request::new(descriptor);
    request.metadata_mut().insert(ENDPOINTS_HEADER, endpoints.parse().unwrap());
    request
}

async fn info(server: &TestServer, text: &str, endpoints: usize) -> FlightInfo {
    let request = asking(sql(text), &endpoints.to_string());
    server.stock().await.get_flight_info(request).await.unwrap().into_inner()
}

fn tickets(info: &FlightInfo) -> Vec<Ticket> {
    info.endpoint.iter().map(|endpoint| endpoint.ticket.clone().unwrap()).collect()
}

/// On a connection of its own.
async fn open(server: &TestServer, ticket: &Ticket) -> Result<RecordBatchStream> {
    server.client().await.get(ticket.clone()).await
}

async fn open_all(server: &TestServer, info: &FlightInfo) -> Vec<RecordBatchStream> {
    join_all(tickets(info).iter().map(|ticket| open(server, ticket))).await.into_iter().map(Result::unwrap).collect()
}

/// The values of the first column, sorted.
async fn numbers(streams: Vec<RecordBatchStream>) -> Vec<i64> {
    let drained = join_all(streams.into_iter().map(|stream| tokio::spawn(collect(stream)))).await;
    let batches = drained.into_iter().flat_map(|batches| batches.unwrap().unwrap());
    let column = |batch: arrow_array::RecordBatch| {
        batch.column(0).as_primitive::<arrow_array::types::Int64Type>().values().to_vec()
    };
    let mut numbers: Vec<i64> = batches.flat_map(column).collect();
    numbers.sort_unstable();
    numbers
}

async fn ended(stream: RecordBatchStream) -> Error {
    collect(stream).await.expect_err("the stream ends in an error")
}

async fn nothing_runs(server: &TestServer) {
    until("no query runs", || async { server.metric("mallard_queries_running").await == 0.0 }).await;
}

async fn selects(server: &TestServer) -> f64 {
    server.metric("mallard_queries_total{outcome=\"ok\",statement=\"select\"}").await
}

async fn cancel(server: &TestServer, info: &FlightInfo) -> CancelStatus {
    let action = Action::new("CancelFlightInfo", CancelFlightInfoRequest::new(info.clone()).encode_to_vec());
    let mut results = server.stock().await.do_action(action).await.unwrap().into_inner();
    CancelFlightInfoResult::decode(results.next().await.unwrap().unwrap().body).unwrap().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_comes_exactly_once_and_the_statement_runs_once() {
    for standard_path in [false, true] {
        let mut config = test_config();
        config.wire.standard_path = standard_path;
        every_row_comes_exactly_once(TestServer::with(config).await).await;
    }
}

async fn every_row_comes_exactly_once(server: TestServer) {
    run(&server.client().await, &format!("CREATE TABLE t AS SELECT range AS i FROM range({ROWS})")).await;
    let expected: Vec<i64> = (0..ROWS as i64).collect();
    for endpoints in [1, 2, 4] {
        let path = FlightDescriptor::new_path(vec!["t".into()]);
        let mut stock = server.stock().await;
        let of_table = stock.get_flight_info(asking(path, &endpoints.to_string())).await.unwrap().into_inner();
        let polled = stock.poll_flight_info(asking(sql("FROM t"), &endpoints.to_string())).await.unwrap().into_inner();
        for info in [info(&server, "FROM t", endpoints).await, of_table, polled.info.unwrap()] {
            assert_eq!((info.endpoint.len(), info.ordered), (endpoints, false));
            assert!(info.endpoint.iter().all(|endpoint| endpoint.expiration_time.is_some()));
            let before = selects(&server).await;
            let streams = open_all(&server, &info).await;
            assert!(streams.iter().all(|stream| stream.schema() == streams[0].schema()));
            assert_eq!(numbers(streams).await, expected);
            until("it ran once", || async { selects(&server).await == before + 1.0 }).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_reader_may_drain_all_and_late_ones_get_the_schema() {
    let server = TestServer::start().await;
    let info = info(&server, &format!("SELECT range AS i FROM range({ROWS})"), 3).await;
    let [one, two, three] = &tickets(&info)[..] else { panic!("three tickets") };
    let first = open(&server, two).await.unwrap();
    let schema = first.schema();
    assert_eq!(numbers(vec![first]).await, (0..ROWS as i64).collect::<Vec<_>>());
    nothing_runs(&server).await;
    for late in [one, three] {
        let stream = open(&server, late).await.unwrap();
        assert_eq!(stream.schema(), schema);
        assert_eq!(rows(&collect(stream).await.unwrap()), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_on_one_connection_may_be_read_one_after_the_other() {
    let server = TestServer::start().await;
    let rows_in_all = 3_000_000;
    let info = info(&server, &format!("SELECT range AS i, repeat('x', 50) FROM range({rows_in_all})"), 4).await;
    let client = server.client().await;
    let mut streams = Vec::new();
    for ticket in tickets(&info) {
        streams.push(client.get(ticket).await.unwrap());
    }
    let mut arrived = 0;
    for stream in streams {
        arrived += rows(&collect(stream).await.unwrap());
    }
    assert_eq!(arrived, rows_in_all);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_merges_its_connections_and_ends_them_together() {
    let server = TestServer::with(with_login(test_config())).await;
    let client = Client::connect(server.server.location(), Some(&login())).await.unwrap();
    run(&client, &format!("CREATE TABLE t AS SELECT range AS i FROM range({ROWS})")).await;
    let expected: Vec<i64> = (0..ROWS as i64).collect();
    for count in [1, 2, 4] {
        assert_eq!(numbers(vec![client.query_endpoints("FROM t", count).await.unwrap()]).await, expected);
        assert_eq!(numbers(vec![client.table_endpoints(&["t".into()], count).await.unwrap()]).await, expected);
    }
    let gone = client.query_endpoints("FROM nope", 3).await.err().expect("there is no such table");
    assert_eq!(gone.code(), Code::NotFound, "{gone}");
    let mut endless = client.query_endpoints(ENDLESS, 3).await.unwrap();
    endless.next().await.unwrap().unwrap();
    assert_eq!(server.metric("mallard_queries_running").await, 1.0);
    drop(endless);
    nothing_runs(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_without_rows_runs_once() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t (i INTEGER)").await;
    let answered = collect(client.query_endpoints("INSERT INTO t VALUES (1), (2)", 4).await.unwrap()).await.unwrap();
    assert_eq!(rows(&answered), 1);
    assert_eq!(row(&client, "SELECT count(*) FROM t").await, ["2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ticket_is_good_for_one_use() {
    let server = TestServer::start().await;
    let info = info(&server, ENDLESS, 2).await;
    let first = &tickets(&info)[0];
    let check = async |when: &str| {
        let refused = open(&server, first).await.err().unwrap_or_else(|| panic!("used twice {when}"));
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.to_string().contains("used already"), "{refused}");
    };
    let mut stream = open(&server, first).await.unwrap();
    check("while it is read").await;
    stream.next().await.unwrap().unwrap();
    drop(stream);
    nothing_runs(&server).await;
    check("after its end").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_belong_to_their_user_and_their_process() {
    let with_two = || {
        let mut config = with_login(test_config());
        config.auth.users.insert("bob".into(), User::new(Credential::Password(Secret::new(PASSWORD)), "writer"));
        config.auth.signing_key = Some(Secret::new("a key of sixteen bytes or more"));
        config
    };
    let server = TestServer::with(with_two()).await;
    let connect = async |server: &TestServer, user: &str| {
        let login = Login { user: user.into(), password: Secret::new(PASSWORD) };
        Client::connect(server.server.location(), Some(&login)).await.unwrap()
    };
    let (alice, bob) = (connect(&server, USER).await, connect(&server, "bob").await);
    let mut request = asking(sql("SELECT 42"), "2");
    let basic = format!("Basic {}", base64(&format!("{USER}:{PASSWORD}")));
    request.metadata_mut().insert("authorization", basic.parse().unwrap());
    let tickets = tickets(&server.stock().await.get_flight_info(request).await.unwrap().into_inner());
    let refused = bob.get(tickets[0].clone()).await.err().expect("alice's ticket");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    // A server with the same key does not know which of the places were read already.
    let other = TestServer::with(with_two()).await;
    let refused = connect(&other, USER).await.get(tickets[0].clone()).await.err().expect("another process");
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    assert_eq!(rows(&collect(alice.get(tickets[0].clone()).await.unwrap()).await.unwrap()), 1);
}

fn base64(text: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_that_leaves_ends_the_others_in_an_error() {
    let server = TestServer::start().await;
    let info = info(&server, ENDLESS, 3).await;
    let all = tickets(&info);
    let (mut leaving, staying) = (open(&server, &all[0]).await.unwrap(), open(&server, &all[1]).await.unwrap());
    leaving.next().await.unwrap().unwrap();
    drop(leaving);
    let error = ended(staying).await;
    assert_eq!(error.code(), Code::Aborted, "{error}");
    assert!(error.to_string().contains("left before its end"), "{error}");
    let late = open(&server, &all[2]).await.err().expect("rows are missing");
    assert_eq!(late.code(), Code::Aborted, "{late}");
    nothing_runs(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_that_leaves_before_the_statement_answers_ends_it() {
    let server = TestServer::start().await;
    let info = info(&server, "SELECT sum(a.range * b.range) FROM range(10000000) a, range(1000000) b", 2).await;
    let opening = |index: usize| {
        let (ticket, location) = (tickets(&info)[index].clone(), server.server.location().clone());
        tokio::spawn(async move { Client::connect(&location, None).await.unwrap().get(ticket).await.map(drop) })
    };
    let starter = opening(0);
    until("it runs", || async { server.metric("mallard_queries_running").await == 1.0 }).await;
    let waiting = opening(1);
    until("both wait", || async { server.metric("mallard_streams_open").await == 2.0 }).await;
    starter.abort();
    assert_eq!(waiting.await.unwrap().expect_err("its start was dropped").code(), Code::Aborted);
    nothing_runs(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_result_with_places_never_read_is_freed() {
    let mut config = test_config();
    config.auth.token_ttl = Span(Duration::from_secs(3));
    let server = TestServer::with(config).await;
    let whole = open_all(&server, &info(&server, ENDLESS, 2).await).await;
    let half = info(&server, ENDLESS, 2).await;
    let mut unread = open(&server, &tickets(&half)[0]).await.unwrap();
    unread.next().await.unwrap().unwrap();
    assert_eq!(server.metric("mallard_queries_running").await, 2.0);
    until("one of them ends", || async { server.metric("mallard_queries_running").await == 1.0 }).await;
    let error = ended(unread).await;
    assert_eq!(error.code(), Code::Aborted, "{error}");
    assert!(error.to_string().contains("auth.token_ttl"), "{error}");
    let late = open(&server, &tickets(&half)[1]).await.err().expect("its ticket has expired");
    assert_eq!(late.code(), Code::InvalidArgument, "{late}");
    assert!(late.to_string().contains("expired"), "{late}");
    // Where all places were opened in time, their streams go on.
    for mut stream in whole {
        stream.next().await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn error_of_the_statement_reaches_every_reader() {
    let server = TestServer::start().await;
    let failing = "SELECT CASE WHEN range = 1999999 THEN error('broke at the end') ELSE range END FROM range(2000000)";
    let info = info(&server, failing, 4).await;
    let all = tickets(&info);
    let streams = join_all(all[..3].iter().map(|ticket| open(&server, ticket))).await;
    let late = open(&server, &all[3]);
    let errors = join_all(streams.into_iter().map(|stream| async { ended(stream.unwrap()).await })).await;
    let late = late.await.err().expect("rows are missing");
    for error in errors.into_iter().chain([late]) {
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.to_string().contains("broke at the end"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_flight_info_ends_all_of_it() {
    let server = TestServer::start().await;
    let info = info(&server, ENDLESS, 3).await;
    let streams = open_all(&server, &info).await;
    assert_eq!(cancel(&server, &info).await, CancelStatus::Cancelled);
    for stream in streams {
        assert_eq!(ended(stream).await.code(), Code::Cancelled);
    }
    nothing_runs(&server).await;
    assert_eq!(cancel(&server, &info).await, CancelStatus::NotCancellable, "it has ended");
}

/// Before anyone has used it, and whatever it is for: nothing of it runs any more, renewed or not.
#[tokio::test(flavor = "multi_thread")]
async fn ticket_that_is_cancelled_before_its_use_is_not_good_any_more() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t AS SELECT 1 AS i").await;
    let statement = arrow_flight::sql::CommandStatementQuery { query: "FROM t".into(), transaction_id: None };
    let descriptors = [
        sql("FROM t"),
        sql("INSERT INTO t VALUES (2)"),
        FlightDescriptor::new_path(vec!["t".into()]),
        crate::flight_sql::message(&statement),
    ];
    let mut stock = server.stock().await;
    for descriptor in descriptors {
        for endpoints in [1, 3] {
            let asked = asking(descriptor.clone(), &endpoints.to_string());
            let info = stock.get_flight_info(asked).await.unwrap().into_inner();
            let renew = |endpoint: &arrow_flight::FlightEndpoint| {
                let body = RenewFlightEndpointRequest::new(endpoint.clone()).encode_to_vec();
                Action::new("RenewFlightEndpoint", body)
            };
            let mut refused = tickets(&info);
            if endpoints == 1 {
                let renewed = stock.do_action(renew(&info.endpoint[0])).await.unwrap().into_inner().next().await;
                let renewed = arrow_flight::FlightEndpoint::decode(renewed.unwrap().unwrap().body).unwrap();
                refused.push(renewed.ticket.unwrap());
            }
            assert_eq!(cancel(&server, &info).await, CancelStatus::Cancelled, "{descriptor:?}");
            for ticket in &refused {
                let error = open(&server, ticket).await.err().expect("it was cancelled");
                assert_eq!(error.code(), Code::Cancelled, "{descriptor:?} {error}");
            }
            if endpoints == 1 {
                assert_eq!(stock.do_action(renew(&info.endpoint[0])).await.unwrap_err().code(), Code::Cancelled);
            }
            // Another FlightInfo of the same is another one.
            let again =
                stock.get_flight_info(asking(sql("FROM t"), &endpoints.to_string())).await.unwrap().into_inner();
            assert_eq!(numbers_of_any(open_all(&server, &again).await).await, 1);
        }
    }
    assert_eq!(row(&client, "SELECT count(*) FROM t").await, ["1"], "the INSERT never ran");
}

async fn numbers_of_any(streams: Vec<RecordBatchStream>) -> usize {
    let mut arrived = 0;
    for stream in streams {
        arrived += rows(&collect(stream).await.unwrap());
    }
    arrived
}

/// What ran when its FlightInfo was asked for cannot be cancelled, and a command that is its own ticket is not ours to keep.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_run_is_not_cancellable() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    let info = client.execute("CREATE TABLE t AS SELECT 1 AS i".into(), None).await.unwrap();
    assert_eq!(cancel(&server, &info).await, CancelStatus::NotCancellable);
    let info = client.get_catalogs().await.unwrap();
    assert_eq!(cancel(&server, &info).await, CancelStatus::NotCancellable);
}

#[tokio::test(flavor = "multi_thread")]
async fn full_server_names_the_limit_and_its_key_and_the_ticket_stays_good() {
    let mut config = test_config();
    config.limits.shared_results = 1;
    let server = TestServer::with(config).await;
    let running = open_all(&server, &info(&server, ENDLESS, 2).await).await;
    let next = info(&server, "SELECT 1", 2).await;
    let refused = open(&server, &tickets(&next)[0]).await.err().expect("one is open");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.to_string().contains("limits.shared_results"), "{refused}");
    drop(running);
    until("there is room again", || async { open(&server, &tickets(&next)[0]).await.is_ok() }).await;
    // Its statement has ended, so it is not open any more although nobody has read the other place.
    assert!(open(&server, &tickets(&info(&server, "SELECT 1", 2).await)[0]).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_of_the_server_ends_every_reader() {
    let server = TestServer::start().await;
    let streams = open_all(&server, &info(&server, ENDLESS, 3).await).await;
    let stopping = tokio::spawn(server.server.stop(std::future::ready(())));
    for error in join_all(streams.into_iter().map(ended)).await {
        assert_eq!(error.code(), Code::Unavailable, "{error}");
    }
    stopping.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_says_how_many_and_the_header_wins() {
    let mut config: Config = test_config();
    config.limits.endpoints = 3;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t AS SELECT 1::BIGINT AS i").await;
    let told = client.info(sql("FROM t")).await.unwrap();
    assert_eq!((told.endpoint.len(), told.ordered), (3, false));
    assert_eq!(info(&server, "FROM t", 1).await.endpoint.len(), 1);
    assert_eq!(info(&server, "FROM t", 64).await.endpoint.len(), 64);
    assert_eq!(numbers(vec![client.table(&["t".into()]).await.unwrap()]).await, [1]);
    assert_eq!(client.list("").await.unwrap()[0].endpoint.len(), 1);
    let mut stock = server.stock().await;
    for wrong in ["0", "65", "-1", "many"] {
        let refused = stock.get_flight_info(asking(sql("FROM t"), wrong)).await.expect_err(wrong);
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(ENDPOINTS_HEADER), "{refused}");
    }
    // A FlightInfo has to fit into the messages that stock clients take.
    let long = format!("SELECT '{}'", "x".repeat(200_000));
    let refused = stock.get_flight_info(asking(sql(&long), "64")).await.expect_err("64 tickets of 200 kB");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(stock.get_flight_info(asking(sql(&long), "2")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_of_several_is_not_renewed() {
    let server = TestServer::start().await;
    let info = info(&server, "SELECT 1", 2).await;
    let request = RenewFlightEndpointRequest::new(info.endpoint[0].clone());
    let action = Action::new("RenewFlightEndpoint", request.encode_to_vec());
    let refused = server.stock().await.do_action(action).await.map(|_| ()).expect_err("it cannot");
    assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
}
