//! Real servers on port 0, real clients, one file per promise.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]
#![expect(clippy::type_complexity, reason = "cases are tables")]

mod admin;
mod arrow_corpus;
mod arrow_ways;
mod attach;
mod audit;
mod auth;
mod backup;
mod bad_input;
mod bench;
mod built_in;
mod cli;
mod compression;
mod config;
mod connections;
mod corruption;
mod crash;
mod descriptors;
mod docs;
mod endpoints;
mod exchange;
mod exchanged_types;
mod exchangers;
mod explicit_end;
mod extension;
mod faults;
mod flight_sql;
mod floods;
mod get;
mod grants;
mod guard;
mod hostile;
mod info;
mod jwt;
mod lifecycle;
mod limits;
mod login_flood;
mod metadata;
mod names;
mod nesting;
#[cfg(feature = "wasm")]
mod parameters;
mod planning;
mod process;
mod put;
mod reload;
mod reopen;
mod roles;
mod running_exchanges;
mod shell;
mod soak;
mod stalls;
mod support;
mod telemetry;
mod threads;
mod tidy;
mod timezones;
mod tls;
mod tokens;
mod traces;
mod transfer;
mod types_asked;
#[cfg(feature = "wasm")]
mod values;
mod wasm;
mod wide;
mod wire;
