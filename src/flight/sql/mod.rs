//! Flight SQL: what its messages ask for, over the same RPCs as plain Flight.
//!
//! A message comes in a google.protobuf.Any: as a descriptor (GetFlightInfo, GetSchema, DoPut), as a ticket, or as the body of
//! an action. Each RPC decides here which messages it answers; what they mean is in a file each. Statements without
//! rows run where a client asks for their FlightInfo, because clients like ADBC's do not come back for rows that are none;
//! the ticket they get in it runs nothing.

mod info;
mod ingest;
mod metadata;
mod prepared;
mod session_options;
mod statement;
mod transaction;
mod xdbc;

use std::sync::Arc;

use arrow_flight::{
    FlightInfo, PutResult,
    sql::{
        ActionBeginTransactionRequest, ActionClosePreparedStatementRequest, Any, Command, CommandGetCatalogs,
        CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys,
        CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo,
        CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementIngest, CommandStatementQuery,
        CommandStatementUpdate, DoPutUpdateResult, ProstMessageExt, TicketStatementQuery,
    },
};
use arrow_schema::{Schema, SchemaRef};
use prost::Message;
use serde::{Deserialize, Serialize};

use super::{
    action::malformed,
    service::{Caller, Flight},
};
use crate::{
    auth::Identity,
    engine::Ask,
    error::{Error, Result},
    session::Handle,
    stream::RecordBatchStream,
    wire::Upload,
};

/// A message of Flight SQL, by what it asks for.
enum Asked {
    Metadata(Metadata),
    Query(CommandStatementQuery),
    Update(CommandStatementUpdate),
    PreparedQuery(CommandPreparedStatementQuery),
    PreparedUpdate(CommandPreparedStatementUpdate),
    Ingest(CommandStatementIngest),
    Ticket(TicketStatementQuery),
    Substrait,
    /// The body of an action, or what one answers.
    OfAction(String),
}

/// The commands that ask for facts about the database and the server, and run no SQL of the client's.
enum Metadata {
    Catalogs(CommandGetCatalogs),
    DbSchemas(CommandGetDbSchemas),
    Tables(CommandGetTables),
    TableTypes(CommandGetTableTypes),
    PrimaryKeys(CommandGetPrimaryKeys),
    ExportedKeys(CommandGetExportedKeys),
    ImportedKeys(CommandGetImportedKeys),
    CrossReference(CommandGetCrossReference),
    XdbcTypeInfo(CommandGetXdbcTypeInfo),
    SqlInfo(CommandGetSqlInfo),
}

impl From<Command> for Asked {
    fn from(command: Command) -> Self {
        match command {
            Command::CommandGetCatalogs(asked) => Self::Metadata(Metadata::Catalogs(asked)),
            Command::CommandGetDbSchemas(asked) => Self::Metadata(Metadata::DbSchemas(asked)),
            Command::CommandGetTables(asked) => Self::Metadata(Metadata::Tables(asked)),
            Command::CommandGetTableTypes(asked) => Self::Metadata(Metadata::TableTypes(asked)),
            Command::CommandGetPrimaryKeys(asked) => Self::Metadata(Metadata::PrimaryKeys(asked)),
            Command::CommandGetExportedKeys(asked) => Self::Metadata(Metadata::ExportedKeys(asked)),
            Command::CommandGetImportedKeys(asked) => Self::Metadata(Metadata::ImportedKeys(asked)),
            Command::CommandGetCrossReference(asked) => Self::Metadata(Metadata::CrossReference(asked)),
            Command::CommandGetXdbcTypeInfo(asked) => Self::Metadata(Metadata::XdbcTypeInfo(asked)),
            Command::CommandGetSqlInfo(asked) => Self::Metadata(Metadata::SqlInfo(asked)),
            Command::CommandStatementQuery(asked) => Self::Query(asked),
            Command::CommandStatementUpdate(asked) => Self::Update(asked),
            Command::CommandPreparedStatementQuery(asked) => Self::PreparedQuery(asked),
            Command::CommandPreparedStatementUpdate(asked) => Self::PreparedUpdate(asked),
            Command::CommandStatementIngest(asked) => Self::Ingest(asked),
            Command::TicketStatementQuery(asked) => Self::Ticket(asked),
            Command::CommandStatementSubstraitPlan(_) => Self::Substrait,
            Command::ActionBeginSavepointRequest(_)
            | Command::ActionBeginSavepointResult(_)
            | Command::ActionBeginTransactionRequest(_)
            | Command::ActionBeginTransactionResult(_)
            | Command::ActionCancelQueryRequest(_)
            | Command::ActionCancelQueryResult(_)
            | Command::ActionClosePreparedStatementRequest(_)
            | Command::ActionCreatePreparedStatementRequest(_)
            | Command::ActionCreatePreparedStatementResult(_)
            | Command::ActionCreatePreparedSubstraitPlanRequest(_)
            | Command::ActionEndSavepointRequest(_)
            | Command::ActionEndTransactionRequest(_)
            | Command::DoPutPreparedStatementResult(_)
            | Command::DoPutUpdateResult(_)
            | Command::Unknown(_) => Self::OfAction(command.type_url().to_string()),
        }
    }
}

