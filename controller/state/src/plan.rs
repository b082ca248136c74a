//! What the leader is to propose next, one file a kind. Level-triggered: each run looks at the whole state and assumes
//! nothing of the run before, so it is always safe to run again; a run over a state that is as it should be says nothing.
//!
//! A run may only look at a state in which the commands of the run before are applied. Times come with the call; since
//! some steps wait for a time (`minReadySeconds`, the progress deadline), it is to be run at least once a second.

mod default_objects;
mod deployment;
mod fence;
mod garbage;
mod namespace;
mod node;
mod replica_set;

pub use fence::MARGIN_MS as FENCE_MARGIN_MS;
pub(crate) use node::{SILENT, is_lost};

use std::collections::{BTreeMap, BTreeSet};

use proto::state::v1::command::Kind as Body;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::precondition::Expect;
use proto::state::v1::{Command, DeleteOp, Key, Operation, Precondition, SetStatus, Transaction};
use proto::v1::Object;

use crate::record::timestamp;
use crate::store::State;

/// Operations of one command: a log entry stays small, and one conflict undoes little.
pub(crate) const BATCH_MAX: usize = 500;
/// Commands of one kind of work in one run: what is left is done in the next, so that a run has an end.
pub(crate) const BATCHES_MAX: usize = 20;

/// What the leader knows beside the state.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Leases by node. Of a node that is not in here nothing is known yet, and nothing is decided.
    pub leases: BTreeMap<String, Lease>,
}

/// Whether a node's agent is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Heartbeats arrive in time.
    Live,
    /// None came for the length of a lease.
    Lost {
        /// When the lease ended, in milliseconds since 1970.
        since: i64,
        /// How long ago that is by a clock that is never set, in milliseconds.
        past_ms: i64,
    },
}

/// Names of the nodes whose leases a plan asks for: those that there are, and those that were deleted and have pods left.
pub fn nodes(state: &State) -> impl Iterator<Item = &str> {
    let there = state
        .nodes()
        .filter_map(|node| Some(node.metadata.as_ref()?.name.as_str()));
    let deleted = state.by_node.keys().map(AsRef::as_ref);
    there.chain(deleted.filter(|name: &&str| !name.is_empty() && state.node(name).is_none()))
}

/// The commands that bring reality nearer to what is desired, in the order in which they are to be proposed. `now` is in
/// milliseconds since 1970. One that is refused is out of date: the next run decides anew.
pub fn commands(state: &State, now: i64, world: &World) -> Vec<Command> {
    let mut plan = Plan {
        state,
        now,
        commands: Vec::new(),
        changed: BTreeSet::new(),
    };
    plan.default_objects();
    plan.nodes(world);
    plan.namespaces();
    plan.garbage();
    plan.deployments();
    plan.replica_sets();
    plan.commands
}

struct Plan<'a> {
    state: &'a State,
    now: i64,
    commands: Vec<Command>,
    /// Uids of ReplicaSets that this run has changed already.
    changed: BTreeSet<String>,
}

impl Plan<'_> {
    fn propose(&mut self, preconditions: Vec<Precondition>, operations: Vec<Op>) {
        self.commands
            .push(transaction(self.now, preconditions, operations));
    }

    /// As many commands as it takes, each of its own: those of one may fail without the others.
    fn propose_each(&mut self, preconditions: &[Precondition], operations: impl IntoIterator<Item = Op>) {
        let mut batch = Vec::new();
        let mut batches = 0;
        for operation in operations {
            batch.push(operation);
            if batch.len() == BATCH_MAX {
                self.propose(preconditions.to_vec(), std::mem::take(&mut batch));
                batches += 1;
                if batches == BATCHES_MAX {
                    return;
                }
            }
        }
        if !batch.is_empty() {
            self.propose(preconditions.to_vec(), batch);
        }
    }
}

/// A command with one transaction.
pub(crate) fn transaction(now: i64, preconditions: Vec<Precondition>, operations: Vec<Op>) -> Command {
    let operations = operations
        .into_iter()
        .map(|operation| Operation {
            operation: Some(operation),
        })
        .collect();
    Command {
        time: Some(timestamp(now)),
        level: 1,
        kind: Some(Body::Transaction(Transaction {
            preconditions,
            operations,
            dry_run: false,
        })),
        ..Command::default()
    }
}

/// The object is as the plan saw it.
fn unchanged(key: Key, resource_version: &str) -> Precondition {
    Precondition {
        key: Some(key),
        expect: Some(Expect::ResourceVersion(resource_version.to_owned())),
    }
}

fn delete(key: Key, uid: &str, propagation: &str) -> Op {
    Op::Delete(DeleteOp {
        key: Some(key),
        uid: uid.to_owned(),
        propagation: propagation.to_owned(),
        grace_period_seconds: None,
    })
}

pub(crate) fn set_status(object: Object, remove_conditions: Vec<String>) -> Op {
    Op::SetStatus(SetStatus {
        object: Some(object),
        remove_conditions,
    })
}
