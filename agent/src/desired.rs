//! What a message of desired state changes in the ledger. Pure.

use std::collections::{BTreeMap, BTreeSet};

use proto::v1::{ConfigMap, Pod};
use rpc::v1::Desired;

use crate::ledger::{Change, config_map_key};

/// What the ledger holds when the message comes.
#[derive(Debug, Default)]
pub(crate) struct Held<'a> {
    /// Pods by uid.
    pub(crate) pods: BTreeMap<&'a str, &'a Pod>,
    /// NAMESPACE/NAME of ConfigMaps.
    pub(crate) config_maps: BTreeSet<&'a str>,
}

/// The change that a message makes. A complete one names every pod that is to be here, and brings every ConfigMap that
/// pods use: what it does not name goes. Pods that it names and that are not held come in later parts.
pub(crate) fn change(held: &Held<'_>, message: Desired) -> Change {
    let mut removed = message.removed;
    let mut removed_config_maps = message.removed_config_maps;
    if message.complete {
        let listed: BTreeSet<&str> = message.uids.iter().map(String::as_str).collect();
        let (stay, go): (Vec<_>, Vec<_>) = held.pods.iter().partition(|(uid, _)| listed.contains(**uid));
        removed.extend(go.iter().map(|(uid, _)| (**uid).to_owned()));
        let used: BTreeSet<String> = stay.iter().flat_map(|(_, pod)| config_maps_of(pod)).collect();
        let unused = held.config_maps.iter().filter(|key| !used.contains(**key));
        removed_config_maps.extend(unused.map(|key| (*key).to_owned()));
    }
    let brought: BTreeSet<String> = message.config_maps.iter().map(config_map_key).collect();
    removed_config_maps.retain(|key| !brought.contains(key));
    let pods: Vec<Pod> = message
        .pods
        .into_iter()
        .filter(|pod| !uid(pod).is_empty())
        .collect();
    removed.retain(|gone| !pods.iter().any(|pod| uid(pod) == gone));
    Change {
        revision: Some(message.revision),
        pods,
        removed,
        config_maps: message.config_maps,
        removed_config_maps,
        peers: message.peers_changed.then_some(message.peers),
    }
}

/// A pod's uid; empty where it has none, which no controller sends.
pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.as_ref().map(|meta| &*meta.uid).unwrap_or_default()
}

/// NAMESPACE/NAME of each ConfigMap that a pod uses.
pub(crate) fn config_maps_of(pod: &Pod) -> BTreeSet<String> {
    let Some(spec) = &pod.spec else {
        return BTreeSet::new();
    };
    let mut names = BTreeSet::new();
    for container in spec.init_containers.iter().chain(&spec.containers) {
        let values = container.env.iter().filter_map(|env| env.value_from.as_ref());
        names.extend(values.filter_map(|value| Some(&*value.config_map_key_ref.as_ref()?.name)));
        let whole = container.env_from.iter();
        names.extend(whole.filter_map(|source| Some(&*source.config_map_ref.as_ref()?.name)));
    }
    let volumes = spec.volumes.iter();
    names.extend(volumes.filter_map(|volume| Some(&*volume.config_map.as_ref()?.name)));
    let namespace = pod
        .metadata
        .as_ref()
        .map(|meta| &*meta.namespace)
        .unwrap_or_default();
    names
        .into_iter()
        .map(|name| format!("{namespace}/{name}"))
        .collect()
}

/// ConfigMaps after a change.
pub(crate) fn with_config_maps(
    mut maps: BTreeMap<String, ConfigMap>,
    change: &Change,
) -> BTreeMap<String, ConfigMap> {
    for key in &change.removed_config_maps {
        maps.remove(key);
    }
    for map in &change.config_maps {
        maps.insert(config_map_key(map), map.clone());
    }
    maps
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{ConfigMapVolumeSource, ObjectMeta, PodSpec, Volume};

    fn pod(uid: &str, map: &str) -> Pod {
        Pod {
            metadata: Some(ObjectMeta {
                uid: uid.to_owned(),
                namespace: "default".to_owned(),
                ..ObjectMeta::default()
            }),
            spec: Some(PodSpec {
                volumes: vec![Volume {
                    config_map: Some(ConfigMapVolumeSource {
                        name: map.to_owned(),
                        ..ConfigMapVolumeSource::default()
                    }),
                    ..Volume::default()
                }],
                ..PodSpec::default()
            }),
            ..Pod::default()
        }
    }

    fn map(name: &str) -> ConfigMap {
        ConfigMap {
            metadata: Some(ObjectMeta {
                name: name.to_owned(),
                namespace: "default".to_owned(),
                ..ObjectMeta::default()
            }),
            ..ConfigMap::default()
        }
    }

    fn held<'a>(pods: &'a [Pod], maps: &[&'a str]) -> Held<'a> {
        Held {
            pods: pods.iter().map(|pod| (uid(pod), pod)).collect(),
            config_maps: maps.iter().copied().collect(),
        }
    }

    #[test]
    fn what_a_complete_message_does_not_list_goes() {
        let pods = [pod("a", "x"), pod("b", "y")];
        let message = Desired {
            revision: 9,
            complete: true,
            uids: vec!["b".to_owned(), "c".to_owned()],
            ..Desired::default()
        };
        let change = change(&held(&pods, &["default/x", "default/y"]), message);
        assert_eq!(change.removed, ["a"]);
        assert_eq!(change.removed_config_maps, ["default/x"]);
        assert_eq!(change.revision, Some(9));
        assert_eq!(change.peers, None);
    }

    #[test]
    fn a_difference_takes_away_only_what_it_names() {
        let pods = [pod("a", "x"), pod("b", "y")];
        let message = Desired {
            removed: vec!["a".to_owned()],
            pods: vec![pod("c", "z")],
            config_maps: vec![map("z")],
            peers_changed: true,
            ..Desired::default()
        };
        let change = change(&held(&pods, &["default/x", "default/y"]), message);
        assert_eq!(change.removed, ["a"]);
        assert!(change.removed_config_maps.is_empty());
        assert_eq!(change.peers, Some(Vec::new()));
        assert_eq!((change.pods.len(), change.config_maps.len()), (1, 1));
    }

    #[test]
    fn what_a_message_brings_stays() {
        let pods = [pod("a", "x")];
        let message = Desired {
            complete: true,
            uids: vec!["b".to_owned()],
            pods: vec![pod("b", "x")],
            config_maps: vec![map("x")],
            ..Desired::default()
        };
        let change = change(&held(&pods, &["default/x"]), message);
        assert_eq!(change.removed, ["a"]);
        assert!(change.removed_config_maps.is_empty());
        let maps = with_config_maps([("default/x".to_owned(), ConfigMap::default())].into(), &change);
        assert_eq!(maps["default/x"], map("x"));
    }

    #[test]
    fn a_pod_without_a_uid_is_not_taken() {
        let message = Desired {
            pods: vec![Pod::default()],
            ..Desired::default()
        };
        assert!(change(&Held::default(), message).pods.is_empty());
    }
}
