//! Service accounts, roles and bindings (Kubernetes 1.34, pkg/apis/rbac/validation).

use proto::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::Errors;
use crate::default::{RBAC_GROUP, USER_KINDS};
use crate::name;

/// A service account's name stands in the name under which it acts.
const SERVICE_ACCOUNT: &str = "ServiceAccount";

pub(super) fn role(errors: &mut Errors, role: &Role) {
    for (index, rule) in role.rules.iter().enumerate() {
        let path = format!("rules[{index}]");
        if !rule.non_resource_ur_ls.is_empty() {
            errors.add(
                format!("{path}.nonResourceURLs"),
                "a Role is of one namespace and paths are of none: only a ClusterRole can name them",
            );
        }
        self::rule(errors, &path, rule);
    }
}

pub(super) fn cluster_role(errors: &mut Errors, role: &ClusterRole) {
    for (index, rule) in role.rules.iter().enumerate() {
        self::rule(errors, &format!("rules[{index}]"), rule);
    }
}

fn rule(errors: &mut Errors, path: &str, rule: &PolicyRule) {
    if rule.verbs.is_empty() {
        errors.add(format!("{path}.verbs"), "at least one verb is required");
    }
    let of_resources =
        !rule.api_groups.is_empty() || !rule.resources.is_empty() || !rule.resource_names.is_empty();
    if !rule.non_resource_ur_ls.is_empty() {
        if of_resources {
            let message = "a rule is about resources or about nonResourceURLs, not both: make two of it";
            errors.add(format!("{path}.nonResourceURLs"), message);
        }
        return;
    }
    if rule.api_groups.is_empty() {
        let message = "at least one group is required: \"\" for v1, apps, ..., or *";
        errors.add(format!("{path}.apiGroups"), message);
    }
    if rule.resources.is_empty() {
        let message = "at least one resource is required: pods, pods/log, ..., or *";
        errors.add(format!("{path}.resources"), message);
    }
}

pub(super) fn role_binding(errors: &mut Errors, binding: &RoleBinding) {
    role_ref(errors, binding.role_ref.as_ref(), &["Role", "ClusterRole"]);
    subjects(errors, &binding.subjects);
}

pub(super) fn cluster_role_binding(errors: &mut Errors, binding: &ClusterRoleBinding) {
    role_ref(errors, binding.role_ref.as_ref(), &["ClusterRole"]);
    subjects(errors, &binding.subjects);
}

fn role_ref(errors: &mut Errors, role: Option<&RoleRef>, kinds: &[&str]) {
    let Some(role) = role else {
        return errors.add("roleRef", "is required");
    };
    errors.one_of("roleRef.apiGroup".to_owned(), &role.api_group, &[RBAC_GROUP]);
    errors.one_of("roleRef.kind".to_owned(), &role.kind, kinds);
    if errors.required("roleRef.name".to_owned(), &role.name) {
        errors.check("roleRef.name", name::path_segment(&role.name));
    }
}

fn subjects(errors: &mut Errors, subjects: &[Subject]) {
    for (index, subject) in subjects.iter().enumerate() {
        let path = format!("subjects[{index}]");
        errors.required(format!("{path}.name"), &subject.name);
        if subject.kind == SERVICE_ACCOUNT {
            if !subject.name.is_empty() {
                errors.check(format!("{path}.name"), name::dns1123_subdomain(&subject.name));
            }
            if !subject.api_group.is_empty() {
                let message = format!("must be empty for a ServiceAccount, is `{}`", subject.api_group);
                errors.add(format!("{path}.apiGroup"), message);
            }
            if errors.required(format!("{path}.namespace"), &subject.namespace) {
                let namespace = name::dns1123_label(&subject.namespace);
                errors.check(format!("{path}.namespace"), namespace);
            }
        } else if USER_KINDS.contains(&subject.kind.as_str()) {
            errors.one_of(format!("{path}.apiGroup"), &subject.api_group, &[RBAC_GROUP]);
            // Kubernetes ignores it, and whoever wrote it believes that it binds less.
            if !subject.namespace.is_empty() {
                let message = format!("a {} is in no namespace: remove it", subject.kind);
                errors.add(format!("{path}.namespace"), message);
            }
        } else {
            let [user, group] = USER_KINDS;
            errors.one_of(
                format!("{path}.kind"),
                &subject.kind,
                &[user, group, SERVICE_ACCOUNT],
            );
        }
    }
}

/// What a binding gives cannot change: who may change the subjects need not be who may give the role.
pub(super) fn update(errors: &mut Errors, before: Option<&RoleRef>, after: Option<&RoleRef>) {
    if before != after {
        errors.add("roleRef", "cannot change: delete the binding and create it again");
    }
}
