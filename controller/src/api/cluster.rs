//! The cluster itself: its members, and the tokens that let others join.

use futures_util::future::join_all;
use model::name;
use proto::state::v1::command::Kind as Body;
use proto::state::v1::token_change::Change;
use proto::state::v1::{Token, TokenChange};
use rpc::v1::{
    CreateTokenRequest, CreateTokenResponse, ListTokensResponse, Member, MembersResponse, ProgressReply,
    RemoveMemberRequest, RemoveMemberResponse, RevokeTokenRequest, RevokeTokenResponse,
};
use state::SCHEMA_LEVEL_MIN;
use tonic::Status;

use super::status::{Reason, by_state, refusal, refused};
use super::{By, Service};
use crate::raft::{ChangeError, MemberId, MemberInfo};
use crate::security::token::{self, LIFE_SECONDS, LIFE_SECONDS_MAX, Role, USES_MAX};
use crate::security::{new_uuid, unix_now};

/// What a token is asked for, complete and within bounds.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    role: Role,
    life_seconds: u32,
    uses: u32,
}

fn wanted(request: &CreateTokenRequest) -> Result<Wanted, Status> {
    let mut refusals = Vec::new();
    let mut refuse = |path: &str, message: String| refusals.push(refusal(0, path, Reason::Invalid, message));
    let role = Role::parse(&request.role);
    if role.is_none() {
        refuse("role", format!("must be member or node, is `{}`", request.role));
    }
    let life_seconds = match request.ttl_seconds {
        0 => LIFE_SECONDS,
        seconds => seconds,
    };
    if life_seconds > LIFE_SECONDS_MAX {
        refuse(
            "ttlSeconds",
            format!("a token lasts at most {LIFE_SECONDS_MAX} s, a week; {life_seconds} were asked for"),
        );
    }
    let uses = request.uses.max(1);
    if uses > USES_MAX {
        refuse("uses", format!("at most {USES_MAX}, {uses} were asked for"));
    }
    if !request.name.is_empty()
        && let Err(message) = name::dns1123_subdomain(&request.name)
    {
        refuse("name", message);
    }
    match role {
        Some(role) if refusals.is_empty() => Ok(Wanted {
            role,
            life_seconds,
            uses,
        }),
        _ => Err(refused(refusals)),
    }
}

impl Service {
    pub(super) async fn do_create_token(
        &self,
        request: &CreateTokenRequest,
        by: &By,
    ) -> Result<CreateTokenResponse, Status> {
        let Wanted {
            role,
            life_seconds,
            uses,
        } = wanted(request)?;
        let (text, stored) = token::create(
            role,
            &request.name,
            life_seconds,
            uses,
            self.authority.sha256(),
            unix_now(),
        );
        let expires = stored.expires;
        self.change_token(by, Change::Create(stored)).await?;
        Ok(CreateTokenResponse {
            token: text.to_string(),
            expires,
        })
    }

    pub(super) async fn do_list_tokens(&self) -> Result<ListTokensResponse, Status> {
        let state = self.state().await?;
        let shown = |token: &Token| Token {
            secret_hash: Vec::new(),
            ..token.clone()
        };
        Ok(ListTokensResponse {
            tokens: state.tokens().map(shown).collect(),
        })
    }

    pub(super) async fn do_revoke_token(
        &self,
        request: RevokeTokenRequest,
        by: &By,
    ) -> Result<RevokeTokenResponse, Status> {
        if request.id.is_empty() {
            return Err(Status::invalid_argument("the call names no token"));
        }
        self.change_token(by, Change::Revoke(request.id)).await?;
        Ok(RevokeTokenResponse {})
    }

    async fn change_token(&self, by: &By, change: Change) -> Result<(), Status> {
        let body = Body::Token(TokenChange { change: Some(change) });
        match self.propose(by, new_uuid(), body).await? {
            Ok(_) => Ok(()),
            Err(refusal) => Err(refused(vec![by_state(0, &refusal)])),
        }
    }

    /// Also while nobody leads: that is when it is looked at.
    pub(super) async fn do_members(&self) -> MembersResponse {
        let leader = self.node.leadership().borrow().leader;
        // Whoever takes a machine away counts on those that are said to vote.
        let voters = self.node.sure_voters().await;
        let members = self.node.members().into_iter().map(|member| MemberInfo {
            voter: voters.contains(&member.id),
            ..member
        });
        let asked = members.map(|member| async move {
            let progress = self.node.progress_of(member.id).await;
            shown(member, leader, progress)
        });
        let settings = self.node.stale().settings().cloned();
        MembersResponse {
            members: join_all(asked).await,
            cluster_id: settings.map(|settings| settings.cluster_id).unwrap_or_default(),
            schema_level: self.node.stale().level(),
        }
    }

