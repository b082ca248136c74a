//! The one service that callers without a certificate may use: a token opens the cluster to a node or a member.

use std::net::SocketAddr;
use std::sync::Arc;

use proto::state::v1::{
    Command, CommandReply, Key, NodeJoin, TokenChange, UseToken, command, command_reply, token_change,
};
use proto::v1::{Node as NodeObject, ObjectMeta};
use rpc::token::JoinToken;
use rpc::v1::join_server::Join;
use rpc::v1::{JoinMemberRequest, JoinMemberResponse, JoinNodeRequest, JoinNodeResponse};
use state::rbac::Access;
use state::{SCHEMA_LEVEL_MIN, State};
use tonic::{Code, Request, Response, Status};

use super::ca::{Authority, CaError, Subject};
use super::identity::Identity;
use super::listen::Caller;
use super::revoked::issuing_time;
use super::token::{self, Role, TokenRefused};
use super::{new_uuid, unix_now};
use crate::audit::{Audit, Entry, Touched};
use crate::raft::{ChangeError, Member, Node, ProposeError, ReadError};
use crate::store::Dir;

/// Labels that a node may ask for when it joins.
const LABELS_MAX: usize = 64;
/// Longest key or value of a label: a prefix, a slash and a name.
const LABEL_BYTES_MAX: usize = 317;
/// Longest HOST:PORT.
const ADDRESS_BYTES_MAX: usize = 300;

/// Signs for who brings a good token.
pub struct JoinService<D: Dir> {
    node: Node<D>,
    authority: Arc<Authority>,
    audit: Audit,
}

impl<D: Dir> JoinService<D> {
    /// Over this member.
    pub(crate) fn new(node: Node<D>, authority: Arc<Authority>, audit: Audit) -> Self {
        Self {
            node,
            authority,
            audit,
        }
    }

    /// Notes who came in, and who tried to.
    fn note<T>(
        &self,
        call: &str,
        resource: &str,
        name: &str,
        from: Option<SocketAddr>,
        answer: &Result<T, Status>,
    ) {
        let mut entry = Entry::new(call, &Identity::Anonymous.to_string(), &[], from);
        let access = Access {
            verb: "create".to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            ..Access::default()
        };
        entry.touches([Touched::of(&access)].into_iter());
        match answer {
            Err(status) if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) => {
                entry.refused = Some(status.message().to_owned());
            }
            Err(status) => entry.outcome = Some(format!("{:?}", status.code())),
            Ok(_) => entry.outcome = Some("Ok".to_owned()),
        }
        self.audit.record_stranger(entry);
    }

    /// Checks the token, so that a bad request costs none of its uses. Gives its id.
    fn check(&self, state: &State, text: &str, role: Role, name: &str) -> Result<String, Status> {
        let token: JoinToken = text
            .parse()
            .map_err(|cause| Status::unauthenticated(format!("{cause}")))?;
        let stored = state.token(&token.id);
        match token::check(stored, &token, role, name, unix_now()) {
            Ok(()) => Ok(token.id),
            Err(refused @ (TokenRefused::Unknown | TokenRefused::Expired | TokenRefused::Used)) => {
                tracing::warn!(token = token.id, name, %refused, "refused to let someone join");
                Err(Status::unauthenticated(refused.to_string()))
            }
            Err(refused) => Err(Status::permission_denied(refused.to_string())),
        }
    }

    async fn use_token(&self, id: String, role: Role, name: &str) -> Result<(), Status> {
        let usage = UseToken {
            id,
            role: role.as_str().to_owned(),
            name: name.to_owned(),
        };
        let change = TokenChange {
            change: Some(token_change::Change::Use(usage)),
        };
        self.propose(command::Kind::Token(change)).await
    }

    async fn propose(&self, kind: command::Kind) -> Result<(), Status> {
        let command = Command {
            request_id: new_uuid(),
            time: Some(pbjson_types::Timestamp {
                seconds: unix_now() as i64,
                nanos: 0,
            }),
            kind: Some(kind),
            ..Default::default()
        };
        let CommandReply { reply } = self.node.propose(command).await.map_err(proposing)?;
        match reply {
            Some(command_reply::Reply::Applied(_)) => Ok(()),
            Some(command_reply::Reply::Refused(refused)) => Err(Status::permission_denied(refused.message)),
            None => Err(Status::internal("the state gave no answer")),
        }
    }

    fn cluster_id(state: &State) -> Result<String, Status> {
        let settings = state
            .settings()
            .ok_or_else(|| Status::unavailable("the cluster is still being set up"))?;
        Ok(settings.cluster_id.clone())
    }
}

fn proposing(cause: ProposeError) -> Status {
    match cause {
        ProposeError::TooLarge { .. } => Status::invalid_argument(cause.to_string()),
        _ => Status::unavailable(cause.to_string()),
    }
}

fn reading(cause: ReadError) -> Status {
    Status::unavailable(cause.to_string())
}

fn signing(cause: CaError) -> Status {
    Status::invalid_argument(cause.to_string())
}

fn address(text: &str, what: &str) -> Result<(), Status> {
    let port = text
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
        .and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(_) if text.len() <= ADDRESS_BYTES_MAX => Ok(()),
        _ => Err(Status::invalid_argument(format!("the {what} is not HOST:PORT"))),
    }
}

