//! The files of `src/wire` that read and write messages, and those of `src/engine` that check Arrow data, without the rest of
//! Mallard: DuckDB is not built under a sanitizer.

#![allow(dead_code, unreachable_pub, reason = "the files are whole, and a target uses a part of them")]

#[path = "../../src/error.rs"]
pub mod error;

#[path = "../../src/stream.rs"]
pub mod stream;

pub mod arrays;
pub mod engine;
pub mod importer;
pub mod wire;
