//! Arrow data is checked here, once, before DuckDB reads it, whichever way it came in.
//!
//! DuckDB's importer trusts what it is given: the storage of extension types, the range of values, layouts that it does not
//! know. So a schema becomes a [`Checked`] schema first, which decides once, for each column, what has to be looked at and
//! what has to be rewritten; then each batch becomes a [`CheckedBatch`], which is all that `engine/arrow` exports.
//! Columns of plain types pass without a look. arrow-rs has validated offsets, sizes, keys, run ends, type ids and UTF-8
//! when the data was decoded; this module does not do that again.

mod extension;
pub(super) mod payload;
pub(super) mod range;
mod rewrite;
mod rows;
mod union;
mod variant;

use std::{panic::AssertUnwindSafe, sync::Arc};

use arrow_array::{
    Array, ArrayRef, FixedSizeListArray, GenericListArray, MapArray, OffsetSizeTrait, RecordBatch, StructArray,
    UnionArray, cast::AsArray,
};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, FieldRef, Fields, IntervalUnit, Schema, SchemaRef, TimeUnit, UnionMode};

use super::catalog::quote;
use crate::error::{Error, Result};
use extension::Extension;
use range::Rule;
use rewrite::Convert;
use rows::Rows;

/// How deep types may be nested.
const MAX_DEPTH: usize = 60;

/// The longest ARRAY that DuckDB has; longer ones become lists.
const MAX_ARRAY: i32 = 100_000;

/// A schema whose columns DuckDB can take, and what has to be done for that with each batch.
pub(super) struct Checked {
    sent: SchemaRef,
    schema: SchemaRef,
    columns: Vec<Node>,
    /// What SQL casts a column to, one after the other, where DuckDB is to read it as another type first.
    casts: Vec<Vec<String>>,
    /// Whether no column has anything to check or to rewrite.
    idle: bool,
}

/// Columns that DuckDB may read, laid out as [`Checked::schema`] says. Only [`Checked`] makes them.
pub(super) struct CheckedBatch {
    columns: Vec<ArrayRef>,
    rows: usize,
}

impl CheckedBatch {
    pub(super) fn project(&self, columns: &[usize]) -> Self {
        Self { columns: columns.iter().map(|column| self.columns[*column].clone()).collect(), rows: self.rows }
    }

    pub(super) fn into_struct(self) -> Result<StructArray> {
        let fields = self.columns.iter().map(|column| Field::new("", column.data_type().clone(), true)).collect();
        StructArray::try_new_with_length(fields, self.columns, None, self.rows).map_err(Error::internal)
    }
}

impl Checked {
    pub(super) fn new(sent: SchemaRef) -> Result<Self> {
        let mut columns =
            sent.fields().iter().map(|field| Node::of(field, field.name(), 0)).collect::<Result<Vec<Node>>>()?;
        let casts = columns.iter_mut().map(Node::cast_of_unions).collect();
        let idle = columns.iter().all(|column| matches!(column.work, Work::Keep));
        let schema = Arc::new(Schema::new(columns.iter().map(|column| column.field.clone()).collect::<Fields>()));
        Ok(Self { sent, schema, columns, casts, idle })
    }

    /// As it was sent.
    pub(super) fn sent(&self) -> &SchemaRef {
        &self.sent
    }

    /// As DuckDB reads it.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The relation of the columns as they were sent, over the table function that reads [`Checked::schema`].
    pub(super) fn relation(&self, call: &str) -> String {
        if self.casts.iter().all(Vec::is_empty) {
            return call.to_string();
        }
        let columns = self.casts.iter().zip(self.sent.fields()).enumerate();
        let items = columns.map(|(place, (casts, field))| {
            let value = casts.iter().fold(format!("c{place}"), |value, to| format!("CAST({value} AS {to})"));
            format!("{value} AS {}", quote(field.name()))
        });
        let names: Vec<String> = (0..self.casts.len()).map(|place| format!("c{place}")).collect();
        format!("(SELECT {} FROM {call} AS sent({}))", items.collect::<Vec<_>>().join(", "), names.join(", "))
    }

