//! Answers that were given, for retries of the same request.

use std::sync::Arc;

use imbl::{OrdMap, Vector};
use prost::Message;
use proto::state::v1::CommandReply;

/// Answers kept: a retry comes within seconds, and no member proposes more than that meanwhile.
pub(crate) const REPLIES_MAX: usize = 4096;
/// Bytes of answers kept; the oldest go first. The newest stays whatever its size, which the proposer bounds.
pub(crate) const REPLY_BYTES_MAX: usize = 16 << 20;

/// The last answers by request, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replies {
    order: Vector<Arc<str>>,
    by_id: OrdMap<Arc<str>, (Arc<CommandReply>, usize)>,
    bytes: usize,
}

impl Replies {
    pub(crate) fn get(&self, id: &str) -> Option<&CommandReply> {
        self.by_id.get(id).map(|(reply, _)| reply.as_ref())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &CommandReply)> {
        self.order
            .iter()
            .filter_map(|id| Some((id.as_ref(), self.get(id)?)))
    }

    /// Remembers the answer to a request that was not answered before.
    pub(crate) fn push(&mut self, id: &str, reply: CommandReply) {
        if self.by_id.contains_key(id) {
            return;
        }
        let id: Arc<str> = id.into();
        let size = reply.encoded_len() + id.len();
        self.bytes += size;
        self.by_id.insert(id.clone(), (Arc::new(reply), size));
        self.order.push_back(id);
        while self.order.len() > REPLIES_MAX || (self.bytes > REPLY_BYTES_MAX && self.order.len() > 1) {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            if let Some((_, size)) = self.by_id.remove(&oldest) {
                self.bytes -= size;
            }
        }
    }
}
