//! Requests as bytes: what prost would drop silently is refused with its place.

use std::collections::HashMap;
use std::sync::LazyLock;

use bytes::{Buf, Bytes, BytesMut};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use tonic::Status;

/// Largest request: an apply as large as one entry of the log may be, and what the call puts around it.
pub(crate) const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Flag and length before each message (the gRPC protocol over HTTP/2, Length-Prefixed-Message).
const PREFIX_BYTES: usize = 5;
/// Unknown fields that are named; one is enough to refuse.
const NAMED_MAX: usize = 10;

/// What a call takes.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// Its message.
    pub(crate) message: MessageDescriptor,
    /// Many of them, one after the other.
    pub(crate) streamed: bool,
    /// Its answers come one after the other.
    pub(crate) answered_by_many: bool,
}

/// By path.
static INPUTS: LazyLock<HashMap<String, Input>> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(rpc::DESCRIPTORS).expect("the build compiled these descriptors");
    let inputs = pool.services().flat_map(|service| {
        let methods: Vec<_> = service.methods().collect();
        methods.into_iter().map(move |method| {
            let path = format!("/{}/{}", service.full_name(), method.name());
            let input = Input {
                message: method.input(),
                streamed: method.is_client_streaming(),
                answered_by_many: method.is_server_streaming(),
            };
            (path, input)
        })
    });
    inputs.collect()
});

/// What the call of this path takes.
pub(crate) fn input(path: &str) -> Option<&'static Input> {
    INPUTS.get(path)
}

/// Refuses a message that has fields which this version does not know.
pub(crate) fn check(descriptor: &MessageDescriptor, bytes: &[u8]) -> Result<(), Status> {
    let message = DynamicMessage::decode(descriptor.clone(), bytes)
        .map_err(|cause| Status::invalid_argument(format!("not a valid {}: {cause}", descriptor.name())))?;
    let mut unknown = model::unknown::of(&message);
    if unknown.is_empty() {
        return Ok(());
    }
    let more = unknown.len().saturating_sub(NAMED_MAX);
    unknown.truncate(NAMED_MAX);
    let mut text = unknown.join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    Err(Status::invalid_argument(format!(
        "{} has fields that this version of the controller does not know: {text}",
        descriptor.name()
    )))
}

/// Cuts a body into its messages.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// More of the body.
    pub(crate) fn push(&mut self, mut bytes: impl Buf) {
        while bytes.has_remaining() {
            let chunk = bytes.chunk();
            let length = chunk.len();
            self.buffer.extend_from_slice(chunk);
            bytes.advance(length);
        }
    }

    /// The next whole message with its prefix, checked. A compressed one is left to the server, which refuses it.
    pub(crate) fn next(&mut self, descriptor: &MessageDescriptor) -> Result<Option<Bytes>, Status> {
        let Some((flag, length)) = self.prefix() else {
            return Ok(None);
        };
        if length > MESSAGE_BYTES_MAX {
            return Err(too_large(length));
        }
        if self.buffer.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        let frame = self.buffer.split_to(PREFIX_BYTES + length).freeze();
        if flag == 0 {
            check(descriptor, frame.get(PREFIX_BYTES..).unwrap_or_default())?;
        }
        Ok(Some(frame))
    }

    /// What no message came of.
    pub(crate) fn rest(self) -> Bytes {
        self.buffer.freeze()
    }

    fn prefix(&self) -> Option<(u8, usize)> {
        let prefix: [u8; PREFIX_BYTES] = self.buffer.get(..PREFIX_BYTES)?.try_into().ok()?;
        let [flag, length @ ..] = prefix;
        Some((flag, u32::from_be_bytes(length) as usize))
    }
}

/// A message above the limit.
pub(crate) fn too_large(bytes: usize) -> Status {
    Status::invalid_argument(format!(
        "a message of {bytes} bytes is more than {MESSAGE_BYTES_MAX}; split it"
    ))
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use rpc::v1::{ExecInput, ScaleRequest, exec_input};
    use tonic::Code;

    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut frame = vec![0];
        frame.extend((message.len() as u32).to_be_bytes());
        frame.extend(message);
        frame
    }

    #[test]
    fn an_unknown_field_of_a_call_is_named() {
        let descriptor = &input("/bulkhead.rpc.v1.Api/Scale").unwrap().message;
        let mut bytes = ScaleRequest::default().encode_to_vec();
        assert!(check(descriptor, &bytes).is_ok());
        bytes.extend([0x9a, 0x06, 1, b'x']); // field 99
        let refused = check(descriptor, &bytes).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("#99"), "{}", refused.message());
    }

    #[test]
    fn messages_are_cut_wherever_the_body_is() {
        let taken = input("/bulkhead.rpc.v1.Api/Exec").unwrap();
        assert!(taken.streamed);
        let message = |byte: u8| ExecInput {
            input: Some(exec_input::Input::Stdin(vec![byte; 300])),
        };
        let body = [
            framed(&message(1).encode_to_vec()),
            framed(&message(2).encode_to_vec()),
        ]
        .concat();
        for size in [1, 7, 305, body.len()] {
            let mut frames = Frames::default();
            let mut out = Vec::new();
            for chunk in body.chunks(size) {
                frames.push(chunk);
                while let Some(frame) = frames.next(&taken.message).unwrap() {
                    out.extend_from_slice(&frame);
                }
            }
            assert_eq!(out, body, "in pieces of {size}");
            assert!(frames.rest().is_empty());
        }
    }

    #[test]
    fn a_message_that_says_it_is_huge_is_refused_before_it_comes() {
        let taken = input("/bulkhead.rpc.v1.Api/Exec").unwrap();
        let mut frames = Frames::default();
        frames.push(&[0, 0xff, 0xff, 0xff, 0xff][..]);
        assert_eq!(
            frames.next(&taken.message).unwrap_err().code(),
            Code::InvalidArgument
        );
    }
}
