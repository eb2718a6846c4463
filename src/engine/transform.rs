//! A SELECT over the relation `input`, which is a stream that arrives while it runs.
//!
//! Where each row is worked on for itself, the statement is run again and again in one transaction: each run ends where the
//! sender pauses, so that what was made of the rows so far leaves at once, and DuckDB still makes long batches of a fast
//! stream. (DuckDB keeps a few rows back in operators and in the Arrow batch until more come.) Everything else is one run
//! over the whole stream.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use duckdb::{
    Parameters, QueryParameter, connection::Connection, query_result::StatementType, statement::Statement, value::Value,
};
use futures::Stream;
use tokio::sync::{mpsc, oneshot};

use super::{
    Engine, Shared,
    arrow::Importer,
    carry::{Carried, Carry},
    catalog,
    error::discreet,
    guard::{self, Sees},
    interruption::Manner,
    open::LOCK,
    origins::{Restored, is_plain, origins},
    outlet::{Outlet, outlet},
    parameters::{self, Declared, Given},
    pool::{Cancel, CancelOnDrop, lock},
    rows::Rows,
    sandbox::INPUT,
    seen::{Seen, Waiting},
    shape::{Reads, Shape},
    source::{Sharing, Source, Sources},
    statement, width,
};
use crate::{
    access::Rights,
    error::{Error, Result},
    stream::RecordBatchStream,
};

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Transformation {
    pub sql: String,
    pub shape: Shape,
    /// What `$name` stands for in it.
    pub values: Vec<Given>,
    /// Whether types that it gives leave in forms that lose nothing.
    pub lossless: bool,
}

/// What is known of a SELECT over `input` before there is one.
#[derive(Debug)]
pub struct Checked {
    pub shape: Shape,
    /// The parameters that it has.
    pub declared: Vec<Declared>,
}

impl Engine {
    /// What a SELECT over `input` is, told without an input; an error where it is none, or does not fit its parameters. Those
    /// that were `inherited` from another SELECT need not all be in it.
    pub async fn check_transformation(
        &self,
        sql: &str,
        mut declared: Vec<Declared>,
        inherited: bool,
    ) -> Result<Checked> {
        statement::check_text(&self.shared, sql)?;
        let sql = sql.to_string();
        self.call(&Rights::all("mallard"), move |shared, connection| {
            // What is no SELECT is told as such before it is told that readers may not run it.
            let parsed = guard::admit(shared, connection, &sql, &Rights::all("exchanger"), Sees::ItsOwn)?;
            match statement::kind(&parsed)? {
                StatementType::Select => {}
                other => return Err(Error::invalid(format!("an exchanger is one SELECT over {INPUT}, not {other:?}"))),
            }
            guard::admit(shared, connection, &sql, &Rights::reader("exchanger"), Sees::ItsOwn)?;
            let used = parsed.parameter_names().map_err(|error| shared.cause(&error))?;
            let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
            if let Some(unknown) = used.iter().find(|used| !declared.iter().any(|one| same(&one.name, used))) {
                return Err(Error::invalid(format!(
                    "the SQL has the parameter ${unknown}, which params does not name"
                )));
            }
            let is_used = |declared: &Declared| used.iter().any(|used| same(used, &declared.name));
            declared.retain(|declared| !inherited || is_used(declared));
            for declared in &declared {
                if !is_used(declared) {
                    let name = &declared.name;
                    return Err(Error::invalid(format!("the SQL has no parameter ${name}, which params names")));
                }
                parameters::check(shared, connection, declared)?;
            }
            Ok(Checked { shape: Shape::of(shared, connection, &sql)?, declared })
        })
        .await
    }

    /// Runs a SELECT over the relation `input`, which is the stream, in an engine of its own that runs nothing else.
    pub async fn transform(
        &self,
        transformation: Transformation,
        input: RecordBatchStream,
    ) -> Result<RecordBatchStream> {
        self.start_transformation(Rights::reader("exchanger"), transformation, input, false).await
    }

    /// The same beside others, with the tables that `rights` may read.
    pub async fn transform_with_tables(
        &self,
        rights: &Arc<Rights>,
        transformation: Transformation,
        input: RecordBatchStream,
    ) -> Result<RecordBatchStream> {
        if transformation.shape.reads != Reads::EachRow {
            // A worker of DuckDB's would wait for a sender.
            return Err(Error::Unsupported(
                "an exchanger that reads tables must work on each row for itself; put what needs all rows behind it, \
                 in a chain: a | b"
                    .into(),
            ));
        }
        self.start_transformation(rights.clone(), transformation, input, true).await
    }

