use super::*;
use crate::image::ImageConfig;
use proto::v1::{ObjectMeta, SecurityContext, VolumeMount};
use runtime::spec::IdRange;

struct Ground {
    temp: tempfile::TempDir,
    settings: Settings,
}

impl Ground {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let settings = Settings {
            data_dir: temp.path().join("data"),
            config_dir: temp.path().join("config"),
            run_dir: temp.path().join("run"),
            log_dir: temp.path().join("log"),
            cgroup_parent: "/bulkhead".into(),
            runtime: "/bin/false".into(),
            node_address: std::net::Ipv4Addr::new(192, 0, 2, 1),
            bridge: "b".into(),
            backend: crate::network::Backend::Vxlan,
            metrics_address: ([127, 0, 0, 1], 0).into(),
        };
        fs::create_dir_all(settings.monitor_dir("u1")).unwrap();
        fs::create_dir_all(temp.path().join("layer/etc")).unwrap();
        Self { temp, settings }
    }

    fn build(&self, container: &Container, spec: PodSpec) -> Result<Built, BuildError> {
        let pod = Pod {
            metadata: Some(ObjectMeta {
                name: "web".into(),
                namespace: "default".into(),
                ..ObjectMeta::default()
            }),
            spec: Some(spec),
            ..Pod::default()
        };
        let layers = vec![self.temp.path().join("layer")];
        let image = Image {
            reference: "hello:1".into(),
            digest: "sha256:00".into(),
            config: ImageConfig {
                cmd: Some(vec!["sh".into()]),
                ..ImageConfig::default()
            },
            layers: layers.clone(),
            size_bytes: 0,
            created_ms: 0,
        };
        Build {
            settings: &self.settings,
            node_name: "n1",
            uid: "u1",
            pod: &pod,
            container,
            configs: &Configs::default(),
            image: &image,
            lowers: layers,
            slot: Slot::default(),
            number: 3,
            paths: &Paths::new(&self.settings, "u1"),
        }
        .build()
    }
}

fn web() -> Container {
    Container {
        name: "web".into(),
        termination_message_path: "/dev/termination-log".into(),
        ..Container::default()
    }
}

fn destinations(built: &Built) -> Vec<String> {
    let mounts = built.spec.config.mounts().clone().unwrap();
    mounts
        .iter()
        .map(|mount| mount.destination().display().to_string())
        .collect()
}

#[test]
fn a_plain_container_has_the_defaults_and_a_group_of_its_run() {
    let ground = Ground::new();
    let built = ground.build(&web(), PodSpec::default()).unwrap();
    assert_eq!(built.spec.id, "web-3");
    assert_eq!(built.stop_signal, SIGTERM);
    let linux = built.spec.config.linux().clone().unwrap();
    assert_eq!(
        linux.cgroups_path().as_deref(),
        Some(Path::new("/bulkhead/pod-u1/web-3"))
    );
    assert!(linux.seccomp().is_some() && linux.masked_paths().is_some());
    let process = built.spec.config.process().clone().unwrap();
    assert_eq!(process.no_new_privileges(), Some(true));
    assert_eq!(process.args().clone().unwrap(), ["sh"]);
    let places = destinations(&built);
    for place in [
        "/proc",
        "/dev",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/dev/termination-log",
    ] {
        assert!(places.iter().any(|one| one == place), "{place} in {places:?}");
    }
    let log = built.spec.log.clone().unwrap().path;
    assert!(log.ends_with("default_web_u1/web/3.log"), "{}", log.display());
    let kept = fs::read(Paths::new(&ground.settings, "u1").spec("web-3")).unwrap();
    assert_eq!(
        serde_json::from_slice::<ContainerSpec>(&kept).unwrap(),
        built.spec
    );
}

