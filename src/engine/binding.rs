//! Values for a statement's parameters, out of record batches: each row is one execution.
//!
//! DuckDB itself turns them into values, the way it reads any stream of Arrow, so that no type takes a way through text.

use std::sync::Arc;

use arrow_array::{RecordBatch, UInt64Array, UnionArray, cast::AsArray};
use arrow_ipc::{reader::StreamReader, writer::StreamWriter};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use arrow_select::take::take;
use duckdb::{
    Parameters, connection::Connection, query_result::QueryResult, statement::Statement, value::Value, vector::Unknown,
};

use super::{
    Engine, Shared,
    catalog::types_of,
    guard,
    pool::Cancel,
    source::{Sharing, Source},
};
use crate::{
    error::{Error, Result},
    stream::{RecordBatchStream, batch_bytes},
};

/// What was bound. Cheap to clone.
#[derive(Clone)]
pub struct Bound(Arc<Vec<Part>>, Option<Held>);

/// What is given back when the last clone is dropped.
type Held = Arc<dyn std::any::Any + Send + Sync>;

/// Rows of one schema.
#[derive(Clone)]
struct Part {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
}

impl Bound {
    pub fn new(schema: SchemaRef, batches: Vec<RecordBatch>) -> Result<Self> {
        if !schema.fields().iter().any(|field| matches!(field.data_type(), DataType::Union(..))) {
            return Ok(Self(Arc::new(vec![Part { schema, batches }]), None));
        }
        let mut parts = Vec::new();
        for batch in &batches {
            for batch in members(batch).map_err(Error::invalid)? {
                parts.push(Part { schema: batch.schema(), batches: vec![batch] });
            }
        }
        if parts.is_empty() {
            // As many columns, and no row.
            let fields: Vec<_> =
                schema.fields().iter().map(|field| Field::new(field.name(), DataType::Null, true)).collect();
            parts.push(Part { schema: Arc::new(Schema::new(fields)), batches: Vec::new() });
        }
        Ok(Self(Arc::new(parts), None))
    }

    /// Keeps `held` for as long as the values are kept.
    pub fn holding(self, held: impl std::any::Any + Send + Sync) -> Self {
        Self(self.0, Some(Arc::new(held)))
    }

    /// As an IPC stream, for a ticket; nothing where that is more than `most` bytes, or has rows of several schemas.
    pub fn to_ipc(&self, most: usize) -> Result<Option<Vec<u8>>> {
        let [part] = self.0.as_slice() else { return Ok(None) };
        if part.batches.iter().map(batch_bytes).sum::<u64>() > most as u64 {
            return Ok(None);
        }
        let mut writer = StreamWriter::try_new(Vec::new(), &part.schema).map_err(Error::internal)?;
        part.batches.iter().try_for_each(|batch| writer.write(batch)).map_err(Error::internal)?;
        let bytes = writer.into_inner().map_err(Error::internal)?;
        Ok(Some(bytes).filter(|bytes| bytes.len() <= most))
    }

    /// What [`Self::to_ipc`] has made.
    pub fn from_ipc(bytes: &[u8]) -> Result<Self> {
        let reader = StreamReader::try_new(bytes, None).map_err(Error::internal)?;
        let schema = reader.schema();
        Self::new(schema, reader.collect::<Result<_, ArrowError>>().map_err(Error::internal)?)
    }

    fn rows(&self) -> usize {
        self.0.iter().flat_map(|part| &part.batches).map(RecordBatch::num_rows).sum()
    }

    fn columns(&self) -> Vec<&str> {
        let first = self.0.first();
        first.map(|part| part.schema.fields().iter().map(|field| field.name().as_str()).collect()).unwrap_or_default()
    }

    /// The same, of its first row alone.
    pub(super) fn first(&self) -> Self {
        let first = self.0.iter().find_map(|part| {
            let batch = part.batches.iter().find(|batch| batch.num_rows() > 0)?;
            Some(Part { schema: part.schema.clone(), batches: vec![batch.slice(0, 1)] })
        });
        first.map_or_else(|| self.clone(), |part| Self(Arc::new(vec![part]), self.1.clone()))
    }
}

