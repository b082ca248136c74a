//! Device rules: a line each for v1, a small program for v2. The last rule that fits decides.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};
use sys::bpf::Instruction;

use super::CgroupError;

/// Largest number of a device, of both its parts (linux/kdev_t.h: 12 and 20 bits).
const MAJOR_MAX: i64 = (1 << 12) - 1;
const MINOR_MAX: i64 = (1 << 20) - 1;

/// Refuses rules that would be read as others: a number beyond what the program compares, a letter that is no access; and
/// limits that say nothing.
pub(crate) fn examine(resources: &LinuxResources) -> Result<(), CgroupError> {
    for (index, rule) in resources.devices().iter().flatten().enumerate() {
        let refuse = |part: &str| {
            let what = format!("linux.resources.devices[{index}].{part}");
            Err(CgroupError::Unsupported { what })
        };
        // Negative means any, as in the kernel's own interface.
        if rule.major().is_some_and(|number| number > MAJOR_MAX) {
            return refuse("major");
        }
        if rule.minor().is_some_and(|number| number > MINOR_MAX) {
            return refuse("minor");
        }
        let access = rule.access().as_deref().unwrap_or_default();
        if !access.chars().all(|letter| matches!(letter, 'r' | 'w' | 'm')) {
            return refuse("access");
        }
    }
    let nothing = |field: String| {
        let what = format!("{field}: it says nothing");
        Err(CgroupError::Unsupported { what })
    };
    // runtime-spec 1.2, config-linux.md, RDMA and Block IO: "You MUST specify at least one of".
    for (name, limit) in resources.rdma().iter().flatten() {
        if limit.hca_handles().is_none() && limit.hca_objects().is_none() {
            return nothing(format!("linux.resources.rdma.{name}"));
        }
    }
    let block = resources.block_io().as_ref();
    let weights = block.and_then(|block| block.weight_device().as_ref());
    for (index, one) in weights.into_iter().flatten().enumerate() {
        if one.weight().is_none() && one.leaf_weight().is_none() {
            return nothing(format!("linux.resources.blockIO.weightDevice[{index}]"));
        }
    }
    Ok(())
}

/// A rule as v1's `devices.allow` and `devices.deny` take it.
pub(super) fn line(rule: &LinuxDeviceCgroup) -> String {
    let kind = match rule.typ() {
        Some(LinuxDeviceType::B) => "b",
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => "c",
        _ => "a",
    };
    let number = |number: Option<i64>| {
        number
            .filter(|n| *n >= 0)
            .map_or("*".to_owned(), |n| n.to_string())
    };
    let access = rule
        .access()
        .as_deref()
        .filter(|access| !access.is_empty())
        .unwrap_or("rwm");
    format!(
        "{kind} {}:{} {access}",
        number(rule.major()),
        number(rule.minor())
    )
}

// bpf(2) and linux/bpf.h: struct bpf_cgroup_dev_ctx { u32 access_type /* access << 16 | type */; u32 major; u32 minor; }
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const AND_IMMEDIATE: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_EQUAL: u8 = 0x15;
const EXIT: u8 = 0x95;
const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;
const ACCESS_ALL: i32 = 7;

fn op(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: from << 4 | to,
        offset,
        immediate,
    }
}

