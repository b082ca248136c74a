//! One pod: what comes out of it, what goes wrong with it, what it is told.

use std::time::Duration;

use serde_json::Value;
use tests::cluster::text;
use tests::{Cluster, can_run, kernel, wait_for};

/// A pod of one container, `main`, that runs a script; `more` are further lines of the container.
fn pod(name: &str, script: &str, restart: &str, more: &str) -> String {
    let script = serde_json::to_string(script).expect("JSON");
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  restartPolicy: {restart}\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n    - name: main\n      image: hello:1\n      \
         command: [sh, -c, {script}]\n{more}"
    )
}

fn container(pod: &Value) -> Value {
    pod.pointer("/status/containerStatuses/0")
        .cloned()
        .unwrap_or_default()
}

#[track_caller]
fn wait_for_pod(cluster: &Cluster, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, Duration::from_secs(60), || {
        let pod = cluster.get(&format!("pod/{name}"));
        holds(&pod).then_some(pod)
    })
}

#[test]
fn exec_has_streams_and_an_exit_code() {
    if !can_run("exec_has_streams_and_an_exit_code", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply(&pod("box", "exec sleep 3600", "Always", ""));
    cluster.ready("box");
    let output = cluster.ctl(&["exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((output.code, &*output.stdout), (7, "out\n"));
    assert!(output.stderr.contains("err"), "{}", output.stderr);
    let mut child = cluster
        .command(&["exec", "-i", "box", "--", "cat"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("ctl exec");
    let mut stdin = child.stdin.take().expect("stdin");
    std::io::Write::write_all(&mut stdin, b"to and fro\n").expect("stdin");
    drop(stdin);
    let output = child.wait_with_output().expect("ctl exec");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "to and fro\n");
    let output = cluster.ctl(&["exec", "box", "--", "no-such-program"]);
    assert_ne!(output.code, 0);
    assert!(output.stderr.contains("no-such-program"), "{}", output.stderr);
}

#[test]
fn logs_follow_a_container_to_its_end() {
    if !can_run("logs_follow_a_container_to_its_end", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    let script = "for i in 1 2 3 4 5; do echo line $i; done; echo last words >&2";
    cluster.apply(&pod("talk", script, "Never", ""));
    let done = wait_for_pod(&cluster, "talk", "the end of talk", |pod| {
        text(pod, "/status/phase") == "Succeeded"
    });
    assert_eq!(
        container(&done).pointer("/state/terminated/exitCode"),
        Some(&Value::from(0))
    );
    let logs = cluster.ok(&["logs", "talk"]);
    let lines: Vec<&str> = logs.lines().collect();
    assert_eq!(lines.len(), 6, "{logs}");
    assert!(
        lines.contains(&"line 5") && lines.contains(&"last words"),
        "{logs}"
    );
    assert_eq!(cluster.ok(&["logs", "-f", "talk"]), logs);
    assert_eq!(cluster.ok(&["logs", "--tail", "2", "talk"]).lines().count(), 2);
}

#[test]
fn a_crash_keeps_its_reason_and_waits_longer_each_time() {
    if !can_run(
        "a_crash_keeps_its_reason_and_waits_longer_each_time",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply(&pod(
        "crash",
        "echo the disk is on fire >&2; exit 3",
        "Always",
        "",
    ));
    let crashed = wait_for_pod(&cluster, "crash", "three restarts", |pod| {
        let container = container(pod);
        container["restartCount"].as_i64().unwrap_or_default() >= 3
            && text(&container, "/state/waiting/reason") == "CrashLoopBackOff"
    });
    let container = container(&crashed);
    assert_eq!(
        container.pointer("/lastState/terminated/exitCode"),
        Some(&Value::from(3))
    );
    assert!(
        !text(&container, "/state/waiting/message").is_empty(),
        "no time of the next try: {container}"
    );
    let shown = cluster.ok(&["describe", "pod/crash"]);
    assert!(shown.contains("the disk is on fire"), "{shown}");
    let table = cluster.ok(&["get", "pods"]);
    assert!(table.contains("CrashLoopBackOff"), "{table}");
    let events = cluster.ok(&["events"]);
    assert!(events.contains("BackOff"), "{events}");
}

#[test]
fn a_missing_image_says_so() {
    if !can_run("a_missing_image_says_so", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    let manifest = pod("absent", "true", "Always", "").replace("hello:1", "127.0.0.1:1/absent:1");
    cluster.apply(&manifest);
    let waiting = wait_for_pod(&cluster, "absent", "the reason", |pod| {
        let reason = text(&container(pod), "/state/waiting/reason");
        ["ErrImagePull", "ImagePullBackOff"].contains(&&*reason)
    });
    let message = text(&container(&waiting), "/state/waiting/message");
    assert!(message.contains("127.0.0.1:1"), "{message}");
    let never =
        pod("never", "true", "Always", "      imagePullPolicy: Never\n").replace("hello:1", "absent:1");
    cluster.apply(&never);
    let waiting = wait_for_pod(&cluster, "never", "the reason", |pod| {
        text(&container(pod), "/state/waiting/reason") == "ErrImageNeverPull"
    });
    assert!(text(&container(&waiting), "/state/waiting/message").contains("absent:1"));
}

#[test]
fn a_missing_command_says_so() {
    if !can_run("a_missing_command_says_so", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    let manifest = pod("nocmd", "true", "Never", "").replace("sh, -c,", "/bin/no-such-program,");
    cluster.apply(&manifest);
    let ended = wait_for_pod(&cluster, "nocmd", "the reason", |pod| {
        container(pod).to_string().contains("no-such-program")
    });
    println!("{}", container(&ended));
    let shown = cluster.ok(&["describe", "pod/nocmd"]);
    assert!(shown.contains("no-such-program"), "{shown}");
}

#[test]
fn memory_over_the_limit_ends_as_oom() {
    if !can_run("memory_over_the_limit_ends_as_oom", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    // tail keeps a line whole: one without an end grows until the limit.
    let more = "      resources:\n        limits: {memory: 16Mi}\n";
    cluster.apply(&pod("greedy", "tail -n 1 /dev/zero", "Never", more));
    let ended = wait_for_pod(&cluster, "greedy", "the end", |pod| {
        !container(pod)["state"]["terminated"].is_null()
    });
    let ended = container(&ended)["state"]["terminated"].clone();
    assert_eq!(text(&ended, "/reason"), "OOMKilled", "{ended}");
    assert_eq!(cluster.ok(&["get", "nodes"]).matches("Ready").count(), 1);
}

#[test]
fn a_fork_bomb_stays_inside_its_pids_limit() {
    if !can_run("a_fork_bomb_stays_inside_its_pids_limit", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    let script = "while true; do sleep 60 & done 2>/dev/null";
    cluster.apply(&pod(
        "bomb",
        script,
        "Never",
        "      resources:\n        limits: {memory: 2Gi}\n",
    ));
    let bomb = wait_for_pod(&cluster, "bomb", "the bomb", |pod| {
        text(pod, "/status/phase") == "Running"
    });
    let group = cluster.container_group(&bomb, "main", "pids");
    let number = |file: &str| -> Option<u64> {
        std::fs::read_to_string(group.join(file))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let limit = number("pids.max").expect("a pids limit");
    wait_for(
        "the limit, or the end of a shell that cannot fork",
        Duration::from_secs(60),
        || {
            let refused =
                std::fs::read_to_string(group.join("pids.events")).is_ok_and(|text| !text.contains("max 0"));
            let ended = text(&cluster.get("pod/bomb"), "/status/phase") != "Running";
            (refused || ended).then_some(())
        },
    );
    assert!(number("pids.current").is_none_or(|count| count <= limit));
    cluster.apply(&pod("beside", "exec sleep 3600", "Always", ""));
    cluster.ready("beside");
    cluster.ok(&["delete", "pod/bomb", "--timeout", "60s"]);
    assert!(!group.exists(), "the bomb's group is left");
}

#[test]
fn a_config_map_reaches_environment_and_files_and_changes() {
    if !can_run(
        "a_config_map_reaches_environment_and_files_and_changes",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    let map = |value: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\ndata:\n  colour: {value}\n")
    };
    cluster.apply(&map("green"));
    cluster.apply(
        r#"
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
        - name: COLOUR
          valueFrom:
            configMapKeyRef: {name: settings, key: colour}
        - name: POD
          valueFrom:
            fieldRef: {fieldPath: metadata.name}
      volumeMounts:
        - {name: settings, mountPath: /settings}
  volumes:
    - name: settings
      configMap: {name: settings}
"#,
    );
    cluster.ready("reader");
    let inside = |script: &str| {
        cluster
            .ok(&["exec", "reader", "--", "sh", "-c", script])
            .trim()
            .to_owned()
    };
    assert_eq!(inside("echo $COLOUR $POD"), "green reader");
    assert_eq!(inside("cat /settings/colour"), "green");
    cluster.apply(&map("red"));
    wait_for("the new value in the volume", Duration::from_secs(90), || {
        (inside("cat /settings/colour") == "red").then_some(())
    });
    // The environment is a process's own: it changes with the next start only.
    assert_eq!(inside("echo $COLOUR"), "green");
}

#[test]
fn deletion_is_graceful_and_complete() {
    if !can_run("deletion_is_graceful_and_complete", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    let script = "trap 'echo bye; exit 0' TERM; echo up; while true; do sleep 1; done";
    let manifest = pod("polite", script, "Always", "").replace("Seconds: 1", "Seconds: 20");
    cluster.apply(&manifest);
    let polite = cluster.ready("polite");
    wait_for("its first line", Duration::from_secs(20), || {
        cluster.ok(&["logs", "polite"]).contains("up").then_some(())
    });
    let pids = cluster.first_processes(&polite);
    let started = std::time::Instant::now();
    cluster.ok(&["delete", "pod/polite"]);
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "SIGTERM did not arrive: the grace period ran out"
    );
    assert!(pids.iter().all(|pid| !kernel::runs(*pid)));
    assert_eq!(cluster.get("pod/polite"), Value::Null);
}
