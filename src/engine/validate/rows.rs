//! Which row of the stream an element of a nested array belongs to, for errors; nothing where no row that is valid has it.

use arrow_array::OffsetSizeTrait;
use arrow_buffer::{NullBuffer, OffsetBuffer};

/// What lies around an array. Nothing is computed before a value is to be refused.
pub(super) enum Rows<'a> {
    /// The column itself.
    Top {
        before: u64,
    },
    Struct {
        nulls: Option<&'a NullBuffer>,
        parent: &'a Rows<'a>,
    },
    Fixed {
        size: usize,
        nulls: Option<&'a NullBuffer>,
        parent: &'a Rows<'a>,
    },
    /// The elements begin at `first` of what the offsets mean.
    Lists {
        offsets: &'a [i32],
        first: usize,
        nulls: Option<&'a NullBuffer>,
        parent: &'a Rows<'a>,
    },
    LargeLists {
        offsets: &'a [i64],
        nulls: Option<&'a NullBuffer>,
        parent: &'a Rows<'a>,
    },
    /// A member of a sparse union.
    Member {
        type_ids: &'a [i8],
        id: i8,
        parent: &'a Rows<'a>,
    },
}

impl<'a> Rows<'a> {
    /// Lists whose offsets begin at 0.
    pub(super) fn lists<O: OffsetSizeTrait>(
        offsets: &'a OffsetBuffer<O>,
        nulls: Option<&'a NullBuffer>,
        parent: &'a Rows<'a>,
    ) -> Self {
        let bytes = offsets.inner().inner();
        if O::IS_LARGE {
            Self::LargeLists { offsets: bytes.typed_data(), nulls, parent }
        } else {
            Self::Lists { offsets: bytes.typed_data(), first: 0, nulls, parent }
        }
    }

    /// The row that holds the element, counted from 0.
    pub(super) fn row_of(&self, element: usize) -> Option<u64> {
        let (place, nulls, parent) = match self {
            Self::Top { before } => return Some(before + element as u64),
            Self::Struct { nulls, parent } => (element, nulls, parent),
            Self::Fixed { size, nulls, parent } => (element / size, nulls, parent),
            Self::Lists { offsets, first, nulls, parent } => {
                (list_of(offsets, i32::try_from(first + element).ok()?)?, nulls, parent)
            }
            Self::LargeLists { offsets, nulls, parent } => {
                (list_of(offsets, i64::try_from(element).ok()?)?, nulls, parent)
            }
            Self::Member { type_ids, id, parent } if type_ids[element] == *id => (element, &None, parent),
            Self::Member { .. } => return None,
        };
        if nulls.is_some_and(|nulls| nulls.is_null(place)) {
            return None;
        }
        parent.row_of(place)
    }
}

/// The list that an element lies in.
fn list_of<O: Ord + Copy>(offsets: &[O], element: O) -> Option<usize> {
    let after = offsets.partition_point(|offset| *offset <= element);
    (after > 0 && after < offsets.len()).then(|| after - 1)
}
