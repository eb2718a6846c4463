//! What the server itself keeps in the database it serves: a schema of its own, which the guard denies to every client.
//!
//! It knows nothing of what the texts mean. The table is made with its first row, so that a database that needs none of
//! it stays as it was; backups hold it like any other.

use duckdb::{Parameters, QueryParameter, connection::Connection};

use super::{Engine, Shared, catalog::quote};
use crate::{access::OWN_SCHEMA, error::Result};

/// One version of a registered exchanger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptExchanger {
    pub name: String,
    pub version: u64,
    pub owner: String,
    /// Empty for none.
    pub description: String,
    /// JSON.
    pub definition: String,
}

const TABLE: &str = "exchangers";

fn table() -> String {
    format!("{}.{TABLE}", quote(OWN_SCHEMA))
}

fn change(shared: &Shared, connection: &Connection, sql: &str, values: &[&dyn QueryParameter]) -> Result<()> {
    let changed = connection.execute(sql, Parameters::positional(values));
    changed.map(drop).map_err(|error| shared.cause(&error))
}

impl Engine {
    /// Whether what is kept outlives the process.
    pub fn is_on_disk(&self) -> bool {
        self.shared.config.database.file().is_some()
    }

    /// Stores a version, and forgets those of its name that are older than `oldest`. Durable when this returns.
    pub async fn keep_exchanger(&self, kept: KeptExchanger, oldest: u64) -> Result<()> {
        self.aside(move |shared, connection| {
            let table = table();
            let KeptExchanger { name, version, owner, description, definition } = kept;
            let stored = (|| {
                shared.execute(connection, "BEGIN TRANSACTION")?;
                shared.execute(connection, &format!("CREATE SCHEMA IF NOT EXISTS {}", quote(OWN_SCHEMA)))?;
                shared.execute(
                    connection,
                    &format!(
                        "CREATE TABLE IF NOT EXISTS {table} \
                         (name VARCHAR, version UBIGINT, owner VARCHAR, description VARCHAR, definition VARCHAR)"
                    ),
                )?;
                let insert = format!("INSERT INTO {table} VALUES ($1, $2, $3, $4, $5)");
                change(shared, connection, &insert, &[&name, &version, &owner, &description, &definition])?;
                let delete = format!("DELETE FROM {table} WHERE name = $1 AND version < $2");
                change(shared, connection, &delete, &[&name, &oldest])?;
                shared.execute(connection, "COMMIT").map(drop)
            })();
            // A failed transaction ends with its connection.
            stored
        })
        .await
    }

    /// Forgets one version, or all of that name.
    pub async fn forget_exchanger(&self, name: String, version: Option<u64>) -> Result<()> {
        self.aside(move |shared, connection| {
            let (from, to) = version.map_or((0, u64::MAX), |version| (version, version));
            let delete = format!("DELETE FROM {} WHERE name = $1 AND version BETWEEN $2 AND $3", table());
            change(shared, connection, &delete, &[&name, &from, &to])
        })
        .await
    }

    /// All that are kept, by name and version.
    pub async fn kept_exchangers(&self) -> Result<Vec<KeptExchanger>> {
        self.aside(move |shared, connection| {
            let there = "SELECT count(*)::VARCHAR FROM duckdb_tables() \
                         WHERE database_name = current_database() AND schema_name = $1 AND table_name = $2";
            let there = shared.rows(connection, there, Parameters::positional(&[&OWN_SCHEMA, &TABLE]))?;
            if there.iter().flatten().all(|count| count == "0") {
                return Ok(Vec::new());
            }
            let select = format!(
                "SELECT name, version::VARCHAR, owner, description, definition FROM {} ORDER BY name, version",
                table()
            );
            let rows = shared.rows(connection, &select, Parameters::None)?;
            let kept = rows.into_iter().filter_map(|row| {
                let [name, version, owner, description, definition] = <[String; 5]>::try_from(row).ok()?;
                let version = version.parse().ok()?;
                Some(KeptExchanger { name, version, owner, description, definition })
            });
            Ok(kept.collect())
        })
        .await
    }
}
