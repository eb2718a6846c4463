//! Built-in exchangers with parameters, and rows that pass exchangers on their way into tables, out of them and between
//! servers.

use arrow_array::RecordBatch;
use arrow_cast::pretty::pretty_format_batches;
use mallard::{client::Client, error::Error};
use serde_json::json;
use tonic::Code;

use crate::{
    exchange::act,
    support::{TestServer, collect, count, people, row, rows, run, table},
};

async fn exchanged(client: &Client, chain: &str) -> Result<Vec<RecordBatch>, Error> {
    collect(client.exchange(chain, people(3, 4)).await?).await
}

/// Rows as `a|b`, the header first.
fn shown(batches: &[RecordBatch]) -> Vec<String> {
    let table = pretty_format_batches(batches).unwrap().to_string();
    let lines = table.lines().filter(|line| line.starts_with('|'));
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().join("|")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn built_in_exchangers_do_what_their_parameters_say() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for (chain, expected) in [
        (r#"sample {"first": 2}"#, &["id|name", "0|name 0", "1|name 1"][..]),
        (r#"sample {"every": 5} | select {"columns": ["id"]}"#, &["id", "0", "5", "10"]),
        (
            r#"select {"columns": [{"column": "NAME", "as": "who"}, "id"]} | sample {"first": 1}"#,
            &["who|id", "name 0|0"],
        ),
        (r#"select {"except": ["name"]} | sample {"first": 1}"#, &["id", "0"]),
        (r#"filter {"where": [{"column": "id", "op": ">=", "value": 10}]}"#, &["id|name", "10|name 2", "11|name 3"]),
        (
            r#"filter {"where": [{"column": "id", "op": "in", "value": [1, 7]}, {"column": "name", "op": "=", "value": "name 1"}], "any": true}
               | select {"columns": ["id"]}"#,
            &["id", "1", "5", "7", "9"],
        ),
        (
            r#"filter {"where": [{"column": "id", "op": "<", "value": 2}, {"column": "name", "op": "not_null"}]} | select {"columns": ["id"]}"#,
            &["id", "0", "1"],
        ),
        (r#"filter {"where": [{"column": "name", "op": "is_null"}]}"#, &["id|name"]),
        (r#"mask {"columns": {"name": "redact", "id": "null"}} | sample {"first": 1}"#, &["id|name", "|***"]),
        (
            // HMAC-SHA256 of "0" and its key, as OpenSSL has it.
            r#"mask {"columns": {"id": "hash"}, "key": "a good key"} | sample {"first": 1} | select {"columns": ["id"]}"#,
            &["id", "@hash"],
        ),
        (
            r#"validate {"rules": [{"column": "id", "min": 2, "max": 9}, {"column": "name", "regex": "^name [0-2]$"}]} | select {"columns": ["id"]}"#,
            &["id", "2", "4", "5", "6", "8", "9"],
        ),
        (
            r#"validate {"rules": [{"column": "id", "max": 9}, {"column": "name", "in": ["name 0", "name 3"]}], "failing": "return"}
               | filter {"where": [{"column": "id", "op": ">", "value": 8}]} | select {"columns": ["id", "reason"]}"#,
            &["id|reason", "9|name is not one of the values", "10|id is more than 9", "11|id is more than 9"],
        ),
        (
            r#"validate {"rules": [{"column": "id", "min": 10, "not_null": true}], "failing": "count"}"#,
            &["rule|rows|failing", "id is null|12|0", "id is less than 10|12|10"],
        ),
        (
            r#"validate {"rules": [{"column": "id", "max": 10}], "failing": "mark"} | filter {"where": [{"column": "reason", "op": "not_null"}]}"#,
            &["id|name|reason", "11|name 3|id is more than 10"],
        ),
    ] {
        let answer = exchanged(&client, chain).await.unwrap_or_else(|error| panic!("{chain}: {error}"));
        let seen = shown(&answer);
        match expected {
            ["id", "@hash"] => assert!(seen.len() == 2 && seen[1].len() == 64, "{chain}: {seen:?}"),
            // Without a batch there is no header to show.
            [_] if answer.iter().all(|batch| batch.num_rows() == 0) => {}
            _ => assert_eq!(seen, expected, "{chain}"),
        }
    }
    let part = |seed: u64| format!(r#"sample {{"fraction": 0.25, "seed": {seed}}}"#);
    let sampled = |chain: String, batches: usize, each: usize| {
        let client = client.clone();
        async move {
            let answer = collect(client.exchange(&chain, people(batches, each)).await.unwrap()).await.unwrap();
            arrow_select::concat::concat_batches(&answer[0].schema(), &answer).unwrap().column(0).clone()
        }
    };
    let (one, other) = (sampled(part(1), 10, 1000).await, sampled(part(1), 1, 10_000).await);
    assert_eq!(&one, &other, "whatever the batches are");
    assert!((2_200..2_800).contains(&one.len()), "{}", one.len());
    assert_ne!(&one, &sampled(part(2), 10, 1000).await);

    client.put(&table("people"), people(3, 4)).await.unwrap();
    let sum = row(&client, "SELECT sum(hash(p))::VARCHAR FROM people p").await.remove(0);
    assert_eq!(shown(&exchanged(&client, "checksum").await.unwrap()), ["rows|hash".to_string(), format!("12|{sum}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_parameters_are_named_before_any_data() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for (chain, word) in [
        (r#"select {"colums": ["id"]}"#, "`colums`"),
        (r#"select {"columns": ["id"], "except": ["id"]}"#, "not both"),
        (r#"select {"columns": ["ids"]}"#, "\"ids\""),
        (r#"select {"columns": [{"column": "id", "to": "x"}]}"#, "parameters"),
        (r#"select {"except": ["id", "name"]}"#, "no column"),
        (r#"filter {}"#, "`where`"),
        (r#"filter {"where": [{"column": "id", "op": "~", "value": 1}]}"#, "\"~\""),
        (r#"filter {"where": [{"column": "id", "op": ">", "value": "x"}]}"#, "\"id\""),
        (r#"filter {"where": [{"column": "id", "op": ">"}]}"#, "no value"),
        (r#"sample {"first": 1, "every": 2}"#, "one of first"),
        (r#"sample {"fraction": 2}"#, "one of first"),
        (r#"mask {"columns": {"name": "hash"}}"#, "key"),
        (r#"mask {"columns": {"name": "blur"}}"#, "`blur`"),
        (r#"validate {"rules": []}"#, "no rule"),
        (r#"validate {"rules": [{"column": "name", "regex": "("}]}"#, "regex"),
        (r#"validate {"rules": [{"column": "id", "least": 1}]}"#, "`least`"),
        (r#"checksum {"seed": 1}"#, "`seed`"),
    ] {
        let refused = client.exchange(chain, people(1, 1)).await.err().unwrap_or_else(|| panic!("{chain}"));
        assert!(refused.code() == Code::InvalidArgument && refused.to_string().contains(word), "{chain}: {refused}");
    }
    let failing = r#"validate {"rules": [{"column": "id", "max": 6}], "failing": "fail"}"#;
    let failed = exchanged(&client, failing).await.expect_err("row 8 breaks it").to_string();
    assert!(failed.contains("\"validate\"") && failed.contains("id is more than 6 (at row 8"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_pass_exchangers_on_their_way_into_a_table_out_of_it_and_between_servers() {
    let (one, two) = (TestServer::start().await, TestServer::start().await);
    let (client, other) = (one.client().await, two.client().await);
    act(&client, "add_exchange", json!({"name": "even", "sql": "SELECT * FROM input WHERE id % 2 = 0"})).await.unwrap();
    act(&other, "add_exchange", json!({"name": "third", "sql": "SELECT id FROM input WHERE id % 3 = 0"}))
        .await
        .unwrap();
    let through = |chain: &str| client.clone().through(Some(chain)).unwrap();

    let stored = through("even | processed").put(&table("t"), people(10, 1000)).await.unwrap();
    assert_eq!(stored.rows, 5000);
    assert_eq!(
        row(&client, "SELECT count(*), bool_and(processed), bool_and(id % 2 = 0) FROM t").await,
        ["5000", "true", "true"]
    );
    let answer = through(r#"sample {"every": 10} | count"#).query("FROM t").await.unwrap();
    assert_eq!(mallard::transfer::first_row(answer).await.unwrap()[0], "500");
    assert_eq!(rows(&collect(client.query("FROM t").await.unwrap()).await.unwrap()), 5000, "the others pass none");

    let body = json!({"from": one.uri(), "table": "t", "exchange": "third | processed"});
    let steps = act(&other, "transfer", body).await.unwrap();
    let last: serde_json::Value = serde_json::from_str(steps.last().unwrap()).unwrap();
    assert_eq!((&last["rows"], &last["verified"], &last["done"]), (&json!(1667), &json!(false), &json!(true)));
    assert_eq!(row(&other, "SELECT count(*), bool_and(processed) FROM t").await, ["1667", "true"]);

    // An exchanger that fails leaves nothing.
    run(&client, "CREATE TABLE kept AS SELECT 1 AS id").await;
    let failing =
        r#"validate {"rules": [{"column": "id", "max": 7000}], "failing": "fail"} | select {"columns": ["id"]}"#;
    let failed = through(failing).put(&table("kept"), people(10, 1000)).await.unwrap_err();
    assert!(failed.to_string().contains("at row 7002"), "{failed}");
    assert_eq!(count(&client, "kept").await, 1);
    for chain in ["nothing", "echo |", r#"select {"columns": ["x"]}"#] {
        assert!(through(chain).query("FROM t").await.is_err(), "{chain}");
        assert!(through(chain).put(&table("none"), people(1, 1)).await.is_err(), "{chain}");
    }
    assert_eq!(client.query("FROM none").await.err().unwrap().code(), Code::NotFound);
}
