//! TIMESTAMPTZ as text, and text as TIMESTAMPTZ.

use std::fmt::Write;

use super::{
    calendar::{FIRST, Fields, INFINITY, NEGATIVE_INFINITY, days_of, is_finite, month_length},
    zone::{Clock, DAY, HOUR, MINUTE, SECOND},
};

/// An instant on the clock of the session with its offset, as a cast to VARCHAR shows it.
pub(super) fn format(clock: &mut Clock, instant: i64, text: &mut String) {
    text.clear();
    let written = if instant == INFINITY {
        write!(text, "infinity")
    } else if instant == NEGATIVE_INFINITY {
        write!(text, "-infinity")
    } else {
        write_timestamp(clock.wall(instant), clock.offset(instant) / SECOND, text)
    };
    written.expect("a String takes all that is written to it");
}

fn write_timestamp(wall: i64, offset: i64, text: &mut String) -> std::fmt::Result {
    let fields = Fields::of(wall);
    write!(text, "{:04}-{:02}-{:02}", fields.year_of_era(), fields.month, fields.day)?;
    if fields.era() == 0 {
        text.push_str(" (BC)");
    }
    let time = fields.time;
    write!(text, " {:02}:{:02}:{:02}", time / HOUR, time % HOUR / MINUTE, time % MINUTE / SECOND)?;
    let micros = time % SECOND;
    if micros != 0 {
        write!(text, ".{micros:06}")?;
        text.truncate(text.trim_end_matches('0').len());
    }
    let (sign, seconds) = (if offset < 0 { '-' } else { '+' }, offset.abs());
    write!(text, "{sign}{:02}", seconds / 3600)?;
    match seconds % 3600 / 60 {
        0 => Ok(()),
        minutes => write!(text, ":{minutes:02}"),
    }
}

/// What is read where a text names no instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Misread {
    Format,
    Range,
}

impl Misread {
    pub(super) fn message(self, text: &str) -> String {
        match self {
            Self::Format => format!(
                "invalid timestamp field format: \"{text}\", expected format is (YYYY-MM-DD HH:MM[:SS[.US]][±HH[:MM[:SS]]| ZONE])"
            ),
            Self::Range => format!("timestamp field value out of range: \"{text}\""),
        }
    }
}

/// A timestamp as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written<'a> {
    /// With an offset, or a special value.
    Instant(i64),
    /// On the clock of the session.
    Wall(i64),
    /// On the clock of a zone.
    In(i64, &'a str),
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.as_bytes().get(self.at + ahead).copied()
    }

    fn at_end(&self) -> bool {
        self.at >= self.text.len()
    }

    fn skip_spaces(&mut self) {
        while self.peek(0).is_some_and(is_space) {
            self.at += 1;
        }
    }

    fn digit(&mut self) -> Option<i64> {
        let digit = self.peek(0).filter(u8::is_ascii_digit)?;
        self.at += 1;
        Some(i64::from(digit - b'0'))
    }

    /// One digit or two.
    fn two_digits(&mut self) -> Option<i64> {
        let first = self.digit()?;
        Some(self.digit().map_or(first, |second| first * 10 + second))
    }

    fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek(0) == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    /// A word or its first letters, at least as many as `least`.
    fn special(&mut self, word: &str, least: usize) -> bool {
        let rest = &self.text.as_bytes()[self.at..];
        let same = rest.iter().zip(word.bytes()).take_while(|(one, other)| one.to_ascii_lowercase() == *other).count();
        let known = same == word.len() || same == least;
        if known {
            self.at += same;
        }
        known
    }
}

fn is_space(byte: u8) -> bool {
    byte == b' ' || (9..=13).contains(&byte)
}

fn is_zone(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/_+-".contains(&byte)
}

/// Days since 1970 of a date that may be a special value, which stands for itself.
fn read_date(reader: &mut Reader<'_>) -> Result<Result<i64, i64>, Misread> {
    reader.skip_spaces();
    let negative = reader.take(b'-');
    if !reader.peek(0).ok_or(Misread::Format)?.is_ascii_digit() {
        let special = if reader.special("infinity", 3) {
            if negative { NEGATIVE_INFINITY } else { INFINITY }
        } else if !negative && reader.special("epoch", 5) {
            0
        } else {
            return Err(Misread::Format);
        };
        reader.skip_spaces();
        return if reader.at_end() { Ok(Err(special)) } else { Err(Misread::Format) };
    }
    let mut year = 0;
    while let Some(digit) = reader.digit() {
        if year >= 100_000_000 {
            return Err(Misread::Range);
        }
        year = year * 10 + digit;
    }
    if negative {
        year = -year;
    }
    let separator = reader.peek(0).filter(|byte| b" -/\\".contains(byte)).ok_or(Misread::Format)?;
    reader.at += 1;
    let month = reader.two_digits().ok_or(Misread::Format)?;
    if !reader.take(separator) {
        return Err(Misread::Format);
    }
    let day = reader.two_digits().ok_or(Misread::Format)?;
    let rest = &reader.text.as_bytes()[reader.at..];
    if rest.first().copied().is_some_and(is_space) && rest[1..].len() >= 4 && rest[1..5].eq_ignore_ascii_case(b"(BC)") {
        if negative || year == 0 {
            return Err(Misread::Format);
        }
        year = 1 - year;
        reader.at += 5;
    }
    if reader.peek(0).is_some_and(|byte| byte.is_ascii_digit()) {
        return Err(Misread::Format);
    }
    if !(1..=12).contains(&month) || !(1..=month_length(year, month)).contains(&day) || year.abs() > 6_000_000 {
        return Err(Misread::Range);
    }
    Ok(Ok(days_of(year, month, day)))
}

