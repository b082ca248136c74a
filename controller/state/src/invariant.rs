//! What holds of every state, checked against the objects themselves. For tests and for whoever suspects a state: it costs a
//! walk over everything.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{Kind, object};

use crate::key::ObjectKey;
use crate::record::{Record, controller};
use crate::store::State;

/// Something that should never be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{about}: {problem}")]
pub struct Violation {
    /// The object, index or setting.
    pub about: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

fn fail<T>(about: impl ToString, problem: &'static str) -> Result<T, Violation> {
    Err(Violation {
        about: about.to_string(),
        problem,
    })
}

/// Checks everything that always holds; the first thing that does not is told.
pub fn check(state: &State) -> Result<(), Violation> {
    let mut ranges = BTreeMap::new();
    for (key, record) in &state.records {
        check_object(state, key, record)?;
        if let Some(node) = record.node() {
            let range = node
                .spec
                .as_ref()
                .map(|spec| spec.pod_cidr.clone())
                .unwrap_or_default();
            if range.is_empty() || ranges.insert(range, key).is_some() {
                return fail(key, "its range of addresses is missing or another node's");
            }
        }
    }
    if let Some(key) = state.said.keys().find(|key| !state.records.contains_key(*key)) {
        return fail(key, "somebody's word on it is kept, yet it is gone");
    }
    if !state.history.is_sound() {
        return fail("history", "it is above its bounds, or its maps do not agree");
    }
    check_indices(state)
}

fn check_object(state: &State, key: &ObjectKey, record: &Record) -> Result<(), Violation> {
    let version = record.resource_version();
    if version == 0 || version > state.revision {
        return fail(key, "its resourceVersion is not one that was");
    }
    if key.kind.namespaced() && state.namespace(&key.namespace).is_none() {
        return fail(key, "its namespace does not exist");
    }
    match record {
        Record::Pod(pod) => {
            if key.kind != Kind::Pod {
                return fail(key, "a pod under another kind");
            }
            if pod.desired_revision == 0 || pod.desired_revision > version {
                return fail(key, "its desired form changed at no revision of its own");
            }
            if pod.deleted.is_some() && !pod.bound() && pod.template.finalizers().is_empty() {
                return fail(key, "it is being deleted, yet no node and no finalizer has it");
            }
            let phase = pod.status.decoded().phase;
            if !["Pending", "Running", "Succeeded", "Failed", "Unknown"].contains(&phase.as_str()) {
                return fail(key, "its phase is none");
            }
        }
        Record::Whole(object) => {
            if ObjectKey::of(object).as_ref() != Some(key) || key.kind == Kind::Pod || key.kind == Kind::Event
            {
                return fail(key, "stored under a key that is not its own");
            }
            if object::meta(object).creation_timestamp.is_none() {
                return fail(key, "it was never created");
            }
        }
    }
    Ok(())
}

/// Builds every index anew and compares.
fn check_indices(state: &State) -> Result<(), Violation> {
    let mut fresh = State::new();
    for (key, record) in &state.records {
        if fresh.by_uid.contains_key(record.uid()) {
            return fail(key, "another object has its uid");
        }
        fresh.insert(key.clone(), record.clone());
    }
    let same = [
        ("by_uid", state.by_uid == fresh.by_uid),
        ("by_owner", state.by_owner == fresh.by_owner),
        ("ownerless", state.ownerless == fresh.ownerless),
        ("by_node", state.by_node == fresh.by_node),
        ("deleting", state.deleting == fresh.deleting),
        ("unmanaged", state.unmanaged == fresh.unmanaged),
    ];
    if let Some((index, _)) = same.iter().find(|(_, same)| !same) {
        return fail(index, "the index is not what the objects say");
    }
    let managed = state
        .unmanaged
        .iter()
        .filter_map(|key| Some((key, state.records.get(key)?)));
    if let Some((key, _)) = managed
        .into_iter()
        .find(|(_, record)| controller(record.owners()).is_some())
    {
        return fail(key, "counted as unmanaged, yet it has a manager");
    }
    check_templates(state, &fresh)
}

fn check_templates(state: &State, fresh: &State) -> Result<(), Violation> {
    let users = |state: &State| -> BTreeMap<(u64, usize), usize> {
        let each = state
            .templates
            .iter()
            .flat_map(|(hash, same)| same.iter().map(move |one| (*hash, one)));
        each.map(|(hash, (template, users))| ((hash, Arc::as_ptr(template) as usize), *users))
            .collect()
    };
    if users(state) != users(fresh) {
        return fail("templates", "their users are miscounted");
    }
    for (hash, same) in &state.templates {
        for (place, (template, _)) in same.iter().enumerate() {
            if same
                .iter()
                .skip(place + 1)
                .any(|(other, _)| other.content == template.content)
            {
                return fail(format!("template {hash:x}"), "stored twice");
            }
        }
    }
    Ok(())
}
