//! The scalar functions and operators of TIMESTAMP WITH TIME ZONE.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use duckdb::{
    DuckDBType, Error, Result,
    bind_arguments::BindArguments,
    connection::{Connection, Context},
    data_chunk::VectorCollection,
    enums::{FunctionProperty, FunctionPropertyStability},
    error::DuckDBError,
    logical_type::LogicalType,
    scalar::{ScalarCallbacks, ScalarFunctionBuilder, ScalarInitCallbacks, ScalarResolveTypesCallbacks},
    types::{Any, DateValue, IntervalValue, List, TimeTzValue, TimeValue, TimestampTzValue, TimestampValue},
    vector::{Unknown, Vector},
};

use super::{
    calendar::{days_of, in_range, is_finite},
    error, format,
    parts::{FUNCTIONS, Part, last_day, not_implemented},
    scalar::{Function, Registry, Rows, Worker, flatten, rows},
    zone::{Clock, DAY, SECOND, Zones},
};

const TSTZ: &str = "TIMESTAMPTZ";
/// Buckets are of this zone where the call names none, whatever the session's is.
const BUCKETS: &str = "UTC";

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
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

rows!(Plus, |_, worker, instant: TimestampTzValue, interval: IntervalValue| -> TimestampTzValue {
    Some(TimestampTzValue(worker.clock.plus(instant.0, *interval)?))
});
rows!(PlusReversed, |_, worker, interval: IntervalValue, instant: TimestampTzValue| -> TimestampTzValue {
    Some(TimestampTzValue(worker.clock.plus(instant.0, *interval)?))
});
rows!(Minus, |_, worker, instant: TimestampTzValue, interval: IntervalValue| -> TimestampTzValue {
    Some(TimestampTzValue(worker.clock.minus(instant.0, *interval)?))
});
rows!(Difference, |_, worker, end: TimestampTzValue, start: TimestampTzValue| -> IntervalValue {
    Some(worker.clock.difference(end.0, start.0, false)?)
});
rows!(Age, |_, worker, end: TimestampTzValue, start: TimestampTzValue| -> IntervalValue {
    Some(worker.clock.difference(end.0, start.0, true)?)
});
rows!(
    /// Up to midnight of today.
    AgeToday, |_, worker, start: TimestampTzValue| -> IntervalValue {
    let today = Part::Day.truncate(&mut worker.clock, now())?;
    Some(worker.clock.difference(today, start.0, true)?)
});
rows!(WholePart(Part), |Self(part), worker, instant: TimestampTzValue| -> i64 {
    is_finite(instant.0).then(|| part.at(&mut worker.clock, instant.0))
});
rows!(FractionPart(Part), |Self(part), worker, instant: TimestampTzValue| -> f64 {
    is_finite(instant.0).then(|| part.fraction_at(&mut worker.clock, instant.0))
});
rows!(MonthName, |_, worker, instant: TimestampTzValue| -> String {
    is_finite(instant.0).then(|| MONTHS[Part::Month.at(&mut worker.clock, instant.0) as usize - 1])
});
rows!(DayName, |_, worker, instant: TimestampTzValue| -> String {
    is_finite(instant.0).then(|| DAYS[Part::Weekday.at(&mut worker.clock, instant.0) as usize])
});
rows!(LastDay, |_, worker, instant: TimestampTzValue| -> DateValue {
    is_finite(instant.0).then(|| DateValue(last_day(&mut worker.clock, instant.0) as i32))
});
rows!(Truncate, |_, worker, part: String, instant: TimestampTzValue| -> TimestampTzValue {
    let part = worker.part.at(part)?;
    match is_finite(instant.0) {
        true => Some(TimestampTzValue(part.truncate(&mut worker.clock, instant.0)?)),
        false => Some(*instant),
    }
});
rows!(Between, |_, worker, part: String, from: TimestampTzValue, to: TimestampTzValue| -> i64 {
    let part = worker.part.at(part)?;
    match is_finite(from.0) && is_finite(to.0) {
        true => Some(part.between(&mut worker.clock, from.0, to.0)?),
        false => None,
    }
});
rows!(Boundaries, |_, worker, part: String, from: TimestampTzValue, to: TimestampTzValue| -> i64 {
    let part = worker.part.at(part)?;
    match is_finite(from.0) && is_finite(to.0) {
        true => Some(part.boundaries(&mut worker.clock, from.0, to.0)?),
        false => None,
    }
});
rows!(InstantIn, |_, worker, zone: String, wall: TimestampValue| -> TimestampTzValue {
    let clock = worker.named.at(zone)?;
    Some(TimestampTzValue(instant_of(clock, wall.0)?))
});
rows!(WallIn, |_, worker, zone: String, instant: TimestampTzValue| -> TimestampValue {
    let clock = worker.named.at(zone)?;
    Some(TimestampValue(wall_of(clock, instant.0)?))
});
rows!(TimeIn, |_, worker, zone: String, time: TimeTzValue| -> TimeTzValue {
    let clock = worker.named.at(zone)?;
    let offset = clock.offset(now());
    let utc = time.micros() - i64::from(time.offset_seconds()) * SECOND;
    Some(TimeTzValue::new((utc + offset).rem_euclid(DAY), (offset / SECOND) as i32))
});
rows!(FromMicros, |_, worker, micros: i64| -> TimestampTzValue { Some(TimestampTzValue(*micros)) });
rows!(Make, |_, worker, year: i64, month: i64, day: i64, hour: i64, minute: i64, second: f64| -> TimestampTzValue {
    Some(make(&mut worker.clock, [*year, *month, *day, *hour, *minute], *second)?)
});
rows!(MakeIn, |_,
               worker,
               year: i64,
               month: i64,
               day: i64,
               hour: i64,
               minute: i64,
               second: f64,
               zone: String|
 -> TimestampTzValue {
    let clock = worker.named.at(zone)?;
    Some(make(clock, [*year, *month, *day, *hour, *minute], *second)?)
});
rows!(Bucket, |_, worker, width: IntervalValue, instant: TimestampTzValue| -> TimestampTzValue {
    let width = Width::of(width)?;
    let clock = worker.named.at(BUCKETS)?;
    Some(TimestampTzValue(width.bucket(clock, instant.0, width.origin())?))
});
rows!(BucketWithOffset, |_,
                         worker,
                         width: IntervalValue,
                         instant: TimestampTzValue,
                         offset: IntervalValue|
 -> TimestampTzValue {
    let width = Width::of(width)?;
    if is_finite(instant.0) {
        let clock = worker.named.at(BUCKETS)?;
        let moved = clock.minus(instant.0, *offset)?;
        let bucket = width.bucket(clock, moved, width.origin())?;
        Some(TimestampTzValue(clock.plus(bucket, *offset)?))
    } else {
        Some(*instant)
    }
});
rows!(BucketWithOrigin, |_,
                         worker,
                         width: IntervalValue,
                         instant: TimestampTzValue,
                         origin: TimestampTzValue|
 -> TimestampTzValue {
    match is_finite(origin.0) {
        true => {
            let clock = worker.named.at(BUCKETS)?;
            Some(TimestampTzValue(Width::of(width)?.bucket(clock, instant.0, origin.0)?))
        }
        false => None,
    }
});
rows!(BucketIn, |_, worker, width: IntervalValue, instant: TimestampTzValue, zone: String| -> TimestampTzValue {
    let clock = worker.named.at(zone)?;
    let width = Width::of(width)?;
    let origin = clock.instant(width.origin());
    Some(TimestampTzValue(width.bucket(clock, instant.0, origin)?))
});
rows!(Today, |_, worker| -> DateValue {
    let now = now();
    Some(DateValue(worker.clock.wall(now).div_euclid(DAY) as i32))
});
rows!(LocalTimestamp, |_, worker| -> TimestampValue { Some(TimestampValue(worker.clock.wall(now()))) });
rows!(LocalTime, |_, worker| -> TimeValue { Some(TimeValue(worker.clock.wall(now()).rem_euclid(DAY))) });
rows!(CurrentTime, |_, worker| -> TimeTzValue {
    let now = now();
    Some(time_of(&mut worker.clock, now))
});

