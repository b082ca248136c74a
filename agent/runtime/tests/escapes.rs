//! Known ways out of a container, tried.

#![allow(clippy::unwrap_used)] // a test that fails

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::Ground;
use oci_spec::runtime::Capability;
use runtime::container::{self, Stdio};
use runtime::spec::ContainerSpec;
use runtime::{capability, seccomp};
use serde_json::json;

fn mounts(spec: &mut ContainerSpec, mount: serde_json::Value) {
    spec.config
        .mounts_mut()
        .as_mut()
        .unwrap()
        .push(serde_json::from_value(mount).unwrap());
}

/// CVE-2021-30465, CVE-2024-45310: a mount target that is a link to the host.
#[test]
fn mount_targets_resolve_inside_the_root() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let outside = ground.temp.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, ground.layer().join("absolute")).unwrap();
    symlink("../../../../../../../../tmp", ground.layer().join("relative")).unwrap();
    symlink("/proc/self/fd", ground.layer().join("magic")).unwrap();
    let script = "echo y > /relative/file && cat /tmp/file";
    let mut spec = ground.container("dangling", script);
    mounts(
        &mut spec,
        json!({"destination": "/absolute/deep", "type": "tmpfs", "source": "tmpfs"}),
    );
    // Inside, the link leads nowhere; the place that it names on the host is not made.
    let error = ground.run(&spec, Some(&sandbox), &cgroup).unwrap_err();
    assert!(error.to_string().contains("/absolute/deep"), "{error}");
    let mut spec = ground.container("web", script);
    mounts(
        &mut spec,
        json!({"destination": "/relative", "type": "tmpfs", "source": "tmpfs"}),
    );
    let (code, output) = ground.run(&spec, Some(&sandbox), &cgroup).unwrap();
    assert_eq!((code, &*output), (0, "y\n"));
    assert_eq!(
        fs::read_dir(&outside).unwrap().count(),
        0,
        "nothing was made on the host"
    );
    assert!(!Path::new("/tmp/file").exists());
    sandbox.destroy().unwrap();
}

/// CVE-2019-19921, CVE-2023-27561: /proc that leads elsewhere, so that masks and labels go to a fake.
#[test]
fn proc_behind_a_link_is_refused() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    fs::remove_dir(ground.layer().join("proc")).unwrap();
    fs::create_dir(ground.layer().join("fake")).unwrap();
    symlink("/fake", ground.layer().join("proc")).unwrap();
    let error = ground
        .run(&ground.container("web", "true"), Some(&sandbox), &cgroup)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("/proc in the root file system: a symbolic link"),
        "{error}"
    );
    sandbox.destroy().unwrap();
}

/// CVE-2025-31133 and what masks are for; also that nobody inside can take them off.
#[test]
fn masked_and_readonly_paths_hold_also_against_admin() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let script = "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c; ls /proc/acpi /sys/firmware 2>/dev/null | grep -v : | grep -c .; \
        echo 1 > /proc/sys/vm/drop_caches; echo b > /proc/sysrq-trigger; echo x > /proc/sys/kernel/core_pattern; \
        echo 1 > /sys/fs/cgroup/cgroup.procs; ls -l /dev/null | cut -c1; mknod /tmp/disk b 254 0; mount -t tmpfs x /tmp";
    let spec = ground.container("web", script);
    let (_, output) = ground.run(&spec, Some(&sandbox), &cgroup).unwrap();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..2], ["0", "0"], "{output}");
    assert!(output.matches("Read-only file system").count() >= 3, "{output}");
    assert!(
        output.contains("mknod: /tmp/disk: Operation not permitted"),
        "{output}"
    );
    assert!(
        output.contains("permission denied") || output.contains("Operation not permitted"),
        "{output}"
    );
    sandbox.destroy().unwrap();
}

