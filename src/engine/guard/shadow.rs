//! A database in which nothing exists that the caller has no grant for: what DuckDB's binder does not find there, the
//! caller's statement may not reach.
//!
//! For callers with grants on some tables. The names in a text are looked at before (`tables`); they say what the text
//! means to a reader of the text, and DuckDB may bind something else. So DuckDB binds the statement once more, in memory,
//! in a transaction that is rolled back, beside empty copies of what the text may mean and the caller may use. Views that
//! are granted are copied as relations of their columns: what they read is what whoever created them might read. Macros are
//! copied with their bodies, so that they count as what they reach.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use duckdb::{
    Parameters,
    connection::Connection,
    environment::{Environment, StorageLocation},
    error::DuckDBError,
    instance::{AttachBuilder, Instance, InstanceBuilder},
    query_result::StatementType,
    statement::Statement,
};

use super::{
    super::{
        Shared,
        catalog::{columns_of, literal, quote, types_of},
        extensions,
        open::{DESCRIPTORS, LOCK, options},
        pool::lock,
        statement, timezones,
    },
    Token,
    tokens::is_word,
};
use crate::{
    access::{Rights, fold},
    config::{Database, Size},
    error::{Error, Result},
    machine,
};

/// One in-memory DuckDB, whose database is called like the one that is served.
pub(in crate::engine) struct Shadow {
    connection: Connection,
    /// Dropped after its connection.
    _instance: Instance,
}

/// Binding takes little; what takes more than this is refused.
const MEMORY: Size = Size(512 * 1024 * 1024);

impl Shadow {
    /// With catalogs beside the database.
    fn open<'c>(shared: &Shared, database: &str, beside: impl Iterator<Item = &'c str>) -> Result<Self> {
        let cause = |error: duckdb::Error| shared.cause(&error);
        let settings = Database {
            path: ":memory:".into(),
            threads: 1,
            memory_limit: Some(MEMORY),
            ..shared.config.database.clone()
        };
        machine::spare_descriptors(DESCRIPTORS)?;
        let environment = Environment::new().map_err(cause)?;
        let instance = InstanceBuilder::new().options(options(&settings)).build(&environment).map_err(cause)?;
        instance.attach(AttachBuilder::new(StorageLocation::InMemory).alias(database).make_default()).map_err(cause)?;
        for catalog in beside {
            instance.attach(AttachBuilder::new(StorageLocation::InMemory).alias(catalog)).map_err(cause)?;
        }
        let connection = instance.connect().map_err(cause)?;
        extensions::load(shared, &connection)?;
        timezones::register(&connection).map_err(cause)?;
        for setting in ["SET enable_external_access = false", LOCK] {
            shared.execute(&connection, setting)?;
        }
        Ok(Self { connection, _instance: instance })
    }
}

/// A relation of the served database or of the caller's session.
struct Relation {
    is_view: bool,
    /// Name, type, and whether it is computed.
    columns: Vec<(String, String, bool)>,
    /// Each a list of columns as SQL.
    keys: BTreeSet<String>,
}

/// Whether it is temporary, its schema and its name.
type Place = (bool, String, String);

/// One text, and who sent it.
pub(super) struct Sight<'a> {
    pub(super) shared: &'a Shared,
    pub(super) connection: &'a Connection,
    pub(super) rights: &'a Rights,
    pub(super) sql: &'a str,
    pub(super) tokens: &'a [Token<'a>],
    pub(super) kind: StatementType,
    /// The last parts of the tables that the text names, for each of which there is a grant.
    pub(super) named: HashSet<String>,
    /// Whether it is only to be explained.
    pub(super) explained: bool,
}

