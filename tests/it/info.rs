//! ListFlights, GetFlightInfo, GetSchema, PollFlightInfo: planned, not run, and true.

use arrow_flight::{
    Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightClient, FlightDescriptor,
    FlightEndpoint, RenewFlightEndpointRequest,
};
use arrow_schema::Schema;
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use tonic::Code;

use crate::support::{TestServer, count, run};

fn sql(text: &str) -> FlightDescriptor {
    FlightDescriptor::new_cmd(text.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_is_planned_and_not_run() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t (i INTEGER)").await;
    for statement in ["INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (1) RETURNING i", "DROP TABLE t"] {
        client.info(sql(statement)).await.unwrap();
        server.stock().await.get_schema(sql(statement)).await.unwrap();
        let poll = server.stock().await.poll_flight_info(sql(statement)).await.unwrap().into_inner();
        assert!(poll.flight_descriptor.is_none(), "complete once it is planned");
        assert_eq!(poll.progress, Some(1.0));
        assert_eq!(count(&client, "t").await, 0, "{statement} ran");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn told_schema_is_the_streams_schema() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TYPE mood AS ENUM ('sad', 'ok')").await;
    run(&client, "CREATE TABLE t (i INTEGER, m mood, d DECIMAL(9, 3), l VARCHAR[], s STRUCT(a UUID, b BOOLEAN))").await;
    for statement in [
        "FROM t",
        "SELECT 1 AS a, 2 AS a, 'x' || 'y'",
        "INSERT INTO t (i) VALUES (1)",
        "INSERT INTO t (i) VALUES (1) RETURNING i, m",
        // Without the UNION, whose nullability arrow-flight's encoder changes on the way.
        "SELECT * EXCLUDE (\"union\") FROM test_all_types()",
        "EXPLAIN SELECT 1",
        "DESCRIBE t",
    ] {
        let info = client.info(sql(statement)).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        let told: Schema = info.clone().try_decode_schema().unwrap();
        let streamed = client.get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap().schema();
        assert_eq!(told, *streamed, "{statement}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_listed_in_pages_and_each_once() {
    use mallard::{
        access::Rights,
        engine::{Engine, TablePlace},
        telemetry::Metrics,
    };
    // Names that sort unlike numbers, in two schemas, views, and tables of many columns.
    let wide = (0..3000).map(|at| format!("c{at} INTEGER")).collect::<Vec<_>>().join(", ");
    let mut made: Vec<String> = (0..700).map(|at| format!("CREATE TABLE main.\"t {at} 'é\" (i INTEGER)")).collect();
    made.push("CREATE SCHEMA other".into());
    made.extend((0..700).map(|at| format!("CREATE TABLE other.t{at} (i INTEGER)")));
    made.extend((0..10).map(|at| format!("CREATE TABLE other.wide{at} ({wide})")));
    made.push("CREATE VIEW main.v AS SELECT 1 AS i; CREATE VIEW other.gone AS SELECT 2 AS i".into());
    let server = TestServer::start().await;
    let client = server.client().await;
    let config = crate::support::test_config();
    let engine = Engine::open(&config, Metrics::new("")).unwrap();
    let rights = Rights::all("ann");
    for sql in made.iter().flat_map(|sql| sql.split("; ")) {
        run(&client, sql).await;
        let ask = mallard::engine::Ask { sql: sql.to_string(), ..Default::default() };
        engine.update(&rights, &ask).await.unwrap();
    }
    let (mut paged, mut place, mut pages) = (Vec::new(), Some(TablePlace::default()), 0);
    while let Some(after) = place.take() {
        let page = engine.tables(&rights, "*", after, true).await.unwrap();
        let columns: usize = page.tables.iter().map(|(_, schema)| schema.fields().len()).sum();
        assert!(page.tables.len() <= 512 && columns < 8192 + 3000, "{} tables, {columns} columns", page.tables.len());
        paged.extend(page.tables.into_iter().map(|(name, _)| name.parts().join(".")));
        (place, pages) = (page.next, pages + 1);
    }
    assert!(pages > 3, "{pages}");
    let mut listed = Vec::new();
    let mut flights = server.stock().await.list_flights(arrow_flight::Criteria::default()).await.unwrap().into_inner();
    while let Some(info) = flights.message().await.unwrap() {
        listed.push(info.flight_descriptor.unwrap().path.join("."));
    }
    let mut sorted = listed.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), 700 + 700 + 10 + 2, "each once");
    assert_eq!((&listed, &paged), (&sorted, &sorted));
    engine.close(std::time::Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_listed_and_filtered_by_glob() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE flights AS SELECT range AS i FROM range(5)").await;
    run(&client, "CREATE SCHEMA other").await;
    run(&client, "CREATE TABLE other.\"odd \"\"name\" (x VARCHAR)").await;
    run(&client, "CREATE VIEW few AS FROM flights LIMIT 1").await;
    let paths = |listed: Vec<arrow_flight::FlightInfo>| -> Vec<String> {
        listed.into_iter().map(|info| info.flight_descriptor.unwrap().path.join(".")).collect()
    };
    assert_eq!(paths(client.list("").await.unwrap()), ["main.few", "main.flights", "other.odd \"name"]);
    assert_eq!(paths(client.list("main.fl*").await.unwrap()), ["main.flights"]);
    assert!(client.list("nothing*").await.unwrap().is_empty());
    for info in client.list("").await.unwrap() {
        let path = info.flight_descriptor.clone().unwrap().path;
        let ticket = info.endpoint[0].ticket.clone().unwrap();
        client.get(ticket).await.unwrap_or_else(|error| panic!("{path:?}: {error}"));
        assert_eq!(client.table(&path).await.unwrap().schema().fields(), info.try_decode_schema().unwrap().fields());
    }
    let known = client.info(FlightDescriptor::new_path(vec!["flights".into()])).await.unwrap();
    assert_eq!(known.total_records, 5);
    assert_eq!(client.info(sql("FROM flights")).await.unwrap().total_records, -1);
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_arrow_rs_client_reads_and_lists_actions() {
    let server = TestServer::start().await;
    let mut client = FlightClient::new(server.channel().await);
    let info = client.get_flight_info(sql("SELECT range AS i FROM range(100000)")).await.unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let batches: Vec<_> = client.do_get(ticket).await.unwrap().try_collect().await.unwrap();
    assert_eq!(crate::support::rows(&batches), 100_000);
    let actions: Vec<_> = client.list_actions().await.unwrap().try_collect().await.unwrap();
    for name in [
        "add_exchange",
        "drop_exchange",
        "list_exchanges",
        "transfer",
        "backup",
        "CancelFlightInfo",
        "RenewFlightEndpoint",
    ] {
        let action = actions.iter().find(|action| action.r#type == name).unwrap_or_else(|| panic!("{name} is listed"));
        assert!(!action.description.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_flight_info_ends_the_stream_of_its_ticket() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let info = client.info(sql("SELECT a.range FROM range(10000000000) a, range(1000) b")).await.unwrap();
    let cancel = async || {
        let request = CancelFlightInfoRequest::new(info.clone());
        let action = Action::new("CancelFlightInfo", request.encode_to_vec());
        let mut results = server.stock().await.do_action(action).await.unwrap().into_inner();
        let result = results.next().await.unwrap().unwrap();
        CancelFlightInfoResult::decode(result.body).unwrap().status()
    };
    let mut stream = client.get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    assert_eq!(cancel().await, CancelStatus::Cancelled);
    let ended = crate::support::collect(stream).await.expect_err("it was cancelled");
    assert_eq!(ended.code(), Code::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_flight_info_reaches_a_statement_that_has_not_answered_yet() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let info = client.info(sql("CREATE TABLE big AS SELECT a.range FROM range(10000000000) a")).await.unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.get(ticket).await.map(|_| ()) }
    });
    crate::support::until("it can be cancelled", || async {
        let request = CancelFlightInfoRequest::new(info.clone());
        let action = Action::new("CancelFlightInfo", request.encode_to_vec());
        let mut results = server.stock().await.do_action(action).await.unwrap().into_inner();
        let result = results.next().await.unwrap().unwrap();
        CancelFlightInfoResult::decode(result.body).unwrap().status() == CancelStatus::Cancelled
    })
    .await;
    assert_eq!(running.await.unwrap().expect_err("cancelled").code(), Code::Cancelled);
    assert_eq!(client.query("FROM big").await.err().expect("rolled back").code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn view_over_something_gone_does_not_hide_the_others() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE a AS SELECT 1 AS i").await;
    run(&client, "CREATE TABLE b AS SELECT 1 AS i").await;
    run(&client, "CREATE VIEW broken AS FROM a").await;
    run(&client, "DROP TABLE a").await;
    assert_eq!(client.list("").await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_endpoint_is_good_for_the_same_rows() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let info = client.info(sql("SELECT 42")).await.unwrap();
    let request = RenewFlightEndpointRequest::new(info.endpoint[0].clone());
    let action = Action::new("RenewFlightEndpoint", request.encode_to_vec());
    let mut results = server.stock().await.do_action(action).await.unwrap().into_inner();
    let endpoint = FlightEndpoint::decode(results.next().await.unwrap().unwrap().body).unwrap();
    assert!(endpoint.expiration_time.is_some());
    let row = mallard::transfer::first_row(client.get(endpoint.ticket.unwrap()).await.unwrap()).await.unwrap();
    assert_eq!(row, ["42"]);
}