/// What a ticket notes beside its statement.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Note {
    /// The statement ran when its FlightInfo was asked for, and has no rows.
    Done,
    /// A text of plain Flight's.
    Text,
    Query {
        transaction: Option<Handle>,
    },
    Prepared {
        handle: Handle,
        binding: u64,
        carried: Option<Carried>,
    },
}

/// What a ticket carries of its prepared statement beside the text, so that it is good when that is closed.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Carried {
    transaction: Option<Handle>,
    /// The bound values, as an IPC stream in base64.
    values: Option<String>,
}

impl Note {
    fn text(&self) -> Result<Option<String>> {
        serde_json::to_string(self).map(Some).map_err(Error::internal)
    }
}

/// What the ticket of a plain text notes.
pub(super) fn text_note() -> Result<Option<String>> {
    Note::Text.text()
}

/// Whether a ticket with this note stands for what ran when its FlightInfo was asked for.
pub(super) fn has_run(note: Option<&str>) -> bool {
    note.is_some_and(|note| serde_json::from_str(note).is_ok_and(|note: Note| note == Note::Done))
}

impl Flight {
    /// GetFlightInfo of a message.
    pub(super) async fn sql_info(&self, identity: &Identity, command: Command, endpoints: usize) -> Result<FlightInfo> {
        let ticket = command.clone().into_any().encode_to_vec();
        match command.into() {
            Asked::Metadata(asked) => metadata_info(&asked, ticket),
            Asked::Query(query) => self.statement_info(identity, &query, endpoints).await,
            Asked::PreparedQuery(query) => self.prepared_info(identity, &query, endpoints).await,
            asked => Err(asked.refused("GetFlightInfo")),
        }
    }

    /// GetSchema of a message.
    pub(super) async fn sql_schema(&self, identity: &Identity, command: Command) -> Result<SchemaRef> {
        match command.into() {
            Asked::Metadata(asked) => Ok(asked.schema()),
            Asked::Query(query) => self.statement_schema(identity, &query).await,
            Asked::PreparedQuery(query) => self.prepared_schema(identity, &query).await,
            asked => Err(asked.refused("GetSchema")),
        }
    }

    /// DoGet of a ticket that is a message.
    pub(super) async fn sql_rows(&self, identity: &Identity, command: Command) -> Result<RecordBatchStream> {
        match command.into() {
            Asked::Metadata(asked) => self.metadata(identity, asked).await,
            Asked::Query(query) => self.statement_rows(identity, &query).await,
            Asked::PreparedQuery(query) => self.prepared_rows(identity, &query).await,
            Asked::Ticket(TicketStatementQuery { statement_handle }) => {
                match self.authenticator.read_ticket(identity, &statement_handle)? {
                    Some(_) => Box::pin(self.get(identity, &statement_handle)).await,
                    None => Err(Error::invalid("the TicketStatementQuery is not one that GetFlightInfo handed out")),
                }
            }
            asked => Err(asked.refused("DoGet")),
        }
    }

    /// DoGet of a ticket that [`Self::sql_info`] handed out.
    pub(super) async fn sql_noted(&self, identity: &Identity, sql: &str, note: &str) -> Result<RecordBatchStream> {
        match serde_json::from_str(note).map_err(Error::internal)? {
            Note::Done => Ok(nothing()),
            Note::Text => self.text_rows(identity, sql).await,
            Note::Query { transaction } => {
                let ask = Ask { sql: sql.to_string(), ..self.sessions.place(identity, transaction)? };
                self.engine.answer(&identity.rights, &ask).await
            }
            Note::Prepared { handle, binding, carried } => {
                self.prepared_noted(identity, sql, (handle, binding), carried).await
            }
        }
    }

