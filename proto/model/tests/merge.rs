//! What an apply makes of what is there, one claim a test; then whatever manifests and other writers come.

// The lint's exception for tests ends at their helpers; here everything is test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use model::merge::{self, Known};
use model::{default, read};
use proptest::prelude::*;
use proto::v1::Object;

fn object(yaml: &str) -> Object {
    let mut read = read::manifests("test.yaml", yaml.as_bytes()).expect("the manifest is one");
    read.remove(0).object
}

/// A cluster of one object.
#[derive(Default)]
struct One {
    live: Option<Object>,
    said: Vec<(&'static str, Object)>,
}

impl One {
    fn apply(&mut self, manager: &'static str, yaml: &str) -> Object {
        let manifest = read::manifests("test.yaml", yaml.as_bytes())
            .expect("the manifest is one")
            .remove(0);
        self.apply_object(manager, manifest.object, manifest.empty.into_iter().collect())
    }

    fn apply_object(&mut self, manager: &'static str, new: Object, empty: BTreeSet<String>) -> Object {
        let said = merge::said(&new);
        let mut merged = match &self.live {
            None => new,
            Some(live) => {
                let mine = self.said.iter().find(|(name, _)| *name == manager);
                let others = self.said.iter().filter(|(name, _)| *name != manager);
                let others: Vec<Object> = others.map(|(_, said)| said.clone()).collect();
                let known = Known {
                    said: mine.map(|(_, said)| said),
                    others: &others,
                };
                merge::apply(live, &new, &empty, known)
            }
        };
        default::object(&mut merged);
        self.said.retain(|(name, _)| *name != manager);
        self.said.push((manager, said));
        self.live = Some(merged.clone());
        merged
    }

    /// Somebody who writes the whole object.
    fn write(&mut self, yaml: &str) {
        let mut written = object(yaml);
        default::object(&mut written);
        self.live = Some(written);
    }
}

/// A Deployment with these further lines: of its spec, its template's labels, its pod, its container.
fn web(spec: &str, pod: &str, container: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n{spec}  \
         template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n{pod}      containers:\n      - name: main\n        image: web:1\n{container}"
    )
}

fn shows(object: &Object, path: &str) -> serde_json::Value {
    let json = model::write::json(object);
    json.pointer(path).cloned().unwrap_or_default()
}

#[test]
fn a_field_that_another_set_stays_and_one_that_the_last_apply_set_goes() {
    let mut one = One::default();
    one.apply(
        "ctl",
        &web("  minReadySeconds: 5\n", "", "        workingDir: /a\n"),
    );
    // Somebody scales, and adds a variable.
    one.write(&web(
        "  minReadySeconds: 5\n  replicas: 7\n",
        "",
        "        workingDir: /a\n        env: [{name: A, value: b}]\n",
    ));
    let merged = one.apply("ctl", &web("", "", ""));
    assert_eq!(shows(&merged, "/spec/replicas"), 7);
    assert_eq!(shows(&merged, "/spec/minReadySeconds"), serde_json::Value::Null);
    assert_eq!(
        shows(&merged, "/spec/template/spec/containers/0/workingDir"),
        serde_json::Value::Null
    );
    assert_eq!(
        shows(&merged, "/spec/template/spec/containers/0/env/0/value"),
        "b"
    );
}

#[test]
fn a_number_that_was_applied_and_then_scaled_is_the_scalers_until_it_is_mentioned_again() {
    let mut one = One::default();
    one.apply("ctl", &web("  replicas: 3\n", "", ""));
    one.write(&web("  replicas: 5\n", "", ""));
    assert_eq!(shows(&one.apply("ctl", &web("", "", "")), "/spec/replicas"), 5);
    assert_eq!(
        shows(
            &one.apply("ctl", &web("  replicas: 2\n", "", "")),
            "/spec/replicas"
        ),
        2
    );
    // Nobody else set it since: left out, it is Kubernetes' default.
    assert_eq!(shows(&one.apply("ctl", &web("", "", "")), "/spec/replicas"), 1);
}

