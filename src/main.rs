use std::process::ExitCode;

// glibc gives a dropped table's memory back at once and faults it in anew for the next one: PUT of 24 million rows into
// such a server took 0.52 s with it and 0.45 s with mimalloc, which keeps it for a while (bench/PROFILE.md). The feature
// `override` makes it malloc for DuckDB's C++, too.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    mallard::cli::main()
}
