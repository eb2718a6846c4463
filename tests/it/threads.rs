//! Where no thread can be started, what is dropped is closed all the same, and nothing panics.

use std::{
    process::{Command, Stdio},
    sync::Arc,
};

use mallard::{
    access::Rights,
    engine::Engine,
    error::Error,
    exchange::{Chain, Registry},
    telemetry::Metrics,
};

use crate::support::{collect, people, rows, test_config};

/// Set in the process of [`process_without_threads`].
const CHILD: &str = "THREADS_TEST_CHILD";

/// Not a test by itself: in this process, threads without a stack size of their own cannot be started.
#[test]
fn process_without_threads() {
    if std::env::var(CHILD).is_err() {
        return;
    }
    std::thread::Builder::new().spawn(|| ()).expect_err("no stack can be this large");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(8 * 1024 * 1024)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let config = test_config();
        let metrics = Metrics::unregistered();
        let engine = Arc::new(Engine::open(&config, metrics.clone()).unwrap());
        let registry = Registry::load(&config, engine.clone(), metrics).await.unwrap();
        let rights = Rights::all("ann");
        // Each has a DuckDB of its own, which is closed when its rows were read.
        for _ in 0..3 {
            let chain = Chain::parse("checksum").unwrap();
            let sums = registry.run(&rights, &chain, people(1, 10), true).await.unwrap();
            assert_eq!(rows(&collect(sums).await.unwrap()), 1);
        }
        for close in [true, false] {
            let line = engine.line();
            engine.begin(&rights, &line, false, false).await.unwrap();
            if close {
                line.close(Error::Cancelled);
            }
        }
    });
}

#[test]
fn what_is_closed_on_a_thread_is_closed_without_one() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "threads::process_without_threads", "--nocapture", "--test-threads", "1"]);
    child.env(CHILD, "1").env("RUST_MIN_STACK", (1_u64 << 60).to_string()).stdin(Stdio::null());
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("panicked") && said.contains("1 passed"), "{said}");
}
