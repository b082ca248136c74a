//! Who people are and what they may: certificates, questions about rights.

use std::time::Duration;

use proto::Timestamp;
use rpc::v1::{
    IssueCertificateRequest, IssueCertificateResponse, ReviewAccessRequest, ReviewAccessResponse,
    WhoAmIResponse,
};
use state::rbac::{self, Access, Who};
use tonic::{Extensions, Status};

use super::Service;
use super::status::{Reason, refused_one};
use crate::security::ca::Subject;
use crate::security::listen::Caller;
use crate::security::unix_now;

/// How long a certificate is good when nothing is asked for: 30 days.
const LIFE_SECONDS: u32 = 30 * DAY;
/// The longest that may be asked for: a certificate can't be taken back.
const LIFE_SECONDS_MAX: u32 = 365 * DAY;
/// The shortest, as in Kubernetes: clocks differ, and a certificate has to be used at all.
const LIFE_SECONDS_MIN: u32 = 10 * 60;
const DAY: u32 = 24 * 60 * 60;
/// Groups of one certificate: it is shown at each connection.
const GROUPS_MAX: usize = 64;

impl Service {
    /// The right to it was checked; what nobody but an administrator may do is refused here.
    pub(super) fn do_issue(
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
        let now = unix_now();
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

fn seconds_since_1970(seconds: u64) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
        nanos: 0,
    }
}
