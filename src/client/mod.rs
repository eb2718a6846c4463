//! The Flight client that the command line, the demo and transfers use.

mod connect;
mod endpoints;
mod sql;
mod tables;

use std::sync::Arc;

use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightDescriptor, FlightInfo, HandshakeRequest, PutResult, Ticket,
    flight_service_client::FlightServiceClient,
};
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, TryFutureExt, TryStreamExt, future::Fuse};
use http::{
    HeaderValue, Response,
    header::{CONTENT_TYPE, TE},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Status, Streaming, body::Body, metadata::MetadataValue, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tower::{Service, ServiceExt};

pub use connect::{EXCHANGE_HEADER, Login, TYPES_HEADER, Trust};
pub use endpoints::ENDPOINTS_HEADER;
pub use sql::Answered;
pub use tables::{Column, Table};

use crate::{
    config::{Compression, Size},
    error::{Error, Result},
    location::Location,
    stream::RecordBatchStream,
    telemetry::{ClientSpan, Method},
    wire::{self, Budget, END_HEADER, EXPLICIT, FLIGHT_SERVICE, Sending},
};
use connect::Headers;

/// Messages towards the server stay near this size.
const MESSAGE_SIZE: Size = Size::mib(2);

/// Messages that a client takes, unless it is told [otherwise](Client::receiving): a row of a gigabyte is one message.
const MAX_MESSAGE: Size = Size::mib(1024);

/// The same of messages without record batches, for which gRPC reserves what a server announces: a schema of thousands of
/// columns stays far below.
const MAX_SMALL_MESSAGE: usize = 16 * 1024 * 1024;

/// One connection to a Mallard, or to any Flight server. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    max_message: Size,
    /// What all that comes may hold, where others share it.
    budget: Option<Budget>,
    flight: FlightServiceClient<Channel>,
    channel: Channel,
    headers: Headers,
    location: Location,
    trust: Arc<Trust>,
    peer: String,
}

/// What DoPut answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Stored {
    pub rows: u64,
    pub bytes: u64,
}

impl Client {
    /// Connects and, with a login, exchanges the password for a bearer token.
    pub async fn connect(location: &Location, login: Option<&Login>) -> Result<Self> {
        Self::connect_trusting(location, login, &Trust::default()).await
    }

    /// The same where the system's CAs are not what `grpc+tls://` is to trust, or where it takes a client certificate.
    pub async fn connect_trusting(location: &Location, login: Option<&Login>, trust: &Trust) -> Result<Self> {
        let mut client = Self::open(location, Arc::new(trust.clone()), Headers::default()).await?;
        if let Some(login) = login {
            let (span, request) = client.request("Handshake", futures::stream::empty::<HandshakeRequest>());
            let token = span.of(login.exchange(&mut client.flight, &client.peer, request)).await?;
            client.headers.log_in(token);
        }
        Ok(client)
    }

    async fn open(location: &Location, trust: Arc<Trust>, headers: Headers) -> Result<Self> {
        let channel = connect::channel(location, &trust).await?;
        let flight = FlightServiceClient::new(channel.clone())
            .max_decoding_message_size(MAX_SMALL_MESSAGE)
            .max_encoding_message_size(usize::MAX);
        let (max_message, budget, peer) = (MAX_MESSAGE, None, location.to_string());
        Ok(Self { max_message, budget, flight, channel, headers, location: location.clone(), trust, peer })
    }

    /// Another connection to the same server, with the same login and limits.
    async fn another(&self) -> Result<Self> {
        let opened = Self::open(&self.location, self.trust.clone(), self.headers.clone()).await?;
        Ok(Self { max_message: self.max_message, budget: self.budget.clone(), ..opened })
    }

    /// Takes record batches in messages of so many bytes at most, as long as there is room for them.
    pub fn receiving(mut self, max_message: Size, budget: Budget) -> Self {
        (self.max_message, self.budget) = (max_message, Some(budget));
        self
    }

    /// Compresses the record batches it sends, and asks the server for the same; where the network is slower than the
    /// processors. `None` leaves it to the server's configuration.
    pub fn compressing(mut self, compression: Option<Compression>) -> Self {
        self.headers.compression = compression;
        self
    }

    /// From now on rows pass these exchangers of the server's, such as `a | b`, before they are stored and before they are
    /// answered. `None` ends that.
    pub fn through(mut self, chain: Option<&str>) -> Result<Self> {
        let wrong = |_| Error::invalid("a chain travels in a header: ASCII, without line breaks; JSON has \\u escapes");
        self.headers.chain = chain.map(|chain| chain.trim().parse()).transpose().map_err(wrong)?;
        Ok(self)
    }

    /// Where this client is connected.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// A span for the RPC of that name, and its request.
    fn request<T>(&self, method: &str, message: T) -> (ClientSpan, Request<T>) {
        let span = ClientSpan::begin(Method::named(method), &self.location);
        let mut request = self.headers.apply(Request::new(message));
        span.carry(request.metadata_mut());
        (span, request)
    }

