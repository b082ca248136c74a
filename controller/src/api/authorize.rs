//! Who may make which call at all: one table of every call of every service. What users may do with a call is in `access.rs`.

use http::Extensions;
use tonic::Status;

use crate::security::identity::Identity;
use crate::security::listen::Caller;
use crate::security::unix_now;

/// Who may make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callers {
    /// Anyone who can connect: the call itself asks for a token.
    Anyone,
    /// People, and programs of theirs, as far as roles let them.
    Users,
    /// Agents, each for its own node.
    Nodes,
    /// Controllers.
    Members,
}

impl Callers {
    fn include(self, identity: &Identity) -> bool {
        match self {
            Self::Anyone => true,
            Self::Users => matches!(identity, Identity::User { .. }),
            Self::Nodes => matches!(identity, Identity::Node(_)),
            Self::Members => matches!(identity, Identity::Member(_)),
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Anyone => "anyone",
            Self::Users => "users",
            Self::Nodes => "nodes",
            Self::Members => "controllers",
        }
    }
}

/// Every call: service, method, who may.
const TABLE: &[(&str, &str, Callers)] = &[
    ("Api", "Apply", Callers::Users),
    ("Api", "Get", Callers::Users),
    ("Api", "List", Callers::Users),
    ("Api", "Watch", Callers::Users),
    ("Api", "Delete", Callers::Users),
    ("Api", "Scale", Callers::Users),
    ("Api", "SetSchedulable", Callers::Users),
    ("Api", "Rollback", Callers::Users),
    ("Api", "Why", Callers::Users),
    ("Api", "History", Callers::Users),
    ("Api", "Undo", Callers::Users),
    ("Api", "Logs", Callers::Users),
    ("Api", "Exec", Callers::Users),
    ("Api", "Inspect", Callers::Users),
    ("Api", "Describe", Callers::Users),
    ("Api", "ImportImage", Callers::Users),
    ("Api", "ListImages", Callers::Users),
    ("Api", "CreateToken", Callers::Users),
    ("Api", "ListTokens", Callers::Users),
    ("Api", "RevokeToken", Callers::Users),
    ("Api", "CreateServiceAccountToken", Callers::Users),
    ("Api", "Members", Callers::Users),
    ("Api", "RemoveMember", Callers::Users),
    ("Api", "Backup", Callers::Users),
    ("Api", "Restore", Callers::Users),
    ("Api", "Version", Callers::Users),
    ("Api", "IssueCertificate", Callers::Users),
    ("Api", "RevokeCertificates", Callers::Users),
    ("Api", "ListRevocations", Callers::Users),
    ("Api", "ReviewAccess", Callers::Users),
    ("Api", "WhoAmI", Callers::Users),
    ("Join", "JoinNode", Callers::Anyone),
    ("Join", "JoinMember", Callers::Anyone),
    ("Node", "Session", Callers::Nodes),
    ("Node", "Carry", Callers::Nodes),
    ("Node", "Renew", Callers::Nodes),
    ("Node", "PodToken", Callers::Nodes),
    ("Raft", "Append", Callers::Members),
    ("Raft", "Vote", Callers::Members),
    ("Raft", "PreVote", Callers::Members),
    ("Raft", "Transfer", Callers::Members),
    ("Raft", "Snapshot", Callers::Members),
    ("Raft", "Propose", Callers::Members),
    ("Raft", "ReadIndex", Callers::Members),
    ("Raft", "ChangeMembers", Callers::Members),
    ("Raft", "Progress", Callers::Members),
    ("Relay", "RenewLeases", Callers::Members),
    ("Relay", "Call", Callers::Members),
    ("Relay", "RecordEvents", Callers::Members),
];

