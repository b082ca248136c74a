//! Who may do what: Kubernetes' role-based access control over the roles and bindings of the state.
//!
//! Rules only allow; what no rule allows is refused. Nothing is cached: a decision walks the bindings of the cluster and of
//! one namespace, so a change of a role holds from the next call on.

mod cover;
pub mod defaults;

use model::{Kind, default, object};
use proto::v1::object::Object as Any;
use proto::v1::{Object, PolicyRule, RoleRef, Subject};

use crate::key::ObjectKey;
use crate::record::Record;
use crate::store::State;

pub use cover::Uncovered;

/// The group that everybody with a certificate or a token is in.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of administrators. It may do everything, whatever roles say: nobody can lock all of them out.
pub const ADMINS: &str = "bulkhead:admins";
/// What a service account acts as: `system:serviceaccount:NAMESPACE:NAME`.
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// The group of all service accounts; with `:NAMESPACE` behind it, of those of a namespace.
const ACCOUNTS: &str = "system:serviceaccounts";
/// Stands for every verb, group or resource.
const ALL: &str = "*";

/// Somebody, as roles know them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// Name of the user.
    pub name: String,
    /// Groups, with [`AUTHENTICATED`].
    pub groups: Vec<String>,
}

impl Who {
    /// Somebody whose certificate or token was verified.
    pub fn authenticated(name: impl Into<String>, groups: &[String]) -> Who {
        let mut groups = groups.to_vec();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Who {
            name: name.into(),
            groups,
        }
    }

    /// Whether this is somebody of the administrators' group.
    pub fn is_admin(&self) -> bool {
        self.groups.iter().any(|group| group == ADMINS)
    }

    fn is(&self, subject: &Subject) -> bool {
        match subject.kind.as_str() {
            "User" => subject.name == self.name,
            "Group" => self.groups.contains(&subject.name),
            "ServiceAccount" => account_of(&self.name)
                .is_some_and(|(namespace, name)| namespace == subject.namespace && name == subject.name),
            _ => false,
        }
    }
}

/// The user that a service account acts as.
pub fn account_user(namespace: &str, name: &str) -> String {
    format!("{ACCOUNT_PREFIX}{namespace}:{name}")
}

/// The groups of a namespace's service accounts, as Kubernetes has them.
pub fn account_groups(namespace: &str) -> Vec<String> {
    vec![ACCOUNTS.to_owned(), format!("{ACCOUNTS}:{namespace}")]
}

/// Namespace and name of the service account that acts as this user.
pub fn account_of(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix(ACCOUNT_PREFIX)?.split_once(':')
}

/// One thing that somebody wants to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// get, list, create, ...
    pub verb: String,
    /// Empty: the group of v1.
    pub group: String,
    /// pods, pods/log, ...
    pub resource: String,
    /// Empty: all of them, or a resource that is in none.
    pub namespace: String,
    /// Empty: all of them, or one that has no name yet.
    pub name: String,
}

impl Access {
    /// To an object of this kind, or to all of the namespace where the name is empty.
    pub fn to(verb: &str, kind: Kind, namespace: &str, name: &str) -> Access {
        Access {
            verb: verb.to_owned(),
            group: kind.group().to_owned(),
            resource: kind.plural().to_owned(),
            namespace: if kind.namespaced() { namespace } else { "" }.to_owned(),
            name: name.to_owned(),
        }
    }

    /// What only a rule of `*` in each place gives.
    pub fn everything() -> Access {
        Access {
            verb: ALL.to_owned(),
            group: ALL.to_owned(),
            resource: ALL.to_owned(),
            ..Default::default()
        }
    }

    /// The same to a part of it: `log` of pods.
    pub fn part(mut self, part: &str) -> Access {
        self.resource = format!("{}/{part}", self.resource);
        self
    }
}

/// As a refusal says it: `delete deployments.apps web in namespace shop`.
impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Self::everything() {
            return f.write_str("do everything in the cluster, as an administrator may");
        }
        write!(f, "{} {}", self.verb, with_group(&self.resource, &self.group))?;
        if !self.name.is_empty() {
            write!(f, " {}", self.name)?;
        }
        match self.namespace.as_str() {
            "" => Ok(()),
            namespace => write!(f, " in namespace {namespace}"),
        }
    }
}

/// As kubectl shows it: `deployments.apps/scale`.
fn with_group(resource: &str, group: &str) -> String {
    match (group, resource.split_once('/')) {
        ("", _) => resource.to_owned(),
        (group, Some((resource, part))) => format!("{resource}.{group}/{part}"),
        (group, None) => format!("{resource}.{group}"),
    }
}

/// Why somebody may do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// They are an administrator.
    Admin,
    /// A binding gives a role that allows it; both as KIND NAME.
    Bound {
        /// `RoleBinding shop/readers`.
        binding: String,
        /// `ClusterRole view`.
        role: String,
    },
}

impl std::fmt::Display for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Grant::Admin => write!(f, "the group {ADMINS} may do everything"),
            Grant::Bound { binding, role } => write!(f, "{binding} gives {role}"),
        }
    }
}

