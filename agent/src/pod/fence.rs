//! A pod that must not run twice: its monitor is told until when it may run, each time a controller confirms the node.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proto::v1::Pod;
use sys::time::boottime_ms;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use super::Desired;
use super::monitor::{Client, MonitorError};

/// Reason of a container that the fence has ended, or that waits behind it.
pub(super) use runtime::monitor::FENCED;

/// What is said of a container that waits.
pub(super) const WAITS: &str =
    "the pod must not run twice: it starts once a controller has confirmed this node";
/// What is said of one that was ended.
pub(super) const ENDED: &str =
    "no controller confirmed this node in time, so it was ended: the pod must not run twice";

/// Whether a pod asks not to run twice.
pub(super) fn is_asked(pod: &Pod) -> bool {
    let meta = pod.metadata.as_ref();
    meta.is_some_and(|meta| model::at_most_once::is_asked(&meta.annotations))
}

/// Passes each lease of the node on to one monitor, as long as the pod is to be here. A task of its own: a monitor must hear
/// in time, whatever step its actor is at.
#[derive(Debug)]
pub(super) struct Keeper {
    /// Until when the monitor was told that the pod may run, in milliseconds since the machine started.
    until_ms: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

impl Keeper {
    /// `directory` is the monitor's; `wake` is notified when containers may be started that could not before.
    pub(super) fn start(
        directory: PathBuf,
        lease: watch::Receiver<u64>,
        desired: watch::Receiver<Desired>,
        wake: Arc<Notify>,
    ) -> Self {
        let until_ms = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(keep(directory, lease, desired, wake, Arc::clone(&until_ms)));
        Self {
            until_ms,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Whether the monitor starts containers now, as far as is known here.
    pub(super) fn may_start(&self) -> bool {
        boottime_ms() < self.until_ms.load(Ordering::Relaxed)
    }
}

async fn keep(
    directory: PathBuf,
    mut lease: watch::Receiver<u64>,
    desired: watch::Receiver<Desired>,
    wake: Arc<Notify>,
    told_ms: Arc<AtomicU64>,
) {
    let mut client = None;
    loop {
        // The lease first: whoever wrote it has written before what was decided up to then, also that the pod goes.
        let until_ms = *lease.borrow_and_update();
        let wanted = desired.borrow().pod.is_some();
        let before = told_ms.load(Ordering::Relaxed);
        if wanted && until_ms > before {
            match renew(&mut client, &directory, until_ms).await {
                Ok(()) => {
                    told_ms.store(until_ms, Ordering::Relaxed);
                    if before <= boottime_ms() {
                        wake.notify_one();
                    }
                }
                Err(error) => {
                    client = None;
                    let cause = runtime::monitor::chain(&error);
                    tracing::warn!(
                        cause,
                        "a monitor did not hear that its pod may run on: {}",
                        directory.display()
                    );
                }
            }
        }
        if lease.changed().await.is_err() {
            return; // the agent stops
        }
    }
}

async fn renew(client: &mut Option<Client>, directory: &Path, until_ms: u64) -> Result<(), MonitorError> {
    let client = match client {
        Some(client) => client,
        None => client.insert(Client::connect(directory).await?),
    };
    client.renew(until_ms).await
}