    async fn start_transformation(
        &self,
        rights: Arc<Rights>,
        transformation: Transformation,
        input: RecordBatchStream,
        shares: bool,
    ) -> Result<RecordBatchStream> {
        statement::check_text(&self.shared, &transformation.sql)?;
        let sharing = if transformation.shape.reads == Reads::EachRow { Sharing::Segments } else { Sharing::Single };
        let (source, feed) = self.sources.add(input.schema(), sharing)?;
        let seen = self.shared.see(&rights, &transformation.sql);
        let slot = seen
            .unless_killed(self.pool.slot(&rights))
            .await
            .inspect_err(|error| seen.end::<()>(&Err(error.clone())))?;
        seen.start();
        let (cancel, guard) = self.pool.begin();
        seen.runs(&cancel);
        source.stop_with(&cancel);
        // Aborted with the output: dropping the set ends the task, which drops the input.
        let mut pump = tokio::task::JoinSet::new();
        pump.spawn(feed.pump(input));
        let (head, schema) = oneshot::channel();
        let (rows, batches) = outlet();
        let ending = Arc::new(Mutex::new(None));
        let (shared, sources, ended) = (self.shared.clone(), self.sources.clone(), ending.clone());
        self.pool.run(slot, move || {
            let mut head = Some(head);
            let mut connection = None;
            let work = Work {
                shared: &shared,
                sources: &sources,
                rights: &rights,
                source,
                cancel: &cancel,
                seen: &seen,
                shares,
            };
            let outcome = work.run(&transformation, &mut head, &rows, &mut connection);
            let outcome = outcome.map_err(|error| discreet(work.source.failure.or(error), &rights));
            let outcome = shared.finish(&cancel, &seen, outcome);
            if let Err(error) = &outcome {
                // Before the channel closes; the reader looks here when it has.
                *lock(&ended) = Some(error.clone());
            }
            drop(rows);
            if let Some(head) = head {
                let no_schema = || Error::internal("a transformation ended without a schema");
                // A receiver that is gone needs no answer.
                let _ = head.send(Err(outcome.err().unwrap_or_else(no_schema)));
            }
            // Last: nobody waits for it.
            drop(connection);
        })?;
        let schema = schema.await.map_err(|_| Error::internal("an engine thread ended without an answer"))??;
        Ok(RecordBatchStream::new(schema, Batches { batches, ending, _guard: guard }).holding(pump))
    }
}

/// One transformation on its engine thread.
struct Work<'a> {
    shared: &'a Shared,
    sources: &'a Sources,
    rights: &'a Arc<Rights>,
    source: Source,
    cancel: &'a Cancel,
    seen: &'a Seen,
    /// Whether the engine has other statements, and tables.
    shares: bool,
}

/// What is run over the input.
struct Run<'c> {
    statement: Statement<'c>,
    importer: Importer,
    /// Where its answer is only what the statement does not pass on.
    carried: Option<Carried>,
    /// Where columns of its answer get another type.
    restored: Option<Restored>,
    /// What makes arrays of intervals, where its answer has some.
    other: Option<Connection>,
    answered: u64,
}

impl Run<'_> {
    fn schema(&self) -> SchemaRef {
        match (&self.carried, &self.restored) {
            (Some(carried), _) => carried.schema.clone(),
            (None, Some(restored)) => restored.schema.clone(),
            (None, None) => self.importer.schema(),
        }
    }
}

type Head = Option<oneshot::Sender<Result<SchemaRef>>>;

