//! What one user or role may have, and that others have the rest.

use std::time::Duration;

use futures::{StreamExt, future::join_all};
use mallard::{
    access::{Allowance, Role},
    client::Client,
    config::{Config, RoleSettings, Size, Span},
    error::Error,
};
use tonic::Code;

use crate::{
    exchange::act,
    support::{TestServer, collect, row, rows, run, test_config, until, with_users},
};

async fn serve(config: Config, users: &[(&str, &str)]) -> (TestServer, Vec<Client>) {
    let server = TestServer::with(with_users(config, users)).await;
    let clients = server.clients(users).await;
    (server, clients)
}

#[tokio::test(flavor = "multi_thread")]
async fn crowd_that_lists_statements_keeps_no_probe_waiting() {
    let mut config = test_config();
    config.limits.queries_per_user = 0;
    let server = TestServer::with(with_users(config, &[("ann", "reader")])).await;
    let client = server.client_of("ann").await;
    // Long texts: to show them without their literals takes a while.
    let values = vec!["(1)"; 5_000].join(",");
    let long = format!("{ENDLESS} WHERE 5000 = (SELECT count(*) FROM (VALUES {values}))");
    // Not over the same connection: what nobody reads there would fill its window.
    let standing = server.client_of("ann").await;
    let running = join_all((0..8).map(|_| standing.query(&long))).await;
    let running: Vec<_> = running.into_iter().map(Result::unwrap).collect();
    let asking = std::sync::atomic::AtomicBool::new(true);
    let crowd = join_all((0..128).map(async |_| {
        let mut answers = 0;
        while asking.load(std::sync::atomic::Ordering::Relaxed) {
            let listed = client.action("queries", &serde_json::Value::Null).await.unwrap();
            let count = listed.count().await;
            assert_eq!(count, 8);
            answers += 1;
        }
        answers
    }));
    let probes = async {
        for _ in 0..5 {
            let (code, says) = server.admin("/readyz?verbose").await;
            assert_eq!(code, 200, "{says}");
            assert_eq!(server.admin("/metrics").await.0, 200);
        }
        asking.store(false, std::sync::atomic::Ordering::Relaxed);
    };
    let (answers, ()) = tokio::join!(crowd, probes);
    assert!(answers.iter().all(|answers| *answers > 0), "everybody was answered: {answers:?}");
    drop(running);
}

/// Runs until it is dropped: a stream that nobody reads to its end.
const ENDLESS: &str = "SELECT range FROM range(100000000000)";

