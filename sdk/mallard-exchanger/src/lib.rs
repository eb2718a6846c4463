//! Writes exchangers for Mallard: functions from a stream of rows to a stream of rows, as WebAssembly modules.
//!
//! ```no_run
//! use mallard_exchanger::{exchanger, format, Batch, Exchanger, Field, Output, Schema};
//!
//! /// Appends a BOOLEAN column that is true in every row.
//! struct Processed;
//!
//! impl Exchanger for Processed {
//!     fn open(input: &Schema, _params: &str) -> Result<(Self, Schema), String> {
//!         Ok((Processed, input.clone().with(Field::new("processed", format::BOOL))))
//!     }
//!
//!     fn reads(&self, _column: usize) -> bool {
//!         false // All columns pass as they are: nothing is copied.
//!     }
//!
//!     fn batch(&mut self, input: &Batch, output: &mut Output) -> Result<(), String> {
//!         output.pass(input);
//!         output.push(vec![true; input.rows()]);
//!         Ok(())
//!     }
//! }
//!
//! exchanger!(Processed);
//! ```
//!
//! A crate of the type `cdylib`, built with `cargo build --release --target wasm32-unknown-unknown`, is a module that
//! `mallard exchange test` runs and `mallard exchange add` registers. What it speaks is `docs/exchanger-abi.md`.

mod abi;
mod input;
mod output;
mod params;
mod schema;

pub use input::{Batch, Bools, Input, Native, Texts};
pub use output::{Column, Lists, Output, Rows, Strings};
pub use params::{Number, Params, Value};
pub use schema::{format, Field, Schema};

#[doc(hidden)]
pub use abi::glue;

/// One stream's worth of work. A module has one instance for each stream, with memory of its own.
pub trait Exchanger: Sized {
    /// The input's schema and the parameters (JSON, or nothing) in, the output's schema out: before there are rows.
    fn open(input: &Schema, params: &str) -> Result<(Self, Schema), String>;

    /// Whether [`Self::batch`] looks into this column of the input. One that it does not read can still be passed on, and
    /// costs nothing.
    fn reads(&self, _column: usize) -> bool {
        true
    }

    /// The rows that follow from some rows of the input. An error ends the stream, and its text is what the client gets.
    fn batch(&mut self, input: &Batch, output: &mut Output) -> Result<(), String>;

    /// When the input has ended, until it gives no more.
    fn finish(&mut self, _output: &mut Output) -> Result<(), String> {
        Ok(())
    }
}

/// Makes the module's exports out of a type that is an [`Exchanger`].
#[macro_export]
macro_rules! exchanger {
    ($exchanger:ty) => {
        static MALLARD_EXCHANGER: $crate::glue::Slot<$exchanger> = $crate::glue::Slot::new();

        #[no_mangle]
        pub extern "C" fn mallard_abi_version() -> i32 {
            $crate::glue::VERSION
        }

        #[no_mangle]
        pub extern "C" fn mallard_alloc(size: usize) -> *mut u8 {
            $crate::glue::alloc(size)
        }

        /// # Safety
        /// Called by the host with what `mallard_alloc` has answered.
        #[no_mangle]
        pub unsafe extern "C" fn mallard_free(address: *mut u8, size: usize) {
            $crate::glue::free(address, size)
        }

        /// # Safety
        /// Called by the host as the ABI says.
        #[no_mangle]
        pub unsafe extern "C" fn mallard_open(
            input: *const $crate::glue::ArrowSchema,
            params: *const u8,
            length: usize,
            output: *mut $crate::glue::ArrowSchema,
        ) -> i32 {
            MALLARD_EXCHANGER.open(input, params, length, output)
        }

        #[no_mangle]
        pub extern "C" fn mallard_reads(column: usize) -> i32 {
            MALLARD_EXCHANGER.reads(column)
        }

        /// # Safety
        /// Called by the host as the ABI says.
        #[no_mangle]
        pub unsafe extern "C" fn mallard_batch(
            input: *const $crate::glue::ArrowArray,
            output: *mut $crate::glue::ArrowArray,
        ) -> i32 {
            MALLARD_EXCHANGER.batch(input, output)
        }

        /// # Safety
        /// Called by the host as the ABI says.
        #[no_mangle]
        pub unsafe extern "C" fn mallard_finish(output: *mut $crate::glue::ArrowArray) -> i32 {
            MALLARD_EXCHANGER.finish(output)
        }

        #[no_mangle]
        pub extern "C" fn mallard_error() -> *const u8 {
            $crate::glue::error()
        }
    };
}
