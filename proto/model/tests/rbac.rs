//! Service accounts, roles and bindings in manifests: what is taken, what is refused, what may change.

mod refusals;

use model::read::manifests;
use model::{default, object, validate};
use proto::v1::{Object, Pod, RoleBinding};
use refusals::check;

/// As the API has it.
fn read(text: &str) -> Object {
    let mut object = manifests("f.yaml", text.as_bytes())
        .expect("a manifest")
        .remove(0)
        .object;
    default::object(&mut object);
    assert_eq!(validate::object(&object), [], "{text}");
    object
}

fn thing(kind: &str, rest: &str) -> String {
    format!("{{apiVersion: rbac.authorization.k8s.io/v1, kind: {kind}, metadata: {{name: x}}{rest}}}\n")
}

fn binding(kind: &str, role: &str, subject: &str) -> String {
    thing(
        kind,
        &format!(
            ", roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {role}, name: r}}, subjects: [{subject}]"
        ),
    )
}

#[test]
fn what_kubernetes_takes_is_taken() {
    for text in [
        thing("Role", ""),
        thing("Role", ", rules: [{apiGroups: [''], resources: [pods, pods/log], verbs: [get], resourceNames: [a]}]"),
        thing("ClusterRole", ", rules: [{nonResourceURLs: [/healthz, /x/*], verbs: [get]}]"),
        "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: 'system:a b'}}".to_owned(),
        "{apiVersion: v1, kind: ServiceAccount, metadata: {name: robot}, automountServiceAccountToken: false}".to_owned(),
        "{apiVersion: v1, kind: ServiceAccount, metadata: {name: robot}, automountServiceAccountToken: true}".to_owned(),
        binding("RoleBinding", "Role", "{kind: User, name: ann@example.com}"),
        binding("ClusterRoleBinding", "ClusterRole", "{kind: ServiceAccount, name: s, namespace: shop}"),
    ] {
        read(&text);
    }
}

#[test]
fn groups_of_subjects_and_roles_are_filled_in() {
    let text = thing(
        "RoleBinding",
        ", roleRef: {kind: Role, name: r}, subjects: [{kind: Group, name: g}, {kind: ServiceAccount, name: s, namespace: shop}]",
    );
    let binding = object::into::<RoleBinding>(read(&text)).unwrap();
    assert_eq!(binding.role_ref.unwrap().api_group, default::RBAC_GROUP);
    let groups: Vec<&str> = binding
        .subjects
        .iter()
        .map(|one| one.api_group.as_str())
        .collect();
    assert_eq!(groups, [default::RBAC_GROUP, ""]);
}

#[test]
fn what_means_nothing_is_refused() {
    let rules = |rule: &str| format!(", rules: [{rule}]");
    for (kind, rule, path, message) in [
        (
            "Role",
            "{apiGroups: [''], resources: [pods]}",
            "rules[0].verbs",
            "at least one",
        ),
        (
            "Role",
            "{resources: [pods], verbs: [get]}",
            "rules[0].apiGroups",
            "at least one",
        ),
        (
            "ClusterRole",
            "{apiGroups: [''], verbs: [get]}",
            "rules[0].resources",
            "at least one",
        ),
        (
            "Role",
            "{nonResourceURLs: [/x], verbs: [get]}",
            "rules[0].nonResourceURLs",
            "a Role is of one namespace",
        ),
        (
            "ClusterRole",
            "{nonResourceURLs: [/x], apiGroups: [''], resources: [pods], verbs: [get]}",
            "rules[0].nonResourceURLs",
            "a rule is about resources or",
        ),
    ] {
        check(&thing(kind, &rules(rule)), path, message);
    }
    let of_user = |kind: &str, subject: &str| binding(kind, "ClusterRole", subject);
    for (text, path, message) in [
        (
            of_user("RoleBinding", "{kind: user, name: a}"),
            "subjects[0].kind",
            "must be User, Group or ServiceAccount",
        ),
        (
            of_user("RoleBinding", "{kind: User}"),
            "subjects[0].name",
            "is required",
        ),
        (
            of_user("RoleBinding", "{kind: User, name: a, namespace: b}"),
            "subjects[0].namespace",
            "a User is in no",
        ),
        (
            of_user("RoleBinding", "{kind: ServiceAccount, name: a}"),
            "subjects[0].namespace",
            "is required",
        ),
        (
            of_user(
                "RoleBinding",
                "{kind: ServiceAccount, name: a, namespace: b, apiGroup: x}",
            ),
            "subjects[0].apiGroup",
            "must be empty",
        ),
        (
            of_user("RoleBinding", "{kind: Group, name: a, apiGroup: x}"),
            "subjects[0].apiGroup",
            "must be rbac.",
        ),
        (
            binding("ClusterRoleBinding", "Role", ""),
            "roleRef.kind",
            "must be ClusterRole",
        ),
        (thing("RoleBinding", ""), "roleRef", "is required"),
        (
            thing("ClusterRole", ", aggregationRule: {}"),
            "aggregationRule",
            "not supported yet",
        ),
        (
            "{apiVersion: v1, kind: ServiceAccount, metadata: {name: a}, secrets: [{name: b}]}".to_owned(),
            "secrets",
            "not supported yet",
        ),
    ] {
        check(&text, path, message);
    }
}

#[test]
fn a_binding_keeps_its_role() {
    let before = read(&binding("RoleBinding", "Role", "{kind: User, name: a}"));
    let others = read(&binding("RoleBinding", "Role", "{kind: User, name: b}"));
    assert_eq!(validate::update(&before, &others), []);
    let another = read(&binding("RoleBinding", "ClusterRole", "{kind: User, name: a}"));
    let errors = validate::update(&before, &another);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0].path, "roleRef");
}

#[test]
fn a_pod_without_a_service_account_has_the_default_one() {
    let pod = |spec: &str| {
        let text = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p}}, spec: {{containers: [{{name: c, image: i}}]{spec}}}}}"
        );
        object::into::<Pod>(read(&text))
            .unwrap()
            .spec
            .unwrap()
            .service_account_name
    };
    assert_eq!(pod(""), "default");
    assert_eq!(
        pod(", serviceAccountName: robot, automountServiceAccountToken: true"),
        "robot"
    );
    check(
        &refusals::pod("", ", serviceAccountName: Robot"),
        "spec.serviceAccountName",
        "`Robot` is not a DNS-1123 name",
    );
}
