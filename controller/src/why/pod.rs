//! Pods: where they wait for a node, on it for their containers, and on the way out.

use model::{Kind, object};
use proto::v1::{ContainerStateWaiting, ContainerStatus, Event, Node, Pod, PodStatus};
use state::schedule;

use super::{Cause, Look, Severity, cause, condition, end_text, holds, names, span, word};
use crate::events::millis;

/// Warnings of this age still say something about now.
const RECENT_MS: i64 = 10 * 60 * 1000;
/// Warnings that are told beside the reasons.
const WARNINGS_MAX: usize = 3;

impl Look<'_> {
    pub(super) fn pod(&self, pod: &Pod) -> Vec<Cause> {
        let meta = pod.metadata.clone().unwrap_or_default();
        let subject = format!("pod/{}", meta.name);
        let none = PodStatus::default();
        let status = pod.status.as_ref().unwrap_or(&none);
        let bound = holds(&status.conditions, "PodScheduled");
        let ended = matches!(status.phase.as_str(), "Succeeded" | "Failed");

        let mut causes = self.going(pod);
        if !bound && !ended && meta.deletion_timestamp.is_none() {
            causes.extend(self.unplaced(&subject, pod, status));
            return causes;
        }
        let node = pod.spec.as_ref().map_or("", |spec| spec.node_name.as_str());
        if !ended {
            causes.extend(self.its_node(node));
        }
        if let Some(isolated) = condition(&status.conditions, "Isolated").filter(|it| it.status == "False") {
            causes.push(
                cause(
                    Severity::Error,
                    &subject,
                    word(&isolated.reason, "NotIsolated"),
                    word(&isolated.message, "its isolation is weaker than asked for"),
                )
                .hint(format!("`ctl inspect {subject}` shows each layer")),
            );
        }
        let before = causes.len();
        let containers = status
            .init_container_statuses
            .iter()
            .map(|container| (container, true))
            .chain(
                status
                    .container_statuses
                    .iter()
                    .map(|container| (container, false)),
            );
        for (container, init) in containers {
            causes.extend(self.container(&subject, container, init, ended));
        }
        if status.phase == "Failed" && !causes.iter().any(|cause| cause.severity == Severity::Error) {
            let message = word(&status.message, "the pod has failed and is not started again");
            causes.push(cause(
                Severity::Error,
                &subject,
                word(&status.reason, "Failed"),
                message,
            ));
        }
        if status.phase == "Succeeded" && causes.is_empty() {
            causes.push(cause(
                Severity::Info,
                &subject,
                "Succeeded",
                "all its containers ended well",
            ));
        }
        let silent = status.container_statuses.is_empty() && status.init_container_statuses.is_empty();
        if bound && silent && !ended && meta.deletion_timestamp.is_none() && causes.len() == before {
            let message = format!("node {node} has it and has not reported of it yet");
            causes.push(cause(Severity::Waiting, &subject, "NotReported", message));
        }
        // Why it isn't ready beyond what its containers say.
        let ready = condition(&status.conditions, "Ready").filter(|ready| ready.status != "True");
        if let Some(ready) = ready.filter(|_| causes.len() == before && !ended) {
            let message = word(&ready.message, "the pod is not ready");
            causes.push(cause(
                Severity::Waiting,
                &subject,
                word(&ready.reason, "NotReady"),
                message,
            ));
        }
        if !causes.is_empty() && !ended {
            causes.extend(self.warnings(&subject, &meta.uid, &causes));
        }
        causes
    }

    /// Why it is still there after its deletion.
    pub(super) fn going(&self, pod: &Pod) -> Vec<Cause> {
        let meta = pod.metadata.clone().unwrap_or_default();
        let Some(asked) = &meta.deletion_timestamp else {
            return Vec::new();
        };
        let subject = format!("pod/{}", meta.name);
        let grace = i64::from(meta.deletion_grace_period_seconds.unwrap_or(0));
        let since_ms = self.now_ms.saturating_sub(millis(Some(asked)));
        let message = format!(
            "deletion was asked for {} ago; its containers have {grace} s to end",
            span(since_ms)
        );
        let late = since_ms > (grace + 10) * 1000;
        let hint = format!("`ctl delete {subject} --force` forgets it at once");
        let severity = if late { Severity::Error } else { Severity::Waiting };
        let told = cause(severity, &subject, "Terminating", message);
        vec![if late { told.hint(hint) } else { told }]
    }

    fn unplaced(&self, subject: &str, pod: &Pod, status: &PodStatus) -> Vec<Cause> {
        let meta = pod.metadata.clone().unwrap_or_default();
        let key = object::key_of(Kind::Pod, &meta.namespace, &meta.name);
        let reasons = schedule::explain(self.state, &key);
        if reasons.is_empty() {
            let message = "a node has room for it; it is about to be placed";
            return vec![cause(Severity::Waiting, subject, "NotPlacedYet", message)];
        }
        let said = condition(&status.conditions, "PodScheduled").filter(|it| it.status == "False");
        let summary = said.map_or("no node takes it", |said| word(&said.message, "no node takes it"));
        let mut causes = vec![cause(Severity::Error, subject, "Unschedulable", summary)];
        for reason in &reasons {
            let message = match reason.nodes.as_slice() {
                [] => reason.message.clone(),
                nodes => format!("{}: {}", names(nodes), reason.message),
            };
            let first = reason.nodes.first().map_or("NAME", String::as_str);
            causes.push(
                cause(Severity::Error, subject, "NodesDoNotFit", message)
                    .hint(placing_hint(&reason.message, first)),
            );
        }
        causes
    }

    /// What is wrong with the node that has it.
    fn its_node(&self, name: &str) -> Vec<Cause> {
        if name.is_empty() {
            return Vec::new();
        }
        match self.state.get(&object::key_of(Kind::Node, "", name)) {
            None => vec![cause(
                Severity::Error,
                &format!("node/{name}"),
                "NodeGone",
                "the node of this pod was deleted",
            )],
            Some(node) => {
                let mut causes = object::of::<Node>(&node).map_or_else(Vec::new, |node| self.node(node));
                causes.retain(|cause| cause.reason != "Cordoned"); // says nothing of pods that are there
                causes
            }
        }
    }

    fn container(
        &self,
        subject: &str,
        container: &ContainerStatus,
        init: bool,
        ended: bool,
    ) -> Option<Cause> {
        let name = &container.name;
        let what = if init { "init container" } else { "container" };
        let state = container.state.as_ref()?;
        let last = container
            .last_state
            .as_ref()
            .and_then(|last| last.terminated.as_ref());
        if let Some(waiting) = &state.waiting {
            let mut message = format!("{what} {name}: {}", word(&waiting.message, "waits"));
            if let Some(last) = last {
                message.push_str(&format!("; last time: {}", end_text(last)));
            }
            if let Some(next) = &waiting.next_try_at {
                let left = millis(Some(next)).saturating_sub(self.now_ms);
                message.push_str(&format!("; next try in {}", span(left)));
            }
            let severity = match waiting.reason.as_str() {
                "" | "ContainerCreating" | "PodInitializing" | "Pulling" => Severity::Waiting,
                _ => Severity::Error,
            };
            let reason = word(&waiting.reason, "Waiting");
            return Some(
                cause(severity, subject, reason, message).hint(waiting_hint(waiting, subject, name)),
            );
        }
        if let Some(terminated) = &state.terminated {
            if terminated.exit_code == 0 && terminated.signal == 0 {
                return None;
            }
            let message = format!("{what} {name} ended: {}", end_text(terminated));
            let hint = match terminated.reason.as_str() {
                "OOMKilled" => "raise its memory limit, or let it use less".to_owned(),
                _ => format!("`ctl logs {} -c {name}` shows its output", pod_name(subject)),
            };
            return Some(
                cause(
                    Severity::Error,
                    subject,
                    word(&terminated.reason, "Error"),
                    message,
                )
                .hint(hint),
            );
        }
        state.running.as_ref()?;
        if !container.ready && !init && !ended {
            let started = container.started != Some(false);
            let (reason, text) = match started {
                true => (
                    "NotReady",
                    "runs and is not ready: its readiness probe has not succeeded",
                ),
                false => ("NotStarted", "runs, and its startup probe has not succeeded yet"),
            };
            return Some(cause(
                Severity::Waiting,
                subject,
                reason,
                format!("{what} {name} {text}"),
            ));
        }
        let restarts = container.restart_count;
        last.filter(|_| restarts > 0).map(|last| {
            let message = format!(
                "{what} {name} was restarted {restarts} times, the last time {} ago: {}",
                self.ago(last.finished_at.as_ref()),
                end_text(last)
            );
            cause(Severity::Info, subject, "Restarted", message)
        })
    }

    /// What was warned of lately and is not told already: probes that fail, volumes that are not there.
    fn warnings(&self, subject: &str, uid: &str, told: &[Cause]) -> Vec<Cause> {
        let recent = |event: &Event| {
            let last = millis(event.last_timestamp.as_ref());
            event.r#type == "Warning" && self.now_ms.saturating_sub(last) <= RECENT_MS
        };
        let mut events = (self.events)(uid);
        events.retain(|event| {
            recent(event) && !told.iter().any(|cause| cause.message.contains(&event.message))
        });
        events.reverse();
        let shown = events.into_iter().take(WARNINGS_MAX).map(|event| {
            let times = match event.count {
                ..=1 => String::new(),
                count => format!(" ({count} times)"),
            };
            let ago = self.ago(event.last_timestamp.as_ref());
            let message = format!("{}{times}, {ago} ago", event.message);
            cause(Severity::Info, subject, word(&event.reason, "Warning"), message)
        });
        shown.collect()
    }
}

