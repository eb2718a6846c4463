//! What was measured: medians and spreads as text, JSON, Markdown and HTML.

use std::path::Path;

use serde_json::{Value, json};

use super::measure::{Bench, Rounds, Sample, Small};
use crate::{
    cli::{
        files::io,
        progress::{grouped, short},
        report::{Chart, Page, Row, Table, cores, machine},
    },
    engine::Engine,
    error::Result,
};

const MOVES: [&str; 8] = ["operation", "rows", "seconds", "min..max", "rows/s", "MB/s", "client CPU s", "verified"];
const SMALL: [&str; 9] =
    ["clients", "queries", "queries/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "client CPU s", "verified"];

const NOTE: &str = "Seconds, MB/s (10⁶ bytes of Arrow data, counted once) and CPU seconds are medians of the rounds. Verified: row \
counts and stored tables' hashes in every round, the hash of what reached the client in the warm-up round.";

pub(super) struct Report<'a> {
    pub(super) bench: &'a Bench,
    /// Why it was broken off.
    pub(super) failure: Option<String>,
}

/// Of samples, of which there is at least one.
struct Summary {
    rows: u64,
    bytes: u64,
    median: f64,
    min: f64,
    max: f64,
    cpu_seconds: f64,
    first_batch_seconds: Option<f64>,
}

impl Summary {
    fn of(samples: &[Sample]) -> Option<Self> {
        let last = samples.last()?;
        let seconds = sorted(samples.iter().map(|sample| sample.measured.seconds));
        Some(Self {
            rows: last.measured.rows,
            bytes: last.measured.bytes,
            median: median(&seconds)?,
            min: *seconds.first()?,
            max: *seconds.last()?,
            cpu_seconds: median(&sorted(samples.iter().map(|sample| sample.used.cpu_seconds)))?,
            first_batch_seconds: median(&sorted(samples.iter().filter_map(|sample| sample.first_batch_seconds))),
        })
    }

    fn rows_per_second(&self) -> f64 {
        self.rows as f64 / self.median.max(1e-9)
    }

    fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.median.max(1e-9)
    }
}

