//! `linux.netDevices`: interfaces of ours moved into the container's network namespace, with their addresses.
//!
//! rtnetlink(7): a message is a header, a fixed part and attributes, each aligned to four bytes.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::libc;
use oci_spec::runtime::Linux;
use sys::process::{self, CloneArgs};
use sys::{fd, socket};

use super::StartError;
use super::program::{c_string, invalid};

/// One interface to move.
#[derive(Debug)]
pub(crate) struct Interface {
    name: CString,
    /// Its name in the container.
    inside: CString,
}

/// Most interfaces of one container, each of which may have as many addresses.
const COUNT_MAX: usize = 256;

/// net/core/dev.c, dev_valid_name; runtime-spec 1.2.1, config-linux.md, Network Devices.
fn check(field: &str, name: &str) -> Result<CString, StartError> {
    let sane = !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && !matches!(name, "." | "..")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    if !sane {
        return Err(invalid(field, format!("{name:?} is no name of an interface")));
    }
    c_string(field, name)
}

/// What the configuration asks for; `own` says whether there is a network namespace to move to.
pub(super) fn plan(linux: &Linux, own: bool) -> Result<Vec<Interface>, StartError> {
    let mut interfaces: Vec<Interface> = Vec::new();
    for (name, device) in linux.net_devices().iter().flatten() {
        let field = format!("linux.netDevices.{name}");
        if !own {
            return Err(invalid(field, "needs a network namespace of the container's own"));
        }
        let inside = device
            .name()
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or(name);
        let inside = check(&field, inside)?;
        if interfaces.iter().any(|other| other.inside == inside) || inside.as_c_str() == c"lo" {
            return Err(invalid(
                field,
                format!("{inside:?} is another's name in the container"),
            ));
        }
        if interfaces.len() == COUNT_MAX {
            return Err(invalid(field, format!("more than {COUNT_MAX}")));
        }
        interfaces.push(Interface {
            name: check(&field, name)?,
            inside,
        });
    }
    Ok(interfaces)
}

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const HEADER_BYTES: usize = 16;
/// Where the number of the interface stands in a message of ours: both kinds have it there.
const INDEX_AT: usize = HEADER_BYTES + 4;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_LABEL: u16 = 3;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_F_PERMANENT: u32 = 0x80;
/// Answers of a dump come in parts of at most this.
const ANSWER_BYTES_MAX: usize = 64 << 10;