/// With SYS_ADMIN in its user namespace a container may mount, but reach neither the host's devices nor its files.
#[test]
fn admin_in_a_user_namespace_stays_inside() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let script = "mkdir /m; mount -t tmpfs x /m && echo mounted; mknod /m/disk b 254 0; mount -o remount,rw /proc/sys 2>&1; \
        echo x > /proc/sys/kernel/core_pattern; mkdir /c; \
        mount -t cgroup -o memory x /c && echo /x > /c/release_agent && echo an agent; true";
    let mut spec = ground.container("web", script);
    let capabilities: Vec<Capability> = capability::DEFAULT
        .into_iter()
        .chain([Capability::SysAdmin, Capability::Mknod])
        .collect();
    spec.config
        .process_mut()
        .as_mut()
        .unwrap()
        .set_capabilities(Some(capability::sets(capabilities.clone())));
    let profile = seccomp::default_profile(&capabilities);
    spec.config
        .linux_mut()
        .as_mut()
        .unwrap()
        .set_seccomp(Some(profile));
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let (_, output) = ground.run(&spec, Some(&sandbox), &cgroup).unwrap();
    assert!(output.contains("mounted"), "{output}");
    assert!(
        output.contains("mknod: /m/disk: Operation not permitted"),
        "{output}"
    );
    // Where v1's hierarchy can be mounted, its file refuses; with v2 alone there is none to mount.
    assert!(!output.contains("an agent"), "CVE-2022-0492: {output}");
    assert_eq!(
        fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(),
        before,
        "{output}"
    );
    sandbox.destroy().unwrap();
}

/// CVE-2024-21626: a working directory through a descriptor of the host's.
#[test]
fn working_directory_through_a_descriptor_is_refused() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let held = fs::File::open("/").unwrap();
    fs::write(ground.layer().join("marker"), "").unwrap();
    for number in 3..40 {
        let mut spec = ground.container(&format!("fd{number}"), "ls ../../../../../../marker");
        let cwd = format!("/proc/self/fd/{number}");
        spec.config.process_mut().as_mut().unwrap().set_cwd(cwd.into());
        // A descriptor of the container's own root or mounts is no way out: its parent is the container's root.
        if let Ok((code, output)) = ground.run(&spec, Some(&sandbox), &cgroup) {
            assert_eq!(code, 0, "descriptor {number}: {output}");
        }
    }
    drop(held);
    sandbox.destroy().unwrap();
}

/// CVE-2019-5736: the container's program is our own binary, and is then written to.
#[test]
fn own_binary_is_out_of_reach() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    fs::write(ground.layer().join("bin/evil"), "#!/proc/self/exe\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(ground.layer().join("bin/evil"), mode).unwrap();
    let before = fs::metadata("/proc/self/exe").unwrap();
    let mut spec = ground.container("evil", "");
    spec.config
        .process_mut()
        .as_mut()
        .unwrap()
        .set_args(Some(vec!["/bin/evil".into()]));
    // It may run (as a program without any right); it is owned by an id that the pod does not have, so not written to.
    if let Ok(running) = container::start(
        &spec,
        Some(&sandbox),
        &cgroup,
        Stdio::null().unwrap(),
        &ground.options(),
    ) {
        sys::process::wait(running.pidfd.as_fd()).unwrap();
    }
    let script = "for p in /proc/[0-9]*; do echo x 2>/dev/null >> $p/exe && echo written; done; true";
    let (_, output) = ground
        .run(&ground.container("writer", script), Some(&sandbox), &cgroup)
        .unwrap();
    assert!(!output.contains("written"), "{output}");
    let after = fs::metadata("/proc/self/exe").unwrap();
    assert_eq!(
        (before.len(), before.modified().unwrap()),
        (after.len(), after.modified().unwrap())
    );
    sandbox.destroy().unwrap();
}

/// What the container mounts, also below a volume, does not show on the host.
#[test]
fn mounts_do_not_propagate_out() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let volume = ground.temp.path().join("volume");
    fs::create_dir_all(volume.join("sub")).unwrap();
    let mut spec = ground.container("web", "touch /data/sub/inside; ls /data/sub");
    mounts(
        &mut spec,
        json!({"destination": "/data", "type": "bind", "source": volume, "options": ["rbind", "idmap"]}),
    );
    mounts(
        &mut spec,
        json!({"destination": "/data/sub", "type": "tmpfs", "source": "tmpfs"}),
    );
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let (_, output) = ground.run(&spec, Some(&sandbox), &cgroup).unwrap();
    assert_eq!(output, "inside\n");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    assert_eq!(fs::read_dir(volume.join("sub")).unwrap().count(), 0);
    sandbox.destroy().unwrap();
}
