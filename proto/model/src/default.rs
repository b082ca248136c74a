//! What a field means when it was not written: Kubernetes' defaults, and our safer ones for isolation.

use proto::v1::int_or_string::Value;
use proto::v1::object::Object as Any;
use proto::v1::{
    Container, Deployment, DeploymentStrategy, EmptyDirVolumeSource, IntOrString, Object, PodSpec,
    PodTemplateSpec, Probe, RoleRef, RollingUpdateDeployment, SeccompProfile, Subject,
};

use crate::{image, object};

/// The namespace of what names none.
pub const NAMESPACE: &str = "default";
/// Where a container may leave its last words.
pub const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";
/// Seconds between SIGTERM and SIGKILL.
pub const GRACE_SECONDS: i32 = 30;
/// The type of a secret that asks for no keys.
pub const SECRET_TYPE: &str = "Opaque";
/// The service account of what names none.
pub const SERVICE_ACCOUNT: &str = "default";
/// The group of roles, bindings, users and groups.
pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
/// Subjects that are no objects of the cluster.
pub const USER_KINDS: [&str; 2] = ["User", "Group"];
/// Permissions of the files of a config map or a secret.
pub const FILE_MODE: i32 = 0o644;
/// Resources that can be requested and limited; a request that was not written is the limit.
pub const REQUESTED: [&str; 2] = ["cpu", "memory"];

