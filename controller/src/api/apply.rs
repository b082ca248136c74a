//! Apply: all objects of a request in one transaction, decided on the newest state and written only if that still holds.

use proto::state::v1::command::Kind as Body;
use rpc::v1::{ApplyRequest, ApplyResponse};
use tonic::Status;

use super::status::refused;
use super::{ATTEMPTS_MAX, Service, answered, attempt_id, blocking, contended, request_id};
use crate::{admission, clock};

impl Service {
    pub(super) async fn do_apply(&self, request: ApplyRequest) -> Result<ApplyResponse, Status> {
        let id = request_id(&request.request_id)?;
        let items = std::sync::Arc::new(request.items);
        for attempt in 0..ATTEMPTS_MAX {
            let state = self.state().await?;
            if let Some(applied) = answered(&state, &id) {
                return Ok(ApplyResponse {
                    results: admission::results(&state, &items, &id, applied.objects),
                    revision: applied.revision,
                });
            }
            let decided = {
                let (state, items, id) = (state.clone(), items.clone(), id.clone());
                let now = clock::timestamp(clock::now_ms());
                blocking(move || admission::decide(&state, &items, &id, now)).await?
            };
            let decision = decided.map_err(refused)?;
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
