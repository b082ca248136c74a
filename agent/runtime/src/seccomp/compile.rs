//! A profile of the OCI configuration to instructions, by libseccomp.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::path::Path;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use sys::seccomp::{INSTRUCTIONS_MAX, Instruction};

use super::SeccompError;

fn invalid(field: impl Into<String>, reason: impl Into<String>) -> SeccompError {
    SeccompError::Invalid {
        field: field.into(),
        reason: reason.into(),
    }
}

fn library(action: impl Into<String>) -> impl FnOnce(libseccomp::error::SeccompError) -> SeccompError {
    let action = action.into();
    move |source| SeccompError::Library { action, source }
}

/// Flags for loading (linux/seccomp.h).
pub(super) fn flags(profile: &LinuxSeccomp) -> Result<u32, SeccompError> {
    let mut bits = 0;
    for flag in profile.flags().iter().flatten() {
        bits |= match flag {
            // Ours is the only thread.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => 2,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 4,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                if listener(profile)?.is_none() {
                    return Err(invalid(
                        "linux.seccomp.flags",
                        "there is no notification to wait for",
                    ));
                }
                32
            }
        };
    }
    listener(profile)?;
    Ok(bits)
}

/// runtime-spec 1.2, config-linux.md, Seccomp: "When the action doesn't support an errno, the runtime MUST print and error
/// and fail"; `names` "MUST contain at least one entry"; `listenerMetadata` "MUST NOT be set if `listenerPath` is not set".
pub(super) fn examine(profile: &LinuxSeccomp) -> Result<(), SeccompError> {
    action(profile.default_action(), profile.default_errno_ret())?;
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        if rule.names().is_empty() {
            let field = format!("linux.seccomp.syscalls[{index}].names");
            return Err(invalid(field, "must contain at least one"));
        }
        action(rule.action(), rule.errno_ret())?;
    }
    if profile.listener_path().is_none() && profile.listener_metadata().is_some() {
        return Err(invalid(
            "linux.seccomp.listenerMetadata",
            "needs linux.seccomp.listenerPath",
        ));
    }
    Ok(())
}

/// Where the supervisor of a profile with notifications listens; none when the profile has no notification.
pub(super) fn listener(profile: &LinuxSeccomp) -> Result<Option<&Path>, SeccompError> {
    let notify = LinuxSeccompAction::ScmpActNotify;
    if profile.default_action() == notify {
        return Err(invalid(
            "linux.seccomp.defaultAction",
            "SCMP_ACT_NOTIFY would also ask for what hands the listener over",
        ));
    }
    let mut asked = profile
        .syscalls()
        .iter()
        .flatten()
        .filter(|rule| rule.action() == notify)
        .flat_map(|rule| rule.names())
        .peekable();
    if asked.peek().is_none() {
        // As with runc, a path alone means nothing: there is no descriptor to hand over.
        return Ok(None);
    }
    if asked.any(|name| name == "sendmsg") {
        return Err(invalid(
            "linux.seccomp.syscalls",
            "SCMP_ACT_NOTIFY of sendmsg, by which the listener is handed over",
        ));
    }
    match profile.listener_path() {
        Some(path) if path.is_absolute() => Ok(Some(path)),
        Some(_) => Err(invalid("linux.seccomp.listenerPath", "must be absolute")),
        None => Err(invalid("linux.seccomp.listenerPath", "SCMP_ACT_NOTIFY needs one")),
    }
}

const EPERM: u32 = 1;
/// The kernel's MAX_ERRNO. Of a larger one libseccomp keeps the low 16 bits, which may be 0: success.
const ERRNO_MAX: u32 = 4095;

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, SeccompError> {
    if action == LinuxSeccompAction::ScmpActErrno && errno.is_some_and(|errno| errno > ERRNO_MAX) {
        return Err(invalid(
            "linux.seccomp",
            format!("errnoRet of SCMP_ACT_ERRNO is above {ERRNO_MAX}"),
        ));
    }
    let takes = matches!(
        action,
        LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace
    );
    if errno.is_some() && !takes {
        return Err(invalid(
            "linux.seccomp",
            format!("errnoRet given for {action}, which has none"),
        ));
    }
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno.unwrap_or(EPERM) as i32),
        LinuxSeccompAction::ScmpActTrace => {
            let value = u16::try_from(errno.unwrap_or(EPERM));
            ScmpAction::Trace(
                value.map_err(|_| invalid("linux.seccomp", "errnoRet of SCMP_ACT_TRACE is too large"))?,
            )
        }
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
    })
}

fn arch(arch: Arch) -> Result<ScmpArch, SeccompError> {
    Ok(match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        other => {
            return Err(invalid(
                "linux.seccomp.architectures",
                format!("{other:?} is not known here"),
            ));
        }
    })
}

fn compare(argument: &LinuxSeccompArg) -> Result<ScmpArgCompare, SeccompError> {
    let index = u32::try_from(argument.index()).ok().filter(|index| *index < 6);
    let index = index.ok_or_else(|| invalid("linux.seccomp", "a syscall has six arguments"))?;
    let (op, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, argument.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, argument.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, argument.value()),
        // runtime-spec 1.2, config-linux.md, Seccomp: `value` is the mask, `valueTwo` what is compared with.
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(argument.value()),
            argument.value_two().unwrap_or(0),
        ),
    };
    Ok(ScmpArgCompare::new(index, op, value))
}

