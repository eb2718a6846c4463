//! The layers of ARCHITECTURE.md, held true: a file uses only lower layers or its own folder, and each of some crates
//! is imported in one place.

use std::path::{Path, PathBuf};

/// From low to high.
const LAYERS: [&[&str]; 8] = [
    &["error", "clock", "json", "config", "location", "access", "printable"],
    &["stream", "machine", "telemetry"],
    &["engine", "wire", "reload", "auth"],
    &["exchange", "session", "client"],
    &["transfer"],
    &["flight"],
    &["server"],
    &["cli"],
];

/// A crate's path in code, and the only places that may name it.
const CONFINED: [(&str, &[&str]); 8] = [
    ("duckdb::", &["engine"]),
    ("libduckdb_sys", &["engine"]),
    ("http_body::", &["wire", "flight/router.rs"]),
    ("clap::", &["cli"]),
    ("figment::", &["config.rs"]),
    ("opentelemetry", &["telemetry"]),
    ("prometheus::", &["telemetry"]),
    ("wasmtime::", &["exchange/wasm"]),
];

/// Parts that must not know the wire.
const WIRELESS: [&str; 3] = ["engine", "exchange", "stream.rs"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// Path below src, and code without comments.
fn code() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    files
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            (path.strip_prefix(&root).unwrap().to_string_lossy().into_owned(), code.join("\n"))
        })
        .collect()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// The modules that `use crate::{..}` and `crate::..` name.
fn used(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut name) = (0, String::new());
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => modules.push(std::mem::take(&mut name)),
                    c if depth == 0 => name.push(c),
                    _ => {}
                }
            }
            modules.push(name);
        } else {
            modules.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    let first = |name: &String| name.trim().split("::").next().unwrap_or_default().to_string();
    modules.iter().map(first).filter(|name| !name.is_empty()).collect()
}

#[test]
fn files_use_lower_layers_or_their_own_folder() {
    for (path, code) in code() {
        let own = path.split('/').next().unwrap().trim_end_matches(".rs").to_string();
        let Some(own_layer) = layer(&own) else {
            assert!(matches!(own.as_str(), "main" | "lib"), "src/{path} is in no layer");
            continue;
        };
        for module in used(&code) {
            let other =
                layer(&module).unwrap_or_else(|| panic!("src/{path} uses crate::{module}, which is in no layer"));
            assert!(
                module == own || other < own_layer || (other == own_layer && other == 0),
                "src/{path} uses crate::{module}, which is not below it"
            );
        }
    }
}

#[test]
fn crates_stay_where_they_belong() {
    for (path, code) in code() {
        for (name, homes) in CONFINED {
            let at_home = homes.iter().any(|home| path.starts_with(home));
            let names = code.lines().any(|line| {
                line.match_indices(name).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
            });
            assert!(at_home || !names, "src/{path} names {name}");
        }
        if WIRELESS.iter().any(|place| path.starts_with(place)) {
            assert!(!code.contains("arrow_flight") && !code.contains("tonic"), "src/{path} knows the wire");
        }
        if path != "error.rs" {
            assert!(!code.contains("Status::new("), "src/{path} chooses a gRPC code");
        }
    }
}

/// Another server may have the default ports while the tests run: a test that starts one names the ports of its own.
#[test]
fn tests_take_no_default_port() {
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it"))];
    let mut started = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let code = std::fs::read_to_string(&path).unwrap();
            for (at, _) in code.match_indices(concat!("\"ser", "ve\"")) {
                let arguments = code[at..].split(']').next().unwrap();
                for flag in ["\"--location\"", "\"--admin\""] {
                    assert!(arguments.contains(flag), "{}: {arguments} has no {flag}", path.display());
                }
                started += 1;
            }
        }
    }
    assert!(started >= 4, "{started}");
}
