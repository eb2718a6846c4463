//! Who may do what: roles, and grants on tables. Knows no password, no SQL and no gRPC.
//!
//! A role is one of three built in, or one of the configuration that is based on one of them and narrows it to some
//! tables, exchangers and amounts. What a caller may do is a value, [`Rights`], that travels with every call.

use std::{collections::BTreeMap, str::FromStr, sync::Arc};

use crate::{
    config::{self, Size},
    error::{Error, Result},
};

/// The schema in which earlier versions kept the server's own state. Nobody's rights reach into it; what is found there at
/// the first start moves to the file beside the database.
pub const OWN_SCHEMA: &str = "_mallard";

/// A name as DuckDB compares names: letters of ASCII without their case, all others as they are.
pub fn fold(name: &str) -> String {
    name.to_ascii_lowercase()
}

/// Whether a name is that schema's.
pub fn is_own_schema(name: &str) -> bool {
    fold(name) == OWN_SCHEMA
}

/// Who has vouched for a name: the same name of another issuer is another principal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Issuer {
    /// The users of the configuration and of the users file.
    Users,
    /// A client certificate whose name `auth.certificates` maps to no user, so that it stands for itself.
    Certificate,
    /// The issuer of a JWT, by its claim `iss`.
    Jwt(Arc<str>),
    /// Nobody: authentication is off.
    Anonymous,
    /// The server itself.
    Server,
}

impl Issuer {
    /// What the fixed ones are called; a JWT's issuer may have none of these names.
    pub const RESERVED: [&'static str; 4] = ["users", "certificate", "anonymous", "server"];
}

impl std::fmt::Display for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Users => "users",
            Self::Certificate => "certificate",
            Self::Jwt(issuer) => issuer,
            Self::Anonymous => "anonymous",
            Self::Server => "server",
        })
    }
}

/// Who somebody is: quotas, sessions, tickets, exchangers and `kill` belong to one principal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal {
    pub issuer: Issuer,
    pub name: String,
}

impl std::fmt::Display for Principal {
    /// The name alone of a user of the configuration, `issuer#name` of all others.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.issuer {
            Issuer::Users => f.write_str(&self.name),
            _ => write!(f, "{}#{}", self.issuer, self.name),
        }
    }
}

/// What kinds of statements and calls are allowed, each role all of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Role {
    /// Reads, in transactions that cannot write.
    #[default]
    Reader,
    /// Changes rows and tables, receives streams and transfers, registers exchangers.
    Writer,
    /// Sees and ends what others do, and keeps the database: checkpoints, backups.
    Admin,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Reader, Self::Writer, Self::Admin];

    pub fn word(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let role = Self::ALL.into_iter().find(|role| role.word() == text);
        role.ok_or_else(|| "must be one of reader, writer, admin".to_string())
    }
}

/// Patterns of names: `schema.table` or `catalog.schema.table` with `*` and `?` in all parts; without a dot, tables of the
/// schema `main`. Without a catalog, they are tables of the served database. `*` alone is everything everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Patterns(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pattern {
    /// None of the served database.
    catalog: Option<String>,
    schema: String,
    table: String,
}

impl Pattern {
    fn new(pattern: &str) -> Self {
        let pattern = fold(pattern);
        if pattern == "*" {
            return Self { catalog: Some("*".into()), schema: "*".into(), table: "*".into() };
        }
        match parts(&pattern).as_slice() {
            [table] => Self { catalog: None, schema: "main".into(), table: table.clone() },
            [schema, table] => Self { catalog: None, schema: schema.clone(), table: table.clone() },
            [catalog, schema, table] => {
                Self { catalog: Some(catalog.clone()), schema: schema.clone(), table: table.clone() }
            }
            // No table has such a name.
            _ => Self { catalog: None, schema: String::new(), table: String::new() },
        }
    }

    fn is_of(&self, catalog: &str, served: &str) -> bool {
        match &self.catalog {
            None => catalog == served,
            Some(pattern) => is_like(pattern, catalog),
        }
    }
}

/// The parts of a pattern: dots within double quotes are plain.
fn parts(pattern: &str) -> Vec<String> {
    let (mut parts, mut quoted) = (vec![String::new()], false);
    for character in pattern.chars() {
        match character {
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            other => parts.last_mut().expect("never empty").push(other),
        }
    }
    parts
}