/// As `ctl logs` takes it.
fn pod_name(subject: &str) -> &str {
    subject.strip_prefix("pod/").unwrap_or(subject)
}

fn placing_hint(message: &str, node: &str) -> String {
    if message.starts_with("lack memory") || message.starts_with("lack cpu") {
        "ask for less in resources.requests, end something else, or add a node".to_owned()
    } else if message.starts_with("cordoned") {
        format!("`ctl uncordon {node}` lets it take pods again")
    } else if message.starts_with("not ready") {
        format!("`ctl why node/{node}` tells more")
    } else if message.starts_with("without the label") {
        "change spec.nodeSelector, or give a node the label".to_owned()
    } else if message.starts_with("with host port") {
        "another pod has the port: leave hostPort out, take another, or add a node".to_owned()
    } else if message.starts_with("no node has joined") {
        "`ctl token create` makes a token for `bulkhead-agent join`".to_owned()
    } else if message.starts_with("full of pods") {
        "add a node".to_owned()
    } else {
        String::new()
    }
}

fn waiting_hint(waiting: &ContainerStateWaiting, subject: &str, container: &str) -> String {
    let pod = pod_name(subject);
    match waiting.reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ImageInspectError" => {
            "check the image's name and the registry; `ctl image import` loads one without a registry"
                .to_owned()
        }
        "ErrImageNeverPull" => {
            "imagePullPolicy is Never: load it with `ctl image import`, or change the policy".to_owned()
        }
        "CrashLoopBackOff" => {
            format!(
                "`ctl logs {pod} -c {container} --previous` and `ctl describe {subject}` show its last words"
            )
        }
        "CreateContainerConfigError" => "apply the config map that it names, or correct the name".to_owned(),
        _ => String::new(),
    }
}
