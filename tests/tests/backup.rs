//! A cluster is backed up while it is written to, and comes back in another one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use proto::state::v1::Key;
use rpc::v1::GetRequest;
use rpc::v1::api_client::ApiClient;
use serde_json::Value;
use tests::{Access, Cluster, can_run, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

/// A value that a search finds nowhere else, and what of its base64 does not hang on what is around it, for each of three
/// alignments.
const WORDS: [&str; 4] = [
    "zq9-hidden-zq9",
    "enE5LWhpZGRlbi16",
    "cTktaGlkZGVuLXpx",
    "OS1oaWRkZW4tenE5",
];

const OBJECTS: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {part: kept}}
---
apiVersion: v1
kind: Secret
metadata: {name: login, namespace: shop, labels: {part: kept}}
stringData: {password: zq9-hidden-zq9}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop, labels: {part: kept}}
data: {colour: blue}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: builder, namespace: shop, labels: {part: kept}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: shop, labels: {part: kept}}
rules:
- {apiGroups: [''], resources: [pods], verbs: [get, list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: readers, namespace: shop, labels: {part: kept}}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects:
- {kind: User, apiGroup: rbac.authorization.k8s.io, name: ann}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {part: kept}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: 'hello:1', command: [sleep, '3600']}]}
";

/// Kinds of which every byte comes back; a Deployment's status changes.
const KINDS: [&str; 6] = [
    "namespaces",
    "secrets",
    "configmaps",
    "serviceaccounts",
    "roles",
    "rolebindings",
];

fn kept(cluster: &Cluster) -> Vec<String> {
    let yaml = |kind: &&str| cluster.ok(&["get", kind, "-A", "-l", "part=kept", "-o", "yaml"]);
    KINDS.iter().map(yaml).collect()
}

/// What a Deployment is, without how it goes.
fn deployment(cluster: &Cluster) -> (Value, Value) {
    let mut web = cluster.get("deployment/web");
    (web["metadata"]["uid"].take(), web["spec"].take())
}

fn map(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{part: written}}}}\ndata: {{key: value}}\n"
    )
}