    /// Checks a batch and rewrites what DuckDB would read wrong. `before` are the rows of the stream in front of it.
    pub(super) fn batch(&self, batch: &RecordBatch, before: u64) -> Result<CheckedBatch> {
        if self.idle {
            return Ok(CheckedBatch { columns: batch.columns().to_vec(), rows: batch.num_rows() });
        }
        let rows = Rows::Top { before };
        let work =
            || self.columns.iter().zip(batch.columns()).map(|(node, column)| node.apply(column, &rows)).collect();
        // A kernel of arrow-rs that meets what it did not expect panics.
        let columns: Result<Vec<ArrayRef>> = std::panic::catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|_| Err(Error::invalid("the batch contradicts its schema and cannot be read")));
        Ok(CheckedBatch { columns: columns?, rows: batch.num_rows() })
    }

    /// Whether batches may be joined without looking at them; those of layouts that arrow-rs joins badly are not.
    pub(super) fn joins(&self) -> bool {
        self.sent.fields().iter().all(|field| joins(field.data_type()))
    }
}

fn joins(data_type: &DataType) -> bool {
    match data_type {
        DataType::RunEndEncoded(..) | DataType::Union(..) | DataType::ListView(_) | DataType::LargeListView(_) => false,
        other => super::plain::children(other).iter().all(|child| joins(child.data_type())),
    }
}

/// One column or a part of it: the field as DuckDB reads it, and what is done for that.
struct Node {
    /// How errors name it.
    path: String,
    field: FieldRef,
    work: Work,
}

enum Work {
    Keep,
    /// Values that are checked, rewritten, or both.
    Values {
        rule: Option<Rule>,
        convert: Option<Convert>,
    },
    /// A dictionary or runs: all values one by one, and then what is to be done with those.
    Decode(Box<Node>),
    /// Lists of any kind, with what is inside of them.
    Items(Box<Node>),
    /// Fixed-size lists that become lists.
    Unfixed(Box<Node>),
    /// List views that become lists.
    Views(Box<Node>),
    Map(Box<Node>),
    Struct(Vec<Node>),
    /// VARIANT over a struct of its two parts.
    Variant(Vec<Node>),
    /// With the type id of each member.
    Union(Vec<(i8, Node)>),
    /// A union as a struct of its tag and its members, which SQL makes a UNION of: DuckDB's importer would make NULL of a union
    /// whose member is null.
    Tagged(Vec<(i8, Node)>),
}

