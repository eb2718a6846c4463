//! `mallard doctor`: what a server with this configuration would meet on this machine, without starting one.

use std::{path::Path, process::ExitCode, time::SystemTime};

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use super::serve::ConfigArguments;
use crate::{
    config::Config,
    engine::{self, Engine, Examined, FileState, Misfit, TableSum},
    error::{Error, Result},
    machine, server,
};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Read every table of the database, which no server may have open
    #[arg(long)]
    verify: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Of one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Finding {
    Ok,
    Warning,
    Broken,
}

#[derive(Debug, Serialize)]
struct Line {
    about: &'static str,
    what: String,
    says: String,
    finding: Finding,
}

/// A table that was read, or the reason why it was not.
#[derive(Debug, Serialize)]
struct Read {
    schema: String,
    table: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Stored values that their type does not have; the first hundred of each column.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<FoundValue>,
    /// How many there are.
    #[serde(skip_serializing_if = "is_zero")]
    value_count: u64,
}

/// One of them.
#[derive(Debug, Serialize)]
struct FoundValue {
    column: String,
    rowid: i64,
    says: String,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[derive(Default)]
struct Lines(Vec<Line>);

impl Lines {
    fn add(&mut self, about: &'static str, what: &str, says: impl ToString, finding: Finding) {
        self.0.push(Line { about, what: what.into(), says: says.to_string(), finding });
    }

    fn ok(&mut self, about: &'static str, what: &str, says: impl ToString) {
        self.add(about, what, says, Finding::Ok);
    }
}

pub(super) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let config = match arguments.config.load() {
        Ok(loaded) => loaded.config,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return Ok(ExitCode::from(super::WRONG_USE));
        }
    };
    let mut lines = Lines::default();
    versions(&mut lines);
    process(&mut lines, &config);
    network(&mut lines, &config);
    certificate(&mut lines, &config);
    volumes(&mut lines, &config);
    database(&mut lines, &config);
    let tables = if arguments.verify { Some(verify(&config).await?) } else { None };
    let broken = lines.0.iter().any(|line| line.finding == Finding::Broken)
        || tables.iter().flatten().any(|table| table.error.is_some() || table.value_count > 0);
    if arguments.json {
        let report = serde_json::json!({ "ok": !broken, "checks": lines.0, "tables": tables });
        println!("{}", serde_json::to_string_pretty(&report).map_err(Error::internal)?);
    } else {
        show(&lines, tables.as_deref());
    }
    Ok(ExitCode::from(if broken { super::FAILED } else { super::DONE }))
}

fn versions(lines: &mut Lines) {
    lines.ok("version", "mallard", env!("CARGO_PKG_VERSION"));
    lines.ok("version", "DuckDB", Engine::duckdb_version());
    lines.ok("version", "system", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH));
}

fn process(lines: &mut Lines, config: &Config) {
    let size = |bytes: u64| ByteSize(bytes).display().iec().to_string();
    let cgroup = machine::cgroup_memory();
    lines.ok("process", "memory of the machine", size(machine::physical_memory()));
    lines.ok("process", "memory limit (cgroup)", cgroup.map_or("none".into(), size));
    let limit = config.database.memory_limit.map_or(machine::memory() / 100 * 70, |limit| limit.0);
    let most = machine::memory() / 100 * 90;
    let finding = if limit > most { Finding::Warning } else { Finding::Ok };
    let hint = if limit > most { "; more than 90 % of what there is (database.memory_limit)" } else { "" };
    lines.add("process", "DuckDB's memory limit", format!("{}{hint}", size(limit)), finding);
    let last = machine::process_memory(config).map_or("none (limits.process_memory)".into(), size);
    lines.ok("process", "the process's memory limit", last);
    let cgroup = machine::cgroup_cores().map_or("none".into(), |cores| format!("{cores:.2} cores"));
    lines.ok("process", "cores", format!("{} (cgroup: {cgroup})", machine::cores()));
    machine::allow_open_files();
    // A connection is one, and DuckDB has some.
    let files = machine::open_files();
    let finding = if files.is_some_and(|files| files < 1024) { Finding::Warning } else { Finding::Ok };
    lines.add("process", "open files at most", files.map_or("no limit".into(), |files| files.to_string()), finding);
    if let Some(carried) = machine::connections(config) {
        let configured = config.limits.connections;
        let fewer = configured == 0 || configured > carried;
        let finding = if fewer && configured != 0 { Finding::Warning } else { Finding::Ok };
        let hint = if fewer { "; fewer than limits.connections: raise ulimit -n" } else { "" };
        lines.add("process", "connections that they carry", format!("{carried}{hint}"), finding);
    }
    if let Some(bytes) = machine::file_size() {
        lines.add("process", "size of a file at most", size(bytes), Finding::Warning);
    }
}

