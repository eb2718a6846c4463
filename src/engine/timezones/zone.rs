//! Time zones by name, and the offset that one has at an instant or at a wall time.
//!
//! Instants are microseconds since 1970 in UTC, wall times microseconds since 1970 on the clock of the zone. jiff knows the
//! years -9999 to 9999. DuckDB goes further: after the year 2500 the rules are those of the same year of an earlier cycle of
//! 400 years, after which the Gregorian calendar repeats, and before the first year the first offset stands.

use std::sync::{Arc, OnceLock};

use duckdb::{Error, Result, connection::Context, error::DuckDBError};
use jiff::{
    Timestamp,
    tz::{TimeZone, TimeZoneDatabase},
};

use super::{SETTING, error};

pub(super) const SECOND: i64 = 1_000_000;
pub(super) const MINUTE: i64 = 60 * SECOND;
pub(super) const HOUR: i64 = 60 * MINUTE;
pub(super) const DAY: i64 = 24 * HOUR;

/// Seconds in 400 years.
const CYCLE: i64 = 146_097 * 86_400;
/// 2500-01-01, after which no zone has a change of its own.
const CYCLIC: i64 = 16_725_225_600;

/// Names that ICU has and the time zone database has not.
const ALIASES: [(&str, &str); 41] = [
    ("ACT", "Australia/Darwin"),
    ("AET", "Australia/Sydney"),
    ("AGT", "America/Argentina/Buenos_Aires"),
    ("ART", "Africa/Cairo"),
    ("AST", "America/Anchorage"),
    ("BET", "America/Sao_Paulo"),
    ("BST", "Asia/Dhaka"),
    ("CAT", "Africa/Maputo"),
    ("CNT", "America/St_Johns"),
    ("CST", "America/Chicago"),
    ("CTT", "Asia/Shanghai"),
    ("EAT", "Africa/Nairobi"),
    ("ECT", "Europe/Paris"),
    ("IET", "America/Indiana/Indianapolis"),
    ("IST", "Asia/Kolkata"),
    ("JST", "Asia/Tokyo"),
    ("MIT", "Pacific/Apia"),
    ("NET", "Asia/Yerevan"),
    ("NST", "Pacific/Auckland"),
    ("PLT", "Asia/Karachi"),
    ("PNT", "America/Phoenix"),
    ("PRT", "America/Puerto_Rico"),
    ("PST", "America/Los_Angeles"),
    ("SST", "Pacific/Guadalcanal"),
    ("VST", "Asia/Ho_Chi_Minh"),
    ("SystemV/AST4", "Etc/GMT+4"),
    ("SystemV/AST4ADT", "America/Halifax"),
    ("SystemV/CST6", "Etc/GMT+6"),
    ("SystemV/CST6CDT", "America/Chicago"),
    ("SystemV/EST5", "Etc/GMT+5"),
    ("SystemV/EST5EDT", "America/New_York"),
    ("SystemV/HST10", "Etc/GMT+10"),
    ("SystemV/MST7", "Etc/GMT+7"),
    ("SystemV/MST7MDT", "America/Denver"),
    ("SystemV/PST8", "Etc/GMT+8"),
    ("SystemV/PST8PDT", "America/Los_Angeles"),
    ("SystemV/YST9", "Etc/GMT+9"),
    ("SystemV/YST9YDT", "America/Anchorage"),
    ("EST", "Etc/GMT+5"),
    ("MST", "Etc/GMT+7"),
    ("HST", "Etc/GMT+10"),
];

/// The zones that are known.
pub(super) struct Zones {
    database: TimeZoneDatabase,
    names: OnceLock<Vec<String>>,
}

impl Zones {
    pub(super) fn bundled() -> Self {
        Self { database: TimeZoneDatabase::bundled(), names: OnceLock::new() }
    }

    /// All names but those of fixed offsets, in order.
    pub(super) fn names(&self) -> &[String] {
        self.names.get_or_init(|| {
            let mut names: Vec<String> = self.database.available().map(|name| name.to_string()).collect();
            names.extend(ALIASES.iter().map(|(name, _)| name.to_string()));
            names.sort();
            names.dedup();
            names
        })
    }

