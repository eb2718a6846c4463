//! A loadable DuckDB extension through the C extension API, for tests: `mallard_twice(BIGINT)` is a scalar function,
//! `mallard_count_to(BIGINT)` a table function of the numbers from 1.

use std::sync::Mutex;

use duckdb_loadable_macros::duckdb_entrypoint_c_api_v2;
use duckdb_neo::{
    DuckDBType, Error,
    bind_arguments::BindArgument,
    connection::Context,
    data_chunk::{DataChunkRef, VectorCollection},
    extension::Extension,
    scalar::{ScalarCallbacks, ScalarFunctionBuilder},
    signature::{FunctionParameter, SignatureBuilder},
    table_function::{
        BindFunctionHandle, ExecColumnInfo, InitColumnData, TableFunctionBuilder, TableFunctionCallbacks,
    },
    vector::{Unknown, Vector},
};

/// The rows of one chunk.
const CHUNK_ROWS: i64 = 2048;

struct Twice;

impl ScalarCallbacks for Twice {
    type BindData = ();
    type InitData = ();

    fn exec(
        &self,
        _: Option<&()>,
        _: Option<&mut ()>,
        _: &Context,
        vectors: &mut VectorCollection,
        output: Vector<'_, Unknown>,
    ) -> duckdb_neo::Result<()> {
        let input = vectors.get_vector_at::<i64>(0)?.reader()?;
        let mut output = output.cast::<i64>()?;
        output.set_size(input.len())?;
        let mut writer = output.writer()?;
        for (row, value) in input.iter().enumerate() {
            writer.set(row, value.map(|value| value * 2))?;
        }
        Ok(())
    }
}

struct CountTo;

impl TableFunctionCallbacks for CountTo {
    type BindData = i64;
    type GlobalState = Mutex<i64>;
    type LocalState = ();

    fn bind(
        &self,
        context: &Context,
        arguments: Vec<BindArgument>,
        columns: BindFunctionHandle<'_>,
    ) -> duckdb_neo::Result<i64> {
        columns.add_result_column("number", &i64::logical_type(context)?)?;
        let last = arguments.first().and_then(|argument| argument.value.as_ref());
        let last = last.map(|value| value.get::<i64>()).transpose()?.flatten();
        last.ok_or_else(|| Error::invalid_input("mallard_count_to takes a number"))
    }

    fn init_global_state(
        &self,
        _: &i64,
        _: &Context,
        _: InitColumnData<'_>,
    ) -> duckdb_neo::Result<(Option<Mutex<i64>>, Option<usize>)> {
        Ok((Some(Mutex::new(0)), Some(1)))
    }

    fn init_local_state(
        &self,
        _: &i64,
        _: Option<&Mutex<i64>>,
        _: &Context,
        _: InitColumnData<'_>,
    ) -> duckdb_neo::Result<Option<()>> {
        Ok(None)
    }

    fn exec(
        &self,
        last: &i64,
        state: Option<&Mutex<i64>>,
        _: Option<&mut ()>,
        _: &Context,
        mut output: DataChunkRef<'_>,
        _: ExecColumnInfo<'_>,
    ) -> duckdb_neo::Result<()> {
        let state = state.ok_or_else(|| Error::invalid_input("a scan has no state"))?;
        let mut done = state.lock().map_err(|_| Error::invalid_input("another worker failed"))?;
        let rows = (last - *done).clamp(0, CHUNK_ROWS);
        let mut numbers = output.get_vector_at_mut::<i64>(0)?;
        numbers.set_size(rows as usize)?;
        let mut writer = numbers.writer()?;
        for row in 0..rows {
            writer.set(row as usize, Some(*done + row + 1))?;
        }
        *done += rows;
        Ok(())
    }
}

#[duckdb_entrypoint_c_api_v2(extension_name = "mallard_test", api_version = "v2.0.0")]
pub fn entrypoint(extension: &Extension) -> Result<(), Box<dyn std::error::Error>> {
    let number = i64::logical_type(extension)?;
    let takes_number = || SignatureBuilder::new().param(FunctionParameter::new::<i64>("number"));
    ScalarFunctionBuilder::new("mallard_twice", takes_number().return_type(number), Twice).register(extension)?;
    TableFunctionBuilder::new("mallard_count_to", takes_number(), CountTo).register(extension)?;
    Ok(())
}
