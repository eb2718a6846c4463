//! What must never get through: tried through the guard at each start, and by the tests with mutations and for real.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use duckdb::connection::Connection;

use super::super::{Engine, Shared};
use crate::{
    access::{Rights, Role, Roles},
    config::{Config, Database, RoleSettings},
    error::{Error, Result},
};

/// One statement that a role must not run. `{db}` stands for the path of the database file.
pub struct Attack {
    pub sql: &'static str,
    /// The highest role that is denied it while `database.external_access` is off.
    pub denied_to: Role,
}

const fn reader(sql: &'static str) -> Attack {
    Attack { sql, denied_to: Role::Reader }
}

const fn writer(sql: &'static str) -> Attack {
    Attack { sql, denied_to: Role::Writer }
}

const fn anyone(sql: &'static str) -> Attack {
    Attack { sql, denied_to: Role::Admin }
}

pub const ATTACKS: &[Attack] = &[
    // Writing files, of which DuckDB lets everyone reach its own: a CTE may hold a COPY, and is typed SELECT.
    anyone("COPY (SELECT 1) TO '{db}' (FORMAT csv, USE_TMP_FILE false)"),
    anyone("COPY (SELECT 1) TO '{db}.wal' (FORMAT csv)"),
    anyone("WITH c AS (COPY (SELECT 1) TO '{db}' (FORMAT csv, USE_TMP_FILE false)) SELECT * FROM c"),
    anyone("WITH a AS (SELECT 1), c AS MATERIALIZED (COPY a TO '{db}.wal' (FORMAT csv)) FROM a, c"),
    anyone("SELECT (WITH c AS (COPY (SELECT 1) TO '{db}') SELECT 1 FROM c)"),
    anyone("EXPLAIN ANALYZE COPY (SELECT 1) TO '{db}'"),
    anyone("EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{db}'"),
    anyone("COPY t FROM '{db}'"),
    anyone("COPY FROM DATABASE memory TO other"),
    anyone("EXPORT DATABASE '{db}.export'"),
    anyone("IMPORT DATABASE '{db}.export'"),
    // Reading files.
    anyone("SELECT * FROM read_blob('{db}')"),
    anyone("SELECT * FROM read_text('{db}.wal')"),
    anyone("SELECT * FROM read_csv('/etc/passwd')"),
    anyone("SELECT * FROM read_csv_auto('/etc/passwd')"),
    anyone("FROM read_json('/etc/passwd')"),
    anyone("FROM read_parquet('{db}')"),
    anyone("FROM parquet_scan('{db}')"),
    anyone("FROM parquet_metadata('{db}')"),
    anyone("FROM parquet_file_metadata('{db}')"),
    anyone("FROM read_duckdb('{db}')"),
    anyone("FROM sniff_csv('/etc/passwd')"),
    anyone("FROM glob('/*')"),
    anyone("SELECT 1 FROM range(1) t, LATERAL (FROM read_blob('{db}'))"),
    anyone("SELECT (SELECT content FROM read_blob('{db}'))"),
    anyone("SELECT 1 WHERE EXISTS (FROM read_text('{db}'))"),
    anyone("FROM system.main.read_blob('{db}')"),
    anyone("FROM \"read_blob\"('{db}')"),
    anyone("FROM READ_BLOB /* a comment */ ('{db}')"),
    anyone("FROM `read_blob`('{db}')"),
    anyone("DESCRIBE FROM read_blob('{db}')"),
    anyone("SUMMARIZE FROM read_blob('{db}')"),
    anyone("CALL read_blob('{db}')"),
    anyone("CREATE TABLE stolen AS FROM read_blob('{db}')"),
    anyone("CREATE VIEW stolen AS FROM read_blob('{db}')"),
    anyone("CREATE MACRO stolen() AS TABLE FROM read_blob('{db}')"),
    anyone("CREATE MACRO stolen() AS (SELECT content FROM read_blob('{db}'))"),
    anyone("INSERT INTO t SELECT content FROM read_blob('{db}')"),
    anyone("PIVOT (FROM read_text('{db}')) ON filename USING count(*)"),
    // SQL in strings, where nobody looks, and other streams.
    anyone("FROM query('SELECT content FROM read_blob(''{db}'')')"),
    anyone("FROM query_table('t')"),
    anyone("FROM `query`('SELECT 1')"),
    anyone("FROM `arrow_scan`(0::POINTER, 0::POINTER, 0::POINTER)"),
    anyone("FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))"),
    anyone("PRAGMA json_execute_serialized_sql('x')"),
    anyone("SELECT json_serialize_sql(repeat('(', 1000000))"),
    anyone("SELECT json_deserialize_sql('{}')"),
    anyone("FROM mallard_stream(0)"),
    anyone("FROM arrow_scan(0::POINTER, 0::POINTER, 0::POINTER)"),
    anyone("FROM seq_scan(1)"),
    anyone("PREPARE p AS COPY (SELECT 1) TO '{db}'"),
    // Other databases, extensions, secrets, settings.
    anyone("ATTACH '{db}' AS again"),
    anyone("ATTACH ':memory:' AS other"),
    anyone("DETACH memory"),
    anyone("ALTER DATABASE memory SET ALIAS TO other"),
    anyone("DROP SCHEMA '_mallard' CASCADE"),
    anyone("DROP SCHEMA `_mallard` CASCADE"),
    anyone("INSTALL httpfs"),
    anyone("LOAD httpfs"),
    anyone("LOAD '{db}'"),
    anyone("UPDATE EXTENSIONS"),
    anyone("CREATE SECRET s (TYPE s3, KEY_ID 'x', SECRET 'y')"),
    anyone("CREATE PERSISTENT SECRET s (TYPE s3)"),
    anyone("DROP SECRET s"),
    anyone("FROM which_secret('s3://x', 's3')"),
    anyone("FROM duckdb_secrets()"),
    anyone("SET lock_configuration = false"),
    anyone("SET enable_external_access = true"),
    anyone("SET GLOBAL TimeZone = 'UTC'"),
    anyone("RESET memory_limit"),
    anyone("SET debug_checkpoint_abort = 'BEFORE_HEADER'"),
    anyone("SET max_expression_depth = 1000000"),
    anyone("SET SESSION max_expression_depth = 1000000"),
    anyone("PRAGMA enable_profiling"),
    anyone("PRAGMA memory_limit = '1TB'"),
    anyone("PRAGMA disable_checkpoint_on_shutdown"),
    anyone("PRAGMA add_parquet_key('k', 'x')"),
    anyone("CALL enable_logging()"),
    anyone("FROM enable_profiling()"),
    anyone("FROM truncate_duckdb_logs()"),
    anyone("FROM duckdb_logs()"),
    anyone("FROM register_external_resource('x', 'y')"),
    // What keeps the database, or shows others' work and the machine's paths.
    writer("CHECKPOINT"),
    writer("FORCE CHECKPOINT"),
    writer("CALL checkpoint()"),
    writer("FROM force_checkpoint()"),
    writer("FROM duckdb_databases()"),
    writer("FROM duckdb_databases"),
    writer("FROM pragma_database_list"),
    writer("FROM duckdb_settings()"),
    writer("FROM `duckdb_settings`()"),
    writer("SHOW temp_directory"),
    writer("FROM (SHOW \"secret_directory\")"),
    writer("CREATE VIEW seen AS SHOW temp_directory"),
    writer("FROM `pragma_database_list`"),
    writer("FROM duckdb_temporary_files()"),
    writer("FROM pg_catalog.pg_settings"),
    writer("SELECT current_setting('temp_directory')"),
    writer("SELECT write_log('forged')"),
    writer("SELECT json_serialize_plan('FROM t')"),
    // Changes.
    reader("INSERT INTO t VALUES (1)"),
    reader("UPDATE t SET i = 1"),
    reader("DELETE FROM t"),
    reader("TRUNCATE t"),
    reader("MERGE INTO t USING t AS s ON true WHEN MATCHED THEN DELETE"),
    reader("CREATE TABLE n AS SELECT 1"),
    reader("CREATE TEMP TABLE n AS SELECT 1"),
    reader("CREATE OR REPLACE VIEW n AS SELECT 1"),
    reader("CREATE MACRO n() AS 1"),
    reader("CREATE SCHEMA n"),
    reader("CREATE SEQUENCE n"),
    reader("CREATE TYPE n AS ENUM ('a')"),
    reader("CREATE INDEX n ON t (i)"),
    reader("DROP TABLE t"),
    reader("ALTER TABLE t RENAME TO n"),
    reader("COMMENT ON TABLE t IS 'x'"),
    reader("VACUUM"),
    reader("ANALYZE"),
];

