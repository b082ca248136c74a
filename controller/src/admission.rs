//! What an apply comes to: every reason against it, or one transaction. Pure: it looks at the state, and takes what is
//! random from the request's own id, so that a retry anywhere comes to the same.

mod item;
mod results;

use std::collections::BTreeSet;

use model::object;
use proto::Timestamp;
use proto::state::v1::command::Kind as Body;
use proto::state::v1::command_reply::Reply;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::precondition::Expect;
use proto::state::v1::{Command, Key, Operation, Precondition, Put, Transaction};
use proto::v1::Object;
use rpc::v1::{ApplyItem, ApplyResult, Refusal};
use state::{OPERATIONS_MAX, SCHEMA_LEVEL, State};

use crate::api::status::{Reason, by_state, refusal};
use item::{Admission, Admitted};
pub(crate) use results::{made_uid, results};

/// Reasons of the state itself that are looked for: each costs a trial of the whole transaction.
const TRIALS_MAX: usize = 16;

/// What an apply comes to.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    /// What is to be written; no operations when everything is as it should be.
    pub(crate) transaction: Transaction,
    /// The answer if it is written, or is not to be.
    pub(crate) results: Vec<ApplyResult>,
    /// The revision after it.
    pub(crate) revision: u64,
}

/// Decides on all items together, at a state that is up to date.
pub(crate) fn decide(
    state: &State,
    items: &[ApplyItem],
    request: &str,
    now: Timestamp,
) -> Result<Decision, Vec<Refusal>> {
    if items.is_empty() {
        return Err(vec![refusal(
            0,
            "",
            Reason::Invalid,
            "the request has no objects",
        )]);
    }
    if items.len() > OPERATIONS_MAX {
        let message = format!(
            "{} objects are more than {OPERATIONS_MAX}; split them",
            items.len()
        );
        return Err(vec![refusal(0, "", Reason::Invalid, message)]);
    }
    let mut admission = Admission::new(state, items, request);
    let mut admitted = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        admitted.extend(admission.item(index, item));
    }
    let mut refusals = admission.refusals;
    // Namespaces first, wherever they stand: what is in them needs them.
    admitted.sort_by_key(|admitted| object::kind(&admitted.object) != model::Kind::Namespace);

    let mut trial = try_out(state, &admitted, now, &mut refusals);
    if !refusals.is_empty() {
        refusals.sort_by(|a, b| (a.item, &a.path).cmp(&(b.item, &b.path)));
        return Err(refusals);
    }
    let mut transaction = Transaction::default();
    let mut results = vec![ApplyResult::default(); items.len()];
    trial.objects.reverse();
    for one in &admitted {
        let outcome = match &one.live {
            None => "created",
            Some(_) if trial.changed.contains(&place(&object::key(&one.object))) => "configured",
            Some(_) => "unchanged",
        };
        if let Some(result) = results.get_mut(one.item) {
            *result = ApplyResult {
                object: trial.objects.pop(),
                outcome: outcome.to_owned(),
            };
        }
        if outcome != "unchanged" {
            transaction.preconditions.push(one.as_decided());
            transaction.operations.push(one.put());
        }
    }
    Ok(Decision {
        transaction,
        results,
        revision: trial.revision,
    })
}

impl Admitted {
    /// What the decision rests on.
    fn as_decided(&self) -> Precondition {
        let expect = match &self.live {
            None => Expect::Absent(true),
            Some(live) => Expect::ResourceVersion(object::meta(live).resource_version.clone()),
        };
        Precondition {
            key: Some(object::key(&self.object)),
            expect: Some(expect),
        }
    }

    fn put(&self) -> Operation {
        Operation {
            operation: Some(Op::Put(Put {
                object: Some(self.object.clone()),
            })),
        }
    }
}

/// What became of the items on a copy of the state.
#[derive(Default)]
struct Trial {
    /// In the order of the items that were tried.
    objects: Vec<Object>,
    changed: BTreeSet<Place>,
    revision: u64,
}

type Place = (String, String, String);

fn place(key: &Key) -> Place {
    (key.kind.clone(), key.namespace.clone(), key.name.clone())
}

/// Tries the items on a copy of the state, and again without those that it refuses, so that each gets its reason.
fn try_out(state: &State, admitted: &[Admitted], now: Timestamp, refusals: &mut Vec<Refusal>) -> Trial {
    let mut left: Vec<&Admitted> = admitted.iter().collect();
    for _ in 0..TRIALS_MAX {
        let transaction = Transaction {
            operations: left.iter().map(|admitted| admitted.put()).collect(),
            ..Transaction::default()
        };
        let command = Command {
            time: Some(now),
            level: SCHEMA_LEVEL,
            kind: Some(Body::Transaction(transaction)),
            ..Command::default()
        };
        let outcome = state.clone().apply(&command);
        match outcome.reply.reply {
            Some(Reply::Applied(applied)) => {
                let changed = outcome.changes.iter().filter_map(|change| change.object.as_ref());
                return Trial {
                    objects: applied.objects,
                    changed: changed.map(|object| place(&object::key(object))).collect(),
                    revision: applied.revision,
                };
            }
            Some(Reply::Refused(refused)) => {
                let index = refused.index as usize;
                let item = left.get(index).map_or(0, |admitted| admitted.item);
                refusals.push(by_state(item, &refused));
                if index >= left.len() {
                    break;
                }
                left.remove(index);
            }
            None => break,
        }
    }
    Trial::default()
}

#[cfg(test)]
#[path = "admission_test.rs"]
mod tests;
