//! One-row queries: how long one waits, and how many a second are answered.

use std::time::{Duration, Instant};

use futures::StreamExt;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::{
    client::Client,
    error::{Error, Result},
};

const SQL: &str = "SELECT 1";

/// Nanoseconds that are told apart to three digits: from a microsecond to a minute.
const SHORTEST: u64 = 1_000;
const LONGEST: u64 = 60_000_000_000;
const DIGITS: u8 = 3;

/// When a client stops asking.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    Asked(u64),
    Passed(Duration),
}

/// What was answered, and within which time; latencies in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Latencies {
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
    pub(super) count: u64,
    pub(super) per_second: f64,
    #[serde(skip)]
    pub(super) seconds: f64,
}

/// Each client asks one query after the other, all clients at once.
pub(super) async fn ask(clients: &[Client], until: Until) -> Result<Latencies> {
    let start = Instant::now();
    // Tasks of their own, so that the clients share this process's cores; dropped with this future.
    let mut asking = JoinSet::new();
    for client in clients {
        asking.spawn(ask_on(client.clone(), start, until));
    }
    let mut all = histogram()?;
    while let Some(asked) = asking.join_next().await {
        all.add(asked.map_err(Error::internal)??).map_err(Error::internal)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let milliseconds = |nanoseconds: u64| nanoseconds as f64 / 1e6;
    let at = |quantile| milliseconds(all.value_at_quantile(quantile));
    Ok(Latencies {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        max: milliseconds(all.max()),
        count: all.len(),
        per_second: all.len() as f64 / seconds.max(1e-9),
        seconds,
    })
}

async fn ask_on(client: Client, start: Instant, until: Until) -> Result<Histogram<u64>> {
    let mut histogram = histogram()?;
    loop {
        let enough = match until {
            Until::Asked(count) => histogram.len() >= count,
            Until::Passed(time) => start.elapsed() >= time,
        };
        if enough {
            return Ok(histogram);
        }
        let asked = Instant::now();
        let mut answer = client.query(SQL).await?;
        let mut rows = 0;
        while let Some(batch) = answer.next().await {
            rows += batch?.num_rows();
        }
        histogram.saturating_record(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
        if rows != 1 {
            return Err(Error::Unverified(format!("{}: {SQL} answered {rows} rows", client.peer())));
        }
    }
}

fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(SHORTEST, LONGEST, DIGITS).map_err(Error::internal)
}
