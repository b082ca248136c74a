//! What cannot be understood is refused with its place, and nothing of it is applied.

use tests::{Cluster, can_run};

const GOOD: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: good\n---\n";

fn pod_with(line: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n    - name: main\n      \
         image: hello:1\n      {line}\n"
    )
}

#[test]
fn bad_manifests_are_refused_with_their_place() {
    if !can_run("bad_manifests_are_refused_with_their_place", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    let nested = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {}\n",
        "[".repeat(10_000)
    );
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n";
    let cases: Vec<(&str, String, &[&str])> =
        vec![
        ("unknown field", pod_with("imge: x"), &["bad.yaml:9:7", "spec.containers[0].imge", "image"]),
        ("wrong type", pod_with("stdin: [1]"), &["bad.yaml:9", "stdin"]),
        ("duplicate key", pod_with("image: again"), &["bad.yaml:9:7", "image"]),
        ("tab", pod_with("\tenv: []"), &["bad.yaml:8", "tab"]),
        (
            "bad quantity",
            pod_with("resources: {limits: {cpu: 5x}}"),
            &["bad.yaml:9", "spec.containers[0].resources.limits", "5x"],
        ),
        ("deep nesting", nested, &["bad.yaml:3", "deep"]),
        ("aliases", bomb.to_owned(), &["bad.yaml:"]),
        (
            "bad name",
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: Not_A_Name\n".to_owned(),
            &["bad.yaml:4", "metadata.name", "Not_A_Name"],
        ),
        (
            "not supported",
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n".to_owned(),
            &["bad.yaml:", "Service"],
        ),
        (
            "kubernetes' own field",
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  dnsPolicy: None\n  containers: []\n"
                .to_owned(),
            &["bad.yaml:6:3", "spec.dnsPolicy", "not supported"],
        ),
    ];
    for (what, text, expected) in cases {
        let path = cluster.manifest("bad.yaml", &text);
        let output = cluster.ctl(&["apply", "-f", &path.display().to_string()]);
        assert_eq!(output.code, 1, "{what}: {}{}", output.stdout, output.stderr);
        for part in expected {
            assert!(
                output.stderr.contains(part),
                "{what}: no `{part}` in\n{}",
                output.stderr
            );
        }
    }
    let path = cluster.manifest("bad.yaml", "");
    std::fs::write(&path, b"apiVersion: v1\nkind: \xff\xfe\n").expect("a file");
    let output = cluster.ctl(&["apply", "-f", &path.display().to_string()]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("UTF-8"), "{}", output.stderr);
}

#[test]
fn a_refused_apply_changes_nothing_and_names_every_error() {
    if !can_run(
        "a_refused_apply_changes_nothing_and_names_every_error",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    let text = format!("{GOOD}{}---\n{}", pod_with("imge: x"), pod_with("portz: []"));
    let path = cluster.manifest("mixed.yaml", &text);
    let output = cluster.ctl(&["apply", "-f", &path.display().to_string()]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("mixed.yaml:14:7"), "{}", output.stderr);
    assert!(output.stderr.contains("mixed.yaml:24:7"), "{}", output.stderr);
    assert_ne!(
        cluster.ctl(&["get", "configmap/good"]).code,
        0,
        "half of it was applied"
    );
    // What the server refuses takes its neighbours along too.
    let text =
        format!("{GOOD}apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: lost\n  namespace: nowhere\n");
    let path = cluster.manifest("nowhere.yaml", &text);
    let output = cluster.ctl(&["apply", "-f", &path.display().to_string()]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("nowhere"), "{}", output.stderr);
    assert_ne!(
        cluster.ctl(&["get", "configmap/good"]).code,
        0,
        "half of it was applied"
    );
}

#[test]
fn a_huge_file_is_refused_without_being_read() {
    if !can_run("a_huge_file_is_refused_without_being_read", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    let path = cluster.manifest("huge.yaml", "");
    // 100 MiB that take no room on the disk.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("a file");
    file.set_len(100 << 20).expect("a length");
    let output = cluster.ctl(&["apply", "-f", &path.display().to_string()]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("huge.yaml"), "{}", output.stderr);
}

#[test]
fn a_dry_run_changes_nothing() {
    if !can_run("a_dry_run_changes_nothing", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    let path = cluster.manifest("good.yaml", GOOD);
    let path = path.display().to_string();
    cluster.ok(&["apply", "--dry-run=server", &path]);
    assert_ne!(cluster.ctl(&["get", "configmap/good"]).code, 0);
    cluster.ok(&["apply", &path]);
    let whole = cluster.ok(&["get", "configmap/good", "-o", "yaml"]);
    let again = cluster.manifest("again.yaml", &whole);
    let answer = cluster.ok(&["apply", "-f", &again.display().to_string()]);
    assert!(answer.contains("unchanged"), "{answer}");
}