/// Microseconds since 1970.
pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

/// The instant at which a clock shows a TIMESTAMP.
pub(super) fn instant_of(clock: &mut Clock, wall: i64) -> Result<i64> {
    if !is_finite(wall) {
        return Ok(wall);
    }
    in_range(Some(clock.instant(wall)))
}

/// The TIMESTAMP that a clock shows.
pub(super) fn wall_of(clock: &mut Clock, instant: i64) -> Result<i64> {
    if !is_finite(instant) {
        return Ok(instant);
    }
    let wall = instant.checked_add(clock.offset(instant)).filter(|wall| is_finite(*wall));
    wall.ok_or_else(|| error(DuckDBError::TypeConversion, "Unable to convert TIMESTAMPTZ to local TIMESTAMP"))
}

/// The time of the day with the offset that it has.
pub(super) fn time_of(clock: &mut Clock, instant: i64) -> TimeTzValue {
    let offset = clock.offset(instant);
    TimeTzValue::new(clock.wall(instant).rem_euclid(DAY), (offset / SECOND) as i32)
}

/// Parts that are out of their range count on into the next larger one.
fn make(clock: &mut Clock, [year, month, day, hour, minute]: [i64; 5], second: f64) -> Result<TimestampTzValue> {
    let narrow = |number: i64| {
        i32::try_from(number).map(i64::from).map_err(|_| {
            let message = format!("Type INT64 with value {number} can't be cast because the value is out of range for the destination type INT32");
            error(DuckDBError::TypeConversion, message)
        })
    };
    let year = narrow(year + i64::from(year < 0))?;
    let month = narrow(month.saturating_sub(1))?;
    let (day, hour, minute) = (narrow(day)?, narrow(hour)?, narrow(minute)?);
    let whole = second.round_ties_even();
    if !second.is_finite() || whole.abs() > f64::from(i32::MAX) {
        let message = format!(
            "Type DOUBLE with value {second} can't be cast because the value is out of range for the destination type INT32"
        );
        return Err(error(DuckDBError::TypeConversion, message));
    }
    let milliseconds = (second - whole) * 1000.0;
    let whole_milliseconds = milliseconds.trunc();
    let micros = ((milliseconds - whole_milliseconds) * 1000.0).round();
    let days = days_of(year + month.div_euclid(12), month.rem_euclid(12) + 1, 1) + day - 1;
    let time = i128::from(hour) * 3_600_000_000
        + i128::from(minute) * 60_000_000
        + whole as i128 * 1_000_000
        + whole_milliseconds as i128 * 1000
        + micros as i128;
    let wall = i128::from(days) * i128::from(DAY) + time;
    let wall = i64::try_from(wall).ok();
    Ok(TimestampTzValue(in_range(wall.map(|wall| clock.instant(wall)))?))
}

