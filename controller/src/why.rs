//! Why an object is not as it should be: every reason, the most important first, with what to do about it. Pure.

mod node;
mod pod;
mod workload;

use model::Kind;
use model::object::{self, FOREGROUND};
use proto::Timestamp;
use proto::v1::object::Object as Any;
use proto::v1::{Condition, ContainerStateTerminated, Event, Object};
use rpc::v1::Reason;
use state::State;

use crate::events::millis;

/// How bad it is; the order is that of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    /// It will not get better by itself.
    Error,
    /// Something is under way.
    Waiting,
    /// Good to know.
    Info,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Waiting => "waiting",
            Self::Info => "info",
        }
    }
}

/// What the reasons are looked for in.
pub(crate) struct Look<'a> {
    pub(crate) state: &'a State,
    /// Events about the object with a uid, the latest last.
    pub(crate) events: &'a dyn Fn(&str) -> Vec<Event>,
    pub(crate) now_ms: i64,
}

/// One reason before it is told.
#[derive(Clone, Debug)]
struct Cause {
    severity: Severity,
    subject: String,
    reason: String,
    message: String,
    hint: String,
}

fn cause(severity: Severity, subject: &str, reason: &str, message: impl Into<String>) -> Cause {
    Cause {
        severity,
        subject: subject.to_owned(),
        reason: reason.to_owned(),
        message: message.into(),
        hint: String::new(),
    }
}

impl Cause {
    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl Look<'_> {
    /// Never empty: of an object that is as it should be this says so.
    pub(crate) fn reasons(&self, object: &Object) -> Vec<Reason> {
        let mut causes = self.causes(object);
        if causes.is_empty() {
            let subject = object::display(object);
            causes.push(cause(Severity::Info, &subject, "Fine", fine(object)));
        }
        causes.sort_by_key(|cause| cause.severity); // stable: each part tells its own in order
        let told = causes.into_iter().map(|cause| Reason {
            severity: cause.severity.as_str().to_owned(),
            subject: cause.subject,
            reason: cause.reason,
            message: cause.message,
            hint: cause.hint,
        });
        told.collect()
    }

    fn causes(&self, object: &Object) -> Vec<Cause> {
        let mut causes = match &object.object {
            Some(Any::Pod(pod)) => self.pod(pod),
            Some(Any::Deployment(deployment)) => self.deployment(deployment),
            Some(Any::ReplicaSet(set)) => self.replica_set(set),
            Some(Any::Node(node)) => self.node(node),
            Some(Any::Namespace(namespace)) => self.namespace(namespace),
            // The others are as they are.
            _ => Vec::new(),
        };
        causes.extend(self.kept(object));
        causes.extend(self.leaving_namespace(object));
        causes
    }

    /// What is to go and waits for those whose finalizers it has.
    fn kept(&self, object: &Object) -> Option<Cause> {
        let meta = object::meta(object);
        let asked = meta.deletion_timestamp.as_ref()?;
        let finalizers = meta.finalizers.iter().map(String::as_str);
        let others: Vec<&str> = finalizers.filter(|finalizer| *finalizer != FOREGROUND).collect();
        if others.is_empty() {
            return None;
        }
        let message = format!(
            "deletion was asked for {} ago; it waits until {} is taken out of metadata.finalizers",
            self.ago(Some(asked)),
            others.join(" and ")
        );
        Some(cause(
            Severity::Waiting,
            &object::display(object),
            "Terminating",
            message,
        ))
    }

    /// What is in a namespace that goes goes too.
    fn leaving_namespace(&self, object: &Object) -> Option<Cause> {
        if !object::try_kind(object)?.namespaced() {
            return None;
        }
        let namespace = &object::meta(object).namespace;
        let key = object::key_of(Kind::Namespace, "", namespace);
        let namespace = self.state.get(&key)?;
        object::meta(&namespace).deletion_timestamp.as_ref()?;
        let subject = object::display(&namespace);
        let message = "the namespace is being deleted, and with it everything in it";
        Some(cause(Severity::Waiting, &subject, "Terminating", message))
    }

    /// How long ago, as `3m`.
    fn ago(&self, time: Option<&Timestamp>) -> String {
        span(self.now_ms.saturating_sub(millis(time)))
    }
}

fn fine(object: &Object) -> String {
    match &object.object {
        Some(Any::Pod(pod)) => {
            let phase = pod.status.as_ref().map_or("", |status| status.phase.as_str());
            format!("nothing is wrong: the pod is {phase}")
        }
        Some(Any::Deployment(_) | Any::ReplicaSet(_)) => {
            "nothing is wrong: as many pods as wanted are ready".to_owned()
        }
        Some(Any::Node(_)) => "nothing is wrong: the node is ready and takes pods".to_owned(),
        _ => "nothing is wrong".to_owned(),
    }
}

/// A condition by its type.
fn condition<'a>(conditions: &'a [Condition], name: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.r#type == name)
}

fn holds(conditions: &[Condition], name: &str) -> bool {
    condition(conditions, name).is_some_and(|condition| condition.status == "True")
}

/// A reason's word, or another where there is none.
fn word<'a>(given: &'a str, otherwise: &'a str) -> &'a str {
    if given.is_empty() { otherwise } else { given }
}

/// A time span in its two largest units' first: `45s`, `3m`, `2h`, `5d`.
fn span(millis: i64) -> String {
    let seconds = (millis / 1000).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How a container ended, in a few words.
fn end_text(ended: &ContainerStateTerminated) -> String {
    let reason = word(&ended.reason, "Error");
    let mut text = match ended.signal {
        0 => format!("{reason} (exit code {})", ended.exit_code),
        signal => format!("{reason} (signal {signal})"),
    };
    if !ended.oom_victim.is_empty() {
        text.push_str(&format!(", the kernel killed {}", ended.oom_victim));
    }
    if let Some(peak) = &ended.memory_peak {
        text.push_str(&format!(", at most {} of memory used", peak.text));
    }
    let message = ended.message.trim();
    if !message.is_empty() {
        text.push_str(": ");
        text.push_str(message);
    }
    text
}

/// `n1, n2, n3 and 4 more`.
fn names(all: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = all.get(..SHOWN.min(all.len())).unwrap_or_default().join(", ");
    match all.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
#[path = "why_test.rs"]
mod tests;
