//! Whatever of the cluster is killed, whenever: what was asked for is there in the end, and nothing else.

use std::time::Duration;

use serde_json::Value;
use tests::cluster::text as text_of;
use tests::{Cluster, can_run, kernel, wait_for};

/// Kills of one run.
const KILLS: usize = 24;

/// A small generator: the same seed, the same kills.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, limit: usize) -> usize {
        // xorshift64: good enough to choose whom to kill
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).expect("below a usize")
    }
}

fn deployment(name: &str, replicas: u32) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {name}\nspec:\n  replicas: {replicas}\n  \
         selector:\n    matchLabels: {{app: {name}}}\n  template:\n    metadata:\n      labels: {{app: {name}}}\n    \
         spec:\n      terminationGracePeriodSeconds: 0\n      containers:\n        - name: main\n          \
         image: hello:1\n          command: [sleep, \"3600\"]\n"
    )
}

/// Every process of the cluster that may be killed: controllers, agents, monitors, containers.
fn victims(cluster: &Cluster) -> Vec<(String, i32)> {
    let mut all: Vec<(String, i32)> = cluster
        .processes()
        .into_iter()
        .filter(|process| kernel::runs(process.pid))
        .map(|process| (process.name, process.pid))
        .collect();
    let run = format!("/run/bulkhead/{}/", cluster.name);
    for pid in kernel::processes() {
        let line = kernel::command_line(pid);
        let monitor = line
            .first()
            .is_some_and(|word| word.ends_with("bulkhead-runtime"))
            && line.iter().any(|word| word.contains(&run));
        if monitor && kernel::runs(pid) {
            all.push(("a monitor".to_owned(), pid));
        }
    }
    let group = format!("/bulkhead-{}", cluster.name);
    all.extend(
        cluster
            .members(&group)
            .into_iter()
            .map(|pid| ("a container".to_owned(), pid)),
    );
    all
}

/// Containers that run: one for each pod, no more.
fn containers(cluster: &Cluster, pods: &[Value]) -> Vec<usize> {
    pods.iter()
        .map(|pod| cluster.first_processes(pod).len())
        .collect()
}

#[test]
fn whatever_is_killed_what_was_asked_for_is_there_in_the_end() {
    if !can_run(
        "whatever_is_killed_what_was_asked_for_is_there_in_the_end",
        &["ip", "nft"],
    ) {
        return;
    }
    // The chaos lane asks for more rounds; each kills others.
    let rounds = std::env::var("BULKHEAD_CHAOS_ROUNDS").map_or(1, |rounds| rounds.parse().expect("a number"));
    for round in 0..rounds {
        println!("round {round}");
        one_round(Seeded(0x5eed_b01d + round));
    }
}

fn one_round(mut seeded: Seeded) {
    let cluster = Cluster::up(3, 2);
    cluster.apply(&deployment("calm", 3));
    cluster.all_ready("app=calm", 3, Duration::from_secs(60));
    for kill in 0..KILLS {
        // Work goes on meanwhile: pods are made, replaced and removed. A write may be refused while nobody leads.
        let replicas = u32::try_from(2 + kill % 5).expect("a few");
        let path = cluster.manifest("churn.yaml", &deployment("churn", replicas));
        let written = cluster.ctl(&["apply", "-f", &path.display().to_string()]);
        assert!([0, 1, 3].contains(&written.code), "{}", written.stderr);
        let victims = victims(&cluster);
        let (what, pid) = &victims[seeded.below(victims.len())];
        println!("kill {kill}: {what} ({pid})");
        if let Err(error) = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(*pid),
            nix::sys::signal::Signal::SIGKILL,
        ) {
            assert_eq!(error, nix::errno::Errno::ESRCH, "it may have ended by itself");
        }
        // As a service manager would: again until its port is free.
        wait_for("everything runs again", Duration::from_secs(30), || {
            let pid = (!kernel::runs(*pid)).then_some(*pid)?;
            let up = cluster.try_bring_up();
            (up.code == 0).then_some(pid)
        });
    }
    wait_for("a write after the last kill", Duration::from_secs(30), || {
        let path = cluster.manifest("churn.yaml", &deployment("churn", 4));
        (cluster.ctl(&["apply", "-f", &path.display().to_string()]).code == 0).then_some(())
    });
    let calm = cluster.all_ready("app=calm", 3, Duration::from_secs(120));
    let churn = cluster.all_ready("app=churn", 4, Duration::from_secs(120));
    let pods: Vec<Value> = calm.into_iter().chain(churn).collect();
    wait_for("one container for each pod", Duration::from_secs(60), || {
        (containers(&cluster, &pods) == vec![1; pods.len()]).then_some(())
    });
    let wanted: Vec<String> = pods.iter().map(|pod| text_of(pod, "/metadata/uid")).collect();
    wait_for("no group of a pod that is gone", Duration::from_secs(60), || {
        let top = kernel::group("pids", &format!("/bulkhead-{}", cluster.name))?;
        let left = kernel::groups_below(&top)
            .into_iter()
            .filter_map(|group| group.file_name().map(|name| name.to_string_lossy().into_owned()))
            .filter(|name| name.starts_with("pod-"))
            .filter(|name| !wanted.iter().any(|uid| name.contains(uid)))
            .count();
        (left == 0).then_some(())
    });
    every_member_has_the_same(&cluster);
}

/// Each controller, asked alone, answers from its own state, once it has applied all that was committed.
fn every_member_has_the_same(cluster: &Cluster) {
    let config =
        std::fs::read_to_string(cluster.directory().join("config.yaml")).expect("the client's config");
    let endpoints: Vec<&str> = config
        .lines()
        .filter(|line| {
            let item = line.trim_start().strip_prefix("- ");
            item.is_some_and(|item| item.parse::<std::net::SocketAddr>().is_ok())
        })
        .collect();
    assert_eq!(endpoints.len(), 3, "the config has another form");
    let of_one = |own: &&str| {
        let others = |line: &&str| line == own || !endpoints.contains(line);
        let text: Vec<&str> = config.lines().filter(others).collect();
        let path = cluster.manifest("one.yaml", &text.join("\n"));
        let asked = cluster
            .command(&["get", "pods,deployments,replicasets", "-o", "json"])
            .env("BULKHEAD_CONFIG", path)
            .output()
            .expect("ctl");
        assert!(
            asked.status.success(),
            "{own}: {}",
            String::from_utf8_lossy(&asked.stderr)
        );
        let list: Value = serde_json::from_slice(&asked.stdout).expect("JSON");
        let items = list["items"].as_array().cloned().unwrap_or_default();
        assert!(!items.is_empty(), "{own}: {list}");
        let versions = items.iter().map(|item| {
            (
                text_of(item, "/metadata/uid"),
                text_of(item, "/metadata/resourceVersion"),
            )
        });
        versions.collect::<std::collections::BTreeMap<_, _>>()
    };
    // Nothing is written while all three are asked: the cluster is at rest, or soon will be.
    wait_for("all members to be at rest", Duration::from_secs(30), || {
        let before = of_one(&endpoints[0]);
        let all: Vec<_> = endpoints.iter().map(of_one).collect();
        (before == of_one(&endpoints[0])).then(|| {
            for (endpoint, one) in endpoints.iter().zip(&all) {
                assert_eq!(*one, before, "{endpoint} has another state");
            }
        })
    });
}
