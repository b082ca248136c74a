//! The default profile, as the kernel holds it: the filter of a running container is dumped and evaluated for every
//! syscall number.

#![allow(clippy::unwrap_used)] // a test that fails

mod common;
mod filter;

use std::os::fd::AsFd;

use common::Ground;
use filter::{Data, I386, X86_64, number, run};
use oci_spec::runtime::Capability;
use runtime::capability;
use runtime::container::{self, Stdio};
use runtime::seccomp::{default_profile, prepare};
use serde_json::json;
use sys::seccomp::Instruction;

const X32_BIT: u32 = 0x4000_0000;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;

fn answer(program: &[Instruction], name: &str, arguments: [u64; 6]) -> Option<u32> {
    Some(run(
        program,
        &Data {
            number: number(name)?,
            arch: X86_64,
            arguments,
        },
    ))
}

/// Docker's list of what its default profile refuses ("Significant syscalls blocked by the default profile").
const REFUSED: [&str; 46] = [
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "finit_module",
    "get_kernel_syms",
    "get_mempolicy",
    "init_module",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "mount",
    "move_pages",
    "nfsservctl",
    "open_by_handle_at",
    "perf_event_open",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "query_module",
    "quotactl",
    "reboot",
    "request_key",
    "set_mempolicy",
    "setns",
    "settimeofday",
    "swapon",
    "swapoff",
    "sysfs",
    "_sysctl",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "ustat",
    "io_uring_setup",
    "vhangup",
];

#[test]
fn running_containers_filter_refuses_what_it_must_for_every_number() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let spec = ground.container("web", "exec sleep 1000");
    let running = container::start(
        &spec,
        Some(&sandbox),
        &cgroup,
        Stdio::null().unwrap(),
        &ground.options(),
    )
    .unwrap();
    sys::seccomp::ptrace_seize(running.pid).unwrap();
    sys::seccomp::ptrace_interrupt(running.pid).unwrap();
    let program = sys::seccomp::get_filter(running.pid, 0).unwrap();
    assert!(sys::seccomp::get_filter(running.pid, 1).is_err(), "one filter");
    cgroup.kill().unwrap();
    sys::process::wait(running.pidfd.as_fd()).unwrap();
    sandbox.destroy().unwrap();

    filter::check(&program).unwrap();
    let (compiled, _) = prepare(&default_profile(&capability::DEFAULT), None).unwrap();
    assert_eq!(program, compiled, "what runs is what was compiled");
    for name in REFUSED {
        if let Some(verdict) = answer(&program, name, [0; 6]) {
            assert_eq!(verdict & 0xffff_0000, ERRNO, "{name}");
        }
    }
    // Every number of every entry: an answer, never a kill; beyond the newest known, ENOSYS.
    let mut allowed = 0;
    for number in 0..=1023 {
        for (arch, bit) in [(X86_64, 0), (X86_64, X32_BIT), (I386, 0)] {
            let verdict = run(
                &program,
                &Data {
                    number: number | bit,
                    arch,
                    ..Data::default()
                },
            );
            assert!(
                verdict == ALLOW || verdict & 0xffff_0000 == ERRNO,
                "{number} {arch:#x}: {verdict:#x}"
            );
            allowed += u32::from(verdict == ALLOW);
            if number > 600 && !(bit == X32_BIT && (512..=547).contains(&number)) {
                assert_eq!(verdict, ERRNO | 38, "{number} {arch:#x}");
            }
        }
    }
    assert!(allowed > 600, "{allowed}");
    // Another architecture's numbers mean other calls.
    let foreign = run(
        &program,
        &Data {
            number: 1,
            arch: 0xc000_00b7,
            ..Data::default()
        },
    );
    assert_ne!(foreign, ALLOW);
    // i386: ptrace 26, mount 21, unshare 310, socketcall 102, stime 25, umount 22.
    for number in [26, 21, 310, 102, 25, 22] {
        assert_ne!(
            run(
                &program,
                &Data {
                    number,
                    arch: I386,
                    ..Data::default()
                }
            ),
            ALLOW,
            "i386 {number}"
        );
    }
}

