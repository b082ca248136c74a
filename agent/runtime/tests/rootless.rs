//! The OCI command line and podman by a user who is not root: needs root to be that user, uidmap, podman and busybox
//! (static). The user and his subordinate ids are in files of the test's own, which only its mount namespace sees.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod engine;
mod program;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use engine::{Daemon, SERVICE, runtime, wait_for};
use serde_json::{Value, json};

/// Nobody else's, in a test of its own.
const USER: u32 = 64_901;
/// The first of the ids that the lists give him.
const SUBORDINATE: u32 = 710_000_000;

struct User(Daemon);

impl User {
    fn new(test: &str, programs: &[&str]) -> Option<User> {
        if !engine::installed(test, &[&["nsenter", "setpriv"][..], programs].concat()) {
            return None;
        }
        let temp = engine::directory();
        engine::archive(temp.path());
        for directory in ["run", "home"] {
            fs::create_dir(temp.path().join(directory)).unwrap();
        }
        fs::rename(temp.path().join("image"), temp.path().join("rootfs")).unwrap();
        fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let owner = format!("{USER}:{USER}");
        let given = Command::new("chown")
            .args(["-R", &owner])
            .arg(temp.path())
            .status();
        assert!(given.unwrap().success());
        for (file, line) in [
            ("passwd", format!("bulkheadtest:x:{USER}:{USER}::/:/bin/sh\n")),
            ("group", format!("bulkheadtest:x:{USER}:\n")),
        ] {
            let all = fs::read_to_string(format!("/etc/{file}")).unwrap() + &line;
            fs::write(temp.path().join(file), all).unwrap();
        }
        for file in ["subuid", "subgid"] {
            let line = format!("bulkheadtest:{SUBORDINATE}:65536\n");
            fs::write(temp.path().join(file), line).unwrap();
        }
        let script = "for file in /etc/subuid /etc/subgid; do test -e $file || : >$file; done; \
                      for file in passwd group subuid subgid; do \
                      mount --bind $file /etc/$file || exit 1; done && touch ready && sleep 1000000";
        let user = User(Daemon::new(test, temp, script));
        wait_for("the user's files", || user.0.path("ready").exists());
        Some(user)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    /// A command of the user's, with streams that nobody waits for.
    fn call(&self, program: &str, words: &[&str]) -> (i32, String) {
        let out = fs::File::create(self.path("out")).unwrap();
        let id = USER.to_string();
        let mut command = self.0.client("setpriv");
        command
            .args(["--reuid", &id, "--regid", &id, "--clear-groups", program])
            .args(words)
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("home"))
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.path("storage.conf"))
            .env_remove("USER")
            .stdout(out.try_clone().unwrap())
            .stderr(out);
        let code = command.status().unwrap().code().unwrap_or(-1);
        (code, fs::read_to_string(self.path("out")).unwrap())
    }

    fn oci(&self, words: &[&str]) -> (i32, String) {
        let bundle = format!("--bundle={}", self.0.temp.path().display());
        let takes_one = words.iter().any(|word| ["create", "run", "spec"].contains(word));
        let bundle = takes_one.then_some(bundle.as_str());
        self.call(runtime(), &[words, bundle.as_slice()].concat())
    }

    #[track_caller]
    fn succeed(&self, words: &[&str]) -> String {
        let (code, text) = self.oci(words);
        assert_eq!(code, 0, "{words:?}: {text}");
        text
    }

    #[track_caller]
    fn refused(&self, words: &[&str], why: &str) {
        let (code, text) = self.oci(words);
        assert!(code != 0 && text.contains(why), "{words:?}: {code} {text}");
    }

    /// What `spec --rootless` writes, with a program, changed.
    fn configure(&self, script: &str, change: impl FnOnce(&mut Value)) {
        let path = self.path("config.json");
        if path.exists() {
            fs::remove_file(&path).unwrap();
        }
        self.succeed(&["spec", "--rootless"]);
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/bin/sh", "-c", script]);
        config["process"]["env"] = json!(["PATH=/bin"]);
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }
}

/// A mapping as the configuration has it.
fn maps(lines: &[(u32, u32, u32)]) -> Value {
    let line = |(inside, host, count): &(u32, u32, u32)| json!({ "containerID": inside, "hostID": host, "size": count });
    lines.iter().map(line).collect()
}

