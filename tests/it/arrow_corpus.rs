//! Arrow data of every type, in every layout, on every way into DuckDB: it comes back as it was sent, or is refused with the
//! column's name; and the server goes on answering.
//!
//! A run tries a part of all combinations, a different one of each type; with `MALLARD_WHOLE_CORPUS=1` it tries all of them.

mod leaves;
mod logical;
mod mutated;
mod wrap;

use std::{collections::BTreeMap, sync::Arc};

use arrow_array::{Array, ArrayRef, RecordBatch, new_null_array};
use arrow_schema::{DataType, Field, FieldRef, Fields, Schema};
use mallard::{client::Client, error::Error, stream::RecordBatchStream};
use serde_json::json;
use tonic::Code;

use crate::{
    exchange::act,
    support::{TestServer, collect, row, run, table},
};
use leaves::{EXTENSIONS, Leaf};
use logical::{Value, value};
use wrap::WRAPS;

/// Columns of the same length, called c0, c1, and so on.
fn stream(columns: &[(FieldRef, ArrayRef)]) -> RecordBatchStream {
    let fields = columns.iter().enumerate().map(|(at, (field, _))| field.as_ref().clone().with_name(format!("c{at}")));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let arrays = columns.iter().map(|(_, array)| array.clone()).collect();
    let batch = RecordBatch::try_new(schema.clone(), arrays).unwrap();
    RecordBatchStream::from_batches(schema, vec![batch])
}

fn values(batches: &[RecordBatch], column: usize) -> Vec<Value> {
    let of = |batch: &RecordBatch| {
        let (schema, rows) = (batch.schema(), batch.num_rows());
        (0..rows).map(|row| value(schema.field(column), batch.column(column), row)).collect::<Vec<_>>()
    };
    batches.iter().flat_map(of).collect()
}

/// The ways into DuckDB that a corpus takes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Put,
    /// An SQL exchanger that reads the column.
    Exchange,
    /// One whose column goes around DuckDB.
    Carry,
}

async fn send(client: &Client, way: Way, columns: &[(FieldRef, ArrayRef)]) -> Result<Vec<RecordBatch>, Error> {
    let input = stream(columns);
    match way {
        Way::Put => {
            run(client, "DROP TABLE IF EXISTS t").await;
            client.put(&table("t"), input).await?;
            collect(client.query("FROM t").await?).await
        }
        Way::Exchange => collect(client.exchange("read", input).await?).await,
        Way::Carry => collect(client.exchange("carry", input).await?).await,
    }
}

/// A server with the exchangers that [`send`] uses.
async fn start() -> (TestServer, Client) {
    let server = TestServer::start().await;
    let client = server.client().await;
    for (name, sql) in [("read", "SELECT * FROM input LIMIT 1000"), ("carry", "SELECT *, 1 AS one FROM input")] {
        act(&client, "add_exchange", json!({"name": name, "sql": sql})).await.unwrap();
    }
    (server, client)
}

/// How many cases ended in which way, and those that should not have ended so.
#[derive(Default)]
struct Endings {
    counts: BTreeMap<&'static str, usize>,
    wrong: Vec<String>,
}

impl Endings {
    /// The columns come back as they were sent.
    async fn equal(&mut self, client: &Client, way: Way, columns: &[(String, (FieldRef, ArrayRef))]) {
        if columns.is_empty() {
            return;
        }
        let (names, sent): (Vec<String>, Vec<_>) = columns.iter().cloned().unzip();
        let before = collect(stream(&sent)).await.unwrap();
        let got = match send(client, way, &sent).await {
            Ok(got) => got,
            Err(error) => return self.wrong.push(format!("{way:?} {}..: {:?} {error}", names[0], error.code())),
        };
        for (column, name) in names.iter().enumerate() {
            let (sent, got) = (values(&before, column), values(&got, column));
            *self.counts.entry("equal").or_default() += usize::from(sent == got);
            if sent != got {
                self.wrong.push(format!("{way:?} {name}: {sent:?} came back as {got:?}"));
            }
        }
    }

