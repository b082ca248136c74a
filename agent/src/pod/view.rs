//! What others may see of a pod without asking its actor.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rpc::v1::ContainerEnd;
use runtime::cgroup::Layout;
use runtime::spec::{ContainerSpec, SandboxSpec};
use tokio::sync::Notify;

use crate::network::Bandwidth;

/// A container, for those who read its logs or enter it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerHandle {
    /// Its name.
    pub name: String,
    /// Where its pod's monitor answers.
    pub monitor_dir: PathBuf,
    /// The newest run's id in the monitor; none before the first.
    pub id: Option<String>,
    /// The newest run's number; its log is `N.log` in `log_dir`.
    pub run: Option<u32>,
    /// Whether that run goes on.
    pub running: bool,
    /// The run before.
    pub previous: Option<u32>,
    /// Where the logs of its runs are.
    pub log_dir: PathBuf,
}

impl ContainerHandle {
    /// The log of a run.
    pub fn log(&self, run: u32) -> PathBuf {
        self.log_dir.join(format!("{run}.log"))
    }
}

/// A container that runs, as it was started.
#[derive(Clone, Debug)]
pub(super) struct RunningContainer {
    pub(super) name: String,
    pub(super) pid: i32,
    pub(super) spec: Arc<ContainerSpec>,
}

/// What a pod's network is to be limited to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limited {
    pub(super) uid: String,
    pub(super) bandwidth: Bandwidth,
}

/// What the last readback found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// `CONTAINER: LAYER: expected X, observed Y`; empty when all is as it should be.
    pub(super) weak: Vec<String>,
}

#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) containers: Vec<ContainerHandle>,
    pub(super) ends: Vec<ContainerEnd>,
    pub(super) layout: Option<Arc<Layout>>,
    pub(super) sandbox: Option<Arc<SandboxSpec>>,
    pub(super) running: Vec<RunningContainer>,
    /// Limits of its network, when it has one of its own.
    pub(super) limited: Option<Limited>,
    pub(super) verdict: Option<Verdict>,
}

/// One for the pod, shared by its actor and its handles.
#[derive(Debug, Default)]
pub(super) struct View {
    seen: Mutex<Seen>,
    /// Wakes the actor.
    pub(super) wake: Arc<Notify>,
}

impl View {
    pub(super) fn lock(&self) -> MutexGuard<'_, Seen> {
        // A panic elsewhere leaves it whole: each change is an assignment.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn container(&self, name: &str) -> Option<ContainerHandle> {
        let seen = self.lock();
        let mut containers = seen.containers.iter();
        let found = match name {
            "" => containers.next(),
            name => containers.find(|container| container.name == name),
        };
        found.cloned()
    }

    pub(super) fn ends(&self) -> Vec<ContainerEnd> {
        self.lock().ends.clone()
    }

    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.lock().verdict.clone()
    }
}