    fn broken(&self) -> impl Fn(&Status) -> Error + Send + Sync + use<> {
        let peer = self.peer.clone();
        move |status| Error::carried_by(status).unwrap_or_else(|| Error::from_status(&peer, status))
    }

    /// The rows of one SQL statement. Dropping the stream cancels it on the server.
    pub async fn query(&self, sql: &str) -> Result<RecordBatchStream> {
        self.get(Ticket::new(sql.to_string())).await
    }

    /// The stream behind a ticket.
    pub async fn get(&self, ticket: Ticket) -> Result<RecordBatchStream> {
        let (span, request) = self.request("DoGet", wire::single(&ticket));
        followed(span, self.batches("DoGet", request)).await
    }

    /// The record batches that an RPC answers.
    async fn batches(&self, method: &str, request: Request<Body>) -> Result<RecordBatchStream> {
        let answer = self.call(method, request).await?;
        let messages = wire::response(answer, self.max_message.bytes(), self.budget.clone())
            .map_err(|status| self.broken()(&status))?;
        wire::decode(messages, self.broken()).await
    }

    /// An answer, whose fresh token goes with the calls to come.
    fn followed<T>(&self, answer: tonic::Response<T>) -> tonic::Response<T> {
        self.headers.follow(answer.metadata().as_ref());
        answer
    }

    /// Calls an RPC whose HTTP/2 bodies are ours, on both ways.
    async fn call(&self, method: &str, request: Request<Body>) -> Result<Response<Body>> {
        let (metadata, _, body) = request.into_parts();
        let mut request = http::Request::new(body);
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        // The channel adds where that is.
        *request.uri_mut() = format!("/{FLIGHT_SERVICE}/{method}").parse().map_err(Error::internal)?;
        *request.headers_mut() = metadata.into_headers();
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        let mut channel = self.channel.clone();
        let called = async { channel.ready().await?.call(request).await };
        let answer = called.await.map_err(|error| self.broken()(&Status::from_error(error.into())))?;
        self.headers.follow(answer.headers());
        Ok(answer)
    }

    /// The rows of a table, named by its parts.
    pub async fn table(&self, path: &[String]) -> Result<RecordBatchStream> {
        let info = self.info_of(FlightDescriptor::new_path(path.to_vec()), Some(1)).await?;
        let ticket = info.endpoint.into_iter().find_map(|endpoint| endpoint.ticket);
        self.get(ticket.ok_or_else(|| Error::Stream(format!("{}: the FlightInfo has no ticket", self.peer)))?).await
    }

    pub async fn info(&self, descriptor: FlightDescriptor) -> Result<FlightInfo> {
        self.info_of(descriptor, None).await
    }

    /// With so many endpoints, or as many as the server is configured to answer.
    async fn info_of(&self, descriptor: FlightDescriptor, endpoints: Option<usize>) -> Result<FlightInfo> {
        let (span, mut request) = self.request("GetFlightInfo", descriptor);
        if let Some(count) = endpoints {
            request.metadata_mut().insert(ENDPOINTS_HEADER, count.into());
        }
        let mut flight = self.flight.clone();
        let answer = async { flight.get_flight_info(request).await.map_err(|status| self.broken()(&status)) };
        Ok(self.followed(span.of(answer).await?).into_inner())
    }

    pub async fn list(&self, glob: &str) -> Result<Vec<FlightInfo>> {
        let criteria = Criteria { expression: Bytes::from(glob.to_string()) };
        let (span, request) = self.request("ListFlights", criteria);
        let mut flight = self.flight.clone();
        let listed = async { self.followed(flight.list_flights(request).await?).into_inner().try_collect().await };
        span.of(listed.map_err(|status| self.broken()(&status))).await
    }

    /// Sends the stream into a table, named by its parts; all of it is stored or nothing. It says its own end: a server that
    /// sees the call end without it, for whatever reason, stores nothing.
    pub async fn put(&self, path: &[String], input: RecordBatchStream) -> Result<Stored> {
        let results = self.put_to(FlightDescriptor::new_path(path.to_vec()), input).await?;
        let last = results.last().ok_or_else(|| Error::Stream(format!("{}: DoPut answered nothing", self.peer)))?;
        serde_json::from_slice(&last.app_metadata)
            .map_err(|_| Error::Stream(format!("{}: DoPut did not answer rows and bytes", self.peer)))
    }

    /// Sends the stream to what the descriptor says; all that is answered.
    async fn put_to(&self, descriptor: FlightDescriptor, input: RecordBatchStream) -> Result<Vec<PutResult>> {
        let (body, mut failed, _guard) = upload(input, self.headers.compression, descriptor, true);
        let (span, mut request) = self.request("DoPut", body);
        request.metadata_mut().insert(END_HEADER, MetadataValue::from_static(EXPLICIT));
        let call = async {
            let answer = self.call("DoPut", request).await?;
            wire::messages::<PutResult>(answer).try_collect::<Vec<_>>().await.map_err(|status| self.broken()(&status))
        };
        let call = async {
            tokio::select! {
                biased;
                Ok(error) = &mut failed => Err(error),
                results = call => results,
            }
        };
        span.of(call).await
    }

