//! One container.

use std::collections::{BTreeMap, BTreeSet};

use proto::v1::{Container, EnvVarSource, PodSpec, Quantity, ResourceRequirements};

use super::probe::{self, Purpose};
use super::{Errors, security, volume};
use crate::default::REQUESTED;
use crate::{image, name, quantity};

/// Block I/O limits, under our own names.
const IO_LIMITS: [&str; 4] = [
    "bulkhead.io/read-bps",
    "bulkhead.io/write-bps",
    "bulkhead.io/read-iops",
    "bulkhead.io/write-iops",
];
/// Less memory than a page holds no process: somebody forgot the unit.
const MEMORY_MIN: i64 = 4096;
/// Linux' longest path.
const PATH_MAX: usize = 4096;

pub(super) fn container(errors: &mut Errors, path: &str, container: &Container, pod: &PodSpec, init: bool) {
    if errors.required(format!("{path}.name"), &container.name) {
        errors.check(format!("{path}.name"), name::dns1123_label(&container.name));
    }
    if errors.required(format!("{path}.image"), &container.image) {
        errors.check(
            format!("{path}.image"),
            image::parse(&container.image).map(|_| ()),
        );
    }
    errors.one_of(
        format!("{path}.imagePullPolicy"),
        &container.image_pull_policy,
        &["Always", "IfNotPresent", "Never"],
    );
    for (field, text) in [
        ("workingDir", &container.working_dir),
        ("terminationMessagePath", &container.termination_message_path),
    ] {
        if !text.is_empty() && (!text.starts_with('/') || text.len() >= PATH_MAX) {
            errors.add(
                format!("{path}.{field}"),
                "must be an absolute path of less than 4096 bytes",
            );
        }
    }
    for (field, words) in [("command", &container.command), ("args", &container.args)] {
        for (index, word) in words.iter().enumerate() {
            if word.contains('\0') {
                errors.add(format!("{path}.{field}[{index}]"), "must not have a NUL");
            }
        }
    }
    ports(errors, path, container, pod);
    environment(errors, path, container);
    if let Some(requirements) = &container.resources {
        resources(errors, &format!("{path}.resources"), requirements);
    }
    volume::mounts(errors, path, container, pod);
    let probes = [
        ("livenessProbe", &container.liveness_probe, Purpose::Liveness),
        ("readinessProbe", &container.readiness_probe, Purpose::Readiness),
        ("startupProbe", &container.startup_probe, Purpose::Startup),
    ];
    for (field, written, purpose) in probes {
        match written {
            Some(_) if init => {
                errors.add(
                    format!("{path}.{field}"),
                    "an init container has no probes: it runs to its end",
                );
            }
            Some(written) => probe::probe(errors, &format!("{path}.{field}"), written, purpose, container),
            None => {}
        }
    }
    if let Some(context) = &container.security_context {
        security::container(errors, &format!("{path}.securityContext"), context, pod);
    }
}

fn ports(errors: &mut Errors, path: &str, container: &Container, pod: &PodSpec) {
    let mut names = BTreeSet::new();
    for (index, port) in container.ports.iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        if !port.name.is_empty() {
            errors.check(format!("{path}.name"), name::port(&port.name));
            if !names.insert(&port.name) {
                errors.add(
                    format!("{path}.name"),
                    format!("`{}` is the name of another port too", port.name),
                );
            }
        }
        if port.container_port == 0 {
            errors.add(format!("{path}.containerPort"), "is required");
        } else {
            errors.range(format!("{path}.containerPort"), port.container_port, 1, 65_535);
        }
        errors.range(format!("{path}.hostPort"), port.host_port, 0, 65_535);
        errors.one_of(
            format!("{path}.protocol"),
            &port.protocol,
            &["TCP", "UDP", "SCTP"],
        );
        if pod.host_network && port.host_port != port.container_port {
            errors.add(
                format!("{path}.hostPort"),
                "must be the containerPort with hostNetwork: true",
            );
        }
        if !port.host_ip.is_empty() && port.host_ip.parse::<std::net::IpAddr>().is_err() {
            errors.add(
                format!("{path}.hostIP"),
                format!("`{}` is not an IP address", port.host_ip),
            );
        }
    }
}

fn environment(errors: &mut Errors, path: &str, container: &Container) {
    for (index, from) in container.env_from.iter().enumerate() {
        let path = format!("{path}.envFrom[{index}]");
        if !from.prefix.is_empty() {
            errors.check(format!("{path}.prefix"), name::env(&from.prefix));
        }
        let (field, name) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(map), None) => ("configMapRef", &map.name),
            (None, Some(secret)) => ("secretRef", &secret.name),
            (None, None) => {
                errors.add(path, "one of configMapRef and secretRef is required");
                continue;
            }
            (Some(_), Some(_)) => {
                errors.add(path, "configMapRef and secretRef exclude each other");
                continue;
            }
        };
        if errors.required(format!("{path}.{field}.name"), name) {
            errors.check(format!("{path}.{field}.name"), name::dns1123_subdomain(name));
        }
    }
    for (index, variable) in container.env.iter().enumerate() {
        let path = format!("{path}.env[{index}]");
        if errors.required(format!("{path}.name"), &variable.name) {
            errors.check(format!("{path}.name"), name::env(&variable.name));
        }
        if variable.value.contains('\0') {
            errors.add(format!("{path}.value"), "must not have a NUL");
        }
        if let Some(source) = &variable.value_from {
            if !variable.value.is_empty() {
                errors.add(
                    format!("{path}.valueFrom"),
                    "value and valueFrom exclude each other",
                );
            }
            value_from(errors, &format!("{path}.valueFrom"), source);
        }
    }
}

