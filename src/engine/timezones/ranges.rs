//! `range` and `generate_series` over instants, as lists, and the tables of zones and calendars. As tables they cannot be had
//! through the C API: a table function beside DuckDB's own of the same name, which takes columns, keeps that one from being bound.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use duckdb::{
    DuckDBType, Result,
    bind_arguments::BindArgument,
    connection::{Connection, Context},
    data_chunk::{DataChunkRef, VectorCollection},
    error::DuckDBError,
    signature::SignatureBuilder,
    table_function::{
        BindFunctionHandle, ExecColumnInfo, InitColumnData, TableFunctionBuilder, TableFunctionCallbacks,
    },
    types::{IntervalValue, List, TimestampTzValue},
    vector::Vector,
};

use super::{
    calendar::is_finite,
    error,
    scalar::{Registry, Rows, Worker},
    settings::CALENDARS,
    zone::{Clock, Zones},
};

const TSTZ: &str = "TIMESTAMPTZ";
/// Elements of the lists of one vector at most: they are made at once, outside of DuckDB's memory limit.
const LONGEST: usize = 1 << 24;
/// Rows of DuckDB's vectors.
const VECTOR: usize = 2048;

fn signs(step: &IntervalValue) -> (bool, bool) {
    let IntervalValue { months, days, micros } = *step;
    (months > 0 || days > 0 || micros > 0, months < 0 || days < 0 || micros < 0)
}

/// The instants from a start to an end, which is one of them or not.
struct Lists {
    inclusive: bool,
}

impl Lists {
    fn list(
        &self,
        clock: &mut Clock,
        start: i64,
        end: i64,
        step: IntervalValue,
        into: &mut Vec<Option<TimestampTzValue>>,
    ) -> Result<()> {
        let invalid = |message: &str| Err(error(DuckDBError::InputInvalid, message));
        let (up, down) = signs(&step);
        if !up && !down {
            return Ok(());
        }
        if !is_finite(start) || !is_finite(end) {
            return invalid("Interval infinite bounds not supported");
        }
        if up && down {
            return invalid("Interval with mix of negative/positive entries not supported");
        }
        let mut next = start;
        let has_next = |next: i64| {
            let within = if up { next < end } else { next > end };
            within || self.inclusive && next == end
        };
        while has_next(next) {
            into.push(Some(TimestampTzValue(next)));
            if into.len() > LONGEST {
                return invalid(
                    "lists of instants have more than 16777216 elements; take a longer step or fewer rows at once",
                );
            }
            next = clock.plus(next, step)?;
        }
        Ok(())
    }
}

impl Rows for Lists {
    type Output = List<TimestampTzValue>;

    fn rows(&self, worker: &mut Worker, inputs: &VectorCollection, mut output: Vector<'_, Self::Output>) -> Result<()> {
        let starts = inputs.get_vector_at::<TimestampTzValue>(0)?.reader()?;
        let ends = inputs.get_vector_at::<TimestampTzValue>(1)?.reader()?;
        let steps = inputs.get_vector_at::<IntervalValue>(2)?.reader()?;
        let rows = output.len();
        let mut elements = Vec::new();
        let mut lengths = Vec::with_capacity(rows);
        for row in 0..rows {
            let (Some(start), Some(end), Some(step)) = (starts.get(row)?, ends.get(row)?, steps.get(row)?) else {
                lengths.push(None);
                continue;
            };
            let before = elements.len();
            self.list(&mut worker.clock, start.0, end.0, *step, &mut elements)?;
            lengths.push(Some(elements.len() - before));
        }
        // SAFETY: the rows below are written with all of these elements.
        unsafe { output.set_child_size(elements.len())? };
        let mut writer = output.writer()?;
        let mut rest = elements.as_slice();
        for (row, length) in lengths.into_iter().enumerate() {
            let list = length.map(|length| {
                let (list, after) = rest.split_at(length);
                rest = after;
                List(list.to_vec())
            });
            writer.set(row, list)?;
        }
        Ok(())
    }
}

