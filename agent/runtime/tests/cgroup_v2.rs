//! What only cgroup v2 asks of the runtime; on machines with v1 most of it is skipped by name.

#![allow(clippy::unwrap_used)] // a test that fails

mod bundle;
mod common;
mod program;
mod skip;

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bundle::Bundle;
use common::Ground;
use runtime::cgroup::{Cgroup, CgroupError};
use runtime::container::{self, Stdio};
use runtime::inspect;
use runtime::spec::CgroupSpec;
use serde_json::json;
use skip::skip;

fn made(ground: &Ground, name: &str, resources: serde_json::Value) -> Result<Cgroup, CgroupError> {
    let spec = CgroupSpec {
        path: ground.parent.path().join("pod").join(name),
        resources: serde_json::from_value(resources).unwrap(),
    };
    Cgroup::create(&ground.layout, &spec)
}

fn word(group: &Cgroup, controller: &str, file: &str) -> Option<String> {
    let text = fs::read_to_string(group.controller(controller)?.join(file)).ok()?;
    Some(text.split_whitespace().last()?.to_owned())
}

/// runtime-spec 1.2, config-linux.md, Block IO: 10 to 1000; v2's own weights go from 1 to 10000.
#[test]
fn a_block_io_weight_is_on_the_scale_of_its_file() {
    let ground = Ground::new();
    let group = match made(&ground, "web", json!({"blockIO": {"weight": 100}})) {
        Err(CgroupError::Unsupported { .. }) => {
            return skip(
                "a_block_io_weight_is_on_the_scale_of_its_file",
                "the kernel has no block I/O weights",
            );
        }
        made => made.unwrap(),
    };
    let seen = [
        ("io", "io.bfq.weight", "100"),
        ("io", "io.weight", "910"),
        ("blkio", "blkio.bfq.weight", "100"),
        ("blkio", "blkio.weight", "100"),
    ]
    .into_iter()
    .find_map(|(controller, file, expected)| Some((file, word(&group, controller, file)?, expected)));
    let (file, seen, expected) = seen.unwrap();
    assert_eq!(seen, expected, "{file}");
}

/// v2 offers a group what its parents enable: of pages and devices nobody does before somebody asks.
#[test]
fn a_limit_of_a_controller_that_few_use_is_set() {
    const NAME: &str = "a_limit_of_a_controller_that_few_use_is_set";
    let ground = Ground::new();
    if !fs::exists("/sys/kernel/mm/hugepages/hugepages-2048kB").unwrap() {
        return skip(NAME, "the kernel has no huge pages of 2 MB");
    }
    let limits = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]});
    let group = match made(&ground, "web", limits) {
        Err(CgroupError::Unsupported { .. }) if !ground.layout.is_v2() => {
            return skip(NAME, "the machine has no hierarchy of hugetlb");
        }
        made => made.unwrap(),
    };
    let file = if ground.layout.is_v2() {
        "hugetlb.2MB.max"
    } else {
        "hugetlb.2MB.limit_in_bytes"
    };
    assert_eq!(word(&group, "hugetlb", file).as_deref(), Some("4194304"));
    if ground.layout.is_v2() {
        let group = made(
            &ground,
            "unified",
            json!({"unified": {"hugetlb.2MB.max": "2097152"}}),
        );
        assert_eq!(
            word(&group.unwrap(), "hugetlb", "hugetlb.2MB.max").as_deref(),
            Some("2097152")
        );
    }
}

