//! Real containers, looked at from inside and from the kernel's files.

mod common;

use std::fs;

use common::{Ground, RANGE};
use serde_json::json;

#[test]
fn pod_container_runs_in_its_own_namespaces_with_mapped_ids() {
    let ground = Ground::new();
    let sandbox = ground.sandbox();
    let cgroup = ground.cgroup("web", json!({}));
    let script = "id -u; hostname; cat /proc/self/uid_map; ls /proc | grep -c '^[0-9]'; ip -o link | wc -l; \
        for n in user mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup | grep -v ':/$'; echo end";
    let (code, output) = ground
        .run(&ground.container("web", script), Some(&sandbox), &cgroup)
        .unwrap();
    assert_eq!(code, 0, "{output}");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "0");
    assert_eq!(lines[1], "pod-host");
    let map: Vec<&str> = lines[2].split_whitespace().collect();
    assert_eq!(map, ["0", &RANGE.start.to_string(), &RANGE.count.to_string()]);
    assert_eq!(lines[4], "1", "only lo: {output}");
    for line in &lines[5..12] {
        let kind = line.split(':').next().unwrap();
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(own.to_str().unwrap(), *line, "{output}");
    }
    assert_eq!(lines[12], "end", "its cgroup is its root: {output}");
    sandbox.destroy().unwrap();
}