/// Names of the ConfigMaps that were written one after the other.
fn written(cluster: &Cluster) -> Vec<usize> {
    let maps = cluster.list("configmaps", "part=written");
    let number = |map: &Value| map["metadata"]["name"].as_str()?.strip_prefix("w-")?.parse().ok();
    let mut numbers: Vec<usize> = maps.iter().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

fn is_noted(cluster: &Cluster, call: &str) -> bool {
    (1..=3).any(|number| {
        let command = cluster.process(&format!("controller-{number}")).command;
        let at = command
            .iter()
            .position(|word| word == "--data-dir")
            .expect("--data-dir");
        let log = PathBuf::from(&command[at + 1]).join("audit/audit.log");
        let text = fs::read_to_string(log).unwrap_or_default();
        for word in WORDS {
            assert!(!text.contains(word), "a secret is in the audit log");
        }
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .any(|line| line["call"] == call && line["outcome"] == "Ok")
    })
}

/// A backup that is damaged in each of many ways is refused, with the place.
fn damage_is_found(cluster: &Cluster, file: &Path, key: &Path) {
    let bytes = fs::read(file).expect("the backup");
    let damaged = cluster.directory().join("damaged");
    let damaged_path = damaged.display().to_string();
    let key = key.display().to_string();
    let refused = |bytes: &[u8], words: &[&str], what: &str| {
        fs::write(&damaged, bytes).expect("a file");
        let output = cluster.ctl(&[&["cluster", "verify", &damaged_path], words].concat());
        assert_eq!(output.code, 1, "{what}\n{}{}", output.stdout, output.stderr);
        assert!(output.stderr.contains(&damaged_path), "{what}: {}", output.stderr);
        output.stderr
    };
    for words in [&[][..], &["--key-file", &key]] {
        for place in [0, 12, 90, bytes.len() / 2, bytes.len() - 40, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[place] ^= 4;
            refused(&flipped, words, &format!("byte {place}"));
        }
        for len in [0, 50, 100, bytes.len() / 2, bytes.len() - 1] {
            let error = refused(&bytes[..len], words, &format!("cut at {len}"));
            assert!(error.contains("at byte"), "cut at {len}: {error}");
        }
    }
}

#[test]
fn a_backup_made_while_writes_go_on_brings_a_cluster_back_in_another() {
    if !can_run(
        "a_backup_made_while_writes_go_on_brings_a_cluster_back_in_another",
        &["ip", "nft"],
    ) {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (file, key) = (directory.path().join("backup"), directory.path().join("key"));
    let (file_path, key_path) = (file.display().to_string(), key.display().to_string());
    let old = Cluster::up(3, 1);
    old.apply(OBJECTS);
    old.all_ready("app=web", 2, MINUTE);
    old.ok(&["label", "deployment/web", "team=red"]);

    let without_key = old.ctl(&["cluster", "backup", &file_path]);
    assert_eq!(without_key.code, 2);
    assert!(
        without_key.stderr.contains("--new-key-file"),
        "{}",
        without_key.stderr
    );
    assert!(!file.exists());

    // Somebody writes one object after the other meanwhile; all that was acknowledged before is in the backup.
    let (count, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let acknowledged = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let number = count.load(Ordering::Relaxed);
                let path = old.manifest("written.yaml", &map(&format!("w-{number}")));
                old.ok(&["apply", "-f", &path.display().to_string()]);
                count.store(number + 1, Ordering::Relaxed);
            }
        });
        wait_for("some writes", MINUTE, || {
            (count.load(Ordering::Relaxed) > 4).then_some(())
        });
        let acknowledged = count.load(Ordering::Relaxed);
        let made = old.ctl(&["cluster", "backup", &file_path, "--new-key-file", &key_path]);
        let during = count.load(Ordering::Relaxed);
        wait_for("a write after the backup", MINUTE, || {
            (count.load(Ordering::Relaxed) > during + 1).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        assert_eq!(made.code, 0, "{}{}", made.stdout, made.stderr);
        acknowledged
    });
    let mode = |path: &Path| fs::metadata(path).expect("a file").mode() & 0o777;
    assert_eq!((mode(&file), mode(&key)), (0o600, 0o600));
    assert_eq!(
        fs::read_dir(directory.path()).expect("a directory").count(),
        2,
        "nothing else is left"
    );
    let bytes = fs::read(&file).expect("the backup");
    for word in WORDS {
        let found = bytes.windows(word.len()).any(|window| window == word.as_bytes());
        assert!(!found, "{word} is in the backup");
    }
    let again = old.ctl(&["cluster", "backup", &file_path, "--key-file", &key_path]);
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("--force"), "{}", again.stderr);

    let told = old.ok(&["cluster", "verify", &file_path, "--key-file", &key_path]);
    assert!(
        told.contains("The backup is whole") && told.contains("Secret"),
        "{told}"
    );
    assert!(old.ok(&["cluster", "verify", &file_path]).contains("Cluster:"));
    damage_is_found(&old, &file, &key);
    let occupied = old.ctl(&["cluster", "restore", &file_path, "--key-file", &key_path]);
    assert_eq!(occupied.code, 1);
    assert!(occupied.stderr.contains("not empty"), "{}", occupied.stderr);
    assert!(is_noted(&old, "Backup"));

    let was = kept(&old);
    assert!(was[1].contains("enE5LWhpZGRlbi16cTk="), "{}", was[1]);
    let web = deployment(&old);
    let history = old.ok(&["history", "deployment/web"]);
    drop(old);

    let new = Cluster::up(3, 1);
    let other = new.directory().join("other-key");
    fs::write(&other, format!("{}\n", "5a".repeat(32))).expect("a key");
    let wrong = new.ctl(&[
        "cluster",
        "restore",
        &file_path,
        "--key-file",
        &other.display().to_string(),
    ]);
    assert_eq!(wrong.code, 1);
    assert!(wrong.stderr.contains("sealed with key"), "{}", wrong.stderr);
    new.ok(&["cluster", "restore", &file_path, "--key-file", &key_path]);
    assert_eq!(kept(&new), was);
    assert_eq!(deployment(&new), web);
    assert_eq!(new.ok(&["history", "deployment/web"]), history);
    let numbers = written(&new);
    assert!(
        numbers.len() >= acknowledged,
        "{numbers:?}: {acknowledged} were acknowledged before"
    );
    assert_eq!(
        numbers,
        (0..numbers.len()).collect::<Vec<_>>(),
        "one is in it, and an earlier one is not"
    );
    every_member_has_it(&new);
    // Its pods run again, on the node that has joined here.
    for pod in new.all_ready("app=web", 2, MINUTE) {
        assert_eq!(pod["spec"]["nodeName"], "node-1");
    }
    let twice = new.ctl(&["cluster", "restore", &file_path, "--key-file", &key_path]);
    assert_eq!(twice.code, 1);
    assert!(is_noted(&new, "Restore"));
    // It goes on as any cluster.
    new.apply(&map("later"));
    new.ok(&["scale", "deployment/web", "--replicas", "1"]);
    new.all_ready("app=web", 1, MINUTE);
}

fn every_member_has_it(cluster: &Cluster) {
    let access = Access::of(cluster);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    for member in 0..access.endpoints.len() {
        wait_for("each member to have the Secret", MINUTE, || {
            runtime.block_on(async {
                let mut api = ApiClient::new(access.channel(member).expect("a channel"));
                let request = GetRequest {
                    key: Some(Key {
                        kind: "Secret".to_owned(),
                        namespace: "shop".to_owned(),
                        name: "login".to_owned(),
                    }),
                    stale: true, // what this one has itself
                };
                api.get(request).await.ok().map(|_| ())
            })
        });
    }
}