    /// The column is refused by name, and for this reason.
    async fn refused(&mut self, client: &Client, way: Way, what: &str, column: (FieldRef, ArrayRef), says: &str) {
        let what = format!("{way:?} {what} as {}", column.0.data_type());
        match send(client, way, &[column]).await {
            Ok(got) => self.wrong.push(format!("{what}: taken as {:?}", values(&got, 0))),
            Err(error) => {
                let (code, text) = (error.code(), error.to_string());
                let named = text.contains("column \"c0") && text.contains(says);
                if named && matches!(code, Code::InvalidArgument | Code::Unimplemented) {
                    *self.counts.entry("refused").or_default() += 1;
                } else {
                    self.wrong.push(format!("{what}: {code:?} {text}"));
                }
            }
        }
    }

    fn report(&self, what: &str) {
        println!("{what}: {:?}", self.counts);
        assert!(self.wrong.is_empty(), "{} wrong, among them\n{}", self.wrong.len(), self.shown());
    }

    fn shown(&self) -> String {
        let shown = self.wrong.iter().step_by(1 + self.wrong.len() / 40);
        shown.map(|line| line.chars().take(500).collect::<String>()).collect::<Vec<_>>().join("\n")
    }
}

/// Whether a case is tried: one of so many, or each.
fn is_tried(case: usize, of: usize) -> bool {
    case.is_multiple_of(of) || std::env::var("MALLARD_WHOLE_CORPUS").is_ok_and(|whole| whole == "1")
}

fn wrapped(name: &str, field: &FieldRef, array: &ArrayRef) -> Vec<(String, (FieldRef, ArrayRef))> {
    let encoded = matches!(field.data_type(), DataType::Dictionary(..));
    // Streams have no dictionaries of dictionaries.
    let wraps = WRAPS.into_iter().filter(|(layout, _)| !(encoded && *layout == "dictionary"));
    wraps.map(|(layout, wrap)| (format!("{name} in {layout}"), wrap(field, array))).collect()
}

/// Every type in every layout comes back with the same values.
#[tokio::test(flavor = "multi_thread")]
async fn what_duckdb_has_comes_back_as_it_was_sent() {
    let (_server, client) = start().await;
    let mut endings = Endings::default();
    for (number, Leaf { name, field, array, .. }) in leaves::good().into_iter().enumerate() {
        let mut place = number;
        let mut part = |columns: &[(String, (FieldRef, ArrayRef))]| {
            place += 1;
            let tried = columns.iter().enumerate().filter(|(at, _)| is_tried(at + place, 8));
            tried.map(|(_, column)| column.clone()).collect::<Vec<_>>()
        };
        let columns = wrapped(&name, &field, &array);
        let empty = columns.iter().map(|(name, (field, array))| (name.clone(), (field.clone(), array.slice(0, 0))));
        // arrow-rs writes no stream of views in runs where there are none.
        let empty: Vec<_> = empty.filter(|(_, (field, _))| !field.data_type().to_string().contains("View")).collect();
        endings.equal(&client, Way::Put, &part(&columns)).await;
        endings.equal(&client, Way::Exchange, &part(&columns)).await;
        endings.equal(&client, Way::Carry, &part(&columns)).await;
        let empty = part(&empty);
        if !empty.is_empty() {
            endings.equal(&client, Way::Exchange, &empty).await;
        }
        let nulls = new_null_array(field.data_type(), 6);
        endings.equal(&client, Way::Put, &part(&wrapped(&format!("{name}, null"), &field, &nulls))).await;
    }
    endings.report("types x layouts");
}

/// Layouts inside of layouts.
#[tokio::test(flavor = "multi_thread")]
async fn layouts_nest() {
    let (_server, client) = start().await;
    let mut endings = Endings::default();
    let chosen = ["Utf8View", "Date64", "Null", "arrow.bool8 "];
    let leaves = leaves::good().into_iter().filter(|leaf| chosen.contains(&leaf.name.as_str()));
    for (number, Leaf { name, field, array, .. }) in leaves.enumerate() {
        for (place, (inner, (field, array))) in wrapped(&name, &field, &array).into_iter().enumerate() {
            if !is_tried(number + place, 7) {
                continue;
            }
            endings.equal(&client, Way::Exchange, &wrapped(&inner, &field, &array)).await;
        }
    }
    endings.report("layouts x layouts");
}

