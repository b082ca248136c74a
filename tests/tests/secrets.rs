//! Secrets reach the containers that name them, and nothing else: no disk, no table, no log.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::{Cluster, can_run, machine, wait_for};

/// Values that a search finds nowhere else.
const VALUES: [&str; 3] = ["xq7-first-xq7", "xq7-other-xq7", "xq7-later-xq7"];
/// The same in base64, as they are at the beginning of a group of three bytes and after one or two others.
const ENCODED: [&str; 9] = [
    "eHE3LWZpcnN0LXhx",
    "Ny1maXJzdC14cTc",
    "cTctZmlyc3QteHE3",
    "eHE3LW90aGVyLXhx",
    "Ny1vdGhlci14cTc",
    "cTctb3RoZXIteHE3",
    "eHE3LWxhdGVyLXhx",
    "Ny1sYXRlci14cTc",
    "cTctbGF0ZXIteHE3",
];

fn manifest(password: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: login\nstringData:\n  password: {password}\n\
         data:\n  user: eHE3LW90aGVyLXhxNw==\n"
    )
}

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: reader
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: hello:1
      command: ["sleep", "3600"]
      env:
        - name: PASSWORD
          valueFrom:
            secretKeyRef: {name: login, key: password}
      envFrom:
        - prefix: LOGIN_
          secretRef: {name: login}
      volumeMounts:
        - {name: login, mountPath: /login}
  volumes:
    - name: login
      secret: {secretName: login, defaultMode: 0400}
"#;

/// Files below a directory, on its own file system, in which one of the words is.
fn containing(directory: &Path, words: &[&str], found: &mut Vec<String>) {
    let device = |path: &Path| fs::symlink_metadata(path).map(|meta| meta.dev());
    let Ok(own) = device(directory) else { return };
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        // It may be gone by now.
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.is_dir() && device(&path).is_ok_and(|device| device == own) {
            containing(&path, words, found);
        } else if meta.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            let has = |word: &&&str| bytes.windows(word.len()).any(|window| window == word.as_bytes());
            found.extend(
                words
                    .iter()
                    .find(has)
                    .map(|word| format!("{word} in {}", path.display())),
            );
        }
    }
}

#[test]
fn a_secret_reaches_its_containers_and_no_disk() {
    if !can_run("a_secret_reaches_its_containers_and_no_disk", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    let [first, other, later] = VALUES;
    cluster.apply(POD);
    let why = wait_for(
        "the pod to say what it waits for",
        Duration::from_secs(60),
        || {
            let why = cluster.ok(&["why", "pod/reader"]);
            why.contains("secret \"login\" not found").then_some(why)
        },
    );
    assert!(why.contains("login"), "{why}");
    cluster.apply(&manifest(first));
    cluster.ready("reader");
    let inside = |script: &str| {
        let output = cluster.ok(&["exec", "reader", "--", "sh", "-c", script]);
        output.trim().to_owned()
    };
    assert_eq!(inside("echo $PASSWORD $LOGIN_user"), format!("{first} {other}"));
    assert_eq!(
        inside("cat /login/password /login/user"),
        format!("{first}{other}")
    );
    assert_eq!(inside("stat -Lc %a /login/user"), "400");
    assert!(
        inside("grep ' /login ' /proc/mounts").contains("tmpfs"),
        "a secret lies on a disk"
    );
    assert_eq!(inside("echo x >/login/user || echo refused"), "refused");

    // The node's agent begins anew: running containers keep what they have.
    cluster.kill("node-1");
    cluster.bring_up();
    cluster.ready("reader");
    cluster.apply(&manifest(later));
    wait_for("the new value in the volume", Duration::from_secs(90), || {
        // Until the agent has its session again, nobody can be asked.
        let shown = cluster.ctl(&["exec", "reader", "--", "cat", "/login/password"]);
        (shown.code == 0 && shown.stdout.trim() == later).then_some(())
    });

    // With a new key to write with, what the old one sealed is read on.
    let config = Path::new("/var/lib/bulkhead")
        .join(&cluster.name)
        .join("controller-1/config");
    let rotated = Command::new(machine::binaries().join("bulkhead-controller"))
        .args(["rotate-storage-key", "--config-dir"])
        .arg(&config)
        .output()
        .expect("the controller's binary");
    assert!(rotated.status.success(), "{rotated:?}");
    cluster.kill("controller-1");
    cluster.bring_up();
    let shown = cluster.ok(&["get", "secret/login", "-o", "yaml"]);
    assert!(
        shown.contains("user: eHE3LW90aGVyLXhxNw==") && !shown.contains("stringData"),
        "{shown}"
    );
    for words in [
        ["get", "secrets"],
        ["describe", "secret/login"],
        ["describe", "pod/reader"],
    ] {
        let shown = cluster.ok(&words);
        let told = VALUES
            .iter()
            .chain(&ENCODED)
            .find(|value| shown.contains(**value));
        assert_eq!(told, None, "{words:?}:\n{shown}");
    }
    let mut found = Vec::new();
    for top in ["/var/lib", "/var/log"] {
        let directory = Path::new(top).join("bulkhead").join(&cluster.name);
        assert!(directory.is_dir(), "{}", directory.display());
        containing(&directory, &[&VALUES[..], &ENCODED[..]].concat(), &mut found);
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn what_a_secret_may_not_be_is_refused_without_its_values() {
    if !can_run(
        "what_a_secret_may_not_be_is_refused_without_its_values",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    let refused = |text: &str, told: &str| {
        let path = cluster.manifest("secret.yaml", text);
        let output = cluster.ctl(&["apply", "-f", &path.display().to_string()]);
        assert_eq!(output.code, 1, "{}{}", output.stdout, output.stderr);
        assert!(output.stderr.contains(told), "{}", output.stderr);
        assert!(!output.stderr.contains(VALUES[0]), "{}", output.stderr);
    };
    let plain = manifest(VALUES[0]);
    refused(
        &format!("{plain}type: kubernetes.io/tls\n"),
        "data[tls.crt]: is required by type kubernetes.io/tls",
    );
    refused(
        &plain.replace("eHE3LW90aGVyLXhxNw==", "not base64"),
        "secret.yaml:8",
    );
    cluster.apply(&format!("{plain}immutable: true\n"));
    refused(&plain.replace("user:", "name:"), "immutable is true");
    refused(
        &format!("{plain}immutable: true\ntype: mine\n"),
        "type: cannot change",
    );
    cluster.ok(&["delete", "secret/login"]);
}