impl Patterns {
    pub fn all() -> Self {
        Self(vec![Pattern::new("*")])
    }

    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a String>) -> Self {
        Self(patterns.into_iter().map(|pattern| Pattern::new(pattern)).collect())
    }

    fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    pub fn is_all(&self) -> bool {
        let any = |pattern: &str| pattern == "*";
        self.0.iter().any(|one| one.catalog.as_deref().is_some_and(any) && any(&one.schema) && any(&one.table))
    }

    /// Where there is no other catalog, every table of the served one is every table.
    fn of_one_catalog(mut self) -> Self {
        for one in &mut self.0 {
            if one.catalog.is_none() && one.schema == "*" && one.table == "*" {
                one.catalog = Some("*".into());
            }
        }
        self
    }

    /// Whether some table of that schema may match.
    fn reaches(&self, catalog: &str, schema: &str, served: &str) -> bool {
        let schema = fold(schema);
        self.0.iter().any(|one| !one.table.is_empty() && one.is_of(catalog, served) && is_like(&one.schema, &schema))
    }

    fn matches(&self, catalog: &str, schema: &str, table: &str, served: &str) -> bool {
        let (schema, table) = (fold(schema), fold(table));
        self.0
            .iter()
            .any(|one| one.is_of(catalog, served) && is_like(&one.schema, &schema) && is_like(&one.table, &table))
    }
}

/// Whether `text` is what `pattern` says, in which `*` is any run of characters and `?` any one.
pub fn is_like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // The last `*`, and how much of the text it stands for: tried again with one more where the rest does not fit.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&one) if one == '?' || one == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, t) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|left| *left == '*')
}

/// How much one caller may have; `None` is as much as the server allows anyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allowance {
    /// Rows and bytes of one statement's result.
    pub result_rows: Option<u64>,
    pub result_bytes: Option<Size>,
    /// Statements of one user at once.
    pub queries: Option<usize>,
    /// DuckDB's memory of each operator of a statement.
    pub operator_memory: Option<Size>,
}

/// The call that rights travel with, as the audit log names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub trace_id: String,
    /// Address and port, where there is one.
    pub peer: Option<String>,
}

/// What a caller may do with tables.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Grants {
    role: Role,
    read: Patterns,
    write: Patterns,
}

/// What one caller may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    pub user: String,
    /// Who has vouched for the user's name.
    pub issuer: Issuer,
    pub role: Role,
    /// The role's name in the configuration, for people.
    pub role_name: String,
    grants: Grants,
    exchangers: Patterns,
    /// The name of the served database's catalog, folded.
    served: Arc<str>,
    pub allowance: Allowance,
    /// Where there is an audit log.
    pub origin: Option<Origin>,
}

impl Rights {
    /// The same rights, in this call.
    pub fn within(&self, origin: Origin) -> Arc<Self> {
        Arc::new(Self { origin: Some(origin), ..self.clone() })
    }

    /// The same rights, of a name that this issuer has vouched for.
    pub fn vouched_by(self: Arc<Self>, issuer: Issuer) -> Arc<Self> {
        Arc::new(Self { issuer, ..Arc::unwrap_or_clone(self) })
    }

    pub fn principal(&self) -> Principal {
        Principal { issuer: self.issuer.clone(), name: self.user.clone() }
    }

    /// Everything, for what the server itself does.
    pub fn all(user: &str) -> Arc<Self> {
        Arc::new(Self {
            user: user.into(),
            issuer: Issuer::Server,
            role: Role::Admin,
            role_name: Role::Admin.word().into(),
            grants: Grants { role: Role::Admin, read: Patterns::all(), write: Patterns::all() },
            exchangers: Patterns::all(),
            served: "".into(),
            allowance: Allowance::default(),
            origin: None,
        })
    }

    /// The least rights that may read every table, for SQL that has a database of its own.
    pub fn reader(user: &str) -> Arc<Self> {
        let all = (*Self::all(user)).clone();
        let grants = Grants { role: Role::Reader, ..all.grants };
        Arc::new(Self { role: Role::Reader, role_name: Role::Reader.word().into(), grants, ..all })
    }

    /// What decides on tables: callers with the same grants may do the same with them.
    pub fn grants(&self) -> &Grants {
        &self.grants
    }

