//! The rounds of a benchmark against servers of the user's own, in tables of its own.

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures::TryStreamExt;
use serde_json::json;
use tonic::Code;

use super::{
    Operation,
    report::Report,
    small::{self, Latencies, Until},
    usage::{Usage, Used},
};
use crate::{
    cli::{
        files,
        moves::{self, PROCESSED, drain, fingerprint, fingerprint_of, path, run},
        progress::{Measured, Meter},
        workload::{Generated, Workload},
    },
    client::{Client, Login, Trust},
    engine::{Engine, Fingerprint},
    error::{Error, Result},
    location::Location,
    stream::RecordBatchStream,
    transfer::first_row,
};

/// How long a cancelled operation may stand in the way of dropping its table.
const PATIENCE_TO_DROP: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// Small queries that warm up and are not counted.
const WARM_UP_QUERIES: u64 = 50;

/// What was asked for.
pub(super) struct Plan {
    pub(super) first: Location,
    pub(super) second: Option<Location>,
    pub(super) login: Option<Login>,
    pub(super) trust: Trust,
    pub(super) workload: Workload,
    pub(super) rows: u64,
    pub(super) rounds: u32,
    pub(super) operations: Vec<Operation>,
    /// Of the WebAssembly exchanger.
    pub(super) module: Option<PathBuf>,
    /// That ask small queries at once.
    pub(super) clients: usize,
    /// Connections over which GET and TRANSFER pulled read.
    pub(super) endpoints: usize,
    /// How long they ask.
    pub(super) patience: Duration,
}

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Relay => "TRANSFER relayed",
            Self::Pull => "TRANSFER pulled",
            Self::Exchange => "EXCHANGE",
            Self::ExchangeSql => "EXCHANGE, SQL",
            Self::ExchangeWasm => "EXCHANGE, WebAssembly",
            Self::Small => "one-row queries",
        }
    }
}

/// One operation in all rounds.
pub(super) struct Rounds {
    pub(super) operation: Operation,
    pub(super) samples: Vec<Sample>,
    pub(super) verified: bool,
}

pub(super) struct Sample {
    pub(super) measured: Measured,
    /// Of rows that came back.
    pub(super) first_batch_seconds: Option<f64>,
    pub(super) used: Used,
}

/// Small queries by so many clients at once.
pub(super) struct Small {
    pub(super) clients: usize,
    pub(super) latencies: Latencies,
    pub(super) used: Used,
}

pub(super) struct Bench {
    pub(super) plan: Plan,
    pub(super) started: SystemTime,
    /// DuckDB's at the first server.
    pub(super) version: String,
    first: Client,
    /// The first once more where there is no second, and then nothing is asked of it.
    second: Client,
    local: Engine,
    /// At the first server, to be read.
    table: String,
    /// At either server, what was just stored there.
    arrived: String,
    pub(super) rounds: Vec<Rounds>,
    pub(super) small: Vec<Small>,
}

impl Bench {
    pub(super) async fn open(plan: Plan) -> Result<Self> {
        let first = Client::connect_trusting(&plan.first, plan.login.as_ref(), &plan.trust).await?;
        let second = match &plan.second {
            Some(second) => Client::connect_trusting(second, plan.login.as_ref(), &plan.trust).await?,
            None => first.clone(),
        };
        let version = first_row(first.query("SELECT version()").await?).await?.join(" ");
        let mut suffix = [0_u8; 4];
        getrandom::fill(&mut suffix).map_err(Error::internal)?;
        let table = format!("mallard_bench_{:08x}", u32::from_be_bytes(suffix));
        let arrived = format!("{table}_arrived");
        let moves = plan.operations.iter().copied().filter(|&operation| operation != Operation::Small);
        let rounds = moves.map(|operation| Rounds { operation, samples: Vec::new(), verified: true }).collect();
        let (started, local) = (SystemTime::now(), files::local().await?);
        Ok(Self { plan, started, version, first, second, local, table, arrived, rounds, small: Vec::new() })
    }

