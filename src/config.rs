//! Configuration: sections, defaults, sources, and validation that reports every mistake at once.
//!
//! defaults < `--config FILE` (TOML) < environment `MALLARD__SECTION__KEY` < flags. Figment merges the sources and
//! remembers where each value came from; the table [`KEYS`] says what each key means. After [`load`] only the checked
//! [`Config`] travels. `config/mallard.toml` is [`Config::to_toml`] of the defaults, held equal by a test.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
    path::PathBuf,
    time::Duration,
};

use figment::{
    Figment, Metadata, Profile, Provider,
    providers::{Format, Toml},
    value::{Dict, Map, Value},
};

use crate::{
    access::{Allowance, Issuer, Role},
    clock::Clock,
    location::Location,
};

const ENV_PREFIX: &str = "MALLARD__";

const CERTIFICATES: &str = "auth.certificates.";

const ATTACH: &str = "database.attach.";

/// The ending of files that hold an extension.
pub const EXTENSION_ENDING: &str = ".duckdb_extension";

/// Names that no attached database may have.
const RESERVED_CATALOGS: [&str; 6] = ["_mallard", "information_schema", "main", "pg_catalog", "system", "temp"];

/// Endpoints of one result at most. Each is a ticket in the FlightInfo and a connection that its reader opens.
pub const MAX_ENDPOINTS: usize = 64;

#[derive(Debug, Clone)]
pub struct Config {
    pub server: Server,
    pub admin: Admin,
    pub database: Database,
    pub ingest: Ingest,
    pub put: Put,
    pub exchange: Exchange,
    pub wasm: Wasm,
    pub auth: Auth,
    pub jwt: Jwt,
    pub audit: Audit,
    pub tls: Tls,
    pub session: Session,
    pub limits: Limits,
    pub wire: Wire,
    pub log: Log,
    pub traces: Traces,
}

#[derive(Debug, Clone)]
pub struct Server {
    pub location: Location,
    pub unix_socket: Option<PathBuf>,
    pub public_location: Option<Location>,
    pub drain_delay: Span,
    pub grace_period: Span,
}

#[derive(Debug, Clone)]
pub struct Admin {
    pub listen: Listen,
    pub connections: usize,
    pub timeout: Span,
    pub show_statements: bool,
}

#[derive(Debug, Clone)]
pub struct Database {
    pub path: String,
    pub threads: usize,
    pub memory_limit: Option<Size>,
    pub temp_directory: String,
    pub max_temp_size: Option<Size>,
    pub seal: bool,
    pub backup_directory: Option<PathBuf>,
    pub extensions: Vec<String>,
    pub extension_directory: Option<PathBuf>,
    pub extension_repository: Option<String>,
    pub allow_unsigned_extensions: bool,
    pub extension_functions: Vec<String>,
    pub attach: Vec<Attachment>,
    pub init: Option<PathBuf>,
    pub external_access: bool,
    pub lossless_types: LosslessTypes,
    pub batch_rows: usize,
    pub stream_buffer: Size,
    pub reopens: usize,
    /// Settings of DuckDB's that make it fail, and the name of a function that does (src/engine/failing.rs), for tests: no key reaches them.
    pub debug: Vec<(String, String)>,
}

/// Another database that is served beside the main one, as a catalog of its own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attachment {
    /// The catalog's name.
    pub name: String,
    /// A file, or what the extension of its type takes; it may hold a password.
    pub path: String,
    pub read_only: bool,
    /// DuckDB's own where it is not given.
    pub r#type: Option<String>,
    /// Further options of ATTACH, each as SQL takes its value.
    pub options: BTreeMap<String, OptionValue>,
    /// Directories of its own files, which statements may then read and write there.
    pub directories: Vec<String>,
}

/// The value of an option of ATTACH.
#[derive(Debug, Clone, PartialEq)]
pub enum OptionValue {
    Flag(bool),
    Number(i128),
    Text(String),
}

impl Attachment {
    /// The file, where it is a DuckDB file on this machine.
    pub fn file(&self) -> Option<&Path> {
        let own = self.r#type.as_deref().is_none_or(|name| name.eq_ignore_ascii_case("duckdb"));
        let path = self.path.as_str();
        (own && path != ":memory:" && !has_prefix(path)).then(|| Path::new(path))
    }

    /// What may be shown of the path: that of a file.
    pub fn shown_path(&self) -> &str {
        if self.file().is_some() || self.path == ":memory:" { &self.path } else { "(redacted)" }
    }
}

/// Whether a path names an extension or a protocol, such as `postgres:` and `https://`.
fn has_prefix(path: &str) -> bool {
    path.split_once(':').is_some_and(|(prefix, _)| {
        prefix.len() > 1 && prefix.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-'))
    })
}

impl Default for Database {
    fn default() -> Self {
        Config::default().database
    }
}

impl Database {
    /// The name of the served database's catalog, as DuckDB makes it of the file's name.
    pub fn catalog(&self) -> String {
        let Some(file) = self.file() else { return "memory".into() };
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let stem = name.split('.').next().unwrap_or_default();
        match stem {
            "main" | "temp" | "system" => format!("{stem}_db"),
            _ => stem.to_string(),
        }
    }

    /// Whether there may be other catalogs beside the served one.
    pub fn may_have_catalogs(&self) -> bool {
        !self.attach.is_empty() || self.init.is_some()
    }

    /// Where files without a name lie that wait for a reader: the temporary volume.
    pub fn spool_directory(&self) -> PathBuf {
        match (self.temp_directory.as_str(), self.file().and_then(Path::parent)) {
            ("", None) => std::env::temp_dir(),
            ("", Some(beside)) if beside.as_os_str().is_empty() => PathBuf::from("."),
            ("", Some(beside)) => beside.to_path_buf(),
            (given, _) => PathBuf::from(given),
        }
    }

    /// The database file, if there is one.
    pub fn file(&self) -> Option<&Path> {
        Some(self.path.as_str()).filter(|path| !matches!(*path, ":memory:" | "")).map(Path::new)
    }
}

#[derive(Debug, Clone)]
pub struct Ingest {
    pub workers: usize,
    pub preserve_order: bool,
}

/// What a DoPut must be.
#[derive(Debug, Clone)]
pub struct Put {
    pub require_end: bool,
}

#[derive(Debug, Clone)]
pub struct Exchange {
    pub memory_limit: Size,
    pub temp_size: Size,
    pub max_registered: usize,
    pub versions: usize,
    pub max_running: usize,
    pub max_stages: usize,
    pub ready: usize,
    pub stall_timeout: Span,
    pub max_growth: usize,
    pub tables: bool,
    pub buffer_disk: Size,
    pub buffer_timeout: Span,
}

/// What WebAssembly exchangers may take.
#[derive(Debug, Clone)]
pub struct Wasm {
    pub module_size: Size,
    pub function_size: Size,
    pub compiling: usize,
    pub instances: usize,
    pub memory: Size,
    pub stack: Size,
    pub table_elements: usize,
    pub call_time: Span,
    pub stream_time: Span,
    pub output_rows: usize,
    pub output_size: Size,
}

#[derive(Debug, Clone)]
pub struct Auth {
    pub enabled: bool,
    pub allow_anonymous: bool,
    pub allow_plaintext: bool,
    pub users_file: Option<PathBuf>,
    pub signing_key: Option<Secret>,
    /// Where the signing key was read, if it came from `auth.signing_key_file`.
    pub signing_key_file: Option<PathBuf>,
    pub token_ttl: Span,
    pub session_max: Span,
    pub closed_sessions: usize,
    pub max_logins: usize,
    pub login_failures: usize,
    pub login_failures_per_address: usize,
    pub default_role: String,
    pub anonymous_role: String,
    /// `auth.users.NAME`.
    pub users: BTreeMap<String, User>,
    /// `auth.roles.NAME`.
    pub roles: BTreeMap<String, RoleSettings>,
    /// No key: tests bring their own.
    pub clock: Clock,
    /// From `auth.certificates`: a client certificate's name, and the user that it stands for.
    pub certificates: BTreeMap<String, String>,
}

/// Who did what.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    pub file: Option<PathBuf>,
}

/// One user of the configuration.
#[derive(Debug, Clone, Default)]
pub struct User {
    /// `None` for one who never logs in with a password.
    pub credential: Option<Credential>,
    /// The default one where it is not given.
    pub role: Option<String>,
    /// Patterns of tables, beside those of the role.
    pub read: Vec<String>,
    pub write: Vec<String>,
}

impl User {
    /// With a role's rights and no others.
    pub fn new(credential: Credential, role: &str) -> Self {
        Self { credential: Some(credential), role: Some(role.into()), ..Self::default() }
    }
}

/// A role of the configuration.
#[derive(Debug, Clone, Default)]
pub struct RoleSettings {
    /// What it narrows; for `reader`, `writer` and `admin` it is themselves.
    pub base: Option<Role>,
    /// Patterns of tables, and of exchangers; `None` means all.
    pub read: Option<Vec<String>>,
    pub write: Option<Vec<String>>,
    pub exchangers: Option<Vec<String>>,
    pub allowance: Allowance,
}

/// Identities that an issuer outside vouches for.
#[derive(Debug, Clone)]
pub struct Jwt {
    pub issuer: Option<String>,
    pub audience: Option<String>,
    pub jwks_file: Option<PathBuf>,
    pub jwks_url: Option<String>,
    pub allow_jwks_url: bool,
    pub jwks_pause: Span,
    pub jwks_refresh: Span,
    pub leeway: Span,
    pub user_claim: String,
    pub role_claim: String,
    pub default_role: Option<String>,
    /// `jwt.roles.VALUE`: the role of who has this value in the claim.
    pub roles: BTreeMap<String, String>,
}

