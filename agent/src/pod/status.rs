//! A pod's status, from what its actor knows. Pure.

use proto::Timestamp;
use proto::v1::{
    Condition, Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIp, Pod, PodIp, PodStatus,
};

use super::plan::Restart;
use super::record::{self, ContainerRecord, End, Record, Run, Since};
use super::view::Verdict;

/// Longest message of a container or condition: status is replicated.
const MESSAGE_BYTES_MAX: usize = 4_096;
/// Reason of a pod that was ended for what it used; Kubernetes' own.
pub(super) const EVICTED: &str = "Evicted";

/// A container, now.
#[derive(Clone, Debug)]
pub(super) struct Fact {
    pub(super) init: bool,
    pub(super) live: Live,
    /// Of the image that is here for it.
    pub(super) image_id: Option<String>,
}

/// Where it is.
#[derive(Clone, Debug)]
pub(super) enum Live {
    Waiting {
        reason: String,
        message: String,
        next_try: Option<i64>,
    },
    Running(Run),
    /// For good.
    Ended(End),
}

/// What a status is made from.
pub(super) struct Facts<'a> {
    pub(super) uid: &'a str,
    pub(super) pod: &'a Pod,
    /// Init containers first, as in the pod.
    pub(super) containers: &'a [Fact],
    pub(super) host_ip: String,
    pub(super) pod_ip: Option<String>,
    pub(super) verdict: Option<&'a Verdict>,
    pub(super) restart: Restart,
    pub(super) now_ms: i64,
}

pub(super) fn timestamp(ms: i64) -> Timestamp {
    Timestamp {
        seconds: ms.div_euclid(1_000),
        nanos: i32::try_from(ms.rem_euclid(1_000)).unwrap_or(0) * 1_000_000,
    }
}

/// The status. Keeps in the record since when each condition is what it is.
pub(super) fn status(facts: &Facts<'_>, record: &mut Record) -> PodStatus {
    let default = Default::default();
    let spec = facts.pod.spec.as_ref().unwrap_or(&default);
    let statuses = |containers: &[Container], init: bool| -> Vec<ContainerStatus> {
        let of_kind = facts.containers.iter().filter(|fact| fact.init == init);
        containers
            .iter()
            .zip(of_kind)
            .map(|(container, fact)| one(facts.uid, container, fact, record.containers.get(&container.name)))
            .collect()
    };
    let init = statuses(&spec.init_containers, true);
    let main = statuses(&spec.containers, false);
    // As the kubelet: a pod has failed when nothing of it runs any more.
    let gone = !init.iter().chain(&main).any(runs);
    let evicted = record.evicted.clone().filter(|_| gone);
    let phase = match evicted {
        Some(_) => "Failed".to_owned(),
        None => phase(&init, &main, facts.restart),
    };
    let conditions = conditions(facts, &phase, &init, &main);
    let conditions = conditions
        .into_iter()
        .map(|condition| since(record, condition, facts.now_ms))
        .collect();
    let ips = facts.pod_ip.iter().map(|ip| PodIp { ip: ip.clone() });
    PodStatus {
        phase,
        conditions,
        reason: evicted.as_ref().map_or("", |_| EVICTED).to_owned(),
        message: evicted.map(|evicted| cut(&evicted.message)).unwrap_or_default(),
        host_ip: facts.host_ip.clone(),
        pod_ip: facts.pod_ip.clone().unwrap_or_default(),
        pod_i_ps: ips.collect(),
        host_i_ps: vec![HostIp {
            ip: facts.host_ip.clone(),
        }],
        start_time: Some(timestamp(record.seen_ms)),
        init_container_statuses: init,
        container_statuses: main,
        // The controller's: it knows it from the spec.
        qos_class: String::new(),
        observed_generation: facts.pod.metadata.as_ref().map_or(0, |meta| meta.generation),
    }
}

fn one(uid: &str, container: &Container, fact: &Fact, record: Option<&ContainerRecord>) -> ContainerStatus {
    let default = ContainerRecord::default();
    let record = record.unwrap_or(&default);
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone(),
        restart_count: i32::try_from(record.restarts()).unwrap_or(i32::MAX),
        image_id: fact.image_id.clone().unwrap_or_default(),
        started: Some(false),
        ..ContainerStatus::default()
    };
    let last = match &fact.live {
        Live::Waiting {
            reason,
            message,
            next_try,
        } => {
            status.state = Some(ContainerState {
                waiting: Some(ContainerStateWaiting {
                    reason: reason.clone(),
                    message: cut(message),
                    next_try_at: next_try.map(timestamp),
                }),
                ..ContainerState::default()
            });
            record.last()
        }
        Live::Running(run) => {
            status.state = Some(ContainerState {
                running: Some(ContainerStateRunning {
                    started_at: Some(timestamp(run.started_ms)),
                }),
                ..ContainerState::default()
            });
            status.container_id = container_id(uid, &container.name, run.number);
            status.image_id.clone_from(&run.image_id);
            status.started = Some(run.started);
            status.ready = run.ready && run.started;
            record.last()
        }
        Live::Ended(end) => {
            status.state = Some(terminated(uid, &container.name, end));
            status.container_id = container_id(uid, &container.name, end.number);
            status.image_id.clone_from(&end.image_id);
            // An init container that has done its work is ready; the others are while they run.
            status.ready = fact.init && end.code == 0;
            record.ends.iter().rev().find(|other| other.number < end.number)
        }
    };
    if let Some(last) = last {
        if status.container_id.is_empty() {
            status.container_id = container_id(uid, &container.name, last.number);
        }
        status.last_state = Some(terminated(uid, &container.name, last));
    }
    status
}