/// How wide a bucket is.
#[derive(Clone, Copy)]
enum Width {
    Micros(i64),
    Days(i64),
    Months(i64),
}

impl Width {
    fn of(interval: &IntervalValue) -> Result<Self> {
        let IntervalValue { months, days, micros } = *interval;
        let width = match (months, days, micros) {
            (0, 0, 0) => return Err(error(DuckDBError::InputOutOfRange, "Can't bucket using zero days")),
            (0, 0, micros) => Self::Micros(micros),
            (0, days, 0) => Self::Days(i64::from(days)),
            (months, 0, 0) => Self::Months(i64::from(months)),
            (0, ..) => return Err(not_implemented("Day intervals cannot have time component")),
            _ => return Err(not_implemented("Month intervals cannot have day or time component")),
        };
        let (Self::Micros(size) | Self::Days(size) | Self::Months(size)) = width;
        if size <= 0 {
            return Err(error(DuckDBError::InputInvalid, "Period must be greater than 0"));
        }
        Ok(width)
    }

    /// 2000-01-03, a Monday, or 2000-01-01 for months.
    fn origin(self) -> i64 {
        match self {
            Self::Micros(_) | Self::Days(_) => 10_959 * DAY,
            Self::Months(_) => 10_957 * DAY,
        }
    }

