//! Texts and types that nest as deep as a client likes.

use mallard::client::Client;
use tonic::Code;

use crate::{
    flight_sql::texts,
    support::{TestServer, collect},
};

async fn answer(client: &Client, sql: &str) -> Result<Vec<String>, mallard::error::Error> {
    Ok(texts(&collect(client.query(sql).await?).await?))
}

/// Every bracket, type and chain, from shallow to far beyond the limits: an answer or an error that says what is wrong with
/// the text, never one of the server's, by running it and by planning it.
#[tokio::test(flavor = "multi_thread")]
async fn what_nests_is_answered_or_refused_as_the_clients_mistake() {
    let server = TestServer::start().await;
    let client = server.client().await;
    const AROUND: [(&str, &str); 27] = [
        ("[", "]"),
        ("(", ")"),
        ("(1, ", ")"),
        ("{'a': ", "}"),
        ("MAP {1: ", "}"),
        ("ROW(", ")"),
        ("struct_pack(a := ", ")"),
        ("list_value(", ")"),
        ("[x FOR x IN [", "]]"),
        ("union_value(a := ", ")"),
        ("CASE WHEN true THEN ", " END"),
        ("CAST(", " AS INT)"),
        ("TRY(", ")"),
        ("(SELECT ", ")"),
        ("ARRAY(SELECT ", ")"),
        ("EXISTS(SELECT ", ")"),
        ("(WITH c AS (SELECT 1) SELECT ", ")"),
        ("(SELECT 1 EXCEPT SELECT ", ")"),
        ("list_transform([1], lambda x: ", ")"),
        ("[[", "] FOR x IN [1]]"),
        ("NOT ", ""),
        ("- ", ""),
        ("lower(", ")"),
        ("extract(year FROM ", ")"),
        ("array_value(", ")"),
        ("unnest([", "])"),
        ("COLUMNS(", ")"),
    ];
    const BEHIND: [&str; 12] = [
        " + 1",
        "[1]",
        "[1:1]",
        "::INT",
        ".a",
        " IS NULL",
        " COLLATE NOCASE",
        " AND true",
        " IN (1)",
        "->'a'",
        " EXCEPT SELECT 1",
        " UNION ALL SELECT 1",
    ];
    const TYPES: [(&str, &str); 7] = [
        ("STRUCT(a ", ")"),
        ("ROW(a ", ")"),
        ("MAP(INT, ", ")"),
        ("UNION(a ", ")"),
        ("STRUCT(a INT, b ", ")"),
        ("", "[]"),
        ("", "[3]"),
    ];
    let mut wrong = Vec::new();
    for levels in [2, 13, 29, 61, 127, 900] {
        let nested = |(open, close): (&str, &str), inner: &str| {
            format!("{}{inner}{}", open.repeat(levels), close.repeat(levels))
        };
        let mut texts: Vec<String> = Vec::new();
        for pair in AROUND {
            texts.push(format!("SELECT {}", nested(pair, "1")));
            texts.push(format!("SELECT {}", pair.0.repeat(levels)));
            texts.push(format!("SELECT *, *, *, * FROM (SELECT {})", nested(pair, "1")));
        }
        texts.extend(BEHIND.map(|chain| format!("SELECT 1{}", chain.repeat(levels))));
        for pair in TYPES {
            texts.push(format!("SELECT NULL::{}", nested(pair, "INT")));
            texts.push(format!("CREATE OR REPLACE TABLE nested (t {})", nested(pair, "INT")));
            texts.push("SELECT * FROM nested".into());
            texts.push(format!("SELECT CAST(NULL AS {}", pair.0.repeat(levels)));
        }
        for sql in texts {
            let ran = answer(&client, &sql).await.map(drop);
            let planned = client.info(arrow_flight::FlightDescriptor::new_cmd(sql.clone())).await.map(drop);
            for (how, outcome) in [("run", ran), ("planned", planned)] {
                use Code::{InvalidArgument, NotFound, Ok, ResourceExhausted, Unimplemented};
                let code = outcome.as_ref().map_or_else(|error| error.code(), |()| Ok);
                if ![Ok, InvalidArgument, NotFound, ResourceExhausted, Unimplemented].contains(&code) {
                    wrong.push(format!("{how} {levels}: {}: {outcome:?}", &sql[..sql.len().min(60)]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.len(), wrong.join("\n"));
    // The tables of such types are listed for those who ask for their schemas.
    assert!(client.list("*").await.is_ok());
    for elements in ["INT[4096][4096][8]", "STRUCT(a INT[4096])[4096][8]", "INT[ 4096 ] [4096] [4096] []"] {
        let refused = client.query(&format!("SELECT NULL::{elements}")).await.err().expect("too many elements");
        assert!(refused.to_string().contains("elements"), "{refused}");
    }
    for small in
        ["SELECT NULL::FLOAT[1536][100]", "SELECT [1, 2][1000000000], [[3]][1][1], [4096, 4096, 4096, 4096, 4096]"]
    {
        assert!(client.query(small).await.is_ok(), "{small}");
    }
    // A macro may hold the lambda; each one calls the one before.
    let mut refused = None;
    for at in 0..24 {
        let inner = if at == 0 { "y".into() } else { format!("l{}(y)", at - 1) };
        let sql = format!("CREATE MACRO l{at}(x) AS list_transform([x], lambda y: {inner})");
        refused = refused.or(client.query(&sql).await.err());
    }
    let refused = refused.expect("16,777,216 bodies");
    assert!(refused.to_string().contains("limits.sql_expansion"), "{refused}");
}
