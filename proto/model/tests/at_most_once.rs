//! Pods that ask not to run twice: where the annotation may stand, and what it does not go together with.

mod refusals;

use model::read::manifests;
use model::validate;
use refusals::{check, pod};

const KEY: &str = "bulkhead.io/at-most-once";

fn asking(value: &str) -> String {
    pod("", "").replace(
        "metadata: {name: p",
        &format!("metadata: {{annotations: {{{KEY}: {value}}}, name: p"),
    )
}

fn deployment(value: &str, strategy: &str) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: d}}, spec: {{selector: {{matchLabels: {{a: b}}}}, \
         template: {{metadata: {{labels: {{a: b}}, annotations: {{{KEY}: \"{value}\"}}}}, \
         spec: {{containers: [{{name: c, image: i}}]}}}}{strategy}}}}}\n"
    )
}

#[track_caller]
fn accepted(text: &str) -> proto::v1::Object {
    match manifests("f.yaml", text.as_bytes()) {
        Ok(mut read) => read.remove(0).object,
        Err(refusals) => panic!("{refusals:?}\n{text}"),
    }
}

#[test]
fn only_true_and_false_are_understood() {
    let path = format!("metadata.annotations[{KEY}]");
    for value in ["\"yes\"", "\"True\"", "\"\"", "\"1\""] {
        check(&asking(value), &path, "must be true or false");
    }
    check(&asking("true"), &path, "must be a text, is a boolean");
    accepted(&asking("\"true\""));
    accepted(&asking("\"false\""));
}

#[test]
fn on_a_workload_itself_it_is_refused_with_its_place() {
    let above = deployment("true", ", strategy: {type: Recreate}").replace(
        "metadata: {name: d}",
        &format!("metadata: {{name: d, annotations: {{{KEY}: \"true\"}}}}"),
    );
    check(
        &above,
        &format!("metadata.annotations[{KEY}]"),
        "is an annotation of pods and means nothing here: write it into spec.template.metadata.annotations",
    );
}

#[test]
fn a_rollout_must_not_begin_with_one_more() {
    for strategy in [
        "",
        ", strategy: {type: RollingUpdate}",
        ", strategy: {rollingUpdate: {maxSurge: 1}}",
        ", strategy: {rollingUpdate: {maxSurge: 1%}}",
    ] {
        check(
            &deployment("true", strategy),
            "spec.strategy",
            "would start new pods beside the old ones",
        );
        accepted(&deployment("false", strategy));
    }
    for strategy in [
        ", strategy: {type: Recreate}",
        ", strategy: {rollingUpdate: {maxSurge: 0}}",
        ", strategy: {rollingUpdate: {maxSurge: 0%, maxUnavailable: 1}}",
    ] {
        accepted(&deployment("true", strategy));
    }
}

#[test]
fn a_pod_cannot_change_its_mind() {
    let (plain, asks) = (accepted(&pod("", "")), accepted(&asking("\"true\"")));
    for (old, new) in [(&plain, &asks), (&asks, &plain)] {
        let refused = validate::update(old, new);
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(refused[0].path, format!("metadata.annotations[{KEY}]"));
    }
    let denies = accepted(&asking("\"false\""));
    assert_eq!(validate::update(&plain, &denies), [], "it says the same");
}
