//! Parts of dates: their names, what they are at an instant, the instant cut to one, and differences in one.

use duckdb::{Result, error::DuckDBError};

use super::{
    calendar::{Fields, days_of, iso_week, iso_year_start, month_length, weekday},
    error,
    zone::{Clock, DAY, HOUR, MINUTE, SECOND},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Year,
    Month,
    Day,
    Decade,
    Century,
    Millennium,
    Microsecond,
    Millisecond,
    Second,
    Minute,
    Hour,
    Weekday,
    IsoWeekday,
    Week,
    IsoYear,
    DayOfYear,
    Quarter,
    YearWeek,
    Era,
    Timezone,
    TimezoneHour,
    TimezoneMinute,
    Epoch,
    Julian,
}

/// Each part with its names.
const NAMES: [(Part, &[&str]); 24] = [
    (Part::Year, &["year", "yr", "y", "years", "yrs"]),
    (Part::Month, &["month", "mon", "months", "mons"]),
    (Part::Day, &["day", "days", "d", "dayofmonth"]),
    (Part::Decade, &["decade", "dec", "decades", "decs"]),
    (Part::Century, &["century", "cent", "centuries", "c"]),
    (Part::Millennium, &["millennium", "mil", "millenniums", "millennia", "mils", "millenium"]),
    (Part::Microsecond, &["microseconds", "microsecond", "us", "usec", "usecs", "usecond", "useconds"]),
    (Part::Millisecond, &["milliseconds", "millisecond", "ms", "msec", "msecs", "msecond", "mseconds"]),
    (Part::Second, &["second", "sec", "seconds", "secs", "s"]),
    (Part::Minute, &["minute", "min", "minutes", "mins", "m"]),
    (Part::Hour, &["hour", "hr", "hours", "hrs", "h"]),
    (Part::Weekday, &["dow", "dayofweek", "weekday"]),
    (Part::IsoWeekday, &["isodow"]),
    (Part::Week, &["week", "weeks", "w", "weekofyear"]),
    (Part::IsoYear, &["isoyear"]),
    (Part::DayOfYear, &["doy", "dayofyear"]),
    (Part::Quarter, &["quarter", "quarters"]),
    (Part::YearWeek, &["yearweek"]),
    (Part::Era, &["era"]),
    (Part::Timezone, &["timezone"]),
    (Part::TimezoneHour, &["timezone_hour"]),
    (Part::TimezoneMinute, &["timezone_minute"]),
    (Part::Epoch, &["epoch"]),
    (Part::Julian, &["julian", "jd"]),
];

/// The functions of one argument that give a part.
pub(super) const FUNCTIONS: [&str; 27] = [
    "era",
    "year",
    "month",
    "day",
    "decade",
    "century",
    "millennium",
    "microsecond",
    "millisecond",
    "second",
    "minute",
    "hour",
    "dayofweek",
    "isodow",
    "week",
    "dayofyear",
    "quarter",
    "isoyear",
    "timezone",
    "timezone_hour",
    "timezone_minute",
    "epoch",
    "julian",
    "yearweek",
    "dayofmonth",
    "weekday",
    "weekofyear",
];

impl Part {
    pub(super) fn named(name: &str) -> Result<Self> {
        let lower = name.to_lowercase();
        let found = NAMES.iter().find(|(_, names)| names.contains(&lower.as_str())).map(|(part, _)| *part);
        found.ok_or_else(|| error(DuckDBError::TypeConversion, format!("extract specifier \"{name}\" not recognized")))
    }

    /// Whether it is a DOUBLE, and not a BIGINT.
    pub(super) fn is_fraction(self) -> bool {
        matches!(self, Self::Epoch | Self::Julian)
    }

    /// The part at a finite instant; a part that is a fraction is rounded down.
    pub(super) fn at(self, clock: &mut Clock, instant: i64) -> i64 {
        let offset = clock.offset(instant) / SECOND;
        match self {
            Self::Timezone => return offset,
            Self::TimezoneHour => return offset / 3600,
            Self::TimezoneMinute => return offset % 3600 / 60,
            _ => {}
        }
        let fields = Fields::of(clock.wall(instant));
        let year = fields.year_of_era();
        let signed = |number: i64| if fields.era() > 0 { number } else { -number };
        match self {
            Self::Year => year,
            Self::Month => fields.month,
            Self::Day => fields.day,
            Self::Decade => year / 10,
            Self::Century => signed((year - 1) / 100 + 1),
            Self::Millennium => signed((year - 1) / 1000 + 1),
            Self::Microsecond => fields.time % MINUTE,
            Self::Millisecond => fields.time % MINUTE / 1000,
            Self::Second => fields.time % MINUTE / SECOND,
            Self::Minute => fields.time % HOUR / MINUTE,
            Self::Hour => fields.time / HOUR,
            Self::Weekday => weekday(fields.days) % 7,
            Self::IsoWeekday => weekday(fields.days),
            Self::Week => iso_week(fields.days).1,
            Self::IsoYear => iso_week(fields.days).0,
            Self::DayOfYear => fields.days - days_of(fields.year, 1, 1) + 1,
            Self::Quarter => (fields.month - 1) / 3 + 1,
            Self::YearWeek => {
                let (year, week) = iso_week(fields.days);
                year * 100 + if year > 0 { week } else { -week }
            }
            Self::Era => fields.era(),
            Self::Epoch | Self::Julian => self.fraction_at(clock, instant).floor() as i64,
            Self::Timezone | Self::TimezoneHour | Self::TimezoneMinute => offset,
        }
    }

