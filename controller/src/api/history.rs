//! History and Undo: who made what of an object, and bringing an earlier form of it back.

use model::{difference, object};
use proto::state::v1::command::Kind as Body;
use proto::state::v1::{Key, Past};
use proto::v1::Object;
use proto::v1::object::Object as Any;
use rpc::v1::{ApplyItem, HistoryEntry, HistoryRequest, HistoryResponse, UndoRequest, UndoResponse};
use state::State;
use state::rbac::Who;
use tonic::Status;

use super::access::{self, Need};
use super::admit;
use super::status::{Reason, refused, refused_one};
use super::{ATTEMPTS_MAX, By, Service, answered, attempt_id, blocking, contended, request_id};
use crate::admission::{self, Asked};
use crate::clock;

/// Paths that are told of one change: a line or two for a person.
const PATHS_MAX: usize = 20;

impl Service {
    pub(super) async fn do_history(&self, request: &HistoryRequest) -> Result<HistoryResponse, Status> {
        let (_, key) = super::key(request.key.as_ref())?;
        let state = self.state().await?;
        let revision = request.revision;
        // Objects are compared field by field.
        blocking(move || {
            let past = state.history(&key);
            let mut entries = entries(&past);
            if revision != 0 {
                entries.retain(|entry| entry.revision == revision);
                let found = past.into_iter().find(|past| past.revision == revision);
                let (Some(entry), Some(found)) = (entries.first_mut(), found) else {
                    return Err(unknown(&state, &key, revision));
                };
                entry.object = found.object.map(without_values);
            }
            Ok(HistoryResponse { entries })
        })
        .await?
    }

    pub(super) async fn do_undo(&self, request: UndoRequest, who: &Who) -> Result<UndoResponse, Status> {
        let by = By::new(who, "undo");
        let id = request_id(&request.request_id)?;
        let request = std::sync::Arc::new(request);
        for attempt in 0..ATTEMPTS_MAX {
            let state = self.state().await?;
            if let Some(applied) = answered(&state, &id) {
                let object = applied.objects.into_iter().next();
                return Ok(UndoResponse {
                    revision: 0, // it was told with the first answer
                    outcome: "configured".to_owned(),
                    object: object.map(without_values),
                });
            }
            let decided = {
                let (state, request, id) = (state.clone(), request.clone(), id.clone());
                blocking(move || decide(&state, &request, &id)).await??
            };
            let (decision, revision) = decided;
            // Once more: what is to come back may be another form by now.
            admit::check(&state, who, &needs(&state, &request)?)?;
            let result = decision.results.into_iter().next().unwrap_or_default();
            let answer = |object: Option<Object>| UndoResponse {
                object: object.map(without_values),
                outcome: result.outcome.clone(),
                revision,
            };
            if request.dry_run || decision.transaction.operations.is_empty() {
                return Ok(answer(result.object.clone()));
            }
            let body = Body::Transaction(decision.transaction);
            match self.propose(&by, attempt_id(&id, attempt), body).await? {
                Ok(applied) => return Ok(answer(applied.objects.into_iter().next())),
                Err(refusal) => tracing::debug!(attempt, ?refusal, "an undo is decided anew"),
            }
        }
        Err(contended("the object"))
    }
}

/// What an undo comes to, and the revision that the object goes back to.
fn decide(state: &State, request: &UndoRequest, id: &str) -> Result<(admission::Decision, u64), Status> {
    let wanted = wanted(state, request)?;
    let revision = wanted.revision;
    let item = item(state, wanted);
    let asked = Asked {
        items: &[item],
        id,
        manager: "",
        prune: None,
    };
    let now = clock::timestamp(clock::now_ms());
    let decision = admission::decide(state, &asked, now).map_err(refused)?;
    Ok((decision, revision))
}

/// What an undo needs of whoever asks for it. Where nothing is to come back, the call itself says why.
pub(super) fn needs(state: &State, request: &UndoRequest) -> Result<Vec<Need>, Status> {
    match wanted(state, request) {
        Ok(wanted) => {
            let mut needs = access::object("get", wanted.key.as_ref())?;
            needs.extend(access::apply(&[item(state, wanted)], &request.request_id, state));
            Ok(needs)
        }
        Err(_) if request.key.is_some() => {
            let mut needs = access::object("get", request.key.as_ref())?;
            needs.extend(access::object("patch", request.key.as_ref())?);
            Ok(needs)
        }
        Err(unknown) => Err(unknown),
    }
}