/// Where the issuer's keys are.
#[derive(Debug, Clone)]
pub enum JwksSource {
    File(PathBuf),
    Url(http::Uri),
}

impl Jwt {
    /// Where the keys are, or why that cannot be used.
    pub fn jwks(&self) -> Result<Option<JwksSource>, String> {
        let uri = match (&self.jwks_file, &self.jwks_url) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => return Err("jwt.jwks_url: is given beside jwt.jwks_file; give one of them".into()),
            (Some(path), None) => return Ok(Some(JwksSource::File(path.clone()))),
            (None, Some(url)) => url.parse::<http::Uri>().map_err(|_| "jwt.jwks_url: is no URL".to_string())?,
        };
        if !self.allow_jwks_url {
            return Err(
                "jwt.jwks_url: the server would fetch it; set jwt.allow_jwks_url = true, or use jwt.jwks_file".into()
            );
        }
        let host = uri.host().unwrap_or_default();
        let is_here =
            host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        match uri.scheme_str() {
            Some("https") if !host.is_empty() => Ok(Some(JwksSource::Url(uri))),
            Some("http") if is_here => Ok(Some(JwksSource::Url(uri))),
            _ => {
                Err("jwt.jwks_url: must begin with https://; without TLS anybody on the way could give out identities"
                    .into())
            }
        }
    }
}

/// TLS on the Flight port.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub client_ca: Option<PathBuf>,
    pub client_auth: ClientAuth,
    pub min_version: TlsVersion,
    pub peer_ca: Option<PathBuf>,
}

/// What clients keep between calls.
#[derive(Debug, Clone)]
pub struct Session {
    pub idle_timeout: Span,
    pub transaction_timeout: Span,
    pub disconnect_timeout: Span,
    pub wait: Span,
    pub per_connection: bool,
    pub sessions: usize,
    pub sessions_per_user: usize,
    pub transactions: usize,
    pub transactions_per_user: usize,
    pub prepared_statements: usize,
    pub prepared_statements_per_user: usize,
    pub parameters_size: Size,
    pub parameters_size_per_user: Size,
    pub parameters_size_in_all: Size,
}

#[derive(Debug, Clone)]
pub struct Limits {
    pub queries: usize,
    pub queries_per_user: usize,
    pub queue: usize,
    pub queue_timeout: Span,
    pub statement_timeout: Span,
    pub fatal_errors: usize,
    pub fatal_error_window: Span,
    pub fatal_error_ban: Span,
    pub max_message_size: Size,
    pub send_message_size: Size,
    pub sql_length: Size,
    pub returning_size: Size,
    pub statements_per_text: usize,
    pub sql_depth: usize,
    pub sql_joins: usize,
    pub sql_expansion: usize,
    pub decisions_size: Size,
    pub process_memory: Option<Size>,
    pub endpoints: usize,
    pub shared_results: usize,
    pub connections: usize,
    pub connections_per_address: usize,
    pub unauthenticated_connections: usize,
    pub unauthenticated_lifetime: Span,
    pub handshake_timeout: Span,
    pub idle_timeout: Span,
    pub stall_timeout: Span,
    pub streams_per_connection: usize,
    pub bytes_in_flight: Size,
}

/// How streams travel.
#[derive(Debug, Clone)]
pub struct Wire {
    pub compression: Compression,
    pub standard_path: bool,
    pub stream_window: Size,
    pub connection_window: Size,
    pub frame_size: Size,
    pub send_buffer: Size,
    pub nodelay: bool,
    pub keepalive_interval: Span,
    pub keepalive_timeout: Span,
}

#[derive(Debug, Clone)]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Default)]
pub struct Traces {
    pub exporter: TraceExporter,
    pub endpoint: String,
    pub protocol: TraceProtocol,
    pub statement_text: StatementText,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: Server {
                location: Location::Tcp { host: "127.0.0.1".into(), port: 8815 },
                unix_socket: None,
                public_location: None,
                drain_delay: Span(Duration::ZERO),
                grace_period: Span(Duration::from_secs(30)),
            },
            admin: Admin {
                listen: Listen(Some(SocketAddr::from(([127, 0, 0, 1], 9815)))),
                connections: 64,
                timeout: Span(Duration::from_secs(10)),
                show_statements: false,
            },
            database: Database {
                path: ":memory:".into(),
                threads: 0,
                memory_limit: None,
                temp_directory: String::new(),
                max_temp_size: None,
                seal: true,
                backup_directory: None,
                extensions: Vec::new(),
                extension_directory: None,
                extension_repository: None,
                allow_unsigned_extensions: false,
                extension_functions: Vec::new(),
                attach: Vec::new(),
                init: None,
                external_access: false,
                lossless_types: LosslessTypes::Auto,
                batch_rows: 61_440,
                stream_buffer: Size::mib(4),
                reopens: 10,
                debug: Vec::new(),
            },
            ingest: Ingest { workers: 2, preserve_order: true },
            put: Put { require_end: false },
            exchange: Exchange {
                memory_limit: Size::mib(512),
                temp_size: Size::mib(1024),
                max_registered: 1000,
                versions: 8,
                max_running: 16,
                max_stages: 16,
                ready: 2,
                stall_timeout: Span(Duration::from_secs(60)),
                max_growth: 1000,
                tables: false,
                buffer_disk: Size::mib(8192),
                buffer_timeout: Span(Duration::from_secs(10)),
            },
            wasm: Wasm::default(),
            auth: Auth {
                enabled: false,
                allow_anonymous: false,
                allow_plaintext: false,
                users_file: None,
                signing_key: None,
                signing_key_file: None,
                token_ttl: Span(Duration::from_secs(3600)),
                session_max: Span(Duration::from_secs(24 * 3600)),
                closed_sessions: 1000,
                max_logins: 64,
                login_failures: 10,
                login_failures_per_address: 60,
                default_role: Role::Reader.word().into(),
                anonymous_role: Role::Admin.word().into(),
                users: BTreeMap::new(),
                roles: BTreeMap::new(),
                clock: Clock::default(),
                certificates: BTreeMap::new(),
            },
            jwt: Jwt::default(),
            audit: Audit::default(),
            tls: Tls::default(),
            session: Session {
                idle_timeout: Span(Duration::from_secs(1800)),
                transaction_timeout: Span(Duration::from_secs(300)),
                disconnect_timeout: Span(Duration::from_secs(30)),
                wait: Span(Duration::from_secs(10)),
                per_connection: true,
                sessions: 1024,
                sessions_per_user: 128,
                transactions: 128,
                transactions_per_user: 32,
                prepared_statements: 8192,
                prepared_statements_per_user: 1024,
                parameters_size: Size::mib(64),
                parameters_size_per_user: Size::mib(128),
                parameters_size_in_all: Size::mib(512),
            },
            limits: Limits {
                queries: 16,
                queries_per_user: 12,
                queue: 256,
                queue_timeout: Span(Duration::from_secs(30)),
                statement_timeout: Span(Duration::ZERO),
                fatal_errors: 2,
                fatal_error_window: Span(Duration::from_secs(3600)),
                fatal_error_ban: Span(Duration::from_secs(900)),
                max_message_size: Size::mib(64),
                send_message_size: Size::mib(2),
                sql_length: Size(256 * 1024),
                returning_size: Size::mib(256),
                statements_per_text: 1000,
                sql_depth: 128,
                sql_joins: 128,
                sql_expansion: 16_384,
                decisions_size: Size(8 * 1024 * 1024),
                process_memory: None,
                endpoints: 1,
                shared_results: 64,
                connections: 4096,
                connections_per_address: 1024,
                unauthenticated_connections: 512,
                unauthenticated_lifetime: Span(Duration::from_secs(30)),
                handshake_timeout: Span(Duration::from_secs(10)),
                idle_timeout: Span(Duration::from_secs(3600)),
                stall_timeout: Span(Duration::from_secs(120)),
                streams_per_connection: 128,
                bytes_in_flight: Size::mib(1024),
            },
            wire: Wire::default(),
            log: Log { level: "info".into(), format: LogFormat::Text },
            traces: Traces::default(),
        }
    }
}

impl Default for Wasm {
    fn default() -> Self {
        Self {
            module_size: Size::mib(4),
            function_size: Size(128 * 1024),
            compiling: 8,
            instances: 32,
            memory: Size::mib(64),
            stack: Size(512 * 1024),
            table_elements: 16_384,
            call_time: Span(Duration::from_secs(10)),
            stream_time: Span(Duration::from_secs(600)),
            output_rows: 4_194_304,
            output_size: Size::mib(256),
        }
    }
}

impl Default for Jwt {
    fn default() -> Self {
        Self {
            issuer: None,
            audience: None,
            jwks_file: None,
            jwks_url: None,
            allow_jwks_url: false,
            jwks_pause: Span(Duration::from_secs(30)),
            jwks_refresh: Span(Duration::from_secs(3600)),
            leeway: Span(Duration::from_secs(30)),
            user_claim: "sub".into(),
            role_claim: "role".into(),
            default_role: None,
            roles: BTreeMap::new(),
        }
    }
}

/// What `mallard bench` measured best on loopback; ARCHITECTURE.md has the numbers.
impl Default for Wire {
    fn default() -> Self {
        Self {
            compression: Compression::None,
            standard_path: false,
            stream_window: Size::mib(16),
            connection_window: Size::mib(64),
            frame_size: Size::mib(1),
            send_buffer: Size::mib(1),
            nodelay: true,
            keepalive_interval: Span(Duration::from_secs(20)),
            keepalive_timeout: Span(Duration::from_secs(20)),
        }
    }
}

