//! What a message of desired state changes in the ledger. Pure.

use std::collections::{BTreeMap, BTreeSet};

use model::Kind;
use model::uses::{self, Used};
use proto::v1::Pod;
use rpc::v1::Desired;

use crate::configs::key_of;
use crate::ledger::Change;

/// What is held when the message comes.
#[derive(Debug, Default)]
pub(crate) struct Held<'a> {
    /// Pods by uid.
    pub(crate) pods: BTreeMap<&'a str, &'a Pod>,
    /// ConfigMaps and Secrets, by NAMESPACE/NAME.
    pub(crate) configs: BTreeSet<(Kind, &'a str)>,
}

/// The change that a message makes. A complete one names every pod that is to be here, and brings every ConfigMap and
/// Secret that pods use: what it does not name goes. Pods that it names and that are not held come in later parts.
pub(crate) fn change(held: &Held<'_>, message: Desired) -> Change {
    let mut removed = message.removed;
    let mut removed_config_maps = message.removed_config_maps;
    let mut removed_secrets = message.removed_secrets;
    if message.complete {
        let listed: BTreeSet<&str> = message.uids.iter().map(String::as_str).collect();
        let (stay, go): (Vec<_>, Vec<_>) = held.pods.iter().partition(|(uid, _)| listed.contains(**uid));
        removed.extend(go.iter().map(|(uid, _)| (**uid).to_owned()));
        let used: BTreeSet<Used> = stay.iter().flat_map(|(_, pod)| uses::of(pod)).collect();
        for (kind, key) in &held.configs {
            let one = (*kind, (*key).to_owned());
            if !used.contains(&one) {
                match kind {
                    Kind::Secret => removed_secrets.push(one.1),
                    _ => removed_config_maps.push(one.1),
                }
            }
        }
    }
    let maps = message.config_maps.iter().map(|map| map.metadata.as_ref());
    let brought: BTreeSet<String> = maps.map(key_of).collect();
    removed_config_maps.retain(|key| !brought.contains(key));
    let secrets = message.secrets.iter().map(|secret| secret.metadata.as_ref());
    let brought: BTreeSet<String> = secrets.map(key_of).collect();
    removed_secrets.retain(|key| !brought.contains(key));
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
        secrets: message.secrets,
        removed_secrets,
        peers: message.peers_changed.then_some(message.peers),
    }
}

/// A pod's uid; empty where it has none, which no controller sends.
pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.as_ref().map(|meta| &*meta.uid).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{ConfigMap, ConfigMapVolumeSource, ObjectMeta, PodSpec, Secret, Volume};

    use crate::configs::Configs;

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
            configs: maps.iter().map(|map| (Kind::ConfigMap, *map)).collect(),
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
        let before = Configs::new([("default/x".to_owned(), ConfigMap::default())].into());
        let after = before.after(&change).unwrap();
        assert_eq!(after, Configs::new([("default/x".to_owned(), map("x"))].into()));
    }

    #[test]
    fn a_pod_without_a_uid_is_not_taken() {
        let message = Desired {
            pods: vec![Pod::default()],
            ..Desired::default()
        };
        assert!(change(&Held::default(), message).pods.is_empty());
    }

    #[test]
    fn secrets_come_and_go_as_config_maps_do() {
        let secret = |value: &str| Secret {
            metadata: map("x").metadata,
            data: [("key".to_owned(), value.as_bytes().to_vec())].into(),
            ..Secret::default()
        };
        let message = Desired {
            secrets: vec![secret("1")],
            ..Desired::default()
        };
        let brought = change(&Held::default(), message);
        let configs = Configs::default().after(&brought).unwrap();
        let content = configs.content(Kind::Secret, "default/x").unwrap();
        assert_eq!(content.get("key"), Some(&b"1"[..]));
        assert!(configs.content(Kind::ConfigMap, "default/x").is_none());
        let held = Held {
            configs: configs.keys().collect(),
            ..Held::default()
        };
        let message = Desired {
            complete: true,
            ..Desired::default()
        };
        let gone = change(&held, message);
        assert_eq!(gone.removed_secrets, ["default/x"]);
        assert!(gone.removed_config_maps.is_empty());
        assert_eq!(configs.after(&gone), Some(Configs::default()));
    }
}
