//! Casts between TIMESTAMP WITH TIME ZONE and what has no zone, on the clock of the session.

use std::sync::Arc;

use duckdb::{
    Result,
    cast::{CastFunctionBuilder, CastFunctionCallbacks, CastMode},
    connection::{Connection, Context},
    error::DuckDBError,
    types::{
        DateValue, TimeTzValue, TimestampMsValue, TimestampNsValue, TimestampSecValue, TimestampTzValue, TimestampValue,
    },
    vector::{StorageKind, Vector, VectorElement, WritableVectorElement},
};

use super::{
    calendar::{in_range, is_finite},
    error,
    functions::{instant_of, time_of, wall_of},
    scalar::type_named,
    text::{self, Written},
    zone::{Clock, DAY, NamedClock, Zones},
};

/// What a cast of rows has at hand.
struct Desk {
    clock: Clock,
    named: NamedClock,
    text: String,
}

/// One value to another; nothing for NULL.
trait Convert: Send + Sync + 'static {
    type From: VectorElement;
    type To: WritableVectorElement;

    fn convert<'a>(
        desk: &'a mut Desk,
        value: <Self::From as VectorElement>::Ref<'_>,
    ) -> Result<Option<<Self::To as WritableVectorElement>::Write<'a>>>;
}

struct Cast<C> {
    zones: Arc<Zones>,
    convert: std::marker::PhantomData<fn() -> C>,
}

impl<C: Convert> CastFunctionCallbacks for Cast<C> {
    type InputType = C::From;
    type OutputType = C::To;

