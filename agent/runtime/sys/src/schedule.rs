//! When and where a process runs: scheduling policy, I/O priority, CPUs, memory nodes.

use std::io;

use crate::{cvt, cvt_int};

/// struct sched_attr (linux/sched/types.h), version 0 with the clamps of version 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scheduler {
    size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the policies of time sharing.
    pub nice: i32,
    /// For those of real time.
    pub priority: u32,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub runtime: u64,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub deadline: u64,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub period: u64,
    clamp_min: u32,
    clamp_max: u32,
}

const _: () = assert!(size_of::<Scheduler>() == 56, "SCHED_ATTR_SIZE_VER1");

/// Sets this thread's scheduling.
pub fn set_scheduler(scheduler: Scheduler) -> io::Result<()> {
    let attr = Scheduler {
        size: size_of::<Scheduler>() as u32,
        ..scheduler
    };
    // SAFETY: `attr` lives through the call and begins with its own size; thread 0 is the caller.
    cvt(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) }).map(drop)
}

/// Sets this thread's I/O priority: class (1 real time, 2 best effort, 3 idle) and level (0 to 7).
pub fn set_io_priority(class: u16, level: u16) -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    let value = libc::c_int::from(class) << 13 | libc::c_int::from(level);
    // SAFETY: integers; process 0 is the caller.
    cvt(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) }).map(drop)
}

/// Most CPUs of a set (a kernel's CONFIG_NR_CPUS).
pub const CPUS_MAX: usize = 8192;

/// A set of CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus(Vec<u64>);

impl Cpus {
    /// Of these numbers; none when one is beyond CPUS_MAX. Allocates.
    pub fn new(numbers: impl IntoIterator<Item = usize>) -> Option<Cpus> {
        let mut words = vec![0u64; CPUS_MAX / 64];
        for number in numbers {
            *words.get_mut(number / 64)? |= 1 << (number % 64);
        }
        Some(Cpus(words))
    }

    /// All that there may be. Allocates.
    pub fn all() -> Cpus {
        Cpus(vec![u64::MAX; CPUS_MAX / 64])
    }

    /// Lets this thread run on these only.
    pub fn apply(&self) -> io::Result<()> {
        // SAFETY: the words live through the call and are as many bytes as told; thread 0 is the caller.
        cvt(unsafe {
            libc::syscall(
                libc::SYS_sched_setaffinity,
                0,
                size_of_val(self.0.as_slice()),
                self.0.as_ptr(),
            )
        })
        .map(drop)
    }
}

/// Most memory nodes of a set (MAX_NUMNODES is at most 1024).
pub const NODES_MAX: usize = 1024;

/// From which nodes memory comes (set_mempolicy(2)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPolicy {
    mode: i32,
    nodes: Vec<u64>,
}

impl MemoryPolicy {
    /// `MPOL_*` with its `MPOL_F_*`, and nodes; none when a number is beyond NODES_MAX. Allocates.
    pub fn new(mode: i32, numbers: impl IntoIterator<Item = usize>) -> Option<MemoryPolicy> {
        let mut nodes = vec![0u64; NODES_MAX / 64];
        for number in numbers {
            *nodes.get_mut(number / 64)? |= 1 << (number % 64);
        }
        Some(MemoryPolicy { mode, nodes })
    }

    /// Sets it for this thread and those that it makes.
    pub fn apply(&self) -> io::Result<()> {
        let empty = self.nodes.iter().all(|word| *word == 0);
        let (pointer, bits) = if empty {
            (std::ptr::null(), 0)
        } else {
            (self.nodes.as_ptr(), NODES_MAX + 1) // the kernel takes one off
        };
        // SAFETY: the words live through the call and hold the NODES_MAX bits of which the kernel reads; or null and none.
        cvt(unsafe { libc::syscall(libc::SYS_set_mempolicy, self.mode, pointer, bits) }).map(drop)
    }
}

/// How nice this process is.
pub fn nice() -> io::Result<i32> {
    // The raw call gives 20 less it, so that no answer is negative.
    // SAFETY: integers; process 0 is the caller.
    let raw = cvt(unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) })?;
    Ok(20 - raw as i32)
}

/// The scheduling policy of this thread.
pub fn policy() -> io::Result<i32> {
    // SAFETY: an integer; thread 0 is the caller.
    cvt_int(unsafe { libc::sched_getscheduler(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_bounds() {
        assert!(Cpus::new([0, 1]).unwrap().apply().is_ok());
        assert!(Cpus::new([CPUS_MAX]).is_none());
        assert!(MemoryPolicy::new(0, [NODES_MAX]).is_none());
        // An empty set runs nowhere.
        assert_eq!(
            Cpus::new([]).unwrap().apply().unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }
}
