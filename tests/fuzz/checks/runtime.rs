//! What holds of any bytes that reach the runtime. The fuzzers call it, and tests do with the corpora.

#![allow(
    unreachable_pub,
    reason = "a module of tests and of the fuzzers' library, which exports it"
)]

use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction};
use runtime::container::{MountOptions, parse_options};
use runtime::oci::{Status, asks_for_users, read_config, read_state};
use runtime::seccomp::prepare;
use sys::mount::{
    Change, MOUNT_ATTR_ATIME_BITS, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MOUNT_ATTR_STRICTATIME,
};

use super::filter;

/// A configuration that is accepted is written and read again as the same.
pub fn config(bytes: &[u8]) {
    let path = Path::new("config.json");
    let glance = asks_for_users(bytes);
    let Ok(config) = read_config(bytes, path, &mut |_| {}) else {
        return;
    };
    let linux = config.linux().as_ref();
    let users = linux
        .and_then(|linux| linux.namespaces().as_ref())
        .is_some_and(|list| list.iter().any(|one| one.typ() == LinuxNamespaceType::User));
    assert_eq!(glance, users, "the glance sees what the configuration says");
    let written = serde_json::to_vec(&config).expect("what was read can be written");
    let again = read_config(&written, path, &mut |_| {}).expect("what was written can be read");
    assert_eq!(config, again);
}

/// A profile that is accepted becomes a program that the kernel takes, that ends, and that answers as the profile says.
pub fn seccomp(bytes: &[u8]) {
    let Ok(profile) = serde_json::from_slice::<LinuxSeccomp>(bytes) else {
        return;
    };
    let written = serde_json::to_vec(&profile).expect("what was read can be written");
    let again: LinuxSeccomp = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(profile, again);
    let Ok((program, _)) = prepare(&profile, None) else {
        return;
    };
    if let Err(reason) = filter::check(&program) {
        panic!("the kernel would refuse the program: {reason}");
    }
    let native = profile
        .architectures()
        .as_ref()
        .is_none_or(|list| list.is_empty() || list.iter().any(is_native));
    for number in 0..512 {
        for arch in [filter::X86_64, filter::I386] {
            let mut data = filter::Data {
                number,
                arch,
                arguments: [0; 6],
            };
            filter::run(&program, &data);
            data.arguments = [u64::MAX, 1, 0x1_0000_0000, 0, 2, 7];
            filter::run(&program, &data);
        }
    }
    if native {
        answers(&profile, &program);
    }
}

fn is_native(arch: &oci_spec::runtime::Arch) -> bool {
    use oci_spec::runtime::Arch;
    matches!(arch, Arch::ScmpArchNative | Arch::ScmpArchX86_64)
}

/// Where a call is named by one rule alone and whatever its arguments, that rule's answer is the program's.
fn answers(profile: &LinuxSeccomp, program: &[sys::seccomp::Instruction]) {
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    let named = |name: &str| {
        let all = rules.iter().flat_map(|rule| rule.names());
        all.filter(|other| *other == name).count()
    };
    for rule in rules
        .iter()
        .filter(|rule| rule.args().as_ref().is_none_or(Vec::is_empty))
    {
        for name in rule.names() {
            let Some(number) = filter::number(name).filter(|_| named(name) == 1) else {
                continue;
            };
            let data = filter::Data {
                number,
                arch: filter::X86_64,
                arguments: [3; 6],
            };
            let wanted = verdict(rule.action(), rule.errno_ret());
            assert_eq!(filter::run(program, &data), wanted, "the answer to {name}");
        }
    }
}

/// SECCOMP_RET_* (linux/seccomp.h) of an action.
fn verdict(action: LinuxSeccompAction, errno: Option<u32>) -> u32 {
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
        LinuxSeccompAction::ScmpActKillProcess => 0x8000_0000,
        LinuxSeccompAction::ScmpActTrap => 0x0003_0000,
        LinuxSeccompAction::ScmpActErrno => 0x0005_0000 | errno.unwrap_or(1),
        LinuxSeccompAction::ScmpActNotify => 0x7fc0_0000,
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | errno.unwrap_or(1),
        LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
        LinuxSeccompAction::ScmpActAllow => 0x7fff_0000,
    }
}

