//! Which pods of a node get a token of their service account. Pure.

use model::{Kind, object};
use proto::v1::{Pod, ServiceAccount};
use state::State;
use tonic::Status;

use crate::security::account_token::{Claims, LIFE_SECONDS, NotIssued};

/// What the token of a pod is to say, for the node that is to have the pod and for no other.
pub(super) fn claims(state: &State, node: &str, uid: &str, now: u64) -> Result<Claims, Status> {
    // Bound: a pod may name its node before that is decided. Of a pod of another node nothing is told.
    let bound = state.pod_versions_on(node).any(|(bound, _)| bound == uid);
    let pod = state.by_uid(uid).and_then(object::into::<Pod>);
    let pod = pod
        .filter(|_| bound)
        .ok_or_else(|| Status::not_found(format!("no pod with the uid {uid} is bound to node {node}")))?;
    let meta = pod.metadata.clone().unwrap_or_default();
    if !is_asked(state, &pod) {
        return Err(Status::permission_denied(format!(
            "neither pod {} nor its service account says automountServiceAccountToken: true",
            meta.name
        )));
    }
    let account = pod.spec.as_ref().map_or("", |spec| &spec.service_account_name);
    let claims = Claims::new(state, &meta.namespace, account, Some(&pod), LIFE_SECONDS, now);
    claims.map_err(|cause| match cause {
        NotIssued::Unready => Status::unavailable(cause.to_string()),
        NotIssued::NoAccount { .. } => Status::not_found(cause.to_string()),
        NotIssued::OfAnother { .. } | NotIssued::Ended { .. } => {
            Status::failed_precondition(cause.to_string())
        }
    })
}

/// As its node has to know a pod: whether it gets a token stands in it, whoever says so.
pub(super) fn decided(state: &State, mut pod: Pod) -> Pod {
    let asked = is_asked(state, &pod);
    if let Some(spec) = &mut pod.spec
        && asked
    {
        spec.automount_service_account_token = Some(true);
    }
    pod
}

/// The pod's word goes before its account's, as in Kubernetes. Deviation: where both are silent there is no token.
fn is_asked(state: &State, pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.automount_service_account_token
        .or_else(|| {
            let namespace = pod.metadata.as_ref().map_or("", |meta| &meta.namespace);
            let key = object::key_of(Kind::ServiceAccount, namespace, &spec.service_account_name);
            let account = state.get(&key).and_then(object::into::<ServiceAccount>);
            account?.automount_service_account_token
        })
        .unwrap_or(false)
}
