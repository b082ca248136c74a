//! Tables of `ctl get`: which columns a kind has and what stands in them.

use std::collections::BTreeMap;

use model::{Kind, object, write};
use proto::v1::object::Object as Any;
use proto::v1::{
    ConfigMap, Container, Deployment, Event, LabelSelector, Node, Object, Pod, ReplicaSet, RoleRef, Subject,
};

use crate::age;
use crate::error::CtlError;

/// A row with a longer reason would no longer be read as one.
const REASON_CHARS_MAX: usize = 80;

/// The columns of a kind.
pub(crate) fn heading(kind: Kind, wide: bool) -> Vec<&'static str> {
    let (narrow, more): (&[&str], &[&str]) = match kind {
        Kind::Pod => (
            &["NAME", "READY", "STATUS", "RESTARTS", "AGE", "REASON"],
            &["IP", "NODE"],
        ),
        Kind::Deployment => (
            &["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"],
            &["CONTAINERS", "IMAGES", "SELECTOR"],
        ),
        Kind::ReplicaSet => (
            &["NAME", "DESIRED", "CURRENT", "READY", "AGE"],
            &["CONTAINERS", "IMAGES", "SELECTOR"],
        ),
        Kind::Node => (
            &["NAME", "STATUS", "AGE", "VERSION"],
            &[
                "INTERNAL-IP",
                "POD-CIDR",
                "OS-IMAGE",
                "KERNEL-VERSION",
                "CGROUPS",
                "SELINUX",
            ],
        ),
        Kind::Namespace => (&["NAME", "STATUS", "AGE"], &[]),
        Kind::ConfigMap => (&["NAME", "DATA", "AGE"], &[]),
        Kind::Secret => (&["NAME", "TYPE", "DATA", "AGE"], &[]),
        Kind::ServiceAccount => (&["NAME", "AGE"], &[]),
        Kind::Role | Kind::ClusterRole => (&["NAME", "CREATED AT"], &[]),
        Kind::RoleBinding | Kind::ClusterRoleBinding => {
            (&["NAME", "ROLE", "AGE"], &["USERS", "GROUPS", "SERVICEACCOUNTS"])
        }
        Kind::Event => (&["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"], &[]),
    };
    let mut heading = narrow.to_vec();
    if wide {
        // Free text stays last.
        let at = if kind == Kind::Pod {
            heading.len() - 1
        } else {
            heading.len()
        };
        heading.splice(at..at, more.iter().copied());
    }
    heading
}

