//! Callers that show a bearer token in place of a client certificate.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Request};
use hyper::body::{Body as Frames, Frame};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;

use super::status::reading;
use crate::raft::Node;
use crate::security::account_token::{AccountKey, Claims, TokenRefused};
use crate::security::identity::Identity;
use crate::security::listen::Caller;
use crate::security::unix_now;

/// Before the token (RFC 6750, section 2.1), in any case of letters.
const SCHEME: &[u8] = b"Bearer ";
/// While a call is open its token is held against the state after a change, and at most this often: there may be thousands
/// of such calls, and thousands of changes a second.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Verifies tokens; clones are the same.
#[derive(Clone)]
pub(crate) struct Bearers {
    node: Node,
    key: AccountKey,
}

/// A token that was good when its call began.
#[derive(Clone)]
pub(super) struct Bearer {
    node: Node,
    claims: Claims,
}

/// Ready when a call has to end, with the reason.
pub(super) type End = Pin<Box<dyn Future<Output = Status> + Send>>;

impl Bearers {
    /// Over what this member knows.
    pub(crate) fn new(node: Node, key: AccountKey) -> Self {
        Self { node, key }
    }

    /// Puts who bears a token in the place of the stranger whose connection it is, and takes the token off the request. None:
    /// there is no token.
    pub(super) async fn recognise(&self, request: &mut Request<Body>) -> Result<Option<Bearer>, Status> {
        let Some(token) = take_token(request.headers_mut())? else {
            return Ok(None);
        };
        let caller = request.extensions().get::<Caller>();
        let caller = caller.ok_or_else(|| Status::unauthenticated("no TLS connection"))?;
        if caller.authenticated.identity != Identity::Anonymous {
            return Err(Status::unauthenticated(format!(
                "the connection has the certificate of {} and the call has a bearer token: show one of them",
                caller.authenticated.identity
            )));
        }
        let claims = self.key.open(&token).map_err(refused)?;
        // Who made the token is certain from here on. What is acknowledged anywhere counts, as for rights: a deleted account
        // is refused at once.
        let state = self.node.read().await.map_err(reading)?;
        let now = unix_now();
        claims.check(&state, now).map_err(refused)?;
        let bearer = caller.recognised(claims.authenticated(), now).ok_or_else(|| {
            Status::resource_exhausted("this service account has too many connections; close some")
        })?;
        request.extensions_mut().insert(bearer);
        let node = self.node.clone();
        Ok(Some(Bearer { node, claims }))
    }
}

fn refused(cause: TokenRefused) -> Status {
    Status::unauthenticated(cause.to_string())
}

fn take_token(headers: &mut HeaderMap<HeaderValue>) -> Result<Option<Vec<u8>>, Status> {
    let mut found = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), more) = (found.next(), found.next()) else {
        return Ok(None);
    };
    if more.is_some() {
        return Err(Status::unauthenticated("the call has two authorizations"));
    }
    let value = value.as_bytes();
    let token = match value.split_at_checked(SCHEME.len()) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(SCHEME) => token.to_vec(),
        _ => return Err(Status::unauthenticated("expected `authorization: Bearer TOKEN`")),
    };
    headers.remove(AUTHORIZATION);
    Ok(Some(token))
}

impl Bearer {
    /// Once the token is good no more: it expired or was revoked, its account or its pod is gone.
    pub(super) fn end(&self) -> End {
        let Self { node, claims } = self.clone();
        Box::pin(async move {
            let mut applied = node.applied();
            loop {
                applied.borrow_and_update();
                let now = unix_now();
                if let Err(cause) = claims.check(&node.stale(), now) {
                    return refused(cause);
                }
                let looked = Instant::now();
                let expires = looked + Duration::from_secs(claims.expires().saturating_sub(now));
                tokio::select! {
                    biased;
                    changed = applied.changed() => if changed.is_err() {
                        return std::future::pending().await; // this member stops
                    },
                    () = tokio::time::sleep_until(expires) => continue,
                }
                tokio::time::sleep_until(looked + LOOK_INTERVAL).await;
            }
        })
    }
}

/// What an ended token does to one direction of a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cut {
    /// Of what comes in: it fails, and so does whoever reads it.
    Request,
    /// Of what goes out: the call's status says why it is over.
    Answer,
}

/// A body that ends with its token.
pub(super) fn cut(body: Body, end: End, how: Cut) -> Body {
    Body::new(Bounded {
        body: Some(body),
        end,
        how,
    })
}

struct Bounded {
    /// None once it was cut: what stands behind it is let go.
    body: Option<Body>,
    end: End,
    how: Cut,
}

impl Frames for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(status) = this.end.as_mut().poll(cx) {
            this.body = None;
            return Poll::Ready(Some(match this.how {
                Cut::Request => Err(status),
                Cut::Answer => trailers(&status),
            }));
        }
        Pin::new(body).poll_frame(cx)
    }
}

fn trailers(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}