#[test]
fn an_ordinary_user_has_containers_of_his_own_id() {
    let Some(user) = User::new("an_ordinary_user_has_containers_of_his_own_id", &[]) else {
        return;
    };
    let look = "id; cat /proc/self/setgroups /proc/self/uid_map; echo x >/dev/null && \
                dd if=/dev/zero bs=1 count=3 2>/dev/null | cat >/tmp/made; ls /sys/kernel >/dev/null && exit 6";
    user.configure(look, |config| config["root"]["readonly"] = json!(false));
    let (code, text) = user.oci(&["run", "c"]);
    assert_eq!(code, 6, "{text}");
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let own = USER.to_string();
    assert_eq!(
        lines,
        [
            vec!["uid=0(root)", "gid=0(root)"],
            vec!["deny"],
            vec!["0", &own, "1"]
        ],
        "{text}"
    );
    let made = fs::metadata(user.path("rootfs/tmp/made")).unwrap();
    assert_eq!((made.uid(), made.len()), (USER, 3));
    user.configure(SERVICE, |_| ());
    user.succeed(&["create", "c"]);
    let root = fs::metadata(user.path("run/bulkhead/oci")).unwrap();
    assert_eq!((root.uid(), root.mode() & 0o7777), (USER, 0o1700));
    let state = || -> Value { serde_json::from_str(&user.succeed(&["state", "c"])).unwrap() };
    assert_eq!(state()["status"], "created");
    user.succeed(&["start", "c"]);
    wait_for("the container", || state()["status"] == "running");
    assert_eq!(
        user.succeed(&["exec", "c", "/bin/sh", "-c", "id"]),
        "uid=0(root) gid=0(root)\n"
    );
    let words = [
        "exec",
        "--tty",
        "c",
        "/bin/sh",
        "-c",
        "test -t 1 && echo terminal; exit 9",
    ];
    let (code, text) = user.oci(&words);
    assert!(code == 9 && text.contains("terminal"), "{code} {text}");
    assert_eq!(user.oci(&["exec", "c", "/no/such"]).0, 127);
    let pids: Vec<Value> = serde_json::from_str(&user.succeed(&["ps", "--format", "json", "c"])).unwrap();
    assert!(pids.contains(&state()["pid"]), "{pids:?}");
    assert!(user.succeed(&["list"]).contains("running"));
    // What takes a cgroup is told from what goes wrong.
    user.refused(&["pause", "c"], "has no cgroup");
    user.refused(&["update", "--pids-limit", "5", "c"], "has no cgroup");
    user.refused(&["events", "--stats", "c"], "has no cgroup");
    user.succeed(&["kill", "c", "TERM"]);
    wait_for("its end", || state()["status"] == "stopped");
    user.succeed(&["delete", "c"]);
    user.succeed(&["create", "c"]);
    user.succeed(&["start", "c"]);
    user.succeed(&["kill", "--all", "c", "KILL"]);
    wait_for("its end", || state()["status"] == "stopped");
    user.succeed(&["delete", "c"]);
    user.succeed(&["create", "c"]);
    user.succeed(&["delete", "--force", "c"]);
    assert_eq!(fs::read_dir(user.path("run/bulkhead/oci")).unwrap().count(), 0);
}

#[test]
fn ids_beyond_his_own_are_those_of_the_lists() {
    let test = "ids_beyond_his_own_are_those_of_the_lists";
    let Some(user) = User::new(test, &["newuidmap", "newgidmap"]) else {
        return;
    };
    let script = "cat /proc/self/uid_map; touch /tmp/file; id";
    let run = |lines: &[(u32, u32, u32)], id: u32| {
        user.configure(script, |config| {
            config["linux"]["uidMappings"] = maps(lines);
            config["linux"]["gidMappings"] = maps(lines);
            config["root"]["readonly"] = json!(false);
            config["process"]["user"] = json!({ "uid": id, "gid": id, "additionalGids": [5] });
        });
        user.oci(&["run", "c"])
    };
    let (code, text) = run(&[(0, USER, 1), (1, SUBORDINATE, 65_536)], 0);
    assert!(code == 0 && text.ends_with(" groups=5\n"), "{code} {text}");
    assert_eq!(fs::metadata(user.path("rootfs/tmp/file")).unwrap().uid(), USER);
    // Root is somebody else, and he keeps his number.
    let (code, text) = run(&[(0, SUBORDINATE, 1000), (1000, USER, 1)], 1000);
    assert!(code == 0 && text.contains("uid=1000"), "{code} {text}");
    let (code, text) = run(&[(0, USER, 1), (1, SUBORDINATE + 65_536, 10)], 0);
    assert!(code == 1 && text.contains("newuidmap refused"), "{code} {text}");
    let (code, text) = run(&[(0, 0, 1)], 0);
    assert!(code == 1 && text.contains("newuidmap refused"), "{code} {text}");
    assert_eq!(fs::read_dir(user.path("run/bulkhead/oci")).unwrap().count(), 0);
}