/// An object's row.
pub(crate) fn cells(object: &Object, wide: bool) -> Vec<String> {
    let meta = object::meta(object);
    let name = meta.name.clone();
    let age = age::since(meta.creation_timestamp.as_ref());
    match &object.object {
        Some(Any::Pod(it)) => pod(it, name, age, wide),
        Some(Any::Deployment(it)) => deployment(it, name, age, wide),
        Some(Any::ReplicaSet(it)) => replica_set(it, name, age, wide),
        Some(Any::Node(it)) => node(it, name, age, wide),
        Some(Any::Namespace(it)) => {
            let phase = it
                .status
                .as_ref()
                .map_or("Active", |status| status.phase.as_str());
            vec![name, phase.to_owned(), age]
        }
        Some(Any::ConfigMap(it)) => vec![name, data_count(it).to_string(), age],
        Some(Any::Secret(it)) => vec![name, it.r#type.clone(), it.data.len().to_string(), age],
        Some(Any::ServiceAccount(_)) => vec![name, age],
        Some(Any::Role(_) | Any::ClusterRole(_)) => {
            let created = meta.creation_timestamp.as_ref();
            vec![name, created.map_or_else(String::new, age::stamp)]
        }
        Some(Any::RoleBinding(it)) => binding(name, it.role_ref.as_ref(), &it.subjects, age, wide),
        Some(Any::ClusterRoleBinding(it)) => binding(name, it.role_ref.as_ref(), &it.subjects, age, wide),
        Some(Any::Event(it)) => event(it),
        None => vec![name],
    }
}

fn pod(pod: &Pod, name: String, age: String, wide: bool) -> Vec<String> {
    let status = pod.status.clone().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let ready = status
        .container_statuses
        .iter()
        .filter(|container| container.ready)
        .count();
    let restarts: i32 = status
        .container_statuses
        .iter()
        .map(|container| container.restart_count)
        .sum();
    let (word, reason) = pod_state(pod);
    let mut cells = vec![
        name,
        format!("{ready}/{}", spec.containers.len()),
        word,
        restarts.to_string(),
        age,
    ];
    if wide {
        cells.extend([status.pod_ip, spec.node_name]);
    }
    cells.push(shortened(reason));
    cells
}

/// In a table: `ctl describe` and `ctl why` have the rest.
fn shortened(reason: String) -> String {
    match reason.char_indices().nth(REASON_CHARS_MAX) {
        None => reason,
        Some((end, _)) => format!("{}...", reason[..end].trim_end()),
    }
}

/// What STATUS and REASON say: the most telling state of the pod's containers, as `kubectl get pods` has it.
pub(crate) fn pod_state(pod: &Pod) -> (String, String) {
    let status = pod.status.clone().unwrap_or_default();
    let mut word = if status.reason.is_empty() {
        status.phase.clone()
    } else {
        status.reason.clone()
    };
    let mut reason = status.message.clone();
    let total = pod.spec.as_ref().map_or(0, |spec| spec.init_containers.len());
    for (number, container) in status.init_container_statuses.iter().enumerate() {
        let Some(state) = &container.state else { continue };
        if let Some(ended) = &state.terminated {
            if ended.exit_code == 0 {
                continue;
            }
            word = format!("Init:{}", ended.reason);
            reason.clone_from(&ended.message);
        } else if let Some(waiting) = state
            .waiting
            .as_ref()
            .filter(|waiting| waiting.reason != "PodInitializing")
        {
            word = format!("Init:{}", waiting.reason);
            reason = waiting_text(waiting);
        } else {
            word = format!("Init:{number}/{total}");
        }
        return deleted(pod, word, reason);
    }
    for container in status.container_statuses.iter().rev() {
        let Some(state) = &container.state else { continue };
        if let Some(waiting) = &state.waiting {
            word.clone_from(&waiting.reason);
            reason = waiting_text(waiting);
            if let Some(last) = container
                .last_state
                .as_ref()
                .and_then(|last| last.terminated.as_ref())
            {
                reason = format!("{reason}; last: {}", end_text(last));
            }
        } else if let Some(ended) = &state.terminated {
            word = if ended.reason.is_empty() {
                format!("ExitCode:{}", ended.exit_code)
            } else {
                ended.reason.clone()
            };
            reason = if ended.exit_code == 0 {
                String::new()
            } else {
                end_text(ended)
            };
        }
    }
    if reason.is_empty() {
        let pending = status.conditions.iter().find(|condition| {
            condition.status == "False" && matches!(condition.r#type.as_str(), "PodScheduled" | "Isolated")
        });
        if let Some(condition) = pending {
            reason.clone_from(&condition.message);
        }
    }
    if word.is_empty() {
        "Pending".clone_into(&mut word);
    }
    deleted(pod, word, reason)
}

fn deleted(pod: &Pod, word: String, reason: String) -> (String, String) {
    let going = pod
        .metadata
        .as_ref()
        .is_some_and(|meta| meta.deletion_timestamp.is_some());
    (if going { "Terminating".to_owned() } else { word }, reason)
}

fn waiting_text(waiting: &proto::v1::ContainerStateWaiting) -> String {
    // The node says the time of day, for those who read the object; here it is said how long that is.
    let said = waiting.message.split("; next try at ").next().unwrap_or_default();
    match age::until(waiting.next_try_at.as_ref()) {
        next if next.is_empty() => waiting.message.clone(),
        next if said.is_empty() => format!("next try in {next}"),
        next => format!("{said}; next try in {next}"),
    }
}

/// How a container ended, in a few words.
pub(crate) fn end_text(ended: &proto::v1::ContainerStateTerminated) -> String {
    let mut text = match ended.signal {
        0 => format!("{} (exit code {})", ended.reason, ended.exit_code),
        signal => format!("{} (signal {signal})", ended.reason),
    };
    if !ended.oom_victim.is_empty() {
        text.push_str(&format!(", killed {}", ended.oom_victim));
    }
    if !ended.message.is_empty() {
        text.push_str(": ");
        text.push_str(ended.message.trim());
    }
    text
}

fn binding(
    name: String,
    role: Option<&RoleRef>,
    subjects: &[Subject],
    age: String,
    wide: bool,
) -> Vec<String> {
    let role = role.map_or_else(String::new, |role| format!("{}/{}", role.kind, role.name));
    let mut cells = vec![name, role, age];
    if wide {
        for kind in ["User", "Group", "ServiceAccount"] {
            let of_kind = subjects.iter().filter(|subject| subject.kind == kind);
            let shown = of_kind.map(|subject| match subject.namespace.as_str() {
                "" => subject.name.clone(),
                namespace => format!("{namespace}/{}", subject.name),
            });
            cells.push(shown.collect::<Vec<_>>().join(", "));
        }
    }
    cells
}

fn deployment(deployment: &Deployment, name: String, age: String, wide: bool) -> Vec<String> {
    let spec = deployment.spec.clone().unwrap_or_default();
    let status = deployment.status.clone().unwrap_or_default();
    let mut cells = vec![
        name,
        format!("{}/{}", status.ready_replicas, spec.replicas.unwrap_or(1)),
        status.updated_replicas.to_string(),
        status.available_replicas.to_string(),
        age,
    ];
    if wide {
        let template = spec
            .template
            .and_then(|template| template.spec)
            .unwrap_or_default();
        cells.extend(containers(&template.containers));
        cells.push(selector(spec.selector.as_ref()));
    }
    cells
}

fn replica_set(set: &ReplicaSet, name: String, age: String, wide: bool) -> Vec<String> {
    let spec = set.spec.clone().unwrap_or_default();
    let status = set.status.clone().unwrap_or_default();
    let desired = spec.replicas.unwrap_or(1).to_string();
    let mut cells = vec![
        name,
        desired,
        status.replicas.to_string(),
        status.ready_replicas.to_string(),
        age,
    ];
    if wide {
        let template = spec
            .template
            .and_then(|template| template.spec)
            .unwrap_or_default();
        cells.extend(containers(&template.containers));
        cells.push(selector(spec.selector.as_ref()));
    }
    cells
}

fn containers(containers: &[Container]) -> [String; 2] {
    let join = |get: fn(&Container) -> &str| containers.iter().map(get).collect::<Vec<_>>().join(",");
    [
        join(|container| &container.name),
        join(|container| &container.image),
    ]
}

fn selector(selector: Option<&LabelSelector>) -> String {
    let labels: BTreeMap<String, String> = selector
        .map(|selector| selector.match_labels.clone())
        .unwrap_or_default();
    labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

fn node(node: &Node, name: String, age: String, wide: bool) -> Vec<String> {
    let status = node.status.clone().unwrap_or_default();
    let spec = node.spec.clone().unwrap_or_default();
    let info = status.node_info.unwrap_or_default();
    let mut cells = vec![name, node_state(node), age, info.agent_version];
    if wide {
        let address = status
            .addresses
            .iter()
            .find(|address| address.r#type == "InternalIP");
        cells.extend([
            address.map(|address| address.address.clone()).unwrap_or_default(),
            spec.pod_cidr,
            info.os_image,
            info.kernel_version,
            info.cgroup_mode,
            info.selinux,
        ]);
    }
    cells
}

/// Ready, NotReady or Unknown, and whether it takes new pods.
pub(crate) fn node_state(node: &Node) -> String {
    let status = node.status.clone().unwrap_or_default();
    let ready = status
        .conditions
        .iter()
        .find(|condition| condition.r#type == "Ready");
    let word = match ready.map(|condition| condition.status.as_str()) {
        Some("True") => "Ready",
        Some("False") => "NotReady",
        _ => "Unknown",
    };
    let cordoned = node.spec.as_ref().is_some_and(|spec| spec.unschedulable);
    if cordoned {
        format!("{word},SchedulingDisabled")
    } else {
        word.to_owned()
    }
}

fn data_count(map: &ConfigMap) -> usize {
    map.data.len() + map.binary_data.len()
}

fn event(event: &Event) -> Vec<String> {
    let object = event.involved_object.clone().unwrap_or_default();
    let last = event.last_timestamp.as_ref().or(event.first_timestamp.as_ref());
    let mut seen = age::since(last);
    if event.count > 1 {
        seen = format!("{seen} (x{})", event.count);
    }
    let subject = format!("{}/{}", object.kind.to_lowercase(), object.name);
    vec![
        seen,
        event.r#type.clone(),
        event.reason.clone(),
        subject,
        event.message.clone(),
    ]
}

/// One object as indented JSON.
pub(crate) fn json_text(object: &Object) -> Result<String, CtlError> {
    serde_json::to_string_pretty(&write::json(object)).map_err(|error| CtlError::refused(error.to_string()))
}

/// Several objects as a List, as `kubectl get -o json` writes them.
pub(crate) fn json_list(objects: &[Object]) -> Result<String, CtlError> {
    let items: Vec<serde_json::Value> = objects.iter().map(write::json).collect();
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items });
    serde_json::to_string_pretty(&list).map_err(|error| CtlError::refused(error.to_string()))
}
