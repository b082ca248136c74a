//! `ctl describe KIND/NAME`: the object, how its containers ended with their last words, and its events.

use model::{Kind, object, write};
use proto::v1::object::Object as Any;
use proto::v1::{
    Condition, Container, ContainerState, ContainerStatus, Event, Object, Pod, PolicyRule, RoleRef, Subject,
};
use rpc::v1::{ContainerEnd, PodRef};

use crate::cluster::{Cluster, Query};
use crate::error::CtlError;
use crate::output::{Output, Table};
use crate::target::{self, Targets};
use crate::verb::{events, get};
use crate::{age, rows};

/// Arguments of `ctl describe`.
#[derive(clap::Args)]
pub(crate) struct Describe {
    /// KIND/NAME..., KIND NAME..., or a kind for all of it
    #[arg(required = true, value_name = "KIND/NAME")]
    targets: Vec<String>,
}

/// Prints each object asked for.
pub(crate) async fn run(args: Describe, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let mut objects = Vec::new();
    match target::parse(&args.targets)? {
        Targets::Named(named) => {
            for (kind, name) in named {
                let key = target::key(kind, &cluster.namespace, name.clone());
                match cluster.find(key).await? {
                    Some(object) => objects.push(object),
                    None => return Err(CtlError::refused(get::not_found(kind, &name, &cluster.namespace))),
                }
            }
        }
        Targets::Kinds(kinds) => {
            for kind in kinds {
                let namespace = if kind.namespaced() {
                    cluster.namespace.clone()
                } else {
                    String::new()
                };
                let query = Query {
                    kind: kind.as_str().to_owned(),
                    namespace,
                    ..Query::default()
                };
                objects.extend(cluster.list(&query).await?.items);
            }
        }
    }
    for (number, object) in objects.iter().enumerate() {
        if number > 0 {
            out.line("")?;
        }
        describe(object, cluster, out).await?;
    }
    Ok(())
}

