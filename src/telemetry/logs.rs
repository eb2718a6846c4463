//! What the process tells of itself beside metrics: its log on standard error, as text or JSON, and its spans.

use std::io::IsTerminal;

use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use super::otlp::{self, Exporting};
use crate::config::{Log, LogFormat, Traces};

/// The log and the traces of a process. Dropping it sends the spans that still wait.
pub struct Telemetry {
    _exporting: Option<Exporting>,
}

impl Telemetry {
    /// Installs the subscriber: `log` on standard error if there is one, spans if configuration or the OTEL_ variables
    /// ask for them. A second call in one process keeps the first's.
    pub fn start(log: Option<&Log>, traces: &Traces) -> Result<Self, String> {
        let (exporting, spans) = otlp::exporting(traces)?.unzip();
        let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = Vec::new();
        if let Some(log) = log {
            let colour =
                std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(colour);
            let lines = match log.format {
                LogFormat::Text => lines.boxed(),
                LogFormat::Json => lines.json().flatten_event(true).boxed(),
            };
            // Spans are for traces; without them nobody has to make any.
            layers.push(lines.with_filter(filter(log)?.and(filter_fn(|metadata| metadata.is_event()))).boxed());
        }
        layers.extend(spans);
        if !layers.is_empty() {
            // Someone else's subscriber (a test's, an embedding program's) stays.
            let _ = tracing_subscriber::registry().with(layers).try_init();
        }
        Ok(Self { _exporting: exporting })
    }
}

/// What `log.level` means.
pub fn filter(log: &Log) -> Result<EnvFilter, String> {
    EnvFilter::try_new(&log.level).map_err(|error| format!("log.level \"{}\": {error}", log.level))
}