/// One key: its name, one line why, and how it is read and written.
struct Key {
    name: &'static str,
    why: &'static str,
    secret: bool,
    set: fn(&mut Config, &Value) -> Result<(), String>,
    show: fn(&Config) -> String,
}

macro_rules! key {
    ($section:ident . $field:ident, $why:literal $(, $secret:ident)?) => {
        Key {
            name: concat!(stringify!($section), ".", stringify!($field)),
            why: $why,
            secret: key!(@ $($secret)?),
            set: |config, value| Setting::read(value).map(|read| config.$section.$field = read),
            show: |config| config.$section.$field.to_toml(),
        }
    };
    (@ secret) => { true };
    (@) => { false };
}

const KEYS: &[Key] = &[
    key!(
        server.location,
        "Where Flight is served: grpc://HOST:PORT, grpc+tcp://HOST:PORT or grpc+unix:///path; with tls.certificate it is grpc+tls://HOST:PORT. Port 0 picks a free one."
    ),
    key!(
        server.unix_socket,
        "Path of a Unix socket on which Flight is served, too: grpc+unix:///path, the cheaper way for clients on this machine. Empty means none."
    ),
    key!(
        server.public_location,
        "Where clients reach the server, for the status page, such as grpc://db.example.com:8815; empty means the host that was asked and the port of server.location."
    ),
    key!(
        server.drain_delay,
        "After a stop signal: how long to stay not ready but still accept calls, so that load balancers notice."
    ),
    key!(
        server.grace_period,
        "After that: how long running streams may go on before they are interrupted. A second signal ends it."
    ),
    key!(
        admin.listen,
        "Address of the status page, /livez, /readyz, /startupz and /metrics (HTTP, its own thread), or \"off\"."
    ),
    key!(
        admin.connections,
        "Connections to the admin port at once; a further one ends the oldest. Nobody logs in there: let only probes, Prometheus and administrators reach it."
    ),
    key!(
        admin.timeout,
        "How long a connection to the admin port may take, from its start until its one answer has left."
    ),
    key!(
        admin.show_statements,
        "Whether the status page shows the texts of running statements (without literals) to everyone who reaches the admin port. Admins see them with the action queries."
    ),
    key!(database.path, "The DuckDB database file, or :memory:."),
    key!(database.threads, "DuckDB's worker threads; 0 means one per core, or as many as the container may use."),
    key!(
        database.memory_limit,
        "DuckDB's memory limit, such as \"4GiB\"; empty means 70 % of the container's memory limit, or of the machine's memory."
    ),
    key!(
        database.temp_directory,
        "Where DuckDB spills to disk; empty means beside the database file, with the ending .tmp."
    ),
    key!(database.max_temp_size, "How much may be spilled to disk; empty means half of what is free there at start."),
    key!(
        database.seal,
        "Whether the database file's mode is 000 while it is open, so that nothing else reads or overwrites it (root could). It is restored at stop; after a crash by the next start, or by chmod."
    ),
    key!(
        database.backup_directory,
        "Where `mallard backup` writes, on the server; empty means that no backups are made. Best another volume than the database's."
    ),
    key!(
        database.extensions,
        "DuckDB extensions that are loaded at start: names, such as \"httpfs\", or paths of .duckdb_extension files. Built for this version of DuckDB and this platform, and signed; docs/extensions.md."
    ),
    key!(
        database.extension_directory,
        "Where extensions are that are given by name: NAME.duckdb_extension in it, or in DuckDB's own layout (VERSION/PLATFORM/NAME.duckdb_extension). Empty means that names are those that are linked into the server."
    ),
    key!(
        database.extension_repository,
        "Where the server downloads an extension from that is not in database.extension_directory, at start: core, community, or a URL or directory of DuckDB's layout. Empty means that nothing is downloaded."
    ),
    key!(
        database.allow_unsigned_extensions,
        "Loads extensions that neither DuckDB nor its community have signed. Whoever can write their files can then run code as the server."
    ),
    key!(
        database.extension_functions,
        "Table functions of loaded extensions that every client may call, with * and ?. Others are for admins, and those that read files or networks for admins with database.external_access."
    ),
    key!(
        database.attach,
        "Other databases that are served as catalogs beside the main one: a list of {name, path, read_only, type, options, directories}. In the environment as TOML or JSON; docs/extensions.md."
    ),
    key!(
        database.init,
        "A file of SQL statements that the server runs with all rights when it opens the database, before any client, at each start. An error ends the start and names its line."
    ),
    key!(
        database.external_access,
        "Whether SQL may read and write files and attach databases with the server's rights. Every client could then."
    ),
    key!(
        database.lossless_types,
        "Who gets Arrow's extension types, which lose nothing of HUGEINT, UUID, ENUM, VARIANT and others: auto (clients that ask with the header x-mallard-types: lossless, as Mallard's own do), on (all that do not ask for plain) or off (nobody). All others get decimals and text, which any client reads. The session option lossless_types wins over off and over the default."
    ),
    key!(
        database.batch_rows,
        "Rows per Arrow record batch on the way out. Divisors of DuckDB's row group (122880) avoid short tails. Fewer where more than two statements run at once."
    ),
    key!(
        database.stream_buffer,
        "What DuckDB may make of a statement's rows before they are taken; where several statements run, they share it."
    ),
    key!(
        database.reopens,
        "How often an hour a database file is reopened in the process after a fatal error in DuckDB; one more ends the process with exit code 70, as each does in memory. 0 means never."
    ),
    key!(
        ingest.workers,
        "DuckDB workers that one incoming stream may use. More speeds up one stream; a slow sender holds as many."
    ),
    key!(
        ingest.preserve_order,
        "Whether rows are stored in the order they were sent. Turning it off lets workers finish out of order."
    ),
    key!(
        put.require_end,
        "Whether rows of a DoPut are stored only after an explicit end, a last app_metadata {\"end\": true, \"rows\": N}: without it a client that fails half way may look like one that has sent everything. With it ADBC's ingest, which cannot send an end, is refused."
    ),
    key!(
        exchange.memory_limit,
        "DuckDB memory limit of one running SQL exchanger, which has an in-memory DuckDB of its own."
    ),
    key!(
        exchange.temp_size,
        "What one running SQL exchanger may spill to disk, beside database.temp_directory. 0B keeps it in memory."
    ),
    key!(exchange.max_registered, "How many exchangers clients may register, each with all of its versions."),
    key!(
        exchange.versions,
        "Versions of a registered exchanger that stay usable as NAME@VERSION; a newer one takes the oldest one's place."
    ),
    key!(exchange.max_running, "How many SQL exchangers may run at once, each with a DuckDB of its own."),
    key!(exchange.max_stages, "Exchangers in one chain (a | b | c) at most."),
    key!(
        exchange.ready,
        "Sandboxes of SQL exchangers that are opened ahead once one was used; a start then waits for none. 0 means none."
    ),
    key!(
        exchange.stall_timeout,
        "How long an exchanger may work without taking input or giving output before its stream is ended; waiting for the client does not count. 0s means no limit."
    ),
    key!(
        exchange.max_growth,
        "Rows that an exchanger may give per row it took, beyond the first million; more ends its stream. 0 means no limit."
    ),
    key!(
        exchange.tables,
        "Whether SQL exchangers may read tables of this server, those that their caller may read. They then run in its DuckDB and share its memory."
    ),
    key!(
        exchange.buffer_disk,
        "What the answers of all exchanges may hold on disk, in database.temp_directory, for clients that send all of their rows before they read. 0B means that such clients have to read while they send."
    ),
    key!(
        exchange.buffer_timeout,
        "How long a client that sends may take nothing of the answer once that is full, before the exchange ends in RESOURCE_EXHAUSTED; 0s leaves it to limits.stall_timeout."
    ),
    key!(wasm.module_size, "The largest WebAssembly module that may be registered as an exchanger."),
    key!(
        wasm.function_size,
        "The largest function of a module; a compiler cannot be stopped, and takes long for large ones with many variables."
    ),
    key!(
        wasm.compiling,
        "How many modules may be compiled or wait for it. They are compiled one at a time, away from the streams."
    ),
    key!(wasm.instances, "How many WebAssembly exchangers may run at once, each with memory of its own."),
    key!(wasm.memory, "The memory of one running module; at most 2GiB."),
    key!(wasm.stack, "The stack of one running module; at most 1MiB, which the threads that run it have."),
    key!(wasm.table_elements, "Entries in each table of functions of a module."),
    key!(wasm.call_time, "Processor time that a module may take at once: for one batch, or to start."),
    key!(wasm.stream_time, "Processor time that a module may take for one stream in all; 0s means no limit."),
    key!(wasm.output_rows, "Rows that a module may answer to one batch."),
    key!(
        wasm.output_size,
        "Bytes that a module may answer to one batch, those among them that it passes on from the input."
    ),
    key!(auth.enabled, "Whether every Flight call needs an identity. Health checks never do."),
    key!(auth.allow_anonymous, "Allows listening on an address others can reach although auth.enabled is false."),
    key!(
        auth.allow_plaintext,
        "Allows logins without TLS on an address others can reach: passwords and tokens then travel in the clear."
    ),
    key!(
        auth.users_file,
        "A TOML file of users: one line `name = \"argon2id hash\"` each, made by `mallard user hash`. Empty means none."
    ),
    key!(
        auth.signing_key,
        "Signs tokens and tickets. With it they survive a restart; without it a random key is made at start. From a file it is read again when that changes, and the one before still verifies for auth.token_ttl.",
        secret
    ),
    key!(
        auth.token_ttl,
        "How long a bearer token and a ticket of GetFlightInfo are valid. An answer carries a fresh bearer token once less than half of it is left."
    ),
    key!(auth.session_max, "How long a login lasts at most, however often its token is replaced by a fresh one."),
    key!(
        auth.closed_sessions,
        "Closed sessions of each user that are remembered until their tokens have expired; one more closes all of the user's."
    ),
    key!(auth.max_logins, "Logins that may be under way at once; two passwords are checked at a time."),
    key!(
        auth.login_failures,
        "Failed logins a minute of one user from one address; further ones are refused without a look. 0 means no limit."
    ),
    key!(
        auth.login_failures_per_address,
        "The same for all users from one address (IPv6: /64), but for those who have logged in from there before. Behind a proxy that is one address for all."
    ),
    key!(
        auth.default_role,
        "Role of users that have none of their own: reader, writer, admin, or one of [auth.roles]."
    ),
    key!(auth.anonymous_role, "Role of everyone where auth.enabled is false."),
    key!(
        jwt.issuer,
        "Who else vouches for identities: the claim iss of JWTs that clients send as bearer tokens (EdDSA, ES256 or RS256). Empty means nobody."
    ),
    key!(jwt.audience, "What the claim aud of such a token has to name: this server. Needed with jwt.issuer."),
    key!(jwt.jwks_file, "The issuer's public keys, a JWKS file; read again when it changes."),
    key!(jwt.jwks_url, "The same from a URL (https; http on this machine only), fetched when the first token comes."),
    key!(jwt.allow_jwks_url, "Allows the server to fetch jwt.jwks_url."),
    key!(jwt.jwks_pause, "At least so long between two fetches when tokens name keys that are not known."),
    key!(jwt.jwks_refresh, "Fetched keys are fetched again when they are this old, so that withdrawn ones go."),
    key!(jwt.leeway, "How far the issuer's clock may be off: for exp and nbf; at most 60s."),
    key!(jwt.user_claim, "The claim that is the user's name."),
    key!(
        jwt.role_claim,
        "The claim, a text or a list of texts, whose values [jwt.roles] maps to roles of this server. Dots lead into objects: realm_access.roles."
    ),
    key!(jwt.default_role, "The role of who has no value that [jwt.roles] maps. Empty means that they are refused."),
    key!(
        audit.file,
        "Where the audit log goes: the path of a file that is appended to, - for standard output, empty for none. JSON lines, docs/audit.md describes them."
    ),
    key!(
        tls.certificate,
        "PEM file of the Flight port's certificate and those that lead to its CA. With it the port speaks TLS only; a Unix socket does not. Read again when it changes, like the two below, without a restart."
    ),
    key!(tls.key, "PEM file of the certificate's private key."),
    key!(tls.client_ca, "PEM file of the CAs whose client certificates are taken."),
    key!(
        tls.client_auth,
        "Whether clients show a certificate: off, optional (those without one log in) or required. Its first DNS, mail or URI name, else its common name, is a user, or is mapped to one by [auth.certificates]."
    ),
    key!(tls.min_version, "Oldest version of TLS that is spoken: 1.2 or 1.3."),
    key!(
        tls.peer_ca,
        "PEM file of the CAs that transfers from grpc+tls:// trust, in place of the system's. Read for each transfer."
    ),
    key!(
        session.idle_timeout,
        "How long what a client keeps between calls (settings, temporary tables, prepared statements) may go unused before it is freed."
    ),
    key!(
        session.transaction_timeout,
        "How long an open transaction may stand without a statement before it is rolled back: it holds what others wait for."
    ),
    key!(
        session.disconnect_timeout,
        "How long what a client keeps outlives the last connection that used it; a client that comes back within that goes on. \"0s\" means as long as the other two say."
    ),
    key!(
        session.wait,
        "How long a statement waits for the one before it in the same transaction or session, rows included: one runs at a time there."
    ),
    key!(
        session.per_connection,
        "Whether the connection of a client without a login (and without a cookie) is its session, which ends with it. Set it to false behind a proxy that sends the calls of several clients by one connection and names itself in no header (forwarded, x-forwarded-for, via)."
    ),
    key!(session.sessions, "Sessions that keep something between calls, in all."),
    key!(session.sessions_per_user, "The same of one user."),
    key!(session.transactions, "Transactions that may be open between calls, in all."),
    key!(session.transactions_per_user, "The same of one user."),
    key!(session.prepared_statements, "Prepared statements that are kept, in all."),
    key!(session.prepared_statements_per_user, "The same of one user."),
    key!(session.parameters_size, "What the values bound to one prepared statement may take in memory."),
    key!(session.parameters_size_per_user, "The same of all statements of one user together."),
    key!(session.parameters_size_in_all, "The same of all users together."),
    key!(limits.queries, "Statements that run at once, each on an engine thread with its own connection."),
    key!(
        limits.queries_per_user,
        "Statements of one user that run at once; further ones wait, and not in front of other users'. A role's queries wins. 0 means no limit of its own."
    ),
    key!(
        limits.queue,
        "Statements that may wait for a free engine thread; those of one user take three quarters of the queue at most."
    ),
    key!(limits.queue_timeout, "How long a statement may wait for a free engine thread."),
    key!(limits.statement_timeout, "How long one statement may run, its stream included; \"0s\" means no limit."),
    key!(
        limits.fatal_errors,
        "Internal errors in DuckDB, each of which interrupts everybody, that the statements of one user may meet within limits.fatal_error_window before the user is refused. 0 means no limit; without auth.enabled nobody is refused."
    ),
    key!(limits.fatal_error_window, "Within which they count."),
    key!(limits.fatal_error_ban, "For how long the user is then refused."),
    key!(limits.max_message_size, "Largest gRPC message received. Larger ones end the call with RESOURCE_EXHAUSTED."),
    key!(
        limits.send_message_size,
        "Record batches are split by rows to stay near this size. Stock clients refuse messages above 4 MiB."
    ),
    key!(
        limits.returning_size,
        "Rows that one INSERT, UPDATE, DELETE or MERGE may answer by RETURNING: they are held until it is committed."
    ),
    key!(limits.sql_length, "Longest SQL text accepted."),
    key!(
        limits.statements_per_text,
        "How many statements one SQL text may hold, where a text may hold several (Flight SQL's statements)."
    ),
    key!(
        limits.sql_depth,
        "How deep SQL may nest: brackets, CASE, and chains of operators, of parts of a name and of CTEs. DuckDB's planner takes seconds for a few hundred."
    ),
    key!(
        limits.sql_joins,
        "How many joins a SQL text may have, commas between relations and set operations included. DuckDB's planner takes a second for 100 and 17 for 200."
    ),
    key!(
        limits.sql_expansion,
        "How many columns the stars of one SELECT, and how many calls the macros of an expression, may stand for. DuckDB's planner takes seconds for some ten thousand and cannot be interrupted."
    ),
    key!(
        limits.decisions_size,
        "Texts that are remembered as allowed, so that the catalog is not asked twice what the same text reaches: those of callers with grants on some tables, and those that call macros. \"0B\" remembers none."
    ),
    key!(
        limits.process_memory,
        "The last line behind database.memory_limit: allocations of the process beyond it fail (RLIMIT_DATA). Empty means 95 % of the container's memory limit, where there is one, beside the engine threads' stacks; \"0B\" means none."
    ),
    key!(
        limits.endpoints,
        "Endpoints in a FlightInfo, 1 to 64: connections that may drain one result together, in no order. The header x-mallard-endpoints of a call wins."
    ),
    key!(limits.shared_results, "Results with several endpoints whose statements may run at once."),
    key!(
        limits.connections,
        "Connections to Flight in all; 0 means no limit but that of open files, by which fewer may be let in. One without a login makes room for a new one, else the new one is refused."
    ),
    key!(
        limits.connections_per_address,
        "The same for one address (IPv6: one /64); 0 means no limit. Behind a proxy all clients have the proxy's."
    ),
    key!(
        limits.unauthenticated_connections,
        "Connections on which no call has passed the login yet; 0 means no limit. The oldest, of the address that has most, makes room."
    ),
    key!(
        limits.unauthenticated_lifetime,
        "How long a connection may stay without such a call, which health checks are not; \"0s\" means no limit."
    ),
    key!(
        limits.handshake_timeout,
        "How long a new connection may take for its TLS handshake, and then until it has begun to speak HTTP/2."
    ),
    key!(
        limits.idle_timeout,
        "How long a connection may stay without an open stream before it is asked to go; \"0s\" means no limit."
    ),
    key!(
        limits.stall_timeout,
        "How long a client may take nothing of a stream, or send nothing of one, before the stream ends in DEADLINE_EXCEEDED; \"0s\" means no limit."
    ),
    key!(limits.streams_per_connection, "Streams that one connection may have open; more wait in the client."),
    key!(
        limits.bytes_in_flight,
        "What the incoming messages of all streams may hold together; more wait, at most limits.queue_timeout. Calls that use gRPC's compression are not counted."
    ),
    key!(
        wire.compression,
        "Arrow IPC compression of record batches sent: none, lz4 or zstd. The header x-mallard-ipc-compression of a call wins. Worth it where the network is slower than the processor."
    ),
    key!(
        wire.standard_path,
        "Whether streams go through arrow-flight's own encoder and tonic's decoder, which copy more. Answers are the same; to compare."
    ),
    key!(wire.stream_window, "HTTP/2 flow control: what a client may send on one stream before it is read."),
    key!(wire.connection_window, "The same for all streams of a connection together."),
    key!(wire.frame_size, "Largest HTTP/2 frame that clients may send; 16KiB to 16MiB less one byte."),
    key!(wire.send_buffer, "What of one stream may wait in HTTP/2 for the socket."),
    key!(wire.nodelay, "TCP_NODELAY: small answers leave at once."),
    key!(
        wire.keepalive_interval,
        "How often a silent connection is asked (HTTP/2 PING) whether its client is still there."
    ),
    key!(wire.keepalive_timeout, "How long the answer to that may take before the connection is closed."),
    key!(log.level, "Log filter: error, warn, info, debug, trace, or directives such as \"info,mallard=debug\"."),
    key!(log.format, "Log format on standard error: text or json."),
    key!(
        traces.exporter,
        "Where spans go: otlp, console (JSON on standard error), none, or auto: otlp where an endpoint is set. OTEL_TRACES_EXPORTER wins."
    ),
    key!(
        traces.endpoint,
        "The OpenTelemetry collector, such as http://collector:4317. OTEL_EXPORTER_OTLP_ENDPOINT wins; the other OTEL_ variables count, too."
    ),
    key!(traces.protocol, "How spans travel: grpc or http/protobuf. OTEL_EXPORTER_OTLP_PROTOCOL wins."),
    key!(
        traces.statement_text,
        "What spans say of a statement beside its kind and tables: redacted (literals are ?), full, or off."
    ),
];