    fn exec(
        &self,
        context: &Context,
        mode: CastMode,
        mut input: Vector<'_, C::From>,
        mut output: Vector<'_, C::To>,
    ) -> Result<()> {
        if input.storage_kind() == StorageKind::Other {
            input.flatten()?;
        }
        let mut desk = Desk {
            clock: self.zones.of_session(context)?,
            named: NamedClock::new(self.zones.clone()),
            text: String::new(),
        };
        output.set_size(input.len())?;
        let reader = input.reader()?;
        let mut writer = output.writer()?;
        let mut failure = None;
        for row in 0..reader.len() {
            let Some(value) = reader.get(row)? else {
                writer.set(row, None)?;
                continue;
            };
            match C::convert(&mut desk, value) {
                Ok(converted) => writer.set(row, converted)?,
                Err(error) if mode == CastMode::Try => {
                    failure = Some(error);
                    writer.set(row, None)?;
                }
                Err(error) => return Err(error),
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

macro_rules! convert {
    ($name:ident, $from:ty => $to:ty, |$desk:ident, $value:ident| $body:expr) => {
        struct $name;

        impl Convert for $name {
            type From = $from;
            type To = $to;

            fn convert<'a>(
                $desk: &'a mut Desk,
                $value: <$from as VectorElement>::Ref<'_>,
            ) -> Result<Option<<$to as WritableVectorElement>::Write<'a>>> {
                $body
            }
        }
    };
}

convert!(ToTimestamp, TimestampTzValue => TimestampValue, |desk, instant| {
    Ok(Some(TimestampValue(wall_of(&mut desk.clock, instant.0)?)))
});
convert!(ToTimestampMs, TimestampTzValue => TimestampMsValue, |desk, instant| {
    let wall = wall_of(&mut desk.clock, instant.0)?;
    Ok(Some(TimestampMsValue(if is_finite(wall) { wall.div_euclid(1000) } else { wall })))
});
convert!(ToTimestampSec, TimestampTzValue => TimestampSecValue, |desk, instant| {
    let wall = wall_of(&mut desk.clock, instant.0)?;
    Ok(Some(TimestampSecValue(if is_finite(wall) { wall.div_euclid(1_000_000) } else { wall })))
});
convert!(ToTimestampNs, TimestampTzValue => TimestampNsValue, |desk, instant| {
    let wall = wall_of(&mut desk.clock, instant.0)?;
    if !is_finite(wall) {
        return Ok(Some(TimestampNsValue(wall)));
    }
    let nanos = wall.checked_mul(1000).ok_or_else(|| {
        error(DuckDBError::TypeConversion, "Could not convert TIMESTAMP WITH TIME ZONE to nanoseconds")
    })?;
    Ok(Some(TimestampNsValue(nanos)))
});
convert!(ToDate, TimestampTzValue => DateValue, |desk, instant| {
    Ok(Some(DateValue(match instant.0 {
        i64::MAX => i32::MAX,
        finite if is_finite(finite) => {
            let wall = i128::from(finite) + i128::from(desk.clock.offset(finite));
            wall.div_euclid(i128::from(DAY)) as i32
        }
        _ => -i32::MAX,
    })))
});
convert!(ToTimeTz, TimestampTzValue => TimeTzValue, |desk, instant| {
    Ok(is_finite(instant.0).then(|| time_of(&mut desk.clock, instant.0)))
});
convert!(ToText, TimestampTzValue => String, |desk, instant| {
    text::format(&mut desk.clock, instant.0, &mut desk.text);
    Ok(Some(&desk.text))
});
convert!(FromTimestamp, TimestampValue => TimestampTzValue, |desk, wall| {
    Ok(Some(TimestampTzValue(instant_of(&mut desk.clock, wall.0)?)))
});
convert!(FromTimestampMs, TimestampMsValue => TimestampTzValue, |desk, wall| scaled(desk, wall.0, 1000));
convert!(FromTimestampSec, TimestampSecValue => TimestampTzValue, |desk, wall| scaled(desk, wall.0, 1_000_000));
convert!(FromTimestampNs, TimestampNsValue => TimestampTzValue, |desk, wall| {
    let micros = if is_finite(wall.0) { wall.0.div_euclid(1000) } else { wall.0 };
    Ok(Some(TimestampTzValue(instant_of(&mut desk.clock, micros)?)))
});
convert!(FromDate, DateValue => TimestampTzValue, |desk, date| {
    match date.0 {
        i32::MAX => Ok(Some(TimestampTzValue(i64::MAX))),
        infinite if infinite == -i32::MAX => Ok(Some(TimestampTzValue(-i64::MAX))),
        days => scaled(desk, i64::from(days), DAY),
    }
});
convert!(FromText, String => TimestampTzValue, |desk, value| {
    let conversion = |message: String| error(DuckDBError::TypeConversion, message);
    let instant = match text::read(value).map_err(|misread| conversion(misread.message(value)))? {
        Written::Instant(instant) => instant,
        Written::Wall(wall) => instant_of(&mut desk.clock, wall)?,
        Written::In(wall, zone) => {
            let clock = desk.named.at(zone).map_err(|unknown| conversion(unknown.message))?;
            in_range(Some(clock.instant(wall)))?
        }
    };
    Ok(Some(TimestampTzValue(instant)))
});

/// A wall time in a unit of so many microseconds.
fn scaled(desk: &mut Desk, wall: i64, unit: i64) -> Result<Option<TimestampTzValue>> {
    if !is_finite(wall) {
        return Ok(Some(TimestampTzValue(wall)));
    }
    let micros = wall.checked_mul(unit).ok_or_else(|| {
        error(DuckDBError::TypeConversion, "Could not convert to TIMESTAMP WITH TIME ZONE: the value is out of range")
    })?;
    Ok(Some(TimestampTzValue(instant_of(&mut desk.clock, micros)?)))
}

/// What DuckDB's binder pays for a cast that is not written.
const FROM_NAIVE: i64 = 123;
const TO_TIMETZ: i64 = 110;
const EXPLICIT: i64 = -1;

pub(super) fn register(connection: &Connection, zones: &Arc<Zones>) -> Result<()> {
    fn add<C: Convert>(
        connection: &Connection,
        zones: &Arc<Zones>,
        from: &str,
        to: &str,
        cost: i64,
        _: C,
    ) -> Result<()> {
        let [from, to] = [type_named(connection, from)?, type_named(connection, to)?];
        let cast = Cast::<C> { zones: zones.clone(), convert: std::marker::PhantomData };
        CastFunctionBuilder::new(from, to, cast).implicit_cast_cost(cost).register(connection)
    }
    const TSTZ: &str = "TIMESTAMPTZ";
    add(connection, zones, "TIMESTAMP", TSTZ, FROM_NAIVE, FromTimestamp)?;
    add(connection, zones, "TIMESTAMP_MS", TSTZ, FROM_NAIVE, FromTimestampMs)?;
    add(connection, zones, "TIMESTAMP_S", TSTZ, FROM_NAIVE, FromTimestampSec)?;
    add(connection, zones, "TIMESTAMP_NS", TSTZ, FROM_NAIVE, FromTimestampNs)?;
    add(connection, zones, "DATE", TSTZ, FROM_NAIVE, FromDate)?;
    add(connection, zones, "VARCHAR", TSTZ, EXPLICIT, FromText)?;
    add(connection, zones, TSTZ, "TIMESTAMP", EXPLICIT, ToTimestamp)?;
    add(connection, zones, TSTZ, "TIMESTAMP_MS", EXPLICIT, ToTimestampMs)?;
    add(connection, zones, TSTZ, "TIMESTAMP_S", EXPLICIT, ToTimestampSec)?;
    add(connection, zones, TSTZ, "TIMESTAMP_NS", EXPLICIT, ToTimestampNs)?;
    add(connection, zones, TSTZ, "DATE", EXPLICIT, ToDate)?;
    add(connection, zones, TSTZ, "TIMETZ", TO_TIMETZ, ToTimeTz)?;
    add(connection, zones, TSTZ, "VARCHAR", EXPLICIT, ToText)
}