    /// A table of this catalog; `None` is the served database's.
    pub fn may_read(&self, catalog: Option<&str>, schema: &str, table: &str) -> bool {
        !is_own_schema(schema)
            && (self.grants.read.matches(&self.catalog(catalog), schema, table, &self.served)
                || self.may_write(catalog, schema, table))
    }

    pub fn may_write(&self, catalog: Option<&str>, schema: &str, table: &str) -> bool {
        !is_own_schema(schema)
            && self.role >= Role::Writer
            && self.grants.write.matches(&self.catalog(catalog), schema, table, &self.served)
    }

    /// Whether there may be a table in that schema that they may read.
    pub fn sees_schema(&self, catalog: Option<&str>, schema: &str) -> bool {
        let reaches = |patterns: &Patterns| patterns.reaches(&self.catalog(catalog), schema, &self.served);
        !is_own_schema(schema)
            && (reaches(&self.grants.read) || (self.role >= Role::Writer && reaches(&self.grants.write)))
    }

    fn catalog(&self, catalog: Option<&str>) -> String {
        catalog.map_or_else(|| self.served.to_string(), fold)
    }

    /// Whether there is no table that they may not read.
    pub fn read_all(&self) -> bool {
        self.grants.read.is_all() || self.write_all()
    }

    pub fn write_all(&self) -> bool {
        self.role >= Role::Writer && self.grants.write.is_all()
    }

    pub fn may_exchange(&self, name: &str) -> bool {
        self.exchangers.matches(&self.served, "main", name, &self.served)
    }

    /// An error that names who may not do `what`, unless their role is `least` or higher.
    pub fn require(&self, least: Role, what: &str) -> Result<()> {
        if self.role >= least {
            return Ok(());
        }
        Err(self.denied("role", format!("{what} needs the role {}", least.word())))
    }

    pub fn denied(&self, rule: &'static str, what: impl std::fmt::Display) -> Error {
        let Self { user, role_name, .. } = self;
        Error::Denied { rule, what: format!("{what}; user \"{user}\" has the role {role_name}") }
    }
}

/// The roles of one configuration, by name.
#[derive(Debug, Clone)]
pub struct Roles {
    named: BTreeMap<String, config::RoleSettings>,
    default: String,
    /// The name of the served database's catalog, folded.
    served: Arc<str>,
    /// Whether there may be other catalogs beside it.
    beside: bool,
}

impl Roles {
    pub fn new(config: &config::Auth) -> Self {
        let served = config::Database::default().catalog();
        Self { named: config.roles.clone(), default: config.default_role.clone(), served: served.into(), beside: false }
    }

    /// The same for tables of this database and of those that are attached to it.
    pub fn on(self, database: &config::Database) -> Self {
        Self { served: fold(&database.catalog()).into(), beside: database.may_have_catalogs(), ..self }
    }

    pub fn exists(&self, name: &str) -> bool {
        self.named.contains_key(name) || name.parse::<Role>().is_ok()
    }

    pub fn names(&self) -> Vec<&str> {
        let built_in = Role::ALL.map(Role::word).into_iter().filter(|word| !self.named.contains_key(*word));
        let mut names: Vec<&str> = self.named.keys().map(String::as_str).collect();
        names.extend(built_in);
        names
    }