/// Some clients send every parameter as a union of the types they know; what is meant is the member. A batch of the rows
/// behind one another whose members are of the same types.
fn members(batch: &RecordBatch) -> Result<Vec<RecordBatch>, ArrowError> {
    let unions: Vec<Option<&UnionArray>> = batch.columns().iter().map(|column| column.as_union_opt()).collect();
    let schema = batch.schema();
    let types = |row: usize| unions.iter().map(move |union| union.map(|union| union.type_id(row)));
    let (mut parts, mut start) = (Vec::new(), 0);
    while start < batch.num_rows() {
        let end = (start + 1..batch.num_rows()).find(|row| types(*row).ne(types(start))).unwrap_or(batch.num_rows());
        let (mut fields, mut columns) = (Vec::new(), Vec::new());
        for (index, field) in schema.fields().iter().enumerate() {
            let column = match unions[index] {
                None => batch.column(index).slice(start, end - start),
                Some(union) => {
                    let member = union.child(union.type_id(start));
                    let places = (start..end).map(|row| union.value_offset(row) as u64);
                    take(member, &UInt64Array::from_iter_values(places), None)?
                }
            };
            // What the member is, which may be an extension type, and the name of the parameter.
            let member = match (unions[index], field.data_type()) {
                (Some(union), DataType::Union(members, _)) => {
                    let id = union.type_id(start);
                    members.iter().find(|(member, _)| *member == id).map_or(field, |(_, member)| member)
                }
                _ => field,
            };
            fields.push(member.as_ref().clone().with_name(field.name()).with_nullable(true));
            columns.push(column);
        }
        parts.push(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?);
        start = end;
    }
    Ok(parts)
}

/// The bound rows as sources that a connection reads.
pub(super) struct Values {
    sources: Vec<Source>,
    bound: Bound,
}

impl Engine {
    pub(super) fn values(&self, bound: &Bound) -> Result<Values> {
        let with_rows = bound.0.iter().filter(|part| part.batches.iter().any(|batch| batch.num_rows() > 0));
        let sources = with_rows.map(|part| {
            let (source, feed) = self.sources.add(part.schema.clone(), Sharing::Single)?;
            let batches = part.batches.iter().filter(|batch| batch.num_rows() > 0).cloned().collect();
            tokio::spawn(feed.pump(RecordBatchStream::from_batches(part.schema.clone(), batches)));
            Ok(source)
        });
        Ok(Values { sources: sources.collect::<Result<_>>()?, bound: bound.clone() })
    }
}

impl Values {
    /// An INSERT of one row of nothing but parameters, as the one statement that inserts all bound rows. Nothing where the
    /// statement is another one, or needs its values one by one.
    pub(super) fn as_one_insert(&self, shared: &Shared, connection: &Connection, sql: &str) -> Result<Option<String>> {
        let [source] = self.sources.as_slice() else { return Ok(None) };
        let tokens = guard::read(shared, connection, sql)?;
        let Some(at) = tokens.iter().position(|token| token.is_keyword() && token.name() == "values") else {
            return Ok(None);
        };
        // The tokenizer may take several signs for one operator.
        let head = sql[..tokens[at].start].trim_start();
        let row: String = sql[tokens[at].end()..].chars().filter(|c| !c.is_whitespace()).collect();
        let row = row.strip_suffix(';').unwrap_or(&row);
        let Some(row) = row.strip_prefix('(').and_then(|row| row.strip_suffix(')')) else { return Ok(None) };
        let columns = self.bound.columns().len();
        let places = row.split(',').enumerate().map(|(place, parameter)| match parameter {
            "?" => Some(place),
            numbered => numbered.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1),
        });
        let Some(places) = places.collect::<Option<Vec<usize>>>() else { return Ok(None) };
        let questions = row.split(',').all(|parameter| parameter == "?");
        let numbers = !row.contains('?');
        let plain = tokens[0].name() == "insert" && tokens.get(1).is_some_and(|token| token.name() == "into");
        let names = tokens[2..at].iter().all(|token| token.is_name() || token.text.chars().all(|c| "(),.".contains(c)));
        if !plain
            || !names
            || !(questions || numbers)
            || places.len() != columns
            || places.iter().any(|place| *place >= columns)
        {
            return Ok(None);
        }
        let list = |places: &[usize]| places.iter().map(|place| format!("p{place}")).collect::<Vec<_>>().join(", ");
        let all: Vec<usize> = (0..columns).collect();
        Ok(Some(format!("{head} SELECT {} FROM {} AS bound({})", list(&places), source.call(), list(&all))))
    }
}

