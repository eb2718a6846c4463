//! What the machine, or the container, lets this process have: memory, cores, files, space. Changes one thing only, the
//! process's own bound on memory.
//!
//! It knows cgroup v2, which is what container engines use; where there is none, the machine is the bound.

use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    config::{Config, Size},
    error::{Error, Result},
};

/// Of an engine thread (engine/pool.rs), which counts in full as soon as it is mapped.
pub const ENGINE_STACK: usize = 32 * 1024 * 1024;

/// The cgroup's memory limit, if it has one.
pub fn cgroup_memory() -> Option<u64> {
    groups().iter().filter_map(|group| read(group, "memory.max")?.trim().parse().ok()).min()
}

/// Cores by the cgroup's cpu.max, if it has one.
pub fn cgroup_cores() -> Option<f64> {
    let cores = groups().into_iter().filter_map(|group| {
        let text = read(&group, "cpu.max")?;
        let (quota, period) = text.trim().split_once(' ')?;
        Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
    });
    cores.min_by(f64::total_cmp)
}

pub fn physical_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram as u64 * u64::from(info.mem_unit)
}

/// What this process may use: the cgroup's limit, else the machine's memory.
pub fn memory() -> u64 {
    let physical = physical_memory();
    cgroup_memory().map_or(physical, |limit| limit.min(physical))
}

/// Cores that this process may use, by its affinity and the cgroup.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

/// The process's cgroup and those above it.
fn groups() -> Vec<PathBuf> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::")) else { return Vec::new() };
    let root = Path::new("/sys/fs/cgroup");
    let own = root.join(path.trim_start_matches('/'));
    own.ancestors().take_while(|group| group.starts_with(root)).map(Path::to_path_buf).collect()
}

fn read(group: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(group.join(file)).ok()
}

// === volumes ===

/// Where a file is, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub free: u64,
    pub size: u64,
    pub kind: String,
}

pub fn volume(path: &Path) -> Option<Volume> {
    let absolute: PathBuf = std::path::absolute(path).ok()?;
    let there = absolute.ancestors().find(|place| place.exists())?;
    let space = rustix::fs::statvfs(there).ok()?;
    Some(Volume {
        free: space.f_bavail * space.f_frsize,
        size: space.f_blocks * space.f_frsize,
        kind: file_system(there).unwrap_or_else(|| "unknown".into()),
    })
}

/// The type of the mount that holds `path`: the last of the longest that fit.
fn file_system(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let fitting = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let at = words.next()?.replace("\\040", " ");
        path.starts_with(&at).then_some((at.len(), words.next()?.to_string()))
    });
    fitting.max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}

// === limits of the process ===

/// Soft limits, `None` where there is none.
pub fn open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

pub fn data() -> Option<u64> {
    getrlimit(Resource::Data).current
}

pub fn file_size() -> Option<u64> {
    getrlimit(Resource::Fsize).current
}

/// What `limits.process_memory` comes to: `None` is no bound. By itself it is 95 % of the cgroup's limit, beside the
/// stacks of the engine's threads, which count in full although they are hardly used.
pub fn process_memory(config: &Config) -> Option<u64> {
    match config.limits.process_memory {
        Some(Size(0)) => None,
        Some(size) => Some(size.0),
        None => {
            let stacks = (config.limits.queries as u64 + 2) * ENGINE_STACK as u64;
            Some(cgroup_memory()? / 100 * 95 + stacks)
        }
    }
}

/// Makes an allocation beyond `bytes` fail, where the kernel would end the process later: the last line behind
/// DuckDB's own memory limit, which does not see every allocation.
pub fn bound_memory(bytes: u64) -> Result<()> {
    let maximum = getrlimit(Resource::Data).maximum;
    let bytes = maximum.map_or(bytes, |maximum| bytes.min(maximum));
    setrlimit(Resource::Data, Rlimit { current: Some(bytes), maximum })
        .map_err(|error| Error::Io(format!("cannot set limits.process_memory: {error}")))
}

/// Drops a value that takes a while to close on a thread of its own, and where no thread can be had, here: a destructor
/// must not panic.
pub fn drop_aside<T: Send + 'static>(value: T) {
    // A thread that cannot be started drops the closure, and the value with it.
    drop(std::thread::Builder::new().name("closing".into()).spawn(move || drop(value)));
}
