//! What must never get through: tried through the guard at each start, and by the tests with mutations and for real.

use std::sync::Arc;

use duckdb::connection::Connection;

use super::super::Shared;
use crate::{
    access::{Rights, Role, Roles},
    config::Config,
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

/// Tries the list with the rights of each role. One that gets through keeps the port closed.
pub(in crate::engine) fn self_test(shared: &Shared, connection: &Connection) -> Result<()> {
    let roles = Roles::new(&Config::default().auth);
    let rights = |role: Role| roles.rights("self-test", Some(role.word()), &[], &[]);
    let rights: Vec<Arc<Rights>> = Role::ALL.into_iter().map(rights).collect::<Result<_>>()?;
    for Attack { sql, denied_to } in ATTACKS {
        let sql = sql.replace("{db}", &shared.config.database.path);
        for rights in rights.iter().filter(|rights| rights.role <= *denied_to) {
            let admin_may = shared.config.database.external_access && rights.role == Role::Admin;
            if !admin_may && super::admit(shared, connection, &sql, rights).is_ok() {
                let role = rights.role.word();
                return Err(Error::internal(format!("the SQL guard lets a {role} run what it must not: {sql}")));
            }
        }
    }
    Ok(())
}