/// The program for v2: 1 lets the access through, 0 refuses it.
pub(super) fn program<'a>(rules: impl DoubleEndedIterator<Item = &'a LinuxDeviceCgroup>) -> Vec<Instruction> {
    // r2 type, r3 access, r4 major, r5 minor
    let mut program = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(MOVE, 3, 2, 0, 0),
        op(AND_IMMEDIATE, 2, 0, 0, 0xffff),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
    ];
    // The last rule that fits decides: test them from the last.
    for rule in rules.rev() {
        let mut tests = Vec::new();
        match rule.typ() {
            Some(LinuxDeviceType::B) => tests.push((JUMP_NOT_EQUAL, 2, TYPE_BLOCK)),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => tests.push((JUMP_NOT_EQUAL, 2, TYPE_CHAR)),
            _ => {}
        }
        for (register, number) in [(4, rule.major()), (5, rule.minor())] {
            if let Some(number) = number.filter(|number| *number >= 0) {
                tests.push((JUMP_NOT_EQUAL, register, number as i32));
            }
        }
        let access = match rule.access().as_deref() {
            None | Some("") => ACCESS_ALL,
            Some(letters) => letters.chars().fold(0, |bits, letter| {
                bits | match letter {
                    'm' => 1,
                    'r' => 2,
                    'w' => 4,
                    _ => 0,
                }
            }),
        };
        let mut block = Vec::new();
        if access != ACCESS_ALL {
            // Allowed only when nothing beyond the rule is asked; refused when anything in it is.
            block.push(op(MOVE, 0, 3, 0, 0));
            block.push(op(
                AND_IMMEDIATE,
                0,
                0,
                0,
                if rule.allow() {
                    ACCESS_ALL & !access
                } else {
                    access
                },
            ));
            tests.push((if rule.allow() { JUMP_NOT_EQUAL } else { JUMP_EQUAL }, 0, 0));
        }
        // Each test jumps over what follows it in this rule: the later tests, the access lines and the verdict.
        let simple = tests.len() - usize::from(access != ACCESS_ALL);
        let verdict = 2;
        let total = tests.len() + block.len() + verdict;
        let mut placed = 0;
        let mut lines = Vec::with_capacity(total);
        for (code, register, value) in &tests[..simple] {
            placed += 1;
            lines.push(op(*code, *register, 0, (total - placed) as i16, *value));
        }
        placed += block.len();
        lines.extend(block);
        for (code, register, value) in &tests[simple..] {
            placed += 1;
            lines.push(op(*code, *register, 0, (total - placed) as i16, *value));
        }
        lines.push(op(MOVE_IMMEDIATE, 0, 0, 0, i32::from(rule.allow())));
        lines.push(op(EXIT, 0, 0, 0, 0));
        program.extend(lines);
        if tests.is_empty() {
            // It fits everything; the verifier refuses what would stand behind it.
            return program;
        }
    }
    // No rule fits: allowed, as in a group without a program.
    program.push(op(MOVE_IMMEDIATE, 0, 0, 0, 1));
    program.push(op(EXIT, 0, 0, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The few instructions that `program` emits.
    fn run(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let mut registers = [0i64; 11];
        let mut at = 0usize;
        loop {
            let one = program[at];
            at += 1;
            let (to, from) = (usize::from(one.registers & 15), usize::from(one.registers >> 4));
            match one.code {
                LOAD_WORD => {
                    registers[to] = i64::from([access << 16 | kind, major, minor][one.offset as usize / 4]);
                }
                MOVE => registers[to] = registers[from],
                MOVE_IMMEDIATE => registers[to] = one.immediate.into(),
                AND_IMMEDIATE => registers[to] &= i64::from(one.immediate),
                SHIFT_RIGHT => registers[to] >>= one.immediate,
                JUMP_NOT_EQUAL if registers[to] != i64::from(one.immediate) => at += one.offset as usize,
                JUMP_EQUAL if registers[to] == i64::from(one.immediate) => at += one.offset as usize,
                JUMP_NOT_EQUAL | JUMP_EQUAL => {}
                EXIT => return registers[0] == 1,
                code => panic!("operation {code:#x}"),
            }
        }
    }

    #[test]
    fn last_rule_that_fits_decides() {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
            {"allow": true, "type": "b", "major": 254, "access": "r"},
            {"allow": false, "type": "b", "major": 254, "minor": 7, "access": "r"},
        ]))
        .unwrap();
        let program = program(rules.iter());
        let (read, write, make) = (2, 4, 1);
        assert!(run(&program, TYPE_CHAR, read | write, 1, 3));
        assert!(!run(&program, TYPE_CHAR, make, 1, 3), "beyond the rule's access");
        assert!(!run(&program, TYPE_BLOCK, read, 1, 3), "another kind");
        assert!(run(&program, TYPE_BLOCK, read, 254, 0));
        assert!(!run(&program, TYPE_BLOCK, read | write, 254, 0));
        assert!(!run(&program, TYPE_BLOCK, read, 254, 7));
        assert!(!run(&program, TYPE_CHAR, read, 10, 200));
        // The kernel's verifier takes it too.
        match sys::bpf::load_device_program(&program) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(nix::libc::EPERM) => {
                crate::skip::skip(
                    "last_rule_that_fits_decides",
                    "no right to load eBPF programs here",
                );
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn rules_that_would_be_read_as_others_are_refused() {
        let examine = |rule: serde_json::Value| {
            let resources: LinuxResources = serde_json::from_value(json!({ "devices": [rule] })).unwrap();
            examine(&resources).is_ok()
        };
        assert!(examine(
            json!({"allow": true, "type": "c", "major": 4095, "minor": -1, "access": "rwm"})
        ));
        assert!(!examine(
            json!({"allow": true, "type": "c", "major": (1i64 << 32) + 1, "access": "rwm"})
        ));
        assert!(!examine(
            json!({"allow": true, "type": "c", "major": 1, "minor": 1 << 20})
        ));
        assert!(!examine(json!({"allow": true, "access": "rx"})));
    }

    #[test]
    fn lines_are_v1s() {
        let rule = serde_json::from_value(json!({"allow": true, "type": "c", "major": 136, "access": "rw"}))
            .unwrap();
        assert_eq!(line(&rule), "c 136:* rw");
        let rule = serde_json::from_value(json!({"allow": false})).unwrap();
        assert_eq!(line(&rule), "a *:* rwm");
    }
}
