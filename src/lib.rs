//! Mallard moves data between DuckDB databases over Apache Arrow Flight.
//!
//! One package, one library, one binary. This list is the code map, in reading order; a file uses only layers below its
//! own, or its own folder (`tests/it/tidy.rs` holds that true). `ARCHITECTURE.md` has the invariants.
//!
//! | layer | module | what it is for |
//! |---|---|---|
//! | 0 | [`error`] | errors by cause, and the one table from cause to gRPC code |
//! | 0 | [`location`] | `grpc://`, `grpc+tcp://`, `grpc+tls://`, `grpc+unix://` |
//! | 0 | [`access`] | roles, grants on tables, and what one caller may do |
//! | 0 | [`printable`] | text from outside as a terminal and a log may show it |
//! | 0 | [`clock`] | the wall clock, for what expires |
//! | 0 | [`json`] | JSON whose numbers keep all of their digits |
//! | 0 | [`config`] | keys, defaults, sources, validation |
//! | 1 | [`stream`] | a schema and fallible record batches: the seam between all parts |
//! | 1 | [`machine`] | what the machine or the container lets this process have |
//! | 1 | [`telemetry`] | metrics, traces, logs |
//! | 2 | [`engine`] | the only folder that knows DuckDB |
//! | 2 | [`wire`] | record batches to FlightData and back |
//! | 2 | [`reload`] | files that are read again while the server runs |
//! | 2 | [`auth`] | users, tokens, and the layer that turns a header into an identity |
//! | 3 | [`exchange`] | named functions from a stream to a stream |
//! | 3 | [`session`] | what clients keep between calls: transactions, prepared statements, settings |
//! | 3 | [`client`] | the Flight client of the command line, the demo and transfers |
//! | 4 | [`transfer`] | one server pulls from another |
//! | 5 | [`flight`] | the ten RPCs |
//! | 6 | [`server`] | bind, serve, stop; admin HTTP; health |
//! | 7 | [`cli`] | the commands |

pub mod error;

pub mod location;

pub mod access;

pub mod clock;

pub mod printable;

pub mod json;

pub mod config;

pub mod stream;

pub mod machine;

pub mod telemetry;

pub mod engine;

pub mod wire;

pub mod reload;

pub mod auth;

pub mod exchange;

pub mod session;

pub mod client;

pub mod transfer;

pub mod flight;

pub mod server;

pub mod cli;
