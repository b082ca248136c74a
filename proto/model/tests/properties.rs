//! What holds for any input: the reader does not panic, and what the writer writes is read back equal.

use std::collections::BTreeMap;

use model::read::manifests;
use model::{object, write};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proto::v1::{ConfigMap, Container, EnvVar, ObjectMeta, Pod, PodSpec, Quantity, ResourceRequirements};

const SEEDS: [&str; 5] = [
    include_str!("manifests/web.yaml"),
    include_str!("manifests/unsupported.yaml"),
    include_str!("manifests/list.json"),
    include_str!("manifests/flow.yaml"),
    include_str!("manifests/anchors.yaml"),
];

/// What YAML gives a meaning to, and what it stumbles over.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let pieces = [
        "\n",
        "\t",
        "  ",
        "- ",
        ": ",
        "{",
        "}",
        "[",
        "]",
        "&a ",
        "*a",
        "!!str ",
        "<<: ",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "\"",
        "'",
        "|\n",
        ">-\n",
        "#",
        "null",
        "~",
        "yes",
        "0644",
        "1e3",
        "99999999999999999999",
        "-1",
        "? ",
        "\u{feff}",
        "\u{85}",
        "\u{2028}",
        "\r",
        "\0",
        "kind: List\n",
        "items:\n",
        "@",
        "`",
        ",",
    ];
    prop_oneof![
        4 => proptest::sample::select(pieces.to_vec()).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 1..4),
    ]
}

/// Texts that need care when they are written.
fn text() -> impl Strategy<Value = String> {
    let hard = [
        "",
        " ",
        "yes",
        "null",
        "~",
        "0644",
        "1e3",
        "1.0",
        "true",
        "- a",
        "a: b",
        "#",
        "a #b",
        "'",
        "\"",
        "\\",
        "\n",
        "a\n",
        "\n\na",
        " a\n b\n",
        "\t",
        "a\tb\n",
        "\r\n",
        "\u{85}",
        "\u{2028}",
        "\u{feff}",
        "\u{7f}",
        "\u{1b}[0m",
        "\0",
        "@a",
        "%a",
        "---",
        "...",
        "? a",
        "<<",
        "!a",
        "&a",
        "*a",
        "2024-01-01",
        "0x1f",
        ".inf",
        "{{ x }}",
        "|",
        ">-",
        "a:",
        ":a",
        "\u{1f600}",
        "a\n\n\n",
        "  x\ny",
        "\ta\nb",
    ];
    prop_oneof![
        2 => proptest::sample::select(hard.to_vec()).prop_map(str::to_owned),
        2 => any::<String>(),
        1 => "[ -~\n\t]{0,200}",
    ]
}

fn map(values: BTreeMap<String, String>) -> proto::v1::Object {
    let metadata = Some(ObjectMeta {
        name: "a".to_owned(),
        annotations: values
            .clone()
            .into_iter()
            .map(|(key, value)| (format!("x/{key}"), value))
            .collect(),
        ..Default::default()
    });
    object::from(ConfigMap {
        metadata,
        data: values,
        ..Default::default()
    })
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..400)) {
        if let Ok(read) = manifests("f", &bytes) {
            prop_assert!(read.is_empty(), "random bytes are no object");
        }
    }

    #[test]
    fn no_pieces_of_yaml_panic(pieces in vec(piece(), 0..60)) {
        if let Err(refusals) = manifests("f", &pieces.concat()) {
            prop_assert!(!refusals.to_string().is_empty());
        }
    }

    #[test]
    fn no_damaged_manifest_panics(seed in 0..SEEDS.len(), at in any::<prop::sample::Index>(), cut in 0_usize..40, piece in piece()) {
        let mut bytes = SEEDS[seed].as_bytes().to_vec();
        let start = at.index(bytes.len());
        let end = (start + cut).min(bytes.len());
        bytes.splice(start..end, piece);
        match manifests("f", &bytes) {
            Ok(read) => for manifest in read {
                let again = manifests("g", write::yaml(&manifest.object).as_bytes()).expect("what is written is read");
                prop_assert_eq!(&again[0].object, &manifest.object);
            },
            Err(refusals) => {
                let lines = bytes.iter().filter(|byte| **byte == b'\n' || **byte == b'\r').count() + 2;
                for refusal in &refusals.refusals {
                    prop_assert!(refusal.line >= 1 && refusal.line as usize <= lines + 2 && refusal.column >= 1, "{}", refusal);
                }
            }
        }
    }

    #[test]
    fn any_text_of_a_config_map_is_read_back_equal(values in btree_map("[a-z]{1,4}", text(), 0..5)) {
        let object = map(values);
        let yaml = write::yaml(&object);
        let read = manifests("f", yaml.as_bytes()).map_err(|refusals| TestCaseError::fail(format!("{refusals}\n{yaml}")))?;
        prop_assert_eq!(&read[0].object, &object, "{}", yaml);
        let json = write::value_json(&write::json(&object));
        let read = manifests("f", json.as_bytes()).map_err(|refusals| TestCaseError::fail(format!("{refusals}\n{json}")))?;
        prop_assert_eq!(&read[0].object, &object, "{}", json);
    }

    #[test]
    fn any_binary_is_read_back_equal(bytes in vec(any::<u8>(), 0..100)) {
        let metadata = Some(ObjectMeta { name: "a".to_owned(), ..Default::default() });
        let binary_data = BTreeMap::from([("b".to_owned(), bytes)]);
        let object = object::from(ConfigMap { metadata, binary_data, ..Default::default() });
        let read = manifests("f", write::yaml(&object).as_bytes()).expect("what is written is read");
        prop_assert_eq!(&read[0].object, &object);
    }

    #[test]
    fn any_words_of_a_container_are_read_back_equal(
        command in vec("[^\0]{0,12}", 0..4),
        value in "[^\0]{0,30}",
        cpu in 0_u32..100_000,
        user in proptest::option::of(0_u32..65_536),
        grace in proptest::option::of(0_i32..i32::MAX),
    ) {
        let quantity = Quantity { text: format!("{cpu}m") };
        let object = object::from(Pod {
            metadata: Some(ObjectMeta { name: "a".to_owned(), ..Default::default() }),
            spec: Some(PodSpec {
                containers: vec![Container {
                    name: "c".to_owned(),
                    image: "i".to_owned(),
                    command,
                    env: vec![EnvVar { name: "V".to_owned(), value, value_from: None }],
                    resources: Some(ResourceRequirements {
                        limits: BTreeMap::from([("cpu".to_owned(), quantity)]),
                        ..Default::default()
                    }),
                    security_context: Some(proto::v1::SecurityContext { run_as_user: user, ..Default::default() }),
                    ..Default::default()
                }],
                termination_grace_period_seconds: grace,
                ..Default::default()
            }),
            ..Default::default()
        });
        let yaml = write::yaml(&object);
        let read = manifests("f", yaml.as_bytes()).map_err(|refusals| TestCaseError::fail(format!("{refusals}\n{yaml}")))?;
        prop_assert_eq!(&read[0].object, &object, "{}", yaml);
    }
}
