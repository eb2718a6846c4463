//! Exchangers that clients register as WebAssembly modules, each run with memory and time of its own and nothing else:
//! a module imports nothing, so it can reach neither files, network and clock, nor the server.
//!
//! A module is compiled once, when it is registered, and has an instance for each stream, which is thrown away with it:
//! nothing of one caller's rows is there for the next. Modules run on blocking threads. What the two sides say to each
//! other is in `docs/exchanger-abi.md`.

mod abi;
mod declare;
mod give;
mod guest;
mod module;
mod take;
mod ticker;

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use arrow_array::RecordBatch;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use tokio::sync::Semaphore;
use wasmtime::{Engine, OptLevel};

use guest::Guest;
use module::Module;
use ticker::Ticker;

use super::{About, Arguments, Exchanger, Kind, Parameters, Run, sql::Sandboxes};
use crate::{
    config,
    error::{Error, Result},
    machine,
    stream::RecordBatchStream,
};

/// What the WebAssembly exchangers of one server share. Cheap to clone; the engine is made for the first of them.
#[derive(Clone)]
pub(super) struct Modules {
    config: config::Wasm,
    host: Arc<OnceLock<Arc<Host>>>,
    compiling: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    instances: Arc<Semaphore>,
}

struct Host {
    engine: Engine,
    ticker: Ticker,
    config: config::Wasm,
}

impl Modules {
    pub(super) fn new(config: &config::Wasm) -> Self {
        Self {
            host: Arc::default(),
            // One at a time: it takes a core, and memory by the size of the module.
            compiling: Arc::new(Semaphore::new(1)),
            waiting: Arc::new(Semaphore::new(config.compiling)),
            instances: Arc::new(Semaphore::new(config.instances)),
            config: config.clone(),
        }
    }

    /// Compiles a module and tries it out.
    pub(super) async fn exchanger(
        &self,
        sandboxes: &Sandboxes,
        module: Bytes,
        params: Parameters,
    ) -> Result<Arc<dyn Exchanger>> {
        let (size, limit) = (module.len(), self.config.module_size);
        if size > limit.bytes() {
            return Err(Error::Limit {
                what: format!("a module of {size} bytes is larger than {limit}"),
                key: "wasm.module_size",
            });
        }
        sandboxes.check_parameters(&params).await?;
        let _waiting = self.waiting.try_acquire().map_err(|_| Error::Limit {
            what: format!("{} modules are compiled or wait for it already", self.config.compiling),
            key: "wasm.compiling",
        })?;
        let permit = self.compiling.clone().acquire_owned().await.map_err(Error::internal)?;
        let modules = self.clone();
        let compiled = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let module = Module::compile(modules.host()?, &module)?;
            Guest::try_out(&module).map(|()| module)
        });
        let module = Arc::new(compiled.await.map_err(Error::internal)??);
        let description = format!("a WebAssembly module of {size} bytes");
        let (input, output) = ("what the module says when it is given the columns", "the module's");
        let (input, output, params_listed) = (input.into(), output.into(), params.listed());
        let about = About { description, input, output, streams: true, params: params_listed, tables: Vec::new() };
        let (instances, sandboxes) = (self.instances.clone(), sandboxes.clone());
        Ok(Arc::new(WasmExchanger { about, params, module, instances, sandboxes }))
    }

    fn host(&self) -> Result<Arc<Host>> {
        if let Some(host) = self.host.get() {
            return Ok(host.clone());
        }
        // Only one thread at a time compiles.
        let host = Arc::new(Host::new(&self.config)?);
        Ok(self.host.get_or_init(|| host).clone())
    }
}

impl Host {
    fn new(limits: &config::Wasm) -> Result<Self> {
        let mut config = wasmtime::Config::new();
        config
            .max_wasm_stack(limits.stack.bytes())
            .epoch_interruption(true)
            .cranelift_opt_level(OptLevel::Speed)
            .wasm_backtrace(false)
            .generate_address_map(false)
            .wasm_multi_memory(false)
            .wasm_memory64(false);
        let engine = Engine::new(&config).map_err(|error| Error::internal(format!("WebAssembly: {error:#}")))?;
        let ticker = Ticker::start(&engine)?;
        Ok(Self { engine, ticker, config: limits.clone() })
    }
}

