//! Deployments and ReplicaSets: what they say of themselves, and what keeps their pods.

use model::object::{self, FOREGROUND};
use proto::v1::{Deployment, DeploymentStatus, Object, Pod, ReplicaSet};

use super::{Cause, Look, Severity, cause, condition, holds, word};

/// Pods that are looked into: the reasons of one revision's pods repeat.
const PODS_MAX: usize = 200;
/// Reasons of pods that are told.
pub(super) const CAUSES_MAX: usize = 20;

impl Look<'_> {
    pub(super) fn deployment(&self, deployment: &Deployment) -> Vec<Cause> {
        let meta = deployment.metadata.clone().unwrap_or_default();
        let spec = deployment.spec.clone().unwrap_or_default();
        let none = DeploymentStatus::default();
        let status = deployment.status.as_ref().unwrap_or(&none);
        let subject = format!("deployment/{}", meta.name);
        let wanted = spec.replicas.unwrap_or(1);
        let mut causes = going(&subject, &object::from(deployment.clone()), self);
        if spec.paused {
            causes.push(
                cause(
                    Severity::Waiting,
                    &subject,
                    "Paused",
                    "it is paused: changes of its template wait",
                )
                .hint("apply it with spec.paused false"),
            );
        }
        if status.observed_generation < meta.generation {
            causes.push(
                cause(
                    Severity::Waiting,
                    &subject,
                    "NotObserved",
                    "its last change was not looked at yet",
                )
                .hint("`ctl cluster members` tells whether a controller leads"),
            );
        }
        if let Some(progressing) = condition(&status.conditions, "Progressing")
            && progressing.status == "False"
        {
            causes.push(
                cause(
                    Severity::Error,
                    &subject,
                    word(&progressing.reason, "NotProgressing"),
                    progressing.message.clone(),
                )
                .hint(format!(
                    "`ctl rollout undo {subject}` goes back to the revision before"
                )),
            );
        }
        let short = status.available_replicas < wanted;
        let rolling = status.updated_replicas < wanted || status.replicas > status.updated_replicas;
        if short || rolling {
            let available = condition(&status.conditions, "Available");
            let severity = match available {
                Some(available) if available.status == "False" => Severity::Error,
                _ => Severity::Waiting,
            };
            let reason = if short { "Unavailable" } else { "RollingOut" };
            let message = format!(
                "{} of {wanted} pods are available, {} of the newest revision, {} in all",
                status.available_replicas, status.updated_replicas, status.replicas
            );
            causes.push(cause(severity, &subject, reason, message));
        }
        let sets: Vec<Object> = self.state.owned_by(&meta.uid).collect();
        causes.extend(
            sets.iter()
                .filter_map(object::of::<ReplicaSet>)
                .filter_map(failure),
        );
        let pods = sets
            .iter()
            .flat_map(|set| self.state.owned_by(&object::meta(set).uid));
        causes.extend(self.pods_of(pods.filter_map(object::into::<Pod>)));
        causes
    }

    pub(super) fn replica_set(&self, set: &ReplicaSet) -> Vec<Cause> {
        let meta = set.metadata.clone().unwrap_or_default();
        let subject = format!("replicaset/{}", meta.name);
        let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let status = set.status.clone().unwrap_or_default();
        let mut causes = going(&subject, &object::from(set.clone()), self);
        causes.extend(failure(set));
        if status.available_replicas < wanted {
            let message = format!("{} of {wanted} pods are available", status.available_replicas);
            causes.push(cause(Severity::Waiting, &subject, "Unavailable", message));
        }
        let pods = self.state.owned_by(&meta.uid);
        causes.extend(self.pods_of(pods.filter_map(object::into::<Pod>)));
        causes
    }

    /// The reasons of pods that are not ready, each once with how many pods have it.
    fn pods_of(&self, pods: impl Iterator<Item = Pod>) -> Vec<Cause> {
        let mut told: Vec<(Cause, usize)> = Vec::new();
        let ready = |pod: &Pod| {
            let conditions = pod.status.as_ref().map_or(&[][..], |status| &status.conditions);
            let isolated = condition(conditions, "Isolated").is_none_or(|it| it.status != "False");
            holds(conditions, "Ready") && isolated
        };
        for pod in pods.filter(|pod| !ready(pod)).take(PODS_MAX) {
            for cause in self.pod(&pod) {
                if cause.severity == Severity::Info {
                    continue;
                }
                let same = told
                    .iter_mut()
                    .find(|(there, _)| there.reason == cause.reason && there.message == cause.message);
                match same {
                    Some((there, more)) if there.subject != cause.subject => *more += 1,
                    Some(_) => {}
                    None => told.push((cause, 0)),
                }
            }
        }
        let mut causes: Vec<Cause> = told
            .into_iter()
            .map(|(mut cause, more)| {
                if more > 0 {
                    cause.message.push_str(&format!(" (and {more} more pods)"));
                }
                cause
            })
            .collect();
        causes.sort_by_key(|cause| cause.severity);
        causes.truncate(CAUSES_MAX);
        causes
    }
}

/// Why a ReplicaSet's pods can't be created.
fn failure(set: &ReplicaSet) -> Option<Cause> {
    let conditions = set.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let failed = condition(conditions, "ReplicaFailure").filter(|it| it.status == "True")?;
    let subject = format!(
        "replicaset/{}",
        set.metadata.as_ref().map_or("", |meta| &meta.name)
    );
    let reason = word(&failed.reason, "ReplicaFailure");
    Some(cause(Severity::Error, &subject, reason, failed.message.clone()))
}

/// An owner that waits for what it owns.
fn going(subject: &str, object: &Object, look: &Look) -> Vec<Cause> {
    let meta = object::meta(object);
    let Some(asked) = &meta.deletion_timestamp else {
        return Vec::new();
    };
    let kept = &meta.finalizers;
    if !kept.is_empty() && kept.iter().all(|finalizer| finalizer != FOREGROUND) {
        return Vec::new(); // what it owns goes after it
    }
    let left = look.state.owned_by(&meta.uid).count();
    let message = format!(
        "deletion was asked for {} ago; it waits for {left} objects that it owns",
        look.ago(Some(asked))
    );
    vec![cause(Severity::Waiting, subject, "Terminating", message)]
}