async fn describe(object: &Object, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let meta = object::meta(object);
    let kind = object::kind(object);
    field(out, "Name", &meta.name)?;
    if kind.namespaced() {
        field(out, "Namespace", &meta.namespace)?;
    }
    map(out, "Labels", &meta.labels)?;
    map(out, "Annotations", &meta.annotations)?;
    if let Some(created) = &meta.creation_timestamp {
        field(
            out,
            "Created",
            &format!("{} ({} ago)", age::stamp(created), age::since(Some(created))),
        )?;
    }
    for owner in &meta.owner_references {
        field(
            out,
            "Owner",
            &format!("{}/{}", owner.kind.to_lowercase(), owner.name),
        )?;
    }
    if let Some(asked) = &meta.deletion_timestamp {
        field(
            out,
            "Deletion",
            &format!("asked for {} ago", age::since(Some(asked))),
        )?;
    }
    if !meta.finalizers.is_empty() {
        field(out, "Finalizers", &meta.finalizers.join(", "))?;
    }
    match &object.object {
        Some(Any::Pod(it)) => pod(it, cluster, out).await?,
        Some(Any::Node(it)) => {
            field(out, "Status", &rows::node_state(it))?;
            body(object, out)?;
        }
        Some(Any::Secret(it)) => {
            field(out, "Type", &it.r#type)?;
            out.line("Data:")?;
            // Whoever looks over a shoulder sees the names alone.
            for (key, value) in &it.data {
                out.line(format!("  {key}: {} bytes", value.len()))?;
            }
        }
        Some(Any::Role(it)) => rules(out, &it.rules)?,
        Some(Any::ClusterRole(it)) => rules(out, &it.rules)?,
        Some(Any::RoleBinding(it)) => binding(out, it.role_ref.as_ref(), &it.subjects)?,
        Some(Any::ClusterRoleBinding(it)) => binding(out, it.role_ref.as_ref(), &it.subjects)?,
        _ => body(object, out)?,
    }
    let fields = format!(
        "involvedObject.kind={},involvedObject.name={}",
        kind.as_str(),
        meta.name
    );
    let query = Query {
        kind: Kind::Event.as_str().to_owned(),
        namespace: meta.namespace.clone(),
        labels: String::new(),
        fields,
    };
    let list = match cluster.list(&query).await {
        Ok(list) => list.items,
        // Who may see an object need not see the events of all namespaces.
        Err(CtlError::Refused(lines)) => {
            return field(out, "Events", &format!("not to be had: {}", lines.join("; ")));
        }
        Err(failed) => return Err(failed),
    };
    let mut list: Vec<Event> = list.into_iter().filter_map(events::typed).collect();
    list.retain(|event| {
        event
            .involved_object
            .as_ref()
            .is_none_or(|about| about.uid.is_empty() || about.uid == meta.uid)
    });
    events::sort(&mut list);
    if list.is_empty() {
        return field(out, "Events", "none");
    }
    out.line("Events:")?;
    let mut table = Table::new(["  AGE", "TYPE", "REASON", "MESSAGE"]);
    for event in list {
        let last = event.last_timestamp.or(event.first_timestamp);
        let times = if event.count > 1 {
            format!(" (x{})", event.count)
        } else {
            String::new()
        };
        table.row(vec![
            format!("  {}{times}", age::since(last.as_ref())),
            event.r#type,
            event.reason,
            event.message,
        ]);
    }
    out.table(&table)
}

/// As `kubectl describe` has them: a line for each resource of a rule.
fn rules(out: &mut Output, rules: &[PolicyRule]) -> Result<(), CtlError> {
    if rules.is_empty() {
        return field(out, "Rules", "none");
    }
    out.line("Rules:")?;
    let listed = |words: &[String]| format!("[{}]", words.join(" "));
    let mut table = Table::new(["  RESOURCES", "NON-RESOURCE URLS", "RESOURCE NAMES", "VERBS"]);
    for rule in rules {
        let mut resources = Vec::new();
        for group in &rule.api_groups {
            // A part of it stands behind the group, as kubectl has it: deployments.apps/scale.
            resources.extend(rule.resources.iter().map(|resource| {
                match (group.as_str(), resource.split_once('/')) {
                    ("", _) => resource.clone(),
                    (group, Some((resource, part))) => format!("{resource}.{group}/{part}"),
                    (group, None) => format!("{resource}.{group}"),
                }
            }));
        }
        if resources.is_empty() {
            resources.push(String::new());
        }
        for resource in resources {
            table.row(vec![
                format!("  {resource}"),
                listed(&rule.non_resource_ur_ls),
                listed(&rule.resource_names),
                listed(&rule.verbs),
            ]);
        }
    }
    out.table(&table)
}

fn binding(out: &mut Output, role: Option<&RoleRef>, subjects: &[Subject]) -> Result<(), CtlError> {
    let role = role.map_or_else(String::new, |role| format!("{}/{}", role.kind, role.name));
    field(out, "Role", &role)?;
    if subjects.is_empty() {
        return field(out, "Subjects", "none");
    }
    out.line("Subjects:")?;
    let mut table = Table::new(["  KIND", "NAME", "NAMESPACE"]);
    for subject in subjects {
        table.row(vec![
            format!("  {}", subject.kind),
            subject.name.clone(),
            subject.namespace.clone(),
        ]);
    }
    out.table(&table)
}

/// Spec and status as they stand in a manifest.
fn body(object: &Object, out: &mut Output) -> Result<(), CtlError> {
    let text = write::yaml(object);
    let start = text.lines().position(|line| {
        [
            "spec:",
            "status:",
            "data:",
            "binaryData:",
            "immutable:",
            "automountServiceAccountToken:",
        ]
        .iter()
        .any(|section| line.starts_with(section))
    });
    for line in text.lines().skip(start.unwrap_or(usize::MAX)) {
        out.line(line)?;
    }
    Ok(())
}

async fn pod(pod: &Pod, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let meta = pod.metadata.clone().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    field(out, "Node", &spec.node_name)?;
    let (word, reason) = rows::pod_state(pod);
    field(out, "Status", &word)?;
    if !reason.is_empty() {
        field(out, "Reason", &reason)?;
    }
    field(out, "Pod IP", &status.pod_ip)?;
    field(out, "QoS", &status.qos_class)?;
    // The pod's node may be away; the rest is told all the same.
    let request = PodRef {
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        container: String::new(),
    };
    let ends = match (
        spec.node_name.is_empty(),
        cluster.api.clone().describe(request).await,
    ) {
        (false, Ok(answer)) => answer.into_inner().ends,
        (false, Err(status)) => {
            field(out, "Last words", &format!("not to be had: {}", status.message()))?;
            Vec::new()
        }
        (true, _) => Vec::new(),
    };
    containers(
        out,
        "Init containers",
        &spec.init_containers,
        &status.init_container_statuses,
        &ends,
    )?;
    containers(
        out,
        "Containers",
        &spec.containers,
        &status.container_statuses,
        &ends,
    )?;
    conditions(out, &status.conditions)
}

fn conditions(out: &mut Output, conditions: &[Condition]) -> Result<(), CtlError> {
    if conditions.is_empty() {
        return Ok(());
    }
    out.line("Conditions:")?;
    let mut table = Table::new(["  TYPE", "STATUS", "AGE", "REASON", "MESSAGE"]);
    for condition in conditions {
        table.row(vec![
            format!("  {}", condition.r#type),
            condition.status.clone(),
            age::since(condition.last_transition_time.as_ref()),
            condition.reason.clone(),
            condition.message.clone(),
        ]);
    }
    out.table(&table)
}

fn containers(
    out: &mut Output,
    title: &str,
    containers: &[Container],
    statuses: &[ContainerStatus],
    ends: &[ContainerEnd],
) -> Result<(), CtlError> {
    if containers.is_empty() {
        return Ok(());
    }
    out.line(format_args!("{title}:"))?;
    for container in containers {
        out.line(format_args!("  {}:", container.name))?;
        inner(out, "Image", &container.image)?;
        if let Some(status) = statuses.iter().find(|status| status.name == container.name) {
            inner(out, "Image ID", &status.image_id)?;
            inner(out, "Container ID", &status.container_id)?;
            state(out, "State", status.state.as_ref())?;
            state(out, "Last state", status.last_state.as_ref())?;
            inner(out, "Ready", if status.ready { "yes" } else { "no" })?;
            inner(out, "Restarts", &status.restart_count.to_string())?;
        }
        let words = |quantities: &std::collections::BTreeMap<String, proto::v1::Quantity>| {
            quantities
                .iter()
                .map(|(name, amount)| format!("{name} {}", amount.text))
                .collect::<Vec<_>>()
                .join(", ")
        };
        if let Some(resources) = &container.resources {
            inner(out, "Limits", &words(&resources.limits))?;
            inner(out, "Requests", &words(&resources.requests))?;
        }
        for mount in &container.volume_mounts {
            let access = if mount.read_only { "ro" } else { "rw" };
            inner(
                out,
                "Mount",
                &format!("{} from {} ({access})", mount.mount_path, mount.name),
            )?;
        }
        for end in ends
            .iter()
            .filter(|end| end.container == container.name && !end.stderr_tail.is_empty())
        {
            out.line(format_args!("    Last of standard error (run {}):", end.attempt))?;
            for line in end.stderr_tail.lines() {
                out.line(format_args!("      {line}"))?;
            }
        }
    }
    Ok(())
}

fn state(out: &mut Output, title: &str, state: Option<&ContainerState>) -> Result<(), CtlError> {
    let Some(state) = state else { return Ok(()) };
    if let Some(waiting) = &state.waiting {
        let next = age::until(waiting.next_try_at.as_ref());
        let next = if next.is_empty() {
            String::new()
        } else {
            format!(" (next try in {next})")
        };
        inner(
            out,
            title,
            &format!("waiting: {}{next} {}", waiting.reason, waiting.message),
        )?;
    }
    if let Some(running) = &state.running {
        inner(
            out,
            title,
            &format!("running for {}", age::since(running.started_at.as_ref())),
        )?;
    }
    if let Some(ended) = &state.terminated {
        inner(
            out,
            title,
            &format!(
                "ended {} ago: {}",
                age::since(ended.finished_at.as_ref()),
                rows::end_text(ended)
            ),
        )?;
        if let Some(peak) = &ended.memory_peak {
            inner(out, "Memory peak", &peak.text)?;
        }
    }
    Ok(())
}

/// A line of the head.
fn field(out: &mut Output, name: &str, value: &str) -> Result<(), CtlError> {
    let value = if value.is_empty() { "-" } else { value };
    out.line(format_args!("{:<14}{value}", format!("{name}:")))
}

/// A line of a container.
fn inner(out: &mut Output, name: &str, value: &str) -> Result<(), CtlError> {
    if value.is_empty() {
        return Ok(());
    }
    out.line(format_args!("    {:<14}{}", format!("{name}:"), value.trim_end()))
}

fn map(
    out: &mut Output,
    name: &str,
    map: &std::collections::BTreeMap<String, String>,
) -> Result<(), CtlError> {
    for (number, (key, value)) in map.iter().enumerate() {
        let title = if number == 0 {
            format!("{name}:")
        } else {
            String::new()
        };
        out.line(format_args!("{title:<14}{key}={value}"))?;
    }
    Ok(())
}
