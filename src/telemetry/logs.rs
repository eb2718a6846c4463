//! The process's log on standard error: text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::config::{Log, LogFormat};

/// Installs the subscriber. A second call in one process keeps the first.
pub fn init(log: &Log) -> Result<(), String> {
    let filter = filter(log)?;
    let registry = tracing_subscriber::registry().with(filter);
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(colour);
    let installed = match log.format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    // Someone else's subscriber (a test's, an embedding program's) stays.
    let _ = installed;
    Ok(())
}

/// What `log.level` means.
pub fn filter(log: &Log) -> Result<EnvFilter, String> {
    EnvFilter::try_new(&log.level).map_err(|error| format!("log.level \"{}\": {error}", log.level))
}
