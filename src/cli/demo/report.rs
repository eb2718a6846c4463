//! What the demo measured: as a table of text, JSON and Markdown.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;

use crate::{
    cli::progress::{Measured, grouped, short},
    engine::Engine,
};

#[derive(Debug, Clone)]
pub(super) struct Report {
    servers: String,
    source: String,
    checks: Vec<(String, bool)>,
    operations: Vec<Operation>,
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
        Self { servers, source, checks: Vec::new(), operations: Vec::new() }
    }

    pub(super) fn check(&mut self, what: &str, verified: bool) {
        self.checks.push((what.to_string(), verified));
    }

    pub(super) fn operation(&mut self, operation: Operation) {
        self.operations.push(operation);
    }

    /// Whether the walk reached its end and every step was verified.
    pub(super) fn verified(&self) -> bool {
        self.operations.len() == 6
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
        let verdict = if self.verified() { "everything was verified" } else { "NOT everything was verified" };
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
            "servers": self.servers,
            "flights": self.source,
            "cores": cores(),
            "checks": checks,
            "operations": operations,
            "verified": self.verified(),
        });
        format!("{report:#}\n")
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = format!(
            "# Mallard demo\n\nMallard {}, DuckDB {}, {} cores; {}; flights: {}.\n\n| {} |\n|---|---:|---:|---:|---:|---:|---|\n",
            env!("CARGO_PKG_VERSION"),
            Engine::duckdb_version(),
            cores(),
            self.servers,
            self.source,
            HEADER.join(" | ")
        );
        for operation in &self.operations {
            text.push_str(&format!("| {} |\n", operation.cells().join(" | ")));
        }
        text.push('\n');
        for (what, verified) in &self.checks {
            text.push_str(&format!("- {what}: {}\n", if *verified { "verified" } else { "NOT VERIFIED" }));
        }
        let verdict = if self.verified() { "Everything was verified." } else { "Not everything was verified." };
        text.push_str(&format!("\n{verdict} MB are 10^6 bytes of Arrow data.\n"));
        text
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