    /// A zone by its name, whose case does not matter, or by an offset: `GMT+3`, `UTC-03:30`.
    pub(super) fn find(&self, name: &str) -> Result<Zone> {
        self.get(name).ok_or_else(|| {
            let message = format!("Unknown TimeZone '{name}'!");
            // DuckDB's extension says that it is not implemented; it is the caller's mistake.
            error(DuckDBError::InputInvalid, message + &candidates("Candidate time zones", self.names(), name))
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<Zone> {
        let alias = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name));
        if let Some((alias, of)) = alias {
            return Some(Zone { name: alias.to_string(), rules: Rules::Named(self.database.get(of).ok()?) });
        }
        if let Some(offset) = fixed(name) {
            return Some(Zone { name: name.to_string(), rules: Rules::Fixed(offset) });
        }
        let zone = self.database.get(name).ok()?;
        let name = zone.iana_name().unwrap_or(name).to_string();
        Some(Zone { name, rules: Rules::Named(zone) })
    }

    /// The zone of the session that `context` belongs to.
    pub(super) fn of_session(&self, context: &Context) -> Result<Clock> {
        let set = context.config()?.try_get_value(SETTING)?;
        let name = set.map(|(value, _)| value.get::<String>()).transpose()?.flatten();
        Ok(Clock::new(self.find(name.as_deref().unwrap_or("UTC"))?))
    }
}

/// Seconds east of UTC: `GMT` or `UTC`, a sign, and hours, minutes and seconds with colons or without.
fn fixed(name: &str) -> Option<i32> {
    let prefix = name.get(..3)?;
    if !["GMT", "UTC"].iter().any(|known| prefix.eq_ignore_ascii_case(known)) {
        return None;
    }
    let (sign, digits) = match name.as_bytes().get(3)? {
        b'+' => (1, &name[4..]),
        b'-' => (-1, &name[4..]),
        _ => return None,
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b':') {
        return None;
    }
    let parts: Vec<&str> = if digits.contains(':') {
        digits.split(':').collect()
    } else {
        let hours = if digits.len() % 2 == 1 { 1 } else { 2 };
        match digits.len() {
            1 | 2 => vec![digits],
            3 | 4 => vec![&digits[..hours], &digits[hours..]],
            5 | 6 => vec![&digits[..hours], &digits[hours..hours + 2], &digits[hours + 2..]],
            _ => return None,
        }
    };
    let well_formed = parts.len() <= 3
        && parts.iter().enumerate().all(|(at, part)| match at {
            0 => (1..=2).contains(&part.len()),
            _ => part.len() == 2,
        });
    if !well_formed {
        return None;
    }
    let number = |at: usize| parts.get(at).map_or(Some(0), |part| part.parse::<i32>().ok());
    let (hours, minutes, seconds) = (number(0)?, number(1)?, number(2)?);
    (hours <= 23 && minutes <= 59 && seconds <= 59).then_some(sign * (hours * 3600 + minutes * 60 + seconds))
}

/// What may have been meant, for an error about a name.
pub(super) fn candidates(title: &str, names: &[String], name: &str) -> String {
    let name = name.to_lowercase();
    let score = |other: &String| strsim::jaro_winkler(&other.to_lowercase(), &name);
    let mut close: Vec<(f64, &String)> = names.iter().map(|other| (score(other), other)).collect();
    close.sort_by(|one, other| other.0.total_cmp(&one.0));
    let close: Vec<String> = close
        .iter()
        .enumerate()
        .take_while(|(at, (score, _))| *at == 0 || (*at < 5 && *score >= 0.5))
        .map(|(_, (_, name))| format!("\"{name}\""))
        .collect();
    format!("\n\n{title}: {}", close.join(", "))
}

/// One zone.
#[derive(Debug, Clone)]
pub(super) struct Zone {
    pub(super) name: String,
    rules: Rules,
}

#[derive(Debug, Clone)]
enum Rules {
    Fixed(i32),
    Named(TimeZone),
}

/// A stretch of time in which the offset does not change.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: i64,
    until: i64,
    offset: i64,
    daylight: bool,
}

