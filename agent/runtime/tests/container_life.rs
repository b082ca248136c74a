//! Real containers that wait, have terminals, or keep something of the image or the host.

#![allow(clippy::unwrap_used)] // a test that fails

mod common;

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use common::Ground;
use runtime::capability;
use runtime::container::{self, Options, ReleaseError, Stdio};
use runtime::sandbox::Sandbox;
use runtime::spec::Rootfs;
use serde_json::json;

#[test]
fn created_container_waits_for_its_release() {
    let ground = Ground::new();
    let cgroup = ground.cgroup("lone", json!({}));
    // A lone OCI container: all namespaces its own, root file system a directory, the host's users.
    let mut spec = ground.container("lone", "echo started");
    spec.rootfs = Rootfs::Bundle;
    spec.config.set_root(Some(
        serde_json::from_value(json!({"path": "layer", "readonly": true})).unwrap(),
    ));
    spec.config.set_hostname(Some("lone".into()));
    let all = ["mount", "pid", "ipc", "uts", "network", "cgroup"].map(|kind| json!({"type": kind}));
    let all = serde_json::from_value(json!(all)).unwrap();
    spec.config
        .linux_mut()
        .as_mut()
        .unwrap()
        .set_namespaces(Some(all));
    let fifo = ground.temp.path().join("exec.fifo");
    let options = Options {
        bundle: Some(ground.temp.path()),
        ..ground.options()
    };
    let (read, write) = sys::fd::pipe().unwrap();
    let stdio = Stdio::Fds([
        fs::File::open("/dev/null").unwrap().into(),
        write.try_clone().unwrap(),
        write,
    ]);
    let mut hooked = 0;
    let mut hooks = |pid: i32| {
        hooked = pid;
        Ok(())
    };
    let created = container::create(&spec, None, &cgroup, stdio, &options, &fifo, Some(&mut hooks)).unwrap();
    assert_eq!(hooked, created.running.pid);
    assert!(
        !sys::fd::wait_readable(read.as_fd(), Some(Duration::from_millis(50))).unwrap(),
        "it waits"
    );
    container::release(&fifo).unwrap();
    assert!(matches!(container::release(&fifo), Err(ReleaseError::Gone)));
    assert_eq!(
        common::finish(&created.running, read),
        (0, "started\n".to_owned())
    );
    // A hook's refusal ends it and leaves nothing.
    let mut refuse = |_| Err("the hook says no".to_owned());
    let stdio = Stdio::null().unwrap();
    let error =
        container::create(&spec, None, &cgroup, stdio, &options, &fifo, Some(&mut refuse)).unwrap_err();
    assert_eq!(error.to_string(), "the hook says no");
    assert!(!fifo.exists() && cgroup.pids().unwrap().is_empty());
}

#[test]
fn terminal_is_of_the_containers_own_devpts() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let spec = ground.container(
        "web",
        "tty; stty size; echo hello > /dev/console; ls -l /dev/pts/0 | wc -l",
    );
    let (ours, theirs) = sys::socket::seqpacket_pair().unwrap();
    let stdio = Stdio::Terminal {
        socket: theirs,
        size: Some(container::Size {
            columns: 101,
            rows: 37,
        }),
        bare_newlines: false,
    };
    let running = container::start(&spec, Some(&sandbox), &cgroup, stdio, &ground.options()).unwrap();
    let mut name = [0; 64];
    let (_, mut fds) = sys::socket::recv_fds(ours.as_fd(), &mut name).unwrap();
    let mut master = fs::File::from(fds.remove(0));
    sys::process::wait(running.pidfd.as_fd()).unwrap();
    let mut output = Vec::new();
    // A master without slaves ends with EIO after what was written.
    assert_eq!(
        master.read_to_end(&mut output).unwrap_err().raw_os_error(),
        Some(nix::libc::EIO)
    );
    assert_eq!(
        String::from_utf8(output).unwrap(),
        "/dev/pts/0\r\n37 101\r\nhello\r\n1\r\n"
    );
    sandbox.destroy().unwrap();
}

/// runtime-spec 1.2, config.md, Linux Process: "SHOULD NOT fail if ... capabilities that cannot be granted".
#[test]
fn capabilities_that_the_host_lacks_are_left_out_without_a_user_namespace() {
    let ground = Ground::new();
    let mut pod = ground.sandbox_spec();
    pod.users = None;
    let sandbox = Sandbox::create(&pod, &ground.layout).unwrap();
    let cgroup = ground.cgroup("web", json!({}));
    let mut spec = ground.container("web", "grep CapBnd /proc/self/status; cat /proc/self/uid_map");
    let all = capability::ALL.map(|(capability, _)| capability);
    spec.config
        .process_mut()
        .as_mut()
        .unwrap()
        .set_capabilities(Some(capability::sets(all)));
    let (code, output) = ground.run(&spec, Some(&sandbox), &cgroup).unwrap();
    assert_eq!(code, 0, "{output}");
    assert!(
        output.starts_with(&format!("CapBnd:\t{:016x}\n", capability::grantable())),
        "{output}"
    );
    assert!(output.contains("4294967295"), "{output}");
    sandbox.destroy().unwrap();
}

#[test]
fn tmpfs_with_copyup_begins_with_the_images_files() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let data = ground.layer().join("data");
    fs::create_dir_all(data.join("sub")).unwrap();
    fs::write(data.join("sub/file"), "content\n").unwrap();
    fs::set_permissions(data.join("sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("sub/file", data.join("link")).unwrap();
    std::os::unix::fs::chown(data.join("sub/file"), Some(1000), Some(1000)).unwrap();
    let mut spec = ground.container(
        "web",
        "cat /data/link; stat -c '%u %g %a' /data/sub/file; echo x > /data/new; stat -f -c %T /data",
    );
    let mount = json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs",
        "options": ["rw", "nosuid", "nodev", "tmpcopyup", "size=1m"]});
    spec.config
        .mounts_mut()
        .as_mut()
        .unwrap()
        .push(serde_json::from_value(mount).unwrap());
    let (code, output) = ground.run(&spec, Some(&sandbox), &cgroup).unwrap();
    assert_eq!((code, &*output), (0, "content\n1000 1000 640\ntmpfs\n"));
    assert!(!data.join("new").exists());
    sandbox.destroy().unwrap();
}
