//! What tests of engines share: a root file system of busybox, a daemon that lives in namespaces of its own, and a cgroup
//! below which its containers are. Whatever happens to a test, nothing of an engine outlives it: with the first process
//! of the daemon's PID namespace the kernel ends shims and containers, and with the last of them go their mounts.

#![allow(dead_code)] // each test binary uses a part

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use runtime::cgroup::{Cgroup, Layout};
use tempfile::TempDir;

/// Time for what takes an engine a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) mod grpc;
#[path = "../skip/mod.rs"]
pub(crate) mod skip;

pub(crate) use crate::program::runtime;

/// Goes on until it is told to end, and then ends with 5.
pub(crate) const SERVICE: &str = "echo started; trap 'exit 5' TERM; while :; do sleep 0.1; done";

/// Takes memory until there is none.
pub(crate) const GLUTTON: &str = "dd if=/dev/zero of=/dev/null bs=512M count=1";

/// Programs that cannot be executed, and the words by which engines know why.
pub(crate) const NOT_EXECUTED: [(&str, &str); 4] = [
    ("/no/such", "no such file or directory"),
    ("nosuch", "executable file not found in $PATH"),
    ("/etc", "permission denied"),
    ("/etc/passwd", "permission denied"),
];

/// Whether the programs are there; else the test is told as skipped, to `tests/run` too.
pub(crate) fn installed(test: &str, programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let here = |program: &&&str| std::env::split_paths(&path).any(|one| one.join(program).is_file());
    let Some(missing) = programs.iter().find(|program| !here(program)) else {
        return true;
    };
    skip::skip(test, &format!("{missing} is not installed"));
    false
}

/// A directory below /var/tmp: an overlay's upper layer cannot lie on every tmpfs, and paths of sockets are short.
pub(crate) fn directory() -> TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("bh-engine-").tempdir_in("/var/tmp").unwrap()
}

/// Cgroup of a test.
pub(crate) fn cgroup(test: &str) -> PathBuf {
    PathBuf::from(format!("/bulkhead-test-{}-{test}", std::process::id()))
}

/// podman makes directories for conmon also where a hierarchy of cgroup v1 would be mounted and is not.
pub(crate) fn remove(cgroup: &Path) -> io::Result<()> {
    let groups = || Cgroup::open(&Layout::detect()?, cgroup)?.remove(PATIENCE);
    groups().map_err(io::Error::other)?;
    let relative = cgroup.strip_prefix("/").map_err(io::Error::other)?;
    for place in fs::read_dir("/sys/fs/cgroup")? {
        let left = place?.path().join(relative);
        if left.is_dir() {
            fs::remove_dir_all(left)?;
        }
    }
    Ok(())
}

#[track_caller]
pub(crate) fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !reached() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Calls until the output has these words: what the call asks for may still be on its way.
#[track_caller]
pub(crate) fn wait_for_output(words: &str, mut call: impl FnMut() -> Output) -> Output {
    let mut last = None;
    wait_for(words, || {
        let output = last.insert(call());
        let text = String::from_utf8_lossy(&output.stdout);
        text.contains(words)
    });
    last.unwrap()
}

/// An archive of a root file system: busybox, its links and a user.
pub(crate) fn archive(directory: &Path) -> PathBuf {
    let root = directory.join("image");
    for directory in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/usr/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    let applets = "sh sleep echo cat id grep touch ls true dd hostname";
    for applet in applets.split_whitespace() {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let users = "root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n";
    fs::write(root.join("etc/passwd"), users).unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
    pack(&root, &[Path::new(".")], directory.join("image.tar"))
}

pub(crate) fn pack(from: &Path, files: &[&Path], archive: PathBuf) -> PathBuf {
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(from).arg("-cf").arg(&archive).args(files);
    assert!(tar.status().unwrap().success());
    archive
}

/// Exit code and all output.
pub(crate) fn outcome(output: Output) -> (i32, String) {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap_or(-1), text)
}

/// The mask of effective capabilities in a line of /proc/self/status.
#[track_caller]
pub(crate) fn mask(line: &str) -> u64 {
    let word = line.split_whitespace().last().unwrap_or_default();
    u64::from_str_radix(word, 16).unwrap_or_else(|_| panic!("no mask in {line:?}"))
}

/// A daemon in mount and PID namespaces of its own, with its own /run.
pub(crate) struct Daemon {
    pub(crate) temp: TempDir,
    pub(crate) cgroup: PathBuf,
    unshare: Child,
}

impl Daemon {
    /// Starts what the script says. It runs in the daemon's directory and must `exec` nothing: the shell is the first
    /// process of the namespace and reaps what shims leave.
    pub(crate) fn new(test: &str, temp: TempDir, script: &str) -> Daemon {
        let log = fs::File::create(temp.path().join("log")).unwrap();
        let whole = format!("mount -t tmpfs tmpfs /run && {script} & wait $!");
        let mut command = Command::new("setpriv");
        command
            // With us goes unshare, and with it all that it started.
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork"])
            .args(["--kill-child", "--mount-proc", "sh", "-c", &whole])
            .current_dir(temp.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        Daemon {
            cgroup: cgroup(test),
            unshare: command.spawn().unwrap(),
            temp,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// A path in the daemon's mount namespace, as we reach it.
    pub(crate) fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.unshare.id()))
    }

    /// A client, in the namespaces of the daemon.
    pub(crate) fn client(&self, program: &str) -> Command {
        let namespaces = PathBuf::from(format!("/proc/{}/ns", self.unshare.id()));
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount={}", namespaces.join("mnt").display()))
            .arg(format!("--pid={}", namespaces.join("pid_for_children").display()))
            .arg(program)
            .current_dir(self.temp.path())
            .env("HOME", self.temp.path())
            .stdin(Stdio::null());
        command
    }

    /// Waits until the daemon answers this call.
    pub(crate) fn wait_ready(&self, mut call: impl FnMut() -> Output) {
        let mut last = None;
        let begin = Instant::now();
        while !last
            .as_ref()
            .is_some_and(|output: &Output| output.status.success())
        {
            assert!(begin.elapsed() < PATIENCE, "{last:?}: {}", self.log());
            last = Some(call());
        }
    }

    fn end(&mut self) -> io::Result<()> {
        let unshare = self.unshare.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
        for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            sys::process::kill(pid, nix::libc::SIGKILL)?;
        }
        // Its first process is reaped when all others of the namespace are.
        self.unshare.wait().map(drop)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            eprintln!("the daemon's log, without what is usual:");
            let log = self.log();
            let rest = log.lines().filter(|line| !line.contains("level=info"));
            rest.for_each(|line| eprintln!("{line}"));
        }
        let ended = self.end();
        let gone = remove(&self.cgroup);
        if !failed {
            ended.unwrap();
            gone.unwrap();
        }
    }
}
