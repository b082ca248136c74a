//! People with certificates of their own: what roles let them do, and what is noted of it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tests::{Cluster, can_run, wait_for};

/// Longer than a leader takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

const RIGHTS: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: devs, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit}
subjects:
- {kind: Group, apiGroup: rbac.authorization.k8s.io, name: devs}
";

const SECRET: &str = "\
apiVersion: v1
kind: Secret
metadata: {name: login}
stringData: {password: zq9-hidden-zq9}
";

/// The audit log of a controller.
fn audit_log(cluster: &Cluster, controller: &str) -> PathBuf {
    let command = cluster.process(controller).command;
    let at = command
        .iter()
        .position(|word| word == "--data-dir")
        .expect("--data-dir");
    PathBuf::from(&command[at + 1]).join("audit/audit.log")
}

#[test]
fn a_user_does_in_a_namespace_what_a_role_allows_and_all_of_it_is_noted() {
    if !can_run(
        "a_user_does_in_a_namespace_what_a_role_allows_and_all_of_it_is_noted",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    cluster.apply(RIGHTS);
    cluster.ok(&["auth", "issue", "ann", "--group", "devs", "--ttl", "1h"]);
    let again = cluster.ctl(&["auth", "issue", "ann"]);
    assert_eq!(again.code, 1, "a configuration was written over");
    let ann = |words: &[&str]| cluster.ctl_as("ann.yaml", words);

    let who = ann(&["auth", "whoami"]);
    assert_eq!(who.code, 0, "{}", who.stderr);
    assert!(
        who.stdout.contains("ann") && who.stdout.contains("devs"),
        "{}",
        who.stdout
    );
    // The binding names a default role, which the leader makes within a moment.
    let can = |words: &[&str]| ann(&[&["auth", "can-i"], words].concat());
    wait_for("the role edit holds", LIMIT, || {
        (can(&["create", "secrets", "-n", "shop"]).code == 0).then_some(())
    });
    for (code, words) in [
        (1, &["create", "secrets"][..]),
        (1, &["list", "nodes"]),
        (1, &["create", "rolebindings", "-n", "shop"]),
        (0, &["create", "pods", "--subresource", "exec", "-n", "shop"]),
    ] {
        let answer = can(words);
        assert_eq!(answer.code, code, "{words:?}: {}{}", answer.stdout, answer.stderr);
    }
    let as_ann = [
        "auth",
        "can-i",
        "create",
        "secrets",
        "-n",
        "shop",
        "--as",
        "ann",
        "--as-group",
        "devs",
    ];
    assert!(cluster.ok(&as_ann).starts_with("yes"));

    let secret = cluster.manifest("secret.yaml", SECRET).display().to_string();
    let made = ann(&["apply", "-n", "shop", "-f", &secret]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let refused = ann(&["apply", "-f", &secret]);
    assert_eq!(refused.code, 1);
    assert!(
        refused
            .stderr
            .contains("user ann may not create secrets login in namespace default"),
        "{}",
        refused.stderr
    );
    let rights = cluster.manifest("rights.yaml", RIGHTS).display().to_string();
    assert_eq!(
        ann(&["apply", "-f", &rights]).code,
        1,
        "she gave rights to herself"
    );
    assert_eq!(ann(&["get", "nodes"]).code, 1);

    let log = audit_log(&cluster, "controller-1");
    let lines = wait_for("the refusals are noted", LIMIT, || {
        let text = fs::read_to_string(&log).ok()?;
        let lines: Vec<Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|line: &Value| line["user"] == "ann")
            .collect();
        lines.iter().any(|line| line["call"] == "List").then_some(lines)
    });
    let about = |decision: &str, namespace: &str| {
        lines.iter().any(|line| {
            line["decision"] == decision
                && line["call"] == "Apply"
                && line["objects"][0]["resource"] == "secrets"
                && line["objects"][0]["namespace"] == namespace
                && line["groups"][0] == "devs"
        })
    };
    assert!(
        about("allowed", "shop") && about("refused", "default"),
        "{lines:#?}"
    );
    let text = fs::read_to_string(&log).expect("the audit log");
    for value in ["zq9-hidden-zq9", "enE5LWhpZGRlbi16cTk="] {
        assert!(!text.contains(value), "a secret is in the audit log");
    }
}
