//! Probes.

use proto::v1::int_or_string::Value;
use proto::v1::{Container, IntOrString, Probe};

use super::Errors;
use crate::name;

/// What a probe decides.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Liveness,
    Readiness,
    Startup,
}

pub(super) fn probe(errors: &mut Errors, path: &str, probe: &Probe, purpose: Purpose, container: &Container) {
    let handlers = [
        probe.exec.is_some(),
        probe.http_get.is_some(),
        probe.tcp_socket.is_some(),
    ];
    match handlers.iter().filter(|written| **written).count() {
        1 => {}
        0 => errors.add(path, "one of exec, httpGet and tcpSocket is required"),
        _ => errors.add(path, "exec, httpGet and tcpSocket exclude each other"),
    }
    if let Some(exec) = &probe.exec
        && exec.command.is_empty()
    {
        errors.add(format!("{path}.exec.command"), "is required");
    }
    if let Some(get) = &probe.http_get {
        let path = format!("{path}.httpGet");
        port(errors, &path, get.port.as_ref(), container);
        errors.one_of(format!("{path}.scheme"), &get.scheme, &["HTTP", "HTTPS"]);
        for (index, header) in get.http_headers.iter().enumerate() {
            let path = format!("{path}.httpHeaders[{index}]");
            let token = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            if header.name.is_empty() || !header.name.bytes().all(token) {
                errors.add(
                    format!("{path}.name"),
                    "is not a name of a header: letters, digits and `-`",
                );
            }
            if header.value.contains(['\r', '\n', '\0']) {
                errors.add(format!("{path}.value"), "must be one line");
            }
        }
        if get.path.contains(|c: char| c.is_ascii_control()) || get.path.contains(' ') {
            errors.add(
                format!("{path}.path"),
                "must not have spaces or control characters",
            );
        }
    }
    if let Some(socket) = &probe.tcp_socket {
        port(
            errors,
            &format!("{path}.tcpSocket"),
            socket.port.as_ref(),
            container,
        );
    }
    errors.range(
        format!("{path}.initialDelaySeconds"),
        probe.initial_delay_seconds,
        0,
        i32::MAX,
    );
    errors.range(
        format!("{path}.timeoutSeconds"),
        probe.timeout_seconds,
        1,
        i32::MAX,
    );
    errors.range(format!("{path}.periodSeconds"), probe.period_seconds, 1, i32::MAX);
    errors.range(
        format!("{path}.successThreshold"),
        probe.success_threshold,
        1,
        i32::MAX,
    );
    errors.range(
        format!("{path}.failureThreshold"),
        probe.failure_threshold,
        1,
        i32::MAX,
    );
    if purpose != Purpose::Readiness && probe.success_threshold > 1 {
        errors.add(
            format!("{path}.successThreshold"),
            "must be 1: only a readiness probe may ask for more",
        );
    }
    if let Some(seconds) = probe.termination_grace_period_seconds {
        if purpose == Purpose::Readiness {
            errors.add(
                format!("{path}.terminationGracePeriodSeconds"),
                "a readiness probe ends nothing",
            );
        }
        errors.range(
            format!("{path}.terminationGracePeriodSeconds"),
            seconds,
            1,
            i32::MAX,
        );
    }
}

fn port(errors: &mut Errors, path: &str, port: Option<&IntOrString>, container: &Container) {
    let path = format!("{path}.port");
    match port.and_then(|port| port.value.as_ref()) {
        None => errors.add(path, "is required"),
        Some(Value::Number(number)) => errors.range(path, *number, 1, 65_535),
        Some(Value::Text(text)) => {
            if let Err(message) = name::port(text) {
                errors.add(path, message);
            } else if !container.ports.iter().any(|port| port.name == *text) {
                errors.add(path, format!("the container has no port named `{text}`"));
            }
        }
    }
}