    /// Unless told otherwise, not while too few of those that stay answer: they would decide nothing any more.
    pub(super) async fn do_remove_member(
        &self,
        request: &RemoveMemberRequest,
    ) -> Result<RemoveMemberResponse, Status> {
        let name = &request.name;
        // Else a member that lags would not know who has joined.
        self.state().await?;
        let members = self.node.members();
        let Some(found) = members.iter().find(|info| info.member.name == *name) else {
            let message = format!("there is no controller `{name}`; `ctl cluster members` lists them");
            return Err(Status::not_found(message));
        };
        if found.voter && !request.force {
            let rest = members.iter().filter(|info| info.voter && info.id != found.id);
            let answers = join_all(rest.map(|info| self.node.progress_of(info.id))).await;
            let (there, all) = (answers.iter().flatten().count(), answers.len());
            if all > 0 && there * 2 <= all {
                return Err(Status::failed_precondition(format!(
                    "without {name} there are {all} controllers that vote, and {there} of them answer: too few to decide \
                     anything. Bring another one back first, or use --force"
                )));
            }
        }
        match self.node.remove(found.id).await {
            Ok(()) => Ok(RemoveMemberResponse {}),
            Err(cause @ ChangeError::Refused(_)) => Err(Status::failed_precondition(cause.to_string())),
            Err(cause) => Err(Status::unavailable(cause.to_string())),
        }
    }
}

fn shown(member: MemberInfo, leader: Option<MemberId>, progress: Option<ProgressReply>) -> Member {
    let role = match &progress {
        None => "unreachable",
        Some(_) if leader == Some(member.id) => "leader",
        Some(_) if member.voter => "follower",
        Some(_) => "learner",
    };
    let schema_level = progress.map_or(0, |progress| progress.schema_level.max(SCHEMA_LEVEL_MIN));
    let progress = progress.unwrap_or_default();
    Member {
        id: member.id,
        name: member.member.name,
        address: member.member.address,
        peer_address: member.member.peer_address,
        role: role.to_owned(),
        last_log_index: progress.last_log_index,
        applied_index: progress.applied_index,
        term: progress.term,
        nearly_full: progress.nearly_full,
        schema_level,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(role: &str, name: &str, ttl_seconds: u32, uses: u32) -> CreateTokenRequest {
        CreateTokenRequest {
            role: role.to_owned(),
            name: name.to_owned(),
            ttl_seconds,
            uses,
        }
    }

    #[test]
    fn a_token_lasts_an_hour_and_opens_once_unless_told_otherwise() {
        let expected = Wanted {
            role: Role::Node,
            life_seconds: 3600,
            uses: 1,
        };
        assert_eq!(wanted(&request("node", "", 0, 0)).unwrap(), expected);
        assert_eq!(wanted(&request("member", "c2", 60, 1)).unwrap().life_seconds, 60);
    }

    #[test]
    fn tokens_without_bounds_are_refused() {
        for (role, name, ttl, uses, path) in [
            ("admin", "", 0, 0, "role"),
            ("node", "", LIFE_SECONDS_MAX + 1, 0, "ttlSeconds"),
            ("node", "", 0, USES_MAX + 1, "uses"),
            ("node", "Not A Name", 0, 0, "name"),
        ] {
            let refused = wanted(&request(role, name, ttl, uses)).unwrap_err();
            assert!(
                refused.message().starts_with(path),
                "{path}: {}",
                refused.message()
            );
        }
    }

    #[test]
    fn a_member_that_does_not_answer_is_unreachable_whoever_it_was() {
        let member = |id, voter| MemberInfo {
            id,
            member: crate::raft::Member::default(),
            voter,
        };
        let role = |id, voter, there: bool| {
            shown(member(id, voter), Some(1), there.then(ProgressReply::default)).role
        };
        assert_eq!(role(1, true, true), "leader");
        assert_eq!(role(2, true, true), "follower");
        assert_eq!(role(3, false, true), "learner");
        assert_eq!(role(1, true, false), "unreachable");
    }
}
