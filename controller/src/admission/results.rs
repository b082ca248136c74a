//! The answer to an apply from what the state kept of it, and what makes that possible: uids and generated names that
//! come from the request's id.

use std::collections::HashMap;

use model::{Kind, default, name, object};
use proto::state::v1::Applied;
use rpc::v1::{ApplyItem, ApplyResult};
use sha2::{Digest, Sha256};
use state::State;

/// The uid of the object that this item of this request makes.
pub(crate) fn made_uid(request: &str, item: usize) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest("uid", request, item, 0)[..16]);
    name::uid(bytes)
}

/// The end of a name that this item leaves to the cluster, in this round of looking for a free one.
pub(super) fn made_suffix(request: &str, item: usize, round: u32) -> [u8; name::SUFFIX_LEN] {
    let mut bytes = [0; name::SUFFIX_LEN];
    let length = bytes.len();
    bytes.copy_from_slice(&digest("name", request, item, round)[..length]);
    bytes
}

fn digest(what: &str, request: &str, item: usize, round: u32) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(what.as_bytes());
    hasher.update((request.len() as u64).to_be_bytes());
    hasher.update(request.as_bytes());
    hasher.update((item as u64).to_be_bytes());
    hasher.update(round.to_be_bytes());
    hasher.finalize().into()
}

/// What each item came to, given the objects that were written for this request: those that it made bear its uids, the
/// others were there before, what was not written is as it should be, and what was deleted was pruned.
pub(crate) fn results(
    state: &State,
    items: &[ApplyItem],
    request: &str,
    applied: &Applied,
) -> Vec<ApplyResult> {
    let mut by_uid = HashMap::new();
    let mut by_key = HashMap::new();
    let written = &applied.objects;
    for (index, object) in written.iter().enumerate() {
        let key = object::key(object);
        by_uid.insert(object::meta(object).uid.clone(), index);
        by_key.insert((key.kind, key.namespace, key.name), index);
    }
    let result = |(item, given): (usize, &ApplyItem)| {
        let made = by_uid
            .get(&made_uid(request, item))
            .and_then(|index| written.get(*index));
        if let Some(made) = made {
            return ApplyResult {
                object: Some(made.clone()),
                outcome: "created".to_owned(),
            };
        }
        let mut object = given.object.clone().unwrap_or_default();
        default::object(&mut object);
        if object::try_kind(&object).is_none() {
            return ApplyResult::default();
        }
        let key = object::key(&object);
        let place = (key.kind.clone(), key.namespace.clone(), key.name.clone());
        match by_key.get(&place).and_then(|index| written.get(*index)) {
            Some(configured) => ApplyResult {
                object: Some(configured.clone()),
                outcome: "configured".to_owned(),
            },
            None => ApplyResult {
                object: state.get(&key),
                outcome: "unchanged".to_owned(),
            },
        }
    };
    let pruned = applied.deleted.iter().filter_map(|key| {
        let kind = Kind::parse(&key.kind).ok()?;
        Some(ApplyResult {
            object: Some(object::named(kind, &key.namespace, &key.name)),
            outcome: "pruned".to_owned(),
        })
    });
    items.iter().enumerate().map(result).chain(pruned).collect()
}
