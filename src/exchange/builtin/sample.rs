//! `sample`: the first rows, every so many, or a part that a seed decides.

use arrow_array::{BooleanArray, RecordBatch};
use futures::StreamExt;
use serde::Deserialize;

use super::{super::Run, columns::keep};
use crate::{
    error::{Error, Result},
    stream::RecordBatchStream,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    first: Option<u64>,
    every: Option<u64>,
    fraction: Option<f64>,
    seed: Option<u64>,
}

pub(super) fn sample(input: RecordBatchStream, run: Run) -> Result<RecordBatchStream> {
    let Parameters { first, every, fraction, seed } = run.arguments.read()?;
    if seed.is_some() && fraction.is_none() {
        return Err(Error::invalid("parameters: seed goes with fraction"));
    }
    match (first, every, fraction) {
        (Some(first), None, None) => Ok(take(input, first)),
        (None, Some(every), None) if every > 0 => Ok(chosen(input, move |row| row % every == 0)),
        (None, None, Some(fraction)) if (0.0..=1.0).contains(&fraction) => {
            let seed = seed.unwrap_or_default();
            // Of 2^53: as many as a double tells apart.
            let most = (fraction * (1_u64 << 53) as f64) as u64;
            Ok(chosen(input, move |row| scattered(seed, row) >> 11 < most))
        }
        _ => Err(Error::invalid(
            "parameters: give one of first (rows), every (1 or more) and fraction (0 to 1, with a seed)",
        )),
    }
}

/// The rest of the input is not taken.
fn take(input: RecordBatchStream, first: u64) -> RecordBatchStream {
    let schema = input.schema();
    let batches = futures::stream::unfold(Some((input, first)), async |state| {
        let (mut input, left) = state.filter(|(_, left)| *left > 0)?;
        let batch = match input.next().await? {
            Ok(batch) => batch,
            Err(error) => return Some((Err(error), None)),
        };
        let rows = usize::try_from(left).unwrap_or(usize::MAX).min(batch.num_rows());
        Some((Ok(batch.slice(0, rows)), Some((input, left - rows as u64))))
    });
    RecordBatchStream::new(schema, batches)
}

/// Rows by their number in the stream, which begins with 0.
fn chosen(input: RecordBatchStream, is_chosen: impl Fn(u64) -> bool + Send + 'static) -> RecordBatchStream {
    let schema = input.schema();
    let mut before = 0_u64;
    let batches = input.map(move |batch| {
        let batch: RecordBatch = batch?;
        let rows: BooleanArray = (0..batch.num_rows() as u64).map(|row| Some(is_chosen(before + row))).collect();
        before += batch.num_rows() as u64;
        keep(&batch, &rows)
    });
    RecordBatchStream::new(schema, batches)
}

/// SplitMix64: the same numbers for the same seed, whatever the batches are.
fn scattered(seed: u64, row: u64) -> u64 {
    let mut mixed = seed.wrapping_add(row.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