impl Work<'_> {
    fn run(
        &self,
        transformation: &Transformation,
        head: &mut Head,
        rows: &Outlet,
        connection: &mut Option<Connection>,
    ) -> Result<()> {
        let Self { shared, .. } = self;
        let connection = &*connection.insert(shared.connect()?);
        self.cancel.arm(connection.interrupt_handle(), Manner::AtOnce)?;
        if !self.shares {
            shared.execute(connection, LOCK)?;
        } else if let Some(size) = self.rights.allowance.operator_memory {
            shared.execute(connection, &format!("SET operator_memory_limit = '{}B'", size.0))?;
        }
        // Its answer's columns are told with an input without rows: where others run, too, a statement that has been started
        // takes rows before anybody asks.
        let empty = self.sources.of(RecordBatch::new_empty(self.source.schema()), Sharing::Single)?;
        self.show(connection, &empty)?;
        let sql = &transformation.sql;
        let statement = guard::admit(shared, connection, sql, self.rights, Sees::Given(&[INPUT]))
            .inspect_err(|_| shared.identify(self.seen, connection, statement::class_of_text(connection, sql)))?;
        shared.identify(self.seen, connection, statement::class(statement::kind(&statement)?));
        let values: Vec<Value> = transformation
            .values
            .iter()
            .map(|given| parameters::bound(shared, connection, given))
            .collect::<Result<_>>()?;
        let named: Vec<(&str, &dyn QueryParameter)> = transformation
            .values
            .iter()
            .zip(&values)
            .map(|(given, value)| (given.name.as_str(), value as &dyn QueryParameter))
            .collect();
        let parameters = if named.is_empty() { Parameters::None } else { Parameters::named(&named) };
        let plain = !transformation.lossless;
        let importer = self.columns(connection, &statement, parameters, plain)?;
        let other = self.other(&importer)?;
        let mut run = Run { statement, importer, carried: None, restored: None, other, answered: 0 };
        let Shape { carry, tree, .. } = &transformation.shape;
        // Without it the statement as a whole does the same.
        match carry.as_ref().and_then(|carry| self.lean(connection, carry, parameters, &run.importer, plain)) {
            Some(lean) => run = lean,
            None => run.restored = self.restored(tree, &mut run.importer),
        }
        let sent = head.take().map(|head| head.send(Ok(run.schema())));
        if !matches!(sent, Some(Ok(()))) {
            return Err(Error::Cancelled);
        }
        self.show(connection, &self.source)?;
        // What is asked for the time, and which rows tables have, is the same in every segment.
        let begin = if self.shares { "BEGIN TRANSACTION READ ONLY" } else { "BEGIN TRANSACTION" };
        shared.execute(connection, begin)?;
        let outcome = self.answer(connection, &mut run, parameters, transformation.shape.reads, rows);
        outcome.map_err(|error| {
            match self.failing_row(connection, &run.statement, parameters, transformation.shape.reads, &error) {
                Some(row) => error.at_row(row),
                None => error,
            }
        })
    }

    /// Computes what the statement does not pass on, where that is all there is to it.
    fn lean<'c>(
        &self,
        connection: &'c Connection,
        carry: &Carry,
        parameters: Parameters<'_>,
        whole: &Importer,
        plain: bool,
    ) -> Option<Run<'c>> {
        let empty = self.sources.of(RecordBatch::new_empty(self.source.schema()), Sharing::Single).ok()?;
        self.show(connection, &empty).ok()?;
        let statement = guard::admit(self.shared, connection, &carry.sql, self.rights, Sees::Given(&[INPUT])).ok()?;
        let importer = self.columns(connection, &statement, parameters, plain).ok()?;
        let carried = carry.resolve(&self.source.schema(), &whole.schema(), &importer.schema())?;
        self.source.keep();
        let other = self.other(&importer).ok()?;
        Some(Run { statement, importer, carried: Some(carried), restored: None, other, answered: 0 })
    }

    /// Columns that only pass through DuckDB get the types back that they came with.
    fn restored(&self, tree: &serde_json::Value, importer: &mut Importer) -> Option<Restored> {
        let input = self.source.schema();
        let origins = origins(tree, &input)?;
        let (answer, lossless) = (importer.schema(), importer.lossless());
        let (restored, kept) = Restored::new(&origins, is_plain(tree), &input, &answer, &lossless)?;
        importer.keep_lossless(&kept);
        Some(restored)
    }

    /// Makes a stream the relation `input` of this connection.
    fn show(&self, connection: &Connection, source: &Source) -> Result<()> {
        let view = format!("CREATE OR REPLACE TEMP VIEW {INPUT} AS SELECT * FROM {}", source.call());
        self.shared.execute(connection, &view).map(drop)
    }

    fn other(&self, importer: &Importer) -> Result<Option<Connection>> {
        importer.holds_intervals().then(|| self.shared.connect()).transpose()
    }

    fn columns(
        &self,
        connection: &Connection,
        statement: &Statement<'_>,
        parameters: Parameters<'_>,
        plain: bool,
    ) -> Result<Importer> {
        let types = match parameters {
            Parameters::None => Some(catalog::bound_types(self.shared, connection, statement)?),
            // Without their values DuckDB may not know.
            _ => None,
        };
        let result = self.start(connection, statement, parameters, width::VECTOR_ROWS, None)?;
        let mut importer = result.importer(self.shared, plain)?;
        types.iter().for_each(|types| importer.annotate(types));
        Ok(importer)
    }

    fn answer(
        &self,
        connection: &Connection,
        run: &mut Run<'_>,
        parameters: Parameters<'_>,
        reads: Reads,
        rows: &Outlet,
    ) -> Result<()> {
        let other = run.other.take();
        let batch_rows = width::rows_of_schema(&run.importer.schema(), self.shared.config.database.batch_rows);
        if reads != Reads::EachRow {
            let mut result = self.start(connection, &run.statement, parameters, batch_rows, other.as_ref())?;
            return self.send(&mut result, run, rows);
        }
        while self.source.wait(&self.shared.metrics)? {
            let mut result = self.start(connection, &run.statement, parameters, batch_rows, other.as_ref())?;
            self.send(&mut result, run, rows)?;
        }
        Ok(())
    }

    fn start<'c>(
        &self,
        connection: &'c Connection,
        statement: &Statement<'c>,
        parameters: Parameters<'_>,
        batch_rows: usize,
        other: Option<&'c Connection>,
    ) -> Result<Rows<'c>> {
        let result = Rows::start(statement, connection, parameters, batch_rows, other);
        let result = result.map_err(|error| self.shared.cause(&error))?;
        self.cancel.check()?;
        Ok(result)
    }

    fn send(
        &self,
        result: &mut Rows<'_>,
        Run { importer, carried, restored, answered, .. }: &mut Run<'_>,
        rows: &Outlet,
    ) -> Result<()> {
        let send = |batch: RecordBatch| {
            self.seen.answered(batch.num_rows());
            rows.send(batch, self.cancel, &self.shared.metrics)
        };
        result.follow(*answered);
        while let Some(array) = result.next(self.shared)? {
            let mut batch = importer.batch(array)?;
            *answered += batch.num_rows() as u64;
            match carried {
                None => match restored {
                    Some(restored) => restored.batches(&batch)?.into_iter().try_for_each(send)?,
                    None => send(batch)?,
                },
                Some(carried) => {
                    while let Some(whole) = carried.next(&mut batch, &self.source)? {
                        send(whole)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The first row, counted from 1, that a SELECT which works on each row for itself fails on: it is tried on fewer and
    /// fewer of those that were taken last. Where that tells nothing, the first one of them.
    fn failing_row(
        &self,
        connection: &Connection,
        statement: &Statement<'_>,
        parameters: Parameters<'_>,
        reads: Reads,
        error: &Error,
    ) -> Option<u64> {
        let of_rows = matches!(error, Error::Sql(_) | Error::Constraint(_) | Error::Invalid(_));
        let (before, last) = self.source.last_rows().filter(|_| of_rows && !self.source.has_ended_or_failed(reads))?;
        if reads != Reads::EachRow {
            return Some(before + 1);
        }
        // The transaction is spoilt.
        self.shared.execute(connection, "ROLLBACK").ok()?;
        let (mut good, mut bad) = (0, last.num_rows());
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            match self.succeeds(connection, statement, parameters, last.slice(good, middle - good)) {
                true => good = middle,
                false => bad = middle,
            }
            self.cancel.check().ok()?;
        }
        let certain = !last.slice(good, bad - good).columns().is_empty()
            && !self.succeeds(connection, statement, parameters, last.slice(good, bad - good));
        Some(before + if certain { good as u64 } else { 0 } + 1)
    }

    fn succeeds(
        &self,
        connection: &Connection,
        statement: &Statement<'_>,
        parameters: Parameters<'_>,
        rows: RecordBatch,
    ) -> bool {
        let Ok(source) = self.sources.of(rows, Sharing::Single) else { return false };
        let tried = self.show(connection, &source).and_then(|()| {
            let mut result = self.start(connection, statement, parameters, width::VECTOR_ROWS, None)?;
            while result.next(self.shared)?.is_some() {}
            Ok(())
        });
        tried.is_ok()
    }
}

/// The receiving end; dropping it interrupts the statement.
struct Batches {
    batches: mpsc::Receiver<Waiting>,
    /// Why there are no more batches, where that is an error.
    ending: Arc<Mutex<Option<Error>>>,
    _guard: CancelOnDrop,
}

impl Stream for Batches {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.poll_recv(cx).map(|batch| match batch {
            Some(waiting) => Some(Ok(waiting.leave())),
            None => lock(&self.ending).take().map(Err),
        })
    }
}
