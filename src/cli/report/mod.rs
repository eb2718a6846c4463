//! What a command measured, as text, Markdown and one page of HTML with charts. It knows tables and bars, and nothing of
//! what they mean.

use askama::Template;
use comfy_table::{CellAlignment, presets};

use crate::{
    engine::Engine,
    error::{Error, Result},
};

/// A table whose first column is text and whose others are numbers.
pub(super) struct Table {
    pub(super) header: Vec<&'static str>,
    pub(super) rows: Vec<Row>,
}

pub(super) struct Row {
    /// Shown where the pointer rests on it.
    pub(super) what: String,
    pub(super) cells: Vec<String>,
}

impl Table {
    pub(super) fn text(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header(&self.header);
        for row in &self.rows {
            table.add_row(&row.cells);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string()
    }

    pub(super) fn markdown(&self) -> String {
        let line = |cells: &[&str]| format!("| {} |\n", cells.join(" | "));
        let mut text = line(&self.header);
        text.push_str(&format!("|---|{}\n", "---:|".repeat(self.header.len() - 1)));
        for row in &self.rows {
            text.push_str(&line(&row.cells.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        text
    }
}

/// One self-contained page.
#[derive(Template)]
#[template(path = "cli/report/page.html")]
pub(super) struct Page {
    pub(super) title: &'static str,
    pub(super) started: String,
    /// Which servers, which rows, and whatever else the numbers depend on.
    pub(super) about: String,
    pub(super) verified: bool,
    pub(super) verdict: String,
    pub(super) tables: Vec<Table>,
    pub(super) note: &'static str,
    pub(super) charts: Vec<Chart>,
    pub(super) checks: Vec<(String, bool)>,
}

impl Page {
    pub(super) fn html(&self) -> Result<String> {
        self.render().map_err(Error::internal)
    }
}

/// Horizontal bars, drawn as inline SVG.
pub(super) struct Chart {
    title: &'static str,
    height: usize,
    bars: Vec<Bar>,
}

struct Bar {
    name: String,
    /// Of the top edge.
    y: usize,
    width: f64,
    shown: String,
}

impl Chart {
    const BAR: usize = 30;
    const WIDEST: f64 = 420.0;

    pub(super) fn new<N: Into<String>>(title: &'static str, values: impl IntoIterator<Item = (N, f64)>) -> Self {
        let values: Vec<(String, f64)> = values.into_iter().map(|(name, value)| (name.into(), value)).collect();
        let most = values.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
        let height = values.len() * Self::BAR;
        let bars = values.into_iter().enumerate().map(|(index, (name, value))| Bar {
            name,
            y: index * Self::BAR,
            width: (value / most * Self::WIDEST * 10.0).round() / 10.0,
            shown: if value < 10.0 { format!("{value:.3}") } else { format!("{value:.1}") },
        });
        Self { title, height, bars: bars.collect() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bars.is_empty()
    }
}

/// The versions and the machine that every report names.
pub(super) fn machine() -> String {
    format!("Mallard {}, DuckDB {}, {} cores", env!("CARGO_PKG_VERSION"), Engine::duckdb_version(), cores())
}

pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
