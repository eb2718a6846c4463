//! How a scalar function of rows becomes one of DuckDB's vectors.

use std::sync::Arc;

use duckdb::{
    DuckDBType, Result,
    connection::{Connection, Context},
    data_chunk::VectorCollection,
    logical_type::LogicalType,
    scalar::{ScalarCallbacks, ScalarFunctionBuilder, ScalarInitCallbacks},
    signature::{FunctionParameter, SignatureBuilder},
    types::{DateValue, IntervalValue, TimestampTzValue, TimestampValue},
    vector::{StorageKind, Unknown, Vector, WritableVectorElement},
};

use super::{
    parts::NamedPart,
    zone::{Clock, NamedClock, Zones},
};

/// What one worker keeps from one vector to the next.
pub(super) struct Worker {
    /// The session's.
    pub(super) clock: Clock,
    /// Of the zone that a row names.
    pub(super) named: NamedClock,
    pub(super) part: NamedPart,
}

impl Worker {
    pub(super) fn new(zones: &Arc<Zones>, context: &Context) -> Result<Self> {
        Ok(Self {
            clock: zones.of_session(context)?,
            named: NamedClock::new(zones.clone()),
            part: NamedPart::default(),
        })
    }
}

/// A function of rows: writes all rows of the output.
pub(super) trait Rows: Send + Sync + 'static {
    type Output: WritableVectorElement;

    fn rows(&self, worker: &mut Worker, inputs: &VectorCollection, output: Vector<'_, Self::Output>) -> Result<()>;
}

pub(super) struct Function<R> {
    pub(super) zones: Arc<Zones>,
    pub(super) rows: R,
}

impl<R: Rows> ScalarCallbacks for Function<R> {
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
        let mut output = output.cast::<R::Output>()?;
        output.set_size(inputs.row_count()?)?;
        match worker {
            Some(worker) => self.rows.rows(worker, inputs, output),
            None => self.rows.rows(&mut Worker::new(&self.zones, context)?, inputs, output),
        }
    }
}

impl<R: Rows> ScalarInitCallbacks for Function<R> {
    fn init(&self, _bound: Option<&()>, context: &Context) -> Result<Worker> {
        Worker::new(&self.zones, context)
    }
}

/// Compressed vectors have no readers.
pub(super) fn flatten(inputs: &mut VectorCollection) -> Result<()> {
    for index in 0..inputs.col_count() {
        if inputs.get_untyped_vector_at(index)?.storage_kind() == StorageKind::Other {
            inputs.get_untyped_vector_at_mut(index)?.flatten()?;
        }
    }
    Ok(())
}

/// A type by its name. Those that are used often are not parsed: a database is opened for each running exchange, too.
pub(super) fn type_named(connection: &Connection, name: &str) -> Result<LogicalType> {
    match name {
        "TIMESTAMPTZ" => TimestampTzValue::logical_type(connection),
        "TIMESTAMP" => TimestampValue::logical_type(connection),
        "INTERVAL" => IntervalValue::logical_type(connection),
        "VARCHAR" => String::logical_type(connection),
        "BIGINT" => i64::logical_type(connection),
        "DOUBLE" => f64::logical_type(connection),
        "DATE" => DateValue::logical_type(connection),
        other => LogicalType::from_text(connection, other),
    }
}

/// Adds functions with arguments and results of these types, as SQL names them.
pub(super) struct Registry<'a> {
    pub(super) connection: &'a Connection,
    pub(super) zones: &'a Arc<Zones>,
}

impl Registry<'_> {
    pub(super) fn signature(&self, arguments: &[&str], result: &str) -> Result<SignatureBuilder> {
        let mut signature = SignatureBuilder::new();
        for (at, argument) in arguments.iter().enumerate() {
            let logical_type = type_named(self.connection, argument)?;
            signature = signature.param(FunctionParameter::with_type(format!("argument{at}"), logical_type));
        }
        Ok(signature.return_type(type_named(self.connection, result)?))
    }

    pub(super) fn add<R: Rows>(&self, name: &str, arguments: &[&str], result: &str, rows: R) -> Result<()> {
        let function = Function { zones: self.zones.clone(), rows };
        ScalarFunctionBuilder::new(name, self.signature(arguments, result)?, function)
            .with_init()
            .register(self.connection)
    }
}

/// Declares a function of rows: NULL where an argument is NULL, else the value of the body, which may be NULL, too.
macro_rules! rows {
    ($(#[$doc:meta])* $name:ident $(($field:ty))?, |$this:pat_param, $worker:ident $(, $arg:ident: $type:ty)*| -> $output:ty $body:block) => {
        $(#[$doc])*
        pub(super) struct $name $((pub(super) $field))?;

        impl Rows for $name {
            type Output = $output;

            #[allow(unused_mut, unused_variables, unused_assignments)]
            fn rows(&self, $worker: &mut Worker, inputs: &VectorCollection, mut output: Vector<'_, $output>) -> Result<()> {
                let $this = self;
                let mut at = 0;
                $(
                    let $arg = inputs.get_vector_at::<$type>(at)?.reader()?;
                    at += 1;
                )*
                let mut writer = output.writer()?;
                for row in 0..writer.len() {
                    $(
                        let Some($arg) = $arg.get(row)? else {
                            writer.set(row, None)?;
                            continue;
                        };
                    )*
                    let value = $body;
                    writer.set(row, value)?;
                }
                Ok(())
            }
        }
    };
}
pub(super) use rows;
