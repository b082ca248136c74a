//! Who writes, and under which ids: a call that is repeated is answered as the first time.

use proto::state::v1::Applied;
use proto::state::v1::command_reply::Reply;
use state::State;
use state::rbac::Who;
use tonic::Status;

use super::ATTEMPTS_MAX;
use crate::security::new_uuid;

/// Longest request id of a client: the state takes a few bytes more, which number the attempts.
pub(super) const REQUEST_ID_BYTES_MAX: usize = state::REQUEST_ID_BYTES_MAX - 8;

/// Who writes and what they call it, for the history.
#[derive(Clone, Debug)]
pub(super) struct By {
    pub(super) actor: String,
    pub(super) verb: String,
}

impl By {
    pub(super) fn new(who: &Who, verb: &str) -> Self {
        let mut actor = who.name.clone();
        actor.truncate(actor.floor_char_boundary(state::ACTOR_BYTES_MAX));
        Self {
            actor,
            verb: verb.to_owned(),
        }
    }
}

/// The id under which a call writes: the client's, or one of its own.
pub(super) fn request_id(given: &str) -> Result<String, Status> {
    match given.len() {
        0 => Ok(new_uuid()),
        1..=REQUEST_ID_BYTES_MAX => Ok(given.to_owned()),
        bytes => Err(Status::invalid_argument(format!(
            "a request id of {bytes} bytes is longer than {REQUEST_ID_BYTES_MAX}"
        ))),
    }
}

/// A call that decides anew writes under another id: the state remembers refusals too.
pub(super) fn attempt_id(id: &str, attempt: u32) -> String {
    match attempt {
        0 => id.to_owned(),
        attempt => format!("{id}/{attempt}"),
    }
}

/// The object that was written for this request, whichever attempt it was.
pub(super) fn answered(state: &State, id: &str) -> Option<Applied> {
    (0..ATTEMPTS_MAX).find_map(|attempt| match state.reply(&attempt_id(id, attempt))?.reply {
        Some(Reply::Applied(applied)) => Some(applied),
        _ => None,
    })
}
