//! One running module: an instance with memory of its own, and the calls into it. Each call has limits, and whatever
//! goes wrong in it is an answer that names the exchanger; after that the instance is thrown away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::{
    Instance, Memory as LinearMemory, ResourceLimiter, Store, Trap, TypedFunc, UpdateDeadline, WasmParams, WasmResults,
};

use super::{
    Host,
    abi::{self, Memory, NOTHING, ROWS},
    declare,
    give::{Image, is_supported},
    module::Module,
    take::{self, Bounds, Given, Refused},
};
use crate::{
    config,
    error::{Error, Result},
};

/// Bytes of a module's own message that are passed on.
const MAX_MESSAGE: usize = 1024;

/// Room for the structure that a call fills, at a multiple of 8.
const ANSWER_SIZE: usize = abi::array::SIZE + 8;

/// Why a call did not do what it should.
enum Fault {
    /// The module says so, in its own words.
    Said(String),
    /// It did what no module may.
    Broke(String),
    Limit {
        what: String,
        key: &'static str,
    },
    /// Nobody waits for it any more.
    Abandoned,
}

impl<T: Into<String>> From<T> for Fault {
    fn from(what: T) -> Self {
        Self::Broke(what.into())
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Said(what) | Fault::Broke(what) => Self::invalid(what),
            Fault::Limit { what, key } => Self::Limit { what, key },
            Fault::Abandoned => Self::Cancelled,
        }
    }
}

/// A module that reads one stream.
pub(super) struct Guest {
    module: Arc<Module>,
    store: Store<State>,
    exports: Exports,
    /// Memory of the module's that holds what it is given: where, and how much.
    region: (u32, usize),
    answer: u32,
    input: SchemaRef,
    output: SchemaRef,
    /// For each column of the input.
    reads: Vec<bool>,
    /// Rows of the input that have passed.
    seen: u64,
    /// Given back when the instance is gone.
    _permit: OwnedSemaphorePermit,
}

struct Exports {
    memory: LinearMemory,
    alloc: TypedFunc<i32, i32>,
    free: Option<TypedFunc<(i32, i32), ()>>,
    open: TypedFunc<(i32, i32, i32, i32), i32>,
    reads: Option<TypedFunc<i32, i32>>,
    batch: TypedFunc<(i32, i32), i32>,
    finish: Option<TypedFunc<i32, i32>>,
    error: Option<TypedFunc<(), i32>>,
}

impl Guest {
    /// Whether the module can be used at all: it has what an exchanger needs, and starts.
    pub(super) fn try_out(module: &Module) -> Result<()> {
        let (mut store, instance) = instantiate(module, Arc::default())?;
        Exports::of(&mut store, &instance)?;
        let version: TypedFunc<(), i32> = function(&mut store, &instance, "mallard_abi_version", "() -> i32")?;
        match call(&module.host, &mut store, &version, ())? {
            abi::VERSION => Ok(()),
            other => {
                Err(Error::invalid(format!("its ABI is version {other}, and this server speaks {}", abi::VERSION)))
            }
        }
    }

