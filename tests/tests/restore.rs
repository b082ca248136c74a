//! A restore that is interrupted brings back all of a backup or nothing, and can be made again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rpc::v1::api_client::ApiClient;
use rpc::v1::{ApplyRequest, ListRequest};
use tests::access::config_map;
use tests::{Access, Cluster, can_run, kernel, wait_for};

const MINUTE: Duration = Duration::from_secs(60);
/// Enough for many parts: so many ConfigMaps of so many bytes, 24 MiB.
const OBJECTS: usize = 1_200;
const BYTES: usize = 20 << 10;
/// Of one call.
const BATCH: usize = 20;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn fill(cluster: &Cluster) {
    let access = Access::of(cluster);
    runtime().block_on(async {
        let mut api = ApiClient::new(access.channel(0).expect("a channel"));
        for batch in 0..OBJECTS / BATCH {
            let names = (0..BATCH).map(|number| format!("large-{}", batch * BATCH + number));
            let request = ApplyRequest {
                items: names.map(|name| config_map(&name, "x".repeat(BYTES))).collect(),
                ..Default::default()
            };
            api.apply(request).await.expect("applied");
        }
    });
}

/// How many of the objects a member has itself; none while it does not answer.
fn count(access: &Access, member: usize) -> Option<usize> {
    runtime().block_on(async {
        let mut api = ApiClient::new(access.channel(member).ok()?);
        let (mut count, mut next) = (0, String::new());
        loop {
            let request = ListRequest {
                kind: "ConfigMap".to_owned(),
                namespace: "default".to_owned(),
                limit: 100,
                r#continue: next,
                stale: true,
                ..Default::default()
            };
            let page = api.list(request).await.ok()?.into_inner();
            let large = |object: &&proto::v1::Object| model::object::meta(object).name.starts_with("large-");
            count += page.items.iter().filter(large).count();
            next = page.r#continue;
            if next.is_empty() {
                return Some(count);
            }
        }
    })
}

/// All members have as many of them.
#[track_caller]
fn all_have(cluster: &Cluster, wanted: usize) {
    let access = Access::of(cluster);
    for member in 0..access.endpoints.len() {
        wait_for("each member to have what was restored", MINUTE, || {
            (count(&access, member)? == wanted).then_some(())
        });
    }
}

/// What a controller's log holds on disk.
fn log_bytes(cluster: &Cluster, controller: &str) -> u64 {
    fn bytes(directory: &Path) -> u64 {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let metadata = entry.metadata().ok()?;
                Some(if metadata.is_dir() {
                    bytes(&entry.path())
                } else {
                    metadata.len()
                })
            })
            .sum()
    }
    let command = kernel::command_line(cluster.process(controller).pid);
    let at = command.iter().position(|word| word == "--data-dir");
    bytes(&PathBuf::from(&command[at.expect("--data-dir") + 1]).join("log"))
}

/// Begins a restore and waits until a good part of it is in the leader's log.
fn begun(cluster: &Cluster, words: &[&str], leader: &str) -> Child {
    let before = log_bytes(cluster, leader);
    let mut restore = cluster
        .command(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("ctl");
    wait_for("parts of the restore", MINUTE, || {
        let ended = restore.try_wait().expect("ctl").is_some();
        (ended || log_bytes(cluster, leader) > before + (4 << 20)).then_some(())
    });
    restore
}

#[test]
fn a_restore_that_is_interrupted_brings_back_all_or_nothing() {
    if !can_run(
        "a_restore_that_is_interrupted_brings_back_all_or_nothing",
        &["ip", "nft"],
    ) {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (file, key) = (directory.path().join("backup"), directory.path().join("key"));
    let (file, key) = (file.display().to_string(), key.display().to_string());
    let old = Cluster::up_with(1, 1, &[]);
    fill(&old);
    old.ok(&["cluster", "backup", &file, "--new-key-file", &key]);
    drop(old);

    let new = Cluster::up_with(3, 1, &[]);
    let words = ["cluster", "restore", &file, "--key-file", &key];
    for fault in ["ctl", "leader", "follower"] {
        let leader = new.leader();
        let mut restore = begun(&new, &words, &leader);
        match fault {
            "ctl" => {
                // `timeout`, which runs it, passes this on.
                let pid = Pid::from_raw(restore.id().try_into().expect("a process id"));
                kill(pid, Signal::SIGTERM).expect("it runs");
            }
            "leader" => new.kill(&leader),
            _ => {
                let others = ["controller-1", "controller-2", "controller-3"];
                let follower = others.into_iter().find(|name| *name != leader);
                new.kill(follower.expect("a follower"));
            }
        }
        let done = restore.wait().expect("ctl").success();
        new.bring_up();
        // Behind whatever came of it.
        let there = new.list("configmaps", "").len();
        let expected = if done || there > 0 { OBJECTS } else { 0 };
        all_have(&new, expected);
        assert!(
            done || fault != "follower",
            "most members were there all the time"
        );
        if expected > 0 {
            break;
        }
    }
    all_have(&new, OBJECTS);
}