impl Config {
    /// `server.location`, as clients have to write it: with a certificate it is served under TLS.
    pub fn served(&self) -> Location {
        let location = self.server.location.clone();
        if self.tls.certificate.is_some() { location.under_tls() } else { location }
    }

    /// Every key with its reason and this configuration's value; secrets are left out.
    pub fn to_toml(&self) -> String {
        let mut text = String::from(
            "# Mallard's configuration: every key, why it is there, and its default.\n\
             # Sources, later ones win: defaults, `--config FILE`, environment MALLARD__SECTION__KEY, flags.\n\
             # Sizes are text such as \"512MiB\", durations such as \"30s\". Every secret has a twin ending in _file.\n",
        );
        let mut section = "";
        for key in KEYS {
            let (head, field) = key.name.split_once('.').expect("every key is section.field");
            if head != section {
                text.push_str(&format!("\n[{head}]\n"));
                section = head;
            }
            let off = if key.secret { "# " } else { "" };
            text.push_str(&format!("# {}\n{off}{field} = {}\n", key.why, (key.show)(self)));
        }
        text.push_str(
            "\n# Attached databases can be tables by their name, too: MALLARD__DATABASE__ATTACH__LAKE__PATH is lake's path, and\n\
             # path_file is a file that holds it.\n\
             # [database.attach.lake]\n\
             # path = \"/data/lake.duckdb\" # or what the extension of its type takes, such as \"dbname=sales host=db\"\n\
             # read_only = true\n\
             # type = \"ducklake\" # of an extension; left out for DuckDB files\n\
             # options = { data_path = \"/data/lake/\" } # further options of ATTACH\n\
             # directories = [\"/data/lake/\"] # of its own files, which statements then reach\n\
             \n# Users, one table each: password_hash (argon2id, made by `mallard user hash`) or password, or the same\n\
             # from a file with password_hash_file or password_file. There are none by default. In the environment a name\n\
             # in capitals is meant in lower case: MALLARD__AUTH__USERS__ALICE__PASSWORD is alice's.\n\
             # [auth.users.alice]\n\
             # password_hash = \"$argon2id$v=19$m=19456,t=2,p=1$...\"\n\
             # role = \"analyst\"\n\
             # read = [\"hr.names\"] # beside the role's\n\
             \n\
             # Roles beside reader, writer and admin, one table each: one of those, narrowed to tables (patterns of\n\
             # schema.table; without a dot, of the schema main; catalog.schema.table of an attached database) and\n\
             # exchangers. What is left out is not narrowed.\n\
             # [auth.roles.analyst]\n\
             # base = \"writer\"\n\
             # read = [\"sales.*\", \"flights\"]\n\
             # write = [\"scratch.*\"]\n\
             # exchangers = [\"echo\", \"count\"]\n\
             # result_rows = 1000000 # of one statement; more ends it with RESOURCE_EXHAUSTED\n\
             # result_bytes = \"1GiB\"\n\
             # queries = 4 # statements of one user at once\n\
             # operator_memory = \"512MiB\" # of each operator of a statement; what needs more spills\n\
             \n\
             # The role of who has a value in their token's jwt.role_claim; of several, the one that may do most.\n\
             # [jwt.roles]\n\
             # database-readers = \"reader\"\n\
             \n\
             # Users of client certificates whose name is not the user's own: the certificate's name, then the user.\n\
             # [auth.certificates]\n\
             # \"etl.example.com\" = \"alice\"\n",
        );
        text
    }
}

