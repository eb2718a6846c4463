//! Columns of any of DuckDB's types as Arrow has them, without a word of SQL for the types.
//!
//! Some types have a name that DuckDB writes and does not read (the states of aggregates), and others have one that means
//! something else elsewhere. DuckDB tells their Arrow form only where a function of ours is bound, so there is one: bound on
//! the thread that asks, it takes the columns from there, and leaves the schema.

use std::cell::RefCell;

use duckdb::{
    arrow::{ArrowExporter, ArrowSchema},
    bind_arguments::BindArgument,
    connection::{Connection, Context},
    data_chunk::DataChunkRef,
    logical_type::LogicalType,
    signature::SignatureBuilder,
    table_function::{BindFunctionHandle, ExecColumnInfo, TableFunctionBuilder, TableFunctionCallbacks},
};

use super::{Shared, statement};
use crate::error::{Error, Result};

/// The function's name in SQL; it is on no list of functions that clients may call.
const FUNCTION: &str = "mallard_schema";

pub(super) type Columns = Vec<(String, LogicalType)>;

thread_local! {
    /// What is asked for on this thread, and the answer.
    static ASKED: RefCell<(Columns, Option<ArrowSchema>)> = const { RefCell::new((Vec::new(), None)) };
}

/// Makes the function known to `connection`'s database.
pub(super) fn register_function(connection: &Connection) -> duckdb::Result<()> {
    TableFunctionBuilder::new(FUNCTION, SignatureBuilder::new(), SchemaFunction).register(connection)
}

/// The columns as a result of `connection` has them.
pub(super) fn schema_of(shared: &Shared, connection: &Connection, columns: Columns) -> Result<ArrowSchema> {
    ASKED.set((columns, None));
    let bound = statement::parse(shared, connection, &format!("FROM {FUNCTION}()"))
        .and_then(|statement| statement.bind(connection).map(drop).map_err(|error| shared.cause(&error)));
    let (_, schema) = ASKED.take();
    bound?;
    schema.ok_or_else(|| Error::internal("DuckDB has bound a function on another thread than the one that asked"))
}

struct SchemaFunction;

impl TableFunctionCallbacks for SchemaFunction {
    type BindData = ();
    type LocalState = ();
    type GlobalState = ();

    fn bind(
        &self,
        context: &Context,
        _arguments: Vec<BindArgument>,
        output: BindFunctionHandle<'_>,
    ) -> duckdb::Result<()> {
        ASKED.with_borrow_mut(|(columns, schema)| {
            let first = columns.first().ok_or_else(|| duckdb::Error::invalid_input("no columns are asked for"))?;
            output.add_result_column("column", &first.1)?;
            let borrowed: Vec<_> = columns.iter().map(|(name, of)| (name.as_str(), of.clone())).collect();
            *schema = Some(ArrowExporter::new(context, &borrowed, None)?.schema()?);
            Ok(())
        })
    }

    fn exec(
        &self,
        _bound: &(),
        _global: Option<&()>,
        _local: Option<&mut ()>,
        _context: &Context,
        _output: DataChunkRef<'_>,
        _columns: ExecColumnInfo<'_>,
    ) -> duckdb::Result<()> {
        // No rows.
        Ok(())
    }
}
