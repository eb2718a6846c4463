//! Parameters of exchangers have DuckDB's types: declarations are checked when they are registered, values at each use, and
//! what a value is does not depend on the kind of exchanger that gets it.

use arrow_array::{Array, cast::AsArray};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures::TryStreamExt;
use mallard::{client::Client, error::Error};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    exchange::act,
    support::{TestServer, collect, people, test_config},
    wasm::told,
};

/// The body of add_exchange as text, so that numbers in it keep their digits.
fn body(kind: &str, name: &str, params: Option<&str>) -> String {
    let mut body = json!({"name": name, "replace": true});
    match kind {
        "sql" => body["sql"] = "SELECT typeof($x) AS duckdb_type, $x::VARCHAR AS text FROM input".into(),
        _ => body["wasm"] = BASE64_STANDARD.encode(told()).into(),
    }
    let body = body.to_string();
    match params {
        Some(params) => format!("{}, \"params\": {params}}}", &body[..body.len() - 1]),
        None => body,
    }
}

async fn register(client: &Client, body: &str) -> Result<(), Error> {
    client.action_with("add_exchange", body.to_string().into()).await?.try_collect::<Vec<_>>().await.map(drop)
}

/// What SQL has of the parameter x: its text.
async fn of_sql(client: &Client, arguments: &str) -> Result<Option<String>, Error> {
    let answer = collect(client.exchange(&format!("sql {arguments}"), people(1, 1)).await?).await?;
    let texts = answer[0].column(1).as_string::<i32>();
    Ok((texts.null_count() == 0).then(|| texts.value(0).to_string()))
}

/// What a module is given, told by its error.
async fn of_wasm(client: &Client, arguments: &str) -> String {
    client.exchange(&format!("wasm {arguments}"), people(1, 1)).await.err().expect("it tells").to_string()
}

