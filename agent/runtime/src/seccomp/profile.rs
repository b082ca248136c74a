//! The default profile: a list of what is allowed. What the kernel knows to be dangerous answers EPERM, all else, newer
//! calls included, ENOSYS, upon which programs fall back.

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::calls::{ALLOWED, BY_CAPABILITY, Group, REFUSED};

/// Domains of personality(2) that programs use: Linux, Linux 32 bit, both without address randomisation, and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];

/// Socket families: unix, IPv4, IPv6, netlink, packet (which takes NET_RAW besides). The others are kernel code that
/// hardly any program needs (AF_ALG and AF_VSOCK among them). `socketcall`, which hides the family in memory, is refused.
const FAMILIES: [u64; 5] = [1, 2, 10, 16, 17];

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACES: [u64; 7] = [
    0x2_0000,
    0x200_0000,
    0x400_0000,
    0x800_0000,
    0x1000_0000,
    0x2000_0000,
    0x4000_0000,
];

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

fn rule(
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno: Option<u32>,
    args: Vec<LinuxSeccompArg>,
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names)
        .set_action(action)
        .set_errno_ret(errno)
        .set_args(if args.is_empty() { None } else { Some(args) });
    rule
}

fn argument(value: u64, value_two: Option<u64>, op: LinuxSeccompOperator) -> LinuxSeccompArg {
    let argument = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .value(value)
        .op(op);
    let argument = match value_two {
        Some(value_two) => argument.value_two(value_two),
        None => argument,
    };
    argument.build().expect("every field has a default")
}

fn names(groups: &[Group]) -> impl Iterator<Item = &'static str> {
    groups.iter().flat_map(|(_, names)| names.split_whitespace())
}

/// The default profile for a container with these capabilities.
pub fn default_profile(capabilities: &[Capability]) -> LinuxSeccomp {
    let mut allowed: Vec<&str> = names(&ALLOWED).collect();
    for (capability, names) in BY_CAPABILITY {
        if capabilities.contains(&capability) {
            allowed.extend(names.split_whitespace());
        }
    }
    allowed.sort_unstable();
    allowed.dedup();
    let refused = names(&REFUSED)
        .filter(|name| !allowed.contains(name))
        .map(str::to_owned)
        .collect();
    let mut rules = vec![
        rule(
            allowed.iter().map(|name| (*name).to_owned()).collect(),
            LinuxSeccompAction::ScmpActAllow,
            None,
            vec![],
        ),
        rule(refused, LinuxSeccompAction::ScmpActErrno, Some(EPERM), vec![]),
    ];
    let allow = LinuxSeccompAction::ScmpActAllow;
    let equal = LinuxSeccompOperator::ScmpCmpEq;
    for persona in PERSONALITIES {
        rules.push(rule(
            vec!["personality".into()],
            allow,
            None,
            vec![argument(persona, None, equal)],
        ));
    }
    for family in FAMILIES {
        rules.push(rule(
            vec!["socket".into()],
            allow,
            None,
            vec![argument(family, None, equal)],
        ));
    }
    if !allowed.contains(&"clone") {
        let masked = LinuxSeccompOperator::ScmpCmpMaskedEq;
        let all = NAMESPACES.iter().sum();
        rules.push(rule(
            vec!["clone".into()],
            allow,
            None,
            vec![argument(all, Some(0), masked)],
        ));
        // clone3 hides its flags in memory: not listed, so ENOSYS, upon which the C library takes clone.
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(ENOSYS))
        .set_architectures(Some(architectures()))
        .set_flags(None)
        .set_syscalls(Some(rules));
    profile
}

/// The native architecture and those whose programs its kernel runs too: a filter for one alone would let the others by.
fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "x86_64") {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    } else if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else {
        vec![Arch::ScmpArchNative]
    }
}
