//! Seccomp filters as the kernel takes them: arrays of classic BPF instructions.

use std::io;
use std::os::fd::OwnedFd;

use crate::{cvt, own};

/// One instruction, `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Jump if true.
    pub jt: u8,
    /// Jump if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// The kernel's `BPF_MAXINSNS`.
pub const INSTRUCTIONS_MAX: usize = 4096;

#[repr(C)]
struct Program {
    length: u16,
    filter: *const Instruction,
}

/// Installs a filter on this thread; it cannot be taken off again. `flags` are `SECCOMP_FILTER_FLAG_*` without
/// NEW_LISTENER. Needs no_new_privs or CAP_SYS_ADMIN in the user namespace.
pub fn load(program: &[Instruction], flags: u32) -> io::Result<()> {
    set_mode(program, flags).map(drop)
}

/// As `load`, with a descriptor on which a supervisor answers the filter's notifications.
pub fn load_with_listener(program: &[Instruction], flags: u32) -> io::Result<OwnedFd> {
    const NEW_LISTENER: u32 = 8;
    own(set_mode(program, flags | NEW_LISTENER)?)
}

fn set_mode(program: &[Instruction], flags: u32) -> io::Result<libc::c_long> {
    if program.is_empty() || program.len() > INSTRUCTIONS_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let program = Program {
        length: program.len() as u16,
        filter: program.as_ptr(),
    };
    const SET_MODE_FILTER: libc::c_long = 1;
    // SAFETY: `program` has the layout of struct sock_fprog and points to as many instructions as it says; the kernel
    // copies and checks them.
    cvt(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const program) })
}

/// The `index`th filter (0 the oldest) of a process that we are tracing and that has stopped; ENOENT beyond the last.
/// Allocates.
pub fn get_filter(pid: i32, index: u64) -> io::Result<Vec<Instruction>> {
    const PTRACE_SECCOMP_GET_FILTER: libc::c_long = 0x420c;
    // SAFETY: a null buffer asks for the number of instructions.
    let count = cvt(unsafe {
        libc::syscall(
            libc::SYS_ptrace,
            PTRACE_SECCOMP_GET_FILTER,
            pid,
            index,
            std::ptr::null_mut::<Instruction>(),
        )
    })?;
    let mut program = vec![
        Instruction {
            code: 0,
            jt: 0,
            jf: 0,
            k: 0
        };
        count as usize
    ];
    // SAFETY: there is room for the number just told, and a filter never changes.
    cvt(unsafe {
        libc::syscall(
            libc::SYS_ptrace,
            PTRACE_SECCOMP_GET_FILTER,
            pid,
            index,
            program.as_mut_ptr(),
        )
    })?;
    Ok(program)
}

/// Attaches to a process without stopping it.
pub fn ptrace_seize(pid: i32) -> io::Result<()> {
    // SAFETY: integers; PTRACE_SEIZE takes no address and no options here.
    cvt(unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_SEIZE as libc::c_long, pid, 0, 0) }).map(drop)
}

/// Stops a process attached to, and waits until it has stopped.
pub fn ptrace_interrupt(pid: i32) -> io::Result<()> {
    // SAFETY: integers.
    cvt(unsafe {
        libc::syscall(
            libc::SYS_ptrace,
            libc::PTRACE_INTERRUPT as libc::c_long,
            pid,
            0,
            0,
        )
    })?;
    let mut status = 0;
    // SAFETY: there is room for the status.
    crate::cvt_int(unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) }).map(drop)
}

/// Lets a process go that was attached to.
pub fn ptrace_detach(pid: i32) -> io::Result<()> {
    // SAFETY: integers.
    cvt(unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_DETACH as libc::c_long, pid, 0, 0) }).map(drop)
}
