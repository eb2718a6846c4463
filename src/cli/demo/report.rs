//! What the demo measured: as a table of text, JSON, Markdown and HTML with charts.

use std::time::SystemTime;

use askama::Template;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;

use crate::{
    cli::progress::{Measured, grouped, short},
    engine::Engine,
    error::{Error, Result},
};

#[derive(Debug, Clone)]
pub(super) struct Report {
    servers: String,
    source: String,
    started: SystemTime,
    checks: Vec<(String, bool)>,
    operations: Vec<Operation>,
    failure: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) name: &'static str,
    pub(super) what: String,
    pub(super) measured: Measured,
    pub(super) verified: bool,
}

impl Operation {
    fn cells(&self) -> Vec<String> {
        let Measured { rows, bytes, seconds } = self.measured;
        let per_second = seconds.max(1e-9);
        vec![
            self.name.to_string(),
            grouped(rows),
            format!("{seconds:.3}"),
            short(rows as f64 / per_second),
            format!("{:.0}", bytes as f64 / 1e6 / per_second),
            format!("{:.1}", bytes as f64 / rows.max(1) as f64),
            if self.verified { "yes" } else { "NO" }.to_string(),
        ]
    }
}

const HEADER: [&str; 7] = ["operation", "rows", "seconds", "rows/s", "MB/s", "bytes/row", "verified"];

impl Report {
    pub(super) fn new(servers: String, source: String) -> Self {
        let started = SystemTime::now();
        Self { servers, source, started, checks: Vec::new(), operations: Vec::new(), failure: None }
    }

    pub(super) fn check(&mut self, what: &str, verified: bool) {
        self.checks.push((what.to_string(), verified));
    }

    pub(super) fn operation(&mut self, operation: Operation) {
        self.operations.push(operation);
    }

    /// The walk did not reach its end.
    pub(super) fn failed(&mut self, error: &Error) {
        self.failure = Some(error.to_string());
    }

    fn started(&self) -> String {
        humantime::format_rfc3339_seconds(self.started).to_string()
    }

    fn verdict(&self) -> String {
        match &self.failure {
            Some(failure) => format!("The walk was broken off: {failure}"),
            None if self.verified() => "Everything was verified.".into(),
            None => "Not everything was verified.".into(),
        }
    }

    /// Whether the walk reached its end and every step was verified.
    pub(super) fn verified(&self) -> bool {
        self.failure.is_none()
            && self.operations.len() == 6
            && self.checks.iter().all(|(_, verified)| *verified)
            && self.operations.iter().all(|operation| operation.verified)
    }

    pub(super) fn text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header(HEADER);
        for operation in &self.operations {
            table.add_row(operation.cells());
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let verdict = match &self.failure {
            Some(_) => "the walk was broken off",
            None if self.verified() => "everything was verified",
            None => "NOT everything was verified",
        };
        format!(
            "{table}\n{verdict}: row counts, and hashes computed by DuckDB on both sides; MB are 10^6 bytes of Arrow data\n"
        )
    }

    pub(super) fn json(&self) -> String {
        let operations: Vec<_> = self
            .operations
            .iter()
            .map(|operation| {
                let Measured { rows, bytes, seconds } = operation.measured;
                let per_second = seconds.max(1e-9);
                json!({
                    "operation": operation.name,
                    "what": operation.what,
                    "rows": rows,
                    "bytes": bytes,
                    "seconds": seconds,
                    "rows_per_second": rows as f64 / per_second,
                    "megabytes_per_second": bytes as f64 / 1e6 / per_second,
                    "bytes_per_row": bytes as f64 / rows.max(1) as f64,
                    "verified": operation.verified,
                })
            })
            .collect();
        let checks: Vec<_> =
            self.checks.iter().map(|(what, verified)| json!({"check": what, "verified": verified})).collect();
        let report = json!({
            "mallard": env!("CARGO_PKG_VERSION"),
            "duckdb": Engine::duckdb_version(),
            "started": self.started(),
            "servers": self.servers,
            "flights": self.source,
            "cores": cores(),
            "checks": checks,
            "operations": operations,
            "verified": self.verified(),
            "failure": self.failure,
        });
        format!("{report:#}\n")
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = format!(
            "# Mallard demo\n\nMallard {}, DuckDB {}, {} cores; {}; flights: {}; started {}.\n\n| {} |\n|---|---:|---:|---:|---:|---:|---|\n",
            env!("CARGO_PKG_VERSION"),
            Engine::duckdb_version(),
            cores(),
            self.servers,
            self.source,
            self.started(),
            HEADER.join(" | ")
        );
        for operation in &self.operations {
            text.push_str(&format!("| {} |\n", operation.cells().join(" | ")));
        }
        text.push('\n');
        for (what, verified) in &self.checks {
            text.push_str(&format!("- {what}: {}\n", if *verified { "verified" } else { "NOT VERIFIED" }));
        }
        text.push_str(&format!("\n{} MB are 10^6 bytes of Arrow data.\n", self.verdict()));
        text
    }

    pub(super) fn html(&self) -> Result<String> {
        let charts = [
            Chart::new("Million rows a second", &self.operations, |Measured { rows, seconds, .. }| {
                *rows as f64 / 1e6 / seconds.max(1e-9)
            }),
            Chart::new(
                "MB a second (10⁶ bytes of Arrow data)",
                &self.operations,
                |Measured { bytes, seconds, .. }| *bytes as f64 / 1e6 / seconds.max(1e-9),
            ),
            Chart::new("Seconds", &self.operations, |measured| measured.seconds),
        ];
        let rows = self.operations.iter().map(|operation| (operation.what.clone(), operation.cells())).collect();
        let page = Page {
            version: env!("CARGO_PKG_VERSION"),
            duckdb: Engine::duckdb_version(),
            cores: cores(),
            servers: &self.servers,
            source: &self.source,
            started: self.started(),
            verified: self.verified(),
            verdict: self.verdict(),
            header: HEADER,
            rows,
            checks: &self.checks,
            charts,
        };
        page.render().map_err(Error::internal)
    }
}

#[derive(Template)]
#[template(path = "cli/demo/report.html")]
struct Page<'a> {
    version: &'static str,
    duckdb: &'static str,
    cores: usize,
    servers: &'a str,
    source: &'a str,
    started: String,
    verified: bool,
    verdict: String,
    header: [&'static str; 7],
    rows: Vec<(String, Vec<String>)>,
    checks: &'a [(String, bool)],
    charts: [Chart; 3],
}

/// Horizontal bars, one an operation, drawn as inline SVG.
struct Chart {
    title: &'static str,
    height: usize,
    bars: Vec<Bar>,
}

struct Bar {
    name: &'static str,
    /// Of the top edge.
    y: usize,
    width: f64,
    shown: String,
}

impl Chart {
    const BAR: usize = 30;
    const WIDEST: f64 = 420.0;

    fn new(title: &'static str, operations: &[Operation], value: impl Fn(&Measured) -> f64) -> Self {
        let values: Vec<f64> = operations.iter().map(|operation| value(&operation.measured)).collect();
        let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let bars = operations.iter().zip(&values).enumerate().map(|(index, (operation, value))| Bar {
            name: operation.name,
            y: index * Self::BAR,
            width: (value / most * Self::WIDEST * 10.0).round() / 10.0,
            shown: if *value < 10.0 { format!("{value:.3}") } else { format!("{value:.1}") },
        });
        Self { title, height: operations.len() * Self::BAR, bars: bars.collect() }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
