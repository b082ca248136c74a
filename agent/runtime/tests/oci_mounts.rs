//! config.md, Mounts and Linux mount options: needs root and busybox (static).

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use bundle::Bundle;
use serde_json::{Value, json};

/// Options with the requirement MUST, and what the kernel then shows of a new file system: mount options, optional fields,
/// super options. A word that begins with '!' must not be there.
const MUST: [(&str, &str); 31] = [
    ("async", "!sync"),
    ("atime", "!noatime"),
    ("defaults", "rw"),
    ("dev", "!nodev"),
    ("diratime", "!nodiratime"),
    ("dirsync", "dirsync"),
    ("exec", "!noexec"),
    ("iversion", "rw"),
    ("lazytime", "lazytime"),
    ("loud", "rw"),
    ("noatime", "noatime"),
    ("nodev", "nodev"),
    ("nodiratime", "nodiratime"),
    ("noexec", "noexec"),
    ("noiversion", "rw"),
    ("nolazytime", "!lazytime"),
    ("norelatime", "!noatime"),
    ("nostrictatime", "relatime"),
    ("nosuid", "nosuid"),
    ("private", "!shared"),
    ("relatime", "relatime"),
    ("remount", "rw"),
    ("ro", "ro"),
    ("rprivate", "!shared"),
    ("rshared", "shared"),
    ("runbindable", "unbindable"),
    ("rw", "!ro"),
    ("shared", "shared"),
    ("silent", "rw"),
    ("strictatime", "!relatime"),
    ("suid", "!nosuid"),
];
const MUST_TOO: [(&str, &str); 4] = [
    ("sync", "sync"),
    ("unbindable", "unbindable"),
    ("slave", "!shared"),
    ("rslave", "!shared"),
];
/// With the requirement SHOULD or MAY.
const SHOULD: [(&str, &str); 23] = [
    ("mand", "rw"),
    ("nomand", "rw"),
    ("nosymfollow", "nosymfollow"),
    ("symfollow", "!nosymfollow"),
    ("ratime", "!noatime"),
    ("rdev", "!nodev"),
    ("rdiratime", "!nodiratime"),
    ("rexec", "!noexec"),
    ("rnoatime", "noatime"),
    ("rnodev", "nodev"),
    ("rnodiratime", "nodiratime"),
    ("rnoexec", "noexec"),
    ("rnorelatime", "!noatime"),
    ("rnostrictatime", "relatime"),
    ("rnosuid", "nosuid"),
    ("rnosymfollow", "nosymfollow"),
    ("rrelatime", "relatime"),
    ("rro", "ro"),
    ("rrw", "!ro"),
    ("rstrictatime", "!relatime"),
    ("rsuid", "!nosuid"),
    ("rsymfollow", "!nosymfollow"),
    ("tmpcopyup", "rw"),
];

fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    MUST.into_iter().chain(MUST_TOO).chain(SHOULD)
}

/// What the container sees of its mounts: place, and every word about it.
fn seen(out: &str) -> BTreeMap<String, Vec<String>> {
    out.lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let about = words[5..].iter().flat_map(|word| word.split(','));
            let about = about.map(|word| word.split(':').next().unwrap().to_owned());
            (words[4].to_owned(), about.collect())
        })
        .collect()
}

#[track_caller]
fn check(mounts: &BTreeMap<String, Vec<String>>, place: &str, option: &str, sign: &str) {
    let words = mounts.get(place).unwrap_or_else(|| panic!("{place}"));
    let has = |word: &str| words.iter().any(|one| one == word);
    match sign.strip_prefix('!') {
        Some(word) => assert!(!has(word), "{option}: {words:?}"),
        None => assert!(has(sign), "{option}: {words:?}"),
    }
}

/// "Runtimes MUST/SHOULD/MAY implement the following option strings for Linux".
#[test]
fn every_option_of_the_table_does_what_it_says() {
    let bundle = Bundle::new("options", "cat /proc/self/mountinfo");
    bundle.change(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        for (option, _) in all() {
            let place = format!("/t/{option}");
            mounts.push(
                json!({ "destination": place, "type": "tmpfs", "source": "tmpfs", "options": [option] }),
            );
        }
    });
    let mounts = seen(&bundle.run(0));
    for (option, sign) in all() {
        check(&mounts, &format!("/t/{option}"), option, sign);
    }
    let features: Value = serde_json::from_str(&bundle.succeed(&["features"])).unwrap();
    let told = features["mountOptions"].as_array().unwrap();
    for (option, _) in all().chain([("bind", ""), ("rbind", ""), ("idmap", ""), ("ridmap", "")]) {
        assert!(
            told.contains(&json!(option)),
            "features tells nothing of {option}"
        );
    }
}

