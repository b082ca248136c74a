//! What a Deployment says of itself: counts, and the conditions Available and Progressing with Kubernetes' reasons.

use model::object;
use proto::v1::{Condition, Deployment, DeploymentStatus, ObjectMeta};

use super::rollout::Bounds;
use super::{Revision, Turn};
use crate::conditions;
use crate::plan::set_status;
use crate::record::{millis, timestamp};

/// Seconds without progress until a rollout counts as failed, when the spec does not say.
const DEADLINE_SECONDS: i32 = 600;

impl Turn<'_> {
    /// `made` is the ReplicaSet that this turn makes.
    pub(super) fn status(&mut self, old: &[Revision], current: Option<&Revision>, made: Option<&str>) {
        let before = self.deployment.status.clone().unwrap_or_default();
        let sum = |of: fn(&Revision) -> i32| old.iter().chain(current).map(of).fold(0, i32::saturating_add);
        let replicas = sum(|revision| revision.counts.active);
        let available = sum(|revision| revision.counts.available);
        let mut status = DeploymentStatus {
            observed_generation: self.meta.generation,
            replicas,
            updated_replicas: current.map_or(0, |current| current.counts.active),
            ready_replicas: sum(|revision| revision.counts.ready),
            available_replicas: available,
            unavailable_replicas: (replicas - available).max(0),
            conditions: Vec::new(),
        };
        let bounds = Bounds::of(self.spec);
        let wanted = [
            available_condition(available, bounds),
            self.progressing(&before, &status, current, made),
        ];
        let kept = wanted.map(
            |wanted| match conditions::get(&before.conditions, &wanted.r#type) {
                // The same word again: with the time of the first, unless there was progress since.
                Some(there)
                    if there.reason == wanted.reason
                        && there.status == wanted.status
                        && !(wanted.reason == "ReplicaSetUpdated" && progressed(&before, &status)) =>
                {
                    Condition {
                        message: wanted.message,
                        ..there.clone()
                    }
                }
                there => {
                    let now = timestamp(self.now);
                    let since = there.filter(|there| there.status == wanted.status);
                    let since = since.and_then(|there| there.last_transition_time);
                    Condition {
                        last_transition_time: Some(since.unwrap_or(now)),
                        last_update_time: Some(now),
                        ..wanted
                    }
                }
            },
        );
        status.conditions = kept.into();
        if status == before {
            return;
        }
        let object = Deployment {
            metadata: Some(ObjectMeta {
                name: self.meta.name.clone(),
                namespace: self.meta.namespace.clone(),
                uid: self.meta.uid.clone(),
                ..Default::default()
            }),
            status: Some(status),
            ..Default::default()
        };
        self.operations.push(set_status(object::from(object), Vec::new()));
    }

    fn progressing(
        &self,
        before: &DeploymentStatus,
        status: &DeploymentStatus,
        current: Option<&Revision>,
        made: Option<&str>,
    ) -> Condition {
        let there = conditions::get(&before.conditions, "Progressing");
        let reason_before = there.map_or("", |there| there.reason.as_str());
        let name = made
            .or(current.and_then(|current| Some(current.meta()?.name.as_str())))
            .unwrap_or_default();
        let desired = self.spec.replicas.unwrap_or(1).max(0);
        let complete = made.is_none()
            && status.updated_replicas == desired
            && status.replicas == desired
            && status.available_replicas == desired;
        let condition = |status: &str, reason: &str, message: String| Condition {
            r#type: "Progressing".to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            ..Default::default()
        };
        if self.spec.paused {
            return condition("Unknown", "DeploymentPaused", "Deployment is paused".to_owned());
        }
        if reason_before == "DeploymentPaused" {
            return condition("Unknown", "DeploymentResumed", "Deployment is resumed".to_owned());
        }
        if made.is_some() {
            return condition(
                "True",
                "NewReplicaSetCreated",
                format!("Created new replica set \"{name}\""),
            );
        }
        if complete {
            let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
            return condition("True", "NewReplicaSetAvailable", message);
        }
        let was_complete = reason_before == "NewReplicaSetAvailable"
            && status.replicas == status.updated_replicas
            && before.observed_generation == status.observed_generation;
        if let Some(there) = there.filter(|_| was_complete) {
            // A pod that fails later does not make a finished rollout a failed one.
            return there.clone();
        }
        if progressed(before, status) || reason_before == "NewReplicaSetAvailable" {
            return condition(
                "True",
                "ReplicaSetUpdated",
                format!("ReplicaSet \"{name}\" is progressing."),
            );
        }
        let deadline = i64::from(self.spec.progress_deadline_seconds.unwrap_or(DEADLINE_SECONDS)) * 1000;
        match there {
            None if current.is_some() => condition(
                "True",
                "FoundNewReplicaSet",
                format!("Found new replica set \"{name}\""),
            ),
            None => condition(
                "True",
                "ReplicaSetUpdated",
                "waiting for the old pods to end".to_owned(),
            ),
            Some(there) if millis(there.last_update_time.as_ref()).saturating_add(deadline) < self.now => {
                let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
                condition("False", "ProgressDeadlineExceeded", message)
            }
            Some(there) => there.clone(),
        }
    }
}

fn available_condition(available: i32, bounds: Bounds) -> Condition {
    let (status, reason, message) = if available >= bounds.least {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    Condition {
        r#type: "Available".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        ..Default::default()
    }
}

/// More of the new, fewer of the old, more ready or available than before.
fn progressed(before: &DeploymentStatus, now: &DeploymentStatus) -> bool {
    now.updated_replicas > before.updated_replicas
        || now.replicas - now.updated_replicas < before.replicas - before.updated_replicas
        || now.ready_replicas > before.ready_replicas
        || now.available_replicas > before.available_replicas
}
