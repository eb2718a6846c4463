//! What the machine, or the container, lets this process have: memory, cores, files, space. Changes one thing only, the
//! process's own bound on memory.
//!
//! It knows cgroup v2 and v1, and both at once; where there is none, the machine is the bound.

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
    Cgroups::own().memory()
}

/// Cores by the cgroup's quota, if it has one.
pub fn cgroup_cores() -> Option<f64> {
    Cgroups::own().cores()
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
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    // The standard library looks for v1 in the usual places only.
    cgroup_cores().map_or(cores, |quota| cores.min(quota.ceil() as usize)).max(1)
}

// === cgroups ===

/// A limit at least as high as this is none: v1 has no word for that, and shows the highest number of pages in bytes.
const NO_LIMIT: u64 = 1 << 60;

/// What `/proc/self` says of the process's cgroups, and the root directory below which they are mounted.
struct Cgroups {
    root: PathBuf,
    cgroup: String,
    mountinfo: String,
}

impl Cgroups {
    fn own() -> Self {
        Self::below(Path::new("/"))
    }

    fn below(root: &Path) -> Self {
        let read = |file: &str| std::fs::read_to_string(root.join("proc/self").join(file)).unwrap_or_default();
        Self { root: root.to_path_buf(), cgroup: read("cgroup"), mountinfo: read("mountinfo") }
    }

    fn memory(&self) -> Option<u64> {
        let number = |group: &PathBuf, file: &str| read(group, file)?.parse::<u64>().ok();
        let v2 = self.groups(None).into_iter().filter_map(|group| number(&group, "memory.max"));
        let v1 = self.groups(Some("memory")).into_iter().filter_map(|group| {
            // Of the groups above, where they are not mounted here.
            let above = read(&group, "memory.stat").and_then(|stat| {
                stat.lines().find_map(|line| line.strip_prefix("hierarchical_memory_limit ")?.trim().parse().ok())
            });
            [number(&group, "memory.limit_in_bytes"), above].into_iter().flatten().min()
        });
        v2.chain(v1).filter(|limit| *limit < NO_LIMIT).min()
    }

    fn cores(&self) -> Option<f64> {
        let share = |quota: &str, period: &str| {
            let (quota, period) = (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?);
            // v1 says -1 where there is no quota, and v2 "max".
            (quota > 0.0 && period > 0.0).then_some(quota / period)
        };
        let v2 = self.groups(None).into_iter().filter_map(|group| {
            let text = read(&group, "cpu.max")?;
            let (quota, period) = text.split_once(' ')?;
            share(quota, period)
        });
        let v1 = self
            .groups(Some("cpu"))
            .into_iter()
            .filter_map(|group| share(&read(&group, "cpu.cfs_quota_us")?, &read(&group, "cpu.cfs_period_us")?));
        v2.chain(v1).min_by(f64::total_cmp)
    }

    /// The process's group in the hierarchy of this v1 controller, or in that of v2, and those above it.
    fn groups(&self, controller: Option<&str>) -> Vec<PathBuf> {
        let own = self.cgroup.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let fits = match controller {
                None => controllers.is_empty(),
                Some(controller) => controllers.split(',').any(|one| one == controller),
            };
            fits.then_some(path)
        });
        let Some(own) = own else { return Vec::new() };
        let mut groups = Vec::new();
        for (of_mount, mounted) in self.mounts(controller) {
            // A container's own mount may begin at its group, and may not show the path that the host sees.
            let below = match Path::new(own).strip_prefix(&of_mount) {
                Ok(below) => below,
                Err(_) => Path::new(""),
            };
            let at = self.root.join(mounted.trim_start_matches('/'));
            let group = at.join(below);
            let group = if group.is_dir() { group } else { at.clone() };
            groups.extend(group.ancestors().take_while(|group| group.starts_with(&at)).map(Path::to_path_buf));
        }
        groups
    }

    /// Where such a hierarchy is mounted: the group that the mount begins at, and the directory (proc(5), mountinfo).
    fn mounts(&self, controller: Option<&str>) -> Vec<(String, String)> {
        let mount = |line: &str| {
            let (before, after) = line.split_once(" - ")?;
            let mut before = before.split(' ').skip(3);
            let (of_mount, mounted) = (before.next()?.to_string(), before.next()?.replace("\\040", " "));
            let mut after = after.split(' ');
            let (kind, _, options) = (after.next()?, after.next()?, after.next()?);
            let fits = match controller {
                None => kind == "cgroup2",
                Some(controller) => kind == "cgroup" && options.split(',').any(|one| one == controller),
            };
            fits.then_some((of_mount, mounted))
        };
        self.mountinfo.lines().filter_map(mount).collect()
    }
}

