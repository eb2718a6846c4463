//! The FlightService trait: each method a few lines.

use std::sync::Arc;

use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, SchemaResult, Ticket, flight_service_server::FlightService,
};
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use http::{Extensions, HeaderMap};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{action, handshake, running::Running, session::SET_SESSION_OPTIONS, shared::SharedResults};
use crate::{
    auth::{Authenticator, Identity, SESSION_COOKIE},
    client::{ENDPOINTS_HEADER, EXCHANGE_HEADER, TYPES_HEADER},
    config::{Config, LosslessTypes, MAX_ENDPOINTS},
    engine::{Engine, plain_types},
    error::Error,
    exchange::{Chain, Registry, within},
    session::Sessions,
    stream::{RecordBatchStream, batch_bytes},
    telemetry::{Call, Direction, Metrics},
    wire::{self, Budget, COMPRESSION_HEADER, END_HEADER, EndRule, Sending},
};

type Answer<T> = Result<Response<T>, Status>;
type Items<T> = BoxStream<'static, Result<T, Status>>;

/// Everything an RPC needs. Cheap to clone.
#[derive(Clone)]
pub struct Flight {
    pub(super) engine: Arc<Engine>,
    pub(super) authenticator: Authenticator,
    pub(super) exchangers: Registry,
    pub(super) running: Running,
    pub(super) shared: SharedResults,
    pub(super) sessions: Sessions,
    pub(super) config: Arc<Config>,
    pub(super) metrics: Metrics,
    /// What all messages that come in may hold: of clients, and of servers that are pulled from.
    pub(super) budget: Budget,
}

impl Flight {
    pub fn new(
        config: &Config,
        engine: Arc<Engine>,
        authenticator: Authenticator,
        exchangers: Registry,
        metrics: Metrics,
    ) -> Self {
        let shared = SharedResults::new(config.limits.shared_results);
        let sessions = Sessions::new(&config.session, engine.clone(), metrics.clone());
        let running = Running::new(config.auth.token_ttl.0);
        let budget = Budget::new(&config.limits, metrics.clone());
        let config = Arc::new(config.clone());
        Self { engine, authenticator, exchangers, running, shared, sessions, config, metrics, budget }
    }

    /// How the answers of a call are to be sent: as configured, or as its headers ask.
    pub(super) fn sending(&self, headers: &HeaderMap) -> Result<Sending, Error> {
        let mut compression = self.config.wire.compression;
        if let Some(asked) = headers.get(COMPRESSION_HEADER) {
            let word = asked.to_str().unwrap_or_default();
            compression =
                word.parse().map_err(|why| Error::invalid(format!("the header {COMPRESSION_HEADER} {why}")))?;
        }
        Ok(Sending { message_size: self.config.limits.send_message_size, compression })
    }

