//! What agents report of their pods and nodes, on its way into the log: the latest of each wins, many go in one entry.
//!
//! One entry is under way at a time. So an idle member proposes a report at once, and a busy one gathers while it waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use proto::state::v1::command_reply::Reply;
use proto::state::v1::{Command, NodeStatusUpdate, PodStatusUpdate, StatusBatch, command};
use proto::v1::NodeStatus;
use rpc::v1::PodReport;
use state::{STATUS_BYTES_MAX, State};
use tokio::sync::Notify;

use crate::clock;
use crate::raft::{Node, ProposeError};

/// Reports in one entry: applying it stays short.
const BATCH_MAX: usize = 1000;
/// Bytes of reports in one entry, the last one's not counted: far below what an entry may hold.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// After an entry that was not taken; what comes meanwhile replaces what waits.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// What waits to be proposed. Bounded by what is bound to the nodes in `nodes`: sessions let nothing else in.
#[derive(Debug, Default)]
struct Pending {
    /// Nodes with a session here. A report of another one would be older than what its new session says.
    here: BTreeSet<String>,
    /// By node and uid.
    pods: BTreeMap<(String, String), PodStatusUpdate>,
    nodes: BTreeMap<String, NodeStatus>,
    /// Where the next batch begins, so that everyone's turn comes.
    after: (String, String),
}

impl Pending {
    fn pods(&mut self, node: &str, reports: Vec<PodReport>) {
        for report in reports {
            let gone_before = |waiting: &PodStatusUpdate| waiting.gone;
            let key = (node.to_owned(), report.uid.clone());
            let gone = report.gone || self.pods.get(&key).is_some_and(gone_before);
            let update = PodStatusUpdate {
                uid: report.uid,
                node: node.to_owned(),
                status: report.status,
                gone,
            };
            self.pods.insert(key, update);
        }
    }

    /// Takes out what fits one entry.
    fn batch(&mut self) -> StatusBatch {
        let mut batch = StatusBatch::default();
        let mut bytes = 0;
        let full = |batch: &StatusBatch, bytes: usize| {
            batch.pods.len() + batch.nodes.len() >= BATCH_MAX || bytes >= BATCH_BYTES_MAX
        };
        while !full(&batch, bytes) {
            let Some((name, status)) = self.nodes.pop_first() else {
                break;
            };
            bytes += status.encoded_len();
            batch.nodes.push(NodeStatusUpdate {
                name,
                status: Some(status),
            });
        }
        while !full(&batch, bytes) {
            let next = self.pods.range(self.after.clone()..).next();
            let next = next.or_else(|| self.pods.iter().next());
            let Some(key) = next.map(|(key, _)| key.clone()) else {
                break;
            };
            if let Some(update) = self.pods.remove(&key) {
                bytes += update.encoded_len();
                batch.pods.push(update);
            }
            self.after = key;
        }
        batch
    }

    /// What was not taken waits again, unless something newer does or its node went elsewhere.
    fn put_back(&mut self, batch: StatusBatch) {
        for update in batch.pods {
            if self.here.contains(&update.node) {
                let gone = update.gone;
                let key = (update.node.clone(), update.uid.clone());
                self.pods.entry(key).or_insert(update).gone |= gone;
            }
        }
        for update in batch.nodes {
            if let Some(status) = update.status
                && self.here.contains(&update.name)
            {
                self.nodes.entry(update.name).or_insert(status);
            }
        }
    }
}

/// Where sessions hand in what their agents report; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Reports {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    pending: Mutex<Pending>,
    news: Notify,
}

impl Reports {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.inner.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node's session begins here.
    pub(crate) fn enter(&self, node: &str) {
        self.pending().here.insert(node.to_owned());
    }

    /// It has ended here: what waits of it is dropped, as the node reports everything to its next session.
    pub(crate) fn leave(&self, node: &str) {
        let mut pending = self.pending();
        pending.here.remove(node);
        pending.nodes.remove(node);
        pending.pods.retain(|(of, _), _| of != node);
    }

    /// Of pods that are bound to the node.
    pub(crate) fn pods(&self, node: &str, mut reports: Vec<PodReport>) {
        reports.retain(|report| {
            let bytes = report.status.as_ref().map_or(0, Message::encoded_len);
            if bytes > STATUS_BYTES_MAX {
                tracing::warn!(
                    node,
                    uid = report.uid,
                    bytes,
                    "a pod's status is too large; it is dropped"
                );
            }
            bytes <= STATUS_BYTES_MAX
        });
        if !reports.is_empty() {
            self.pending().pods(node, reports);
            self.inner.news.notify_one();
        }
    }

