//! What is refused although it fits the schema: one row a rule, each of which must be the only refusal.

mod refusals;

use refusals::{check, pod};

fn deployment(spec: &str, pod: &str, image: &str) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: d}}, spec: {{selector: {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: b}}}}, spec: {{containers: [{{name: c, image: {image}}}]{pod}}}}}{spec}}}}}\n"
    )
}

/// The container's fields, and the one refusal (path below the container, start of the message).
const CONTAINER: &[(&str, &str, &str)] = &[
    (
        "ports: [{containerPort: 0}]",
        "ports[0].containerPort",
        "is required",
    ),
    (
        "ports: [{containerPort: 70000}]",
        "ports[0].containerPort",
        "must be from 1 to 65535, is 70000",
    ),
    (
        "ports: [{containerPort: 80, name: HTTP}]",
        "ports[0].name",
        "`HTTP` is not a name of a port",
    ),
    (
        "ports: [{containerPort: 80, name: a}, {containerPort: 81, name: a}]",
        "ports[1].name",
        "`a` is the name of another port too",
    ),
    (
        "ports: [{containerPort: 80, protocol: tcp}]",
        "ports[0].protocol",
        "must be TCP, UDP or SCTP, is `tcp`; did you mean `TCP`?",
    ),
    (
        "ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 81, hostPort: 8080}]",
        "ports[1].hostPort",
        "8080/TCP is taken by spec.containers[0].ports[0].hostPort",
    ),
    (
        "ports: [{containerPort: 80, hostIP: here}]",
        "ports[0].hostIP",
        "`here` is not an IP address",
    ),
    (
        "env: [{name: A=B}]",
        "env[0].name",
        "`A=B` is not a name of a variable",
    ),
    ("env: [{value: x}]", "env[0].name", "is required"),
    (
        "env: [{name: A, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]",
        "env[0].valueFrom",
        "value and valueFrom exclude each other",
    ),
    (
        "env: [{name: A, valueFrom: {}}]",
        "env[0].valueFrom",
        "one of configMapKeyRef, secretKeyRef and fieldRef is required",
    ),
    (
        "env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.nam}}}]",
        "env[0].valueFrom.fieldRef.fieldPath",
        "must be metadata.name",
    ),
    (
        "env: [{name: A, valueFrom: {configMapKeyRef: {name: m}}}]",
        "env[0].valueFrom.configMapKeyRef.key",
        "is required",
    ),
    (
        "resources: {limits: {cpu: -1}}",
        "resources.limits[cpu]",
        "must not be negative",
    ),
    (
        "resources: {limits: {cpu: 1}, requests: {cpu: 2}}",
        "resources.requests[cpu]",
        "2 is more than the limit 1",
    ),
    (
        "resources: {limits: {memory: 512}}",
        "resources.limits[memory]",
        "512 is less than a page of memory; write a unit, as 512Mi",
    ),
    (
        "resources: {limits: {nvidia.com/gpu: 1}}",
        "resources.limits[nvidia.com/gpu]",
        "not supported yet",
    ),
    (
        "resources: {limits: {memry: 1Gi}}",
        "resources.limits[memry]",
        "unknown resource; did you mean `memory`?",
    ),
    (
        "resources: {requests: {bulkhead.io/read-bps: 1M}}",
        "resources.requests[bulkhead.io/read-bps]",
        "can be a limit only",
    ),
    (
        "resources: {limits: {bulkhead.io/read-bps: 0}}",
        "resources.limits[bulkhead.io/read-bps]",
        "must be a whole number above 0",
    ),
    (
        "livenessProbe: {}",
        "livenessProbe",
        "one of exec, httpGet and tcpSocket is required",
    ),
    (
        "livenessProbe: {exec: {command: [a]}, tcpSocket: {port: 1}}",
        "livenessProbe",
        "exec, httpGet and tcpSocket exclude each other",
    ),
    (
        "livenessProbe: {tcpSocket: {port: 1}, successThreshold: 2}",
        "livenessProbe.successThreshold",
        "must be 1",
    ),
    (
        "readinessProbe: {tcpSocket: {port: 1}, terminationGracePeriodSeconds: 2}",
        "readinessProbe.terminationGracePeriodSeconds",
        "a readiness probe ends nothing",
    ),
    (
        "readinessProbe: {httpGet: {port: web}}",
        "readinessProbe.httpGet.port",
        "the container has no port named `web`",
    ),
    (
        "readinessProbe: {httpGet: {port: 0}}",
        "readinessProbe.httpGet.port",
        "must be from 1 to 65535, is 0",
    ),
    (
        "readinessProbe: {httpGet: {port: 80, scheme: https}}",
        "readinessProbe.httpGet.scheme",
        "must be HTTP or HTTPS, is `https`; did you mean `HTTPS`?",
    ),
    (
        "readinessProbe: {exec: {}}",
        "readinessProbe.exec.command",
        "is required",
    ),
    (
        "readinessProbe: {tcpSocket: {port: 80}, periodSeconds: -1}",
        "readinessProbe.periodSeconds",
        "must be at least 1, is -1",
    ),
    (
        "volumeMounts: [{name: v, mountPath: /v}]",
        "volumeMounts[0].name",
        "the pod has no volume `v`",
    ),
    (
        "imagePullPolicy: Sometimes",
        "imagePullPolicy",
        "must be Always, IfNotPresent or Never",
    ),
    ("workingDir: here", "workingDir", "must be an absolute path"),
    (
        "securityContext: {capabilities: {add: [SYS_ADMN]}}",
        "securityContext.capabilities.add[0]",
        "`SYS_ADMN` is not a capability of Linux; did you mean `SYS_ADMIN`?",
    ),
    (
        "securityContext: {privileged: true, allowPrivilegeEscalation: false}",
        "securityContext.allowPrivilegeEscalation",
        "must not be false with privileged: true",
    ),
    (
        "securityContext: {capabilities: {add: [SYS_ADMIN]}, allowPrivilegeEscalation: false}",
        "securityContext.allowPrivilegeEscalation",
        "must not be false with the capability SYS_ADMIN",
    ),
    (
        "securityContext: {runAsUser: 0, runAsNonRoot: true}",
        "securityContext.runAsUser",
        "must not be 0 with runAsNonRoot: true",
    ),
    (
        "securityContext: {runAsUser: 70000}",
        "securityContext.runAsUser",
        "70000 is outside of the pod's user namespace",
    ),
    (
        "securityContext: {procMount: Masked}",
        "securityContext.procMount",
        "must be Default or Unmasked",
    ),
    (
        "securityContext: {seccompProfile: {type: Localhost}}",
        "securityContext.seccompProfile.localhostProfile",
        "is required with type: Localhost",
    ),
    (
        "securityContext: {seccompProfile: {type: Localhost, localhostProfile: ../a}}",
        "securityContext.seccompProfile.localhostProfile",
        "must be a relative path without `..`",
    ),
    (
        "securityContext: {seccompProfile: {type: RuntimeDefault, localhostProfile: a}}",
        "securityContext.seccompProfile.localhostProfile",
        "is for type: Localhost only",
    ),
];

