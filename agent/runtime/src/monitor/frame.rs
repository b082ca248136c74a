//! Frames on `monitor.sock`: taking them apart as bytes arrive, and putting them together. Pure, so that the monitor, the
//! blocking client and the agent's asynchronous one share them.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::{Ended, FRAME_BYTES_MAX, stream};

/// Bytes of the length before each frame.
pub const HEADER_BYTES: usize = 4;

/// Most output in one stream frame: what one read of a pipe takes.
pub const CHUNK_BYTES_MAX: usize = 16 << 10;

const _: () = assert!(FRAME_BYTES_MAX <= u32::MAX as usize, "the length field is a u32");
const _: () = assert!(
    CHUNK_BYTES_MAX < FRAME_BYTES_MAX,
    "a chunk with its kind byte is a legal frame"
);

/// Why bytes are no frame; the connection they came on has no future.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Longer than either side accepts.
    #[error("a frame of {bytes} bytes is longer than the {FRAME_BYTES_MAX} allowed")]
    TooLong {
        /// Its length as told by its header, or as it would be.
        bytes: usize,
    },
    /// Not the JSON expected here.
    #[error("a frame is not the message expected here")]
    Json {
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A stream frame without a kind, of an unknown kind, or with a payload of the wrong length.
    #[error("a stream frame of kind {kind:?} with {bytes} bytes is malformed")]
    Stream {
        /// Its first byte, if it has one.
        kind: Option<u8>,
        /// Length of what follows.
        bytes: usize,
    },
}

/// Appends one frame.
pub fn encode(payload: &[u8], into: &mut Vec<u8>) -> Result<(), FrameError> {
    let length = checked(payload.len())?;
    into.extend_from_slice(&length.to_le_bytes());
    into.extend_from_slice(payload);
    Ok(())
}

/// Appends one frame that holds a JSON message.
pub fn encode_json(message: &impl Serialize, into: &mut Vec<u8>) -> Result<(), FrameError> {
    let payload = serde_json::to_vec(message).map_err(|source| FrameError::Json { source })?;
    encode(&payload, into)
}

/// Reads a JSON message out of a frame's payload.
pub fn decode_json<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(|source| FrameError::Json { source })
}

fn checked(bytes: usize) -> Result<u32, FrameError> {
    if bytes > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong { bytes });
    }
    u32::try_from(bytes).map_err(|_| FrameError::TooLong { bytes })
}

/// What a header announces: the payload's length.
pub fn decode_header(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let bytes = u32::from_le_bytes(header) as usize;
    checked(bytes)?;
    Ok(bytes)
}

/// One frame of an exec's or attach's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Input; empty closes it.
    Stdin(Vec<u8>),
    /// Output.
    Stdout(Vec<u8>),
    /// Error output.
    Stderr(Vec<u8>),
    /// The terminal's new size.
    Resize {
        /// Characters in a row.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// The last frame.
    Exit(Ended),
}

impl Stream {
    /// Reads a stream frame's payload.
    pub fn decode(payload: &[u8]) -> Result<Stream, FrameError> {
        let Some((kind, body)) = payload.split_first() else {
            return Err(FrameError::Stream { kind: None, bytes: 0 });
        };
        match (*kind, body) {
            (stream::STDIN, body) => Ok(Stream::Stdin(body.to_vec())),
            (stream::STDOUT, body) => Ok(Stream::Stdout(body.to_vec())),
            (stream::STDERR, body) => Ok(Stream::Stderr(body.to_vec())),
            (stream::RESIZE, &[a, b, c, d]) => Ok(Stream::Resize {
                columns: u16::from_le_bytes([a, b]),
                rows: u16::from_le_bytes([c, d]),
            }),
            (stream::EXIT, body) => decode_json(body).map(Stream::Exit),
            (kind, body) => Err(FrameError::Stream {
                kind: Some(kind),
                bytes: body.len(),
            }),
        }
    }

    /// Appends it as a frame.
    pub fn encode(&self, into: &mut Vec<u8>) -> Result<(), FrameError> {
        match self {
            Stream::Stdin(bytes) => encode_chunk(stream::STDIN, bytes, into),
            Stream::Stdout(bytes) => encode_chunk(stream::STDOUT, bytes, into),
            Stream::Stderr(bytes) => encode_chunk(stream::STDERR, bytes, into),
            Stream::Resize { columns, rows } => {
                let [a, b] = columns.to_le_bytes();
                let [c, d] = rows.to_le_bytes();
                encode_chunk(stream::RESIZE, &[a, b, c, d], into)
            }
            Stream::Exit(ended) => {
                let body = serde_json::to_vec(ended).map_err(|source| FrameError::Json { source })?;
                encode_chunk(stream::EXIT, &body, into)
            }
        }
    }
}

/// Appends a stream frame without a copy of its payload before.
pub fn encode_chunk(kind: u8, bytes: &[u8], into: &mut Vec<u8>) -> Result<(), FrameError> {
    let length = checked(bytes.len() + 1)?;
    into.extend_from_slice(&length.to_le_bytes());
    into.push(kind);
    into.extend_from_slice(bytes);
    Ok(())
}

/// Takes frames out of bytes as they come.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame's payload, `None` until more bytes come.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator's `None` is its end; here more bytes may come"
    )]
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let end = HEADER_BYTES + decode_header(*header)?;
        if self.buffer.len() < end {
            return Ok(None);
        }
        let rest = self.buffer.split_off(end);
        let mut frame = std::mem::replace(&mut self.buffer, rest);
        frame.drain(..HEADER_BYTES);
        Ok(Some(frame))
    }

    /// Bytes held back.
    pub fn held(&self) -> usize {
        self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_beyond_the_limit_is_refused_before_its_payload_arrives() {
        let mut decoder = Decoder::default();
        decoder.push(&(FRAME_BYTES_MAX as u32 + 1).to_le_bytes());
        assert!(matches!(decoder.next(), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn stream_frames_with_a_wrong_kind_or_length_are_refused() {
        for payload in [&[][..], &[9], &[stream::RESIZE, 1, 2, 3], &[stream::EXIT, b'{']] {
            assert!(Stream::decode(payload).is_err(), "{payload:?}");
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..10),
            cut in 1usize..7,
        ) {
            let mut bytes = Vec::new();
            for frame in &frames {
                encode(frame, &mut bytes).unwrap();
            }
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for part in bytes.chunks(cut) {
                decoder.push(part);
                while let Some(frame) = decoder.next().unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert_eq!(decoder.held(), 0);
        }

        #[test]
        fn streams_come_back_as_they_went(columns: u16, rows: u16, bytes: Vec<u8>, code: i32) {
            for frame in [
                Stream::Stdin(bytes.clone()),
                Stream::Stdout(bytes.clone()),
                Stream::Stderr(bytes.clone()),
                Stream::Resize { columns, rows },
                Stream::Exit(Ended { code, error: None }),
            ] {
                let mut wire = Vec::new();
                frame.encode(&mut wire).unwrap();
                prop_assert_eq!(Stream::decode(&wire[HEADER_BYTES..]).unwrap(), frame);
            }
        }
    }
}
