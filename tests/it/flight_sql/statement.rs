//! Statements as text.

use arrow_flight::{
    Ticket,
    sql::{CommandStatementQuery, CommandStatementUpdate, ProstMessageExt, TicketStatementQuery},
};
use futures::TryStreamExt;
use prost::Message;
use tonic::Code;
use tonic_types::pb;

use super::{message, refused, rows, table, table_in, texts, update};
use crate::support::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn announced_schema_is_that_of_the_rows() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    for (sql, expected) in [
        ("SELECT 1 AS a, 'x' AS b", vec!["1|x"]),
        ("SELECT range AS n FROM range(3)", vec!["0", "1", "2"]),
        ("SELECT 1 AS a WHERE false", vec![]),
        ("SELECT 'a'::ENUM('a', 'b') AS e, [1, NULL] AS l, {'k': 1.5} AS s", vec!["a|[1, NULL]|{k: 1.5}"]),
        ("SELECT 1::HUGEINT AS h, true AS b, NULL AS n", vec!["1|true|NULL"]),
        ("EXPLAIN SELECT 1", vec![]),
    ] {
        let query = CommandStatementQuery { query: sql.into(), transaction_id: None };
        let schema = client.inner_mut().get_schema(message(&query)).await.unwrap().into_inner();
        let schema = arrow_schema::Schema::try_from(&schema).unwrap();
        let info = client.execute(sql.into(), None).await.unwrap();
        let (announced, batches) = rows(&mut client, info).await;
        assert_eq!(schema, announced, "{sql}");
        if !expected.is_empty() {
            assert_eq!(texts(&batches), expected, "{sql}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_without_rows_runs_once_whichever_way_it_is_asked_for() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    // As ADBC's cursor.execute does it, which does not always come back for the rows.
    let info = client.execute("CREATE TABLE t (i INTEGER)".into(), None).await.unwrap();
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["0"]);
    let (schema, batches) = rows(&mut client, info.clone()).await;
    assert!(schema.fields().is_empty() && batches.is_empty());
    // Nothing is run by the ticket, however often it is used.
    rows(&mut client, info).await;
    let info = client.execute("INSERT INTO t SELECT * FROM range(3)".into(), None).await.unwrap();
    assert_eq!(info.total_records, 3, "what clients show as the row count");
    rows(&mut client, info).await;
    assert_eq!(client.execute_update("INSERT INTO t VALUES (4), (5)".into(), None).await.unwrap(), 2);
    assert_eq!(client.execute_update("CREATE TABLE u AS SELECT 1 AS i".into(), None).await.unwrap(), 1);
    assert_eq!(client.execute_update("DROP TABLE u".into(), None).await.unwrap(), 0);
    // DoGet of the command itself, as some clients do.
    let command = CommandStatementQuery { query: "INSERT INTO t VALUES (6)".into(), transaction_id: None };
    let ticket = Ticket::new(command.as_any().encode_to_vec());
    let batches: Vec<_> = client.do_get(ticket).await.unwrap().try_collect().await.unwrap();
    assert!(batches.is_empty());
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["6"]);
    // Asking for the schema runs nothing.
    let command = CommandStatementQuery { query: "DELETE FROM t".into(), transaction_id: None };
    client.inner_mut().get_schema(message(&command)).await.unwrap();
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["6"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn query_runs_when_it_is_read_and_its_ticket_may_be_wrapped() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    client.execute_update("CREATE TABLE t AS SELECT 1 AS i".into(), None).await.unwrap();
    let info = client.execute("SELECT i FROM t ORDER BY i".into(), None).await.unwrap();
    client.execute_update("INSERT INTO t VALUES (2)".into(), None).await.unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap().ticket;
    let wrapped = TicketStatementQuery { statement_handle: ticket };
    let wrapped = Ticket::new(wrapped.as_any().encode_to_vec());
    let batches: Vec<_> = client.do_get(wrapped).await.unwrap().try_collect().await.unwrap();
    assert_eq!(texts(&batches), ["1", "2"]);
    let strange = TicketStatementQuery { statement_handle: b"SELECT 1".to_vec().into() };
    let strange = Ticket::new(strange.as_any().encode_to_vec());
    assert_eq!(refused(client.do_get(strange).await).0, Code::InvalidArgument);
}

/// DuckDB makes several statements of these, and knows their columns only when they run.
#[tokio::test(flavor = "multi_thread")]
async fn columns_that_only_a_run_can_tell_are_told() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    client
        .execute_update("CREATE TABLE t AS SELECT range % 3 AS g, range AS i FROM range(6)".into(), None)
        .await
        .unwrap();
    for sql in ["PIVOT t ON g USING count(*)", "PRAGMA table_info('t')"] {
        let info = client.execute(sql.into(), None).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let (schema, batches) = rows(&mut client, info).await;
        assert!(!schema.fields().is_empty() && !texts(&batches).is_empty(), "{sql}");
        let mut prepared = client.prepare(sql.into(), None).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let info = prepared.execute().await.unwrap();
        assert_eq!(rows(&mut client, info).await.0, schema, "{sql}");
    }
    // One that changes something runs once, and not to be told its columns.
    let made = client.execute("CREATE TABLE p AS PIVOT t ON g USING count(*)".into(), None).await.unwrap();
    rows(&mut client, made).await;
    let mut more = client.prepare("INSERT INTO p PIVOT t ON g USING count(*)".into(), None).await.unwrap();
    let once = super::table_in(&mut client, "SELECT count(*) FROM p", None).await;
    more.execute_update().await.unwrap();
    let pivoted = super::table_in(&mut client, "SELECT count(*) FROM (PIVOT t ON g USING count(*))", None).await;
    assert_eq!(
        (&once, once[0].parse::<u64>().unwrap() * 2),
        (&pivoted, super::table_in(&mut client, "SELECT count(*) FROM p", None).await[0].parse().unwrap())
    );
    let transaction = client.begin_transaction().await.unwrap();
    let info = client.execute("PIVOT t ON g USING count(*)".into(), Some(transaction.clone())).await.unwrap();
    rows(&mut client, info).await;
    assert_eq!(super::table_in(&mut client, "SELECT count(*) FROM t", Some(&transaction)).await, ["6"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_served_says_so() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    let (code, says) = refused(client.execute("SELEC 1".into(), None).await);
    assert_eq!(code, Code::InvalidArgument, "{says}");
    let plan = arrow_flight::sql::CommandStatementSubstraitPlan::default();
    let refusal = client.inner_mut().get_flight_info(message(&plan)).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unimplemented);
    assert!(refusal.message().contains("Substrait"), "{refusal}");
    let update = CommandStatementUpdate { query: "SELECT 1".into(), transaction_id: None };
    let refusal = client.inner_mut().get_flight_info(message(&update)).await.unwrap_err();
    assert!(refusal.code() == Code::Unimplemented && refusal.message().contains("DoPut"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_tell_programs_their_class_and_position() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    client.execute_update("CREATE TABLE t (i INTEGER PRIMARY KEY)".into(), None).await.unwrap();
    client.execute_update("INSERT INTO t VALUES (1)".into(), None).await.unwrap();
    for (sql, code, reason, facts) in [
        ("SELEC 1", Code::InvalidArgument, "SQL", vec![("class", "Parser"), ("line", "1"), ("column", "1")]),
        (
            "SELECT 1\n  FROM FROM t",
            Code::InvalidArgument,
            "SQL",
            vec![("class", "Parser"), ("line", "2"), ("column", "8")],
        ),
        ("SELECT nope()", Code::NotFound, "NOT_FOUND", vec![("class", "Catalog")]),
        ("SELECT nope FROM t", Code::InvalidArgument, "SQL", vec![("class", "Binder")]),
        ("INSERT INTO t VALUES (1)", Code::FailedPrecondition, "CONSTRAINT", vec![("class", "Constraint")]),
        ("COPY t TO 'x'", Code::PermissionDenied, "DENIED", vec![("rule", "keyword")]),
        ("SAVEPOINT a", Code::Unimplemented, "UNSUPPORTED", vec![]),
    ] {
        let query = CommandStatementQuery { query: sql.into(), transaction_id: None };
        let status = client.inner_mut().get_flight_info(message(&query)).await.unwrap_err();
        assert_eq!(status.code(), code, "{sql}: {status}");
        let detailed = pb::Status::decode(status.details()).unwrap();
        assert_eq!(detailed.code, i32::from(code), "{sql}");
        assert_eq!(detailed.message, status.message(), "{sql}");
        assert_eq!(detailed.details[0].type_url, "type.googleapis.com/google.rpc.ErrorInfo");
        let info = pb::ErrorInfo::decode(detailed.details[0].value.as_slice()).unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "mallard"), "{sql}");
        for (name, value) in facts {
            assert_eq!(
                info.metadata.get(name).map(String::as_str),
                Some(value),
                "{sql}: {name} in {:?}",
                info.metadata
            );
        }
    }
}

/// Every way of changing rows, with a RETURNING of its own, of a CTE or of none: what was planned is what comes, and what
/// was done is not answered with an error.
#[tokio::test(flavor = "multi_thread")]
async fn planned_schema_of_a_change_is_the_one_that_comes() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    let changes = [
        "INSERT INTO t VALUES (1, 'a')",
        "INSERT INTO t SELECT 1 AS returning, 'a'",
        "UPDATE t SET s = 'b'",
        "DELETE FROM t",
        "MERGE INTO t USING (SELECT 7 AS j) ON i = j WHEN NOT MATCHED THEN INSERT VALUES (j, 'm')",
    ];
    let (mut cases, mut planned_rows) = (Vec::new(), 0);
    for change in changes {
        cases.push(change.to_string());
        cases.push(format!("{change} RETURNING *"));
        cases.push(format!("{change} RETURNING i::HUGEINT AS \"Count\", [s], {{'returning': i}} -- returning"));
        cases.push(format!("WITH c AS (SELECT 1 AS returning) {change}"));
        cases.push(format!("WITH c AS (SELECT 1 AS returning) {change} RETURNING s"));
        for inner in
            ["INSERT INTO u VALUES (5) RETURNING i", "UPDATE u SET i = i + 1 RETURNING i", "DELETE FROM u RETURNING i"]
        {
            cases.push(format!("WITH c AS ({inner}) {change}"));
            cases.push(format!("WITH c AS ({inner}) {change} RETURNING i, s"));
            cases.push(format!("WITH c AS ({inner}) INSERT INTO t SELECT i, 'c' FROM c"));
            cases.push(format!("WITH c AS ({inner}) INSERT INTO t SELECT i, 'c' FROM c RETURNING s"));
        }
    }
    for inner in ["INSERT INTO u VALUES (5)", "UPDATE u SET i = i + 1", "DELETE FROM u"] {
        cases.push(format!("WITH c AS ({inner} RETURNING i) SELECT * FROM c"));
    }
    for sql in cases {
        for transacted in [false, true] {
            update(&mut client, "CREATE OR REPLACE TABLE t AS SELECT 1 AS i, 'x' AS s").await;
            update(&mut client, "CREATE OR REPLACE TABLE u AS SELECT 1 AS i").await;
            let transaction = match transacted {
                true => Some(client.begin_transaction().await.unwrap()),
                false => None,
            };
            let state = "SELECT (SELECT list((i, s) ORDER BY i, s) FROM t), (SELECT list(i ORDER BY i) FROM u)";
            let before = table_in(&mut client, state, transaction.as_ref()).await;
            let outcome = client.execute(sql.clone(), transaction.clone()).await;
            match outcome {
                Ok(info) => {
                    // Each batch has the schema that was announced.
                    let (schema, _) = super::rows(&mut client, info).await;
                    planned_rows += usize::from(!schema.fields().is_empty());
                }
                // DuckDB does not know it; then nothing was done.
                Err(error) => {
                    if transaction.is_none() {
                        assert_eq!(table(&mut client, state).await, before, "{sql}: {error}");
                    }
                }
            }
            if let Some(transaction) = transaction {
                // Where the change was refused, so is this.
                let _ = client.end_transaction(transaction, arrow_flight::sql::EndTransaction::Rollback).await;
            }
        }
    }
    assert!(planned_rows > 40, "{planned_rows}");
}