/// The spec's fields, and the one refusal (path below the spec).
const SPEC: &[(&str, &str, &str)] = &[
    (
        "restartPolicy: Onfailure",
        "restartPolicy",
        "must be Always, OnFailure or Never, is `Onfailure`; did you mean `OnFailure`?",
    ),
    ("hostname: a.b", "hostname", "`a.b` is not a DNS-1123 label"),
    (
        "terminationGracePeriodSeconds: -1",
        "terminationGracePeriodSeconds",
        "must be at least 0, is -1",
    ),
    (
        "nodeSelector: {disk: \"a b\"}",
        "nodeSelector[disk]",
        "`a b` may have letters",
    ),
    (
        "hostUsers: false, hostNetwork: true",
        "hostUsers",
        "must not be false with hostNetwork: true",
    ),
    (
        "hostPID: true, shareProcessNamespace: true",
        "shareProcessNamespace",
        "must not be true with hostPID: true",
    ),
    (
        "initContainers: [{name: c, image: i}]",
        "containers[0].name",
        "`c` is the name of spec.initContainers[0] too",
    ),
    (
        "initContainers: [{name: d, image: i, readinessProbe: {tcpSocket: {port: 1}}}]",
        "initContainers[0].readinessProbe",
        "an init container has no probes",
    ),
    (
        "initContainers: [{name: d, image: I}]",
        "initContainers[0].image",
        "`I` is not a repository name; upper case is not allowed",
    ),
    (
        "initContainers: [{name: d}]",
        "initContainers[0].image",
        "is required",
    ),
    (
        "volumes: [{name: v, emptyDir: {}, hostPath: {path: /a}}]",
        "volumes[0]",
        "a volume has one source",
    ),
    (
        "volumes: [{name: v}, {name: v}]",
        "volumes[1].name",
        "`v` is the name of another volume too",
    ),
    (
        "volumes: [{name: v, hostPath: {path: a}}]",
        "volumes[0].hostPath.path",
        "must be an absolute path of the node",
    ),
    (
        "volumes: [{name: v, hostPath: {path: /a/../b}}]",
        "volumes[0].hostPath.path",
        "must not have `..`",
    ),
    (
        "volumes: [{name: v, hostPath: {path: /a, type: Dir}}]",
        "volumes[0].hostPath.type",
        "must be DirectoryOrCreate",
    ),
    (
        "volumes: [{name: v, emptyDir: {medium: memory}}]",
        "volumes[0].emptyDir.medium",
        "must be Memory, is `memory`; did you mean `Memory`?",
    ),
    (
        "volumes: [{name: v, configMap: {name: m, defaultMode: 644}}]",
        "volumes[0].configMap.defaultMode",
        "must be from 0 to 0777",
    ),
    (
        "volumes: [{name: v, configMap: {}}]",
        "volumes[0].configMap.name",
        "is required",
    ),
    (
        "volumes: [{name: v, configMap: {name: m, items: [{key: a, path: ../a}]}}]",
        "volumes[0].configMap.items[0].path",
        "must be a relative path without `..`",
    ),
    (
        "securityContext: {sysctls: [{name: kernel.shmmax, value: \"1\"}]}",
        "securityContext.sysctls[0].name",
        "not supported yet",
    ),
    (
        "securityContext: {fsGroupChangePolicy: Never}",
        "securityContext.fsGroupChangePolicy",
        "must be Always or OnRootMismatch",
    ),
    (
        "securityContext: {supplementalGroups: [4000000000]}",
        "securityContext.supplementalGroups[0]",
        "must be from 0 to 2147483647",
    ),
];

