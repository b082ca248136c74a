//! Where pods go, and what is said when they go nowhere.

use model::object::from;
use proto::v1::object::Object as Any;
use proto::v1::{ContainerPort, Node, Pod};
use state::{State, schedule};

use crate::support::*;

/// Nodes that are ready, with CPU and memory.
fn nodes(nodes: &[(&str, &str, &str)]) -> State {
    let mut state = cluster();
    for (name, cpu, memory) in nodes {
        applied(&state.apply(&join(0, name)));
        applied(&state.apply(&node_status(0, name, &[("cpu", cpu), ("memory", memory)])));
        make_ready(&mut state, name);
    }
    state
}

fn asking(name: &str, requests: &[(&str, &str)]) -> Pod {
    Pod {
        spec: Some(pod_spec("web:1", requests)),
        ..pod(name)
    }
}

fn change_node(state: &mut State, name: &str, change: impl Fn(&mut Node)) {
    let mut object = get(state, "Node", name);
    if let Some(Any::Node(node)) = &mut object.object {
        change(node);
    }
    run(state, 1, vec![put(object)]);
}

/// Places everything; the messages of what could not be.
fn place(state: &mut State, now: i64) -> Vec<String> {
    let (commands, unplaced) = schedule::commands(state, now);
    for command in commands {
        applied(&state.apply(&command));
        state::invariant::check(state).unwrap();
    }
    unplaced.into_iter().map(|unplaced| unplaced.message).collect()
}

fn node_of(state: &State, name: &str) -> String {
    get_pod(state, name).spec.unwrap().node_name
}

#[test]
fn a_pod_goes_where_there_is_most_room() {
    let mut state = nodes(&[("n1", "2", "1Gi"), ("n2", "8", "16Gi")]);
    for name in ["a", "b", "c"] {
        run(
            &mut state,
            1,
            vec![put(from(asking(name, &[("cpu", "500m"), ("memory", "512Mi")])))],
        );
        assert_eq!(place(&mut state, 2), [""; 0]);
    }
    assert_eq!(
        ["a", "b", "c"].map(|name| node_of(&state, name)),
        ["n1", "n2", "n2"]
    );
}

#[test]
fn the_message_names_each_group_of_nodes() {
    let mut state = nodes(&[
        ("n1", "4", "1Gi"),
        ("n2", "4", "512Mi"),
        ("n3", "4", "1Gi"),
        ("n4", "4", "8Gi"),
        ("n5", "4", "8Gi"),
    ]);
    for name in ["n4", "n5"] {
        change_node(&mut state, name, |node| {
            node.spec.as_mut().unwrap().unschedulable = true
        });
    }
    run(&mut state, 1, vec![put(from(asking("p", &[("memory", "2Gi")])))]);
    let expected = "0 of 5 nodes fit: 3 lack memory (need 2Gi, most free 1Gi), 2 cordoned";
    assert_eq!(place(&mut state, 2), [expected]);
    let said = get_pod(&state, "p").status.unwrap().conditions.remove(0);
    assert_eq!(
        (said.status.as_str(), said.reason.as_str(), said.message.as_str()),
        ("False", "Unschedulable", expected)
    );
    let reasons = schedule::explain(&state, &key("Pod", "p"));
    assert_eq!(reasons[0].nodes, ["n1", "n2", "n3"]);
    assert_eq!(reasons[1].message, "cordoned");
    let revision = state.revision();
    place(&mut state, 60_000);
    assert_eq!(state.revision(), revision, "the same reason is written once");
    change_node(&mut state, "n4", |node| {
        node.spec.as_mut().unwrap().unschedulable = false
    });
    assert!(schedule::explain(&state, &key("Pod", "p")).is_empty());
    assert_eq!(place(&mut state, 3), [""; 0]);
    assert_eq!(get_pod(&state, "p").status.unwrap().conditions[0].status, "True");
}

#[test]
fn a_reason_whose_figures_change_is_not_written_all_the_time() {
    let mut state = nodes(&[("n1", "4", "1Gi")]);
    run(&mut state, 1, vec![put(from(asking("p", &[("memory", "2Gi")])))]);
    place(&mut state, 1000);
    applied(&state.apply(&node_status(1500, "n1", &[("cpu", "4"), ("memory", "1500Mi")])));
    let revision = state.revision();
    place(&mut state, 2000);
    assert_eq!(state.revision(), revision);
    place(&mut state, 12_000);
    assert_ne!(state.revision(), revision);
}