/// Who may make the call of this path, `/bulkhead.rpc.v1.Api/Get`. None: there is no such call.
pub(crate) fn callers(path: &str) -> Option<Callers> {
    let (service, method) = path.strip_prefix("/bulkhead.rpc.v1.")?.split_once('/')?;
    TABLE
        .iter()
        .find(|(its_service, its_method, _)| *its_service == service && *its_method == method)
        .map(|(_, _, callers)| *callers)
}

/// Lets a caller make a call, or says why not. `extensions` are those of the HTTP request.
pub(crate) fn check(path: &str, extensions: &Extensions) -> Result<Identity, Status> {
    let Some(callers) = callers(path) else {
        return Err(Status::unimplemented(format!("there is no call {path}")));
    };
    let caller = extensions
        .get::<Caller>()
        .ok_or_else(|| Status::unauthenticated("no TLS connection"))?;
    let identity = caller
        .authenticated
        .current(unix_now())
        .map_err(|ended| Status::unauthenticated(ended.to_string()))?;
    allow(path, callers, identity)?;
    Ok(identity.clone())
}

fn allow(path: &str, callers: Callers, identity: &Identity) -> Result<(), Status> {
    if callers.include(identity) {
        return Ok(());
    }
    let call = path.rsplit('/').next().unwrap_or(path);
    if *identity == Identity::Anonymous {
        return Err(Status::unauthenticated(format!(
            "{call} takes a client certificate of this cluster or a bearer token, and none was shown"
        )));
    }
    Err(Status::permission_denied(format!(
        "{identity} may not call {call}: only {} may",
        callers.describe()
    )))
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;
    use tonic::Code;

    use super::*;

    #[test]
    fn the_table_names_every_call_of_the_schema_and_no_other() {
        let pool = DescriptorPool::decode(rpc::DESCRIPTORS).unwrap();
        let mut count = 0;
        for service in pool.services() {
            for method in service.methods() {
                let path = format!("/{}/{}", service.full_name(), method.name());
                assert!(callers(&path).is_some(), "nobody decided who may call {path}");
                count += 1;
            }
        }
        assert_eq!(count, TABLE.len());
    }

    #[test]
    fn each_role_has_its_own_calls() {
        let admin = Identity::User {
            name: "admin".to_owned(),
            groups: vec![crate::security::identity::ADMINS.to_owned()],
        };
        let user = Identity::User {
            name: "guest".to_owned(),
            groups: vec!["guests".to_owned()],
        };
        let node = Identity::Node("n1".to_owned());
        let member = Identity::Member(1);
        for (service, method, callers) in TABLE {
            let path = format!("/bulkhead.rpc.v1.{service}/{method}");
            let may = |identity: &Identity| allow(&path, *callers, identity).is_ok();
            assert_eq!(may(&admin), matches!(*service, "Api" | "Join"), "{path}");
            assert_eq!(may(&node), matches!(*service, "Node" | "Join"), "{path}");
            assert_eq!(
                may(&member),
                matches!(*service, "Raft" | "Relay" | "Join"),
                "{path}"
            );
            // Roles say what they may.
            assert_eq!(may(&user), matches!(*service, "Api" | "Join"), "{path}");
            assert_eq!(may(&Identity::Anonymous), *service == "Join", "{path}");
        }
    }

    #[test]
    fn who_shows_no_certificate_is_told_so() {
        let refused = |identity| {
            allow("/bulkhead.rpc.v1.Api/Get", Callers::Users, &identity)
                .unwrap_err()
                .code()
        };
        assert_eq!(refused(Identity::Anonymous), Code::Unauthenticated);
        assert_eq!(refused(Identity::Node("n1".to_owned())), Code::PermissionDenied);
    }

    #[test]
    fn without_a_connection_of_ours_nobody_is_let_in() {
        let refused = check("/bulkhead.rpc.v1.Api/Get", &Extensions::new()).unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        let unknown = check("/bulkhead.rpc.v1.Api/Nothing", &Extensions::new()).unwrap_err();
        assert_eq!(unknown.code(), Code::Unimplemented);
    }
}
