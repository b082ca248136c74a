//! Monitors of pods that must not run twice. Each outlives its agent, counts by its machine's own clock, and ends its
//! containers by itself; they take all the time that they are given. No two of one Deployment ever run at the same time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::at_most_once;
use proto::v1::Pod;
use tokio::time::Instant;

use super::history::History;
use crate::leases::LEASE;

/// Grace period of these pods, in seconds.
pub(super) const GRACE_S: i32 = 2;
/// Longest from a kill to the end of what was killed.
const KILL_MAX: Duration = Duration::from_secs(1);

/// The Deployment of a pod that must not run twice.
pub(super) fn deployment_of(pod: &Pod) -> Option<String> {
    let meta = pod.metadata.as_ref()?;
    at_most_once::is_asked(&meta.annotations).then(|| meta.labels.get("app").cloned().unwrap_or_default())
}

/// What a machine's clock makes of a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// A thousandth of the true time, in thousandths of it.
    pub(super) per_mille: u32,
}

impl Clock {
    fn takes(self, time: Duration) -> Duration {
        time * self.per_mille / 1000
    }
}

/// Times are true ones.
#[derive(Clone, Debug)]
struct Monitor {
    deployment: String,
    clock: Clock,
    /// Containers may run until then.
    until: Option<Instant>,
    /// A container was started.
    started: bool,
    /// The one that was ends at the latest then.
    ends: Option<Instant>,
}

impl Monitor {
    /// When its container ends if it hears nothing more: killed after its grace.
    fn end(&self) -> Option<Instant> {
        let grace = Duration::from_secs(GRACE_S as u64);
        let fenced = self.until.map(|until| until + self.clock.takes(grace) + KILL_MAX);
        self.ends.into_iter().chain(fenced).min()
    }

    fn runs(&self, now: Instant) -> bool {
        self.started && self.end().is_some_and(|end| now < end)
    }

    /// What was told to end is not told otherwise.
    fn renew(&mut self, until: Instant, now: Instant) {
        if self.runs(now) && self.until.is_some_and(|before| before <= now) {
            self.ends = self.end();
        }
        self.until = self.until.max(Some(until));
    }

    fn ends_by(&mut self, at: Instant) {
        self.ends = Some(self.end().map_or(at, |end| end.min(at)));
    }
}

/// All of the world's, by node and uid of the pod. Clones are the same ones.
#[derive(Clone, Default)]
pub(super) struct Monitors(Arc<Mutex<BTreeMap<(String, String), Monitor>>>);

impl Monitors {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Monitor>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A controller has granted the lease that the node asked for then.
    pub(super) fn renew(&self, node: &str, uid: &str, deployment: &str, clock: Clock, sent: Instant) {
        let mut all = self.lock();
        let new = || Monitor {
            deployment: deployment.to_owned(),
            clock,
            until: None,
            started: false,
            ends: None,
        };
        let monitor = all.entry((node.to_owned(), uid.to_owned())).or_insert_with(new);
        monitor.renew(sent + clock.takes(LEASE), Instant::now());
    }

    /// Starts a pod's container, if it may: no other one of its Deployment runs then.
    pub(super) fn start(&self, node: &str, uid: &str, history: &History) -> bool {
        let now = Instant::now();
        let mut all = self.lock();
        let key = (node.to_owned(), uid.to_owned());
        let Some(monitor) = all.get(&key) else {
            return false;
        };
        if monitor.runs(now) || monitor.until.is_none_or(|until| until <= now) {
            return false;
        }
        let deployment = monitor.deployment.clone();
        for ((other, pod), monitor) in all.iter() {
            if monitor.deployment == deployment && monitor.runs(now) {
                history.violated(format!(
                    "{node} starts pod {uid} of {deployment}, which must not run twice, while {pod} runs on {other}"
                ));
            }
        }
        if let Some(monitor) = all.get_mut(&key) {
            monitor.started = true;
            monitor.ends = None;
        }
        true
    }

    /// Whether a pod's container runs; one that does ends at the latest at the time told.
    pub(super) fn runs(&self, node: &str, uid: &str) -> Option<Instant> {
        let all = self.lock();
        let monitor = all.get(&(node.to_owned(), uid.to_owned()))?;
        monitor.end().filter(|_| monitor.runs(Instant::now()))
    }

    /// The pod is to go: it has ended by then.
    pub(super) fn stop(&self, node: &str, uid: &str, by: Instant) {
        if let Some(monitor) = self.lock().get_mut(&(node.to_owned(), uid.to_owned())) {
            monitor.ends_by(by);
        }
    }

    /// The machine starts again: nothing runs on it, and nobody knows of a lease.
    pub(super) fn reboot(&self, node: &str) {
        self.lock().retain(|(of, _), _| of != node);
    }
}
