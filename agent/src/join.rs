//! `bulkhead-agent join`: with a token, this machine becomes a node.
//!
//! The token's last part is the hash of the CA's key, so that the first answer that is trusted is the cluster's own. The
//! identity is written only when all of it is there, and the data directory, whose presence starts the unit, comes last.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rpc::tls::TlsError;
use rpc::token::{JoinToken, TokenError};
use rpc::v1::JoinNodeRequest;
use rpc::v1::join_client::JoinClient;
use tonic::{Code, Status};

use crate::identity::{Identity, IdentityError, Request};

/// How long one controller may take: it commits to the log of a majority.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Join {
    /// HOST:PORT of controllers; the first that answers is taken.
    pub servers: Vec<String>,
    /// The token's text.
    pub token: String,
    /// The node's name.
    pub name: String,
    /// Labels that it shall have.
    pub labels: BTreeMap<String, String>,
    /// Where its data will be.
    pub data_dir: PathBuf,
    /// Where its identity is put.
    pub config_dir: PathBuf,
}

/// Why the machine is no node. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is damaged.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// No usable address.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No key, or no file for it.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Nobody answered.
    #[error("{reason}; is a controller running there?")]
    Unreachable {
        /// Each address with its reason.
        reason: String,
    },
    /// Somebody answered who is not of the cluster.
    #[error(
        "{server} is no controller of the cluster that made this token: its CA does not have the hash in the token's last part"
    )]
    ForeignCa {
        /// Who.
        server: String,
    },
    /// The token was refused.
    #[error("{server} refused the join token: {message}")]
    TokenRefused {
        /// Who.
        server: String,
        /// Why.
        message: String,
    },
    /// Something else was refused.
    #[error("{server} refused: {message}")]
    Refused {
        /// Who.
        server: String,
        /// Why.
        message: String,
    },
    /// A directory.
    #[error("failed to create {}", .path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// Makes this machine a node.
pub async fn join(join: &Join) -> Result<Identity, JoinError> {
    let token: JoinToken = join.token.parse()?;
    if join.servers.is_empty() {
        return Err(TlsError::Endpoints { count: 0 }.into());
    }
    let request = Request::new()?;
    // Before a use of the token is spent: what cannot be written would be lost.
    directory(&join.config_dir, 0o755)?;
    let message = JoinNodeRequest {
        token: join.token.trim().to_owned(),
        name: join.name.clone(),
        csr: request.csr.clone(),
        labels: join.labels.clone(),
    };
    let mut failures: Vec<String> = Vec::new();
    for server in &join.servers {
        let channel = rpc::tls::channel_pinned(server, token.ca_sha256)?;
        let mut client = JoinClient::new(channel);
        let call = client.join_node(message.clone());
        let status = match tokio::time::timeout(JOIN_TIMEOUT, call).await {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                let identity = Identity {
                    name: join.name.clone(),
                    cluster_id: answer.cluster_id,
                    endpoints: if answer.endpoints.is_empty() {
                        join.servers.clone()
                    } else {
                        answer.endpoints
                    },
                    ca: answer.ca,
                    certificate: answer.certificate,
                    key: request.key,
                };
                identity.save(&join.config_dir)?;
                directory(&join.data_dir, 0o700)?;
                return Ok(identity);
            }
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded(format!("no answer within {} s", JOIN_TIMEOUT.as_secs())),
        };
        match judge(server, &status) {
            Verdict::Final(error) => return Err(error),
            Verdict::Next(reason) => failures.push(reason),
        }
    }
    Err(JoinError::Unreachable {
        reason: failures.join("; "),
    })
}

/// What a failed call means.
enum Verdict {
    Final(JoinError),
    /// Another controller may answer.
    Next(String),
}

fn judge(server: &str, status: &Status) -> Verdict {
    let causes = causes(status);
    // rustls::CertificateError::UnknownIssuer, by way of io::Error: the chain of errors is all that tonic keeps of it.
    if causes.iter().any(|cause| cause.contains("UnknownIssuer")) {
        let server = server.to_owned();
        return Verdict::Final(JoinError::ForeignCa { server });
    }
    let (server, message) = (server.to_owned(), status.message().to_owned());
    match status.code() {
        // With a cause it is the connection's failure, without one the controller's answer.
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            let reached = causes.iter().find(|cause| cause.starts_with("cannot reach"));
            Verdict::Next(match (reached, causes.last()) {
                (Some(reached), _) => reached.clone(),
                (None, Some(cause)) => format!("{server}: {cause}"),
                (None, None) => format!("{server}: {message}"),
            })
        }
        Code::Unauthenticated | Code::PermissionDenied => {
            Verdict::Final(JoinError::TokenRefused { server, message })
        }
        _ => Verdict::Final(JoinError::Refused { server, message }),
    }
}

/// The causes of an error, the nearest first.
pub(crate) fn causes(error: &dyn std::error::Error) -> Vec<String> {
    let mut found = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        found.push(cause.to_string());
        next = cause.source();
    }
    found
}

fn directory(path: &Path, mode: u32) -> Result<(), JoinError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|source| JoinError::Directory {
        path: path.to_owned(),
        source,
    })
}

/// KEY=VALUE, as of `--label`.
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    if key.is_empty() {
        return Err("the label has no key".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_final_and_silence_is_not() {
        let refused = judge("c1:7443", &Status::unauthenticated("the token has been used"));
        let Verdict::Final(error) = refused else {
            panic!("a refusal is final")
        };
        assert_eq!(
            error.to_string(),
            "c1:7443 refused the join token: the token has been used"
        );
        assert!(matches!(
            judge("c1:7443", &Status::already_exists("there already is a node")),
            Verdict::Final(JoinError::Refused { .. })
        ));
        let silent = judge("c1:7443", &Status::unavailable("no leader"));
        let Verdict::Next(reason) = silent else {
            panic!("another controller may answer")
        };
        assert_eq!(reason, "c1:7443: no leader");
    }

    #[test]
    fn labels_are_key_and_value() {
        assert_eq!(
            parse_label("zone=a").unwrap(),
            ("zone".to_owned(), "a".to_owned())
        );
        assert_eq!(parse_label("zone=").unwrap().1, "");
        assert!(parse_label("zone").is_err() && parse_label("=a").is_err());
    }

    #[tokio::test]
    async fn a_machine_that_reaches_nobody_keeps_nothing() {
        let top = tempfile::tempdir().unwrap();
        let request = Join {
            servers: vec!["127.0.0.1:1".to_owned()],
            token: JoinToken {
                id: "abcde01234".to_owned(),
                secret: "0123456789abcdef0123456789abcdef".to_owned(),
                ca_sha256: [7; 32],
            }
            .to_string(),
            name: "n1".to_owned(),
            labels: BTreeMap::new(),
            data_dir: top.path().join("data"),
            config_dir: top.path().join("config"),
        };
        let refused = join(&request).await.unwrap_err().to_string();
        assert!(refused.contains("127.0.0.1:1"), "{refused}");
        assert!(!request.data_dir.exists());
        assert_eq!(std::fs::read_dir(&request.config_dir).unwrap().count(), 0);
    }
}
