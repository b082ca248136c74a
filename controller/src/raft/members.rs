//! Who is in the cluster, and changes of that.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use state::SCHEMA_LEVEL_MIN;

use super::node::{At, Node, Refusal, within, write_failed};
use super::types::{Member, MemberId, StoredMembership};
use crate::store::Dir;

/// A member as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its number.
    pub id: MemberId,
    /// Name and addresses.
    pub member: Member,
    /// It has a vote; else it only learns.
    pub voter: bool,
}

/// A change of who is in the cluster.
#[derive(Clone, Debug)]
pub(super) enum MemberChange {
    /// A new one, without a vote.
    AddLearner(MemberId, Member),
    /// Give it a vote.
    Promote(MemberId),
    /// Take it out.
    Remove(MemberId),
    /// Make it the leader.
    TransferTo(MemberId),
}

impl<D: Dir> Node<D> {
    /// Everyone in the cluster, by number.
    pub fn members(&self) -> Vec<MemberInfo> {
        infos(&self.membership())
    }

    /// Who is in the cluster by the log of this member: others may not have that entry yet.
    fn membership(&self) -> Arc<StoredMembership> {
        self.raft()
            .server_metrics()
            .borrow_watched()
            .membership_config
            .clone()
    }

    /// Who has a vote for certain: by each of the configurations that may be in force, also when an election takes back what is
    /// not committed. Nobody when consensus has ended.
    pub(crate) async fn sure_voters(&self) -> BTreeSet<MemberId> {
        let known = self.raft().with_raft_state(|state| {
            let known = &state.membership_state;
            [known.committed().clone(), known.effective().clone()]
        });
        let Ok(known) = known.await else {
            return BTreeSet::new();
        };
        let configurations = known
            .iter()
            .flat_map(|known| known.membership().get_joint_config());
        let common = configurations.cloned().reduce(|common, next| &common & &next);
        common.unwrap_or_default()
    }

    /// The newest schema level that every member says it can apply; None while one of them does not answer.
    pub(crate) async fn common_level(&self) -> Option<u32> {
        let members = self.members();
        let asked = members.iter().map(|member| self.progress_of(member.id));
        let levels = join_all(asked).await.into_iter();
        let levels: Option<Vec<u32>> = levels
            .map(|progress| Some(progress?.schema_level.max(SCHEMA_LEVEL_MIN)))
            .collect();
        levels?.into_iter().min()
    }

    /// Whether no change of the voters is half done, as far as this member knows: one whose leader is lost between its two
    /// steps stays so until the change is asked for again.
    pub fn settled(&self) -> bool {
        is_settled(&self.membership())
    }

    /// A number for a member that joins: higher than any that was ever given, as each joining is an entry of the log.
    pub fn next_member_id(&self) -> MemberId {
        let highest = self.members().iter().map(|member| member.id).max().unwrap_or(0);
        let last = self.raft().metrics().borrow_watched().last_log_index.unwrap_or(0);
        highest.max(last) + 1
    }

    /// Changes the members if this one leads.
    pub(super) async fn change_here(&self, change: &MemberChange) -> Result<At<()>, Refusal> {
        let leadership = *self.inner.leadership.borrow();
        if !leadership.is_me {
            return Ok(At::Other(
                leadership.leader.filter(|leader| *leader != self.inner.id),
            ));
        }
        let now = self.membership();
        let members = infos(&now);
        let info = |id: MemberId| members.iter().find(|member| member.id == id);
        let known = |id: MemberId| {
            info(id).ok_or_else(|| Refusal::Invalid(format!("there is no member {id} in this cluster")))
        };
        let raft = self.raft();
        let written = match change {
            MemberChange::AddLearner(id, member) => match info(*id) {
                Some(found) if found.member == *member => return self.confirmed(&now).await,
                Some(_) => return Err(Refusal::Invalid(format!("there already is a member {id}"))),
                None => within(raft.add_learner(*id, member.clone(), false)).await?,
            },
            MemberChange::Promote(id) => match known(*id)? {
                MemberInfo { voter: true, .. } if is_settled(&now) => return self.confirmed(&now).await,
                // A voter too, when the second step is missing: it is done now.
                MemberInfo { .. } => {
                    let change = ChangeMembers::AddVoterIds(BTreeSet::from([*id]));
                    within(raft.change_membership(change, true)).await?
                }
            },
            MemberChange::Remove(id) => {
                let Some(found) = info(*id) else {
                    return self.confirmed(&now).await;
                };
                let voters = members.iter().filter(|member| member.voter).count();
                if found.voter && voters == 1 {
                    return Err(Refusal::Invalid("the last voter can't be removed".to_owned()));
                }
                let ids = BTreeSet::from([*id]);
                let change = if found.voter {
                    ChangeMembers::RemoveVoters(ids)
                } else {
                    ChangeMembers::RemoveNodes(ids)
                };
                let removed = within(raft.change_membership(change, false)).await?;
                self.inner.peers.forget(*id);
                removed
            }
            MemberChange::TransferTo(id) if *id == self.inner.id => return Ok(At::Leader(())),
            MemberChange::TransferTo(id) => {
                if !known(*id)?.voter {
                    return Err(Refusal::Invalid(format!("member {id} has no vote")));
                }
                let sent = raft.trigger().transfer_leader(*id).await;
                return sent
                    .map(At::Leader)
                    .map_err(|cause| Refusal::Stopped(cause.to_string()));
            }
        };
        match written {
            Ok(_) => Ok(At::Leader(())),
            Err(cause) => write_failed(cause),
        }
    }

    /// For a change that needs no entry any more: whether most members have the one that made it. The log of this one alone
    /// may lose it again.
    async fn confirmed(&self, now: &StoredMembership) -> Result<At<()>, Refusal> {
        let made = now.log_id().map(|id| id.index);
        match self.read_index_here().await? {
            At::Leader(committed) if made <= Some(committed) => Ok(At::Leader(())),
            At::Leader(_) => Err(Refusal::Unknown(
                "most of the members do not have the change yet".to_owned(),
            )),
            At::Other(leader) => Ok(At::Other(leader)),
        }
    }
}

fn infos(membership: &StoredMembership) -> Vec<MemberInfo> {
    let voters: BTreeSet<MemberId> = membership.voter_ids().collect();
    membership
        .nodes()
        .map(|(id, member)| MemberInfo {
            id: *id,
            member: member.clone(),
            voter: voters.contains(id),
        })
        .collect()
}

fn is_settled(membership: &StoredMembership) -> bool {
    membership.membership().get_joint_config().len() == 1
}
