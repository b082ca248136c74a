//! Several hands on one object: what an apply leaves alone, what it shows before, who is told to have changed what.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::{Cluster, can_run, kernel, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

fn web(further: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n{further}  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    \
         spec: {{containers: [{{name: main, image: 'hello:1'}}]}}\n"
    )
}

fn map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{key: {value}}}\n---\n")
}

/// A field of an object as the cluster shows it; null where it is not there.
fn shown(cluster: &Cluster, object: &str, path: &str) -> Value {
    let json = cluster.ok(&["get", object, "-o", "json"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    json.pointer(path).cloned().unwrap_or_default()
}

#[test]
fn an_apply_leaves_what_other_verbs_set_and_the_history_names_each() {
    if !can_run(
        "an_apply_leaves_what_other_verbs_set_and_the_history_names_each",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    cluster.apply(&web("  minReadySeconds: 1\n"));
    cluster.ok(&["scale", "deployment/web", "--replicas", "3"]);
    assert!(
        cluster
            .ok(&["label", "deployment/web", "team=red"])
            .contains("deployment/web labeled")
    );
    let again = cluster.ctl(&["label", "deployment/web", "team=blue"]);
    assert_eq!(again.code, 1, "{}{}", again.stdout, again.stderr);
    cluster.ok(&["annotate", "deployment/web", "note=kept"]);
    cluster.ok(&["rollout", "restart", "deployment/web"]);
    let restarted = "/spec/template/metadata/annotations/kubectl.kubernetes.io~1restartedAt";
    let at = shown(&cluster, "deployment/web", restarted);
    assert!(at.is_string(), "{at}");
    cluster.ok(&["set", "image", "deployment/web", "main=hello:2"]);
    cluster.apply(&web(""));
    for (path, expected) in [
        ("/spec/replicas", Value::from(3)),
        ("/spec/minReadySeconds", Value::Null),
        ("/metadata/labels/team", Value::from("red")),
        ("/metadata/annotations/note", Value::from("kept")),
        (restarted, at),
        // Mentioned: taken over.
        ("/spec/template/spec/containers/0/image", Value::from("hello:1")),
    ] {
        assert_eq!(shown(&cluster, "deployment/web", path), expected, "{path}");
    }
    let history = cluster.ok(&["history", "deployment/web"]);
    let lines: Vec<&str> = history.lines().skip(1).collect();
    let verbs = [
        "apply",
        "scale",
        "label",
        "annotate",
        "rollout restart",
        "set image",
        "apply",
    ];
    assert_eq!(lines.len(), verbs.len(), "{history}");
    for (line, verb) in lines.iter().zip(verbs) {
        assert!(
            line.contains(" admin ") && line.contains(verb),
            "{verb} in {line}\n{history}"
        );
    }
    assert!(lines[1].ends_with("spec.replicas"), "{history}");
    let scaled = lines[1].split_whitespace().next().expect("a revision");
    let then = cluster.ok(&["history", "deployment/web", "--revision", scaled, "-o", "json"]);
    let then: Value = serde_json::from_str(&then).expect("JSON");
    assert_eq!(then.pointer("/spec/minReadySeconds"), Some(&Value::from(1)));
    cluster.ok(&["undo", "deployment/web", "--to-revision", scaled]);
    assert_eq!(shown(&cluster, "deployment/web", "/spec/minReadySeconds"), 1);
    cluster.ok(&["undo", "deployment/web"]);
    assert_eq!(
        shown(&cluster, "deployment/web", "/spec/minReadySeconds"),
        Value::Null
    );
    cluster.ok(&["delete", "deployment/web"]);
    assert!(cluster.ok(&["undo", "deployment/web"]).contains("created again"));
    assert_eq!(shown(&cluster, "deployment/web", "/spec/replicas"), 3);
    cluster.ok(&["delete", "deployment/web"]);
    wait_for("its pods are gone", MINUTE, || {
        cluster.list("pods", "app=web").is_empty().then_some(())
    });
}

#[test]
fn what_an_apply_would_do_is_shown_and_what_is_left_out_is_pruned() {
    if !can_run(
        "what_an_apply_would_do_is_shown_and_what_is_left_out_is_pruned",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    let both = cluster
        .manifest("both.yaml", &(map("a", "one") + &map("b", "one")))
        .display()
        .to_string();
    let new = cluster.ctl(&["diff", "-f", &both]);
    assert_eq!(new.code, 1, "{}{}", new.stdout, new.stderr);
    assert!(new.stdout.contains("+  key: one"), "{}", new.stdout);
    let nothing = cluster.ctl(&["get", "configmap/a"]);
    assert_eq!(nothing.code, 1, "a diff changes nothing");
    let set = ["--prune", "--applyset", "maps"];
    cluster.ok(&[&["apply", "-f", &both][..], &set].concat());
    cluster.ok(&["label", "configmap/a", "by=hand"]);
    assert_eq!(
        cluster.ctl(&["diff", "-f", &both]).code,
        1,
        "the label of the set is not in the manifest"
    );
    let changed = cluster
        .manifest("changed.yaml", &map("a", "two"))
        .display()
        .to_string();
    let diff = cluster.ctl(&["diff", "-f", &changed]);
    assert!(
        diff.stdout.contains("-  key: one\n+  key: two\n"),
        "{}",
        diff.stdout
    );
    let bad = cluster
        .manifest("bad.yaml", &map("a", "two").replace("data", "dta"))
        .display()
        .to_string();
    assert!(cluster.ctl(&["diff", "-f", &bad]).code > 1);

    let without = cluster.ctl(&["apply", "-f", &changed, "--prune"]);
    assert_eq!(without.code, 2, "{}{}", without.stdout, without.stderr);
    let server = cluster.ok(&[&["apply", "-f", &changed, "--dry-run=server"][..], &set].concat());
    assert!(server.contains("configmap/b pruned (server dry run)"), "{server}");
    let client = cluster.ok(&["apply", "-f", &changed, "--dry-run=client"]);
    assert!(client.contains("configmap/a configured (dry run)"), "{client}");
    assert_eq!(shown(&cluster, "configmap/a", "/data/key"), "one");
    let diff = cluster.ctl(&[&["diff", "-f", &changed][..], &set].concat());
    assert_eq!(diff.code, 1, "{}{}", diff.stdout, diff.stderr);
    assert!(
        diff.stdout.contains("LIVE/v1.ConfigMap.default.b") && diff.stdout.contains("-kind: ConfigMap\n"),
        "{}",
        diff.stdout
    );
    assert_eq!(shown(&cluster, "configmap/b", "/data/key"), "one");
    let applied = cluster.ok(&[&["apply", "-f", &changed][..], &set].concat());
    assert!(
        applied.contains("configmap/a configured") && applied.contains("configmap/b pruned"),
        "{applied}"
    );
    assert_eq!(cluster.ctl(&["get", "configmap/b"]).code, 1);
    assert_eq!(shown(&cluster, "configmap/a", "/metadata/labels/by"), "hand");
}

#[test]
fn an_edit_keeps_what_came_between_and_opens_again_when_it_is_refused() {
    if !can_run(
        "an_edit_keeps_what_came_between_and_opens_again_when_it_is_refused",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    cluster.apply(&map("a", "one"));
    let edit = |editor: &str| {
        let mut command: Command = cluster.command(&["edit", "configmap/a"]);
        let output = command
            .env_remove("VISUAL")
            .env("EDITOR", editor)
            .output()
            .expect("ctl");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), text)
    };
    let (code, text) = edit("true");
    assert!(code == Some(0) && text.contains("no changes made"), "{text}");
    let (code, text) = edit("sed -i 's/key: one/key: two/'");
    assert!(code == Some(0) && text.contains("configmap/a edited"), "{text}");
    assert_eq!(shown(&cluster, "configmap/a", "/data/key"), "two");
    // Refused; the second time nothing more is changed.
    let (code, text) = edit("sed -i 's/^data:/dta:/'");
    assert!(
        code == Some(1) && text.contains("did you mean") && text.contains("your changes are in"),
        "{text}"
    );
    assert_eq!(shown(&cluster, "configmap/a", "/data/key"), "two");
    // Somebody else writes while the editor is open.
    let other = cluster.directory().join("other");
    let label = format!(
        "#!/bin/sh\nset -e\n[ -e done ] || '{}' label configmap/a by=other >/dev/null\ntouch done\nsed -i 's/key: two/key: three/' \"$1\"\n",
        tests::machine::binaries().join("ctl").display()
    );
    std::fs::write(&other, label).expect("an editor");
    let (code, text) = edit(&format!("sh {}", other.display()));
    assert!(
        code == Some(1) && text.contains("was changed meanwhile"),
        "{text}"
    );
    assert_eq!(shown(&cluster, "configmap/a", "/data/key"), "two");
    assert_eq!(shown(&cluster, "configmap/a", "/metadata/labels/by"), "other");
}

#[test]
fn an_object_waits_for_its_finalizers() {
    if !can_run("an_object_waits_for_its_finalizers", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    let kept = map("a", "one").replace("name: a", "name: a, finalizers: [example.com/backup]");
    cluster.apply(&kept);
    cluster.ok(&["delete", "configmap/a", "--no-wait"]);
    let why = cluster.ok(&["why", "configmap/a"]);
    assert!(why.contains("example.com/backup"), "{why}");
    let described = cluster.ok(&["describe", "configmap/a"]);
    assert!(described.contains("example.com/backup"), "{described}");
    let before = shown(&cluster, "configmap/a", "/metadata/deletionTimestamp");
    assert!(before.is_string(), "{before}");
    // Who had put it in takes it out.
    cluster.apply(&map("a", "one"));
    let gone = |object: &str| {
        let gone = cluster.ctl(&["get", object]);
        assert!(
            gone.stderr.contains("not found"),
            "{}{}",
            gone.stdout,
            gone.stderr
        );
    };
    gone("configmap/a");

    // A pod's containers end all the same, and its node is not troubled with it again.
    cluster.import_hello();
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: kept, finalizers: [example.com/backup]}\nspec:\n  \
         terminationGracePeriodSeconds: 1\n  containers: [{name: main, image: 'hello:1', command: [sleep, '3600']}]\n",
    );
    let processes = cluster.first_processes(&cluster.ready("kept"));
    cluster.ok(&["delete", "pod/kept", "--no-wait"]);
    let ended = || {
        wait_for("the pod to end", MINUTE, || {
            let failed = shown(&cluster, "pod/kept", "/status/phase") == "Failed";
            let runs = processes.iter().any(|pid| kernel::runs(*pid));
            (failed && !runs).then_some(())
        });
    };
    ended();
    cluster.kill("node-1");
    cluster.bring_up();
    ended();
    let word = r#"{"metadata": {"finalizers": null}}"#;
    cluster.ok(&["patch", "pod/kept", "-p", word]);
    gone("pod/kept");
}

#[test]
fn patches_change_what_they_say_and_nothing_else() {
    if !can_run("patches_change_what_they_say_and_nothing_else", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    cluster.apply(&web("  replicas: 0\n"));
    let patch = |words: &[&str]| cluster.ctl(&[&["patch", "deployment/web"], words].concat());
    let strategic = r#"{"spec": {"template": {"spec": {"containers": [{"name": "main", "env": [{"name": "A", "value": "1"}]}]}}}}"#;
    let patched = patch(&["-p", strategic]);
    assert_eq!(
        (patched.code, patched.stdout.as_str()),
        (0, "deployment/web patched\n"),
        "{}",
        patched.stderr
    );
    let container = "/spec/template/spec/containers/0";
    assert_eq!(
        shown(&cluster, "deployment/web", &format!("{container}/image")),
        "hello:1"
    );
    assert_eq!(
        shown(&cluster, "deployment/web", &format!("{container}/env/0/name")),
        "A"
    );
    assert!(patch(&["-p", strategic]).stdout.contains("no change"));
    let steps =
        r#"[{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "hello:2"}]"#;
    assert!(
        patch(&["--type", "json", "-p", steps, "--dry-run", "server"])
            .stdout
            .contains("dry run")
    );
    assert_eq!(
        shown(&cluster, "deployment/web", &format!("{container}/image")),
        "hello:1"
    );
    let file = cluster.manifest(
        "patch.yaml",
        "metadata:\n  labels: {team: red}\nspec: {minReadySeconds: 2}\n",
    );
    cluster.ok(&[
        "patch",
        "deployment",
        "web",
        "--type",
        "merge",
        "--patch-file",
        &file.display().to_string(),
    ]);
    assert_eq!(shown(&cluster, "deployment/web", "/metadata/labels/team"), "red");
    assert_eq!(shown(&cluster, "deployment/web", "/spec/minReadySeconds"), 2);
    for (patch_text, words) in [
        (r#"{"spec": {"replica": 1}}"#, "did you mean `replicas`"),
        (
            r#"{"metadata": {"name": "other"}}"#,
            "kind, namespace and name stay",
        ),
        (r#"{"status": {"replicas": 1}}"#, "the cluster's"),
        ("[1", "neither JSON nor YAML"),
    ] {
        let refused = patch(&["-p", patch_text]);
        assert_ne!(refused.code, 0, "{patch_text}");
        assert!(refused.stderr.contains(words), "{patch_text}: {}", refused.stderr);
    }
    let history = cluster.ok(&["history", "deployment/web"]);
    assert!(history.contains("patch"), "{history}");
}
