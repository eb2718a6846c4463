//! The status page: what a person wants to see first. One page of HTML; no scripts, nothing from elsewhere.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use askama::Template;

use crate::{
    engine::RunningStatement,
    location::Location,
    telemetry::{Direction, Metrics},
};

/// Seconds of throughput that the page shows.
const MINUTE: usize = 60;

#[derive(Template)]
#[template(path = "server/status.html")]
pub(super) struct StatusPage {
    pub(super) ready: bool,
    pub(super) checks: Vec<Check>,
    /// How often the database was reopened after a fatal error.
    pub(super) reopened: u64,
    pub(super) version: &'static str,
    pub(super) revision: &'static str,
    pub(super) duckdb: &'static str,
    pub(super) uptime: String,
    pub(super) flows: [Flow; 2],
    pub(super) streams: i64,
    pub(super) connections: i64,
    pub(super) sessions: usize,
    pub(super) statements: Vec<Statement>,
    pub(super) location: String,
    pub(super) auth: bool,
}

/// One condition of readiness.
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) problem: Option<&'static str>,
}

pub(super) struct Flow {
    name: &'static str,
    rate: String,
    total: String,
    points: String,
}

/// Without a login, a statement shows its class, and its text only where the configuration says so.
pub(super) struct Statement {
    class: &'static str,
    text: Option<String>,
    seconds: String,
    rows: u64,
    queued: bool,
}

/// A statement's text is cut where it would hide the others.
const MAX_TEXT: usize = 600;

impl Statement {
    pub(super) fn of(statement: &RunningStatement, show_text: bool) -> Self {
        let text = show_text.then(|| {
            let mut text: String = statement.text.chars().take(MAX_TEXT).collect();
            if text.len() < statement.text.len() {
                text.push('…');
            }
            text
        });
        let seconds = format!("{:.1}", statement.running.as_secs_f64());
        Self { class: statement.class, text, seconds, rows: statement.rows, queued: statement.queued }
    }
}

/// Bytes and rows of each second of the last minute.
#[derive(Default)]
pub(super) struct Throughput(Mutex<VecDeque<[(u64, u64); 2]>>);

const DIRECTIONS: [(Direction, &str); 2] = [(Direction::Sent, "sent"), (Direction::Received, "received")];

impl Throughput {
    /// To be called each second.
    pub(super) fn sample(&self, metrics: &Metrics) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        samples.push_back(DIRECTIONS.map(|(direction, _)| metrics.totals(direction)));
        if samples.len() > MINUTE + 1 {
            samples.pop_front();
        }
    }

    pub(super) fn flows(&self, metrics: &Metrics) -> [Flow; 2] {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::array::from_fn(|index| {
            let (direction, name) = DIRECTIONS[index];
            let totals: Vec<(u64, u64)> = samples.iter().map(|sample| sample[index]).collect();
            let deltas: Vec<u64> = totals.windows(2).map(|pair| pair[1].1.saturating_sub(pair[0].1)).collect();
            let most = deltas.iter().copied().max().unwrap_or(0).max(1);
            let first = MINUTE - deltas.len().min(MINUTE);
            let points: Vec<String> = (deltas.iter().enumerate())
                .map(|(at, bytes)| format!("{},{:.1}", first + at, 19.0 - 18.0 * *bytes as f64 / most as f64))
                .collect();
            let (rows, bytes) = metrics.totals(direction);
            Flow {
                name,
                rate: format!("{}/s", size(deltas.last().copied().unwrap_or(0))),
                total: format!("{} in {rows} rows since start", size(bytes)),
                points: points.join(" "),
            }
        })
    }
}

/// Bytes for people, in powers of ten as network rates are.
fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().si().to_string()
}

/// Where a client reaches the Flight port, as far as the server can know: configured, or the host that this page was
/// asked from and the port that Flight is served on.
pub(super) fn reachable(public: Option<&Location>, served: &Location, asked: Option<&str>) -> String {
    if let Some(public) = public {
        return public.to_string();
    }
    match (served, asked.and_then(host)) {
        (Location::Tcp { port, .. }, Some(host)) => Location::Tcp { host: host.into(), port: *port }.to_string(),
        (Location::Tls { port, .. }, Some(host)) => Location::Tls { host: host.into(), port: *port }.to_string(),
        _ => served.to_string(),
    }
}

/// The host of a Host header, if that is one: it ends up in commands that people copy.
fn host(header: &str) -> Option<&str> {
    let host = match header.strip_prefix('[') {
        Some(rest) => &header[..rest.find(']')? + 2],
        None => header.split(':').next()?,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    (!host.is_empty() && host.chars().all(plain)).then_some(host)
}

pub(super) fn uptime(since: Duration) -> String {
    humantime::format_duration(Duration::from_secs(since.as_secs())).to_string()
}
