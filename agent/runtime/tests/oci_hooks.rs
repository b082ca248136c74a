//! Hooks of the OCI configuration at their six points: needs root and busybox (static).

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;
mod program;

use std::fs;

use bundle::Bundle;
use serde_json::{Value, json};

/// A hook of the host's that writes what it is and sees into a file beside the bundle.
fn tells(bundle: &Bundle, point: &str) -> Value {
    let directory = bundle.path().display();
    let script = format!(
        "cat > {directory}/{point}.state; echo {point} >> {directory}/order; env > {directory}/{point}.env; \
         readlink /proc/self/ns/mnt > {directory}/{point}.mnt; readlink /proc/self/ns/uts > {directory}/{point}.uts; \
         echo $0 > {directory}/{point}.name"
    );
    json!({
        "path": "/bin/busybox",
        "args": ["sh", "-c", script, "zero"],
        "env": ["PATH=/bin:/usr/bin", format!("POINT={point}")],
        "timeout": 60,
    })
}

fn own(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}"))
        .unwrap()
        .display()
        .to_string()
}

/// runtime-spec 1.2, config.md, POSIX-platform Hooks; runtime.md, Lifecycle.
#[test]
fn hooks_run_in_their_order_with_the_state_and_in_their_namespaces() {
    let bundle = Bundle::new("hooks", "echo program >> /order; exec sleep 1000");
    let root = bundle.path().join("rootfs");
    bundle.change(|config| {
        config["annotations"] = json!({ "a.b": "c" });
        config["hooks"] = json!({});
        for point in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            config["hooks"][point] = json!([tells(&bundle, point)]);
        }
        // The path is the container's, and so are all files.
        let script = "cat > /started.state; echo startContainer >> /order; env > /started.env; id -u > /started.uid; \
                      grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status > /started.rights";
        config["hooks"]["startContainer"] = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
    });
    let file = |name: &str| {
        fs::read_to_string(bundle.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let state = |name: &str| -> Value { serde_json::from_str(&file(name)).unwrap() };
    bundle.create(&["create", "c"]);
    assert_eq!(file("order"), "prestart\ncreateRuntime\ncreateContainer\n");
    for point in ["prestart", "createRuntime", "createContainer"] {
        let state = state(&format!("{point}.state"));
        let status = if point == "prestart" {
            "created"
        } else {
            "creating"
        };
        assert_eq!(
            (&state["status"], &state["id"]),
            (&json!(status), &json!("c")),
            "{point}"
        );
        assert_eq!(state["annotations"]["a.b"], "c");
        assert_eq!(state["bundle"], bundle.path().to_str().unwrap());
        // State: in the container's namespaces "it is the pid as seen by the container".
        assert_eq!(state["pid"] == 1, point == "createContainer", "{state}");
        assert!(state["pid"].as_i64().unwrap() > 0);
        let env = file(&format!("{point}.env"));
        assert!(
            env.contains(&format!("POINT={point}\n")) && !env.contains("HOME="),
            "{env}"
        );
        assert_eq!(file(&format!("{point}.name")), "zero\n");
        // The runtime's namespaces, or the container's.
        let ours = point != "createContainer";
        for kind in ["mnt", "uts"] {
            let seen = file(&format!("{point}.{kind}"));
            assert_eq!(seen.trim() == own(kind), ours, "{point} {kind}");
        }
    }
    assert!(!root.join("order").exists(), "the program runs at start only");
    bundle.succeed(&["start", "c"]);
    assert_eq!(
        fs::read_to_string(root.join("order")).unwrap(),
        "startContainer\nprogram\n"
    );
    let started: Value =
        serde_json::from_str(&fs::read_to_string(root.join("started.state")).unwrap()).unwrap();
    assert_eq!(
        (&started["status"], &started["pid"]),
        (&json!("created"), &json!(1))
    );
    // Without an environment of its own, the program's.
    let env = fs::read_to_string(root.join("started.env")).unwrap();
    assert!(
        env.contains("HOME=/\n") && env.contains("PATH=") && !env.contains("POINT="),
        "{env}"
    );
    // An image's program gets no more rights than the container has.
    assert_eq!(
        fs::read_to_string(root.join("started.rights")).unwrap(),
        "NoNewPrivs:\t1\nSeccomp:\t2\n"
    );
    assert_eq!(state("poststart.state")["status"], "running");
    assert!(!bundle.path().join("poststop.state").exists());
    bundle.succeed(&["kill", "c", "KILL"]);
    bundle.wait_status("stopped");
    bundle.succeed(&["delete", "c"]);
    assert_eq!(state("poststop.state")["status"], "stopped");
    assert_eq!(
        file("order"),
        "prestart\ncreateRuntime\ncreateContainer\npoststart\npoststop\n"
    );
}

/// config.md: "Hooks MUST be called in the listed order"; poststart "after the user-specified process is executed but before
/// the start operation returns", poststop "after the container is deleted but before the delete operation returns".
#[test]
fn hooks_of_one_point_run_in_the_listed_order_and_at_their_time() {
    let bundle = Bundle::new("hook-order", "echo $$ > /runs; exec sleep 1000");
    let directory = bundle.path().display().to_string();
    let root = bundle.path().join("rootfs");
    let points = [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ];
    bundle.change(|config| {
        config["hooks"] = json!({});
        for point in points {
            let place = if point == "startContainer" { "" } else { &directory };
            let hook = |number: u32, then: &str| {
                let script = format!("echo {point} {number} >> {place}/order; {then}");
                json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
            };
            config["hooks"][point] = json!([hook(1, ""), hook(2, ""), hook(3, "")]);
        }
        let exists = format!("test -e {directory}/state/c/state.json && echo kept >> {directory}/order; true");
        config["hooks"]["poststop"][2] = json!({ "path": "/bin/sh", "args": ["sh", "-c", exists] });
        let runs = format!("i=0; while [ $i -lt 1000 ] && [ ! -s {}/runs ]; do i=$((i+1)); sleep 0.01; done; cat {}/runs >> {directory}/order", root.display(), root.display());
        config["hooks"]["poststart"][2] = json!({ "path": "/bin/sh", "args": ["sh", "-c", runs] });
    });
    let read = |path: std::path::PathBuf| fs::read_to_string(path).unwrap_or_default();
    let order = || read(bundle.path().join("order"));
    let lines = |points: &[&str]| -> String {
        let all = points
            .iter()
            .flat_map(|point| (1..4).map(move |number| format!("{point} {number}\n")));
        all.collect()
    };
    bundle.create(&["create", "c"]);
    assert_eq!(order(), lines(&points[..3]));
    bundle.succeed(&["start", "c"]);
    assert_eq!(read(root.join("order")), lines(&["startContainer"]));
    // The third has seen what the program wrote.
    let started = lines(&points[..3]) + "poststart 1\npoststart 2\n1\n";
    assert_eq!(order(), started);
    bundle.succeed(&["delete", "--force", "c"]);
    assert_eq!(order(), started + "poststop 1\npoststop 2\n");
}

/// runtime.md, Lifecycle 3 to 5: "MUST generate an error, stop the container, and continue the lifecycle at step 12".
#[test]
fn a_hook_that_fails_at_create_undoes_it_and_tells_the_poststop_hooks() {
    for point in ["prestart", "createRuntime", "createContainer"] {
        let bundle = Bundle::new(&format!("fail-{point}"), "true");
        bundle.change(|config| {
            config["hooks"] = json!({ "poststop": [tells(&bundle, "poststop")] });
            config["hooks"][point] = json!([
                { "path": "/bin/busybox", "args": ["sh", "-c", "echo so bad >&2; exit 7"] },
                tells(&bundle, "second"),
            ]);
        });
        let said = bundle.fail(&["create", "c"]);
        assert!(
            said.contains(point) && said.contains("so bad") && said.contains('7'),
            "{said}"
        );
        assert!(
            !bundle.path().join("second.state").exists(),
            "none after the one that failed"
        );
        assert!(bundle.path().join("poststop.state").exists());
        assert_eq!(fs::read_dir(bundle.path().join("state")).unwrap().count(), 0);
    }
}

/// runtime.md, Lifecycle 7: an error, and the container is stopped.
#[test]
fn a_start_container_hook_that_fails_stops_the_container() {
    let bundle = Bundle::new("fail-start", "echo ran > /ran; exec sleep 1000");
    bundle.change(|config| {
        config["hooks"] = json!({ "startContainer": [{ "path": "/bin/false" }] });
    });
    bundle.create(&["create", "c"]);
    assert!(bundle.fail(&["start", "c"]).contains("startContainer"));
    bundle.wait_status("stopped");
    assert!(!bundle.path().join("rootfs/ran").exists());
    bundle.succeed(&["delete", "c"]);
    // A file that is not there is an error too; it is looked for in the container.
    bundle.change(|config| {
        config["hooks"] = json!({ "startContainer": [{ "path": "/usr/bin/env" }] });
    });
    assert!(bundle.fail(&["run", "c"]).contains("no such file or directory"));
    bundle.fail(&["state", "c"]);
}

/// runtime.md, Lifecycle 9 and 13: "MUST log a warning, but the remaining hooks and lifecycle continue".
#[test]
fn hooks_that_fail_after_the_start_are_warnings() {
    let bundle = Bundle::new("fail-post", "exit 5");
    bundle.change(|config| {
        let bad = json!({ "path": "/bin/false" });
        config["hooks"] = json!({
            "poststart": [bad, tells(&bundle, "poststart")],
            "poststop": [bad, tells(&bundle, "poststop")],
        });
    });
    let log = bundle.path().join("log");
    let output = bundle.call(&["--log", log.to_str().unwrap(), "--log-format", "json", "run", "c"]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    for point in ["poststart", "poststop"] {
        assert!(bundle.path().join(format!("{point}.state")).exists());
    }
    let text = fs::read_to_string(log).unwrap();
    let warnings = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["level"] == "warning");
    assert_eq!(warnings.count(), 2, "{text}");
}

/// runtime.md, Lifecycle 9, since 1.3: "MUST generate an error, stop the container".
#[test]
fn a_poststart_hook_that_fails_stops_a_container_of_the_newer_version() {
    let bundle = Bundle::new("fail-poststart", "exec sleep 1000");
    bundle.change(|config| {
        config["ociVersion"] = json!("1.3.0");
        config["hooks"] = json!({ "poststart": [{ "path": "/bin/false" }, tells(&bundle, "poststart")] });
    });
    bundle.create(&["create", "c"]);
    assert!(
        bundle
            .fail(&["start", "c"])
            .contains("error running poststart hook #0")
    );
    assert_eq!(bundle.status(), "stopped");
    assert!(!bundle.path().join("poststart.state").exists());
}

/// Without an environment of its own a hook has the runtime's; one in the container's namespaces works in its root.
#[test]
fn hooks_have_the_runtimes_environment_and_the_root_as_directory() {
    let bundle = Bundle::new("hook-defaults", "cat /seen");
    bundle.change(|config| {
        let hook = |script: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
        config["hooks"] = json!({
            "createRuntime": hook("test \"$MARK\" = here"),
            "createContainer": hook("echo $MARK > ./seen"),
        });
    });
    let output = bundle
        .command(&["run", "c"])
        .env("MARK", "here")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "here\n", "{output:?}");
}