impl Values {
    /// The statement's text with the values of the first row in place of its parameters, so that DuckDB tells the types of
    /// the answer without a run. Nothing where a parameter has no such form.
    ///
    /// `connection` is one that no statement runs on.
    pub(super) fn typed(
        &self,
        shared: &Shared,
        connection: &Connection,
        statement: &Statement<'_>,
    ) -> Result<Option<Typed>> {
        let Some(source) = self.sources.first() else { return Ok(None) };
        let types = types_of(shared, &shared.bind(connection, &format!("SELECT * FROM {}", source.call()))?)?;
        let columns: Vec<String> = (0..types.len()).map(|place| format!("p{place}")).collect();
        let texts = columns.iter().map(|name| {
            format!(
                "CASE WHEN {name} IS NULL THEN 'NULL' ELSE '''' || replace({name}::VARCHAR, '''', '''''') || '''' END"
            )
        });
        let texts = texts.collect::<Vec<_>>().join(", ");
        let sql = format!("SELECT {texts} FROM {} AS bound({})", source.call(), columns.join(", "));
        let Some(texts) = shared.rows(connection, &sql, Parameters::None)?.into_iter().next() else { return Ok(None) };
        if texts.iter().map(String::len).sum::<usize>() > MAX_TYPED {
            return Ok(None);
        }
        let values = texts.into_iter().zip(&types).map(|(text, duckdb_type)| match duckdb_type.as_str() {
            // Like a parameter, a literal may still become anything.
            "VARCHAR" => text,
            // With a blank behind each comma, as DuckDB writes the names of columns: DECIMAL(4, 2).
            _ => format!("CAST({text} AS {})", duckdb_type.replace(", ", ",").replace(',', ", ")),
        });
        let values: Vec<String> = values.collect();
        let names: Vec<String> = match self.order(shared, statement)? {
            Order::Positional => (1..=types.len()).map(|place| place.to_string()).collect(),
            Order::Named(names) => names,
        };
        let sql = statement.get_text().map_err(|error| shared.cause(&error))?;
        let tokens = guard::read(shared, connection, sql)?;
        let (mut typed, mut copied, mut questions) = (String::new(), 0, 0);
        for (at, token) in tokens.iter().enumerate() {
            let signs = if token.is_operator() { token.text } else { "" };
            for (offset, _) in signs.match_indices(['?', '$']) {
                let start = token.start + offset;
                let next = tokens.get(at + 1).filter(|next| offset + 1 == signs.len() && next.start == token.end());
                let numbered = next.filter(|next| signs.ends_with('$') || next.text.parse::<usize>().is_ok());
                questions += 1;
                let (name, end) = match numbered {
                    Some(next) => (next.text.trim_matches('"').to_string(), next.end()),
                    None => (questions.to_string(), start + 1),
                };
                let place = names.iter().position(|known| known.eq_ignore_ascii_case(&name));
                let Some(value) = place.and_then(|place| values.get(place)) else { return Ok(None) };
                typed.push_str(&sql[copied..start]);
                typed.push_str(value);
                copied = end;
            }
        }
        typed.push_str(&sql[copied..]);
        // As the statement writes them, which the columns need not.
        let wanted = statement.parameter_names().map_err(|error| shared.cause(&error))?;
        let shown = names.into_iter().map(|name| {
            let written = wanted.iter().find(|wanted| wanted.eq_ignore_ascii_case(&name));
            format!("${}", written.map_or(name.as_str(), |written| *written))
        });
        let values = values.into_iter().zip(shown);
        Ok(Some(Typed { sql: typed, values: values.collect() }))
    }
}