#[test]
fn a_zero_that_is_written_counts() {
    let mut one = One::default();
    one.apply("ctl", &web("", "", ""));
    one.write(&web("  paused: true\n", "", ""));
    assert_eq!(shows(&one.apply("ctl", &web("", "", "")), "/spec/paused"), true);
    assert_eq!(
        shows(
            &one.apply("ctl", &web("  paused: false\n", "", "")),
            "/spec/paused"
        ),
        serde_json::Value::Null
    );
    one.write(&web("", "", "        args: [a]\n"));
    let merged = one.apply("ctl", &web("", "", "        args: []\n"));
    assert_eq!(
        shows(&merged, "/spec/template/spec/containers/0/args"),
        serde_json::Value::Null
    );
    one.write(&web("", "      nodeSelector: {disk: fast}\n", ""));
    let merged = one.apply("ctl", &web("", "      nodeSelector: null\n", ""));
    assert_eq!(
        shows(&merged, "/spec/template/spec/nodeSelector"),
        serde_json::Value::Null
    );
}

#[test]
fn only_fields_that_are_not_there_can_be_empty() {
    let web = object(&web("", "", ""));
    let paths = [
        "spec.paused",
        "spec.template.spec.containers[0].args",
        "spec.nothing",
        "spec.selector",
        "spec.template.spec.containers[1].args",
        "",
        "x[",
        "spec.template.spec.containers[0]",
    ];
    let paths = paths.map(str::to_owned);
    assert_eq!(
        merge::not_empty(&web, &paths),
        paths.iter().skip(2).collect::<Vec<_>>()
    );
}

#[test]
fn a_default_follows_what_it_comes_from() {
    let limit = |cpu: &str| format!("        resources: {{limits: {{cpu: {cpu}}}}}\n");
    let mut one = One::default();
    let first = one.apply("ctl", &web("", "", &limit("1")));
    assert_eq!(
        shows(&first, "/spec/template/spec/containers/0/resources/requests/cpu"),
        "1"
    );
    let second = one.apply("ctl", &web("", "      hostNetwork: true\n", &limit("2")));
    assert_eq!(
        shows(&second, "/spec/template/spec/containers/0/resources/requests/cpu"),
        "2"
    );
    assert_eq!(shows(&second, "/spec/template/spec/hostUsers"), true);
}

#[test]
fn a_strategy_of_another_type_keeps_nothing_of_the_old_one() {
    let mut one = One::default();
    one.apply("ctl", &web("", "", ""));
    one.write(&web(
        "  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 5}}\n",
        "",
        "",
    ));
    let same = one.apply("ctl", &web("  strategy: {type: RollingUpdate}\n", "", ""));
    assert_eq!(shows(&same, "/spec/strategy/rollingUpdate/maxSurge"), 5);
    let other = one.apply("ctl", &web("  strategy: {type: Recreate}\n", "", ""));
    assert_eq!(
        shows(&other, "/spec/strategy"),
        serde_json::json!({"type": "Recreate"})
    );
}

#[test]
fn a_variable_and_a_volume_change_their_source() {
    let with = |variable: &str, volume: &str| {
        web(
            "",
            &format!("      volumes:\n      - {{name: v, {volume}}}\n"),
            &format!("        env:\n        - {{name: A, {variable}}}\n"),
        )
    };
    let mut one = One::default();
    // Not applied: nothing is known of what was said.
    one.write(&with("value: b", "emptyDir: {}"));
    let merged = one.apply(
        "ctl",
        &with(
            "valueFrom: {fieldRef: {fieldPath: metadata.name}}",
            "configMap: {name: c}",
        ),
    );
    let pod = shows(&merged, "/spec/template/spec");
    assert_eq!(pod.pointer("/containers/0/env/0/value"), None);
    assert_eq!(pod.pointer("/volumes/0/emptyDir"), None);
    assert_eq!(pod.pointer("/volumes/0/configMap/name"), Some(&"c".into()));
}