struct WasmExchanger {
    about: About,
    params: Parameters,
    module: Arc<Module>,
    instances: Arc<Semaphore>,
    sandboxes: Sandboxes,
}

impl Exchanger for WasmExchanger {
    fn kind(&self) -> Kind {
        Kind::Wasm
    }

    fn about(&self) -> &About {
        &self.about
    }

    fn start(&self, input: RecordBatchStream, run: Run) -> BoxFuture<'static, Result<RecordBatchStream>> {
        let (module, instances, params) = (self.module.clone(), self.instances.clone(), self.params.clone());
        let sandboxes = self.sandboxes.clone();
        async move {
            let arguments = match params {
                // The module alone knows what it takes.
                Parameters(none) if none.is_empty() => run.arguments,
                params => Arguments(sandboxes.fit_parameters(params.values(run.arguments)?).await?),
            };
            let arguments = arguments.to_string();
            let permit = instances.try_acquire_owned().map_err(|_| Error::Limit {
                what: format!("{} WebAssembly exchangers run already", module.host.config.instances),
                key: "wasm.instances",
            })?;
            let (schema, cancel) = (input.schema(), Cancel::default());
            let cancelled = cancel.0.clone();
            let opened =
                tokio::task::spawn_blocking(move || Guest::open(module, schema, &arguments, cancelled, permit));
            // Limits that it ran into are its own doing, too; the name is added outside.
            let unnamed = |cause| Error::Exchanger { name: String::new(), row: None, cause: Arc::new(cause) };
            let guest = opened.await.map_err(Error::internal)?.map_err(unnamed)?;
            let schema = guest.output();
            let running = Running { guest: Some(guest), input: Some(input), pieces: VecDeque::new(), _cancel: cancel };
            Ok(RecordBatchStream::new(schema, stream::try_unfold(running, Running::next)))
        }
        .boxed()
    }
}

/// A stream on its way through an instance.
struct Running {
    /// Away while it computes.
    guest: Option<Guest>,
    /// Gone when it has ended.
    input: Option<RecordBatchStream>,
    pieces: VecDeque<RecordBatch>,
    _cancel: Cancel,
}

impl Running {
    async fn next(mut self) -> Result<Option<(RecordBatch, Self)>> {
        loop {
            let answer = if let Some(piece) = self.pieces.pop_front() {
                self.compute(move |guest| guest.batch(&piece)).await?
            } else if let Some(input) = &mut self.input {
                match input.next().await {
                    Some(batch) => self.pieces = self.guest().pieces(&batch?).into(),
                    None => self.input = None,
                }
                continue;
            } else {
                let answer = self.compute(Guest::finish).await?;
                if answer.is_none() {
                    return Ok(None);
                }
                answer
            };
            if let Some(batch) = answer.filter(|batch| batch.num_rows() > 0) {
                return Ok(Some((batch, self)));
            }
        }
    }

    fn guest(&self) -> &Guest {
        self.guest.as_ref().expect("away only while it computes")
    }

    async fn compute(
        &mut self,
        work: impl FnOnce(&mut Guest) -> Result<Option<RecordBatch>> + Send + 'static,
    ) -> Result<Option<RecordBatch>> {
        let mut guest = self.guest.take().expect("away only while it computes");
        let computed = tokio::task::spawn_blocking(move || {
            let answer = work(&mut guest);
            (answer, guest)
        });
        let (answer, guest) = computed.await.map_err(Error::internal)?;
        self.guest = Some(guest);
        answer
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Giving back its memory takes a while.
        machine::drop_aside(self.guest.take());
    }
}

/// Ends a call that is under way when the stream is dropped.
#[derive(Default)]
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
