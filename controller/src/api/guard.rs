//! What stands before a service: who calls, and whether everything in the request is understood.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::Frame;
use prost_reflect::MessageDescriptor;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;

use super::authorize;
use super::bearer::{self, Bearer, Bearers, Cut};
use super::wire::{self, Frames, MESSAGE_BYTES_MAX};
use crate::audit::{Audit, Entry};
use crate::figures::Figures;
use crate::security::identity::Identity;
use crate::security::listen::Caller;

/// A request that is one message has to be here whole within this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A service behind the guard.
#[derive(Clone)]
pub(crate) struct Guard<S> {
    inner: S,
    bearers: Bearers,
    audit: Audit,
    figures: Figures,
}

impl<S> Guard<S> {
    /// Who is not let in is noted.
    pub(crate) fn new(inner: S, bearers: Bearers, audit: Audit, figures: Figures) -> Self {
        Self {
            inner,
            bearers,
            audit,
            figures,
        }
    }
}

impl<S: NamedService> NamedService for Guard<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that is ready is the one that is called.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let (bearers, audit, figures) = (self.bearers.clone(), self.audit.clone(), self.figures.clone());
        Box::pin(async move {
            let (began, path) = (Instant::now(), request.uri().path().to_owned());
            let answer = match admit(request, &bearers, &audit).await {
                Ok((request, cut_by)) => {
                    let answer = inner.call(request).await?;
                    match cut_by {
                        Some(bearer) => answer.map(|body| bearer::cut(body, bearer.end(), Cut::Answer)),
                        None => answer,
                    }
                }
                Err(status) => status.into_http(),
            };
            // One that is refused has its status in front.
            let code = Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code());
            let call = wire::input(&path).and_then(|_| path.rsplit('/').next());
            figures.answered(call.unwrap_or("unknown"), &format!("{code:?}"), began.elapsed());
            Ok(answer)
        })
    }
}

/// The request, checked, and whose token ends its answers when it ends.
async fn admit(
    mut request: Request<Body>,
    bearers: &Bearers,
    audit: &Audit,
) -> Result<(Request<Body>, Option<Bearer>), Status> {
    let recognised = bearers.recognise(&mut request).await;
    let path = request.uri().path();
    let checked = recognised
        .and_then(|bearer| authorize::check(path, request.extensions()).map(|identity| (identity, bearer)));
    let (identity, bearer) = checked.inspect_err(|status| {
        audit.record_stranger(refused(path, request.extensions(), status));
    })?;
    let Some(input) = wire::input(path) else {
        return Err(Status::unimplemented(format!("there is no call {path}")));
    };
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(identity);
    let body = if input.streamed {
        let body = streamed(body, &input.message);
        match &bearer {
            Some(bearer) => bearer::cut(body, bearer.end(), Cut::Request),
            None => body,
        }
    } else {
        let whole = tokio::time::timeout(REQUEST_TIMEOUT, whole(body, &input.message)).await;
        whole.map_err(|_| Status::deadline_exceeded("the request did not come whole in time"))??
    };
    // An answer that is one message is there at once: it is not to be taken for a refusal of what was done.
    let cut_by = bearer.filter(|_| input.answered_by_many);
    Ok((Request::from_parts(parts, body), cut_by))
}

/// The line about a call that is not let in.
fn refused(path: &str, extensions: &http::Extensions, status: &Status) -> Entry {
    let caller = extensions.get::<Caller>();
    let user = caller.map_or_else(String::new, |caller| caller.authenticated.identity.to_string());
    let groups: &[String] = match caller.map(|caller| &caller.authenticated.identity) {
        Some(Identity::User { groups, .. }) => groups,
        _ => &[],
    };
    let call = path.rsplit('/').next().unwrap_or_default();
    let mut entry = Entry::new(call, &user, groups, caller.map(|caller| caller.address));
    entry.refused = Some(status.message().to_owned());
    entry
}

/// Of a request that is one message.
async fn whole(body: Body, message: &MessageDescriptor) -> Result<Body, Status> {
    let collected = Limited::new(body, MESSAGE_BYTES_MAX + 5).collect().await;
    let collected = collected.map_err(|cause| match cause.downcast::<LengthLimitError>() {
        Ok(_) => wire::too_large(MESSAGE_BYTES_MAX + 1),
        Err(cause) => Status::from_error(cause),
    })?;
    let bytes = collected.to_bytes();
    let mut frames = Frames::default();
    frames.push(bytes.clone());
    while frames.next(message)?.is_some() {}
    Ok(Body::new(Full::new(bytes)))
}

/// Of a request that is many messages: each is passed on once it is whole and checked.
fn streamed(body: Body, message: &MessageDescriptor) -> Body {
    struct Checked {
        body: Body,
        message: MessageDescriptor,
        frames: Frames,
    }
    let start = Some(Checked {
        body,
        message: message.clone(),
        frames: Frames::default(),
    });
    let data = |bytes: Bytes| Ok(Frame::data(bytes));
    let checked = stream::unfold(start, move |checked| async move {
        let mut checked = checked?;
        loop {
            match checked.frames.next(&checked.message) {
                Ok(Some(frame)) => return Some((data(frame), Some(checked))),
                Ok(None) => {}
                Err(status) => return Some((Err(status), None)),
            }
            match checked.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => checked.frames.push(bytes),
                    Err(trailers) => return Some((Ok(trailers), Some(checked))),
                },
                Some(Err(status)) => return Some((Err(status), None)),
                None => {
                    // Half a message, if anything: the server says so.
                    let rest = checked.frames.rest();
                    return (!rest.is_empty()).then(|| (data(rest), None));
                }
            }
        }
    });
    Body::new(StreamBody::new(Box::pin(checked)))
}