fn message(kind: u16, flags: u16, fixed: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend_from_slice(fixed);
    for (kind, value) in attributes {
        let length = 4 + value.len();
        bytes.extend((length as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

/// struct ifinfomsg
fn link(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Sends one request and takes the kernel's answer to it. Does not allocate.
fn ask(socket: BorrowedFd<'_>, request: &[u8]) -> io::Result<()> {
    socket::send(socket, request)?;
    let mut answer = [0; 1024];
    let count = fd::read(socket, &mut answer)?;
    let answer = &answer[..count];
    match (u16_at(answer, 4), u32_at(answer, HEADER_BYTES)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error((code as i32).wrapping_neg())),
        _ => Err(io::Error::from_raw_os_error(libc::EPROTO)),
    }
}

/// The requests that give an interface its addresses again: a move takes them away.
fn addresses(socket: BorrowedFd<'_>, index: u32) -> io::Result<Vec<Vec<u8>>> {
    socket::send(socket, &message(RTM_GETADDR, REQUEST | DUMP, &[0; 8], &[]))?;
    let mut kept = Vec::new();
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let count = fd::read(socket, &mut answer)?;
        let mut rest = &answer[..count];
        while let (Some(length), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
            let length = length as usize;
            let one = rest
                .get(HEADER_BYTES..length)
                .ok_or_else(|| io::Error::from_raw_os_error(libc::EPROTO))?;
            match kind {
                NLMSG_DONE => return Ok(kept),
                NLMSG_ERROR => {
                    let code = u32_at(one, 0).unwrap_or_default() as i32;
                    return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
                }
                RTM_NEWADDR if u32_at(one, 4) == Some(index) => kept.extend(again(one)),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The request for an address that was listed; none for one that is not permanent or not of global scope.
fn again(listed: &[u8]) -> Option<Vec<u8>> {
    let fixed: [u8; 8] = *listed.first_chunk()?;
    let [_, _, flags, scope, ..] = fixed;
    let mut all_flags = u32::from(flags);
    let mut attributes: Vec<(u16, &[u8])> = Vec::new();
    let mut rest = listed.get(8..)?;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let value = rest.get(4..usize::from(length))?;
        match kind {
            IFA_FLAGS => all_flags = u32_at(value, 0)?,
            // The label is the old name's; how long it lasts is told by being permanent.
            IFA_LABEL | IFA_CACHEINFO => {}
            _ => attributes.push((kind, value)),
        }
        rest = rest
            .get(usize::from(length).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    if scope != 0 || all_flags & IFA_F_PERMANENT == 0 {
        return None;
    }
    Some(message(RTM_NEWADDR, REQUEST | ACK | CREATE, &fixed, &attributes))
}

/// Moves the interfaces into the network namespace of a process.
pub(super) fn give(interfaces: &[Interface], pid: i32) -> Result<(), StartError> {
    interfaces.iter().try_for_each(|interface| {
        give_one(interface, pid).map_err(|source| StartError::Step {
            action: format!("move the network interface {}", interface.name.to_string_lossy()),
            source,
        })
    })
}

fn give_one(interface: &Interface, pid: i32) -> io::Result<()> {
    let socket = socket::netlink_route()?;
    let index = socket::interface_index(&interface.name)?;
    let mut requests = addresses(socket.as_fd(), index)?;
    let namespace = fs::File::open(format!("/proc/{pid}/ns/net"))?;
    let number = namespace.as_raw_fd().to_ne_bytes();
    let attributes: [(u16, &[u8]); 2] = [
        (IFLA_NET_NS_FD, &number),
        (IFLA_IFNAME, interface.inside.to_bytes_with_nul()),
    ];
    ask(
        socket.as_fd(),
        &message(RTM_NEWLINK, REQUEST | ACK, &link(index, 0, 0), &attributes),
    )?;
    let up = libc::IFF_UP as u32;
    requests.push(message(RTM_NEWLINK, REQUEST | ACK, &link(0, up, up), &[]));
    // In there, by a child: we stay where we are.
    let body = || {
        let mut inside = || -> io::Result<()> {
            process::setns(namespace.as_fd(), libc::CLONE_NEWNET)?;
            let socket = socket::netlink_route()?;
            // The number may be another there.
            let index = socket::interface_index(&interface.inside)?.to_ne_bytes();
            for request in &mut requests {
                if let Some(place) = request.get_mut(INDEX_AT..INDEX_AT + 4) {
                    place.copy_from_slice(&index);
                }
                ask(socket.as_fd(), request)?;
            }
            Ok(())
        };
        match inside() {
            Ok(()) => 0,
            // An exit code carries eight bits, and errno of these calls fits.
            Err(error) => error
                .raw_os_error()
                .filter(|code| (1..=255).contains(code))
                .unwrap_or(libc::EIO),
        }
    };
    let args = CloneArgs {
        flags: 0,
        exit_signal: libc::SIGCHLD,
        cgroup: None,
    };
    match process::wait_pid(process::spawn(args, body)?)?.code() {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_that_are_none_are_refused() {
        let with = |devices: serde_json::Value| -> Linux {
            serde_json::from_value(json!({ "netDevices": devices })).unwrap()
        };
        assert_eq!(
            plan(&with(json!({ "eth0": {}, "eth1": { "name": "x" } })), true)
                .unwrap()
                .len(),
            2
        );
        assert!(plan(&with(json!({ "eth0": {} })), false).is_err());
        for devices in [
            json!({ "sixteen-letters!": {} }),
            json!({ "": {} }),
            json!({ "..": {} }),
            json!({ "a b": {} }),
            json!({ "eth0": { "name": "a/b" } }),
            json!({ "eth0": { "name": "lo" } }),
            json!({ "eth0": { "name": "x" }, "eth1": { "name": "x" } }),
        ] {
            assert!(plan(&with(devices.clone()), true).is_err(), "{devices}");
        }
    }

    #[test]
    fn an_address_is_asked_for_again_only_when_it_lasts() {
        let listed = |scope: u8, flags: u8| {
            let fixed = [2, 24, flags, scope, 7, 0, 0, 0];
            message(
                RTM_NEWADDR,
                0,
                &fixed,
                &[(2, &[10, 0, 0, 1]), (IFA_LABEL, b"eth0\0")],
            )[HEADER_BYTES..]
                .to_vec()
        };
        let request = again(&listed(0, 0x80)).unwrap();
        assert_eq!(request.len(), HEADER_BYTES + 8 + 8, "the label is left out");
        assert_eq!(again(&listed(253, 0x80)), None);
        assert_eq!(again(&listed(0, 0)), None);
        for length in 0..listed(0, 0x80).len() {
            again(&listed(0, 0x80)[..length]); // cut anywhere, it does not panic
        }
    }
}
