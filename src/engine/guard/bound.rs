//! What a statement reaches, as the audit log names it: the objects themselves, with their catalog and schema, and how each
//! is used. Views and macros count with what they reach.
//!
//! It decides nothing. It is told for statements that were let through, from the same parse tree and the same scopes as
//! the check of grants (`tables`), and from the catalog as the statement's connection sees it.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use duckdb::{Parameters, connection::Connection, query_result::StatementType as Kind, statement::Statement};

use super::{
    super::{
        Shared,
        catalog::{Catalogs, literal},
        statement,
    },
    Sees, Token, behind_explain, settled, tables,
    tokens::{self, is_word},
    tree::Text,
};
use crate::{
    access::{Rights, fold},
    error::Result,
    telemetry::Access,
};

/// A statement that reaches more is told of with its first ones.
const MOST: usize = 64;

/// A catalog and a schema in it.
type Home<'a> = (&'a str, &'a str);

/// A qualified name, and how it is used.
pub(super) type Written = (Vec<String>, &'static str);

/// What the statement reaches. Nothing where DuckDB cannot say, as in an aborted transaction.
pub(in crate::engine) fn bound(
    shared: &Shared,
    connection: &Connection,
    parsed: &Statement<'_>,
    sql: &str,
    sees: Sees<'_>,
) -> Arc<[Access]> {
    let rights = Rights::all("audit");
    let version = settled(shared, connection, sees);
    if let Some(known) = version.and_then(|version| shared.accesses.get(version, sql, &rights)) {
        return known;
    }
    let found: Arc<[Access]> = reached(shared, connection, parsed, sql, &rights).unwrap_or_default().into();
    if let Some(version) = version.filter(|version| shared.definitions.version() == Some(*version)) {
        let size = found.iter().map(|one| 64 + one.catalog.len() + one.schema.len() + one.name.len()).sum();
        shared.accesses.remember(version, sql, &rights, found.clone(), size);
    }
    found
}

fn reached(
    shared: &Shared,
    connection: &Connection,
    parsed: &Statement<'_>,
    sql: &str,
    rights: &Rights,
) -> Result<Vec<Access>> {
    let all = tokens::read(shared, connection, sql)?;
    let kind = statement::kind(parsed)?;
    let (tokens, kind) = match kind {
        Kind::Explain => behind_explain(connection, sql, &all).unwrap_or((&all[..], kind)),
        Kind::Multi if is_word(all.first(), "alter") => (&all[..], Kind::Alter),
        kind => (&all[..], kind),
    };
    let text = Text::new(shared, connection, sql, tokens, kind, false);
    let mut reaches = Reaches {
        shared,
        connection,
        rights,
        database: shared.database_name(connection)?,
        catalogs: shared.catalogs(connection)?,
        found: Vec::new(),
        known: BTreeSet::new(),
    };
    reaches.other_than_tables(text.tokens, kind);
    reaches.text(&text, None)?;
    Ok(reaches.found)
}

struct Reaches<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
    rights: &'a Rights,
    database: &'a str,
    catalogs: &'a Catalogs,
    found: Vec<Access>,
    /// Those that are found already.
    known: BTreeSet<(String, String, String, String, &'static str)>,
}

impl<'a> Reaches<'a> {
    /// False where it is known already.
    fn add(&mut self, kind: &str, [catalog, schema, name]: [&str; 3], usage: &'static str) -> bool {
        let one = (kind.to_string(), catalog.to_string(), schema.to_string(), name.to_string(), usage);
        if self.found.len() == MOST || !self.known.insert(one) {
            return false;
        }
        self.found.push(Access {
            kind: kind.into(),
            catalog: catalog.into(),
            schema: schema.into(),
            name: name.into(),
            usage,
        });
        true
    }

    /// `home` is where the view or macro is whose text this is: names are looked for there first.
    fn text(&mut self, text: &Text<'_>, home: Option<Home<'_>>) -> Result<()> {
        self.names(&tables::written(text, self.rights)?, home)?;
        self.sequences(text.tokens, home)?;
        self.macros(text.tokens, home)
    }

    fn names(&mut self, written: &[Written], home: Option<Home<'_>>) -> Result<()> {
        if written.is_empty() {
            return Ok(());
        }
        let listed: BTreeSet<String> =
            written.iter().filter_map(|(path, _)| path.last()).map(|name| literal(&fold(name))).collect();
        let listed = listed.into_iter().collect::<Vec<_>>().join(", ");
        // Of the database and of the session's temporary ones.
        let there = self.shared.rows(
            self.connection,
            &format!(
                "SELECT 'table', database_name, schema_name, table_name, '' FROM duckdb_tables() \
                 WHERE lower(table_name) IN ({listed}) \
                 UNION ALL SELECT 'view', database_name, schema_name, view_name, CASE WHEN internal THEN '' ELSE sql END \
                 FROM duckdb_views() WHERE lower(view_name) IN ({listed})"
            ),
            Parameters::None,
        )?;
        let current = self.schema()?;
        for (path, usage) in written {
            let Some((name, before)) = path.split_last() else { continue };
            let same = |one: &str, other: &str| fold(one) == fold(other);
            let place = |catalog: &str, schema: &str| {
                there.iter().find(|row| same(&row[1], catalog) && same(&row[2], schema) && same(&row[3], name))
            };
            let (catalog, schema) = self.meant(before, home, &current);
            let bound = match before {
                [] => place("temp", "main")
                    .or_else(|| place(catalog, schema))
                    .or_else(|| place(catalog, "main"))
                    .or_else(|| place(self.database, &current))
                    .or_else(|| place(self.database, "main"))
                    .or_else(|| there.iter().find(|row| row[1] == "system" && same(&row[3], name))),
                [one] => place(catalog, schema)
                    .or_else(|| place(self.database, one))
                    .or_else(|| place(one, "main"))
                    .or_else(|| place("system", one))
                    .or_else(|| there.iter().find(|row| same(&row[1], one) && same(&row[3], name))),
                _ => place(catalog, schema),
            };
            match bound {
                Some(row) => {
                    let [kind, catalog, schema, name, sql] = &row[..] else { continue };
                    if self.add(kind, [catalog, schema, name], usage) && !sql.is_empty() && *usage != "drop" {
                        self.view(sql, (catalog, schema))?;
                    }
                }
                None if *usage == "create" => drop(self.add("table", [catalog, schema, name], usage)),
                None => {}
            }
        }
        Ok(())
    }

    /// The catalog and the schema that a name's first parts mean.
    fn meant<'n>(&self, before: &'n [String], home: Option<Home<'n>>, current: &'n str) -> Home<'n>
    where
        'a: 'n,
    {
        let (database, catalogs): (&'a str, &'a Catalogs) = (self.database, self.catalogs);
        let (catalog, schema) = home.unwrap_or((database, current));
        match before {
            [] => (catalog, schema),
            [first] => match catalogs.attached(first) {
                Some(attached) => (&attached.name, attached.default_schema.as_deref().unwrap_or("main")),
                None if catalogs.is_served(first) => (database, current),
                None => (catalog, first),
            },
            [first, schema, ..] => (catalogs.attached(first).map_or(first, |attached| &attached.name), schema),
        }
    }

    fn schema(&self) -> Result<String> {
        let rows = self.shared.rows(self.connection, "SELECT current_schema()", Parameters::None)?;
        Ok(rows.into_iter().flatten().next().unwrap_or_else(|| "main".into()))
    }

    /// What a view reads: its text without CREATE VIEW is a query.
    fn view(&mut self, sql: &str, home: Home<'_>) -> Result<()> {
        let tokens = tokens::read(self.shared, self.connection, sql)?;
        let text = Text::new(self.shared, self.connection, sql, &tokens, Kind::Create, false);
        let reads: Vec<Written> =
            tables::written(&text, self.rights)?.into_iter().filter(|one| one.1 == "read").collect();
        self.names(&reads, Some(home))?;
        self.macros(&tokens, Some(home))
    }

    /// Calls of what is no function of DuckDB's own, with what the bodies reach.
    fn macros(&mut self, tokens: &[Token<'_>], home: Option<Home<'_>>) -> Result<()> {
        let calls = tokens.windows(2).filter(|two| two[0].is_name() && two[1].text.starts_with('('));
        let called: HashSet<String> = calls.map(|two| two[0].name()).collect();
        let called: Vec<String> =
            called.iter().filter(|name| !self.shared.built_ins().has(name)).map(|name| literal(name)).collect();
        if called.is_empty() {
            return Ok(());
        }
        let found = self.shared.rows(
            self.connection,
            &format!(
                "SELECT database_name, schema_name, function_name, macro_definition, function_type \
                 FROM duckdb_functions() WHERE NOT internal AND macro_definition IS NOT NULL \
                   AND lower(function_name) IN ({})",
                called.join(", ")
            ),
            Parameters::None,
        )?;
        for row in found {
            let [catalog, schema, name, body, kind] = &row[..] else { continue };
            // Those of an attached catalog are found by its name only, or from there.
            let named =
                |catalog: &str| tokens.iter().any(|token| token.is_name() && fold(&token.name()) == fold(catalog));
            let at_home = home.is_some_and(|home| home.0 == catalog);
            if self.catalogs.attached(catalog).is_some() && !at_home && !named(catalog) {
                continue;
            }
            if self.add("macro", [catalog, schema, name], "read") {
                let query = if kind == "table_macro" { body.clone() } else { format!("SELECT {body}") };
                let tokens = tokens::read(self.shared, self.connection, &query)?;
                let text = Text::new(self.shared, self.connection, &query, &tokens, Kind::Select, false);
                self.text(&text, Some((catalog, schema)))?;
            }
        }
        Ok(())
    }

    /// Sequences, which are named by texts.
    fn sequences(&mut self, tokens: &[Token<'_>], home: Option<Home<'_>>) -> Result<()> {
        for three in tokens.windows(3) {
            let usage = match three[0].name().as_str() {
                "nextval" => "advance",
                "currval" => "read",
                _ => continue,
            };
            if !three[0].is_name() || three[1].text != "(" || !three[2].is_text() {
                continue;
            }
            let written = three[2].text.trim_matches('\'').to_string();
            let parts = tokens::read(self.shared, self.connection, &written)?;
            let parts: Vec<String> = parts.iter().filter(|part| part.is_name()).map(Token::name).collect();
            let Some((name, before)) = parts.split_last() else { continue };
            let current = self.schema()?;
            let (catalog, schema) = self.meant(before, home, &current);
            let found = self.shared.rows(
                self.connection,
                "SELECT database_name, schema_name, sequence_name FROM duckdb_sequences() \
                 WHERE lower(sequence_name) = lower($1) AND lower(schema_name) = lower($2) \
                   AND lower(database_name) IN (lower($3), 'temp')",
                Parameters::positional(&[&name.as_str(), &schema, &catalog]),
            )?;
            for row in found {
                if let [catalog, schema, name] = &row[..] {
                    self.add("sequence", [catalog, schema, name], usage);
                }
            }
        }
        Ok(())
    }

    /// CREATE and DROP of all else that has a name.
    fn other_than_tables(&mut self, tokens: &[Token<'_>], kind: Kind) {
        const KINDS: [(&str, &str); 7] = [
            ("schema", "schema"),
            ("sequence", "sequence"),
            ("type", "type"),
            ("macro", "macro"),
            ("function", "macro"),
            ("index", "index"),
            ("trigger", "trigger"),
        ];
        let usage = match kind {
            Kind::Create | Kind::CreateFunc => "create",
            Kind::Drop => "drop",
            _ => return,
        };
        let mut rest = tokens.iter().take(8).enumerate();
        let what = rest.find_map(|(at, token)| {
            let kind = KINDS.iter().find(|(word, _)| is_word(Some(token), word))?;
            let table = tokens[..at].iter().any(|token| is_word(Some(token), "table") || is_word(Some(token), "view"));
            (!table).then_some((at, kind.1))
        });
        let Some((at, kind)) = what else { return };
        let rest =
            tables::skip_words(tables::skip_words(&tokens[at + 1..], &["if", "not", "exists"]), &["if", "exists"]);
        let Some((path, _)) = tables::name(rest) else { return };
        let (database, catalogs) = (self.database, self.catalogs);
        let spelled = |name| catalogs.attached(name).map_or(name, |attached| attached.name.as_str());
        match path.as_slice() {
            [name] if kind == "schema" => drop(self.add(kind, [database, name, name], usage)),
            [catalog, name] if kind == "schema" => drop(self.add(kind, [spelled(catalog), name, name], usage)),
            [name] => drop(self.add(kind, [database, "main", name], usage)),
            [first, name] => {
                let attached = catalogs.attached(first);
                let (catalog, schema) = attached.map_or((database, first.as_str()), |attached| {
                    (&attached.name, attached.default_schema.as_deref().unwrap_or("main"))
                });
                self.add(kind, [catalog, schema, name], usage);
            }
            [catalog, schema, name] => drop(self.add(kind, [spelled(catalog), schema, name], usage)),
            _ => {}
        }
    }
}