/// A configuration and where each value came from.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    sources: BTreeMap<String, String>,
    /// What is in no table of keys: users and roles, secrets redacted.
    named: BTreeMap<String, String>,
}

impl Loaded {
    /// One line a key: value and source; secrets redacted.
    pub fn show(&self) -> String {
        let mut lines = String::new();
        let mut line = |name: &str, value: &str| {
            let below = || {
                self.sources
                    .iter()
                    .find(|(given, _)| given.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
            };
            let source = self.sources.get(name).or_else(|| below().map(|(_, source)| source));
            let source = source.map_or("default", String::as_str);
            lines.push_str(&format!("{name} = {value}  # {source}\n"));
        };
        for key in KEYS {
            let value = (key.show)(&self.config);
            let redacted = if key.secret && value != "\"\"" { "\"(redacted)\"" } else { &value };
            line(key.name, redacted);
        }
        for (name, value) in &self.named {
            line(name, value);
        }
        lines
    }
}

/// Every mistake found, one a line, each with the source of the value.
#[derive(Debug)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.join("\n"))
    }
}

/// Merges the sources and checks the result. `flags` are keys and their texts.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &[(&str, String)],
) -> Result<Loaded, Mistakes> {
    let mut mistakes = Vec::new();
    let mut figment = Figment::new();
    if let Some(path) = file {
        match std::fs::read_to_string(path) {
            Ok(text) => match text.parse::<toml::Table>() {
                Ok(_) => figment = figment.merge(Toml::file_exact(path)),
                Err(error) => mistakes.push(format!("{}: {}", path.display(), toml_mistake(&text, &error))),
            },
            Err(error) => mistakes.push(format!("{}: {error}", path.display())),
        }
    }
    let environment: Vec<(String, String)> = environment
        .into_iter()
        .filter_map(|(name, value)| {
            let parts: Vec<&str> = name.strip_prefix(ENV_PREFIX)?.split("__").collect();
            // The variable's words are upper case and the keys' lower; a user's name is taken as it is written, unless
            // all of it is upper case, as variables are.
            let key: Vec<String> = parts.iter().map(|part| variable_part(part)).collect();
            Some((key.join("."), value))
        })
        .collect();
    figment = figment.merge(Texts { origin: "environment", values: environment });
    let flags = flags.iter().map(|(key, value)| (key.to_string(), value.clone())).collect();
    figment = figment.merge(Texts { origin: "command line", values: flags });

    let mut leaves = Vec::new();
    match figment.data() {
        Ok(mut profiles) => flatten("", profiles.remove(&Profile::Default).unwrap_or_default(), &mut leaves),
        Err(error) => mistakes.extend(error.into_iter().map(|error| error.to_string())),
    }

    let mut config = Config::default();
    let (mut sources, mut named) = (BTreeMap::new(), BTreeMap::new());
    let given: Vec<String> = leaves.iter().map(|(name, _)| name.clone()).collect();
    for (name, value) in leaves {
        let source = figment.get_metadata(value.tag()).map_or("unknown source".into(), |from| origin(from, &name));
        if let Err(mistake) = set(&mut config, &name, &value, &given) {
            mistakes.push(format!("{name}: {mistake} (from {source})"));
        }
        if !KEYS.iter().any(|key| name.starts_with(key.name)) {
            named.insert(name.clone(), shown(&name, &value));
        }
        sources.insert(name, source);
    }
    check(&config, &sources, &mut mistakes);
    if mistakes.is_empty() { Ok(Loaded { config, sources, named }) } else { Err(Mistakes(mistakes)) }
}

/// A value of a user or a role as TOML, unless it may be a secret.
fn shown(name: &str, value: &Value) -> String {
    if name.contains(".password") {
        return quoted("(redacted)");
    }
    match (value.as_str(), value.as_array()) {
        (Some(text), _) => quoted(text),
        (None, Some(_)) => Vec::<String>::read(value).unwrap_or_default().to_toml(),
        (None, None) => value.to_i128().map_or_else(|| quoted("?"), |number| number.to_string()),
    }
}

fn variable_part(part: &str) -> String {
    if part.chars().any(|c| c.is_lowercase()) { part.to_string() } else { part.to_lowercase() }
}

