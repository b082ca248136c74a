//! systemd as the keeper of a container's cgroup: a transient scope, for which it is asked over D-Bus.
//!
//! `Unit` names the scope, `start`, `set` and `stop` are what is asked; `properties` tells systemd the limits, so that its
//! own writing to the group does not undo ours; `wire` is D-Bus as bytes, `bus` the connection. It is a client of our own:
//! zbus would add 800 KiB and threads to a runtime that is 5 MiB and has none, for five methods and one signal.
//!
//! A scope needs a process to begin with, and the container is to begin inside it. So a `Holder` stands in the scope until
//! the container is there: a child of ours that waits for our end.

mod bus;
mod properties;
pub mod wire;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use bus::Connection;
use wire::{Malformed, Value, Writer};

/// Why systemd did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SystemdError {
    /// runc's words.
    #[error("systemd not running on this host, cannot use systemd cgroups manager")]
    NotRunning,
    /// The connection.
    #[error("failed to {action}")]
    Connection {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It did not take us for who we are.
    #[error("systemd does not let us in: it says {said:?}")]
    Unknown {
        /// Its words.
        said: String,
    },
    /// What it says cannot be read.
    #[error("systemd's answer cannot be read")]
    Malformed(#[from] Malformed),
    /// It says no.
    #[error("systemd refuses {call}: {text} ({name})")]
    Refused {
        /// What was asked.
        call: &'static str,
        /// Name of the error.
        name: String,
        /// Its words.
        text: String,
    },
    /// A job did not come to a good end.
    #[error("systemd's job for {unit} ended as {result:?}; `systemctl status {unit}` says more")]
    Job {
        /// The scope.
        unit: String,
        /// How.
        result: String,
    },
    /// It does not answer.
    #[error("systemd has not answered within {seconds} s")]
    Late {
        /// How long was waited.
        seconds: u64,
    },
    /// What systemd could not be told.
    #[error("{0}")]
    Invalid(String),
    /// The process that stands in the scope.
    #[error("failed to {action} the process that holds the scope")]
    Holder {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Longest name of a unit: systemd's UNIT_NAME_MAX.
const NAME_BYTES_MAX: usize = 255;

/// A scope and the slice that it is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// `NAME.scope`
    pub scope: String,
    /// `NAME.slice`
    pub slice: String,
}

impl Unit {
    /// From `SLICE:PREFIX:NAME`, as engines write a cgroup's path for systemd; the container's id where there is none.
    pub fn parse(text: &str, id: &str) -> Result<Unit, SystemdError> {
        let (slice, prefix, name) = match text.split(':').collect::<Vec<_>>().as_slice() {
            [""] => ("", "bulkhead", id),
            [slice, prefix, name] => (*slice, *prefix, *name),
            // runc's words.
            _ => {
                return Err(SystemdError::Invalid(format!(
                    "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {text:?} instead"
                )));
            }
        };
        let unit = Unit {
            scope: match prefix {
                "" => format!("{name}.scope"),
                prefix => format!("{prefix}-{name}.scope"),
            },
            slice: if slice.is_empty() { "system.slice" } else { slice }.to_owned(),
        };
        let named = |text: &str, end: &str| {
            // systemd.unit(5): letters, digits and ":-_.\\"; no "@" of templates.
            let good = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\".contains(&byte);
            text.len() <= NAME_BYTES_MAX
                && text.len() > end.len()
                && text.ends_with(end)
                && text.bytes().all(good)
        };
        let base = unit.slice.strip_suffix(".slice").unwrap_or_default();
        let split = base == "-" || !base.split('-').any(str::is_empty);
        if !named(&unit.slice, ".slice") || !split {
            return Err(SystemdError::Invalid(format!(
                "invalid slice name: {}",
                unit.slice
            )));
        }
        if !named(&unit.scope, ".scope") || name.is_empty() {
            return Err(SystemdError::Invalid(format!(
                "invalid scope name: {}",
                unit.scope
            )));
        }
        Ok(unit)
    }

    /// The path of its cgroup: `a-b.slice` lies below `a.slice` (systemd.slice(5)).
    pub fn path(&self) -> PathBuf {
        let mut path = PathBuf::from("/");
        let base = self.slice.strip_suffix(".slice").unwrap_or(&self.slice);
        if base != "-" {
            for (at, _) in base.match_indices('-') {
                path.push(format!("{}.slice", &base[..at]));
            }
            path.push(&self.slice);
        }
        path.join(&self.scope)
    }

    /// Makes the scope, with a process of ours in it until the container is. In v2 every controller is then there.
    pub fn start(&self, id: &str, resources: &LinuxResources, v2: bool) -> Result<Holder, SystemdError> {
        let limits = properties::of(resources, v2, &devices()?)?;
        let mut systemd = Connection::open()?;
        let holder = Holder::new()?;
        let mut all = properties::of_scope(id, &self.slice, holder.pid as u32, v2);
        all.extend(limits);
        let body = || {
            let body = Writer::default().text(&self.scope).text("replace");
            body.properties(&all).no_units()
        };
        let answer = match systemd.call("StartTransientUnit", body()) {
            // One that failed under this name, and was not forgotten yet.
            Err(SystemdError::Refused { name, .. }) if name == "org.freedesktop.systemd1.UnitExists" => {
                let _failed =
                    forgiving(systemd.call("ResetFailedUnit", Writer::default().text(&self.scope)))?;
                systemd.call("StartTransientUnit", body())?
            }
            answer => answer?,
        };
        self.wait(&mut systemd, &answer)?;
        Ok(holder)
    }

    fn wait(&self, systemd: &mut Connection, answer: &wire::Message) -> Result<(), SystemdError> {
        let job = answer.reader().text()?.to_owned();
        match systemd.job(&job)?.as_str() {
            "done" => Ok(()),
            result => Err(SystemdError::Job {
                unit: self.scope.clone(),
                result: result.to_owned(),
            }),
        }
    }

    /// Tells it changed limits.
    pub fn set(&self, resources: &LinuxResources, v2: bool) -> Result<(), SystemdError> {
        let limits = properties::of_update(resources, v2)?;
        if limits.is_empty() {
            return Ok(());
        }
        let body = Writer::default().text(&self.scope).flag(true);
        let mut systemd = Connection::open()?;
        systemd
            .call("SetUnitProperties", body.properties(&limits))
            .map(drop)
    }

    /// Ends the scope, and lets systemd forget that it failed if it did. One that has gone, as do those without processes,
    /// is no error; nor is a machine whose systemd has.
    pub fn stop(&self) -> Result<(), SystemdError> {
        let mut systemd = match Connection::open() {
            Err(SystemdError::NotRunning) => return Ok(()),
            systemd => systemd?,
        };
        let stop = Writer::default().text(&self.scope).text("replace");
        if let Some(answer) = forgiving(systemd.call("StopUnit", stop))? {
            self.wait(&mut systemd, &answer)?;
        }
        forgiving(systemd.call("ResetFailedUnit", Writer::default().text(&self.scope))).map(drop)
    }
}

/// None for a unit that there is not.
fn forgiving(answer: Result<wire::Message, SystemdError>) -> Result<Option<wire::Message>, SystemdError> {
    match answer {
        Err(SystemdError::Refused { name, .. }) if name == "org.freedesktop.systemd1.NoSuchUnit" => Ok(None),
        answer => answer.map(Some),
    }
}

/// The kernel's names of device numbers, of which systemd's rules are made.
fn devices() -> Result<String, SystemdError> {
    std::fs::read_to_string(Path::new("/proc/devices")).map_err(|source| SystemdError::Connection {
        action: "read /proc/devices",
        source,
    })
}

/// A process that stands in a scope; it goes when this is dropped, or when we end.
#[derive(Debug)]
pub struct Holder {
    pid: i32,
}

impl Holder {
    fn new() -> Result<Holder, SystemdError> {
        let fail = |action| move |source| SystemdError::Holder { action, source };
        let us = sys::process::pidfd_open(sys::process::getpid()).map_err(fail("watch"))?;
        let args = sys::process::CloneArgs {
            exit_signal: nix::libc::SIGCHLD,
            ..Default::default()
        };
        // Between clone and exit it only polls; ended by us, or by our end.
        let wait = || i32::from(sys::fd::wait_readable(us.as_fd(), None).is_err());
        let pid = sys::process::spawn(args, wait).map_err(fail("start"))?;
        Ok(Holder { pid })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Our child, not reaped yet: the number is its own. Neither can fail then, and nobody is there to be told.
        drop(sys::process::kill(self.pid, nix::libc::SIGKILL));
        drop(sys::process::wait_pid(self.pid));
    }
}

/// A property of text.
fn text(name: &str, value: &str) -> (String, Value) {
    (name.to_owned(), Value::Text(value.to_owned()))
}

fn flag(name: &str, value: bool) -> (String, Value) {
    (name.to_owned(), Value::Flag(value))
}

fn number(name: &str, value: u64) -> (String, Value) {
    (name.to_owned(), Value::Number(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_for_systemd_names_scope_and_slice() {
        for (text, path) in [
            ("system.slice:docker:abc", "/system.slice/docker-abc.scope"),
            (
                "user-1000.slice:libpod:abc",
                "/user.slice/user-1000.slice/libpod-abc.scope",
            ),
            ("a-b-c.slice:x:y", "/a.slice/a-b.slice/a-b-c.slice/x-y.scope"),
            (":x:abc", "/system.slice/x-abc.scope"),
            ("system.slice::abc", "/system.slice/abc.scope"),
            ("-.slice:x:abc", "/x-abc.scope"),
            ("", "/system.slice/bulkhead-id.scope"),
        ] {
            assert_eq!(Unit::parse(text, "id").unwrap().path(), Path::new(path), "{text}");
        }
        let long = format!("system.slice:x:{}", "y".repeat(250));
        for text in [
            "/docker/abc",
            "a:b",
            "a:b:c:d",
            "system:x:y",
            "a--b.slice:x:y",
            "-a.slice:x:y",
            ".slice:x:y",
            "a/b.slice:x:y",
            "../x.slice:x:y",
            "system.slice:x:",
            "system.slice:x:a/b",
            "system.slice:x:a b",
            "system.slice:x:a\0",
            &long,
        ] {
            assert!(Unit::parse(text, "id").is_err(), "{text:?}");
        }
    }
}
