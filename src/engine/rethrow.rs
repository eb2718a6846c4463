//! An error in a row stays an error of its statement, also where DuckDB did not expect one.
//!
//! DuckDB has scalar functions and casts that it takes for infallible. Where one of them meets a value that it cannot
//! convert (a timestamp of -2^63 as text), DuckDB replaces its error by an internal one, which invalidates the database for
//! everybody. The function that does so, `duckdb::ThrowNonFallibleFunctionError`, is replaced when the server is linked
//! (build.rs) by one that lets the error through as it was thrown; DuckDB has nothing else that depends on it. A DuckDB
//! that is linked as a shared library keeps its own.

use std::ffi::c_void;

unsafe extern "C-unwind" {
    /// The C++ runtime's `throw;`.
    fn __cxa_rethrow() -> !;
}

/// Called in a handler of C++, with the exception that it handles.
#[unsafe(export_name = "__wrap__ZN6duckdb29ThrowNonFallibleFunctionErrorERKNS_10IdentifierERSt9exception")]
extern "C-unwind" fn throw_as_it_was(_function: *const c_void, _error: *const c_void) -> ! {
    // SAFETY: the caller's handler has caught the exception, which is what this throws again. It passes a frame without
    // destructors, by an ABI that may unwind.
    unsafe { __cxa_rethrow() }
}
