//! The extension types that DuckDB knows, and the storage that their specifications name.
//!
//! DuckDB registers these in `arrow_type_extension.cpp` and takes the storage on trust. Any other extension type is read as
//! its storage, which is what Arrow's specification asks of those who do not know it.

use std::collections::HashMap;

use arrow_schema::{DataType, Field};

pub(super) const NAME: &str = "ARROW:extension:name";
const METADATA: &str = "ARROW:extension:metadata";

/// A type of DuckDB's that Arrow has no form of its own for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Extension {
    Uuid,
    Bool8,
    Json,
    /// With its metadata, which may name a coordinate reference system.
    Geometry(String),
    Variant,
    Hugeint,
    Uhugeint,
    TimeTz,
    Bit,
    Bignum,
}

impl Extension {
    /// What a field says it is, where DuckDB knows it.
    pub(super) fn of(field: &Field) -> Result<Option<Self>, String> {
        let told = field.metadata().get(METADATA).map(|told| told.to_string()).unwrap_or_default();
        let Some(name) = field.metadata().get(NAME).map(|name| name.to_string()) else { return Ok(None) };
        Ok(match name.as_str() {
            "arrow.uuid" => Some(Self::Uuid),
            "arrow.bool8" => Some(Self::Bool8),
            "arrow.json" => Some(Self::Json),
            "arrow.parquet.variant" => Some(Self::Variant),
            "geoarrow.wkb" => {
                let object = |told: &str| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(told);
                if !told.is_empty() && object(&told).is_err() {
                    return Err("the metadata of geoarrow.wkb is not a JSON object".into());
                }
                Some(Self::Geometry(told))
            }
            "arrow.opaque" => {
                let told: serde_json::Value = serde_json::from_str(&told).unwrap_or_default();
                if told["vendor_name"] != "DuckDB" {
                    return Ok(None);
                }
                match told["type_name"].as_str() {
                    Some("hugeint") => Some(Self::Hugeint),
                    Some("uhugeint") => Some(Self::Uhugeint),
                    Some("time_tz") => Some(Self::TimeTz),
                    Some("bit") => Some(Self::Bit),
                    Some("bignum") => Some(Self::Bignum),
                    _ => None,
                }
            }
            _ => None,
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Uuid => "arrow.uuid",
            Self::Bool8 => "arrow.bool8",
            Self::Json => "arrow.json",
            Self::Geometry(_) => "geoarrow.wkb",
            Self::Variant => "arrow.parquet.variant",
            Self::Hugeint => "arrow.opaque of DuckDB's hugeint",
            Self::Uhugeint => "arrow.opaque of DuckDB's uhugeint",
            Self::TimeTz => "arrow.opaque of DuckDB's time_tz",
            Self::Bit => "arrow.opaque of DuckDB's bit",
            Self::Bignum => "arrow.opaque of DuckDB's bignum",
        }
    }

    /// Whether values of this type may be stored so.
    pub(super) fn check_storage(&self, storage: &DataType) -> Result<(), String> {
        let (fits, expected) = match self {
            Self::Uuid | Self::Hugeint | Self::Uhugeint => {
                (*storage == DataType::FixedSizeBinary(16), "fixed-size binary of 16 bytes")
            }
            Self::TimeTz => (*storage == DataType::FixedSizeBinary(8), "fixed-size binary of 8 bytes"),
            Self::Bool8 => (*storage == DataType::Int8, "int8"),
            Self::Json => (
                matches!(storage, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View),
                "utf8, large utf8 or utf8 view",
            ),
            Self::Geometry(_) | Self::Bit | Self::Bignum => (is_binary(storage), "binary, large binary or binary view"),
            Self::Variant => (is_variant(storage)?, "a struct of the binary fields metadata and value"),
        };
        if fits { Ok(()) } else { Err(format!("{} is stored as {expected}, not as {storage}", self.name())) }
    }

    /// The metadata of a field that DuckDB is to read as this type.
    pub(super) fn metadata(&self) -> HashMap<String, String> {
        let opaque = |type_name: &str| {
            ("arrow.opaque".to_string(), format!(r#"{{"type_name":"{type_name}","vendor_name":"DuckDB"}}"#))
        };
        let (name, metadata) = match self {
            Self::Hugeint => opaque("hugeint"),
            Self::Uhugeint => opaque("uhugeint"),
            Self::TimeTz => opaque("time_tz"),
            Self::Bit => opaque("bit"),
            Self::Bignum => opaque("bignum"),
            Self::Geometry(told) => (self.name().to_string(), told.clone()),
            Self::Uuid | Self::Bool8 | Self::Json | Self::Variant => (self.name().to_string(), String::new()),
        };
        HashMap::from([(NAME.to_string(), name), (METADATA.to_string(), metadata)])
    }
}

fn is_binary(storage: &DataType) -> bool {
    matches!(storage, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

/// The parts may be encoded, and in either order.
fn is_variant(storage: &DataType) -> Result<bool, String> {
    let DataType::Struct(fields) = storage else { return Ok(false) };
    if fields.iter().any(|field| field.name() == "typed_value") {
        return Err("a shredded VARIANT (with the field typed_value) is not supported".into());
    }
    let mut names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
    names.sort_unstable();
    Ok(names == ["metadata", "value"]
        && fields.iter().all(|field| {
            let plain = match field.data_type() {
                DataType::Dictionary(_, values) => values.as_ref(),
                DataType::RunEndEncoded(_, values) => values.data_type(),
                other => other,
            };
            is_binary(plain) && !matches!(Extension::of(field), Ok(Some(_)) | Err(_))
        }))
}