fn value_from(errors: &mut Errors, path: &str, source: &EnvVarSource) {
    let config_map = source.config_map_key_ref.as_ref();
    let secret = source.secret_key_ref.as_ref();
    let key = config_map.map(|it| ("configMapKeyRef", &it.name, &it.key));
    let key = key.or_else(|| secret.map(|it| ("secretKeyRef", &it.name, &it.key)));
    let given = [config_map.is_some(), secret.is_some(), source.field_ref.is_some()];
    match given.into_iter().filter(|given| *given).count() {
        0 => errors.add(
            path,
            "one of configMapKeyRef, secretKeyRef and fieldRef is required",
        ),
        1 => {}
        _ => errors.add(
            path,
            "configMapKeyRef, secretKeyRef and fieldRef exclude each other",
        ),
    }
    if let Some((field, name, key)) = key {
        let path = format!("{path}.{field}");
        if errors.required(format!("{path}.name"), name) {
            errors.check(format!("{path}.name"), name::dns1123_subdomain(name));
        }
        if errors.required(format!("{path}.key"), key) {
            errors.check(format!("{path}.key"), name::config_key(key));
        }
    }
    if let Some(field) = &source.field_ref {
        errors.one_of(format!("{path}.fieldRef.apiVersion"), &field.api_version, &["v1"]);
        field_path(errors, format!("{path}.fieldRef.fieldPath"), &field.field_path);
    }
}

/// Fields that a variable may show.
const FIELD_PATHS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn field_path(errors: &mut Errors, path: String, text: &str) {
    if !errors.required(path.clone(), text) || FIELD_PATHS.contains(&text) {
        return;
    }
    let subscript = ["metadata.labels['", "metadata.annotations['"]
        .iter()
        .find_map(|start| text.strip_prefix(start))
        .and_then(|rest| rest.strip_suffix("']"));
    match subscript {
        Some(key) => errors.check(path, name::label_key(key)),
        None => {
            let mut allowed = FIELD_PATHS.to_vec();
            allowed.extend(["metadata.labels['KEY']", "metadata.annotations['KEY']"]);
            errors.one_of(path, text, &allowed);
        }
    }
}

fn resources(errors: &mut Errors, path: &str, resources: &ResourceRequirements) {
    amounts(errors, &format!("{path}.limits"), &resources.limits, &IO_LIMITS);
    let memory = resources
        .limits
        .get("memory")
        .map(|limit| (limit, quantity::of(limit)));
    if let Some((limit, Ok(amount))) = memory
        && !amount.is_zero()
        && (0..MEMORY_MIN).contains(&amount.bytes())
    {
        let message = format!(
            "{} is less than a page of memory; write a unit, as 512Mi",
            limit.text
        );
        errors.add(format!("{path}.limits[memory]"), message);
    }
    // A request that was not written is its limit: what is wrong with that was told.
    let copied = |name: &str, request: &Quantity| {
        REQUESTED.contains(&name) && resources.limits.get(name) == Some(request)
    };
    let own = resources
        .requests
        .iter()
        .filter(|(name, request)| !copied(name, request));
    let own = own
        .map(|(name, request)| (name.clone(), request.clone()))
        .collect();
    amounts(errors, &format!("{path}.requests"), &own, &[]);
    for (name, request) in &resources.requests {
        let Some(limit) = resources.limits.get(name) else {
            continue;
        };
        if let (Ok(requested), Ok(limited)) = (quantity::of(request), quantity::of(limit))
            && requested > limited
        {
            let message = format!("{} is more than the limit {}", request.text, limit.text);
            errors.add(format!("{path}.requests[{name}]"), message);
        }
    }
}

/// Whether Kubernetes has such a resource: of its own, or somebody's with a prefix.
fn is_known(resource: &str) -> bool {
    resource == "ephemeral-storage" || resource.starts_with("hugepages-") || resource.contains('/')
}

fn amounts(errors: &mut Errors, path: &str, amounts: &BTreeMap<String, Quantity>, more: &[&str]) {
    for (name, written) in amounts {
        let path = format!("{path}[{name}]");
        if !REQUESTED.contains(&name.as_str()) && !more.contains(&name.as_str()) {
            let mut allowed = REQUESTED.to_vec();
            allowed.extend(more);
            let hint = crate::schema::nearest(name, allowed.iter().copied());
            let message = match hint {
                Some(near) => format!("unknown resource; did you mean `{near}`?"),
                None if IO_LIMITS.contains(&name.as_str()) => "can be a limit only".to_owned(),
                None => format!(
                    "{}: only {} are possible",
                    if is_known(name) {
                        "not supported yet"
                    } else {
                        "unknown resource"
                    },
                    super::list(&allowed).replace(" or ", " and ")
                ),
            };
            errors.add(path, message);
            continue;
        }
        match quantity::of(written) {
            Err(error) => errors.add(path, error.to_string()),
            Ok(amount) if amount.is_negative() => errors.add(path, "must not be negative"),
            Ok(amount) if more.contains(&name.as_str()) && (amount.is_zero() || !amount.is_whole()) => {
                errors.add(path, "must be a whole number above 0");
            }
            Ok(_) => {}
        }
    }
}