/// The same of bind mounts: attributes are the mount's own, those of the file system are what they are.
#[test]
fn every_option_of_the_table_is_taken_by_a_bind_mount() {
    let bundle = Bundle::new("bindoptions", "cat /proc/self/mountinfo");
    let volume = bundle.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let of_the_file_system = ["dirsync", "lazytime", "sync", "mand", "tmpcopyup"];
    bundle.change(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        for (option, _) in all() {
            let place = format!("/t/{option}");
            mounts.push(json!({ "destination": place, "source": volume, "options": ["rbind", option] }));
        }
    });
    let mounts = seen(&bundle.run(0));
    for (option, sign) in all().filter(|(option, _)| !of_the_file_system.contains(option)) {
        // Super options stand behind the mount's own, and say `rw` of a bind mount that is not.
        if sign != "rw" && sign != "!ro" {
            check(&mounts, &format!("/t/{option}"), option, sign);
        }
    }
}

/// "SHOULD treat unknown options as filesystem-specific ones".
#[test]
fn an_option_that_no_table_has_is_the_file_systems() {
    let bundle = Bundle::new("fsoptions", "grep ' /t ' /proc/self/mountinfo");
    let with = |option: &str| {
        bundle.change(|config| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["destination"] != "/t");
            mounts.push(
                json!({ "destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": [option] }),
            );
        });
    };
    with("size=64k");
    assert!(bundle.run(0).contains("size=64k"));
    with("nonsense=1");
    assert!(bundle.fail(&["run", "c"]).contains("make the file system for /t"));
}

/// Destination: a relative one "MUST be interpreted as relative to \"/\""; source: of a bind mount relative to the bundle.
#[test]
fn relative_places_are_below_the_root_and_the_bundle() {
    let bundle = Bundle::new("relative", "cat /a/b/file; pwd");
    fs::create_dir(bundle.path().join("volume")).unwrap();
    fs::write(bundle.path().join("volume/file"), "content\n").unwrap();
    bundle.change(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({ "destination": "a/b", "source": "volume", "options": ["bind"] }));
        config["process"]["cwd"] = json!("/a/b");
        // The conventional name is relative, and so is any.
        config["root"]["path"] = json!("./rootfs/../rootfs");
    });
    let elsewhere = tempfile::tempdir().unwrap();
    let run = || {
        let mut command = bundle.command(&["run", "--bundle", bundle.path().to_str().unwrap(), "c"]);
        let output = command.current_dir(elsewhere.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(), "content\n/a/b\n");
    bundle.change(|config| config["root"]["path"] = json!(bundle.path().join("rootfs")));
    assert_eq!(run(), "content\n/a/b\n");
}

/// Root: "the root filesystem MUST be read-only inside the container" if it is said, "defaults to false".
#[test]
fn the_root_is_read_only_when_it_is_said() {
    let bundle = Bundle::new("readonly", "touch /made 2>&1 || echo refused");
    for (readonly, says) in [(json!(true), true), (json!(false), false), (Value::Null, false)] {
        bundle.change(|config| config["root"]["readonly"] = readonly.clone());
        assert_eq!(bundle.run(0).contains("refused"), says, "{readonly}");
    }
}

/// `idmap` and `ridmap`: without mappings and without a user namespace "an error MUST be returned"; `uidMappings` "MUST be
/// specified along with `gidMappings`".
#[test]
fn an_idmap_without_ids_is_an_error() {
    let bundle = Bundle::new("idmaperrors", "stat -c %u:%g /v");
    fs::set_permissions(bundle.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let volume = bundle.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let map = json!([{ "containerID": 0, "hostID": 1000, "size": 10 }]);
    let mounted = |more: Value| {
        bundle.change(|config| {
            let mut mount = json!({ "destination": "/v", "source": volume, "options": ["bind"] });
            mount
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["destination"] != "/v");
            mounts.push(mount);
        });
    };
    for bad in [
        json!({ "options": ["bind", "idmap"] }),
        json!({ "options": ["rbind", "ridmap"] }),
        json!({ "options": ["bind", "idmap"], "uidMappings": map }),
        json!({ "options": ["bind", "idmap"], "gidMappings": map }),
        json!({ "uidMappings": map }),
        json!({ "type": "tmpfs", "source": "tmpfs", "options": ["idmap"] }),
    ] {
        mounted(bad.clone());
        let said = bundle.fail(&["run", "c"]);
        assert!(said.contains("mounts["), "{bad}: {said}");
    }
    // With mappings of its own a container needs no user namespace, and `idmap` need not be said.
    for options in [json!(["bind", "idmap"]), json!(["bind"])] {
        mounted(json!({ "options": options, "uidMappings": map, "gidMappings": map }));
        assert_eq!(bundle.run(0), "1000:1000\n");
    }
}