    pub(super) async fn run(&mut self) -> Result<()> {
        if !self.rounds.is_empty() {
            self.moves().await?;
        }
        if self.plan.operations.contains(&Operation::Small) {
            self.small().await?;
        }
        Ok(())
    }

    /// Round 0 warms up, verifies what reaches the client, and is not counted.
    async fn moves(&mut self) -> Result<()> {
        let meter = Meter::start("making rows", None);
        let sent = Generated::make(&self.local, self.plan.workload, self.plan.rows).await?;
        meter.finish();
        moves::run_local(&self.local, &format!("DROP TABLE {}", self.plan.workload.name())).await?;
        let expected = &sent.fingerprint;
        let meter = Meter::start("filling a table", Some(expected.rows));
        self.first.put(&path(&self.table), meter.watch(sent.stream())).await?;
        meter.finish();
        let stored = fingerprint(&self.first, &self.table).await?;
        if stored != *expected {
            return Err(Error::Unverified(format!(
                "{} stored other rows than were sent: {} rows, hash {}, in place of {} rows, hash {}",
                self.first.peer(),
                stored.rows,
                stored.hash,
                expected.rows,
                expected.hash
            )));
        }
        self.register().await?;
        for round in 0..=self.plan.rounds {
            for index in 0..self.rounds.len() {
                let operation = self.rounds[index].operation;
                let (sample, verified) = self.measure(operation, round, &sent).await?;
                let rounds = &mut self.rounds[index];
                rounds.verified &= verified;
                if round > 0 {
                    rounds.samples.push(sample);
                }
            }
        }
        Ok(())
    }

    /// One operation once; its sample, and whether what arrived is what was sent.
    async fn measure(&self, operation: Operation, round: u32, sent: &Generated) -> Result<(Sample, bool)> {
        let expected = &sent.fingerprint;
        let name = operation.name();
        let shown = match round {
            0 => format!("{name}, warm-up"),
            round => format!("{name}, round {round} of {}", self.plan.rounds),
        };
        let hash_of = (round == 0).then_some(expected);
        let select = format!("SELECT * FROM {}", self.table);
        let arrived = path(&self.arrived);
        let (usage, meter) = (Usage::start(), Meter::start(&shown, Some(expected.rows)));
        let mut verified = match operation {
            Operation::Get => {
                let rows = self.first.query_endpoints(&select, self.plan.endpoints).await?;
                self.receive(meter.watch(rows), hash_of).await?
            }
            Operation::Put => self.first.put(&arrived, meter.watch(sent.stream())).await?.rows == expected.rows,
            Operation::Relay => {
                let rows = meter.watch(self.first.query(&select).await?);
                self.second.put(&arrived, rows).await?.rows == expected.rows
            }
            Operation::Pull => {
                let login = self.plan.login.as_ref();
                let mut order = moves::order(&self.plan.first, login, &self.table, &self.arrived, false);
                order["endpoints"] = self.plan.endpoints.into();
                moves::pull(&self.second, &order, &meter).await?.rows == expected.rows
            }
            Operation::Exchange | Operation::ExchangeSql | Operation::ExchangeWasm => {
                let output = self.first.exchange(&self.exchanger(operation), sent.stream()).await?;
                // Counted once, on the way back.
                self.receive(meter.watch(moves::unprocessed(output)), hash_of).await?
            }
            Operation::Small => unreachable!("small queries have no rounds"),
        };
        let first_batch_seconds = match operation {
            Operation::Get | Operation::Exchange | Operation::ExchangeSql | Operation::ExchangeWasm => {
                meter.first_batch_seconds()
            }
            _ => None,
        };
        let sample = Sample { measured: meter.finish(), first_batch_seconds, used: usage.end() };
        verified &= sample.measured.rows == expected.rows;
        let stored_at = match operation {
            Operation::Put => Some(&self.first),
            Operation::Relay | Operation::Pull => Some(&self.second),
            _ => None,
        };
        if let Some(client) = stored_at {
            verified &= fingerprint(client, &self.arrived).await? == *expected;
            run(client, &format!("DROP TABLE {}", self.arrived)).await?;
        }
        Ok((sample, verified))
    }

