//! DoAction and ListActions. Bodies of our own actions are JSON; an unknown key is an error that names it.

use arrow_flight::{
    ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, RenewFlightEndpointRequest, Ticket,
};
use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use prost::Message;
use serde::{Deserialize, de::DeserializeOwned};

use super::{info::timestamp, service::Flight};
use crate::{
    auth::Identity,
    error::{Error, Result},
    transfer::{self, Transfer},
};

type Results = BoxStream<'static, Result<Bytes>>;

/// Every action and what ListActions says of it.
const ACTIONS: [(&str, &str); 6] = [
    (
        "add_exchange",
        "registers an exchanger; body: {\"name\": text, \"sql\": one SELECT over the relation input, \"description\"?: text}",
    ),
    ("drop_exchange", "forgets a registered exchanger; body: {\"name\": text}"),
    ("list_exchanges", "one JSON result per exchanger: {\"name\", \"kind\", \"description\"}; no body"),
    (
        "transfer",
        "pulls a table or query from another server into a table here; body: {\"from\": location, \"username\"?: text, \
         \"password\"?: text, \"table\" | \"query\": text, \"to\"?: table, \"mode\"?: \"create\" | \"append\" | \"replace\", \
         \"verify\"?: bool, \"endpoints\"?: number of connections}; results: {\"rows\", \"bytes\", \"seconds\", \"done\"}, the last with \"verified\" and \"hash\"",
    ),
    ("CancelFlightInfo", "ends the stream that a ticket of GetFlightInfo started; body: CancelFlightInfoRequest"),
    ("RenewFlightEndpoint", "a ticket with a new expiration time; body: RenewFlightEndpointRequest"),
];

pub(super) fn list() -> Vec<ActionType> {
    let described = ACTIONS.iter();
    described.map(|(name, text)| ActionType { r#type: name.to_string(), description: text.to_string() }).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddExchange {
    name: String,
    sql: String,
    description: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DropExchange {
    name: String,
}

impl Flight {
    pub(super) async fn action(&self, identity: &Identity, name: &str, body: &[u8]) -> Result<Results> {
        match name {
            "add_exchange" => {
                let AddExchange { name, sql, description } = json(name, body)?;
                self.exchangers.add_sql(&name, &sql, description).await?;
                Ok(one(format!("registered exchanger {name}")))
            }
            "drop_exchange" => {
                let DropExchange { name } = json(name, body)?;
                self.exchangers.remove(&name)?;
                Ok(one(format!("dropped exchanger {name}")))
            }
            "list_exchanges" => {
                let listed = self.exchangers.list().into_iter();
                let results: Vec<_> = listed.map(|entry| to_json(&entry)).collect();
                Ok(stream::iter(results).boxed())
            }
            "transfer" => {
                let request: transfer::Request = json(name, body)?;
                let progress = Transfer::new(request)?.run(self.engine.clone(), self.metrics.clone());
                Ok(progress.map(|step| step.and_then(|step| to_json(&step))).boxed())
            }
            "CancelFlightInfo" => {
                let request: CancelFlightInfoRequest = protobuf(name, body)?;
                let endpoints = request.info.map(|info| info.endpoint).unwrap_or_default();
                let mut status = CancelStatus::NotCancellable;
                for ticket in endpoints.into_iter().filter_map(|endpoint| endpoint.ticket) {
                    let id = self.ticket_claims(identity, &ticket)?.id;
                    if self.running.cancel(&id) || self.shared.cancel(&id) {
                        status = CancelStatus::Cancelled;
                    }
                }
                Ok(one(CancelFlightInfoResult::new(status).encode_to_vec()))
            }
            "RenewFlightEndpoint" => {
                let request: RenewFlightEndpointRequest = protobuf(name, body)?;
                let mut endpoint = request.endpoint.ok_or_else(|| Error::invalid("the body has no endpoint"))?;
                let ticket = endpoint.ticket.take().ok_or_else(|| Error::invalid("the endpoint has no ticket"))?;
                let claims = self.ticket_claims(identity, &ticket)?;
                if claims.place.is_some() {
                    // It would outlive what is known of its result, and then read all of it again.
                    return Err(Error::Unsupported(
                        "an endpoint of several cannot be renewed; ask GetFlightInfo again".into(),
                    ));
                }
                let (tickets, life) = self.authenticator.tickets(identity, &claims.sql, 1)?;
                endpoint.ticket = tickets.into_iter().next().map(Ticket::new);
                endpoint.expiration_time = Some(timestamp(life));
                Ok(one(endpoint.encode_to_vec()))
            }
            unknown => {
                let known: Vec<&str> = ACTIONS.iter().map(|(name, _)| *name).collect();
                Err(Error::NotFound(format!("action \"{unknown}\" not found; there are {}", known.join(", "))))
            }
        }
    }

    fn ticket_claims(&self, identity: &Identity, ticket: &Ticket) -> Result<crate::auth::TicketClaims> {
        let claims = self.authenticator.read_ticket(identity, &ticket.ticket)?;
        claims.ok_or_else(|| Error::invalid("the ticket is not one that GetFlightInfo handed out"))
    }
}

fn json<T: DeserializeOwned>(action: &str, body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| Error::invalid(format!("the body of {action} is malformed: {error}")))
}

fn protobuf<T: Message + Default>(action: &str, body: &[u8]) -> Result<T> {
    T::decode(body).map_err(|error| Error::invalid(format!("the body of {action} is malformed: {error}")))
}

fn to_json(value: &impl serde::Serialize) -> Result<Bytes> {
    serde_json::to_vec(value).map(Bytes::from).map_err(Error::internal)
}

fn one(result: impl Into<Bytes>) -> Results {
    stream::iter([Ok(result.into())]).boxed()
}
