//! Three controllers, three nodes: pods on all of them, each reaching every other.

use std::collections::BTreeSet;
use std::time::Duration;

use tests::cluster::text;
use tests::{Cluster, can_run};

#[test]
fn every_pod_fetches_a_page_from_every_other() {
    if !can_run("every_pod_fetches_a_page_from_every_other", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(3, 3);
    cluster.apply_example("web.yaml");
    let mut pods = cluster.all_ready("app=web", 6, Duration::from_secs(60));
    pods.push(cluster.ready("single"));
    let nodes: BTreeSet<String> = pods.iter().map(|pod| text(pod, "/spec/nodeName")).collect();
    assert_eq!(nodes.len(), 3, "pods are on {nodes:?}");
    let addresses: Vec<String> = pods.iter().map(|pod| text(pod, "/status/podIP")).collect();
    let different: BTreeSet<&String> = addresses.iter().collect();
    assert_eq!(different.len(), pods.len(), "addresses {addresses:?}");
    for pod in &pods {
        let name = text(pod, "/metadata/name");
        // One program fetches all of them, so that seven pods need seven calls.
        let script = addresses
            .iter()
            .map(|address| format!("timeout 5 wget -q -O - http://{address}/"))
            .collect::<Vec<_>>()
            .join(" && ");
        let pages = cluster.ok(&["exec", &name, "--", "sh", "-c", &script]);
        let pages: Vec<&str> = pages.lines().collect();
        let expected: Vec<String> = pods
            .iter()
            .map(|pod| format!("Hello from {}", text(pod, "/metadata/name")))
            .collect();
        assert_eq!(pages, expected, "as {name} sees them");
    }
    let table = cluster.ok(&["get", "pods", "-o", "wide"]);
    let heading: Vec<&str> = table
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    for column in ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"] {
        assert!(heading.contains(&column), "no column {column} in {heading:?}");
    }
    for pod in &pods {
        let name = text(pod, "/metadata/name");
        let row = table
            .lines()
            .find(|line| line.starts_with(&name))
            .unwrap_or_default();
        for value in [text(pod, "/spec/nodeName"), text(pod, "/status/podIP")] {
            assert!(row.contains(&value), "no {value} in {row}");
        }
    }
}