    /// When the bucket that holds an instant begins.
    fn bucket(self, clock: &mut Clock, instant: i64, origin: i64) -> Result<i64> {
        if !is_finite(instant) {
            return Ok(instant);
        }
        let interval = |months: i64, days: i64, micros: i64| {
            let narrow = |number: i64| {
                i32::try_from(number).map_err(|_| error(DuckDBError::InputOutOfRange, "Timestamp out of range"))
            };
            Ok(IntervalValue { months: narrow(months)?, days: narrow(days)?, micros })
        };
        match self {
            Self::Micros(width) => {
                let distance = instant.checked_sub(origin).ok_or_else(|| {
                    error(DuckDBError::InputOutOfRange, "Overflow in subtraction of INT64 (timestamp - origin)")
                })?;
                let start = distance.div_euclid(width).checked_mul(width);
                let start = start.ok_or_else(|| error(DuckDBError::InputOutOfRange, "Timestamp out of range"))?;
                clock.plus(origin, interval(0, 0, start)?)
            }
            Self::Days(width) => {
                let days = clock.days_between(origin, instant) / width * width;
                let bucket = clock.plus(origin, interval(0, days, 0)?)?;
                if instant < bucket { clock.plus(bucket, interval(0, -width, 0)?) } else { Ok(bucket) }
            }
            Self::Months(width) => {
                let start = Part::Month.truncate(clock, instant)?;
                let origin = Part::Month.truncate(clock, origin)?;
                let months = clock.months_between(origin, start).div_euclid(width) * width;
                clock.plus(origin, interval(months, 0, 0)?)
            }
        }
    }
}

/// `date_part` with a part that may differ from row to row; a BIGINT where it is one constant that is whole.
struct PartOf(Arc<Zones>);

impl PartOf {
    fn constant(arguments: &BindArguments<'_>) -> Result<Option<Option<Part>>> {
        let Some(value) = arguments.value(0)? else { return Ok(None) };
        match value.get::<String>()? {
            Some(name) => Ok(Some(Some(Part::named(&name)?))),
            None => Ok(Some(None)),
        }
    }
}

impl ScalarCallbacks for PartOf {
    type BindData = ();
    type InitData = Worker;

    fn exec(
        &self,
        _bound: Option<&()>,
        worker: Option<&mut Worker>,
        context: &Context,
        inputs: &mut VectorCollection,
        output: Vector<'_, Unknown>,
    ) -> Result<()> {
        flatten(inputs)?;
        let mut own;
        let worker = match worker {
            Some(worker) => worker,
            None => {
                own = Worker::new(&self.0, context)?;
                &mut own
            }
        };
        let rows = inputs.row_count()?;
        let names = inputs.get_vector_at::<String>(0)?.reader()?;
        let instants = inputs.get_vector_at::<TimestampTzValue>(1)?.reader()?;
        let row = |worker: &mut Worker, row: usize| -> Result<Option<(Part, i64)>> {
            let (Some(name), Some(instant)) = (names.get(row)?, instants.get(row)?) else { return Ok(None) };
            let part = worker.part.at(name)?;
            Ok(is_finite(instant.0).then_some((part, instant.0)))
        };
        match output.cast_ref::<i64>() {
            Ok(_) => {
                let mut output = output.cast::<i64>()?;
                output.set_size(rows)?;
                let mut writer = output.writer()?;
                for at in 0..rows {
                    let value = row(worker, at)?.map(|(part, instant)| part.at(&mut worker.clock, instant));
                    writer.set(at, value)?;
                }
            }
            Err(_) => {
                let mut output = output.cast::<f64>()?;
                output.set_size(rows)?;
                let mut writer = output.writer()?;
                for at in 0..rows {
                    let value = row(worker, at)?.map(|(part, instant)| part.fraction_at(&mut worker.clock, instant));
                    writer.set(at, value)?;
                }
            }
        }
        Ok(())
    }
}

impl ScalarInitCallbacks for PartOf {
    fn init(&self, _bound: Option<&()>, context: &Context) -> Result<Worker> {
        Worker::new(&self.0, context)
    }
}

impl ScalarResolveTypesCallbacks for PartOf {
    fn resolve_types(&self, context: &Context, arguments: BindArguments<'_>) -> Result<LogicalType> {
        let whole = matches!(Self::constant(&arguments)?, Some(Some(part)) if !part.is_fraction());
        LogicalType::from_text(context, if whole { "BIGINT" } else { "DOUBLE" })
    }
}

