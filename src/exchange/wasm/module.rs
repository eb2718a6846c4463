//! A module as it was registered, checked and compiled.

use std::sync::Arc;

use wasmparser::{FunctionBody, Parser, Payload};
use wasmtime::{InstancePre, Linker};

use super::{Host, guest::State};
use crate::{
    config::Size,
    error::{Error, Result},
};

/// A compiled module that lacks nothing but memory.
pub(super) struct Module {
    pub(super) host: Arc<Host>,
    pub(super) ready: InstancePre<State>,
}

impl Module {
    pub(super) fn compile(host: Arc<Host>, bytes: &[u8]) -> Result<Self> {
        let wrong = |why: String| Error::invalid(cut(&why));
        check_functions(bytes, host.config.function_size)?;
        let module = wasmtime::Module::new(&host.engine, bytes)
            .map_err(|error| wrong(format!("it is not a WebAssembly module: {error:#}")))?;
        if let Some(import) = module.imports().next() {
            let (from, what) = (import.module(), import.name());
            return Err(wrong(format!("it imports \"{what}\" from \"{from}\", and an exchanger imports nothing")));
        }
        let ready = Linker::new(&host.engine).instantiate_pre(&module).map_err(|error| wrong(format!("{error:#}")))?;
        Ok(Self { host, ready })
    }
}

/// Variables that a function as large as may be can have; smaller ones can have more.
const LOCALS: u64 = 256;

/// How many such functions a module can have.
const LARGE_FUNCTIONS: u64 = 16;

/// A compiler cannot be stopped, and takes more than linear time and memory: for a function by its size, and by its size
/// times its variables. A function of 64 KiB with 1,000 variables that live through loops took 3 s and 700 MB. So the work is
/// bounded before it begins.
fn check_functions(bytes: &[u8], function_size: Size) -> Result<()> {
    let limit = function_size.0.saturating_mul(LOCALS);
    let mut all = 0_u64;
    for payload in Parser::new(0).parse_all(bytes) {
        // What is wrong is told by who compiles it.
        let Ok(payload) = payload else { return Ok(()) };
        let Payload::CodeSectionEntry(body) = payload else { continue };
        let size = body.range().len() as u64;
        let work = size.saturating_mul(locals(&body) + 1);
        all = all.saturating_add(work);
        if size > function_size.0 || work > limit || all > limit.saturating_mul(LARGE_FUNCTIONS) {
            let what = format!(
                "its functions are larger, or have more variables, than the compiler is let in for: one of {size} bytes with {} \
                 variables",
                locals(&body)
            );
            return Err(Error::Limit { what, key: "wasm.function_size" });
        }
    }
    Ok(())
}

fn locals(body: &FunctionBody<'_>) -> u64 {
    let groups = body
        .get_locals_reader()
        .map(|reader| reader.into_iter().map_while(Result::ok).map(|(count, _)| u64::from(count)));
    groups.map_or(0, Iterator::sum)
}

/// What a stranger's bytes made someone say, at a readable length.
pub(super) fn cut(text: &str) -> String {
    let short: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    if short.len() < text.len() { short + " .." } else { short }
}