fn network(lines: &mut Lines, config: &Config) {
    let local = config.server.location.is_local();
    let login = if config.auth.enabled { "login required" } else { "no login" };
    let reach = if local { "this machine only" } else { "others can reach it" };
    let finding = if !local && !config.auth.enabled { Finding::Warning } else { Finding::Ok };
    lines.add("network", "Flight", format!("{}: {reach}, {login}", config.served()), finding);
    match config.admin.listen.0 {
        None => lines.ok("network", "admin", "off"),
        Some(address) if address.ip().is_loopback() => {
            lines.ok("network", "admin", format!("{address}: this machine only"));
        }
        Some(address) => lines.ok("network", "admin", format!("{address}: others can reach it")),
    }
    if config.auth.enabled && config.auth.signing_key.is_none() {
        let says = "made at start: tokens and tickets end with the process (auth.signing_key)";
        lines.ok("network", "signing key", says);
    }
}

fn certificate(lines: &mut Lines, config: &Config) {
    if config.tls.certificate.is_none() {
        return lines.ok("network", "certificate", "none: plaintext (tls.certificate)");
    }
    match server::certificate_ends(&config.tls) {
        Err(error) => lines.add("network", "certificate", error, Finding::Broken),
        Ok(ends) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let days = (u64::try_from(ends).unwrap_or(0).saturating_sub(now)) / (24 * 60 * 60);
            let finding = if days < 14 { Finding::Warning } else { Finding::Ok };
            lines.add("network", "certificate", format!("good for {days} days"), finding);
        }
    }
}

fn volumes(lines: &mut Lines, config: &Config) {
    let database = config.database.file();
    let temporary = match config.database.temp_directory.as_str() {
        "" => database,
        given => Some(Path::new(given)),
    };
    let backups = config.database.backup_directory.as_deref();
    for (what, path) in [("database", database), ("spilling", temporary), ("backups", backups)] {
        let Some(path) = path else { continue };
        let Some(volume) = machine::volume(path) else {
            lines.add("volume", what, "cannot be asked", Finding::Warning);
            continue;
        };
        let (free, size) = (ByteSize(volume.free).display().iec(), ByteSize(volume.size).display().iec());
        let remote = ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"].contains(&volume.kind.as_str());
        let finding = if remote || volume.free < volume.size / 20 { Finding::Warning } else { Finding::Ok };
        let hint = if remote { "; locks and fsync of network file systems differ" } else { "" };
        lines.add("volume", what, format!("{free} of {size} free, {}{hint}", volume.kind), finding);
    }
    if config.database.backup_directory.is_none() {
        lines.ok("volume", "backups", "none (database.backup_directory)");
    } else if let (Some(there), false) = (backups, backups.is_some_and(Path::is_dir)) {
        lines.add("volume", "backups", format!("there is no directory {}", there.display()), Finding::Broken);
    }
}