/// What a caller with grants on `sales.*` to read and on `scratch.*` and `hr.scratch*` to write may use ..
pub const GRANTED: &[&str] = &[
    "CREATE SCHEMA sales",
    "CREATE SCHEMA scratch",
    "CREATE TABLE sales.orders AS SELECT range::INTEGER AS id, 'o' || range AS name FROM range(10)",
    "CREATE TABLE scratch.mine (id INTEGER PRIMARY KEY, name VARCHAR DEFAULT 'x')",
    "CREATE TABLE scratch.copies (what VARCHAR)",
    "INSERT INTO scratch.mine SELECT range, 'm' || range FROM range(3)",
    "CREATE MACRO sales.twice(x) AS 2 * x",
    "CREATE TYPE sales.mood AS ENUM ('good', 'bad')",
    "CREATE SEQUENCE scratch.numbers",
];

/// .. and what is there beside it. The view is granted, and so is the macro, which counts as what it reads.
pub const HIDDEN: &[&str] = &[
    "CREATE SCHEMA hr",
    "CREATE SCHEMA recurring",
    "CREATE TABLE hr.salaries AS SELECT range::INTEGER AS id, (100 * range)::INTEGER AS salary FROM range(10)",
    "CREATE TABLE hr.orders AS SELECT 77 AS id",
    "CREATE TABLE secrets AS SELECT 42 AS id",
    "CREATE TABLE tokens AS SELECT 43 AS id",
    "CREATE TABLE recurring.vault AS SELECT 44 AS id",
    "CREATE TYPE hr.level AS ENUM ('fired', 'hired')",
    "CREATE SEQUENCE hr.counter",
    "CREATE MACRO hr.bonus(x) AS x + 17",
    "CREATE VIEW sales.bands AS SELECT id, salary > 500 AS high FROM hr.salaries",
    "CREATE MACRO sales.paid() AS (SELECT sum(salary) FROM hr.salaries)",
];

