//! The proleptic Gregorian calendar on a zone's clock: fields, steps and differences as ICU has them.

use duckdb::{Result, error::DuckDBError, types::IntervalValue};

use super::{
    error,
    zone::{Clock, DAY},
};

pub(super) const INFINITY: i64 = i64::MAX;
pub(super) const NEGATIVE_INFINITY: i64 = -i64::MAX;
/// The first instant that a DATE can name.
pub(super) const FIRST: i64 = -106_751_991 * DAY;

pub(super) fn is_finite(instant: i64) -> bool {
    instant != INFINITY && instant != NEGATIVE_INFINITY
}

/// Days since 1970-01-01.
pub(super) fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Year (0 is 1 BC), month and day.
pub(super) fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

pub(super) fn is_leap(year: i64) -> bool {
    year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0)
}

pub(super) fn month_length(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// 1 is Monday.
pub(super) fn weekday(days: i64) -> i64 {
    (days + 3).rem_euclid(7) + 1
}

/// The day on which the first week of an ISO year begins.
pub(super) fn iso_year_start(year: i64) -> i64 {
    let fourth = days_of(year, 1, 4);
    fourth - (weekday(fourth) - 1)
}

/// ISO year and week.
pub(super) fn iso_week(days: i64) -> (i64, i64) {
    let thursday = days - (weekday(days) - 1) + 3;
    let (year, ..) = date_of(thursday);
    (year, (thursday - days_of(year, 1, 1)) / 7 + 1)
}

/// What a clock shows, in parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields {
    pub(super) days: i64,
    pub(super) year: i64,
    pub(super) month: i64,
    pub(super) day: i64,
    /// Microseconds of the day.
    pub(super) time: i64,
}

impl Fields {
    pub(super) fn of(wall: i64) -> Self {
        let days = wall.div_euclid(DAY);
        let (year, month, day) = date_of(days);
        Self { days, year, month, day, time: wall.rem_euclid(DAY) }
    }

    /// 1 for years after Christ.
    pub(super) fn era(&self) -> i64 {
        i64::from(self.year > 0)
    }

    /// The year as its era counts it.
    pub(super) fn year_of_era(&self) -> i64 {
        if self.year > 0 { self.year } else { 1 - self.year }
    }
}

/// An instant if it is in range.
pub(super) fn in_range(instant: Option<i64>) -> Result<i64> {
    instant
        .filter(|instant| *instant >= FIRST && is_finite(*instant))
        .ok_or_else(|| error(DuckDBError::TypeConversion, "ICU date overflows timestamp range"))
}

impl Clock {
    /// Days later, at the same time of the day where the clock shows it then.
    fn plus_days(&mut self, instant: i64, days: i64) -> Option<i64> {
        if days == 0 {
            return Some(instant);
        }
        let (offset, wall) = (self.offset(instant), self.wall(instant).rem_euclid(DAY));
        let moved = instant.checked_add(days.checked_mul(DAY)?)?;
        let changed = self.offset(moved);
        if changed == offset {
            return Some(moved);
        }
        let shift = (offset - changed) % DAY;
        let back = moved.checked_add(shift)?;
        // Where the time does not exist on that day, the later of the two readings stands.
        let exists = self.wall(back).rem_euclid(DAY) == wall;
        Some(if exists || shift > 0 { back } else { moved })
    }

    /// Months later, on the last day of a month that is too short.
    fn plus_months(&mut self, instant: i64, months: i64) -> Option<i64> {
        if months == 0 {
            return Some(instant);
        }
        let fields = Fields::of(self.wall(instant));
        let month = fields.year.checked_mul(12)?.checked_add(fields.month - 1)?.checked_add(months)?;
        let (year, month) = (month.div_euclid(12), month.rem_euclid(12) + 1);
        let days = days_of(year, month, fields.day.min(month_length(year, month)));
        let wall = days.checked_mul(DAY)?.checked_add(fields.time)?;
        Some(self.instant(wall))
    }

