//! `mallard bench --stdin`: the Rust client as an agent of bench/run.py, which starts the servers and watches them.
//!
//! One JSON object a line on standard input is one operation; one JSON line on standard output answers it when it has
//! ended. Connections, generated rows and this process's own DuckDB are kept between lines.

use std::{
    collections::HashMap,
    io::Write,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arrow_array::RecordBatch;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    small::{self, Latencies, Until},
    usage::{Usage, Used},
};
use crate::{
    access::Rights,
    cli::{
        files,
        moves::{self, PROCESSED, drain, fingerprint, fingerprint_of, run_local},
        progress::{Measured, Meter},
        workload::{Generated, Workload},
    },
    client::{Client, Login, Trust},
    engine::{Engine, Fingerprint, Mode, TableName},
    error::{Error, Result},
    location::Location,
    stream::RecordBatchStream,
};

const OPERATIONS: &str = "generate, get, put, relay, pull, exchange, small, scan, insert";

#[derive(Deserialize)]
#[serde(default)]
struct Request {
    operation: String,
    servers: Vec<String>,
    /// Where rows come from; by default the table of the generated workload.
    table: Option<String>,
    /// Where they go to.
    to: String,
    rows: Option<u64>,
    workload: Workload,
    /// Answer the hash of what arrived; it is computed after the clock has stopped, except where a server that pulls
    /// compares the hashes itself.
    verify: bool,
    seconds: f64,
    clients: usize,
    count: u64,
    /// Connections over which `get` and `pull` read.
    endpoints: usize,
    exchanger: String,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            operation: String::new(),
            servers: Vec::new(),
            table: None,
            to: "arrived".into(),
            rows: None,
            workload: Workload::default(),
            verify: false,
            seconds: 2.0,
            clients: 1,
            count: 300,
            endpoints: 1,
            exchanger: PROCESSED.into(),
        }
    }
}

#[derive(Serialize)]
struct Answer {
    operation: String,
    rows: u64,
    bytes: u64,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_batch_seconds: Option<f64>,
    /// Rows that had left when the first came back.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_batch_after_input_rows: Option<u64>,
    cpu_seconds: f64,
    rss_before: Option<u64>,
    rss_peak: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latencies_ms: Option<Latencies>,
}

/// Answers line by line until standard input ends.
pub(super) async fn run(login: Option<Login>, trust: Trust) -> Result<()> {
    let mut agent = Agent { login, trust, local: files::local().await?, clients: HashMap::new(), generated: None };
    let lost = |error: std::io::Error| Error::Io(format!("standard input or output: {error}"));
    while let Some(line) = next_line().await.map_err(lost)? {
        let answer = match agent.answer(&line).await {
            Ok(answer) => serde_json::to_string(&answer).map_err(Error::internal)?,
            Err(error) => json!({"error": error.to_string()}).to_string(),
        };
        let mut output = std::io::stdout().lock();
        writeln!(output, "{answer}").and_then(|()| output.flush()).map_err(lost)?;
    }
    Ok(())
}

async fn next_line() -> std::io::Result<Option<String>> {
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|bytes| (bytes > 0).then_some(line))
    });
    read.await.map_err(std::io::Error::other)?
}

struct Agent {
    login: Option<Login>,
    trust: Trust,
    local: Engine,
    /// As many connections as were ever needed at once, by location.
    clients: HashMap<String, Vec<Client>>,
    generated: Option<Generated>,
}

/// An operation that has ended, and what is still to be asked about it.
struct Done {
    measured: Measured,
    used: Used,
    /// Of rows that came back.
    first_batch_seconds: Option<f64>,
    first_batch_after_input_rows: Option<u64>,
    hash: Option<i128>,
    latencies: Option<Latencies>,
}

impl Agent {
    async fn answer(&mut self, line: &str) -> Result<Answer> {
        let request: Request =
            serde_json::from_str(line).map_err(|error| Error::invalid(format!("not a request: {error}")))?;
        let done = match request.operation.as_str() {
            "generate" => self.generate(&request).await,
            "get" => self.get(&request).await,
            "put" => self.put(&request).await,
            "relay" => self.relay(&request).await,
            "pull" => self.pull(&request).await,
            "exchange" => self.exchange(&request).await,
            "small" => self.small(&request).await,
            "scan" => self.scan(&request).await,
            "insert" => self.insert(&request).await,
            other => Err(Error::invalid(format!("unknown operation \"{other}\": there are {OPERATIONS}"))),
        }?;
        let Done { measured, used, first_batch_seconds, first_batch_after_input_rows, hash, latencies } = done;
        Ok(Answer {
            operation: request.operation,
            rows: measured.rows,
            bytes: measured.bytes,
            seconds: measured.seconds,
            first_batch_seconds,
            first_batch_after_input_rows,
            cpu_seconds: used.cpu_seconds,
            rss_before: used.rss_before,
            rss_peak: used.rss_peak,
            hash: hash.map(|hash| hash.to_string()),
            latencies_ms: latencies,
        })
    }

