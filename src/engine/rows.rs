//! The rows of a running statement as Arrow arrays, made by DuckDB or, where they hold intervals, chunk by chunk.
//!
//! DuckDB's exporter multiplies the microseconds of an INTERVAL by 1000 without a look at the overflow, and no value shows
//! afterwards whether that happened. So a statement whose answer holds intervals is read as DuckDB's own chunks: those of one
//! batch are gathered, their intervals are looked at, and a second statement over them makes the array. That costs one more
//! copy of such an answer; others are not touched.

use std::collections::VecDeque;

use arrow_schema::Field;
use duckdb::{
    Parameters,
    arrow::ArrowArray,
    column_data_collection::{ColumnDataCollection, ColumnDataCollectionAppender},
    connection::Connection,
    data_chunk::VectorCollection,
    error::DuckDBError,
    logical_type::{LogicalType, LogicalTypeID as Id},
    query_result::{ArrowQueryResult, ArrowResultStep, QueryResult, QueryResultStep, ResultType},
    schema::Schema,
    statement::{PreparedStatement, SchemaBind, Statement},
    types::{IntervalValue, ListIndex},
    vector::{Unknown, Vector},
};

use super::{Shared, arrow::Importer, columns::child, plain};
use crate::error::{Error, Result};

/// What a collection is called in the statement that reads it.
const GATHERED: &str = "gathered";