/// Microseconds of `HH:MM[:SS[.US]]`, which may be 24 hours at most.
fn read_time(reader: &mut Reader<'_>) -> Result<i64, Misread> {
    reader.skip_spaces();
    let mut hours = reader.digit().ok_or(Misread::Format)?;
    for more in 0.. {
        match reader.digit() {
            Some(_) if more == 9 => return Err(Misread::Format),
            Some(digit) => hours = hours * 10 + digit,
            None => break,
        }
    }
    if !reader.take(b':') {
        return Err(Misread::Format);
    }
    let ends = |reader: &Reader<'_>| reader.peek(0).is_none_or(starts_suffix);
    let minutes = if ends(reader) { 0 } else { reader.two_digits().ok_or(Misread::Format)? };
    let mut seconds = 0;
    let mut micros = 0;
    if !ends(reader) {
        if !reader.take(b':') {
            return Err(Misread::Format);
        }
        if !ends(reader) {
            seconds = reader.two_digits().ok_or(Misread::Format)?;
            if reader.take(b'.') {
                let mut unit = SECOND / 10;
                while let Some(digit) = reader.digit() {
                    micros += digit * unit;
                    unit /= 10;
                }
            }
        }
    }
    if minutes >= 60 || seconds >= 60 || !ends(reader) {
        return Err(Misread::Format);
    }
    let time = hours * HOUR + minutes * MINUTE + seconds * SECOND + micros;
    if time > DAY { Err(Misread::Range) } else { Ok(time) }
}

fn starts_suffix(byte: u8) -> bool {
    b"Z+-".contains(&byte) || is_space(byte)
}

/// Seconds of `±HH[[:]MM[:SS]]`; nothing is taken where none is there.
pub(super) fn read_offset(text: &str, at: &mut usize) -> Option<i64> {
    let mut reader = Reader { text, at: *at };
    let sign = match reader.peek(0)? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    reader.at += 1;
    let pair = |reader: &mut Reader<'_>| Some(reader.digit()? * 10 + reader.digit()?);
    let mut seconds = pair(&mut reader)? * 3600;
    let colons = reader.take(b':');
    if reader.peek(0).is_some_and(|byte| byte.is_ascii_digit()) {
        seconds += pair(&mut reader)? * 60;
        if colons && reader.take(b':') {
            seconds += pair(&mut reader)?;
        }
    } else if colons {
        return None;
    }
    *at = reader.at;
    Some(sign * seconds)
}

pub(super) fn read(text: &str) -> Result<Written<'_>, Misread> {
    let mut reader = Reader { text, at: 0 };
    let days = match read_date(&mut reader)? {
        Ok(days) => days,
        Err(special) => return Ok(Written::Instant(special)),
    };
    let checked = |time: i64| {
        let wall = days.checked_mul(DAY).and_then(|wall| wall.checked_add(time));
        wall.filter(|wall| *wall >= FIRST && is_finite(*wall)).ok_or(Misread::Range)
    };
    if reader.at_end() {
        return Ok(Written::Wall(checked(0)?));
    }
    let _ = reader.take(b' ') || reader.take(b'T');
    let wall = checked(read_time(&mut reader)?)?;
    let mut written = Written::Wall(wall);
    if !reader.at_end() {
        if reader.take(b'Z') {
            written = Written::Instant(wall);
        } else if let Some(offset) = read_offset(text, &mut reader.at) {
            written = Written::Instant(wall.checked_sub(offset * SECOND).ok_or(Misread::Range)?);
        } else {
            if !reader.take(b' ') {
                return Err(Misread::Format);
            }
            let start = reader.at;
            while reader.peek(0).is_some_and(is_zone) {
                reader.at += 1;
            }
            if reader.at > start {
                written = Written::In(wall, &text[start..reader.at]);
            }
        }
        reader.skip_spaces();
        if !reader.at_end() {
            return Err(Misread::Format);
        }
    }
    Ok(written)
}
