//! What can go wrong, by cause, and the one table from cause to gRPC code.
//!
//! Every part of Mallard returns [`Error`]; no other file chooses a gRPC code. A message is lowercase, names the
//! thing, and never holds a path, a password or a token.

use std::{collections::HashMap, fmt, sync::Arc};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One cause a caller can act on. A new cause has to choose its code in [`Error::code`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The SQL does not parse, bind or convert; the text is DuckDB's own, with the position.
    #[error("{0}")]
    Sql(String),
    /// The request does not fit the contract: descriptor, schema, ticket, action body.
    #[error("{0}")]
    Invalid(String),
    /// The Arrow IPC stream could not be decoded or did not end as it must.
    #[error("{0}")]
    Stream(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Exists(String),
    #[error("{0}")]
    Unauthenticated(String),
    /// The caller's role or grants, or the SQL guard, are against it; the rule is named for those who ask for more.
    #[error("{what} (rule {rule})")]
    Denied { rule: &'static str, what: String },
    /// A configured bound was reached; the message names it and its key.
    #[error("{what}: raise {key} or try again later")]
    Limit { what: String, key: &'static str },
    #[error("statement ran longer than limits.statement_timeout ({0})")]
    Timeout(String),
    /// The client stood still in the middle of a stream.
    #[error("{0}")]
    Stalled(String),
    #[error("cancelled")]
    Cancelled,
    /// Someone who may has ended it.
    #[error("ended by {0}")]
    Killed(String),
    /// A constraint of the table; the same write fails again.
    #[error("{0}")]
    Constraint(String),
    /// Another transaction was in the way; the same write may succeed when repeated.
    #[error("{0}")]
    Conflict(String),
    /// The transaction or the session is in no state for it.
    #[error("{0}")]
    State(String),
    /// A ticket that is good for one use was used already.
    #[error("{0}")]
    Spent(String),
    /// Others have to read a result together with this caller, and one of them did not. All of it may be asked for again.
    #[error("{0}")]
    Abandoned(String),
    #[error("server is draining")]
    Draining,
    #[error("server is starting: the database is not open yet")]
    Starting,
    #[error("{0}")]
    Unsupported(String),
    /// An exchanger failed; the code is its cause's.
    #[error("exchanger \"{name}\": {cause}{}", row.map(|row| format!(" (at row {row} of its input)")).unwrap_or_default())]
    Exchanger {
        name: String,
        /// Counted from 1; the first of the rows that were worked on together.
        row: Option<u64>,
        cause: Arc<Error>,
    },
    /// One of several statements in a text failed; the code is its cause's.
    #[error("statement {number} of {count}, line {line}: {cause}")]
    Statement { number: usize, count: usize, line: usize, cause: Arc<Error> },
    /// What a peer answered; its code is passed on.
    #[error("{peer}: {message}")]
    Remote { peer: String, code: Code, message: String },
    /// The peer could not be reached.
    #[error("{0}")]
    Unreachable(String),
    /// Rows that left and rows that arrived differ.
    #[error("{0}")]
    Unverified(String),
    /// A file of the user's could not be read or written.
    #[error("{0}")]
    Io(String),
    /// Another process has the database.
    #[error("{0}")]
    InUse(String),
    /// Bytes of the database, of its log or of a backup are not what was written.
    #[error("{0}")]
    Corrupt(String),
    /// The statement met an error after which DuckDB has to open the database again, which is under way.
    #[error("fatal error in DuckDB, and the database is being reopened: {0}")]
    Fatal(String),
    /// Another statement met such an error, and this one or what it needs ended with it.
    #[error("{0}")]
    Invalidated(String),
    #[error("the database is being reopened after a fatal error: try again in a few seconds")]
    Reopening,
    /// DuckDB has invalidated the database; nothing works until a restart.
    #[error("database is unusable until the server restarts: {0}")]
    Broken(String),
    /// A defect of ours.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    pub fn invalid(message: impl fmt::Display) -> Self {
        Self::Invalid(message.to_string())
    }

    pub fn internal(message: impl fmt::Display) -> Self {
        Self::Internal(message.to_string())
    }

    /// The cause inside an exchanger, whose name is added where that is known; `row` counts from 1.
    pub fn at_row(self, row: u64) -> Self {
        Self::Exchanger { name: String::new(), row: Some(row), cause: Arc::new(self) }
    }

    /// The error of one statement of a text that holds several, all counted from 1; `line` is where it begins, and the
    /// lines that DuckDB names become those of the text.
    pub fn of_statement(self, number: usize, count: usize, line: usize) -> Self {
        let down = |message: String| moved_down(message, line - 1);
        let cause = match self {
            // Logged where they are answered.
            Self::Internal(_) | Self::Fatal(_) | Self::Broken(_) => return self,
            Self::Sql(message) => Self::Sql(down(message)),
            Self::NotFound(message) => Self::NotFound(down(message)),
            Self::Exists(message) => Self::Exists(down(message)),
            Self::Constraint(message) => Self::Constraint(down(message)),
            Self::Conflict(message) => Self::Conflict(down(message)),
            Self::State(message) => Self::State(down(message)),
            Self::Unsupported(message) => Self::Unsupported(down(message)),
            Self::Remote { peer, code, message } => Self::Remote { peer, code, message: down(message) },
            other => other,
        };
        Self::Statement { number, count, line, cause: Arc::new(cause) }
    }

    /// `how` is sent or taken.
    pub fn stalled(how: &str, limit: impl fmt::Display) -> Self {
        Self::Stalled(format!("the client has {how} nothing for limits.stall_timeout ({limit})"))
    }

    /// The table from cause to code. There is no catch-all arm: a new cause must choose.
    pub fn code(&self) -> Code {
        match self {
            Self::Sql(_) | Self::Invalid(_) | Self::Stream(_) => Code::InvalidArgument,
            Self::NotFound(_) => Code::NotFound,
            Self::Exists(_) => Code::AlreadyExists,
            Self::Unauthenticated(_) => Code::Unauthenticated,
            Self::Denied { .. } => Code::PermissionDenied,
            Self::Limit { .. } => Code::ResourceExhausted,
            Self::Timeout(_) | Self::Stalled(_) => Code::DeadlineExceeded,
            Self::Cancelled | Self::Killed(_) => Code::Cancelled,
            Self::Constraint(_) | Self::Spent(_) | Self::State(_) => Code::FailedPrecondition,
            Self::Conflict(_) | Self::Unverified(_) | Self::Abandoned(_) | Self::Invalidated(_) => Code::Aborted,
            Self::Draining | Self::Starting | Self::Reopening | Self::Unreachable(_) => Code::Unavailable,
            Self::Unsupported(_) => Code::Unimplemented,
            Self::Exchanger { cause, .. } | Self::Statement { cause, .. } => cause.code(),
            Self::Remote { code, .. } => *code,
            Self::Io(_) | Self::InUse(_) => Code::FailedPrecondition,
            Self::Corrupt(_) => Code::DataLoss,
            Self::Fatal(_) | Self::Broken(_) | Self::Internal(_) => Code::Internal,
        }
    }

    /// The cause in a word, for programs: the reason of the ErrorInfo in a status's details.
    fn reason(&self) -> &'static str {
        match self {
            Self::Sql(_) => "SQL",
            Self::Invalid(_) => "INVALID",
            Self::Stream(_) => "STREAM",
            Self::NotFound(_) => "NOT_FOUND",
            Self::Exists(_) => "EXISTS",
            Self::Unauthenticated(_) => "UNAUTHENTICATED",
            Self::Denied { .. } => "DENIED",
            Self::Limit { .. } => "LIMIT",
            Self::Timeout(_) => "TIMEOUT",
            Self::Stalled(_) => "STALLED",
            Self::Cancelled => "CANCELLED",
            Self::Killed(_) => "KILLED",
            Self::Constraint(_) => "CONSTRAINT",
            Self::Conflict(_) => "CONFLICT",
            Self::State(_) => "STATE",
            Self::Spent(_) => "SPENT",
            Self::Abandoned(_) => "ABANDONED",
            Self::Draining => "DRAINING",
            Self::Starting => "STARTING",
            Self::Unsupported(_) => "UNSUPPORTED",
            Self::Exchanger { cause, .. } | Self::Statement { cause, .. } => cause.reason(),
            Self::Remote { .. } => "REMOTE",
            Self::Unreachable(_) => "UNREACHABLE",
            Self::Unverified(_) => "UNVERIFIED",
            Self::Io(_) => "IO",
            Self::InUse(_) => "IN_USE",
            Self::Corrupt(_) => "CORRUPT",
            Self::Fatal(_) => "FATAL",
            Self::Invalidated(_) => "INVALIDATED",
            Self::Reopening => "REOPENING",
            Self::Broken(_) => "BROKEN",
            Self::Internal(_) => "INTERNAL",
        }
    }

    /// What programs may want to know beside: DuckDB's class and the position of a mistake, the key of a limit, the rule
    /// that was against it.
    fn facts(&self) -> HashMap<String, String> {
        let mut facts = HashMap::new();
        match self {
            Self::Exchanger { name, row, cause } => {
                facts = cause.facts();
                facts.insert("exchanger".into(), name.clone());
                facts.extend(row.map(|row| ("row".to_string(), row.to_string())));
            }
            Self::Statement { number, cause, .. } => {
                facts = cause.facts();
                facts.insert("statement".into(), number.to_string());
            }
            Self::Limit { key, .. } => drop(facts.insert("key".into(), key.to_string())),
            Self::Denied { rule, .. } => drop(facts.insert("rule".into(), rule.to_string())),
            Self::Sql(message)
            | Self::NotFound(message)
            | Self::Exists(message)
            | Self::Constraint(message)
            | Self::Conflict(message)
            | Self::State(message)
            | Self::Unsupported(message) => {
                let class = message.split_once(" Error: ").map(|(class, _)| class);
                // "Binder Error: ..", and nothing that only looks like it.
                let class = class.filter(|class| !class.is_empty() && class.split(' ').count() <= 3);
                facts.extend(class.map(|class| ("class".to_string(), class.to_string())));
                if let Some((line, column)) = position(message) {
                    facts.insert("line".into(), line.to_string());
                    facts.extend(column.map(|column| ("column".to_string(), column.to_string())));
                }
            }
            _ => {}
        }
        facts
    }

    /// The answer a client gets. Internal causes are logged here, once, and answered with the id of the log line.
    pub fn into_status(self) -> Status {
        let code = self.code();
        let message = match &self {
            Self::Internal(cause) => {
                let id = incident_id();
                tracing::error!(incident = %id, %cause, "internal error");
                format!("internal error, incident {id} in the server's log")
            }
            Self::Fatal(cause) => {
                let id = incident_id();
                tracing::error!(incident = %id, %cause, "fatal error in DuckDB; the database is being reopened");
                format!(
                    "the statement met a fatal error in DuckDB, incident {id} in the server's log; the database is being \
                     reopened, and users whose statements do so again are refused (limits.fatal_errors)"
                )
            }
            Self::Broken(cause) => {
                let id = incident_id();
                tracing::error!(incident = %id, %cause, "database is unusable");
                format!("database is unusable until the server restarts, incident {id} in the server's log")
            }
            other => other.to_string(),
        };
        let message = fitting(message);
        if message.len() > MAX_DETAILED {
            return Status::new(code, message);
        }
        let details = ErrorDetails::with_error_info(self.reason(), "mallard", self.facts());
        Status::with_error_details(code, message, details)
    }

    /// A status that carries its error, for whoever reads the stream within this process.
    pub fn carried(self) -> Status {
        let mut status = self.clone().into_status();
        status.set_source(Arc::new(self));
        status
    }

    /// The error that a status carries.
    pub fn carried_by(status: &Status) -> Option<Self> {
        std::error::Error::source(status)?.downcast_ref().cloned()
    }

    /// What a peer answered, as an error of ours.
    pub fn from_status(peer: &str, status: &Status) -> Self {
        match status.code() {
            Code::Unauthenticated => Self::Unauthenticated(format!("{peer}: {}", status.message())),
            Code::Cancelled if std::error::Error::source(status).is_none() => Self::Cancelled,
            code => {
                // Not the peer's word: tonic's for a connection that broke.
                let broke =
                    matches!(code, Code::Unknown | Code::Cancelled) && std::error::Error::source(status).is_some();
                let code = if broke { Code::Unavailable } else { code };
                Self::Remote { peer: peer.to_string(), code, message: remote_message(status) }
            }
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        error.into_status()
    }
}

/// Longer messages travel without details, which repeat them.
const MAX_DETAILED: usize = 2048;

/// Line and column, from 1, of what DuckDB points at: `LINE 1: SELECT x`, and a caret below. A line that DuckDB has cut
/// has no column.
fn position(message: &str) -> Option<(usize, Option<usize>)> {
    let mut lines = message.lines().skip_while(|line| !line.starts_with("LINE "));
    let (pointed, below) = (lines.next()?, lines.next());
    let (number, text) = pointed.strip_prefix("LINE ")?.split_once(": ")?;
    let column = below
        .filter(|_| !text.starts_with("..."))
        .and_then(|below| below.find('^')?.checked_sub(pointed.len() - text.len()));
    Some((number.parse().ok()?, column.map(|column| column + 1)))
}

/// The message with the line that DuckDB points at counted from so many lines further up, and its caret where it was.
fn moved_down(message: String, lines: usize) -> String {
    let at = if message.starts_with("LINE ") { Some(0) } else { message.find("\nLINE ").map(|at| at + 1) };
    let Some((at, number)) = at.and_then(|at| {
        let (number, _) = message.get(at + "LINE ".len()..)?.split_once(": ")?;
        Some((at + "LINE ".len(), number.to_string()))
    }) else {
        return message;
    };
    let Ok(counted) = number.parse::<usize>() else { return message };
    let counted = (counted + lines).to_string();
    let wider = " ".repeat(counted.len().saturating_sub(number.len()));
    let (before, after) = (&message[..at], &message[at + number.len()..]);
    match after.split_once('\n') {
        Some((pointed, below)) => format!("{before}{counted}{pointed}\n{wider}{below}"),
        None => format!("{before}{counted}{after}"),
    }
}

/// A message travels in a header, percent-encoded, and clients take some 8 KiB of headers in all.
const MAX_ENCODED: usize = 4096;

fn fitting(mut message: String) -> String {
    let mut encoded = 0;
    let end = message.char_indices().find_map(|(at, character)| {
        encoded += if matches!(character, ' '..='~') { 1 } else { 3 * character.len_utf8() };
        (encoded > MAX_ENCODED).then_some(at)
    });
    if let Some(end) = end {
        message.truncate(end);
        message.push_str(" ..");
    }
    message
}

/// A status whose message is empty or only tonic's word for a broken connection, made readable.
fn remote_message(status: &Status) -> String {
    let mut message = status.message().to_string();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    if message.is_empty() { format!("{:?}", status.code()) } else { message }
}

fn incident_id() -> String {
    let mut bytes = [0_u8; 6];
    getrandom::fill(&mut bytes).expect("the operating system hands out random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