/// A statement that has been started.
pub(super) enum Rows<'r> {
    Arrow(ArrowQueryResult<'r>),
    Chunks(Box<Chunks<'r>>),
}

impl<'r> Rows<'r> {
    /// `other` is a connection for what may hold intervals.
    pub(super) fn start(
        statement: &Statement<'r>,
        connection: &'r Connection,
        parameters: Parameters<'_>,
        batch_rows: usize,
        other: Option<&'r Connection>,
    ) -> duckdb::Result<Self> {
        Ok(match other {
            None => Self::Arrow(statement.arrow_query(connection, parameters, Some(batch_rows))?),
            Some(other) => Self::chunks(statement.query(connection, parameters)?, batch_rows, other),
        })
    }

    pub(super) fn execute(
        prepared: &PreparedStatement<'r>,
        parameters: Parameters<'_>,
        batch_rows: usize,
        other: Option<&'r Connection>,
    ) -> duckdb::Result<Self> {
        Ok(match other {
            None => Self::Arrow(prepared.execute_arrow(parameters, Some(batch_rows))?),
            Some(other) => Self::chunks(prepared.execute(parameters)?, batch_rows, other),
        })
    }

    fn chunks(result: QueryResult<'r>, batch_rows: usize, other: &'r Connection) -> Self {
        let chunks =
            Chunks { result, batch_rows, other, gathered: None, ready: VecDeque::new(), before: 0, over: false };
        Self::Chunks(Box::new(chunks))
    }

    /// The answer has this many rows in front.
    pub(super) fn follow(&mut self, rows: u64) {
        if let Self::Chunks(chunks) = self {
            chunks.before = rows;
        }
    }

    pub(super) fn result_type(&self) -> duckdb::Result<ResultType> {
        match self {
            Self::Arrow(result) => result.result_type(),
            Self::Chunks(chunks) => chunks.result.result_type(),
        }
    }

    pub(super) fn importer(&self, shared: &Shared, plain: bool) -> Result<Importer> {
        let cause = |error: duckdb::Error| shared.cause(&error);
        match self {
            Self::Arrow(result) => Importer::new(result.schema().map_err(cause)?, plain),
            Self::Chunks(chunks) => {
                let schema = chunks.result.schema().map_err(cause)?;
                let names = schema.get_all().map_err(cause)?.into_iter().map(|(name, _)| name);
                let empty = ColumnDataCollection::new(chunks.other, types(&schema).map_err(cause)?).map_err(cause)?;
                let schema = read(chunks.other, empty, 1).and_then(|result| result.schema()).map_err(cause)?;
                Ok(Importer::new(schema, plain)?.named(names))
            }
        }
    }

    pub(super) fn step(&mut self, shared: &Shared) -> Result<ArrowResultStep> {
        match self {
            Self::Arrow(result) => result.step().map_err(|error| told(shared, &error, || variants_of(result))),
            Self::Chunks(chunks) => chunks.step(shared),
        }
    }

    pub(super) fn wait(&self) -> duckdb::Result<()> {
        match self {
            Self::Arrow(result) => result.wait(),
            Self::Chunks(chunks) => chunks.result.wait(),
        }
    }

    /// Waits for the next array; nothing where there are no more.
    pub(super) fn next(&mut self, shared: &Shared) -> Result<Option<ArrowArray>> {
        let cause = |error: duckdb::Error| shared.cause(&error);
        let chunks = match self {
            Self::Arrow(result) => {
                return result.next_array().map_err(|error| told(shared, &error, || variants_of(result)));
            }
            Self::Chunks(chunks) => chunks,
        };
        loop {
            match chunks.step(shared)? {
                ArrowResultStep::Waiting => chunks.result.wait().map_err(cause)?,
                ArrowResultStep::Finished => return Ok(None),
                ArrowResultStep::Canceled => return Err(Error::Cancelled),
                ArrowResultStep::Array(array) => return Ok(Some(array)),
            }
        }
    }

    pub(super) fn drain(&mut self) -> duckdb::Result<usize> {
        match self {
            Self::Arrow(result) => result.drain(),
            Self::Chunks(chunks) => chunks.result.drain(),
        }
    }
}

/// DuckDB encodes a VARIANT as Parquet does, which has fewer types, and does not say in which column it met another one.
fn told(shared: &Shared, error: &duckdb::Error, variants: impl FnOnce() -> Vec<String>) -> Error {
    let error = shared.cause(error);
    let Error::Sql(text) = &error else { return error };
    let held = match text.split_once("VARIANT of type '").or_else(|| text.split_once("convert VARIANT ")) {
        Some((_, of)) if of.contains("to Parquet VARIANT") => {
            of.split(" to Parquet").next().unwrap_or(of).trim_end_matches('\'')
        }
        _ if text.contains("INT128 with value") || text.contains("UINT64 with value") => "number of more than 64 bits",
        _ => return error,
    };
    let columns: Vec<String> = variants().iter().map(|name| format!("\"{name}\"")).collect();
    let place = match &columns[..] {
        [] => return error,
        [column] => format!("column {column}"),
        several => format!("one of the columns {}", several.join(", ")),
    };
    Error::Sql(format!(
        "{place}: a VARIANT that holds a value of type {held} has no form in Arrow: cast it to VARCHAR or JSON"
    ))
}

/// The columns in which there is a VARIANT.
fn variants_of(result: &ArrowQueryResult<'_>) -> Vec<String> {
    let importer = result.schema().ok().and_then(|schema| Importer::new(schema, false).ok());
    let fields = importer.map(|importer| importer.schema().fields().clone());
    let fields = fields.iter().flatten().filter(|field| holds_variant(field));
    fields.map(|field| field.name().clone()).collect()
}

fn holds_variant(field: &Field) -> bool {
    plain::opaque(field).as_deref() == Some("arrow.parquet.variant")
        || plain::children(field.data_type()).iter().any(|child| holds_variant(child))
}

/// Rows that are looked at before they become arrays.
pub(super) struct Chunks<'r> {
    result: QueryResult<'r>,
    batch_rows: usize,
    other: &'r Connection,
    gathered: Option<ColumnDataCollectionAppender<'r>>,
    ready: VecDeque<ArrowArray>,
    before: u64,
    over: bool,
}