#[tokio::test(flavor = "multi_thread")]
async fn one_users_statements_leave_threads_for_others() {
    let mut config = test_config();
    config.limits.queries = 4;
    config.limits.queries_per_user = 3;
    config.limits.queue_timeout = Span(Duration::from_millis(200));
    let (server, clients) = serve(config, &[("greedy", "reader"), ("modest", "reader")]).await;
    let (greedy, modest) = (&clients[0], &clients[1]);
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(greedy.query(ENDLESS).await.unwrap());
    }
    let refused = greedy.query("SELECT 1").await.err().expect("three run already");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.to_string().contains("limits.queries_per_user"), "{refused}");
    assert_eq!(row(modest, "SELECT 1").await, ["1"]);
    drop(open);
    until("the threads are free again", async || server.metric("mallard_queries_running").await == 0.0).await;
    assert_eq!(row(greedy, "SELECT 1").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_their_share_waits_in_nobodys_way() {
    let mut config = test_config();
    config.limits.queries = 2;
    config.limits.queries_per_user = 1;
    config.limits.queue = 20;
    let (server, clients) = serve(config, &[("greedy", "reader"), ("modest", "reader")]).await;
    let (greedy, modest) = (&clients[0], &clients[1]);
    let running = greedy.query(ENDLESS).await.unwrap();
    let waiting = join_all((0..30).map(|_| greedy.query("SELECT 1")));
    let watch = async {
        until("the user's share of the queue is full", async || server.metric("mallard_queries_queued").await == 15.0)
            .await;
        // One thread is free, and the queue has room, whatever the other user waits for.
        assert_eq!(row(modest, "SELECT 1").await, ["1"]);
        drop(running);
    };
    let (outcomes, ()) = futures::join!(waiting, watch);
    let refused: Vec<&Error> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!(refused.len(), 15, "a quarter of the queue is for others");
    assert!(
        refused
            .iter()
            .all(|error| error.code() == Code::ResourceExhausted && error.to_string().contains("limits.queue"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn admins_have_threads_when_all_others_are_taken() {
    let mut config = test_config();
    config.limits.queries = 2;
    config.limits.queue = 1;
    config.limits.queries_per_user = 0;
    let users = [("reader", "reader"), ("writer", "writer"), ("admin", "admin")];
    let (server, clients) = serve(config, &users).await;
    let [reader, writer, admin] = &clients[..] else { panic!("three users") };
    let running = (reader.query(ENDLESS).await.unwrap(), writer.query(ENDLESS).await.unwrap());
    // One plans, and waits for a thread.
    let waiting = reader.info(arrow_flight::FlightDescriptor::new_cmd("SELECT 1"));
    let watch = async {
        until("the queue is full", async || server.metric("mallard_queries_queued").await == 1.0).await;
        assert_eq!(writer.query("SELECT 1").await.err().map(|error| error.code()), Some(Code::ResourceExhausted));
        for _ in 0..3 {
            assert_eq!(row(admin, "SELECT 1").await, ["1"]);
        }
        assert_eq!(server.admin("/readyz").await.0, 200);
        assert_eq!(act(admin, "queries", serde_json::Value::Null).await.unwrap().len(), 3);
        for user in ["reader", "writer"] {
            act(admin, "kill", serde_json::json!({"user": user})).await.unwrap();
        }
        drop(running);
    };
    let (waited, ()) = futures::join!(waiting, watch);
    // Where the endless one ended first, its thread was free for the other before it was ended, too.
    assert!(waited.err().is_none_or(|error| error.code() == Code::Cancelled));
    until("the threads are free again", async || server.metric("mallard_queries_running").await == 0.0).await;
    assert_eq!(row(reader, "SELECT 1").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_bound_results_statements_and_memory() {
    let mut config = test_config();
    let role = |allowance| RoleSettings { base: Some(Role::Admin), allowance, ..Default::default() };
    let rows_role = Allowance { result_rows: Some(100_000), ..Default::default() };
    let bytes_role = Allowance { result_bytes: Some(Size::mib(1)), ..Default::default() };
    let single = Allowance { queries: Some(1), ..Default::default() };
    let small = Allowance { operator_memory: Some(Size::mib(8)), ..Default::default() };
    for (name, allowance) in [("few_rows", rows_role), ("few_bytes", bytes_role), ("single", single), ("small", small)]
    {
        config.auth.roles.insert(name.into(), role(allowance));
    }
    config.limits.queue_timeout = Span(Duration::from_millis(200));
    let users = [("a", "few_rows"), ("b", "few_bytes"), ("c", "single"), ("d", "small"), ("e", "admin")];
    let (_server, clients) = serve(config, &users).await;
    let all = async |client: &Client, sql: &str| -> Result<usize, Error> {
        Ok(rows(&collect(client.query(sql).await?).await?))
    };
    assert_eq!(all(&clients[0], "FROM range(100000)").await.unwrap(), 100_000);
    let refused = all(&clients[0], "FROM range(1000000)").await.expect_err("more rows than allowed");
    assert!(refused.code() == Code::ResourceExhausted && refused.to_string().contains("result_rows"), "{refused}");
    assert_eq!(all(&clients[1], "FROM range(100000)").await.unwrap(), 100_000);
    let refused = all(&clients[1], "FROM range(1000000)").await.expect_err("more bytes than allowed");
    assert!(refused.code() == Code::ResourceExhausted && refused.to_string().contains("result_bytes"), "{refused}");
    let mut open = clients[2].query(ENDLESS).await.unwrap();
    open.next().await.unwrap().unwrap();
    let refused = clients[2].query("SELECT 1").await.err().expect("one runs already");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    // What needs more than that spills.
    let setting = "SELECT current_setting('operator_memory_limit')";
    assert_eq!(row(&clients[3], setting).await, ["8.0 MiB"]);
    assert_eq!(row(&clients[4], setting).await, [""]);
    let refused =
        all(&clients[3], "SET operator_memory_limit = '1GB'").await.expect_err("a role's limit is not one's own");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_returning_are_bounded_and_nothing_is_changed_beyond() {
    let mut config = test_config();
    config.limits.returning_size = Size(100_000);
    let server = TestServer::with(config).await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t (i BIGINT)").await;
    let refused = client.query("INSERT INTO t FROM range(1000000) RETURNING *").await;
    let refused = match refused {
        Ok(rows) => collect(rows).await.expect_err("too many"),
        Err(refused) => refused,
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.to_string().contains("limits.returning_size"), "{refused}");
    assert_eq!(row(&client, "SELECT count(*) FROM t").await, ["0"]);
    let few = collect(client.query("INSERT INTO t FROM range(100) RETURNING *").await.unwrap()).await.unwrap();
    assert_eq!(few.iter().map(|batch| batch.num_rows()).sum::<usize>(), 100);
}