    async fn generate(&mut self, request: &Request) -> Result<Done> {
        // The rows of before are given back first.
        self.generated = None;
        let (usage, meter) = (Usage::start(), Meter::silent());
        let rows = request.rows.unwrap_or(request.workload.usual_rows());
        let generated = Generated::make(&self.local, request.workload, rows).await?;
        meter.set(generated.fingerprint.rows, generated.bytes);
        let mut done = Done::of(meter, usage);
        done.hash = Some(generated.fingerprint.hash);
        self.generated = Some(generated);
        Ok(done)
    }

    async fn get(&mut self, request: &Request) -> Result<Done> {
        let client = self.client(request, 0).await?;
        let sql = format!("SELECT * FROM {}", self.table(request)?.sql());
        let (usage, meter) = (Usage::start(), Meter::silent());
        let rows = meter.watch(client.query_endpoints(&sql, request.endpoints).await?);
        self.received(request, meter, usage, rows).await
    }

    /// The same scan as [`Self::get`] has, in this process's own DuckDB and without any transport.
    async fn scan(&mut self, request: &Request) -> Result<Done> {
        let sql = format!("SELECT * FROM {}", self.table(request)?.sql());
        let (usage, meter) = (Usage::start(), Meter::silent());
        let rows = meter.watch(self.local.query(&Rights::all("bench"), &sql).await?);
        self.received(request, meter, usage, rows).await
    }

    async fn put(&mut self, request: &Request) -> Result<Done> {
        let client = self.client(request, 0).await?;
        let to = TableName::parse(&request.to)?;
        let input = self.generated()?.stream();
        let (usage, meter) = (Usage::start(), Meter::silent());
        client.put(to.parts(), meter.watch(input)).await?;
        Done::of(meter, usage).stored_at(&client, &to, request.verify).await
    }

    /// The same insert as [`Self::put`] has, in this process's own DuckDB and without any transport.
    async fn insert(&mut self, request: &Request) -> Result<Done> {
        let to = TableName::parse(&request.to)?;
        let input = self.generated()?.stream();
        let (usage, meter) = (Usage::start(), Meter::silent());
        self.local.ingest(&Rights::all("bench"), &to, Mode::Create, meter.watch(input), false).await?.commit().await?;
        let mut done = Done::of(meter, usage);
        if request.verify {
            let row = self.local.row(Fingerprint::sql(&to.sql())).await?;
            done.hash = Some(Fingerprint::from_row(&row)?.hash);
        }
        run_local(&self.local, &format!("DROP TABLE {}", to.sql())).await?;
        Ok(done)
    }

    async fn relay(&mut self, request: &Request) -> Result<Done> {
        let (first, second) = (self.client(request, 0).await?, self.client(request, 1).await?);
        let (table, to) = (self.table(request)?, TableName::parse(&request.to)?);
        let (usage, meter) = (Usage::start(), Meter::silent());
        let rows = first.query(&format!("SELECT * FROM {}", table.sql())).await?;
        second.put(to.parts(), meter.watch(rows)).await?;
        Done::of(meter, usage).stored_at(&second, &to, request.verify).await
    }

    async fn pull(&mut self, request: &Request) -> Result<Done> {
        let second = self.client(request, 1).await?;
        let from = location(server(request, 0)?)?;
        let (table, to) = (self.table(request)?.sql(), TableName::parse(&request.to)?.sql());
        let mut order = moves::order(&from, self.login.as_ref(), &table, &to, request.verify);
        order["endpoints"] = request.endpoints.into();
        let (usage, meter) = (Usage::start(), Meter::silent());
        let last = moves::pull(&second, &order, &meter).await?;
        let mut done = Done::of(meter, usage);
        done.hash = last.hash.as_deref().map(str::parse).transpose().map_err(Error::internal)?;
        Ok(done)
    }

