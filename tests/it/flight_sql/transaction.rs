//! Transactions: begun by the action or as a text, isolated, and never half seen.

use std::time::Duration;

use arrow_flight::sql::{ActionBeginSavepointRequest, EndTransaction, ProstMessageExt};
use futures::TryStreamExt;
use mallard::config::Span;
use prost::Message;
use tonic::Code;

use super::{action, refused, table, table_in, update};
use crate::support::{TestServer, USER, test_config, until, with_login, with_users};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_transaction_changes_is_seen_by_others_once_it_commits() {
    let server = TestServer::start().await;
    let (mut client, mut other) = (server.sql().await, server.sql().await);
    update(&mut client, "CREATE TABLE t (i INTEGER)").await;
    for (end, expected) in [(EndTransaction::Rollback, "0"), (EndTransaction::Commit, "2")] {
        let transaction = client.begin_transaction().await.unwrap();
        assert_eq!(server.metric("mallard_transactions_open").await, 1.0);
        let inserted =
            client.execute_update("INSERT INTO t VALUES (1)".into(), Some(transaction.clone())).await.unwrap();
        assert_eq!(inserted, 1);
        // DDL, which runs at GetFlightInfo, is a part of it, too.
        table_in(&mut client, "CREATE TABLE IF NOT EXISTS u AS SELECT 1 AS i", Some(&transaction)).await;
        let mut prepared =
            client.prepare("INSERT INTO t SELECT i + 1 FROM u".into(), Some(transaction.clone())).await.unwrap();
        assert_eq!(prepared.execute_update().await.unwrap(), 1);
        assert_eq!(table_in(&mut client, "SELECT count(*) FROM t, u", Some(&transaction)).await, ["2"]);
        // Without its handle a statement is not a part of it.
        assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["0"]);
        assert_eq!(table(&mut other, "SELECT count(*) FROM t").await, ["0"]);
        client.end_transaction(transaction.clone(), end).await.unwrap();
        assert_eq!(table(&mut other, "SELECT count(*) FROM t").await, [expected]);
        let (code, _) = refused(client.execute("SELECT 1".into(), Some(transaction.clone())).await);
        assert_eq!(code, Code::NotFound);
        assert_eq!(refused(client.end_transaction(transaction, end).await).0, Code::NotFound);
    }
    assert_eq!(server.metric("mallard_transactions_open").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_in_a_transaction_waits_until_the_rows_before_it_were_read() {
    let mut config = test_config();
    config.session.wait = Span(Duration::from_millis(200));
    let server = TestServer::with(config).await;
    let mut client = server.sql().await;
    let transaction = client.begin_transaction().await.unwrap();
    let sql = "SELECT range AS n, repeat('x', 100) AS s FROM range(3000000)";
    let info = client.execute(sql.into(), Some(transaction.clone())).await.unwrap();
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    let mut seen = stream.try_next().await.unwrap().unwrap().num_rows();
    let (code, says) = refused(client.execute("SELECT 1".into(), Some(transaction.clone())).await);
    assert!(code == Code::ResourceExhausted && says.contains("session.wait"), "{code:?} {says}");
    // And nothing has ended the rows: all are there.
    while let Some(batch) = stream.try_next().await.unwrap() {
        seen += batch.num_rows();
    }
    assert_eq!(seen, 3_000_000);
    assert_eq!(table_in(&mut client, "SELECT 1", Some(&transaction)).await, ["1"]);
    // A small answer is out of the way at once, read or not.
    let info = client.execute("SELECT range FROM range(10)".into(), Some(transaction.clone())).await.unwrap();
    let unread = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    assert_eq!(table_in(&mut client, "SELECT 2", Some(&transaction)).await, ["2"]);
    drop(unread);
    // A rollback ends what still runs.
    let info = client.execute(sql.into(), Some(transaction.clone())).await.unwrap();
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    stream.try_next().await.unwrap().unwrap();
    client.end_transaction(transaction, EndTransaction::Rollback).await.unwrap();
    let mut end = Ok(());
    while end.is_ok() {
        match stream.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the rows ended as if they were all"),
            Err(error) => end = Err(error),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn error_in_a_transaction_is_told_until_it_is_rolled_back() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    update(&mut client, "CREATE TABLE t (i INTEGER PRIMARY KEY)").await;
    update(&mut client, "INSERT INTO t VALUES (1)").await;
    let transaction = client.begin_transaction().await.unwrap();
    client.execute_update("INSERT INTO t VALUES (2)".into(), Some(transaction.clone())).await.unwrap();
    let (code, _) = refused(client.execute_update("INSERT INTO t VALUES (1)".into(), Some(transaction.clone())).await);
    assert_eq!(code, Code::FailedPrecondition, "a constraint");
    let (code, says) =
        refused(client.execute_update("INSERT INTO t VALUES (3)".into(), Some(transaction.clone())).await);
    assert!(code == Code::FailedPrecondition && says.contains("ROLLBACK"), "{code:?} {says}");
    assert!(client.end_transaction(transaction, EndTransaction::Commit).await.is_err());
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn conflict_is_told_from_a_constraint() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    update(&mut client, "CREATE TABLE t AS SELECT 1 AS i").await;
    let (first, second) = (client.begin_transaction().await.unwrap(), client.begin_transaction().await.unwrap());
    client.execute_update("UPDATE t SET i = 2".into(), Some(first.clone())).await.unwrap();
    let (code, says) = refused(client.execute_update("UPDATE t SET i = 3".into(), Some(second.clone())).await);
    assert_eq!(code, Code::Aborted, "{says}");
    client.end_transaction(first, EndTransaction::Commit).await.unwrap();
    client.end_transaction(second, EndTransaction::Rollback).await.unwrap();
    assert_eq!(table(&mut client, "SELECT i FROM t").await, ["2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_begin_and_end_the_transaction_of_a_session() {
    let server = TestServer::with(with_login(test_config())).await;
    let (mut client, mut other) = (server.sql_of(USER).await, server.sql_of(USER).await);
    update(&mut client, "CREATE TABLE t (i INTEGER)").await;
    for (end, expected) in [("ROLLBACK", "0"), ("COMMIT;", "2")] {
        // In every way in which a client may send a text.
        table(&mut client, "BEGIN TRANSACTION").await;
        update(&mut client, "INSERT INTO t VALUES (1)").await;
        let mut prepared = client.prepare("INSERT INTO t VALUES (2)".into(), None).await.unwrap();
        prepared.execute().await.unwrap();
        assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["2"]);
        assert_eq!(table(&mut other, "SELECT count(*) FROM t").await, ["0"], "another session of the same user");
        let mut prepared = client.prepare(end.into(), None).await.unwrap();
        prepared.execute_update().await.unwrap();
        assert_eq!(table(&mut other, "SELECT count(*) FROM t").await, [expected]);
    }
    for (sql, code) in [
        ("COMMIT", Code::FailedPrecondition),
        ("ROLLBACK", Code::FailedPrecondition),
        ("SAVEPOINT a", Code::Unimplemented),
        ("RELEASE SAVEPOINT a", Code::Unimplemented),
        ("ROLLBACK TO SAVEPOINT a", Code::Unimplemented),
    ] {
        let refusal = refused(client.execute_update(sql.into(), None).await);
        assert_eq!(refusal.0, code, "{sql}: {}", refusal.1);
    }
    update(&mut client, "BEGIN").await;
    assert_eq!(refused(client.execute_update("BEGIN".into(), None).await).0, Code::FailedPrecondition);
    update(&mut client, "ROLLBACK").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_as_a_text_needs_a_session() {
    let mut config = test_config();
    config.session.per_connection = false;
    let (with_key, by_default) = (TestServer::with(config).await, TestServer::start().await);
    // A connection that a proxy has passed the call on by may be several clients'.
    let mut forwarded = by_default.sql().await;
    forwarded.set_header("x-forwarded-for", "192.0.2.1");
    for mut client in [with_key.sql().await, forwarded] {
        for sql in ["BEGIN", "COMMIT", "CREATE TEMP TABLE t (i INTEGER)"] {
            let (code, says) = refused(client.execute_update(sql.into(), None).await);
            assert!(code == Code::FailedPrecondition && says.contains("session"), "{sql}: {code:?} {says}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_is_the_session_of_a_client_without_a_login_and_ends_with_it() {
    let server = TestServer::start().await;
    let (mut client, mut other) = (server.sql().await, server.sql().await);
    update(&mut client, "CREATE SCHEMA s").await;
    update(&mut client, "CREATE TABLE s.t (i INTEGER)").await;
    update(&mut client, "USE s").await;
    update(&mut client, "SET VARIABLE x = 41").await;
    update(&mut client, "CREATE TEMP TABLE mine AS SELECT 1 AS i").await;
    assert_eq!(table(&mut client, "SELECT current_schema(), getvariable('x') + i FROM mine").await, ["s|42"]);
    for sql in ["FROM mine", "FROM t"] {
        assert_eq!(refused(other.execute(sql.into(), None).await).0, Code::NotFound, "{sql}");
    }
    update(&mut client, "BEGIN").await;
    update(&mut client, "INSERT INTO t VALUES (1)").await;
    assert_eq!(table(&mut other, "SELECT count(*) FROM s.t").await, ["0"]);
    update(&mut client, "COMMIT").await;
    assert_eq!(table(&mut other, "SELECT count(*) FROM s.t").await, ["1"]);
    // What a transaction that a driver began leaves in its session outlives it, as with autocommit off.
    let transaction = other.begin_transaction().await.unwrap();
    table_in(&mut other, "CREATE TEMP TABLE kept AS SELECT 7 AS i", Some(&transaction)).await;
    other.end_transaction(transaction, EndTransaction::Commit).await.unwrap();
    let transaction = other.begin_transaction().await.unwrap();
    assert_eq!(table_in(&mut other, "FROM kept", Some(&transaction)).await, ["7"]);
    other.end_transaction(transaction, EndTransaction::Rollback).await.unwrap();
    assert_eq!(table(&mut other, "FROM kept").await, ["7"]);
    assert_eq!(server.metric("mallard_client_sessions").await, 2.0);
    update(&mut client, "BEGIN").await;
    update(&mut client, "DELETE FROM t").await;
    drop((client, other));
    until("nothing is left", || async {
        server.metric("mallard_client_sessions").await + server.metric("mallard_transactions_open").await == 0.0
    })
    .await;
    assert_eq!(table(&mut server.sql().await, "SELECT count(*) FROM s.t").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_end_a_transaction_that_a_driver_began_and_its_handle_stays_good() {
    let server = TestServer::start().await;
    let (mut client, mut other) = (server.sql().await, server.sql().await);
    update(&mut client, "CREATE TABLE t (i INTEGER)").await;
    let handle = client.begin_transaction().await.unwrap();
    let run = async |client: &mut super::Sql, sql: &str| client.execute_update(sql.into(), Some(handle.clone())).await;
    // Nothing has run yet: it is the one that the text asks for.
    run(&mut client, "BEGIN").await.unwrap();
    run(&mut client, "INSERT INTO t VALUES (1)").await.unwrap();
    run(&mut client, "COMMIT").await.unwrap();
    assert_eq!(table(&mut other, "FROM t").await, ["1"]);
    assert_eq!(refused(run(&mut client, "COMMIT").await).0, Code::FailedPrecondition);
    run(&mut client, "BEGIN").await.unwrap();
    run(&mut client, "INSERT INTO t VALUES (2)").await.unwrap();
    run(&mut client, "ROLLBACK").await.unwrap();
    // What comes next is in another transaction, and the driver ends it.
    run(&mut client, "INSERT INTO t VALUES (3)").await.unwrap();
    assert_eq!(table(&mut other, "FROM t").await, ["1"]);
    client.end_transaction(handle.clone(), EndTransaction::Commit).await.unwrap();
    assert_eq!(table(&mut other, "FROM t ORDER BY i").await, ["1", "3"]);
    // The driver ends what a text has ended already.
    for end in [EndTransaction::Commit, EndTransaction::Rollback] {
        let handle = client.begin_transaction().await.unwrap();
        client.execute_update("COMMIT".into(), Some(handle.clone())).await.unwrap();
        client.end_transaction(handle, end).await.unwrap();
    }
    // DuckDB aborts a transaction in which another one is begun, as with every error of its own.
    for wrong in [
        "BEGIN",
        "SELEC",
        "SELECT nope",
        "FROM nope",
        "SELECT 'x'::INTEGER",
        "DROP TABLE nope",
        "CREATE TABLE t (i INT)",
    ] {
        let handle = client.begin_transaction().await.unwrap();
        client.execute_update("INSERT INTO t VALUES (4)".into(), Some(handle.clone())).await.unwrap();
        refused(client.execute_update(wrong.into(), Some(handle.clone())).await);
        let (code, says) =
            refused(client.execute_update("INSERT INTO t VALUES (5)".into(), Some(handle.clone())).await);
        assert!(code == Code::FailedPrecondition && says.contains("ROLLBACK"), "{wrong}: {code:?} {says}");
        client.end_transaction(handle, EndTransaction::Rollback).await.unwrap();
    }
    assert_eq!(table(&mut other, "SELECT count(*) FROM t").await, ["2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_statements_in_one_text_run_in_order_and_an_error_says_which() {
    let mut config = test_config();
    config.limits.statements_per_text = 5;
    let server = TestServer::with(config).await;
    let mut client = server.sql().await;
    let text = "CREATE TABLE t (s VARCHAR); -- a; comment\nINSERT INTO t VALUES ('a;b');\n\nSELECT s FROM t;;";
    assert_eq!(table(&mut client, text).await, ["a;b"]);
    assert_eq!(update(&mut client, "INSERT INTO t VALUES ('c'); UPDATE t SET s = 'd'").await, 2);
    assert_eq!(
        table(&mut client, "BEGIN; DELETE FROM t; ROLLBACK; CREATE TEMP TABLE u AS FROM t; SELECT count(*) FROM u")
            .await,
        ["2"]
    );
    // Those before it are done, those behind it are not.
    let wrong = "INSERT INTO t VALUES ('e');\nINSERT INTO t VALUES ('f');\n\n  SELECT nope\nFROM t;\nDELETE FROM t";
    let (code, says) = refused(client.execute_update(wrong.into(), None).await);
    assert!(
        code == Code::InvalidArgument && says.starts_with("statement 3 of 4, line 4: ") && says.contains("nope"),
        "{says}"
    );
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["4"]);
    // Nothing runs of a text that does not parse, that holds too many, or where one is planned or prepared.
    let (code, says) = refused(client.execute("DELETE FROM t;\n\nSELEC 1".into(), None).await);
    assert!(code == Code::InvalidArgument && says.starts_with("statement 2 of 2, line 3: "), "{says}");
    assert!(says.contains("LINE 3:"), "{says}");
    let (code, says) = refused(client.execute("DELETE FROM t; 2; 3; 4; 5; 6".replace("; ", "; SELECT "), None).await);
    assert!(code == Code::ResourceExhausted && says.contains("limits.statements_per_text"), "{says}");
    let (_, says) = refused(client.prepare("DELETE FROM t; SELECT 1".into(), None).await);
    assert!(says.contains("more than one statement"), "{says}");
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn savepoints_are_answered_with_that_there_are_none() {
    let server = TestServer::start().await;
    let mut client = server.sql().await;
    let transaction_id = client.begin_transaction().await.unwrap();
    let body = ActionBeginSavepointRequest { transaction_id, name: "a".into() }.as_any().encode_to_vec();
    let refusal = action(&mut client, "BeginSavepoint", body, &[]).await.unwrap_err();
    assert!(refusal.code() == Code::Unimplemented && refusal.message().contains("savepoints"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_transaction_is_rolled_back_and_its_client_is_told() {
    let mut config = with_login(test_config());
    config.session.transaction_timeout = Span(Duration::from_millis(300));
    let server = TestServer::with(config).await;
    let mut client = server.sql_of(USER).await;
    update(&mut client, "CREATE TABLE t (i INTEGER)").await;
    let transaction = client.begin_transaction().await.unwrap();
    client.execute_update("INSERT INTO t VALUES (1)".into(), Some(transaction.clone())).await.unwrap();
    until("it is rolled back", || async { server.metric("mallard_transactions_open").await == 0.0 }).await;
    assert_eq!(refused(client.execute("SELECT 1".into(), Some(transaction)).await).0, Code::NotFound);
    update(&mut client, "BEGIN").await;
    update(&mut client, "INSERT INTO t VALUES (1)").await;
    until("it is rolled back", || async { server.metric("mallard_transactions_open").await == 0.0 }).await;
    // Not as if it were a statement of its own.
    let (code, says) = refused(client.execute_update("INSERT INTO t VALUES (2)".into(), None).await);
    assert!(code == Code::FailedPrecondition && says.contains("session.transaction_timeout"), "{code:?} {says}");
    assert_eq!(refused(client.execute_update("COMMIT".into(), None).await).0, Code::FailedPrecondition);
    assert_eq!(table(&mut client, "SELECT count(*) FROM t").await, ["0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_that_has_gone_has_left_is_freed() {
    let mut config = with_login(test_config());
    config.session.disconnect_timeout = Span(Duration::from_millis(600));
    let server = TestServer::with(config).await;
    let kept = async || {
        let [open, prepared] = ["mallard_transactions_open", "mallard_prepared_statements"];
        (server.metric(open).await, server.metric(prepared).await)
    };
    let mut other = server.sql_of(USER).await;
    update(&mut other, "CREATE TABLE t (i INTEGER)").await;
    let mut first = server.sql_of(USER).await;
    let transaction = first.begin_transaction().await.unwrap();
    first.execute_update("INSERT INTO t VALUES (1)".into(), Some(transaction)).await.unwrap();
    let statement = first.prepare("SELECT 1".into(), None).await.unwrap();
    for sql in ["BEGIN", "CREATE TEMP TABLE mine (i INTEGER)", "INSERT INTO t VALUES (2)"] {
        update(&mut first, sql).await;
    }
    assert_eq!(kept().await, (2.0, 1.0));
    // One login on two connections: the second is enough.
    let mut second = server.sql().await;
    second.set_token(first.token().cloned().unwrap());
    assert_eq!(table(&mut second, "SELECT count(*) FROM t, (SELECT count(*) FROM mine)").await, ["1"]);
    let token = first.token().cloned().unwrap();
    drop((first, statement));
    until("its connection has ended", || async { server.metric("mallard_connections").await == 2.0 }).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(kept().await, (2.0, 1.0));
    drop(second);
    until("it is freed", || async { kept().await == (0.0, 0.0) }).await;
    assert_eq!(table(&mut other, "SELECT count(*) FROM t").await, ["0"]);
    // Who comes back after all is told, and nothing passes for a part of what was rolled back.
    let mut back = server.sql().await;
    back.set_token(token);
    let (code, says) = refused(back.execute_update("INSERT INTO t VALUES (3)".into(), None).await);
    assert!(code == Code::FailedPrecondition && says.contains("session.disconnect_timeout"), "{code:?} {says}");
    update(&mut back, "ROLLBACK").await;
    update(&mut back, "INSERT INTO t VALUES (4)").await;
    assert_eq!(table(&mut other, "SELECT i FROM t").await, ["4"]);
    assert_eq!(refused(back.execute("FROM mine".into(), None).await).0, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_without_a_login_is_freed_with_its_connection() {
    let mut config = test_config();
    config.session.disconnect_timeout = Span(Duration::from_millis(100));
    let server = TestServer::with(config).await;
    let mut client = server.sql().await;
    client.begin_transaction().await.unwrap();
    let statement = client.prepare("SELECT 1".into(), None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let kept =
        async || server.metric("mallard_transactions_open").await + server.metric("mallard_prepared_statements").await;
    assert_eq!(kept().await, 2.0);
    drop((client, statement));
    until("it is freed", || async { kept().await == 0.0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_are_their_users_alone_and_bounded() {
    let users = [("ann", "writer"), ("bob", "writer"), ("eve", "reader")];
    let mut config = with_users(with_login(test_config()), &users);
    config.session.transactions_per_user = 2;
    let server = TestServer::with(config).await;
    let mut ann = server.sql_of("ann").await;
    update(&mut ann, "CREATE TABLE t (i INTEGER)").await;
    let transaction = ann.begin_transaction().await.unwrap();
    let mut bob = server.sql_of("bob").await;
    assert_eq!(refused(bob.execute("SELECT 1".into(), Some(transaction.clone())).await).0, Code::NotFound);
    assert_eq!(refused(bob.end_transaction(transaction.clone(), EndTransaction::Commit).await).0, Code::NotFound);
    assert_eq!(refused(ann.execute("SELECT 1".into(), Some(b"nothing".to_vec().into())).await).0, Code::NotFound);
    ann.begin_transaction().await.unwrap();
    let (code, says) = refused(ann.begin_transaction().await);
    assert!(code == Code::ResourceExhausted && says.contains("session.transactions_per_user"), "{says}");
    ann.end_transaction(transaction, EndTransaction::Rollback).await.unwrap();
    ann.begin_transaction().await.unwrap();
    // A reader's cannot write, whatever the text.
    let mut eve = server.sql_of("eve").await;
    let transaction = eve.begin_transaction().await.unwrap();
    assert_eq!(table_in(&mut eve, "SELECT count(*) FROM t", Some(&transaction)).await, ["0"]);
    let refusal = refused(eve.execute_update("INSERT INTO t VALUES (1)".into(), Some(transaction)).await);
    assert_eq!(refusal.0, Code::PermissionDenied);
}
