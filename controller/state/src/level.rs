//! Schema levels: what members and agents have to know, and what the cluster has agreed on.
//!
//! protobuf drops in silence what a reader does not know. So nothing is proposed that some member could not apply: the leader
//! asks all of them what they know, and raises the level of the cluster when each knows more. Likewise a pod is placed only
//! where the agent understands all of it. What follows from a command may differ between versions only where the level of the
//! cluster tells them apart.

use proto::state::v1::command::Kind as Body;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{Command, Operation};
use proto::v1::object::Object as Any;
use proto::v1::{Node, NodeSystemInfo, Object, PodSpec};

use crate::SCHEMA_LEVEL_MIN;
use crate::store::State;
use model::object;

/// The level of tokens in pods.
const TOKENS_IN_PODS: u32 = 4;
/// The level of finalizers, and of foreground deletion as one of them.
pub(crate) const FINALIZERS: u32 = 5;
/// From this level on a pod is bound only where it fits when it is bound.
pub(crate) const ROOM_WHEN_BOUND: u32 = 4;
/// The level of what a node's status says of its agent's.
pub const LEVELS_OF_AGENTS: u32 = 4;

/// Least schema level that can apply a command.
pub fn of(command: &Command) -> u32 {
    match &command.kind {
        Some(Body::RaiseLevel(raise)) => raise.level,
        Some(Body::Transaction(transaction)) => {
            let levels = transaction.operations.iter().map(of_operation);
            levels.max().unwrap_or(SCHEMA_LEVEL_MIN)
        }
        Some(Body::Status(batch)) => {
            let infos = batch
                .nodes
                .iter()
                .filter_map(|update| update.status.as_ref()?.node_info.as_ref());
            infos.map(of_info).max().unwrap_or(SCHEMA_LEVEL_MIN)
        }
        _ => SCHEMA_LEVEL_MIN,
    }
}

fn of_operation(operation: &Operation) -> u32 {
    match &operation.operation {
        Some(Op::Put(put)) => put.object.as_ref().map_or(SCHEMA_LEVEL_MIN, of_object),
        Some(Op::Apply(apply)) => apply.object.as_ref().map_or(SCHEMA_LEVEL_MIN, of_object),
        _ => SCHEMA_LEVEL_MIN,
    }
}

/// Least schema level that knows all that an object says.
pub fn of_object(object: &Object) -> u32 {
    let template = match &object.object {
        Some(Any::ReplicaSet(set)) => set.spec.as_ref().and_then(|spec| spec.template.as_ref()),
        Some(Any::Deployment(deployment)) => deployment.spec.as_ref().and_then(|spec| spec.template.as_ref()),
        _ => None,
    };
    let template_meta = template.and_then(|template| template.metadata.as_ref());
    let mut metas = Some(object::meta(object)).into_iter().chain(template_meta);
    if metas.any(|meta| !meta.finalizers.is_empty()) {
        return FINALIZERS;
    }
    let spec = match &object.object {
        Some(Any::ServiceAccount(account)) if account.automount_service_account_token == Some(true) => {
            return TOKENS_IN_PODS;
        }
        Some(Any::Pod(pod)) => pod.spec.as_ref(),
        _ => template.and_then(|template| template.spec.as_ref()),
    };
    spec.map_or(SCHEMA_LEVEL_MIN, of_pod)
}

/// Least schema level of an agent that runs a pod as its spec says.
pub fn of_pod(spec: &PodSpec) -> u32 {
    match spec.automount_service_account_token {
        Some(true) => TOKENS_IN_PODS,
        _ => SCHEMA_LEVEL_MIN,
    }
}

/// The levels of agents are told since they differ.
fn of_info(info: &NodeSystemInfo) -> u32 {
    match info.schema_level {
        0 => SCHEMA_LEVEL_MIN,
        _ => LEVELS_OF_AGENTS,
    }
}

/// What a node's agent understands, as it said when it was heard last.
pub fn of_node(node: &Node) -> u32 {
    let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    info.map_or(0, |info| info.schema_level).max(SCHEMA_LEVEL_MIN)
}

impl State {
    /// The highest level that every member can apply, as they have agreed: nothing above it is proposed.
    pub fn level(&self) -> u32 {
        self.level.max(SCHEMA_LEVEL_MIN)
    }

    /// Least schema level of an agent that runs what is bound to a node.
    pub fn level_needed_on(&self, node: &str) -> u32 {
        let pods = self.pod_records_on(node);
        let levels = pods.filter_map(|(_, pod)| pod.template.spec().map(of_pod));
        levels.max().unwrap_or(SCHEMA_LEVEL_MIN)
    }
}
