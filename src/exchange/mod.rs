//! Exchangers: named functions from a stream to a stream, built in or registered by clients, alone or in chains.
//!
//! An [`Exchanger`] knows how to transform; everything around it is the same for all kinds and lies in front of it:
//! [`chain`] says what a text asks for, [`registry`] who registered what in which version and keeps it, [`watch`] counts
//! what passes, cuts what stalls or floods, and says whose error it was.

mod builtin;
mod chain;
mod definition;
mod registry;
mod sql;
mod statistics;
#[cfg(feature = "wasm")]
mod wasm;
mod watch;

use std::sync::Arc;

use futures::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use chain::{Chain, is_name};
pub use definition::{Definition, Registration};
pub use registry::{Listed, Registry};
pub use watch::within;

use crate::{
    access::Rights,
    error::{Error, Result},
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
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    /// One line.
    pub description: String,
    /// What the input has to be.
    pub input: String,
    /// The rule by which the output's schema follows from the input's.
    pub output: String,
    /// Whether answers flow while input still arrives, with memory that does not grow.
    pub streams: bool,
    /// Its parameters, as the JSON that a descriptor may give.
    pub params: Map<String, Value>,
}

/// The parameters that a use gives.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Arguments(pub Map<String, Value>);

impl Arguments {
    /// As a struct with `deny_unknown_fields`, so that an unknown one is an error that names it.
    pub fn read<T: DeserializeOwned>(self) -> Result<T> {
        serde_json::from_value(Value::Object(self.0)).map_err(|error| Error::invalid(format!("parameters: {error}")))
    }

    /// For exchangers that have none.
    pub fn none(&self) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(unknown) => Err(Error::invalid(format!("parameters: unknown field `{unknown}`; there are none"))),
        }
    }
}
