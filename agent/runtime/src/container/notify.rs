//! Seccomp notifications: the descriptor on which a supervisor answers the filter's questions, handed to it.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

use super::program::invalid;
use super::{Options, StartError};
use crate::seccomp;

/// Whom to give the descriptor, and what to say with it.
#[derive(Debug)]
pub(crate) struct Notify {
    path: PathBuf,
    metadata: Option<String>,
    state: Value,
}

impl Notify {
    /// Of a profile with notifications.
    pub(super) fn of(profile: &LinuxSeccomp, options: &Options<'_>) -> Result<Option<Notify>, StartError> {
        let Some(path) = seccomp::listener(profile)? else {
            return Ok(None);
        };
        let state = options.state.ok_or_else(|| {
            invalid(
                "linux.seccomp.listenerPath",
                "notifications are not supported here",
            )
        })?;
        Ok(Some(Notify {
            path: path.to_owned(),
            metadata: profile.listener_metadata().clone(),
            state: state.clone(),
        }))
    }

    /// runtime-spec 1.2, config-linux.md, The Container Process State: one JSON text with the descriptor `seccompFd`.
    pub(super) fn hand_over(mut self, pid: i32, listener: BorrowedFd<'_>) -> Result<(), StartError> {
        if self.state["pid"] == 0 {
            self.state["pid"] = pid.into();
        }
        let text = json!({
            "ociVersion": crate::oci::SPEC_VERSION,
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": self.metadata.unwrap_or_default(),
            "state": self.state,
        })
        .to_string();
        let send = || -> io::Result<()> {
            let mut stream = UnixStream::connect(&self.path)?;
            let (first, rest) = text.as_bytes().split_at(1);
            // The descriptor comes with the first byte, whatever the size of the rest.
            sys::socket::send_fds(stream.as_fd(), first, &[listener])?;
            stream.write_all(rest)
        };
        send().map_err(|source| StartError::Host {
            action: "hand the seccomp listener to",
            path: Some(self.path.clone()),
            source,
        })
    }
}
