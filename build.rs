//! Has the linker put a function of ours in the place of one of DuckDB's: src/engine/rethrow.rs says which, and why.

const REPLACED: &str = "_ZN6duckdb29ThrowNonFallibleFunctionErrorERKNS_10IdentifierERSt9exception";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is_set = |name: &str| std::env::var_os(name).is_some();
    let linux = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "linux");
    if linux && is_set("CARGO_FEATURE_BUNDLED") {
        println!("cargo:rustc-link-arg=-Wl,--wrap={REPLACED}");
    }
}