/// A deployment's spec, and the one refusal (path below the spec).
const DEPLOYMENT: &[(&str, &str, &str)] = &[
    ("replicas: -1", "replicas", "must be at least 0, is -1"),
    (
        "strategy: {type: Rolling}",
        "strategy.type",
        "must be RollingUpdate or Recreate",
    ),
    (
        "strategy: {type: Recreate, rollingUpdate: {maxSurge: 1}}",
        "strategy.rollingUpdate",
        "is for type: RollingUpdate only",
    ),
    (
        "strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 0%}}",
        "strategy.rollingUpdate.maxUnavailable",
        "must not be 0 with maxSurge: 0",
    ),
    (
        "strategy: {rollingUpdate: {maxUnavailable: 101%}}",
        "strategy.rollingUpdate.maxUnavailable",
        "must not be more than 100%",
    ),
    (
        "strategy: {rollingUpdate: {maxSurge: half}}",
        "strategy.rollingUpdate.maxSurge",
        "must be a number or a percentage such as 25%",
    ),
    (
        "minReadySeconds: 10, progressDeadlineSeconds: 10",
        "progressDeadlineSeconds",
        "must be more than minReadySeconds (10)",
    ),
];

#[test]
fn each_rule_of_containers_refuses_what_it_forbids_and_nothing_else() {
    for (fields, path, message) in CONTAINER {
        check(
            &pod(&format!(", {fields}"), ""),
            &format!("spec.containers[0].{path}"),
            message,
        );
    }
}

#[test]
fn each_rule_of_pods_refuses_what_it_forbids_and_nothing_else() {
    for (fields, path, message) in SPEC {
        check(&pod("", &format!(", {fields}")), &format!("spec.{path}"), message);
    }
}

