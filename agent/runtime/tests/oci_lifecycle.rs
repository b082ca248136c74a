//! runtime.md and runtime-linux.md of the OCI specification, sentence by sentence: needs root and busybox (static).

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;
mod program;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use bundle::Bundle;
use serde_json::{Value, json};

fn state(bundle: &Bundle) -> Value {
    serde_json::from_str(&bundle.succeed(&["state", "c"])).unwrap()
}

/// State: `ociVersion`, `id`, `status`, `pid`, `bundle` are REQUIRED, `annotations` are the configuration's.
#[test]
fn the_state_has_what_the_specification_requires() {
    let bundle = Bundle::new("state", "exec sleep 1000");
    bundle.change(|config| config["annotations"] = json!({ "org.example.key": "", "k": "v" }));
    bundle.create(&["create", "c"]);
    let first = state(&bundle);
    let pid = first["pid"].as_i64().unwrap();
    assert!(fs::exists(format!("/proc/{pid}")).unwrap());
    let path = bundle.path().canonicalize().unwrap();
    let mut expected = json!({ "id": "c", "status": "created", "bundle": path, "pid": pid });
    expected["annotations"] = json!({ "org.example.key": "", "k": "v" });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&first[field], value, "{field}");
    }
    let version = first["ociVersion"].as_str().unwrap();
    assert_eq!(version.split('.').count(), 3, "{version}");
    bundle.succeed(&["start", "c"]);
    assert_eq!(
        (&state(&bundle)["status"], &state(&bundle)["pid"]),
        (&json!("running"), &json!(pid))
    );
    bundle.succeed(&["kill", "c", "KILL"]);
    bundle.wait_status("stopped");
}

/// Query State, Create, Start, Kill, Delete: "MUST generate an error if it is not provided the container ID", and of a
/// container that does not exist.
#[test]
fn operations_without_a_container_are_errors() {
    let bundle = Bundle::new("nobody", "true");
    for verb in ["state", "create", "start", "kill", "delete"] {
        assert!(!bundle.fail(&[verb]).is_empty(), "{verb}");
    }
    for call in [
        &["state", "c"][..],
        &["start", "c"],
        &["kill", "c", "9"],
        &["delete", "c"],
    ] {
        assert!(bundle.fail(call).contains("does not exist"), "{call:?}");
    }
    for id in ["", "a/b", "..", "a b", "\u{e9}"] {
        bundle.fail(&["create", id]);
    }
    // Create: no bundle there, or none that is one.
    bundle.fail(&["create", "--bundle", "/no/such", "c"]);
    let empty = tempfile::tempdir().unwrap();
    let said = bundle.fail(&["create", "--bundle", empty.path().to_str().unwrap(), "c"]);
    assert!(said.contains("config.json"), "{said}");
    bundle.fail(&["state", "c"]);
}

/// Create: of an id that is taken "a new container MUST NOT be created", and the one that has it stays as it is.
#[test]
fn a_taken_id_makes_nothing_and_changes_nothing() {
    let bundle = Bundle::new("taken", "exec sleep 1000");
    bundle.create(&["create", "c"]);
    let before = state(&bundle);
    let other = Bundle::new("taken-other", "true");
    let said = bundle.fail(&["create", "--bundle", other.path().to_str().unwrap(), "c"]);
    assert!(said.contains("already exists"), "{said}");
    assert_eq!(state(&bundle), before);
    bundle.succeed(&["delete", "c"]);
    // Delete: "Once a container is deleted its ID MAY be used by a subsequent container".
    bundle.create(&["create", "c"]);
    assert_ne!(state(&bundle)["pid"], before["pid"]);
}

/// Lifecycle 2: "Any updates to config.json after this step MUST NOT affect the container"; `process` is not run before
/// start, and start runs what was said then.
#[test]
fn what_was_said_at_create_is_what_runs() {
    let bundle = Bundle::new("updates", "hostname; echo first > /ran; exec sleep 1000");
    bundle.change(|config| config["hostname"] = json!("before"));
    bundle.create(&["create", "c"]);
    bundle.change(|config| {
        config["hostname"] = json!("after");
        config["process"]["args"] = json!(["/bin/sh", "-c", "echo second > /ran"]);
    });
    let ran = bundle.path().join("rootfs/ran");
    assert!(!ran.exists());
    bundle.succeed(&["start", "c"]);
    bundle.wait_until("it runs", || {
        fs::read_to_string(&ran).is_ok_and(|text| text == "first\n")
    });
    assert_eq!(bundle.out(), "before\n");
}

/// Start: "MUST generate an error if `process` was not set", which is OPTIONAL for create.
#[test]
fn a_container_without_a_process_is_created_and_never_started() {
    let bundle = Bundle::new("bare", "true");
    bundle.change(|config| drop(config.as_object_mut().unwrap().remove("process")));
    assert!(bundle.fail(&["run", "c"]).contains("process"));
    bundle.fail(&["state", "c"]);
    bundle.create(&["create", "c"]);
    assert_eq!(bundle.status(), "created");
    assert!(bundle.fail(&["start", "c"]).contains("process"));
    assert_eq!(bundle.status(), "created");
    // All else of the configuration is there.
    assert!(
        bundle
            .succeed(&["exec", "c", "/bin/ls", "/proc/self"])
            .contains("status")
    );
    bundle.succeed(&["kill", "c", "KILL"]);
    bundle.wait_status("stopped");
    bundle.succeed(&["delete", "c"]);
}