impl Node {
    fn of(field: &FieldRef, path: &str, depth: usize) -> Result<Self> {
        let refused = |why: String| Error::invalid(format!("column \"{path}\": {why}"));
        if field.name().contains('\0') {
            return Err(Error::invalid(format!("column {:?}: a name cannot contain NUL", field.name())));
        }
        if depth > MAX_DEPTH {
            return Err(refused(format!("types are nested deeper than {MAX_DEPTH} levels")));
        }
        let extension = Extension::of(field).map_err(refused)?;
        let child = |field: &FieldRef, name: &str| Self::of(field, &format!("{path}{name}"), depth + 1);
        if let Some((values, keep)) = encoded(field, depth == 0 && extension.is_none()) {
            let inner = Self::of(&values, path, depth + usize::from(!keep))?;
            if keep && matches!(inner.work, Work::Keep) {
                return Ok(Self::keep(path, field, field.data_type().clone(), None));
            }
            return Ok(Self { path: path.into(), field: inner.field.clone(), work: Work::Decode(Box::new(inner)) });
        }
        if let Some(extension) = &extension {
            extension.check_storage(field.data_type()).map_err(refused)?;
            if let Some(done) = Self::of_extension(field, path, extension, &child)? {
                return Ok(done);
            }
        }
        let keep = |data_type: DataType| Self::keep(path, field, data_type, extension.as_ref());
        let with = |data_type: DataType, rule: Option<Rule>, convert: Option<Convert>| {
            Ok(Self { work: Work::Values { rule, convert }, ..keep(data_type) })
        };
        let same = field.data_type().clone();
        match field.data_type() {
            DataType::Null if depth > 0 => with(DataType::Int32, None, Some(Convert::Null)),
            DataType::Null | DataType::Boolean | DataType::Float32 | DataType::Float64 => Ok(keep(same)),
            integer if integer.is_integer() => Ok(keep(same)),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Ok(keep(same)),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Ok(keep(same)),
            DataType::FixedSizeBinary(size) if *size < 0 => Err(refused(format!("{same} has a negative size"))),
            DataType::FixedSizeBinary(0) => with(DataType::Binary, None, Some(Convert::Cast)),
            DataType::FixedSizeBinary(_) => Ok(keep(same)),
            DataType::Float16 => with(DataType::Float32, None, Some(Convert::Cast)),
            DataType::Date32 => with(same, Some(Rule::Date), None),
            DataType::Date64 => with(DataType::Date32, Some(Rule::DateMillis), Some(Convert::Cast)),
            DataType::Time32(unit @ (TimeUnit::Second | TimeUnit::Millisecond))
            | DataType::Time64(unit @ (TimeUnit::Microsecond | TimeUnit::Nanosecond)) => {
                with(same, Some(Rule::Time(*unit)), None)
            }
            DataType::Timestamp(unit, zone) => {
                if zone.as_ref().is_some_and(|zone| zone.contains('\0')) {
                    return Err(refused("the name of a time zone cannot contain NUL".into()));
                }
                match (unit, zone) {
                    (TimeUnit::Second | TimeUnit::Millisecond, Some(zone)) => with(
                        DataType::Timestamp(TimeUnit::Microsecond, Some(zone.clone())),
                        Some(Rule::Instant(*unit)),
                        Some(Convert::Micros(*unit)),
                    ),
                    _ => with(same, Some(Rule::Timestamp(*unit)), None),
                }
            }
            DataType::Duration(unit) => with(
                DataType::Duration(TimeUnit::Microsecond),
                Some(Rule::Duration(*unit)),
                Some(Convert::Duration(*unit)),
            ),
            DataType::Interval(IntervalUnit::YearMonth) => Ok(keep(same)),
            DataType::Interval(IntervalUnit::DayTime) => {
                with(DataType::Interval(IntervalUnit::MonthDayNano), None, Some(Convert::DayTime))
            }
            DataType::Interval(IntervalUnit::MonthDayNano) => with(same, Some(Rule::Interval), None),
            DataType::Decimal32(precision, scale)
            | DataType::Decimal64(precision, scale)
            | DataType::Decimal128(precision, scale)
            | DataType::Decimal256(precision, scale) => {
                if *precision > 38 {
                    return Err(Error::Unsupported(format!(
                        "column \"{path}\": {same} has more than the 38 digits of DuckDB's DECIMAL"
                    )));
                }
                if *precision < 1 || *scale < 0 || i16::from(*scale) > i16::from(*precision) {
                    return Err(refused(format!(
                        "{same}: DuckDB's DECIMAL has a precision from 1 to 38, and a scale from 0 to its precision"
                    )));
                }
                let rule = Some(Rule::Decimal(*precision, *scale));
                match field.data_type() {
                    DataType::Decimal256(..) => {
                        with(DataType::Decimal128(*precision, *scale), rule, Some(Convert::Decimal))
                    }
                    _ => with(same, rule, None),
                }
            }
            DataType::List(item) | DataType::LargeList(item) => {
                let items = child(item, "[]")?;
                let to = match field.data_type() {
                    DataType::List(_) => DataType::List(items.field.clone()),
                    _ => DataType::LargeList(items.field.clone()),
                };
                Ok(Self { work: items.unless_kept(Work::Items), ..keep(to) })
            }
            DataType::ListView(item) | DataType::LargeListView(item) => {
                let items = child(item, "[]")?;
                let to = match field.data_type() {
                    DataType::ListView(_) => DataType::List(items.field.clone()),
                    _ => DataType::LargeList(items.field.clone()),
                };
                Ok(Self { work: Work::Views(Box::new(items)), ..keep(to) })
            }
            DataType::FixedSizeList(_, size) if *size < 0 => Err(refused(format!("{same} has a negative size"))),
            DataType::FixedSizeList(item, size) => {
                let items = child(item, "[]")?;
                if *size == 0 || *size > MAX_ARRAY {
                    let to = DataType::LargeList(items.field.clone());
                    return Ok(Self { work: Work::Unfixed(Box::new(items)), ..keep(to) });
                }
                let to = DataType::FixedSizeList(items.field.clone(), *size);
                Ok(Self { work: items.unless_kept(Work::Items), ..keep(to) })
            }
            DataType::Map(entries, sorted) => {
                if !matches!(entries.data_type(), DataType::Struct(fields) if fields.len() == 2) {
                    return Err(refused("a map's entries are a struct of key and value".into()));
                }
                let DataType::Struct(fields) = entries.data_type() else { unreachable!("seen above") };
                let parts = vec![child(&fields[0], ".key")?, child(&fields[1], ".value")?];
                let plain = parts.iter().all(|part| matches!(part.work, Work::Keep));
                let fields: Fields = parts.iter().map(|part| part.field.clone()).collect();
                let entries = Arc::new(Field::new(entries.name(), DataType::Struct(fields), false));
                let work = if plain { Work::Keep } else { Work::Struct(parts) };
                let inner = Self { path: path.into(), field: entries.clone(), work };
                Ok(Self { work: Work::Map(Box::new(inner)), ..keep(DataType::Map(entries, *sorted)) })
            }
            DataType::Struct(fields) => {
                check_names(fields.iter().map(|field| field.name()), "field").map_err(refused)?;
                let parts = fields.iter().map(|part| child(part, &format!(".{}", part.name())));
                let parts = parts.collect::<Result<Vec<Self>>>()?;
                let to = DataType::Struct(parts.iter().map(|part| part.field.clone()).collect());
                let plain = parts.iter().all(|part| matches!(part.work, Work::Keep));
                Ok(Self { work: if plain { Work::Keep } else { Work::Struct(parts) }, ..keep(to) })
            }
            DataType::Union(fields, _) => {
                if fields.is_empty() {
                    return Err(refused("a union needs at least one member".into()));
                }
                check_names(fields.iter().map(|(_, field)| field.name()), "member").map_err(refused)?;
                let mut members = Vec::with_capacity(fields.len());
                for (id, member) in fields.iter() {
                    members.push((id, child(member, &format!(".{}", member.name()))?));
                }
                let fields = (0..).zip(members.iter().map(|(_, member)| member.field.clone()));
                let to = DataType::Union(fields.collect(), UnionMode::Sparse);
                Ok(Self { work: Work::Union(members), ..keep(to) })
            }
            other => Err(Error::Unsupported(format!("column \"{path}\": {other} is not supported"))),
        }
    }

