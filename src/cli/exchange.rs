//! `mallard exchange`, with `test` and `add`, and `mallard exchangers`

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    connect::LoginArguments,
    files::{self, OutputArguments},
    running::{ListArguments, ask, show},
};
use crate::{
    access::Rights,
    config,
    engine::Engine,
    error::{Error, Result},
    exchange::{Arguments as Given, Chain, Parameters, Registration, Registry, is_name},
    json::Json,
    location::Location,
    stream::RecordBatchStream,
    telemetry::Metrics,
};

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Subcommand)]
enum Command {
    /// Run a WebAssembly module or the SQL of an exchanger here, without a server and with a server's limits
    Test(TestArguments),
    /// Register an exchanger at a server
    Add(AddArguments),
}

#[derive(Args)]
struct RunArguments {
    /// Server, such as grpc://127.0.0.1:8815
    #[arg(required = true)]
    uri: Option<Location>,
    /// Exchanger as `mallard exchangers` lists them: NAME or NAME@VERSION, with parameters as NAME {"key": value}; or a chain of
    /// them, such as 'a | b'
    #[arg(value_name = "CHAIN", required = true)]
    name: Option<String>,
    #[command(flatten)]
    input: InputArguments,
    #[command(flatten)]
    output: OutputArguments,
    #[command(flatten)]
    login: LoginArguments,
}

/// Where the rows come from.
#[derive(Args)]
struct InputArguments {
    /// Send the rows of this file (Parquet, CSV, JSON or Arrow IPC, told by its ending)
    #[arg(long = "in", value_name = "FILE", required_unless_present = "query", conflicts_with = "query")]
    input: Option<PathBuf>,
    /// Send the rows of this SQL, run here in an embedded DuckDB
    #[arg(long, value_name = "SQL")]
    query: Option<String>,
}

impl InputArguments {
    async fn rows(&self, local: &Engine) -> Result<RecordBatchStream> {
        match (&self.input, &self.query) {
            (Some(file), _) => files::read(local, file).await,
            (None, query) => local.query(&Rights::all("local"), query.as_deref().unwrap_or_default()).await,
        }
    }
}

#[derive(Args)]
struct TestArguments {
    /// FILE.wasm, or FILE.sql with one SELECT over the relation input
    #[arg(value_name = "FILE")]
    exchanger: PathBuf,
    #[command(flatten)]
    input: InputArguments,
    /// Parameter: a number, true, false, null, JSON in brackets, or text ("quoted" where it looks like one of those)
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = named)]
    parameters: Vec<(String, Json)>,
    /// Parameters: a JSON object; --param comes first where both name one
    #[arg(long, value_name = "JSON", value_parser = object)]
    params: Option<Json>,
    /// What would be registered as params: a JSON object of names with a default, or with {"type": .., "default": ..}. Without
    /// it the parameters of SQL have the types of the values that are given
    #[arg(long, value_name = "JSON", value_parser = object)]
    declare: Option<Json>,
    /// TOML file of a server whose limits are taken; the environment's MALLARD__WASM__.. count, too
    #[arg(long, env = "MALLARD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Args)]
struct AddArguments {
    /// Server, such as grpc://127.0.0.1:8815
    uri: Location,
    /// What the exchanger is to be called
    name: String,
    /// Its SQL: one SELECT over the relation input
    #[arg(long, conflicts_with = "wasm", required_unless_present = "wasm")]
    sql: Option<String>,
    /// File of its WebAssembly module
    #[arg(long, value_name = "FILE")]
    wasm: Option<PathBuf>,
    /// One line for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Parameters: a JSON object of names with a default, or with {"type": .., "default": ..}
    #[arg(long, value_name = "JSON", value_parser = object)]
    params: Option<Json>,
    /// Add a version where the name is there already
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    login: LoginArguments,
}

fn object(text: &str) -> Result<Json, String> {
    let json = Json::parse(text).map_err(|error| error.to_string())?;
    json.members().map(|_| json).ok_or_else(|| "it is no JSON object".to_string())
}

fn named(text: &str) -> Result<(String, Json), String> {
    let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("it is not NAME=VALUE")?;
    Ok((name.to_string(), Json::parse(value).unwrap_or_else(|_| Json::text(value))))
}

pub(super) async fn run(Arguments { command, run }: Arguments) -> Result<()> {
    match (command, run) {
        (Some(Command::Test(arguments)), _) => test(arguments).await,
        (Some(Command::Add(arguments)), _) => add(arguments).await,
        (None, RunArguments { uri: Some(uri), name: Some(name), input, output, login }) => {
            let local = files::local().await?;
            let input = input.rows(&local).await?;
            let client = login.connect(&uri).await?;
            output.write("exchange", client.exchange(&name, input).await?).await
        }
        (None, _) => Err(Error::invalid("give a server and an exchanger, or test, or add")),
    }
}

