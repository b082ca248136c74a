//! A directory stands in for resctrl: its files are ordinary ones here, and go when the test removes them.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

fn rdt(value: Value) -> LinuxIntelRdt {
    serde_json::from_value(value).unwrap()
}

fn said(error: RdtError) -> String {
    error.to_string()
}

/// A class that somebody made before, with what the kernel shows of it.
fn prepared(root: &TempDir) -> PathBuf {
    let class = root.path().join("gold");
    fs::create_dir_all(class.join("mon_groups")).unwrap();
    fs::write(
        class.join("schemata"),
        "    MB:0= 20;1=100\n    L3:0=0007f;1=7ff0\n",
    )
    .unwrap();
    fs::write(class.join("tasks"), "").unwrap();
    class
}

/// config-linux.md, IntelRdt, the rules on parameters.
#[test]
fn schemata_are_combined_as_the_specification_says() {
    let of = |value: Value| lines(&rdt(value));
    let (l3, mb) = ("L3:0=7f0;1=1f", "MB:0=20;1=70");
    assert_eq!(of(json!({})).unwrap(), [] as [&str; 0]);
    assert_eq!(of(json!({ "l3CacheSchema": l3 })).unwrap(), [l3]);
    assert_eq!(of(json!({ "memBwSchema": mb })).unwrap(), [mb]);
    let both = of(json!({ "l3CacheSchema": l3, "memBwSchema": mb }));
    assert_eq!(both.unwrap(), [l3, mb]);
    let among = format!("MB:0=10\n{l3}");
    let replaced = of(json!({ "l3CacheSchema": among, "memBwSchema": mb }));
    assert_eq!(replaced.unwrap(), [l3, mb]);
    assert_eq!(of(json!({ "l3CacheSchema": among })).unwrap(), ["MB:0=10", l3]);
    let newer = of(json!({ "l3CacheSchema": l3, "schemata": ["L2:0=f"] }));
    assert_eq!(newer.unwrap(), [l3, "L2:0=f"]);
    for bad in [
        json!({ "memBwSchema": "L3:0=f" }),
        json!({ "memBwSchema": "MB:0=20\nMB:1=70" }),
        json!({ "l3CacheSchema": "nonsense" }),
        json!({ "l3CacheSchema": "L3:0=xyz" }),
        json!({ "schemata": ["L3:0=f\nL3:1=f"] }),
    ] {
        assert!(of(bad.clone()).is_err(), "{bad}");
    }
    for name in ["", ".", "..", "a/b", "info", "mon_groups"] {
        assert!(examine(&rdt(json!({ "closID": name }))).is_err(), "{name:?}");
    }
}

#[test]
fn schemata_are_compared_by_what_they_mean() {
    let holds = "    MB:0= 20;1=100\n    L3:0=0007f;1=7ff0\n";
    for (line, same) in [
        ("L3:0=7f;1=7ff0", true),
        ("L3:1=0x7ff0", true),
        ("L3:0=7e", false),
        ("L3:2=7f", false),
        ("L2:0=7f", false),
        ("MB:1=100;0=20", true),
        ("MB:0=32", false),
    ] {
        let wanted = [line.to_owned()];
        assert_eq!(differs(&wanted, holds).is_none(), same, "{line}");
    }
}

#[test]
fn resctrl_is_found_by_its_type() {
    let text =
        "24 1 0:22 / /sys rw - sysfs sysfs rw\n30 24 0:26 / /sys/fs/re\\040sctrl rw - resctrl resctrl rw\n";
    assert_eq!(mounted(text).unwrap(), Path::new("/sys/fs/re sctrl"));
    assert!(mounted("24 1 0:22 / /resctrl rw - sysfs resctrl rw\n").is_none());
}

