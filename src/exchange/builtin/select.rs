//! `select`: some columns, in an order and under names of the caller's.

use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::Schema;
use futures::StreamExt;
use serde::Deserialize;

use super::{super::Run, columns::find};
use crate::{
    error::{Error, Result},
    stream::RecordBatchStream,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    columns: Option<Vec<Column>>,
    except: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Column {
    Same(String),
    Renamed(Renamed),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Renamed {
    column: String,
    r#as: String,
}

pub(super) fn select(input: RecordBatchStream, run: Run) -> Result<RecordBatchStream> {
    let before = input.schema();
    let chosen: Vec<(usize, Option<String>)> = match run.arguments.read()? {
        Parameters { columns: Some(columns), except: None } => columns
            .into_iter()
            .map(|column| match column {
                Column::Same(name) => Ok((find(&before, &name)?, None)),
                Column::Renamed(Renamed { column, r#as }) => Ok((find(&before, &column)?, Some(r#as))),
            })
            .collect::<Result<_>>()?,
        Parameters { columns: None, except: Some(except) } => {
            let except = except.iter().map(|name| find(&before, name)).collect::<Result<Vec<_>>>()?;
            (0..before.fields().len()).filter(|at| !except.contains(at)).map(|at| (at, None)).collect()
        }
        _ => return Err(Error::invalid("parameters: give columns or except, and not both")),
    };
    if chosen.is_empty() {
        return Err(Error::invalid("parameters: no column is left"));
    }
    let fields = chosen.iter().map(|(at, name)| match name {
        Some(name) => Arc::new(before.field(*at).clone().with_name(name)),
        None => before.fields()[*at].clone(),
    });
    let schema = Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), before.metadata().clone()));
    let answer = schema.clone();
    let batches = input.map(move |batch| {
        let batch = batch?;
        let columns = chosen.iter().map(|(at, _)| batch.column(*at).clone()).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(answer.clone(), columns, &options).map_err(Error::internal)
    });
    Ok(RecordBatchStream::new(schema, batches))
}
