//! What goes wrong, as gRPC statuses; a refused write carries every reason in the status's details.

use model::validate::FieldError;
use prost::Message;
use proto::state::v1::Refused;
use rpc::v1::{Refusal, Refusals};
use tonic::{Code, Status};

use crate::raft::{ProposeError, ReadError};

/// Details travel base64-coded in a trailer, and a client's HTTP/2 takes 16 KiB of those by default.
pub(crate) const REFUSALS_BYTES_MAX: usize = 8 << 10;
/// Longest text of a status: in the same trailer, where other than ASCII costs three times its bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 10;

/// Why an item is refused, in the schema's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Invalid,
    NotFound,
    AlreadyExists,
    Conflict,
    Forbidden,
}

impl Reason {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Forbidden => "Forbidden",
        }
    }
}

/// One reason about one item.
pub(crate) fn refusal(item: usize, path: &str, reason: Reason, message: impl Into<String>) -> Refusal {
    Refusal {
        item: u32::try_from(item).unwrap_or(u32::MAX),
        path: path.to_owned(),
        message: message.into(),
        reason: reason.as_str().to_owned(),
    }
}

/// What validation said of one item.
pub(crate) fn invalid(item: usize, error: FieldError) -> Refusal {
    refusal(item, &error.path, Reason::Invalid, error.message)
}

/// What the state said of one item.
pub(crate) fn by_state(item: usize, refused: &Refused) -> Refusal {
    Refusal {
        item: u32::try_from(item).unwrap_or(u32::MAX),
        path: String::new(),
        message: refused.message.clone(),
        reason: refused.reason.clone(),
    }
}

/// The status of a refused write, with as many of its reasons as fit.
pub(crate) fn refused(mut refusals: Vec<Refusal>) -> Status {
    let count = refusals.len();
    let code = code(&refusals);
    let mut bytes = 0;
    let mut fit = 0;
    for refusal in &mut refusals {
        cut(&mut refusal.message, MESSAGE_BYTES_MAX);
        cut(&mut refusal.path, MESSAGE_BYTES_MAX);
        bytes += refusal.encoded_len() + 8;
        if bytes > REFUSALS_BYTES_MAX - MESSAGE_BYTES_MAX {
            break;
        }
        fit += 1;
    }
    if fit < count {
        let item = refusals.get(fit).map_or(0, |refusal| refusal.item);
        refusals.truncate(fit);
        refusals.push(Refusal {
            item,
            path: String::new(),
            message: format!("and {} more", count - fit),
            reason: Reason::Invalid.as_str().to_owned(),
        });
    }
    let mut message = refusals
        .first()
        .map_or_else(String::new, |first| match first.path.as_str() {
            "" => first.message.clone(),
            path => format!("{path}: {}", first.message),
        });
    cut(&mut message, MESSAGE_BYTES_MAX - 64);
    if count > 1 {
        message.push_str(&format!(" (and {} more reasons)", count - 1));
    }
    let details = Refusals { refusals }.encode_to_vec();
    Status::with_details(code, message, details.into())
}

/// One status for all: that of their common reason, else that of a request that has to be changed.
fn code(refusals: &[Refusal]) -> Code {
    let first = refusals.first().map_or("", |refusal| refusal.reason.as_str());
    if refusals.iter().any(|refusal| refusal.reason != first) {
        return Code::InvalidArgument;
    }
    match first {
        "NotFound" => Code::NotFound,
        "AlreadyExists" => Code::AlreadyExists,
        "Conflict" => Code::Aborted,
        "Forbidden" => Code::PermissionDenied,
        "Expired" => Code::FailedPrecondition,
        _ => Code::InvalidArgument,
    }
}

fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
        text.push_str("...");
    }
}

/// One refusal that is about the whole call.
pub(crate) fn refused_one(reason: Reason, message: impl Into<String>) -> Status {
    refused(vec![refusal(0, "", reason, message)])
}

/// A read that nobody could confirm.
pub(crate) fn reading(cause: ReadError) -> Status {
    Status::unavailable(cause.to_string())
}

/// A write without an answer.
pub(crate) fn proposing(cause: ProposeError) -> Status {
    match cause {
        ProposeError::TooLarge { .. } => Status::invalid_argument(cause.to_string()),
        ProposeError::Level { .. } => Status::failed_precondition(cause.to_string()),
        ProposeError::NearlyFull { .. } | ProposeError::Overloaded => {
            Status::resource_exhausted(cause.to_string())
        }
        ProposeError::NoLeader | ProposeError::Unknown { .. } | ProposeError::Stopped { .. } => {
            Status::unavailable(cause.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details(status: &Status) -> Vec<Refusal> {
        Refusals::decode(status.details()).unwrap().refusals
    }

    #[test]
    fn every_reason_is_in_the_details() {
        let status = refused(vec![
            refusal(0, "spec.a", Reason::Invalid, "is wrong"),
            refusal(2, "", Reason::NotFound, "is missing"),
        ]);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "spec.a: is wrong (and 1 more reasons)");
        let told = details(&status);
        assert_eq!((told[0].item, told[1].item), (0, 2));
        assert_eq!(told[1].reason, "NotFound");
    }

    #[test]
    fn one_common_reason_gives_the_code() {
        for (reason, code) in [
            (Reason::Invalid, Code::InvalidArgument),
            (Reason::NotFound, Code::NotFound),
            (Reason::AlreadyExists, Code::AlreadyExists),
            (Reason::Conflict, Code::Aborted),
            (Reason::Forbidden, Code::PermissionDenied),
        ] {
            assert_eq!(refused_one(reason, "no").code(), code);
        }
    }

    #[test]
    fn details_fit_into_a_trailer_however_many_reasons_there_are() {
        let many = (0..5000).map(|item| refusal(item, "spec", Reason::Invalid, "\u{e9}".repeat(3000)));
        let status = refused(many.collect());
        assert!(
            status.details().len() <= REFUSALS_BYTES_MAX,
            "{}",
            status.details().len()
        );
        assert!(status.message().len() <= MESSAGE_BYTES_MAX);
        let told = details(&status);
        let last = told.last().unwrap();
        assert_eq!(last.message, format!("and {} more", 5000 - (told.len() - 1)));
    }

    #[test]
    fn a_cluster_without_a_leader_is_unavailable() {
        assert_eq!(reading(ReadError::NoLeader).code(), Code::Unavailable);
        let status = proposing(ProposeError::NoLeader);
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("no controller leads"));
    }
}