    /// Starts an instance; it has told the schema of its output when this returns.
    pub(super) fn open(
        module: Arc<Module>,
        input: SchemaRef,
        params: &str,
        cancelled: Arc<AtomicBool>,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self> {
        let (mut store, instance) = instantiate(&module, cancelled)?;
        let exports = Exports::of(&mut store, &instance)?;
        let output = Arc::new(Schema::empty());
        let reads = vec![true; input.fields().len()];
        let mut guest =
            Self { module, store, exports, region: (0, 0), answer: 0, input, output, reads, seen: 0, _permit: permit };
        guest.agree(params)?;
        Ok(guest)
    }

    pub(super) fn output(&self) -> SchemaRef {
        self.output.clone()
    }

    fn agree(&mut self, params: &str) -> Result<(), Fault> {
        // What is given here stays where it is: a module may keep pointers into it.
        let image = Image::of_schema(&self.input)?;
        let address = self.alloc(image.size())?;
        let placed = image.write(self.exports.memory.data_mut(&mut self.store), address);
        let text = self.alloc(params.len() + 1)?;
        let memory = self.exports.memory.data_mut(&mut self.store);
        memory[text as usize..][..params.len()].copy_from_slice(params.as_bytes());
        memory[text as usize + params.len()] = 0;
        self.answer = self.alloc(ANSWER_SIZE)?.next_multiple_of(8);

        self.clear_answer();
        let arguments = (placed.root as i32, text as i32, params.len() as i32, self.answer as i32);
        let open = self.exports.open.clone();
        match self.call(&open, arguments)? {
            NOTHING => {}
            other => return Err(self.said("mallard_open", other)),
        }
        let output = declare::schema(self.memory(), self.answer, &self.input, placed);
        self.output = output.map_err(|why| format!("its output schema is malformed: {why}"))?;

        if let Some(reads) = self.exports.reads.clone() {
            for column in 0..self.reads.len() {
                self.reads[column] = self.call(&reads, column as i32)? != 0;
            }
        }
        let unreadable = self.input.fields().iter().zip(&self.reads);
        if let Some((field, _)) =
            unreadable.into_iter().find(|(field, read)| **read && !is_supported(field.data_type()))
        {
            let (name, data_type) = (field.name(), field.data_type());
            return Err(format!("column \"{name}\": a module cannot read {data_type}, only pass it on").into());
        }
        Ok(())
    }

    /// As many pieces as the module's memory needs: a piece takes a quarter of it at most, where rows are of one size.
    pub(super) fn pieces(&self, batch: &RecordBatch) -> Vec<RecordBatch> {
        let read = batch.columns().iter().zip(&self.reads).filter(|(_, read)| **read);
        let bytes: usize = read.map(|(column, _)| column.to_data().get_slice_memory_size().unwrap_or(0)).sum();
        let pieces = bytes.div_ceil(self.config().memory.bytes() / 4).max(1);
        let rows = batch.num_rows().div_ceil(pieces).max(1);
        let starts = (0..batch.num_rows()).step_by(rows);
        starts.map(|start| batch.slice(start, rows.min(batch.num_rows() - start))).collect()
    }

    /// The rows that the module makes of a batch, if it makes any.
    pub(super) fn batch(&mut self, batch: &RecordBatch) -> Result<Option<RecordBatch>> {
        let first = self.seen + 1;
        self.seen += batch.num_rows() as u64;
        let last = self.seen;
        let answered = self.transform(batch).map_err(|fault| match fault {
            Fault::Said(what) => Fault::Said(format!("{what}, in the rows up to {last}")),
            other => other,
        });
        answered.map_err(|fault| Error::from(fault).at_row(first))
    }

    fn transform(&mut self, batch: &RecordBatch) -> Result<Option<RecordBatch>, Fault> {
        let image = Image::of_rows(batch, &self.reads)?;
        let size = image.size();
        if size > self.region.1 {
            let (address, size) = std::mem::take(&mut self.region);
            if let Some(free) = self.exports.free.clone().filter(|_| size > 0) {
                self.call(&free, (address as i32, size as i32))?;
            }
            // A little more than needed, so that batches of almost one size need it once.
            let size = image.size() + image.size() / 8;
            self.region = (self.alloc(size)?, size);
        }
        let placed = image.write(self.exports.memory.data_mut(&mut self.store), self.region.0);
        self.clear_answer();
        let function = self.exports.batch.clone();
        match self.call(&function, (placed.root as i32, self.answer as i32))? {
            NOTHING => Ok(None),
            ROWS => self.answered(Some(Given { batch, placed })),
            other => Err(self.said("mallard_batch", other)),
        }
    }

    /// What the module still has when the input has ended; asked until there is nothing.
    pub(super) fn finish(&mut self) -> Result<Option<RecordBatch>> {
        let Some(function) = self.exports.finish.clone() else {
            return Ok(None);
        };
        self.clear_answer();
        match self.call(&function, self.answer as i32)? {
            NOTHING => Ok(None),
            ROWS => Ok(self.answered(None)?),
            other => Err(self.said("mallard_finish", other).into()),
        }
    }

    fn answered(&self, given: Option<Given<'_>>) -> Result<Option<RecordBatch>, Fault> {
        let config = self.config();
        let bounds = Bounds { rows: config.output_rows, bytes: config.output_size.bytes() };
        match take::rows(self.memory(), self.answer, &self.output, given, bounds) {
            Ok(batch) => Ok(Some(batch)),
            Err(Refused::Malformed(why)) => Err(format!("it answered malformed rows: {why}").into()),
            Err(Refused::TooManyRows(rows)) => Err(Fault::Limit {
                what: format!("it answered {rows} rows at once, and {} are the most", config.output_rows),
                key: "wasm.output_rows",
            }),
            Err(Refused::TooManyBytes) => Err(Fault::Limit {
                what: format!("it answered more than {} at once", config.output_size),
                key: "wasm.output_size",
            }),
        }
    }

    fn config(&self) -> &config::Wasm {
        &self.module.host.config
    }

    fn memory(&self) -> Memory<'_> {
        Memory(self.exports.memory.data(&self.store))
    }