/// A type, a value as JSON, and what SQL and a module have of it; `None` where it does not fit.
const CASES: &[(&str, &str, Option<(&str, &str)>)] = &[
    ("INTEGER", "15", Some(("15", "15"))),
    ("INTEGER", "\"15\"", Some(("15", "15"))),
    ("INTEGER", "1.0", Some(("1", "1"))),
    ("INTEGER", "1e3", Some(("1000", "1000"))),
    ("INTEGER", "1.5", None),
    ("INTEGER", "\"1.5\"", None),
    ("INTEGER", "\"x\"", None),
    ("INTEGER", "\"\"", None),
    ("INTEGER", "true", None),
    ("INTEGER", "3000000000", None),
    ("INTEGER", "[1]", None),
    ("INTEGER", "{}", None),
    ("utinyint", "-1", None),
    ("BIGINT", "9007199254740993", Some(("9007199254740993", "9007199254740993"))),
    ("BIGINT", "-9223372036854775808", Some(("-9223372036854775808", "-9223372036854775808"))),
    ("BIGINT", "9223372036854775808", None),
    ("UBIGINT", "18446744073709551615", Some(("18446744073709551615", "18446744073709551615"))),
    (
        "HUGEINT",
        "170141183460469231731687303715884105727",
        Some(("170141183460469231731687303715884105727", "170141183460469231731687303715884105727")),
    ),
    (
        "DECIMAL(38, 10)",
        "1234567890123456789012345678.0123456789",
        Some(("1234567890123456789012345678.0123456789", "1234567890123456789012345678.0123456789")),
    ),
    ("DECIMAL(5,2)", "1.230", Some(("1.23", "1.23"))),
    ("DECIMAL(5,2)", "1.239", None),
    ("DECIMAL(5,2)", "\"1.239\"", None),
    ("DECIMAL(5,2)", "12345", None),
    ("DOUBLE", "0.1", Some(("0.1", "0.1"))),
    ("DOUBLE", "\"x\"", None),
    ("DOUBLE", "false", None),
    ("BOOLEAN", "true", Some(("true", "true"))),
    ("BOOLEAN", "\"false\"", Some(("false", "false"))),
    ("BOOLEAN", "1", None),
    ("BOOLEAN", "\"maybe\"", None),
    (
        "VARCHAR",
        "\"it's ä \\\"q\\\" \\\\ \\ud83e\\udd86\"",
        Some(("it's ä \"q\" \\ 🦆", "\"it's ä \\\"q\\\" \\\\ 🦆\"")),
    ),
    ("VARCHAR", "5", Some(("5", "\"5\""))),
    ("VARCHAR", "12345678901234567890123", Some(("12345678901234567890123", "\"12345678901234567890123\""))),
    ("DATE", "\"2026-02-28\"", Some(("2026-02-28", "\"2026-02-28\""))),
    ("DATE", "\"2026-02-30\"", None),
    ("DATE", "5", None),
    ("INTEGER[]", "[1, 2]", Some(("[1, 2]", "[1, 2]"))),
    ("INTEGER[]", "[\"x\"]", None),
    ("ENUM('a', 'b')", "\"b\"", Some(("b", "\"b\""))),
    ("ENUM('a', 'b')", "\"c\"", None),
    (
        "JSON",
        "{\"k\": 12345678901234567890123}",
        Some(("{\"k\": 12345678901234567890123}", "{\"k\": 12345678901234567890123}")),
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn values_that_fit_their_type_arrive_whole_and_others_are_refused() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut last = "";
    for (duckdb_type, value, expected) in CASES {
        if *duckdb_type != last {
            last = duckdb_type;
            for kind in ["sql", "wasm"] {
                let params = format!("{{\"x\": {{\"type\": {}}}}}", Value::from(*duckdb_type));
                register(&client, &body(kind, kind, Some(&params))).await.unwrap_or_else(|error| panic!("{error}"));
            }
        }
        let arguments = format!("{{\"x\": {value}}}");
        let (sql, wasm) = (of_sql(&client, &arguments).await, of_wasm(&client, &arguments).await);
        match expected {
            Some((text, json)) => {
                let sql = sql.unwrap_or_else(|error| panic!("{duckdb_type} {value}: {error}"));
                assert_eq!(sql.as_deref(), Some(*text), "{duckdb_type} {value}");
                assert!(wasm.contains(&format!("{{\"x\":{json}}}")), "{duckdb_type} {value}: {wasm}");
            }
            None => {
                let sql = sql.expect_err(&format!("{duckdb_type} {value}"));
                assert!(sql.code() == Code::InvalidArgument && sql.to_string().contains("the parameter x"), "{sql}");
                assert!(wasm.contains("the parameter x") && !wasm.contains("{\"x\""), "{duckdb_type} {value}: {wasm}");
            }
        }
        assert_eq!(of_sql(&client, "{\"x\": null}").await.unwrap(), None, "NULL is a value of every type");
        let none = of_wasm(&client, "{\"x\": null}").await;
        assert!(none.contains("{\"x\":null}"), "{none}");
    }
    for wrong in ["{}", "{\"x\": 1, \"y\": 2}"] {
        let word = if wrong == "{}" { "`x`" } else { "`y`" };
        let (sql, wasm) = (of_sql(&client, wrong).await.unwrap_err().to_string(), of_wasm(&client, wrong).await);
        assert!(sql.contains(word) && wasm.contains(word), "{sql}; {wasm}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn declarations_that_no_value_fits_are_refused_when_they_are_registered() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for (params, word) in [
        (r#"{"x": {"type": "NOSUCHTYPE"}}"#, "NOSUCHTYPE"),
        (r#"{"x": {"type": "INTEGR"}}"#, "INTEGR"),
        (r#"{"x": {"type": "INTEGER; SELECT 1"}}"#, "the parameter x"),
        (r#"{"x": {"type": ""}}"#, "the parameter x"),
        (r#"{"x": {"type": "INTEGER", "default": "zebra"}}"#, "zebra"),
        (r#"{"x": {"type": "INTEGER", "default": 1.5}}"#, "1.5"),
        (r#"{"x": {"type": "DECIMAL(4, 1)", "default": 12345}}"#, "the parameter x"),
        (r#"{"x": {"type": "DATE", "default": "soon"}}"#, "soon"),
        (r#"{"x": {"type": "INTEGER", "defualt": 1}}"#, "`defualt`"),
        (r#"{"x": {"typ": "INTEGER"}}"#, "`typ`"),
        (r#"{"x": {"default": 1}}"#, "`type`"),
        (r#"{"x": {"type": 5}}"#, "type is no text"),
        (r#"{"x": [1]}"#, "needs its type"),
        (r#"{"x": null}"#, "needs its type"),
        (r#"[1]"#, "expected a map"),
    ] {
        for kind in ["sql", "wasm"] {
            let refused = register(&client, &body(kind, "wrong", Some(params))).await.expect_err(params);
            assert_eq!(refused.code(), Code::InvalidArgument, "{kind} {params}: {refused}");
            assert!(refused.to_string().contains(word), "{kind} {params}: {refused}");
        }
    }
    let unknown = r#"{"x": {"type": "INTEGR"}}"#;
    let told = register(&client, &body("wasm", "wrong", Some(unknown))).await.unwrap_err().to_string();
    assert!(told.contains("Did you mean") || told.contains("INTEGR"), "{told}");
    let listed = act(&client, "list_exchanges", Value::Null).await.unwrap();
    assert!(!listed.iter().any(|one| one.contains("\"wrong\"")));
}

#[tokio::test(flavor = "multi_thread")]
async fn bare_defaults_have_a_type_that_keeps_their_digits_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = test_config();
    config.database.path = directory.path().join("kept.db").display().to_string();
    let cases = [
        ("5", "BIGINT", "5", "5"),
        ("0.5", "DOUBLE", "0.5", "0.5"),
        ("true", "BOOLEAN", "true", "true"),
        ("\"a\"", "VARCHAR", "a", "\"a\""),
        ("12345678901234567890123", "HUGEINT", "12345678901234567890123", "12345678901234567890123"),
        ("0.12345678901234567891", "DECIMAL(38,20)", "0.12345678901234567891", "0.12345678901234567891"),
    ];
    let server = TestServer::with(config.clone()).await;
    let client = server.client().await;
    for (at, (default, ..)) in cases.iter().enumerate() {
        for kind in ["sql", "wasm"] {
            let params = format!("{{\"x\": {default}}}");
            register(&client, &body(kind, &format!("{kind}{at}"), Some(&params))).await.unwrap();
        }
    }
    drop(client);
    server.server.stop(std::future::pending()).await.unwrap();
    let server = TestServer::with(config).await;
    let client = server.client().await;
    for (at, (default, duckdb_type, text, json)) in cases.iter().enumerate() {
        let answer = collect(client.exchange(&format!("sql{at}"), people(1, 1)).await.unwrap()).await.unwrap();
        let column = |index: usize| answer[0].column(index).as_string::<i32>().value(0).to_string();
        assert_eq!((column(0).as_str(), column(1).as_str()), (*duckdb_type, *text), "{default}");
        let told = client.exchange(&format!("wasm{at}"), people(1, 1)).await.err().expect("it tells").to_string();
        assert!(told.contains(&format!("{{\"x\":{json}}}")), "{default}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_version_declares_what_the_one_before_did_unless_it_says_otherwise() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let params = async |name: &str| {
        let listed = act(&client, "list_exchanges", Value::Null).await.unwrap();
        let mut all = listed.iter().map(|one| serde_json::from_str::<Value>(one).unwrap());
        all.find(|one| one["name"] == name).unwrap()["params"].clone()
    };
    let declared = json!({"x": {"type": "INTEGER", "default": 7}});
    for kind in ["sql", "wasm"] {
        register(&client, &body(kind, kind, Some(&declared.to_string()))).await.unwrap();
        register(&client, &body(kind, kind, None)).await.unwrap();
        assert_eq!(params(kind).await, declared, "{kind}");
    }
    assert_eq!(of_sql(&client, "").await.unwrap().as_deref(), Some("7"));
    assert!(of_wasm(&client, "{\"x\": \"zebra\"}").await.contains("the parameter x"));
    // What the new SQL has no use for is gone.
    let without = json!({"name": "sql", "replace": true, "sql": "FROM input"});
    register(&client, &without.to_string()).await.unwrap();
    assert_eq!(params("sql").await, json!({}));
    register(&client, &body("wasm", "wasm", Some("{}"))).await.unwrap();
    assert_eq!(params("wasm").await, json!({}));
    assert!(of_wasm(&client, "{\"y\": 1}").await.contains("{\"y\":1}"), "the module alone knows what it takes");
}
