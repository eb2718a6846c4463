//! Columns and their types.

use std::{ffi::CStr, ffi::CString, os::raw::c_char, ptr, slice};

use crate::abi::ArrowSchema;

/// Types as the Arrow C Data Interface writes them. Those with parameters are texts such as `"d:18,3"` for
/// DECIMAL(18, 3), `"tsu:UTC"` for microseconds with a time zone, `"w:16"` for binaries of 16 bytes.
pub mod format {
    pub const BOOL: &str = "b";
    pub const INT8: &str = "c";
    pub const UINT8: &str = "C";
    pub const INT16: &str = "s";
    pub const UINT16: &str = "S";
    pub const INT32: &str = "i";
    pub const UINT32: &str = "I";
    pub const INT64: &str = "l";
    pub const UINT64: &str = "L";
    pub const FLOAT32: &str = "f";
    pub const FLOAT64: &str = "g";
    pub const UTF8: &str = "u";
    pub const BINARY: &str = "z";
    /// Days since 1970-01-01, as i32.
    pub const DATE: &str = "tdD";
    /// Microseconds since midnight, as i64.
    pub const TIME: &str = "ttu";
    /// Microseconds since 1970-01-01, as i64.
    pub const TIMESTAMP: &str = "tsu:";
    pub const LIST: &str = "+l";
    pub const STRUCT: &str = "+s";
}

const NULLABLE: i64 = 2;

/// A column's name and type.
#[derive(Debug, Clone)]
pub struct Field {
    pub name: String,
    /// See [`format`].
    pub format: String,
    pub nullable: bool,
    pub children: Vec<Field>,
    pub dictionary: Option<Box<Field>>,
    /// As the C Data Interface encodes it; extension types have theirs here.
    pub metadata: Vec<u8>,
    flags: i64,
    /// The host's own, for a column of the input that was not changed.
    given: Option<*const ArrowSchema>,
}

impl Field {
    pub fn new(name: &str, format: &str) -> Self {
        Field {
            name: name.into(),
            format: format.into(),
            nullable: true,
            children: Vec::new(),
            dictionary: None,
            metadata: Vec::new(),
            flags: 0,
            given: None,
        }
    }

    /// A list of such items.
    pub fn list(name: &str, item: Field) -> Self {
        Field { children: vec![item], ..Field::new(name, format::LIST) }
    }

    /// With another name.
    pub fn renamed(&self, name: &str) -> Self {
        Field { name: name.into(), given: None, ..self.clone() }
    }

    unsafe fn read(schema: &ArrowSchema) -> Self {
        let text = |address: *const c_char| {
            if address.is_null() {
                String::new()
            } else {
                CStr::from_ptr(address).to_string_lossy().into_owned()
            }
        };
        Field {
            name: text(schema.name),
            format: text(schema.format),
            nullable: schema.flags & NULLABLE != 0,
            children: children(schema).iter().map(|child| Field::read(&**child)).collect(),
            dictionary: schema.dictionary.as_ref().map(|values| Box::new(Field::read(values))),
            metadata: metadata(schema.metadata as *const u8),
            flags: schema.flags & !NULLABLE,
            given: Some(schema),
        }
    }
}

unsafe fn children(schema: &ArrowSchema) -> &[*const ArrowSchema] {
    if schema.n_children == 0 {
        &[]
    } else {
        slice::from_raw_parts(schema.children, schema.n_children as usize)
    }
}

/// A count, then each key and value with its length in front.
unsafe fn metadata(start: *const u8) -> Vec<u8> {
    if start.is_null() {
        return Vec::new();
    }
    let number = |at: usize| (start.add(at) as *const i32).read_unaligned() as usize;
    let mut end = 4;
    for _ in 0..2 * number(0) {
        end += 4 + number(end);
    }
    slice::from_raw_parts(start, end).to_vec()
}

/// The columns of a stream.
#[derive(Debug, Clone, Default)]
pub struct Schema {
    pub fields: Vec<Field>,
}

impl Schema {
    pub fn new(fields: Vec<Field>) -> Self {
        Schema { fields }
    }

    /// With one more column.
    pub fn with(mut self, field: Field) -> Self {
        self.fields.push(field);
        self
    }

    /// Where the column of this name is; names are compared as SQL does.
    pub fn index(&self, name: &str) -> Result<usize, String> {
        let found = self.fields.iter().position(|field| field.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let names: Vec<&str> = self.fields.iter().map(|field| field.name.as_str()).collect();
            format!("there is no column \"{}\"; there are {}", name, names.join(", "))
        })
    }

    pub(crate) unsafe fn read(root: &ArrowSchema) -> Self {
        Schema { fields: children(root).iter().map(|child| Field::read(&**child)).collect() }
    }
}

/// A schema as the host reads it, and all that it points to.
pub(crate) struct OwnedSchema {
    columns: usize,
    nodes: Node,
}

struct Node {
    schema: Box<ArrowSchema>,
    _texts: [CString; 2],
    _metadata: Vec<u8>,
    _children: Vec<Node>,
    _pointers: Vec<*const ArrowSchema>,
    _dictionary: Option<Box<Node>>,
}

impl OwnedSchema {
    pub(crate) fn new(schema: Schema) -> Self {
        let columns = schema.fields.len();
        let root = Field { nullable: false, children: schema.fields, ..Field::new("", format::STRUCT) };
        OwnedSchema { columns, nodes: Node::new(&root) }
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    pub(crate) fn root(&self) -> ArrowSchema {
        // SAFETY: a plain structure; what it points to lives as long as this.
        unsafe { ptr::read(&*self.nodes.schema) }
    }
}

impl Node {
    fn new(field: &Field) -> Self {
        let text = |text: &str| CString::new(text.replace('\0', "")).unwrap_or_default();
        let texts = [text(&field.format), text(&field.name)];
        let metadata = field.metadata.clone();
        let dictionary = field.dictionary.as_ref().map(|values| Box::new(Node::new(values)));
        let (mut children, mut pointers) = (Vec::new(), Vec::new());
        for child in &field.children {
            match child.given {
                Some(given) => pointers.push(given),
                None => {
                    let node = Node::new(child);
                    pointers.push(&*node.schema as *const ArrowSchema);
                    children.push(node);
                }
            }
        }
        let schema = Box::new(ArrowSchema {
            format: texts[0].as_ptr(),
            name: texts[1].as_ptr(),
            metadata: if metadata.is_empty() { ptr::null() } else { metadata.as_ptr() as *const c_char },
            flags: field.flags | if field.nullable { NULLABLE } else { 0 },
            n_children: pointers.len() as i64,
            children: pointers.as_ptr(),
            dictionary: dictionary.as_ref().map_or(ptr::null(), |node| &*node.schema),
            release: 0,
            private_data: 0,
        });
        Node { schema, _texts: texts, _metadata: metadata, _children: children, _pointers: pointers, _dictionary: dictionary }
    }
}
