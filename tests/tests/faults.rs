//! Processes are killed without warning; what was promised goes on.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::cluster::{is_ready, text};
use tests::{Cluster, SmallDisk, can_run, kernel, wait_for};

/// Names, uids and revisions of everything that a restart must keep.
fn objects(cluster: &Cluster) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for kind in ["deployments", "replicasets", "configmaps", "namespaces"] {
        let list: Value =
            serde_json::from_str(&cluster.ok(&["get", kind, "-A", "-o", "json"])).expect("JSON");
        for object in list["items"].as_array().expect("items") {
            all.push((
                format!("{kind}/{}", text(object, "/metadata/name")),
                text(object, "/metadata/uid"),
                text(object, "/metadata/resourceVersion"),
            ));
        }
    }
    all.sort();
    all
}

fn containers(cluster: &Cluster, selector: &str) -> Vec<i32> {
    let mut pids: Vec<i32> = cluster
        .list("pods", selector)
        .iter()
        .flat_map(|pod| cluster.first_processes(pod))
        .collect();
    pids.sort_unstable();
    pids
}

#[test]
fn a_write_succeeds_within_two_seconds_of_the_leaders_death() {
    if !can_run(
        "a_write_succeeds_within_two_seconds_of_the_leaders_death",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up(3, 1);
    cluster.apply_example("hello.yaml");
    cluster.all_ready("app=hello", 2, Duration::from_secs(60));
    let before = containers(&cluster, "app=hello");
    assert_eq!(before.len(), 2);
    let manifest = cluster.manifest(
        "after.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: after\ndata:\n  key: value\n",
    );
    let manifest = manifest.display().to_string();
    let leader = cluster.leader();
    let started = Instant::now();
    cluster.kill(&leader);
    wait_for("a write after the leader's death", Duration::from_secs(2), || {
        let output = cluster.ctl(&["apply", "-f", &manifest]);
        (output.code == 0).then_some(())
    });
    println!("write after {} ms", started.elapsed().as_millis());
    assert_eq!(text(&cluster.get("configmap/after"), "/data/key"), "value");
    assert_eq!(containers(&cluster, "app=hello"), before, "containers restarted");
}

#[test]
fn a_killed_agent_finds_its_containers_again() {
    if !can_run("a_killed_agent_finds_its_containers_again", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply_example("hello.yaml");
    let pods = cluster.all_ready("app=hello", 2, Duration::from_secs(60));
    let before = containers(&cluster, "app=hello");
    assert_eq!(before.len(), 2);
    let agent = cluster.process("node-1").pid;
    cluster.kill("node-1");
    assert!(
        before.iter().all(|pid| kernel::runs(*pid)),
        "containers ended with the agent"
    );
    cluster.bring_up();
    assert_ne!(cluster.process("node-1").pid, agent);
    // Adopted is more than alive: the new agent answers for them, and ends them.
    let name = text(&pods[0], "/metadata/name");
    wait_for("exec through the new agent", Duration::from_secs(30), || {
        (cluster.ctl(&["exec", &name, "--", "true"]).code == 0).then_some(())
    });
    cluster.all_ready("app=hello", 2, Duration::from_secs(30));
    assert_eq!(containers(&cluster, "app=hello"), before, "containers restarted");
    for pod in cluster.list("pods", "app=hello") {
        let restarts = pod.pointer("/status/containerStatuses/0/restartCount");
        assert!(restarts.is_none_or(|count| count == 0), "restarts: {restarts:?}");
    }
    cluster.ok(&["delete", "deployment/hello", "--cascade", "foreground"]);
    wait_for("the end of adopted containers", Duration::from_secs(30), || {
        before.iter().all(|pid| !kernel::runs(*pid)).then_some(())
    });
}

#[test]
fn pods_of_a_dead_node_run_elsewhere() {
    if !can_run("pods_of_a_dead_node_run_elsewhere", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 3);
    cluster.apply_example("web.yaml");
    cluster.all_ready("app=web", 6, Duration::from_secs(60));
    let started = Instant::now();
    cluster.kill_node("node-2");
    // 10 s is the promise on a machine of its own; this one also runs other tests.
    wait_for(
        "six ready pods on the other nodes",
        Duration::from_secs(20),
        || {
            let pods = cluster.list("pods", "app=web");
            let elsewhere = pods
                .iter()
                .filter(|pod| text(pod, "/spec/nodeName") != "node-2" && is_ready(pod));
            (elsewhere.count() == 6).then_some(())
        },
    );
    println!("replaced after {} ms", started.elapsed().as_millis());
    let nodes = cluster.ok(&["get", "nodes"]);
    let row = nodes
        .lines()
        .find(|line| line.starts_with("node-2"))
        .unwrap_or_default();
    assert_ne!(row.split_whitespace().nth(1), Some("Ready"), "{nodes}");
}

#[test]
fn every_object_survives_the_death_of_all_controllers() {
    if !can_run(
        "every_object_survives_the_death_of_all_controllers",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up(3, 1);
    cluster.apply_example("hello.yaml");
    cluster.all_ready("app=hello", 2, Duration::from_secs(60));
    cluster.apply("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: kept\ndata:\n  key: value\n");
    let pids = containers(&cluster, "app=hello");
    let uids = |cluster: &Cluster| -> Vec<String> {
        let pods = cluster.list("pods", "app=hello");
        let mut uids: Vec<String> = pods.iter().map(|pod| text(pod, "/metadata/uid")).collect();
        uids.sort();
        uids
    };
    let (before, pods) = (objects(&cluster), uids(&cluster));
    for number in 1..=3 {
        cluster.kill(&format!("controller-{number}"));
    }
    cluster.bring_up();
    wait_for("an answer after the restart", Duration::from_secs(30), || {
        (cluster.ctl(&["get", "nodes"]).code == 0).then_some(())
    });
    assert_eq!(objects(&cluster), before);
    assert_eq!(uids(&cluster), pods);
    assert_eq!(containers(&cluster, "app=hello"), pids, "containers restarted");
    cluster.ok(&["scale", "deployment/hello", "--replicas", "3"]);
    cluster.all_ready("app=hello", 3, Duration::from_secs(60));
}

#[test]
fn a_killed_container_starts_again() {
    if !can_run("a_killed_container_starts_again", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply_example("hello.yaml");
    let pods = cluster.all_ready("app=hello", 2, Duration::from_secs(60));
    let name = text(&pods[0], "/metadata/name");
    let first = cluster.first_processes(&pods[0]);
    kill(Pid::from_raw(first[0]), Signal::SIGKILL).expect("kill");
    let pod = wait_for("a restart", Duration::from_secs(30), || {
        let pod = cluster.get(&format!("pod/{name}"));
        let restarts = pod
            .pointer("/status/containerStatuses/0/restartCount")?
            .as_i64()?;
        (restarts == 1 && is_ready(&pod)).then_some(pod)
    });
    assert_eq!(
        pod.pointer("/status/containerStatuses/0/lastState/terminated/exitCode"),
        Some(&Value::from(137))
    );
    assert_eq!(text(&pod, "/status/podIP"), text(&pods[0], "/status/podIP"));
}

#[test]
fn a_killed_monitor_costs_a_restart_and_nothing_else() {
    if !can_run(
        "a_killed_monitor_costs_a_restart_and_nothing_else",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply_example("hello.yaml");
    let pods = cluster.all_ready("app=hello", 2, Duration::from_secs(60));
    let uid = text(&pods[0], "/metadata/uid");
    let monitor = kernel::processes().into_iter().find(|pid| {
        let line = kernel::command_line(*pid);
        line.first()
            .is_some_and(|word| word.ends_with("bulkhead-runtime"))
            && line.iter().any(|word| word.contains(&uid))
    });
    let monitor = monitor.expect("a monitor that names its pod");
    let first = cluster.first_processes(&pods[0]);
    kill(Pid::from_raw(monitor), Signal::SIGKILL).expect("kill");
    wait_for(
        "the end of the orphaned container",
        Duration::from_secs(20),
        || first.iter().all(|pid| !kernel::runs(*pid)).then_some(()),
    );
    cluster.all_ready("app=hello", 2, Duration::from_secs(60));
}

/// Sets it, also when the test fails: threads that look at it end.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_planned_stop_of_the_leader_fails_no_write() {
    if !can_run("a_planned_stop_of_the_leader_fails_no_write", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up_with(3, 1, &[]);
    let (stop, writes) = (AtomicBool::new(false), AtomicUsize::new(0));
    let write = |writer: usize| {
        let mut failures = Vec::new();
        for value in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let manifest = format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: writer-{writer}\ndata:\n  value: \"{value}\"\n"
            );
            let path = cluster.manifest(&format!("writer-{writer}.yaml"), &manifest);
            let output = cluster.ctl(&["apply", "-f", &path.display().to_string()]);
            if output.code != 0 {
                failures.push(output.stderr);
            } else {
                let stored = cluster.ok(&["get", &format!("configmap/writer-{writer}"), "-o", "json"]);
                let stored: Value = serde_json::from_str(&stored).expect("JSON");
                let wanted = value.to_string();
                assert_eq!(
                    text(&stored, "/data/value"),
                    wanted,
                    "an acknowledged write is not there"
                );
            }
            writes.fetch_add(1, Ordering::Relaxed);
        }
        failures
    };
    let write = &write;
    thread::scope(|scope| {
        let _end = SetAtEnd(&stop);
        let writers: Vec<_> = (0..4).map(|writer| scope.spawn(move || write(writer))).collect();
        let more = |count: usize| {
            let wanted = writes.load(Ordering::Relaxed) + count;
            wait_for("more writes", Duration::from_secs(30), || {
                (writes.load(Ordering::Relaxed) >= wanted).then_some(())
            });
        };
        for _ in 0..6 {
            more(6);
            let leader = cluster.process(&cluster.leader()).pid;
            kill(Pid::from_raw(leader), Signal::SIGTERM).expect("it runs");
            wait_for("the leader's end", Duration::from_secs(30), || {
                (!kernel::runs(leader)).then_some(())
            });
            more(6);
            cluster.bring_up();
        }
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            let failures = writer.join().expect("no writer panics");
            assert_eq!(failures, Vec::<String>::new());
        }
    });
}

#[test]
fn a_dead_controller_is_replaced_by_a_new_one_of_its_name() {
    if !can_run(
        "a_dead_controller_is_replaced_by_a_new_one_of_its_name",
        &["ip", "nft"],
    ) {
        return;
    }
    let cluster = Cluster::up_with(3, 1, &[]);
    let before = cluster.ok(&["cluster", "members"]);
    let refused = cluster.ctl(&["cluster", "remove", "controller-9"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("no controller `controller-9`"),
        "{}",
        refused.stderr
    );
    cluster.kill("controller-3");
    let refused = cluster.ctl(&["cluster", "remove", "controller-2"]);
    assert_eq!(refused.code, 1, "one of two would be left that answers");
    assert!(refused.stderr.contains("too few to decide"), "{}", refused.stderr);
    cluster.ok(&["cluster", "remove", "controller-3"]);
    let members = cluster.ok(&["cluster", "members"]);
    assert!(
        members.lines().count() == 3 && !members.contains("controller-3"),
        "{members}"
    );
    // What it had is of no use to anybody now; in its place comes a new one, empty.
    let [_, data, _] = tests::leaks::directories(&cluster.name);
    let home = format!("{data}/controller-3");
    std::fs::remove_dir_all(&home).expect("its directory");
    let token = cluster.ok(&["token", "create", "--role", "member"]);
    let of = |number: u32, column: usize| {
        let line = before.lines().nth(number as usize).expect("a line for each");
        line.split_whitespace().nth(column).expect("a column").to_owned()
    };
    let address = |number, column| {
        of(number, column)
            .rsplit_once(':')
            .map(|(host, port)| (host.to_owned(), port.to_owned()))
    };
    let ((host, port), (_, peer_port)) = (
        address(3, 3).expect("HOST:PORT"),
        address(3, 4).expect("HOST:PORT"),
    );
    let joined = Command::new(tests::machine::binaries().join("bulkhead-controller"))
        .args([
            "join",
            "--name",
            "controller-3",
            "--address",
            &host,
            "--port",
            &port,
            "--peer-port",
            &peer_port,
        ])
        .args([
            "--data-dir",
            &format!("{home}/data"),
            "--config-dir",
            &format!("{home}/config"),
        ])
        .args(["--server", &of(1, 3), "--token", token.trim()])
        .output()
        .expect("the controller's binary");
    assert!(joined.status.success(), "{joined:?}");
    cluster.bring_up();
    wait_for("the new member's vote", Duration::from_secs(60), || {
        let members = cluster.ok(&["cluster", "members"]);
        let new = members.lines().find(|line| line.contains("controller-3"))?;
        let other_id = new.split_whitespace().next() != Some(&*of(3, 0));
        (other_id && new.contains("follower")).then_some(())
    });
    cluster.kill("controller-2");
    cluster.apply("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: after\n");
}

#[test]
fn full_disks_cost_the_lead_then_writes_and_nothing_else() {
    if !can_run(
        "full_disks_cost_the_lead_then_writes_and_nothing_else",
        &["ip", "nft"],
    ) {
        return;
    }
    const LEFT: u64 = 8 << 20;
    let cluster = Cluster::up_with(3, 1, &[]);
    let names = ["controller-1", "controller-2", "controller-3"];
    names.iter().for_each(|name| cluster.kill(name));
    let [_, data, _] = tests::leaks::directories(&cluster.name);
    let disks = names.map(|name| SmallDisk::over(&Path::new(&data).join(name).join("data"), "128m"));
    cluster.bring_up();
    let write = |value: &str| {
        let text =
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  value: \"{value}\"\n");
        let path = cluster.manifest("a.yaml", &text);
        cluster.ctl(&["apply", "-f", &path.display().to_string()])
    };
    let value = || text(&cluster.get("configmap/a"), "/data/value");
    let health = |name: &str| {
        let table = cluster.ok(&["cluster", "members"]);
        let row = table.lines().find(|line| line.contains(name)).map(str::to_owned);
        row.unwrap_or_else(|| panic!("no {name} in {table}"))
    };
    assert_eq!(write("1").code, 0);

    // Only the leader's: another one leads, and everything goes on.
    let first = cluster.leader();
    let place = names
        .iter()
        .position(|name| *name == first)
        .expect("one of the three");
    disks[place].fill(LEFT);
    wait_for("another leader", Duration::from_secs(30), || {
        (cluster.leader() != first).then_some(())
    });
    let written = write("2");
    assert_eq!(written.code, 0, "{written:?}");
    wait_for("the full disk in the table", Duration::from_secs(10), || {
        health(&first).contains("disk nearly full").then_some(())
    });

    // All of them: reads go on, and a write says what is wrong.
    for (place, disk) in disks.iter().enumerate() {
        if names[place] != first {
            disk.fill(LEFT);
        }
    }
    // Another value each time: what is there already needs no write.
    let mut values = 3..;
    let refused = wait_for("a refusal", Duration::from_secs(30), || {
        let value = values.next().unwrap_or_default();
        Some(write(&value.to_string())).filter(|written| written.code != 0)
    });
    assert!(
        refused.stderr.contains("the disk") && refused.stderr.contains("nothing is written before"),
        "{refused:?}"
    );
    assert_ne!(value(), "");
    let pids = names.map(|name| cluster.process(name).pid);

    // With room again they go on by themselves, and all come to the same.
    disks.iter().for_each(SmallDisk::clear);
    wait_for("a write", Duration::from_secs(30), || {
        (write("again").code == 0).then_some(())
    });
    assert_eq!(value(), "again");
    wait_for("all members to be up to date", Duration::from_secs(30), || {
        names
            .iter()
            .all(|name| health(name).trim_end().ends_with("ok"))
            .then_some(())
    });
    assert_eq!(
        names.map(|name| cluster.process(name).pid),
        pids,
        "no member has ended"
    );
    drop(cluster);
    drop(disks);
}