    /// A type of DuckDB's that has a check or a form of its own.
    fn of_extension(
        field: &FieldRef,
        path: &str,
        extension: &Extension,
        child: &impl Fn(&FieldRef, &str) -> Result<Self>,
    ) -> Result<Option<Self>> {
        let same = field.data_type().clone();
        let keep = |data_type: DataType| Self::keep(path, field, data_type, Some(extension));
        let work = |rule| Work::Values { rule: Some(rule), convert: None };
        Ok(Some(match extension {
            Extension::Uuid | Extension::Hugeint | Extension::Uhugeint => keep(same),
            Extension::Bool8 => Self {
                work: Work::Values { rule: None, convert: Some(Convert::Bool8) },
                ..Self::keep(path, field, DataType::Boolean, None)
            },
            Extension::Json => Self { work: work(Rule::Json), ..keep(same) },
            Extension::Geometry(_) => Self { work: work(Rule::Geometry), ..keep(same) },
            Extension::TimeTz => Self { work: work(Rule::TimeTz), ..keep(same) },
            Extension::Bit => Self { work: work(Rule::Bit), ..keep(same) },
            Extension::Bignum => Self { work: work(Rule::Bignum), ..keep(same) },
            Extension::Variant => {
                let DataType::Struct(fields) = field.data_type() else { unreachable!("the storage was checked") };
                let parts = fields.iter().map(|part| child(part, &format!(".{}", part.name())));
                let parts = parts.collect::<Result<Vec<Self>>>()?;
                let to = DataType::Struct(parts.iter().map(|part| part.field.clone()).collect());
                Self { work: Work::Variant(parts), ..keep(to) }
            }
        }))
    }

    /// The field as DuckDB is to read it: nullable, and with no metadata but that of a type that DuckDB knows.
    fn keep(path: &str, field: &Field, data_type: DataType, extension: Option<&Extension>) -> Self {
        let to = Field::new(field.name(), data_type, true);
        let to = match extension {
            Some(extension) => to.with_metadata(extension.metadata()),
            None => to,
        };
        Self { path: path.into(), field: Arc::new(to), work: Work::Keep }
    }

    fn unless_kept(self, work: fn(Box<Self>) -> Work) -> Work {
        if matches!(self.work, Work::Keep) { Work::Keep } else { work(Box::new(self)) }
    }

