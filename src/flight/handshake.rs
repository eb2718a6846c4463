//! Handshake: credentials in the header (answered by the auth layer) or as BasicAuth in the payload.

use std::{net::IpAddr, time::Duration};

use arrow_flight::{BasicAuth, HandshakeRequest, HandshakeResponse};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream::BoxStream};
use prost::Message;
use tonic::{Response, Status, metadata::MetadataValue};

use crate::{
    auth::{Authenticator, Identity},
    config::Secret,
    error::{Error, Result},
};

/// Who has no identity yet does not keep a call open for longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// `identity` is there when the header has proven it; the layer then adds the bearer token to the response.
pub(super) async fn handshake(
    authenticator: &Authenticator,
    identity: Option<&Identity>,
    address: Option<IpAddr>,
    mut requests: impl Stream<Item = Result<HandshakeRequest, Status>> + Unpin,
) -> Result<Response<BoxStream<'static, Result<HandshakeResponse, Status>>>> {
    if identity.is_some_and(|_| authenticator.enabled()) {
        return Ok(Response::new(futures::stream::empty().boxed()));
    }
    let first = tokio::time::timeout(PATIENCE, requests.next()).await;
    let request = match first.map_err(|_| Error::Unauthenticated("the handshake sent no credentials in time".into()))? {
        Some(Ok(request)) => request,
        Some(Err(status)) => return Err(Error::Stream(status.message().to_string())),
        // Everyone may call where authentication is off.
        None if identity.is_some() => return Ok(Response::new(futures::stream::empty().boxed())),
        None => return Err(Error::Unauthenticated("log in first: the handshake carries no credentials".into())),
    };
    let basic = BasicAuth::decode(request.payload)
        .map_err(|_| Error::Unauthenticated("the handshake's payload is not BasicAuth".into()))?;
    let password = Secret::new(basic.password);
    let (_, token) = authenticator.login("handshake", &basic.username, password, address).await?;
    let answer = HandshakeResponse { protocol_version: 0, payload: Bytes::from(token.clone()) };
    let mut response = Response::new(futures::stream::iter([Ok(answer)]).boxed());
    let mut header: MetadataValue<_> = format!("Bearer {token}").parse().map_err(Error::internal)?;
    header.set_sensitive(true);
    response.metadata_mut().insert("authorization", header);
    Ok(response)
}
