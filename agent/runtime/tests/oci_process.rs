//! The process of the OCI configuration: what it starts with, and what may be missing or unknown. Needs root and busybox
//! (static).

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;
mod program;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use bundle::Bundle;
use serde_json::{Value, json};

/// Lists of what is allowed that are older than openat2, faccessat2 and close_range are still in use. Without
/// no_new_privs a filter's load takes CAP_SYS_ADMIN, which this process does not have.
#[test]
fn a_filter_need_not_allow_what_the_runtime_itself_calls() {
    let bundle = Bundle::new(
        "oldfilter",
        "grep -E '^(Seccomp|NoNewPrivs|CapEff|CapPrm):' /proc/self/status",
    );
    let old = "execve read write open openat close fstat stat lstat newfstatat mmap mprotect munmap brk arch_prctl \
        exit exit_group ioctl uname readlink getrandom set_tid_address set_robust_list rseq prlimit64 getuid getgid \
        geteuid getegid getpid getppid rt_sigaction rt_sigprocmask rt_sigreturn fork vfork clone wait4 pipe pipe2 dup dup2 \
        fcntl lseek access getcwd sysinfo setuid setgid poll writev readv prctl capset";
    let names: Vec<&str> = old.split_whitespace().collect();
    for (no_new_privs, says) in [(false, "0"), (true, "1")] {
        bundle.change(|config| {
            config["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }],
            });
            config["process"]["noNewPrivileges"] = json!(no_new_privs);
            for set in ["bounding", "effective", "permitted"] {
                config["process"]["capabilities"][set] = json!(["CAP_KILL"]);
            }
        });
        assert_eq!(
            bundle.run(0),
            format!(
                "CapPrm:\t0000000000000020\nCapEff:\t0000000000000020\nNoNewPrivs:\t{says}\nSeccomp:\t2\n"
            )
        );
    }
}

/// config.md, Linux Process: what is no capability "MUST be logged as a warning", and the runtime "SHOULD NOT fail".
#[test]
fn unknown_capabilities_are_left_out_with_a_warning() {
    let bundle = Bundle::new("unknowncap", "grep CapEff: /proc/self/status; exec sleep 1000");
    bundle.change(|config| {
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(["CAP_UNKNOWN", "CAP_KILL"]);
        }
    });
    bundle.create(&["create", "c"]);
    assert!(bundle.out().contains("level=warning") && bundle.out().contains("CAP_UNKNOWN"));
    bundle.succeed(&["start", "c"]);
    let exec = [
        "exec",
        "--cap",
        "CAP_NOPE",
        "--cap",
        "CAP_CHOWN",
        "c",
        "/bin/grep",
        "CapEff:",
        "/proc/self/status",
    ];
    let output = bundle.call(&exec);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "CapEff:\t0000000000000021\n"
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("CAP_NOPE"));
}

#[test]
fn a_missing_working_directory_is_made() {
    let bundle = Bundle::new("cwd", "pwd; stat -c %a .");
    bundle.change(|config| config["process"]["cwd"] = json!("/new/place"));
    assert_eq!(bundle.run(0), "/new/place\n755\n");
    bundle.change(|config| config["process"]["cwd"] = json!("/proc/new"));
    assert!(bundle.fail(&["run", "c"]).contains("failed to chdir to cwd"));
}

#[test]
fn a_variable_that_is_given_twice_has_its_last_value() {
    let bundle = Bundle::new("environment", "exec env");
    bundle.change(|config| {
        config["process"]["env"] = json!(["ONE=two", "HOME=", "PATH=/bin", "ONE=three"]);
        config["process"]["args"] = json!(["/bin/env"]);
    });
    assert_eq!(bundle.run(0), "ONE=three\nHOME=/\nPATH=/bin\n");
    bundle.change(|config| config["process"]["args"] = json!(["/bin/sleep", "1000"]));
    bundle.create(&["create", "c"]);
    bundle.succeed(&["start", "c"]);
    let env = bundle.succeed(&["exec", "--env", "ONE=four", "-e", "HOME=/x", "c", "/bin/env"]);
    assert_eq!(env, "ONE=four\nHOME=/x\nPATH=/bin\n");
}