    /// The array as DuckDB is to read it; an error names the first row with a value that DuckDB has not. `rows` knows the row
    /// of each of its elements.
    fn apply(&self, array: &ArrayRef, rows: &Rows<'_>) -> Result<ArrayRef> {
        let built = |made: Result<ArrayRef, arrow_schema::ArrowError>| made.map_err(|error| self.refuse(error));
        match &self.work {
            Work::Keep => Ok(array.clone()),
            Work::Values { rule, convert } => {
                let array = match rule {
                    Some(rule) => rule.check(array, rows, &|row, why| self.refuse_row(row, why))?,
                    None => array.clone(),
                };
                match convert {
                    Some(convert) => convert.array(&array, self.field.data_type()).map_err(|error| self.refuse(error)),
                    None => Ok(array),
                }
            }
            Work::Decode(values) => {
                let decoded = rewrite::decode(array).map_err(|error| self.refuse(error))?;
                values.apply(&decoded, rows)
            }
            Work::Items(items) => match array.data_type() {
                DataType::List(_) => self.items(array.as_list::<i32>(), items, rows),
                DataType::LargeList(_) => self.items(array.as_list::<i64>(), items, rows),
                _ => {
                    let list = array.as_fixed_size_list();
                    let size = list.value_length();
                    let inner = Rows::Fixed { size: size as usize, nulls: list.nulls(), parent: rows };
                    let values = items.apply(list.values(), &inner)?;
                    let field = items.of_array(&values);
                    let made = FixedSizeListArray::try_new(field, size, values, list.nulls().cloned());
                    built(made.map(|made| Arc::new(made) as _))
                }
            },
            Work::Unfixed(items) => {
                let list = rewrite::unfixed(array.as_fixed_size_list()).map_err(|error| self.refuse(error))?;
                self.items(&list, items, rows)
            }
            Work::Views(items) => match array.data_type() {
                DataType::ListView(_) => {
                    let list = rewrite::list_of(array.as_list_view::<i32>()).map_err(|error| self.refuse(error))?;
                    self.items(&list, items, rows)
                }
                _ => {
                    let list = rewrite::list_of(array.as_list_view::<i64>()).map_err(|error| self.refuse(error))?;
                    self.items(&list, items, rows)
                }
            },
            Work::Map(entries) => {
                let map = array.as_map();
                let offsets = map.value_offsets();
                let inner = Rows::Lists { offsets, first: 0, nulls: map.nulls(), parent: rows };
                if let Some(nulls) = map.keys().nulls().filter(|nulls| nulls.null_count() > 0) {
                    let missing = (0..nulls.len()).filter(|key| nulls.is_null(*key));
                    if let Some(row) = missing.filter_map(|key| inner.row_of(key)).next() {
                        return Err(self.refuse_row(row, "a map's key is null".into()));
                    }
                }
                if matches!(entries.work, Work::Keep) {
                    self.refuse_repeated_keys(offsets, map.keys(), &inner)?;
                    return Ok(array.clone());
                }
                let parts: ArrayRef = Arc::new(map.entries().clone());
                let (_, columns, _) = entries.apply(&parts, &inner)?.as_struct().clone().into_parts();
                self.refuse_repeated_keys(offsets, &columns[0], &inner)?;
                let fields = columns.iter().zip(fields_of(&entries.field)).enumerate();
                // Keys that are null were refused.
                let fields = fields.map(|(part, (column, field))| {
                    Arc::new(Field::new(field.name(), column.data_type().clone(), part > 0))
                });
                let parts =
                    StructArray::try_new(fields.collect(), columns, None).map_err(|error| self.refuse(error))?;
                let field = Arc::new(Field::new(entries.field.name(), parts.data_type().clone(), false));
                let sorted = matches!(array.data_type(), DataType::Map(_, true));
                let made = MapArray::try_new(field, map.offsets().clone(), parts, map.nulls().cloned(), sorted);
                built(made.map(|made| Arc::new(made) as _))
            }
            Work::Struct(parts) => self.parts(array, parts, rows),
            Work::Variant(parts) => {
                let storage = self.parts(array, parts, rows)?;
                variant::check(storage.as_struct(), rows, &|row, why| self.refuse_row(row, why))
            }
            Work::Union(members) => {
                let (type_ids, made) = self.members(array, members, rows)?;
                self.refuse_null_members(&type_ids, &made, rows)?;
                let fields = members.iter().zip(&made).map(|((_, member), values)| member.of_array(values));
                let fields = (0..).zip(fields).collect();
                let made = UnionArray::try_new(fields, type_ids, None, made);
                built(made.map(|made| Arc::new(made) as _))
            }
            Work::Tagged(members) => {
                let (type_ids, made) = self.members(array, members, rows)?;
                built(union::tagged(&type_ids, made))
            }
        }
    }

