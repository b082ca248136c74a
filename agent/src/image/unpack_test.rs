//! Archives made here, the hostile ones among them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use tar::{Builder, Header};

use super::*;

/// An archive of entries (name as it stands, type, content or link target); names are written raw, as a hostile tool does.
fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_000_000_000);
        let raw = header.as_old_mut();
        raw.name[..name.len()].copy_from_slice(name.as_bytes());
        let data: &[u8] = match kind {
            Symlink | Link => {
                raw.linkname[..content.len()].copy_from_slice(content.as_bytes());
                &[]
            }
            _ => content.as_bytes(),
        };
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

struct Layer {
    /// Holds `root` and beside it `outside`, which no archive may reach.
    dir: tempfile::TempDir,
}

impl Layer {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("outside"), "untouched").unwrap();
        Self { dir }
    }

    fn unpack(&self, bytes: &[u8]) -> Result<Unpacked, UnpackError> {
        let root = File::open(self.root("")).unwrap();
        let result = unpack(root.as_fd(), bytes, bytes.len() as u64);
        assert_eq!(
            fs::read_to_string(self.dir.path().join("outside")).unwrap(),
            "untouched"
        );
        assert_eq!(
            fs::read_dir(self.dir.path()).unwrap().count(),
            2,
            "nothing appears outside the root"
        );
        result
    }

    fn root(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path)
    }
}

use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};

