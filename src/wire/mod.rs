//! Record batches as FlightData and back. Knows no DuckDB, no SQL.
//!
//! Two paths decode to equal batches, and a test holds them together. The standard one (`encode`, tonic's codec) is the
//! specification, and serves calls that use gRPC's compression. The other one reads and writes the HTTP/2 bodies itself:
//! out of `frame` come segments that are the columns' own buffers, and `parse` copies what comes in once, into aligned
//! buffers. `outgoing` and `incoming` are their bodies, `budget` is what
//! all that comes in may hold, `end` is how a client says that what it sent is whole, `watched` ends what
//! stands still, and `spool` keeps on disk what an exchange answers before its client reads.

mod beside;
mod budget;
mod decode;
mod encode;
mod end;
mod frame;
mod incoming;
mod outgoing;
mod parse;
mod spool;
mod watched;

pub use budget::Budget;
pub use decode::{Upload, decode, open};
pub use encode::{Sending, encode, schema_bytes};
pub use end::{END_HEADER, EXPLICIT, EndRule};
pub use incoming::{first, messages, request, request_within, response};
pub use outgoing::{answer, respond, single, upload};
pub use spool::Spool;
pub use watched::{Answer, count, watch};

/// The header of a call that asks for IPC compression of the answer: none, lz4 or zstd.
pub const COMPRESSION_HEADER: &str = "x-mallard-ipc-compression";

/// The name of the Flight service in paths.
pub const FLIGHT_SERVICE: &str = "arrow.flight.protocol.FlightService";