impl Sight<'_> {
    pub(super) fn check(&self, statement: &Statement<'_>) -> Result<()> {
        self.check_sequences()?;
        let shared = self.shared;
        let database = shared.database_name(self.connection)?;
        let mut made = self.definitions(database, None)?;
        let beside = self.beside(&mut made)?;
        if !beside.is_empty() {
            // A transaction changes one database at most, so that these copies are committed, and the shadow is used once.
            let shadow = Shadow::open(shared, database, beside.iter().copied())?;
            return self.bind(&shadow.connection, &made, statement);
        }
        let ready = lock(&shared.shadows).pop();
        let shadow = match ready {
            Some(shadow) => shadow,
            None => Shadow::open(shared, database, std::iter::empty())?,
        };
        shared.execute(&shadow.connection, "BEGIN TRANSACTION")?;
        let outcome = self.bind(&shadow.connection, &made, statement);
        // One that cannot be rolled back is not used again.
        if shared.execute(&shadow.connection, "ROLLBACK").is_ok() {
            lock(&shared.shadows).push(shadow);
        }
        outcome
    }

    /// Adds what the text may mean in the attached catalogs that it names, and answers these.
    fn beside(&self, made: &mut Made) -> Result<Vec<&str>> {
        let catalogs = self.shared.catalogs(self.connection)?;
        let mut named = Vec::new();
        for catalog in catalogs.all_attached().iter().map(|attached| attached.name.as_str()) {
            if made.text.contains(&fold(catalog)) || catalog.contains('"') {
                let there = self.definitions(catalog, Some(catalog))?;
                made.relations.extend(there.relations);
                made.macros.extend(there.macros);
                named.push(catalog);
            }
        }
        Ok(named)
    }

    /// A sequence is found by a text, which may be any that is known when the statement is bound.
    fn check_sequences(&self) -> Result<()> {
        for (at, token) in self.tokens.iter().enumerate() {
            if !token.is_name() || !["nextval", "currval"].contains(&token.name().as_str()) {
                continue;
            }
            let [open, text, close, ..] = &self.tokens[(at + 1).min(self.tokens.len())..] else { continue };
            if open.text.starts_with('(') && !(open.text == "(" && text.is_text() && close.text.starts_with(')')) {
                let what = format!("{} takes the sequence's name as one literal", token.name());
                return Err(self.rights.denied("grant", what));
            }
        }
        Ok(())
    }

    fn bind(&self, shadow: &Connection, made: &Made, statement: &Statement<'_>) -> Result<()> {
        for sql in &made.relations {
            self.shared.execute(shadow, sql)?;
        }
        // One that needs what is not there is not there either.
        let mut left: Vec<&String> = made.macros.iter().collect();
        loop {
            let before = left.len();
            left.retain(|sql| match statement::parse(self.shared, shadow, sql).map(|one| one.bind(shadow).is_ok()) {
                Ok(true) => self.shared.execute(shadow, sql).is_err(),
                _ => true,
            });
            if left.len() == before {
                break;
            }
        }
        let text = statement.get_text().map_err(|error| self.shared.cause(&error))?;
        let copy = statement::parse(self.shared, shadow, text)?;
        let bound = match copy.bind(shadow) {
            // An ALTER that DuckDB makes several statements of.
            Err(error) if error.code == DuckDBError::InputMetadataDeferred && self.kind == StatementType::Alter => {
                Ok(())
            }
            bound => bound.map(drop),
        };
        let outcome = bound.map_err(|error| self.shared.cause(&error)).and_then(|()| match self.kind {
            // Defaults are bound when it runs, here on an empty table.
            StatementType::Alter => {
                let mut result = copy.query(shadow, Parameters::None).map_err(|error| self.shared.cause(&error))?;
                result.drain().map(drop).map_err(|error| self.shared.cause(&error))
            }
            _ => Ok(()),
        });
        outcome.map_err(|error| self.refusal(error))
    }

    /// What is missing there may exist or not: callers are told the same. Only what they have a grant for is told to be
    /// missing.
    fn refusal(&self, error: Error) -> Error {
        let (Error::NotFound(message) | Error::Sql(message)) = &error else {
            return match error {
                // Of this database, and not of the one that is served.
                Error::Broken(_) | Error::Internal(_) => {
                    self.rights.denied("grant", "DuckDB cannot say what the statement reaches")
                }
                error => error,
            };
        };
        let line = message.lines().next().unwrap_or_default().to_string();
        let missing = |kind: &str| {
            let rest = line.split_once(&format!("{kind} with name "))?.1;
            let name = rest.split_once(" does not exist")?.0;
            Some(fold(name.trim_matches('"').rsplit('.').next().unwrap_or_default().trim_matches('"')))
        };
        if let Some(name) = missing("Table").or_else(|| missing("View")) {
            if self.named.contains(&name) {
                return error;
            }
        } else if let Some(name) = missing("Function") {
            let qualified = self.tokens.windows(2).any(|two| two[0].text == "." && two[1].name() == name);
            if !qualified {
                return error;
            }
        } else if !line.contains("does not exist") && !self.writes_what_it_may_not(&line) {
            return error;
        }
        self.rights
            .denied("grant", format!("the statement reaches what there is no grant for, or what is not there: {line}"))
    }

    /// What may be read and not changed is a view here.
    fn writes_what_it_may_not(&self, line: &str) -> bool {
        self.writes()
            && ["base table", "is not an table", "is not a table", "of type View", "ALTER VIEW"]
                .iter()
                .any(|words| line.contains(words))
    }

    /// Whether the statement may change something; else all that it names is read.
    fn writes(&self) -> bool {
        const CHANGES: [&str; 9] =
            ["alter", "create", "delete", "drop", "insert", "merge", "references", "truncate", "update"];
        let read = matches!(self.kind, StatementType::Select | StatementType::Set | StatementType::VariableSet);
        !read || self.tokens.iter().any(|token| CHANGES.iter().any(|word| is_word(Some(token), word)))
    }
}

