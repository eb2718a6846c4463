//! Which functions a text may call: table functions and pragmas of DuckDB's that are not known to be harmless are denied,
//! also those that a later DuckDB brings.

use std::collections::HashSet;

use duckdb::{Parameters, connection::Connection};

use super::{super::Shared, outside};
use crate::{
    access::{Rights, Role, fold, is_like},
    error::Result,
};

/// What this DuckDB has of its own: functions that stand where a table stands, and views. Every instance in a process
/// has the same.
#[derive(Debug)]
pub struct BuiltIns {
    functions: HashSet<String>,
    aggregates: HashSet<String>,
    /// Functions and macros of every kind.
    all: HashSet<String>,
    pub(in crate::engine) views: HashSet<String>,
    /// Scalar functions, and macros that come down to them.
    of_one_row: HashSet<String>,
    /// Those of them whose value may be several rows, or none.
    many_rows: HashSet<String>,
    /// Macros that read the catalog.
    of_catalog: HashSet<String>,
    /// Functions that stand where a table stands, of the extensions that the configuration names.
    of_extensions: HashSet<String>,
}

/// Words in the names of extensions' functions that read files or networks, or reach other databases.
const OUTSIDE_WORDS: &[&str] = &[
    "attach", "connect", "copy", "download", "execute", "export", "fetch", "file", "get", "glob", "http", "import",
    "install", "load", "open", "post", "query", "read", "request", "s3", "scan", "secret", "upload", "url", "write",
];

/// They make rows of their arguments, or tell what every DuckDB knows.
const HARMLESS: &[&str] = &[
    "duckdb_coordinate_systems",
    "duckdb_dialects",
    "duckdb_keywords",
    "duckdb_optimizers",
    "generate_series",
    "icu_calendar_names",
    "json_each",
    "json_tree",
    "pg_timezone_names",
    "pragma_collations",
    "pragma_platform",
    "pragma_user_agent",
    "pragma_version",
    "range",
    "repeat",
    "repeat_row",
    "test_all_types",
    "test_vector_types",
    "unnest",
];

/// They tell of all tables, or of what else is in the catalog, so they are for those who may read all tables.
const CATALOG: &[&str] = &[
    "duckdb_columns",
    "duckdb_constraints",
    "duckdb_dependencies",
    "duckdb_functions",
    "duckdb_indexes",
    "duckdb_schemas",
    "duckdb_sequences",
    "duckdb_table_sample",
    "duckdb_tables",
    "duckdb_triggers",
    "duckdb_types",
    "duckdb_views",
    "histogram",
    "histogram_values",
    "pg_get_constraintdef",
    "pg_get_viewdef",
    "pragma_database_size",
    "pragma_metadata_info",
    "pragma_show",
    "pragma_storage_info",
    "pragma_table_info",
    // Of a column that a view takes from a table: of all of its rows.
    "stats",
    "summary",
];

/// They tell of the process and of others' statements, or keep the database.
const KEEPING: &[&str] = &[
    "checkpoint",
    "current_setting",
    "duckdb_approx_database_count",
    "duckdb_connection_count",
    "duckdb_databases",
    "duckdb_extensions",
    "duckdb_external_file_cache",
    "duckdb_memory",
    "duckdb_prepared_statements",
    "duckdb_profiling_settings",
    "duckdb_settings",
    "duckdb_temporary_files",
    "duckdb_variables",
    "force_checkpoint",
    "json_serialize_plan",
    "write_log",
];

/// They take pointers, another stream's number, or SQL in a string: the guard cannot see what it holds, and a string
/// made at run time may nest as deep as it likes.
const NEVER: &[&str] = &[
    "arrow_scan",
    "arrow_scan_dumb",
    "json_deserialize_sql",
    "json_execute_serialized_sql",
    "json_serialize_sql",
    "mallard_stream",
    "query",
    "query_table",
    "seq_scan",
];

/// Built-in views that show what [`KEEPING`] does; they are read without brackets.
const KEEPING_VIEWS: &[&str] =
    &["duckdb_databases", "duckdb_logs", "pg_prepared_statements", "pg_settings", "pragma_database_list"];

