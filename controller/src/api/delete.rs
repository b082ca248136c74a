//! Delete: all targets or none.

use std::collections::BTreeSet;

use model::object;
use proto::Timestamp;
use proto::state::v1::command::Kind as Body;
use proto::state::v1::command_reply::Reply;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{Command, DeleteOp, Operation, Transaction};
use rpc::v1::{DeleteRequest, DeleteResponse, Refusal};
use state::{OPERATIONS_MAX, State};
use tonic::Status;

use super::status::{Reason, by_state, refusal, refused, refused_one};
use super::{By, Service, blocking, not_found, request_id};
use crate::clock;

impl Service {
    pub(super) async fn do_delete(&self, request: DeleteRequest, by: &By) -> Result<DeleteResponse, Status> {
        let id = request_id(&request.request_id)?;
        let state = self.state().await?;
        if let Some(Reply::Applied(applied)) = state.reply(&id).and_then(|reply| reply.reply) {
            return Ok(DeleteResponse {
                revision: applied.revision,
            });
        }
        let now = clock::timestamp(clock::now_ms());
        let targets = request.targets;
        let decided = {
            let state = state.clone();
            blocking(move || decide(&state, targets, now)).await?
        };
        let transaction = decided.map_err(refused)?;
        if request.dry_run {
            return Ok(DeleteResponse {
                revision: state.revision(),
            });
        }
        match self.propose(by, id, Body::Transaction(transaction)).await? {
            Ok(applied) => Ok(DeleteResponse {
                revision: applied.revision,
            }),
            Err(reason) => Err(refused(vec![by_state(reason.index as usize, &reason)])),
        }
    }
}

/// Every reason against it, or the transaction.
fn decide(state: &State, targets: Vec<DeleteOp>, now: Timestamp) -> Result<Transaction, Vec<Refusal>> {
    if targets.is_empty() || targets.len() > OPERATIONS_MAX {
        let message = format!("name from 1 to {OPERATIONS_MAX} objects, not {}", targets.len());
        return Err(vec![refusal(0, "", Reason::Invalid, message)]);
    }
    let mut refusals = Vec::new();
    let mut seen = BTreeSet::new();
    let mut operations = Vec::new();
    for (item, target) in targets.into_iter().enumerate() {
        let (kind, key) = match super::key(target.key.as_ref()) {
            Ok(found) => found,
            Err(status) => {
                refusals.push(refusal(item, "", Reason::Invalid, status.message()));
                continue;
            }
        };
        if kind == model::Kind::Event {
            refusals.push(refusal(item, "", Reason::Invalid, "events go by themselves"));
            continue;
        }
        let Some(object) = state.get(&key) else {
            refusals.push(refusal(item, "", Reason::NotFound, not_found(kind, &key)));
            continue;
        };
        let uid = &object::meta(&object).uid;
        if !target.uid.is_empty() && target.uid != *uid {
            let message = format!(
                "{} is another one now: its uid is {uid}",
                object::display(&object)
            );
            refusals.push(refusal(item, "", Reason::Conflict, message));
            continue;
        }
        if !seen.insert((kind, key.namespace.clone(), key.name.clone())) {
            continue; // once is enough
        }
        let operation = Operation {
            operation: Some(Op::Delete(DeleteOp {
                key: Some(key),
                ..target
            })),
        };
        // Each for itself: one that goes takes nothing along that another one names, that is left to the plans.
        refusals.extend(refused_by_state(state, item, &operation, now));
        operations.push(operation);
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    Ok(Transaction {
        operations,
        ..Transaction::default()
    })
}

fn refused_by_state(state: &State, item: usize, operation: &Operation, now: Timestamp) -> Option<Refusal> {
    let transaction = Transaction {
        operations: vec![operation.clone()],
        ..Transaction::default()
    };
    let outcome = state.clone().apply(&Command {
        time: Some(now),
        kind: Some(Body::Transaction(transaction)),
        ..Command::default()
    });
    match outcome.reply.reply {
        Some(Reply::Refused(refused)) => Some(by_state(item, &refused)),
        _ => None,
    }
}

/// A status for one object that is not there.
pub(super) fn missing(kind: model::Kind, key: &proto::state::v1::Key) -> Status {
    refused_one(Reason::NotFound, not_found(kind, key))
}
