//! What a monitoring system reads of controllers and agents, in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use nix::sched::CloneFlags;
use tests::{Cluster, Process, can_run, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

/// Where a process tells its figures when nothing else is said.
const USUAL: &str = "127.0.0.1:7481";

/// The answer to a request for the figures, from the process's own network namespace.
fn ask(process: &Process) -> String {
    let said = process
        .command
        .iter()
        .skip_while(|word| *word != "--metrics-address");
    let address = said.clone().nth(1).map_or(USUAL, String::as_str);
    let namespace = File::open(format!("/proc/{}/ns/net", process.pid)).expect("a namespace");
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET).expect("root");
            let mut stream = TcpStream::connect(address).expect("the metrics' port");
            write!(
                stream,
                "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
            )
            .expect("a request");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            answer
        });
        asking.join().expect("it does not panic")
    })
}

/// Samples by name and labels. Each is of a metric that was announced.
fn scrape(cluster: &Cluster, process: &str) -> BTreeMap<String, f64> {
    let answer = ask(&cluster.process(process));
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let kind = "content-type: text/plain; version=0.0.4";
    assert!(head.to_lowercase().contains(kind), "{head}");
    let (mut samples, mut announced) = (BTreeMap::new(), Vec::new());
    for line in body.lines() {
        if let Some(about) = line.strip_prefix("# TYPE ") {
            let (name, kind) = about.split_once(' ').expect("a type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(kind != "counter" || name.ends_with("_total"), "{line}");
            announced.push(name.to_owned());
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            assert!(name.starts_with("bulkhead_"), "{line}");
            let own = |known: &String| name.starts_with(known.as_str());
            assert!(announced.iter().any(own), "{line}");
            let before = samples.insert(name.to_owned(), value.parse().expect("a number"));
            assert_eq!(before, None, "{line} is there twice");
        }
    }
    samples
}

#[test]
fn controllers_and_agents_tell_what_they_do() {
    if !can_run("controllers_and_agents_tell_what_they_do", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up(1, 1);
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: one}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         containers: [{name: main, image: 'hello:1', command: [sleep, '3600']}]\n",
    );
    cluster.ready("one");
    let missing = cluster.ctl(&["get", "pod/nobody"]);
    assert_eq!(missing.code, 1);
    let of = wait_for("the pod in the figures", MINUTE, || {
        let samples = scrape(&cluster, "controller-1");
        let runs = "bulkhead_pod_start_duration_seconds_count{until=\"running\"}";
        (samples.get(runs) == Some(&1.0)).then_some(samples)
    });
    let at = |name: &str| *of.get(name).unwrap_or_else(|| panic!("no {name} in {of:#?}"));
    assert_eq!(at("bulkhead_objects{kind=\"Pod\"}"), 1.0);
    assert_eq!(at("bulkhead_objects{kind=\"Node\"}"), 1.0);
    assert_eq!(at("bulkhead_raft_leads"), 1.0);
    assert!(at("bulkhead_api_requests_total{call=\"Apply\",code=\"Ok\"}") >= 1.0);
    assert!(at("bulkhead_api_requests_total{call=\"Get\",code=\"NotFound\"}") >= 1.0);
    assert!(at("bulkhead_api_request_duration_seconds_count{call=\"Apply\"}") >= 1.0);
    assert!(at("bulkhead_raft_proposal_duration_seconds_count") >= 1.0);
    assert!(at("bulkhead_raft_log_write_duration_seconds_sum") > 0.0);
    let scheduled = at("bulkhead_pod_start_duration_seconds_sum{until=\"scheduled\"}");
    let running = at("bulkhead_pod_start_duration_seconds_sum{until=\"running\"}");
    assert!(scheduled <= running, "{scheduled} {running}");
    let agent = scrape(&cluster, "node-1");
    assert_eq!(agent["bulkhead_agent_pods"], 1.0);
    assert_eq!(agent["bulkhead_agent_session_connected"], 1.0);
}
