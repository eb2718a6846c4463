//! The ten RPCs of Arrow Flight, one file each where there is something to say.
//!
//! `command` tells what a ticket or descriptor asks for; `service` is the FlightService trait, each method a few
//! lines that hand over to the file of its RPC; `running` and `shared` know what tickets have started; `router` answers
//! those that move record batches without tonic's codec; `sql` is Flight SQL.

mod action;
mod command;
mod exchange;
mod get;
mod handshake;
mod info;
mod put;
mod router;
mod running;
mod service;
mod session;
mod shared;
mod sql;

pub use router::Router;
pub use service::Flight;