/// The file's text without the end of its line.
fn read(group: &Path, file: &str) -> Option<String> {
    Some(std::fs::read_to_string(group.join(file)).ok()?.trim_end().to_string())
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

/// Raises the limit of open files as far as the process may: many systems begin with 1,024 and allow far more.
pub fn allow_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Without it fewer connections are let in.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// File descriptors that are open now.
fn open_descriptors() -> u64 {
    // Where nothing lists them, as many as an idle server has.
    std::fs::read_dir("/dev/fd").map_or(32, |entries| entries.count() as u64)
}

/// How many connections the descriptors that are left carry, `None` where there is no limit. The others are kept back: for
/// the database and its logs, spilling, sandboxes, backups and the audit log, which must not fail because clients come.
pub fn connections(config: &Config) -> Option<usize> {
    let limit = open_files()?;
    let kept = (64 + 8 * config.exchange.max_running as u64).min((limit / 4).max(16));
    usize::try_from(limit.saturating_sub(open_descriptors() + kept).max(4)).ok()
}

/// Fails unless so many descriptors can be opened now: asked before calls that do not survive it when they cannot.
pub fn spare_descriptors(count: usize) -> Result<()> {
    let try_some = || {
        let (reader, writer) = std::io::pipe()?;
        let others = (2..count).map(|_| reader.try_clone()).collect::<Result<Vec<_>, _>>()?;
        drop((reader, writer, others));
        Ok(())
    };
    try_some().map_err(|error: std::io::Error| no_descriptors(&error))
}

/// What callers are told when there are none left.
pub fn no_descriptors(error: impl std::fmt::Display) -> Error {
    Error::Limit { what: format!("the server has no file descriptor left ({error})"), key: "RLIMIT_NOFILE (ulimit -n)" }
}

/// Whether a file could not be opened because there are none left, for the process or the machine.
pub fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let number = error.raw_os_error();
    number == Some(Errno::MFILE.raw_os_error()) || number == Some(Errno::NFILE.raw_os_error())
}

