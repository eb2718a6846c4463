//! Registered exchangers: versions, owners, what is kept, and chains.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, Date64Array, DictionaryArray, RecordBatch, types::Int32Type};
use arrow_schema::DataType;
use arrow_select::concat::concat_batches;
use futures::StreamExt;
use mallard::{client::Client, config::Config, server::Server, stream::RecordBatchStream, transfer::first_row};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    exchange::act,
    support::{TestServer, collect, people, row, rows, run, test_config, with_login, with_users},
};

async fn listed(client: &Client) -> Vec<Value> {
    let listed = act(client, "list_exchanges", Value::Null).await.unwrap();
    listed.iter().map(|one| serde_json::from_str(one).unwrap()).collect()
}

/// The columns' names of what comes back.
async fn columns(client: &Client, chain: &str) -> Vec<String> {
    let answer = client.exchange(chain, people(2, 10)).await.unwrap_or_else(|error| panic!("{chain}: {error}"));
    let schema = answer.schema();
    collect(answer).await.unwrap();
    schema.fields().iter().map(|field| field.name().clone()).collect()
}

async fn refusal(client: &Client, chain: &str) -> mallard::error::Error {
    match client.exchange(chain, people(2, 10)).await {
        Ok(answer) => collect(answer).await.expect_err(chain),
        Err(error) => error,
    }
}

/// One batch, and then nothing, without an end.
fn open_end() -> RecordBatchStream {
    let one = people(1, 10);
    RecordBatchStream::new(one.schema(), one.chain(futures::stream::pending()))
}

