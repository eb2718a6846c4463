//! Who gets extension types and who types that every client reads, and that what is told before is what comes.

use arrow_array::cast::AsArray;
use arrow_flight::{
    Criteria, FlightDescriptor, FlightInfo, IpcMessage, SchemaResult, Ticket,
    decode::FlightRecordBatchStream,
    sql::{CommandGetTables, CommandStatementQuery, client::PreparedStatement},
};
use arrow_schema::{DataType, Schema};
use futures::TryStreamExt;
use mallard::{client::Client, config::LosslessTypes};
use serde_json::json;
use tonic::{Code, Request, transport::Channel};

use crate::{
    flight_sql::{Sql, message, rows, table, texts},
    support::{TestServer, row, run, test_config},
};

/// All of DuckDB's types that have two forms.
const VALUES: &str = "1::HUGEINT AS h, 2::UHUGEINT AS u, 'a'::ENUM ('a', 'b') AS e, '101'::BIT AS b, 3::BIGNUM AS n, \
    '01:02:03+02'::TIMETZ AS t, uuid '00000000-0000-0000-0000-000000000001' AS i, {'x': 1}::VARIANT AS v, \
    '{}'::JSON AS j, union_value(k := 1::HUGEINT) AS o, [4::HUGEINT] AS l, {'s': 5::HUGEINT} AS s";

async fn act(client: &Client, name: &str, body: serde_json::Value) {
    let _: Vec<_> = client.action(name, &body).await.unwrap().try_collect().await.unwrap();
}

/// A call, with the header where it is one that asks.
fn asking<T>(asked: Option<&str>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(asked) = asked {
        request.metadata_mut().insert("x-mallard-types", asked.parse().unwrap());
    }
    request
}

fn is_lossless(schema: &Schema) -> bool {
    let lossless = format!("{schema:?}").contains("ARROW:extension");
    let plain = schema.field_with_name("h").is_ok_and(|field| *field.data_type() == DataType::Decimal128(38, 0));
    assert_ne!(lossless, plain, "{schema:?}");
    lossless
}

/// The schema that a DoGet answers, with or without rows.
async fn got(server: &TestServer, ticket: Ticket, asked: Option<&str>) -> Schema {
    let stream = server.stock().await.do_get(asking(asked, ticket)).await.unwrap().into_inner();
    let mut stream = FlightRecordBatchStream::new_from_flight_data(stream.map_err(Into::into));
    while let Some(batch) = stream.try_next().await.unwrap() {
        assert_eq!(Some(batch.schema()), stream.schema().cloned());
    }
    stream.schema().unwrap().as_ref().clone()
}

/// The schema of a FlightInfo, and of the rows of its ticket.
async fn told(server: &TestServer, info: FlightInfo, asked: Option<&str>) -> Schema {
    let schema = info.clone().try_decode_schema().unwrap();
    for endpoint in info.endpoint {
        assert_eq!(got(server, endpoint.ticket.unwrap(), asked).await, schema, "the rows of a FlightInfo");
    }
    schema
}

/// The schema of the table `all_forms`, by every way that tells it; all ways tell the same.
async fn by_every_way(server: &TestServer, asked: Option<&str>, mut sql: Sql) -> Schema {
    let mut stock = server.stock().await;
    if let Some(asked) = asked {
        sql.set_header("x-mallard-types", asked);
    }
    let query = "SELECT * FROM all_forms";
    let schema = got(server, Ticket::new(query), asked).await;
    let flight_sql = message(&CommandStatementQuery { query: query.into(), transaction_id: None });
    for descriptor in
        [FlightDescriptor::new_cmd(query), FlightDescriptor::new_path(vec!["all_forms".into()]), flight_sql]
    {
        let info = stock.get_flight_info(asking(asked, descriptor.clone())).await.unwrap().into_inner();
        assert_eq!(told(server, info, asked).await, schema, "GetFlightInfo of {descriptor:?}");
        let answer: SchemaResult = stock.get_schema(asking(asked, descriptor.clone())).await.unwrap().into_inner();
        assert_eq!(Schema::try_from(&answer).unwrap(), schema, "GetSchema of {descriptor:?}");
    }
    let listed = stock.list_flights(asking(asked, Criteria { expression: "main.all_forms".into() })).await.unwrap();
    let listed: Vec<FlightInfo> = listed.into_inner().try_collect().await.unwrap();
    assert_eq!(told(server, listed[0].clone(), asked).await, schema, "ListFlights");
    let mut prepared: PreparedStatement<Channel> = sql.prepare(query.into(), None).await.unwrap();
    assert_eq!(prepared.dataset_schema().unwrap(), &schema, "CreatePreparedStatement");
    let info = prepared.execute().await.unwrap();
    assert_eq!(rows(&mut sql, info).await.0, schema, "a prepared statement");
    prepared.close().await.unwrap();
    let tables = CommandGetTables {
        include_schema: true,
        table_name_filter_pattern: Some("all_forms".into()),
        ..Default::default()
    };
    let info = sql.get_tables(tables).await.unwrap();
    let tables = rows(&mut sql, info).await.1;
    let bytes = tables[0].column_by_name("table_schema").unwrap().as_binary::<i32>().value(0);
    let of_table = Schema::try_from(IpcMessage(bytes.to_vec().into())).unwrap();
    for (field, listed) in schema.fields().iter().zip(of_table.fields()) {
        assert_eq!(listed.data_type(), field.data_type(), "GetTables, column {}", field.name());
    }
    schema
}