/// Pragmas that answer rows of the catalog and change nothing.
const PRAGMAS: &[&str] = &[
    "database_size",
    "functions",
    "metadata_info",
    "show",
    "show_databases",
    "show_tables",
    "show_tables_expanded",
    "storage_info",
    "table_info",
];

/// Pragmas that tell what every DuckDB knows. Each is a table function, too.
const HARMLESS_PRAGMAS: &[&str] = &["collations", "platform", "user_agent", "version"];

/// Pragmas that switch off what is off, or have no effect any more; tools send them.
const IDLE_PRAGMAS: &[&str] = &[
    "disable_object_cache",
    "disable_print_progress_bar",
    "disable_profile",
    "disable_profiling",
    "disable_progress_bar",
    "disable_verification",
    "enable_object_cache",
];

/// Pragmas that keep the database, or tell of the machine.
const KEEPING_PRAGMAS: &[&str] = &["extension_versions", "force_checkpoint"];

impl BuiltIns {
    /// Functions that stand where a table stands. Without extensions nobody needs them, and none are answered.
    pub(in crate::engine) fn table_functions(shared: &Shared, connection: &Connection) -> Result<HashSet<String>> {
        match shared.config.database.extensions.is_empty() {
            true => Ok(HashSet::new()),
            false => names(shared, connection, TABLE_FUNCTIONS),
        }
    }

    /// Asks DuckDB, which takes some milliseconds. `linked` are the table functions that were there before extensions.
    pub(in crate::engine) fn of(shared: &Shared, connection: &Connection, linked: &HashSet<String>) -> Result<Self> {
        let names = |sql: &str| names(shared, connection, sql);
        let aggregates = names("SELECT function_name FROM duckdb_functions() WHERE function_type = 'aggregate'")?;
        let mut of_one_row = names("SELECT function_name FROM duckdb_functions() WHERE function_type = 'scalar'")?;
        let macros = shared.rows(
            connection,
            "SELECT function_name, macro_definition, function_type FROM duckdb_functions() \
             WHERE internal AND function_type IN ('macro', 'table_macro')",
            Parameters::None,
        )?;
        let mut of_catalog = HashSet::new();
        let mut many_rows = HashSet::from(["unnest".to_string()]);
        for one in macros {
            let [name, definition, kind] = one.as_slice() else { continue };
            // Behind a word that is called stands a bracket; list_sum names its aggregate in a text.
            let definition = definition.to_ascii_lowercase();
            let called = definition.split('(').map(|before| {
                before.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default()
            });
            let called: HashSet<&str> = called.collect();
            if called.iter().any(|word| CATALOG.contains(word) || KEEPING.contains(word)) {
                of_catalog.insert(name.to_ascii_lowercase());
            }
            if kind != "macro" {
                continue;
            }
            if called.contains("unnest") {
                many_rows.insert(name.to_ascii_lowercase());
            }
            if !called.iter().any(|word| aggregates.contains(*word)) {
                of_one_row.insert(name.to_ascii_lowercase());
            }
        }
        of_one_row.insert("unnest".into());
        of_one_row.retain(|name| !aggregates.contains(name));
        Ok(Self {
            aggregates,
            // A reserved word is no function's name.
            all: names(
                "SELECT function_name FROM duckdb_functions() WHERE internal UNION \
                 SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'column_name')",
            )?,
            of_one_row,
            many_rows,
            of_catalog,
            of_extensions: match shared.config.database.extensions.is_empty() {
                true => HashSet::new(),
                false => names(TABLE_FUNCTIONS)?.difference(linked).cloned().collect(),
            },
            functions: names(TABLE_FUNCTIONS)?,
            views: names("SELECT view_name FROM duckdb_views() WHERE internal")?,
        })
    }
}

impl BuiltIns {
    /// Whether there is a function of that name before anybody makes one.
    pub(super) fn has(&self, name: &str) -> bool {
        self.all.contains(name)
    }

    /// Whether a function's value comes from one row alone.
    pub(in crate::engine) fn is_of_one_row(&self, name: &str) -> bool {
        self.of_one_row.contains(name)
    }