/// Puts one value into its place. `given` are all names, to notice a secret that is given twice.
fn set(config: &mut Config, name: &str, value: &Value, given: &[String]) -> Result<(), String> {
    if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        return (key.set)(config, value);
    }
    let plain = name.strip_suffix("_file");
    if let Some(key) = KEYS.iter().find(|key| key.secret && Some(key.name) == plain) {
        if given.iter().any(|other| other == key.name) {
            return Err(format!("is given beside {}; give one of them", key.name));
        }
        if key.name == "auth.signing_key" {
            config.auth.signing_key_file = Some(PathBuf::read(value)?);
        }
        return (key.set)(config, &Value::from(read_secret(value)?));
    }
    if let Some((user, field)) = name.strip_prefix("auth.users.").and_then(|rest| rest.rsplit_once('.')) {
        return set_user(config.auth.users.entry(user.to_string()).or_default(), user, field, value);
    }
    if let Some((role, field)) = name.strip_prefix("auth.roles.").and_then(|rest| rest.rsplit_once('.')) {
        return set_role(config.auth.roles.entry(role.to_string()).or_default(), field, value);
    }
    if let Some((catalog, field)) = name.strip_prefix(ATTACH).and_then(|rest| rest.split_once('.')) {
        let attached = &mut config.database.attach;
        let at = attached.iter().position(|one| one.name == catalog).unwrap_or_else(|| {
            attached.push(Attachment { name: catalog.to_string(), ..Attachment::default() });
            attached.len() - 1
        });
        return set_attachment(&mut attached[at], field, value);
    }
    if let Some(claimed) = name.strip_prefix("jwt.roles.") {
        config.jwt.roles.insert(claimed.to_string(), String::read(value)?);
        return Ok(());
    }
    if let Some(certificate) = name.strip_prefix(CERTIFICATES) {
        config.auth.certificates.insert(certificate.to_string(), String::read(value)?);
        return Ok(());
    }
    let nearest = KEYS
        .iter()
        .map(|key| (strsim::damerau_levenshtein(key.name, name), key.name))
        .min()
        .filter(|(distance, _)| *distance <= name.len() / 2);
    Err(match nearest {
        Some((_, nearest)) => format!("unknown key; did you mean {nearest}?"),
        None => "unknown key".into(),
    })
}

fn set_attachment(attachment: &mut Attachment, field: &str, value: &Value) -> Result<(), String> {
    if let Some(option) = field.strip_prefix("options.") {
        attachment.options.insert(option.to_lowercase(), OptionValue::read(value)?);
        return Ok(());
    }
    match field {
        "name" => attachment.name = String::read(value)?,
        "path" => attachment.path = String::read(value)?,
        "path_file" => attachment.path = read_secret(value)?,
        "read_only" => attachment.read_only = bool::read(value)?,
        "type" => attachment.r#type = Option::read(value)?,
        "directories" => attachment.directories = Setting::read(value)?,
        "options" => {
            let wrong = || "must be a table of options".to_string();
            for (name, value) in value.as_dict().ok_or_else(wrong)? {
                attachment.options.insert(name.to_lowercase(), OptionValue::read(value)?);
            }
        }
        _ => {
            return Err(format!(
                "unknown key {field}; an attached database has name, path or path_file, read_only, type, options and directories"
            ));
        }
    }
    Ok(())
}

fn set_user(user: &mut User, name: &str, field: &str, value: &Value) -> Result<(), String> {
    match field {
        "role" => user.role = Some(String::read(value)?),
        "read" => user.read = Setting::read(value)?,
        "write" => user.write = Setting::read(value)?,
        _ => {
            let text = match field.strip_suffix("_file") {
                Some(_) => read_secret(value)?,
                None => String::read(value)?,
            };
            let credential = match field.trim_end_matches("_file") {
                "password" if text.is_empty() => return Err("is empty".into()),
                "password" => Credential::Password(Secret(text)),
                "password_hash" => Credential::Hash(Secret(text)),
                _ => {
                    return Err(
                        "unknown key; a user has password, password_hash, password_file or password_hash_file, \
                                and role, read and write"
                            .into(),
                    );
                }
            };
            if user.credential.replace(credential).is_some() {
                return Err(format!("user {name} has more than one password or hash; give one of them"));
            }
        }
    }
    Ok(())
}

fn set_role(role: &mut RoleSettings, field: &str, value: &Value) -> Result<(), String> {
    match field {
        "base" => role.base = Some(String::read(value)?.parse()?),
        "read" => role.read = Some(Setting::read(value)?),
        "write" => role.write = Some(Setting::read(value)?),
        "exchangers" => role.exchangers = Some(Setting::read(value)?),
        "result_rows" => role.allowance.result_rows = Some(usize::read(value)? as u64),
        "result_bytes" => role.allowance.result_bytes = Some(Setting::read(value)?),
        "queries" => role.allowance.queries = Some(Setting::read(value)?),
        "operator_memory" => role.allowance.operator_memory = Some(Setting::read(value)?),
        _ => {
            return Err(
                "unknown key; a role has base, read, write, exchangers, result_rows, result_bytes, queries and \
                        operator_memory"
                    .into(),
            );
        }
    }
    Ok(())
}

/// What no single key can see.
fn check(config: &Config, sources: &BTreeMap<String, String>, mistakes: &mut Vec<String>) {
    let source = |key: &str| sources.get(key).map_or("default", String::as_str).to_string();
    let auth = &config.auth;
    if auth.enabled && auth.users.is_empty() && auth.users_file.is_none() && config.jwt.issuer.is_none() {
        mistakes.push(format!(
            "auth.enabled: is true but there is no user, so nobody could log in; add auth.users.NAME.password_hash \
             (made by `mallard user hash`), auth.users_file or jwt.issuer (from {})",
            source("auth.enabled")
        ));
    }
    let roles = crate::access::Roles::new(auth);
    for (name, role) in &auth.roles {
        if role.base.is_none() && name.parse::<Role>().is_err() {
            mistakes.push(format!("auth.roles.{name}: has no base; it must be one of reader, writer, admin"));
        }
    }
    let given = auth.users.iter().filter_map(|(user, of)| Some((format!("auth.users.{user}.role"), of.role.as_ref()?)));
    let defaults = [("auth.default_role", &auth.default_role), ("auth.anonymous_role", &auth.anonymous_role)];
    let given = given.chain(defaults.map(|(key, role)| (key.to_string(), role)));
    let given = given.chain(config.jwt.roles.iter().map(|(value, role)| (format!("jwt.roles.{value}"), role)));
    for (key, role) in given.chain(config.jwt.default_role.iter().map(|role| ("jwt.default_role".to_string(), role))) {
        if !roles.exists(role) {
            let known = roles.names().join(", ");
            mistakes.push(format!("{key}: there is no role \"{role}\"; there are {known} (from {})", source(&key)));
        }
    }
    if !config.server.location.is_local() && !auth.enabled && !auth.allow_anonymous {
        mistakes.push(format!(
            "server.location: {} can be reached by others and authentication is off; set auth.enabled = true, or \
             auth.allow_anonymous = true if everyone may do everything (from {})",
            config.server.location,
            source("server.location")
        ));
    }
    check_tls(config, &source, mistakes);
    check_database(&config.database, &source, mistakes);
    for (key, value) in [
        ("database.batch_rows", config.database.batch_rows),
        ("ingest.workers", config.ingest.workers),
        ("exchange.versions", config.exchange.versions),
        ("exchange.max_stages", config.exchange.max_stages),
        ("limits.queries", config.limits.queries),
        ("admin.connections", config.admin.connections),
        ("limits.endpoints", config.limits.endpoints),
        ("limits.streams_per_connection", config.limits.streams_per_connection),
        ("auth.max_logins", config.auth.max_logins),
        ("auth.closed_sessions", config.auth.closed_sessions),
        ("wasm.compiling", config.wasm.compiling),
    ] {
        if value == 0 {
            mistakes.push(format!("{key}: must be at least 1 (from {})", source(key)));
        }
    }
    if config.limits.endpoints > MAX_ENDPOINTS {
        let source = source("limits.endpoints");
        mistakes.push(format!("limits.endpoints: must be at most {MAX_ENDPOINTS} (from {source})"));
    }
    if config.limits.bytes_in_flight.0 < config.limits.max_message_size.0 {
        let source = source("limits.bytes_in_flight");
        mistakes.push(format!("limits.bytes_in_flight: must have room for limits.max_message_size (from {source})"));
    }
    // What HTTP/2 allows (RFC 9113, 6.5.2); what the threads that run modules have, and half of what modules can address.
    for (key, value, range) in [
        ("wire.stream_window", config.wire.stream_window, 65_535..=(1 << 31) - 1),
        ("wire.connection_window", config.wire.connection_window, 65_535..=(1 << 31) - 1),
        ("wire.frame_size", config.wire.frame_size, 16_384..=(1 << 24) - 1),
        ("wire.send_buffer", config.wire.send_buffer, 16_384..=(1 << 31) - 1),
        ("wasm.stack", config.wasm.stack, 16_384..=1 << 20),
        ("wasm.memory", config.wasm.memory, 65_536..=1 << 31),
    ] {
        if !range.contains(&value.0) {
            let (least, most) = (range.start(), range.end());
            mistakes.push(format!("{key}: must be {least} to {most} bytes (from {})", source(key)));
        }
    }
    if config.wasm.call_time.0.is_zero() {
        let source = source("wasm.call_time");
        mistakes.push(format!("wasm.call_time: must be longer than 0s: nothing else ends a module (from {source})"));
    }
    if auth.token_ttl.0.is_zero() {
        mistakes.push(format!("auth.token_ttl: must be longer than 0s (from {})", source("auth.token_ttl")));
    }
    if auth.session_max.0 < auth.token_ttl.0 {
        let source = source("auth.session_max");
        mistakes.push(format!("auth.session_max: must not be shorter than auth.token_ttl (from {source})"));
    }
    if let Some(Err(why)) = auth.signing_key.as_ref().map(check_signing_key) {
        mistakes.push(format!("auth.signing_key: {why} (from {})", source("auth.signing_key")));
    }
    check_jwt(config, &source, mistakes);
}

