//! The commands that ask for facts about the database and the server.

use std::sync::Arc;

use arrow_schema::{Schema, SchemaRef};

use super::Metadata;
use crate::{
    auth::Identity,
    error::{Error, Result},
    flight::service::Flight,
    stream::RecordBatchStream,
};

impl Metadata {
    /// What [`Flight::metadata`] answers with.
    pub(super) fn schema(&self) -> SchemaRef {
        Arc::new(Schema::empty())
    }
}

impl Flight {
    pub(super) async fn metadata(&self, _identity: &Identity, asked: Metadata) -> Result<RecordBatchStream> {
        let name = match asked {
            Metadata::Catalogs(_) => "CommandGetCatalogs",
            Metadata::DbSchemas(_) => "CommandGetDbSchemas",
            Metadata::Tables(_) => "CommandGetTables",
            Metadata::TableTypes(_) => "CommandGetTableTypes",
            Metadata::PrimaryKeys(_) => "CommandGetPrimaryKeys",
            Metadata::ExportedKeys(_) => "CommandGetExportedKeys",
            Metadata::ImportedKeys(_) => "CommandGetImportedKeys",
            Metadata::CrossReference(_) => "CommandGetCrossReference",
            Metadata::XdbcTypeInfo(_) => "CommandGetXdbcTypeInfo",
            Metadata::SqlInfo(_) => "CommandGetSqlInfo",
        };
        Err(Error::Unsupported(format!("{name} is not served")))
    }
}
