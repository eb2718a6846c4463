//! A DoPut that announces an explicit end is stored with it, and not at all without it.

use arrow_array::{Int32Array, RecordBatch};
use arrow_flight::{
    FlightData, FlightDescriptor, PutResult,
    encode::FlightDataEncoderBuilder,
    error::FlightError,
    sql::{
        CommandStatementIngest, ProstMessageExt, TableDefinitionOptions, TableExistsOption, TableNotExistOption,
        client::FlightSqlServiceClient,
    },
};
use futures::TryStreamExt;
use prost::Message;
use tonic::{Code, Status};

use crate::support::{TestServer, collect, count, people, row, table, test_config};

/// The messages of so many batches of ten rows, and one more for each app_metadata.
async fn messages(descriptor: FlightDescriptor, batches: usize, behind: &[&str]) -> Vec<FlightData> {
    let rows = people(batches, 10).map_err(|error| FlightError::Tonic(Box::new(error.into_status())));
    let schema = people(0, 0).schema();
    let encoder = FlightDataEncoderBuilder::new().with_schema(schema).with_flight_descriptor(Some(descriptor));
    let mut messages: Vec<FlightData> = encoder.build(rows).try_collect().await.unwrap();
    messages.extend(behind.iter().map(|text| said(text)));
    messages
}

fn said(text: &str) -> FlightData {
    FlightData { app_metadata: text.as_bytes().to_vec().into(), ..FlightData::default() }
}

async fn put(
    server: &TestServer,
    headers: &[(&'static str, &'static str)],
    messages: Vec<FlightData>,
) -> Result<Vec<PutResult>, Status> {
    let mut request = tonic::Request::new(futures::stream::iter(messages));
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    server.stock().await.do_put(request).await?.into_inner().try_collect().await
}

fn path(name: &str) -> FlightDescriptor {
    FlightDescriptor::new_path(vec![name.into()])
}

const EXPLICIT: (&str, &str) = ("x-mallard-end", "explicit");
const FITS: &str = r#"{"end": true, "rows": 30}"#;

