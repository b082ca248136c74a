//! Who people and programs are and what they may: certificates and tokens issued and revoked, questions about rights.

use std::time::Duration;

use model::{Kind, name, object};
use proto::Timestamp;
use proto::state::v1::Key;
use proto::state::v1::command::Kind as Body;
use proto::v1::Pod;
use rpc::v1::{
    CreateServiceAccountTokenRequest, CreateServiceAccountTokenResponse, IssueCertificateRequest,
    IssueCertificateResponse, ListRevocationsResponse, ReviewAccessRequest, ReviewAccessResponse,
    RevokeCertificatesRequest, RevokeCertificatesResponse, WhoAmIResponse,
};
use state::State;
use state::rbac::{self, Access, Who};
use tonic::{Extensions, Status};

use super::delete::missing;
use super::status::{Reason, by_state, refused, refused_one};
use super::{By, Service, access};
use crate::security::account_token::{self, Claims, NotIssued};
use crate::security::ca::{self, Subject};
use crate::security::listen::Caller;
use crate::security::{new_uuid, revoked, unix_now};

/// How long a certificate is good when nothing is asked for: 30 days.
const LIFE_SECONDS: u32 = 30 * DAY;
/// The longest that may be asked for.
const LIFE_SECONDS_MAX: u32 = 365 * DAY;
/// The shortest, as in Kubernetes: clocks differ, and a certificate has to be used at all.
const LIFE_SECONDS_MIN: u32 = 10 * 60;
const DAY: u32 = 24 * 60 * 60;
/// Groups of one certificate: it is shown at each connection.
const GROUPS_MAX: usize = 64;

impl Service {
    /// The right to it was checked; what nobody but an administrator may do is refused here.
    pub(super) async fn do_issue(
        &self,
        who: &Who,
        request: &IssueCertificateRequest,
    ) -> Result<IssueCertificateResponse, Status> {
        let seconds = match request.ttl_seconds {
            0 => LIFE_SECONDS,
            seconds => seconds,
        };
        if !(LIFE_SECONDS_MIN..=LIFE_SECONDS_MAX).contains(&seconds) {
            let message = format!(
                "a certificate lasts from {LIFE_SECONDS_MIN} s to {LIFE_SECONDS_MAX} s (a year); {seconds} s were asked for"
            );
            return Err(refused_one(Reason::Invalid, message));
        }
        if request.groups.len() > GROUPS_MAX {
            let message = format!("{} groups are more than {GROUPS_MAX}", request.groups.len());
            return Err(refused_one(Reason::Invalid, message));
        }
        if request.groups.iter().any(|group| group == rbac::ADMINS) && !who.is_admin() {
            let message = format!("only a member of {} makes others", rbac::ADMINS);
            return Err(refused_one(Reason::Forbidden, message));
        }
        let subject = Subject::User {
            name: request.name.clone(),
            groups: request.groups.clone(),
            life: Duration::from_secs(u64::from(seconds)),
        };
        let state = self.state().await?;
        let now = revoked::issuing_time(&state, &request.name, unix_now());
        let certificate = self
            .authority
            .sign(&request.csr, &subject, now)
            .map_err(|cause| refused_one(Reason::Invalid, cause.to_string()))?;
        Ok(IssueCertificateResponse {
            certificate,
            ca: self.authority.certificate().to_owned(),
            expires: Some(seconds_since_1970(now + u64::from(seconds))),
            endpoints: self
                .node
                .members()
                .into_iter()
                .map(|info| info.member.address)
                .collect(),
        })
    }

    /// A token of a service account, for as long as was asked for.
    pub(super) async fn do_create_account_token(
        &self,
        request: &CreateServiceAccountTokenRequest,
    ) -> Result<CreateServiceAccountTokenResponse, Status> {
        let seconds = match request.expiration_seconds {
            0 => account_token::LIFE_SECONDS,
            seconds => seconds,
        };
        let (least, most) = (account_token::LIFE_SECONDS_MIN, account_token::LIFE_SECONDS_MAX);
        if !(least..=most).contains(&seconds) {
            let message =
                format!("a token lasts from {least} s to {most} s (a day); {seconds} s were asked for");
            return Err(refused_one(Reason::Invalid, message));
        }
        let (_, key) = super::key(Some(&access::account_key(request)))?;
        let state = self.state().await?;
        let pod = match request.bound_pod.as_str() {
            "" if !request.bound_pod_uid.is_empty() => {
                let message = "boundPodUID needs boundPod".to_owned();
                return Err(refused_one(Reason::Invalid, message));
            }
            "" => None,
            pod => Some(bound_pod(
                &state,
                &object::key_of(Kind::Pod, &key.namespace, pod),
                &request.bound_pod_uid,
            )?),
        };
        let claims = Claims::new(
            &state,
            &key.namespace,
            &key.name,
            pod.as_ref(),
            seconds,
            unix_now(),
        );
        let claims = claims.map_err(|cause| {
            let reason = match cause {
                NotIssued::Unready => return Status::unavailable(cause.to_string()),
                NotIssued::NoAccount { .. } => Reason::NotFound,
                NotIssued::OfAnother { .. } | NotIssued::Ended { .. } => Reason::Invalid,
            };
            refused_one(reason, cause.to_string())
        })?;
        Ok(CreateServiceAccountTokenResponse {
            token: self.authority.account_key().sign(&claims),
            expires: Some(seconds_since_1970(claims.expires())),
        })
    }

