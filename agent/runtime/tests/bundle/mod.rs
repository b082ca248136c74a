//! A bundle and a state directory for the OCI command line; both go at the end, with every container that a test left.

#![allow(dead_code)] // each test binary uses a part

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use runtime::cgroup::{Cgroup, Layout};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) use crate::program::runtime;

const APPLETS: &str = "sh sleep cat echo id ls head tail mkdir touch stat date dirname ln logger hostname dnsdomainname grep env pwd \
    mount umount taskset chrt ionice nice true false stty readlink mknod test ip awk tr wc uname cut dd";

pub(crate) struct Bundle {
    pub(crate) temp: TempDir,
    pub(crate) cgroup: PathBuf,
}

impl Bundle {
    pub(crate) fn new(name: &str, script: &str) -> Bundle {
        let temp = tempfile::Builder::new()
            .prefix("bulkhead-oci-")
            .tempdir()
            .unwrap();
        let root = temp.path().join("rootfs");
        for directory in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::copy("/usr/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        for applet in APPLETS.split_whitespace() {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let cgroup = PathBuf::from(format!("/bulkhead-test-oci-{}-{name}", std::process::id()));
        let mut spec: Spec = runtime::defaults::spec();
        let mut process = spec.process().clone().unwrap();
        process.set_args(Some(vec!["/bin/sh".into(), "-c".into(), script.into()]));
        let mut linux = spec.linux().clone().unwrap();
        linux.set_cgroups_path(Some(cgroup.join("c")));
        let kinds = [
            LinuxNamespaceType::Mount,
            LinuxNamespaceType::Pid,
            LinuxNamespaceType::Cgroup,
            LinuxNamespaceType::Network,
            LinuxNamespaceType::Ipc,
            LinuxNamespaceType::Uts,
        ];
        let namespaces = kinds.map(|kind| {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(kind).set_path(None);
            namespace
        });
        linux.set_namespaces(Some(namespaces.into()));
        let mut rootfs = oci_spec::runtime::Root::default();
        rootfs.set_path("rootfs".into()).set_readonly(Some(false));
        spec.set_process(Some(process))
            .set_linux(Some(linux))
            .set_root(Some(rootfs));
        let bundle = Bundle { temp, cgroup };
        bundle.write(&spec);
        bundle
    }

    pub(crate) fn write(&self, spec: &Spec) {
        fs::write(self.path().join("config.json"), serde_json::to_vec(spec).unwrap()).unwrap();
    }

    /// The configuration as JSON, changed.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Value)) {
        let path = self.path().join("config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    /// Runs to the end; its output, which must come with this code.
    #[track_caller]
    pub(crate) fn run(&self, code: i32) -> String {
        let output = self.call(&["run", "c"]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What standard error says of a command that must fail.
    #[track_caller]
    pub(crate) fn fail(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        assert!(!output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) fn path(&self) -> &Path {
        self.temp.path()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(runtime());
        command
            .arg("--root")
            .arg(self.path().join("state"))
            .args(arguments)
            .current_dir(self.path());
        command
    }

    pub(crate) fn call(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Calls with streams that do not keep us waiting for the container's.
    #[track_caller]
    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Creates with the container's output in `out`.
    #[track_caller]
    pub(crate) fn create(&self, arguments: &[&str]) {
        let out = fs::File::create(self.path().join("out")).unwrap();
        let status = self
            .command(arguments)
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .status()
            .unwrap();
        assert!(status.success(), "{}", self.out());
    }

    pub(crate) fn out(&self) -> String {
        fs::read_to_string(self.path().join("out")).unwrap_or_default()
    }

    pub(crate) fn status(&self) -> String {
        let state: Value = serde_json::from_str(&self.succeed(&["state", "c"])).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(crate) fn wait_status(&self, status: &str) {
        self.wait_until(status, || self.status() == status);
    }

    #[track_caller]
    pub(crate) fn wait_until(&self, what: &str, reached: impl Fn() -> bool) {
        let begin = Instant::now();
        while !reached() {
            assert!(
                begin.elapsed() < Duration::from_secs(30),
                "{what}: not yet, the container is {}, its output {:?}",
                self.status(),
                self.out()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let forced = self.call(&["delete", "--force", "c"]);
        assert!(forced.status.success());
        let cgroup = Cgroup::open(&Layout::detect().unwrap(), &self.cgroup).unwrap();
        cgroup.remove(Duration::from_secs(10)).unwrap();
    }
}