    /// DoPut of a message.
    pub(super) async fn sql_put(&self, command: Command, upload: Upload, caller: &Caller) -> Result<PutResult> {
        let identity = &caller.identity;
        match command.into() {
            Asked::Update(update) => self.statement_update(identity, &update).await.map(updated),
            Asked::PreparedUpdate(update) => self.prepared_update(identity, update, upload).await.map(updated),
            Asked::PreparedQuery(query) => {
                let bound = self.bind_prepared(identity, query, upload).await?;
                Ok(PutResult { app_metadata: bound.encode_to_vec().into() })
            }
            Asked::Ingest(ingest) => self.ingest(ingest, upload, caller).await.map(updated),
            asked => Err(asked.refused("DoPut")),
        }
    }

    /// An action of Flight SQL's; nothing where it is another one. Bodies and results are wrapped in a google.protobuf.Any.
    pub(super) async fn sql_action(
        &self,
        identity: &Identity,
        name: &str,
        body: &[u8],
    ) -> Result<Option<Vec<Vec<u8>>>> {
        let one = |result: Any| Ok(Some(vec![result.encode_to_vec()]));
        match name {
            "BeginTransaction" => {
                // Some clients send no body.
                if !body.is_empty() {
                    request::<ActionBeginTransactionRequest>(name, body)?;
                }
                one(self.begin_transaction(identity).await?.as_any())
            }
            "EndTransaction" => {
                self.end_transaction(identity, &request(name, body)?).await?;
                Ok(Some(Vec::new()))
            }
            "BeginSavepoint" | "EndSavepoint" => Err(statement::no_savepoints()),
            "CreatePreparedStatement" => one(self.create_prepared(identity, request(name, body)?).await?.as_any()),
            "CreatePreparedSubstraitPlan" => Err(Asked::Substrait.refused("DoAction")),
            "ClosePreparedStatement" => {
                let asked: ActionClosePreparedStatementRequest = request(name, body)?;
                self.sessions.close_prepared(identity, &asked.prepared_statement_handle)?;
                Ok(Some(Vec::new()))
            }
            "CancelQuery" => one(self.cancel_query(identity, &request(name, body)?)?.as_any()),
            _ => Ok(None),
        }
    }
}

fn request<M: ProstMessageExt>(action: &str, body: &[u8]) -> Result<M> {
    let malformed = |why: String| malformed(action, body, &why);
    let any = Any::decode(body).map_err(|error| malformed(error.to_string()))?;
    let unpacked = any.unpack().map_err(|error| malformed(error.to_string()))?;
    unpacked.ok_or_else(|| malformed(format!("it is {}, and not {}", any.type_url, M::type_url())))
}

/// The transaction that a message names.
fn named(transaction: Option<&[u8]>) -> Result<Option<Handle>> {
    let Some(bytes) = transaction.filter(|bytes| !bytes.is_empty()) else { return Ok(None) };
    Handle::from_bytes(bytes).map(Some).ok_or_else(|| Error::NotFound("no such transaction: it is none of ours".into()))
}

impl Asked {
    fn refused(&self, rpc: &str) -> Error {
        let (name, does) = match self {
            Self::Substrait => {
                return Error::Unsupported("Substrait plans are not served; send the statement as SQL".into());
            }
            Self::Metadata(_) => ("a metadata command", "is answered by GetFlightInfo and DoGet"),
            Self::Query(_) => ("CommandStatementQuery", "is answered by GetFlightInfo and DoGet"),
            Self::Update(_) => ("CommandStatementUpdate", "is answered by DoPut"),
            Self::PreparedQuery(_) => {
                ("CommandPreparedStatementQuery", "is answered by DoPut, GetFlightInfo and DoGet")
            }
            Self::PreparedUpdate(_) => ("CommandPreparedStatementUpdate", "is answered by DoPut"),
            Self::Ingest(_) => ("CommandStatementIngest", "is answered by DoPut"),
            Self::Ticket(_) => ("TicketStatementQuery", "is answered by DoGet"),
            Self::OfAction(name) => (name.as_str(), "is no command"),
        };
        Error::Unsupported(format!("{rpc} does not serve this message of Flight SQL: {name} {does}"))
    }
}

/// The ticket of a metadata command is the command itself.
fn metadata_info(asked: &Metadata, ticket: Vec<u8>) -> Result<FlightInfo> {
    let endpoint = arrow_flight::FlightEndpoint::new().with_ticket(arrow_flight::Ticket::new(ticket));
    let mut info = FlightInfo::new().with_endpoint(endpoint).with_total_records(-1);
    info.schema = crate::wire::schema_bytes(&asked.schema())?;
    Ok(info)
}

/// What a statement without rows answers.
fn nothing() -> RecordBatchStream {
    RecordBatchStream::from_batches(Arc::new(Schema::empty()), Vec::new())
}

fn updated(record_count: i64) -> PutResult {
    PutResult { app_metadata: DoPutUpdateResult { record_count }.encode_to_vec().into() }
}
