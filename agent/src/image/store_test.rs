//! The store, filled from archives made here.

use std::io::Write;

use super::*;

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

type Compressor = fn(&[u8]) -> Vec<u8>;

/// An OCI layout of these layers; the compressor of each is given.
fn oci_layout(layers: &[(Vec<u8>, Compressor)], wrong_diff_id: bool) -> Vec<u8> {
    let mut files: Vec<(String, Vec<u8>)> =
        vec![("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut blob = |bytes: Vec<u8>| {
        let digest = Digest::of(&bytes);
        let descriptor = serde_json::json!({"mediaType": "x", "digest": digest, "size": bytes.len()});
        files.push((format!("blobs/sha256/{}", digest.hex()), bytes));
        descriptor
    };
    let descriptors: Vec<_> = layers.iter().map(|(layer, pack)| blob(pack(layer))).collect();
    let diff_ids: Vec<Digest> = match wrong_diff_id {
        true => layers.iter().map(|_| Digest::of(b"something else")).collect(),
        false => layers.iter().map(|(layer, _)| Digest::of(layer)).collect(),
    };
    let config = serde_json::json!({
        "config": {"Cmd": ["/bin/app"], "User": "web", "Env": ["A=1"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = blob(config.to_string().into_bytes());
    let manifest = blob(
        serde_json::json!({"schemaVersion": 2, "config": config, "layers": descriptors})
            .to_string()
            .into_bytes(),
    );
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    files.push(("index.json".into(), index.to_string().into_bytes()));
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
        .collect();
    tar_of(&files)
}

fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        Self { dir, store }
    }

    fn import(&self, bytes: &[u8], name: Option<&str>) -> Result<Vec<Image>, ImportError> {
        let spool = self.store.spool().unwrap();
        (&spool.file).write_all(bytes).unwrap();
        self.store.import(&spool.file, name, &RootDefaults::default())
    }

    fn count(&self, part: &str) -> usize {
        fs::read_dir(self.dir.path().join(part)).unwrap().count()
    }
}

fn two_layers(wrong: bool) -> Vec<u8> {
    let lower = tar_of(&[
        (
            "etc/passwd",
            b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n",
        ),
        ("old", b"1"),
    ]);
    let upper = tar_of(&[
        ("etc/group", b"web:x:34:\nlogs:x:40:root,web\n"),
        ("bin/app", b"program"),
    ]);
    oci_layout(&[(lower, gzip), (upper, zstd_of)], wrong)
}

#[test]
fn an_oci_layout_becomes_an_image() {
    let fixture = Fixture::new();
    let images = fixture
        .import(&two_layers(false), Some("example.com/app:1"))
        .unwrap();
    let image = fixture.store.resolve("example.com/app:1").unwrap().unwrap();
    assert_eq!(images, std::slice::from_ref(&image));
    assert_eq!(image.config.cmd, Some(vec!["/bin/app".to_owned()]));
    assert_eq!(
        fs::read(image.layers[0].join("bin/app")).unwrap(),
        b"program",
        "topmost first"
    );
    assert_eq!(fs::read(image.layers[1].join("old")).unwrap(), b"1");
    assert_eq!(fixture.count("tmp"), 0);
    // Everything survives a restart.
    let again = Store::open(fixture.dir.path()).unwrap();
    assert_eq!(again.list().unwrap(), [image]);
}

#[test]
fn a_layer_without_its_last_padding_is_taken_and_a_cut_one_refused() {
    let whole = tar_of(&[("bin/app", b"program")]);
    // Header and content, without what fills the block and ends the archive.
    let unpadded = whole[..512 + 7].to_vec();
    let image = Fixture::new()
        .import(&oci_layout(&[(unpadded.clone(), gzip)], false), Some("app"))
        .unwrap()
        .remove(0);
    assert_eq!(image.layers.len(), 1);
    let cut: Compressor = |bytes| gzip(&bytes[..bytes.len() - 3]);
    let refused = Fixture::new().import(&oci_layout(&[(unpadded, cut)], false), Some("app"));
    assert!(refused.is_err(), "a part of the content is missing");
}

#[test]
fn users_are_those_of_the_image() {
    let fixture = Fixture::new();
    let image = fixture.import(&two_layers(false), Some("app")).unwrap().remove(0);
    let user = |spec: &str| image.user(spec).unwrap();
    assert_eq!(
        (user("web").uid, user("web").gid, user("web").additional_gids),
        (33, 34, vec![40])
    );
    assert_eq!(
        (user("33").gid, user("web:logs").gid, user("7:8").gid),
        (34, 40, 8)
    );
    assert_eq!((user("").uid, user("1000").uid, user("1000").gid), (0, 1000, 0));
    assert!(image.user("nobody-here").is_err() && image.user("web:nothing").is_err());
}

#[test]
fn a_layer_shared_by_two_images_stays_until_both_have_gone() {
    let fixture = Fixture::new();
    let base = tar_of(&[("base", b"1")]);
    let one = oci_layout(&[(base.clone(), plain)], false);
    let two = oci_layout(&[(base, gzip), (tar_of(&[("more", b"2")]), plain)], false);
    fixture.import(&one, Some("one")).unwrap();
    fixture.import(&two, Some("two")).unwrap();
    assert_eq!(fixture.count("layers"), 2);
    fixture.store.remove("two").unwrap();
    assert_eq!(fixture.count("layers"), 1);
    fixture.store.remove("one").unwrap();
    assert_eq!((fixture.count("layers"), fixture.count("blobs/sha256")), (0, 0));
}

#[test]
fn a_wrong_diff_id_leaves_nothing() {
    let fixture = Fixture::new();
    let refused = fixture.import(&two_layers(true), Some("app"));
    assert!(
        matches!(refused, Err(ImportError::Image(ImageError::Mismatch { .. }))),
        "{refused:?}"
    );
    assert_eq!((fixture.count("layers"), fixture.count("tmp")), (0, 0));
    assert_eq!(fixture.store.resolve("app").unwrap(), None);
}

#[test]
fn a_blob_that_is_not_its_digest_is_refused() {
    let mut bytes = two_layers(false);
    let at = bytes.windows(4).position(|window| window == b"\"A=1").unwrap();
    bytes[at + 1] = b'B';
    let refused = Fixture::new().import(&bytes, Some("app"));
    assert!(
        matches!(refused, Err(ImportError::Image(ImageError::Mismatch { .. }))),
        "{refused:?}"
    );
}

#[test]
fn a_root_file_system_becomes_one_layer() {
    let fixture = Fixture::new();
    let root = gzip(&tar_of(&[("./bin/sh", b"shell")]));
    assert!(matches!(fixture.import(&root, None), Err(ImportError::Nameless)));
    let image = fixture.import(&root, Some("root:1")).unwrap().remove(0);
    assert_eq!(image.reference, "docker.io/library/root:1");
    assert_eq!(fs::read(image.layers[0].join("bin/sh")).unwrap(), b"shell");
}

#[test]
fn what_docker_saves_is_read() {
    let layer = tar_of(&[("file", b"1")]);
    let config = serde_json::json!({"config": {"Entrypoint": ["/file"]}, "rootfs": {"diff_ids": [Digest::of(&layer)]}});
    let manifest = r#"[{"Config":"c.json","RepoTags":["a/b:2","a/b:3"],"Layers":["l/layer.tar"]}]"#;
    let bytes = tar_of(&[
        ("c.json", config.to_string().as_bytes()),
        ("l/layer.tar", &layer),
        ("manifest.json", manifest.as_bytes()),
    ]);
    let fixture = Fixture::new();
    let names: Vec<String> = fixture
        .import(&bytes, None)
        .unwrap()
        .into_iter()
        .map(|image| image.reference)
        .collect();
    assert_eq!(names, ["docker.io/a/b:2", "docker.io/a/b:3"]);
}

#[test]
fn nonsense_is_refused() {
    for bytes in [
        &b""[..],
        b"hello",
        &[0; 2048],
        &[0xff; 4096],
        b"\x1f\x8b\x08broken",
        b"\x28\xb5\x2f\xfdbroken",
    ] {
        assert!(Fixture::new().import(bytes, Some("x")).is_err());
    }
}

#[test]
fn what_a_crash_left_is_removed() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.dir.path().join("tmp/7/half")).unwrap();
    fs::create_dir_all(fixture.dir.path().join("layers").join("0".repeat(64))).unwrap();
    drop(Store::open(fixture.dir.path()).unwrap());
    assert_eq!((fixture.count("tmp"), fixture.count("layers")), (0, 0));
}

#[test]
fn shifted_copies_have_the_owners_of_their_range() {
    use std::os::unix::fs::MetadataExt;
    let fixture = Fixture::new();
    let image = fixture
        .import(&tar_of(&[("a/file", b"1")]), Some("x"))
        .unwrap()
        .remove(0);
    let copy = fixture.store.shifted(&image.layers[0], 200_000, 65_536).unwrap();
    assert_eq!(fs::metadata(copy.join("a/file")).unwrap().uid(), 200_000);
    assert_eq!(fs::metadata(image.layers[0].join("a/file")).unwrap().uid(), 0);
    assert_eq!(
        fixture.store.shifted(&image.layers[0], 200_000, 65_536).unwrap(),
        copy
    );
    fixture.store.remove_shifted(200_000, 65_536).unwrap();
    assert_eq!(fixture.count("shifted"), 0);
}