#[test]
fn only_open_descriptors_are_passed_and_none_of_ours_among_them() {
    let bundle = Bundle::new("holes", "");
    // Its own directory takes the lowest free number.
    bundle.change(|config| config["process"]["args"] = json!(["/bin/ls", "/proc/self/fd"]));
    let file = bundle.path().join("passed");
    fs::write(&file, "content\n").unwrap();
    let script = format!(
        "exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9<{}; exec {} --root {} run --preserve-fds 7 c",
        file.display(),
        bundle::runtime(),
        bundle.path().join("state").display()
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(bundle.path())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "0\n1\n2\n3\n9\n",
        "{output:?}"
    );
}

#[test]
fn groups_of_the_caller_are_kept_when_an_annotation_asks() {
    let bundle = Bundle::new("groups", "id -G");
    let run = || {
        let output = Command::new("setpriv")
            .args(["--groups", "7,8", bundle::runtime(), "--root"])
            .arg(bundle.path().join("state"))
            .args(["run", "c"])
            .current_dir(bundle.path())
            .output()
            .expect("setpriv is installed");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(), "0\n");
    bundle.change(|config| config["annotations"] = json!({ "run.oci.keep_original_groups": "1" }));
    assert_eq!(run(), "0 7 8\n");
}

/// config-linux.md, Namespaces: of a kind that is not listed, the container "MUST inherit the runtime namespace".
#[test]
fn a_container_may_share_the_mount_namespace_and_leaves_no_mount_there() {
    let bundle = Bundle::new(
        "sharedmounts",
        "ls /; readlink /proc/self/ns/mnt; exec sleep 1000",
    );
    let root = bundle.path().join("rootfs");
    bundle.change(|config| {
        let list = config["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|one| one["type"] != "mount");
    });
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    let mounts = || {
        let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
        all.lines()
            .filter(|line| line.contains(root.to_str().unwrap()))
            .count()
    };
    bundle.create(&["create", "c"]);
    bundle.succeed(&["start", "c"]);
    let inside = bundle.succeed(&["exec", "c", "/bin/sh", "-c", "ls /; readlink /proc/self/ns/mnt"]);
    assert_eq!(
        inside,
        format!("bin\ndev\netc\nproc\nsys\ntmp\n{}\n", own.display())
    );
    assert_eq!(bundle.out(), inside);
    assert!(mounts() > 1);
    bundle.succeed(&["delete", "--force", "c"]);
    assert_eq!(mounts(), 0);
    // Refused half-way, and joined by path: nothing stays either.
    bundle.change(|config| config["process"]["args"] = json!(["/nowhere"]));
    assert!(bundle.fail(&["run", "c"]).contains("no such file"));
    assert_eq!(mounts(), 0);
    bundle.change(|config| {
        config["process"]["args"] = json!(["/bin/readlink", "/proc/self/ns/mnt"]);
        let list = config["linux"]["namespaces"].as_array_mut().unwrap();
        list.push(json!({ "type": "mount", "path": "/proc/self/ns/mnt" }));
    });
    assert_eq!(bundle.run(0), format!("{}\n", own.display()));
    assert_eq!(mounts(), 0);
    bundle.change(|config| {
        let list = config["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|one| one["type"] != "mount");
        list.push(json!({ "type": "user" }));
        config["linux"]["uidMappings"] = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
        config["linux"]["gidMappings"] = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
    });
    assert!(bundle.fail(&["run", "c"]).contains("mount namespace of its own"));
}

#[test]
fn the_host_name_is_no_sysctl() {
    let bundle = Bundle::new("hostnamesysctl", "true");
    bundle.change(|config| config["linux"]["sysctl"] = json!({ "kernel.hostname": "x" }));
    assert!(bundle.fail(&["run", "c"]).contains("kernel.hostname"));
    bundle.change(|config| config["linux"]["sysctl"] = json!({ "kernel.domainname": "d" }));
    bundle.run(0);
    bundle.change(|config| config["linux"]["sysctl"] = Value::Null);
}

#[test]
fn a_tmpfs_has_the_mode_of_what_it_covers() {
    let bundle = Bundle::new("tmpfsmode", "stat -c %a /covered /new /told");
    for name in ["covered", "told"] {
        let place = bundle.path().join("rootfs").join(name);
        fs::create_dir(&place).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o710)).unwrap();
    }
    bundle.change(|config| {
        for (place, options) in [
            ("/covered", json!([])),
            ("/new", json!([])),
            ("/told", json!(["mode=1500"])),
        ] {
            let mount =
                json!({ "destination": place, "type": "tmpfs", "source": "tmpfs", "options": options });
            config["mounts"].as_array_mut().unwrap().push(mount);
        }
    });
    assert_eq!(bundle.run(0), "710\n1777\n1500\n");
}

