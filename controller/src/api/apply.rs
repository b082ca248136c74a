//! Apply: all objects of a request in one transaction, written only if what it was decided on still holds.
//!
//! The first look is at what this member has: whatever is newer elsewhere shows when it is proposed. An answer that writes
//! nothing is given only after a look at everything that was acknowledged.

use std::sync::Arc;

use prost::Message;
use proto::state::v1::command::Kind as Body;
use rpc::v1::{ApplyRequest, ApplyResponse, Refusal};
use state::State;
use state::rbac::Who;
use tonic::Status;

use super::admit;
use super::status::refused;
use super::{ATTEMPTS_MAX, By, Service, answered, attempt_id, blocking, contended, request_id};
use crate::admission::{self, Asked, Decision};
use crate::clock;

/// Who applies, where nobody says: what people type.
const MANAGER: &str = "ctl";
/// Longest word for what is done: as `rollout restart`, with room.
const VERB_BYTES_MAX: usize = 64;
/// Items of fewer bytes are decided on in place: it takes less time than a change of threads.
const IN_PLACE_BYTES_MAX: usize = 16 << 10;

impl Service {
    pub(super) async fn do_apply(
        &self,
        mut request: ApplyRequest,
        who: &Who,
    ) -> Result<ApplyResponse, Status> {
        let id = request_id(&request.request_id)?;
        let by = By::new(who, &verb(&request)?);
        if request.manager.is_empty() {
            MANAGER.clone_into(&mut request.manager);
        }
        let request = Arc::new(request);
        // What is pruned is found by looking at everything.
        let quick = !request.dry_run && request.prune.is_none();
        for attempt in 0..ATTEMPTS_MAX {
            let early = match attempt == 0 && quick {
                true => {
                    let state = self.node.stale();
                    // What speaks against it here may be over elsewhere: the look at the newest state tells.
                    let decided = decide(&state, &request, &id).await?.ok();
                    decided
                        .filter(|decision| !decision.transaction.operations.is_empty())
                        .map(|decision| (state, decision))
                }
                false => None,
            };
            let (state, decision) = match early {
                Some(early) => early,
                None => {
                    let state = self.state().await?;
                    if let Some(applied) = answered(&state, &id) {
                        return Ok(ApplyResponse {
                            results: admission::results(&state, &request.items, &id, &applied),
                            revision: applied.revision,
                        });
                    }
                    let decision = decide(&state, &request, &id).await?.map_err(refused)?;
                    (state, decision)
                }
            };
            admit::check_apply(&state, who, &request, &decision.results)?;
            if request.dry_run || decision.transaction.operations.is_empty() {
                return Ok(ApplyResponse {
                    results: decision.results,
                    revision: if request.dry_run {
                        state.revision()
                    } else {
                        decision.revision
                    },
                });
            }
            let body = Body::Transaction(decision.transaction);
            match self.propose(&by, attempt_id(&id, attempt), body).await? {
                Ok(applied) => {
                    return Ok(ApplyResponse {
                        results: admission::results(&state, &request.items, &id, &applied),
                        revision: applied.revision,
                    });
                }
                // Something came between: the next look tells whether it matters.
                Err(refusal) => tracing::debug!(attempt, ?refusal, "an apply is decided anew"),
            }
        }
        Err(contended("an object"))
    }
}

async fn decide(
    state: &State,
    request: &Arc<ApplyRequest>,
    id: &str,
) -> Result<Result<Decision, Vec<Refusal>>, Status> {
    let now = clock::timestamp(clock::now_ms());
    let work = {
        let (state, request, id) = (state.clone(), request.clone(), id.to_owned());
        move || {
            let asked = Asked {
                items: &request.items,
                id: &id,
                manager: &request.manager,
                prune: request.prune.as_ref(),
            };
            admission::decide(&state, &asked, now)
        }
    };
    let bytes: usize = request.items.iter().map(Message::encoded_len).sum();
    match bytes <= IN_PLACE_BYTES_MAX {
        true => Ok(work()),
        false => blocking(work).await,
    }
}

/// What the history calls it.
fn verb(request: &ApplyRequest) -> Result<String, Status> {
    let given = request.verb.as_str();
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, ' ' | '-');
    if given.len() > VERB_BYTES_MAX || !given.chars().all(plain) {
        return Err(Status::invalid_argument(format!(
            "the verb has more than {VERB_BYTES_MAX} bytes, or others than lower case letters, digits, spaces and dashes"
        )));
    }
    let mode = request.items.first().map_or("", |item| item.mode.as_str());
    Ok(match (given, mode) {
        ("", "CREATE") => "create".to_owned(),
        ("", "REPLACE") => "replace".to_owned(),
        ("", _) => "apply".to_owned(),
        (given, _) => given.to_owned(),
    })
}
