//! The steps, each shown on standard output and verified.

use std::path::PathBuf;

use serde_json::json;
use tracing::Instrument;

use super::{
    report::{Operation, Report},
    servers::Servers,
};
use crate::{
    access::Rights,
    cli::{
        files,
        moves::{self, act, drain, fingerprint, path, run, run_local},
        progress::{Measured, Meter, grouped},
        workload::Workload,
    },
    client::Client,
    engine::{Engine, Fingerprint, literal},
    error::Result,
    transfer::first_row,
};

const BUILT_IN: &str = "my_streaming_exchanger";
const REGISTERED: &str = "demo_exchanger";

pub(super) struct Walk<'a> {
    servers: &'a Servers,
    clients: [Client; 2],
    local: Engine,
    expected: Option<u64>,
    source: String,
    report: Report,
}

impl<'a> Walk<'a> {
    pub(super) async fn new(servers: &'a Servers, rows: u64, parquet: Option<PathBuf>) -> Result<Self> {
        let clients = [servers.connect(0).await?, servers.connect(1).await?];
        let local = files::local().await?;
        let (source, expected, told) = match parquet {
            Some(path) => {
                let told = path.display().to_string();
                (format!("SELECT * FROM read_parquet({})", literal(&told)), None, told)
            }
            None => (Workload::Flights.sql(rows), Some(rows), "generated".to_string()),
        };
        let report = Report::new(servers.describe(), told);
        Ok(Self { servers, clients, local, expected, source, report })
    }

    pub(super) async fn run(&mut self) -> Result<()> {
        println!("Mallard demo: {}", self.servers.describe());
        self.connection().instrument(tracing::info_span!("connection")).await?;
        self.basic_table().instrument(tracing::info_span!("basic table")).await?;
        self.large_data().instrument(tracing::info_span!("large data")).await?;
        self.exchange().instrument(tracing::info_span!("exchange")).await
    }

    pub(super) fn report(&self) -> Report {
        self.report.clone()
    }

    /// 1. Health, login, SELECT 1.
    async fn connection(&mut self) -> Result<()> {
        println!("\n1. Connection");
        for client in &self.clients {
            let serving = client.healthy().await?;
            let row = first_row(client.query("SELECT 1").await?).await?;
            let version = first_row(client.query("SELECT version()").await?).await?;
            println!("   {}: serving {serving}, SELECT 1 answers {}, DuckDB {}", client.peer(), row[0], version[0]);
            self.report.check(&format!("{} serves and answers", client.peer()), serving && row == ["1"]);
        }
        Ok(())
    }

    /// 2. A small table from server 1 to server 2.
    async fn basic_table(&mut self) -> Result<()> {
        println!("\n2. Basic table");
        let [first, second] = &self.clients;
        run(first, "CREATE OR REPLACE TABLE foo (id INTEGER, name VARCHAR, price DECIMAL(8, 2), seen TIMESTAMP)")
            .await?;
        run(
            first,
            "INSERT INTO foo VALUES (1, 'mallard', 12.50, '2026-01-01 08:00:00'), (2, 'teal', 9.99, NULL), \
             (3, 'eider ü', NULL, '2026-01-03 23:59:59.5')",
        )
        .await?;
        run(second, "DROP TABLE IF EXISTS foo").await?;
        let stored = second.put(&path("foo"), first.table(&path("foo")).await?).await?;
        println!("   {} rows of foo went from server 1 to server 2, which shows:", stored.rows);
        let shown = self.local.render(second.query("SELECT * FROM foo ORDER BY id").await?, 0, 100).await?;
        for line in shown.trim_end().lines() {
            println!("   {line}");
        }
        let equal = fingerprint(first, "foo").await? == fingerprint(second, "foo").await?;
        self.tell("foo is equal on both servers", equal);
        Ok(())
    }