/// As if somebody applied it.
fn item(state: &State, wanted: Past) -> ApplyItem {
    let key = wanted.key.unwrap_or_default();
    ApplyItem {
        object: wanted.object,
        mode: match state.get(&key) {
            Some(_) => "REPLACE".to_owned(),
            None => "CREATE".to_owned(),
        },
        empty: Vec::new(),
    }
}

/// The form that is to come back.
fn wanted(state: &State, request: &UndoRequest) -> Result<Past, Status> {
    let key = match &request.key {
        Some(key) => super::key(Some(key))?.1,
        None => {
            let past = state.past(request.revision);
            past.and_then(|past| past.key).ok_or_else(|| {
                let revision = request.revision;
                refused_one(
                    Reason::NotFound,
                    format!("no change with revision {revision} is known: `ctl history KIND/NAME` shows those that are"),
                )
            })?
        }
    };
    let past = state.history(&key);
    let shown = shown(&key);
    let Some(last) = past.last() else {
        return Err(refused_one(
            Reason::NotFound,
            format!("nobody has changed {shown} as far as is known"),
        ));
    };
    if request.to_revision != 0 {
        let found = past.iter().find(|past| past.revision == request.to_revision);
        let found = found.ok_or_else(|| unknown(state, &key, request.to_revision))?;
        if found.object.is_none() {
            let message = format!(
                "{shown} was deleted at revision {}: name one before",
                found.revision
            );
            return Err(refused_one(Reason::Invalid, message));
        }
        return Ok(found.clone());
    }
    if request.revision != 0 && request.revision != last.revision {
        if past.iter().all(|past| past.revision != request.revision) {
            return Err(unknown(state, &key, request.revision));
        }
        let message = format!(
            "{shown} was changed again at revision {}: undo that first, or go back to what it was with `ctl undo {shown} --to-revision N`",
            last.revision
        );
        return Err(refused_one(Reason::Conflict, message));
    }
    // What went with its namespace or its owner was deleted by nobody who is known: the last form is it.
    if state.get(&key).is_none() && last.object.is_some() {
        return Ok(last.clone());
    }
    let before = past.iter().rev().skip(1).find(|past| past.object.is_some());
    match before {
        Some(before) if !last.created => Ok(before.clone()),
        _ => {
            let message = format!(
                "what {shown} was before revision {} is not known; `ctl delete {shown}` removes it",
                last.revision
            );
            Err(refused_one(Reason::NotFound, message))
        }
    }
}

fn unknown(state: &State, key: &Key, revision: u64) -> Status {
    let known: Vec<String> = state
        .history(key)
        .iter()
        .map(|past| past.revision.to_string())
        .collect();
    let known = match known.is_empty() {
        true => "none is known".to_owned(),
        false => format!("known are {}", known.join(", ")),
    };
    let shown = shown(key);
    refused_one(
        Reason::NotFound,
        format!("{shown} has no change with revision {revision}: {known}"),
    )
}

/// As people name it.
fn shown(key: &Key) -> String {
    format!("{}/{}", key.kind.to_ascii_lowercase(), key.name)
}

fn entries(past: &[Past]) -> Vec<HistoryEntry> {
    let mut entries = Vec::with_capacity(past.len());
    let mut before: Option<&Object> = None;
    for one in past {
        let what = match &one.object {
            None => "deleted",
            Some(_) if one.created => "created",
            Some(_) if before.is_none() => "known",
            Some(_) => "changed",
        };
        let mut paths = match (before, &one.object) {
            (Some(before), Some(after)) if what == "changed" => difference::paths(before, after),
            _ => Vec::new(),
        };
        let more = paths.len().saturating_sub(PATHS_MAX);
        paths.truncate(PATHS_MAX);
        entries.push(HistoryEntry {
            key: one.key.clone(),
            revision: one.revision,
            time: one.time,
            actor: one.actor.clone(),
            verb: one.verb.clone(),
            what: what.to_owned(),
            paths,
            more_paths: u32::try_from(more).unwrap_or(u32::MAX),
            object: None,
        });
        before = one.object.as_ref().or(before);
    }
    entries
}

/// A Secret shows its keys alone.
fn without_values(mut object: Object) -> Object {
    if let Some(Any::Secret(secret)) = &mut object.object {
        secret.data.values_mut().for_each(Vec::clear);
    }
    object::set_type_meta(&mut object);
    object
}

#[cfg(test)]
#[path = "history_test.rs"]
mod tests;