    /// What `user` may do with this role, or with the default one, and with grants of their own.
    pub fn rights(&self, user: &str, role: Option<&str>, read: &[String], write: &[String]) -> Result<Arc<Rights>> {
        let name = role.unwrap_or(&self.default);
        let settings = self.named.get(name).cloned().unwrap_or_default();
        let base = match settings.base {
            Some(base) => base,
            None => name.parse().map_err(|_| {
                let known = self.names().join(", ");
                Error::Denied {
                    rule: "role",
                    what: format!("user \"{user}\" has the role \"{name}\", which is none of {known}"),
                }
            })?,
        };
        let patterns = |given: &Option<Vec<String>>| given.as_ref().map_or_else(Patterns::all, Patterns::new);
        let of_catalogs = |patterns: Patterns| if self.beside { patterns } else { patterns.of_one_catalog() };
        Ok(Arc::new(Rights {
            user: user.into(),
            issuer: Issuer::Users,
            role: base,
            role_name: name.into(),
            grants: Grants {
                role: base,
                read: of_catalogs(patterns(&settings.read).and(Patterns::new(read))),
                write: of_catalogs(patterns(&settings.write).and(Patterns::new(write))),
            },
            exchangers: patterns(&settings.exchangers),
            served: self.served.clone(),
            allowance: settings.allowance,
            origin: None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_people_expect() {
        for (pattern, schema, table, expected) in [
            ("*", "any", "thing", true),
            ("*.*", "any", "thing", true),
            ("flights", "main", "flights", true),
            ("flights", "other", "flights", false),
            ("Sales.*", "SALES", "Orders", true),
            ("sales.*", "sales2", "orders", false),
            // The Kelvin sign is no k, and a long s no s, as in DuckDB.
            ("tokens", "main", "to\u{212a}ens", false),
            ("\u{212a}", "main", "k", false),
            ("\u{17f}ales.*", "sales", "orders", false),
            ("stra\u{df}e", "main", "STRA\u{1e9e}E", false),
            ("sales*.order?", "sales2", "orders", true),
            ("sales.*a*b", "sales", "xxaxxb", true),
            ("sales.*a*b", "sales", "xxbxxa", false),
            ("main.\"a.b\"", "main", "a.b", true),
            ("main.a.b", "main", "a.b", false),
            ("m.main.b", "main", "b", true),
            ("?.*.b", "main", "b", true),
            ("lake.main.b", "main", "b", false),
            ("a.b.c.d", "c", "d", false),
            ("", "main", "", true),
            ("", "main", "t", false),
        ] {
            let patterns = Patterns::new([&pattern.to_string()]);
            assert_eq!(patterns.matches("m", schema, table, "m"), expected, "{pattern} for {schema}.{table}");
        }
    }

    #[test]
    fn patterns_without_a_catalog_are_of_the_served_database() {
        for (pattern, catalog, expected) in [
            ("*", "lake", true),
            ("*.*.*", "lake", true),
            ("*.*", "lake", false),
            ("*.*", "m", true),
            ("t", "lake", false),
            ("main.t", "lake", false),
            ("lake.main.t", "lake", true),
            ("LAKE.*.*", "lake", true),
            ("l*.main.t", "lake", true),
            ("other.main.t", "lake", false),
        ] {
            let patterns = Patterns::new([&pattern.to_string()]);
            assert_eq!(patterns.matches(catalog, "main", "t", "m"), expected, "{pattern} for {catalog}.main.t");
            assert_eq!(patterns.reaches(catalog, "main", "m"), expected, "{pattern} for {catalog}.main");
        }
        let all = |pattern: &str| Patterns::new([&pattern.to_string()]);
        assert!(all("*").is_all() && all("*.*.*").is_all() && !all("*.*").is_all());
        assert!(all("*.*").of_one_catalog().is_all() && !all("main.*").of_one_catalog().is_all());
    }

    #[test]
    fn named_role_narrows_its_base_and_a_user_may_have_more() {
        let mut config = config::Config::default().auth;
        let analyst = config::RoleSettings {
            base: Some(Role::Writer),
            read: Some(vec!["sales.*".into()]),
            write: Some(vec!["scratch.*".into()]),
            ..Default::default()
        };
        config.roles.insert("analyst".into(), analyst);
        let roles = Roles::new(&config);
        let ann = roles.rights("ann", Some("analyst"), &["hr.names".into()], &[]).expect("the role is there");
        assert!(
            ann.may_read(None, "sales", "orders")
                && ann.may_read(None, "hr", "names")
                && !ann.may_read(None, "hr", "salaries")
        );
        assert!(
            ann.may_write(None, "scratch", "x")
                && ann.may_read(None, "scratch", "x")
                && !ann.may_write(None, "sales", "orders")
        );
        assert!(!ann.read_all() && !ann.write_all());
        let bob = roles.rights("bob", None, &[], &[]).expect("the default role");
        assert!(bob.role == Role::Reader && bob.read_all() && !bob.may_write(None, "main", "t"));
        let unknown = roles.rights("eve", Some("boss"), &[], &[]).expect_err("no such role");
        assert!(unknown.to_string().contains("boss") && unknown.to_string().contains("analyst"), "{unknown}");
    }
}