/// Where a call comes from.
fn address_of<T>(request: &Request<T>) -> Option<SocketAddr> {
    request.extensions().get::<Caller>().map(|caller| caller.address)
}

#[tonic::async_trait]
impl<D: Dir> Join for JoinService<D> {
    async fn join_node(
        &self,
        request: Request<JoinNodeRequest>,
    ) -> Result<Response<JoinNodeResponse>, Status> {
        let (from, name) = (address_of(&request), request.get_ref().name.clone());
        let answer = self.let_node_in(request.into_inner()).await;
        self.note("JoinNode", "nodes", &name, from, &answer);
        answer.map(Response::new)
    }

    async fn join_member(
        &self,
        request: Request<JoinMemberRequest>,
    ) -> Result<Response<JoinMemberResponse>, Status> {
        let (from, name) = (address_of(&request), request.get_ref().name.clone());
        let answer = self.let_member_in(request.into_inner()).await;
        self.note("JoinMember", "members", &name, from, &answer);
        answer.map(Response::new)
    }
}

impl<D: Dir> JoinService<D> {
    async fn let_node_in(&self, request: JoinNodeRequest) -> Result<JoinNodeResponse, Status> {
        let labels = &request.labels;
        let long = |text: &String| text.len() > LABEL_BYTES_MAX;
        if labels.len() > LABELS_MAX || labels.iter().any(|(key, value)| long(key) || long(value)) {
            return Err(Status::invalid_argument(
                "too many labels, or a label is too long",
            ));
        }
        let state = self.node.read().await.map_err(reading)?;
        let id = self.check(&state, &request.token, Role::Node, &request.name)?;
        let cluster_id = Self::cluster_id(&state)?;
        // Who may join is not who may take over: that takes a token made out to the name.
        let key = Key {
            kind: "Node".to_owned(),
            namespace: String::new(),
            name: request.name.clone(),
        };
        let bound = state.token(&id).is_some_and(|token| !token.name.is_empty());
        if !bound && state.get(&key).is_some() {
            return Err(Status::already_exists(format!(
                "there already is a node {0}; to join it again, use a token from `ctl token create --name {0}`",
                request.name
            )));
        }
        if let Some(pod) = state.may_still_run_on(&request.name) {
            return Err(Status::failed_precondition(format!(
                "node {} was deleted, and its pod {}/{}, which must not run twice, may still run there: join again in a minute",
                request.name, pod.namespace, pod.name
            )));
        }
        let subject = Subject::Node {
            name: request.name.clone(),
        };
        // A node whose certificates were revoked comes back with this one.
        let now = issuing_time(
            &state,
            &Identity::Node(request.name.clone()).to_string(),
            unix_now(),
        );
        let certificate = self
            .authority
            .sign(&request.csr, &subject, now)
            .map_err(signing)?;
        self.use_token(id, Role::Node, &request.name).await?;
        let metadata = ObjectMeta {
            name: request.name.clone(),
            uid: new_uuid(),
            labels: request.labels,
            ..ObjectMeta::default()
        };
        let node = NodeObject {
            metadata: Some(metadata),
            ..NodeObject::default()
        };
        self.propose(command::Kind::NodeJoin(NodeJoin { node: Some(node) }))
            .await?;
        tracing::info!(node = request.name, "a node joined");
        Ok(JoinNodeResponse {
            certificate,
            ca: self.authority.certificate().to_owned(),
            endpoints: self
                .node
                .members()
                .into_iter()
                .map(|info| info.member.address)
                .collect(),
            cluster_id,
        })
    }

    async fn let_member_in(&self, request: JoinMemberRequest) -> Result<JoinMemberResponse, Status> {
        address(&request.address, "address")?;
        address(&request.peer_address, "address for members")?;
        let state = self.node.read().await.map_err(reading)?;
        let id = self.check(&state, &request.token, Role::Member, &request.name)?;
        let level = request.schema_level.max(SCHEMA_LEVEL_MIN);
        if level < state.level() {
            return Err(Status::failed_precondition(format!(
                "this controller knows schema level {level}, the cluster is at {}: install the version of the others",
                state.level()
            )));
        }
        let cluster_id = Self::cluster_id(&state)?;
        if self
            .node
            .members()
            .iter()
            .any(|info| info.member.name == request.name)
        {
            return Err(Status::already_exists(format!(
                "there already is a controller {0}; remove it first with `ctl cluster remove {0}`",
                request.name
            )));
        }
        self.use_token(id, Role::Member, &request.name).await?;
        let member_id = self.node.next_member_id();
        let member = Member {
            name: request.name.clone(),
            address: request.address,
            peer_address: request.peer_address,
        };
        self.node
            .add_learner(member_id, member)
            .await
            .map_err(|cause| match cause {
                ChangeError::Refused(_) => Status::failed_precondition(cause.to_string()),
                _ => Status::unavailable(cause.to_string()),
            })?;
        tracing::info!(member = request.name, id = member_id, "a controller joined");
        let members = self.node.members().into_iter().map(|info| rpc::v1::Member {
            id: info.id,
            name: info.member.name,
            address: info.member.address,
            peer_address: info.member.peer_address,
            ..rpc::v1::Member::default()
        });
        Ok(JoinMemberResponse {
            ca: self.authority.certificate().to_owned(),
            ca_key: self.authority.key().to_owned(),
            member_id,
            members: members.collect(),
            cluster_id,
        })
    }
}
