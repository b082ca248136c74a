//! What an apply comes to: every reason against it, or one transaction. Pure: it looks at the state, and takes what is
//! random from the request's own id, so that a retry anywhere comes to the same.

mod item;
mod prune;
mod results;

use std::collections::BTreeSet;

use model::object;
use proto::Timestamp;
use proto::state::v1::command::Kind as Body;
use proto::state::v1::command_reply::Reply;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::precondition::Expect;
use proto::state::v1::{Apply, Command, Key, Operation, Precondition, Put, Transaction};
use rpc::v1::{ApplyItem, ApplyResult, Prune, Refusal};
use state::{OPERATIONS_MAX, State, level};

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

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) items: &'a [ApplyItem],
    /// The request's id.
    pub(crate) id: &'a str,
    /// Who applies.
    pub(crate) manager: &'a str,
    pub(crate) prune: Option<&'a Prune>,
}

/// Decides on all items together, at a state that is up to date.
pub(crate) fn decide(state: &State, asked: &Asked<'_>, now: Timestamp) -> Result<Decision, Vec<Refusal>> {
    let items = asked.items;
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
    let mut admission = Admission::new(state, asked);
    let mut admitted = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        admitted.extend(admission.item(index, item));
    }
    let mut refusals = admission.refusals;
    // Namespaces first, wherever they stand: what is in them needs them.
    admitted.sort_by_key(|admitted| object::kind(&admitted.object) != model::Kind::Namespace);
    let pruned = match asked.prune {
        None => Vec::new(),
        Some(prune) => prune::unwanted(state, prune, asked.manager, &admitted).unwrap_or_else(|reasons| {
            refusals.extend(reasons);
            Vec::new()
        }),
    };

    for one in &admitted {
        let needed = level::of_object(&one.object);
        if needed > state.level() {
            let message = format!(
                "needs schema level {needed}, and not every controller knows more than {}: upgrade those that `ctl cluster members` shows with less",
                state.level()
            );
            refusals.push(refusal(one.item, "", Reason::Invalid, message));
        }
    }
    let trial = try_out(state, &admitted, asked.manager, now, &mut refusals);
    if !refusals.is_empty() {
        refusals.sort_by(|a, b| (a.item, &a.path).cmp(&(b.item, &b.path)));
        return Err(refusals);
    }
    let mut transaction = Transaction::default();
    let mut results = vec![ApplyResult::default(); items.len()];
    for one in &admitted {
        let key = object::key(&one.object);
        let outcome = match &one.live {
            None => "created",
            Some(_) if trial.changed.contains(&place(&key)) => "configured",
            Some(_) => "unchanged",
        };
        if let Some(result) = results.get_mut(one.item) {
            *result = ApplyResult {
                object: trial.state.get(&key),
                outcome: outcome.to_owned(),
            };
        }
        if outcome != "unchanged" || one.said.is_some() {
            transaction.preconditions.push(one.as_decided());
            transaction.operations.push(one.operation(asked.manager));
        }
    }
    for object in pruned {
        let (precondition, operation) = prune::removal(&object);
        transaction.preconditions.push(precondition);
        transaction.operations.push(operation);
        results.push(ApplyResult {
            object: Some(object),
            outcome: "pruned".to_owned(),
        });
    }
    Ok(Decision {
        transaction,
        results,
        revision: trial.state.revision(),
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

    fn operation(&self, manager: &str) -> Operation {
        let object = Some(self.object.clone());
        let operation = match &self.said {
            None => Op::Put(Put { object }),
            Some(said) => Op::Apply(Apply {
                object,
                manager: manager.to_owned(),
                said: Some(said.clone()),
            }),
        };
        Operation {
            operation: Some(operation),
        }
    }
}

/// What became of the items on a copy of the state.
struct Trial {
    state: State,
    changed: BTreeSet<Place>,
}

type Place = (String, String, String);

fn place(key: &Key) -> Place {
    (key.kind.clone(), key.namespace.clone(), key.name.clone())
}

/// Tries the items on a copy of the state, and again without those that it refuses, so that each gets its reason.
fn try_out(
    state: &State,
    admitted: &[Admitted],
    manager: &str,
    now: Timestamp,
    refusals: &mut Vec<Refusal>,
) -> Trial {
    let mut left: Vec<&Admitted> = admitted.iter().collect();
    for _ in 0..TRIALS_MAX {
        let transaction = Transaction {
            operations: left.iter().map(|admitted| admitted.operation(manager)).collect(),
            ..Transaction::default()
        };
        let command = Command {
            time: Some(now),
            kind: Some(Body::Transaction(transaction)),
            ..Command::default()
        };
        let mut state = state.clone();
        let outcome = state.apply(&command);
        match outcome.reply.reply {
            Some(Reply::Applied(_)) => {
                let changed = outcome.changes.iter();
                return Trial {
                    state,
                    changed: changed
                        .map(|change| place(&object::key(change.object())))
                        .collect(),
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
    Trial {
        state: state.clone(),
        changed: BTreeSet::new(),
    }
}

#[cfg(test)]
#[path = "admission_merge_test.rs"]
mod merge_tests;
#[cfg(test)]
#[path = "admission_test.rs"]
mod tests;
