use std::process::ExitCode;

fn main() -> ExitCode {
    keep_freed_buffers();
    mallard::cli::main()
}

/// Tells glibc's allocator to keep freed buffers of a stream's size for the next one. By default it gives them back to the
/// system and takes fresh ones, and the page faults cost more than the copies: a pulled transfer of 24 million rows took
/// 0.73 s, and 0.62 s with this (two cores, `sh bench/run.sh`). What is kept is at most 128 MiB at the top of each arena.
fn keep_freed_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes two numbers, and no other thread runs yet.
    unsafe {
        // 32 MiB is the largest threshold that glibc takes. A refusal leaves the defaults, which work.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 * 1024 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 * 1024 * 1024);
    }
}
