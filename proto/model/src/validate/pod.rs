//! The spec of a pod.

use std::collections::BTreeMap;

use proto::v1::{Container, PodSpec, PodTemplateSpec};

use super::{Errors, container, labels, pod_annotations, security, volume, written_metadata};
use crate::name;

/// A template: its labels and its spec.
pub(super) fn template(errors: &mut Errors, path: &str, template: &PodTemplateSpec) {
    if let Some(meta) = &template.metadata {
        written_metadata(errors, &format!("{path}.metadata"), meta);
        pod_annotations(errors, &format!("{path}.metadata"), meta);
    }
    match &template.spec {
        Some(inner) => spec(errors, &format!("{path}.spec"), inner),
        None => errors.add(format!("{path}.spec"), "is required"),
    }
}

pub(super) fn spec(errors: &mut Errors, path: &str, spec: &PodSpec) {
    errors.one_of(
        format!("{path}.restartPolicy"),
        &spec.restart_policy,
        &["Always", "OnFailure", "Never"],
    );
    if !spec.hostname.is_empty() {
        errors.check(format!("{path}.hostname"), name::dns1123_label(&spec.hostname));
    }
    if !spec.node_name.is_empty() {
        errors.check(
            format!("{path}.nodeName"),
            name::dns1123_subdomain(&spec.node_name),
        );
    }
    if !spec.service_account_name.is_empty() {
        errors.check(
            format!("{path}.serviceAccountName"),
            name::dns1123_subdomain(&spec.service_account_name),
        );
    }
    labels(errors, &format!("{path}.nodeSelector"), &spec.node_selector);
    if let Some(seconds) = spec.termination_grace_period_seconds {
        errors.range(
            format!("{path}.terminationGracePeriodSeconds"),
            seconds,
            0,
            i32::MAX,
        );
    }
    host(errors, path, spec);
    if let Some(context) = &spec.security_context {
        security::pod(errors, &format!("{path}.securityContext"), context, spec);
    }
    volume::volumes(errors, &format!("{path}.volumes"), &spec.volumes);
    if spec.containers.is_empty() {
        errors.add(format!("{path}.containers"), "at least one container is required");
    }
    let all = containers(path, spec);
    let mut names = BTreeMap::new();
    for (path, container) in &all {
        if let Some(first) = names.insert(container.name.as_str(), path.clone())
            && !container.name.is_empty()
        {
            errors.add(
                format!("{path}.name"),
                format!("`{}` is the name of {first} too", container.name),
            );
        }
    }
    for (index, (path, each)) in all.iter().enumerate() {
        container::container(errors, path, each, spec, index < spec.init_containers.len());
    }
    ports(errors, &all[spec.init_containers.len()..]);
}

/// Init containers first, each with its path.
fn containers<'a>(path: &str, spec: &'a PodSpec) -> Vec<(String, &'a Container)> {
    let init = spec.init_containers.iter().enumerate();
    let init = init.map(|(index, each)| (format!("{path}.initContainers[{index}]"), each));
    let main = spec.containers.iter().enumerate();
    init.chain(main.map(|(index, each)| (format!("{path}.containers[{index}]"), each)))
        .collect()
}

fn host(errors: &mut Errors, path: &str, spec: &PodSpec) {
    if spec.host_users == Some(false) {
        let shares = [
            (spec.host_network, "hostNetwork"),
            (spec.host_pid, "hostPID"),
            (spec.host_ipc, "hostIPC"),
        ];
        for (shared, field) in shares {
            if shared {
                errors.add(
                    format!("{path}.hostUsers"),
                    format!("must not be false with {field}: true"),
                );
            }
        }
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid {
        errors.add(
            format!("{path}.shareProcessNamespace"),
            "must not be true with hostPID: true",
        );
    }
}

/// A port of the host can be had once, also inside of one pod.
fn ports(errors: &mut Errors, containers: &[(String, &Container)]) {
    let mut taken: BTreeMap<(i32, &str), Vec<(&str, String)>> = BTreeMap::new();
    for (path, container) in containers {
        for (index, port) in container.ports.iter().enumerate() {
            if port.host_port == 0 {
                continue;
            }
            let path = format!("{path}.ports[{index}].hostPort");
            let address = if port.host_ip == "0.0.0.0" {
                ""
            } else {
                port.host_ip.as_str()
            };
            let others = taken.entry((port.host_port, &port.protocol)).or_default();
            let clash = others
                .iter()
                .find(|(other, _)| other.is_empty() || address.is_empty() || *other == address);
            if let Some((_, first)) = clash {
                errors.add(
                    &path,
                    format!("{}/{} is taken by {first}", port.host_port, port.protocol),
                );
            }
            others.push((address, path));
        }
    }
}