    pub(super) async fn do_revoke(
        &self,
        request: &RevokeCertificatesRequest,
        by: &By,
    ) -> Result<RevokeCertificatesResponse, Status> {
        let identity = &request.identity;
        let known = match identity.strip_prefix("system:") {
            Some(own) => match (own.strip_prefix("node:"), rbac::account_of(identity)) {
                (Some(node), _) => name::dns1123_subdomain(node).is_ok(),
                (None, Some((namespace, account))) => {
                    name::dns1123_label(namespace).is_ok() && name::dns1123_subdomain(account).is_ok()
                }
                (None, None) => false,
            },
            None => ca::user_name(identity).is_ok(),
        };
        if !known {
            let message = format!(
                "`{identity}` is neither a user nor system:node:NAME nor system:serviceaccount:NAMESPACE:NAME; what a \
                 controller has ends with `ctl cluster remove`"
            );
            return Err(refused_one(Reason::Invalid, message));
        }
        // They could not ask for a new one, and maybe nobody else could give it.
        if *identity == by.actor {
            let message = format!("{identity} would be locked out; another administrator has to do that");
            return Err(refused_one(Reason::Forbidden, message));
        }
        let body = Body::Revocation(revoked::revocation(identity, unix_now()));
        match self.propose(by, new_uuid(), body).await? {
            Ok(_) => Ok(RevokeCertificatesResponse {}),
            Err(refusal) => Err(refused(vec![by_state(0, &refusal)])),
        }
    }

    pub(super) async fn do_list_revocations(&self) -> Result<ListRevocationsResponse, Status> {
        let state = self.state().await?;
        Ok(ListRevocationsResponse {
            revocations: state
                .revocations()
                .values()
                .map(|one| one.as_ref().clone())
                .collect(),
        })
    }

    pub(super) async fn do_review(
        &self,
        asker: &Who,
        request: ReviewAccessRequest,
    ) -> Result<ReviewAccessResponse, Status> {
        for (field, text) in [("verb", &request.verb), ("resource", &request.resource)] {
            if text.is_empty() {
                return Err(refused_one(Reason::Invalid, format!("{field} is required")));
            }
        }
        let who = match (request.user.as_str(), request.groups.as_slice()) {
            ("", []) => asker.clone(),
            (user, []) => {
                // A service account has the groups that its token would have.
                let account = rbac::account_of(user);
                let groups = account.map_or_else(Vec::new, |(namespace, _)| rbac::account_groups(namespace));
                Who::authenticated(user, &groups)
            }
            (user, groups) => Who::authenticated(user, groups),
        };
        let access = Access {
            verb: request.verb,
            group: request.group,
            resource: request.resource,
            namespace: request.namespace,
            name: request.name,
        };
        let state = self.state().await?;
        let grant = rbac::allows(&state, &who, &access);
        Ok(ReviewAccessResponse {
            allowed: grant.is_some(),
            reason: grant.map_or_else(|| "no role allows it".to_owned(), |grant| grant.to_string()),
        })
    }

    pub(super) fn do_who_am_i(who: Who, extensions: &Extensions) -> WhoAmIResponse {
        let end = extensions
            .get::<Caller>()
            .map(|caller| caller.authenticated.not_after);
        WhoAmIResponse {
            name: who.name,
            groups: who.groups,
            expires: end.map(seconds_since_1970),
        }
    }
}

/// The pod that a token is to end with; with `uid` that very one.
fn bound_pod(state: &State, key: &Key, uid: &str) -> Result<Pod, Status> {
    let pod = state.get(key).and_then(object::into::<Pod>);
    let pod = pod.ok_or_else(|| missing(Kind::Pod, key))?;
    let its = pod.metadata.as_ref().map_or("", |meta| &meta.uid);
    if !uid.is_empty() && its != uid {
        let message = format!("pod {} has the uid {its}, not {uid}", key.name);
        return Err(refused_one(Reason::Conflict, message));
    }
    Ok(pod)
}

fn seconds_since_1970(seconds: u64) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
        nanos: 0,
    }
}
