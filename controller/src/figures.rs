//! What this process counts and times as it works; what it is at a moment, `metrics` asks for then.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::clock;
use crate::raft::{Changed, Node};

/// Bounds of what takes from a tenth of a millisecond to 6 s.
pub(crate) const SECONDS: [f64; 17] = [
    0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.0256, 0.0512, 0.1024, 0.2048, 0.4096,
    0.8192, 1.6384, 3.2768, 6.5536,
];
/// Of what takes from 10 ms to 5 minutes: images are pulled.
const LONG_SECONDS: [f64; 16] = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68,
];

/// A call of the API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Call {
    call: String,
}

/// A call and how it was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Answer {
    call: String,
    code: String,
}

/// How far a pod has come.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Stage {
    until: &'static str,
}

type Timed<Labels> = Family<Labels, Histogram, fn() -> Histogram>;

/// Clones are the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub(crate) answers: Family<Answer, Counter>,
    pub(crate) answering: Timed<Call>,
    pub(crate) pod_starts: Timed<Stage>,
    /// Of the leader's loop.
    pub(crate) passes: Counter,
    /// What the leader's loop has seen last; 0 on a member that does not lead.
    lost: Arc<AtomicI64>,
    unplaced: Arc<AtomicI64>,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            answers: Family::default(),
            answering: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            pod_starts: Family::new_with_constructor(|| Histogram::new(LONG_SECONDS)),
            passes: Counter::default(),
            lost: Arc::default(),
            unplaced: Arc::default(),
        }
    }
}

impl Figures {
    /// A call was answered, or its answer began. `call` is a name of the schema's, or there would be no end of them.
    pub(crate) fn answered(&self, call: &str, code: &str, took: Duration) {
        let answer = Answer {
            call: call.to_owned(),
            code: code.to_owned(),
        };
        self.answers.get_or_create(&answer).inc();
        let call = Call { call: answer.call };
        self.answering.get_or_create(&call).observe(took.as_secs_f64());
    }

    /// The leader's loop has run once more.
    pub(crate) fn pass(&self, lost: usize, unplaced: usize) {
        self.passes.inc();
        self.lost.store(lost as i64, Ordering::Relaxed);
        self.unplaced.store(unplaced as i64, Ordering::Relaxed);
    }

    /// Another member leads.
    pub(crate) fn follow(&self) {
        self.lost.store(0, Ordering::Relaxed);
        self.unplaced.store(0, Ordering::Relaxed);
    }

    /// Nodes that are silent.
    pub(crate) fn lost(&self) -> i64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Pods that no node can take.
    pub(crate) fn unplaced(&self) -> i64 {
        self.unplaced.load(Ordering::Relaxed)
    }

    /// On the member that leads, follows each pod from its making to its first container, until consensus ends.
    pub(crate) async fn follow_pods(self, node: Node) {
        let mut changes: broadcast::Receiver<Changed> = node.changes();
        loop {
            let set = match changes.recv().await {
                Ok(Changed::By(set)) => set,
                // Some are missed in the figures.
                Ok(Changed::All) | Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return,
            };
            if !node.leadership().borrow().is_me {
                continue;
            }
            let now = clock::now_ms();
            for pod in set.iter().filter_map(state::Change::began) {
                let scheduled = pod.scheduled_ms.saturating_sub(pod.created_ms).max(0);
                let running = now.saturating_sub(pod.created_ms).max(0);
                for (until, ms) in [("scheduled", scheduled), ("running", running)] {
                    let stage = Stage { until };
                    self.pod_starts.get_or_create(&stage).observe(ms as f64 / 1000.0);
                }
                tracing::info!(
                    pod = format_args!("{}/{}", pod.namespace, pod.name),
                    uid = pod.uid,
                    node = pod.node,
                    scheduled_ms = scheduled,
                    running_ms = running,
                    "a pod runs"
                );
            }
        }
    }
}