#[test]
fn no_node_is_ever_overcommitted() {
    let mut state = nodes(&[("n1", "1", "1Gi"), ("n2", "1", "1Gi")]);
    let pods = (0..6).map(|number| put(from(asking(&format!("p{number}"), &[("cpu", "400m")]))));
    run(&mut state, 1, pods.collect());
    let unplaced = place(&mut state, 2);
    assert_eq!(unplaced.len(), 2);
    assert_eq!(
        unplaced[0],
        "0 of 2 nodes fit: 2 lack cpu (need 400m, most free 200m)"
    );
    assert_eq!((state.pods_on("n1").count(), state.pods_on("n2").count()), (2, 2));
}

#[test]
fn a_limit_counts_where_no_request_is_made() {
    let mut state = nodes(&[("n1", "1", "1Gi")]);
    let mut greedy = asking("p", &[]);
    let limits = [("cpu".to_owned(), proto::v1::Quantity { text: "2".to_owned() })].into();
    greedy.spec.as_mut().unwrap().containers[0]
        .resources
        .as_mut()
        .unwrap()
        .limits = limits;
    run(&mut state, 1, vec![put(from(greedy))]);
    assert_eq!(
        place(&mut state, 2),
        ["0 of 1 nodes fit: 1 lack cpu (need 2, most free 1)"]
    );
}

#[test]
fn labels_ports_and_names_are_respected() {
    let mut state = nodes(&[("n1", "4", "4Gi"), ("n2", "4", "4Gi")]);
    change_node(&mut state, "n2", |node| {
        node.metadata
            .as_mut()
            .unwrap()
            .labels
            .insert("disk".to_owned(), "ssd".to_owned());
    });
    let mut choosy = pod("choosy");
    choosy
        .spec
        .as_mut()
        .unwrap()
        .node_selector
        .insert("disk".to_owned(), "ssd".to_owned());
    let mut lost = pod("lost");
    lost.spec
        .as_mut()
        .unwrap()
        .node_selector
        .insert("disk".to_owned(), "tape".to_owned());
    let port = |name: &str| {
        let mut pod = pod(name);
        let port = ContainerPort {
            container_port: 80,
            host_port: 8080,
            ..Default::default()
        };
        pod.spec.as_mut().unwrap().containers[0].ports = vec![port];
        pod
    };
    let mut named = pod("named");
    named.spec.as_mut().unwrap().node_name = "n1".to_owned();
    let mut misnamed = pod("misnamed");
    misnamed.spec.as_mut().unwrap().node_name = "n9".to_owned();
    let objects = [choosy, port("p1"), port("p2"), port("p3"), lost, named, misnamed];
    for object in objects {
        run(&mut state, 1, vec![put(from(object))]);
    }
    let mut unplaced = place(&mut state, 2);
    unplaced.sort();
    assert_eq!(
        unplaced,
        [
            "0 of 2 nodes fit: 2 with host port 8080/TCP taken",
            "0 of 2 nodes fit: 2 without the label disk=tape",
            "node n9, which the pod asks for, does not exist",
        ]
    );
    assert_eq!(
        (node_of(&state, "choosy"), node_of(&state, "named")),
        ("n2".to_owned(), "n1".to_owned())
    );
}

#[test]
fn without_nodes_the_message_says_so() {
    let mut state = cluster();
    run(&mut state, 1, vec![put(from(pod("p")))]);
    assert_eq!(place(&mut state, 2), ["no node has joined"]);
    applied(&state.apply(&join(3, "n1")));
    assert_eq!(place(&mut state, 60_000), ["0 of 1 nodes fit: 1 not ready"]);
}

#[test]
fn a_node_takes_so_many_pods_and_no_more() {
    let mut state = nodes(&[("n1", "400", "400Gi")]);
    let pods = (0..112).map(|number| put(from(pod(&format!("p{number}")))));
    run(&mut state, 1, pods.collect());
    let unplaced = place(&mut state, 2);
    assert_eq!(unplaced, ["0 of 1 nodes fit: 1 full of pods"; 2]);
}

#[test]
fn a_binding_to_a_node_that_was_cordoned_meanwhile_is_refused() {
    let mut state = nodes(&[("n1", "4", "4Gi")]);
    run(&mut state, 1, vec![put(from(pod("p")))]);
    let (commands, _) = schedule::commands(&state, 2);
    change_node(&mut state, "n1", |node| {
        node.spec.as_mut().unwrap().unschedulable = true
    });
    assert_eq!(refused(&state.apply(&commands[0])).0, "Conflict");
}
