//! Labels of SELinux as the kernel has them: needs a policy with the types of containers, as deploy/selinux or
//! container-selinux bring it.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;
mod common;
mod program;
mod skip;

use std::fs;
use std::os::fd::AsFd;
use std::process::Command;

use bundle::Bundle;
use common::Ground;
use runtime::container::{self, Stdio};
use runtime::inspect;
use serde_json::json;

const PROCESS: &str = "system_u:system_r:container_t:s0:c1,c2";
const FILES: &str = "system_u:object_r:container_file_t:s0:c1,c2";

/// Whether the kernel enforces a policy that knows the label; a skip if not.
fn enforced(test: &str) -> bool {
    if fs::read_to_string("/sys/fs/selinux/enforce").ok().as_deref() != Some("1") {
        skip::skip(test, "SELinux does not enforce here");
        return false;
    }
    if fs::write("/sys/fs/selinux/context", PROCESS).is_err() {
        skip::skip(test, "the policy has no container_t");
        return false;
    }
    true
}

fn relabel(path: &std::path::Path, label: &str) {
    let done = Command::new("chcon")
        .args(["-R", label])
        .arg(path)
        .status()
        .unwrap();
    assert!(done.success());
}

fn label(path: &std::path::Path) -> String {
    let out = Command::new("stat")
        .args(["-c", "%C"])
        .arg(path)
        .output()
        .unwrap();
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// config.md, selinuxLabel; config-linux.md, Mount Label. What it says goes to files: the test's own streams are not the
/// container's to write to.
#[test]
fn a_container_has_its_label_and_is_held_by_it() {
    if !enforced("a_container_has_its_label_and_is_held_by_it") {
        return;
    }
    let script = "cat /proc/self/attr/current > /tmp/current; echo x > /dev/shm/file && ls /dev/mqueue && echo writes > /tmp/writes; \
                  cat /theirs/file > /tmp/theirs 2>&1; exec sleep 1000";
    let bundle = Bundle::new("label", script);
    let root = bundle.path().join("rootfs");
    fs::create_dir(root.join("theirs")).unwrap();
    fs::write(root.join("theirs/file"), "secret").unwrap();
    relabel(&root, FILES);
    relabel(
        &root.join("theirs"),
        "system_u:object_r:container_file_t:s0:c3,c4",
    );
    bundle.change(|config| {
        config["process"]["selinuxLabel"] = json!(PROCESS);
        config["linux"]["mountLabel"] = json!(FILES);
    });
    bundle.create(&["create", "c"]);
    bundle.succeed(&["start", "c"]);
    let said = |name: &str| fs::read_to_string(root.join("tmp").join(name)).unwrap_or_default();
    bundle.wait_until("the other's file was tried", || !said("theirs").is_empty());
    assert_eq!(said("current").trim_end_matches('\0'), PROCESS);
    assert_eq!(said("writes"), "writes\n");
    assert!(said("theirs").contains("Permission denied"), "{}", said("theirs"));
    assert_eq!(label(&root.join("tmp/writes")), FILES);
    // An exec has the container's label, or the one that it is given.
    let current = |name: &str, flags: &[&str]| {
        let command = format!("cat /proc/self/attr/current > /tmp/{name}");
        let mut words = vec!["exec"];
        words.extend(flags);
        words.extend(["c", "/bin/sh", "-c", &command]);
        bundle.succeed(&words);
        said(name).trim_end_matches('\0').to_owned()
    };
    assert_eq!(current("exec", &[]), PROCESS);
    let wider = "system_u:system_r:container_t:s0:c1,c2,c9";
    assert_eq!(current("wider", &["--process-label", wider]), wider);
    bundle.succeed(&["delete", "--force", "c"]);
}

/// The kernel spells categories in its own way.
#[test]
fn a_label_that_is_spelled_otherwise_is_no_difference() {
    if !enforced("a_label_that_is_spelled_otherwise_is_no_difference") {
        return;
    }
    let ground = Ground::new();
    // As the agent unpacks layers.
    relabel(&ground.layer(), "system_u:object_r:container_file_t:s0");
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let mut spec = ground.container("web", "exec sleep 1000");
    let process = spec.config.process_mut().as_mut().unwrap();
    process.set_selinux_label(Some("system_u:system_r:container_t:s0:c3,c2,c1".into()));
    let linux = spec.config.linux_mut().as_mut().unwrap();
    linux.set_mount_label(Some("system_u:object_r:container_file_t:s0:c1,c2,c3".into()));
    let stdio = Stdio::null().unwrap();
    let running = container::start(&spec, Some(&sandbox), &cgroup, stdio, &ground.options()).unwrap();
    let observed = inspect::observe(running.pid, &cgroup, &spec).unwrap();
    assert_eq!(
        observed.label.as_deref(),
        Some("system_u:system_r:container_t:s0:c1.c3")
    );
    let rows = inspect::compare(&spec, Some(&ground.sandbox_spec()), &observed);
    let row = rows.iter().find(|row| row.layer == "selinux").unwrap();
    assert!(row.isolated, "{row:?}");
    cgroup.kill().unwrap();
    sys::process::wait(running.pidfd.as_fd()).unwrap();
    sandbox.destroy().unwrap();
}

#[test]
fn a_label_that_the_policy_does_not_know_is_refused() {
    if !enforced("a_label_that_the_policy_does_not_know_is_refused") {
        return;
    }
    let bundle = Bundle::new("no-label", "true");
    bundle.change(|config| {
        config["process"]["selinuxLabel"] = json!("system_u:system_r:no_such_t:s0");
    });
    let said = bundle.fail(&["run", "c"]);
    assert!(said.contains("failed to set the security label"), "{said}");
}
