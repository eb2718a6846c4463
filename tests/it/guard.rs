//! The SQL guard: what DuckDB would let any user do to the database and the machine is denied, however it is written.

use std::path::Path;

use arrow_flight::FlightDescriptor;
use mallard::{
    access::Role,
    client::Client,
    engine::guard::attacks::{ATTACKS, Attack},
};
use tonic::Code;

use crate::support::{TestServer, row, run, test_config, with_users};

/// A database file with a table, and a client of each role.
async fn with_file(path: &Path) -> (TestServer, Vec<(Role, Client)>) {
    let users = Role::ALL.map(|role| (role.word(), role.word()));
    let mut config = with_users(test_config(), &users);
    config.database.path = path.to_str().unwrap().into();
    let server = TestServer::with(config).await;
    let clients = Role::ALL.into_iter().zip(server.clients(&users).await).collect();
    (server, clients)
}

/// Other ways to write the same statement.
fn mutations(sql: &str) -> Vec<String> {
    let flip = |upper: bool| -> String {
        // Letters in quotes stay as they are.
        let mut quoted = None;
        let mut flipped = String::new();
        for character in sql.chars() {
            match quoted {
                Some(quote) if character == quote => quoted = None,
                None if matches!(character, '\'' | '"') => quoted = Some(character),
                _ => {}
            }
            flipped.extend(match (quoted, upper) {
                (Some(_), _) => vec![character],
                (None, true) => character.to_uppercase().collect(),
                (None, false) => character.to_lowercase().collect(),
            });
        }
        flipped
    };
    vec![
        flip(true),
        flip(false),
        sql.replace(' ', "/**/ /* ; SELECT 1 */\n"),
        sql.replace(' ', "\t--x\n "),
        format!("/* /* nested */ */ {sql} ; -- end"),
        format!(";{sql};"),
        sql.replace('(', " ( "),
        // Dollar quotes in place of single ones.
        sql.split('\'').enumerate().fold(String::new(), |text, (at, part)| match at {
            0 => part.to_string(),
            _ => text + "$q$" + part,
        }),
        format!("SELECT * FROM ({sql})"),
        format!("WITH x AS ({sql}) SELECT 1"),
        format!("WITH x AS (WITH y AS ({sql}) FROM y) FROM x"),
        format!("EXPLAIN {sql}"),
        format!("EXPLAIN ANALYZE {sql}"),
        format!("SELECT ({sql})"),
        format!("SELECT 1 WHERE EXISTS ({sql})"),
        format!("SELECT [x FOR x IN (SELECT list(z) FROM ({sql}) z)]"),
        format!("CREATE VIEW v AS {sql}"),
        format!("CREATE MACRO m() AS TABLE {sql}"),
        format!("SELECT 1; {sql}"),
        format!("{sql}; SELECT 1"),
        format!("BEGIN; {sql}; COMMIT"),
        format!("PREPARE p AS {sql}"),
        format!("CREATE TRIGGER g AFTER INSERT ON t FOR EACH ROW {sql}"),
    ]
}