    /// The places of the members, and as many values of each member.
    fn members(
        &self,
        array: &ArrayRef,
        members: &[(i8, Self)],
        rows: &Rows<'_>,
    ) -> Result<(ScalarBuffer<i8>, Vec<ArrayRef>)> {
        let union = rewrite::sparse(array.as_union(), members.iter().map(|(id, _)| *id));
        let (type_ids, children) = union.map_err(|error| self.refuse(error))?;
        let mut made = Vec::with_capacity(children.len());
        for (place, ((_, member), values)) in members.iter().zip(&children).enumerate() {
            let inner = Rows::Member { type_ids: &type_ids, id: place as i8, parent: rows };
            made.push(member.apply(values, &inner)?);
        }
        Ok((type_ids, made))
    }

    /// Makes each union of a column a struct of its tag and its members; the types that SQL casts the column to, the innermost
    /// unions first: DuckDB makes a union only of members that have their types.
    fn cast_of_unions(&mut self) -> Vec<String> {
        let depths = 1..=union::depth(self.field.data_type());
        let Some(casts) = depths.map(|depth| union::duckdb_type(&self.field, depth)).collect::<Option<Vec<String>>>()
        else {
            return Vec::new();
        };
        if !casts.is_empty() {
            self.tag_unions();
        }
        casts
    }

    fn tag_unions(&mut self) {
        let list = |field: &FieldRef, to: &DataType| match to {
            DataType::List(_) => DataType::List(field.clone()),
            DataType::FixedSizeList(_, size) => DataType::FixedSizeList(field.clone(), *size),
            _ => DataType::LargeList(field.clone()),
        };
        let data_type = match &mut self.work {
            Work::Decode(values) => {
                values.tag_unions();
                values.field.data_type().clone()
            }
            Work::Items(items) | Work::Unfixed(items) | Work::Views(items) => {
                items.tag_unions();
                list(&items.field, self.field.data_type())
            }
            Work::Map(entries) => {
                entries.tag_unions();
                DataType::Map(entries.field.clone(), matches!(self.field.data_type(), DataType::Map(_, true)))
            }
            Work::Struct(parts) => {
                parts.iter_mut().for_each(Self::tag_unions);
                DataType::Struct(parts.iter().map(|part| part.field.clone()).collect())
            }
            Work::Union(members) => {
                members.iter_mut().for_each(|(_, member)| member.tag_unions());
                DataType::Struct(union::fields(members.iter().map(|(_, member)| &member.field)))
            }
            Work::Keep | Work::Values { .. } | Work::Variant(_) | Work::Tagged(_) => return,
        };
        self.field = Arc::new(self.field.as_ref().clone().with_data_type(data_type));
        if let Work::Union(members) = &mut self.work {
            self.work = Work::Tagged(std::mem::take(members));
        }
    }

    /// DuckDB's importer makes NULL of a union whose member is null, and where it is not the first one, that is another value.
    fn refuse_null_members(&self, type_ids: &[i8], members: &[ArrayRef], rows: &Rows<'_>) -> Result<()> {
        let is_lost = |element: &usize| {
            let place = type_ids[*element] as usize;
            place > 0 && members[place].is_null(*element)
        };
        let lost = (0..type_ids.len()).filter(is_lost).find_map(|element| rows.row_of(element));
        lost.map_or(Ok(()), |row| {
            Err(self.refuse_row(row, "a union whose member is null cannot be stored in a column of this type".into()))
        })
    }