#[test]
fn a_hook_that_takes_too_long_is_ended_and_one_may_ask_for_the_state() {
    let bundle = Bundle::new("timeout", "true");
    let directory = bundle.path().display().to_string();
    for point in ["createRuntime", "createContainer"] {
        bundle.change(|config| {
            config["hooks"] = json!({});
            config["hooks"][point] =
                json!([{ "path": "/bin/busybox", "args": ["sleep", "1000"], "timeout": 1 }]);
        });
        assert!(
            bundle.fail(&["create", "c"]).contains("did not end in 1 s"),
            "{point}"
        );
    }
    bundle.change(|config| {
        let asks = json!({
            "path": bundle::runtime(),
            "args": ["bulkhead-runtime", "--root", format!("{directory}/state"), "state", "c"],
            "timeout": 60,
        });
        config["hooks"] = json!({ "createRuntime": [asks], "poststart": [asks], "startContainer": [] });
    });
    assert_eq!(bundle.call(&["run", "c"]).status.code(), Some(0));
}

#[test]
fn hooks_that_the_specification_forbids_are_refused() {
    let bundle = Bundle::new("bad", "true");
    for hook in [
        json!({ "path": "bin/true" }),
        json!({ "path": "/bin/true", "timeout": 0 }),
    ] {
        bundle.change(|config| config["hooks"] = json!({ "poststop": [hook] }));
        assert!(bundle.fail(&["create", "c"]).contains("hooks.poststop[0]"));
    }
}