/// A value that DuckDB does not have is refused by column, row and value, wherever it is, and only where it counts.
#[tokio::test(flavor = "multi_thread")]
async fn values_out_of_range_are_refused_and_nothing_is_stored() {
    let (_server, client) = start().await;
    let mut endings = Endings::default();
    for (number, Leaf { name, field, array, refused }) in leaves::bad_values().into_iter().enumerate() {
        let says = refused.unwrap();
        for (place, (what, column)) in wrapped(&name, &field, &array).into_iter().enumerate() {
            // One whose lists are empty holds no value.
            if !what.ends_with("list of none") && (number + place) % 3 == 0 && is_tried(number * 7 + place, 9) {
                endings.refused(&client, Way::Exchange, &what, column, says).await;
            }
        }
        let column = (field.clone(), array.clone());
        endings.refused(&client, Way::Put, &name, column.clone(), "\"c0\", row 4: ").await;
        endings.refused(&client, Way::Carry, &name, column, says).await;
        assert_eq!(row(&client, "SELECT count(*) FROM duckdb_tables() WHERE table_name = 't'").await, ["0"]);
        let unseen = [wrap::hidden(&field, &array), wrap::unused(&field, &array)];
        let unseen = unseen.map(|column| (format!("{name}, which does not count"), column));
        endings.equal(&client, Way::Exchange, &unseen).await;
    }
    for Leaf { name, field, array, refused } in leaves::bad_types() {
        for way in [Way::Put, Way::Exchange, Way::Carry] {
            endings.refused(&client, way, &name, (field.clone(), array.clone()), refused.unwrap()).await;
        }
    }
    assert_eq!(row(&client, "SELECT 42").await, ["42"]);
    endings.report("values out of range");
}

/// Every extension type that DuckDB knows over every storage: what its specification names, or refused.
#[tokio::test(flavor = "multi_thread")]
async fn extension_types_have_the_storage_of_their_specification() {
    let (_server, client) = start().await;
    let mut endings = Endings::default();
    for (kind, extension) in EXTENSIONS.into_iter().enumerate() {
        for (number, storage) in leaves::storages().into_iter().enumerate() {
            let field = leaves::extended(storage.data_type(), extension);
            let what = format!("{extension:?} over {}", storage.data_type());
            if leaves::is_storage(extension, storage.data_type()) {
                let columns = wrapped(&what, &field, &storage).into_iter().enumerate();
                // A union of structs without fields has no name in SQL.
                let empty = *storage.data_type() == DataType::Struct(Fields::empty());
                let columns = columns.filter(|(_, (what, _))| !(empty && what.ends_with("union")));
                let tried = columns.filter(|(place, _)| is_tried(place + number, 4)).map(|(_, column)| column);
                endings.equal(&client, Way::Put, &tried.collect::<Vec<_>>()).await;
                continue;
            }
            if is_tried(kind + number, 4) {
                endings.refused(&client, Way::Put, &what, (field.clone(), storage.clone()), "is stored as").await;
            }
            // Each layout with some of the storages.
            for (place, (what, column)) in wrapped(&what, &field, &storage).into_iter().enumerate() {
                if (kind + number + place) % 8 == 0 && is_tried(kind * 3 + number, 9) {
                    endings.refused(&client, Way::Exchange, &what, column, "is stored as").await;
                }
            }
        }
    }
    endings.report("extension types x storages");
}

/// Names and shapes that DuckDB does not have.
#[tokio::test(flavor = "multi_thread")]
async fn schemas_that_duckdb_does_not_have_are_refused() {
    let (_server, client) = start().await;
    let int = |name: &str| Field::new(name, DataType::Int32, true);
    for (what, data_type) in [
        ("two fields of one name", DataType::Struct(vec![int("a"), int("A")].into())),
        ("a name with NUL", DataType::Struct(vec![int("a\0b")].into())),
    ] {
        let field = Arc::new(Field::new("c", data_type.clone(), true));
        let refused = send(&client, Way::Put, &[(field, new_null_array(&data_type, 3))]).await.expect_err(what);
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused}");
        assert!(refused.to_string().contains("column"), "{what}: {refused}");
    }
    assert_eq!(row(&client, "SELECT 42").await, ["42"]);
}
