//! A place for real containers: a cgroup parent of our own, a root file system of busybox, all of it removed at the end.

#![allow(dead_code)] // each test binary uses a part

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use oci_spec::runtime::Spec;
use runtime::cgroup::{Cgroup, Layout};
use runtime::container::{self, Options, Running, StartError, Stdio};
use runtime::defaults;
use runtime::sandbox::Sandbox;
use runtime::spec::{CgroupSpec, ContainerSpec, IdRange, PidShare, Rootfs, SandboxSpec, Share};

/// Whatever a test here starts, nothing between clone and exec allocates.
#[global_allocator]
static ALLOCATOR: sys::allocation::NotInChildren = sys::allocation::NotInChildren;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Ids of the pods in tests.
pub(crate) const RANGE: IdRange = IdRange {
    start: 700_000_000,
    count: 65_536,
};

pub(crate) struct Ground {
    pub(crate) temp: tempfile::TempDir,
    pub(crate) layout: Layout,
    pub(crate) parent: Cgroup,
    pub(crate) name: String,
}

impl Ground {
    pub(crate) fn new() -> Ground {
        let name = format!(
            "bulkhead-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let layout = Layout::detect().unwrap();
        let spec = CgroupSpec {
            path: PathBuf::from("/").join(&name),
            resources: Default::default(),
        };
        let parent = Cgroup::create(&layout, &spec).unwrap();
        let temp = tempfile::tempdir().unwrap();
        // The mapped root of a pod must reach what lies below.
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let ground = Ground {
            temp,
            layout,
            parent,
            name,
        };
        busybox(&ground.layer());
        ground
    }

    pub(crate) fn layer(&self) -> PathBuf {
        self.temp.path().join("layer")
    }

    pub(crate) fn sandbox_spec(&self) -> SandboxSpec {
        SandboxSpec {
            id: "pod".into(),
            hostname: Some("pod-host".into()),
            users: Some(RANGE),
            network: Share::Pod,
            ipc: Share::Pod,
            pid: PidShare::Container,
            cgroup: CgroupSpec {
                path: self.parent.path().join("pod"),
                resources: Default::default(),
            },
            sysctls: Default::default(),
            fence: None,
        }
    }

    pub(crate) fn sandbox(&self) -> Sandbox {
        Sandbox::create(&self.sandbox_spec(), &self.layout).unwrap()
    }

    pub(crate) fn cgroup(&self, name: &str, resources: serde_json::Value) -> Cgroup {
        let path = self.parent.path().join("pod").join(name);
        let resources = serde_json::from_value(resources).unwrap();
        Cgroup::create(&self.layout, &CgroupSpec { path, resources }).unwrap()
    }

    /// A container of the pod with the defaults, an overlay of its own, running a shell script.
    pub(crate) fn container(&self, id: &str, script: &str) -> ContainerSpec {
        let mut config = defaults::spec();
        set_script(&mut config, script);
        let (upper, work) = (
            self.temp.path().join(format!("{id}-upper")),
            self.temp.path().join(format!("{id}-work")),
        );
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        ContainerSpec {
            id: id.into(),
            config,
            rootfs: Rootfs::Overlay {
                lowers: vec![self.layer()],
                upper,
                work,
            },
            log: None,
            stdin: false,
            stop_signal: None,
        }
    }

    pub(crate) fn options(&self) -> Options<'static> {
        // One cache for all tests of a run: compiling takes longer than the rest of a test.
        let directory = Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/seccomp-cache"));
        Options {
            seccomp_cache: Some(directory),
            ..Options::default()
        }
    }

    /// Runs to the end: exit code and all output.
    pub(crate) fn run(
        &self,
        spec: &ContainerSpec,
        sandbox: Option<&Sandbox>,
        cgroup: &Cgroup,
    ) -> Result<(i32, String), StartError> {
        let (read, write) = sys::fd::pipe().unwrap();
        let null: OwnedFd = fs::File::open("/dev/null").unwrap().into();
        let error = write.try_clone().unwrap();
        let running = container::start(
            spec,
            sandbox,
            cgroup,
            Stdio::Fds([null, write, error]),
            &self.options(),
        )?;
        Ok(finish(&running, read))
    }
}

pub(crate) fn finish(running: &Running, output: OwnedFd) -> (i32, String) {
    let text = std::io::read_to_string(fs::File::from(output)).unwrap();
    let ended = sys::process::wait(running.pidfd.as_fd()).unwrap();
    (ended.code(), text)
}

pub(crate) fn set_script(config: &mut Spec, script: &str) {
    let process = config.process_mut().as_mut().unwrap();
    process.set_args(Some(["/bin/sh", "-c", script].map(str::to_owned).into()));
}

impl Drop for Ground {
    fn drop(&mut self) {
        let killed = self.parent.kill();
        let removed = self.parent.remove(Duration::from_secs(10));
        if !std::thread::panicking() {
            killed.unwrap();
            removed.unwrap();
        }
    }
}

fn busybox(root: &Path) {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "data"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let applets = "sh cat ls id echo mount umount sleep hostname grep ip mkdir touch stat true false mknod head wc tr \
        chmod kill readlink dd tty stty ping ps env sync awk sed sort unshare test";
    for applet in applets.split_whitespace() {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n",
    )
    .unwrap();
}
