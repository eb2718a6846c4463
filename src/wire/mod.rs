//! Record batches as FlightData and back, over arrow-flight's standard encoder and decoder. Knows no DuckDB, no SQL.

mod decode;
mod encode;
mod watched;

pub use decode::{Upload, decode, open};
pub use encode::{encode, schema_bytes};
pub use watched::{count, watch};

/// What SQL statements and exchangers answer is kept as made: an ENUM leaves as a dictionary.
const DICTIONARIES: arrow_flight::encode::DictionaryHandling = arrow_flight::encode::DictionaryHandling::Resend;
