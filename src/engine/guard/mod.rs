//! The SQL guard: what a statement is, and whether its caller may run it.
//!
//! DuckDB has no users and no boundary inside (`shared` settings protect the machine's files, not one user from
//! another), so every text that comes from a client passes here before it is planned: limits before DuckDB parses it,
//! then DuckDB's own tokenizer and parser say what it is. What is not known to be harmless is denied. The second wall
//! is in `engine/query.rs` (readers run in transactions that cannot write) and in `engine/open.rs` (settings).
//!
//! For callers with grants on some tables two parts decide, and both must agree: `tables` reads the names in the text, and
//! `shadow` has DuckDB's binder bind it where nothing else exists than what the caller may use. A view does what its creator
//! was allowed to when it was created.

pub mod attacks;
mod bound;
mod decisions;
mod expansion;
mod functions;
pub mod settings;
mod shadow;
mod tables;
mod tokens;
mod tree;

use duckdb::{connection::Connection, query_result::StatementType, statement::Statement};

pub(super) use attacks::self_test;
pub(super) use bound::bound;
pub(super) use decisions::Decisions;
pub use functions::BuiltIns;
pub(super) use shadow::Shadow;
pub(super) use tokens::{Token, read};
pub(super) use tree::of as tree_of;

use super::{
    Shared,
    catalog::{Catalogs, TableName},
    names, statement,
};
use crate::{
    access::{OWN_SCHEMA, Rights, Role, is_own_schema},
    error::Result,
};
use shadow::Sight;
use tokens::is_word;
use tree::Text;

/// What a connection sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sees<'a> {
    /// What every connection sees, so that a decision holds for all of them.
    Committed,
    /// What others may not see: an open transaction, temporary tables, another schema by default.
    ItsOwn,
    /// Relations of these names that the statement has from us.
    Given(&'a [&'a str]),
}

/// What a client's text is, checked: parsed, its class allowed, and what it names, too.
pub(super) fn admit(
    shared: &Shared,
    connection: &Connection,
    sql: &str,
    rights: &Rights,
    sees: Sees<'_>,
) -> Result<Statement<'static>> {
    let tokens = tokens::read(shared, connection, sql)?;
    let mut parsed = statement::parse(shared, connection, sql)?;
    // Semicolons in front are no statement.
    let tokens = &tokens[tokens.iter().position(|token| token.text != ";").unwrap_or(0)..];
    check_own(tokens, rights)?;
    check_words(shared, connection, sql, tokens, rights)?;
    settings::check_shown(shared, connection, tokens, rights)?;
    let kind = statement::kind(&parsed)?;
    let explained = kind == StatementType::Explain;
    let (tokens, kind) = match kind {
        // It needs what the statement itself would: ANALYZE runs it.
        StatementType::Explain => behind_explain(connection, sql, tokens)
            .ok_or_else(|| rights.denied("statement", "EXPLAIN of this form is not served"))?,
        // DuckDB makes several statements of one whose default is no constant.
        StatementType::Multi if is_word(tokens.first(), "alter") => (tokens, StatementType::Alter),
        kind => (tokens, kind),
    };
    check_kind(shared, connection, kind, sql, tokens, rights)?;
    if matches!(kind, StatementType::Set | StatementType::VariableSet)
        && let Some((part, text)) = settings::check(tokens, rights)?
    {
        let sql = [&sql[..part.start], text, &sql[part.end..]].concat();
        parsed = statement::parse(shared, connection, &sql)?;
    }
    if kind == StatementType::Pragma
        && let Some(query) = functions::instead_of_pragma(&tokens.get(1).map(Token::name).unwrap_or_default(), rights)
    {
        return statement::parse(shared, connection, &query);
    }
    let version = settled(shared, connection, sees);
    if version.is_some_and(|version| shared.decisions.get(version, sql, rights).is_some()) {
        return Ok(parsed);
    }
    let text = Text::new(shared, connection, sql, tokens, kind, explained);
    let looked = expansion::check(&text, version)?;
    let narrow = is_narrow(rights);
    if narrow {
        let given = if let Sees::Given(names) = sees { names } else { &[] };
        let named = tables::check(&text, rights, given)?;
        let setting = matches!(kind, StatementType::Set | StatementType::VariableSet)
            && !tokens.iter().any(|token| is_word(Some(token), "variable"));
        if !setting {
            Sight { shared, connection, rights, sql, tokens, kind, named, explained }.check(&parsed)?;
        }
    }
    // What has changed meanwhile may have been looked at half before and half after.
    let version = version.filter(|version| shared.definitions.version() == Some(*version));
    if let Some(version) = version.filter(|_| narrow || looked) {
        shared.decisions.remember(version, sql, rights, (), 0);
    }
    Ok(parsed)
}