async fn add(arguments: AddArguments) -> Result<()> {
    let AddArguments { uri, name, sql, wasm, description, params, replace, login } = arguments;
    let mut body = json!({"name": name, "replace": replace});
    if let Some(params) = params {
        body["params"] = Parameters::read(&params)?.listed().into();
    }
    if let Some(sql) = sql {
        body["sql"] = sql.into();
    }
    if let Some(file) = wasm {
        body["wasm"] = BASE64_STANDARD.encode(read(&file)?).into();
    }
    if let Some(description) = description {
        body["description"] = description.into();
    }
    for added in ask(&login, &uri, "add_exchange", &body).await? {
        println!("{added}");
    }
    Ok(())
}

/// As a server would run it: the registry is a server's, and so is what surrounds the exchanger.
async fn test(arguments: TestArguments) -> Result<()> {
    let TestArguments { exchanger, input, parameters, params, declare, config, output } = arguments;
    let local = Arc::new(files::local().await?);
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("MALLARD__WASM__") || name.starts_with("MALLARD__EXCHANGE__"));
    let loaded = config::load(config.as_deref(), environment, &[]).map_err(Error::invalid)?;
    let registry = Registry::load(&loaded.config, local.clone(), Metrics::unregistered()).await?;
    let rights = Rights::all("local");
    // Its file's name, unless that is no name or a built-in one's.
    let built_in = registry.list(&rights);
    let is_free = |stem: &&str| is_name(stem) && built_in.iter().all(|listed| listed.name != *stem);
    let stem = exchanger.file_stem().and_then(|stem| stem.to_str()).filter(is_free);
    let name = stem.unwrap_or("tested").to_string();
    let mut given = params.and_then(|params| params.members()).unwrap_or_default();
    for (name, value) in parameters {
        given.retain(|(other, _)| *other != name);
        given.push((name, value));
    }
    let mut registration = registration(&name, &exchanger)?;
    registration.params = match declare {
        Some(declared) => Some(Parameters::read(&declared)?),
        None if registration.sql.is_some() => Some(Parameters::of_values(&given)?),
        // The module alone knows what it takes.
        None => None,
    };
    registry.register(&rights, registration).await?;

    let chain = Chain::parse(&format!("{name} {}", Given(given)))?;
    let counts = Arc::new([const { AtomicU64::new(0) }; 4]);
    let add =
        |counts: &[AtomicU64; 4], at: usize, number: usize| counts[at].fetch_add(number as u64, Ordering::Relaxed);
    let (sent, received) = (counts.clone(), counts.clone());
    let sending = input.rows(&local).await?.inspect(move |batch| {
        add(&sent, 0, batch.num_rows());
        add(&sent, 1, 1);
    });
    let start = Instant::now();
    let rows = registry.run(&rights, &chain, sending, true).await?;
    for field in rows.schema().fields() {
        let null = if field.is_nullable() { "" } else { " NOT NULL" };
        eprintln!("{}: {}{null}", field.name(), field.data_type());
    }
    let rows = rows.inspect(move |batch| {
        add(&received, 2, batch.num_rows());
        add(&received, 3, 1);
    });
    output.write(&name, rows).await?;
    let [rows_in, batches_in, rows_out, batches_out] = [0, 1, 2, 3].map(|at| counts[at].load(Ordering::Relaxed));
    let seconds = start.elapsed().as_secs_f64();
    eprintln!(
        "{rows_in} rows in {batches_in} batches in, {rows_out} rows in {batches_out} batches out, {seconds:.3} s"
    );
    Ok(())
}

/// What a file registers.
fn registration(name: &str, file: &Path) -> Result<Registration> {
    let bytes = read(file)?;
    let mut registration = Registration { name: name.to_string(), ..Registration::default() };
    match file.extension().and_then(|ending| ending.to_str()) {
        Some("sql") => {
            let text = String::from_utf8(bytes);
            registration.sql = Some(text.map_err(|_| Error::invalid(format!("{} is not UTF-8", file.display())))?);
        }
        _ => registration.wasm = Some(Bytes::from(bytes)),
    }
    Ok(registration)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).map_err(|error| files::io(file, &error))
}

pub(super) async fn list(arguments: ListArguments) -> Result<()> {
    let listed = ask(&arguments.login, &arguments.uri, "list_exchanges", &serde_json::Value::Null).await?;
    let columns = [
        "name",
        "version",
        "kind",
        "owner",
        "streams",
        "uses",
        "running",
        "failed",
        "rows_in",
        "rows_out",
        "retired",
        "description",
    ];
    show(&listed, &columns, arguments.json);
    Ok(())
}