/// Fills in what was not written. A second time changes nothing. What must be written (a spec, a template) is left out, so
/// that validation can say so.
pub fn object(object: &mut Object) {
    let Some(kind) = object::try_kind(object) else {
        return;
    };
    object::set_type_meta(object);
    let meta = object::meta_mut(object);
    if kind.namespaced() {
        text(&mut meta.namespace, NAMESPACE);
    }
    match &mut object.object {
        Some(Any::Pod(inner)) => {
            if let Some(spec) = &mut inner.spec {
                pod_spec(spec);
                // Of pods alone, as in Kubernetes: a template stays as it was written.
                text(&mut spec.service_account_name, SERVICE_ACCOUNT);
            }
        }
        Some(Any::Deployment(inner)) => deployment(inner),
        Some(Any::ReplicaSet(inner)) => {
            if let Some(spec) = &mut inner.spec {
                spec.replicas.get_or_insert(1);
                spec.template.iter_mut().for_each(template);
            }
        }
        Some(Any::Event(inner)) => text(&mut inner.r#type, "Normal"),
        Some(Any::Secret(inner)) => {
            text(&mut inner.r#type, SECRET_TYPE);
            string_data(object);
        }
        Some(Any::RoleBinding(inner)) => binding(&mut inner.role_ref, &mut inner.subjects),
        Some(Any::ClusterRoleBinding(inner)) => binding(&mut inner.role_ref, &mut inner.subjects),
        Some(
            Any::Namespace(_)
            | Any::Node(_)
            | Any::ConfigMap(_)
            | Any::ServiceAccount(_)
            | Any::Role(_)
            | Any::ClusterRole(_),
        )
        | None => {}
    }
}

fn binding(role: &mut Option<RoleRef>, subjects: &mut [Subject]) {
    if let Some(role) = role {
        text(&mut role.api_group, RBAC_GROUP);
    }
    for subject in subjects {
        if USER_KINDS.contains(&subject.kind.as_str()) {
            text(&mut subject.api_group, RBAC_GROUP);
        }
    }
}

/// Puts what a Secret says as text to its data.
pub fn string_data(object: &mut Object) {
    if let Some(Any::Secret(secret)) = &mut object.object {
        let written = std::mem::take(&mut secret.string_data);
        let bytes = written.into_iter().map(|(key, value)| (key, value.into_bytes()));
        secret.data.extend(bytes);
    }
}

fn text(field: &mut String, default: &str) {
    if field.is_empty() {
        default.clone_into(field);
    }
}

fn number(field: &mut i32, default: i32) {
    if *field == 0 {
        *field = default;
    }
}

fn deployment(deployment: &mut Deployment) {
    let Some(spec) = &mut deployment.spec else { return };
    spec.replicas.get_or_insert(1);
    spec.revision_history_limit.get_or_insert(10);
    spec.progress_deadline_seconds.get_or_insert(600);
    let strategy = spec.strategy.get_or_insert_with(DeploymentStrategy::default);
    text(&mut strategy.r#type, "RollingUpdate");
    if strategy.r#type == "RollingUpdate" {
        let quarter = || IntOrString {
            value: Some(Value::Text("25%".to_owned())),
        };
        let rolling = strategy
            .rolling_update
            .get_or_insert_with(RollingUpdateDeployment::default);
        rolling.max_unavailable.get_or_insert_with(quarter);
        rolling.max_surge.get_or_insert_with(quarter);
    }
    spec.template.iter_mut().for_each(template);
}

fn template(template: &mut PodTemplateSpec) {
    template.spec.iter_mut().for_each(pod_spec);
}

/// Fills in a pod's spec.
pub fn pod_spec(spec: &mut PodSpec) {
    text(&mut spec.restart_policy, "Always");
    spec.termination_grace_period_seconds.get_or_insert(GRACE_SECONDS);
    let privileged = spec
        .init_containers
        .iter()
        .chain(&spec.containers)
        .any(is_privileged);
    // A user namespace of its own cannot own what belongs to the host.
    let shares_host = spec.host_network || spec.host_pid || spec.host_ipc || privileged;
    spec.host_users.get_or_insert(shares_host);
    let security = spec.security_context.get_or_insert_default();
    security
        .seccomp_profile
        .get_or_insert_with(|| profile("RuntimeDefault"));
    for volume in &mut spec.volumes {
        let sources = [
            volume.empty_dir.is_some(),
            volume.host_path.is_some(),
            volume.config_map.is_some(),
            volume.secret.is_some(),
        ];
        if !sources.contains(&true) {
            volume.empty_dir = Some(EmptyDirVolumeSource::default());
        }
        if let Some(source) = &mut volume.config_map {
            source.default_mode.get_or_insert(FILE_MODE);
        }
        if let Some(source) = &mut volume.secret {
            source.default_mode.get_or_insert(FILE_MODE);
        }
    }
    for each in spec.init_containers.iter_mut().chain(&mut spec.containers) {
        container(each, spec.host_network);
    }
}

fn is_privileged(container: &Container) -> bool {
    container
        .security_context
        .as_ref()
        .is_some_and(|security| security.privileged == Some(true))
}

fn profile(name: &str) -> SeccompProfile {
    SeccompProfile {
        r#type: name.to_owned(),
        localhost_profile: String::new(),
    }
}

fn container(container: &mut Container, host_network: bool) {
    text(
        &mut container.image_pull_policy,
        image::default_pull_policy(&container.image),
    );
    text(&mut container.termination_message_path, TERMINATION_MESSAGE_PATH);
    for port in &mut container.ports {
        text(&mut port.protocol, "TCP");
        if host_network {
            number(&mut port.host_port, port.container_port);
        }
    }
    for source in container
        .env
        .iter_mut()
        .filter_map(|variable| variable.value_from.as_mut())
    {
        if let Some(field) = &mut source.field_ref {
            text(&mut field.api_version, "v1");
        }
    }
    if let Some(resources) = &mut container.resources {
        for name in REQUESTED {
            if let Some(limit) = resources.limits.get(name) {
                resources
                    .requests
                    .entry(name.to_owned())
                    .or_insert_with(|| limit.clone());
            }
        }
    }
    let probes = [
        &mut container.liveness_probe,
        &mut container.readiness_probe,
        &mut container.startup_probe,
    ];
    probes.into_iter().flatten().for_each(probe);
    let privileged = is_privileged(container);
    let security = container.security_context.get_or_insert_default();
    // Kubernetes' own rule: privileged or SYS_ADMIN without escalation is a contradiction that it refuses.
    if let Some(sets) = &mut security.capabilities {
        // Container runtimes take them in any case, and manifests say `drop: [all]`.
        let names = sets.add.iter_mut().chain(&mut sets.drop);
        names.for_each(|name| name.make_ascii_uppercase());
    }
    let admin = |name: &String| matches!(name.trim_start_matches("CAP_"), "SYS_ADMIN" | "ALL");
    let escalates = privileged
        || security
            .capabilities
            .as_ref()
            .is_some_and(|sets| sets.add.iter().any(admin));
    security.allow_privilege_escalation.get_or_insert(escalates);
    text(&mut security.proc_mount, "Default");
    if privileged {
        security
            .seccomp_profile
            .get_or_insert_with(|| profile("Unconfined"));
    }
}

fn probe(probe: &mut Probe) {
    number(&mut probe.timeout_seconds, 1);
    number(&mut probe.period_seconds, 10);
    number(&mut probe.success_threshold, 1);
    number(&mut probe.failure_threshold, 3);
    if let Some(get) = &mut probe.http_get {
        text(&mut get.path, "/");
        text(&mut get.scheme, "HTTP");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{Pod, Quantity, ResourceRequirements, SecurityContext};

    fn pod(container: Container) -> Object {
        let spec = PodSpec {
            containers: vec![container],
            ..Default::default()
        };
        object::from(Pod {
            spec: Some(spec),
            ..Default::default()
        })
    }

    fn spec(object: &Object) -> &PodSpec {
        object::of::<Pod>(object)
            .and_then(|pod| pod.spec.as_ref())
            .unwrap()
    }

    #[test]
    fn a_pod_is_isolated_unless_it_asks_not_to_be() {
        let mut plain = pod(Container {
            image: "nginx:1".to_owned(),
            ..Default::default()
        });
        object(&mut plain);
        assert_eq!(spec(&plain).host_users, Some(false));
        let security = spec(&plain).containers[0].security_context.clone().unwrap();
        assert_eq!(security.allow_privilege_escalation, Some(false));
        assert_eq!(object::meta(&plain).namespace, "default");

        let privileged = SecurityContext {
            privileged: Some(true),
            ..Default::default()
        };
        let mut open = pod(Container {
            security_context: Some(privileged),
            ..Default::default()
        });
        object(&mut open);
        assert_eq!(spec(&open).host_users, Some(true));
        let security = spec(&open).containers[0].security_context.clone().unwrap();
        assert_eq!(security.allow_privilege_escalation, Some(true));
    }

    #[test]
    fn a_second_time_changes_nothing() {
        let limits = [("cpu", "1"), ("bulkhead.io/read-bps", "1M")];
        let limits = limits.map(|(name, text)| {
            (
                name.to_owned(),
                Quantity {
                    text: text.to_owned(),
                },
            )
        });
        let resources = ResourceRequirements {
            limits: limits.into(),
            ..Default::default()
        };
        let probe = Probe {
            http_get: Some(Default::default()),
            ..Default::default()
        };
        let mut once = pod(Container {
            resources: Some(resources),
            liveness_probe: Some(probe),
            ports: vec![Default::default()],
            ..Default::default()
        });
        object(&mut once);
        let requests = &spec(&once).containers[0].resources.as_ref().unwrap().requests;
        assert_eq!(requests.keys().collect::<Vec<_>>(), ["cpu"]);
        let mut twice = once.clone();
        object(&mut twice);
        assert_eq!(once, twice);
    }
}
