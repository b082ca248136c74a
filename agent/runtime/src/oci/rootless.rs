//! Without root: the runtime enters the user namespace that the configuration asks for, with a mount namespace of its own,
//! and builds the container from there. So all that root does is done the same way, with the rights over what the user
//! namespace owns and no others.

use std::env;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::libc;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, LinuxResources, Spec};
use sys::process::{self, CStrings, CloneArgs, Ended};
use sys::{fd, mount, path, socket};

use super::arguments::Arguments;
use super::{OciError, refused};

/// Whether we are to do without root's rights: as told, else by who we are. Root in somebody's user namespace is no root of
/// the machine: podman without root calls us as that.
pub(super) fn asked(arguments: &Arguments) -> Result<bool, OciError> {
    match arguments.value("rootless") {
        None | Some("auto" | "") => Ok(!nix::unistd::geteuid().is_root() || in_user_namespace()?),
        Some("true" | "t" | "T" | "TRUE" | "True" | "1") => Ok(true),
        Some("false" | "f" | "F" | "FALSE" | "False" | "0") => Ok(false),
        // `spec --rootless` is a switch; whatever it meant to say, another verb must not guess.
        Some(other) => Err(refused(format!(
            "invalid value {other:?} for flag --rootless: true, false and auto are known"
        ))),
    }
}

fn in_user_namespace() -> Result<bool, OciError> {
    let path = Path::new("/proc/self/uid_map");
    let text = fs::read_to_string(path).map_err(|source| OciError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    // The first namespace maps all there are (user_namespaces(7)).
    Ok(!text.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// Where a user without root keeps what lives as long as his session. Who has become root by the namespace alone is known
/// by his name, as runc has it.
pub(super) fn run_directory() -> Option<PathBuf> {
    if nix::unistd::geteuid().is_root() && env::var_os("USER").is_some_and(|user| user == "root") {
        return None;
    }
    let told = env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty());
    let usual =
        || Some(PathBuf::from(format!("/run/user/{}", nix::unistd::geteuid()))).filter(|path| path.is_dir());
    told.map(PathBuf::from).or_else(usual)
}

fn step(action: &'static str) -> impl FnOnce(io::Error) -> OciError {
    move |source| OciError::Step { action, source }
}

type Map = (u32, u32, u32);

fn map(list: Option<&Vec<LinuxIdMapping>>) -> Vec<Map> {
    let list = list.into_iter().flatten();
    list.map(|one| (one.container_id(), one.host_id(), one.size()))
        .collect()
}

/// What a user needs who is nobody's root, before anything is made.
pub(super) fn check(config: &Spec) -> Result<(), OciError> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let linux = config.linux().clone().unwrap_or_default();
    let mut namespaces = linux.namespaces().iter().flatten();
    let user = namespaces.find(|one| one.typ() == LinuxNamespaceType::User);
    let Some(user) = user else {
        return Err(refused(
            "rootless container requires user namespaces: linux.namespaces has none of type user (see `spec --rootless`)",
        ));
    };
    if user.path().is_some() {
        return Err(refused(
            "linux.namespaces: without root no user namespace can be joined by its path",
        ));
    }
    for (name, maps) in [("UID", linux.uid_mappings()), ("GID", linux.gid_mappings())] {
        if maps.as_ref().is_none_or(Vec::is_empty) {
            return Err(refused(format!(
                "rootless containers requires at least one {name} mapping"
            )));
        }
    }
    Ok(())
}

/// Enters the user namespace of a configuration that was checked, unless we are somebody's root: then we can make it as
/// always. Returns the configuration of what is left to do inside, or none. Before there is anything that another process
/// of ours would have to know.
pub(super) fn enter(config: &Spec) -> Result<Option<Spec>, OciError> {
    if nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let mut config = config.clone();
    let mut linux = config.linux().clone().unwrap_or_default();
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|one| one.typ() != LinuxNamespaceType::User);
    let (uids, gids) = (
        map(linux.uid_mappings().as_ref()),
        map(linux.gid_mappings().as_ref()),
    );
    become_somebody(&uids, &gids)?;
    process::unshare(libc::CLONE_NEWNS).map_err(step("make a mount namespace"))?;
    // The host's unmounts still come, ours never go there.
    mount::mount(None, c"/", None, libc::MS_REC | libc::MS_SLAVE, None)
        .map_err(step("keep our mounts from the host"))?;
    linux
        .set_namespaces(Some(namespaces))
        .set_uid_mappings(None)
        .set_gid_mappings(None);
    config.set_linux(Some(linux));
    Ok(Some(config))
}

/// A user namespace with these maps, which we enter.
fn become_somebody(uids: &[Map], gids: &[Map]) -> Result<(), OciError> {
    // Who maps nobody but himself needs nobody's leave (user_namespaces(7)).
    let own = |maps: &[Map], id: u32| matches!(maps, [(_, host, 1)] if *host == id);
    let own_uid = own(uids, nix::unistd::geteuid().as_raw());
    let own_gid = own(gids, nix::unistd::getegid().as_raw());
    let mut helpers = Vec::new();
    let wanted = [("newuidmap", uids, own_uid), ("newgidmap", gids, own_gid)];
    for (program, maps, _) in wanted.into_iter().filter(|(_, _, own)| !own) {
        helpers.push(Mapper::start(program, maps)?);
    }
    process::unshare(libc::CLONE_NEWUSER).map_err(step(
        "make a user namespace (sysctl user.max_user_namespaces or a policy may forbid it)",
    ))?;
    let write = |file: &str, text: &str| {
        let path = Path::new("/proc/self").join(file);
        fs::write(&path, text).map_err(|source| OciError::File {
            action: "map ids with",
            path,
            source,
        })
    };
    if own_uid {
        write("uid_map", &lines(uids))?;
    }
    if own_gid {
        // Without this a group that denies something to its members could be left (user_namespaces(7)).
        write("setgroups", "deny")?;
        write("gid_map", &lines(gids))?;
    }
    helpers.into_iter().try_for_each(Mapper::finish)
}

