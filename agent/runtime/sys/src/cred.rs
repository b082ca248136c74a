//! Who a process is and what it may do: ids, capabilities, limits, keyrings, names.

use std::ffi::CStr;
use std::io;

use crate::process::prctl;
use crate::{cvt, cvt_int};

/// Sets the supplementary groups.
pub fn setgroups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the list is ours and as long as told. The raw call: the C library's would signal other threads.
    cvt(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Sets real, effective and saved group.
pub fn setgid(gid: u32) -> io::Result<()> {
    // SAFETY: integers. The raw call, as in `setgroups`.
    cvt(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// Sets real, effective and saved user.
pub fn setuid(uid: u32) -> io::Result<()> {
    // SAFETY: integers. The raw call, as in `setgroups`.
    cvt(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Keeps permitted capabilities through the next change of user.
pub fn set_keep_caps(on: bool) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(on))
}

/// Capability sets as bit masks by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapSets {
    /// What the process can use.
    pub effective: u64,
    /// What it may make effective.
    pub permitted: u64,
    /// What survives the exec of a file that has it too.
    pub inheritable: u64,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two words each.
const CAP_VERSION: u32 = 0x2008_0522;

/// Sets this thread's capabilities.
pub fn capset(sets: CapSets) -> io::Result<()> {
    let header = CapHeader {
        version: CAP_VERSION,
        pid: 0,
    };
    let word = |shift: u32| CapData {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [word(0), word(32)];
    // SAFETY: version 3 reads a header and two data words, which both live through the call.
    cvt(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// This thread's capabilities.
pub fn capget() -> io::Result<CapSets> {
    let header = CapHeader {
        version: CAP_VERSION,
        pid: 0,
    };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 writes two data words, for which there is room.
    cvt(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(CapSets {
        effective: join(data[0].effective, data[1].effective),
        permitted: join(data[0].permitted, data[1].permitted),
        inheritable: join(data[0].inheritable, data[1].inheritable),
    })
}

/// Takes a capability out of the bounding set for good.
pub fn drop_bounding(capability: u32) -> io::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, capability.into())
}

/// Whether a capability is in the bounding set; EINVAL when the kernel does not know it.
pub fn has_bounding(capability: u32) -> io::Result<bool> {
    // SAFETY: integers.
    let ret = unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability), 0, 0, 0) };
    cvt_int(ret).map(|set| set == 1)
}

/// Empties the ambient set.
pub fn clear_ambient() -> io::Result<()> {
    prctl(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong,
    )
}

/// Adds to the ambient set what is permitted and inheritable.
pub fn raise_ambient(capability: u32) -> io::Result<()> {
    // SAFETY: integers; the unused arguments must be zero and are.
    let ret = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong,
            libc::c_ulong::from(capability),
            0 as libc::c_ulong,
            0 as libc::c_ulong,
        )
    };
    cvt_int(ret).map(drop)
}

/// A limit of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_*`.
    pub resource: u32,
    /// What holds now.
    pub soft: u64,
    /// How far the process may raise it itself.
    pub hard: u64,
}

/// A limit of ours.
pub fn getrlimit(resource: u32) -> io::Result<Rlimit> {
    let mut old = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a null new limit changes nothing; there is room for the old one.
    cvt(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            std::ptr::null::<libc::rlimit64>(),
            &raw mut old,
        )
    })?;
    Ok(Rlimit {
        resource,
        soft: old.rlim_cur,
        hard: old.rlim_max,
    })
}

/// Sets a limit of ours.
pub fn setrlimit(limit: Rlimit) -> io::Result<()> {
    let new = libc::rlimit64 {
        rlim_cur: limit.soft,
        rlim_max: limit.hard,
    };
    // SAFETY: the new limit lives through the call; a null old one means that it is not wanted.
    cvt(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            limit.resource,
            &raw const new,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    })
    .map(drop)
}

/// A new, anonymous session keyring, so that the host's is not shared.
pub fn join_new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous one.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
            0,
            0,
            0,
        )
    };
    cvt(ret).map(drop)
}

/// Execution domain and its flags.
pub fn set_personality(persona: u64) -> io::Result<()> {
    // SAFETY: an integer.
    cvt_int(unsafe { libc::personality(persona as libc::c_ulong) }).map(drop)
}

/// The host's name in this UTS namespace.
pub fn sethostname(name: &CStr) -> io::Result<()> {
    // SAFETY: the name lives through the call and is as long as told.
    cvt_int(unsafe { libc::sethostname(name.as_ptr(), name.to_bytes().len()) }).map(drop)
}

/// The domain's name in this UTS namespace.
pub fn setdomainname(name: &CStr) -> io::Result<()> {
    // SAFETY: the name lives through the call and is as long as told.
    cvt_int(unsafe { libc::setdomainname(name.as_ptr(), name.to_bytes().len()) }).map(drop)
}