    /// Each key of a map is there once.
    fn refuse_repeated_keys(&self, offsets: &[i32], keys: &ArrayRef, rows: &Rows<'_>) -> Result<()> {
        let compare = arrow_ord::ord::make_comparator(keys, keys, Default::default()).ok();
        let is_same = |a: usize, b: usize| match &compare {
            Some(compare) => compare(a, b).is_eq(),
            None => keys.slice(a, 1).to_data() == keys.slice(b, 1).to_data(),
        };
        let mut order = Vec::new();
        for entries in offsets.windows(2).filter(|entries| entries[1] - entries[0] > 1) {
            let entries = entries[0] as usize..entries[1] as usize;
            let repeated = match &compare {
                Some(compare) if entries.len() > 8 => {
                    order.clear();
                    order.extend(entries);
                    order.sort_unstable_by(|a, b| compare(*a, *b));
                    order.windows(2).find(|pair| compare(pair[0], pair[1]).is_eq()).map(|pair| pair[1])
                }
                _ => entries.clone().find(|b| (entries.start..*b).any(|a| is_same(a, *b))),
            };
            if let Some(row) = repeated.and_then(|key| rows.row_of(key)) {
                return Err(self.refuse_row(row, "a map has the same key twice".into()));
            }
        }
        Ok(())
    }

    fn items<O: OffsetSizeTrait>(&self, list: &GenericListArray<O>, items: &Self, rows: &Rows<'_>) -> Result<ArrayRef> {
        let (first, last) = (list.value_offsets()[0].as_usize(), list.value_offsets()[list.len()].as_usize());
        let values = list.values().slice(first, last - first);
        let offsets: Vec<O> = list.value_offsets().iter().map(|offset| *offset - O::usize_as(first)).collect();
        let offsets = OffsetBuffer::new(offsets.into());
        let inner = Rows::lists(&offsets, list.nulls(), rows);
        let values = items.apply(&values, &inner)?;
        let field = items.of_array(&values);
        let made = GenericListArray::try_new(field, offsets.clone(), values, list.nulls().cloned());
        made.map(|made| Arc::new(made) as _).map_err(|error| self.refuse(error))
    }

    fn parts(&self, array: &ArrayRef, parts: &[Self], rows: &Rows<'_>) -> Result<ArrayRef> {
        let whole = array.as_struct();
        let inner = Rows::Struct { nulls: whole.nulls(), parent: rows };
        let columns = parts.iter().zip(whole.columns()).map(|(part, column)| part.apply(column, &inner));
        let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
        let fields = parts.iter().zip(&columns).map(|(part, column)| part.of_array(column)).collect();
        let made = StructArray::try_new_with_length(fields, columns, whole.nulls().cloned(), whole.len());
        made.map(|made| Arc::new(made) as _).map_err(|error| self.refuse(error))
    }

    /// The field of an array that was made for this node; DuckDB goes by [`Checked::schema`].
    fn of_array(&self, array: &ArrayRef) -> FieldRef {
        Arc::new(Field::new(self.field.name(), array.data_type().clone(), true))
    }

    fn refuse(&self, why: impl std::fmt::Display) -> Error {
        Error::invalid(format!("column \"{}\": {why}", self.path))
    }

    /// Rows count from 1.
    fn refuse_row(&self, row: u64, why: String) -> Error {
        Error::invalid(format!("column \"{}\", row {}: {why}", self.path, row + 1))
    }
}

/// The field of the values, where an array holds them as a dictionary or as runs; and whether DuckDB may read it so.
fn encoded(field: &FieldRef, outermost: bool) -> Option<(FieldRef, bool)> {
    match field.data_type() {
        DataType::Dictionary(_, values) => {
            let inner = field.as_ref().clone().with_data_type(values.as_ref().clone());
            // Below others, DuckDB would store the keys in place of the values.
            Some((Arc::new(inner), outermost && !values.is_nested() && !values.is_null()))
        }
        DataType::RunEndEncoded(_, values) => {
            let mut inner = field.as_ref().clone().with_data_type(values.data_type().clone());
            if !inner.metadata().contains_key(extension::NAME) {
                inner = inner.with_metadata(values.metadata().clone());
            }
            Some((Arc::new(inner), false))
        }
        _ => None,
    }
}

fn fields_of(entries: &Field) -> &Fields {
    let DataType::Struct(fields) = entries.data_type() else { unreachable!("a map's entries are a struct") };
    fields
}

/// DuckDB does not tell names apart by their case.
fn check_names<'a>(names: impl Iterator<Item = &'a String>, what: &str) -> Result<(), String> {
    let mut seen = std::collections::HashSet::new();
    for name in names {
        if !seen.insert(name.to_lowercase()) {
            return Err(format!("it has more than one {what} called \"{name}\""));
        }
    }
    Ok(())
}