fn bytes(path: &Path) -> Option<Vec<u8>> {
    std::fs::read(path).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_gets_an_attack_through_however_it_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.duckdb");
    let wal = directory.path().join("m.duckdb.wal");
    let (server, clients) = with_file(&path).await;
    let admin = &clients[2].1;
    run(admin, "CREATE TABLE t AS SELECT range AS i FROM range(1000)").await;
    crate::support::collect(admin.query("CHECKPOINT").await.unwrap()).await.unwrap();
    run(admin, "INSERT INTO t VALUES (-1)").await;
    let before = (bytes(&path), bytes(&wal));
    let mut entries: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    entries.sort();
    let mut tried = 0;
    for Attack { sql, denied_to } in ATTACKS {
        let sql = sql.replace("{db}", path.to_str().unwrap());
        for (role, client) in clients.iter().filter(|(role, _)| role <= denied_to) {
            let refused = client.query(&sql).await.err().unwrap_or_else(|| panic!("{role:?} ran {sql}"));
            let code = refused.code();
            // PREPARE is not served to anyone.
            let told = code == Code::PermissionDenied && refused.to_string().contains("(rule ");
            assert!(told || code == Code::Unimplemented, "{role:?}: {sql}: {refused}");
            for mutation in mutations(&sql) {
                tried += 1;
                match client.query(&mutation).await {
                    // EXPLAIN without ANALYZE only plans.
                    Ok(_) if mutation.starts_with("EXPLAIN ") && *denied_to == Role::Reader => {}
                    Ok(rows) => {
                        let outcome = crate::support::collect(rows).await;
                        assert!(outcome.is_err(), "{role:?} ran {mutation}");
                    }
                    Err(refused) => assert_ne!(refused.code(), Code::Internal, "{mutation}: {refused}"),
                }
            }
        }
    }
    assert!(tried > 3000, "{tried}");
    assert!(before == (bytes(&path), bytes(&wal)), "the database or its log has changed");
    let mut after: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    after.sort();
    assert_eq!(entries, after, "files came or went");
    assert_eq!(row(admin, "SELECT count(*) FROM t").await, ["1001"]);
    drop(clients);
    server.server.stop(std::future::pending()).await.unwrap();
    let (_again, clients) = with_file(&path).await;
    assert_eq!(row(&clients[0].1, "SELECT count(*), sum(i)::BIGINT FROM t").await, ["1001", "499499"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_write_is_not_taken_for_an_attack() {
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE copy (\"load\" INTEGER, export INTEGER, secret INTEGER, query TEXT)").await;
    run(&client, "INSERT INTO copy VALUES (1, 2, 3, 'read_blob(''x'')')").await;
    for (sql, expected) in [
        ("SELECT load + export, c.secret FROM copy c WHERE load = 1 AND export = 2 ORDER BY load", "3"),
        ("SELECT query FROM copy", "read_blob('x')"),
        ("SELECT 'COPY t TO ''x''' -- ATTACH", "COPY t TO 'x'"),
        ("SELECT count(*) FROM copy WHERE query GLOB ('read*')", "1"),
        ("SELECT \"load\" FROM copy /* COPY */", "1"),
        ("SELECT n FROM (PIVOT (SELECT 1 AS n, 'a' AS k) ON k IN ('a') USING count(*))", "1"),
        ("SELECT count(*) FROM information_schema.tables WHERE table_name = 'copy'", "1"),
        ("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'copy'", "1"),
        ("SELECT count(*) FROM range(3), unnest([1, 2]), generate_series(1, 2)", "12"),
        ("SET VARIABLE mine = 1", "OK"),
        ("SET schema = 'main'", "OK"),
        ("USE main", "OK"),
    ] {
        assert_eq!(row(&client, sql).await[0], expected, "{sql}");
    }
    // A dynamic PIVOT makes a type on the way, which a reader's transaction lets it.
    let mut config = test_config();
    config.auth.anonymous_role = "reader".into();
    let reading = TestServer::with(config).await;
    let reader = reading.client().await;
    assert_eq!(row(&reader, "PIVOT (SELECT 1 AS n, 'a' AS k) ON k USING max(n)").await, ["1"]);
    assert_eq!(row(&reader, "SELECT 1").await, ["1"]);
}

/// Names in every position of every kind of statement, with `{}` in the place of each.
const POSITIONS: &[&str] = &[
    "CREATE TABLE {} ({} INTEGER, {}_2 INTEGER, PRIMARY KEY ({}))",
    "INSERT INTO {} ({}) VALUES (1), (2)",
    "INSERT INTO {} AS t ({}, {}_2) VALUES (1, 3) ON CONFLICT ({}) DO UPDATE SET {}_2 = excluded.{}",
    "SELECT {} FROM {}",
    "SELECT max({}) FROM {}",
    "SELECT {}.{} FROM {}",
    "SELECT t.{} AS {} FROM {} AS t",
    "SELECT {}.* EXCLUDE ({}) FROM {}",
    "SELECT 1 {}",
    "SELECT {}: 1",
    "SELECT CASE WHEN {} > 1 THEN {} ELSE {} END FROM {}",
    "SELECT {'{}': 1}.{}, {{}: 1}",
    "FROM ({})",
    "FROM ({} {})",
    "FROM {} {}, {} AS b WHERE {}.{} = b.{}",
    "FROM {} JOIN (SELECT 1 AS {}) USING ({})",
    "WITH {} AS (SELECT 1 AS {}) SELECT ({}) FROM {}",
    "WITH {}({}) AS (SELECT 1) FROM {}",
    "SELECT list_transform([1], lambda {}: {} + 1)",
    "SELECT [{} FOR {} IN [1, 2] IF {} > 1]",
    "SELECT sum({} ORDER BY {}) FILTER ({} > 0) OVER {} FROM {} WINDOW {} AS (PARTITION BY {} ORDER BY {})",
    "SELECT {} FROM {} GROUP BY {} HAVING {} > 0 ORDER BY {} LIMIT 1",
    "SELECT struct_pack({} := 1).{}",
    "SELECT x.{} FROM (SELECT 1) AS x({})",
    "PIVOT {} ON {} USING max({})",
    "UNPIVOT {} ON {} INTO NAME {}_n VALUE {}_v",
    "DESCRIBE {}",
    "SUMMARIZE {}",
    "EXPLAIN SELECT {} FROM {}",
    "UPDATE {} SET {}_2 = 5 WHERE {} = 1",
    "UPDATE {} AS {} SET {}_2 = {} + 1",
    "MERGE INTO {} USING (SELECT 7 AS {}) AS s ON {}.{} = s.{} WHEN NOT MATCHED THEN INSERT ({}) VALUES (s.{})",
    "ALTER TABLE {} ADD COLUMN {}_3 INTEGER",
    "ALTER TABLE {} RENAME {}_3 TO {}_4",
    "ALTER TABLE {} DROP {}_4",
    "COMMENT ON COLUMN {}.{} IS 'x'",
    "CREATE VIEW {}_v AS SELECT {} FROM {}",
    "CREATE INDEX {}_i ON {} ({}_2)",
    "DROP INDEX {}_i",
    "CREATE MACRO {}_m({}) AS ({} + 1)",
    "CREATE SEQUENCE {}",
    "CREATE TYPE {} AS ENUM ('a')",
    "CREATE TABLE {}_g ({} INTEGER, y INTEGER AS ({} + 1))",
    "CREATE SCHEMA {}",
    "CREATE TABLE {}.{} AS SELECT 1 AS {}",
    "SELECT {}.{}.{} FROM {}.{}",
    "DROP SCHEMA {} CASCADE",
    "DELETE FROM {} USING (SELECT 1 AS {}) AS s WHERE {}.{} = s.{}",
    "DROP TABLE {}_g",
    "DROP VIEW {}_v",
    "SET VARIABLE {} = 1",
];

/// What DuckDB's parser does not take fails with its words; what it takes as a name is never refused by a rule.
#[tokio::test(flavor = "multi_thread")]
async fn keywords_are_names_wherever_duckdb_takes_them_for_names() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let words = ["attach", "connect", "copy", "detach", "disconnect", "export", "import", "install", "load", "secret"];
    for word in words.into_iter().chain(["checkpoint", "call", "query", "summary", "use"]) {
        // One stands for all where quotes make it a name.
        let quoted = if word == "load" { vec![format!("\"{word}\""), format!("`{word}`")] } else { Vec::new() };
        for written in [vec![word.to_string(), word.to_uppercase()], quoted].concat() {
            let mut ran = 0;
            for position in POSITIONS {
                // A name in quotes takes no suffix.
                if !written.starts_with(word) && !written.starts_with(&word.to_uppercase()) && position.contains("{}_")
                {
                    continue;
                }
                let sql = position.replace("'{}'", &format!("'{word}'")).replace("{}", &written);
                let outcome = match client.query(&sql).await {
                    Ok(rows) => crate::support::collect(rows).await.map(drop).map_err(|error| error.to_string()),
                    Err(refused) => Err(refused.to_string()),
                };
                let refused = outcome.err().unwrap_or_default();
                assert!(!refused.contains("(rule "), "{sql}: {refused}");
                ran += usize::from(refused.is_empty());
            }
            assert!(ran > 10, "{written}: {ran}");
            for made in ["VIEW {}_v", "TABLE {}_g", "TABLE {}", "SEQUENCE {}", "TYPE {}", "MACRO {}_m", "SCHEMA {}"] {
                let _ = client.query(&format!("DROP {}", made.replace("{}", word))).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_a_session_are_its_own_and_every_setting_is_decided() {
    use mallard::engine::guard::settings::{OFF_ONLY, SERVERS, SESSION};
    let server = TestServer::start().await;
    let client = server.client().await;
    let listed = |list: &[(&[&str], &str)], name: &str| list.iter().any(|(names, _)| names.contains(&name));
    let settings = "SELECT name FROM duckdb_settings() WHERE name NOT LIKE 'debug%' ORDER BY name";
    let settings = crate::support::collect(client.query(settings).await.unwrap()).await.unwrap();
    let mut decided = 0;
    for batch in &settings {
        let names = batch.column(0).as_any().downcast_ref::<arrow_array::StringArray>().unwrap();
        for name in names.iter().flatten().map(str::to_lowercase) {
            let ours = listed(SERVERS, &name);
            let theirs = listed(SESSION, &name) || listed(OFF_ONLY, &name);
            assert!(!(ours && theirs), "{name} is on two lists");
            decided += usize::from(theirs);
            if !theirs {
                let refused = client.query(&format!("SET {name} = 1")).await.err().unwrap_or_else(|| panic!("{name}"));
                assert_eq!(refused.code(), Code::PermissionDenied, "{name}: {refused}");
            }
        }
    }
    assert!(decided > 20, "{decided}");
    // Of two lists, one says why.
    for (names, reason) in SESSION.iter().chain(OFF_ONLY).chain(SERVERS) {
        assert!(!names.is_empty() && !reason.is_empty());
    }
    for refused in
        ["SET integer_division = (SELECT true)", "SET GLOBAL default_order = 'desc'", "SET enable_progress_bar = true"]
    {
        let told = client.query(refused).await.err().expect(refused);
        assert_eq!(told.code(), Code::PermissionDenied, "{refused}: {told}");
    }
    // It changes nothing for others.
    assert_eq!(row(&client, "SET default_null_order = 'nulls_first'").await[0], "OK");
    let other = server.client().await;
    assert_eq!(row(&other, "SELECT a FROM (VALUES (NULL), (1)) t(a) ORDER BY a LIMIT 1").await, ["1"]);
    for idle in ["PRAGMA version", "PRAGMA database_list", "PRAGMA show_databases", "CALL range(abs(3))", ";SELECT 1"] {
        assert!(client.query(idle).await.is_ok(), "{idle}");
    }
}

/// Texts that DuckDB's parser or planner would take seconds, gigabytes or the whole process for.
fn bombs() -> Vec<(&'static str, String)> {
    let times = |count: usize, text: &str| text.repeat(count);
    vec![
        ("brackets", format!("SELECT {}1{}", times(100_000, "("), times(100_000, ")"))),
        ("lists", format!("SELECT {}1{}", times(900, "["), times(900, "]"))),
        ("subqueries", format!("SELECT {}1{}", times(14_000, "(SELECT "), times(14_000, ")"))),
        ("case", format!("SELECT {}1{}", times(9_000, "CASE WHEN true THEN "), times(9_000, " END"))),
        ("minus", format!("SELECT {}1", times(100_000, "- "))),
        ("not", format!("SELECT {}true", times(60_000, "NOT "))),
        ("parts", format!("SELECT a{}", times(5_000, ".a"))),
        ("casts", format!("SELECT 1{}", times(40_000, "::INT"))),
        ("subscripts", format!("SELECT x{} FROM (SELECT [1] AS x)", times(60_000, "[1]"))),
        ("plus", format!("SELECT 1{}", times(100_000, "+1"))),
        ("and", format!("SELECT true{}", times(40_000, " AND true"))),
        ("concatenation", format!("SELECT ''{}", times(60_000, "||''"))),
        ("unions", format!("SELECT 1{}", times(14_000, " UNION SELECT 1"))),
        ("joins", format!("SELECT 1 FROM range(1){}", times(14_000, ", range(1)"))),
        ("cross joins", format!("SELECT 1 FROM range(1) t{}", times(9_000, " CROSS JOIN range(1)"))),
        (
            "chained CTEs",
            (1..7_000)
                .fold("WITH c0 AS (SELECT 1)".to_string(), |text, n| text + &format!(", c{n} AS (FROM c{})", n - 1))
                + " FROM c6999",
        ),
        ("lambdas", format!("SELECT {}1{}", times(3_000, "list_transform([1], lambda x: "), times(3_000, ")"))),
        ("long text", format!("SELECT '{}'", times(300_000, "x"))),
        ("values", format!("SELECT * FROM (VALUES (1){})", times(40_000, ", (1)"))),
        ("columns", format!("SELECT 1{}", times(60_000, ",1"))),
        ("in list", format!("SELECT 1 IN (1{})", times(100_000, ",1"))),
        ("arrows", format!("SELECT x{} FROM (SELECT '{{}}'::JSON AS x)", times(30_000, "->'a'"))),
        ("exponents", format!("SELECT 1{}", times(60_000, "^1"))),
        ("between", format!("SELECT 1{}", times(15_000, " BETWEEN 0 AND 1"))),
        ("comparisons", format!("SELECT 1{}", times(60_000, "=1"))),
        ("is null", format!("SELECT 1{}", times(20_000, " IS NULL"))),
        ("collations", format!("SELECT 'a'{}", times(12_000, " COLLATE NOCASE"))),
        ("method calls", format!("SELECT 'a'{}", times(20_000, ".lower()"))),
        ("open only", times(200_000, "(")),
        ("quotes", times(200_000, "'")),
        ("semicolons", times(200_000, ";")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_bombs_are_refused_or_ended_and_the_next_query_works() {
    let mut config = test_config();
    config.limits.statement_timeout = mallard::config::Span(std::time::Duration::from_secs(5));
    let server = TestServer::with(config).await;
    let client = server.client().await;
    for (what, sql) in bombs() {
        if let Ok(rows) = client.query(&sql).await {
            // Ended at the deadline at the latest.
            let _ = crate::support::collect(rows).await;
        }
        assert_eq!(row(&client, "SELECT 42").await, ["42"], "after {what}");
    }
    for nested in ["brackets", "lists", "subqueries", "case", "minus", "not", "parts", "lambdas", "open only"] {
        let (_, sql) = bombs().into_iter().find(|(what, _)| *what == nested).unwrap();
        let refused = client.query(&sql).await.err().expect(nested);
        assert_eq!(refused.code(), Code::ResourceExhausted, "{nested}: {refused}");
        assert!(refused.to_string().contains("limits.sql_depth"), "{nested}: {refused}");
    }
    // Long, and not deep.
    let sum = format!("SELECT (1{})::BIGINT", "+1".repeat(900));
    assert_eq!(row(&client, &sum).await, ["901"]);
}

/// Texts that are small and double with each step.
fn doubling(steps: usize) -> Vec<(&'static str, String)> {
    let nest = |first: &str, step: fn(&str) -> String| (0..steps).fold(first.to_string(), |text, _| step(&text));
    let ctes = |step: fn(usize) -> String| {
        let steps: Vec<String> = (1..=steps).map(|at| format!("c{at} AS ({})", step(at - 1))).collect();
        format!("WITH c0 AS (SELECT 1 AS a), {} FROM c{}", steps.join(", "), steps.len())
    };
    let stars = nest("SELECT 1 AS a", |inner| format!("SELECT *, * FROM ({inner})"));
    vec![
        ("stars", stars.clone()),
        ("stars of a table", nest("FROM t", |inner| format!("SELECT *, * FROM ({inner})"))),
        ("named stars", nest("SELECT 1 AS a", |inner| format!("SELECT x.*, x.* FROM ({inner}) x"))),
        ("columns()", nest("SELECT 1 AS a", |inner| format!("SELECT COLUMNS(*), COLUMNS('.*') FROM ({inner})"))),
        (
            "columns() in calls",
            nest("SELECT 1 AS a", |inner| {
                format!("SELECT abs(COLUMNS(*)), COLUMNS(lambda c: true) + 1 FROM ({inner})")
            }),
        ),
        ("from first", nest("SELECT 1 AS a", |inner| format!("FROM ({inner}) SELECT *, *"))),
        ("CTEs with stars", ctes(|at| format!("SELECT *, * FROM c{at}"))),
        ("CTEs joined with themselves", ctes(|at| format!("FROM c{at} x, c{at} y"))),
        ("CTEs in CTEs", nest("SELECT 1 AS a", |inner| format!("WITH c AS ({inner}) SELECT *, * FROM c"))),
        ("where", format!("SELECT 1 WHERE EXISTS ({stars})")),
        ("a scalar subquery", format!("SELECT (SELECT count(*) FROM ({stars}))")),
        ("lateral", format!("SELECT 1 FROM range(1) r, LATERAL ({stars}) l")),
        ("describe", format!("DESCRIBE {stars}")),
        ("summarize", format!("SUMMARIZE {stars}")),
        ("explain", format!("EXPLAIN {stars}")),
        ("create table", format!("CREATE TABLE n AS {stars}")),
        ("create table without data", format!("CREATE TABLE n AS {stars} WITH NO DATA")),
        ("create view", format!("CREATE VIEW n AS {stars}")),
        ("create macro", format!("CREATE MACRO n() AS TABLE {stars}")),
        ("insert", format!("INSERT INTO t SELECT count(*) FROM ({stars})")),
        ("update", format!("UPDATE t SET i = (SELECT count(*) FROM ({stars}))")),
        ("delete", format!("DELETE FROM t WHERE i = (SELECT count(*) FROM ({stars}))")),
        (
            "merge",
            format!("MERGE INTO t USING (SELECT count(*) AS n FROM ({stars})) s ON t.i = s.n WHEN MATCHED THEN DELETE"),
        ),
        ("pivot", format!("PIVOT ({stars}) ON a IN (1) USING count(*)")),
        ("set", format!("SET VARIABLE v = (SELECT count(*) FROM ({stars}))")),
        ("table macros", format!("FROM m{steps}()")),
        ("scalar macros", format!("SELECT s{steps}(1)")),
        ("arguments of a macro", format!("SELECT {}1{}", "s0(".repeat(steps), ")".repeat(steps))),
    ]
}

/// Binding cannot be interrupted, so what would take long is refused before.
#[tokio::test(flavor = "multi_thread")]
async fn texts_that_expand_beyond_the_limit_are_refused_before_they_are_bound() {
    const STEPS: usize = 24;
    let server = TestServer::start().await;
    let client = server.client().await;
    run(&client, "CREATE TABLE t (i INTEGER)").await;
    run(&client, "CREATE MACRO m0() AS TABLE SELECT 1 AS a").await;
    run(&client, "CREATE MACRO s0(x) AS x + x").await;
    // The definition of a macro that would stand for too much is refused, too.
    let mut defined = 0;
    for at in 1..=STEPS {
        let before = at - 1;
        let of_rows = client.query(&format!("CREATE MACRO m{at}() AS TABLE SELECT *, * FROM m{before}()")).await;
        let of_values = client.query(&format!("CREATE MACRO s{at}(x) AS s{before}(x) + s{before}(x)")).await;
        if of_rows.is_err() || of_values.is_err() {
            break;
        }
        defined = at;
    }
    assert!((8..STEPS).contains(&defined), "{defined}");
    // What they call may become larger afterwards.
    let wide: Vec<String> = (0..1000).map(|at| format!("{at} AS c{at}")).collect();
    run(&client, &format!("CREATE OR REPLACE MACRO m0() AS TABLE SELECT {}", wide.join(", "))).await;
    run(&client, &format!("CREATE OR REPLACE MACRO s0(x) AS {}", vec!["x"; 20].join(" + "))).await;
    for called in
        [format!("FROM m{defined}()"), format!("SELECT s{defined}(1)"), format!("SELECT s{defined}(i) FROM t")]
    {
        let refused = client.query(&called).await.err().unwrap_or_else(|| panic!("{called} is let through"));
        assert!(refused.to_string().contains("limits.sql_expansion"), "{called}: {refused}");
    }
    for (what, sql) in doubling(STEPS) {
        for outcome in
            [client.query(&sql).await.map(drop), client.info(FlightDescriptor::new_cmd(sql.clone())).await.map(drop)]
        {
            let refused = outcome.err().unwrap_or_else(|| panic!("{what} is let through"));
            let missing = ["scalar macros", "table macros"].contains(&what) && refused.code() == Code::NotFound;
            assert!(missing || refused.code() == Code::ResourceExhausted, "{what}: {refused}");
            assert!(missing || refused.to_string().contains("limits.sql_expansion"), "{what}: {refused}");
        }
    }
    let relations = |count: usize| (0..count).map(|at| format!("range(1) t{at}")).collect::<Vec<_>>().join(", ");
    for joins in [
        format!("SELECT 1 FROM {}", relations(300)),
        format!("SELECT 1 FROM range(1) a {}", "CROSS JOIN range(1)".repeat(300)),
        format!("SELECT 1 FROM (SELECT 1 FROM {})", relations(300)),
        format!("UPDATE t SET i = 1 FROM {}", relations(300)),
        format!("DELETE FROM t USING {}", relations(300)),
        format!("SELECT 1{}", " EXCEPT SELECT 1".repeat(300)),
        format!("SELECT 1{}", " INTERSECT SELECT 1".repeat(300)),
        format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(3000)),
        // An explained plan is drawn, which takes longer than to make it.
        format!("EXPLAIN SELECT 1 {}{}", "EXCEPT (SELECT 1 ".repeat(60), ")".repeat(60)),
        format!("EXPLAIN (ANALYZE) SELECT 1 FROM {}", relations(60)),
    ] {
        let refused = client.query(&joins).await.err().expect("300 joins");
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(refused.to_string().contains("limits.sql_joins"), "{refused}");
    }
}

/// Views count with the joins that they hold, and that the views in them hold.
#[tokio::test(flavor = "multi_thread")]
async fn joins_of_views_count_where_the_views_are_read() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let relations = |count: usize| (0..count).map(|at| format!("range(1) t{at}")).collect::<Vec<_>>().join(", ");
    run(&client, &format!("CREATE VIEW \"Forty\" AS SELECT 1 AS i FROM {}", relations(40))).await;
    run(&client, "CREATE VIEW eighty AS SELECT a.i FROM forty a, forty AS b").await;
    run(&client, "CREATE VIEW inner_one AS SELECT 1 AS i").await;
    run(&client, "CREATE VIEW outer_one AS SELECT a.i FROM inner_one a, inner_one b, inner_one c, inner_one d").await;
    // A qualified column is no relation.
    let small = "SELECT eighty.i, eighty.i, eighty.i FROM eighty WHERE eighty.i = eighty.i";
    assert_eq!(row(&client, small).await, ["1"; 3]);
    assert_eq!(row(&client, "SELECT i FROM outer_one").await, ["1"]);
    for large in [
        "SELECT 1 FROM eighty, eighty",
        "SELECT 1 FROM eighty JOIN memory.main.\"Forty\" ON true JOIN forty ON true",
        "WITH a AS (FROM eighty) SELECT 1 FROM a WHERE EXISTS (FROM eighty)",
        "CREATE VIEW more AS SELECT 1 AS i FROM eighty, eighty",
    ] {
        let refused = client.query(large).await.err().unwrap_or_else(|| panic!("{large} is let through"));
        assert!(refused.to_string().contains("limits.sql_joins"), "{large}: {refused}");
    }
    // What they read may become larger afterwards.
    run(&client, "CREATE OR REPLACE VIEW inner_one AS SELECT i FROM forty").await;
    let refused = client.query("SELECT i FROM outer_one").await.err().expect("160 joins");
    assert!(refused.to_string().contains("limits.sql_joins"), "{refused}");
}

/// What looks alike and is small goes on as before.
#[tokio::test(flavor = "multi_thread")]
async fn texts_that_stay_small_are_not_taken_for_those_that_expand() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let columns: Vec<String> = (0..3000).map(|at| format!("{at} AS c{at}")).collect();
    run(&client, &format!("CREATE TABLE wide AS SELECT {}", columns.join(", "))).await;
    run(&client, "CREATE TABLE t AS SELECT 1 AS i").await;
    run(&client, "CREATE MACRO twice(x) AS x * 2").await;
    for small in doubling(6) {
        // Tables, macros and settings of these names are not there.
        if !["create", "macro", "update", "set", "pivot", "arguments"].iter().any(|word| small.0.contains(word)) {
            let outcome = client.query(&small.1).await.map(drop);
            assert!(outcome.is_ok(), "{}: {:?}", small.0, outcome.err().map(|error| error.to_string()));
        }
    }
    let united: Vec<&str> = std::iter::repeat_n("SELECT x.*, y.* FROM t x, t y", 100).collect();
    let times: Vec<String> = (0..500).map(|at| format!("{at} * twice({at}) * 2")).collect();
    let listed: Vec<String> = (0..2000).map(|at| format!("({at}, {at} * 2, twice({at}))")).collect();
    for sql in [
        "SELECT * FROM (SELECT * FROM (SELECT *, 1 FROM (SELECT * FROM wide)))".to_string(),
        format!("SELECT count(*) FROM ({})", united.join(" UNION ALL ")),
        format!("SELECT {}", times.join(" + ")),
        format!("SELECT count(*) FROM (VALUES {})", listed.join(", ")),
        format!("SELECT 1 WHERE 1 IN ({})", (0..5000).map(|at| at.to_string()).collect::<Vec<_>>().join(", ")),
        format!("SELECT {}", (0..2000).map(|at| format!("{at} AS c{at}")).collect::<Vec<_>>().join(", ")),
    ] {
        let outcome = client.query(&sql).await.map(drop);
        assert!(outcome.is_ok(), "{:.80}: {:?}", sql, outcome.err().map(|error| error.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_error_is_cut_so_that_it_fits_into_headers() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for text in ["\u{1f986}".repeat(50_000), "x".repeat(200_000), "'".repeat(200_000)] {
        let refused = client.query(&format!("SELEC {text}")).await.err().expect("no SQL");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.to_string().len() < 5000);
    }
    assert_eq!(row(&client, "SELECT 42").await, ["42"]);
}
