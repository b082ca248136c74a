//! What an apply removes because it no longer speaks of it: only what the same manager applied before, with labels that say
//! that it belongs to the set, and never what others made.

use std::collections::BTreeSet;

use model::selector::Labels;
use model::{Kind, object};
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::precondition::Expect;
use proto::state::v1::{DeleteOp, Operation, Precondition};
use proto::v1::Object;
use rpc::v1::{Prune, Refusal};
use state::{OPERATIONS_MAX, State};

use super::item::Admitted;
use super::place;
use crate::api::status::{Reason, refusal};

/// The objects that go, or why none does.
pub(super) fn unwanted(
    state: &State,
    prune: &Prune,
    manager: &str,
    admitted: &[Admitted],
) -> Result<Vec<Object>, Vec<Refusal>> {
    let invalid = |message: String| vec![refusal(0, "", Reason::Invalid, message)];
    if prune.label_selector.trim().is_empty() {
        let message = "prune needs a label selector, which says what belongs to the set";
        return Err(invalid(message.to_owned()));
    }
    let labels = Labels::parse(&prune.label_selector)
        .map_err(|cause| invalid(format!("the label selector is not one: {cause}")))?;
    let outside = admitted
        .iter()
        .filter(|one| !labels.matches(&object::meta(&one.object).labels));
    let outside: Vec<Refusal> = outside
        .map(|one| {
            let message = format!(
                "{} does not have the labels `{}` of the set that is pruned",
                object::display(&one.object),
                prune.label_selector
            );
            refusal(one.item, "metadata.labels", Reason::Invalid, message)
        })
        .collect();
    if !outside.is_empty() {
        return Err(outside);
    }
    let wanted: BTreeSet<_> = admitted
        .iter()
        .map(|one| place(&object::key(&one.object)))
        .collect();
    let mut namespaces: BTreeSet<&str> = prune.namespaces.iter().map(String::as_str).collect();
    if namespaces.is_empty() {
        let of = admitted
            .iter()
            .map(|one| object::meta(&one.object).namespace.as_str());
        namespaces.extend(of.filter(|namespace| !namespace.is_empty()));
    }
    let mut unwanted = Vec::new();
    // A namespace takes everything in it along, and nodes come by joining.
    let kinds = Kind::ALL
        .into_iter()
        .filter(|kind| kind.applicable() && !matches!(kind, Kind::Namespace | Kind::Node));
    for kind in kinds {
        let places: Vec<Option<&str>> = match kind.namespaced() {
            true => namespaces.iter().map(|namespace| Some(*namespace)).collect(),
            false => vec![None],
        };
        for namespace in places {
            let objects = state.list(kind, namespace, None).filter(|object| {
                let meta = object::meta(object);
                let key = object::key(object);
                meta.deletion_timestamp.is_none()
                    && labels.matches(&meta.labels)
                    && !wanted.contains(&place(&key))
                    && state.said(&key).iter().any(|(name, _)| name == manager)
            });
            unwanted.extend(objects);
        }
    }
    if unwanted.len() + admitted.len() > OPERATIONS_MAX {
        let message = format!(
            "{} objects would be pruned, more than one transaction takes; delete them with `ctl delete -l`",
            unwanted.len()
        );
        return Err(invalid(message));
    }
    // What was made last goes first.
    unwanted.reverse();
    Ok(unwanted)
}

/// How one of them goes, and what that rests on.
pub(super) fn removal(object: &Object) -> (Precondition, Operation) {
    let key = object::key(object);
    let meta = object::meta(object);
    let precondition = Precondition {
        key: Some(key.clone()),
        expect: Some(Expect::ResourceVersion(meta.resource_version.clone())),
    };
    let delete = DeleteOp {
        key: Some(key),
        uid: meta.uid.clone(),
        ..DeleteOp::default()
    };
    let operation = Operation {
        operation: Some(Op::Delete(delete)),
    };
    (precondition, operation)
}
