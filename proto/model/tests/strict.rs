//! What is refused, where and with which words: one test a claim.

use model::read::manifests;

/// Every line of the refusals.
fn refused(text: &str) -> Vec<String> {
    refused_bytes(text.as_bytes())
}

fn refused_bytes(bytes: &[u8]) -> Vec<String> {
    match manifests("f.yaml", bytes) {
        Ok(read) => panic!("nothing refused, {} objects read", read.len()),
        Err(refusals) => refusals.to_string().lines().map(str::to_owned).collect(),
    }
}

fn accepted(text: &str) -> Vec<model::read::Manifest> {
    manifests("f.yaml", text.as_bytes()).unwrap_or_else(|refusals| panic!("{refusals}\nin\n{text}"))
}

/// A pod whose container has these further lines.
fn pod(lines: &str) -> String {
    let mut text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: web\n    image: nginx:1\n".to_owned();
    for line in lines.lines() {
        text.push_str("    ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[track_caller]
fn assert_refused(text: &str, lines: &[&str]) {
    assert_eq!(refused(text), lines, "\n{text}");
}

#[test]
fn an_unknown_field_gets_place_path_and_suggestion() {
    assert_refused(
        &pod("imge: nginx"),
        &["f.yaml:9:5: spec.containers[0].imge: unknown field; did you mean `image`?"],
    );
}

#[test]
fn a_field_of_kubernetes_is_not_supported_yet() {
    assert_refused(
        &pod("lifecycle: {}"),
        &["f.yaml:9:5: spec.containers[0].lifecycle: not supported yet"],
    );
    accepted(&pod("lifecycle: null\nvolumeDevices: []"));
}

#[test]
fn a_duplicate_key_is_refused_at_its_second_place() {
    assert_refused(&pod("image: nginx:2"), &["f.yaml:9:5: duplicate key `image`"]);
}

#[test]
fn wrong_types_say_what_to_write() {
    assert_refused(
        &pod(
            "command: sleep 10\nargs: [1, true, \"2\"]\nworkingDir: {a: b}\nports: {containerPort: 80}\nstdin: true",
        ),
        &[
            "f.yaml:9:14: spec.containers[0].command: must be a list, is a single value; write it as `- ` and the value, or in [ ]",
            "f.yaml:10:12: spec.containers[0].args[0]: must be a text, is a number: write \"1\" with quotes",
            "f.yaml:10:15: spec.containers[0].args[1]: must be a text, is a boolean: write \"true\" with quotes",
            "f.yaml:11:17: spec.containers[0].workingDir: must be a text, is a mapping",
            "f.yaml:12:12: spec.containers[0].ports: must be a list, is a mapping; put `- ` in front",
            "f.yaml:13:5: spec.containers[0].stdin: not supported yet",
        ],
    );
    assert_refused(
        &pod("ports:\n- containerPort: \"80\"\n- containerPort: 1.5\n- containerPort: 99999999999"),
        &[
            "f.yaml:10:22: spec.containers[0].ports[0].containerPort: must be a number, is a text: write 80 without quotes",
            "f.yaml:11:22: spec.containers[0].ports[1].containerPort: must be a whole number, is `1.5`",
            "f.yaml:12:22: spec.containers[0].ports[2].containerPort: 99999999999 is out of range: from -2147483648 to 2147483647",
        ],
    );
}

#[test]
fn old_booleans_are_refused() {
    assert_refused(
        &pod("securityContext:\n  privileged: yes\n  runAsNonRoot: \"true\"\nenv:\n- name: A\n  value: on"),
        &[
            "f.yaml:10:19: spec.containers[0].securityContext.privileged: must be true or false: write true instead of yes",
            "f.yaml:11:21: spec.containers[0].securityContext.runAsNonRoot: must be true or false, is a text: write true without quotes",
            "f.yaml:14:14: spec.containers[0].env[0].value: must be a text, is a boolean: write \"on\" with quotes",
        ],
    );
}

#[test]
fn an_unquoted_number_is_no_label() {
    assert_refused(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labels:\n    ver: 1.10\n",
        &["f.yaml:6:10: metadata.labels[ver]: must be a text, is a number: write \"1.10\" with quotes"],
    );
}

#[test]
fn a_bad_quantity_says_what_was_meant() {
    assert_refused(
        &pod("resources:\n  limits:\n    memory: 128MB\n    cpu: half"),
        &[
            "f.yaml:11:17: spec.containers[0].resources.limits[memory]: `128MB` is not a quantity such as 500m, 0.5, 2 or 1Gi; did you mean Mi or M?",
            "f.yaml:12:14: spec.containers[0].resources.limits[cpu]: `half` is not a quantity such as 500m, 0.5, 2 or 1Gi",
        ],
    );
}

#[test]
fn a_tab_is_refused_with_its_place() {
    assert_refused(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n\tname: a\n",
        &["f.yaml:4:2: a tab cannot indent YAML: use spaces"],
    );
}

#[test]
fn a_file_of_100_mib_is_refused_by_its_size() {
    let refused = refused_bytes(&vec![b' '; 100 << 20]);
    assert_eq!(
        refused,
        ["f.yaml:1:1: the file has 104857600 bytes; a manifest may have 8 MiB: split it"]
    );
}

#[test]
fn ten_thousand_levels_are_refused_in_any_style() {
    let flow = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(
        refused(&flow)[0].contains("nested deeper than 64 levels"),
        "{:?}",
        refused(&flow)
    );
    let json = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    assert!(
        refused(&json)[0].contains("nested deeper than 64 levels"),
        "{:?}",
        refused(&json)
    );
    let block = "- ".repeat(10_000);
    assert!(
        refused(&block)[0].contains("nested deeper than 64 levels"),
        "{:?}",
        refused(&block)
    );
    let mut lines = String::new();
    for level in 0..2_000 {
        lines.push_str(&format!("{}a:\n", " ".repeat(level)));
    }
    assert!(
        refused(&lines)[0].contains("nested deeper than 64 levels"),
        "{:?}",
        refused(&lines)
    );
    let mut aliases = "a: &a0 [x]\n".to_owned();
    for level in 1..10_000 {
        aliases.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    assert!(
        refused(&aliases)[0].contains("nested deeper than 64 levels"),
        "{:?}",
        refused(&aliases)
    );
}

#[test]
fn an_alias_bomb_ends_at_the_count() {
    // The list of a list of ... of items, ten at each level: 10^9 items of a few bytes.
    let mut text = "apiVersion: v1\nkind: List\nx0: &a0 {kind: List, apiVersion: v1, items: []}\n".to_owned();
    for level in 1..10 {
        let items = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!(
            "x{level}: &a{level} {{kind: List, apiVersion: v1, items: [{items}]}}\n"
        ));
    }
    text.push_str("items: [*a9]\n");
    let refused = refused(&text);
    assert!(
        refused
            .iter()
            .any(|line| line.contains("more than 1000000 values")),
        "{refused:?}"
    );
}

#[test]
fn an_alias_is_read_as_what_it_repeats() {
    let read = accepted(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: &l {app: web}, annotations: *l}\ndata: *l\n",
    );
    assert_eq!(model::object::meta(&read[0].object).annotations["app"], "web");
    assert_refused(
        "a: &a [*a]\n",
        &["f.yaml:1:8: the alias stands inside of what it repeats"],
    );
    assert_refused(
        "a: *b\n",
        &["f.yaml:1:4: an alias to an anchor that is not there"],
    );
}

#[test]
fn invalid_utf8_has_a_place() {
    assert_eq!(
        refused_bytes(b"apiVersion: v1\nkind: \xff"),
        ["f.yaml:2:7: invalid UTF-8: byte 0xff; save the file as UTF-8"]
    );
    assert_eq!(
        refused_bytes(b"\xff\xfea\0"),
        ["f.yaml:1:1: the file is UTF-16; save it as UTF-8"]
    );
    assert_eq!(
        refused_bytes(b"kind: Pod\0\nwhat: follows"),
        ["f.yaml:1:10: control character 0x00 is not allowed; is this a text file?"]
    );
}

#[test]
fn a_name_that_dns_cannot_have_is_refused() {
    assert_refused(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: My_Team\n",
        &[
            "f.yaml:4:9: metadata.name: `My_Team` is not a DNS-1123 label: lower case letters, digits and `-`, a letter or digit at both ends; for example `my-team`",
        ],
    );
}

#[test]
fn kinds_are_told_apart() {
    assert_refused(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n",
        &["f.yaml:2:7: kind: Service is not supported yet"],
    );
    assert_refused(
        "apiVersion: v1\nkind: Pood\n",
        &["f.yaml:2:7: kind: unknown kind `Pood`; did you mean `Pod`?"],
    );
    assert_refused(
        "apiVersion: extensions/v1beta1\nkind: Deployment\n",
        &["f.yaml:1:13: apiVersion: Deployment has apiVersion apps/v1, not `extensions/v1beta1`"],
    );
    assert_refused("kind: Pod\n", &["f.yaml:1:1: apiVersion: is missing"]);
    assert_refused(
        "hello\n",
        &["f.yaml:1:1: an object is a mapping with apiVersion, kind and metadata; this is a single value"],
    );
}

#[test]
fn tags_and_merges_are_refused() {
    let refused = refused(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  <<: {a: b}\n  c: !!str 5\n  on: x\n",
    );
    assert_eq!(
        refused,
        [
            "f.yaml:5:3: merge keys (`<<`) are not supported: write the fields out",
            "f.yaml:6:12: tags are not supported: remove `!!str`; quotes make a text",
            "f.yaml:7:3: the key `on` must be quoted: YAML takes it for a boolean",
        ]
    );
}

#[test]
fn every_error_of_every_document_is_told_at_once() {
    let text = format!(
        "{}---\napiVersion: v1\nkind: [\n---\n{}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ok}}\n",
        pod("imge: a"),
        pod("imagePullPolicy: Allways"),
    );
    let refused = refused(&text);
    assert_eq!(refused.len(), 4, "{refused:#?}");
    assert!(refused[0].starts_with("f.yaml:9:5: "), "{refused:#?}");
    assert!(refused[1].contains("not valid YAML"), "{refused:#?}");
    assert_eq!(
        refused[3],
        "f.yaml:22:22: spec.containers[0].imagePullPolicy: must be Always, IfNotPresent or Never, is `Allways`; did you mean `Always`?"
    );
}

#[test]
fn more_than_a_hundred_refusals_are_counted() {
    let mut lines = String::new();
    for number in 0..150 {
        lines.push_str(&format!("unknown{number}: 1\n"));
    }
    let refused = refused(&pod(&lines));
    assert_eq!(refused.len(), 101);
    assert_eq!(refused[100], "and 50 more");
}

#[test]
fn an_unrendered_template_is_recognised() {
    let refused = refused("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {{ .Values.name }}\n");
    assert!(
        refused[0].contains("template that was not rendered"),
        "{refused:?}"
    );
}

#[test]
fn an_object_written_twice_is_refused() {
    let one = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    assert_refused(
        &format!("{one}---\n{one}"),
        &["f.yaml:7:18: metadata.name: namespace/a is written twice; the first is at f.yaml:1"],
    );
}

#[test]
fn octal_modes_are_read_as_kubernetes_reads_them() {
    for mode in ["0644", "0o644", "420", "420.0"] {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  containers: [{{name: a, image: b}}]\n  volumes: [{{name: v, configMap: {{name: c, defaultMode: {mode}}}}}]\n"
        );
        let read = accepted(&text);
        let json = model::write::json(&read[0].object);
        assert_eq!(
            json["spec"]["volumes"][0]["configMap"]["defaultMode"], 420,
            "{mode}"
        );
    }
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers: [{name: a, image: b}]\n  volumes: [{name: v, configMap: {name: c, defaultMode: \"0644\"}}]\n";
    assert_refused(
        text,
        &[
            "f.yaml:6:57: spec.volumes[0].configMap.defaultMode: must be a number, is a text: write 420 without quotes",
        ],
    );
}

#[test]
fn what_kubernetes_prints_is_read() {
    let read = accepted(
        "\u{feff}apiVersion: v1\r\nkind: List\r\nmetadata: {resourceVersion: \"\"}\r\nitems:\r\n- apiVersion: v1\r\n  kind: ConfigMap\r\n  metadata:\r\n    name: a\r\n    creationTimestamp: null\r\n  data:\r\n    empty:\r\n  binaryData: {x: aGk=}\r\n- apiVersion: apps/v1\r\n  kind: Deployment\r\n  metadata: {name: d, creationTimestamp: \"2026-01-31T10:00:00Z\"}\r\n  spec:\r\n    selector: {matchLabels: {a: b}}\r\n    template: {metadata: {creationTimestamp: null, labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}\r\n  status: {}\r\n",
    );
    assert_eq!(read.len(), 2);
    assert_eq!((read[0].line, read[1].line), (5, 13));
}

#[test]
fn empty_documents_and_comments_are_nothing() {
    assert!(accepted("").is_empty());
    assert!(accepted("# nothing\n---\n---\n# here\n...\n").is_empty());
    assert_eq!(
        accepted("---\n# a\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n").len(),
        1
    );
}

#[test]
fn json_is_read_also_with_tabs() {
    let text = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"ConfigMap\",\n\t\"metadata\": {\"name\": \"a\"},\n\t\"data\": {\"k\": \"a\\/b \\ud83d\\ude00\"}\n}\n";
    let read = accepted(text);
    assert_eq!(model::write::json(&read[0].object)["data"]["k"], "a/b \u{1f600}");
}

#[test]
fn a_field_in_the_wrong_place_is_told_the_right_one() {
    assert_refused(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec:\n  containers: []\n  selector: {matchLabels: {a: b}}\n",
        &["f.yaml:5:3: spec.containers: unknown field; did you mean `spec.template.spec.containers`?"],
    );
}

#[test]
fn a_namespace_that_names_a_namespace_is_in_none() {
    let read = accepted("apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}\n");
    assert_eq!(model::object::meta(&read[0].object).namespace, "");
}

#[test]
fn a_line_of_a_template_is_recognised_wherever_it_stands() {
    for text in [
        "{{- if .Values.enabled }}\napiVersion: v1\n{{- end }}\n",
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  labels:\n    {{- include \"labels\" . | nindent 4 }}\n",
    ] {
        let refused = refused(text);
        assert!(
            refused[0].contains("template that was not rendered"),
            "{refused:?}"
        );
    }
}

#[test]
fn items_of_a_list_of_one_kind_need_not_name_it() {
    let read = accepted(
        "apiVersion: v1\nkind: ConfigMapList\nitems:\n- metadata: {name: a}\n- apiVersion: v1\n  kind: ConfigMap\n  metadata: {name: b}\n",
    );
    assert_eq!(read.len(), 2);
    assert_refused(
        "apiVersion: v1\nkind: List\nitems:\n- metadata: {name: a}\n",
        &[
            "f.yaml:4:3: kind: is missing",
            "f.yaml:4:3: apiVersion: is missing",
        ],
    );
}

#[test]
fn json_objects_one_after_another_are_read() {
    let one = |name: &str| {
        format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {{\"name\": \"{name}\"}}}}\n"
        )
    };
    assert_eq!(accepted(&format!("{}{}", one("a"), one("b"))).len(), 2);
    assert_refused(
        &format!("{}{}", one("a"), one("b").replace("name", "nmae")),
        &["f.yaml:2:56: metadata.nmae: unknown field; did you mean `name`?"],
    );
}

#[test]
fn keys_and_texts_that_kubernetes_reads_otherwise_are_refused() {
    let keys = [
        ("y", "a boolean"),
        ("N", "a boolean"),
        ("1.0", "a number"),
        ("010", "a number"),
        ("0x1f", "a number"),
        ("1e3", "a number"),
        ("Null", "nothing"),
    ];
    for (key, what) in keys {
        assert_refused(
            &format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata:\n  {key}: v\n"),
            &[&format!(
                "f.yaml:5:3: the key `{key}` must be quoted: YAML takes it for {what}"
            )],
        );
    }
    let read = accepted(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  8080: v\n  \"1.0\": w\n  1.2.3: x\n",
    );
    assert_eq!(
        model::write::json(&read[0].object)["data"],
        serde_json::json!({"8080": "v", "1.0": "w", "1.2.3": "x"})
    );
    assert_refused(
        &pod("env:\n- name: A\n  value: y\n- name: B\n  value: 123e4567"),
        &[
            "f.yaml:11:14: spec.containers[0].env[0].value: must be a text, is a boolean: write \"y\" with quotes",
        ],
    );
    assert_refused(
        &pod("resources: {limits: {cpu: 010}}"),
        &[
            "f.yaml:9:31: spec.containers[0].resources.limits[cpu]: YAML takes `010` for the octal number 8: write 8, or without the leading 0",
        ],
    );
}

#[test]
fn what_is_written_is_quoted_such_that_it_is_read_again() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {\"y\": \"n\", \"1.0\": \"010\", \"null\": \"~\", \"on\": \"1_000.5\", \"0x1f\": \"\", a: \"<<\", b: \"=\", c: \"!x\", d: \"12:30\", e: \"a\\tb\\r\\n c \\u2028 \\u0085 \"}\n";
    let read = accepted(text);
    let again = accepted(&model::write::yaml(&read[0].object));
    assert_eq!(again[0].object, read[0].object);
}

#[test]
fn an_empty_list_is_nothing_only_where_a_list_may_stand() {
    let volume = |source: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{{name: a, image: b}}], tolerations: [], volumes: [{{name: v, {source}}}]}}\n"
        )
    };
    accepted(&volume("projected: null"));
    assert_refused(
        &volume("projected: []"),
        &["f.yaml:4:80: spec.volumes[0].projected: not supported yet"],
    );
}

#[test]
fn what_is_refused_hides_no_neighbour_and_moves_none() {
    assert_refused(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - 5\n  - name: b\n    image: [c]\n    imagePullPolicy: Sometimes\n  - name: C\n    image: d\n",
        &[
            "f.yaml:6:5: spec.containers[0]: must be a mapping of fields, is a single value",
            "f.yaml:8:12: spec.containers[1].image: must be a text, is a list",
            "f.yaml:9:22: spec.containers[1].imagePullPolicy: must be Always, IfNotPresent or Never, is `Sometimes`",
            "f.yaml:10:11: spec.containers[2].name: `C` is not a DNS-1123 label: lower case letters, digits and `-`, a letter or digit at both ends; for example `c`",
        ],
    );
}

#[test]
fn what_kubernetes_takes_is_taken() {
    accepted(&pod(
        "ports: [{containerPort: 80, name: http}, {containerPort: 80, name: metrics}]",
    ));
    accepted(&pod("resources: {requests: {memory: 100m}}"));
    let read = accepted(&pod(
        "securityContext: {capabilities: {drop: [all], add: [net_admin]}}",
    ));
    let mut object = read[0].object.clone();
    model::default::object(&mut object);
    let sets = &model::write::json(&object)["spec"]["containers"][0]["securityContext"]["capabilities"];
    assert_eq!(*sets, serde_json::json!({"add": ["NET_ADMIN"], "drop": ["ALL"]}));
}

#[test]
fn resources_of_nobody_are_unknown() {
    let refused = refused(&pod(
        "resources: {limits: {ephemeral-storage: 1Gi, example.com/gpu: 1, gpus: 1}}",
    ));
    let starts = [
        "f.yaml:9:26: spec.containers[0].resources.limits[ephemeral-storage]: not supported yet: only cpu, memory, ",
        "f.yaml:9:50: spec.containers[0].resources.limits[example.com/gpu]: not supported yet: only cpu, memory, ",
        "f.yaml:9:70: spec.containers[0].resources.limits[gpus]: unknown resource",
    ];
    assert_eq!(refused.len(), starts.len(), "{refused:#?}");
    for (line, start) in refused.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn a_file_of_broken_documents_is_told_in_time() {
    // Each of a million would be looked for in all of the text.
    let refused = refused(&"---\n]\n".repeat(100_000));
    assert_eq!(refused.len(), 101);
    assert_eq!(refused[0], "f.yaml:2:1: not valid YAML: misplaced bracket");
    let values = "{}".repeat(600_000);
    assert!(
        refused_bytes(values.as_bytes())
            .last()
            .is_some_and(|line| line.ends_with("more")),
    );
    let kind = "x".repeat(1 << 20);
    let long = refused_bytes(format!("apiVersion: v1\nkind: {kind}\n").as_bytes());
    assert!(long[0].len() < 200);
}