    /// Who calls, with the form of types that the call's header asks for. Where the configuration gives extension types to
    /// nobody, asking for them changes nothing.
    pub(super) fn caller(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<Caller, Status> {
        let mut caller = Caller::of(extensions)?;
        let Some(asked) = headers.get(TYPES_HEADER) else { return Ok(caller) };
        caller.identity.lossless = match asked.to_str().map(str::to_lowercase).as_deref() {
            Ok("lossless") => Some(true).filter(|_| self.config.database.lossless_types != LosslessTypes::Off),
            Ok("plain") => Some(false),
            _ => {
                let why = format!("the header {TYPES_HEADER} must be lossless or plain");
                return Err(Error::invalid(why).into_status());
            }
        };
        Ok(caller)
    }

    /// Whether types leave for this caller in forms that lose nothing: as the call asks, or its ticket says, or its session.
    pub(super) fn is_lossless(&self, identity: &Identity) -> bool {
        let by_default = self.config.database.lossless_types == LosslessTypes::On;
        identity.lossless.or_else(|| self.sessions.settings(identity).lossless).unwrap_or(by_default)
    }

    /// How many endpoints GetFlightInfo is to answer: as configured, or as its headers ask.
    fn endpoints(&self, headers: &HeaderMap) -> Result<usize, Error> {
        let Some(asked) = headers.get(ENDPOINTS_HEADER) else { return Ok(self.config.limits.endpoints) };
        let count = asked.to_str().ok().and_then(|count| count.parse().ok());
        count.filter(|count| (1..=MAX_ENDPOINTS).contains(count)).ok_or_else(|| {
            Error::invalid(format!("the header {ENDPOINTS_HEADER} must be a whole number from 1 to {MAX_ENDPOINTS}"))
        })
    }

    /// What DoGet answers, or DoPut stores: passed through the exchangers that the call's header names.
    pub(super) async fn through(
        &self,
        caller: &Caller,
        chain: Option<Chain>,
        rows: RecordBatchStream,
    ) -> Result<RecordBatchStream, Error> {
        match chain {
            Some(chain) => self.exchangers.run(&caller.identity.rights, &chain, rows, true).await,
            None => Ok(rows),
        }
    }

    /// What DoGet answers.
    pub(super) async fn rows(
        &self,
        caller: &Caller,
        ticket: &[u8],
        chain: Option<Chain>,
    ) -> Result<RecordBatchStream, Error> {
        let exchanged = chain.is_some();
        let mut identity = caller.identity.clone();
        if exchanged {
            // What an exchanger works on does not depend on who takes its answer.
            identity.lossless = Some(true);
        }
        let rows = async { self.through(caller, chain, self.get(&identity, ticket).await?).await };
        let mut rows = caller.call.noting(rows.await)?;
        if exchanged {
            // They were counted before they were exchanged.
            rows = within(caller.identity.rights.allowance, rows);
            if !self.is_lossless(&caller.identity) {
                rows = plain_types(rows);
            }
        }
        Ok(counted(&caller.call, Direction::Sent, rows))
    }
}

/// The exchangers that a call's header names.
pub(super) fn chain(headers: &HeaderMap) -> Result<Option<Chain>, Error> {
    let Some(asked) = headers.get(EXCHANGE_HEADER) else { return Ok(None) };
    let text = asked.to_str();
    let text =
        text.map_err(|_| Error::invalid(format!("the header {EXCHANGE_HEADER} is not ASCII; JSON has \\u escapes")))?;
    Chain::parse(text).map(Some)
}

/// Whether a DoPut's header announces an explicit end.
pub(super) fn end(headers: &HeaderMap) -> Result<Option<EndRule>, Error> {
    EndRule::of(headers.get(END_HEADER).map(|value| value.as_bytes()))
}

/// The standard answer of DoGet and DoExchange: schema, then batches.
fn standard(output: RecordBatchStream, sending: Sending) -> Items<FlightData> {
    wire::encode(output, sending, None).map_err(Status::from).boxed()
}

/// Counts what moves, for the call and for the server.
pub(super) fn counted(call: &Call, direction: Direction, stream: RecordBatchStream) -> RecordBatchStream {
    let call = call.clone();
    stream.inspect(move |batch| call.moved(direction, batch.num_rows() as u64, batch_bytes(batch)))
}

/// Who calls, and the call itself.
pub(super) struct Caller {
    pub(super) identity: Identity,
    pub(super) call: Call,
}

impl Caller {
    /// The layers in front have put both there; a call that reaches us without an identity is not let through.
    pub(super) fn of(extensions: &Extensions) -> Result<Self, Status> {
        let identity = extensions.get::<Identity>().cloned();
        let call = extensions.get::<Call>().cloned();
        Ok(Self {
            identity: identity
                .ok_or_else(|| Error::Unauthenticated("log in first: the call has no identity".into()).into_status())?,
            call: call.ok_or_else(|| Error::internal("the call is followed by nobody").into_status())?,
        })
    }
}

/// What a broken request stream means here.
pub(super) fn broken(status: &Status) -> Error {
    if let Some(ours) = Error::carried_by(status) {
        return ours;
    }
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => {
            Error::Limit { what: status.message().to_string(), key: "limits.max_message_size" }
        }
        Code::Cancelled | Code::Unknown => Error::Cancelled,
        _ => Error::Stream(status.message().to_string()),
    }
}

#[tonic::async_trait]
impl FlightService for Flight {
    type HandshakeStream = Items<HandshakeResponse>;
    type ListFlightsStream = Items<FlightInfo>;
    type DoGetStream = Items<FlightData>;
    type DoPutStream = Items<PutResult>;
    type DoExchangeStream = Items<FlightData>;
    type DoActionStream = Items<arrow_flight::Result>;
    type ListActionsStream = Items<ActionType>;

