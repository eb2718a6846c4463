//! Logs and metrics. The metrics registry is a value that is handed down, so that one process can hold many servers;
//! only the tracing subscriber is global.

pub mod logs;
mod metrics;

pub use metrics::{Direction, Metrics};