#[tokio::test(flavor = "multi_thread")]
async fn extension_types_are_for_those_that_ask_and_every_way_tells_what_comes() {
    for (configured, unasked, lossless) in
        [(LosslessTypes::Auto, false, true), (LosslessTypes::On, true, true), (LosslessTypes::Off, false, false)]
    {
        let mut config = test_config();
        config.database.lossless_types = configured;
        let server = TestServer::with(config).await;
        run(&server.client().await, &format!("CREATE TABLE all_forms AS SELECT {VALUES}")).await;
        for (asked, expected) in
            [(None, unasked), (Some("lossless"), lossless), (Some("Lossless"), lossless), (Some("plain"), false)]
        {
            let schema = by_every_way(&server, asked, server.sql().await).await;
            assert_eq!(is_lossless(&schema), expected, "{configured:?}, asked for {asked:?}");
        }
        // Mallard's own client asks.
        let schema = server.client().await.query("FROM all_forms").await.unwrap().schema();
        assert_eq!(is_lossless(&schema), lossless, "{configured:?}");
        let wrong = server.stock().await.do_get(asking(Some("all"), Ticket::new("SELECT 1"))).await.unwrap_err();
        assert_eq!(wrong.code(), Code::InvalidArgument, "{wrong}");
        assert!(wrong.message().contains("x-mallard-types must be lossless or plain"), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn variants_and_unions_are_read_without_extension_types() {
    let server = TestServer::start().await;
    let mut sql = server.sql().await;
    for value in [
        "{'a': 1, 'b': 'x \"y\" \\ z', 'c': NULL, 'd': {'e': [true, NULL], 'f': []}}",
        "[1, -2, 300000, -5000000000]",
        "-7::TINYINT",
        "-700::SMALLINT",
        "'a text that is longer than sixty-three bytes, so that it is not a short one: ü 鴨'",
        "1.5::DOUBLE",
        "1e300::DOUBLE",
        "-0.25::FLOAT",
        "-12.50::DECIMAL(10, 2)",
        "0.001::DECIMAL(4, 3)",
        "-99999999999999999999999999999999999.125::DECIMAL(38, 3)",
        "DATE '2024-02-29'",
        "DATE '1600-12-31'",
        "DATE '-infinity'",
        "DATE '0044-03-15 (BC)'",
        "DATE '5000000-01-01'",
        "TIMESTAMP '1969-12-31 23:59:59.5'",
        "TIMESTAMP '0001-01-01 (BC) 00:00:01'",
        "TIMESTAMP 'infinity'",
        "TIMESTAMP_NS '2024-02-29 12:00:00.123456789'",
        "TIMESTAMPTZ '2024-02-29 12:00:00.25+00'",
        "TIME '24:00:00'",
        "TIME '01:02:03.000004'",
        "uuid 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
        "'ab\\x00\\xFF\"c'::BLOB",
        "true",
        "MAP {'k': [{'x': 1}, NULL]}",
        "range(300)",
        "list_transform(range(300), lambda i: {'name': i})",
    ] {
        let text = format!("SELECT ({value})::VARIANT AS v, [NULL, ({value})::VARIANT] AS l, NULL::VARIANT AS n");
        let expected = table(&mut sql, &format!("SELECT ({value})::VARIANT::JSON::VARCHAR AS v")).await;
        let info = sql.execute(text, None).await.unwrap();
        let (schema, batches) = rows(&mut sql, info).await;
        assert_eq!(schema.field(0).data_type(), &DataType::Utf8, "{value}");
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap_or_else(|_| text.into());
        let shown = batches[0].column(0).as_string::<i32>().value(0);
        assert_eq!(read(shown), read(&expected[0]), "{value}");
        let list = batches[0].column(1).as_list::<i32>().value(0);
        assert_eq!((list.is_null(0), list.as_string::<i32>().value(1)), (true, shown), "{value}");
        assert_eq!(batches[0].column(2).null_count(), 1, "{value}");
    }
    let union = "UNION(num HUGEINT, str VARCHAR, mood ENUM ('sad'))";
    let text = format!(
        "SELECT u, [u] AS l FROM (VALUES (1::HUGEINT::{union}), ('two'::{union}), (NULL::{union}), \
         (union_value(mood := 'sad'::ENUM ('sad'))::{union})) t(u)"
    );
    let shown = table(&mut sql, &text).await;
    let of = |num: &str, text: &str, mood: &str| format!("{{num: {num}, str: {text}, mood: {mood}}}");
    let whole = |value: String| format!("{value}|[{value}]");
    assert_eq!(shown[0], whole(of("1", "NULL", "NULL")));
    assert_eq!(shown[1], whole(of("NULL", "two", "NULL")));
    assert_eq!(shown[2], "NULL|[NULL]");
    assert_eq!(shown[3], whole(of("NULL", "NULL", "sad")));
}

/// What foreign clients read is made on the way to them: nothing between Mallards loses a type.
#[tokio::test(flavor = "multi_thread")]
async fn exchangers_work_on_types_that_lose_nothing_whoever_asks() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, &format!("CREATE TABLE all_forms AS SELECT {VALUES}, 170141183460469231731687303715884105727 AS big"))
        .await;
    let sql = "SELECT typeof(h) AS t, typeof(i) AS i, big // 10 AS h FROM input";
    act(&client, "add_exchange", json!({"name": "types", "sql": sql})).await;
    let through = |chain: &str| {
        let mut request = Request::new(Ticket::new("FROM all_forms"));
        request.metadata_mut().insert("x-mallard-exchange", chain.parse().unwrap());
        request
    };
    let answer = |request: Request<Ticket>| async {
        let stream = server.stock().await.do_get(request).await.unwrap().into_inner();
        let mut stream = FlightRecordBatchStream::new_from_flight_data(stream.map_err(Into::into));
        let batch = stream.try_next().await.unwrap().unwrap();
        (batch.schema().as_ref().clone(), texts(&[batch]))
    };
    let (schema, shown) = answer(through("types")).await;
    assert!(!is_lossless(&schema));
    assert_eq!(shown, ["HUGEINT|UUID|17014118346046923173168730371588410572"]);
    let (schema, _) = answer(through("select {\"columns\": [\"h\", \"i\", \"v\"]} | echo")).await;
    assert!(!is_lossless(&schema), "columns that pass are read, too");
    // Stored through an exchanger, and pulled by another server.
    let all = client.query("FROM all_forms").await.unwrap();
    client.clone().through(Some("echo")).unwrap().put(&["copy".into()], all).await.unwrap();
    let other = TestServer::start().await;
    let pulled = json!({"from": server.uri(), "table": "copy", "to": "pulled"});
    act(&other.client().await, "transfer", pulled).await;
    let types = |table: &str| format!("SELECT string_agg(column_type, '|') FROM (DESCRIBE {table})");
    let expected = row(&client, &types("all_forms")).await;
    assert_eq!(row(&other.client().await, &types("pulled")).await, expected);
}

/// Some types have no name that DuckDB reads, and are planned all the same.
#[tokio::test(flavor = "multi_thread")]
async fn types_without_a_name_in_sql_are_planned_as_they_come() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE states AS SELECT i % 2 AS k, min(i) EXPORT_STATE AS s FROM range(9) t(i) GROUP BY k")
        .await;
    let mut sql = server.sql().await;
    for query in [
        "SELECT min(1) EXPORT_STATE",
        "SELECT avg(i) EXPORT_STATE AS s, 1::HUGEINT AS h, 'a'::ENUM ('a') AS e FROM range(3) t(i)",
        "SELECT [s] AS l, {'s': s} AS t FROM states ORDER BY k",
        "SELECT max(2.5) EXPORT_STATE AS s, count(*) EXPORT_STATE AS t",
        "FROM states",
        "SELECT 'POINT(1 2)'::GEOMETRY('OGC:CRS84') AS g, ['POINT(1 2)'::GEOMETRY('OGC:CRS84')] AS l",
        "SELECT NULL::VARIANT AS v, (INTERVAL 3 DAY)::VARIANT IS NULL AS n",
        "SELECT row(1, min(1) EXPORT_STATE) AS t, now() AS z",
    ] {
        for asked in [None, Some("lossless")] {
            let mut stock = server.stock().await;
            let info = stock.get_flight_info(asking(asked, FlightDescriptor::new_cmd(query))).await;
            let info = info.unwrap_or_else(|error| panic!("{query}: {error}")).into_inner();
            told(&server, info, asked).await;
        }
        let mut prepared = sql.prepare(query.into(), None).await.unwrap_or_else(|error| panic!("{query}: {error}"));
        let announced = prepared.dataset_schema().unwrap().clone();
        let info = prepared.execute().await.unwrap();
        assert_eq!(rows(&mut sql, info).await.0, announced, "{query}");
    }
    let mut stock = server.stock().await;
    let listed = stock.list_flights(Criteria { expression: "*.states".into() }).await.unwrap();
    let listed: Vec<FlightInfo> = listed.into_inner().try_collect().await.unwrap();
    told(&server, listed[0].clone(), None).await;
    // Of some states DuckDB says no form.
    let text = "SELECT 1 AS a, sum(1) EXPORT_STATE AS s";
    for refused in [
        stock.get_flight_info(FlightDescriptor::new_cmd(text)).await.unwrap_err(),
        stock.do_get(Ticket::new(text)).await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
        assert!(refused.message().starts_with("column \"s\": its type has no form in Arrow: cast it"), "{refused}");
    }
    let refused = stock.do_get(Ticket::new("FROM mallard_schema()")).await.unwrap_err();
    assert!(refused.message().contains("mallard_schema"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn variants_that_have_no_form_in_arrow_are_told_by_column_and_with_what_to_do() {
    let server = TestServer::start().await;
    for (value, held) in [
        ("(INTERVAL 3 DAY)::VARIANT", "INTERVAL"),
        ("170141183460469231731687303715884105727::HUGEINT::VARIANT", "64 bits"),
        ("18446744073709551615::UBIGINT::VARIANT", "64 bits"),
        ("'101'::BIT::VARIANT", "BITSTRING"),
        ("[{'a': '10:00:00'::TIME_NS}]::VARIANT", "TIME_NANOS"),
        ("3::BIGNUM::VARIANT", "BIGNUM"),
    ] {
        for (columns, place) in [
            (format!("1 AS a, {value} AS v, 'x' AS z"), "column \"v\": "),
            (format!("1 AS a, [{value}] AS v"), "column \"v\": "),
            (format!("INTERVAL 1 DAY AS i, {value} AS v"), "column \"v\": "),
            (format!("2::VARIANT AS u, {value} AS v"), "one of the columns \"u\", \"v\": "),
        ] {
            for asked in [None, Some("lossless")] {
                let text = format!("SELECT {columns}");
                let mut stock = server.stock().await;
                stock.get_flight_info(asking(asked, FlightDescriptor::new_cmd(text.clone()))).await.unwrap();
                let status = match stock.do_get(asking(asked, Ticket::new(text.clone()))).await {
                    Ok(answer) => answer.into_inner().try_collect::<Vec<_>>().await.unwrap_err(),
                    Err(status) => status,
                };
                assert_eq!(status.code(), Code::InvalidArgument, "{text}: {status}");
                assert!(status.message().starts_with(place), "{text}: {status}");
                assert!(status.message().contains(held) && status.message().contains("cast it to"), "{text}: {status}");
            }
        }
    }
}
