//! Lets a call in as far as roles allow it, and notes what came of it.

use std::net::SocketAddr;

use proto::v1::object::Object as Any;
use rpc::v1::{ApplyRequest, ApplyResponse, ApplyResult, Refusal};
use state::State;
use state::rbac::{self, Who};
use tonic::{Code, Extensions, Status};

use super::access::{self, Need, What};
use super::status::{Reason, refusal, refused};
use super::{Service, blocking};
use crate::audit::{Audit, Entry, Touched};
use crate::security::identity::Identity;
use crate::security::listen::Caller;

/// Who makes a call, and from where.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) who: Who,
    pub(super) address: Option<SocketAddr>,
}

impl Asker {
    /// From what the guard and the listener put there.
    pub(super) fn of(extensions: &Extensions) -> Result<Self, Status> {
        match extensions.get::<Identity>() {
            Some(Identity::User { name, groups }) => Ok(Self {
                who: Who::authenticated(name.as_str(), groups),
                address: extensions.get::<Caller>().map(|caller| caller.address),
            }),
            _ => Err(Status::unauthenticated("the call has no user")),
        }
    }
}

/// A call that was let in.
pub(super) struct Admitted {
    pub(super) who: Who,
    audit: Audit,
    entry: Entry,
}

/// Which calls are noted when they are carried out; a refusal always is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Reads,
    /// It changes something, or enters a container.
    Writes,
}

/// What a call is to the audit log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) name: &'static str,
    pub(super) effect: Effect,
    /// Of the client; empty: none.
    pub(super) request_id: &'a str,
}

impl Call<'_> {
    pub(super) fn reads(name: &'static str) -> Self {
        Self {
            name,
            effect: Effect::Reads,
            request_id: "",
        }
    }

    pub(super) fn writes(name: &'static str) -> Self {
        Self {
            effect: Effect::Writes,
            ..Self::reads(name)
        }
    }
}

impl Admitted {
    /// Notes how it ended.
    pub(super) async fn done<T>(mut self, result: Result<T, Status>) -> Result<T, Status> {
        if self.entry.noted {
            self.entry.outcome = Some(match &result {
                Ok(_) => "Ok".to_owned(),
                Err(status) => format!("{:?}", status.code()),
            });
            self.audit.record(self.entry).await;
        }
        result
    }
}

impl Service {
    /// Decides whether a call may be made, on what every member has acknowledged.
    pub(super) async fn admit(
        &self,
        call: Call<'_>,
        asker: Asker,
        needs: impl FnOnce(&State) -> Result<Vec<Need>, Status>,
    ) -> Result<Admitted, Status> {
        // Administrators need no role; their calls look at the state by themselves.
        let state = match asker.who.is_admin() {
            true => self.node.stale(),
            false => self.state().await?,
        };
        self.admit_at(state, call, asker, needs).await
    }

    /// As [`Self::admit`], on what this member has: for calls that are made while nobody leads.
    pub(super) async fn admit_without_leader(
        &self,
        call: Call<'_>,
        asker: Asker,
        needs: Vec<Need>,
    ) -> Result<Admitted, Status> {
        self.admit_at(self.node.stale(), call, asker, |_| Ok(needs)).await
    }

    async fn admit_at(
        &self,
        state: State,
        call: Call<'_>,
        asker: Asker,
        needs: impl FnOnce(&State) -> Result<Vec<Need>, Status>,
    ) -> Result<Admitted, Status> {
        let needs = needs(&state)?;
        let Asker { who, address } = asker;
        let mut entry = Entry::new(call.name, &who.name, &who.groups, address);
        call.request_id.clone_into(&mut entry.request_id);
        entry.noted = call.effect == Effect::Writes;
        entry.touches(needs.iter().filter_map(touched));
        let refusals = if who.is_admin() {
            Vec::new()
        } else {
            let who = who.clone();
            blocking(move || refusals(&state, &who, &needs)).await?
        };
        if refusals.is_empty() {
            let audit = self.audit.clone();
            return Ok(Admitted { who, audit, entry });
        }
        entry.refused = refusals.first().map(|refusal| refusal.message.clone());
        self.audit.record(entry).await;
        Err(refused(refusals))
    }

    /// The answer to an apply, without the values of Secrets that whoever made it may not read: a Secret may have more keys
    /// than were written.
    pub(super) fn without_unreadable(&self, who: &Who, mut answer: ApplyResponse) -> ApplyResponse {
        if who.is_admin() {
            return answer;
        }
        let state = self.node.stale();
        let objects = answer
            .results
            .iter_mut()
            .filter_map(|result| result.object.as_mut());
        for object in objects {
            if let Some(Any::Secret(secret)) = &mut object.object {
                let meta = secret.metadata.clone().unwrap_or_default();
                let get = rbac::Access::to("get", model::Kind::Secret, &meta.namespace, &meta.name);
                if rbac::allows(&state, who, &get).is_none() {
                    secret.data.clear();
                }
            }
        }
        answer
    }
}

/// What an apply comes to, at the very state on which it was decided: what it prunes it deletes, and a role that gave no more
/// than before a moment ago may do so now.
pub(super) fn check_apply(
    state: &State,
    who: &Who,
    request: &ApplyRequest,
    results: &[ApplyResult],
) -> Result<(), Status> {
    let pruned = results.iter().filter(|result| result.outcome == "pruned");
    let mut needs = access::deletes(pruned.filter_map(|result| result.object.as_ref()));
    needs.extend(access::apply(&request.items, &request.request_id, state));
    check(state, who, &needs)
}

/// Every reason against what whoever asks for it needs.
pub(super) fn check(state: &State, who: &Who, needs: &[Need]) -> Result<(), Status> {
    if who.is_admin() {
        return Ok(());
    }
    match refusals(state, who, needs) {
        refusals if refusals.is_empty() => Ok(()),
        refusals => Err(refused(refusals)),
    }
}

fn touched(need: &Need) -> Option<Touched> {
    match &need.what {
        What::Right(access) => Some(Touched::of(access)),
        What::Give { .. } => None, // the same object again
    }
}

/// Every reason against a call.
fn refusals(state: &State, who: &Who, needs: &[Need]) -> Vec<Refusal> {
    let reasons = needs.iter().filter_map(|need| {
        let message = match &need.what {
            What::Right(access) => match rbac::allows(state, who, access) {
                Some(_) => return None,
                None => may_not(who, access),
            },
            What::Give { namespace, rules, or } => {
                if rbac::allows(state, who, or).is_some() {
                    return None;
                }
                let missing = match rules {
                    None => "the role does not exist, so nobody knows what it gives".to_owned(),
                    Some(rules) => match rbac::holds(state, who, namespace, rules) {
                        Ok(()) => return None,
                        Err(missing) => format!("it gives what they do not have: {missing}"),
                    },
                };
                format!("{}, and {missing}", may_not(who, or))
            }
        };
        Some(refusal(need.item, "", Reason::Forbidden, message))
    });
    reasons.collect()
}

/// How a missing right is spoken of.
pub(crate) fn may_not(who: &Who, access: &rbac::Access) -> String {
    format!("user {} may not {access}", who.name)
}

/// For calls that another member passes on: the same decision once more.
pub(crate) fn check_again(state: &State, who: &Who, access: &rbac::Access) -> Result<(), Status> {
    match rbac::allows(state, who, access) {
        Some(_) => Ok(()),
        None => Err(Status::new(Code::PermissionDenied, may_not(who, access))),
    }
}