    /// What the server knows the exchanger of an operation as.
    fn exchanger(&self, operation: Operation) -> String {
        match operation {
            Operation::ExchangeSql => format!("{}_sql", self.table),
            Operation::ExchangeWasm => format!("{}_wasm", self.table),
            _ => PROCESSED.to_string(),
        }
    }

    /// The exchangers that servers do not have by themselves.
    async fn register(&self) -> Result<()> {
        for operation in &self.plan.operations {
            let name = self.exchanger(*operation);
            let body = match (operation, &self.plan.module) {
                (Operation::ExchangeSql, _) => json!({"name": name, "sql": "SELECT *, true AS processed FROM input"}),
                (Operation::ExchangeWasm, Some(file)) => {
                    let module =
                        std::fs::read(file).map_err(|error| Error::Io(format!("{}: {error}", file.display())))?;
                    json!({"name": name, "wasm": BASE64_STANDARD.encode(module)})
                }
                _ => continue,
            };
            self.first.action("add_exchange", &body).await?.try_collect::<Vec<_>>().await?;
        }
        Ok(())
    }

    /// Reads to the end; with a fingerprint to compare to, by way of the client's own DuckDB.
    async fn receive(&self, rows: RecordBatchStream, expected: Option<&Fingerprint>) -> Result<bool> {
        match expected {
            Some(expected) => Ok(fingerprint_of(&self.local, rows).await? == *expected),
            None => drain(rows, drop).await.map(|()| true),
        }
    }

    async fn small(&mut self) -> Result<()> {
        let mut clients = vec![self.first.clone()];
        small::ask(&clients, Until::Asked(WARM_UP_QUERIES)).await?;
        self.ask(&clients).await?;
        if self.plan.clients > 1 {
            while clients.len() < self.plan.clients {
                clients.push(
                    Client::connect_trusting(&self.plan.first, self.plan.login.as_ref(), &self.plan.trust).await?,
                );
            }
            small::ask(&clients, Until::Asked(WARM_UP_QUERIES)).await?;
            self.ask(&clients).await?;
        }
        Ok(())
    }

    async fn ask(&mut self, clients: &[Client]) -> Result<()> {
        let usage = Usage::start();
        let latencies = small::ask(clients, Until::Passed(self.plan.patience)).await?;
        self.small.push(Small { clients: clients.len(), latencies, used: usage.end() });
        Ok(())
    }

    /// Drops the tables, those of an operation that was broken off too.
    pub(super) async fn clean_up(&self) -> Result<()> {
        if self.rounds.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + PATIENCE_TO_DROP;
        for (client, table) in [(&self.first, &self.table), (&self.first, &self.arrived), (&self.second, &self.arrived)]
        {
            // A transaction that is being rolled back may be in the way for a moment.
            while let Err(error) = run(client, &format!("DROP TABLE IF EXISTS {table}")).await {
                if Instant::now() > deadline {
                    eprintln!("table {table} may still be at {}", client.peer());
                    return Err(error);
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        for operation in &self.plan.operations {
            if matches!(operation, Operation::ExchangeSql | Operation::ExchangeWasm) {
                let body = json!({"name": self.exchanger(*operation)});
                match self.first.action("drop_exchange", &body).await {
                    Ok(dropped) => {
                        // One that was not registered is not there.
                        let _ = dropped.try_collect::<Vec<_>>().await;
                    }
                    Err(error) if error.code() == Code::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    pub(super) fn report(&self, outcome: &Result<()>) -> Report<'_> {
        Report { bench: self, failure: outcome.as_ref().err().map(ToString::to_string) }
    }
}
