//! What a child on its way to exec tells its parent: small records over a socket, and the words for its failures.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// What a child was doing. Its number goes over the socket.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    EnterCgroup,
    OomScore,
    RaiseLimit,
    Affinity,
    JoinNamespace,
    MapIds,
    BecomeRoot,
    TimeNamespace,
    Clone,
    CgroupNamespace,
    Keyring,
    Signals,
    Propagation,
    Loopback,
    Hostname,
    AttachRoot,
    Target,
    MakeFilesystem,
    AttachMount,
    ChangeMount,
    Console,
    Sysctl,
    Mask,
    ReadonlyPath,
    Hooks,
    Pivot,
    ReadonlyRoot,
    RootPropagation,
    Stdio,
    Label,
    Limit,
    Personality,
    Scheduler,
    IoPriority,
    MemoryPolicy,
    Directory,
    DirectoryOutside,
    Ids,
    Capabilities,
    NoNewPrivs,
    Find,
    Ready,
    Seccomp,
    CloseFds,
    Exec,
}

impl Step {
    const ALL: [Step; 45] = [
        Step::EnterCgroup,
        Step::OomScore,
        Step::RaiseLimit,
        Step::Affinity,
        Step::JoinNamespace,
        Step::MapIds,
        Step::BecomeRoot,
        Step::TimeNamespace,
        Step::Clone,
        Step::CgroupNamespace,
        Step::Keyring,
        Step::Signals,
        Step::Propagation,
        Step::Loopback,
        Step::Hostname,
        Step::AttachRoot,
        Step::Target,
        Step::MakeFilesystem,
        Step::AttachMount,
        Step::ChangeMount,
        Step::Console,
        Step::Sysctl,
        Step::Mask,
        Step::ReadonlyPath,
        Step::Hooks,
        Step::Pivot,
        Step::ReadonlyRoot,
        Step::RootPropagation,
        Step::Stdio,
        Step::Label,
        Step::Limit,
        Step::Personality,
        Step::Scheduler,
        Step::IoPriority,
        Step::MemoryPolicy,
        Step::Directory,
        Step::DirectoryOutside,
        Step::Ids,
        Step::Capabilities,
        Step::NoNewPrivs,
        Step::Find,
        Step::Ready,
        Step::Seccomp,
        Step::CloseFds,
        Step::Exec,
    ];
}

/// A step that failed: which, on which of its objects, and the kernel's number for why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) index: u32,
    pub(crate) errno: i32,
}

/// Names the step of a failed call.
pub(crate) fn at<T>(step: Step, index: usize, result: io::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| Failure {
        step,
        index: index as u32,
        errno: error.raw_os_error().unwrap_or(EIO),
    })
}

const EIO: i32 = nix::errno::Errno::EIO as i32;

/// One message of the child's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// The first child has made the container's process, with this id, and ends.
    Pid(i32),
    /// The container's namespaces stand, its root is not yet entered: hooks may run; answer with one byte.
    Hooks,
    /// All is prepared; the process waits to be released.
    Ready,
    /// The filter's listener comes with this.
    Listener,
    /// The next call is exec.
    Exec,
    /// It could not be done, and the child ends.
    Failed(Failure),
}

/// Bytes of a record: kind, step, two unused, then two little-endian numbers.
const RECORD_BYTES: usize = 12;

impl Record {
    fn encode(self) -> [u8; RECORD_BYTES] {
        let (kind, step, first, second) = match self {
            Record::Pid(pid) => (1, 0, pid as u32, 0),
            Record::Hooks => (2, 0, 0, 0),
            Record::Ready => (3, 0, 0, 0),
            Record::Exec => (4, 0, 0, 0),
            Record::Listener => (6, 0, 0, 0),
            Record::Failed(failure) => (5, failure.step as u8, failure.index, failure.errno as u32),
        };
        let mut bytes = [0; RECORD_BYTES];
        bytes[0] = kind;
        bytes[1] = step;
        bytes[4..8].copy_from_slice(&first.to_le_bytes());
        bytes[8..12].copy_from_slice(&second.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; RECORD_BYTES]) -> Option<Record> {
        let first = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let second = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        Some(match bytes[0] {
            1 => Record::Pid(first as i32),
            2 => Record::Hooks,
            3 => Record::Ready,
            4 => Record::Exec,
            6 => Record::Listener,
            5 => Record::Failed(Failure {
                step: *Step::ALL.get(usize::from(bytes[1]))?,
                index: first,
                errno: second as i32,
            }),
            _ => return None,
        })
    }

    pub(crate) fn send(self, socket: BorrowedFd<'_>) -> io::Result<()> {
        sys::socket::send(socket, &self.encode())
    }

    /// With a descriptor.
    pub(crate) fn send_with(self, socket: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
        sys::socket::send_fds(socket, &self.encode(), &[fd])
    }

    /// The next record, with the descriptor that came with it; none when every holder of the other end has gone.
    pub(crate) fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Record, Option<OwnedFd>)>> {
        let mut bytes = [0; RECORD_BYTES];
        match sys::socket::recv_fds(socket, &mut bytes)? {
            (0, _) => Ok(None),
            (RECORD_BYTES, mut fds) => Self::decode(bytes)
                .map(|record| Some((record, fds.pop())))
                .ok_or_else(|| io::ErrorKind::InvalidData.into()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_socket() {
        for (number, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(step as usize, number, "the table is in the order of the enum");
            let record = Record::Failed(Failure {
                step,
                index: 7,
                errno: 13,
            });
            assert_eq!(Record::decode(record.encode()), Some(record));
        }
        for record in [Record::Pid(4711), Record::Hooks, Record::Ready, Record::Exec] {
            assert_eq!(Record::decode(record.encode()), Some(record));
        }
        assert_eq!(Record::decode([9; RECORD_BYTES]), None);
    }
}
