//! Logs, traces and metrics. The metrics registry is a value that is handed down, so that one process can hold many
//! servers; the tracing subscriber, and with it the propagator of trace contexts, is the process's.

mod audit;
mod call;
pub mod logs;
mod method;
mod metrics;
mod otlp;
mod spans;

pub use audit::{Access, Audit, Event, outcome};
pub use call::{Call, Calls};
pub use logs::Telemetry;
pub use method::Method;
pub use metrics::{Direction, Metrics, Storage, Underway};
pub use spans::{ClientSpan, StatementSpan};

/// The commit that was built, where the build was told.
pub const REVISION: &str = match option_env!("MALLARD_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// The version of the arrow crates, which say it nowhere; a test holds it to Cargo.lock.
pub const ARROW_VERSION: &str = "60.1.0";