/// `date_part` with a list of parts: a struct.
struct PartsOf(Arc<Zones>, &'static str);

impl PartsOf {
    fn names(&self, arguments: &BindArguments<'_>) -> Result<Vec<(String, Part)>> {
        let binder = |message: String| error(DuckDBError::QueryBinder, message);
        let function = self.1;
        let constant = || binder(format!("\"{function}\" can only take constant lists of part names"));
        let list = arguments.value(0)?.ok_or_else(constant)?;
        let list = list.get::<List<String>>()?.ok_or_else(constant)?;
        if list.0.is_empty() {
            return Err(binder(format!("\"{function}\" requires non-empty lists of part names")));
        }
        let mut names: Vec<(String, Part)> = Vec::new();
        for name in list.0 {
            let name = name.ok_or_else(|| binder(format!("NULL struct entry name in \"{function}\"")))?;
            let part = Part::named(&name)?;
            if names.iter().any(|(other, _)| other.eq_ignore_ascii_case(&name)) {
                return Err(binder(format!("Duplicate struct entry name \"{name}\" in \"{function}\"")));
            }
            names.push((name, part));
        }
        Ok(names)
    }
}

impl ScalarCallbacks for PartsOf {
    type BindData = ();
    type InitData = Worker;

    fn exec(
        &self,
        _bound: Option<&()>,
        worker: Option<&mut Worker>,
        context: &Context,
        inputs: &mut VectorCollection,
        mut output: Vector<'_, Unknown>,
    ) -> Result<()> {
        flatten(inputs)?;
        let mut own;
        let worker = match worker {
            Some(worker) => worker,
            None => {
                own = Worker::new(&self.0, context)?;
                &mut own
            }
        };
        let rows = inputs.row_count()?;
        let fields = output.logical_type().get_params()?;
        let parts = fields.iter().map(|(name, _)| Part::named(name)).collect::<Result<Vec<_>>>()?;
        let instants = inputs.get_vector_at::<TimestampTzValue>(1)?.reader()?;
        output.set_size(rows)?;
        {
            let mut children = output.children_mut().ok_or_else(|| Error::invalid_input("a struct without fields"))?;
            for (field, part) in parts.iter().enumerate() {
                let finite = |row: usize| Ok::<_, Error>(instants.get(row)?.map(|at| at.0).filter(|at| is_finite(*at)));
                if part.is_fraction() {
                    let mut child = children.get_vector_at_mut::<f64>(field)?;
                    child.set_size(rows)?;
                    let mut writer = child.writer()?;
                    for row in 0..rows {
                        writer.set(row, finite(row)?.map(|at| part.fraction_at(&mut worker.clock, at)))?;
                    }
                } else {
                    let mut child = children.get_vector_at_mut::<i64>(field)?;
                    child.set_size(rows)?;
                    let mut writer = child.writer()?;
                    for row in 0..rows {
                        writer.set(row, finite(row)?.map(|at| part.at(&mut worker.clock, at)))?;
                    }
                }
            }
        }
        for row in 0..rows {
            if instants.is_null(row)? {
                output.set_null_slow(row)?;
            }
        }
        Ok(())
    }
}

impl ScalarInitCallbacks for PartsOf {
    fn init(&self, _bound: Option<&()>, context: &Context) -> Result<Worker> {
        Worker::new(&self.0, context)
    }
}

impl ScalarResolveTypesCallbacks for PartsOf {
    fn resolve_types(&self, context: &Context, arguments: BindArguments<'_>) -> Result<LogicalType> {
        let fields: Vec<String> = self
            .names(&arguments)?
            .into_iter()
            .map(|(name, part)| {
                format!("\"{}\" {}", name.replace('"', "\"\""), if part.is_fraction() { "DOUBLE" } else { "BIGINT" })
            })
            .collect();
        LogicalType::from_text(context, &format!("STRUCT({})", fields.join(", ")))
    }
}

pub(super) fn register(connection: &Connection, zones: &Arc<Zones>) -> Result<()> {
    let registry = Registry { connection, zones };
    registry.add("+", &[TSTZ, "INTERVAL"], TSTZ, Plus)?;
    registry.add("+", &["INTERVAL", TSTZ], TSTZ, PlusReversed)?;
    registry.add("-", &[TSTZ, "INTERVAL"], TSTZ, Minus)?;
    registry.add("-", &[TSTZ, TSTZ], "INTERVAL", Difference)?;
    registry.add("age", &[TSTZ, TSTZ], "INTERVAL", Age)?;
    registry.add("age", &[TSTZ], "INTERVAL", AgeToday)?;
    for name in FUNCTIONS {
        match Part::named(name)? {
            part if part.is_fraction() => registry.add(name, &[TSTZ], "DOUBLE", FractionPart(part))?,
            part => registry.add(name, &[TSTZ], "BIGINT", WholePart(part))?,
        }
    }
    registry.add("monthname", &[TSTZ], "VARCHAR", MonthName)?;
    registry.add("dayname", &[TSTZ], "VARCHAR", DayName)?;
    registry.add("last_day", &[TSTZ], "DATE", LastDay)?;
    for name in ["date_trunc", "datetrunc"] {
        registry.add(name, &["VARCHAR", TSTZ], TSTZ, Truncate)?;
    }
    for name in ["date_sub", "datesub"] {
        registry.add(name, &["VARCHAR", TSTZ, TSTZ], "BIGINT", Between)?;
    }
    for name in ["date_diff", "datediff"] {
        registry.add(name, &["VARCHAR", TSTZ, TSTZ], "BIGINT", Boundaries)?;
    }
    for name in ["date_part", "datepart"] {
        let signature = registry.signature(&["VARCHAR", TSTZ], "DOUBLE")?;
        let part = PartOf(zones.clone());
        ScalarFunctionBuilder::new(name, signature, part).with_init().with_resolve_types().register(connection)?;
        let signature = registry.signature(&["VARCHAR[]", TSTZ], "DOUBLE")?.return_type(Any::logical_type(connection)?);
        let parts = PartsOf(zones.clone(), name);
        ScalarFunctionBuilder::new(name, signature, parts).with_init().with_resolve_types().register(connection)?;
    }
    registry.add("timezone", &["VARCHAR", "TIMESTAMP"], TSTZ, InstantIn)?;
    registry.add("timezone", &["VARCHAR", TSTZ], "TIMESTAMP", WallIn)?;
    registry.add("timezone", &["VARCHAR", "TIMETZ"], "TIMETZ", TimeIn)?;
    registry.add("make_timestamptz", &["BIGINT"], TSTZ, FromMicros)?;
    let parts = ["BIGINT", "BIGINT", "BIGINT", "BIGINT", "BIGINT", "DOUBLE", "VARCHAR"];
    registry.add("make_timestamptz", &parts[..6], TSTZ, Make)?;
    registry.add("make_timestamptz", &parts, TSTZ, MakeIn)?;
    registry.add("time_bucket", &["INTERVAL", TSTZ], TSTZ, Bucket)?;
    registry.add("time_bucket", &["INTERVAL", TSTZ, "INTERVAL"], TSTZ, BucketWithOffset)?;
    registry.add("time_bucket", &["INTERVAL", TSTZ, TSTZ], TSTZ, BucketWithOrigin)?;
    registry.add("time_bucket", &["INTERVAL", TSTZ, "VARCHAR"], TSTZ, BucketIn)?;
    current(&registry, "current_date", "DATE", || Today)?;
    current(&registry, "today", "DATE", || Today)?;
    current(&registry, "get_current_time", "TIMETZ", || CurrentTime)?;
    current(&registry, "current_localtimestamp", "TIMESTAMP", || LocalTimestamp)?;
    current(&registry, "current_localtime", "TIME", || LocalTime)?;
    format::register(&registry)
}

/// A function that gives the same value throughout a statement.
fn current<R: Rows>(registry: &Registry<'_>, name: &str, result: &str, rows: impl Fn() -> R) -> Result<()> {
    let function = Function { zones: registry.zones.clone(), rows: rows() };
    let stable = FunctionProperty::Stability(FunctionPropertyStability::ConsistentWithinQuery);
    ScalarFunctionBuilder::new(name, registry.signature(&[], result)?, function)
        .with_init()
        .set_property(stable)
        .register(registry.connection)
}
