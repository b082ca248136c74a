//! Health and metrics, over plain HTTP on a local address: nothing secret, nothing that writes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use model::Kind;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::audit::Audit;
use crate::figures::Figures;
use crate::raft::Node;
use crate::session::Sessions;

/// Scrapers and health checks; more wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 32;
/// A request's head has to come within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the figures come from.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) node: Node,
    pub(crate) sessions: Sessions,
    pub(crate) figures: Figures,
    pub(crate) audit: Audit,
}

/// Answers until the task is aborted.
pub(crate) async fn serve(listener: TcpListener, sources: Sources) {
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
        let sources = sources.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &sources);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(cause) = connection.await {
                tracing::debug!(error = %cause, "a connection for metrics ended");
            }
            drop(permit);
        });
    }
}

fn answer(request: &Request<Incoming>, sources: &Sources) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET, "/readyz") => match sources.node.leadership().borrow().leader {
            Some(leader) => (StatusCode::OK, format!("member {leader} leads\n")),
            None => (
                StatusCode::SERVICE_UNAVAILABLE,
                "no controller leads\n".to_owned(),
            ),
        },
        (&Method::GET, "/metrics") => match metrics(sources) {
            Ok(text) => (StatusCode::OK, text),
            Err(cause) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{cause}\n")),
        },
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
fn metrics(sources: &Sources) -> Result<String, std::fmt::Error> {
    let Sources {
        node,
        sessions,
        figures,
        audit,
    } = sources;
    let mut registry = Registry::with_prefix("bulkhead");
    let gauge = |registry: &mut Registry, name: &str, help: &str, value: i64| {
        registry.register(name, help, ConstGauge::new(value));
    };
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let progress = node.progress();
    let state = node.stale();
    for (name, help, value) in [
        ("raft_term", "Current term", number(progress.term)),
        (
            "raft_last_log_index",
            "Last entry in the log",
            number(progress.last_log_index),
        ),
        (
            "raft_applied_index",
            "Last entry applied",
            number(progress.applied_index),
        ),
        (
            "raft_leads",
            "1 on the leader",
            i64::from(node.leadership().borrow().is_me),
        ),
        (
            "raft_members",
            "Controllers in the cluster",
            number(node.members().len() as u64),
        ),
        (
            "disk_free_bytes",
            "Free on the disk of this controller's data",
            number(node.disk_free()),
        ),
        (
            "disk_nearly_full",
            "1 when this controller takes no writes for lack of room on its disk",
            i64::from(node.nearly_full().is_some()),
        ),
        (
            "state_revision",
            "Counter of changes of objects",
            number(state.revision()),
        ),
        (
            "schema_level",
            "Schema level that all controllers know",
            i64::from(state.level()),
        ),
        (
            "agent_sessions",
            "Agents that hold their session with this controller",
            number(sessions.count() as u64),
        ),
        (
            "leases_lost",
            "Nodes that are silent, on the leader",
            figures.lost(),
        ),
        (
            "pods_unplaced",
            "Pods that no node can take, on the leader",
            figures.unplaced(),
        ),
    ] {
        gauge(&mut registry, name, help, value);
    }
    let objects = Family::<[(&'static str, &'static str); 1], Gauge>::default();
    for kind in Kind::ALL {
        let count = number(state.count(kind) as u64);
        objects.get_or_create(&[("kind", kind.as_str())]).set(count);
    }
    registry.register("objects", "Objects of each kind", objects);
    // The library adds `_total` to counters.
    registry.register(
        "audit_lines_lost",
        "Lines of the audit log that could not be written",
        ConstCounter::new(audit.lost()),
    );
    registry.register(
        "drive_passes",
        "Passes of the leader's loop in this process",
        figures.passes.clone(),
    );
    registry.register(
        "api_requests",
        "Calls of the API, by the code of their answer",
        figures.answers.clone(),
    );
    registry.register(
        "api_request_duration_seconds",
        "Time to the answer of a call, or to its beginning",
        figures.answering.clone(),
    );
    registry.register(
        "raft_proposal_duration_seconds",
        "Time from a command of this controller to its answer, committed and applied",
        node.timings().proposals.clone(),
    );
    registry.register(
        "raft_log_write_duration_seconds",
        "Time of a write to the log's disk with its sync",
        node.timings().log_writes.clone(),
    );
    registry.register(
        "pod_start_duration_seconds",
        "Time from the making of a pod until it has its node, and until a container of it runs, on the leader",
        figures.pod_starts.clone(),
    );
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}