/// Start, Kill, Delete: in another state than they are for they "MUST have no effect on the container and MUST generate an
/// error".
#[test]
fn operations_in_the_wrong_state_have_no_effect() {
    let bundle = Bundle::new(
        "wrong",
        "trap 'echo got' USR1; echo ready; while :; do sleep 0.01; done",
    );
    bundle.create(&["create", "c"]);
    bundle.succeed(&["start", "c"]);
    bundle.wait_until("it is ready", || bundle.out() == "ready\n");
    let running = state(&bundle);
    bundle.fail(&["start", "c"]);
    bundle.fail(&["delete", "c"]);
    assert_eq!(state(&bundle), running);
    // Kill: "MUST send the specified signal to the container process".
    bundle.succeed(&["kill", "c", "USR1"]);
    bundle.wait_until("the signal comes", || bundle.out() == "ready\ngot\n");
    assert_eq!(state(&bundle), running);
    bundle.succeed(&["kill", "c", "KILL"]);
    bundle.wait_status("stopped");
    let stopped = state(&bundle);
    for call in [
        &["start", "c"][..],
        &["kill", "c", "TERM"],
        &["kill", "c", "KILL"],
    ] {
        bundle.fail(call);
        assert_eq!(state(&bundle), stopped, "{call:?}");
    }
    assert_eq!(bundle.out(), "ready\ngot\n");
    bundle.succeed(&["delete", "c"]);
}

/// Kill is for a created container too.
#[test]
fn a_created_container_can_be_killed() {
    let bundle = Bundle::new("killcreated", "echo ran > /ran");
    bundle.create(&["create", "c"]);
    bundle.succeed(&["kill", "c", "KILL"]);
    bundle.wait_status("stopped");
    assert!(bundle.fail(&["start", "c"]).contains("stopped"));
    assert!(!bundle.path().join("rootfs/ran").exists());
}

/// Delete: "MUST delete the resources that were created during the `create` step", and what others made "MUST NOT be
/// deleted".
#[test]
fn delete_removes_what_create_made_and_nothing_else() {
    let bundle = Bundle::new("resources", "exec sleep 1000");
    let volume = bundle.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("kept"), "x").unwrap();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let (before, beside) = (mounts(), beside(&bundle));
    bundle.change(|config| {
        let mount = json!({ "destination": "/v", "source": volume, "options": ["rbind"] });
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
    bundle.create(&["create", "c"]);
    let pid = state(&bundle)["pid"].as_i64().unwrap();
    let groups: Vec<PathBuf> = groups(&bundle, "c");
    assert!(!groups.is_empty() && groups.iter().all(|group| group.exists()));
    bundle.succeed(&["kill", "c", "KILL"]);
    bundle.wait_status("stopped");
    bundle.succeed(&["delete", "c"]);
    assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
    assert!(!fs::exists(format!("/proc/{pid}/ns/mnt")).unwrap());
    assert_eq!(fs::read_dir(bundle.path().join("state")).unwrap().count(), 0);
    assert_eq!(mounts(), before);
    assert!(volume.join("kept").exists() && bundle.path().join("rootfs/bin/sh").exists());
    assert!(beside.iter().all(|group| group.exists()));
}

fn groups(bundle: &Bundle, name: &str) -> Vec<PathBuf> {
    let layout = runtime::cgroup::Layout::detect().unwrap();
    runtime::cgroup::Cgroup::open(&layout, &bundle.cgroup.join(name))
        .unwrap()
        .directories()
}

/// Groups beside the container's, that nobody but us made.
fn beside(bundle: &Bundle) -> Vec<PathBuf> {
    let all = groups(bundle, "beside");
    all.iter().for_each(|group| fs::create_dir_all(group).unwrap());
    all
}

/// Create: what cannot be applied "MUST generate an error and a new container MUST NOT be created"; Errors: "as if the
/// operation were never attempted".
#[test]
fn what_cannot_be_applied_leaves_no_trace() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 9] = [
        ("rootfs", |config| config["root"]["path"] = json!("nowhere")),
        ("rootfs", |config| config["root"]["path"] = json!("config.json")),
        ("mount", |config| {
            let mount = json!({ "destination": "/x", "type": "nosuchfs", "source": "x" });
            config["mounts"].as_array_mut().unwrap().push(mount);
        }),
        ("mount", |config| {
            let mount = json!({ "destination": "/x", "source": "/no/such/place", "options": ["bind"] });
            config["mounts"].as_array_mut().unwrap().push(mount);
        }),
        ("sysctl", |config| {
            config["linux"]["sysctl"] = json!({ "vm.swappiness": "1" })
        }),
        ("cgroup", |config| config["linux"]["cgroupsPath"] = json!("/../x")),
        ("limit", |config| {
            config["linux"]["resources"] = json!({ "pids": { "limit": "x" } })
        }),
        ("directory", |config| {
            config["process"]["cwd"] = json!("/proc/nowhere")
        }),
        ("hook", |config| {
            config["hooks"] = json!({ "createRuntime": [{ "path": "/no/such" }] })
        }),
    ];
    for (what, change) in changes {
        let bundle = Bundle::new("notrace", "true");
        bundle.change(change);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        bundle.fail(&["create", "c"]);
        let state = fs::read_dir(bundle.path().join("state"));
        assert_eq!(state.map_or(0, Iterator::count), 0, "{what}");
        assert!(groups(&bundle, "c").iter().all(|group| !group.exists()), "{what}");
        assert_eq!(
            fs::read_to_string("/proc/self/mountinfo").unwrap(),
            mounts,
            "{what}"
        );
    }
}

