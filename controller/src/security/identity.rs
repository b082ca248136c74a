//! Who speaks, as their certificate or token says.

use x509_parser::prelude::{FromDer, X509Certificate};

use super::ca::BACKDATE;
use crate::raft::types::MemberId;

/// Organization of controllers.
pub const MEMBERS: &str = "bulkhead:members";
/// Organization of nodes.
pub const NODES: &str = "bulkhead:nodes";
/// Organization of people with every right.
pub const ADMINS: &str = state::rbac::ADMINS;

/// Groups in one organization: whoever makes our certificates can write one value for each attribute only. No group has
/// it in its name.
pub const GROUP_SEPARATOR: char = '\n';

/// The server name by which a member is dialled by the others: its address may pass to another member, this doesn't.
pub fn member_server_name(id: MemberId) -> String {
    format!("member-{id}.{}", rpc::tls::CONTROLLER_NAME)
}

/// Whom a connection belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A controller.
    Member(MemberId),
    /// The agent of a node.
    Node(String),
    /// A person or a program of theirs.
    User {
        /// Common name of the certificate, or the user that the token's service account acts as.
        name: String,
        /// Organizations of the certificate.
        groups: Vec<String>,
    },
    /// No certificate or token was shown: such a caller may only join.
    Anonymous,
}

/// An identity with the time at which it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// Who.
    pub identity: Identity,
    /// Seconds since 1970; connections outlive certificates, so each request is checked.
    pub not_after: u64,
    /// When it was issued, in seconds since 1970.
    pub issued: u64,
    /// It was revoked before the connection was made.
    pub revoked: bool,
}

/// Why a certificate says nothing to us. It was signed by our CA, so this is a bug or an attack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not X.509.
    #[error("the certificate can't be read")]
    Damaged,
    /// A name or role that we never give.
    #[error("the certificate's subject `{subject}` is none of ours")]
    Subject {
        /// As written.
        subject: String,
    },
}

impl Authenticated {
    /// No certificate.
    pub fn anonymous() -> Self {
        Self {
            identity: Identity::Anonymous,
            not_after: u64::MAX,
            issued: 0,
            revoked: false,
        }
    }

    /// Reads the identity from a certificate that TLS has already verified.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Damaged)?;
        if !rest.is_empty() {
            return Err(IdentityError::Damaged);
        }
        let subject = certificate.subject();
        let refused = || IdentityError::Subject {
            subject: subject.to_string(),
        };
        let text =
            |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().map(str::to_owned).ok();
        let groups: Option<Vec<String>> = subject.iter_organization().map(text).collect();
        let names: Option<Vec<String>> = subject.iter_common_name().map(text).collect();
        let (groups, names) = (groups.ok_or_else(refused)?, names.ok_or_else(refused)?);
        let groups: Vec<String> = groups
            .iter()
            .flat_map(|groups| groups.split(GROUP_SEPARATOR))
            .filter(|group| !group.is_empty())
            .map(str::to_owned)
            .collect();
        let [name] = names.as_slice() else {
            return Err(refused());
        };
        let identity = match groups.as_slice() {
            [group] if group == MEMBERS => {
                let id = name.strip_prefix("system:member:").and_then(|id| id.parse().ok());
                Identity::Member(id.ok_or_else(refused)?)
            }
            [group] if group == NODES => {
                let node = name.strip_prefix("system:node:").filter(|node| !node.is_empty());
                Identity::Node(node.ok_or_else(refused)?.to_owned())
            }
            // The reserved groups stand alone, and nobody is called like one of the system's own.
            groups if groups.iter().any(|group| group == MEMBERS || group == NODES) => return Err(refused()),
            _ if name.is_empty() || name.starts_with("system:") => return Err(refused()),
            _ => Identity::User {
                name: name.clone(),
                groups: groups.clone(),
            },
        };
        let validity = certificate.validity();
        let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp());
        let not_before = seconds(validity.not_before).map_err(|_| refused())?;
        Ok(Self {
            identity,
            not_after: seconds(validity.not_after).map_err(|_| refused())?,
            issued: not_before + BACKDATE.as_secs(),
            revoked: false,
        })
    }

    /// The identity, unless its certificate is good no more.
    pub fn current(&self, now: u64) -> Result<&Identity, Ended> {
        if now > self.not_after {
            Err(Ended::Expired)
        } else if self.revoked {
            Err(Ended::Revoked {
                name: self.identity.to_string(),
            })
        } else {
            Ok(&self.identity)
        }
    }
}

/// Why the certificate of a connection is good no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// Its time is over: a connection may be open for longer.
    #[error("the certificate of this connection has expired")]
    Expired,
    /// Somebody had it refused.
    #[error("the certificates of {name} that were issued so far were revoked; ask for a new one")]
    Revoked {
        /// Whose.
        name: String,
    },
}

impl Identity {
    /// Whether this is a person of the administrators' group.
    pub fn is_admin(&self) -> bool {
        matches!(self, Self::User { groups, .. } if groups.iter().any(|group| group == ADMINS))
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Member(id) => write!(f, "system:member:{id}"),
            Self::Node(name) => write!(f, "system:node:{name}"),
            Self::User { name, .. } => f.write_str(name),
            Self::Anonymous => f.write_str("system:anonymous"),
        }
    }
}