impl Chunks<'_> {
    fn step(&mut self, shared: &Shared) -> Result<ArrowResultStep> {
        let cause = |error: duckdb::Error| shared.cause(&error);
        loop {
            if let Some(array) = self.ready.pop_front() {
                return Ok(ArrowResultStep::Array(array));
            }
            if self.over {
                return Ok(ArrowResultStep::Finished);
            }
            match self.result.step().map_err(cause)? {
                QueryResultStep::Waiting => return Ok(ArrowResultStep::Waiting),
                QueryResultStep::Canceled => return Ok(ArrowResultStep::Canceled),
                QueryResultStep::Finished => {
                    self.over = true;
                    self.convert(shared)?;
                }
                QueryResultStep::Chunk(mut chunk) => {
                    let mut gathered = match self.gathered.take() {
                        Some(gathered) => gathered,
                        None => self
                            .result
                            .schema()
                            .and_then(|schema| ColumnDataCollection::new(self.other, types(&schema)?)?.to_append())
                            .map_err(cause)?,
                    };
                    gathered.append(&mut chunk).map_err(cause)?;
                    let rows = gathered.len().map_err(cause)?;
                    self.gathered = Some(gathered);
                    if rows >= self.batch_rows {
                        self.convert(shared)?;
                    }
                }
            }
        }
    }

    /// Makes arrays of what was gathered.
    fn convert(&mut self, shared: &Shared) -> Result<()> {
        let cause = |error: duckdb::Error| shared.cause(&error);
        let Some(gathered) = self.gathered.take() else { return Ok(()) };
        let schema = self.result.schema().map_err(cause)?;
        let mut scan = gathered.to_scan(self.other).map_err(cause)?;
        while let Some(chunk) = scan.next_chunk().map_err(cause)? {
            let rows = chunk.row_count().map_err(cause)?;
            let elements: Vec<Element> =
                (0..rows).map(|place| Element { place, row: self.before + place as u64 }).collect();
            for (column, (name, _)) in schema.get_all().map_err(cause)?.iter().enumerate() {
                let vector = chunk.get_vector_at::<Unknown>(column).map_err(cause)?;
                let beyond = first_beyond(vector, name, &elements).map_err(cause)?;
                if let Some(Beyond { path, row, micros }) = beyond {
                    return Err(Error::Sql(format!(
                        "column \"{path}\", row {}: an interval of {micros} microseconds, which is more than 292 years, does \
                         not fit the nanoseconds of an interval in Arrow: cast it to VARCHAR",
                        row + 1
                    )));
                }
            }
            self.before += rows as u64;
        }
        drop(scan);
        let rows = gathered.len().map_err(cause)?;
        let mut result = read(self.other, gathered.to_normal(), rows).map_err(cause)?;
        let variants = || {
            let holds = |of: &LogicalType| of.to_text().is_ok_and(|text| text.contains("VARIANT"));
            let columns = schema.get_all().unwrap_or_default().into_iter().filter(|(_, of)| holds(of));
            columns.map(|(name, _)| name).collect()
        };
        while let Some(array) = result.next_array().map_err(|error| told(shared, &error, variants))? {
            self.ready.push_back(array);
        }
        Ok(())
    }
}

fn read<'r>(
    connection: &'r Connection,
    collection: ColumnDataCollection<'r>,
    rows: usize,
) -> duckdb::Result<ArrowQueryResult<'r>> {
    let mut statements = connection.parse(format!("FROM {GATHERED}"))?;
    let statement = statements.next().ok_or_else(|| duckdb::Error::api_error("a statement was not parsed"))??;
    statement.add_collection(collection, GATHERED)?.arrow_query(connection, Parameters::None, Some(rows.max(1)))
}

fn types(schema: &Schema) -> duckdb::Result<Vec<LogicalType>> {
    (0..schema.len()?).map(|column| schema.field_type(column)).collect()
}

/// Whether the answer of a statement may hold intervals. What is not known before it runs may.
pub(super) fn may_hold_intervals(bound: &duckdb::Result<SchemaBind>) -> bool {
    match bound {
        Ok(bound) => types(&bound.schema).is_ok_and(|types| types.iter().any(holds_intervals)),
        Err(error) => error.code == DuckDBError::InputMetadataDeferred,
    }
}