    /// Of the node itself.
    pub(crate) fn node(&self, node: &str, status: NodeStatus) {
        let bytes = status.encoded_len();
        if bytes > STATUS_BYTES_MAX {
            tracing::warn!(node, bytes, "a node's status is too large; it is dropped");
            return;
        }
        self.pending().nodes.insert(node.to_owned(), status);
        self.inner.news.notify_one();
    }

    /// Proposes what is handed in, until it is dropped.
    pub(crate) async fn propose(self, node: Node) {
        // The revision at which this member's reports are all in the state.
        let mut told = 0;
        loop {
            let mut batch = self.pending().batch();
            if batch.pods.is_empty() && batch.nodes.is_empty() {
                self.inner.news.notified().await;
                continue;
            }
            let state = node.stale();
            // In an older state than that, a newer report could look like what is known.
            if state.revision() >= told {
                batch = news(state, batch);
                if batch.pods.is_empty() && batch.nodes.is_empty() {
                    continue;
                }
            }
            let command = Command {
                request_id: String::new(), // the latest wins: proposing it twice does no harm
                time: Some(clock::timestamp(clock::now_ms())),
                kind: Some(command::Kind::Status(batch.clone())),
                ..Default::default()
            };
            match node.propose(command).await {
                Ok(reply) => {
                    if let Some(Reply::Applied(applied)) = reply.reply {
                        told = applied.revision; // nothing in a batch is ever refused
                    }
                }
                Err(ProposeError::TooLarge { bytes }) => {
                    tracing::error!(
                        bytes,
                        "a batch of reports is too large for an entry; it is dropped"
                    );
                }
                Err(cause) => {
                    tracing::info!(%cause, "reports of agents wait");
                    told = u64::MAX; // it may still be carried out, who knows when
                    self.pending().put_back(batch);
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }
}

/// Without reports of pods that tell nothing new: agents repeat all of them again and again.
fn news(mut state: State, batch: StatusBatch) -> StatusBatch {
    let time = clock::timestamp(clock::now_ms());
    let command = |update: &PodStatusUpdate| Command {
        time: Some(time),
        kind: Some(command::Kind::Status(StatusBatch {
            pods: vec![update.clone()],
            nodes: Vec::new(),
        })),
        ..Default::default()
    };
    let commands: Vec<Command> = batch.pods.iter().map(command).collect();
    let outcomes = state.apply_all(&commands);
    let told = batch.pods.into_iter().zip(outcomes);
    let new = told.filter(|(_, outcome)| !outcome.changes.is_empty());
    StatusBatch {
        pods: new.map(|(update, _)| update).collect(),
        nodes: batch.nodes,
    }
}

#[cfg(test)]
mod tests {
    use model::object;
    use proto::state::v1::operation::Operation as Op;
    use proto::state::v1::{Bind, ClusterSettings, NodeJoin, Operation, Put, Transaction};
    use proto::v1::{ObjectMeta, Pod, PodSpec, PodStatus};

    use super::*;

    fn report(uid: &str, phase: &str, gone: bool) -> PodReport {
        let status = PodStatus {
            phase: phase.to_owned(),
            ..Default::default()
        };
        PodReport {
            uid: uid.to_owned(),
            status: Some(status),
            gone,
        }
    }

    fn phases(batch: &StatusBatch) -> Vec<(&str, &str)> {
        batch
            .pods
            .iter()
            .map(|update| {
                let status = update.status.as_ref().unwrap();
                (update.uid.as_str(), status.phase.as_str())
            })
            .collect()
    }

    #[test]
    fn the_latest_report_of_a_pod_wins_and_gone_stays_gone() {
        let mut pending = Pending::default();
        pending.pods(
            "n1",
            vec![report("a", "Pending", false), report("b", "Pending", false)],
        );
        pending.pods("n1", vec![report("a", "Succeeded", true)]);
        pending.pods("n1", vec![report("a", "Failed", false)]);
        let batch = pending.batch();
        assert_eq!(phases(&batch), [("a", "Failed"), ("b", "Pending")]);
        assert_eq!(batch.pods.iter().filter(|update| update.gone).count(), 1);
        assert_eq!(pending.batch(), StatusBatch::default());
    }

    #[test]
    fn a_batch_is_bounded_and_everyone_has_a_turn() {
        let mut pending = Pending::default();
        let uids: Vec<String> = (0..2 * BATCH_MAX + 1)
            .map(|index| format!("{index:05}"))
            .collect();
        pending.pods(
            "n1",
            uids.iter().map(|uid| report(uid, "Running", false)).collect(),
        );
        let mut seen = BTreeSet::new();
        for expected in [BATCH_MAX, BATCH_MAX, 1] {
            let batch = pending.batch();
            assert_eq!(batch.pods.len(), expected);
            seen.extend(batch.pods.into_iter().map(|update| update.uid));
            // The first ones report again and again.
            pending.pods("n0", vec![report("00000", "Running", false)]);
            pending.pods.retain(|(node, _), _| node == "n1");
        }
        assert_eq!(seen.len(), uids.len());
        let large = "x".repeat(STATUS_BYTES_MAX - 1000);
        pending.pods(
            "n1",
            uids.iter()
                .take(100)
                .map(|uid| report(uid, &large, false))
                .collect(),
        );
        assert!(pending.batch().encoded_len() <= BATCH_BYTES_MAX + STATUS_BYTES_MAX);
    }

    #[test]
    fn what_was_not_taken_waits_behind_newer_reports_and_goes_with_its_session() {
        let mut pending = Pending {
            here: ["n1".to_owned()].into(),
            ..Default::default()
        };
        pending.pods(
            "n1",
            vec![report("a", "Pending", false), report("b", "Pending", true)],
        );
        pending.pods("n2", vec![report("c", "Pending", false)]);
        let batch = pending.batch();
        pending.pods(
            "n1",
            vec![report("a", "Running", false), report("b", "Failed", false)],
        );
        pending.put_back(batch);
        let batch = pending.batch();
        assert_eq!(
            phases(&batch),
            [("a", "Running"), ("b", "Failed")],
            "n2 has no session here"
        );
        assert!(batch.pods[1].gone);

        let reports = Reports::default();
        reports.enter("n1");
        reports.pods("n1", vec![report("a", "Running", false)]);
        reports.node("n1", NodeStatus::default());
        reports.leave("n1");
        assert_eq!(reports.pending().batch(), StatusBatch::default());
    }

    #[test]
    fn a_status_that_is_too_large_is_dropped() {
        let reports = Reports::default();
        reports.enter("n1");
        let large = "x".repeat(STATUS_BYTES_MAX + 1);
        reports.pods(
            "n1",
            vec![report("a", &large, false), report("b", "Running", false)],
        );
        assert_eq!(phases(&reports.pending().batch()), [("b", "Running")]);
    }

    #[test]
    fn reports_that_tell_nothing_new_are_not_written_again() {
        let mut state = State::new();
        let mut carry_out = |kind: command::Kind| {
            let outcome = state.apply(&Command {
                kind: Some(kind),
                ..Default::default()
            });
            assert!(outcome.applied(), "{:?}", outcome.reply);
            state.clone()
        };
        let meta = |name: &str| {
            Some(ObjectMeta {
                name: name.to_owned(),
                uid: name.to_owned(),
                namespace: "default".to_owned(),
                ..Default::default()
            })
        };
        let operation = |operation: Op| {
            command::Kind::Transaction(Transaction {
                operations: vec![Operation {
                    operation: Some(operation),
                }],
                ..Default::default()
            })
        };
        carry_out(command::Kind::Settings(ClusterSettings {
            cluster_id: "c".to_owned(),
            pod_cidr: "10.244.0.0/16".to_owned(),
            service_cidr: "10.96.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            node_prefix: 24,
        }));
        carry_out(command::Kind::NodeJoin(NodeJoin {
            node: Some(proto::v1::Node {
                metadata: meta("n1"),
                ..Default::default()
            }),
        }));
        for name in ["a", "b"] {
            let pod = object::from(Pod {
                metadata: meta(name),
                spec: Some(PodSpec::default()),
                ..Default::default()
            });
            let key = object::key(&pod);
            carry_out(operation(Op::Put(Put { object: Some(pod) })));
            carry_out(operation(Op::Bind(Bind {
                pod: Some(key),
                uid: name.to_owned(),
                node: "n1".to_owned(),
            })));
        }
        let batch = |reports: Vec<PodReport>| {
            let mut pending = Pending::default();
            pending.pods("n1", reports);
            pending.batch()
        };
        let all = || batch(vec![report("a", "Running", false), report("b", "Running", false)]);
        let untold = carry_out(command::Kind::Status(StatusBatch::default()));
        assert_eq!(news(untold, all()).pods.len(), 2);
        let told = carry_out(command::Kind::Status(all()));
        assert_eq!(news(told.clone(), all()), StatusBatch::default());
        let changed = batch(vec![report("a", "Running", false), report("b", "Failed", false)]);
        assert_eq!(phases(&news(told, changed)), [("b", "Failed")]);
    }
}
