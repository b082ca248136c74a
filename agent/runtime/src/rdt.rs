//! Intel RDT: the class of service (CLOS) of a container, a directory of the resctrl file system. Plain files, as the kernel's
//! Documentation/arch/x86/resctrl.rst has them.
//!
//! `Group::find` decides and looks, `make` makes what is missing, `enter` takes the process in, `remove` undoes `make`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxIntelRdt;
use serde::{Deserialize, Serialize};

use crate::inspect::mount_lines;

/// Why a class of service cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RdtError {
    /// The configuration asks for what cannot be.
    #[error("linux.intelRdt.{field}: {reason}")]
    Invalid {
        /// Which part.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No resctrl file system is mounted.
    #[error("linux.intelRdt: no resctrl file system is mounted here")]
    None,
    /// The kernel refused.
    #[error("failed to {action} {}{told}", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What resctrl itself says of it; empty, or with what separates it.
        told: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn invalid(field: &'static str, reason: impl Into<String>) -> RdtError {
    RdtError::Invalid {
        field,
        reason: reason.into(),
    }
}

/// A container's class of service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// Of the class.
    directory: PathBuf,
    /// It was not there before: it is ours to remove.
    made: bool,
    /// Of the container's own counters.
    monitoring: Option<PathBuf>,
}

/// Refuses what no machine could do.
pub(crate) fn examine(rdt: &LinuxIntelRdt) -> Result<(), RdtError> {
    if let Some(name) = rdt.clos_id() {
        check_name("closID", name)?;
    }
    lines(rdt).map(drop)
}

/// One directory of resctrl's. Its own are called `info`, `mon_data` and `mon_groups`.
fn check_name(field: &'static str, name: &str) -> Result<(), RdtError> {
    let own = matches!(name, "" | "." | ".." | "info" | "mon_data" | "mon_groups");
    if own || name.contains(['/', '\n', '\0']) {
        return Err(invalid(
            field,
            format!("{name:?} is no name of a class of service"),
        ));
    }
    Ok(())
}

/// The lines for `schemata`, in the order of writing; none leaves that file alone.
fn lines(rdt: &LinuxIntelRdt) -> Result<Vec<String>, RdtError> {
    let bandwidth = rdt.mem_bw_schema().as_deref();
    // runtime-spec 1.2, config-linux.md, IntelRdt: `memBwSchema` "MUST start with `MB:` and MUST NOT contain newlines".
    if bandwidth.is_some_and(|text| !text.starts_with("MB:") || text.contains('\n')) {
        return Err(invalid(
            "memBwSchema",
            "must be one line that starts with \"MB:\"",
        ));
    }
    let mut lines = Vec::new();
    for line in rdt.l3_cache_schema().iter().flat_map(|text| text.lines()) {
        // "the value written to `schemata` file MUST be the non-`MB:` line(s) from `l3CacheSchema` and the line from
        // `memBWSchema`".
        let replaced = bandwidth.is_some() && line.trim_start().starts_with("MB:");
        if !line.trim().is_empty() && !replaced {
            lines.push(line.to_owned());
        }
    }
    lines.extend(bandwidth.map(str::to_owned));
    // Since 1.3, and in its words last: of two values for one cache the later one holds.
    lines.extend(rdt.schemata().iter().flatten().cloned());
    for line in &lines {
        if line.contains('\n') || parse(line).is_none() {
            return Err(invalid(
                "schemata",
                format!("{line:?} is not RESOURCE:ID=VALUE;..."),
            ));
        }
    }
    Ok(lines)
}

/// A line of `schemata`: the resource, and the value of each cache or domain. Masks are of base 16, percentages and rates of
/// bandwidth of base 10; the kernel pads both.
fn parse(line: &str) -> Option<(String, BTreeMap<u32, u64>)> {
    let (resource, list) = line.split_once(':')?;
    let radix = if resource.trim() == "MB" || resource.trim() == "SMBA" {
        10
    } else {
        16
    };
    let values = list.split(';').map(|one| {
        let (id, value) = one.split_once('=')?;
        let value = value.trim();
        Some((
            id.trim().parse().ok()?,
            u64::from_str_radix(value.strip_prefix("0x").unwrap_or(value), radix).ok()?,
        ))
    });
    Some((resource.trim().to_owned(), values.collect::<Option<_>>()?))
}

/// The first line that says something else than what holds, if any.
fn differs<'a>(wanted: &'a [String], holds: &str) -> Option<&'a String> {
    let mut now: BTreeMap<(String, u32), u64> = BTreeMap::new();
    for (resource, values) in holds.lines().filter_map(parse) {
        now.extend(
            values
                .into_iter()
                .map(|(id, value)| ((resource.clone(), id), value)),
        );
    }
    wanted.iter().find(|line| {
        let Some((resource, values)) = parse(line) else {
            return true;
        };
        let same = |(id, value): (&u32, &u64)| now.get(&(resource.clone(), *id)) == Some(value);
        !values.iter().all(same)
    })
}

/// Where resctrl is mounted, by the text of a mountinfo file.
fn mounted(mountinfo: &str) -> Option<PathBuf> {
    let lines = mount_lines(mountinfo);
    lines
        .into_iter()
        .find(|line| line.fstype == "resctrl")
        .map(|line| line.point)
}

