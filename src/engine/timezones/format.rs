//! `strftime` and `strptime` with zones.

use std::fmt::Write;

use duckdb::{Result, data_chunk::VectorCollection, error::DuckDBError, types::TimestampTzValue, vector::Vector};

use super::{
    calendar::{Fields, INFINITY, days_of, is_finite, iso_week, weekday},
    error,
    scalar::{Registry, Rows, Worker},
    zone::{Clock, HOUR, MINUTE, SECOND},
};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// Sunday first.
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A piece of a format.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// A letter, and whether a minus sign before it asks for no padding.
    Field(char, bool),
}

/// A format as strftime and strptime have it.
#[derive(Debug, Clone)]
pub(super) struct Format(Vec<Piece>);

impl Format {
    pub(super) fn parse(format: &str) -> Result<Self> {
        let failed = |why: String| {
            let message = format!("Failed to parse format specifier {format}: {why}");
            error(DuckDBError::InputInvalid, message)
        };
        if format.is_empty() {
            return Err(failed("Empty format string".into()));
        }
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut letters = format.chars();
        while let Some(letter) = letters.next() {
            if letter != '%' {
                literal.push(letter);
                continue;
            }
            let field = match letters.next() {
                None => return Err(failed("Trailing format character %".into())),
                Some('%') => {
                    literal.push('%');
                    continue;
                }
                Some('-') => match letters.next() {
                    Some(letter) if "dmyHIMSj".contains(letter) => Piece::Field(letter, true),
                    other => {
                        let other = other.map(String::from).unwrap_or_default();
                        return Err(failed(format!("Unrecognized format for strftime/strptime: %-{other}")));
                    }
                },
                // These stand for several.
                Some(letter @ ('c' | 'x' | 'X' | 'T')) => {
                    let parts = match letter {
                        'c' => "%Y-%m-%d %H:%M:%S",
                        'x' => "%Y-%m-%d",
                        _ => "%H:%M:%S",
                    };
                    if !literal.is_empty() {
                        pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                    }
                    pieces.extend(Self::parse(parts)?.0);
                    continue;
                }
                Some(letter) if "aAbBdfgGHIjmMnpSuUVwWyYzZ".contains(letter) => Piece::Field(letter, false),
                Some(letter) => return Err(failed(format!("Unrecognized format for strftime/strptime: %{letter}"))),
            };
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(field);
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self(pieces))
    }

    fn write(&self, clock: &mut Clock, instant: i64, text: &mut String) -> std::fmt::Result {
        if !is_finite(instant) {
            return write!(text, "{}", if instant == INFINITY { "infinity" } else { "-infinity" });
        }
        let fields = Fields::of(clock.wall(instant));
        let time = fields.time;
        let day_of_year = fields.days - days_of(fields.year, 1, 1) + 1;
        let weekday = weekday(fields.days) % 7;
        for piece in &self.0 {
            let (letter, bare) = match piece {
                Piece::Literal(literal) => {
                    text.push_str(literal);
                    continue;
                }
                Piece::Field(letter, bare) => (*letter, *bare),
            };
            let (number, width) = match letter {
                'a' => {
                    text.push_str(&DAYS[weekday as usize][..3]);
                    continue;
                }
                'A' => {
                    text.push_str(DAYS[weekday as usize]);
                    continue;
                }
                'b' => {
                    text.push_str(&MONTHS[fields.month as usize - 1][..3]);
                    continue;
                }
                'B' => {
                    text.push_str(MONTHS[fields.month as usize - 1]);
                    continue;
                }
                'p' => {
                    text.push_str(if time / HOUR >= 12 { "PM" } else { "AM" });
                    continue;
                }
                'Y' | 'G' => {
                    let year = if letter == 'Y' { fields.year } else { iso_week(fields.days).0 };
                    match (0..=9999).contains(&year) {
                        true => write!(text, "{year:04}")?,
                        false => write!(text, "{year}")?,
                    }
                    continue;
                }
                'z' => {
                    let offset = clock.offset(instant) / SECOND;
                    let (sign, seconds) = (if offset < 0 { '-' } else { '+' }, offset.abs());
                    write!(text, "{sign}{:02}", seconds / 3600)?;
                    if seconds % 3600 != 0 {
                        write!(text, ":{:02}", seconds % 3600 / 60)?;
                    }
                    if seconds % 60 != 0 {
                        write!(text, ":{:02}", seconds % 60)?;
                    }
                    continue;
                }
                'Z' => {
                    text.push_str(&clock.zone.name);
                    continue;
                }
                'd' => (fields.day, 2),
                'm' => (fields.month, 2),
                'y' => (fields.year.abs() % 100, 2),
                'H' => (time / HOUR, 2),
                'I' => ((time / HOUR + 11) % 12 + 1, 2),
                'M' => (time % HOUR / MINUTE, 2),
                'S' => (time % MINUTE / SECOND, 2),
                'f' => (time % SECOND, 6),
                'g' => (time % SECOND / 1000, 3),
                'n' => (time % SECOND * 1000, 9),
                'j' => (day_of_year, 3),
                'u' => ((weekday + 6) % 7 + 1, 1),
                'w' => (weekday, 1),
                'U' => ((day_of_year + 6 - weekday) / 7, 2),
                'W' => ((day_of_year + 6 - (weekday + 6) % 7) / 7, 2),
                _ => (iso_week(fields.days).1, 2),
            };
            match bare {
                true => write!(text, "{number}")?,
                false => write!(text, "{number:0width$}")?,
            }
        }
        Ok(())
    }
}

/// `strftime(TIMESTAMPTZ, VARCHAR)`, or with the arguments the other way round.
struct Strftime {
    instant: usize,
    format: usize,
}

impl Rows for Strftime {
    type Output = String;

    fn rows(&self, worker: &mut Worker, inputs: &VectorCollection, mut output: Vector<'_, String>) -> Result<()> {
        let instants = inputs.get_vector_at::<TimestampTzValue>(self.instant)?.reader()?;
        let formats = inputs.get_vector_at::<String>(self.format)?.reader()?;
        let mut writer = output.writer()?;
        let mut parsed: Option<(&str, Format)> = None;
        let mut text = String::new();
        for row in 0..writer.len() {
            let (Some(instant), Some(format)) = (instants.get(row)?, formats.get(row)?) else {
                writer.set(row, None)?;
                continue;
            };
            if parsed.as_ref().is_none_or(|(last, _)| *last != format) {
                parsed = Some((format, Format::parse(format)?));
            }
            text.clear();
            if let Some((_, format)) = &parsed {
                format
                    .write(&mut worker.clock, instant.0, &mut text)
                    .expect("a String takes all that is written to it");
            }
            writer.set(row, Some(&text))?;
        }
        Ok(())
    }
}

pub(super) fn register(registry: &Registry<'_>) -> Result<()> {
    registry.add("strftime", &["TIMESTAMPTZ", "VARCHAR"], "VARCHAR", Strftime { instant: 0, format: 1 })?;
    registry.add("strftime", &["VARCHAR", "TIMESTAMPTZ"], "VARCHAR", Strftime { instant: 1, format: 0 })
}