#[test]
fn ports_are_told_apart_by_number_and_protocol() {
    let mut one = One::default();
    one.apply(
        "ctl",
        &web(
            "",
            "",
            "        ports: [{containerPort: 53}, {containerPort: 53, protocol: UDP}]\n",
        ),
    );
    one.write(&web("", "", "        ports: [{containerPort: 53, name: dns}, {containerPort: 53, protocol: UDP}, {containerPort: 80}]\n"));
    let merged = one.apply("ctl", &web("", "", "        ports: [{containerPort: 53}]\n"));
    let ports = serde_json::json!([
        {"name": "dns", "containerPort": 53, "protocol": "TCP"},
        {"containerPort": 80, "protocol": "TCP"}
    ]);
    assert_eq!(shows(&merged, "/spec/template/spec/containers/0/ports"), ports);
}

#[test]
fn a_container_that_another_put_in_front_stays_in_front() {
    let mut one = One::default();
    one.apply("ctl", &web("", "", "      - {name: log, image: log:1}\n"));
    let front = web("", "", "      - {name: log, image: log:1}\n").replace(
        "      - name: main",
        "      - {name: mesh, image: mesh:1}\n      - name: main",
    );
    one.write(&front);
    let merged = one.apply("ctl", &web("", "", "      - {name: new, image: new:1}\n"));
    let containers = shows(&merged, "/spec/template/spec/containers");
    let names: Vec<&str> = containers
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["mesh", "main", "new"], "log was ours and is left out");
}

#[test]
fn managers_do_not_remove_each_others_fields() {
    let with = |labels: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a, labels: {{{labels}}}}}\ndata: {{k: v}}\n"
        )
    };
    let mut one = One::default();
    one.apply("ctl", &with("both: x, a: x"));
    one.apply("ci", &with("both: x, b: x"));
    let merged = one.apply("ctl", &with(""));
    assert_eq!(
        shows(&merged, "/metadata/labels"),
        serde_json::json!({"both": "x", "b": "x"})
    );
    assert_eq!(shows(&merged, "/data/k"), "v");
    assert_eq!(
        shows(&one.apply("ci", &with("")), "/metadata/labels"),
        serde_json::Value::Null
    );
}

#[test]
fn of_data_digests_are_kept_and_they_suffice() {
    let secret =
        |data: &str| format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\ndata: {{{data}}}\n");
    let said = merge::said(&object(&secret("a: aHVudGVyMg==")));
    let encoded = format!("{:?}", model::write::json(&said));
    assert!(!encoded.contains("aHVudGVyMg"), "{encoded}");
    let mut one = One::default();
    one.apply("ctl", &secret("a: aHVudGVyMg==, b: Yg=="));
    one.write(&secret("a: aHVudGVyMg==, b: b3RoZXI=, c: Yw=="));
    let merged = one.apply("ctl", &secret(""));
    assert_eq!(
        shows(&merged, "/data"),
        serde_json::json!({"b": "b3RoZXI=", "c": "Yw=="})
    );
}

fn fields(choices: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::subsequence(choices, 0..=choices.len()).prop_map(|lines| lines.concat())
}

