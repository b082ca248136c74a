//! Service accounts: what their tokens open, how pods get theirs, and what takes them away.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Cluster, can_run, wait_for};

/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

const RIGHTS: &str = "\
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: maps}
rules:
- {apiGroups: [''], resources: [configmaps], verbs: [get, list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: maps}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: maps}
subjects:
- {kind: ServiceAccount, name: robot, namespace: default}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: app}
data: {colour: green}
---
apiVersion: v1
kind: Secret
metadata: {name: login}
stringData: {password: hunter2}
";

const PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

fn pod(name: &str, automount: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  serviceAccountName: robot\n  {automount}\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: hello:1\n    \
         command: [sleep, '3600']\n    securityContext: {{runAsUser: 1000}}\n"
    )
}

/// A configuration that shows a token in place of a certificate.
fn config(cluster: &Cluster, name: &str, credential: &str, value: &str) -> PathBuf {
    let own = fs::read_to_string(cluster.directory().join("config.yaml")).expect("the configuration");
    let own: Value = serde_saphyr::from_str(&own).expect("YAML");
    let context = &own["contexts"][0];
    let mut made = json!({
        "name": "robot", "endpoints": context["endpoints"], "ca": context["ca"],
    });
    made[credential] = value.into();
    let path = cluster.directory().join(name);
    let made = json!({ "current-context": "robot", "contexts": [made] });
    fs::write(&path, made.to_string()).expect("a file");
    path
}

/// What a role lets the account do is done, and nothing else.
fn opens_config_maps_alone(cluster: &Cluster, config: &Path) {
    let robot = |words: &[&str]| cluster.ctl_as(config, words);
    let who = robot(&["auth", "whoami"]);
    assert_eq!(who.code, 0, "{}", who.stderr);
    for word in ["system:serviceaccount:default:robot", "system:serviceaccounts"] {
        assert!(who.stdout.contains(word), "{}", who.stdout);
    }
    let map = robot(&["get", "configmap/app", "-o", "yaml"]);
    assert!(
        map.code == 0 && map.stdout.contains("green"),
        "{}{}",
        map.stdout,
        map.stderr
    );
    for words in [
        &["get", "secret/login"][..],
        &["get", "pods"],
        &["get", "nodes"],
        &["get", "configmaps", "-A"],
        &["create", "token", "robot"],
        &["delete", "configmap/app"],
    ] {
        let refused = robot(words);
        assert_eq!(refused.code, 1, "{words:?}: {}", refused.stdout);
        assert!(
            refused
                .stderr
                .contains("user system:serviceaccount:default:robot may not"),
            "{words:?}: {}",
            refused.stderr
        );
    }
}

#[test]
fn a_token_opens_what_roles_give_its_account_and_ends_with_it() {
    if !can_run(
        "a_token_opens_what_roles_give_its_account_and_ends_with_it",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply(RIGHTS);
    let token = cluster.ok(&["create", "token", "robot", "--duration", "10m"]);
    let token = token.trim();
    assert_eq!(token.split('.').count(), 3, "the token and nothing else: {token}");
    let by_token = config(&cluster, "token.yaml", "token", token);
    opens_config_maps_alone(&cluster, &by_token);

    for (name, automount) in [
        ("asking", "automountServiceAccountToken: true"),
        ("silent", ""),
        ("declining", "automountServiceAccountToken: false"),
    ] {
        cluster.apply(&pod(name, automount));
    }
    let inside = |pod: &str, script: &str| {
        let output = cluster.ok(&["exec", pod, "--", "sh", "-c", script]);
        output.trim().to_owned()
    };
    for name in ["silent", "declining"] {
        cluster.ready(name);
        assert_eq!(
            inside(name, &format!("ls {PATH} 2>/dev/null || echo none")),
            "none"
        );
    }
    cluster.ready("asking");
    assert_eq!(
        inside("asking", &format!("ls {PATH}")),
        "ca.crt\nnamespace\ntoken"
    );
    assert_eq!(inside("asking", &format!("cat {PATH}/namespace")), "default");
    assert!(inside("asking", &format!("cat {PATH}/ca.crt")).contains("BEGIN CERTIFICATE"));
    let mount = inside("asking", &format!("grep ' {PATH} \\| /run/secrets' /proc/mounts"));
    assert!(
        mount.contains("tmpfs") && mount.contains("ro,"),
        "a token lies on a disk, or may be written over: {mount}"
    );
    let read = || {
        let shown = cluster.ctl(&["exec", "asking", "--", "cat", &format!("{PATH}/token")]);
        (shown.code == 0).then(|| shown.stdout.trim().to_owned())
    };
    let own = read().expect("the pod's token");
    let file = cluster.directory().join("token");
    let by_file = config(&cluster, "file.yaml", "tokenFile", &file.display().to_string());
    fs::write(&file, &own).expect("a file");
    opens_config_maps_alone(&cluster, &by_file);

    // The node's agent begins anew, with no token in its memory.
    cluster.kill("node-1");
    cluster.bring_up();
    let renewed = wait_for("a new token in the volume", LIMIT, || {
        read().filter(|token| *token != own)
    });
    fs::write(&file, &renewed).expect("a file");
    opens_config_maps_alone(&cluster, &by_file);

    // It ends with its pod; one that was made for nobody's pod goes on.
    cluster.ok(&["delete", "pod/asking", "--force"]);
    let refused = wait_for("the pod's token is refused", LIMIT, || {
        let refused = cluster.ctl_as(&by_file, &["get", "configmap/app"]);
        (refused.code != 0).then_some(refused.stderr)
    });
    assert!(refused.contains("the pod asking, which has ended"), "{refused}");
    opens_config_maps_alone(&cluster, &by_token);
    cluster.ok(&["delete", "serviceaccount/robot"]);
    let refused = cluster.ctl_as(&by_token, &["get", "configmap/app"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("does not accept the token") && refused.stderr.contains("no longer there"),
        "{}",
        refused.stderr
    );

    let command = cluster.process("controller-1").command;
    let at = command.iter().position(|word| word == "--data-dir");
    let at = at.expect("--data-dir");
    let audit = Path::new(&command[at + 1]).join("audit/audit.log");
    let text = wait_for("the creation of the token is noted", LIMIT, || {
        let text = fs::read_to_string(&audit).expect("the audit log");
        text.contains("CreateServiceAccountToken").then_some(text)
    });
    for secret in [token, &own, &renewed] {
        let signature = secret.rsplit('.').next().expect("a signature");
        assert!(!text.contains(signature), "a token is in the audit log");
    }
}

#[test]
fn a_pod_waits_for_its_account_and_says_so() {
    if !can_run("a_pod_waits_for_its_account_and_says_so", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply(RIGHTS);
    cluster.ok(&["cordon", "node-1"]);
    cluster.apply(&pod("late", "automountServiceAccountToken: true"));
    cluster.ok(&["delete", "serviceaccount/robot"]);
    cluster.ok(&["uncordon", "node-1"]);
    wait_for("the pod to say what it waits for", LIMIT, || {
        let why = cluster.ok(&["why", "pod/late"]);
        why.contains("serviceaccount \"robot\" not found").then_some(())
    });
    let events = cluster.ok(&["events"]);
    assert!(events.contains("FailedMount"), "{events}");
    cluster.apply(RIGHTS);
    cluster.ready("late");
    let token = cluster.ok(&["exec", "late", "--", "cat", &format!("{PATH}/token")]);
    let by_token = config(&cluster, "token.yaml", "token", token.trim());
    opens_config_maps_alone(&cluster, &by_token);
}
