//! One server pulls a table or a query's result from another into a table of its own, in one transaction, and proves
//! that what arrived is what was there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};

use crate::{
    access::{Rights, Role},
    client::{Client, Login, Trust},
    config::{Compression, MAX_ENDPOINTS, Secret, Size},
    engine::{Engine, Fingerprint, Mode, TableName},
    error::{Error, Result},
    exchange::{Chain, Registry},
    location::Location,
    stream::{RecordBatchStream, batch_bytes},
    telemetry::Metrics,
    wire::Budget,
};

/// How often a running transfer says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// The body of the action `transfer`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    from: String,
    username: Option<String>,
    password: Option<Password>,
    table: Option<String>,
    query: Option<String>,
    to: Option<String>,
    #[serde(default)]
    mode: RequestMode,
    /// With the mode `replace`: a table that the columns do not fit is created anew.
    #[serde(default)]
    force: bool,
    #[serde(default = "yes")]
    verify: bool,
    #[serde(default = "one")]
    endpoints: usize,
    compression: Option<String>,
    /// Exchangers of the server that pulls, which the rows pass before they are stored.
    exchange: Option<String>,
}

/// A text; what is given in its place is not shown in the error.
struct Password(Secret);

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Ok(Self(Secret::new(text))),
            _ => Err(serde::de::Error::custom("password must be a text")),
        }
    }
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum RequestMode {
    #[default]
    Create,
    Append,
    Replace,
}

fn yes() -> bool {
    true
}

fn one() -> usize {
    1
}

/// What a transfer says: how far it is, and in the last one that it is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub rows: u64,
    pub bytes: u64,
    pub seconds: f64,
    pub done: bool,
    /// In the last one: whether row count and hash were compared and are equal. False where the request said
    /// `"verify": false`, or only the count could be compared: values were cast into an existing table, or the rows passed
    /// exchangers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub verified: Option<bool>,
    /// The sum of DuckDB's hash of each row, equal on both sides.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hash: Option<String>,
    /// Seconds that computing and comparing the hashes took, beyond `seconds`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub verify_seconds: Option<f64>,
}

/// A checked request.
pub struct Transfer {
    rights: Arc<Rights>,
    from: Location,
    login: Option<Login>,
    what: What,
    to: TableName,
    mode: Mode,
    verify: bool,
    endpoints: usize,
    compression: Option<Compression>,
    chain: Option<Chain>,
    trust: Trust,
    /// The longest message, and what messages may hold together with those of others.
    receiving: Option<(Size, Budget)>,
}

enum What {
    Table(TableName),
    Query(String),
}

impl Transfer {
    /// `rights` are those of whoever asks for it.
    pub fn new(rights: &Arc<Rights>, request: Request) -> Result<Self> {
        rights.require(Role::Writer, "a transfer")?;
        let from = request.from.parse().map_err(|why| Error::invalid(format!("from: {why}")))?;
        let login = match (request.username, request.password) {
            (None, None) => None,
            (Some(user), Some(Password(password))) => Some(Login { user, password }),
            _ => return Err(Error::invalid("username and password go together; the body has only one of them")),
        };
        let what = match (request.table, request.query) {
            (Some(table), None) => What::Table(TableName::parse(&table)?),
            (None, Some(query)) => What::Query(query.trim().trim_end_matches(';').to_string()),
            _ => return Err(Error::invalid("the body needs table or query, and not both")),
        };
        let to = match (&request.to, &what) {
            (Some(to), _) => TableName::parse(to)?,
            (None, What::Table(table)) => table.clone(),
            (None, What::Query(_)) => return Err(Error::invalid("a query needs \"to\", the table it goes to")),
        };
        let mode = match (request.mode, request.force) {
            (RequestMode::Create, false) => Mode::Create,
            (RequestMode::Append, false) => Mode::CreateOrAppend,
            (RequestMode::Replace, false) => Mode::ReplaceRows,
            (RequestMode::Replace, true) => Mode::ReplaceRowsOrTable,
            (_, true) => return Err(Error::invalid("\"force\" goes with the mode replace, and with no other")),
        };
        let (verify, endpoints) = (request.verify, request.endpoints);
        if !(1..=MAX_ENDPOINTS).contains(&endpoints) {
            return Err(Error::invalid(format!("endpoints must be 1 to {MAX_ENDPOINTS}")));
        }
        let compression = request.compression.map(|word| word.parse()).transpose();
        let compression = compression.map_err(|why: String| Error::invalid(format!("compression {why}")))?;
        let chain = request.exchange.map(|chain| Chain::parse(&chain)).transpose()?;
        let (rights, trust) = (rights.clone(), Trust::default());
        Ok(Self { rights, from, login, what, to, mode, verify, endpoints, compression, chain, trust, receiving: None })
    }

    /// Whom to trust where `from` is under TLS.
    pub fn trusting(self, trust: Trust) -> Self {
        Self { trust, ..self }
    }

    /// Takes messages of so many bytes at most, as long as there is room for them.
    pub fn receiving(self, max_message: Size, budget: Budget) -> Self {
        Self { receiving: Some((max_message, budget)), ..self }
    }

