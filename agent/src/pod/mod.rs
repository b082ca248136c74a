//! Pods: one task each.
//!
//! `actor` is the task: it observes, asks `plan` for the next step, carries it out (`execute`), and reports (`status`).
//! `plan` and `status` are pure, as are `env`, `resources`, `backoff` and the counting part of `probe`. `spec` turns a pod
//! into what the runtime builds; `volume`, `files` and `image` prepare what it needs on disk. `monitor` talks to the process
//! that owns the pod's containers, which goes on when the agent ends and is found again by the next one. `evict` measures
//! volumes that have a limit.
//!
//! Always: no step relies on the one before having finished; what a crash leaves is adopted or removed; a pod is reported
//! gone only when nothing of it is on the node.

mod account;
mod actor;
mod adopt;
mod backoff;
mod container;
mod env;
mod evict;
mod execute;
mod fence;
mod files;
mod image;
mod isolation;
pub mod monitor;
mod plan;
mod probe;
mod record;
mod resources;
mod runs;
mod security;
mod selinux;
mod spec;
mod status;
mod view;
mod volume;

#[cfg(test)]
mod adopt_test;
#[cfg(test)]
mod real_test;

use std::sync::Arc;

use proto::v1::Pod;
use rpc::v1::{ContainerEnd, InspectResponse, PodReport};
use tokio::sync::watch;

use crate::configs::Configs;
use crate::node::Node;

pub use isolation::IsolationError;
pub use view::ContainerHandle;

/// Desired state of one pod, as the ledger has it.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// None: it is to go, and its end is reported with `gone`.
    pub pod: Option<Arc<Pod>>,
    /// ConfigMaps and Secrets of the node's pods.
    pub(crate) configs: Arc<Configs>,
}

/// A pod on this node. Clones are the same.
#[derive(Clone, Debug)]
pub struct Handle {
    node: Arc<Node>,
    report: watch::Receiver<PodReport>,
    view: Arc<view::View>,
    ended: watch::Receiver<bool>,
}

/// Starts the actor of a pod; it adopts a monitor that is there, or cleans up what a crash left. It ends when the pod is
/// gone, or, leaving the pod alone, when the sender of `desired` is dropped.
pub fn spawn(node: Arc<Node>, uid: String, desired: watch::Receiver<Desired>) -> Handle {
    let (report_sender, report) = watch::channel(PodReport {
        uid: uid.clone(),
        status: None,
        gone: false,
    });
    let (ended_sender, ended) = watch::channel(false);
    let view = Arc::new(view::View::default());
    let actor = actor::Actor::new(Arc::clone(&node), uid, desired, report_sender, Arc::clone(&view));
    tokio::spawn(async move {
        actor.run().await;
        ended_sender.send_replace(true);
    });
    Handle {
        node,
        report,
        view,
        ended,
    }
}

impl Handle {
    /// The pod's status, and at last that it is gone. No status: nothing is known yet.
    pub fn report(&self) -> watch::Receiver<PodReport> {
        self.report.clone()
    }

    /// A container, init containers included; the first one when `name` is empty.
    pub fn container(&self, name: &str) -> Option<ContainerHandle> {
        self.view.container(name)
    }

    /// Reads back from the kernel what isolates the containers that run; the pod's condition says the same afterwards.
    pub async fn inspect(&self) -> Result<InspectResponse, IsolationError> {
        isolation::inspect(&self.node, &self.view).await
    }

    /// The last words of containers that ended, the oldest first.
    pub fn ends(&self) -> Vec<ContainerEnd> {
        self.view.ends()
    }

    /// Returns when the actor has ended.
    pub async fn join(mut self) {
        // An error says that the sender is gone, with the task: the same.
        drop(self.ended.wait_for(|ended| *ended).await);
    }
}