async fn servers() -> [TestServer; 2] {
    let server = async |standard_path| {
        let mut config = test_config();
        config.wire.standard_path = standard_path;
        TestServer::with(config).await
    };
    [server(false).await, server(true).await]
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_stored_with_the_end_that_was_announced_and_not_without_it() {
    for server in servers().await {
        let client = server.client().await;
        put(&server, &[EXPLICIT], messages(path("whole"), 3, &[FITS]).await).await.unwrap();
        // In the message of the last batch.
        let mut last = messages(path("whole"), 3, &[]).await;
        last.last_mut().unwrap().app_metadata = FITS.as_bytes().to_vec().into();
        put(&server, &[EXPLICIT], last).await.unwrap();
        // What else is said beside the rows is the client's own.
        let mut chatty = messages(path("whole"), 3, &["my own", FITS]).await;
        chatty.insert(2, said(r#"{"offset": 10}"#));
        put(&server, &[EXPLICIT], chatty).await.unwrap();
        assert_eq!(count(&client, "whole").await, 90);
        let nothing = messages(path("nobody"), 0, &[r#"{"end": true, "rows": 0}"#]).await;
        put(&server, &[EXPLICIT], nothing).await.unwrap();
        assert_eq!(count(&client, "nobody").await, 0);

        let mut early = messages(path("cut"), 3, &[]).await;
        early.insert(2, said(r#"{"end": true, "rows": 10}"#));
        let mut ends_with_schema = messages(path("cut"), 1, &[]).await;
        ends_with_schema[0].app_metadata = br#"{"end": true, "rows": 0}"#.to_vec().into();
        for (cut, why) in [
            (messages(path("cut"), 3, &[]).await, "without its explicit end"),
            (messages(path("cut"), 0, &[]).await, "without its explicit end"),
            (messages(path("cut"), 3, &["{}"]).await, "without its explicit end"),
            (messages(path("cut"), 2, &[FITS]).await, "says 30 rows, and 20 came"),
            (messages(path("cut"), 4, &[FITS]).await, "says 30 rows, and 40 came"),
            (messages(path("cut"), 3, &[FITS, FITS]).await, "goes on behind its explicit end"),
            (early, "goes on behind its explicit end"),
            (ends_with_schema, "goes on behind its explicit end"),
            (messages(path("cut"), 3, &[r#"{"end": true, "rows": 30, "hash": 7}"#]).await, "unknown field `hash`"),
            (messages(path("cut"), 3, &[r#"{"end": true}"#]).await, "missing field `rows`"),
        ] {
            let refused = put(&server, &[EXPLICIT], cut).await.expect_err(why);
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
            assert!(refused.message().contains(why), "{refused}");
            assert!(refused.message().ends_with("nothing was stored"), "{refused}");
            let there = row(&client, "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'cut'").await;
            assert_eq!(there, ["0"], "{why}: not even the table");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn header_has_one_value_and_is_not_needed() {
    for server in servers().await {
        for value in ["", "implicit", "Explicit", "explicit, explicit"] {
            let unknown = [("x-mallard-end", value)];
            let refused = put(&server, &unknown, messages(path("t"), 3, &[FITS]).await).await.expect_err(value);
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().contains(&format!("\"{value}\"")), "{refused}");
        }
        // Stock clients: what they say is theirs, and a clean end is the end.
        for behind in [&[][..], &[FITS], &[r#"{"end": true, "rows": 1}"#, "more"]] {
            put(&server, &[], messages(path("t"), 3, behind).await).await.unwrap();
        }
        assert_eq!(count(&server.client().await, "t").await, 90);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_counted_before_they_are_exchanged() {
    let server = TestServer::start().await;
    let client = server.client().await;
    // One that takes all of its input, one that makes more of it, and two that leave most of it.
    for (chain, stored) in [
        ("processed", 30),
        ("count", 1),
        ("sample {\"first\": 3}", 3),
        ("filter {\"where\": [{\"column\": \"id\", \"op\": \"<\", \"value\": 5}]} | sample {\"first\": 1}", 1),
    ] {
        let headers = [EXPLICIT, ("x-mallard-exchange", chain)];
        put(&server, &headers, messages(path("t"), 3, &[FITS]).await).await.unwrap_or_else(|e| panic!("{chain}: {e}"));
        assert_eq!(count(&client, "t").await, stored, "{chain}");
        row(&client, "DROP TABLE t").await;
        for behind in [&[][..], &[r#"{"end": true, "rows": 3}"#]] {
            let refused = put(&server, &headers, messages(path("t"), 3, behind).await).await.expect_err(chain);
            assert_eq!(refused.code(), Code::InvalidArgument, "{chain}: {refused}");
            assert!(refused.message().contains("explicit end"), "{chain}: {refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_may_require_the_end_of_all_that_store_rows() {
    let mut config = test_config();
    config.put.require_end = true;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    client.put(&table("t"), people(3, 10)).await.expect("our client always says its end");
    put(&server, &[], messages(path("t"), 3, &[FITS]).await).await.expect("the header is not needed then");
    let refused = put(&server, &[], messages(path("t"), 3, &[]).await).await.expect_err("no end");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("put.require_end"), "{refused}");
    assert_eq!(count(&client, "t").await, 60);

    let ingest = CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: TableNotExistOption::Create.into(),
            if_exists: TableExistsOption::Append.into(),
        }),
        table: "t".into(),
        schema: None,
        catalog: None,
        temporary: false,
        transaction_id: None,
        options: Default::default(),
    };
    let ingest = FlightDescriptor::new_cmd(ingest.as_any().encode_to_vec());
    let refused = put(&server, &[], messages(ingest.clone(), 3, &[]).await).await.expect_err("as ADBC sends it");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("put.require_end") && refused.message().contains("ADBC"), "{refused}");
    assert_eq!(count(&client, "t").await, 60);
    put(&server, &[], messages(ingest, 3, &[FITS]).await).await.unwrap();
    assert_eq!(count(&client, "t").await, 90);

    // Values for parameters are stored by no DoPut.
    let mut sql = FlightSqlServiceClient::new(server.channel().await);
    let mut insert = sql.prepare("INSERT INTO t (id) VALUES (?)".into(), None).await.unwrap();
    let ids = Int32Array::from(vec![1, 2]);
    insert.set_parameters(RecordBatch::try_from_iter([("id", std::sync::Arc::new(ids) as _)]).unwrap()).unwrap();
    assert_eq!(insert.execute_update().await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn echo_answers_the_app_metadata_of_each_message_in_its_place() {
    for server in servers().await {
        for chain in ["echo", "echo | echo", "processed"] {
            let mut sent = messages(FlightDescriptor::new_cmd(chain), 4, &["behind", FITS]).await;
            sent[2].app_metadata = b"with the second".to_vec().into();
            sent.insert(4, said("\u{0}\u{1} between"));
            sent.insert(1, said("in front"));
            let mut stock = server.stock().await;
            let answer = stock.do_exchange(futures::stream::iter(sent)).await.unwrap().into_inner();
            let answer: Vec<FlightData> = answer.try_collect().await.unwrap();
            let seen: Vec<(bool, String)> = answer[1..]
                .iter()
                .map(|message| {
                    let text = String::from_utf8(message.app_metadata.to_vec()).unwrap();
                    (message.data_header.is_empty(), text)
                })
                .collect();
            let batch = |text: &str| (false, text.to_string());
            let alone = |text: &str| (true, text.to_string());
            let expected = match chain {
                "processed" => vec![batch(""); 4],
                _ => vec![
                    alone("in front"),
                    batch(""),
                    batch("with the second"),
                    batch(""),
                    alone("\u{0}\u{1} between"),
                    batch(""),
                    alone("behind"),
                    alone(FITS),
                ],
            };
            assert_eq!(seen, expected, "{chain}");
        }
        let rows = collect(server.client().await.exchange("echo", people(3, 10)).await.unwrap()).await.unwrap();
        assert_eq!(rows.len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn app_metadata_is_answered_once_where_its_batch_is_cut() {
    for standard_path in [false, true] {
        let mut config = test_config();
        config.wire.standard_path = standard_path;
        config.limits.send_message_size = mallard::config::Size(64 * 1024);
        let server = TestServer::with(config).await;
        let rows = people(2, 20_000).map_err(|error| FlightError::Tonic(Box::new(error.into_status())));
        let encoder = FlightDataEncoderBuilder::new().with_max_flight_data_size(usize::MAX);
        let encoder = encoder.with_flight_descriptor(Some(FlightDescriptor::new_cmd("echo")));
        let mut sent: Vec<FlightData> = encoder.build(rows).try_collect().await.unwrap();
        sent[2].app_metadata = b"said once".to_vec().into();
        let answer = server.stock().await.do_exchange(futures::stream::iter(sent)).await.unwrap().into_inner();
        let answer: Vec<FlightData> = answer.try_collect().await.unwrap();
        assert!(answer.len() > 6, "{} messages", answer.len());
        assert_eq!(answer.iter().filter(|message| message.app_metadata == "said once").count(), 1);
    }
}
