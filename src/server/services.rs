//! The two gRPC services of the Flight port, by path.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use super::{gate::Gate, link::Link};
use crate::{auth::Identity, wire::FLIGHT_SERVICE};

#[derive(Clone)]
pub(super) struct Services<H> {
    pub(super) health: H,
    pub(super) flight: Gate,
}

impl<H> Service<Request<Body>> for Services<H>
where
    H: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
    H::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        match path.trim_start_matches('/').split('/').next() {
            Some(service) if service == H::NAME => Box::pin(self.health.call(request)),
            Some(FLIGHT_SERVICE) => {
                // A health check, and a Handshake that is yet to bring its credentials, have none.
                if request.extensions().get::<Identity>().is_some()
                    && let Some(link) = request.extensions().get::<Link>()
                {
                    link.authenticated();
                }
                self.flight.answer(request)
            }
            _ => {
                let unknown = Status::unimplemented(format!("{path} is none of the services here"));
                Box::pin(std::future::ready(Ok(unknown.into_http())))
            }
        }
    }
}