/// Statements that make the copies.
#[derive(Default)]
struct Made {
    relations: Vec<String>,
    macros: Vec<String>,
    /// The text with the macros that it may call.
    text: String,
}

impl Sight<'_> {
    fn rows(&self, sql: &str, text: &str) -> Result<Vec<Vec<String>>> {
        // As DuckDB folds names; a name with a quote is written with two of them.
        let mentioned = "(contains($1, translate(NAME, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ', 'abcdefghijklmnopqrstuvwxyz')) \
                         OR contains(NAME, '\"'))";
        let mut filtered = String::new();
        let mut rest = sql;
        // MENTIONED(column) is the filter on that column.
        while let Some((before, after)) = rest.split_once("MENTIONED(") {
            let (name, after) = after.split_once(')').unwrap_or((after, ""));
            filtered.push_str(before);
            filtered.push_str(&mentioned.replace("NAME", name));
            rest = after;
        }
        filtered.push_str(rest);
        self.shared.rows(self.connection, &filtered, Parameters::positional(&[&text]))
    }

    /// Everything in a database that the text may mean and that the caller may use. `catalog` is its name where it is an
    /// attached one; temporary relations are with those of the served database.
    fn definitions(&self, database: &str, catalog: Option<&str>) -> Result<Made> {
        let database = literal(database);
        let prefix = catalog.map_or_else(String::new, |catalog| format!("{}.", quote(catalog)));
        let full = |schema: &str, name: &str| format!("{prefix}{}.{}", quote(schema), quote(name));
        let mut made = Made::default();
        let mut text = fold(self.sql);
        let mut macros: BTreeMap<(String, String), Vec<[String; 4]>> = BTreeMap::new();
        // A macro may call another one. Listing them takes long, because DuckDB lists its own functions with them.
        while self.calls_macro() {
            let found = self.rows(
                &format!(
                    "SELECT schema_name, function_name, function_type, \
                       array_to_string(list_transform(parameters, lambda p: '\"' || replace(p, '\"', '\"\"') || '\"'), chr(31)), \
                       array_to_string(list_transform(parameter_types, lambda t: coalesce(t, '')), chr(31)), macro_definition \
                     FROM duckdb_functions() WHERE NOT internal AND database_name = {database} \
                       AND function_type IN ('macro', 'table_macro') AND MENTIONED(function_name)"
                ),
                &text,
            )?;
            let (known, mut next) = (macros.len(), BTreeMap::<_, Vec<[String; 4]>>::new());
            for row in found {
                let [schema, name, rest @ ..] = <[String; 6]>::try_from(row).map_err(|_| odd())?;
                if self.rights.may_read(catalog, &schema, &name) {
                    next.entry((schema, name)).or_default().push(rest);
                }
            }
            for definition in next.values().flatten() {
                text.push(' ');
                text.push_str(&fold(&definition[3]));
            }
            macros = next;
            if macros.len() == known {
                break;
            }
        }
        let mut schemas: BTreeSet<String> = self
            .rows(
                &format!(
                    "SELECT schema_name FROM duckdb_schemas() \
                     WHERE NOT internal AND database_name = {database} AND MENTIONED(schema_name)"
                ),
                &text,
            )?
            .into_iter()
            .flatten()
            .collect();
        let relations = self.relations(&database, catalog, &text)?;
        let sequences = self.rows(
            &format!(
                "SELECT schema_name, sequence_name FROM duckdb_sequences() \
                 WHERE database_name = {database} AND MENTIONED(sequence_name)"
            ),
            &text,
        )?;
        let types = self.rows(
            &format!(
                "SELECT schema_name, type_name FROM duckdb_types() \
                 WHERE NOT internal AND database_name = {database} AND MENTIONED(type_name)"
            ),
            &text,
        )?;
        schemas.extend(relations.keys().filter(|(temporary, _, _)| !temporary).map(|(_, schema, _)| schema.clone()));
        for kind in [&sequences, &types] {
            schemas.extend(kind.iter().filter_map(|row| row.first().cloned()));
        }
        schemas.extend(macros.keys().map(|(schema, _)| schema.clone()));
        schemas.remove("main");
        made.relations
            .extend(schemas.iter().map(|schema| format!("CREATE SCHEMA IF NOT EXISTS {prefix}{}", quote(schema))));
        for row in types {
            let [schema, name] = <[String; 2]>::try_from(row).map_err(|_| odd())?;
            if self.rights.may_read(catalog, &schema, &name)
                && let Some(definition) = self.definition_of_type(&full(&schema, &name))
            {
                made.relations.push(format!("CREATE TYPE {} AS {definition}", full(&schema, &name)));
            }
        }
        for row in sequences {
            let [schema, name] = <[String; 2]>::try_from(row).map_err(|_| odd())?;
            // nextval changes it.
            let advances = self.tokens.iter().any(|token| token.is_name() && token.name() == "nextval")
                || macros.values().flatten().any(|definition| fold(&definition[3]).contains("nextval"));
            let may = if advances { Rights::may_write } else { Rights::may_read };
            if may(self.rights, catalog, &schema, &name) {
                made.relations.push(format!("CREATE SEQUENCE {}", full(&schema, &name)));
            }
        }
        // A plan names what a view reads, with the view's own conditions.
        let named = |name: &str| self.named.contains(&fold(name)) || !macros.is_empty();
        if self.explained && relations.iter().any(|((_, _, name), relation)| relation.is_view && named(name)) {
            let what = "EXPLAIN of a view tells what the view reads, which needs grants on all tables";
            return Err(self.rights.denied("grant", what));
        }
        let writes = self.writes();
        for ((temporary, schema, name), relation) in &relations {
            let full = match temporary {
                true => quote(name),
                false => full(schema, name),
            };
            let only_read = writes && !temporary && !self.rights.may_write(catalog, schema, name);
            made.relations.push(relation.sql(&full, *temporary, relation.is_view || only_read));
        }
        for ((schema, name), definitions) in macros {
            made.macros.push(macro_sql(&full(&schema, &name), &definitions));
        }
        made.text = text;
        Ok(made)
    }

    /// Whether the text may call what is no function of DuckDB's own.
    fn calls_macro(&self) -> bool {
        const NO_CALLS: [&str; 32] = [
            "all",
            "and",
            "any",
            "as",
            "by",
            "cast",
            "check",
            "coalesce",
            "else",
            "except",
            "exists",
            "filter",
            "from",
            "in",
            "into",
            "join",
            "key",
            "lateral",
            "materialized",
            "not",
            "on",
            "or",
            "over",
            "select",
            "set",
            "then",
            "union",
            "unique",
            "using",
            "values",
            "when",
            "where",
        ];
        self.tokens.windows(2).any(|two| {
            let name = two[0].name();
            two[0].is_name()
                && two[1].text.starts_with('(')
                && !NO_CALLS.contains(&name.as_str())
                && !self.shared.built_ins().has(&name)
        })
    }

    /// What is only read needs no more than columns, and those are told quickest by a query.
    fn read_relations(&self, database: &str, catalog: Option<&str>, text: &str) -> Result<BTreeMap<Place, Relation>> {
        let mut relations = BTreeMap::new();
        let database = &with_temporary(database, catalog);
        let found = self.rows(
            &format!(
                "SELECT database_name, schema_name, table_name, 'table' FROM duckdb_tables() \
                 WHERE NOT internal AND database_name IN ({database}) AND MENTIONED(table_name) \
                 UNION ALL SELECT database_name, schema_name, view_name, 'view' FROM duckdb_views() \
                 WHERE NOT internal AND database_name IN ({database}) AND MENTIONED(view_name)"
            ),
            text,
        )?;
        for row in found {
            let [database, schema, name, kind] = <[String; 4]>::try_from(row).map_err(|_| odd())?;
            let temporary = database == "temp";
            if !temporary && !self.rights.may_read(catalog, &schema, &name) {
                continue;
            }
            let sql = format!("SELECT * FROM {}.{}.{}", quote(&database), quote(&schema), quote(&name));
            // A view over something that is gone is not there.
            let Ok(bound) = self.shared.bind(self.connection, &sql) else { continue };
            let columns =
                columns_of(self.shared, &bound)?.into_iter().map(|(name, duckdb_type)| (name, duckdb_type, false));
            let relation = Relation { is_view: kind == "view", columns: columns.collect(), keys: BTreeSet::new() };
            relations.insert((temporary, schema, name), relation);
        }
        Ok(relations)
    }

    fn relations(&self, database: &str, catalog: Option<&str>, text: &str) -> Result<BTreeMap<Place, Relation>> {
        if !self.writes() {
            return self.read_relations(database, catalog, text);
        }
        let database = &with_temporary(database, catalog);
        let mut relations: BTreeMap<Place, Relation> = BTreeMap::new();
        let views = self.rows(
            &format!(
                "SELECT (database_name = 'temp')::VARCHAR, schema_name, view_name FROM duckdb_views() \
                 WHERE NOT internal AND database_name IN ({database}) AND MENTIONED(view_name)"
            ),
            text,
        )?;
        let views: HashSet<Vec<String>> = views.into_iter().collect();
        let columns = self.rows(
            &format!(
                "SELECT (database_name = 'temp')::VARCHAR, schema_name, table_name, column_name, data_type, \
                   is_generated::VARCHAR \
                 FROM duckdb_columns() WHERE NOT internal AND database_name IN ({database}) \
                   AND MENTIONED(table_name) ORDER BY database_name, schema_name, table_name, column_index"
            ),
            text,
        )?;
        for row in columns {
            let [temporary, schema, name, column, duckdb_type, generated] =
                <[String; 6]>::try_from(row).map_err(|_| odd())?;
            let is_temporary = temporary == "true";
            if !is_temporary && !self.rights.may_read(catalog, &schema, &name) {
                continue;
            }
            let is_view = views.contains(&vec![temporary, schema.clone(), name.clone()]);
            let relation = relations.entry((is_temporary, schema, name));
            let new = Relation { is_view, columns: Vec::new(), keys: BTreeSet::new() };
            relation.or_insert(new).columns.push((column, duckdb_type, generated == "true"));
        }
        if self.writes() {
            let keys = self.rows(
                &format!(
                    "SELECT (database_name = 'temp')::VARCHAR, schema_name, table_name, \
                       array_to_string(list_transform(constraint_column_names, \
                         lambda c: '\"' || replace(c, '\"', '\"\"') || '\"'), ', ') \
                     FROM duckdb_constraints() WHERE database_name IN ({database}) \
                       AND constraint_type IN ('PRIMARY KEY', 'UNIQUE') AND MENTIONED(table_name)"
                ),
                text,
            )?;
            for row in keys {
                let [temporary, schema, name, columns] = <[String; 4]>::try_from(row).map_err(|_| odd())?;
                if let Some(relation) = relations.get_mut(&(temporary == "true", schema, name)) {
                    relation.keys.insert(columns);
                }
            }
        }
        Ok(relations)
    }

    /// What a type of the database's stands for.
    fn definition_of_type(&self, name: &str) -> Option<String> {
        let sql = format!("SELECT CAST(NULL AS {name})");
        let bound = self.shared.bind(self.connection, &sql).ok()?;
        types_of(self.shared, &bound).ok()?.into_iter().next()
    }
}