/// Whether somebody may do something, and by what. None: no rule allows it.
pub fn allows(state: &State, who: &Who, access: &Access) -> Option<Grant> {
    if who.is_admin() {
        return Some(Grant::Admin);
    }
    let bound = bindings(state, who, &access.namespace);
    bound.into_iter().find_map(|bound| {
        let allowed = bound.rules.iter().any(|rule| matches(rule, access));
        allowed.then(|| Grant::Bound {
            binding: bound.binding.to_string(),
            role: format!("{} {}", bound.role.kind, bound.role.name),
        })
    })
}

/// The rules of the role that a binding of this namespace (empty: of the cluster) names; none: there is no such role.
pub fn rules_of<'a>(state: &'a State, namespace: &str, role: &RoleRef) -> Option<&'a [PolicyRule]> {
    let kind = match role.kind.as_str() {
        "Role" if !namespace.is_empty() => Kind::Role,
        "ClusterRole" => Kind::ClusterRole,
        _ => return None,
    };
    match state.records.get(&ObjectKey::new(kind, namespace, &role.name))? {
        Record::Whole(object) => rules(object),
        Record::Pod(_) => None,
    }
}

/// The rules of a Role or ClusterRole.
pub fn rules(role: &Object) -> Option<&[PolicyRule]> {
    match &role.object {
        Some(Any::Role(role)) => Some(&role.rules),
        Some(Any::ClusterRole(role)) => Some(&role.rules),
        _ => None,
    }
}

/// Role and subjects of a RoleBinding or ClusterRoleBinding.
pub fn binding(binding: &Object) -> Option<(&RoleRef, &[Subject])> {
    match &binding.object {
        Some(Any::RoleBinding(it)) => Some((it.role_ref.as_ref()?, &it.subjects)),
        Some(Any::ClusterRoleBinding(it)) => Some((it.role_ref.as_ref()?, &it.subjects)),
        _ => None,
    }
}

/// Whether somebody holds all that these rules would give in a namespace (empty: everywhere), so that they may give it to
/// others. Kubernetes' check against the escalation of privileges.
pub fn holds(state: &State, who: &Who, namespace: &str, wanted: &[PolicyRule]) -> Result<(), Uncovered> {
    if who.is_admin() {
        return Ok(());
    }
    let held: Vec<&PolicyRule> = bindings(state, who, namespace)
        .into_iter()
        .flat_map(|bound| bound.rules)
        .collect();
    cover::check(&held, wanted)
}

/// A binding that is about somebody.
struct Bound<'a> {
    binding: &'a ObjectKey,
    role: &'a RoleRef,
    rules: &'a [PolicyRule],
}

/// Those of the cluster, then those of the namespace, unless it is empty.
fn bindings<'a>(state: &'a State, who: &Who, namespace: &'a str) -> Vec<Bound<'a>> {
    let everywhere = state.entries(Kind::ClusterRoleBinding, None, None);
    let there = (!namespace.is_empty()).then(|| state.entries(Kind::RoleBinding, Some(namespace), None));
    let mut bound = Vec::new();
    for (key, record) in everywhere.chain(there.into_iter().flatten()) {
        let Record::Whole(object) = record else { continue };
        let Some((role, subjects)) = binding(object) else {
            continue;
        };
        if !subjects.iter().any(|subject| who.is(subject)) {
            continue;
        }
        if let Some(rules) = rules_of(state, &key.namespace, role) {
            bound.push(Bound {
                binding: key,
                role,
                rules,
            });
        }
    }
    bound
}

fn has(list: &[String], text: &str) -> bool {
    list.iter().any(|one| one == ALL || one == text)
}

/// `*/log` means the logs of everything that has some.
fn has_resource(list: &[String], resource: &str) -> bool {
    let part = resource.split_once('/').map(|(_, part)| part);
    list.iter().any(|one| {
        one == ALL
            || one == resource
            || part.is_some_and(|part| one.strip_prefix("*/").is_some_and(|any| any == part))
    })
}

fn matches(rule: &PolicyRule, access: &Access) -> bool {
    has(&rule.verbs, &access.verb)
        && has(&rule.api_groups, &access.group)
        && has_resource(&rule.resources, &access.resource)
        && (rule.resource_names.is_empty() || rule.resource_names.contains(&access.name))
}

impl State {
    /// Whether pods of a namespace may name this service account: it is there, or the one that each namespace has.
    pub(crate) fn has_account(&self, namespace: &str, name: &str) -> bool {
        ["", default::SERVICE_ACCOUNT].contains(&name)
            || self.has_record(Kind::ServiceAccount, namespace, name)
    }
}

/// What is said of a pod that names a service account which is not there.
pub(crate) fn no_account(namespace: &str, name: &str) -> String {
    format!("the service account {name} does not exist in namespace {namespace}: create it first")
}

/// Whether an object gives rights to somebody: its change is checked against what whoever changes it holds.
pub fn grants(object: &Object) -> bool {
    matches!(
        object::try_kind(object),
        Some(Kind::Role | Kind::ClusterRole | Kind::RoleBinding | Kind::ClusterRoleBinding)
    )
}