fn container_id(uid: &str, name: &str, number: u32) -> String {
    format!("bulkhead://{uid}/{}", record::run_id(name, number))
}

fn terminated(uid: &str, name: &str, end: &End) -> ContainerState {
    let peak = end.memory_peak.and_then(|bytes| i64::try_from(bytes).ok());
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: end.code,
            signal: end.signal.unwrap_or(0),
            reason: end.reason.clone(),
            message: cut(&end.message),
            started_at: Some(timestamp(end.started_ms)),
            finished_at: Some(timestamp(end.finished_ms)),
            container_id: container_id(uid, name, end.number),
            oom_victim: end
                .oom
                .iter()
                .find_map(|oom| oom.victim.clone())
                .unwrap_or_default(),
            memory_peak: peak.map(|bytes| model::quantity::Amount::from_units(bytes).to_binary()),
        }),
        ..ContainerState::default()
    }
}

/// Cuts at a character's border.
fn cut(text: &str) -> String {
    let mut end = text.len().min(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn is_done(status: &ContainerStatus) -> Option<i32> {
    let ended = status.state.as_ref()?.terminated.as_ref()?;
    Some(ended.exit_code)
}

fn runs(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}

/// Kubernetes' rule ("Pod Lifecycle", getPhase of the kubelet).
fn phase(init: &[ContainerStatus], main: &[ContainerStatus], restart: Restart) -> String {
    let failed_init = init
        .iter()
        .any(|status| is_done(status).is_some_and(|code| code != 0));
    if failed_init && restart == Restart::Never {
        return "Failed".into();
    }
    let has_run = |status: &ContainerStatus| status.last_state.is_some();
    let initialized = init.iter().all(|status| is_done(status) == Some(0));
    let waits = main
        .iter()
        .any(|status| !runs(status) && is_done(status).is_none() && !has_run(status));
    let began = main.iter().any(|status| runs(status) || has_run(status));
    if waits || (!initialized && !began) {
        return "Pending".into();
    }
    if main.iter().all(|status| is_done(status).is_some()) {
        let well = main.iter().all(|status| is_done(status) == Some(0));
        return if well { "Succeeded" } else { "Failed" }.into();
    }
    "Running".into()
}

fn condition(kind: &str, holds: bool, reason: &str, message: String) -> Condition {
    Condition {
        r#type: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: if holds { String::new() } else { reason.to_owned() },
        message: if holds { String::new() } else { cut(&message) },
        ..Condition::default()
    }
}

fn conditions(
    facts: &Facts<'_>,
    phase: &str,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Vec<Condition> {
    let names = |list: Vec<&ContainerStatus>| -> String {
        let names: Vec<&str> = list.iter().map(|status| status.name.as_str()).collect();
        names.join(" ")
    };
    let incomplete: Vec<_> = init.iter().filter(|status| is_done(status) != Some(0)).collect();
    let unready: Vec<_> = main.iter().filter(|status| !status.ready).collect();
    let (reason, message) = match phase {
        "Succeeded" => ("PodCompleted", String::new()),
        "Failed" => ("PodFailed", String::new()),
        _ => (
            "ContainersNotReady",
            format!("containers with unready status: [{}]", names(unready.clone())),
        ),
    };
    let ready = unready.is_empty() && incomplete.is_empty();
    let mut conditions = vec![
        condition(
            "Initialized",
            incomplete.is_empty(),
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", names(incomplete)),
        ),
        condition("ContainersReady", ready, reason, message.clone()),
        condition("Ready", ready, reason, message),
    ];
    if let Some(verdict) = facts.verdict {
        conditions.push(condition(
            "Isolated",
            verdict.weak.is_empty(),
            "WeakerThanSpecified",
            verdict.weak.join("; "),
        ));
    }
    conditions
}

/// Since when a condition is what it is.
fn since(record: &mut Record, mut condition: Condition, now_ms: i64) -> Condition {
    let known = record.conditions.entry(condition.r#type.clone()).or_default();
    if known.status != condition.status {
        *known = Since {
            status: condition.status.clone(),
            since_ms: now_ms,
        };
    }
    condition.last_transition_time = Some(timestamp(known.since_ms));
    condition
}

#[cfg(test)]
#[path = "status_test.rs"]
mod tests;