/// The databases of a catalog's relations, as a list of SQL's.
fn with_temporary(database: &str, catalog: Option<&str>) -> String {
    match catalog {
        None => format!("{database}, 'temp'"),
        Some(_) => database.to_string(),
    }
}

fn odd() -> Error {
    Error::internal("a listing has other columns than asked for")
}

impl Relation {
    fn sql(&self, full: &str, temporary: bool, as_view: bool) -> String {
        let temporary = if temporary { "TEMP " } else { "" };
        if as_view {
            let columns = self
                .columns
                .iter()
                .map(|(name, duckdb_type, _)| format!("CAST(NULL AS {duckdb_type}) AS {}", quote(name)));
            return format!("CREATE {temporary}VIEW {full} AS SELECT {}", columns.collect::<Vec<_>>().join(", "));
        }
        let columns = self.columns.iter().map(|(name, duckdb_type, generated)| match generated {
            true => format!("{} {duckdb_type} GENERATED ALWAYS AS (CAST(NULL AS {duckdb_type}))", quote(name)),
            false => format!("{} {duckdb_type}", quote(name)),
        });
        let keys = self.keys.iter().map(|columns| format!("UNIQUE ({columns})"));
        format!("CREATE {temporary}TABLE {full} ({})", columns.chain(keys).collect::<Vec<_>>().join(", "))
    }
}

/// DuckDB does not tell the defaults of parameters: any may be left out where there is one definition.
fn macro_sql(full: &str, definitions: &[[String; 4]]) -> String {
    let definitions: Vec<String> = definitions
        .iter()
        .map(|[kind, parameters, types, body]| {
            let split = |text: &str| -> Vec<String> {
                if text.is_empty() { Vec::new() } else { text.split('\u{1f}').map(str::to_string).collect() }
            };
            let (names, types) = (split(parameters), split(types));
            let default = if definitions.len() == 1 { " := NULL" } else { "" };
            let parameters = names.iter().enumerate().map(|(place, name)| {
                let duckdb_type = types.get(place).map_or("", String::as_str);
                format!("{name} {duckdb_type}{default}")
            });
            let table = if kind == "table_macro" { "TABLE " } else { "" };
            format!("({}) AS {table}{body}", parameters.collect::<Vec<_>>().join(", "))
        })
        .collect();
    format!("CREATE MACRO {full}{}", definitions.join(", "))
}