    async fn handshake(&self, request: Request<Streaming<HandshakeRequest>>) -> Answer<Self::HandshakeStream> {
        let identity = request.extensions().get::<Identity>().cloned();
        let address = request.extensions().get::<Call>().and_then(Call::address);
        Ok(handshake::handshake(&self.authenticator, identity.as_ref(), address, request.into_inner()).await?)
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        let Caller { identity, call } = self.caller(request.metadata().as_ref(), request.extensions())?;
        identity.may_begin()?;
        let flights = call.noting(self.list(&identity, &request.into_inner().expression).await)?;
        Ok(Response::new(flights.map_err(Status::from).boxed()))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        let Caller { identity, call } = self.caller(request.metadata().as_ref(), request.extensions())?;
        let endpoints = self.endpoints(request.metadata().as_ref())?;
        Ok(Response::new(call.noting(self.info(&identity, request.into_inner(), endpoints).await)?))
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<PollInfo> {
        let Caller { identity, call } = self.caller(request.metadata().as_ref(), request.extensions())?;
        let endpoints = self.endpoints(request.metadata().as_ref())?;
        Ok(Response::new(call.noting(self.poll(&identity, request.into_inner(), endpoints).await)?))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        let Caller { identity, call } = self.caller(request.metadata().as_ref(), request.extensions())?;
        Ok(Response::new(call.noting(self.schema(&identity, request.get_ref()).await)?))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Answer<Self::DoGetStream> {
        let caller = self.caller(request.metadata().as_ref(), request.extensions())?;
        let sending = self.sending(request.metadata().as_ref())?;
        let chain = chain(request.metadata().as_ref())?;
        let rows = self.rows(&caller, &request.into_inner().ticket, chain).await?;
        Ok(Response::new(standard(rows, sending)))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        let (flight, caller) = (self.clone(), self.caller(request.metadata().as_ref(), request.extensions())?);
        let (chain, end) = (chain(request.metadata().as_ref())?, end(request.metadata().as_ref())?);
        // The answer's headers go out at once: some clients read them before they send.
        let answer = stream::once(async move {
            let upload = wire::open(request.into_inner(), broken).await?.require_end(end);
            Ok(flight.put(upload, &caller, chain).await?)
        });
        Ok(Response::new(answer.boxed()))
    }

    async fn do_exchange(&self, request: Request<Streaming<FlightData>>) -> Answer<Self::DoExchangeStream> {
        let (flight, caller) = (self.clone(), self.caller(request.metadata().as_ref(), request.extensions())?);
        let sending = self.sending(request.metadata().as_ref())?;
        let answer = async move {
            let upload = wire::open(request.into_inner(), broken).await?;
            Ok::<_, Status>(standard(flight.exchange(upload, &caller).await?, sending))
        };
        let answer = stream::once(answer).flat_map(|started| match started {
            Ok(messages) => messages,
            Err(status) => stream::iter([Err(status)]).boxed(),
        });
        Ok(Response::new(answer.boxed()))
    }

    async fn do_action(&self, request: Request<Action>) -> Answer<Self::DoActionStream> {
        let Caller { mut identity, call } = self.caller(request.metadata().as_ref(), request.extensions())?;
        let Action { r#type, body } = request.into_inner();
        call.set_action(&r#type);
        let cookie = match r#type.as_str() {
            SET_SESSION_OPTIONS => self.sessions.open(&mut identity)?,
            _ => None,
        };
        let results = call.noting(self.action(&identity, &r#type, &body).await)?;
        if cookie.is_some() {
            self.sessions.mirror(&identity)?;
        }
        let results = results.map(|result| result.map(arrow_flight::Result::new).map_err(Status::from));
        let mut response = Response::new(results.boxed());
        if let Some(cookie) = cookie {
            let cookie = format!("{SESSION_COOKIE}={cookie}; HttpOnly").parse().map_err(Error::internal)?;
            response.metadata_mut().insert("set-cookie", cookie);
        }
        Ok(response)
    }

    async fn list_actions(&self, request: Request<Empty>) -> Answer<Self::ListActionsStream> {
        let Caller { identity, call: _ } = self.caller(request.metadata().as_ref(), request.extensions())?;
        Ok(Response::new(stream::iter(action::list(&identity.rights).into_iter().map(Ok)).boxed()))
    }
}
