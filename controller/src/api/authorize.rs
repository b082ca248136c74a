//! Who may call what: one table of every call of every service.

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
    /// People of the administrators' group, and programs of theirs.
    Admins,
    /// Agents, each for its own node.
    Nodes,
    /// Controllers.
    Members,
}

impl Callers {
    fn include(self, identity: &Identity) -> bool {
        match self {
            Self::Anyone => true,
            Self::Admins => identity.is_admin(),
            Self::Nodes => matches!(identity, Identity::Node(_)),
            Self::Members => matches!(identity, Identity::Member(_)),
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Anyone => "anyone",
            Self::Admins => "administrators",
            Self::Nodes => "nodes",
            Self::Members => "controllers",
        }
    }
}

/// Every call: service, method, who may.
const TABLE: &[(&str, &str, Callers)] = &[
    ("Api", "Apply", Callers::Admins),
    ("Api", "Get", Callers::Admins),
    ("Api", "List", Callers::Admins),
    ("Api", "Watch", Callers::Admins),
    ("Api", "Delete", Callers::Admins),
    ("Api", "Scale", Callers::Admins),
    ("Api", "SetSchedulable", Callers::Admins),
    ("Api", "Rollback", Callers::Admins),
    ("Api", "Why", Callers::Admins),
    ("Api", "History", Callers::Admins),
    ("Api", "Undo", Callers::Admins),
    ("Api", "Logs", Callers::Admins),
    ("Api", "Exec", Callers::Admins),
    ("Api", "Inspect", Callers::Admins),
    ("Api", "Describe", Callers::Admins),
    ("Api", "ImportImage", Callers::Admins),
    ("Api", "ListImages", Callers::Admins),
    ("Api", "CreateToken", Callers::Admins),
    ("Api", "ListTokens", Callers::Admins),
    ("Api", "RevokeToken", Callers::Admins),
    ("Api", "Members", Callers::Admins),
    ("Api", "RemoveMember", Callers::Admins),
    ("Api", "Version", Callers::Admins),
    ("Join", "JoinNode", Callers::Anyone),
    ("Join", "JoinMember", Callers::Anyone),
    ("Node", "Session", Callers::Nodes),
    ("Node", "Carry", Callers::Nodes),
    ("Node", "Renew", Callers::Nodes),
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

/// Calls that change something or enter a container: each is noted with who made it.
const NOTED: &[&str] = &[
    "Apply",
    "Delete",
    "Scale",
    "SetSchedulable",
    "Rollback",
    "Undo",
    "Exec",
    "ImportImage",
    "CreateToken",
    "RevokeToken",
    "RemoveMember",
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
        .map_err(|expired| Status::unauthenticated(expired.to_string()))?;
    allow(path, callers, identity)?;
    if NOTED.iter().any(|noted| path.ends_with(&format!(".Api/{noted}"))) {
        tracing::info!(target: "audit", caller = %identity, address = %caller.address, call = path);
    }
    Ok(identity.clone())
}

fn allow(path: &str, callers: Callers, identity: &Identity) -> Result<(), Status> {
    if callers.include(identity) {
        return Ok(());
    }
    let call = path.rsplit('/').next().unwrap_or(path);
    if *identity == Identity::Anonymous {
        return Err(Status::unauthenticated(format!(
            "{call} takes a client certificate of this cluster, and none was shown"
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
            assert_eq!(may(&user), *service == "Join", "{path}");
            assert_eq!(may(&Identity::Anonymous), *service == "Join", "{path}");
        }
    }

    #[test]
    fn who_shows_no_certificate_is_told_so() {
        let refused = |identity| {
            allow("/bulkhead.rpc.v1.Api/Get", Callers::Admins, &identity)
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