/// Extensions and attached databases, as far as no file says more.
fn check_database(database: &Database, source: &impl Fn(&str) -> String, mistakes: &mut Vec<String>) {
    let mut mistake = |key: &str, why: String| mistakes.push(format!("{key}: {why} (from {})", source(key)));
    let is_word =
        |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    for extension in &database.extensions {
        let key = "database.extensions";
        if extension.contains(['/', '.']) && !extension.ends_with(EXTENSION_ENDING) {
            mistake(key, format!("\"{extension}\" is the path of no file that ends in {EXTENSION_ENDING}"));
        } else if !extension.contains(['/', '.']) && !is_word(extension) {
            mistake(key, format!("\"{extension}\" is neither the name nor the path of an extension"));
        }
    }
    if let Some(repository) = &database.extension_repository {
        let key = "database.extension_repository";
        if !is_word(repository) && !repository.contains('/') {
            mistake(key, format!("\"{repository}\" is neither core, community, a URL nor a directory"));
        }
        if database.extension_directory.is_none() {
            mistake(key, "needs database.extension_directory, where downloaded extensions are kept".into());
        }
    }
    let served = database.catalog();
    let mut names = vec![("the main database", served.to_ascii_lowercase())];
    for attachment in &database.attach {
        let Attachment { name, path, read_only, r#type, options, .. } = attachment;
        let key = "database.attach";
        let folded = name.to_ascii_lowercase();
        if name.is_empty() || name.contains(['\0', '"']) {
            mistake(key, format!("\"{name}\" is no name of a catalog"));
        } else if RESERVED_CATALOGS.contains(&folded.as_str()) {
            mistake(key, format!("\"{name}\" is a name that DuckDB or the server keeps for itself; choose another"));
        } else if let Some((other, _)) = names.iter().find(|(_, taken)| *taken == folded) {
            mistake(key, format!("\"{name}\" is the name of {other}, too; names differ by more than their case"));
        }
        names.push(("another attached database", folded));
        if path.is_empty() {
            mistake(key, format!("\"{name}\" has no path"));
        }
        if path == ":memory:" && *read_only {
            mistake(key, format!("\"{name}\" is in memory and read_only, so that it stays empty"));
        }
        if attachment.file().is_some_and(|file| Some(file) == database.file()) {
            mistake(key, format!("\"{name}\" is the main database's own file (database.path)"));
        }
        if r#type.as_deref().is_some_and(|of_type| !is_word(of_type)) {
            mistake(key, format!("\"{name}\" has a type that is no word"));
        }
        for option in options.keys() {
            if !is_word(option) {
                mistake(key, format!("\"{name}\" has the option \"{option}\", which is no word"));
            } else if ["type", "read_only", "readonly", "read_write", "readwrite", "access_mode"]
                .contains(&option.as_str())
            {
                mistake(
                    key,
                    format!("\"{name}\" has {option} among its options; write type and read_only beside them"),
                );
            }
        }
    }
}

fn check_jwt(config: &Config, source: &dyn Fn(&str) -> String, mistakes: &mut Vec<String>) {
    let jwt = &config.jwt;
    let mut mistake = |key: &str, why: &str| mistakes.push(format!("{key}: {why} (from {})", source(key)));
    let jwks = jwt.jwks();
    if jwt.issuer.is_none() {
        for (key, given) in [
            ("jwt.audience", jwt.audience.is_some()),
            ("jwt.jwks_file", jwt.jwks_file.is_some()),
            ("jwt.jwks_url", jwt.jwks_url.is_some()),
        ] {
            if given {
                mistake(key, "is given without jwt.issuer");
            }
        }
        return;
    }
    if !config.auth.enabled {
        mistake("jwt.issuer", "is given, but everyone may call while auth.enabled is false");
    }
    if jwt.issuer.as_deref().is_some_and(|issuer| Issuer::RESERVED.contains(&issuer)) {
        mistake("jwt.issuer", "is a word that stands for users of the server's own; use the issuer's URL");
    }
    if jwt.audience.is_none() {
        mistake("jwt.issuer", "needs jwt.audience: else tokens for other services would be good here");
    }
    match jwks {
        Ok(Some(_)) => {}
        Ok(None) => mistake("jwt.issuer", "needs its public keys: jwt.jwks_file or jwt.jwks_url"),
        Err(why) => mistakes.push(format!("{why} (from {})", source("jwt.jwks_url"))),
    }
    let mut mistake = |key: &str, why: &str| mistakes.push(format!("{key}: {why} (from {})", source(key)));
    if jwt.leeway.0 > Duration::from_secs(60) {
        mistake("jwt.leeway", "must be at most 60s");
    }
    if jwt.roles.is_empty() && jwt.default_role.is_none() {
        mistake("jwt.issuer", "gives nobody a role; add [jwt.roles] or jwt.default_role");
    }
}

fn check_signing_key(key: &Secret) -> Result<(), String> {
    if key.reveal().len() < 16 { Err("must be at least 16 bytes long".into()) } else { Ok(()) }
}

/// The signing key in a file, as [`load`] reads it.
pub fn read_signing_key(path: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let key = Secret::new(text.trim_end_matches(['\r', '\n']));
    check_signing_key(&key).map(|()| key)
}

/// The files themselves are read at start.
fn check_tls(config: &Config, source: &impl Fn(&str) -> String, mistakes: &mut Vec<String>) {
    let (tls, auth, location) = (&config.tls, &config.auth, &config.server.location);
    let mut wrong = |key: &str, why: &str| mistakes.push(format!("{key}: {why} (from {})", source(key)));
    match (&tls.certificate, &tls.key) {
        (Some(_), None) => wrong("tls.certificate", "needs tls.key beside it"),
        (None, Some(_)) => wrong("tls.key", "needs tls.certificate beside it"),
        (Some(_), Some(_)) if matches!(location, Location::Unix(_)) => {
            wrong(
                "tls.certificate",
                "server.location is a Unix socket, which carries no TLS; give it a grpc:// location",
            );
        }
        (None, None) if matches!(location, Location::Tls { .. }) => {
            wrong("server.location", "grpc+tls:// needs tls.certificate and tls.key");
        }
        _ => {}
    }
    match (tls.client_auth, &tls.client_ca) {
        (ClientAuth::Off, Some(_)) => {
            wrong("tls.client_ca", "is not used while tls.client_auth is off; set it to optional or required");
        }
        (ClientAuth::Optional | ClientAuth::Required, None) => wrong("tls.client_auth", "needs tls.client_ca"),
        (ClientAuth::Optional | ClientAuth::Required, Some(_)) if tls.certificate.is_none() => {
            wrong("tls.client_auth", "needs tls.certificate and tls.key: without TLS nobody shows a certificate");
        }
        _ => {}
    }
    if auth.enabled && !location.is_local() && tls.certificate.is_none() && !auth.allow_plaintext {
        let why = format!(
            "{location} can be reached by others without TLS, so that passwords and tokens would travel in the clear; set \
             tls.certificate and tls.key, or auth.allow_plaintext = true where the network is trusted"
        );
        wrong("server.location", &why);
    }
    if auth.users_file.is_none() {
        for (certificate, user) in auth.certificates.iter().filter(|(_, user)| !auth.users.contains_key(*user)) {
            wrong(&format!("{CERTIFICATES}{certificate}"), &format!("there is no user \"{user}\""));
        }
    }
    if config.limits.handshake_timeout.0.is_zero() {
        wrong("limits.handshake_timeout", "must be longer than 0s");
    }
}

/// What is wrong in a TOML text and in which line, without the line itself: it may hold a secret.
pub fn toml_mistake(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
    format!("line {line}: {}", error.message())
}

fn read_secret(value: &Value) -> Result<String, String> {
    let path = String::read(value)?;
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_string()),
        Err(error) => Err(format!("cannot read {path}: {error}")),
    }
}

fn flatten(prefix: &str, dict: Dict, leaves: &mut Vec<(String, Value)>) {
    for (name, value) in dict {
        let path = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value {
            Value::Dict(_, inner) => flatten(&path, inner, leaves),
            leaf => leaves.push((path, leaf)),
        }
    }
}

/// Where a value came from, as its user would say it.
fn origin(metadata: &Metadata, name: &str) -> String {
    match metadata.name.as_ref() {
        "environment" => format!("environment {ENV_PREFIX}{}", name.to_uppercase().replace('.', "__")),
        "command line" => "command line".to_string(),
        _ => metadata.source.as_ref().map_or(metadata.name.to_string(), ToString::to_string),
    }
}

/// Values that are texts whatever they look like: an all-digit password stays one.
struct Texts {
    origin: &'static str,
    values: Vec<(String, String)>,
}

impl Provider for Texts {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut root = Dict::new();
        for (key, value) in &self.values {
            let mut dict = &mut root;
            let mut parts: Vec<&str> = key.split('.').collect();
            let last = parts.pop().expect("split yields at least one part");
            for part in parts {
                let entry = dict.entry(part.to_string()).or_insert_with(|| Value::from(Dict::new()));
                let Value::Dict(_, inner) = entry else {
                    return Err(format!("{key}: {part} is a value, not a section").into());
                };
                dict = inner;
            }
            dict.insert(last.to_string(), Value::from(value.as_str()));
        }
        Ok(Profile::Default.collect(root))
    }
}

// === what values look like ===

/// A value as a key reads it from any source and writes it as TOML.
trait Setting: Sized {
    fn read(value: &Value) -> Result<Self, String>;
    fn to_toml(&self) -> String;
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_string()).to_string()
}