/// The version of the definitions that a decision may be remembered for: none where a catalog changes without this server.
fn settled(shared: &Shared, connection: &Connection, sees: Sees<'_>) -> Option<u64> {
    let ours = sees == Sees::Committed && shared.catalogs(connection).is_ok_and(|catalogs| !catalogs.change_outside());
    shared.definitions.version().filter(|_| ours)
}

/// Whether the caller has grants on some tables only: then what a name means is looked at.
fn is_narrow(rights: &Rights) -> bool {
    !rights.read_all() || (rights.role >= Role::Writer && !rights.write_all())
}

/// Where bare names do not mean what grants take them for, grants on some tables cannot be held.
pub(super) fn check_names(rights: &Rights, moved: bool) -> Result<()> {
    if moved && is_narrow(rights) {
        return Err(rights.denied("grant", "another schema than main by default needs grants on everything"));
    }
    Ok(())
}

/// Functions that take a table's name as a text, which need not stand there as it is.
const BY_TEXT: [&str; 6] =
    ["duckdb_table_sample", "histogram", "histogram_values", "pragma_show", "pragma_storage_info", "pragma_table_info"];

/// Nobody names the server's own schema: not as a name, nor in a text where that is taken for a table's name, nor by
/// putting such a text together.
fn check_own(tokens: &[Token<'_>], rights: &Rights) -> Result<()> {
    for (at, token) in tokens.iter().enumerate() {
        // A schema's name may be written as a text, too.
        let as_text = token.is_text()
            && ["alter", "create", "drop", "explain"].iter().any(|word| is_word(tokens.first(), word))
            && tokens[..at].iter().any(|token| is_word(Some(token), "schema"))
            && (token.text.to_lowercase().contains(OWN_SCHEMA) || token.text.contains('\\'));
        if as_text || (token.is_name() && is_own_schema(&token.identifier())) {
            return Err(rights.denied("own", format!("{OWN_SCHEMA} is the server's own")));
        }
        let first = at == 0
            && ["set", "use", "pragma"].iter().any(|word| is_word(Some(token), word))
            && !is_word(tokens.get(1), "variable");
        let opened = tokens.get(at + 1).is_some_and(|next| next.text.starts_with('('));
        if first || (opened && BY_TEXT.contains(&token.name().as_str()) && is_in_from(&tokens[..at])) {
            check_plain(&tokens[at + 1..], !first, &token.name(), rights)?;
        }
    }
    Ok(())
}

/// Whether a table stands behind these tokens; there are aggregates of the same names.
fn is_in_from(before: &[Token<'_>]) -> bool {
    let clauses = ["by", "from", "having", "join", "on", "qualify", "returning", "select", "values", "where"];
    let last = before.iter().rfind(|token| token.is_keyword() && clauses.contains(&token.name().as_str()));
    last.is_none_or(|token| matches!(token.name().as_str(), "from" | "join"))
}

/// The arguments of what takes a table's name as a text: up to the bracket that closes them, or all of the statement.
fn check_plain(arguments: &[Token<'_>], bracketed: bool, what: &str, rights: &Rights) -> Result<()> {
    let mut depth = 0_i32;
    for token in arguments {
        if token.is_operator() {
            for character in token.text.chars() {
                depth += i32::from(character == '(') - i32::from(character == ')');
            }
        }
        let text = token.text.to_lowercase();
        if !token.is_name() && text.contains(OWN_SCHEMA) {
            return Err(rights.denied("own", format!("{OWN_SCHEMA} is the server's own")));
        }
        // Put together, escaped, or given from elsewhere.
        if depth > 1 || text == "||" || text.contains('\\') || text.starts_with(['$', '?']) {
            return Err(rights.denied("own", format!("{what} takes plain names and texts only")));
        }
        if bracketed && depth <= 0 {
            break;
        }
    }
    Ok(())
}

/// The statement behind EXPLAIN [ANALYZE] [(options)].
fn behind_explain<'t, 's>(
    connection: &Connection,
    sql: &str,
    tokens: &'t [Token<'s>],
) -> Option<(&'t [Token<'s>], StatementType)> {
    let one_statement = |tokens: &[Token<'_>]| {
        let mut statements = connection.parse(&sql[tokens.first()?.start..tokens.last()?.end()]).ok()?;
        match (statements.next(), statements.next()) {
            (Some(Ok(one)), None) => one.get_type().ok(),
            _ => None,
        }
    };
    let start = tokens.iter().position(|token| is_word(Some(token), "explain"))? + 1;
    let mut rest = &tokens[start..];
    if is_word(rest.first(), "analyze") {
        rest = &rest[1..];
    }
    if let Some(kind) = one_statement(rest) {
        return Some((rest, kind));
    }
    let close = rest.iter().position(|token| token.text.starts_with(')'))?;
    rest = &rest[close + 1..];
    one_statement(rest).map(|kind| (rest, kind))
}

/// A table that a call names without SQL.
pub(super) fn may_write(rights: &Rights, table: &TableName, catalogs: &Catalogs) -> Result<()> {
    rights.require(Role::Writer, "storing rows")?;
    check_name(rights, table.parts(), catalogs, Rights::may_write, "change")
}

pub(super) fn may_read(rights: &Rights, table: &TableName, catalogs: &Catalogs) -> Result<()> {
    check_name(rights, table.parts(), catalogs, Rights::may_read, "read")
}

/// [`Rights::may_read`] or [`Rights::may_write`].
type Allowed = fn(&Rights, Option<&str>, &str, &str) -> bool;

/// Every table that a name may mean has to be allowed.
fn check_name(rights: &Rights, parts: &[String], catalogs: &Catalogs, allowed: Allowed, verb: &str) -> Result<()> {
    if parts.iter().any(|part| is_own_schema(part)) {
        return Err(rights.denied("own", format!("{OWN_SCHEMA} is the server's own")));
    }
    let allowed = match parts {
        [table] => allowed(rights, None, "main", table),
        // The first may be a schema's name or a catalog's; where it is both, DuckDB refuses it.
        [first, table] => match catalogs.attached(first) {
            Some(attached) => {
                let schema = attached.default_schema.as_deref().ok_or_else(|| {
                    let what = format!("write the schema of {} between its catalog and its table", parts.join("."));
                    rights.denied("grant", what)
                })?;
                allowed(rights, Some(&attached.name), schema, table)
            }
            None => {
                let own = catalogs.is_served(first);
                allowed(rights, None, first, table) && (!own || allowed(rights, None, "main", table))
            }
        },
        [catalog, schema, table] => match catalogs.attached(catalog) {
            Some(attached) => allowed(rights, Some(&attached.name), schema, table),
            None => catalogs.is_served(catalog) && allowed(rights, None, schema, table),
        },
        _ => false,
    };
    if allowed {
        return Ok(());
    }
    Err(rights.denied("grant", format!("no grant to {verb} {}", parts.join("."))))
}

fn check_kind(
    shared: &Shared,
    connection: &Connection,
    kind: StatementType,
    sql: &str,
    tokens: &[Token<'_>],
    rights: &Rights,
) -> Result<()> {
    use StatementType as Kind;
    let first = tokens.first().map_or("", |token| token.text).to_uppercase();
    match kind {
        Kind::Select | Kind::Explain | Kind::Relation => Ok(()),
        Kind::Multi => match statement::expansion_of(connection, sql) {
            statement::Expansion::Pivot => Ok(()),
            _ => rights.require(Role::Writer, "a PIVOT beside a change"),
        },
        // The name of the server's database is not a client's to change.
        Kind::Alter if is_word(tokens.get(1), "database") => {
            Err(rights.denied("statement", "ALTER DATABASE is not served"))
        }
        Kind::Insert
        | Kind::Update
        | Kind::Delete
        | Kind::MergeInto
        | Kind::Create
        | Kind::CreateFunc
        | Kind::Drop
        | Kind::Alter
        | Kind::Analyze
        | Kind::Vacuum => rights.require(Role::Writer, &first),
        // CHECKPOINT is one, too; what it calls is a function with a rule of its own.
        Kind::Call if !is_word(tokens.first(), "call") => rights.require(Role::Admin, &first),
        Kind::Call => Ok(()),
        // What it sets was checked before.
        Kind::Set | Kind::VariableSet => Ok(()),
        Kind::Pragma => {
            let name = tokens.get(1).map(Token::name).unwrap_or_default();
            functions::check_pragma(shared, &name, rights)
        }
        Kind::Copy
        | Kind::CopyDatabase
        | Kind::Attach
        | Kind::Detach
        | Kind::Export
        | Kind::Load
        | Kind::UpdateExtensions
        | Kind::Connect
        | Kind::Disconnect
        | Kind::ExternalResource => outside(shared, rights, "statement", &first),
        Kind::Transaction
        | Kind::Prepare
        | Kind::Execute
        | Kind::Extension
        | Kind::LogicalPlan
        | Kind::Passthrough
        | Kind::Invalid => Err(rights.denied("statement", format!("{first} is not served"))),
    }
}

/// What reaches beyond the database.
fn outside(shared: &Shared, rights: &Rights, rule: &'static str, what: &str) -> Result<()> {
    if !shared.config.database.external_access {
        let why = "reaches beyond the database, which database.external_access = false forbids";
        return Err(rights.denied(rule, format!("{what} {why}")));
    }
    rights.require(Role::Admin, what)
}

/// Words that change or read what lies beyond the database, wherever a statement or an object may begin with them: a CTE
/// may hold a COPY.
const WORDS: [&str; 10] =
    ["copy", "attach", "detach", "install", "load", "export", "import", "connect", "disconnect", "secret"];

fn check_words(
    shared: &Shared,
    connection: &Connection,
    sql: &str,
    tokens: &[Token<'_>],
    rights: &Rights,
) -> Result<()> {
    let listed = |token: &&Token<'_>| token.is_name() && WORDS.iter().any(|word| is_word(Some(*token), word));
    let words: Vec<_> = tokens.iter().filter(listed).map(|token| token.start..token.end()).collect();
    if let Some(word) = names::keyword(connection, sql, &words) {
        outside(shared, rights, "keyword", &format!("the keyword {}", sql[word].to_uppercase()))?;
    }
    let pragma = is_word(tokens.first(), "pragma");
    for (at, token) in tokens.iter().enumerate() {
        if !token.is_name() {
            continue;
        }
        let name = token.name();
        let before = at.checked_sub(1).and_then(|before| tokens.get(before));
        // A pragma is checked by its own name.
        let called = tokens.get(at + 1).is_some_and(|next| next.text.starts_with('('));
        if called && !(pragma && at == 1) {
            // An operator, and not the function of that name.
            let compares = name == "glob" && before.is_some_and(|token| !token.is_keyword() && !token.opens());
            // What every client may set it may read.
            let reads = name == "current_setting"
                && tokens.get(at + 2).is_some_and(|setting| settings::is_visible(&text(setting)))
                && tokens.get(at + 3).is_some_and(|next| next.text.starts_with(')'));
            // The aggregate of a table function's name.
            let aggregates = functions::is_aggregate(shared, &name) && !is_in_from(&tokens[..at]);
            if !(compares || reads || aggregates && is_narrow(rights)) {
                let checked = functions::check_call(shared, &name, rights);
                if checked.is_err() && is_called(connection, sql, tokens, at) {
                    return checked;
                }
            }
        }
        functions::check_view(&name, rights)?;
    }
    Ok(())
}

/// Whether the name before a bracket is a function's: a call may have no arguments, and lists of columns have to have some.
fn is_called(connection: &Connection, sql: &str, tokens: &[Token<'_>], at: usize) -> bool {
    let mut depth = 0_i32;
    for token in &tokens[at + 1..] {
        if !token.is_operator() {
            continue;
        }
        for (place, sign) in token.text.char_indices() {
            depth += i32::from(sign == '(') - i32::from(sign == ')');
            if depth == 0 {
                let without = [&sql[..=tokens[at + 1].start], &sql[token.start + place..]].concat();
                return names::parses(connection, &without);
            }
        }
    }
    true
}

/// The contents of a plain text in lower case; nothing for any other token.
fn text(token: &Token<'_>) -> String {
    let inner = token.text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    inner.map(str::to_lowercase).unwrap_or_default()
}
