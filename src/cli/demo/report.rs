//! What the demo measured: as a table of text, JSON, Markdown and HTML with charts.

use std::time::SystemTime;

use serde_json::json;

use crate::{
    cli::{
        progress::{Measured, grouped, short},
        report::{Chart, Page, Row, Table, cores, machine},
    },
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

    fn table(&self) -> Table {
        let rows =
            self.operations.iter().map(|operation| Row { what: operation.what.clone(), cells: operation.cells() });
        Table { header: HEADER.to_vec(), rows: rows.collect() }
    }

    pub(super) fn text(&self) -> String {
        let verdict = match &self.failure {
            Some(_) => "the walk was broken off",
            None if self.verified() => "everything was verified",
            None => "NOT everything was verified",
        };
        format!(
            "{}\n{verdict}: row counts, and hashes computed by DuckDB on both sides; MB are 10^6 bytes of Arrow data\n",
            self.table().text()
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

    /// What the numbers depend on.
    fn about(&self) -> String {
        format!("{}; {}; flights: {}", machine(), self.servers, self.source)
    }

    pub(super) fn markdown(&self) -> String {
        let table = self.table().markdown();
        let mut text = format!("# Mallard demo\n\n{}; started {}.\n\n{table}\n", self.about(), self.started());
        for (what, verified) in &self.checks {
            text.push_str(&format!("- {what}: {}\n", if *verified { "verified" } else { "NOT VERIFIED" }));
        }
        text.push_str(&format!("\n{} MB are 10^6 bytes of Arrow data.\n", self.verdict()));
        text
    }

    pub(super) fn html(&self) -> Result<String> {
        let chart = |title, value: fn(&Measured) -> f64| {
            Chart::new(title, self.operations.iter().map(|operation| (operation.name, value(&operation.measured))))
        };
        let page = Page {
            title: "Mallard demo",
            started: self.started(),
            about: self.about(),
            verified: self.verified(),
            verdict: self.verdict(),
            tables: vec![self.table()],
            note: "Verified: row counts, and hashes computed by DuckDB on both sides. MB are 10⁶ bytes of Arrow data.",
            charts: vec![
                chart("Million rows a second", |measured| measured.rows as f64 / 1e6 / measured.seconds.max(1e-9)),
                chart("MB a second (10⁶ bytes of Arrow data)", |measured| {
                    measured.bytes as f64 / 1e6 / measured.seconds.max(1e-9)
                }),
                chart("Seconds", |measured| measured.seconds),
            ],
            checks: self.checks.clone(),
        };
        page.html()
    }
}
