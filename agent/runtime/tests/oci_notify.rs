//! Readiness (sd_notify(3)) from a container's program to who waits for it of the runtime: needs root and busybox (static).

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;
mod program;

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bundle::Bundle;
use serde_json::{Value, json};

/// syslog(3) sends a datagram for each message, so that a line of it is one of ours.
const READY: &str = "ln -sf $NOTIFY_SOCKET /dev/log; logger \"STOPPING=1\"; logger \"x
READY=1
MAINPID=7\";";

/// A service manager's socket.
struct Manager {
    socket: UnixDatagram,
    name: String,
}

impl Manager {
    fn new(bundle: &Bundle) -> Manager {
        let path = bundle.path().join("manager");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self::with(socket, path.to_str().unwrap().to_owned())
    }

    fn with(socket: UnixDatagram, name: String) -> Manager {
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Manager { socket, name }
    }

    fn hear(&self) -> String {
        let mut bytes = [0; 256];
        let count = self.socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    /// That nothing has been said; after the end of who could.
    fn heard_all(&self) {
        self.socket.set_nonblocking(true).unwrap();
        let error = self.socket.recv(&mut [0; 256]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    fn command(&self, bundle: &Bundle, arguments: &[&str]) -> Command {
        let mut command = bundle.command(arguments);
        command
            .env("NOTIFY_SOCKET", &self.name)
            .stdin(Stdio::null())
            .stdout(fs::File::create(bundle.path().join("out")).unwrap());
        command
    }
}

/// A bundle whose program waits for a file before it says that it is ready, and goes on running.
fn waiting(name: &str) -> Bundle {
    Bundle::new(
        name,
        &format!("echo up; until [ -e /tmp/go ]; do sleep 0.02; done; {READY} exec sleep 1000"),
    )
}

fn go(bundle: &Bundle) {
    fs::write(bundle.path().join("rootfs/tmp/go"), "").unwrap();
}

fn pid(bundle: &Bundle) -> i64 {
    let state: Value = serde_json::from_str(&bundle.succeed(&["state", "c"])).unwrap();
    state["pid"].as_i64().unwrap()
}

#[track_caller]
fn succeeds(mut child: Child) {
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_command_that_leaves_waits_for_readiness_and_names_the_process() {
    let bundle = waiting("notify");
    let manager = Manager::new(&bundle);
    for verbs in [&["run", "--detach", "c"][..], &["create", "c"]] {
        let mut command = manager.command(&bundle, verbs).spawn().unwrap();
        if verbs[0] == "create" {
            succeeds(command);
            command = manager.command(&bundle, &["start", "c"]).spawn().unwrap();
        }
        bundle.wait_until("its program runs", || bundle.out().contains("up"));
        assert_eq!(command.try_wait().unwrap(), None, "{verbs:?} before it is ready");
        go(&bundle);
        succeeds(command);
        // None of its other words.
        assert_eq!(manager.hear(), "READY=1");
        assert_eq!(manager.hear(), format!("MAINPID={}", pid(&bundle)));
        bundle.succeed(&["delete", "--force", "c"]);
        assert_eq!(fs::read_dir(bundle.path().join("state")).unwrap().count(), 0);
        fs::remove_file(bundle.path().join("rootfs/tmp/go")).unwrap();
    }
    manager.heard_all();
}

#[test]
fn in_the_foreground_readiness_is_passed_on_from_any_user_namespace() {
    let script = format!(
        "{READY} echo $NOTIFY_SOCKET; grep -o \" $(dirname $NOTIFY_SOCKET) r[a-z,]*\" /proc/self/mountinfo; exit 7"
    );
    let bundle = Bundle::new("notify-users", &script);
    fs::set_permissions(bundle.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let manager = Manager::new(&bundle);
    bundle.change(|config| {
        let list = config["linux"]["namespaces"].as_array_mut().unwrap();
        list.push(json!({ "type": "user" }));
        let map = json!([{ "containerID": 0, "hostID": 700_000, "size": 65_536 }]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
    });
    for place in ["rootfs", "rootfs/dev", "rootfs/tmp"] {
        std::os::unix::fs::chown(bundle.path().join(place), Some(700_000), Some(700_000)).unwrap();
    }
    let mut run = manager.command(&bundle, &["run", "c"]);
    assert_eq!(run.status().unwrap().code(), Some(7), "{}", bundle.out());
    let place = &manager.name;
    assert_eq!(
        bundle.out(),
        format!("{place}/notify\n {place} ro,nosuid,nodev,noexec,relatime\n")
    );
    assert_eq!(manager.hear(), "READY=1");
    manager.heard_all();
}

#[test]
fn a_program_that_ends_without_a_word_is_not_waited_for() {
    let bundle = Bundle::new("notify-never", "echo $NOTIFY_SOCKET");
    let name = format!("bulkhead-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let manager = Manager::with(UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"));
    succeeds(manager.command(&bundle, &["create", "c"]).spawn().unwrap());
    assert!(bundle.path().join("state/c/notify").is_dir());
    let out = bundle.out();
    succeeds(
        bundle
            .command(&["start", "c"])
            .env("NOTIFY_SOCKET", &manager.name)
            .spawn()
            .unwrap(),
    );
    bundle.wait_status("stopped");
    assert_eq!(out + &bundle.out(), "/run/notify/notify\n");
    bundle.succeed(&["delete", "c"]);
    manager.heard_all();
}

#[test]
fn a_manager_that_is_not_there_is_a_warning() {
    let bundle = Bundle::new("notify-nobody", &format!("{READY} echo done"));
    let path: PathBuf = bundle.path().join("nobody");
    for (name, said) in [
        (path.to_str().unwrap(), "failed to pass readiness on"),
        ("vsock:2:1234", "no readiness is passed on"),
    ] {
        let output = bundle
            .command(&["run", "c"])
            .env("NOTIFY_SOCKET", name)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n");
        let warning = String::from_utf8_lossy(&output.stderr);
        assert!(warning.contains(said), "{warning}");
    }
    // Nobody asked: no socket, and nothing in the environment.
    let bundle = Bundle::new("notify-none", "echo ${NOTIFY_SOCKET-none}");
    let output = bundle
        .command(&["run", "c"])
        .env_remove("NOTIFY_SOCKET")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "none\n");
}
