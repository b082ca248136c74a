//! What an agent may say: of its node, and of the pods that it was told to run. Pure; whatever else it says is dropped.

use std::net::Ipv4Addr;

use model::object;
use proto::v1::{Event, EventSource, Node, NodeAddress, NodeStatus, ObjectReference, Pod};
use rpc::v1::{Hello, PodReport};
use state::level::LEVELS_OF_AGENTS;
use state::{SCHEMA_LEVEL_MIN, State};
use tonic::Status;

use super::desired::{INTERNAL_IP, Known};

/// Events of one message that are looked at: an agent aggregates them.
const EVENTS_MAX: usize = 100;
/// Longest reason of an event, in bytes: a word.
const REASON_BYTES_MAX: usize = 128;
/// Longest message of an event, in bytes: as in Kubernetes' API.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Whether an agent understands what is asked of it: any of this version, and the pods that are on its node.
pub(super) fn check_level(hello: &Hello, pods: u32) -> Result<(), Status> {
    let needed = SCHEMA_LEVEL_MIN.max(pods);
    match hello.schema_level < needed {
        false => Ok(()),
        true => Err(Status::failed_precondition(format!(
            "the agent (version {}) knows schema level {}, the cluster or a pod of this node needs {needed}: upgrade the agent",
            short(&hello.version, REASON_BYTES_MAX),
            hello.schema_level
        ))),
    }
}

/// The address in a Hello.
pub(super) fn check_address(hello: &Hello) -> Result<Ipv4Addr, Status> {
    let refused = || Status::invalid_argument("the node's address has to be an IPv4 address of its own");
    let address: Ipv4Addr = hello.address.parse().map_err(|_| refused())?;
    if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
        return Err(refused());
    }
    Ok(address)
}

/// What a session knows of its agent from the Hello.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agent {
    pub(super) address: Ipv4Addr,
    pub(super) schema_level: u32,
}

/// A node's status with what its session began with, as far as every member of a cluster of this schema level can store it.
pub(super) fn node_status(mut status: NodeStatus, agent: Agent, cluster: u32) -> NodeStatus {
    let Agent {
        address,
        schema_level,
    } = agent;
    status.node_info.get_or_insert_default().schema_level = match cluster >= LEVELS_OF_AGENTS {
        true => schema_level,
        false => 0,
    };
    status.addresses.retain(|known| known.r#type != INTERNAL_IP);
    let own = NodeAddress {
        r#type: INTERNAL_IP.to_owned(),
        address: address.to_string(),
    };
    status.addresses.insert(0, own);
    status
}

/// Reports of pods of this node; others are out of date, or none of its business.
pub(super) fn pods(reports: Vec<PodReport>, known: &Known) -> Vec<PodReport> {
    let own = reports.into_iter().filter(|report| known.has(&report.uid));
    own.collect()
}

/// Events about the node's pods and the node itself, as we know these objects, said by this agent.
pub(super) fn events(
    events: Vec<Event>,
    known: &Known,
    state: &State,
    node: &Node,
    now: pbjson_types::Timestamp,
) -> Vec<Event> {
    let name = node.metadata.as_ref().map_or("", |meta| meta.name.as_str());
    let own = events.into_iter().take(EVENTS_MAX).filter_map(|event| {
        let object = event.involved_object.as_ref()?;
        let involved = match object.kind.as_str() {
            "Pod" if known.has(&object.uid) => about_pod(&object.uid, &object.field_path, state)?,
            "Node" if object.name == name => about_node(node),
            _ => return None,
        };
        let kind = if event.r#type == "Warning" {
            "Warning"
        } else {
            "Normal"
        };
        let last = event.last_timestamp.unwrap_or(now);
        Some(Event {
            involved_object: Some(involved),
            reason: short(&event.reason, REASON_BYTES_MAX),
            message: short(&event.message, MESSAGE_BYTES_MAX),
            source: Some(EventSource {
                component: "agent".to_owned(),
                host: name.to_owned(),
            }),
            first_timestamp: Some(event.first_timestamp.unwrap_or(last)),
            last_timestamp: Some(last),
            count: event.count.max(1),
            r#type: kind.to_owned(),
            ..Default::default()
        })
    });
    own.collect()
}

fn about_pod(uid: &str, field_path: &str, state: &State) -> Option<ObjectReference> {
    let pod = object::into::<Pod>(state.by_uid(uid)?)?;
    let meta = pod.metadata?;
    Some(ObjectReference {
        kind: pod.kind,
        api_version: pod.api_version,
        namespace: meta.namespace,
        name: meta.name,
        uid: meta.uid,
        resource_version: meta.resource_version,
        field_path: short(field_path, REASON_BYTES_MAX),
    })
}

