//! DuckDB's error codes as causes.

use duckdb::error::DuckDBError as Code;

use crate::{access::Rights, error::Error, machine};

/// What a caller may read of an error: DuckDB's hints name tables like the one that was asked for, whoever asks.
pub(super) fn discreet(error: Error, rights: &Rights) -> Error {
    if rights.read_all() {
        return error;
    }
    let without_hint =
        |message: String| message.lines().filter(|line| !line.contains("Did you mean")).collect::<Vec<_>>().join("\n");
    match error {
        Error::NotFound(message) => Error::NotFound(without_hint(message)),
        Error::Sql(message) => Error::Sql(without_hint(message)),
        other => other,
    }
}

/// What the operating system says when a file cannot grow: the disk, the quota, or the process's own limit.
const NO_ROOM: [&str; 3] = ["no space left on device", "disk quota exceeded", "file too large"];

/// What DuckDB says of an array whose texts are too long together.
const BATCH_FULL: &str = "maximum total string size for regular string buffers";

/// Paths of the server's own that no message may show.
#[derive(Debug, Clone, Default)]
pub(super) struct Redact(Vec<String>);

impl Redact {
    pub(super) fn new(paths: impl IntoIterator<Item = String>) -> Self {
        let mut paths: Vec<String> = paths.into_iter().filter(|path| path.len() > 1 && path != ":memory:").collect();
        paths.sort_by_key(|path| std::cmp::Reverse(path.len()));
        Self(paths)
    }

    fn clean(&self, message: &str) -> String {
        self.0.iter().fold(message.to_string(), |text, path| text.replace(path, "(server path)"))
    }

    /// The cause behind what DuckDB said. The match names every class of DuckDB's codes that means something to a
    /// client; what is left is a statement that DuckDB did not accept.
    pub(super) fn cause(&self, error: &duckdb::Error) -> Error {
        let message = self.clean(&error.message);
        let lower = message.to_lowercase();
        match error.code {
            Code::RuntimeInterrupt => Error::Cancelled,
            Code::RuntimeFatal => Error::Broken(message),
            // Only with these codes: a client may put the words into an error of its own.
            Code::RuntimeInternal if lower.contains("database has been invalidated") => Error::Broken(message),
            // A block that is not what was written; whoever reads it again gets the same.
            _ if lower.starts_with("corrupt database file") => Error::Corrupt(message),
            // Of a type that the client asks for: INTEGER[3][3].. is as large as the product.
            Code::RuntimeInternal if lower.contains("requested allocation size") => {
                Error::Limit { what: message, key: "database.memory_limit" }
            }
            Code::RuntimeInternal | Code::RuntimeNullPointer | Code::Api => Error::Internal(message),
            // Whatever it was opened for; only with the codes of files and of commits.
            Code::IoReadFailure | Code::IoGeneral | Code::DatabaseTransaction
                if lower.contains("too many open files") =>
            {
                machine::no_descriptors(message)
            }
            // DuckDB names a setting that clients cannot reach. Larger offsets would change the type of every answer's texts.
            _ if message.contains(BATCH_FULL) => Error::Limit {
                what: "one record batch has more than 2 GiB of text or binary in one column: ask for fewer rows in a batch \
                       (the session option batch_rows, such as 64), or for parts of the values (substring)"
                    .into(),
                key: "database.batch_rows",
            },
            Code::DatabaseConstraint => Error::Constraint(message),
            // A full disk fails a commit; the same write does not succeed when repeated.
            Code::DatabaseTransaction if NO_ROOM.iter().any(|words| lower.contains(words)) => Error::Io(message),
            // What is said of every further statement, or of one that has no place there.
            Code::DatabaseTransaction
                if [
                    "current transaction is aborted",
                    "no transaction is active",
                    "within a transaction",
                    "can only write to a single attached database",
                ]
                .iter()
                .any(|words| lower.contains(words)) =>
            {
                Error::State(message)
            }
            Code::DatabaseTransaction => Error::Conflict(message),
            Code::DatabaseCatalog if lower.contains("does not exist") => Error::NotFound(message),
            Code::DatabaseCatalog if lower.contains("already exists") => Error::Exists(message),
            Code::ConfigurationPermission => Error::Denied { rule: "settings", what: message },
            Code::ResourceOutOfMemory => Error::Limit { what: message, key: "database.memory_limit" },
            Code::QueryNotImplemented => Error::Unsupported(message),
            Code::IoReadFailure | Code::IoEof | Code::IoGeneral | Code::IoNetwork | Code::IoHttp => Error::Io(message),
            _ => Error::Sql(message),
        }
    }
}
