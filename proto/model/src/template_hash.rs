//! The label `pod-template-hash`: equal templates have equal ones, on every machine and in every version.

use prost::Message;
use proto::v1::PodTemplateSpec;

/// The label's key.
pub const LABEL: &str = "pod-template-hash";

/// A name for the template. Its own label is left out, so that a template read back from a revision hashes the same.
pub fn of(template: &PodTemplateSpec) -> String {
    let mut template = template.clone();
    if let Some(metadata) = &mut template.metadata {
        metadata.labels.remove(LABEL);
    }
    // Maps are BTreeMaps and fields are written in the order of their numbers: the encoding is the same everywhere.
    let mut hash = fnv1a(&template.encode_to_vec());
    let mut text = String::with_capacity(10);
    for _ in 0..2 {
        let mut bytes = [0; crate::name::SUFFIX_LEN];
        for byte in &mut bytes {
            *byte = (hash % 27) as u8;
            hash /= 27;
        }
        text.push_str(&crate::name::suffix(bytes));
    }
    text
}

/// FNV-1a with 64 bits: fixed by its definition, unlike the standard library's hasher.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{Container, ObjectMeta, PodSpec};

    #[test]
    fn the_hash_ignores_its_own_label_and_nothing_else() {
        let mut template = PodTemplateSpec {
            metadata: Some(ObjectMeta::default()),
            spec: Some(PodSpec {
                containers: vec![Container {
                    name: "web".to_owned(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
        };
        let hash = of(&template);
        assert_eq!(hash.len(), 10);
        template
            .metadata
            .get_or_insert_default()
            .labels
            .insert(LABEL.to_owned(), hash.clone());
        assert_eq!(of(&template), hash);
        template.spec.get_or_insert_default().hostname = "x".to_owned();
        assert_ne!(of(&template), hash);
    }

    #[test]
    fn the_hash_is_the_same_in_every_version() {
        assert_eq!(of(&PodTemplateSpec::default()), "s6vf8jvv2p");
    }
}
