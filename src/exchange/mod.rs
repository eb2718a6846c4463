//! Exchangers: named functions from a stream to a stream, built in or registered by clients, alone or in chains.
//!
//! An [`Exchanger`] knows how to transform; everything around it is the same for all kinds and lies in front of it:
//! [`chain`] says what a text asks for, [`registry`] who registered what in which version and keeps it, [`watch`] counts
//! what passes, cuts what stalls or floods, and says whose error it was.

mod builtin;
mod chain;
mod definition;
mod parameters;
mod registry;
mod sql;
mod statistics;
mod version;
#[cfg(feature = "wasm")]
mod wasm;
mod watch;

use std::{fmt, sync::Arc};

use futures::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use chain::{Chain, is_name};
pub use definition::{BodyError, Definition, Registration};
pub use parameters::Parameters;
pub use registry::Registry;
pub use version::Listed;
pub use watch::within;

use crate::{
    access::Rights,
    error::{Error, Result},
    json::Json,
    stream::RecordBatchStream,
};

/// A named stream -> stream function. The output starts before the input ends unless its nature forbids it, and the
/// memory held does not grow with the stream.
pub trait Exchanger: Send + Sync {
    fn kind(&self) -> Kind;

    /// What listings say of it.
    fn about(&self) -> &About;

    /// Starts the exchange; the output's schema is known when this returns. Dropping the output ends it.
    ///
    /// An error is told as what went wrong ([`Error::invalid`]), with [`Error::at_row`] where the row of the input is
    /// known; where it is not, the first row of the batch that was taken last is named. The name is added outside.
    fn start(&self, input: RecordBatchStream, run: Run) -> BoxFuture<'static, Result<RecordBatchStream>>;
}

/// One use of an exchanger.
#[derive(Debug, Clone)]
pub struct Run {
    pub arguments: Arguments,
    /// Those of the caller.
    pub rights: Arc<Rights>,
    /// Whether types that it gives leave in forms that lose nothing.
    pub lossless: bool,
}

/// What runs an exchanger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    BuiltIn,
    Sql,
    Wasm,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Self::BuiltIn => "builtin",
            Self::Sql => "sql",
            Self::Wasm => "wasm",
        }
    }
}

/// What an exchanger is, for people and for programs that choose one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct About {
    /// One line, where none was given.
    pub description: String,
    /// What the input has to be.
    pub input: String,
    /// The rule by which the output's schema follows from the input's.
    pub output: String,
    /// Whether answers flow while input still arrives, with memory that does not grow.
    pub streams: bool,
    /// Its parameters, as the JSON that a descriptor may give.
    pub params: Map<String, Value>,
    /// The tables that it reads, in dotted parts.
    pub tables: Vec<String>,
}

/// The parameters that a use gives, by name, as they were written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Arguments(pub Vec<(String, Json)>);

impl Arguments {
    /// As a struct with `deny_unknown_fields`, so that an unknown one is an error that names it.
    pub fn read<T: DeserializeOwned>(self) -> Result<T> {
        let given = self.0.iter().map(|(name, value)| (name.clone(), value.value()));
        serde_json::from_value(Value::Object(given.collect()))
            .map_err(|error| Error::invalid(format!("parameters: {error}")))
    }

    /// For exchangers that have none.
    pub fn none(&self) -> Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some((unknown, _)) => Err(Error::invalid(format!("parameters: unknown field `{unknown}`; there are none"))),
        }
    }
}

/// As the JSON object that they are.
impl fmt::Display for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self.0.iter().map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())));
        write!(f, "{{{}}}", members.collect::<Vec<_>>().join(","))
    }
}
