//! Manifests as people write them: those of the fields that we have are read, defaulted, valid, and written back equal;
//! of others each field that we lack is named.

use model::read::{Manifest, manifests};
use model::{default, object, validate, write};

fn read(name: &str, text: &str) -> Vec<Manifest> {
    manifests(name, text.as_bytes()).unwrap_or_else(|refusals| panic!("{refusals}"))
}

const ACCEPTED: [(&str, &str); 7] = [
    ("web.yaml", include_str!("manifests/web.yaml")),
    ("hardened.yaml", include_str!("manifests/hardened.yaml")),
    ("tools.yaml", include_str!("manifests/tools.yaml")),
    ("list.json", include_str!("manifests/list.json")),
    ("flow.yaml", include_str!("manifests/flow.yaml")),
    ("anchors.yaml", include_str!("manifests/anchors.yaml")),
    ("secrets.yaml", include_str!("manifests/secrets.yaml")),
];

#[test]
fn manifests_of_the_supported_fields_are_read_and_written_back_equal() {
    for (name, text) in ACCEPTED {
        for manifest in read(name, text) {
            let yaml = write::yaml(&manifest.object);
            let again = read("again.yaml", &yaml);
            assert_eq!(again.len(), 1, "{name}\n{yaml}");
            assert_eq!(again[0].object, manifest.object, "{name}\n{yaml}");

            let mut defaulted = manifest.object.clone();
            default::object(&mut defaulted);
            assert_eq!(validate::object(&defaulted), [], "{name}");
            let yaml = write::yaml(&defaulted);
            assert_eq!(
                read("defaulted.yaml", &yaml)[0].object,
                defaulted,
                "{name}\n{yaml}"
            );
            assert_eq!(validate::update(&defaulted, &defaulted), []);
        }
    }
}

#[test]
fn every_field_that_is_not_listed_is_named_with_its_place() {
    let text = include_str!("manifests/unsupported.yaml");
    let refusals = manifests("unsupported.yaml", text.as_bytes()).expect_err("it is full of what we lack");
    let refused: Vec<(u32, String)> = refusals
        .refusals
        .iter()
        .map(|refusal| (refusal.line, refusal.to_string()))
        .collect();
    // Each line that must be refused says so itself.
    let marked: Vec<u32> = (1_u32..)
        .zip(text.lines())
        .filter(|(_, line)| line.contains("# refused"))
        .map(|(number, _)| number)
        .collect();
    let lines: Vec<u32> = refused.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, marked, "{refusals}");
    for (_, message) in refused {
        assert!(message.contains("not supported yet"), "{message}");
    }
}

#[test]
fn output_has_kubernetes_order_and_zeros() {
    let text = "apiVersion: v1\nkind: Pod\nstatus: {containerStatuses: [{name: c, state: {terminated: {exitCode: 0, startedAt: \"2026-01-31T10:00:00Z\"}}}]}\nspec: {containers: [{image: i, name: c}]}\nmetadata: {labels: {b: \"1\", a: \"on\"}, name: p}\n";
    let manifest = &read("f.yaml", text)[0];
    let expected = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  labels:\n    a: \"on\"\n    b: \"1\"\nspec:\n  containers:\n";
    let yaml = write::yaml(&manifest.object);
    assert!(yaml.starts_with(expected), "{yaml}");
    let status = &write::json(&manifest.object)["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 0);
    assert_eq!(status["ready"], false);
    assert_eq!(status["state"]["terminated"]["exitCode"], 0);
    assert_eq!(status["state"]["terminated"]["startedAt"], "2026-01-31T10:00:00Z");
}

#[test]
fn of_a_pod_only_images_may_change() {
    let make = |image: &str, extra: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{containers: [{{name: c, image: {image}{extra}}}]}}\n"
        );
        let mut object = read("f.yaml", &text).remove(0).object;
        default::object(&mut object);
        object
    };
    let old = make("a:1", "");
    assert_eq!(validate::update(&old, &make("a:2", "")), []);
    let errors = validate::update(&old, &make("a:2", ", args: [x]"));
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].path, "spec.containers[0].args");
    assert_eq!(object::key(&old).name, "p");
}
