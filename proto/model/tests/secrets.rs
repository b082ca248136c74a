//! What is refused of Secrets, and of the pods that name them.

mod refusals;

use refusals::{check, pod};

#[test]
fn secrets_have_what_their_types_ask_for() {
    let secret = |rest: &str| format!("{{apiVersion: v1, kind: Secret, metadata: {{name: s}}, {rest}}}\n");
    for (rest, path, message) in [
        ("stringData: {a/b: c}", "data[a/b]", "`a/b` may have letters"),
        ("data: {a: \"%\"}", "data[a]", "must be base64"),
        (
            "type: kubernetes.io/tls, stringData: {tls.crt: x}",
            "data[tls.key]",
            "is required by type kubernetes.io/tls",
        ),
        (
            "type: kubernetes.io/basic-auth, stringData: {name: x}",
            "data",
            "type kubernetes.io/basic-auth needs one of username and password",
        ),
        (
            "type: kubernetes.io/ssh-auth",
            "data[ssh-privatekey]",
            "is required by type kubernetes.io/ssh-auth",
        ),
        (
            "type: kubernetes.io/dockerconfigjson",
            "data[.dockerconfigjson]",
            "is required by type kubernetes.io/dockerconfigjson",
        ),
        (
            "type: kubernetes.io/dockercfg, stringData: {.dockercfg: hunter2}",
            "data[.dockercfg]",
            "is not JSON",
        ),
        (
            "type: kubernetes.io/service-account-token",
            "type",
            "kubernetes.io/service-account-token is not supported yet",
        ),
    ] {
        check(&secret(rest), path, message);
    }
    let large = "x".repeat(1024 * 1024 + 1);
    check(
        &secret(&format!("stringData: {{a: {large}}}")),
        "data",
        "has 1048577 bytes, at most 1048576 are allowed",
    );
    for (container, path, message) in [
        (
            ", envFrom: [{secretRef: {name: A_}}]",
            "envFrom[0].secretRef.name",
            "`A_` is not a DNS-1123 name",
        ),
        (
            ", envFrom: [{secretRef: {name: a}, configMapRef: {name: a}}]",
            "envFrom[0]",
            "configMapRef and secretRef exclude each other",
        ),
        (
            ", env: [{name: A, valueFrom: {secretKeyRef: {name: a}}}]",
            "env[0].valueFrom.secretKeyRef.key",
            "is required",
        ),
    ] {
        check(
            &pod(container, ""),
            &format!("spec.containers[0].{path}"),
            message,
        );
    }
    check(
        &pod("", ", volumes: [{name: v, secret: {}}]"),
        "spec.volumes[0].secret.secretName",
        "is required",
    );
}
