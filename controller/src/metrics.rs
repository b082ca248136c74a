//! Health and metrics, over plain HTTP on a local address: nothing secret, nothing that writes.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::audit::Audit;
use crate::raft::Node;
use crate::session::Sessions;

/// Scrapers and health checks; more wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 32;
/// A request's head has to come within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the leader's loop counts; zero, but for the passes, on a member that does not lead.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    passes: AtomicU64,
    lost: AtomicU64,
    unplaced: AtomicU64,
}

impl Gauges {
    /// The loop has run once more.
    pub(crate) fn pass(&self, lost: usize, unplaced: usize) {
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.lost.store(lost as u64, Ordering::Relaxed);
        self.unplaced.store(unplaced as u64, Ordering::Relaxed);
    }

    /// Another member leads.
    pub(crate) fn follow(&self) {
        self.lost.store(0, Ordering::Relaxed);
        self.unplaced.store(0, Ordering::Relaxed);
    }
}

/// Where the figures come from.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) node: Node,
    pub(crate) sessions: Sessions,
    pub(crate) gauges: Arc<Gauges>,
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
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics(sources)),
        (&Method::GET, _) => (
            StatusCode::NOT_FOUND,
            "there are /healthz, /readyz and /metrics\n".to_owned(),
        ),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

/// In the text format of Prometheus.
fn metrics(
    Sources {
        node,
        sessions,
        gauges,
        audit,
    }: &Sources,
) -> String {
    let progress = node.progress();
    let leads = u64::from(node.leadership().borrow().is_me);
    let members = node.members().len() as u64;
    let revision = node.stale().revision();
    let rows = [
        ("bulkhead_raft_term", "Current term", progress.term),
        (
            "bulkhead_raft_last_log_index",
            "Last entry in the log",
            progress.last_log_index,
        ),
        (
            "bulkhead_raft_applied_index",
            "Last entry applied",
            progress.applied_index,
        ),
        ("bulkhead_raft_leads", "1 on the leader", leads),
        ("bulkhead_raft_members", "Controllers in the cluster", members),
        (
            "bulkhead_disk_free_bytes",
            "Free on the disk of this controller's data",
            node.disk_free(),
        ),
        (
            "bulkhead_disk_nearly_full",
            "1 when this controller takes no writes for lack of room on its disk",
            u64::from(node.nearly_full().is_some()),
        ),
        (
            "bulkhead_state_revision",
            "Counter of changes of objects",
            revision,
        ),
        (
            "bulkhead_agent_sessions",
            "Agents that hold their session with this controller",
            sessions.count() as u64,
        ),
        (
            "bulkhead_leases_lost",
            "Nodes that are silent, on the leader",
            gauges.lost.load(Ordering::Relaxed),
        ),
        (
            "bulkhead_pods_unplaced",
            "Pods that no node can take, on the leader",
            gauges.unplaced.load(Ordering::Relaxed),
        ),
        (
            "bulkhead_audit_lines_lost",
            "Lines of the audit log that could not be written",
            audit.lost(),
        ),
        (
            "bulkhead_drive_passes",
            "Passes of the leader's loop in this process",
            gauges.passes.load(Ordering::Relaxed),
        ),
    ];
    rows.iter().fold(String::new(), |mut text, (name, help, value)| {
        let row = write!(
            text,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"
        );
        row.expect("a String takes all");
        text
    })
}