/// What that caller must not run: texts that mean one thing to their reader and another to DuckDB, and objects beside tables.
pub const GRANT_ATTACKS: &[&str] = &[
    "SET VARIABLE v = (SELECT list(s) FROM hr.salaries s)",
    "SET VARIABLE v = (SELECT list(sql) FROM duckdb_views)",
    "set variable \"v\" to (select max(id) from memory.main.secrets)",
    "WITH \"to\u{212a}ens\" AS (SELECT 1 AS id) SELECT * FROM tokens",
    "WITH \"\u{17f}ecrets\" AS (SELECT 1 AS id) SELECT * FROM secrets, sales.bands",
    "CREATE TABLE scratch.d AS SELECT data.* FROM range(1) WITH ORDINALITY, secrets data",
    "CREATE TABLE scratch.d AS SELECT data.* FROM range(1) WITH ORDINALITY, secrets AS data",
    "CREATE VIEW hr.scratch1 AS SELECT * FROM salaries",
    "CREATE OR REPLACE VIEW hr.scratch1 AS WITH a AS (SELECT * FROM salaries) SELECT * FROM a",
    "WITH vault AS (SELECT 1 AS id) FROM recurring.vault",
    "SELECT nextval('hr.counter')",
    "SELECT nextval('hr.' || 'counter')",
    "SELECT nextval(getvariable('v'))",
    "SELECT 'hr.counter'.nextval()",
    "SELECT currval('hr.counter')",
    "CREATE TABLE scratch.d (i INTEGER DEFAULT nextval('hr.counter'))",
    "ALTER TABLE scratch.mine ADD COLUMN d INTEGER DEFAULT nextval('hr.counter')",
    "ALTER TABLE scratch.mine ALTER id SET DEFAULT nextval('hr.counter')",
    "SELECT enum_range(NULL::hr.level)",
    "SELECT CAST('x' AS hr.level)",
    "CREATE TABLE scratch.d (i hr.level)",
    "SELECT hr.bonus(1)",
    "SELECT sales.paid()",
    "SELECT count(*) FROM duckdb_functions()",
    "SELECT count(*) FROM duckdb_types()",
    "FROM duckdb_types",
    "SELECT pg_catalog.format_type(100, 0)",
    "SELECT get_block_size('memory')",
    "UPDATE scratch.mine SET name = (WITH \"to\u{212a}ens\" AS (SELECT 1) SELECT max(id) FROM tokens)",
    "DELETE FROM scratch.mine USING (WITH vault AS (SELECT 1) FROM recurring.vault) v WHERE true",
    "EXPLAIN SELECT * FROM sales.bands",
    "EXPLAIN ANALYZE WITH b AS (SELECT high FROM sales.\"Bands\") FROM b",
    "EXPLAIN (FORMAT json) SELECT 1 FROM sales.orders WHERE EXISTS (FROM memory.sales.bands)",
    "SELECT stats(id) FROM sales.bands",
    "UPDATE sales.orders SET id = 1",
    "INSERT INTO sales.orders VALUES (1, 'x')",
    "CREATE TABLE scratch.d (i INTEGER REFERENCES main.secrets (id))",
];