/// runtime-linux.md, Dev symbolic links and File descriptors; config-linux.md, Default Devices.
#[test]
fn dev_has_its_links_and_devices_and_only_three_descriptors_are_open() {
    let script = "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; \
                  stat -c '%n %t:%T %a' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty; ls /proc/self/fd";
    let bundle = Bundle::new("devlinks", script);
    let links = "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n";
    let nodes = "/dev/null 1:3 666\n/dev/zero 1:5 666\n/dev/full 1:7 666\n/dev/random 1:8 666\n/dev/urandom 1:9 666\n/dev/tty 5:0 666\n";
    // 3 is the directory that is being listed.
    assert_eq!(bundle.run(0), format!("{links}{nodes}0\n1\n2\n3\n"));
}

/// config-linux.md, Default Devices: `/dev/console` is the terminal's own pseudoterminal, bound.
#[test]
fn the_console_is_the_terminal_itself() {
    let script = "test -t 0 && stat -L -c '%t:%T' /dev/console /proc/self/fd/0; grep -c ' /dev/console ' /proc/self/mountinfo";
    let bundle = Bundle::new("console", script);
    bundle.change(|config| config["process"]["terminal"] = json!(true));
    let out = bundle.run(0).replace('\r', "");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 3, "{out}");
    assert!(
        lines[0] == lines[1] && lines[0].starts_with("88:") && lines[2] == "1",
        "{out}"
    );
    // Without a terminal there is none, and `consoleSize` "MUST be ignored".
    bundle.change(|config| {
        config["process"]["terminal"] = json!(false);
        config["process"]["consoleSize"] = json!({ "height": 1, "width": 2 });
        config["process"]["args"] =
            json!(["/bin/sh", "-c", "test -t 0 || test -e /dev/console || echo none"]);
    });
    assert_eq!(bundle.run(0), "none\n");
}

/// config-linux.md, Devices: "If a file already exists at `path` that does not match the requested device, the runtime MUST
/// generate an error".
#[test]
fn a_file_in_the_place_of_a_device_is_an_error() {
    let bundle = Bundle::new("devfile", "test -c /opt/zero && test -p /opt/pipe && echo there");
    let place = bundle.path().join("rootfs/opt");
    fs::create_dir(&place).unwrap();
    bundle.change(|config| {
        config["linux"]["devices"] = json!([
            { "path": "/opt/zero", "type": "c", "major": 1, "minor": 5 },
            { "path": "/opt/pipe", "type": "p" },
        ]);
    });
    assert_eq!(bundle.run(0), "there\n");
    assert!(
        fs::metadata(place.join("zero"))
            .unwrap()
            .file_type()
            .is_char_device()
    );
    // The same again is what is asked for.
    assert_eq!(bundle.run(0), "there\n");
    fs::remove_file(place.join("zero")).unwrap();
    fs::write(place.join("zero"), "image").unwrap();
    let said = bundle.fail(&["run", "c"]);
    assert!(said.contains("device"), "{said}");
    assert_eq!(fs::read_to_string(place.join("zero")).unwrap(), "image");
    fs::remove_file(place.join("zero")).unwrap();
    let other = nix::sys::stat::makedev(1, 3);
    nix::sys::stat::mknod(
        &place.join("zero"),
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        other,
    )
    .unwrap();
    bundle.fail(&["run", "c"]);
    assert_eq!(fs::metadata(place.join("zero")).unwrap().rdev(), other);
}

/// config-linux.md, Control groups: a check that fails "MUST generate an error", as of a frozen group or one with processes.
#[test]
fn a_group_that_others_are_in_is_not_taken() {
    let bundle = Bundle::new("ingroup", "exec sleep 1000");
    bundle.create(&["create", "c"]);
    let other = Bundle::new("ingroup-other", "true");
    other.change(|config| config["linux"]["cgroupsPath"] = json!(bundle.cgroup.join("c")));
    let said = other.fail(&["create", "c"]);
    assert!(said.contains("container's cgroup is not empty"), "{said}");
    bundle.succeed(&["pause", "c"]);
    let said = other.fail(&["create", "c"]);
    assert!(said.contains("container's cgroup unexpectedly frozen"), "{said}");
    bundle.succeed(&["resume", "c"]);
    assert_eq!(bundle.status(), "created");
}