/// A group of threads has no list of processes (cgroup-v2.rst, Threads): its domain has them.
#[test]
fn a_group_of_threads_hides_nobody_and_is_removed() {
    let ground = Ground::new();
    if !ground.layout.is_v2() {
        return skip(
            "a_group_of_threads_hides_nobody_and_is_removed",
            "groups of threads are cgroup v2's",
        );
    }
    let group = ground.cgroup("web", json!({}));
    let threads = group.child("threads").unwrap();
    let directory = |group: &Cgroup| group.controller("").unwrap();
    fs::create_dir(directory(&threads)).unwrap();
    let mut sleeper = Command::new("sleep")
        .arg("1000")
        .stdin(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = sleeper.id();
    fs::write(directory(&group).join("cgroup.procs"), pid.to_string()).unwrap();
    fs::write(directory(&threads).join("cgroup.type"), "threaded").unwrap();
    fs::write(directory(&threads).join("cgroup.threads"), pid.to_string()).unwrap();
    assert_eq!(group.pids().unwrap(), [i32::try_from(pid).unwrap()]);
    // Nobody has been killed: the group is in use, and that is what is told.
    let busy = group.remove(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(busy, CgroupError::Busy { .. }), "{busy:?}");
    group.kill().unwrap();
    sleeper.wait().unwrap();
    group.remove(Duration::from_secs(10)).unwrap();
    assert!(!group.exists());
}

/// cgroup-v2.rst, No Internal Process Constraint: a group with divided controllers takes no process. An init system in a
/// container divides its group.
#[test]
fn exec_enters_a_container_that_has_divided_its_group() {
    let group = "/sys/fs/cgroup";
    let script = format!(
        "mkdir {group}/init && echo 0 > {group}/init/cgroup.procs && echo +pids > {group}/cgroup.subtree_control && \
         echo divided; exec sleep 1000"
    );
    let bundle = Bundle::new("divided", &script);
    if !runtime::cgroup::Layout::detect().unwrap().is_v2() {
        return skip(
            "exec_enters_a_container_that_has_divided_its_group",
            "only cgroup v2 keeps processes out of groups with groups below",
        );
    }
    bundle.change(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        let own = mounts.iter_mut().find(|mount| mount["type"] == "cgroup").unwrap();
        let options = own["options"].as_array_mut().unwrap();
        options.retain(|option| option != "ro");
        config["linux"]["readonlyPaths"] = json!([]);
    });
    bundle.create(&["create", "c"]);
    bundle.succeed(&["start", "c"]);
    bundle.wait_until("its group is divided", || bundle.out() == "divided\n");
    assert_eq!(
        bundle.succeed(&["exec", "c", "cat", "/proc/self/cgroup"]),
        "0::/init\n"
    );
    assert_eq!(bundle.succeed(&["ps", "-f", "json", "c"]).matches(',').count(), 0);
    bundle.succeed(&["delete", "--force", "c"]);
    let left: PathBuf = [group, bundle.cgroup.join("c").to_str().unwrap()].concat().into();
    assert!(!left.exists());
}

/// The limits of a group hold below it too.
#[test]
fn a_container_below_its_own_group_is_as_specified() {
    let ground = Ground::new();
    if !ground.layout.is_v2() {
        return skip(
            "a_container_below_its_own_group_is_as_specified",
            "a group that is made by hand is one directory with cgroup v2 alone",
        );
    }
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let spec = ground.container("web", "exec sleep 1000");
    let stdio = Stdio::null().unwrap();
    let running = container::start(&spec, Some(&sandbox), &cgroup, stdio, &ground.options()).unwrap();
    let named = || {
        let observed = inspect::observe(running.pid, &cgroup, &spec).unwrap();
        let rows = inspect::compare(&spec, Some(&ground.sandbox_spec()), &observed);
        let row = rows.into_iter().find(|row| row.layer == "cgroup").unwrap();
        !row.isolated
    };
    let enter = |group: &Cgroup| {
        let directory = group.controller("").unwrap();
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("cgroup.procs"), running.pid.to_string()).unwrap();
    };
    enter(&cgroup.child("init").unwrap());
    assert!(!named());
    let beside = ground.parent.child("web-beside").unwrap();
    enter(&beside);
    assert!(named());
    enter(&cgroup.child("init").unwrap());
    cgroup.kill().unwrap();
    sys::process::wait(running.pidfd.as_fd()).unwrap();
    sandbox.destroy().unwrap();
}
