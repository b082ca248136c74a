//! Sockets between processes of ours, descriptors sent through them, and the loopback interface.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::{cvt, cvt_int, own};

/// Most descriptors in one message: more than any message of ours carries, far below the kernel's 253.
pub const FDS_MAX: usize = 16;

/// A connected pair that keeps message boundaries and tells the end of the other side. Both closed on exec.
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two numbers.
    cvt_int(unsafe {
        libc::socketpair(
            libc::AF_UNIX,
            libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
            0,
            ends.as_mut_ptr(),
        )
    })?;
    Ok((own(ends[0].into())?, own(ends[1].into())?))
}

/// Sends one message; a closed other side is EPIPE, never a signal.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    loop {
        // SAFETY: the bytes live through the call and are as many as told.
        let ret = unsafe {
            libc::send(
                socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                libc::MSG_NOSIGNAL,
            )
        };
        match cvt(ret as libc::c_long) {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// Room for one control message with FDS_MAX descriptors, aligned as its header wants.
#[repr(C, align(8))]
struct Control([u8; 128]);
const _: () = assert!(size_of::<libc::cmsghdr>() + FDS_MAX * size_of::<i32>() <= 128);

/// Sends one message with descriptors; at least one byte.
pub fn send_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.is_empty() || fds.is_empty() || fds.len() > FDS_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut control = Control([0; 128]);
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: msghdr is plain data, for which zero is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    let payload = (fds.len() * size_of::<i32>()) as u32;
    // SAFETY: CMSG_SPACE only computes.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(payload) } as usize;
    // SAFETY: the control buffer is large enough for a header (asserted above), so this is not null.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: CMSG_LEN only computes.
    let length = unsafe { libc::CMSG_LEN(payload) } as usize;
    let value = libc::cmsghdr {
        cmsg_len: length,
        cmsg_level: libc::SOL_SOCKET,
        cmsg_type: libc::SCM_RIGHTS,
    };
    // SAFETY: the header lies in `control`, aligned for it.
    unsafe { header.write(value) };
    // SAFETY: the data follows the header inside `control`.
    let data = unsafe { libc::CMSG_DATA(header) };
    for (index, fd) in fds.iter().enumerate() {
        let number = fd.as_raw_fd().to_ne_bytes();
        // SAFETY: index is below FDS_MAX, for which there is room (asserted above).
        let place = unsafe { data.add(index * size_of::<i32>()) };
        // SAFETY: four bytes from a local into that room.
        unsafe { std::ptr::copy_nonoverlapping(number.as_ptr(), place, size_of::<i32>()) };
    }
    loop {
        // SAFETY: everything that `message` points to lives through the call.
        let ret = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        match cvt(ret as libc::c_long) {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// Receives one message and its descriptors (closed on exec): bytes read, 0 when the other side has closed. Allocates.
/// Descriptors beyond FDS_MAX are closed by the kernel and make it an error.
pub fn recv_fds(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = Control([0; 128]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: msghdr is plain data, for which zero is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE only computes.
    message.msg_controllen = unsafe { libc::CMSG_SPACE((FDS_MAX * size_of::<i32>()) as u32) } as usize;
    let count = loop {
        // SAFETY: everything that `message` points to is ours and lives through the call.
        let ret = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match cvt(ret as libc::c_long) {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            result => break result? as usize,
        }
    };
    let mut fds = Vec::new();
    // SAFETY: the kernel filled in `message`; the macros stay inside the control buffer that it describes.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: not null, so it points to a whole header in `control`.
        let value = unsafe { header.read() };
        if value.cmsg_level == libc::SOL_SOCKET && value.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN only computes.
            let overhead = unsafe { libc::CMSG_LEN(0) } as usize;
            // SAFETY: the data follows the header.
            let data = unsafe { libc::CMSG_DATA(header) };
            for index in 0..(value.cmsg_len - overhead) / size_of::<i32>() {
                // SAFETY: cmsg_len says that this many numbers follow.
                let place = unsafe { data.add(index * size_of::<i32>()) };
                // SAFETY: four bytes there, of any alignment.
                let number = unsafe { place.cast::<i32>().read_unaligned() };
                fds.push(own(number.into())?);
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok((count, fds))
}

/// A socket to the kernel's routing tables of this network namespace (rtnetlink(7)).
pub fn netlink_route() -> io::Result<OwnedFd> {
    // SAFETY: integers; the result is a new descriptor.
    own(libc::c_long::from(unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    }))
}

/// The number of an interface of this network namespace.
pub fn interface_index(name: &CStr) -> io::Result<u32> {
    // SAFETY: the name is terminated.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Brings the loopback interface of this network namespace up.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: integers.
    let socket = own(libc::c_long::from(unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
    }))?;
    // SAFETY: ifreq is plain data, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which lives through the call.
    cvt_int(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
        .map(drop)
}