/// Tries the list with the rights of each role. One that gets through keeps the port closed.
pub(in crate::engine) fn self_test(shared: &Shared, connection: &Connection) -> Result<()> {
    let roles = Roles::new(&Config::default().auth);
    let rights = |role: Role| roles.rights("self-test", Some(role.word()), &[], &[]);
    let rights: Vec<Arc<Rights>> = Role::ALL.into_iter().map(rights).collect::<Result<_>>()?;
    for Attack { sql, denied_to } in ATTACKS {
        let sql = sql.replace("{db}", &shared.config.database.path);
        for rights in rights.iter().filter(|rights| rights.role <= *denied_to) {
            let admin_may = shared.config.database.external_access && rights.role == Role::Admin;
            if !admin_may && super::admit(shared, connection, &sql, rights, super::Sees::ItsOwn).is_ok() {
                let role = rights.role.word();
                return Err(Error::internal(format!("the SQL guard lets a {role} run what it must not: {sql}")));
            }
        }
    }
    let began = Instant::now();
    // What it tries depends on nothing that differs between two databases of one process.
    if TESTED.get().is_none() {
        test_grants(shared)?;
        // Set by whoever is first.
        let _ = TESTED.set(());
    }
    tracing::debug!(took = ?began.elapsed(), "the guard held grants against the list of attacks");
    Ok(())
}

/// Whether grants were held in this process, which is asked at its first start and not when a database is reopened.
static TESTED: OnceLock<()> = OnceLock::new();

/// The same for grants on some tables, in a database in memory.
fn test_grants(shared: &Shared) -> Result<()> {
    let config = Config {
        database: Database {
            path: ":memory:".into(),
            attach: Vec::new(),
            init: None,
            ..shared.config.database.clone()
        },
        ..Config::default()
    };
    let scratch = Engine::open_unlocked(&config, shared.metrics.clone(), Some(shared.built_ins().clone()))?;
    let (scratch, connection) = (&scratch.shared, scratch.shared.connect()?);
    for sql in GRANTED.iter().chain(HIDDEN) {
        scratch.execute(&connection, sql)?;
    }
    let settings = RoleSettings {
        base: Some(Role::Writer),
        read: Some(vec!["sales.*".into()]),
        write: Some(vec!["scratch.*".into(), "hr.scratch*".into()]),
        ..RoleSettings::default()
    };
    let mut auth = Config::default().auth;
    auth.roles.insert("narrow".into(), settings);
    let narrow = Roles::new(&auth).rights("self-test", Some("narrow"), &[], &[])?;
    for sql in GRANT_ATTACKS {
        if super::admit(scratch, &connection, sql, &narrow, super::Sees::ItsOwn).is_ok() {
            return Err(Error::internal(format!(
                "the SQL guard lets a caller without a grant run what it must not: {sql}"
            )));
        }
    }
    // One that refuses everything would pass, too.
    let allowed = "SELECT b.high, sales.twice(1) FROM sales.bands b, scratch.mine";
    super::admit(scratch, &connection, allowed, &narrow, super::Sees::ItsOwn).map(drop)
}
