use std::os::fd::AsRawFd;

use super::*;
use proto::v1::{ConfigMap, ConfigMapVolumeSource, HostPathVolumeSource, KeyToPath};

fn me() -> Owner {
    Owner {
        root: rustix::process::getuid().as_raw(),
        label: None,
    }
}

fn map(entries: &[(&str, &str)]) -> ConfigMap {
    ConfigMap {
        data: entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..ConfigMap::default()
    }
}

fn source(items: &[(&str, &str)]) -> ConfigMapVolumeSource {
    ConfigMapVolumeSource {
        name: "settings".into(),
        items: items
            .iter()
            .map(|(key, path)| KeyToPath {
                key: (*key).to_owned(),
                path: (*path).to_owned(),
                mode: Some(0o600),
            })
            .collect(),
        default_mode: Some(0o644),
        optional: None,
    }
}

/// Brings a volume up to date with one map of that name, or without.
fn prepare(path: &Path, source: &ConfigMapVolumeSource, map: Option<ConfigMap>) -> Result<(), VolumeError> {
    let volume = Volume {
        config_map: Some(source.clone()),
        ..Volume::default()
    };
    let maps = map.map(|map| ("default/settings".to_owned(), map));
    let configs = Configs::new(maps.into_iter().collect());
    let source = config::source(&volume).unwrap();
    config::prepare(path, &source, source.content("default", &configs), &me(), None)
}

fn visible(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with(".."))
        .collect();
    names.sort();
    names
}

#[test]
fn a_config_map_shows_and_changes_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("v");
    let update = |entries: &[(&str, &str)]| {
        prepare(&path, &source(&[]), Some(map(entries))).unwrap();
    };
    update(&[("colour", "green"), ("old", "x")]);
    assert_eq!(fs::read_to_string(path.join("colour")).unwrap(), "green");
    let before = fs::read_link(path.join("..data")).unwrap();
    update(&[("colour", "green"), ("old", "x")]);
    assert_eq!(
        fs::read_link(path.join("..data")).unwrap(),
        before,
        "nothing new: nothing written"
    );
    update(&[("colour", "red"), ("new", "y")]);
    assert_eq!(fs::read_to_string(path.join("colour")).unwrap(), "red");
    assert_eq!(visible(&path), ["colour", "new"]);
    assert!(!path.join(before).exists(), "old content is removed");
    // Gone from the cluster: the files stay.
    prepare(&path, &source(&[]), None).unwrap();
    assert_eq!(visible(&path), ["colour", "new"]);
}

#[test]
fn items_choose_paths_and_modes() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("v");
    let items = source(&[("colour", "deep/er/c")]);
    prepare(&path, &items, Some(map(&[("colour", "green")]))).unwrap();
    assert_eq!(visible(&path), ["deep"]);
    let mode = fs::metadata(path.join("deep/er/c")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let missing = source(&[("absent", "c")]);
    let error = prepare(&path, &missing, Some(map(&[]))).unwrap_err();
    assert!(error.to_string().contains("absent"));
}

#[test]
fn a_missing_config_map_is_refused_unless_it_is_optional() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("v");
    let error = prepare(&path, &source(&[]), None).unwrap_err();
    assert_eq!(error.to_string(), "configmap \"settings\" not found");
    let optional = ConfigMapVolumeSource {
        optional: Some(true),
        ..source(&[])
    };
    prepare(&path, &optional, None).unwrap();
    assert_eq!(visible(&path), Vec::<String>::new());
}

#[test]
fn host_paths_are_what_their_type_says() {
    let temp = tempfile::tempdir().unwrap();
    let check = |name: &str, kind: &str| {
        host_path::prepare(&HostPathVolumeSource {
            path: temp.path().join(name).display().to_string(),
            r#type: kind.into(),
        })
    };
    check("made/deep", "DirectoryOrCreate").unwrap();
    check("file", "FileOrCreate").unwrap();
    check("file", "FileOrCreate").unwrap();
    check("file", "File").unwrap();
    check("anything", "").unwrap();
    let error = check("file", "Directory").unwrap_err().to_string();
    assert!(error.contains("is not a directory"), "{error}");
    assert!(check("absent", "Directory").is_err());
}

#[test]
fn a_sub_path_never_leaves_its_volume() {
    let temp = tempfile::tempdir().unwrap();
    let volume = temp.path().join("v");
    fs::create_dir(&volume).unwrap();
    fs::write(temp.path().join("secret"), "x").unwrap();
    std::os::unix::fs::symlink("../../../../../../etc", volume.join("out")).unwrap();
    std::os::unix::fs::symlink(temp.path(), volume.join("absolute")).unwrap();
    assert!(sub_path::open(&volume, "out/passwd", false, None).is_err());
    assert!(sub_path::open(&volume, "absolute/secret", false, None).is_err());
    assert!(sub_path::open(&volume, "new/deep", false, None).is_err());
    let fd = sub_path::open(&volume, "new/deep", true, Some(&me())).unwrap();
    assert!(volume.join("new/deep").is_dir());
    let name = sub_path::name(&fd);
    assert!(name.ends_with(fd.as_raw_fd().to_string()));
    assert_eq!(fs::read_link(name).unwrap(), volume.join("new/deep"));
}

#[test]
fn mounts_are_read_only_where_said_and_idmapped_where_they_belong_to_the_node() {
    let spec = PodSpec {
        volumes: vec![
            Volume {
                name: "host".into(),
                host_path: Some(HostPathVolumeSource {
                    path: "/srv".into(),
                    r#type: String::new(),
                }),
                ..Volume::default()
            },
            Volume {
                name: "map".into(),
                config_map: Some(source(&[])),
                ..Volume::default()
            },
            Volume {
                name: "scratch".into(),
                ..Volume::default()
            },
        ],
        ..PodSpec::default()
    };
    let temp = tempfile::tempdir().unwrap();
    let settings = crate::settings::Settings {
        data_dir: temp.path().into(),
        config_dir: temp.path().into(),
        run_dir: temp.path().into(),
        log_dir: temp.path().into(),
        cgroup_parent: "/x".into(),
        runtime: "/x".into(),
        node_address: std::net::Ipv4Addr::LOCALHOST,
        bridge: "b".into(),
        backend: crate::network::Backend::Vxlan,
        metrics_address: ([127, 0, 0, 1], 0).into(),
    };
    let paths = Paths::new(&settings, "u1");
    let owner = me();
    let configs = Configs::default();
    let volumes = Volumes {
        spec: &spec,
        namespace: "default",
        configs: &configs,
        paths: &paths,
        owner: &owner,
        users: true,
    };
    let container = Container {
        volume_mounts: ["host", "map", "scratch"]
            .map(|name| VolumeMount {
                name: name.into(),
                mount_path: format!("/{name}"),
                ..VolumeMount::default()
            })
            .into(),
        ..Container::default()
    };
    let (mounts, _) = volumes.mounts(&container).unwrap();
    let options: Vec<String> = mounts
        .iter()
        .map(|mount| mount.options().clone().unwrap_or_default().join(","))
        .collect();
    assert_eq!(
        options,
        [
            "rbind,rprivate,ridmap",
            "rbind,rprivate,nodev,ro,rro",
            "rbind,rprivate,nodev"
        ]
    );
    assert_eq!(mounts[0].source().as_deref(), Some(Path::new("/srv")));
    let unknown = Container {
        volume_mounts: vec![VolumeMount {
            name: "none".into(),
            ..VolumeMount::default()
        }],
        ..Container::default()
    };
    assert!(volumes.mounts(&unknown).is_err());
}
