//! What something cost this process: CPU seconds and resident memory, as Linux says them.

use rustix::time::{ClockId, clock_gettime};

/// From its start to [`Usage::end`].
pub(super) struct Usage {
    cpu_seconds: f64,
    rss: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    /// User and system.
    pub(super) cpu_seconds: f64,
    /// Bytes at the start, and at most since then; unknown where there is no /proc.
    pub(super) rss_before: Option<u64>,
    pub(super) rss_peak: Option<u64>,
}

impl Usage {
    pub(super) fn start() -> Self {
        let rss = status("VmRSS:");
        // Sets the peak to what is resident now; without /proc there is no peak either.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        Self { cpu_seconds: cpu_seconds(), rss }
    }

    pub(super) fn end(self) -> Used {
        let cpu_seconds = cpu_seconds() - self.cpu_seconds;
        // Linux counts resident pages per thread and adds them up late, so that the peak may lie a little below the start.
        Used { cpu_seconds, rss_before: self.rss, rss_peak: status("VmHWM:").max(self.rss) }
    }
}

/// The process's clock counts nanoseconds; /proc/self/stat only ticks of ten milliseconds.
fn cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
