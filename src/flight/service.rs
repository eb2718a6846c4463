//! The FlightService trait: each method a few lines.

use std::sync::Arc;

use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, SchemaResult, Ticket, flight_service_server::FlightService,
};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{action, handshake, running::Running};
use crate::{
    auth::{Authenticator, Identity},
    config::Config,
    engine::Engine,
    error::Error,
    exchange::Registry,
    stream::{RecordBatchStream, batch_bytes},
    telemetry::{Call, Direction, Metrics},
    wire,
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
    config: Arc<Config>,
    pub(super) metrics: Metrics,
}

impl Flight {
    pub fn new(config: &Config, engine: Arc<Engine>, authenticator: Authenticator, metrics: Metrics) -> Self {
        let exchangers = Registry::new(config, metrics.clone());
        let config = Arc::new(config.clone());
        Self { engine, authenticator, exchangers, running: Running::default(), config, metrics }
    }

    /// The standard answer of DoGet and DoExchange: schema, then batches.
    fn answer(&self, output: RecordBatchStream, call: &Call) -> Items<FlightData> {
        let output = counted(call, Direction::Sent, output);
        let messages = wire::encode(output, self.config.limits.send_message_size, None);
        messages.map(|message| message.map_err(Status::from)).boxed()
    }
}

/// Counts what moves, for the call and for the server.
pub(super) fn counted(call: &Call, direction: Direction, stream: RecordBatchStream) -> RecordBatchStream {
    let call = call.clone();
    stream.inspect(move |batch| call.moved(direction, batch.num_rows() as u64, batch_bytes(batch)))
}

/// The layer in front has put it there; a call that reaches us without one is not let through.
fn identity<T>(request: &Request<T>) -> Result<Identity, Status> {
    let missing = || Error::Unauthenticated("log in first: the call has no identity".into()).into_status();
    request.extensions().get::<Identity>().cloned().ok_or_else(missing)
}

/// The outermost layer has put it there.
fn call<T>(request: &Request<T>) -> Result<Call, Status> {
    let missing = || Error::internal("the call is followed by nobody").into_status();
    request.extensions().get::<Call>().cloned().ok_or_else(missing)
}

/// What a broken request stream means here.
fn broken(status: &Status) -> Error {
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
        Ok(handshake::handshake(&self.authenticator, identity.as_ref(), request.into_inner()).await?)
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        let identity = identity(&request)?;
        let flights = self.list(&identity, &request.into_inner().expression).await?;
        Ok(Response::new(stream::iter(flights.into_iter().map(Ok)).boxed()))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        let identity = identity(&request)?;
        Ok(Response::new(self.info(&identity, request.into_inner()).await?))
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<PollInfo> {
        let identity = identity(&request)?;
        Ok(Response::new(self.poll(&identity, request.into_inner()).await?))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        identity(&request)?;
        Ok(Response::new(self.schema(request.get_ref()).await?))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Answer<Self::DoGetStream> {
        let (identity, call) = (identity(&request)?, call(&request)?);
        let output = self.get(&identity, &request.into_inner().ticket).await?;
        Ok(Response::new(self.answer(output, &call)))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        identity(&request)?;
        let (flight, call) = (self.clone(), call(&request)?);
        // The answer's headers go out at once: some clients read them before they send.
        let answer = stream::once(async move {
            let upload = wire::open(request.into_inner(), broken).await?;
            Ok(flight.put(upload, &call).await?)
        });
        Ok(Response::new(answer.boxed()))
    }

    async fn do_exchange(&self, request: Request<Streaming<FlightData>>) -> Answer<Self::DoExchangeStream> {
        identity(&request)?;
        let (flight, call) = (self.clone(), call(&request)?);
        let answer = async move {
            let upload = wire::open(request.into_inner(), broken).await?;
            let output = flight.exchange(upload, &call).await?;
            Ok::<_, Status>(flight.answer(output, &call))
        };
        let answer = stream::once(answer).flat_map(|started| match started {
            Ok(messages) => messages,
            Err(status) => stream::iter([Err(status)]).boxed(),
        });
        Ok(Response::new(answer.boxed()))
    }

    async fn do_action(&self, request: Request<Action>) -> Answer<Self::DoActionStream> {
        let identity = identity(&request)?;
        let Action { r#type, body } = request.into_inner();
        let results = self.action(&identity, &r#type, &body).await?;
        let results = results.map(|result| result.map(arrow_flight::Result::new).map_err(Status::from));
        Ok(Response::new(results.boxed()))
    }

    async fn list_actions(&self, request: Request<Empty>) -> Answer<Self::ListActionsStream> {
        identity(&request)?;
        Ok(Response::new(stream::iter(action::list().into_iter().map(Ok)).boxed()))
    }
}
