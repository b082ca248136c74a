//! Roles that every cluster has: Kubernetes' cluster-admin, admin, edit and view, over the resources that there are here.

use std::sync::LazyLock;

use model::default::RBAC_GROUP;
use model::{Kind, object};
use proto::v1::{ClusterRole, ClusterRoleBinding, Object, ObjectMeta, PolicyRule, RoleRef, Subject};

use super::ADMINS;

/// Says that an object came with the cluster, as in Kubernetes.
pub const LABEL: (&str, &str) = ("kubernetes.io/bootstrapping", "rbac-defaults");
/// `false`: the cluster leaves the object alone; else it adds the rules that are missing, as Kubernetes does.
pub const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// The group of resources that Kubernetes does not have: certificates, images, members, tokens.
pub const OWN_GROUP: &str = "bulkhead.io";

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const RBAC_VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// The roles, and the binding of the administrators.
pub fn objects() -> &'static [Object] {
    static OBJECTS: LazyLock<Vec<Object>> = LazyLock::new(make);
    &OBJECTS
}

fn make() -> Vec<Object> {
    let everything = rule(&["*"], &["*"], &["*"]);
    let mut paths = rule(&[], &[], &["*"]);
    paths.non_resource_ur_ls = vec!["*".to_owned()];
    let view = vec![
        rule(
            &[""],
            &[
                "configmaps",
                "events",
                "namespaces",
                "pods",
                "pods/log",
                "pods/status",
                "serviceaccounts",
            ],
            READ,
        ),
        rule(
            &["apps"],
            &[
                "deployments",
                "deployments/scale",
                "deployments/status",
                "replicasets",
                "replicasets/scale",
                "replicasets/status",
            ],
            READ,
        ),
    ];
    let mut edit = view.clone();
    edit.extend([
        rule(&[""], &["secrets"], READ),
        rule(
            &[""],
            &["configmaps", "pods", "pods/exec", "secrets", "serviceaccounts"],
            WRITE,
        ),
        rule(
            &["apps"],
            &[
                "deployments",
                "deployments/rollback",
                "deployments/scale",
                "replicasets",
                "replicasets/scale",
            ],
            WRITE,
        ),
        rule(&[""], &["serviceaccounts"], &["impersonate"]),
        rule(&[""], &["serviceaccounts/token"], &["create"]),
    ]);
    let mut admin = edit.clone();
    admin.push(rule(&[RBAC_GROUP], &["rolebindings", "roles"], RBAC_VERBS));
    let roles = [
        ("cluster-admin", vec![everything, paths]),
        ("admin", admin),
        ("edit", edit),
        ("view", view),
    ];
    let roles = roles.into_iter().map(|(name, rules)| {
        object::from(ClusterRole {
            metadata: Some(meta(name)),
            rules,
            ..Default::default()
        })
    });
    let binding = ClusterRoleBinding {
        metadata: Some(meta("cluster-admin")),
        role_ref: Some(RoleRef {
            api_group: RBAC_GROUP.to_owned(),
            kind: Kind::ClusterRole.as_str().to_owned(),
            name: "cluster-admin".to_owned(),
        }),
        subjects: vec![Subject {
            kind: "Group".to_owned(),
            api_group: RBAC_GROUP.to_owned(),
            name: ADMINS.to_owned(),
            namespace: String::new(),
        }],
        ..Default::default()
    };
    roles.chain([object::from(binding)]).collect()
}

fn meta(name: &str) -> ObjectMeta {
    let (label, value) = LABEL;
    ObjectMeta {
        name: name.to_owned(),
        labels: [(label.to_owned(), value.to_owned())].into(),
        annotations: [(AUTOUPDATE.to_owned(), "true".to_owned())].into(),
        ..Default::default()
    }
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> PolicyRule {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    PolicyRule {
        verbs: texts(verbs),
        api_groups: texts(groups),
        resources: texts(resources),
        ..Default::default()
    }
}