/// `pg_timezone_names` and `icu_calendar_names`.
enum Names {
    Zones(Arc<Zones>),
    Calendars,
}

impl TableFunctionCallbacks for Names {
    type BindData = ();
    type GlobalState = AtomicUsize;
    type LocalState = ();

    fn bind(&self, context: &Context, _arguments: Vec<BindArgument>, bind: BindFunctionHandle<'_>) -> Result<()> {
        bind.add_result_column("name", &String::logical_type(context)?)?;
        if matches!(self, Self::Zones(_)) {
            bind.add_result_column("abbrev", &String::logical_type(context)?)?;
            bind.add_result_column("utc_offset", &IntervalValue::logical_type(context)?)?;
            bind.add_result_column("is_dst", &bool::logical_type(context)?)?;
        }
        Ok(())
    }

    fn init_global_state(
        &self,
        _bound: &(),
        _context: &Context,
        _columns: InitColumnData<'_>,
    ) -> Result<(Option<AtomicUsize>, Option<usize>)> {
        Ok((Some(AtomicUsize::new(0)), Some(1)))
    }

    fn exec(
        &self,
        _bound: &(),
        position: Option<&AtomicUsize>,
        _local: Option<&mut ()>,
        _context: &Context,
        mut output: DataChunkRef<'_>,
        _columns: ExecColumnInfo<'_>,
    ) -> Result<()> {
        let all: Vec<&str> = match self {
            Self::Zones(zones) => zones.names().iter().map(String::as_str).collect(),
            Self::Calendars => CALENDARS.to_vec(),
        };
        let from = position.map_or(all.len(), |position| position.fetch_add(VECTOR, Ordering::Relaxed)).min(all.len());
        let names = &all[from..(from + VECTOR).min(all.len())];
        let mut clocks = Vec::new();
        if let Self::Zones(zones) = self {
            for name in names {
                clocks.push(Clock::new(zones.find(name)?));
            }
        }
        let text = |output: &mut DataChunkRef<'_>, column: usize| -> Result<()> {
            let mut vector = output.get_vector_at_mut::<String>(column)?;
            vector.set_size(names.len())?;
            let mut writer = vector.writer()?;
            names.iter().enumerate().try_for_each(|(row, name)| writer.set(row, Some(name)))
        };
        text(&mut output, 0)?;
        if matches!(self, Self::Calendars) {
            return Ok(());
        }
        text(&mut output, 1)?;
        let now = super::functions::now();
        {
            let mut vector = output.get_vector_at_mut::<IntervalValue>(2)?;
            vector.set_size(names.len())?;
            let mut writer = vector.writer()?;
            for (row, clock) in clocks.iter_mut().enumerate() {
                writer.set(row, Some(IntervalValue { months: 0, days: 0, micros: clock.offset(now) }))?;
            }
        }
        let mut vector = output.get_vector_at_mut::<bool>(3)?;
        vector.set_size(names.len())?;
        let mut writer = vector.writer()?;
        clocks.iter_mut().enumerate().try_for_each(|(row, clock)| writer.set(row, Some(clock.is_daylight(now))))
    }
}

pub(super) fn register(connection: &Connection, zones: &Arc<Zones>) -> Result<()> {
    let registry = Registry { connection, zones };
    for (name, inclusive) in [("range", false), ("generate_series", true)] {
        registry.add(name, &[TSTZ, TSTZ, "INTERVAL"], &format!("{TSTZ}[]"), Lists { inclusive })?;
    }
    TableFunctionBuilder::new("pg_timezone_names", SignatureBuilder::new(), Names::Zones(zones.clone()))
        .register(connection)?;
    TableFunctionBuilder::new("icu_calendar_names", SignatureBuilder::new(), Names::Calendars).register(connection)
}