fn about_node(node: &Node) -> ObjectReference {
    let meta = node.metadata.clone().unwrap_or_default();
    ObjectReference {
        kind: node.kind.clone(),
        api_version: node.api_version.clone(),
        name: meta.name,
        uid: meta.uid,
        ..Default::default()
    }
}

/// At most so many bytes of a text, cut between letters.
fn short(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

#[cfg(test)]
mod tests {
    use proto::v1::ObjectMeta;
    use state::SCHEMA_LEVEL;
    use tonic::Code;

    use super::*;

    fn hello(level: u32, address: &str) -> Hello {
        Hello {
            schema_level: level,
            address: address.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn an_agent_that_knows_too_little_or_has_no_address_is_refused() {
        assert_eq!(
            check_address(&hello(SCHEMA_LEVEL_MIN, "10.0.0.7")).unwrap(),
            Ipv4Addr::new(10, 0, 0, 7)
        );
        let check = |level, pods| check_level(&hello(level, "10.0.0.7"), pods);
        check(SCHEMA_LEVEL_MIN, 0).unwrap();
        check(SCHEMA_LEVEL, SCHEMA_LEVEL).unwrap();
        for (level, pods) in [(SCHEMA_LEVEL_MIN - 1, 0), (SCHEMA_LEVEL_MIN, SCHEMA_LEVEL)] {
            assert_eq!(check(level, pods).unwrap_err().code(), Code::FailedPrecondition);
        }
        for bad in [
            "",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "n1",
            "::1",
            "10.0.0.7:80",
        ] {
            let refused = check_address(&hello(SCHEMA_LEVEL, bad)).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn a_nodes_address_stays_the_one_of_its_session() {
        let claimed = NodeStatus {
            addresses: [("InternalIP", "10.0.0.1"), ("Hostname", "n1")]
                .map(|(kind, address)| NodeAddress {
                    r#type: kind.to_owned(),
                    address: address.to_owned(),
                })
                .to_vec(),
            ..Default::default()
        };
        let agent = Agent {
            address: Ipv4Addr::new(10, 0, 0, 7),
            schema_level: SCHEMA_LEVEL,
        };
        let told = |cluster| {
            let status = node_status(claimed.clone(), agent, cluster);
            status.node_info.unwrap_or_default().schema_level
        };
        assert_eq!([told(SCHEMA_LEVEL_MIN), told(SCHEMA_LEVEL)], [0, SCHEMA_LEVEL]);
        let status = node_status(claimed, agent, SCHEMA_LEVEL);
        let addresses: Vec<&str> = status
            .addresses
            .iter()
            .map(|known| known.address.as_str())
            .collect();
        assert_eq!(addresses, ["10.0.0.7", "n1"]);
    }

    #[test]
    fn events_about_other_objects_are_dropped_and_long_ones_cut() {
        let node = Node {
            kind: "Node".to_owned(),
            metadata: Some(ObjectMeta {
                name: "n1".to_owned(),
                uid: "u".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let event = |kind: &str, name: &str| Event {
            involved_object: Some(ObjectReference {
                kind: kind.to_owned(),
                name: name.to_owned(),
                uid: "x".to_owned(),
                ..Default::default()
            }),
            message: "\u{e9}".repeat(MESSAGE_BYTES_MAX),
            ..Default::default()
        };
        let all = vec![
            event("Node", "n2"),
            event("Pod", "web"),
            event("Secret", "n1"),
            event("Node", "n1"),
        ];
        let known = Known::new(0, Vec::new());
        let kept = events(
            all,
            &known,
            &State::new(),
            &node,
            pbjson_types::Timestamp::default(),
        );
        assert_eq!(kept.len(), 1);
        let involved = kept[0].involved_object.as_ref().unwrap();
        assert_eq!((involved.name.as_str(), involved.uid.as_str()), ("n1", "u"));
        assert_eq!(kept[0].message.len(), MESSAGE_BYTES_MAX);
        assert_eq!((kept[0].count, kept[0].r#type.as_str()), (1, "Normal"));
        let flood = vec![event("Node", "n1"); EVENTS_MAX + 1];
        let kept = events(
            flood,
            &known,
            &State::new(),
            &node,
            pbjson_types::Timestamp::default(),
        );
        assert_eq!(kept.len(), EVENTS_MAX);
    }
}
