//! DoAction and ListActions. Bodies of our own actions are JSON; an unknown key is an error that names it.

use std::collections::BTreeSet;

use arrow_flight::{
    ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo, RenewFlightEndpointRequest,
    Ticket,
};
use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use prost::Message;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;

use super::{
    command::is_pickle,
    info::timestamp,
    service::Flight,
    session::{
        CloseSessionRequest, CloseSessionResult, CloseSessionStatus, GET_SESSION_OPTIONS, GetSessionOptionsRequest,
        SET_SESSION_OPTIONS, SetSessionOptionsRequest,
    },
};
use crate::{
    access::{Issuer, Principal, Rights, Role},
    auth::Identity,
    client::Trust,
    engine::{Kill, RunningStatement},
    error::{Error, Result},
    exchange::{BodyError, Registration},
    session::Listed,
    transfer::{self, Transfer},
};

type Results = BoxStream<'static, Result<Bytes>>;

struct Described {
    name: &'static str,
    /// The least that may call it.
    role: Role,
    /// What ListActions says of it.
    text: &'static str,
}

/// Every action. What an action touches may need more than the role: a grant on the table of a transfer.
const ACTIONS: [Described; 21] = [
    Described {
        name: "add_exchange",
        role: Role::Writer,
        text: "registers an exchanger; body: {\"name\": text, \"sql\": one SELECT over the relation input | \"wasm\": a module in base64, \
         \"description\"?: text, \"params\"?: {name: default | {\"type\": text, \"default\"?: value}}, \"replace\"?: bool}; \
         result: {\"name\", \"version\"}",
    },
    Described {
        name: "drop_exchange",
        role: Role::Writer,
        text: "forgets a registered exchanger; body: {\"name\": NAME, or NAME@VERSION}",
    },
    Described {
        name: "list_exchanges",
        role: Role::Reader,
        text: "one JSON result per version of an exchanger: {\"name\", \"version\", \"kind\", \"description\", \"owner\", \"input\", \"output\", \
         \"streams\", \"params\", \"uses\", \"running\", \"failed\", \"rows_in\", \"rows_out\", \"bytes_in\", \"bytes_out\", \"retired\"? (replaced or dropped, and \
         still in use), \"broken\"?}; no body",
    },
    Described {
        name: "transfer",
        role: Role::Writer,
        text: "pulls a table or query from another server into a table here; body: {\"from\": location, \"username\"?: text, \
         \"password\"?: text, \"table\" | \"query\": text, \"to\"?: table, \"mode\"?: \"create\" | \"append\" | \"replace\" (the \
         rows of a table that stays), \"force\"?: bool (replace creates a table anew that the columns do not fit), \"verify\"?: bool, \"endpoints\"?: number of connections, \"exchange\"?: exchangers that the rows pass before they are stored}; results: {\"rows\", \"bytes\", \"seconds\", \"done\"}, the last with \"verified\" and \"hash\"",
    },
    Described {
        name: "queries",
        role: Role::Reader,
        text: "statements and exchanges that run or wait: {\"id\", \"user\", \"issuer\", \"class\", \"text\" (literals are ?), \"seconds\", \"queued\", \"ending\" (asked to, and not there yet), \"rows\"}; \
         all for admins, the caller's own for others; no body",
    },
    Described {
        name: "kill",
        role: Role::Reader,
        text: "ends statements and exchanges; body: {\"query\": id} or {\"user\": name, \"issuer\"?: who vouches for the name}; anybody's for admins, the caller's own for others; \
         result: {\"ended\": how many}",
    },
    Described {
        name: "sessions",
        role: Role::Admin,
        text: "users that have called within a token's life: {\"user\", \"issuer\", \"idle_seconds\", \"queries\", \"transactions\", \"prepared_statements\"}; no body",
    },
    Described {
        name: "backup",
        role: Role::Admin,
        text: "writes a consistent copy of the database into the server's database.backup_directory, verified; no body; \
         results: {\"schema\", \"table\", \"rows\", \"hash\"} per table, then {\"file\", \"bytes\", \"tables\", \"rows\", \"verified\"}",
    },
    Described {
        name: "CancelFlightInfo",
        role: Role::Reader,
        text: "ends the stream that a ticket of GetFlightInfo started; body: CancelFlightInfoRequest",
    },
    Described {
        name: "CloseSession",
        role: Role::Reader,
        text: "ends the caller's login: its bearer tokens are not good any more; body: CloseSessionRequest",
    },
    Described {
        name: "RenewFlightEndpoint",
        role: Role::Reader,
        text: "a ticket with a new expiration time; body: RenewFlightEndpointRequest",
    },
    Described {
        name: "BeginTransaction",
        role: Role::Reader,
        text: "begins a transaction; body: ActionBeginTransactionRequest, as Flight SQL wraps it; result: its handle",
    },
    Described {
        name: "EndTransaction",
        role: Role::Reader,
        text: "commits it or rolls it back; body: ActionEndTransactionRequest",
    },
    Described { name: "BeginSavepoint", role: Role::Reader, text: "answers that DuckDB has no savepoints" },
    Described { name: "EndSavepoint", role: Role::Reader, text: "answers that DuckDB has no savepoints" },
    Described {
        name: "CreatePreparedStatement",
        role: Role::Reader,
        text: "keeps a statement; body: ActionCreatePreparedStatementRequest; result: its handle and schemas",
    },
    Described {
        name: "CreatePreparedSubstraitPlan",
        role: Role::Reader,
        text: "answers that Substrait plans are not served",
    },
    Described {
        name: "ClosePreparedStatement",
        role: Role::Reader,
        text: "forgets a statement that was kept; body: ActionClosePreparedStatementRequest",
    },
    Described {
        name: "CancelQuery",
        role: Role::Reader,
        text: "as CancelFlightInfo, for older clients; body: ActionCancelQueryRequest",
    },
    Described {
        name: "SetSessionOptions",
        role: Role::Reader,
        text: "sets catalog, schema, timezone, lossless_types, batch_rows; body: SetSessionOptionsRequest",
    },
    Described {
        name: "GetSessionOptions",
        role: Role::Reader,
        text: "the options of the caller's session; body: GetSessionOptionsRequest",
    },
];