/// Most rules, one of each name: engines' have some 500, and the kernel takes 4096 instructions.
const RULES_MAX: usize = 4096;
/// Most ways through the comparisons of all calls, see `ways`: beyond, libseccomp takes minutes, or no end was seen.
const WAYS_MAX: usize = 512;

/// Refuses what libseccomp would not come to an end with. Its tree has a branch for each outcome of a comparison, and rules
/// of one call hang below each other's: R rules that each ask more than whether two values are equal, and of up to A
/// arguments, can become R to the power of A ways.
fn check_size(profile: &LinuxSeccomp) -> Result<(), SeccompError> {
    let mut calls: BTreeMap<&str, (usize, u32)> = BTreeMap::new();
    let mut rules = 0usize;
    for rule in profile.syscalls().iter().flatten() {
        let args = rule.args().as_deref().unwrap_or_default();
        let unequal = args
            .iter()
            .filter(|one| one.op() != LinuxSeccompOperator::ScmpCmpEq);
        let unequal = u32::try_from(unequal.count()).unwrap_or(u32::MAX);
        rules = rules.saturating_add(rule.names().len());
        if rules > RULES_MAX {
            return Err(invalid(
                "linux.seccomp.syscalls",
                format!("more than {RULES_MAX}"),
            ));
        }
        for name in rule.names().iter().filter(|_| unequal > 0) {
            let (count, most) = calls.entry(name).or_default();
            (*count, *most) = (*count + 1, unequal.max(*most));
        }
    }
    // One comparison a rule makes a list, not a tree.
    let ways = calls.values().filter(|(_, most)| *most > 1);
    let ways = ways.fold(0usize, |sum, (count, most)| {
        sum.saturating_add(count.saturating_pow(*most))
    });
    if ways > WAYS_MAX {
        return Err(invalid(
            "linux.seccomp.syscalls",
            format!("the comparisons of arguments have {ways} combinations, more than {WAYS_MAX}"),
        ));
    }
    Ok(())
}

/// Compiles; as a binary tree, which the kernel loads and runs faster than a line.
pub(super) fn compile(profile: &LinuxSeccomp) -> Result<Vec<Instruction>, SeccompError> {
    examine(profile)?;
    check_size(profile)?;
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).map_err(library("begin a filter"))?;
    filter.set_ctl_optimize(2).map_err(library("ask for a tree"))?;
    for one in profile.architectures().iter().flatten() {
        filter
            .add_arch(arch(*one)?)
            .map_err(library(format!("add {one:?}")))?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let does = action(rule.action(), rule.errno_ret())?;
        if does == default {
            continue; // libseccomp refuses rules that say what happens anyway
        }
        let arguments: Vec<_> = rule
            .args()
            .iter()
            .flatten()
            .map(compare)
            .collect::<Result<_, _>>()?;
        for name in rule.names() {
            // Newer than the library: the default holds, as with runc and crun.
            let Ok(syscall) = ScmpSyscall::from_name(name) else {
                continue;
            };
            add(&mut filter, does, syscall, &arguments)
                .map_err(library(format!("add the rule for {name}")))?;
        }
    }
    let memory = sys::fd::memfd(c"seccomp").map_err(io("make a memory file"))?;
    filter
        .export_bpf(memory.as_fd())
        .map_err(library("compile the filter"))?;
    let mut memory = File::from(memory);
    memory.rewind().map_err(io("read the compiled filter"))?;
    let mut bytes = Vec::new();
    memory
        .read_to_end(&mut bytes)
        .map_err(io("read the compiled filter"))?;
    decode(&bytes).ok_or_else(|| {
        invalid(
            "linux.seccomp",
            format!("compiles to more than {INSTRUCTIONS_MAX} instructions"),
        )
    })
}

fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> SeccompError {
    move |source| SeccompError::Io { action, source }
}

/// Several comparisons of one argument cannot be one rule of libseccomp's: as runc does, each is then one of its own.
fn add(
    filter: &mut ScmpFilterContext,
    does: ScmpAction,
    syscall: ScmpSyscall,
    arguments: &[ScmpArgCompare],
) -> Result<(), libseccomp::error::SeccompError> {
    match filter.add_rule_conditional(does, syscall, arguments) {
        Ok(_) => Ok(()),
        Err(_) if arguments.len() > 1 => arguments
            .iter()
            .try_for_each(|one| filter.add_rule_conditional(does, syscall, &[*one]).map(drop)),
        Err(error) => Err(error),
    }
}

/// Instructions from their bytes in memory order; none when there are none or too many.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<Instruction>> {
    let (parts, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() || parts.is_empty() || parts.len() > INSTRUCTIONS_MAX {
        return None;
    }
    Some(
        parts
            .iter()
            .map(|[a, b, jt, jf, k @ ..]| Instruction {
                code: u16::from_ne_bytes([*a, *b]),
                jt: *jt,
                jf: *jf,
                k: u32::from_ne_bytes(*k),
            })
            .collect(),
    )
}

/// The reverse of `decode`.
pub(super) fn encode(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for one in program {
        bytes.extend(one.code.to_ne_bytes());
        bytes.extend([one.jt, one.jf]);
        bytes.extend(one.k.to_ne_bytes());
    }
    bytes
}