/// Bytes of values that are written into a statement for the types of its answer.
const MAX_TYPED: usize = 64 * 1024;

/// A statement with values in place of its parameters.
pub(super) struct Typed {
    pub(super) sql: String,
    /// The values, and the parameters that they stand for.
    values: Vec<(String, String)>,
}

impl Typed {
    /// The name of a column as it is with parameters.
    pub(super) fn name(&self, name: String) -> String {
        self.values.iter().fold(name, |name, (value, parameter)| name.replace(value, parameter))
    }
}

/// Which column is which parameter.
enum Order {
    Positional,
    /// The columns' parameters.
    Named(Vec<String>),
}

impl Values {
    pub(super) fn rows(&self) -> usize {
        self.bound.rows()
    }

    /// The input's own error where it has one.
    pub(super) fn cause(&self, shared: &Shared, error: &duckdb::Error) -> Error {
        self.sources.iter().fold(shared.cause(error), |error, source| source.failure.or(error))
    }

    pub(super) fn stop_with(&self, cancel: &Cancel) {
        self.sources.iter().for_each(|source| source.stop_with(cancel));
    }

    /// Calls `each` with the parameters of one row after the other.
    ///
    /// `connection` is one that no statement runs on.
    pub(super) fn each(
        &self,
        shared: &Shared,
        connection: &Connection,
        statement: &Statement<'_>,
        mut each: impl FnMut(Parameters<'_>) -> Result<()>,
    ) -> Result<()> {
        let order = self.order(shared, statement)?;
        for source in &self.sources {
            let cause = |error: duckdb::Error| source.failure.or(shared.cause(&error));
            let sql = format!("SELECT * FROM {}", source.call());
            let mut rows: QueryResult<'_> = connection.query(sql.as_str(), Parameters::None).map_err(cause)?;
            while let Some(chunk) = rows.next_chunk().map_err(cause)? {
                for row in 0..chunk.row_count().map_err(cause)? {
                    let mut values = Vec::with_capacity(chunk.col_count());
                    for column in 0..chunk.col_count() {
                        let vector = chunk.get_vector_at::<Unknown>(column).map_err(cause)?;
                        values.push(vector.get_value_slow(row).map_err(cause)?);
                    }
                    order.pass(&values, &mut each)?;
                }
            }
        }
        Ok(())
    }

    /// By name where the statement's parameters have names and the columns are called like them, else by place.
    fn order(&self, shared: &Shared, statement: &Statement<'_>) -> Result<Order> {
        let wanted = statement.parameter_names().map_err(|error| shared.cause(&error))?;
        let columns = self.bound.columns();
        if wanted.len() != columns.len() {
            return Err(Error::invalid(format!(
                "the statement has {} parameters, and what is bound has {} columns",
                wanted.len(),
                columns.len()
            )));
        }
        if wanted.iter().all(|name| name.parse::<usize>().is_ok()) {
            return Ok(Order::Positional);
        }
        let bare = |name: &str| name.trim_start_matches(['$', ':', '@']).to_string();
        let called = |name: &str| columns.iter().any(|column| bare(column).eq_ignore_ascii_case(name));
        if wanted.iter().all(|name| called(name)) {
            return Ok(Order::Named(columns.into_iter().map(bare).collect()));
        }
        Ok(Order::Named(wanted.into_iter().map(str::to_string).collect()))
    }
}

impl Order {
    fn pass(&self, values: &[Value], each: &mut impl FnMut(Parameters<'_>) -> Result<()>) -> Result<()> {
        match self {
            Self::Positional => {
                let values: Vec<_> = values.iter().map(|value| value as _).collect();
                each(Parameters::positional(&values))
            }
            Self::Named(names) => {
                let named: Vec<_> = names.iter().zip(values).map(|(name, value)| (name.as_str(), value as _)).collect();
                each(Parameters::named(&named))
            }
        }
    }
}