impl Report<'_> {
    /// Whether all rounds were run to their end and everything in them was verified.
    pub(super) fn verified(&self) -> bool {
        self.failure.is_none() && self.bench.rounds.iter().all(|rounds| rounds.verified)
    }

    fn verdict(&self) -> String {
        match &self.failure {
            Some(failure) => format!("The benchmark was broken off: {failure}"),
            None if self.verified() => "Everything was verified.".into(),
            None => "Not everything was verified.".into(),
        }
    }

    /// Operations that were measured at least once.
    fn measured(&self) -> impl Iterator<Item = (&Rounds, Summary)> {
        self.bench.rounds.iter().filter_map(|rounds| Some((rounds, Summary::of(&rounds.samples)?)))
    }

    fn servers(&self) -> Vec<String> {
        let plan = &self.bench.plan;
        [Some(&plan.first), plan.second.as_ref()].into_iter().flatten().map(ToString::to_string).collect()
    }

    fn about(&self) -> String {
        let plan = &self.bench.plan;
        let rows = match self.bench.rounds.is_empty() {
            true => String::new(),
            false => format!("; {} rows of {}, {} rounds", grouped(plan.rows), plan.workload.name(), plan.rounds),
        };
        let endpoints = match plan.endpoints {
            1 => String::new(),
            count => format!("; GET and TRANSFER pulled over {count} connections"),
        };
        let servers = self.servers().join(" and ");
        format!("{servers} (DuckDB {}){rows}{endpoints}; client: {}", self.bench.version, machine())
    }

    fn started(&self) -> String {
        humantime::format_rfc3339_seconds(self.bench.started).to_string()
    }

    fn tables(&self) -> Vec<Table> {
        let moves = self.measured().map(|(rounds, summary)| Row {
            what: rounds.operation.name().to_string(),
            cells: vec![
                rounds.operation.name().to_string(),
                grouped(summary.rows),
                format!("{:.3}", summary.median),
                format!("{:.3}..{:.3}", summary.min, summary.max),
                short(summary.rows_per_second()),
                format!("{:.0}", summary.megabytes_per_second()),
                format!("{:.3}", summary.cpu_seconds),
                if rounds.verified { "yes" } else { "NO" }.to_string(),
            ],
        });
        let small = self.bench.small.iter().map(|small| {
            let latencies = &small.latencies;
            let milliseconds = [latencies.p50, latencies.p90, latencies.p99, latencies.max];
            let mut cells = vec![clients(small), grouped(latencies.count), format!("{:.0}", latencies.per_second)];
            cells.extend(milliseconds.map(|value| format!("{value:.3}")));
            // An answer of anything but one row is an error.
            cells.extend([format!("{:.3}", small.used.cpu_seconds), "yes".to_string()]);
            Row { what: format!("one-row queries, {}", clients(small)), cells }
        });
        let tables = [
            Table { header: MOVES.to_vec(), rows: moves.collect() },
            Table { header: SMALL.to_vec(), rows: small.collect() },
        ];
        tables.into_iter().filter(|table| !table.rows.is_empty()).collect()
    }

    pub(super) fn text(&self) -> String {
        let tables: Vec<String> = self.tables().iter().map(Table::text).collect();
        format!("{}\n{}\n{}\n{NOTE}\n", self.about(), tables.join("\n"), self.verdict())
    }

    pub(super) fn json(&self) -> String {
        let plan = &self.bench.plan;
        let operations: Vec<Value> = self.measured().map(|(rounds, summary)| operation(rounds, &summary)).collect();
        let small: Vec<Value> = self.bench.small.iter().map(small).collect();
        let report = json!({
            "mallard": env!("CARGO_PKG_VERSION"),
            "duckdb": Engine::duckdb_version(),
            "started": self.started(),
            "servers": self.servers(),
            "server_duckdb": self.bench.version,
            "cores": cores(),
            "workload": plan.workload,
            "rows": plan.rows,
            "rounds": plan.rounds,
            "endpoints": plan.endpoints,
            "operations": operations,
            "small": small,
            "verified": self.verified(),
            "failure": self.failure,
        });
        format!("{report:#}\n")
    }

    fn markdown(&self) -> String {
        let tables: Vec<String> = self.tables().iter().map(Table::markdown).collect();
        format!(
            "# Mallard bench\n\n{}; started {}.\n\n{}\n{} {NOTE}\n",
            self.about(),
            self.started(),
            tables.join("\n"),
            self.verdict()
        )
    }

    fn html(&self) -> Result<String> {
        let moves = |title, value: fn(&Summary) -> f64| {
            Chart::new(title, self.measured().map(|(rounds, summary)| (rounds.operation.name(), value(&summary))))
        };
        let small = |title, value: fn(&Small) -> f64| {
            Chart::new(title, self.bench.small.iter().map(|small| (clients(small), value(small))))
        };
        let charts = [
            moves("Million rows a second", |summary| summary.rows_per_second() / 1e6),
            moves("MB a second (10⁶ bytes of Arrow data)", Summary::megabytes_per_second),
            moves("Seconds", |summary| summary.median),
            moves("CPU seconds of the client", |summary| summary.cpu_seconds),
            small("One-row queries a second", |small| small.latencies.per_second),
            small("One-row query, p50, milliseconds", |small| small.latencies.p50),
            small("One-row query, p99, milliseconds", |small| small.latencies.p99),
        ];
        let page = Page {
            title: "Mallard bench",
            started: self.started(),
            about: self.about(),
            verified: self.verified(),
            verdict: self.verdict(),
            tables: self.tables(),
            note: NOTE,
            charts: charts.into_iter().filter(|chart| !chart.is_empty()).collect(),
            checks: Vec::new(),
        };
        page.html()
    }

    /// bench.json, bench.md and bench.html; the directory is made where it is missing.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory).map_err(|error| io(directory, &error))?;
        for (name, text) in [("bench.json", self.json()), ("bench.md", self.markdown()), ("bench.html", self.html()?)] {
            let path = directory.join(name);
            std::fs::write(&path, text).map_err(|error| io(&path, &error))?;
        }
        Ok(())
    }
}

fn operation(rounds: &Rounds, summary: &Summary) -> Value {
    let sample = |sample: &Sample| {
        json!({
            "seconds": sample.measured.seconds,
            "first_batch_seconds": sample.first_batch_seconds,
            "client_cpu_seconds": sample.used.cpu_seconds,
            "client_rss_before": sample.used.rss_before,
            "client_rss_peak": sample.used.rss_peak,
        })
    };
    json!({
        "operation": rounds.operation.name(),
        "rows": summary.rows,
        "bytes": summary.bytes,
        "seconds": summary.median,
        "seconds_min": summary.min,
        "seconds_max": summary.max,
        "rows_per_second": summary.rows_per_second(),
        "megabytes_per_second": summary.megabytes_per_second(),
        "first_batch_seconds": summary.first_batch_seconds,
        "client_cpu_seconds": summary.cpu_seconds,
        "verified": rounds.verified,
        "samples": rounds.samples.iter().map(sample).collect::<Vec<_>>(),
    })
}

fn small(small: &Small) -> Value {
    json!({
        "clients": small.clients,
        "seconds": small.latencies.seconds,
        "latencies_ms": small.latencies,
        "client_cpu_seconds": small.used.cpu_seconds,
        "verified": true,
    })
}

fn clients(small: &Small) -> String {
    if small.clients == 1 { "1 client".into() } else { format!("{} clients", small.clients) }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Of sorted values.
fn median(values: &[f64]) -> Option<f64> {
    let upper = *values.get(values.len() / 2)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[values.len() / 2 - 1] + upper) / 2.0 })
}