    /// Sends the stream through an exchanger; its answer comes while the input is sent.
    pub async fn exchange(&self, name: &str, input: RecordBatchStream) -> Result<RecordBatchStream> {
        let (body, mut failed, guard) =
            upload(input, self.headers.compression, FlightDescriptor::new_cmd(name.to_string()), false);
        let (span, request) = self.request("DoExchange", body);
        let opening = self.batches("DoExchange", request);
        let opening = async {
            tokio::select! {
                biased;
                Ok(error) = &mut failed => Err(error),
                output = opening => output,
            }
        };
        let output = followed(span, opening).await?;
        // The input's own error ends the output in place of the server's word for a cut stream.
        let schema = output.schema();
        let failure = futures::stream::once(failed).filter_map(async |error| error.ok().map(Err));
        Ok(RecordBatchStream::new(schema, until_failure(output, failure.boxed())).holding(guard))
    }

    /// Runs an action with a JSON body; each result as it comes.
    pub async fn action(&self, name: &str, body: &Value) -> Result<impl Stream<Item = Result<Bytes>> + use<>> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        self.action_with(name, body).await
    }

    /// The same with a body of any form.
    pub async fn action_with(
        &self,
        name: &str,
        body: Bytes,
    ) -> Result<impl Stream<Item = Result<Bytes>> + Unpin + use<>> {
        let (span, request) = self.request("DoAction", Action::new(name, body));
        let answer = self.flight.clone().do_action(request).await.map_err(|status| self.broken()(&status));
        let results: Streaming<_> =
            self.followed(answer.inspect_err(|error| span.end::<()>(&Err(error.clone())))?).into_inner();
        let broken = self.broken();
        let span = Arc::new(span);
        let failed = span.clone();
        let results = results.map(move |item| item.map(|result| result.body).map_err(|status| broken(&status)));
        let results = results.inspect_err(move |error| failed.end::<()>(&Err(error.clone())));
        let results = results.chain(futures::stream::poll_fn(move |_| {
            span.end(&Ok(()));
            std::task::Poll::Ready(None)
        }));
        Ok(results.boxed())
    }

    pub async fn list_actions(&self) -> Result<Vec<ActionType>> {
        let (span, request) = self.request("ListActions", Empty {});
        let mut flight = self.flight.clone();
        let listed = async { self.followed(flight.list_actions(request).await?).into_inner().try_collect().await };
        span.of(listed.map_err(|status| self.broken()(&status))).await
    }

    /// Whether the server says SERVING over gRPC health. Needs no login.
    pub async fn healthy(&self) -> Result<bool> {
        let mut health = HealthClient::new(self.channel.clone());
        let request = HealthCheckRequest { service: String::new() };
        let answer = health.check(request).await.map_err(|status| self.broken()(&status))?;
        Ok(answer.into_inner().status() == ServingStatus::Serving)
    }
}

/// Opens a stream whose end is the span's.
async fn followed(
    span: ClientSpan,
    opening: impl Future<Output = Result<RecordBatchStream>>,
) -> Result<RecordBatchStream> {
    match opening.await {
        Ok(stream) => Ok(stream.ending(move |outcome| span.end(&outcome))),
        Err(error) => {
            span.end::<()>(&Err(error.clone()));
            Err(error)
        }
    }
}

/// The body of an upload; where the input's own error arrives; and what resets the call when it is dropped before the
/// input has ended. Dropping a call alone would leave it open: hyper goes on with the request, whose end the server
/// would take for the end of the rows.
fn upload(
    input: RecordBatchStream,
    compression: Option<Compression>,
    descriptor: FlightDescriptor,
    says_end: bool,
) -> (Body, Fuse<oneshot::Receiver<Error>>, DropGuard) {
    let (failed, failure) = oneshot::channel();
    let stop = CancellationToken::new();
    let failed = move |error| {
        // A receiver that is gone has ended the call itself.
        let _ = failed.send(error);
    };
    let sending = Sending { message_size: MESSAGE_SIZE, compression: compression.unwrap_or_default() };
    let body = wire::upload(input, sending, descriptor, says_end, stop.clone(), failed);
    // Fused: it is asked again after the input has ended well.
    (body, failure.fuse(), stop.drop_guard())
}

/// `output`, ended early by the first item of `failure`.
fn until_failure(
    mut output: RecordBatchStream,
    mut failure: futures::stream::BoxStream<'static, Result<arrow_array::RecordBatch>>,
) -> impl Stream<Item = Result<arrow_array::RecordBatch>> + Send + 'static {
    let mut failed = false;
    futures::stream::poll_fn(move |cx| {
        use std::task::Poll;
        if failed {
            return Poll::Ready(None);
        }
        if let Poll::Ready(Some(error)) = failure.poll_next_unpin(cx) {
            failed = true;
            return Poll::Ready(Some(error));
        }
        output.poll_next_unpin(cx)
    })
}
