//! Limits are what comes out, not only what stands in a file.

use std::time::{Duration, Instant};

use tests::cluster::text;
use tests::{Cluster, can_run, wait_for};

/// What may be missed.
const TOLERANCE: f64 = 0.15;

#[test]
fn block_writes_are_held_within_fifteen_percent() {
    if !can_run("block_writes_are_held_within_fifteen_percent", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: writer
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: hello:1
      command: ["sleep", "3600"]
      resources:
        limits: {bulkhead.io/write-bps: 10Mi}
      volumeMounts:
        - {name: data, mountPath: /data}
  volumes:
    - name: data
      emptyDir: {}
"#,
    );
    cluster.ready("writer");
    let write = |mebibytes: u32| {
        let script = format!("dd if=/dev/zero of=/data/file bs=1M count={mebibytes} oflag=direct");
        let started = Instant::now();
        cluster.ok(&["exec", "writer", "--", "sh", "-c", &script]);
        started.elapsed().as_secs_f64()
    };
    // The difference of two runs: what it takes to begin, and what a bucket lets through at first, is in both.
    let (short, long) = (write(10), write(60));
    let rate = 50.0 / (long - short);
    println!("{rate:.1} MiB/s of 10");
    assert!(
        (rate / 10.0 - 1.0).abs() <= TOLERANCE,
        "{rate:.1} MiB/s where 10 were asked for"
    );
}

#[test]
fn a_taken_host_port_keeps_the_second_pod_waiting() {
    if !can_run("a_taken_host_port_keeps_the_second_pod_waiting", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    for name in ["one", "two"] {
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             containers:\n    - name: main\n      image: hello:1\n      command: [httpd, -f, -p, \"80\", -h, /www]\n      \
             ports:\n        - {{containerPort: 80, hostPort: 8080}}\n"
        ));
    }
    let one = wait_for("one of them", Duration::from_secs(30), || {
        let names = ["one", "two"];
        let ready = names
            .iter()
            .find(|name| tests::cluster::is_ready(&cluster.get(&format!("pod/{name}"))));
        ready.map(|name| (*name).to_owned())
    });
    let other = if one == "one" { "two" } else { "one" };
    let why = cluster.ctl(&["why", &format!("pod/{other}")]);
    let said = format!("{}{}", why.stdout, why.stderr);
    assert!(said.contains("8080") || said.contains("port"), "{said}");
    // The node's port leads to the pod that has it.
    let node = cluster.get("node/node-1");
    let addresses = node["status"]["addresses"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let address = addresses
        .iter()
        .find(|address| address["type"] == "InternalIP")
        .map(|address| text(address, "/address"))
        .expect("the node's address");
    let page = std::process::Command::new("curl")
        .args([
            "-sS",
            "--fail",
            "--max-time",
            "10",
            &format!("http://{address}:8080/"),
        ])
        .output()
        .expect("curl");
    assert!(
        String::from_utf8_lossy(&page.stdout).contains("Hello"),
        "{page:?}"
    );
    cluster.ok(&["delete", &format!("pod/{one}")]);
    cluster.ready(other);
}

#[test]
fn an_empty_dir_above_its_limit_evicts_its_pod() {
    if !can_run("an_empty_dir_above_its_limit_evicts_its_pod", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: hoarder
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: hello:1
      command: ["sleep", "3600"]
      volumeMounts:
        - {name: data, mountPath: /data}
  volumes:
    - name: data
      emptyDir: {sizeLimit: 1Mi}
"#,
    );
    let first = cluster.first_processes(&cluster.ready("hoarder"));
    assert!(!first.is_empty(), "a container that is ready has a process");
    let script = "dd if=/dev/zero of=/data/file bs=1M count=3";
    cluster.ok(&["exec", "hoarder", "--", "sh", "-c", script]);
    let pod = wait_for("the eviction", Duration::from_secs(60), || {
        let pod = cluster.get("pod/hoarder");
        (text(&pod, "/status/phase") == "Failed").then_some(pod)
    });
    assert_eq!(text(&pod, "/status/reason"), "Evicted");
    let message = "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\".";
    assert_eq!(text(&pod, "/status/message"), message);
    for pid in first {
        assert!(!tests::kernel::runs(pid), "{pid} runs in a pod that has failed");
    }
    let ended = &pod["status"]["containerStatuses"][0];
    assert!(ended["state"]["terminated"].is_object(), "{ended}");
    let restarts = ended["restartCount"].as_i64().unwrap_or_default();
    assert_eq!(restarts, 0, "an evicted pod does not restart");
    wait_for("its event", Duration::from_secs(30), || {
        let events = cluster.ok(&["events"]);
        let told = events
            .lines()
            .any(|line| line.contains("Evicted") && line.contains(message));
        told.then_some(())
    });
    cluster.ok(&["delete", "pod/hoarder"]);
}