impl Zone {
    fn span(&self, instant: i64) -> Span {
        let zone = match &self.rules {
            Rules::Fixed(seconds) => {
                return Span { from: i64::MIN, until: i64::MAX, offset: i64::from(*seconds) * SECOND, daylight: false };
            }
            Rules::Named(zone) => zone,
        };
        let second = instant.div_euclid(SECOND);
        let first = Timestamp::MIN.as_second() + 1;
        let inner = match second {
            early if early < first => first,
            late if late >= CYCLIC => CYCLIC - CYCLE + (late - CYCLIC).rem_euclid(CYCLE),
            second => second,
        };
        let shift = if second < first { 0 } else { second - inner };
        let at = Timestamp::from_second(inner).unwrap_or(Timestamp::UNIX_EPOCH);
        let info = zone.to_offset_info(at);
        let next = Timestamp::from_second(inner + 1).unwrap_or(at);
        let micros = |second: i64| (second + shift).saturating_mul(SECOND);
        let mut until = zone.following(at).next().map_or(i64::MAX, |change| micros(change.timestamp().as_second()));
        let mut from = zone.preceding(next).next().map_or(i64::MIN, |change| micros(change.timestamp().as_second()));
        // The mapping of years jumps here.
        if second >= CYCLIC {
            let start = (second - (second - CYCLIC).rem_euclid(CYCLE)).saturating_mul(SECOND);
            from = from.max(start);
            until = until.min(start.saturating_add(CYCLE * SECOND));
        } else {
            until = until.min(CYCLIC * SECOND);
        }
        Span { from, until, offset: i64::from(info.offset().seconds()) * SECOND, daylight: info.dst().is_dst() }
    }
}

/// A zone while a vector is worked through: it keeps the stretch that it looked at last.
pub(super) struct Clock {
    pub(super) zone: Zone,
    span: Span,
}

impl Clock {
    pub(super) fn new(zone: Zone) -> Self {
        let span = zone.span(0);
        Self { zone, span }
    }

    fn span(&mut self, instant: i64) -> Span {
        if instant < self.span.from || instant >= self.span.until {
            self.span = self.zone.span(instant);
        }
        self.span
    }

    /// Microseconds east of UTC.
    pub(super) fn offset(&mut self, instant: i64) -> i64 {
        self.span(instant).offset
    }

    pub(super) fn is_daylight(&mut self, instant: i64) -> bool {
        self.span(instant).daylight
    }

    /// What the clock shows at an instant.
    pub(super) fn wall(&mut self, instant: i64) -> i64 {
        instant.saturating_add(self.offset(instant))
    }

    /// When the clock shows this. A time that it shows twice is the later one, and one that it skips is read with the
    /// offset before the gap, as in ICU.
    pub(super) fn instant(&mut self, wall: i64) -> i64 {
        let before = self.offset(wall.saturating_sub(DAY));
        // Most days are within one stretch.
        if wall.saturating_add(DAY) < self.span.until {
            return wall.saturating_sub(before);
        }
        let after = self.offset(wall.saturating_add(DAY));
        let (early, late) = (wall.saturating_sub(before), wall.saturating_sub(after));
        let early_is = self.offset(early) == before;
        let late_is = self.offset(late) == after;
        match (early_is, late_is) {
            (true, true) => early.max(late),
            (false, true) => late,
            _ => early,
        }
    }
}

/// The zone that a value of a row names, looked up again only when the name changes.
pub(super) struct NamedClock {
    zones: Arc<Zones>,
    last: Option<(String, Clock)>,
}

impl NamedClock {
    pub(super) fn new(zones: Arc<Zones>) -> Self {
        Self { zones, last: None }
    }

    pub(super) fn at(&mut self, name: &str) -> Result<&mut Clock> {
        if self.last.as_ref().is_none_or(|(last, _)| last != name) {
            self.last = Some((name.to_string(), Clock::new(self.zones.find(name)?)));
        }
        self.last.as_mut().map(|(_, clock)| clock).ok_or_else(|| Error::invalid_input("no time zone"))
    }
}
