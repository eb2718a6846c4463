//! What a client registers: the body of `add_exchange`, which is also what is kept in the database.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::{Kind, Parameters};
use crate::{
    error::{Error, Result},
    json::Json,
};

/// The body of `add_exchange`: a name, and `sql` or `wasm`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Registration {
    pub name: String,
    pub sql: Option<String>,
    pub wasm: Option<Bytes>,
    pub description: Option<String>,
    pub params: Option<Parameters>,
    /// Whether it is a new version where the name is there already.
    pub replace: bool,
}

/// What is wrong with the body of a registration.
#[derive(Debug)]
pub enum BodyError {
    /// It is not what the action takes.
    Malformed(String),
    /// It is, and names something that cannot be.
    Wrong(Error),
}

impl Registration {
    /// Reads the body. Defaults of parameters keep all of their digits.
    pub fn read(body: &[u8]) -> Result<Self, BodyError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Body {
            name: String,
            sql: Option<String>,
            /// A module, in base64.
            #[serde(default, deserialize_with = "optional_module")]
            wasm: Option<Bytes>,
            description: Option<String>,
            params: Option<Map<String, Value>>,
            #[serde(default)]
            replace: bool,
        }

        let malformed = |error: &dyn std::fmt::Display| BodyError::Malformed(error.to_string());
        let read: Body = serde_json::from_slice(body).map_err(|error| malformed(&error))?;
        let Body { name, sql, wasm, description, params, replace } = read;
        let params = match params {
            None => None,
            Some(_) => {
                let text = std::str::from_utf8(body).map_err(|error| malformed(&error))?;
                let members = Json::parse(text).map_err(|error| malformed(&error))?.members().unwrap_or_default();
                let params = members.into_iter().find(|(key, _)| key == "params");
                params.map(|(_, params)| Parameters::read(&params)).transpose().map_err(BodyError::Wrong)?
            }
        };
        Ok(Self { name, sql, wasm, description, params, replace })
    }
}

/// What an exchanger does, by kind. As JSON it is what is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Definition {
    Sql {
        sql: String,
        #[serde(default)]
        params: Parameters,
    },
    Wasm {
        #[serde(serialize_with = "write_module", deserialize_with = "read_module")]
        module: Bytes,
        #[serde(default)]
        params: Parameters,
    },
}

impl Definition {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Sql { .. } => Kind::Sql,
            Self::Wasm { .. } => Kind::Wasm,
        }
    }

    pub(super) fn params(&self) -> &Parameters {
        match self {
            Self::Sql { params, .. } | Self::Wasm { params, .. } => params,
        }
    }
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