/// Options are sorted so that options written from the result give the result again.
pub fn options(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let list: Vec<String> = text.split(',').map(str::to_owned).collect();
    let parsed = parse_options(&list);
    for change in [parsed.change, parsed.recursive] {
        let both = change.set & change.clear & !MOUNT_ATTR_ATIME_BITS;
        assert_eq!(both, 0, "a flag is set or cleared, not both");
        assert_eq!(change.propagation, 0, "propagation is an option of its own");
    }
    assert!(parsed.data.len() <= list.len());
    assert_eq!(parse_options(&write(&parsed)), parsed);
}

/// Names of flags: when set, when cleared.
const FLAGS: [(u64, &str, &str); 6] = [
    (MOUNT_ATTR_RDONLY, "ro", "rw"),
    (MOUNT_ATTR_NOSUID, "nosuid", "suid"),
    (MOUNT_ATTR_NODEV, "nodev", "dev"),
    (MOUNT_ATTR_NOEXEC, "noexec", "exec"),
    (MOUNT_ATTR_NODIRATIME, "nodiratime", "diratime"),
    (MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow", "symfollow"),
];

fn write(options: &MountOptions) -> Vec<String> {
    let mut list = Vec::new();
    match (options.bind, options.recursive_bind) {
        (true, true) => list.push("rbind".to_owned()),
        (true, false) => list.push("bind".to_owned()),
        (false, recursive) => assert!(!recursive, "a recursive bind is one"),
    }
    for (prefix, change) in [("", options.change), ("r", options.recursive)] {
        list.extend(
            attributes(change)
                .into_iter()
                .map(|name| format!("{prefix}{name}")),
        );
    }
    // mount(2): MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED.
    const KINDS: [(u64, &str); 4] = [
        (1 << 17, "unbindable"),
        (1 << 18, "private"),
        (1 << 19, "slave"),
        (1 << 20, "shared"),
    ];
    if let Some((flag, recursive)) = options.propagation {
        let kind = KINDS.iter().find(|(bit, _)| *bit == flag);
        let (_, name) = kind.expect("a propagation is one of four");
        list.push(if recursive {
            format!("r{name}")
        } else {
            (*name).to_owned()
        });
    }
    if let Some(recursive) = options.idmap {
        list.push(if recursive { "ridmap" } else { "idmap" }.to_owned());
    }
    if options.copy_up {
        list.push("tmpcopyup".to_owned());
    }
    list.extend(options.data.iter().map(|(key, value)| match value {
        Some(value) => format!("{key}={value}"),
        None => key.clone(),
    }));
    list
}

fn attributes(change: Change) -> Vec<&'static str> {
    let mut names = Vec::new();
    for (bit, set, clear) in FLAGS {
        if change.set & bit != 0 {
            names.push(set);
        }
        if change.clear & bit != 0 {
            names.push(clear);
        }
    }
    if change.clear & MOUNT_ATTR_ATIME_BITS != 0 {
        names.push(match change.set & MOUNT_ATTR_ATIME_BITS {
            MOUNT_ATTR_NOATIME => "noatime",
            MOUNT_ATTR_STRICTATIME => "strictatime",
            _ => "relatime",
        });
    }
    names
}

/// A record that is accepted is written and read again as the same, and can be told of in each status.
pub fn state(bytes: &[u8]) {
    let path = Path::new("state.json");
    let Ok(record) = read_state(bytes, path) else {
        return;
    };
    let written = record.to_bytes(path).expect("what was read can be written");
    let again = read_state(&written, path).expect("what was written can be read");
    assert_eq!(record, again);
    for status in [
        Status::Creating,
        Status::Created,
        Status::Running,
        Status::Stopped,
        Status::Paused,
    ] {
        let told = record.describe(status);
        assert_eq!(told["status"], status.to_string());
        assert!(
            status != Status::Stopped || told["pid"] == 0,
            "a stopped one has no process"
        );
        assert!(told["id"].is_string() && told["bundle"].is_string());
        assert!(told["annotations"].is_object());
    }
    // Whatever the number and the path are, looking for them is a question with an answer.
    if let Ok(Some(_)) = record.process() {
        assert!(!written.is_empty());
    }
    if let Ok(cgroup) = record.cgroup() {
        let path = cgroup.path();
        assert!(path.is_absolute() && path.parent().is_some());
        assert!(path.components().all(|part| part.as_os_str() != ".."));
    }
}
