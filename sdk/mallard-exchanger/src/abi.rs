//! The structures of the Arrow C Data Interface, and what stands between the host's calls and an `Exchanger`.

use std::{os::raw::c_char, ptr};

#[repr(C)]
pub struct ArrowSchema {
    pub format: *const c_char,
    pub name: *const c_char,
    pub metadata: *const c_char,
    pub flags: i64,
    pub n_children: i64,
    pub children: *const *const ArrowSchema,
    pub dictionary: *const ArrowSchema,
    pub release: usize,
    pub private_data: usize,
}

#[repr(C)]
pub struct ArrowArray {
    pub length: i64,
    pub null_count: i64,
    pub offset: i64,
    pub n_buffers: i64,
    pub n_children: i64,
    pub buffers: *const *const u8,
    pub children: *const *const ArrowArray,
    pub dictionary: *const ArrowArray,
    pub release: usize,
    pub private_data: usize,
}

impl ArrowArray {
    pub(crate) fn empty(length: usize) -> Self {
        ArrowArray {
            length: length as i64,
            null_count: -1,
            offset: 0,
            n_buffers: 0,
            n_children: 0,
            buffers: ptr::null(),
            children: ptr::null(),
            dictionary: ptr::null(),
            release: 0,
            private_data: 0,
        }
    }
}

pub mod glue {
    use std::{
        alloc::Layout,
        cell::{Cell, UnsafeCell},
        panic, slice, str,
    };

    pub use super::{ArrowArray, ArrowSchema};
    use crate::{
        schema::{OwnedSchema, Schema},
        Batch, Exchanger, Output,
    };

    pub const VERSION: i32 = 1;

    const FAILED: i32 = -1;
    const NOTHING: i32 = 0;
    const ROWS: i32 = 1;

    /// Where the host's data is aligned.
    const ALIGNMENT: usize = 64;

    thread_local! {
        /// The last error's text, with a zero at its end.
        static ERROR: Cell<&'static [u8]> = Cell::new(&[]);
    }

    fn fail(text: &str) -> i32 {
        let bytes: Vec<u8> = text.bytes().filter(|byte| *byte != 0).chain(Some(0)).collect();
        // Errors end the stream, and the instance with it.
        ERROR.with(|error| error.set(Box::leak(bytes.into_boxed_slice())));
        FAILED
    }

    pub fn error() -> *const u8 {
        let text = ERROR.with(Cell::get);
        if text.is_empty() {
            std::ptr::null()
        } else {
            text.as_ptr()
        }
    }

    pub fn alloc(size: usize) -> *mut u8 {
        match Layout::from_size_align(size.max(1), ALIGNMENT) {
            // SAFETY: the size is not 0.
            Ok(layout) => unsafe { std::alloc::alloc(layout) },
            Err(_) => std::ptr::null_mut(),
        }
    }

    /// # Safety
    /// `alloc` has answered `address` to this `size`.
    pub unsafe fn free(address: *mut u8, size: usize) {
        std::alloc::dealloc(address, Layout::from_size_align_unchecked(size.max(1), ALIGNMENT));
    }

    struct Running<T> {
        exchanger: T,
        input: Schema,
        /// What the last call has answered; the host reads it before the next one.
        schema: OwnedSchema,
        output: Output,
    }

    /// The one exchanger of a module.
    pub struct Slot<T>(UnsafeCell<Option<Running<T>>>);

    // SAFETY: a module has one thread.
    unsafe impl<T> Sync for Slot<T> {}

    impl<T: Exchanger> Slot<T> {
        pub const fn new() -> Self {
            Slot(UnsafeCell::new(None))
        }

        #[allow(clippy::mut_from_ref)]
        fn running(&self) -> Option<&mut Running<T>> {
            // SAFETY: the host makes one call at a time, and no exchanger calls back.
            unsafe { (*self.0.get()).as_mut() }
        }

        /// # Safety
        /// The arguments are the host's: a schema, `length` bytes of UTF-8, and room for a schema.
        pub unsafe fn open(
            &self,
            input: *const ArrowSchema,
            params: *const u8,
            length: usize,
            output: *mut ArrowSchema,
        ) -> i32 {
            panic::set_hook(Box::new(|panicked| {
                fail(&panicked.to_string());
            }));
            let input = Schema::read(&*input);
            let params = str::from_utf8_unchecked(slice::from_raw_parts(params, length));
            match T::open(&input, params) {
                Ok((exchanger, schema)) => {
                    let schema = OwnedSchema::new(schema);
                    *output = schema.root();
                    *self.0.get() = Some(Running { exchanger, input, schema, output: Output::default() });
                    NOTHING
                }
                Err(text) => fail(&text),
            }
        }

        pub fn reads(&self, column: usize) -> i32 {
            self.running().map_or(1, |running| running.exchanger.reads(column) as i32)
        }

        /// # Safety
        /// The arguments are the host's: rows of the schema that `open` was given, and room for an array.
        pub unsafe fn batch(&self, input: *const ArrowArray, output: *mut ArrowArray) -> i32 {
            let running = match self.running() {
                Some(running) => running,
                None => return fail("mallard_batch was called before mallard_open"),
            };
            running.output = Output::default();
            let batch = Batch::new(&running.input, &*input);
            match running.exchanger.batch(&batch, &mut running.output) {
                Ok(()) => running.answer(output),
                Err(text) => fail(&text),
            }
        }

        /// # Safety
        /// The argument is the host's: room for an array.
        pub unsafe fn finish(&self, output: *mut ArrowArray) -> i32 {
            let running = match self.running() {
                Some(running) => running,
                None => return fail("mallard_finish was called before mallard_open"),
            };
            running.output = Output::default();
            match running.exchanger.finish(&mut running.output) {
                Ok(()) => running.answer(output),
                Err(text) => fail(&text),
            }
        }
    }

    impl<T: Exchanger> Default for Slot<T> {
        fn default() -> Self {
            Self::new()
        }
    }

    impl<T> Running<T> {
        unsafe fn answer(&mut self, output: *mut ArrowArray) -> i32 {
            match self.output.root(self.schema.columns()) {
                Ok(Some(root)) => {
                    *output = root;
                    ROWS
                }
                Ok(None) => NOTHING,
                Err(text) => fail(&text),
            }
        }
    }
}