/// What callers are told when no thread can be started.
pub fn no_threads(error: impl std::fmt::Display) -> Error {
    Error::Limit { what: format!("the server cannot start a thread ({error})"), key: "RLIMIT_NPROC (ulimit -u)" }
}

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
            let stacks = (config.limits.queries as u64 + 4) * ENGINE_STACK as u64;
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

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate\n";
    const V1: &str = "\
        31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n";

    /// Memory and cores by a tree of these files.
    fn limits(cgroup: &str, mountinfo: &str, files: &[(&str, &str)]) -> (Option<u64>, Option<f64>) {
        let root = tempfile::tempdir().unwrap();
        let proc = [("proc/self/cgroup", cgroup), ("proc/self/mountinfo", mountinfo)];
        for (file, text) in proc.iter().chain(files) {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let cgroups = Cgroups::below(root.path());
        (cgroups.memory(), cgroups.cores())
    }

    #[test]
    fn limits_of_cgroups_are_seen_whatever_their_version_and_their_depth() {
        let v1_own = "9:memory:/pods/p/c\n4:cpuacct,cpu:/pods/p/c\n1:name=systemd:/x\n";
        let none = "9223372036854771712\n";
        type Case<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)], (Option<u64>, Option<f64>));
        let cases: &[Case<'_>] = &[
            ("no cgroups", "", "", &[], (None, None)),
            (
                "v2, the root of a container",
                "0::/\n",
                V2,
                &[("sys/fs/cgroup/memory.max", "1048576\n"), ("sys/fs/cgroup/cpu.max", "150000 100000\n")],
                (Some(1 << 20), Some(1.5)),
            ),
            (
                "v2, the lowest of those above",
                "0::/a/b/c\n",
                V2,
                &[
                    ("sys/fs/cgroup/a/memory.max", "4096\n"),
                    ("sys/fs/cgroup/a/b/memory.max", "max\n"),
                    ("sys/fs/cgroup/a/b/c/memory.max", "8192\n"),
                    ("sys/fs/cgroup/a/cpu.max", "max 100000\n"),
                    ("sys/fs/cgroup/a/b/c/cpu.max", "200000 100000\n"),
                ],
                (Some(4096), Some(2.0)),
            ),
            (
                "v2, a path of the host's that is not mounted here",
                "0::/../../host/path\n",
                V2,
                &[("sys/fs/cgroup/memory.max", "4096\n")],
                (Some(4096), None),
            ),
            (
                "v1, nested",
                v1_own,
                V1,
                &[
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", none),
                    ("sys/fs/cgroup/memory/pods/memory.limit_in_bytes", "8192\n"),
                    ("sys/fs/cgroup/memory/pods/p/c/memory.limit_in_bytes", none),
                    ("sys/fs/cgroup/cpu,cpuacct/pods/p/cpu.cfs_quota_us", "50000\n"),
                    ("sys/fs/cgroup/cpu,cpuacct/pods/p/cpu.cfs_period_us", "100000\n"),
                    ("sys/fs/cgroup/cpu,cpuacct/pods/p/c/cpu.cfs_quota_us", "-1\n"),
                    ("sys/fs/cgroup/cpu,cpuacct/pods/p/c/cpu.cfs_period_us", "100000\n"),
                ],
                (Some(8192), Some(0.5)),
            ),
            (
                "v1, no limit",
                v1_own,
                V1,
                &[
                    ("sys/fs/cgroup/memory/pods/p/c/memory.limit_in_bytes", none),
                    ("sys/fs/cgroup/cpu,cpuacct/pods/p/c/cpu.cfs_quota_us", "-1\n"),
                    ("sys/fs/cgroup/cpu,cpuacct/pods/p/c/cpu.cfs_period_us", "100000\n"),
                ],
                (None, None),
            ),
            (
                "v1, the mount begins at the container's group",
                v1_own,
                "35 31 0:32 /pods/p/c /sys/fs/cgroup/memory ro - cgroup memory rw,memory\n",
                &[("sys/fs/cgroup/memory/memory.limit_in_bytes", "4096\n")],
                (Some(4096), None),
            ),
            (
                "v1, a limit above that is not mounted",
                v1_own,
                "35 31 0:32 /pods/p/c /sys/fs/cgroup/memory ro - cgroup memory rw,memory\n",
                &[
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", none),
                    ("sys/fs/cgroup/memory/memory.stat", "cache 1\nhierarchical_memory_limit 2048\n"),
                ],
                (Some(2048), None),
            ),
            (
                "hybrid: v1 has the controllers, v2 has none",
                "4:memory:/c\n0::/\n",
                &format!("{V1}41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"),
                &[
                    ("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "4096\n"),
                    ("sys/fs/cgroup/unified/cgroup.procs", ""),
                ],
                (Some(4096), None),
            ),
        ];
        for (what, cgroup, mountinfo, files, expected) in cases {
            assert_eq!(limits(cgroup, mountinfo, files), *expected, "{what}");
        }
    }
}