#[test]
fn what_a_user_without_root_cannot_have_is_refused_by_name() {
    let Some(user) = User::new("what_a_user_without_root_cannot_have_is_refused_by_name", &[]) else {
        return;
    };
    user.configure("true", |config| {
        config["linux"]["resources"] = json!({ "pids": { "limit": 5 } })
    });
    user.refused(&["run", "c"], "linux.resources");
    user.configure("true", |config| {
        config["process"]["user"]["additionalGids"] = json!([5])
    });
    user.refused(
        &["run", "c"],
        "cannot set any additional groups in a rootless container",
    );
    user.configure("true", |config| config["linux"]["uidMappings"] = json!([]));
    user.refused(&["run", "c"], "requires at least one UID mapping");
    let device = json!([{ "path": "/dev/null2", "type": "c", "major": 1, "minor": 3 }]);
    user.configure("true", |config| config["linux"]["devices"] = device);
    user.refused(&["run", "c"], "/dev/null2");
    user.configure("true", |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|one| one["type"] != "user");
        let linux = config["linux"].as_object_mut().unwrap();
        linux.retain(|field, _| !field.ends_with("Mappings"));
    });
    user.refused(&["run", "c"], "requires user namespaces");
    user.configure("true", |config| {
        config["linux"]["cgroupsPath"] = json!("a.slice:b:c")
    });
    user.refused(&["--systemd-cgroup", "run", "c"], "needs root");
    user.refused(&["--rootless", "perhaps", "run", "c"], "--rootless");
    user.refused(
        &["--rootless=false", "--root", "run/other", "run", "c"],
        "Permission denied",
    );
    assert_eq!(fs::read_dir(user.path("run/bulkhead/oci")).unwrap().count(), 0);
}

#[test]
fn podman_runs_without_root() {
    let programs = ["podman", "conmon", "newuidmap"];
    let Some(user) = User::new("podman_runs_without_root", &programs) else {
        return;
    };
    let at = |name: &str| user.path(name).display().to_string();
    let containers = format!(
        "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n[engine]\nlock_type = \"file\"\n\
         runtime = \"bulkhead\"\n[engine.runtimes]\nbulkhead = [\"{}\"]\n",
        runtime()
    );
    fs::write(user.path("containers.conf"), containers).unwrap();
    let storage = format!(
        "[storage]\ndriver = \"vfs\"\nrunroot = \"{}\"\ngraphroot = \"{}\"\n",
        at("home/run"),
        at("home/root")
    );
    fs::write(user.path("storage.conf"), storage).unwrap();
    let call = |words: &[&str]| {
        let (root, run, tmp) = (at("home/root"), at("home/run"), at("home/tmp"));
        let own = [
            "--root",
            &root,
            "--runroot",
            &run,
            "--tmpdir",
            &tmp,
            "--cgroup-manager",
            "cgroupfs",
        ];
        let (code, text) = user.call(
            "podman",
            &[&own[..], &["--events-backend", "file"], words].concat(),
        );
        // Of a mount namespace that is none of the host's.
        let shared = |line: &&str| !line.contains("is not a shared mount");
        let lines: Vec<&str> = text.lines().filter(shared).collect();
        (code, lines.join("\n"))
    };
    // Read from the log: on a busy machine podman's client may come too late for the last words of a short life.
    let run = |flags: &[&str], program: &[&str]| {
        let words = ["run", "--network", "none", "--name", "short"];
        let (code, text) = call(&[&words[..], flags, &["hello:1"], program].concat());
        let (_, said) = call(&["logs", "short"]);
        assert_eq!(call(&["rm", "--force", "short"]).0, 0);
        match code {
            125.. => (code, text),
            _ => (code, said),
        }
    };
    let (code, text) = call(&["import", &at("image.tar"), "hello:1"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(
        run(&[], &["sh", "-c", "echo hello; exit 7"]),
        (7, "hello".to_owned())
    );
    let (code, text) = run(&[], &["/no/such"]);
    assert_eq!(code, 127, "{text}");
    let (code, text) = run(
        &["--user", "1000"],
        &["sh", "-c", "id -u; cat /proc/self/uid_map"],
    );
    let words: Vec<&str> = text.split_whitespace().collect();
    let (own, subordinate) = (USER.to_string(), SUBORDINATE.to_string());
    assert_eq!((code, &words[..4]), (0, &["1000", "0", &own, "1"][..]), "{text}");
    assert_eq!(words[5], subordinate, "{text}");
    let (code, text) = run(&["--userns", "keep-id"], &["id", "-u"]);
    assert_eq!((code, text), (0, own));
    let (code, text) = call(&[
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "life",
        "hello:1",
        "sh",
        "-c",
        SERVICE,
    ]);
    assert_eq!(code, 0, "{text}");
    wait_for("the program speaks", || call(&["logs", "life"]).1 == "started");
    assert_eq!(call(&["exec", "life", "id", "-u"]), (0, "0".to_owned()));
    assert_eq!(call(&["exec", "life", "/no/such"]).0, 127);
    assert_eq!(call(&["stop", "--time", "30", "life"]).0, 0);
    let code = call(&["inspect", "--format", "{{.State.ExitCode}}", "life"]);
    assert_eq!(code, (0, "5".to_owned()));
    assert_eq!(call(&["rm", "life"]).0, 0);
    // The cleaner of a container that goes by itself works beside us.
    wait_for("nothing is left", || {
        fs::read_dir(user.path("run/bulkhead/oci")).unwrap().count() == 0
    });
}