fn holds_intervals(logical_type: &LogicalType) -> bool {
    match logical_type.id() {
        Ok(Id::Interval | Id::Unknown) => true,
        Ok(Id::List | Id::Array | Id::Map | Id::Struct | Id::Tuple | Id::Union) => {
            let parts = logical_type.param_count().unwrap_or_default();
            (0..parts).any(|part| child(logical_type, part).is_ok_and(|(_, part)| holds_intervals(&part)))
        }
        _ => false,
    }
}

/// An element of a vector, and the row of the answer that it belongs to, counted from 0.
#[derive(Clone, Copy)]
struct Element {
    place: usize,
    row: u64,
}

/// An interval that does not fit.
struct Beyond {
    path: String,
    row: u64,
    micros: i64,
}

fn first_beyond(vector: &Vector<'_, Unknown>, path: &str, elements: &[Element]) -> duckdb::Result<Option<Beyond>> {
    if !holds_intervals(vector.logical_type()) {
        return Ok(None);
    }
    if vector.logical_type().id()? == Id::Interval {
        let intervals = vector.cast_ref::<IntervalValue>()?.reader()?;
        for element in elements {
            let micros = intervals.get(element.place)?.map_or(0, |interval| interval.micros);
            if micros.checked_mul(1000).is_none() {
                return Ok(Some(Beyond { path: path.into(), row: element.row, micros }));
            }
        }
        return Ok(None);
    }
    let Some(parts) = vector.children() else { return Ok(None) };
    for part in 0..parts.col_count() {
        let (name, elements) = inside(vector, parts, part, elements)?;
        if let Some(beyond) = first_beyond(parts.get_untyped_vector_at(part)?, &format!("{path}{name}"), &elements)? {
            return Ok(Some(beyond));
        }
    }
    Ok(None)
}

/// The elements of one child vector that count, and how it is named.
fn inside(
    vector: &Vector<'_, Unknown>,
    parts: &VectorCollection,
    part: usize,
    elements: &[Element],
) -> duckdb::Result<(String, Vec<Element>)> {
    let logical_type = vector.logical_type();
    let reader = vector.reader()?;
    let valid = elements.iter().copied().filter(|element| reader.is_null(element.place).is_ok_and(|is_null| !is_null));
    Ok(match logical_type.id()? {
        Id::List | Id::Map => {
            let mut inner = Vec::new();
            for element in valid {
                let place = reader.selection().index(element.place);
                // SAFETY: a LIST and a MAP have one list entry for each place, which is initialized where it is not NULL.
                let entry = unsafe { reader.as_ptr().cast::<ListIndex>().add(place).read() };
                let (first, length) = (entry.offset() as usize, entry.length() as usize);
                inner.extend((first..first + length).map(|place| Element { place, row: element.row }));
            }
            (if logical_type.id()? == Id::Map { String::new() } else { "[]".into() }, inner)
        }
        Id::Array => {
            let whole = vector.len().max(1);
            let size = parts.get_untyped_vector_at(part)?.len() / whole;
            let of = |element: Element| {
                let first = reader.selection().index(element.place) * size;
                (first..first + size).map(move |place| Element { place, row: element.row })
            };
            ("[]".into(), valid.flat_map(of).collect())
        }
        Id::Union if part == 0 => (String::new(), Vec::new()),
        Id::Union => {
            let tags = parts.get_vector_at::<u8>(0)?.reader()?;
            let is_it = |element: &Element| {
                tags.get(element.place).is_ok_and(|tag| tag.is_some_and(|tag| usize::from(*tag) + 1 == part))
            };
            (format!(".{}", child(logical_type, part - 1)?.0), valid.filter(is_it).collect())
        }
        _ => (format!(".{}", child(logical_type, part)?.0), valid.collect()),
    })
}
