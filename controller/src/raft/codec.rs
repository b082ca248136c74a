//! Messages of the consensus library on the wire: a version byte, then postcard.

use rpc::v1::Envelope;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Status;

/// Rises when a message changes shape; members of two versions that don't understand each other say so.
const VERSION: u8 = 1;

pub(super) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_extend(message, vec![VERSION])
}

pub(super) fn envelope<T: Serialize>(message: &T) -> Result<Envelope, Status> {
    match encode(message) {
        Ok(payload) => Ok(Envelope { payload }),
        Err(cause) => Err(Status::internal(format!("failed to encode a message: {cause}"))),
    }
}

pub(super) fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Status> {
    match payload.split_first() {
        Some((&VERSION, message)) => postcard::from_bytes(message)
            .map_err(|cause| Status::invalid_argument(format!("a member's message is damaged: {cause}"))),
        Some((version, _)) => Err(Status::failed_precondition(format!(
            "a member speaks version {version} of the protocol between members, this one speaks {VERSION}"
        ))),
        None => Err(Status::invalid_argument("a member's message is empty")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_told_apart_from_damage() {
        let bytes = encode(&(7u64, "x")).unwrap();
        assert_eq!(decode::<(u64, String)>(&bytes).unwrap(), (7, "x".to_owned()));
        let newer = [&[9], &bytes[1..]].concat();
        assert_eq!(
            decode::<(u64, String)>(&newer).unwrap_err().code(),
            tonic::Code::FailedPrecondition
        );
        for cut in 0..bytes.len() {
            assert_eq!(
                decode::<(u64, String)>(&bytes[..cut]).unwrap_err().code(),
                tonic::Code::InvalidArgument
            );
        }
    }
}
