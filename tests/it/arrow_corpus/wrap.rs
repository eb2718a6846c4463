//! An array inside of others.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, DictionaryArray, FixedSizeListArray, GenericListArray, GenericListViewArray, Int16Array, MapArray,
    OffsetSizeTrait, RunArray, StringArray, StructArray, UInt32Array, UnionArray, new_empty_array,
    types::{Int16Type, UInt8Type},
};
use arrow_buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, FieldRef, UnionFields};
use arrow_select::take::take;

pub(super) type Wrap = fn(&FieldRef, &ArrayRef) -> (FieldRef, ArrayRef);

/// They take six elements and give six rows.
pub(super) const WRAPS: [(&str, Wrap); 16] = [
    ("alone", |field, array| (field.clone(), array.clone())),
    ("list", list::<i32>),
    ("large list", list::<i64>),
    ("list view", view::<i32>),
    ("large list view", view::<i64>),
    ("fixed-size list", |field, array| fixed(field, array, 2)),
    ("fixed-size list of one", |field, array| fixed(field, array, 1)),
    ("fixed-size list of none", |field, array| fixed(field, array, 0)),
    ("struct", structs),
    ("map's value", |field, array| map(&keys(array.len()), (field, array))),
    ("sparse union", sparse),
    ("dense union", dense),
    ("dictionary", dictionary),
    ("runs", runs),
    ("slice", |field, array| {
        let order = [5, 0, 1, 2, 3, 4, 5, 0, 1];
        (field.clone(), take(array, &UInt32Array::from(order.to_vec()), None).unwrap().slice(1, 6))
    }),
    ("slice of lists", |field, array| {
        let (item, lists) = list::<i32>(field, array);
        let order = [1, 0, 1, 2, 3, 4, 5, 0];
        (item, take(&lists, &UInt32Array::from(order.to_vec()), None).unwrap().slice(1, 6))
    }),
];

fn named(name: &str, array: ArrayRef) -> (FieldRef, ArrayRef) {
    (Arc::new(Field::new(name, array.data_type().clone(), true)), array)
}

/// Two elements each, one list that is empty, and one that is null and has elements.
fn list<O: OffsetSizeTrait>(field: &FieldRef, array: &ArrayRef) -> (FieldRef, ArrayRef) {
    let last = array.len();
    let offsets = [0, 2, 2, 4, last.min(5), last, last].map(|offset| O::usize_as(offset.min(last)));
    let nulls = NullBuffer::from(vec![true, true, true, false, true, true]);
    let offsets = OffsetBuffer::new(offsets.to_vec().into());
    let list = GenericListArray::new(field.clone(), offsets, array.clone(), Some(nulls));
    named("item", Arc::new(list))
}

/// In another order, with elements that two of them have.
fn view<O: OffsetSizeTrait>(field: &FieldRef, array: &ArrayRef) -> (FieldRef, ArrayRef) {
    let (offsets, sizes) = ([3, 0, 1, 0, 0, 1], [2, 3, 2, 0, 2, 5]);
    let whole = |numbers: [usize; 6]| -> ScalarBuffer<O> {
        numbers.map(|number| O::usize_as(if array.len() < 6 { 0 } else { number })).to_vec().into()
    };
    let nulls = NullBuffer::from(vec![true, true, false, true, true, true]);
    let views = GenericListViewArray::new(field.clone(), whole(offsets), whole(sizes), array.clone(), Some(nulls));
    named("item", Arc::new(views))
}

fn fixed(field: &FieldRef, array: &ArrayRef, size: usize) -> (FieldRef, ArrayRef) {
    let order = (0..6 * size as u32).map(|place| place % 6);
    let values = match size {
        0 => new_empty_array(array.data_type()),
        1 => array.clone(),
        _ => take(array, &UInt32Array::from_iter_values(order), None).unwrap(),
    };
    let nulls = NullBuffer::from(vec![true, true, false, true, true, true]);
    let lists = FixedSizeListArray::try_new_with_length(field.clone(), size as i32, values, Some(nulls), 6).unwrap();
    named("item", Arc::new(lists))
}

