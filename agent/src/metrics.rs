//! Health and metrics, over plain HTTP on a local address: nothing secret, nothing that writes.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::health::Health;
use crate::node::Node;
use crate::pods::Pods;

/// Scrapers and health checks; more wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 32;
/// A request's head has to come within this time, and the connection to end within the other.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is shown.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) node: Arc<Node>,
    pub(crate) pods: Arc<Pods>,
    pub(crate) health: Arc<Health>,
}

/// Answers until the task is aborted.
pub(crate) async fn serve(listener: TcpListener, shown: Shown) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        }; // never closed
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(cause) => {
                tracing::warn!(error = %cause, "failed to accept a connection for metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let shown = shown.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &shown);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(cause)) => tracing::debug!(error = %cause, "a connection for metrics ended"),
                Err(_) => tracing::debug!("a connection for metrics was cut off"),
            }
            drop(permit);
        });
    }
}

fn answer(request: &Request<Incoming>, shown: &Shown) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET, "/readyz") if shown.health.is_connected() => {
            (StatusCode::OK, "in session with a controller\n".to_owned())
        }
        (&Method::GET, "/readyz") => (
            StatusCode::SERVICE_UNAVAILABLE,
            "no session with a controller\n".to_owned(),
        ),
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics(shown)),
        (&Method::GET, _) => (
            StatusCode::NOT_FOUND,
            "there are /healthz, /readyz and /metrics\n".to_owned(),
        ),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    // Of the exposition format too.
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

/// In the text format of Prometheus.
fn metrics(shown: &Shown) -> String {
    let pods = shown.pods.counts();
    let network = shown.node.network.borrow().is_some();
    let rows = [
        (
            "pods",
            "gauge",
            "Pods that are to be on this node",
            pods.desired as u64,
        ),
        (
            "pods_going",
            "gauge",
            "Pods that are being removed",
            pods.going as u64,
        ),
        (
            "session_connected",
            "gauge",
            "1 while in session with a controller",
            u64::from(shown.health.is_connected()),
        ),
        (
            "sessions_total",
            "counter",
            "Sessions so far",
            shown.health.sessions(),
        ),
        (
            "lease_granted_timestamp_seconds",
            "gauge",
            "When the leader last renewed this node's lease",
            shown.health.last_granted(),
        ),
        (
            "calls_total",
            "counter",
            "Calls carried out",
            shown.health.calls(),
        ),
        (
            "network_up",
            "gauge",
            "1 once the pods' network stands",
            u64::from(network),
        ),
    ];
    rows.iter().fold(String::new(), |mut text, (name, kind, help, value)| {
        let row = write!(
            text,
            "# HELP bulkhead_agent_{name} {help}\n# TYPE bulkhead_agent_{name} {kind}\nbulkhead_agent_{name} {value}\n"
        );
        row.expect("a String takes all");
        text
    })
}