/// "If `closID` is not set, runtimes MUST use the container ID"; without a schema they "MUST NOT write to `schemata` files".
#[test]
fn a_container_without_a_class_of_a_name_has_one_of_its_own() {
    let root = tempfile::tempdir().unwrap();
    let own = root.path().join("c1");
    let plain = rdt(json!({}));
    let group = Group::below(root.path(), &plain, "c1").unwrap();
    assert!(!own.exists(), "looking makes nothing");
    group.make(&plain).unwrap();
    assert!(!own.join("schemata").exists());
    group.enter(77).unwrap();
    assert_eq!(fs::read_to_string(own.join("tasks")).unwrap(), "77");
    // As the kernel has it once the process has ended.
    fs::remove_file(own.join("tasks")).unwrap();
    group.remove().unwrap();
    assert!(!own.exists());
    group.remove().unwrap();
    let schema = rdt(json!({ "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20" }));
    let group = Group::below(root.path(), &schema, "c1").unwrap();
    group.make(&schema).unwrap();
    assert_eq!(
        fs::read_to_string(own.join("schemata")).unwrap(),
        "L3:0=f\nMB:0=20\n"
    );
    let changed = rdt(json!({ "memBwSchema": "MB:0=30" }));
    group.update(&changed).unwrap();
    assert_eq!(fs::read_to_string(own.join("schemata")).unwrap(), "MB:0=30\n");
    let taken = said(Group::below(root.path(), &plain, "c1").unwrap_err());
    assert!(taken.contains("somebody else's"), "{taken}");
}

/// With `closID`: made with a schema where it is missing, compared with it where it is there, and without one it must be.
#[test]
fn a_class_of_a_name_is_made_compared_or_missed() {
    let root = tempfile::tempdir().unwrap();
    let bare = rdt(json!({ "closID": "gold" }));
    let missed = said(Group::below(root.path(), &bare, "c1").unwrap_err());
    assert!(missed.contains("linux.intelRdt.closID"), "{missed}");
    let class = prepared(&root);
    let before = fs::read_to_string(class.join("schemata")).unwrap();
    for (schema, fits) in [("L3:0=7f", true), ("L3:0=7e", false)] {
        let wanted = rdt(json!({ "closID": "gold", "l3CacheSchema": schema }));
        let made = Group::below(root.path(), &wanted, "c1").unwrap().make(&wanted);
        assert_eq!(made.is_ok(), fits, "{made:?}");
    }
    let group = Group::below(root.path(), &bare, "c1").unwrap();
    group.make(&bare).unwrap();
    group.enter(78).unwrap();
    assert_eq!(fs::read_to_string(class.join("tasks")).unwrap(), "78");
    // Not ours: neither its values nor itself.
    group.remove().unwrap();
    assert_eq!(fs::read_to_string(class.join("schemata")).unwrap(), before);
    let silver = rdt(json!({ "closID": "silver", "memBwSchema": "MB:0=20" }));
    let group = Group::below(root.path(), &silver, "c1").unwrap();
    group.make(&silver).unwrap();
    let class = root.path().join("silver");
    assert_eq!(fs::read_to_string(class.join("schemata")).unwrap(), "MB:0=20\n");
    // Somebody else's process is in it by now.
    group.enter(79).unwrap();
    group.remove().unwrap();
    assert!(class.exists());
}

#[test]
fn counters_of_a_container_are_its_own() {
    let root = tempfile::tempdir().unwrap();
    let class = prepared(&root);
    let wanted = rdt(json!({ "closID": "gold", "enableMonitoring": true }));
    let group = Group::below(root.path(), &wanted, "c1").unwrap();
    group.make(&wanted).unwrap();
    group.enter(80).unwrap();
    let own = class.join("mon_groups/c1");
    assert_eq!(fs::read_to_string(own.join("tasks")).unwrap(), "80");
    fs::remove_file(own.join("tasks")).unwrap();
    group.remove().unwrap();
    assert!(class.exists() && !own.exists());
    let plain = rdt(json!({ "closID": "gold", "enableMonitoring": false }));
    let group = Group::below(root.path(), &plain, "c1").unwrap();
    assert!(group.monitoring.is_none());
}