impl Group {
    /// The class that a configuration asks for, for the container `id`; nothing is made.
    pub(crate) fn find(rdt: &LinuxIntelRdt, id: &str) -> Result<Group, RdtError> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).map_err(fail("read", path))?;
        // "If no mounted `resctrl` pseudo-filesystem is available [...] the runtime MUST generate an error".
        Self::below(&mounted(&text).ok_or(RdtError::None)?, rdt, id)
    }

    fn below(root: &Path, rdt: &LinuxIntelRdt, id: &str) -> Result<Group, RdtError> {
        examine(rdt)?;
        let name = match rdt.clos_id() {
            Some(name) => name,
            // "If `closID` is not set, runtimes MUST use the container ID".
            None => {
                check_name("closID", id)?;
                id
            }
        };
        let directory = root.join(name);
        let there = match fs::metadata(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            found => found.map_err(fail("look at", &directory))?.is_dir(),
        };
        match (rdt.clos_id(), there) {
            // "MUST assign container to this `closID` and generate an error if directory does not exist".
            (Some(name), false) if lines(rdt)?.is_empty() => {
                return Err(invalid(
                    "closID",
                    format!("there is no class {name:?}, and no schema to make one"),
                ));
            }
            (None, true) => {
                return Err(invalid(
                    "closID",
                    format!("there is a class {id:?} of somebody else's already"),
                ));
            }
            _ => {}
        }
        let monitored = rdt.enable_monitoring() == &Some(true);
        Ok(Group {
            monitoring: monitored.then(|| directory.join("mon_groups").join(id)),
            directory,
            made: !there,
        })
    }

    /// Makes what `find` has not found. After an error the caller calls `remove`.
    pub(crate) fn make(&self, rdt: &LinuxIntelRdt) -> Result<(), RdtError> {
        let lines = lines(rdt)?;
        let schemata = self.directory.join("schemata");
        if self.made {
            fs::create_dir(&self.directory).map_err(fail("make", &self.directory))?;
            self.write_schemata(&lines)?;
        } else if !lines.is_empty() {
            // "MUST compare `l3CacheSchema` and/or `memBwSchema` value with `schemata` file, and generate an error if
            // doesn't match".
            let holds = fs::read_to_string(&schemata).map_err(fail("read", &schemata))?;
            if let Some(line) = differs(&lines, &holds) {
                let reason = format!("{} says otherwise than {line:?}", schemata.display());
                return Err(invalid("closID", reason));
            }
        }
        if let Some(path) = &self.monitoring {
            // A class made by hand without monitoring groups in its file system has no directory for them.
            fs::create_dir(path).map_err(fail("make", path))?;
        }
        Ok(())
    }

    /// Writes what is asked for, and nothing where nothing is.
    fn write_schemata(&self, lines: &[String]) -> Result<(), RdtError> {
        if lines.is_empty() {
            return Ok(());
        }
        let path = self.directory.join("schemata");
        // The kernel takes lines with their end alone, all in one write.
        let text = format!("{}\n", lines.join("\n"));
        fs::write(&path, text).map_err(|source| RdtError::File {
            action: "write",
            told: self.told(),
            path,
            source,
        })
    }

    /// Changes a container's schemata.
    pub(crate) fn update(&self, rdt: &LinuxIntelRdt) -> Result<(), RdtError> {
        self.write_schemata(&lines(rdt)?)
    }

    /// Takes a process in; those that it makes afterwards follow it.
    pub(crate) fn enter(&self, pid: i32) -> Result<(), RdtError> {
        for directory in [Some(&self.directory), self.monitoring.as_ref()]
            .into_iter()
            .flatten()
        {
            let path = directory.join("tasks");
            fs::write(&path, pid.to_string()).map_err(|source| RdtError::File {
                action: "write",
                told: self.told(),
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// Removes what `make` made, if it is there. A class of a name of its own may have others in it by now.
    pub(crate) fn remove(&self) -> Result<(), RdtError> {
        if let Some(path) = &self.monitoring {
            remove_dir(path)?;
        }
        if !self.made {
            return Ok(());
        }
        let tasks = self.directory.join("tasks");
        let others = match fs::read_to_string(&tasks) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            text => !text.map_err(fail("read", &tasks))?.trim().is_empty(),
        };
        if others {
            return Ok(());
        }
        remove_dir(&self.directory)
    }

    /// What resctrl says of the last error, in its own file.
    fn told(&self) -> String {
        let root = self.directory.parent().unwrap_or(&self.directory);
        let text = fs::read_to_string(root.join("info/last_cmd_status"));
        match text.as_deref().map(str::trim) {
            Ok("" | "ok") | Err(_) => String::new(), // a kernel without that file says nothing
            Ok(text) => format!(" ({text})"),
        }
    }
}

fn remove_dir(path: &Path) -> Result<(), RdtError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(fail("remove", path)),
    }
}

fn fail<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> RdtError + use<'a> {
    move |source| RdtError::File {
        action,
        path: path.to_owned(),
        told: String::new(),
        source,
    }
}

#[cfg(test)]
#[path = "rdt_test.rs"]
mod tests;
