//! The Flight client that the command line, the demo and transfers use.

mod connect;

use std::sync::Arc;

use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, Ticket,
    flight_service_client::FlightServiceClient,
};
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, TryFutureExt, TryStreamExt, future::Fuse};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::oneshot;
use tonic::{CancellationHandle, Request, Status, Streaming, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

pub use connect::Login;

use crate::{
    config::Size,
    error::{Error, Result},
    location::Location,
    stream::RecordBatchStream,
    telemetry::{ClientSpan, Method},
    wire,
};
use connect::Headers;

/// Messages towards the server stay near this size.
const MESSAGE_SIZE: Size = Size::mib(2);

/// One connection to a Mallard, or to any Flight server. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    flight: FlightServiceClient<Channel>,
    channel: Channel,
    headers: Headers,
    location: Location,
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
        let channel = connect::channel(location).await?;
        let flight = FlightServiceClient::new(channel.clone())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        let mut client = Self {
            flight,
            channel,
            headers: Headers::default(),
            location: location.clone(),
            peer: location.to_string(),
        };
        if let Some(login) = login {
            let (span, request) = client.request("Handshake", futures::stream::empty::<HandshakeRequest>());
            client.headers = span.of(login.exchange(&mut client.flight, &client.peer, request)).await?;
        }
        Ok(client)
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
        move |status| Error::from_status(&peer, status)
    }

    /// The rows of one SQL statement. Dropping the stream cancels it on the server.
    pub async fn query(&self, sql: &str) -> Result<RecordBatchStream> {
        self.get(Ticket::new(sql.to_string())).await
    }

    /// The stream behind a ticket.
    pub async fn get(&self, ticket: Ticket) -> Result<RecordBatchStream> {
        let (span, request) = self.request("DoGet", ticket);
        followed(span, async {
            let answer = self.flight.clone().do_get(request).await.map_err(|status| self.broken()(&status))?;
            wire::decode(answer.into_inner(), self.broken()).await
        })
        .await
    }

    /// The rows of a table, named by its parts.
    pub async fn table(&self, path: &[String]) -> Result<RecordBatchStream> {
        let info = self.info(FlightDescriptor::new_path(path.to_vec())).await?;
        let ticket = info.endpoint.into_iter().find_map(|endpoint| endpoint.ticket);
        self.get(ticket.ok_or_else(|| Error::Stream(format!("{}: the FlightInfo has no ticket", self.peer)))?).await
    }

    pub async fn info(&self, descriptor: FlightDescriptor) -> Result<FlightInfo> {
        let (span, request) = self.request("GetFlightInfo", descriptor);
        let mut flight = self.flight.clone();
        let answer = async { flight.get_flight_info(request).await.map_err(|status| self.broken()(&status)) };
        Ok(span.of(answer).await?.into_inner())
    }

    pub async fn list(&self, glob: &str) -> Result<Vec<FlightInfo>> {
        let criteria = Criteria { expression: Bytes::from(glob.to_string()) };
        let (span, request) = self.request("ListFlights", criteria);
        let mut flight = self.flight.clone();
        let listed = async { flight.list_flights(request).await?.into_inner().try_collect().await };
        span.of(listed.map_err(|status| self.broken()(&status))).await
    }

    /// Sends the stream into a table, named by its parts; all of it is stored or nothing.
    pub async fn put(&self, path: &[String], input: RecordBatchStream) -> Result<Stored> {
        let descriptor = FlightDescriptor::new_path(path.to_vec());
        let (messages, mut failed) = upload(input, descriptor);
        let (span, mut request) = self.request("DoPut", messages);
        let _guard = CancelOnDrop::of(&mut request);
        let mut flight = self.flight.clone();
        let call = async {
            let answer = flight.do_put(request).await?.into_inner();
            answer.try_collect::<Vec<_>>().await
        };
        let call = async {
            tokio::select! {
                biased;
                Ok(error) = &mut failed => Err(error),
                results = call => results.map_err(|status| self.broken()(&status)),
            }
        };
        let results = span.of(call).await?;
        let last = results.last().ok_or_else(|| Error::Stream(format!("{}: DoPut answered nothing", self.peer)))?;
        serde_json::from_slice(&last.app_metadata)
            .map_err(|_| Error::Stream(format!("{}: DoPut did not answer rows and bytes", self.peer)))
    }

    /// Sends the stream through an exchanger; its answer comes while the input is sent.
    pub async fn exchange(&self, name: &str, input: RecordBatchStream) -> Result<RecordBatchStream> {
        let (messages, mut failed) = upload(input, FlightDescriptor::new_cmd(name.to_string()));
        let (span, mut request) = self.request("DoExchange", messages);
        let guard = CancelOnDrop::of(&mut request);
        let mut flight = self.flight.clone();
        let opening = async {
            let answer = flight.do_exchange(request).await.map_err(|status| self.broken()(&status))?;
            wire::decode(answer.into_inner(), self.broken()).await
        };
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
        let (span, request) = self.request("DoAction", Action::new(name, body));
        let answer = self.flight.clone().do_action(request).await.map_err(|status| self.broken()(&status));
        let results: Streaming<_> = answer.inspect_err(|error| span.end::<()>(&Err(error.clone())))?.into_inner();
        let broken = self.broken();
        let span = Arc::new(span);
        let failed = span.clone();
        let results = results.map(move |item| item.map(|result| result.body).map_err(|status| broken(&status)));
        let results = results.inspect_err(move |error| failed.end::<()>(&Err(error.clone())));
        Ok(results.chain(futures::stream::poll_fn(move |_| {
            span.end(&Ok(()));
            std::task::Poll::Ready(None)
        })))
    }

    pub async fn list_actions(&self) -> Result<Vec<ActionType>> {
        let (span, request) = self.request("ListActions", Empty {});
        let mut flight = self.flight.clone();
        let listed = async { flight.list_actions(request).await?.into_inner().try_collect().await };
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

/// Cancels the call when dropped before its request stream has ended. Dropping a call alone would leave it open: hyper
/// goes on with the request stream, whose end the server would take for the end of the rows.
struct CancelOnDrop(Option<CancellationHandle>);

impl CancelOnDrop {
    fn of<T>(request: &mut Request<T>) -> Self {
        Self(Some(request.cancellation_handle()))
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take() {
            handle.cancel();
        }
    }
}

/// The messages of an upload. A request stream cannot end in an error, so a failed input leaves it pending for ever
/// and says so through the channel; whoever waits then drops the call.
fn upload(
    input: RecordBatchStream,
    descriptor: FlightDescriptor,
) -> (impl Stream<Item = FlightData> + Send + 'static, Fuse<oneshot::Receiver<Error>>) {
    let (failed, failure) = oneshot::channel();
    let mut failed = Some(failed);
    let messages = wire::encode(input, MESSAGE_SIZE, Some(descriptor)).then(move |message| {
        let error = match message {
            Ok(message) => return futures::future::Either::Left(futures::future::ready(message)),
            Err(error) => error,
        };
        if let Some(failed) = failed.take() {
            // A receiver that is gone has ended the call itself.
            let _ = failed.send(error);
        }
        futures::future::Either::Right(futures::future::pending())
    });
    // Fused: it is asked again after the input has ended well.
    (messages, failure.fuse())
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