    pub(super) fn fraction_at(self, clock: &mut Clock, instant: i64) -> f64 {
        match self {
            Self::Epoch => instant.div_euclid(1000) as f64 / 1000.0 + instant.rem_euclid(1000) as f64 / SECOND as f64,
            Self::Julian => {
                let fields = Fields::of(clock.wall(instant));
                fields.time as f64 / DAY as f64 + (fields.days + 2_440_588) as f64
            }
            part => part.at(clock, instant) as f64,
        }
    }

    /// The instant at which the part that holds a finite instant began.
    pub(super) fn truncate(self, clock: &mut Clock, instant: i64) -> Result<i64> {
        let wall = clock.wall(instant);
        let within = |length: i64| Ok(instant - wall.rem_euclid(length));
        let fields = Fields::of(wall);
        let year = fields.year_of_era();
        let of_era = |year: i64| if fields.era() > 0 { year } else { 1 - year };
        let day = match self {
            Self::Microsecond => return Ok(instant),
            Self::Millisecond => return Ok(instant - instant.rem_euclid(1000)),
            Self::Second | Self::Epoch => return within(SECOND),
            Self::Minute => return within(MINUTE),
            Self::Hour => return Ok(clock.instant(wall - wall.rem_euclid(HOUR))),
            Self::Day | Self::Weekday | Self::IsoWeekday | Self::DayOfYear | Self::Julian => fields.days,
            Self::Week | Self::YearWeek => fields.days - (weekday(fields.days) - 1),
            Self::Month => fields.days - (fields.day - 1),
            Self::Quarter => days_of(fields.year, (fields.month - 1) / 3 * 3 + 1, 1),
            Self::Year => days_of(fields.year, 1, 1),
            Self::IsoYear => iso_year_start(iso_week(fields.days).0),
            Self::Decade => days_of(of_era(year / 10 * 10), 1, 1),
            Self::Century => days_of(of_era(year / 100 * 100), 1, 1),
            Self::Millennium => days_of(of_era(year / 1000 * 1000), 1, 1),
            Self::Era => days_of(of_era(0), 1, 1),
            Self::Timezone | Self::TimezoneHour | Self::TimezoneMinute => {
                return Err(not_implemented("Specifier type not implemented for ICU DATETRUNC"));
            }
        };
        Ok(clock.instant(day.saturating_mul(DAY)))
    }

    /// Whole parts from one finite instant to another.
    pub(super) fn between(self, clock: &mut Clock, from: i64, to: i64) -> Result<i64> {
        let distance = to.wrapping_sub(from);
        // The calendar counts milliseconds.
        let (start, end) = (from.div_euclid(1000) * 1000, to.div_euclid(1000) * 1000);
        Ok(match self {
            Self::Microsecond => distance,
            Self::Millisecond => distance / 1000,
            Self::Second | Self::Epoch => distance / SECOND,
            Self::Minute => distance / MINUTE,
            Self::Hour => ((i128::from(end) - i128::from(start)) / i128::from(HOUR)) as i64,
            Self::Day | Self::Weekday | Self::IsoWeekday | Self::DayOfYear | Self::Julian => {
                clock.days_between(start, end)
            }
            Self::Week | Self::YearWeek => clock.weeks_between(start, end),
            Self::Month => clock.months_between(start, end),
            Self::Quarter => clock.months_between(start, end) / 3,
            Self::Year => clock.months_between(start, end) / 12,
            Self::IsoYear => clock.iso_years_between(start, end),
            Self::Decade => clock.months_between(start, end) / 12 / 10,
            Self::Century => clock.months_between(start, end) / 12 / 100,
            Self::Millennium => clock.months_between(start, end) / 12 / 1000,
            Self::Era => 0,
            Self::Timezone | Self::TimezoneHour | Self::TimezoneMinute => {
                return Err(not_implemented("Specifier type not implemented for ICU subtraction"));
            }
        })
    }

    /// How often the part begins between two finite instants.
    pub(super) fn boundaries(self, clock: &mut Clock, from: i64, to: i64) -> Result<i64> {
        // Weeks are counted from the day of the first instant, not from Monday, as in DuckDB's extension.
        let start = if self == Self::Week { Self::Day } else { self };
        let (from, to) = (start.truncate(clock, from)?, start.truncate(clock, to)?);
        self.between(clock, from, to)
    }
}

/// The last day of the month of a finite instant, in days since 1970.
pub(super) fn last_day(clock: &mut Clock, instant: i64) -> i64 {
    let fields = Fields::of(clock.wall(instant));
    fields.days - fields.day + month_length(fields.year, fields.month)
}

pub(super) fn not_implemented(message: &str) -> duckdb::Error {
    error(DuckDBError::QueryNotImplemented, message)
}

/// The part that a value of a row names, looked up again only when the name changes.
#[derive(Default)]
pub(super) struct NamedPart(Option<(String, Part)>);

impl NamedPart {
    pub(super) fn at(&mut self, name: &str) -> Result<Part> {
        match &self.0 {
            Some((last, part)) if last == name => Ok(*part),
            _ => {
                let part = Part::named(name)?;
                self.0 = Some((name.to_string(), part));
                Ok(part)
            }
        }
    }
}
