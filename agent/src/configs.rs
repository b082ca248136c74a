//! ConfigMaps and Secrets of the node's pods. ConfigMaps are in the ledger too; Secrets are in memory alone: after a start of
//! the agent they come with the controller's first word.

use std::collections::BTreeMap;

use model::Kind;
use proto::v1::{ConfigMap, ObjectMeta, Secret};

use crate::ledger::Change;

/// All of them, by NAMESPACE/NAME.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Configs {
    maps: BTreeMap<String, ConfigMap>,
    secrets: BTreeMap<String, Secret>,
}

/// What one of them holds.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Content<'a> {
    text: Option<&'a BTreeMap<String, String>>,
    bytes: &'a BTreeMap<String, Vec<u8>>,
}

impl Configs {
    pub(crate) fn new(maps: BTreeMap<String, ConfigMap>) -> Self {
        Self {
            maps,
            secrets: BTreeMap::new(),
        }
    }

    /// Kinds and keys of all.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (Kind, &str)> {
        let maps = self.maps.keys().map(|key| (Kind::ConfigMap, key.as_str()));
        maps.chain(self.secrets.keys().map(|key| (Kind::Secret, key.as_str())))
    }

    /// What one holds; none when it is not there.
    pub(crate) fn content(&self, kind: Kind, key: &str) -> Option<Content<'_>> {
        match kind {
            Kind::Secret => self.secrets.get(key).map(|secret| Content {
                text: None,
                bytes: &secret.data,
            }),
            _ => self.maps.get(key).map(|map| Content {
                text: Some(&map.data),
                bytes: &map.binary_data,
            }),
        }
    }

    /// As they are after a change; none when it changes none of them.
    pub(crate) fn after(&self, change: &Change) -> Option<Configs> {
        let quiet = change.config_maps.is_empty()
            && change.removed_config_maps.is_empty()
            && change.secrets.is_empty()
            && change.removed_secrets.is_empty();
        if quiet {
            return None;
        }
        let mut after = self.clone();
        after
            .maps
            .retain(|key, _| !change.removed_config_maps.contains(key));
        after
            .secrets
            .retain(|key, _| !change.removed_secrets.contains(key));
        let maps = change.config_maps.iter().cloned();
        after
            .maps
            .extend(maps.map(|map| (key_of(map.metadata.as_ref()), map)));
        let secrets = change.secrets.iter().cloned();
        after
            .secrets
            .extend(secrets.map(|secret| (key_of(secret.metadata.as_ref()), secret)));
        Some(after)
    }
}

impl<'a> Content<'a> {
    /// Of something that is neither.
    pub(crate) fn of(bytes: &'a BTreeMap<String, Vec<u8>>) -> Self {
        Self { text: None, bytes }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a [u8]> {
        let text = self.text.and_then(|text| text.get(key));
        let text = text.map(|text| text.as_bytes());
        text.or_else(|| self.bytes.get(key).map(Vec::as_slice))
    }

    /// Everything, in order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let text = self.text.into_iter().flatten();
        let text = text.map(|(key, text)| (key.as_str(), text.as_bytes()));
        text.chain(
            self.bytes
                .iter()
                .map(|(key, bytes)| (key.as_str(), bytes.as_slice())),
        )
    }

    /// What can be a variable's value: of a ConfigMap its text alone, of a Secret everything that is text (Kubernetes,
    /// kubelet_pods.go, makeEnvironmentVariables). Without NUL: the kernel's strings end there.
    pub(crate) fn variable(&self, key: &str) -> Option<Result<&'a str, NotText>> {
        let bytes = match self.text {
            Some(text) => text.get(key).map(|text| text.as_bytes()),
            None => self.bytes.get(key).map(Vec::as_slice),
        };
        bytes.map(|bytes| match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => Ok(text),
            _ => Err(NotText),
        })
    }

    /// Keys of what could be variables.
    pub(crate) fn variables(&self) -> impl Iterator<Item = &'a str> {
        let text = self.text.into_iter().flat_map(|text| text.keys());
        let bytes = self.text.is_none().then_some(self.bytes);
        let bytes = bytes.into_iter().flat_map(|bytes| bytes.keys());
        text.chain(bytes).map(String::as_str)
    }
}

/// A value that is no UTF-8, or has a NUL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotText;

/// NAMESPACE/NAME.
pub(crate) fn key_of(meta: Option<&ObjectMeta>) -> String {
    meta.map(|meta| format!("{}/{}", meta.namespace, meta.name))
        .unwrap_or_default()
}
