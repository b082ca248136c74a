//! Which other objects a pod is made from.

use std::collections::BTreeSet;

use proto::v1::Pod;

use crate::Kind;

/// A ConfigMap or a Secret: its kind, and NAMESPACE/NAME.
pub type Used = (Kind, String);

/// The ConfigMaps and Secrets that a pod names, whether they are there or not.
pub fn of(pod: &Pod) -> BTreeSet<Used> {
    let Some(spec) = &pod.spec else {
        return BTreeSet::new();
    };
    let mut names: BTreeSet<(Kind, &str)> = BTreeSet::new();
    for container in spec.init_containers.iter().chain(&spec.containers) {
        for value in container.env.iter().filter_map(|env| env.value_from.as_ref()) {
            names.extend(
                value
                    .config_map_key_ref
                    .iter()
                    .map(|key| (Kind::ConfigMap, &*key.name)),
            );
            names.extend(value.secret_key_ref.iter().map(|key| (Kind::Secret, &*key.name)));
        }
        for whole in &container.env_from {
            names.extend(
                whole
                    .config_map_ref
                    .iter()
                    .map(|map| (Kind::ConfigMap, &*map.name)),
            );
            names.extend(
                whole
                    .secret_ref
                    .iter()
                    .map(|secret| (Kind::Secret, &*secret.name)),
            );
        }
    }
    for volume in &spec.volumes {
        names.extend(volume.config_map.iter().map(|map| (Kind::ConfigMap, &*map.name)));
        names.extend(
            volume
                .secret
                .iter()
                .map(|secret| (Kind::Secret, &*secret.secret_name)),
        );
    }
    let namespace = pod.metadata.as_ref().map_or("", |meta| &*meta.namespace);
    names
        .into_iter()
        .map(|(kind, name)| (kind, format!("{namespace}/{name}")))
        .collect()
}
