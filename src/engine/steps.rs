//! The rows of a running statement, taken step by step, so that a cancellation is noticed between two steps.
//!
//! DuckDB aborts a transaction when an interrupt meets a SELECT in it, and leaves it as it is when the SELECT's result is
//! closed before its end.

use std::time::Instant;

use duckdb::{
    arrow::ArrowArray,
    query_result::{ArrowResultStep, ResultType},
};

use super::{Shared, pool::Cancel, rows::Rows};
use crate::error::{Error, Result};

/// What a result has.
pub(super) enum Next {
    Array(ArrowArray),
    /// Nothing yet, and it is late.
    Late,
    End,
}

/// A result that is closed when this is dropped.
pub(super) struct Steps<'r> {
    result: Rows<'r>,
    cancel: &'r Cancel,
    shared: &'r Shared,
    over: bool,
}

impl<'r> Steps<'r> {
    pub(super) fn of(result: Rows<'r>, cancel: &'r Cancel, shared: &'r Shared) -> Self {
        Self { result, cancel, shared, over: false }
    }

    pub(super) fn result(&self) -> &Rows<'r> {
        &self.result
    }

    pub(super) fn result_type(&self) -> Result<ResultType> {
        self.result.result_type().map_err(|error| self.shared.cause(&error))
    }

    pub(super) fn next(&mut self) -> Result<Option<ArrowArray>> {
        match self.next_until(None)? {
            Next::Array(array) => Ok(Some(array)),
            Next::Late | Next::End => Ok(None),
        }
    }

    /// The same, which does not begin to wait behind that time.
    pub(super) fn next_until(&mut self, due: Option<Instant>) -> Result<Next> {
        let cause = |error: duckdb::Error| self.shared.cause(&error);
        loop {
            self.cancel.check()?;
            let step = self.result.step(self.shared).inspect_err(|_| self.over = true)?;
            match step {
                // At most some milliseconds: DuckDB looks up now and then.
                ArrowResultStep::Waiting if due.is_some_and(|due| Instant::now() >= due) => return Ok(Next::Late),
                ArrowResultStep::Waiting => self.result.wait().map_err(cause)?,
                ArrowResultStep::Finished => {
                    self.over = true;
                    return Ok(Next::End);
                }
                ArrowResultStep::Canceled => {
                    self.over = true;
                    return Err(Error::Cancelled);
                }
                ArrowResultStep::Array(array) => return Ok(Next::Array(array)),
            }
        }
    }

    /// Runs it to its end; how many rows it changed.
    pub(super) fn drain(&mut self) -> Result<usize> {
        self.over = true;
        self.result.drain().map_err(|error| self.shared.cause(&error))
    }
}

impl Drop for Steps<'_> {
    fn drop(&mut self) {
        if !self.over {
            // Closing the result waits for DuckDB's workers, and they do not look whether it is closed.
            self.cancel.stop_workers();
        }
    }
}