#[tokio::test(flavor = "multi_thread")]
async fn new_version_takes_over_at_once_and_what_runs_keeps_its_own() {
    let mut config = test_config();
    config.exchange.versions = 2;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    let add = |sql: &str| json!({"name": "v", "sql": sql, "replace": true});
    let added = act(&client, "add_exchange", add("SELECT id AS one FROM input")).await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&added[0]).unwrap(), json!({"name": "v", "version": 1}));
    let mut running = client.exchange("v", open_end()).await.unwrap();
    act(&client, "add_exchange", add("SELECT id AS two FROM input")).await.unwrap();
    assert_eq!(columns(&client, "v").await, ["two"]);
    assert_eq!(columns(&client, "v@1").await, ["one"]);
    act(&client, "add_exchange", add("SELECT id AS three FROM input")).await.unwrap();
    assert_eq!(columns(&client, "v").await, ["three"]);
    assert_eq!(columns(&client, "v@2 | echo").await, ["two"]);
    let gone = refusal(&client, "v@1").await;
    assert!(gone.code() == Code::NotFound && gone.to_string().contains("v@2, v@3"), "{gone}");
    assert_eq!(running.schema().field(0).name(), "one");
    assert_eq!(running.next().await.unwrap().unwrap().num_rows(), 10);

    let taken = act(&client, "add_exchange", json!({"name": "v", "sql": "FROM input"})).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    act(&client, "drop_exchange", json!({"name": "v@3"})).await.unwrap();
    assert_eq!(columns(&client, "v").await, ["two"]);
    act(&client, "drop_exchange", json!({"name": "v"})).await.unwrap();
    assert_eq!(refusal(&client, "v").await.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn chain_passes_each_exchanger_in_turn_and_counts_each() {
    let server = TestServer::start().await;
    let client = server.client().await;
    act(&client, "add_exchange", json!({"name": "even", "sql": "SELECT * FROM input WHERE id % 2 = 0"})).await.unwrap();
    let answer = collect(client.exchange("echo | even|processed", people(10, 1000)).await.unwrap()).await.unwrap();
    assert_eq!(rows(&answer), 5000);
    let counted = collect(client.exchange("even | count", people(10, 1000)).await.unwrap()).await.unwrap();
    assert_eq!(rows(&counted), 1);
    let all = listed(&client).await;
    let one = |name: &str| all.iter().find(|one| one["name"] == name).unwrap().clone();
    let even = one("even");
    assert_eq!((&even["uses"], &even["rows_in"], &even["rows_out"]), (&json!(2), &json!(20_000), &json!(10_000)));
    assert_eq!((&even["running"], &even["failed"], &even["version"]), (&json!(0), &json!(0), &json!(1)));
    assert_eq!((&one("processed")["rows_in"], &one("count")["rows_out"]), (&json!(5000), &json!(1)));
    // Still streaming: the first batch comes back while the input is open.
    let mut answer = client.exchange("echo | even | processed", open_end()).await.unwrap();
    assert_eq!(answer.next().await.unwrap().unwrap().num_rows(), 5);

    for (chain, code, word) in [
        ("echo | nothing", Code::NotFound, "nothing"),
        ("echo | even@7", Code::NotFound, "even@1"),
        ("echo@1", Code::NotFound, "built in"),
        ("echo | ", Code::InvalidArgument, "name"),
        ("echo {\"depth\": 1}", Code::InvalidArgument, "depth"),
        ("even {\"depth\": 1}", Code::InvalidArgument, "depth"),
        ("echo {1}", Code::InvalidArgument, "JSON"),
        (&["echo"; 17].join("|"), Code::ResourceExhausted, "exchange.max_stages"),
    ] {
        let refused = refusal(&client, chain).await;
        assert!(refused.code() == code && refused.to_string().contains(word), "{chain}: {refused}");
    }
}

fn on_disk(directory: &tempfile::TempDir) -> Config {
    let mut config = test_config();
    config.database.path = directory.path().join("kept.db").display().to_string();
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn registered_exchangers_survive_a_restart_and_a_broken_one_is_listed_as_such() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::with(on_disk(&directory)).await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t AS SELECT 1 AS i").await;
    for (name, sql) in
        [("kept", "SELECT id AS one FROM input"), ("kept", "SELECT id AS two FROM input"), ("gone", "FROM input")]
    {
        let body = json!({"name": name, "sql": sql, "replace": true, "description": "it's \"kept\""});
        act(&client, "add_exchange", body).await.unwrap();
    }
    act(&client, "drop_exchange", json!({"name": "gone"})).await.unwrap();
    // Nobody sees or changes where they are, and nobody calls an object of theirs like it.
    for sql in [
        "FROM _mallard.exchangers",
        "FROM \"_Mallard\".exchangers",
        "FROM kept._mallard.exchangers",
        "SELECT (SELECT count(*) FROM _mallard.exchangers)",
        "INSERT INTO _mallard.exchangers VALUES ('x', 1, '', '', '')",
        "DELETE FROM _mallard.exchangers",
        "DROP SCHEMA _mallard CASCADE",
        "CREATE SCHEMA _mallard",
        "CREATE VIEW v AS FROM _mallard.exchangers",
        "ALTER TABLE _mallard.exchangers RENAME TO x",
        "PRAGMA storage_info('_mallard.exchangers')",
        "FROM pragma_storage_info('_mallard' || '.exchangers')",
        "FROM pragma_storage_info(concat('_mall', 'ard.exchangers'))",
        "FROM duckdb_table_sample('_mallard.exchangers')",
        "FROM histogram('_mallard.exchangers', 'name')",
        "SET schema = '_mallard'",
        "SET search_path = '_mall' || 'ard'",
        "USE _mallard",
        "SET schema = concat('_mal', 'lard')",
        "SET SESSION search_path = (SELECT '_mallard')",
        "SET schema TO lower('_MALLARD')",
        "SET schema = chr(95) || 'mallard'",
        "SET \"schema\" = getvariable('v')",
        "SET TimeZone = concat('U', 'TC')",
    ] {
        let refused = client.query(sql).await.err().unwrap_or_else(|| panic!("{sql} was let through"));
        assert_eq!(refused.code(), Code::PermissionDenied, "{sql}: {refused}");
    }
    let path = ["_mallard".to_string(), "exchangers".to_string()];
    assert_eq!(client.put(&path, people(1, 1)).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(client.table(&path).await.err().unwrap().code(), Code::PermissionDenied);
    let tables = client.list("").await.unwrap();
    assert_eq!(tables.len(), 1, "ListFlights has t alone");
    drop(client);
    server.server.stop(std::future::pending()).await.unwrap();

    // What an older or damaged server left.
    let engine = mallard::engine::Engine::open(&on_disk(&directory), mallard::telemetry::Metrics::new("")).unwrap();
    let damaged = mallard::engine::KeptExchanger {
        name: "damaged".into(),
        version: 3,
        owner: "anonymous".into(),
        description: "was good once".into(),
        definition: json!({"sql": {"sql": "SELEC 1"}}).to_string(),
    };
    engine.keep_exchanger(damaged, 0).await.unwrap();
    engine.close(std::time::Duration::from_secs(5));
    drop(engine);

    let server = TestServer { server: Server::start(on_disk(&directory)).await.unwrap() };
    let client = server.client().await;
    assert_eq!(columns(&client, "kept").await, ["two"]);
    assert_eq!(columns(&client, "kept@1").await, ["one"]);
    assert_eq!(refusal(&client, "gone").await.code(), Code::NotFound);
    let all = listed(&client).await;
    let kept = all.iter().find(|one| one["name"] == "kept").unwrap();
    assert_eq!((&kept["version"], &kept["description"]), (&json!(2), &json!("it's \"kept\"")), "the newest is first");
    let damaged = all.iter().find(|one| one["name"] == "damaged").unwrap();
    assert!(damaged["broken"].as_str().unwrap().contains("SELEC"), "{damaged}");
    let refused = refusal(&client, "damaged").await;
    assert!(refused.code() == Code::Unimplemented && refused.to_string().contains("broken"), "{refused}");
    act(&client, "add_exchange", json!({"name": "damaged", "sql": "FROM input", "replace": true})).await.unwrap();
    assert_eq!(columns(&client, "damaged").await, ["id", "name"]);
    assert_eq!(row(&client, "SELECT i FROM t").await, ["1"]);
}

/// Runs a statement that no client may run.
async fn own(engine: &mallard::engine::Engine, sql: &str) {
    // A change answers no row.
    let _ = engine.row(sql.into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_version_kept_in_the_database_moves_out_of_it_once() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("kept.db.mallard");
    let definition = json!({"sql": {"sql": "SELECT id AS old FROM input", "params": {}}}).to_string();
    let plant = async |name: &str| {
        let engine = mallard::engine::Engine::open(&on_disk(&directory), mallard::telemetry::Metrics::new("")).unwrap();
        own(&engine, "CREATE SCHEMA _mallard").await;
        own(
            &engine,
            "CREATE TABLE _mallard.exchangers \
             (name VARCHAR, version UBIGINT, owner VARCHAR, description VARCHAR, definition VARCHAR)",
        )
        .await;
        own(&engine, &format!("INSERT INTO _mallard.exchangers VALUES ('{name}', 3, 'ann', '', '{definition}')")).await;
        engine.close(std::time::Duration::from_secs(5));
    };
    plant("old").await;
    std::fs::remove_file(&state).unwrap();
    for _ in 0..2 {
        let server = TestServer::with(on_disk(&directory)).await;
        let client = server.client().await;
        assert_eq!(columns(&client, "old@3").await, ["old"]);
        let left = "SELECT count(*) FROM duckdb_schemas() WHERE schema_name = '_mallard'";
        assert_eq!(row(&client, left).await, ["0"]);
        drop(client);
        server.server.stop(std::future::pending()).await.unwrap();
    }
    // What somebody plants there later is nothing to the server.
    plant("planted").await;
    let server = TestServer::with(on_disk(&directory)).await;
    let client = server.client().await;
    assert_eq!(refusal(&client, "planted").await.code(), Code::NotFound);
    assert_eq!(columns(&client, "old").await, ["old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_starts_without_damaged_state_and_keeps_it_aside() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("kept.db.mallard");
    for damage in [&b""[..], b"mallard state 1 sha256 00\n{}", b"\0\0\0\0", "{\"exchangers\": []}".as_bytes()] {
        let server = TestServer::with(on_disk(&directory)).await;
        let client = server.client().await;
        act(&client, "add_exchange", json!({"name": "kept", "sql": "FROM input"})).await.unwrap();
        drop(client);
        server.server.stop(std::future::pending()).await.unwrap();
        std::fs::write(&state, damage).unwrap();

        let server = TestServer::with(on_disk(&directory)).await;
        let client = server.client().await;
        assert_eq!(refusal(&client, "kept").await.code(), Code::NotFound);
        let aside: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().contains(".mallard.damaged-"))
            .collect();
        let [aside] = aside.as_slice() else { panic!("{aside:?}") };
        assert_eq!(std::fs::read(aside).unwrap(), damage);
        std::fs::remove_file(aside).unwrap();
        drop(client);
        server.server.stop(std::future::pending()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exchangers_are_in_a_backup_and_come_back_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = on_disk(&directory);
    let backups = directory.path().join("backups");
    std::fs::create_dir_all(&backups).unwrap();
    config.database.backup_directory = Some(backups.clone());
    let server = TestServer::with(config).await;
    let client = server.client().await;
    act(&client, "add_exchange", json!({"name": "kept", "sql": "SELECT id AS kept FROM input"})).await.unwrap();
    let made = act(&client, "backup", Value::Null).await.unwrap();
    let made: Value = serde_json::from_str(made.last().unwrap()).unwrap();
    act(&client, "add_exchange", json!({"name": "later", "sql": "FROM input"})).await.unwrap();
    drop(client);
    server.server.stop(std::future::pending()).await.unwrap();
    let backup = backups.join(made["file"].as_str().unwrap());
    let restored = mallard::engine::restore(&backup, &directory.path().join("kept.db"), true).unwrap();
    let server = TestServer::with(on_disk(&directory)).await;
    let client = server.client().await;
    assert_eq!(columns(&client, "kept").await, ["kept"]);
    assert_eq!(refusal(&client, "later").await.code(), Code::NotFound, "it is of after the backup");
    drop(client);
    server.server.stop(std::future::pending()).await.unwrap();
    // What was there is put aside with its own.
    let mut before = on_disk(&directory);
    before.database.path = restored.kept.unwrap().display().to_string();
    let server = TestServer::with(before).await;
    assert_eq!(columns(&server.client().await, "later").await, ["id", "name"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_and_admins_may_replace_and_drop_and_others_may_use() {
    let users = [("ann", "writer"), ("bob", "writer"), ("rob", "reader")];
    let server = TestServer::with(with_users(with_login(test_config()), &users)).await;
    let clients = server.clients(&users).await;
    let [ann, bob, rob] = &clients[..] else { panic!("three") };
    let admin = server.client_of(crate::support::USER).await;
    let body = json!({"name": "anns", "sql": "FROM input", "replace": true});
    act(ann, "add_exchange", body.clone()).await.unwrap();
    for other in [bob, rob] {
        assert_eq!(act(other, "add_exchange", body.clone()).await.unwrap_err().code(), Code::PermissionDenied);
        let dropped = act(other, "drop_exchange", json!({"name": "anns"})).await.unwrap_err();
        assert_eq!(dropped.code(), Code::PermissionDenied, "{dropped}");
        assert_eq!(columns(other, "anns").await, ["id", "name"]);
    }
    assert!(listed(rob).await.iter().any(|one| one["name"] == "anns" && one["owner"] == "ann"));
    act(ann, "add_exchange", body.clone()).await.unwrap();
    act(&admin, "add_exchange", body).await.unwrap();
    let taken_over = act(ann, "drop_exchange", json!({"name": "anns"})).await.unwrap_err();
    assert!(taken_over.to_string().contains("alice"), "{taken_over}");
    act(&admin, "drop_exchange", json!({"name": "anns"})).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_has_parameters_that_are_bound_and_never_pasted() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let sql = "SELECT id, $word AS word, $day AS day FROM input WHERE id >= $least";
    let params = json!({"least": 5, "word": "it's", "day": {"type": "DATE"}});
    act(&client, "add_exchange", json!({"name": "p", "sql": sql, "params": params})).await.unwrap();
    let first = |chain: &'static str| {
        let client = client.clone();
        async move { first_row(client.exchange(chain, people(1, 10)).await.unwrap()).await.unwrap() }
    };
    assert_eq!(first("p {\"day\": \"2026-02-28\"}").await, ["5", "it's", "2026-02-28"]);
    let hostile = "p {\"day\": \"2026-02-28\", \"word\": \"'; DROP TABLE x; --\", \"least\": 7}";
    assert_eq!(first(hostile).await, ["7", "'; DROP TABLE x; --", "2026-02-28"]);
    let p = listed(&client).await.into_iter().find(|one| one["name"] == "p").unwrap();
    assert_eq!(p["params"]["least"], json!({"type": "BIGINT", "default": 5}));
    assert_eq!(p["params"]["day"], json!({"type": "DATE"}));
    for (chain, word) in [
        ("p", "`day`"),
        ("p {\"day\": \"2026-02-28\", \"dya\": 1}", "`dya`"),
        ("p {\"day\": \"the 28th\"}", "day"),
        ("p {\"day\": \"2026-02-28\", \"least\": \"x\"}", "least"),
    ] {
        let refused = refusal(&client, chain).await;
        assert!(refused.code() == Code::InvalidArgument && refused.to_string().contains(word), "{chain}: {refused}");
    }
    for (sql, params, word) in [
        ("SELECT $x AS x FROM input", json!({}), "$x"),
        ("FROM input", json!({"x": 1}), "$x"),
        ("SELECT $x AS x FROM input", json!({"x": {"type": "NOTHING"}}), "x"),
        ("SELECT $x AS x FROM input", json!({"x": {"type": "DATE", "default": "soon"}}), "x"),
        ("SELECT $x AS x FROM input", json!({"x": [1]}), "x"),
        ("SELECT $x AS x FROM input", json!({"x": {"typ": "DATE"}}), "typ"),
    ] {
        let body = json!({"name": "wrong", "sql": sql, "params": params});
        let refused = act(&client, "add_exchange", body).await.expect_err(sql);
        assert!(refused.code() == Code::InvalidArgument && refused.to_string().contains(word), "{sql}: {refused}");
    }
}

/// The batches cut to other sizes.
fn recut(batches: &[RecordBatch], sizes: &[usize]) -> RecordBatchStream {
    let mut sizes = sizes.iter().copied().cycle();
    let mut cut = Vec::new();
    for batch in batches {
        let mut at = 0;
        while at < batch.num_rows() {
            let rows = sizes.next().unwrap().min(batch.num_rows() - at);
            cut.push(batch.slice(at, rows));
            at += rows;
        }
    }
    RecordBatchStream::from_batches(batches[0].schema(), cut)
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_are_passed_on_are_what_duckdb_would_answer() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(
        &client,
        "CREATE TABLE input AS SELECT i, (i % 7)::SMALLINT AS \"Kind\", CASE WHEN i % 3 = 0 THEN NULL ELSE 'text number ' || i END AS s, \
         i % 2 = 0 AS b, [i, NULL] AS l, {'x': i, 'y': s} AS st, (i / 7)::DECIMAL(12, 3) AS d, \
         to_timestamp(i) AS moment, i::HUGEINT AS h \
         FROM range(150000) AS r(i)",
    )
    .await;
    let stored = collect(client.query("FROM input").await.unwrap()).await.unwrap();
    let selects = [
        "SELECT *, true AS processed FROM input",
        "FROM input",
        "SELECT s, i, b FROM input",
        "SELECT kind AS \"K\", KIND + 1 AS more, s FROM input",
        // A column of the input wins over an alias, and what only an alias is named is found, too.
        "SELECT \"Kind\" AS i, i + 1 AS next FROM input",
        "SELECT i AS x, x + 1 AS next FROM input",
        "SELECT * EXCLUDE (s, b), upper(s) AS s FROM input",
        "SELECT * REPLACE (upper(s) AS s) FROM input",
        "SELECT *, i, * FROM input",
        "SELECT i, COLUMNS('b|s'), 1 FROM input",
        "SELECT i, upper(COLUMNS('^s$')), length(COLUMNS('^s$')) FROM input",
        "SELECT input.i, s || 'x', st.x FROM input",
        "SELECT n.*, n.i + 1 FROM input AS n",
        "SELECT * FROM input AS n(one, two)",
        "SELECT i, s FROM input WHERE i % 5 = 1",
        "SELECT i, unnest(l) FROM input",
        "SELECT i, generate_subscripts(l, 1), regexp_split_to_table(s, ' ') FROM input",
        "SELECT i, (SELECT 42) AS other, l, st, d, moment, h FROM input",
    ];
    for sql in selects {
        act(&client, "add_exchange", json!({"name": "q", "sql": sql, "replace": true})).await.unwrap();
        let expected = collect(client.query(sql).await.unwrap()).await.unwrap();
        for sizes in [&[122_880][..], &[70_000, 1, 2049, 1000]] {
            let answer = client.exchange("q", recut(&stored, sizes)).await.unwrap();
            let schema = answer.schema();
            let answer = collect(answer).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
            assert_eq!(schema.fields(), expected[0].schema().fields(), "{sql}");
            let [answer, expected] = [&answer, &expected].map(|all| concat_batches(&all[0].schema(), all).unwrap());
            assert!(answer.columns() == expected.columns(), "{sql}: other values");
        }
    }
    // So are types that DuckDB does not have.
    let batch = RecordBatch::try_from_iter([
        ("word", Arc::new(DictionaryArray::<Int32Type>::from_iter(["a", "b", "a"])) as ArrayRef),
        ("day", Arc::new(Date64Array::from(vec![0, 86_400_000, 0]))),
    ])
    .unwrap();
    let input = RecordBatchStream::from_batches(batch.schema(), vec![batch]);
    act(&client, "add_exchange", json!({"name": "q", "sql": selects[0], "replace": true})).await.unwrap();
    let answer = client.exchange("q", input).await.unwrap();
    let types: Vec<_> = answer.schema().fields().iter().map(|field| field.data_type().clone()).collect();
    let words = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    assert_eq!(types, [words, DataType::Date64, DataType::Boolean]);
    assert_eq!(rows(&collect(answer).await.unwrap()), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn listing_says_which_exchangers_stream_and_what_streams_answers_each_batch_before_the_next() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for (sql, streams) in [
        ("FROM input", true),
        ("SELECT id + 1 AS i, upper(name) AS n, CASE WHEN id > 3 THEN 'x' END FROM input WHERE id % 2 = 0", true),
        ("SELECT i.*, r.range FROM input i, range(2) r", true),
        ("SELECT id, unnest([1, 2]) AS u FROM input", true),
        ("WITH a AS (SELECT * FROM input WHERE id > 1) SELECT id FROM a", true),
        ("SELECT * FROM (SELECT id FROM input) LEFT JOIN (VALUES (1, 'one')) v(id, word) USING (id)", true),
        ("SELECT id, (SELECT max(x) FROM (VALUES (1), (2)) v(x)) AS m FROM input", true),
        ("SELECT list_sum(list_transform([1, id], lambda x: x + 1)) AS s FROM input", true),
        ("SELECT count(*) FROM input", false),
        ("SELECT id, row_number() OVER () FROM input", false),
        ("FROM input ORDER BY id", false),
        ("SELECT DISTINCT id FROM input", false),
        ("FROM input LIMIT 3", false),
        ("SELECT id FROM input GROUP BY ALL", false),
        ("SELECT id FROM input UNION ALL SELECT 1", false),
        ("SELECT (SELECT count(*) FROM input) AS n", false),
        ("SELECT 1 AS one", false),
        ("FROM input USING SAMPLE 10%", false),
        ("WITH a AS (SELECT sum(id) AS s FROM input) FROM a", false),
        ("FROM (VALUES (1)) v(id) LEFT JOIN input USING (id)", false),
        (
            "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT n, id FROM input, r",
            true,
        ),
    ] {
        act(&client, "add_exchange", json!({"name": "shape", "sql": sql, "replace": true}))
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
        let listed = listed(&client).await.into_iter().find(|one| one["name"] == "shape").unwrap();
        assert_eq!(listed["streams"], json!(streams), "{sql}");
        if !streams {
            continue;
        }
        // The next batch is sent only when the answer to the one before is there.
        let (allow, allowed) = tokio::sync::mpsc::channel(1);
        let batches: Vec<_> = people(3, 10).collect().await;
        let input = futures::stream::unfold((batches.into_iter(), allowed), async |(mut batches, mut allowed)| {
            allowed.recv().await?;
            Some((batches.next()?, (batches, allowed)))
        });
        let input = RecordBatchStream::new(people(0, 0).schema(), input);
        let mut answer = client.exchange("shape", input).await.unwrap();
        for _ in 0..3 {
            allow.send(()).await.unwrap();
            assert!(answer.next().await.unwrap().unwrap().num_rows() > 0, "{sql}");
        }
        drop(allow);
        assert!(answer.next().await.is_none(), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failure_in_mid_stream_names_the_exchanger_and_the_row() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let sum = "SELECT sum(CASE WHEN id = 123456 THEN error('not that one') ELSE id END) AS s FROM input";
    act(&client, "add_exchange", json!({"name": "sum", "sql": sum})).await.unwrap();
    // Whether other columns are passed on beside it or not.
    for others in ["* EXCLUDE (id), ", ""] {
        let sql =
            format!("SELECT {others}CASE WHEN id = 123456 THEN error('not that one') ELSE id END AS id FROM input");
        act(&client, "add_exchange", json!({"name": "picky", "sql": sql, "replace": true})).await.unwrap();
        let mut answer = client.exchange("echo | picky | processed", people(20, 10_000)).await.unwrap();
        let mut rows = 0;
        let failed = loop {
            match answer.next().await.expect("an error before the end") {
                Ok(batch) => rows += batch.num_rows(),
                Err(error) => break error.to_string(),
            }
        };
        assert!(rows <= 123_456, "{rows}");
        for part in ["exchanger \"picky\"", "not that one", "at row 123457 of its input"] {
            assert!(failed.contains(part), "{failed}");
        }
    }
    let failed = match client.exchange("sum", people(20, 10_000)).await {
        Ok(answer) => collect(answer).await.expect_err("it fails").to_string(),
        Err(error) => error.to_string(),
    };
    assert!(failed.contains("exchanger \"sum\"") && failed.contains("at row 122049 of its input"), "{failed}");
    let all = listed(&client).await;
    let picky = all.iter().find(|one| one["name"] == "picky").unwrap();
    assert_eq!((&picky["failed"], &picky["running"]), (&json!(1), &json!(0)));
    let processed = all.iter().find(|one| one["name"] == "processed").unwrap();
    assert_eq!(processed["failed"], json!(2), "its streams failed, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_is_enriched_from_tables_that_its_caller_may_read() {
    let mut config = with_login(test_config());
    config.exchange.tables = true;
    let narrow = mallard::config::RoleSettings {
        base: Some(mallard::access::Role::Writer),
        read: Some(vec!["main.words".into()]),
        write: Some(Vec::new()),
        ..Default::default()
    };
    config.auth.roles.insert("narrow".into(), narrow);
    let server = TestServer::with(with_users(config, &[("ann", "narrow"), ("bob", "reader")])).await;
    let (admin, ann, bob) =
        (server.client_of("alice").await, server.client_of("ann").await, server.client_of("bob").await);
    run(&admin, "CREATE TABLE words AS SELECT range AS id, 'w' || range AS word FROM range(5)").await;
    run(&admin, "CREATE TABLE secrets AS SELECT 42 AS answer").await;
    run(&admin, "CREATE TABLE input AS SELECT 'not this' AS x").await;
    let enrich = "SELECT id, name, word FROM input LEFT JOIN words USING (id)";
    act(&ann, "add_exchange", json!({"name": "enrich", "sql": enrich})).await.unwrap();
    for client in [&admin, &ann, &bob] {
        let answer = collect(client.exchange("enrich", people(2, 10)).await.unwrap()).await.unwrap();
        assert_eq!(rows(&answer), 20);
        let words: usize = answer.iter().map(|batch| batch.num_rows() - batch.column(2).null_count()).sum();
        assert_eq!(words, 5);
    }
    // Each batch is answered before the next: the stream is not gathered.
    let mut answer = ann.exchange("enrich | processed", open_end()).await.unwrap();
    assert_eq!(answer.next().await.unwrap().unwrap().num_rows(), 10);
    drop(answer);
    act(&admin, "add_exchange", json!({"name": "leak", "sql": "SELECT id, answer FROM input, secrets"})).await.unwrap();
    assert_eq!(rows(&collect(bob.exchange("leak", people(1, 3)).await.unwrap()).await.unwrap()), 3);
    let denied = refusal(&ann, "leak").await;
    assert!(denied.code() == Code::PermissionDenied && denied.to_string().contains("secrets"), "{denied}");
    for (sql, code) in [
        ("SELECT count(*) FROM input, words", Code::InvalidArgument),
        ("SELECT id FROM input, _mallard.exchangers", Code::PermissionDenied),
        ("WITH x AS (DELETE FROM words RETURNING *) SELECT input.id FROM input, x", Code::InvalidArgument),
    ] {
        let added = act(&ann, "add_exchange", json!({"name": "x", "sql": sql, "replace": true})).await;
        let refused = match added {
            Ok(_) => refusal(&admin, "x").await,
            Err(error) => error,
        };
        assert!(refused.code() == code || refused.code() == Code::PermissionDenied, "{sql}: {refused}");
    }
    assert_eq!(row(&admin, "SELECT count(*) FROM words").await, ["5"]);
}

/// What no exchanger may do to the server, and how each ends: at registration, or when it is used.
const HOSTILE: &[&str] = &[
    // Files and other databases.
    "SELECT * FROM read_csv('/etc/passwd'), input",
    "SELECT id, (SELECT content FROM read_text('/etc/passwd')) AS t FROM input",
    "SELECT id FROM input, '/etc/passwd'",
    "SELECT id FROM input, glob('/*')",
    "FROM input, 'data.parquet'",
    "WITH c AS (COPY (SELECT 1) TO '/tmp/mallard-stolen') SELECT id FROM input, c",
    "ATTACH '/tmp/mallard-other.db' AS other",
    "COPY input TO '/tmp/mallard-stolen'",
    "INSTALL httpfs",
    "LOAD httpfs",
    // The server's own tables, settings and catalog.
    "SELECT id, answer FROM input, secrets",
    "SELECT id, answer FROM input, main.secrets",
    "SELECT id, answer FROM input, memory.main.secrets",
    "SELECT id FROM input, _mallard.exchangers",
    "SELECT id, (SELECT count(*) FROM duckdb_settings()) AS n FROM input",
    "SELECT id, current_setting('temp_directory') AS t FROM input",
    "SELECT id FROM input, duckdb_memory()",
    "SELECT id FROM input, duckdb_databases",
    "SELECT id FROM input, query('FROM secrets')",
    "SELECT id FROM input, query_table('secrets')",
    "FROM json_execute_serialized_sql('x'), input",
    "SELECT id FROM input, mallard_stream(1)",
    "SELECT id FROM input, arrow_scan(1, 2, 3)",
    "SET memory_limit = '1TB'",
    "RESET lock_configuration",
    "PRAGMA database_list",
    "CREATE TABLE input2 AS FROM input",
    "CREATE OR REPLACE TEMP VIEW input AS SELECT 1 AS id",
    "DROP VIEW input",
    "WITH d AS (DELETE FROM secrets RETURNING *) SELECT id FROM input, d",
    "BEGIN",
    "SELECT 1; SELECT 2",
    "CALL force_checkpoint()",
    "EXPLAIN ANALYZE SELECT * FROM input",
    // Time: nothing ends by itself.
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT count(*) AS n FROM input, r",
    "SELECT count(*) AS n FROM input, range(1000000000) a, range(1000000000) b",
    "SELECT id, (SELECT sum(a.range * b.range % 7) FROM range(10000000) a, range(10000000) b) AS s FROM input",
    // Rows and memory without end.
    "SELECT id, r.range FROM input, range(1000000000000) r",
    "SELECT list(a.range) AS l FROM input, range(10000000000) a",
    "SELECT string_agg(repeat('x', 100000), '') AS l FROM input, range(1000000)",
    "SELECT id, range(100000000000) AS long FROM input",
    "SELECT DISTINCT hash(a.range) AS h, repeat('y', 1000) AS l FROM input, range(1000000000) a ORDER BY h",
];

#[tokio::test(flavor = "multi_thread")]
async fn hostile_sql_ends_in_a_clear_error_and_leaves_the_server_and_its_streams_alone() {
    let mut config = test_config();
    config.exchange.memory_limit = mallard::config::Size::mib(64);
    config.exchange.temp_size = mallard::config::Size::mib(64);
    config.exchange.stall_timeout = mallard::config::Span(std::time::Duration::from_secs(2));
    config.exchange.max_growth = 1000;
    let server = TestServer::with(config).await;
    let client = server.client().await;
    run(&client, "CREATE TABLE secrets AS SELECT 42 AS answer").await;
    let mut neighbour = client.exchange("echo", open_end()).await.unwrap();
    assert_eq!(neighbour.next().await.unwrap().unwrap().num_rows(), 10);
    let attack = |at: usize, sql: &'static str| {
        let client = client.clone();
        async move {
            let name = format!("hostile{at}");
            let refused = match act(&client, "add_exchange", json!({"name": name, "sql": sql})).await {
                Err(refused) => refused,
                Ok(_) => match client.exchange(&name, people(2, 10)).await {
                    Err(refused) => refused,
                    Ok(mut answer) => loop {
                        match answer.next().await {
                            Some(Ok(_)) => {}
                            Some(Err(refused)) => break refused,
                            None => panic!("{sql} came to a good end"),
                        }
                    },
                },
            };
            let message = refused.to_string();
            assert!(!matches!(refused.code(), Code::Internal | Code::Unknown | Code::Ok), "{sql}: {refused}");
            if let Some((_, limit)) = [
                ("b) AS s", "stall_timeout"),
                ("range(1000000000) b", "stall_timeout"),
                ("range(1000000000000) r", "exchange."),
            ]
            .into_iter()
            .find(|(part, _)| sql.contains(part))
            {
                assert!(message.contains(&name) && message.contains(limit), "{sql}: {message}");
            }
            assert!(!message.contains("root:") && !message.contains("/tmp"), "{sql}: {message}");
        }
    };
    let attacks = HOSTILE.iter().enumerate().map(|(at, sql)| attack(at, sql));
    futures::stream::iter(attacks).buffer_unordered(3).collect::<Vec<()>>().await;
    assert!(
        !std::path::Path::new("/tmp/mallard-stolen").exists()
            && !std::path::Path::new("/tmp/mallard-other.db").exists()
    );
    assert_eq!(row(&client, "SELECT answer FROM secrets").await, ["42"]);
    assert_eq!(columns(&client, "echo | processed").await, ["id", "name", "processed"]);
    let running = |all: Vec<Value>| all.iter().all(|one| one["name"] == "echo" || one["running"] == json!(0));
    crate::support::until("none runs any more", || async { running(listed(&client).await) }).await;
    drop(neighbour);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_exchangers_are_within_what_a_role_may_have() {
    let mut config = with_login(test_config());
    let small = mallard::config::RoleSettings {
        base: Some(mallard::access::Role::Reader),
        allowance: mallard::access::Allowance { result_rows: Some(100), ..Default::default() },
        ..Default::default()
    };
    config.auth.roles.insert("small".into(), small);
    let server = TestServer::with(with_users(config, &[("ann", "small")])).await;
    let ann = server.client_of("ann").await;
    assert_eq!(rows(&collect(ann.exchange("count", people(30, 10)).await.unwrap()).await.unwrap()), 1);
    assert_eq!(rows(&collect(ann.exchange("echo", people(10, 10)).await.unwrap()).await.unwrap()), 100);
    let refused = collect(ann.exchange("echo", people(30, 10)).await.unwrap()).await.expect_err("too many");
    assert!(refused.code() == Code::ResourceExhausted && refused.to_string().contains("result_rows"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_flat_with_millions_of_rows_through_sql() {
    let server = crate::process::Process::serve(&[]);
    let client = server.client(None).await;
    let sql = "SELECT *, true AS processed, id % 7 AS day FROM input WHERE id >= 0";
    act(&client, "add_exchange", json!({"name": "flat", "sql": sql})).await.unwrap();
    let pass = async |batches: usize| {
        let mut answer = client.exchange("flat | processed2", people(batches, 50_000)).await.unwrap();
        let (mut rows, mut most) = (0, 0);
        while let Some(batch) = answer.next().await {
            rows += batch.unwrap().num_rows();
            most = most.max(server.memory());
        }
        assert_eq!(rows, batches * 50_000);
        most
    };
    act(&client, "add_exchange", json!({"name": "processed2", "sql": "SELECT *, id AS twice FROM input"}))
        .await
        .unwrap();
    let (short, long) = (pass(20).await, pass(120).await);
    // 6,000,000 rows are some 200 MB on the wire.
    assert!(long < short + 128 * 1024 * 1024, "{short} bytes resident, then {long}");
}
