//! What can go wrong in a verb, and the exit code that each becomes.

use std::fmt::Write as _;

use prost::Message;
use rpc::v1::Refusals;
use tonic::{Code, Status};

/// Why a verb did not do what was asked. `main` prints it and ends with `exit_code`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CtlError {
    /// The cluster, or the reading of a manifest, said no. Each line stands for itself.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// The words of the command do not fit.
    #[error("{0}")]
    Usage(String),
    /// No member answered.
    #[error("cannot reach {endpoints} (context {context}): {cause}; is the controller running there?")]
    Unreachable {
        /// Where it was tried.
        endpoints: String,
        /// The context that names them.
        context: String,
        /// What the network said.
        cause: String,
    },
    /// Time ran out before what was waited for came true.
    #[error("timed out after {seconds} s waiting for {what}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
    },
    /// A file or the system failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A program that was run ended with this code; nothing more is to be said.
    #[error("")]
    Exited(i32),
}

impl CtlError {
    /// One refusal.
    pub(crate) fn refused(text: impl Into<String>) -> Self {
        Self::Refused(vec![text.into()])
    }

    /// An error of a file or the system while doing `what`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// 0 done, 1 refused or failed, 2 usage, 3 cannot reach the cluster, 4 timed out.
    pub(crate) fn exit_code(&self) -> i32 {
        match self {
            Self::Refused(_) | Self::Io { .. } => 1,
            Self::Usage(_) => 2,
            Self::Unreachable { .. } => 3,
            Self::TimedOut { .. } => 4,
            Self::Exited(code) => *code,
        }
    }
}

/// What a refused call says, a line for each reason.
pub(crate) fn lines(status: &Status) -> Vec<String> {
    match Refusals::decode(status.details()) {
        Ok(refusals) if !refusals.refusals.is_empty() => refusals
            .refusals
            .iter()
            .map(|refusal| {
                let mut line = String::new();
                if !refusal.path.is_empty() {
                    line.push_str(&refusal.path);
                    line.push_str(": ");
                }
                // Writing to a String cannot fail.
                write!(line, "{}", refusal.message).unwrap_or_default();
                line
            })
            .collect(),
        _ if status.message().is_empty() => vec![format!("{:?}", status.code())],
        _ => vec![status.message().to_owned()],
    }
}

/// Whether a stream ended because its member stops, or with the connection to it: another member can go on.
pub(crate) fn is_lost(status: &Status) -> bool {
    // A member's own word has no source; what the connection says of itself has one.
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

/// Whether a status says that no member could be reached, as opposed to one that answered.
pub(crate) fn is_unreachable(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable) && std::error::Error::source(status).is_some()
}