impl Setting for String {
    fn read(value: &Value) -> Result<Self, String> {
        value.as_str().map(str::to_string).ok_or_else(|| "must be a text in quotes".to_string())
    }

    fn to_toml(&self) -> String {
        quoted(self)
    }
}

impl Setting for bool {
    fn read(value: &Value) -> Result<Self, String> {
        let text = value.as_str().map(str::to_lowercase);
        match (value.to_bool(), text.as_deref()) {
            (Some(flag), _) => Ok(flag),
            (None, Some("true")) => Ok(true),
            (None, Some("false")) => Ok(false),
            _ => Err("must be true or false".into()),
        }
    }

    fn to_toml(&self) -> String {
        self.to_string()
    }
}

impl Setting for usize {
    fn read(value: &Value) -> Result<Self, String> {
        let number = match value.as_str() {
            Some(text) => text.parse().ok(),
            None => value.to_i128().and_then(|number| usize::try_from(number).ok()),
        };
        number.ok_or_else(|| "must be a whole number from 0".to_string())
    }

    fn to_toml(&self) -> String {
        self.to_string()
    }
}

/// Texts; in the environment one, with commas.
impl Setting for Vec<String> {
    fn read(value: &Value) -> Result<Self, String> {
        if let Some(text) = value.as_str() {
            return Ok(text.split(',').map(|part| part.trim().to_string()).filter(|part| !part.is_empty()).collect());
        }
        let wrong = || "must be a list of texts".to_string();
        value.as_array().ok_or_else(wrong)?.iter().map(|one| String::read(one).map_err(|_| wrong())).collect()
    }

    fn to_toml(&self) -> String {
        format!("[{}]", self.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", "))
    }
}

impl Setting for OptionValue {
    fn read(value: &Value) -> Result<Self, String> {
        match (value.as_str(), value.to_bool(), value.to_i128()) {
            (Some(text), _, _) => Ok(Self::Text(text.to_string())),
            (None, Some(flag), _) => Ok(Self::Flag(flag)),
            (None, None, Some(number)) => Ok(Self::Number(number)),
            _ => Err("the value of an option must be a text, a whole number, true or false".into()),
        }
    }

    fn to_toml(&self) -> String {
        match self {
            Self::Flag(flag) => flag.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => quoted(text),
        }
    }
}

/// A list of tables; in the environment one text of TOML or JSON.
impl Setting for Vec<Attachment> {
    fn read(value: &Value) -> Result<Self, String> {
        let wrong =
            || "must be a list of tables, such as [{ name = \"lake\", path = \"/data/lake.duckdb\" }]".to_string();
        let parsed = match value.as_str() {
            None => value.clone(),
            Some("") => return Ok(Vec::new()),
            Some(text) => match serde_json::from_str::<serde_json::Value>(text) {
                Ok(json) => Value::serialize(json).map_err(|_| wrong())?,
                Err(_) => {
                    let mut table: toml::Table = format!("list = {text}").parse().map_err(|_| wrong())?;
                    Value::serialize(table.remove("list").ok_or_else(wrong)?).map_err(|_| wrong())?
                }
            },
        };
        let mut attached = Vec::new();
        for (number, one) in parsed.as_array().ok_or_else(wrong)?.iter().enumerate() {
            let mut attachment = Attachment::default();
            for (field, value) in one.as_dict().ok_or_else(wrong)? {
                set_attachment(&mut attachment, field, value)
                    .map_err(|why| format!("entry {}: {field}: {why}", number + 1))?;
            }
            attached.push(attachment);
        }
        Ok(attached)
    }

    /// Without what may be a secret.
    fn to_toml(&self) -> String {
        let tables = self.iter().map(|one| {
            let mut fields =
                vec![format!("name = {}", quoted(&one.name)), format!("path = {}", quoted(one.shown_path()))];
            if one.read_only {
                fields.push("read_only = true".into());
            }
            fields.extend(one.r#type.as_ref().map(|of_type| format!("type = {}", quoted(of_type))));
            if !one.options.is_empty() {
                let options = one.options.keys().map(|name| format!("{name} = \"(redacted)\""));
                fields.push(format!("options = {{ {} }}", options.collect::<Vec<_>>().join(", ")));
            }
            if !one.directories.is_empty() {
                fields.push(format!("directories = {}", one.directories.to_toml()));
            }
            format!("{{ {} }}", fields.join(", "))
        });
        format!("[{}]", tables.collect::<Vec<_>>().join(", "))
    }
}

/// An optional value; the empty text means there is none.
impl<T: Setting> Setting for Option<T> {
    fn read(value: &Value) -> Result<Self, String> {
        if value.as_str() == Some("") { Ok(None) } else { T::read(value).map(Some) }
    }

    fn to_toml(&self) -> String {
        self.as_ref().map_or_else(|| quoted(""), Setting::to_toml)
    }
}

impl Setting for PathBuf {
    fn read(value: &Value) -> Result<Self, String> {
        String::read(value).map(PathBuf::from)
    }

    fn to_toml(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

impl Setting for Location {
    fn read(value: &Value) -> Result<Self, String> {
        String::read(value)?.parse()
    }

    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

/// A number of bytes, written as "512MiB".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl Size {
    pub const fn mib(count: u64) -> Self {
        Self(count * 1024 * 1024)
    }

    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut number, mut unit) = (self.0, "B");
        for next in ["KiB", "MiB", "GiB", "TiB"] {
            if number == 0 || number % 1024 != 0 {
                break;
            }
            (number, unit) = (number / 1024, next);
        }
        write!(f, "{number}{unit}")
    }
}

impl Setting for Size {
    fn read(value: &Value) -> Result<Self, String> {
        let text = value.as_str().ok_or("must be a size in quotes, such as \"512MiB\"")?;
        let size: bytesize::ByteSize =
            text.parse().map_err(|_| format!("\"{text}\" is not a size such as \"512MiB\""))?;
        Ok(Self(size.as_u64()))
    }

    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

/// A duration, written as "30s".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    /// `None` where zero means no limit.
    pub fn limit(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_duration(self.0))
    }
}

impl Setting for Span {
    fn read(value: &Value) -> Result<Self, String> {
        let text = value.as_str().ok_or("must be a duration in quotes, such as \"30s\"")?;
        humantime::parse_duration(text).map(Self).map_err(|_| format!("\"{text}\" is not a duration such as \"30s\""))
    }

    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

/// An address to listen on, or none for "off".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl Setting for Listen {
    fn read(value: &Value) -> Result<Self, String> {
        let text = String::read(value)?;
        if text == "off" {
            return Ok(Self(None));
        }
        text.parse().map(|address| Self(Some(address))).map_err(|_| format!("\"{text}\" is neither IP:PORT nor off"))
    }

    fn to_toml(&self) -> String {
        quoted(&self.0.map_or("off".to_string(), |address| address.to_string()))
    }
}

/// A setting that is one of a few words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub enum $name {
            $($(#[$variant_doc])* $variant),+
        }

        impl Setting for $name {
            fn read(value: &Value) -> Result<Self, String> {
                match value.as_str() {
                    $(Some($word) => Ok(Self::$variant),)+
                    _ => Err(format!("must be one of {}", [$($word),+].join(", "))),
                }
            }

            fn to_toml(&self) -> String {
                quoted(self.word())
            }
        }

        impl $name {
            /// As it is written.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::read(&Value::from(text))
            }
        }
    };
}

words!(
    /// IPC compression of record batches.
    Compression {
        #[default]
        None = "none",
        Lz4 = "lz4",
        Zstd = "zstd",
    }
);

words!(
    /// Whether clients show a certificate.
    ClientAuth {
        #[default]
        Off = "off",
        /// Those that do are known by it; the others log in.
        Optional = "optional",
        Required = "required",
    }
);

/// Who gets extension types, which lose nothing, in place of types that every client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LosslessTypes {
    /// Clients that ask for them.
    #[default]
    Auto,
    /// All that do not ask for plain ones.
    On,
    /// Nobody, whatever a call's header asks for.
    Off,
}

impl Setting for LosslessTypes {
    fn read(value: &Value) -> Result<Self, String> {
        let word = value.to_bool().map(|on| on.to_string()).or_else(|| value.as_str().map(str::to_lowercase));
        match word.as_deref() {
            Some("auto") => Ok(Self::Auto),
            Some("on" | "always" | "true") => Ok(Self::On),
            Some("off" | "never" | "false") => Ok(Self::Off),
            _ => Err("must be one of auto, on, off".to_string()),
        }
    }

    fn to_toml(&self) -> String {
        let word = match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        };
        quoted(word)
    }
}

words!(TlsVersion {
    #[default]
    Tls12 = "1.2",
    Tls13 = "1.3",
});

words!(LogFormat {
    #[default]
    Text = "text",
    Json = "json",
});

words!(TraceExporter {
    /// OTLP where an endpoint is set.
    #[default]
    Auto = "auto",
    None = "none",
    Otlp = "otlp",
    Console = "console",
});

words!(TraceProtocol {
    #[default]
    Grpc = "grpc",
    Http = "http/protobuf",
});

words!(StatementText {
    #[default]
    Redacted = "redacted",
    Full = "full",
    Off = "off",
});

/// A text that never shows itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

impl Setting for Secret {
    fn read(value: &Value) -> Result<Self, String> {
        String::read(value).map(Self)
    }

    fn to_toml(&self) -> String {
        quoted(&self.0)
    }
}

/// How a user of the configuration proves who they are.
#[derive(Debug, Clone)]
pub enum Credential {
    Password(Secret),
    Hash(Secret),
}