#[test]
fn a_privileged_container_has_no_walls() {
    let ground = Ground::new();
    let container = Container {
        security_context: Some(SecurityContext {
            privileged: Some(true),
            allow_privilege_escalation: Some(true),
            seccomp_profile: Some(proto::v1::SeccompProfile {
                r#type: "Unconfined".into(),
                ..Default::default()
            }),
            ..SecurityContext::default()
        }),
        ..web()
    };
    let spec = PodSpec {
        host_users: Some(true),
        host_pid: true,
        ..PodSpec::default()
    };
    let built = ground.build(&container, spec).unwrap();
    let linux = built.spec.config.linux().clone().unwrap();
    assert!(linux.seccomp().is_none() && linux.masked_paths().is_none());
    let namespaces = linux.namespaces().clone().unwrap();
    assert!(namespaces.iter().all(|one| one.typ() != LinuxNamespaceType::Pid));
    let mounts = built.spec.config.mounts().clone().unwrap();
    let sys = mounts
        .iter()
        .find(|mount| mount.destination() == Path::new("/sys"))
        .unwrap();
    assert!(!sys.options().clone().unwrap().contains(&"ro".to_owned()));
}

#[test]
fn mounts_come_outermost_first_and_a_manifests_own_win() {
    let ground = Ground::new();
    let volumes = vec![proto::v1::Volume {
        name: "v".into(),
        ..Default::default()
    }];
    let container = Container {
        volume_mounts: ["/data/deep", "/etc/hosts", "/data"]
            .map(|path| VolumeMount {
                name: "v".into(),
                mount_path: path.into(),
                ..VolumeMount::default()
            })
            .into(),
        ..web()
    };
    let spec = PodSpec {
        volumes,
        ..PodSpec::default()
    };
    let places = destinations(&ground.build(&container, spec).unwrap());
    let at = |place: &str| places.iter().position(|one| one == place).unwrap();
    assert!(at("/data") < at("/data/deep"));
    assert_eq!(places.iter().filter(|place| *place == "/etc/hosts").count(), 1);
}

#[test]
fn a_missing_working_directory_is_made_and_links_are_left_alone() {
    let ground = Ground::new();
    let layer = ground.temp.path().join("layer");
    std::os::unix::fs::symlink("/etc", layer.join("link")).unwrap();
    fs::create_dir(layer.join("srv")).unwrap();
    fs::set_permissions(layer.join("srv"), fs::Permissions::from_mode(0o750)).unwrap();
    let upper = |cwd: &str| {
        let container = Container {
            working_dir: cwd.into(),
            ..web()
        };
        let built = ground.build(&container, PodSpec::default()).unwrap();
        match built.spec.rootfs {
            Rootfs::Overlay { upper, .. } => upper,
            Rootfs::Bundle => panic!("an image has layers"),
        }
    };
    let made = upper("/srv/app/data");
    assert!(made.join("srv/app/data").is_dir());
    let mode = fs::metadata(made.join("srv")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o750, "the image's directory shows as it was");
    assert!(!upper("/link/app").join("link").exists());
    assert!(!upper("/etc").join("etc").exists(), "nothing was missing");
}

#[test]
fn owners_are_the_pods_own_ids() {
    let slot = Slot {
        ids: Some(IdRange {
            start: 100_000,
            count: 65_536,
        }),
        ..Slot::default()
    };
    assert_eq!(owner(&PodSpec::default(), &slot).unwrap().root, 100_000);
    let host = PodSpec {
        host_users: Some(true),
        ..PodSpec::default()
    };
    assert_eq!(owner(&host, &slot).unwrap().root, 0);
}

#[test]
fn stop_signals_have_names_and_numbers() {
    for (name, number) in [
        (None, 15),
        (Some("SIGQUIT"), 3),
        (Some("QUIT"), 3),
        (Some("9"), 9),
        (Some("SIGNONSENSE"), 15),
        (Some("900"), 15),
    ] {
        assert_eq!(stop_signal(name), number, "{name:?}");
    }
}
