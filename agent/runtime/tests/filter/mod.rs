//! A filter as the kernel reads it: whether it would take the program, and what the program answers.

#![allow(
    unreachable_pub,
    reason = "a module of tests and of the fuzzers' library, which exports it"
)]
#![allow(dead_code, reason = "each test binary uses a part")]

use sys::seccomp::{INSTRUCTIONS_MAX, Instruction};

/// What the filter sees: struct seccomp_data.
#[derive(Clone, Copy, Default)]
pub struct Data {
    pub number: u32,
    pub arch: u32,
    pub arguments: [u64; 6],
}

pub const X86_64: u32 = 0xc000_003e;
pub const I386: u32 = 0x4000_0003;

/// Bytes of struct seccomp_data.
const DATA_BYTES: u32 = 64;
const MEMORY_WORDS: u32 = 16;

/// What bpf_check_classic (net/core/filter.c) and seccomp_check_filter (kernel/seccomp.c) ask of a program.
pub fn check(program: &[Instruction]) -> Result<(), String> {
    if program.is_empty() || program.len() > INSTRUCTIONS_MAX {
        return Err(format!("{} instructions", program.len()));
    }
    for (at, one) in program.iter().enumerate() {
        let wrong = |what: &str| Err(format!("instruction {at}: {what}: {one:x?}"));
        let rest = program.len() - at - 1;
        match one.code {
            // ld [k], a word of the data.
            0x20 if one.k % 4 == 0 && one.k < DATA_BYTES => {}
            0x20 => return wrong("a load beyond the data"),
            // ld #k, ldx #k, ld len, ldx len.
            0x00 | 0x01 | 0x80 | 0x81 => {}
            // ld M[k], ldx M[k], st, stx.
            0x60 | 0x61 | 0x02 | 0x03 if one.k < MEMORY_WORDS => {}
            0x60 | 0x61 | 0x02 | 0x03 => return wrong("no such word of memory"),
            // add, sub, mul, or, and, xor with k or x; neg, tax, txa, division and shifts by x.
            0x04 | 0x0c | 0x14 | 0x1c | 0x24 | 0x2c | 0x44 | 0x4c | 0x54 | 0x5c | 0xa4 | 0xac | 0x84
            | 0x07 | 0x87 | 0x3c | 0x6c | 0x7c => {}
            0x34 if one.k != 0 => {}
            0x64 | 0x74 if one.k < 32 => {}
            // ja.
            0x05 if (one.k as usize) < rest => {}
            // jeq, jgt, jge, jset with k or x.
            0x15 | 0x1d | 0x25 | 0x2d | 0x35 | 0x3d | 0x45 | 0x4d
                if usize::from(one.jt) < rest && usize::from(one.jf) < rest => {}
            0x05 | 0x15 | 0x1d | 0x25 | 0x2d | 0x35 | 0x3d | 0x45 | 0x4d => {
                return wrong("a jump beyond the end");
            }
            // ret #k, ret a.
            0x06 | 0x16 => {}
            _ => return wrong("no operation of a filter"),
        }
    }
    match program.last() {
        Some(last) if matches!(last.code, 0x06 | 0x16) => Ok(()),
        _ => Err("it does not end with an answer".to_owned()),
    }
}

/// The kernel's classic BPF, as far as libseccomp uses it. Of a program that `check` takes: jumps go forward, so it ends.
pub fn run(program: &[Instruction], data: &Data) -> u32 {
    let mut words = vec![data.number, data.arch, 0, 0];
    for argument in data.arguments {
        words.extend([argument as u32, (argument >> 32) as u32]);
    }
    let (mut a, mut x, mut memory, mut at) = (0u32, 0u32, [0u32; 16], 0usize);
    loop {
        let one = program[at];
        at += 1;
        let operand = if one.code & 0x08 != 0 { x } else { one.k };
        match one.code & 0x07 {
            0x00 => {
                a = match one.code & 0xe0 {
                    0x20 => words[one.k as usize / 4],
                    0x60 => memory[one.k as usize],
                    0x00 => one.k,
                    mode => panic!("load {mode:#x}"),
                }
            }
            0x01 => {
                x = if one.code & 0xe0 == 0x60 {
                    memory[one.k as usize]
                } else {
                    one.k
                }
            }
            0x02 => memory[one.k as usize] = a,
            0x03 => memory[one.k as usize] = x,
            0x04 => {
                a = match one.code & 0xf0 {
                    0x50 => a & operand,
                    0x40 => a | operand,
                    0x00 => a.wrapping_add(operand),
                    0x10 => a.wrapping_sub(operand),
                    0x60 => a << operand,
                    0x70 => a >> operand,
                    op => panic!("operation {op:#x}"),
                }
            }
            0x05 => {
                let taken = match one.code & 0xf0 {
                    0x00 => {
                        at += one.k as usize;
                        continue;
                    }
                    0x10 => a == operand,
                    0x20 => a > operand,
                    0x30 => a >= operand,
                    0x40 => a & operand != 0,
                    op => panic!("jump {op:#x}"),
                };
                at += usize::from(if taken { one.jt } else { one.jf });
            }
            0x06 => return if one.code & 0x18 == 0x10 { a } else { one.k },
            _ => (a, x) = if one.code & 0xf8 == 0x80 { (x, x) } else { (a, a) },
        }
    }
}

/// A call's number on x86-64.
pub fn number(name: &str) -> Option<u32> {
    let number = libseccomp::ScmpSyscall::from_name_by_arch(name, libseccomp::ScmpArch::X8664).ok()?;
    u32::try_from(number.as_raw_syscall()).ok()
}