    async fn exchange(&mut self, request: &Request) -> Result<Done> {
        let client = self.client(request, 0).await?;
        let sent = Arc::new(AtomicU64::new(0));
        let counted = sent.clone();
        let input = self.generated()?.stream().inspect(move |batch| {
            counted.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        });
        let (usage, meter) = (Usage::start(), Meter::silent());
        let first = Arc::new(OnceLock::new());
        let seen = first.clone();
        let output = client.exchange(&request.exchanger, input).await?.inspect(move |_| {
            seen.get_or_init(|| sent.load(Ordering::Relaxed));
        });
        let output = match output.schema().column_with_name(PROCESSED) {
            Some(_) => moves::unprocessed(output),
            None => output,
        };
        // Counted once, on the way back.
        let output = meter.watch(output);
        let mut done = self.received(request, meter, usage, output).await?;
        done.first_batch_after_input_rows = first.get().copied();
        Ok(done)
    }

    async fn small(&mut self, request: &Request) -> Result<Done> {
        let clients = request.clients.max(1);
        let until = match clients {
            1 => Until::Asked(request.count),
            _ => Until::Passed(
                Duration::try_from_secs_f64(request.seconds)
                    .map_err(|error| Error::invalid(format!("seconds: {error}")))?,
            ),
        };
        let clients = self.clients(server(request, 0)?, clients).await?;
        // A connection's first query is not like the others.
        small::ask(clients, Until::Asked(1)).await?;
        let (usage, meter) = (Usage::start(), Meter::silent());
        let latencies = small::ask(clients, until).await?;
        meter.set(latencies.count, 0);
        let mut done = Done::of(meter, usage);
        done.latencies = Some(latencies);
        Ok(done)
    }

    /// Reads to the end. Batches are dropped as they come, or kept for their hash.
    async fn received(&self, request: &Request, meter: Meter, usage: Usage, rows: RecordBatchStream) -> Result<Done> {
        let schema = rows.schema();
        let mut kept: Vec<RecordBatch> = Vec::new();
        drain(rows, |batch| {
            if request.verify {
                kept.push(batch);
            }
        })
        .await?;
        let first_batch_seconds = meter.first_batch_seconds();
        let mut done = Done { first_batch_seconds, ..Done::of(meter, usage) };
        if request.verify {
            let rows = RecordBatchStream::from_batches(schema, kept);
            done.hash = Some(fingerprint_of(&self.local, rows).await?.hash);
        }
        Ok(done)
    }

    fn table(&self, request: &Request) -> Result<TableName> {
        let generated = || self.generated.as_ref().map(|generated| generated.workload).unwrap_or_default().name();
        TableName::parse(request.table.as_deref().unwrap_or_else(generated))
    }

    fn generated(&self) -> Result<&Generated> {
        self.generated.as_ref().ok_or_else(|| Error::invalid("no rows to send: \"generate\" comes first"))
    }

    async fn client(&mut self, request: &Request, index: usize) -> Result<Client> {
        Ok(self.clients(server(request, index)?, 1).await?[0].clone())
    }

    async fn clients(&mut self, server: &str, wanted: usize) -> Result<&[Client]> {
        let clients = self.clients.entry(server.to_string()).or_default();
        while clients.len() < wanted {
            clients.push(Client::connect_trusting(&location(server)?, self.login.as_ref(), &self.trust).await?);
        }
        Ok(&clients[..wanted])
    }
}

impl Done {
    /// Stops both clocks.
    fn of(meter: Meter, usage: Usage) -> Self {
        let measured = meter.finish();
        Self {
            measured,
            used: usage.end(),
            first_batch_seconds: None,
            first_batch_after_input_rows: None,
            hash: None,
            latencies: None,
        }
    }

    /// With the hash of the stored table, if that was asked for.
    async fn stored_at(mut self, client: &Client, table: &TableName, asked: bool) -> Result<Self> {
        if asked {
            self.hash = Some(fingerprint(client, &table.sql()).await?.hash);
        }
        Ok(self)
    }
}

fn server(request: &Request, index: usize) -> Result<&str> {
    let missing = || Error::invalid(format!("{} needs servers[{index}]", request.operation));
    request.servers.get(index).map(String::as_str).ok_or_else(missing)
}

fn location(server: &str) -> Result<Location> {
    server.parse().map_err(Error::invalid)
}