    /// 3. PUT, GET, and both transfers of the large table.
    async fn large_data(&mut self) -> Result<()> {
        println!("\n3. Large data");
        let meter = Meter::start("preparing flights", self.expected);
        run_local(&self.local, &format!("CREATE TABLE flights AS {}", self.source)).await?;
        let prepared = self.local.row(Fingerprint::sql("flights")).await?;
        let prepared = Fingerprint::from_row(&prepared)?;
        meter.finish();
        println!("   flights is ready at the client: {} rows", grouped(prepared.rows));
        let rows = prepared.rows;

        for (client, name) in [(0, "flights"), (1, "flights"), (1, "flights_pulled")] {
            run(&self.clients[client], &format!("DROP TABLE IF EXISTS {name}")).await?;
        }
        let [first, second] = self.clients.clone();
        let meter = Meter::start("PUT to server 1", Some(rows));
        let stored = first
            .put(&path("flights"), meter.watch(self.local.query(&Rights::all("local"), "FROM flights").await?))
            .await?;
        let measured = meter.finish();
        let equal = stored.rows == rows && fingerprint(&first, "flights").await? == prepared;
        self.measure("PUT", "client to server 1, a new table", measured, equal);

        let meter = Meter::start("GET from server 1", Some(rows));
        drain(meter.watch(first.query("FROM flights").await?), drop).await?;
        let measured = meter.finish();
        // The content of this stream is what the relayed transfer stores and compares by hash.
        self.measure("GET", "server 1 to client, decoded and dropped", measured, measured.rows == rows);

        let meter = Meter::start("TRANSFER relayed by client", Some(rows));
        second.put(&path("flights"), meter.watch(first.query("FROM flights").await?)).await?;
        let measured = meter.finish();
        let equal = fingerprint(&second, "flights").await? == prepared;
        self.measure("TRANSFER relayed", "server 1 to client to server 2", measured, equal);

        let (measured, verified) = self.pull(rows).await?;
        let equal = verified && fingerprint(&second, "flights_pulled").await? == prepared;
        self.measure("TRANSFER pulled", "server 2 pulls from server 1", measured, equal);
        Ok(())
    }

    async fn pull(&self, rows: u64) -> Result<(Measured, bool)> {
        let from = &self.servers.locations[0];
        let order = moves::order(from, self.servers.login.as_ref(), "flights", "flights_pulled", true);
        let meter = Meter::start("TRANSFER pulled by server 2", Some(rows));
        let last = moves::pull(&self.clients[1], &order, &meter).await?;
        meter.finish();
        // The server's own seconds: they end with the commit and leave out the comparison of the hashes.
        let measured = Measured { rows: last.rows, bytes: last.bytes, seconds: last.seconds };
        Ok((measured, last.verified == Some(true)))
    }

    /// 4. Through an exchanger that every server has, and through one that the demo registers.
    async fn exchange(&mut self) -> Result<()> {
        println!("\n4. Exchange");
        let first = self.clients[0].clone();
        let (measured, complete) = self.through(BUILT_IN).await?;
        self.measure("EXCHANGE", BUILT_IN, measured, complete);

        // A run that was broken off may have left it.
        let _ = act(&first, "drop_exchange", &json!({"name": REGISTERED})).await;
        let sql = "SELECT *, true AS processed FROM input";
        act(&first, "add_exchange", &json!({"name": REGISTERED, "sql": sql, "description": "the demo's own"})).await?;
        println!("   registered {REGISTERED}: {sql}");
        let (measured, complete) = self.through(REGISTERED).await?;
        self.measure("EXCHANGE registered", REGISTERED, measured, complete);
        Ok(())
    }

    /// Sends flights through an exchanger; whether every row came back and `processed` is true everywhere.
    async fn through(&self, name: &str) -> Result<(Measured, bool)> {
        let input = self.local.query(&Rights::all("local"), "FROM flights").await?;
        let rows: u64 = self.local.row("SELECT count(*)::VARCHAR FROM flights".into()).await?[0].parse().unwrap_or(0);
        let meter = Meter::start(&format!("EXCHANGE {name}"), Some(rows));
        // Counted once, on the way back.
        let output = meter.watch(self.clients[0].exchange(name, input).await?);
        let mut all_processed = true;
        drain(output, |batch| all_processed &= moves::is_processed(&batch)).await?;
        let measured = meter.finish();
        Ok((measured, all_processed && measured.rows == rows))
    }

    pub(super) async fn clean_up(&self) {
        let [first, second] = &self.clients;
        for (client, name) in
            [(first, "foo"), (second, "foo"), (first, "flights"), (second, "flights"), (second, "flights_pulled")]
        {
            // What was not made cannot be dropped; the walk's own outcome is what counts.
            let _ = run(client, &format!("DROP TABLE IF EXISTS {name}")).await;
        }
        let _ = act(first, "drop_exchange", &json!({"name": REGISTERED})).await;
    }

    fn measure(&mut self, name: &'static str, what: &str, measured: Measured, verified: bool) {
        println!("   {name:20} {measured}{}", if verified { ", verified" } else { ", NOT VERIFIED" });
        self.report.operation(Operation { name, what: what.to_string(), measured, verified });
    }

    fn tell(&mut self, what: &str, verified: bool) {
        println!("   {what}: {}", if verified { "verified" } else { "NOT VERIFIED" });
        self.report.check(what, verified);
    }
}