/// config.md, Mounts: "The runtime MUST mount entries in the listed order", which many read from the kernel's list.
#[test]
fn the_kernel_lists_mounts_in_the_order_of_the_configuration() {
    let bundle = Bundle::new("order", "cut -d' ' -f5 /proc/self/mountinfo; cat /data/file");
    let data = bundle.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "content\n").unwrap();
    bundle.change(|config| {
        let tmpfs = |to: &str| json!({ "destination": to, "type": "tmpfs", "source": "tmpfs" });
        config["mounts"] = json!([
            { "destination": "/proc", "type": "proc", "source": "proc" },
            tmpfs("/dev"),
            { "destination": "/before", "source": data, "options": ["bind", "runbindable"] },
            tmpfs("/tmp"),
            // A file system's own options mean nothing to a bind mount: mount(2) ignores them there.
            { "destination": "/link", "source": data.join("file"), "options": ["bind"] },
            { "destination": "/data", "source": data, "options": ["rbind", "shared", "size=1k", "sync"] },
            tmpfs("/after"),
        ]);
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["readonlyPaths"] = json!([]);
    });
    assert_eq!(
        bundle.run(0),
        "/\n/proc\n/dev\n/before\n/tmp\n/link\n/data\n/after\ncontent\n"
    );
    bundle.change(|config| config["mounts"][5]["options"] = json!(["bind", "roo"]));
    assert!(bundle.fail(&["run", "c"]).contains("roo"));
}

/// Whatever CPUs the caller may run on, a container runs on those of its group.
#[test]
fn the_callers_cpus_are_not_the_containers() {
    let bundle = Bundle::new(
        "callerscpus",
        "grep Cpus_allowed_list: /proc/self/status; exec sleep 1000",
    );
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own
        .lines()
        .find(|line| line.starts_with("Cpus_allowed_list:"))
        .unwrap();
    let pinned = |words: &[&str]| {
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", "0", bundle::runtime(), "--root"]);
        command
            .arg(bundle.path().join("state"))
            .args(words)
            .current_dir(bundle.path());
        command
    };
    let out = fs::File::create(bundle.path().join("out")).unwrap();
    let mut run = pinned(&["run", "--detach", "c"]);
    run.stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out);
    assert!(run.status().expect("taskset is installed").success());
    bundle.wait_until("it says so", || bundle.out() == format!("{own}\n"));
    let exec = pinned(&[
        "exec",
        "c",
        "/bin/grep",
        "Cpus_allowed_list:",
        "/proc/self/status",
    ])
    .output();
    assert_eq!(String::from_utf8_lossy(&exec.unwrap().stdout), format!("{own}\n"));
}