fn database(lines: &mut Lines, config: &Config) {
    let Some(path) = config.database.file() else {
        return lines.ok("database", "file", "in memory");
    };
    let state = FileState::of(path);
    if !state.exists {
        return lines.ok("database", "file", format!("{} is made by the first start", path.display()));
    }
    let finding = if state.is_duckdb { Finding::Ok } else { Finding::Broken };
    let kind = if state.is_duckdb { "a DuckDB database" } else { "no DuckDB database" };
    let size = ByteSize(state.size).display().iec();
    lines.add("database", "file", format!("{}: {size}, {kind}", path.display()), finding);
    if state.log_size > 0 {
        let says = format!("{}, replayed by the next start", ByteSize(state.log_size).display().iec());
        lines.ok("database", "write-ahead log", says);
    }
    let held = match (&state.held_by, state.sealed) {
        (Some(who), true) => format!("open in {who}, sealed"),
        (Some(who), false) => format!("open in {who}"),
        (None, true) => "nobody has it; its last server crashed and left it sealed, which the next start undoes".into(),
        (None, false) => "nobody has it".into(),
    };
    lines.ok("database", "lock", held);
}

async fn verify(config: &Config) -> Result<Vec<Read>> {
    let Some(path) = config.database.file().map(Path::to_path_buf) else {
        return Err(Error::invalid("--verify needs a database file: --db FILE or --config FILE"));
    };
    let reading = tokio::task::spawn_blocking(move || {
        let mut tables = Vec::new();
        engine::examine(&path, |examined| tables.push(found(examined))).map(|()| tables)
    });
    reading.await.map_err(Error::internal)?
}

fn found(examined: Examined) -> Read {
    let Examined { schema, table, sum, misfits, misfit_count, unreadable } = examined;
    let told = |Misfit { column, row, says }| FoundValue { column, rowid: row, says };
    let mut errors: Vec<String> = Vec::new();
    let (rows, hash) = match sum {
        Ok(TableSum { rows, hash, .. }) => (Some(rows), Some(hash)),
        Err(error) => {
            errors.push(error.to_string());
            (None, None)
        }
    };
    errors.extend(unreadable.into_iter().map(|(column, why)| format!("column {column:?} cannot be read: {why}")));
    let error = Some(errors.join("; ")).filter(|errors| !errors.is_empty());
    Read {
        schema,
        table,
        rows,
        hash,
        error,
        values: misfits.into_iter().map(told).collect(),
        value_count: misfit_count,
    }
}

fn show(lines: &Lines, tables: Option<&[Read]>) {
    for line in &lines.0 {
        let mark = match line.finding {
            Finding::Ok => " ",
            Finding::Warning => "!",
            Finding::Broken => "✗",
        };
        println!("{mark} {:9} {:26} {}", line.about, line.what, line.says);
    }
    let Some(tables) = tables else { return };
    let mut shown = comfy_table::Table::new();
    shown.load_preset(comfy_table::presets::UTF8_BORDERS_ONLY).set_header(["table", "rows", "hash", ""]);
    for read in tables {
        let name = format!("{}.{}", read.schema, read.table);
        let rows = read.rows.map_or(String::new(), |rows| rows.to_string());
        let wrong = format!("{} values that their type does not have, see below", read.value_count);
        let wrong = Some(wrong).filter(|_| read.value_count > 0);
        let end = read.error.clone().or(wrong).unwrap_or("ok".into());
        shown.add_row([name, rows, read.hash.clone().unwrap_or_default(), end]);
    }
    println!("{shown}");
    for read in tables.iter().filter(|read| read.value_count > 0) {
        let name = format!("{}.{}", read.schema, read.table);
        for FoundValue { column, rowid, says } in &read.values {
            println!("✗ table {name}, column {column}, rowid {rowid}: {says}");
        }
        if let left @ 1.. = read.value_count - read.values.len() as u64 {
            println!("✗ table {name}: {left} more");
        }
        println!(
            "  reading one may be an internal error of DuckDB's; mend it with UPDATE {name} SET .. = NULL WHERE rowid = .."
        );
    }
}