#[test]
fn arguments_decide_for_clone_personality_and_socket() {
    let (program, _) = prepare(&default_profile(&capability::DEFAULT), None).unwrap();
    let first = |name, value| answer(&program, name, [value, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(first("clone", 0x0120_0011), ALLOW, "fork");
    assert_eq!(first("clone", 0x003d_0f00), ALLOW, "a thread");
    for namespace in [
        0x2_0000,
        0x200_0000,
        0x400_0000,
        0x800_0000,
        0x1000_0000,
        0x2000_0000,
        0x4000_0000,
    ] {
        assert_ne!(first("clone", namespace | 17), ALLOW, "{namespace:#x}");
    }
    assert_eq!(first("clone3", 0), ERRNO | 38, "the C library then takes clone");
    for persona in [0, 8, 0x20000, 0x20008, 0xffff_ffff] {
        assert_eq!(first("personality", persona), ALLOW);
    }
    assert_ne!(
        first("personality", 0x0040_0000),
        ALLOW,
        "ADDR_NO_RANDOMIZE and its kin"
    );
    for (family, allowed) in [
        (1, true),
        (2, true),
        (10, true),
        (16, true),
        (38, false),
        (40, false),
        (44, false),
    ] {
        assert_eq!(first("socket", family) == ALLOW, allowed, "{family}");
    }
}

#[test]
fn capabilities_open_their_calls_and_no_others() {
    let all: Vec<Capability> = capability::ALL
        .iter()
        .map(|(capability, _)| *capability)
        .collect();
    let (program, _) = prepare(&default_profile(&all), None).unwrap();
    for name in [
        "mount",
        "unshare",
        "setns",
        "ptrace",
        "bpf",
        "reboot",
        "perf_event_open",
        "clock_settime",
        "settimeofday",
        "clock_adjtime",
    ] {
        assert_eq!(answer(&program, name, [0; 6]), Some(ALLOW), "{name}");
    }
    for name in [
        "init_module",
        "finit_module",
        "delete_module",
        "kexec_load",
        "kexec_file_load",
        "add_key",
        "keyctl",
        "userfaultfd",
        "swapon",
    ] {
        assert_ne!(answer(&program, name, [0; 6]), Some(ALLOW), "{name} even so");
    }
    let (program, _) = prepare(&default_profile(&[Capability::SysPtrace]), None).unwrap();
    assert_eq!(answer(&program, "ptrace", [0; 6]), Some(ALLOW));
    assert_ne!(answer(&program, "mount", [0; 6]), Some(ALLOW));
}

#[test]
fn profiles_that_cannot_be_enforced_are_refused() {
    for profile in [
        json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x",
            "syscalls": [{"names": ["sendmsg"], "action": "SCMP_ACT_NOTIFY"}]}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}),
        json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 65536}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
            "errnoRet": 4096}]}),
    ] {
        let profile = serde_json::from_value(profile).unwrap();
        assert!(prepare(&profile, None).is_err());
    }
}

#[test]
fn the_documentation_is_the_profile() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/seccomp.md");
    if std::env::var_os("BULKHEAD_WRITE_DOCS").is_some() {
        std::fs::write(&page, runtime::seccomp::table()).unwrap();
    }
    let written = std::fs::read_to_string(&page).unwrap();
    let told = "run this test with BULKHEAD_WRITE_DOCS=1 to write docs/seccomp.md anew";
    assert!(written == runtime::seccomp::table(), "{told}");
    // Each call that the profile has a rule for has its line.
    let profile = default_profile(&[]);
    for rule in profile.syscalls().iter().flatten() {
        for name in rule.names() {
            assert!(written.contains(&format!("| {name} | ")), "{name}");
        }
    }
}

/// By libseccomp 2.5: it was given a minute for the first four.
#[test]
fn profiles_that_would_never_be_compiled_are_refused() {
    let operators = [
        "SCMP_CMP_GT",
        "SCMP_CMP_NE",
        "SCMP_CMP_LE",
        "SCMP_CMP_LT",
        "SCMP_CMP_GE",
        "SCMP_CMP_NE",
    ];
    let rules = |count: u64, arguments: usize| -> Vec<serde_json::Value> {
        let argument = |rule: u64, (index, op)| json!({"index": index, "value": rule * (2 * index as u64 + 1), "op": op});
        (0..count)
            .map(|rule| {
                let args: Vec<_> = operators[..arguments]
                    .iter()
                    .enumerate()
                    .map(|one| argument(rule, one))
                    .collect();
                json!({"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": args})
            })
            .collect()
    };
    let prepared = |rules: Vec<serde_json::Value>| {
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules});
        prepare(&serde_json::from_value(profile).unwrap(), None)
    };
    for (count, arguments) in [(25, 3), (12, 3), (6, 6), (4, 6), (100, 2), (5000, 1)] {
        let refused = prepared(rules(count, arguments));
        assert!(refused.is_err(), "{count} rules of {arguments} arguments");
    }
    for (count, arguments) in [(1, 6), (8, 3), (4, 4), (20, 2), (500, 1)] {
        let begin = std::time::Instant::now();
        prepared(rules(count, arguments)).unwrap();
        let took = begin.elapsed().as_secs();
        assert!(took < 20, "{count} rules of {arguments} arguments: {took} s");
    }
}
