//! What a client registers: the body of `add_exchange`, which is also what is kept in the database.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// The body of `add_exchange`: a name, and `sql` or `wasm`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    pub name: String,
    pub sql: Option<String>,
    /// A module, in base64.
    #[serde(default, deserialize_with = "optional_module")]
    pub wasm: Option<Bytes>,
    pub description: Option<String>,
    /// Parameters by name: a default, or `{"type": .., "default"?: ..}`.
    #[serde(default)]
    pub params: Map<String, Value>,
    /// Whether it is a new version where the name is there already.
    #[serde(default)]
    pub replace: bool,
}

/// What an exchanger does, by kind. As JSON it is what is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Definition {
    Sql {
        sql: String,
        #[serde(default)]
        params: Map<String, Value>,
    },
    Wasm {
        #[serde(serialize_with = "write_module", deserialize_with = "read_module")]
        module: Bytes,
        #[serde(default)]
        params: Map<String, Value>,
    },
}

fn write_module<S: Serializer>(module: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64_STANDARD.encode(module))
}

fn read_module<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = BASE64_STANDARD.decode(text);
    bytes.map(Bytes::from).map_err(|error| serde::de::Error::custom(format!("the module is not base64: {error}")))
}

fn optional_module<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
    read_module(deserializer).map(Some)
}
