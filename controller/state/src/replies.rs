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
    /// Encoded: few are ever asked for.
    by_id: OrdMap<Arc<str>, Arc<[u8]>>,
    bytes: usize,
}

impl Replies {
    pub(crate) fn get(&self, id: &str) -> Option<CommandReply> {
        let reply = self.by_id.get(id)?;
        Some(CommandReply::decode(reply.as_ref()).expect("it was encoded by `push`"))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, CommandReply)> {
        self.order
            .iter()
            .filter_map(|id| Some((id.as_ref(), self.get(id)?)))
    }

    /// Remembers the answer to a request that was not answered before.
    pub(crate) fn push(&mut self, id: &str, reply: &CommandReply) {
        if self.by_id.contains_key(id) {
            return;
        }
        let id: Arc<str> = id.into();
        let reply: Arc<[u8]> = reply.encode_to_vec().into();
        self.bytes += reply.len() + id.len();
        self.by_id.insert(id.clone(), reply);
        self.order.push_back(id);
        while self.order.len() > REPLIES_MAX || (self.bytes > REPLY_BYTES_MAX && self.order.len() > 1) {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            if let Some(reply) = self.by_id.remove(&oldest) {
                self.bytes -= reply.len() + oldest.len();
            }
        }
    }
}