    /// Whether a call stands for any number of rows.
    pub(in crate::engine) fn makes_rows(&self, name: &str) -> bool {
        self.many_rows.contains(name)
    }
}

const TABLE_FUNCTIONS: &str =
    "SELECT function_name FROM duckdb_functions() WHERE function_type IN ('table', 'table_macro')";

fn names(shared: &Shared, connection: &Connection, sql: &str) -> Result<HashSet<String>> {
    let listed = shared.rows(connection, sql, Parameters::None)?;
    Ok(listed.into_iter().flatten().map(|name| name.to_ascii_lowercase()).collect())
}

pub(super) fn check_call(shared: &Shared, name: &str, rights: &Rights) -> Result<()> {
    let listed = |names: &[&str]| names.contains(&name);
    if listed(NEVER) || name.starts_with("__internal") {
        return Err(rights.denied("function", format!("the function {name} is not served")));
    }
    if listed(KEEPING) {
        return rights.require(Role::Admin, &format!("the function {name}"));
    }
    if listed(CATALOG) || shared.built_ins().of_catalog.contains(name) {
        return check_catalog(name, rights);
    }
    if listed(HARMLESS) || !shared.built_ins().functions.contains(name) {
        return Ok(());
    }
    if shared.built_ins().of_extensions.contains(name) {
        return check_extension(shared, name, rights);
    }
    outside(shared, rights, "function", &format!("the function {name}"))
}

/// A table function of an extension: what it does is known to whoever has named the extension in the configuration.
fn check_extension(shared: &Shared, name: &str, rights: &Rights) -> Result<()> {
    let patterns = &shared.config.database.extension_functions;
    if patterns.iter().any(|pattern| is_like(&fold(pattern), name)) {
        return Ok(());
    }
    let what = format!("the function {name} of an extension, which database.extension_functions does not name,");
    if OUTSIDE_WORDS.iter().any(|word| name.contains(word)) {
        return outside(shared, rights, "function", &what);
    }
    rights.require(Role::Admin, &what)
}

pub(super) fn check_pragma(shared: &Shared, name: &str, rights: &Rights) -> Result<()> {
    if HARMLESS_PRAGMAS.contains(&name) || IDLE_PRAGMAS.contains(&name) {
        return Ok(());
    }
    if PRAGMAS.contains(&name) || name == "database_list" {
        return check_catalog(name, rights);
    }
    if KEEPING_PRAGMAS.contains(&name) {
        return rights.require(Role::Admin, &format!("PRAGMA {name}"));
    }
    outside(shared, rights, "pragma", &format!("PRAGMA {name}"))
}

/// What answers a pragma, where that is a query: its caller may have grants on some tables only, or may not see paths.
pub(super) fn instead_of_pragma(name: &str, rights: &Rights) -> Option<String> {
    match name {
        "database_list" if rights.role < Role::Admin => {
            Some("SELECT seq, name, NULL::VARCHAR AS file FROM pragma_database_list".into())
        }
        name if HARMLESS_PRAGMAS.contains(&name) => Some(format!("SELECT * FROM pragma_{name}()")),
        _ => None,
    }
}

/// Whether an aggregate has that name.
pub(super) fn is_aggregate(shared: &Shared, name: &str) -> bool {
    shared.built_ins().aggregates.contains(name)
}

/// The words of a text that would be a built-in view of [`KEEPING_VIEWS`], wherever they stand.
pub(super) fn check_view(name: &str, rights: &Rights) -> Result<()> {
    if KEEPING_VIEWS.contains(&name) {
        return rights.require(Role::Admin, name);
    }
    Ok(())
}

fn check_catalog(name: &str, rights: &Rights) -> Result<()> {
    if rights.read_all() {
        return Ok(());
    }
    Err(rights.denied("catalog", format!("{name} tells of tables without a grant; ListFlights lists those with one")))
}

/// Whether a table function may be named by one who may not read all tables.
pub(super) fn is_harmless(name: &str) -> bool {
    HARMLESS.contains(&name)
}