fn manifest() -> impl Strategy<Value = String> {
    let spec = fields(&[
        "  replicas: 3\n",
        "  minReadySeconds: 4\n",
        "  paused: false\n",
        "  revisionHistoryLimit: 0\n",
        "  strategy: {type: Recreate}\n",
    ]);
    let pod = fields(&[
        "      hostNetwork: true\n",
        "      nodeSelector: {a: b}\n",
        "      volumes: [{name: v}, {name: w, emptyDir: {medium: Memory}}]\n",
        "      restartPolicy: Always\n",
    ]);
    let container = fields(&[
        "        args: [a, b]\n",
        "        env: [{name: A, value: a}, {name: B, value: b}]\n",
        "        ports: [{containerPort: 80, name: http}]\n",
        "        resources: {limits: {cpu: 1}}\n",
        "        livenessProbe: {exec: {command: [x]}, periodSeconds: 3}\n",
        "        securityContext: {runAsUser: 5}\n",
        "      - {name: side, image: side:1}\n",
    ]);
    (spec, pod, container).prop_map(|(spec, pod, container)| web(&spec, &pod, &container))
}

/// Labels and annotations of somebody else, and replicas: none of the manifests above has these values.
fn disturb(one: &mut One) {
    let live = one.live.as_mut().expect("it was applied");
    model::object::meta_mut(live)
        .labels
        .insert("team".to_owned(), "red".to_owned());
    if let Some(proto::v1::object::Object::Deployment(deployment)) = &mut live.object {
        let spec = deployment.spec.as_mut().expect("it has a spec");
        spec.replicas = Some(9);
        let pod = spec
            .template
            .as_mut()
            .and_then(|it| it.spec.as_mut())
            .expect("it has a pod");
        pod.containers[0].env.push(proto::v1::EnvVar {
            name: "MESH".to_owned(),
            value: "on".to_owned(),
            ..Default::default()
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// As if it were the first: nothing of an earlier manifest is left when nobody else wrote.
    #[test]
    fn manifests_of_one_manager_leave_only_the_last(manifests in prop::collection::vec(manifest(), 1..5)) {
        let mut one = One::default();
        let mut last = Object::default();
        for manifest in &manifests {
            last = one.apply("ctl", manifest);
        }
        let fresh = One::default().apply("ctl", &manifests[manifests.len() - 1]);
        prop_assert_eq!(model::write::yaml(&last), model::write::yaml(&fresh));
    }

    #[test]
    fn an_apply_twice_is_the_same_as_once(first in manifest(), second in manifest(), others in any::<bool>()) {
        let mut one = One::default();
        one.apply("ctl", &first);
        if others {
            disturb(&mut one);
        }
        let once = one.apply("ctl", &second);
        let twice = one.apply("ctl", &second);
        prop_assert_eq!(model::write::yaml(&once), model::write::yaml(&twice));
    }

    #[test]
    fn what_others_set_and_no_manifest_mentions_stays(first in manifest(), then in prop::collection::vec(manifest(), 1..4)) {
        let mut one = One::default();
        one.apply("ctl", &first);
        disturb(&mut one);
        for manifest in &then {
            let merged = one.apply("ctl", manifest);
            prop_assert_eq!(shows(&merged, "/metadata/labels/team"), "red");
            let env = shows(&merged, "/spec/template/spec/containers/0/env");
            prop_assert!(env.as_array().is_some_and(|env| env.iter().any(|it| it["name"] == "MESH")), "{}", env);
        }
        if then.iter().all(|manifest| !manifest.contains("replicas")) {
            prop_assert_eq!(shows(one.live.as_ref().unwrap(), "/spec/replicas"), 9);
        }
    }

    /// What a manifest says is what the object has, whoever wrote before.
    #[test]
    fn what_is_mentioned_is_set(first in manifest(), second in manifest()) {
        let mut one = One::default();
        one.apply("ci", &first);
        disturb(&mut one);
        one.apply("ctl", &second);
        let mut merged = one.live.clone().unwrap();
        // Once more as the only word there is: it must change nothing.
        let manifest = read::manifests("m.yaml", second.as_bytes()).unwrap().remove(0);
        let empty = manifest.empty.into_iter().collect();
        let mut again = merge::apply(&merged, &manifest.object, &empty, Known::default());
        default::object(&mut again);
        default::object(&mut merged);
        prop_assert_eq!(model::write::yaml(&again), model::write::yaml(&merged));
    }
}