    /// Runs the transfer. Dropping the stream rolls it back.
    pub fn run(
        self,
        engine: Arc<Engine>,
        exchangers: Registry,
        metrics: Metrics,
    ) -> impl Stream<Item = Result<Progress>> + Send + 'static {
        let counter = Arc::new(Counter { rows: AtomicU64::new(0), bytes: AtomicU64::new(0), start: Instant::now() });
        let watched = counter.clone();
        let moving = Box::pin(async move {
            let mut underway = metrics.transfer();
            let outcome = self.pull(&engine, &exchangers, &counter, &metrics).await;
            underway.end(&outcome);
            outcome
        });
        let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
        ticks.reset();
        futures::stream::unfold(Some((moving, ticks)), move |state| {
            let watched = watched.clone();
            async move {
                let (mut moving, mut ticks) = state?;
                tokio::select! {
                    biased;
                    last = &mut moving => Some((last, None)),
                    _ = ticks.tick() => Some((Ok(watched.now()), Some((moving, ticks)))),
                }
            }
        })
    }

    async fn pull(
        self,
        engine: &Engine,
        exchangers: &Registry,
        counter: &Arc<Counter>,
        metrics: &Metrics,
    ) -> Result<Progress> {
        let source = Client::connect_trusting(&self.from, self.login.as_ref(), &self.trust).await?;
        let source = source.compressing(self.compression);
        let source = match self.receiving.clone() {
            Some((max_message, budget)) => source.receiving(max_message, budget),
            None => source,
        };
        let (input, relation) = match &self.what {
            What::Table(table) => (source.table_endpoints(table.parts(), self.endpoints).await?, table.sql()),
            What::Query(query) => (source.query_endpoints(query, self.endpoints).await?, format!("({query}\n)")),
        };
        let (counted, metrics) = (counter.clone(), metrics.clone());
        let input = input.inspect(move |batch| {
            let (rows, bytes) = (batch.num_rows() as u64, batch_bytes(batch));
            counted.add(rows, bytes);
            metrics.transfer_rows.inc_by(rows);
            metrics.transfer_bytes.inc_by(bytes);
        });
        let input = match &self.chain {
            Some(chain) => exchangers.run(&self.rights, chain, input, true).await?,
            None => input,
        };
        // What exchangers make of the rows cannot be compared with them.
        let comparable = self.verify && self.chain.is_none();
        let staged = engine.ingest(&self.rights, &self.to, self.mode, input, comparable).await?;
        let mut done = counter.now();
        let arrived = if self.chain.is_some() { done.rows } else { staged.rows };
        done.rows = staged.rows;
        done.done = true;
        let mut verified = false;
        if self.verify {
            let start = Instant::now();
            let there = fingerprint(&source, &relation).await?;
            let differ = |what: &str, there: String, here: String| {
                Error::Unverified(format!(
                    "{what} differ: {there} at {}, {here} arrived; nothing was stored (did the source change meanwhile?)",
                    source.peer()
                ))
            };
            if there.rows != arrived {
                return Err(differ("row counts", there.rows.to_string(), arrived.to_string()));
            }
            if let Some(here) = &staged.fingerprint {
                if *here != there {
                    return Err(differ("hashes", there.hash.to_string(), here.hash.to_string()));
                }
                verified = true;
                done.hash = Some(here.hash.to_string());
            }
            done.verify_seconds = Some(start.elapsed().as_secs_f64());
        }
        let committing = Instant::now();
        staged.commit().await?;
        done.seconds += committing.elapsed().as_secs_f64();
        done.verified = Some(verified);
        Ok(done)
    }
}

/// The fingerprint of a relation at the other server, computed by its DuckDB.
async fn fingerprint(source: &Client, relation: &str) -> Result<Fingerprint> {
    let answer = source.query(&Fingerprint::sql(relation)).await?;
    Fingerprint::from_row(&first_row(answer).await?).map_err(|_| {
        Error::Unverified(format!(
            "{} did not answer how many rows it has and their hash; nothing was stored",
            source.peer()
        ))
    })
}

/// The texts of the first row.
pub async fn first_row(mut rows: RecordBatchStream) -> Result<Vec<String>> {
    use arrow_cast::display::array_value_to_string;
    let batch = rows.next().await.ok_or_else(|| Error::Stream("the answer has no row".into()))??;
    // An answer of one row is read to its end, or its call would be reset: after 1,024 such h2 ends the connection.
    rows.next().await.transpose()?;
    if batch.num_rows() == 0 {
        return Err(Error::Stream("the answer has no row".into()));
    }
    batch
        .columns()
        .iter()
        .map(|column| array_value_to_string(column, 0).map_err(|error| Error::Stream(error.to_string())))
        .collect()
}

struct Counter {
    rows: AtomicU64,
    bytes: AtomicU64,
    start: Instant,
}

impl Counter {
    fn add(&self, rows: u64, bytes: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn now(&self) -> Progress {
        Progress {
            rows: self.rows.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            seconds: self.start.elapsed().as_secs_f64(),
            done: false,
            verified: None,
            hash: None,
            verify_seconds: None,
        }
    }
}