    fn clear_answer(&mut self) {
        let at = self.answer as usize;
        self.exports.memory.data_mut(&mut self.store)[at..at + abi::array::SIZE].fill(0);
    }

    /// Memory of the module's for as many bytes, all of it within its bounds.
    fn alloc(&mut self, size: usize) -> Result<u32, Fault> {
        let asked = i32::try_from(size).map_err(|_| format!("{size} bytes at once are too many for it"))?;
        let alloc = self.exports.alloc.clone();
        let address = self.call(&alloc, asked)? as u32;
        if address == 0 {
            return Err(self.told(&format!("mallard_alloc has no {size} bytes")));
        }
        let memory = self.exports.memory.data_size(&self.store);
        let end = (address as usize).checked_add(size).filter(|end| *end <= memory);
        end.map(|_| address).ok_or_else(|| format!("mallard_alloc answered {size} bytes outside of its memory").into())
    }

    fn call<P: WasmParams, R: WasmResults>(&mut self, function: &TypedFunc<P, R>, arguments: P) -> Result<R, Fault> {
        let module = self.module.clone();
        call(&module.host, &mut self.store, function, arguments).map_err(|fault| match fault {
            // A module that panics leaves its message behind.
            Fault::Broke(trap) => match self.message() {
                Some(message) => Fault::Said(format!("{message} ({trap})")),
                None => self.told(&trap),
            },
            other => other,
        })
    }

    /// The module has answered that it failed.
    fn said(&mut self, function: &str, status: i32) -> Fault {
        match self.message() {
            Some(message) => Fault::Said(message),
            None => Fault::Broke(format!("{function} answered {status} and no message")),
        }
    }

    /// What happened, with the limit that may be why.
    fn told(&self, what: &str) -> Fault {
        match self.store.data().refused {
            Some(key) => Fault::Limit { what: format!("{what}; it asked for more than {key}"), key },
            None => Fault::Broke(what.to_string()),
        }
    }

    /// The text that `mallard_error` points to, cut and on one line.
    fn message(&mut self) -> Option<String> {
        let function = self.exports.error.clone()?;
        let at = call(&self.module.host.clone(), &mut self.store, &function, ()).ok()? as u32;
        let rest = self.exports.memory.data(&self.store).get(at as usize..).filter(|_| at != 0)?;
        let text = &rest[..rest.len().min(MAX_MESSAGE)];
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let text: String =
            String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Some(text.trim().to_string()).filter(|text| !text.is_empty())
    }
}

// === calls ===

/// What the limits of one instance need to know.
pub(super) struct State {
    memory: usize,
    table_elements: usize,
    /// The key of a limit that the module ran into.
    refused: Option<&'static str>,
    /// Processor time of this thread at which the call has to end, and why it would.
    ends: (Duration, Overtime),
    /// Processor time of all calls together.
    spent: Duration,
    cancelled: Arc<AtomicBool>,
}

#[derive(Debug, Clone, Copy)]
enum Overtime {
    Call,
    Stream,
    Cancelled,
}

impl std::fmt::Display for Overtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Overtime {}

impl ResourceLimiter for State {
    fn memory_growing(&mut self, _: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if desired > self.memory {
            self.refused = Some("wasm.memory");
        }
        Ok(desired <= self.memory && maximum.is_none_or(|maximum| desired <= maximum))
    }

    fn table_growing(&mut self, _: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if desired > self.table_elements {
            self.refused = Some("wasm.table_elements");
        }
        Ok(desired <= self.table_elements && maximum.is_none_or(|maximum| desired <= maximum))
    }

    fn instances(&self) -> usize {
        1
    }

    fn memories(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        4
    }
}

