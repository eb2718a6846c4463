//! Which RPCs the wire path answers: those that move record batches, unless the call uses gRPC's own compression or the
//! configuration asks for the standard path, or the client is one of Node's. All others, and those, go to tonic's
//! FlightServiceServer.

use std::convert::Infallible;

use arrow_flight::{Ticket, flight_service_server::FlightServiceServer};
use http::{HeaderMap, Request, Response, header::USER_AGENT};
use tonic::{Status, body::Body, codec::CompressionEncoding};
use tower::Service;

use super::service::{Flight, broken, chain, end};
use crate::{
    config::Config,
    error::Error,
    wire::{self, Budget},
};

/// The Flight service as the server mounts it. Cheap to clone.
#[derive(Clone)]
pub struct Router {
    flight: Flight,
    standard: FlightServiceServer<Flight>,
    /// For clients that compress what they send, and so mean it when they say that they accept compressed answers.
    /// gRPC's C++ clients always say so, and never mean it.
    compressing: FlightServiceServer<Flight>,
    only_standard: bool,
    max_message: usize,
    budget: Budget,
}

impl Router {
    pub fn new(config: &Config, flight: Flight) -> Self {
        let max_message = config.limits.max_message_size.bytes();
        let standard = FlightServiceServer::new(flight.clone())
            .max_decoding_message_size(max_message)
            .max_encoding_message_size(usize::MAX)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd);
        let compressing =
            standard.clone().send_compressed(CompressionEncoding::Gzip).send_compressed(CompressionEncoding::Zstd);
        let budget = flight.budget.clone();
        Self { flight, standard, compressing, only_standard: config.wire.standard_path, max_message, budget }
    }

    /// How many transactions are open whose clients are still there.
    pub fn transactions_in_reach(&self) -> usize {
        self.flight.sessions.transactions_in_reach()
    }

    pub async fn answer(mut self, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let standard = if is_compressed(request.headers()) { &mut self.compressing } else { &mut self.standard };
        if self.only_standard || is_compressed(request.headers()) || is_node(request.headers()) {
            return standard.call(request).await;
        }
        let answered = match request.uri().path().rsplit('/').next() {
            Some("DoGet") => self.get(request).await,
            Some("DoPut") => self.put(request),
            Some("DoExchange") => self.exchange(request),
            _ => return standard.call(request).await,
        };
        Ok(answered.unwrap_or_else(Status::into_http))
    }

    async fn get(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let caller = self.flight.caller(request.headers(), request.extensions())?;
        let sending = self.flight.sending(request.headers())?;
        let chain = chain(request.headers())?;
        let ticket: Option<Ticket> =
            wire::first(request.into_body(), self.max_message).await.map_err(|status| broken(&status))?;
        let ticket = ticket.ok_or_else(|| Error::invalid("the request has no ticket"))?;
        let rows = self.flight.rows(&caller, &ticket.ticket, chain).await?;
        Ok(wire::respond(std::future::ready(Ok(rows)), sending))
    }

    fn put(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let caller = self.flight.caller(request.headers(), request.extensions())?;
        let (chain, end) = (chain(request.headers())?, end(request.headers())?);
        let messages = wire::request_within(request.into_body(), self.max_message, self.budget.clone());
        Ok(wire::answer(futures::stream::once(async move {
            let upload = wire::open(messages, broken).await?.require_end(end);
            Ok(self.flight.put(upload, &caller, chain).await?)
        })))
    }

    fn exchange(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let caller = self.flight.caller(request.headers(), request.extensions())?;
        let sending = self.flight.sending(request.headers())?;
        let messages = wire::request_within(request.into_body(), self.max_message, self.budget.clone());
        let starting = async move {
            let upload = wire::open(messages, broken).await?;
            self.flight.exchange(upload, &caller).await
        };
        Ok(wire::respond(starting, sending))
    }
}

/// Whether the client compresses its messages.
fn is_compressed(headers: &HeaderMap) -> bool {
    headers.get("grpc-encoding").is_some_and(|encoding| encoding != "identity")
}

/// Whether the client is gRPC's in JavaScript. Clients over it put headers and bodies together to an IPC stream by
/// themselves, and those that are there count a header's length without its padding: with the wire path's zeros behind a
/// header they read the body from the wrong place.
fn is_node(headers: &HeaderMap) -> bool {
    headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"grpc-node"))
}