#[test]
fn files_keep_owner_mode_time_and_content() {
    let layer = Layer::new();
    let done = layer
        .unpack(&archive(&[
            ("bin/", Directory, ""),
            ("bin/sh", Regular, "shell"),
            ("bin/ash", Link, "bin/sh"),
            ("sh", Symlink, "/bin/sh"),
            ("pipe", Fifo, ""),
            ("not/listed/before", Regular, "x"),
        ]))
        .unwrap();
    assert_eq!(
        done,
        Unpacked {
            bytes: 6,
            devices_left_out: 0
        }
    );
    let sh = fs::metadata(layer.root("bin/sh")).unwrap();
    assert_eq!(
        (sh.uid(), sh.gid(), sh.permissions().mode() & 0o7777, sh.mtime()),
        (7, 8, 0o755, 1_000_000_000)
    );
    assert_eq!(fs::metadata(layer.root("bin/ash")).unwrap().ino(), sh.ino());
    assert_eq!(fs::metadata(layer.root("bin")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(fs::read_link(layer.root("sh")).unwrap(), Path::new("/bin/sh"));
    assert!(fs::metadata(layer.root("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(fs::read_to_string(layer.root("not/listed/before")).unwrap(), "x");
}

#[test]
fn names_that_climb_are_refused() {
    for name in ["../outside", "a/../../outside", "/../outside", "a/.."] {
        let refused = Layer::new().unpack(&archive(&[(name, Regular, "bad")]));
        assert!(
            matches!(refused, Err(UnpackError::Refused { .. })),
            "{name}: {refused:?}"
        );
    }
}

#[test]
fn absolute_names_stay_inside() {
    let layer = Layer::new();
    layer
        .unpack(&archive(&[("/etc/passwd", Regular, "inside")]))
        .unwrap();
    assert_eq!(fs::read_to_string(layer.root("etc/passwd")).unwrap(), "inside");
}

#[test]
fn links_lead_nowhere_outside() {
    // Through an absolute link, through one that climbs, and over a link in place of a file.
    let layer = Layer::new();
    layer
        .unpack(&archive(&[
            ("absolute", Symlink, "/tmp"),
            ("tmp/", Directory, ""),
            ("absolute/file", Regular, "1"),
            ("climbs", Symlink, "../../../.."),
            ("climbs/file", Regular, "2"),
            ("outside", Symlink, "../outside"),
            ("outside", Regular, "3"),
        ]))
        .unwrap();
    assert_eq!(fs::read_to_string(layer.root("tmp/file")).unwrap(), "1");
    assert_eq!(fs::read_to_string(layer.root("file")).unwrap(), "2");
    assert_eq!(fs::read_to_string(layer.root("outside")).unwrap(), "3");
}

#[test]
fn hard_links_out_of_the_layer_are_refused() {
    for target in ["../outside", "/../outside", "nowhere", "up/outside", "/"] {
        let refused = Layer::new().unpack(&archive(&[("up", Symlink, "../.."), ("stolen", Link, target)]));
        assert!(
            matches!(refused, Err(UnpackError::Refused { .. })),
            "{target}: {refused:?}"
        );
    }
}

#[test]
fn a_link_of_proc_does_not_lead_out() {
    let layer = Layer::new();
    // The root of a process by its magic link would be the host's.
    let result = layer.unpack(&archive(&[
        ("p", Symlink, "/proc/self/root"),
        ("p/tmp/bulkhead-escape", Regular, "bad"),
    ]));
    assert!(!Path::new("/tmp/bulkhead-escape").exists());
    // Either refused, or made inside: /proc/self/root below the layer's own root.
    if result.is_ok() {
        assert!(layer.root("proc/self/root/tmp/bulkhead-escape").exists());
    }
}

#[test]
fn devices_are_left_out() {
    let layer = Layer::new();
    let done = layer
        .unpack(&archive(&[("dev/sda", Block, ""), ("dev/null", Char, "")]))
        .unwrap();
    assert_eq!(done.devices_left_out, 2);
    assert!(!layer.root("dev/sda").exists());
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let layer = Layer::new();
    layer
        .unpack(&archive(&[
            ("a/.wh.gone", Regular, ""),
            ("b/.wh..wh..opq", Regular, ""),
            ("c/kept", Regular, "1"),
            ("c/.wh.kept", Regular, ""),
        ]))
        .unwrap();
    let gone = fs::symlink_metadata(layer.root("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = File::open(layer.root("b")).unwrap();
    let mut value = [0; 4];
    assert_eq!(
        rustix::fs::fgetxattr(&opaque, "trusted.overlay.opaque", &mut value),
        Ok(1)
    );
    assert_eq!(fs::read_to_string(layer.root("c/kept")).unwrap(), "1");
    let refused = Layer::new().unpack(&archive(&[("a/.wh...", Regular, "")]));
    assert!(matches!(refused, Err(UnpackError::Refused { .. })));
}

#[test]
fn overlay_attributes_in_an_archive_are_refused() {
    let mut builder = Builder::new(Vec::new());
    builder
        .append_pax_extensions([("SCHILY.xattr.trusted.overlay.redirect", &b"/etc"[..])])
        .unwrap();
    let mut header = Header::new_ustar();
    header.set_entry_type(Regular);
    header.set_path("file").unwrap();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, &[][..]).unwrap();
    let refused = Layer::new().unpack(&builder.into_inner().unwrap());
    assert!(matches!(refused, Err(UnpackError::Refused { .. })), "{refused:?}");
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let layer = Layer::new();
    layer
        .unpack(&archive(&[
            ("x/deep/file", Regular, "1"),
            ("x", Regular, "a file now"),
            ("y", Regular, "1"),
            ("y/", Directory, ""),
            ("y/in", Regular, "2"),
        ]))
        .unwrap();
    assert_eq!(fs::read_to_string(layer.root("x")).unwrap(), "a file now");
    assert_eq!(fs::read_to_string(layer.root("y/in")).unwrap(), "2");
}

#[test]
fn owners_beyond_a_container_are_refused() {
    let mut bytes = archive(&[("file", Regular, "")]);
    bytes[108..116].copy_from_slice(b"0200000\0"); // uid 65,536 in octal
    let mut header = Header::from_byte_slice(&bytes[..512]).clone();
    header.set_cksum();
    bytes[..512].copy_from_slice(header.as_bytes());
    assert!(matches!(
        Layer::new().unpack(&bytes),
        Err(UnpackError::Refused { .. })
    ));
}

#[test]
fn a_bomb_is_refused_by_its_growth() {
    // 65 GiB of zeros that take a few bytes: refused by the header alone.
    let mut header = Header::new_gnu();
    header.set_entry_type(Regular);
    header.set_path("zeros").unwrap();
    header.set_mode(0o644);
    header.set_size(65 << 30);
    header.set_cksum();
    let refused = Layer::new().unpack(header.as_bytes());
    assert!(
        matches!(refused, Err(UnpackError::TooLarge { .. })),
        "{refused:?}"
    );
}

#[test]
fn bytes_of_entries_that_are_no_files_count_too() {
    // What follows is read over, however much it is.
    let mut header = Header::new_gnu();
    header.set_entry_type(Symlink);
    header.set_path("link").unwrap();
    header.set_link_name("x").unwrap();
    header.set_size(65 << 30);
    header.set_cksum();
    let refused = Layer::new().unpack(header.as_bytes());
    assert!(
        matches!(refused, Err(UnpackError::TooLarge { .. })),
        "{refused:?}"
    );
}

#[test]
fn zeros_take_no_room() {
    let layer = Layer::new();
    let content = format!("a{}b{}", "\0".repeat(1 << 20), "\0".repeat(1 << 20));
    layer
        .unpack(&archive(&[("file", Regular, &content), ("empty", Regular, "")]))
        .unwrap();
    assert_eq!(fs::read_to_string(layer.root("file")).unwrap(), content);
    let meta = fs::metadata(layer.root("file")).unwrap();
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    assert_eq!(fs::metadata(layer.root("empty")).unwrap().len(), 0);
}

#[test]
fn directories_deeper_than_anybody_can_remove_are_refused() {
    // Each link leads 40 directories further down.
    let down = "d/".repeat(40);
    let names: Vec<(String, String)> = (0..8)
        .map(|number| match number {
            0 => (format!("{down}f"), down.clone()),
            _ => (
                format!("l{}/{down}f", number - 1),
                format!("l{}/{down}", number - 1),
            ),
        })
        .collect();
    let links: Vec<String> = (0..8).map(|number| format!("l{number}")).collect();
    let entries = |count: usize| -> Vec<(&str, EntryType, &str)> {
        names
            .iter()
            .zip(&links)
            .take(count)
            .flat_map(|((file, target), link)| {
                [
                    (file.as_str(), Regular, ""),
                    (link.as_str(), Symlink, target.as_str()),
                ]
            })
            .collect()
    };
    Layer::new().unpack(&archive(&entries(6))).unwrap();
    let refused = Layer::new().unpack(&archive(&entries(8)));
    assert!(
        matches!(&refused, Err(UnpackError::Refused { reason, .. }) if reason.contains("deeper")),
        "{refused:?}"
    );
}

#[test]
fn a_refused_name_is_shown_on_one_short_line() {
    let refused = Layer::new()
        .unpack(&archive(&[("../\u{1b}[2J\n", Regular, "")]))
        .unwrap_err();
    assert!(
        refused.to_string().chars().all(|c| !c.is_control()),
        "{refused:?}"
    );
    assert_eq!(shown(Path::new(&"n".repeat(5000))).as_os_str().len(), 259);
}

#[test]
fn damage_is_told_from_a_short_read() {
    let bytes = archive(&[("file", Regular, "some content")]);
    for cut in [100, 511, 513, 515] {
        assert!(
            matches!(
                Layer::new().unpack(&bytes[..cut]),
                Err(UnpackError::Archive { .. })
            ),
            "cut at {cut}"
        );
    }
    assert!(Layer::new().unpack(&[]).is_ok_and(|done| done.bytes == 0));
}

#[path = "../../../tests/fuzz/checks/layer.rs"]
mod layer_checks;
#[path = "../../../tests/fuzz/checks/replay.rs"]
mod replay;

/// The fuzzer's corpus: what `tests/fuzz` found once is found here ever after.
#[test]
fn no_layer_of_the_corpus_reaches_out_or_brings_what_it_may_not() {
    let corpora = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/corpus");
    replay::replay(corpora, "layer", |bytes| {
        layer_checks::layer(bytes, |root, bytes| {
            let read = super::super::layer::read(root, bytes, bytes.len() as u64, true);
            read.map(|layer| layer.unpacked.bytes)
                .map_err(|error| error.to_string())
        });
    });
}