#[test]
fn each_rule_of_deployments_refuses_what_it_forbids_and_nothing_else() {
    for (fields, path, message) in DEPLOYMENT {
        check(
            &deployment(&format!(", {fields}"), "", "i"),
            &format!("spec.{path}"),
            message,
        );
    }
    check(
        &deployment("", ", restartPolicy: Never", "i"),
        "spec.template.spec.restartPolicy",
        "must be Always here",
    );
    check(
        &deployment("", "", "I"),
        "spec.template.spec.containers[0].image",
        "`I` is not a repository name",
    );
    let other = deployment("", "", "i").replace("labels: {a: b}", "labels: {a: c}");
    check(
        &other,
        "spec.template.metadata.labels",
        "do not match the selector `a=b`",
    );
    let all = deployment("", "", "i").replace("{matchLabels: {a: b}}", "{}");
    check(&all, "spec.selector", "must not be empty");
}

#[test]
fn mounts_are_checked_against_each_other() {
    let with = |mounts: &str| pod(&format!(", volumeMounts: [{mounts}]"), ", volumes: [{name: v}]");
    for (mounts, path, message) in [
        (
            "{name: v, mountPath: /a}, {name: v, mountPath: /a/}",
            "[1].mountPath",
            "`/a/` is mounted twice",
        ),
        (
            "{name: v, mountPath: a}",
            "[0].mountPath",
            "must be an absolute path",
        ),
        ("{name: v, mountPath: /}", "[0].mountPath", "must not be the root"),
        (
            "{name: v, mountPath: /a, subPath: ../b}",
            "[0].subPath",
            "must be a relative path without `..`",
        ),
    ] {
        check(
            &with(mounts),
            &format!("spec.containers[0].volumeMounts{path}"),
            message,
        );
    }
}

#[test]
fn metadata_is_checked() {
    let map = |meta: &str, data: &str| {
        format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{{meta}}}, {data}}}\n")
    };
    for (meta, data, path, message) in [
        ("labels: {}", "data: {}", "metadata.name", "is required"),
        (
            "name: a, namespace: A",
            "data: {}",
            "metadata.namespace",
            "`A` is not a DNS-1123 label",
        ),
        (
            "name: a, labels: {a/b/c: d}",
            "data: {}",
            "metadata.labels[a/b/c]",
            "`b/c` may have letters",
        ),
        (
            "name: a, annotations: {\"a b\": d}",
            "data: {}",
            "metadata.annotations[a b]",
            "`a b` may have letters",
        ),
        ("name: a", "data: {a/b: c}", "data[a/b]", "`a/b` may have letters"),
        (
            "name: a",
            "data: {a: c}, binaryData: {a: YQ==}",
            "binaryData[a]",
            "the same key is in data",
        ),
        (
            "name: a",
            "binaryData: {a: \"%\"}",
            "binaryData[a]",
            "must be base64",
        ),
        (
            "name: a, creationTimestamp: yesterday",
            "data: {}",
            "metadata.creationTimestamp",
            "must be a time such as",
        ),
        (
            "name: a, generation: 1.5",
            "data: {}",
            "metadata.generation",
            "must be a whole number",
        ),
    ] {
        check(&map(meta, data), path, message);
    }
    let slow = pod("", "").replace(
        "name: p",
        "name: p, annotations: {kubernetes.io/egress-bandwidth: 10}",
    );
    check(
        &slow,
        "metadata.annotations[kubernetes.io/egress-bandwidth]",
        "must be a text, is a number",
    );
    let armored = pod("", "").replace(
        "name: p",
        "name: p, annotations: {container.apparmor.security.beta.kubernetes.io/c: localhost/a}",
    );
    check(
        &armored,
        "metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]",
        "not supported yet: write securityContext.appArmorProfile",
    );
    let owner = "{apiVersion: v1, kind: Node, name: o, uid: u, controller: true}";
    check(
        &map(
            &format!("name: a, ownerReferences: [{owner}, {owner}]"),
            "data: {}",
        ),
        "metadata.ownerReferences[1].controller",
        "only one owner can be the controller",
    );
    let slow = slow.replace("bandwidth: 10", "bandwidth: \"10\"");
    check(
        &slow,
        "metadata.annotations[kubernetes.io/egress-bandwidth]",
        "must be from 1k to 1P",
    );
}
