//! Apply: all objects of a request in one transaction, written only if what it was decided on still holds.
//!
//! The first look is at what this member has: whatever is newer elsewhere shows when it is proposed. An answer that writes
//! nothing is given only after a look at everything that was acknowledged.

use std::sync::Arc;

use prost::Message;
use proto::state::v1::command::Kind as Body;
use rpc::v1::{ApplyItem, ApplyRequest, ApplyResponse, Refusal};
use state::State;
use tonic::Status;

use super::status::refused;
use super::{ATTEMPTS_MAX, Service, answered, attempt_id, blocking, contended, request_id};
use crate::admission::Decision;
use crate::{admission, clock};

/// Items of fewer bytes are decided on in place: it takes less time than a change of threads.
const IN_PLACE_BYTES_MAX: usize = 16 << 10;

impl Service {
    pub(super) async fn do_apply(&self, request: ApplyRequest) -> Result<ApplyResponse, Status> {
        let id = request_id(&request.request_id)?;
        let items = Arc::new(request.items);
        for attempt in 0..ATTEMPTS_MAX {
            let early = match attempt == 0 && !request.dry_run {
                true => {
                    let state = self.node.stale();
                    let decided = decide(&state, &items, &id).await?.ok();
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
                            results: admission::results(&state, &items, &id, applied.objects),
                            revision: applied.revision,
                        });
                    }
                    let decision = decide(&state, &items, &id).await?.map_err(refused)?;
                    (state, decision)
                }
            };
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
            match self.propose(attempt_id(&id, attempt), body).await? {
                Ok(applied) => {
                    return Ok(ApplyResponse {
                        results: admission::results(&state, &items, &id, applied.objects),
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
    items: &Arc<Vec<ApplyItem>>,
    id: &str,
) -> Result<Result<Decision, Vec<Refusal>>, Status> {
    let now = clock::timestamp(clock::now_ms());
    let bytes: usize = items.iter().map(Message::encoded_len).sum();
    if bytes <= IN_PLACE_BYTES_MAX {
        return Ok(admission::decide(state, items, id, now));
    }
    let (state, items, id) = (state.clone(), items.clone(), id.to_owned());
    blocking(move || admission::decide(&state, &items, &id, now)).await
}