    /// The same week and weekday of another ISO year.
    fn plus_iso_years(&mut self, instant: i64, years: i64) -> Option<i64> {
        if years == 0 {
            return Some(instant);
        }
        let wall = self.wall(instant);
        let days = wall.div_euclid(DAY);
        let (year, _) = iso_week(days);
        let moved = iso_year_start(year.checked_add(years)?) + (days - iso_year_start(year));
        Some(self.instant(moved.checked_mul(DAY)?.checked_add(wall.rem_euclid(DAY))?))
    }

    pub(super) fn plus(&mut self, instant: i64, interval: IntervalValue) -> Result<i64> {
        if !is_finite(instant) {
            return Ok(instant);
        }
        let moved = instant
            .checked_add(interval.micros)
            .and_then(|moved| self.plus_days(moved, i64::from(interval.days)))
            .and_then(|moved| self.plus_months(moved, i64::from(interval.months)));
        in_range(moved)
    }

    pub(super) fn minus(&mut self, instant: i64, interval: IntervalValue) -> Result<i64> {
        let IntervalValue { months, days, micros } = interval;
        let negated =
            IntervalValue { months: months.wrapping_neg(), days: days.wrapping_neg(), micros: micros.wrapping_neg() };
        self.plus(instant, negated)
    }

    /// How many whole steps lead from one instant to another, towards it.
    fn steps(&mut self, from: i64, to: i64, step: Step) -> i64 {
        let length = match step {
            Step::Day => DAY,
            Step::Week => 7 * DAY,
            Step::Month => 2_629_746_000_000,
            Step::IsoYear => 31_556_952_000_000,
        };
        let add = |clock: &mut Self, steps: i64| {
            let moved = match step {
                Step::Day => clock.plus_days(from, steps),
                Step::Week => clock.plus_days(from, 7 * steps),
                Step::Month => clock.plus_months(from, steps),
                Step::IsoYear => clock.plus_iso_years(from, steps),
            };
            moved.unwrap_or(if steps < 0 { i64::MIN } else { i64::MAX })
        };
        let distance = i128::from(to) - i128::from(from);
        let mut steps = (distance / i128::from(length)) as i64;
        if from <= to {
            steps = (steps - 2).max(0);
            while add(self, steps + 1) <= to {
                steps += 1;
            }
            while steps > 0 && add(self, steps) > to {
                steps -= 1;
            }
        } else {
            steps = (steps + 2).min(0);
            while add(self, steps - 1) >= to {
                steps -= 1;
            }
            while steps < 0 && add(self, steps) < to {
                steps += 1;
            }
        }
        steps
    }

    pub(super) fn days_between(&mut self, from: i64, to: i64) -> i64 {
        self.steps(from, to, Step::Day)
    }

    pub(super) fn weeks_between(&mut self, from: i64, to: i64) -> i64 {
        self.steps(from, to, Step::Week)
    }

    pub(super) fn months_between(&mut self, from: i64, to: i64) -> i64 {
        self.steps(from, to, Step::Month)
    }

    pub(super) fn iso_years_between(&mut self, from: i64, to: i64) -> i64 {
        self.steps(from, to, Step::IsoYear)
    }

    /// What `-` gives: days and a time. `age` has months, too.
    pub(super) fn difference(&mut self, end: i64, start: i64, with_months: bool) -> Result<IntervalValue> {
        if !is_finite(start) || !is_finite(end) {
            return Err(error(DuckDBError::InputInvalid, "Cannot subtract infinite timestamps"));
        }
        if start > end {
            let IntervalValue { months, days, micros } = self.difference(start, end, with_months)?;
            return Ok(IntervalValue { months: -months, days: -days, micros: -micros });
        }
        let months = if with_months { self.months_between(start, end) } else { 0 };
        let after_months = self.plus_months(start, months).unwrap_or(start);
        let days = self.days_between(after_months, end);
        let after_days = self.plus_days(after_months, days).unwrap_or(after_months);
        let narrow = |number: i64| {
            i32::try_from(number).map_err(|_| error(DuckDBError::InputOutOfRange, "interval is out of range"))
        };
        Ok(IntervalValue { months: narrow(months)?, days: narrow(days)?, micros: end.wrapping_sub(after_days) })
    }
}

#[derive(Clone, Copy)]
enum Step {
    Day,
    Week,
    Month,
    IsoYear,
}
