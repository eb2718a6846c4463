//! A function that fails as an assertion of DuckDB's does, for tests: no key reaches it.

use duckdb::{
    connection::{Connection, Context},
    data_chunk::VectorCollection,
    enums::{FunctionProperty, FunctionPropertyStability},
    error::Error,
    scalar::{ScalarCallbacks, ScalarFunctionBuilder},
    signature::{FunctionParameter, SignatureBuilder},
    types::DuckDBType,
    vector::{Unknown, Vector},
};

/// In `database.debug`: the name that the function gets. It takes a BIGINT.
pub(super) const KEY: &str = "fatal_function";

struct FatalFunction;

impl ScalarCallbacks for FatalFunction {
    type BindData = ();
    type InitData = ();

    fn exec(
        &self,
        _: Option<&()>,
        _: Option<&mut ()>,
        _: &Context,
        _: &mut VectorCollection,
        _: Vector<'_, Unknown>,
    ) -> duckdb::Result<()> {
        Err(Error::internal("an assertion has failed, as a test asked for"))
    }
}

pub(super) fn register(connection: &Connection, name: &str) -> duckdb::Result<()> {
    let signature = SignatureBuilder::new()
        .param(FunctionParameter::new::<i64>("value"))
        .return_type(i64::logical_type(connection)?);
    // Else it would be computed, and fail, while the statement is planned, which invalidates nothing.
    let stability = FunctionProperty::Stability(FunctionPropertyStability::Volatile);
    ScalarFunctionBuilder::new(name, signature, FatalFunction).set_property(stability).register(connection)
}