fn structs(field: &FieldRef, array: &ArrayRef) -> (FieldRef, ArrayRef) {
    let nulls = NullBuffer::from((0..array.len()).map(|row| row != 4).collect::<Vec<bool>>());
    let other = Field::new("other", DataType::Utf8, true);
    let fields = vec![field.clone(), Arc::new(other)];
    let columns = vec![array.clone(), keys(array.len()).1];
    named("item", Arc::new(StructArray::new(fields.into(), columns, Some(nulls))))
}

fn keys(count: usize) -> (FieldRef, ArrayRef) {
    let keys = StringArray::from_iter_values((0..count).map(|key| format!("key {key}")));
    (Arc::new(Field::new("key", DataType::Utf8, false)), Arc::new(keys))
}

fn map((key, keys): &(FieldRef, ArrayRef), (field, values): (&FieldRef, &ArrayRef)) -> (FieldRef, ArrayRef) {
    let value = Arc::new(field.as_ref().clone().with_name("value"));
    let entries = StructArray::new(vec![key.clone(), value].into(), vec![keys.clone(), values.clone()], None);
    let offsets: Vec<i32> = [0, 2, 2, 4, 5, 6, 6].map(|offset: usize| offset.min(values.len()) as i32).to_vec();
    let entry = Arc::new(Field::new("entries", entries.data_type().clone(), false));
    let nulls = NullBuffer::from(vec![true, true, true, false, true, true]);
    named("item", Arc::new(MapArray::new(entry, OffsetBuffer::new(offsets.into()), entries, Some(nulls), false)))
}

/// With type ids that are not the members' places.
fn members(field: &FieldRef) -> UnionFields {
    let text = Arc::new(Field::new("text", DataType::Utf8, true));
    [(7, text), (3, Arc::new(field.as_ref().clone().with_name("ours")))].into_iter().collect()
}

fn sparse(field: &FieldRef, array: &ArrayRef) -> (FieldRef, ArrayRef) {
    let ids: ScalarBuffer<i8> = (0..array.len()).map(|row| if row % 3 == 1 { 7 } else { 3 }).collect();
    let union = UnionArray::try_new(members(field), ids, None, vec![keys(array.len()).1, array.clone()]).unwrap();
    named("item", Arc::new(union))
}

fn dense(field: &FieldRef, array: &ArrayRef) -> (FieldRef, ArrayRef) {
    let ids: ScalarBuffer<i8> = (0..array.len()).map(|row| if row % 3 == 1 { 7 } else { 3 }).collect();
    let offsets = (0..array.len() as i32).map(|row| if row % 3 == 1 { 0 } else { row }).collect();
    let union = UnionArray::try_new(members(field), ids, Some(offsets), vec![keys(1).1, array.clone()]).unwrap();
    named("item", Arc::new(union))
}

fn dictionary(field: &FieldRef, array: &ArrayRef) -> (FieldRef, ArrayRef) {
    let count = array.len() as u8;
    let keys = (0..6).map(|row: u8| if row == 1 || count == 0 { None } else { Some((row * 5) % count) });
    let dictionary = DictionaryArray::<UInt8Type>::new(keys.collect(), array.clone());
    let field = field.as_ref().clone().with_data_type(dictionary.data_type().clone());
    (Arc::new(field), Arc::new(dictionary))
}

/// Runs of different lengths; an extension type stays with the outer field.
fn runs(field: &FieldRef, array: &ArrayRef) -> (FieldRef, ArrayRef) {
    let ends = Int16Array::from_iter_values((0..array.len() as i16).map(|run| run * 2 + 1));
    let runs = RunArray::<Int16Type>::try_new(&ends, array).unwrap().slice(2, 6);
    let field = field.as_ref().clone().with_data_type(runs.data_type().clone());
    (Arc::new(field), Arc::new(runs))
}

/// The same in a struct that is null in every row.
pub(super) fn hidden(field: &FieldRef, array: &ArrayRef) -> (FieldRef, ArrayRef) {
    let nulls = NullBuffer::new_null(array.len());
    named("item", Arc::new(StructArray::new(vec![field.clone()].into(), vec![array.clone()], Some(nulls))))
}

/// Unused members of a union and elements of no list.
pub(super) fn unused(field: &FieldRef, array: &ArrayRef) -> (FieldRef, ArrayRef) {
    let ids: ScalarBuffer<i8> = (0..array.len()).map(|_| 7).collect();
    let union = UnionArray::try_new(members(field), ids, None, vec![keys(array.len()).1, array.clone()]).unwrap();
    named("item", Arc::new(union))
}