fn instantiate(module: &Module, cancelled: Arc<AtomicBool>) -> Result<(Store<State>, Instance), Fault> {
    let config = &module.host.config;
    let state = State {
        memory: config.memory.bytes(),
        table_elements: config.table_elements,
        refused: None,
        ends: (Duration::ZERO, Overtime::Call),
        spent: Duration::ZERO,
        cancelled,
    };
    let mut store = Store::new(&module.host.engine, state);
    store.limiter(|state| state);
    store.epoch_deadline_callback(|context| {
        let State { ends: (end, why), cancelled, .. } = context.data();
        if cancelled.load(Ordering::Relaxed) {
            return Err(Overtime::Cancelled.into());
        }
        if processor_time() >= *end { Err((*why).into()) } else { Ok(UpdateDeadline::Continue(1)) }
    });
    // The module's start function runs here.
    let instance =
        timed(&module.host, &mut store, |store| module.ready.instantiate(store)).map_err(|fault| {
            match (fault, store.data().refused) {
                (Fault::Broke(what), Some(key)) => Fault::Limit { what, key },
                (other, _) => other,
            }
        })?;
    if let Ok(initialize) = instance.get_typed_func::<(), ()>(&mut store, "_initialize") {
        call(&module.host, &mut store, &initialize, ())?;
    }
    Ok((store, instance))
}

fn call<P: WasmParams, R: WasmResults>(
    host: &Host,
    store: &mut Store<State>,
    function: &TypedFunc<P, R>,
    arguments: P,
) -> Result<R, Fault> {
    timed(host, store, |store| function.call(store, arguments))
}

/// Runs what runs the module's code, within its time.
fn timed<T>(
    host: &Host,
    store: &mut Store<State>,
    run: impl FnOnce(&mut Store<State>) -> wasmtime::Result<T>,
) -> Result<T, Fault> {
    let (call_time, stream_time) = (host.config.call_time.0, host.config.stream_time.limit().unwrap_or(Duration::MAX));
    let begun = processor_time();
    let state = store.data_mut();
    let left = stream_time.saturating_sub(state.spent);
    let (allowed, why) = if left < call_time { (left, Overtime::Stream) } else { (call_time, Overtime::Call) };
    state.ends = (begun + allowed, why);
    store.set_epoch_deadline(1);
    let outcome = {
        let _ticking = host.ticker.running();
        run(store)
    };
    store.data_mut().spent += processor_time().saturating_sub(begun);
    outcome.map_err(|error| match error.downcast_ref::<Overtime>() {
        Some(Overtime::Cancelled) => Fault::Abandoned,
        Some(Overtime::Call) => Fault::Limit {
            what: format!("it computed for longer than {} at once", host.config.call_time),
            key: "wasm.call_time",
        },
        Some(Overtime::Stream) => Fault::Limit {
            what: format!("it computed for longer than {} in all", host.config.stream_time),
            key: "wasm.stream_time",
        },
        None => match error.downcast_ref::<Trap>() {
            Some(trap) => Fault::Broke(trap.to_string()),
            None => Fault::Broke(super::module::cut(&format!("{error:#}"))),
        },
    })
}

/// Of this thread: a module does not pay for a machine that is busy with others.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

// === impl Exports ===

impl Exports {
    fn of(store: &mut Store<State>, instance: &Instance) -> Result<Self, Fault> {
        let memory = instance.get_memory(&mut *store, "memory").ok_or("it exports no memory named \"memory\"")?;
        Ok(Self {
            memory,
            alloc: function(store, instance, "mallard_alloc", "(i32) -> i32")?,
            free: optional(store, instance, "mallard_free", "(i32, i32)")?,
            open: function(store, instance, "mallard_open", "(i32, i32, i32, i32) -> i32")?,
            reads: optional(store, instance, "mallard_reads", "(i32) -> i32")?,
            batch: function(store, instance, "mallard_batch", "(i32, i32) -> i32")?,
            finish: optional(store, instance, "mallard_finish", "(i32) -> i32")?,
            error: optional(store, instance, "mallard_error", "() -> i32")?,
        })
    }
}

fn function<P: WasmParams, R: WasmResults>(
    store: &mut Store<State>,
    instance: &Instance,
    name: &str,
    signature: &str,
) -> Result<TypedFunc<P, R>, Fault> {
    let found = optional(store, instance, name, signature)?;
    found.ok_or_else(|| format!("it exports no function {name} {signature}").into())
}

fn optional<P: WasmParams, R: WasmResults>(
    store: &mut Store<State>,
    instance: &Instance,
    name: &str,
    signature: &str,
) -> Result<Option<TypedFunc<P, R>>, Fault> {
    let Some(export) = instance.get_export(&mut *store, name) else {
        return Ok(None);
    };
    let typed = export.into_func().and_then(|function| function.typed(&*store).ok());
    typed.map(Some).ok_or_else(|| format!("its export {name} is not a function {signature}").into())
}
