//! Waiting for objects: until ready, until gone. By watches, so that nothing is polled.

use std::time::Duration;

use model::{Kind, object};
use proto::state::v1::Key;
use proto::v1::object::Object as Any;
use proto::v1::{Condition, Deployment, Object};
use tokio::time::{Instant, timeout_at};

use crate::cluster::{Cluster, Query};
use crate::error::{CtlError, is_lost};
use crate::output::Output;
use crate::{rows, target};

/// What an object is on its way to.
pub(crate) enum Verdict {
    /// There.
    Reached,
    /// Not yet, with a line that says how far it is.
    Waiting(String),
    /// It will not come to it.
    Failed(String),
}

/// Watches one object until `judge` is content with it; it is asked with none while the object is not there.
pub(crate) async fn until(
    cluster: &Cluster,
    key: &Key,
    what: &str,
    seconds: u64,
    out: &mut Output,
    mut judge: impl FnMut(Option<&Object>) -> Verdict,
) -> Result<(), CtlError> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let query = Query {
        kind: key.kind.clone(),
        namespace: key.namespace.clone(),
        labels: String::new(),
        fields: format!("metadata.name={}", key.name),
    };
    let mut said = String::new();
    let mut say = |text: String, out: &mut Output| {
        if !text.is_empty() && text != said {
            out.note(&text);
            said = text;
        }
    };
    let timed_out = || CtlError::TimedOut {
        what: format!("{} {what}", target::shown(key)),
        seconds,
    };
    loop {
        let now = cluster.list(&query).await?;
        match judge(now.items.first()) {
            Verdict::Reached => return Ok(()),
            Verdict::Failed(why) => return Err(CtlError::refused(format!("{}: {why}", target::shown(key)))),
            Verdict::Waiting(text) => say(text, out),
        }
        let mut events = cluster.watch(&query, now.revision).await?;
        loop {
            let event = match timeout_at(end, events.message()).await {
                Err(_) => return Err(timed_out()),
                Ok(Ok(Some(event))) => event,
                // The stream ended, as when a member stops: list and watch again, elsewhere.
                Ok(Ok(None)) => break,
                Ok(Err(status)) if is_lost(&status) || status.code() == tonic::Code::OutOfRange => break,
                Ok(Err(status)) => return Err(cluster.error(status)),
            };
            if event.r#type == "BOOKMARK" {
                continue;
            }
            let object = event.object.filter(|_| event.r#type != "DELETED");
            match judge(object.as_ref()) {
                Verdict::Reached => return Ok(()),
                Verdict::Failed(why) => {
                    return Err(CtlError::refused(format!("{}: {why}", target::shown(key))));
                }
                Verdict::Waiting(text) => say(text, out),
            }
        }
        if Instant::now() >= end {
            return Err(timed_out());
        }
    }
}

/// Waits until an object does what it is for: a pod is ready or has succeeded, a rollout is complete, a node is ready.
pub(crate) async fn until_ready(
    cluster: &Cluster,
    key: &Key,
    seconds: u64,
    out: &mut Output,
) -> Result<(), CtlError> {
    until(cluster, key, "to be ready", seconds, out, |object| match object {
        None => Verdict::Failed("it is gone".to_owned()),
        Some(object) => readiness(object),
    })
    .await
}

/// Waits until an object is gone; another one of its name counts as gone.
pub(crate) async fn until_gone(
    cluster: &Cluster,
    key: &Key,
    uid: &str,
    seconds: u64,
    out: &mut Output,
) -> Result<(), CtlError> {
    until(cluster, key, "to be gone", seconds, out, |object| match object {
        Some(object) if object::meta(object).uid == uid => Verdict::Waiting(String::new()),
        _ => Verdict::Reached,
    })
    .await
}

fn readiness(object: &Object) -> Verdict {
    match &object.object {
        Some(Any::Pod(pod)) => {
            let status = pod.status.clone().unwrap_or_default();
            match status.phase.as_str() {
                "Succeeded" => Verdict::Reached,
                "Failed" => Verdict::Failed(rows::pod_state(pod).1),
                _ if holds(&status.conditions, "Ready", "True") => Verdict::Reached,
                _ => {
                    let (word, reason) = rows::pod_state(pod);
                    let name = &object::meta(object).name;
                    let dash = if reason.is_empty() { "" } else { ": " };
                    Verdict::Waiting(format!("pod/{name} {word}{dash}{reason}"))
                }
            }
        }
        Some(Any::Deployment(deployment)) => rollout(deployment),
        Some(Any::Node(node)) => {
            let conditions = node.status.clone().unwrap_or_default().conditions;
            if holds(&conditions, "Ready", "True") {
                Verdict::Reached
            } else {
                Verdict::Waiting(String::new())
            }
        }
        _ => Verdict::Reached,
    }
}

/// How far a rollout is, in `kubectl rollout status`'s words.
pub(crate) fn rollout(deployment: &Deployment) -> Verdict {
    let meta = deployment.metadata.clone().unwrap_or_default();
    let spec = deployment.spec.clone().unwrap_or_default();
    let status = deployment.status.clone().unwrap_or_default();
    let name = &meta.name;
    let wanted = spec.replicas.unwrap_or(1);
    let say = |text: String| Verdict::Waiting(format!("deployment/{name}: {text}"));
    if status.observed_generation < meta.generation {
        return say("waiting for the spec to be observed".to_owned());
    }
    let stuck = status
        .conditions
        .iter()
        .find(|condition| condition.reason == "ProgressDeadlineExceeded");
    if let Some(condition) = stuck {
        return Verdict::Failed(format!("exceeded its progress deadline: {}", condition.message));
    }
    if status.updated_replicas < wanted {
        return say(format!(
            "{} of {wanted} new replicas have been updated",
            status.updated_replicas
        ));
    }
    if status.replicas > status.updated_replicas {
        return say(format!(
            "{} old replicas are pending termination",
            status.replicas - status.updated_replicas
        ));
    }
    if status.available_replicas < status.updated_replicas {
        return say(format!(
            "{} of {} updated replicas are available",
            status.available_replicas, status.updated_replicas
        ));
    }
    Verdict::Reached
}

/// Whether a condition has a status.
pub(crate) fn holds(conditions: &[Condition], name: &str, status: &str) -> bool {
    conditions.iter().any(|condition| {
        condition.r#type.eq_ignore_ascii_case(name) && condition.status.eq_ignore_ascii_case(status)
    })
}

/// The kind of a key that the cluster gave back.
pub(crate) fn kind_of(key: &Key) -> Result<Kind, CtlError> {
    target::kind(&key.kind)
}