fn lines(maps: &[Map]) -> String {
    let line = |(inside, host, count): &Map| format!("{inside} {host} {count}\n");
    maps.iter().map(line).collect()
}

/// A child that waits outside of the user namespace until it is there, and then becomes newuidmap or newgidmap, which
/// check /etc/subuid and /etc/subgid and have the right.
struct Mapper {
    program: &'static str,
    pid: i32,
    go: std::os::fd::OwnedFd,
}

impl Mapper {
    fn start(program: &'static str, maps: &[Map]) -> Result<Mapper, OciError> {
        let search = env::var_os("PATH").unwrap_or_else(|| crate::defaults::PATH.into());
        let found = env::split_paths(&search)
            .map(|one| one.join(program))
            .find(|one| one.is_file());
        let file = found.ok_or_else(|| {
            refused(format!(
                "{program} is not installed: it is needed to map ids beyond one's own (package uidmap)"
            ))
        })?;
        let nul = |_| refused("a path has a NUL byte");
        let name = CString::new(file.as_os_str().as_bytes()).map_err(nul)?;
        let mut words = vec![
            name.clone(),
            CString::new(process::getpid().to_string()).map_err(nul)?,
        ];
        for (inside, host, count) in maps {
            for number in [inside, host, count] {
                words.push(CString::new(number.to_string()).map_err(nul)?);
            }
        }
        let (words, environment) = (CStrings::new(words), CStrings::new(Vec::new()));
        let file = path::open(path::here(), &name, libc::O_PATH, 0, path::Resolve::Free)
            .map_err(step("open newuidmap or newgidmap"))?;
        let (go, wait) = socket::seqpacket_pair().map_err(step("make a socket pair"))?;
        let body = || {
            fd::close_inherited(go.as_fd());
            let mut byte = [0];
            // No word but the end of it: there is nothing to map.
            if !matches!(fd::read(wait.as_fd(), &mut byte), Ok(1)) {
                return 1;
            }
            drop(process::fexecve(file.as_fd(), &words, &environment));
            127
        };
        let args = CloneArgs {
            exit_signal: libc::SIGCHLD,
            ..CloneArgs::default()
        };
        let pid = process::spawn(args, body).map_err(step("start a helper process"))?;
        Ok(Mapper { program, pid, go })
    }

    fn finish(self) -> Result<(), OciError> {
        let told = socket::send(self.go.as_fd(), b"0");
        drop(self.go);
        let ended = process::wait_pid(self.pid).map_err(step("wait for a helper process"))?;
        told.map_err(step("speak with a helper process"))?;
        match ended {
            Ended::Exited(0) => Ok(()),
            _ => Err(refused(format!(
                "{} refused the mapping of the configuration (its words are above): are the ids in /etc/subuid and /etc/subgid?",
                self.program
            ))),
        }
    }
}

/// Whether anything is to be limited that needs a cgroup. Device rules are no such: in a user namespace no device can be
/// made, and those of the host that are bound keep their permissions.
pub(super) fn limits(resources: &LinuxResources) -> bool {
    let mut rest = resources.clone();
    rest.set_devices(None);
    let none = |value: Option<&serde_json::Value>| match value {
        None | Some(serde_json::Value::Null) => true,
        Some(serde_json::Value::Array(list)) => list.is_empty(),
        Some(serde_json::Value::Object(fields)) => fields.values().all(serde_json::Value::is_null),
        Some(_) => false,
    };
    match serde_json::to_value(&rest) {
        Ok(serde_json::Value::Object(fields)) => !fields.values().all(|value| none(Some(value))),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_limits_something_needs_a_cgroup() {
        for (text, needs) in [
            (json!({}), false),
            (json!({ "devices": [{ "allow": false, "access": "rwm" }] }), false),
            (json!({ "memory": {}, "cpu": {}, "hugepageLimits": [] }), false),
            (json!({ "memory": { "limit": 1 } }), true),
            (json!({ "pids": { "limit": 5 } }), true),
            (json!({ "unified": { "memory.high": "1" } }), true),
        ] {
            let resources = serde_json::from_value(text.clone()).unwrap();
            assert_eq!(limits(&resources), needs, "{text}");
        }
    }

    #[test]
    fn rootless_is_told_or_hangs_on_who_we_are() {
        let asked = |words: &[&str]| {
            let words = words.iter().map(Into::into).collect();
            asked(&Arguments::parse(words).unwrap())
        };
        let ours = !nix::unistd::geteuid().is_root() || in_user_namespace().unwrap();
        assert_eq!(asked(&["--rootless", "auto", "list"]).unwrap(), ours);
        assert_eq!(asked(&["list"]).unwrap(), ours);
        assert!(asked(&["--rootless=true", "list"]).unwrap());
        assert!(!asked(&["--rootless", "false", "list"]).unwrap());
        assert!(asked(&["--rootless", "perhaps", "list"]).is_err());
        // A switch after `spec`, which takes no word with it.
        let spec = Arguments::parse(["spec", "--rootless", "--bundle", "x"].map(Into::into).into()).unwrap();
        assert!(spec.is("rootless") && spec.value("bundle") == Some("x"));
    }
}
