//! Progress on standard error: rows/s and MB/s while it runs, only on a terminal.

use std::{
    io::IsTerminal,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::stream::{RecordBatchStream, batch_bytes};

/// Counts what passes and shows it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Meter {
    counts: Arc<Counts>,
    start: Instant,
    bar: ProgressBar,
}

#[derive(Default)]
struct Counts {
    rows: AtomicU64,
    bytes: AtomicU64,
    /// When the first of them passed, from the start.
    first: OnceLock<Duration>,
}

/// What passed, and in which time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
}

impl Meter {
    /// Starts the clock. With an expected number of rows the bar shows how far it is.
    pub(super) fn start(what: &str, expected_rows: Option<u64>) -> Self {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr_with_hz(8),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(expected_rows, target);
        let style = match expected_rows {
            Some(_) => "{prefix:28} [{bar:30}] {human_pos} of {human_len} rows  {msg}",
            None => "{prefix:28} {spinner} {human_pos} rows  {msg}",
        };
        let style = ProgressStyle::with_template(style).expect("the template is valid");
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(what.to_string());
        bar.enable_steady_tick(Duration::from_millis(125));
        Self { counts: Arc::default(), start: Instant::now(), bar }
    }

    /// Starts the clock, and shows nothing.
    pub(super) fn silent() -> Self {
        Self { counts: Arc::default(), start: Instant::now(), bar: ProgressBar::hidden() }
    }

    /// The stream, counted as it passes.
    pub(super) fn watch(&self, stream: RecordBatchStream) -> RecordBatchStream {
        let meter = self.clone();
        stream.inspect(move |batch| meter.add(batch.num_rows() as u64, batch_bytes(batch)))
    }

    pub(super) fn add(&self, rows: u64, bytes: u64) {
        self.counts.first.get_or_init(|| self.start.elapsed());
        self.set(self.counts.rows.load(Ordering::Relaxed) + rows, self.counts.bytes.load(Ordering::Relaxed) + bytes);
    }

    pub(super) fn set(&self, rows: u64, bytes: u64) {
        self.counts.rows.store(rows, Ordering::Relaxed);
        self.counts.bytes.store(bytes, Ordering::Relaxed);
        self.bar.set_position(rows);
        let seconds = self.start.elapsed().as_secs_f64().max(1e-9);
        self.bar.set_message(format!("{}/s  {:.0} MB/s", short(rows as f64 / seconds), bytes as f64 / 1e6 / seconds));
    }

    /// Until the first batch passed.
    pub(super) fn first_batch_seconds(&self) -> Option<f64> {
        self.counts.first.get().map(Duration::as_secs_f64)
    }

    /// Stops the clock and takes the bar away.
    pub(super) fn finish(self) -> Measured {
        let seconds = self.start.elapsed().as_secs_f64();
        self.bar.finish_and_clear();
        let (rows, bytes) = (self.counts.rows.load(Ordering::Relaxed), self.counts.bytes.load(Ordering::Relaxed));
        Measured { rows, bytes, seconds }
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.seconds.max(1e-9);
        write!(
            f,
            "{} rows, {:.1} MB in {:.3} s ({} rows/s, {:.0} MB/s)",
            grouped(self.rows),
            self.bytes as f64 / 1e6,
            self.seconds,
            short(self.rows as f64 / seconds),
            self.bytes as f64 / 1e6 / seconds
        )
    }
}

/// 24000000 as 24,000,000.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number to three digits: 45.3 M.
pub(super) fn short(number: f64) -> String {
    match number {
        n if n >= 1e9 => format!("{:.2} G", n / 1e9),
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n if n >= 1e3 => format!("{:.1} k", n / 1e3),
        n => format!("{n:.0}"),
    }
}