/// The actions that are answered for an open transaction, and to end what is there, while the server drains.
const ENDING: [&str; 12] = [
    // It is empty, and stays so: clients that begin the next one with each commit would take that for failed.
    "BeginTransaction",
    "queries",
    "kill",
    "CancelFlightInfo",
    "CancelQuery",
    "CloseSession",
    "EndTransaction",
    "CreatePreparedStatement",
    "ClosePreparedStatement",
    "RenewFlightEndpoint",
    SET_SESSION_OPTIONS,
    GET_SESSION_OPTIONS,
];

/// The actions that the caller may call.
pub(super) fn list(rights: &Rights) -> Vec<ActionType> {
    let described = ACTIONS.iter().filter(|action| rights.role >= action.role);
    described.map(|action| ActionType { r#type: action.name.into(), description: action.text.into() }).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DropExchange {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KillRequest {
    query: Option<u64>,
    user: Option<String>,
    issuer: Option<String>,
}

impl Flight {
    /// Who is meant by a name: the principal of that issuer, or the only one of that name who does or keeps something.
    fn named(&self, identity: &Identity, name: String, issuer: Option<String>) -> Result<Principal> {
        let is_meant = |principal: &Principal| {
            principal.name == name && issuer.as_ref().is_none_or(|issuer| principal.issuer.to_string() == *issuer)
        };
        let own = identity.principal();
        if identity.rights.role < Role::Admin {
            // They end only what is their own, and are told nothing of others.
            return Ok(if is_meant(&own) { own } else { Principal { issuer: Issuer::Users, name } });
        }
        let used = self.authenticator.used().into_iter().map(|(principal, _)| principal);
        let kept = self.sessions.list().into_iter().map(|kept| kept.principal);
        let all = self.engine.principals().into_iter().chain(used).chain(kept).chain([own]);
        let known: BTreeSet<Principal> = all.filter(is_meant).collect();
        let known: Vec<Principal> = known.into_iter().collect();
        match known.as_slice() {
            [one] => Ok(one.clone()),
            [] => Ok(Principal { issuer: Issuer::Users, name }),
            several => {
                let issuers: Vec<String> = several.iter().map(|principal| principal.issuer.to_string()).collect();
                Err(Error::invalid(format!(
                    "several principals are called \"{name}\"; add \"issuer\", which is one of {}",
                    issuers.join(", ")
                )))
            }
        }
    }

    pub(super) async fn action(&self, identity: &Identity, name: &str, body: &[u8]) -> Result<Results> {
        let known = ACTIONS.iter().find(|action| action.name == name);
        let Some(known) = known else {
            let names: Vec<&str> = ACTIONS.iter().map(|action| action.name).collect();
            return Err(Error::NotFound(format!("action \"{name}\" not found; there are {}", names.join(", "))));
        };
        identity.rights.require(known.role, name)?;
        if !ENDING.contains(&name) {
            identity.may_begin()?;
        }
        match name {
            "add_exchange" => {
                let registration = Registration::read(body).map_err(|error| match error {
                    BodyError::Malformed(why) => malformed(name, body, &why),
                    BodyError::Wrong(error) => error,
                })?;
                let name = registration.name.clone();
                let version = self.exchangers.register(&identity.rights, registration).await?;
                Ok(each([json!({"name": name, "version": version})]))
            }
            "drop_exchange" => {
                let DropExchange { name } = from_json(name, body)?;
                self.exchangers.remove(&identity.rights, &name).await?;
                Ok(one(format!("dropped exchanger {name}")))
            }
            "list_exchanges" => Ok(each(self.exchangers.list(&identity.rights))),
            "transfer" => {
                let request: transfer::Request = from_json(name, body)?;
                // No certificate is shown: the server's own identity is not its clients' to use.
                let trust = Trust { ca: self.config.tls.peer_ca.clone(), identity: None };
                let transfer = Transfer::new(&identity.rights, request)?
                    .trusting(trust)
                    .receiving(self.config.limits.max_message_size, self.budget.clone());
                let progress = transfer.run(self.engine.clone(), self.exchangers.clone(), self.metrics.clone());
                Ok(progress.map(|step| step.and_then(|step| to_json(&step))).boxed())
            }
            "queries" => {
                let seen = |query: &RunningStatement| {
                    identity.rights.role >= Role::Admin || query.is_of(&identity.principal())
                };
                let queries = self.engine.statements().await?;
                Ok(each(queries.iter().filter(|query| seen(query))))
            }
            "kill" => {
                let which = match from_json(name, body)? {
                    KillRequest { query: Some(id), user: None, issuer: None } => Kill::Statement(id),
                    KillRequest { query: None, user: Some(user), issuer } => {
                        Kill::Of(self.named(identity, user, issuer)?)
                    }
                    _ => return Err(Error::invalid("the body of kill needs query, or user and perhaps issuer")),
                };
                let ended = self.engine.kill(&identity.rights, &which);
                if let Kill::Of(principal) = &which
                    && (identity.rights.role >= Role::Admin || *principal == identity.principal())
                {
                    self.sessions.close_of(principal, &identity.principal().to_string());
                }
                if let (0, Kill::Statement(id)) = (ended, &which) {
                    return Err(Error::NotFound(format!("no statement or exchange {id} of yours runs")));
                }
                Ok(each([json!({"ended": ended})]))
            }
            "sessions" => {
                let queries = self.engine.statements().await?;
                let mut kept = self.sessions.list();
                let used = self.authenticator.used().into_iter().map(|(principal, idle)| {
                    let at = kept.iter().position(|kept| kept.principal == principal);
                    let own = at.map_or_else(|| Listed::of(principal), |at| kept.swap_remove(at));
                    Listed { idle_seconds: idle.as_secs_f64(), ..own }
                });
                let mut listed: Vec<Listed> = used.collect();
                // Those whom nobody has to log in.
                listed.append(&mut kept);
                Ok(each(listed.into_iter().map(|Listed { principal, idle_seconds, transactions, prepared_statements }| {
                    let running = queries.iter().filter(|query| query.is_of(&principal)).count();
                    json!({
                        "user": principal.name, "issuer": principal.issuer.to_string(), "idle_seconds": idle_seconds, "queries": running, "transactions": transactions,
                        "prepared_statements": prepared_statements,
                    })
                })))
            }
            "backup" => {
                let made = self.engine.backup(&identity.rights).await?;
                let rows: u64 = made.tables.iter().map(|table| table.rows).sum();
                let last = json!({
                    "file": made.file, "bytes": made.bytes, "tables": made.tables.len(), "rows": rows, "verified": true,
                    "attached": made.attached,
                });
                let mut results: Vec<_> = made.tables.iter().map(to_json).collect();
                results.push(to_json(&last));
                Ok(stream::iter(results).boxed())
            }
            "CancelFlightInfo" => {
                let request: CancelFlightInfoRequest = protobuf(name, body)?;
                let cancelled = self.cancel(identity, request.info.unwrap_or_default())?;
                let status = if cancelled { CancelStatus::Cancelled } else { CancelStatus::NotCancellable };
                Ok(one(CancelFlightInfoResult::new(status).encode_to_vec()))
            }
            "CloseSession" => {
                let CloseSessionRequest {} = protobuf(name, body)?;
                let kept = self.sessions.close(identity);
                let status = match self.authenticator.close_session(identity) || kept {
                    true => CloseSessionStatus::Closed,
                    false => CloseSessionStatus::NotCloseable,
                };
                Ok(one(CloseSessionResult { status: status.into() }.encode_to_vec()))
            }
            "RenewFlightEndpoint" => {
                let request: RenewFlightEndpointRequest = protobuf(name, body)?;
                let mut endpoint = request.endpoint.ok_or_else(|| Error::invalid("the body has no endpoint"))?;
                let ticket = endpoint.ticket.take().ok_or_else(|| Error::invalid("the endpoint has no ticket"))?;
                let claims = self.ticket_claims(identity, &ticket)?;
                if self.running.is_cancelled(&identity.principal(), &claims.id) {
                    return Err(Error::Cancelled);
                }
                if claims.place.is_some() {
                    // It would outlive what is known of its result, and then read all of it again.
                    return Err(Error::Unsupported(
                        "an endpoint of several cannot be renewed; ask GetFlightInfo again".into(),
                    ));
                }
                let (ticket, life) = self.authenticator.renewed_ticket(claims)?;
                endpoint.ticket = Some(Ticket::new(ticket));
                endpoint.expiration_time = Some(timestamp(life));
                Ok(one(endpoint.encode_to_vec()))
            }
            SET_SESSION_OPTIONS => {
                let request: SetSessionOptionsRequest = protobuf(name, body)?;
                Ok(one(self.set_session_options(identity, request).await?.encode_to_vec()))
            }
            GET_SESSION_OPTIONS => {
                let GetSessionOptionsRequest {} = protobuf(name, body)?;
                Ok(one(self.get_session_options(identity).await?.encode_to_vec()))
            }
            other => match self.sql_action(identity, other, body).await? {
                Some(results) => Ok(stream::iter(results.into_iter().map(|result| Ok(result.into()))).boxed()),
                None => Err(Error::internal(format!("nobody answers the action {other}"))),
            },
        }
    }

    /// Ends the streams that the tickets of a FlightInfo started, and lets no more of them start. Whether there was something
    /// to cancel: what has ended is not, and what ran when its FlightInfo was asked for.
    pub(super) fn cancel(&self, identity: &Identity, info: FlightInfo) -> Result<bool> {
        let mut cancelled = false;
        for ticket in info.endpoint.into_iter().filter_map(|endpoint| endpoint.ticket) {
            // A command that is its own ticket has nothing to cancel.
            if let Some(claims) = self.authenticator.read_ticket(identity, &ticket.ticket)? {
                let begun = claims.place.is_some().then(|| self.shared.cancel(&claims.id)).flatten();
                let has_ended = begun == Some(false) || super::sql::has_run(claims.note.as_deref());
                cancelled |= begun == Some(true);
                cancelled |= !has_ended && self.running.cancel(&identity.principal(), &claims.id);
            }
        }
        Ok(cancelled)
    }

    fn ticket_claims(&self, identity: &Identity, ticket: &Ticket) -> Result<crate::auth::TicketClaims> {
        let claims = self.authenticator.read_ticket(identity, &ticket.ticket)?;
        claims.ok_or_else(|| Error::invalid("the ticket is not one that GetFlightInfo handed out"))
    }
}

fn from_json<T: DeserializeOwned>(action: &str, body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| malformed(action, body, &error))
}

fn protobuf<T: Message + Default>(action: &str, body: &[u8]) -> Result<T> {
    T::decode(body).map_err(|error| malformed(action, body, &error))
}

/// Says what the body has to be, beside what is wrong with it.
pub(super) fn malformed(action: &str, body: &[u8], error: &dyn std::fmt::Display) -> Error {
    let described = ACTIONS.iter().find(|known| known.name == action).map_or("", |known| known.text);
    let wanted = described.split_once("body: ").map_or("", |(_, wanted)| wanted);
    let wanted = wanted.split("; result").next().unwrap_or_default();
    if !is_pickle(body) {
        let wanted = if wanted.is_empty() { String::new() } else { format!("; it is {wanted}") };
        return Error::invalid(format!("the body of {action} is malformed: {error}{wanted}"));
    }
    let instead = match action {
        "add_exchange" => {
            "a function becomes SQL or a WebAssembly module (docs/exchangers.md), such as {\"name\": \"doubled\", \"sql\": \
             \"SELECT id, 2 * amount AS amount FROM input\"}; as JSON, "
        }
        _ => "",
    };
    Error::invalid(format!(
        "the body of {action} is a Python pickle, which is never loaded here, because that runs whatever code it names; {instead}the \
         body is {wanted}"
    ))
}

fn to_json(value: &impl serde::Serialize) -> Result<Bytes> {
    serde_json::to_vec(value).map(Bytes::from).map_err(Error::internal)
}

/// One JSON result each.
fn each<T: serde::Serialize>(items: impl IntoIterator<Item = T>) -> Results {
    let results: Vec<_> = items.into_iter().map(|item| to_json(&item)).collect();
    stream::iter(results).boxed()
}

fn one(result: impl Into<Bytes>) -> Results {
    stream::iter([Ok(result.into())]).boxed()
}
