//! What each call needs of whoever makes it, in the words of roles.
//!
//! | call | needs |
//! |---|---|
//! | Apply | create, patch (update in mode REPLACE) of each object, delete of what is pruned; for roles and bindings also to hold what they give |
//! | Undo | get, and what an Apply of the earlier form needs |
//! | Get, Why, History | get |
//! | List, Watch | list, watch; of Secrets get too, since their values are shown |
//! | Delete | delete of each object |
//! | Scale | get of the object, update of its `scale` |
//! | SetSchedulable, Rollback | patch |
//! | Logs, Describe | get of `pods/log` |
//! | Exec | create of `pods/exec` |
//! | Inspect | get of the pod |
//! | ImportImage, ListImages | create, list of `images.bulkhead.io` |
//! | CreateToken, ListTokens, RevokeToken | create (the name is the role), list, delete of `tokens.bulkhead.io` |
//! | CreateServiceAccountToken | create of `serviceaccounts/token` |
//! | Members, RemoveMember | list, delete of `members.bulkhead.io` |
//! | Backup, Restore | everything: one shows all Secrets, the other brings all roles |
//! | IssueCertificate | create of `certificates.bulkhead.io`, impersonate of the user and each group |
//! | RevokeCertificates, ListRevocations | delete (the name is the identity), list of `certificates.bulkhead.io` |
//! | ReviewAccess | nothing of oneself; of others impersonate of the user and each group |
//! | Version, WhoAmI | nothing |

use model::selector::Fields;
use model::{Kind, default, object};
use proto::state::v1::Key;
use proto::v1::{Object, PolicyRule};
use rpc::v1::{
    ApplyItem, CreateServiceAccountTokenRequest, CreateTokenRequest, DeleteRequest, IssueCertificateRequest,
    PodRef, ReviewAccessRequest, RollbackRequest, ScaleRequest, SetSchedulableRequest, open,
};
use state::State;
use state::rbac::defaults::OWN_GROUP;
use state::rbac::{self, Access};
use tonic::Status;

use crate::admission::made_uid;

/// One condition of a call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Need {
    /// The item of the request that it is about.
    pub(crate) item: usize,
    pub(crate) what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    /// A right.
    Right(Access),
    /// To give rights: hold them all in this namespace, or have the right to give what one does not hold.
    Give {
        namespace: String,
        /// None: the role is not there, and nobody knows what it will give.
        rules: Option<Vec<PolicyRule>>,
        /// escalate of the role, or bind of it.
        or: Access,
    },
}

fn right(item: usize, access: Access) -> Need {
    let what = What::Right(access);
    Need { item, what }
}

fn one(access: Access) -> Vec<Need> {
    vec![right(0, access)]
}

/// Of a resource that Kubernetes does not have.
fn own(verb: &str, resource: &str, name: &str) -> Access {
    Access {
        verb: verb.to_owned(),
        group: OWN_GROUP.to_owned(),
        resource: resource.to_owned(),
        namespace: String::new(),
        name: name.to_owned(),
    }
}

pub(super) fn object(verb: &str, key: Option<&Key>) -> Result<Vec<Need>, Status> {
    let (kind, key) = super::key(key)?;
    Ok(one(Access::to(verb, kind, &key.namespace, &key.name)))
}

/// List or watch.
pub(super) fn many(verb: &str, kind: &str, namespace: &str, fields: &str) -> Result<Vec<Need>, Status> {
    let kind = super::kind(kind)?;
    // As in Kubernetes: who asks for one object by its name needs the right to that one alone. What is no selector is
    // refused with its reason later.
    let fields = Fields::parse(fields).unwrap_or_default();
    let name = fields.name().unwrap_or_default();
    let mut needs = one(Access::to(verb, kind, namespace, name));
    if kind == Kind::Secret {
        needs.push(right(0, Access::to("get", kind, namespace, name)));
    }
    Ok(needs)
}

/// `request`: the request's id. An object that this very request made is created once more by its retry.
pub(super) fn apply(items: &[ApplyItem], request: &str, state: &State) -> Vec<Need> {
    let mut needs = Vec::with_capacity(items.len());
    for (item, given) in items.iter().enumerate() {
        let Some(object) = given.object.as_ref() else {
            continue;
        };
        let Some(kind) = object::try_kind(object) else {
            continue; // refused with its reason later
        };
        let key = key_of(kind, object);
        let made_before =
            || !request.is_empty() && state.key_by_uid(&made_uid(request, item)).as_ref() == Some(&key);
        let verb = match (given.mode.as_str(), state.contains(&key)) {
            (_, false) | ("CREATE", _) => "create",
            (_, true) if made_before() => "create",
            ("REPLACE", true) => "update",
            (_, true) => "patch",
        };
        needs.push(right(item, Access::to(verb, kind, &key.namespace, &key.name)));
        if rbac::grants(object) {
            needs.extend(give(items, state, kind, &key, object).map(|what| Need { item, what }));
        }
    }
    needs
}

/// With the namespace that a manifest leaves out.
fn key_of(kind: Kind, object: &Object) -> Key {
    let meta = object::meta(object);
    let namespace = match meta.namespace.as_str() {
        "" => default::NAMESPACE,
        namespace => namespace,
    };
    object::key_of(kind, namespace, &meta.name)
}

/// What a role or a binding would give. None: nothing more than it gives already.
fn give(items: &[ApplyItem], state: &State, kind: Kind, key: &Key, object: &Object) -> Option<What> {
    let live = state.get(key);
    // What is there has its defaults.
    let mut object = object.clone();
    default::object(&mut object);
    if let Some(rules) = rbac::rules(&object) {
        if live.as_ref().and_then(rbac::rules) == Some(rules) {
            return None;
        }
        return Some(What::Give {
            namespace: key.namespace.clone(),
            rules: Some(rules.to_vec()),
            or: Access::to("escalate", kind, &key.namespace, &key.name),
        });
    }
    let (role, subjects) = rbac::binding(&object)?; // without a role: refused with its reason later
    let before = live.as_ref().and_then(rbac::binding);
    let same_role = |other: &proto::v1::RoleRef| other.kind == role.kind && other.name == role.name;
    if before.is_some_and(|(other, before)| same_role(other) && before == subjects) {
        return None;
    }
    let role_kind = match role.kind.as_str() {
        "Role" => Kind::Role,
        _ => Kind::ClusterRole,
    };
    let role_key = object::key_of(role_kind, &key.namespace, &role.name);
    // The role as it will be: it may be in the same request.
    let coming = items
        .iter()
        .filter_map(|item| item.object.as_ref())
        .find(|other| object::try_kind(other) == Some(role_kind) && key_of(role_kind, other) == role_key);
    let rules = match coming.and_then(rbac::rules) {
        Some(rules) => Some(rules.to_vec()),
        None => rbac::rules_of(state, &key.namespace, role).map(<[_]>::to_vec),
    };
    Some(What::Give {
        namespace: key.namespace.clone(),
        rules,
        or: Access::to("bind", role_kind, &key.namespace, &role.name),
    })
}

pub(super) fn delete(request: &DeleteRequest) -> Vec<Need> {
    let targets = request.targets.iter().enumerate();
    let needs = targets.filter_map(|(item, target)| {
        let (kind, key) = super::key(target.key.as_ref()).ok()?; // refused with its reason later
        Some(right(item, Access::to("delete", kind, &key.namespace, &key.name)))
    });
    needs.collect()
}

pub(super) fn deletes<'a>(objects: impl Iterator<Item = &'a Object>) -> Vec<Need> {
    let needs = objects.filter_map(|object| {
        let kind = object::try_kind(object)?;
        let key = key_of(kind, object);
        Some(right(0, Access::to("delete", kind, &key.namespace, &key.name)))
    });
    needs.collect()
}

pub(super) fn scale(request: &ScaleRequest) -> Result<Vec<Need>, Status> {
    let (kind, key) = super::key(request.key.as_ref())?;
    let to = |verb| Access::to(verb, kind, &key.namespace, &key.name);
    Ok(vec![right(0, to("get")), right(0, to("update").part("scale"))])
}

pub(super) fn set_schedulable(request: &SetSchedulableRequest) -> Vec<Need> {
    let nodes = request.nodes.iter().enumerate();
    let needs = nodes.map(|(item, name)| right(item, Access::to("patch", Kind::Node, "", name)));
    needs.collect()
}

pub(super) fn rollback(request: &RollbackRequest) -> Result<Vec<Need>, Status> {
    object("patch", request.key.as_ref())
}

/// A call about a pod that its node carries out.
fn pod(call: &open::Call, namespace: &str, name: &str) -> Access {
    let to = |verb| Access::to(verb, Kind::Pod, namespace, name);
    match call {
        open::Call::Exec(_) => to("create").part("exec"),
        open::Call::Inspect(_) => to("get"),
        open::Call::Logs(_) | open::Call::Describe(_) => to("get").part("log"),
        open::Call::ImportImage(_) => own("create", "images", ""),
        open::Call::ListImages(_) => own("list", "images", ""),
    }
}

pub(super) fn of_pod(call: &open::Call, reference: Option<&PodRef>) -> Result<Vec<Need>, Status> {
    let reference = reference.ok_or_else(|| Status::invalid_argument("the call names no pod"))?;
    let key = object::key_of(Kind::Pod, &reference.namespace, &reference.name);
    let (_, key) = super::key(Some(&key))?;
    Ok(one(pod(call, &key.namespace, &key.name)))
}

/// What a call needs that another member passes on; None: its pod is not there.
pub(crate) fn passed_on(state: &State, call: &open::Call, pod_uid: &str) -> Option<Access> {
    if matches!(call, open::Call::ImportImage(_) | open::Call::ListImages(_)) {
        return Some(pod(call, "", ""));
    }
    let key = state.key_by_uid(pod_uid)?;
    (key.kind == Kind::Pod.as_str()).then(|| pod(call, &key.namespace, &key.name))
}

pub(super) fn images(verb: &str) -> Vec<Need> {
    one(own(verb, "images", ""))
}

pub(super) fn create_token(request: &CreateTokenRequest) -> Vec<Need> {
    one(own("create", "tokens", &request.role))
}

pub(super) fn tokens(verb: &str, id: &str) -> Vec<Need> {
    one(own(verb, "tokens", id))
}

pub(super) fn account_token(request: &CreateServiceAccountTokenRequest) -> Result<Vec<Need>, Status> {
    let (_, key) = super::key(Some(&account_key(request)))?;
    let account = Access::to("create", Kind::ServiceAccount, &key.namespace, &key.name);
    Ok(one(account.part("token")))
}

/// The account that a token is asked for.
pub(super) fn account_key(request: &CreateServiceAccountTokenRequest) -> Key {
    object::key_of(Kind::ServiceAccount, &request.namespace, &request.name)
}

pub(super) fn members(verb: &str, name: &str) -> Vec<Need> {
    one(own(verb, "members", name))
}

/// What only administrators have.
pub(super) fn everything() -> Vec<Need> {
    one(Access::everything())
}

pub(super) fn issue(request: &IssueCertificateRequest) -> Vec<Need> {
    let mut needs = one(own("create", "certificates", &request.name));
    needs.extend(impersonate(&request.name, &request.groups));
    needs
}

pub(super) fn certificates(verb: &str, identity: &str) -> Vec<Need> {
    one(own(verb, "certificates", identity))
}

pub(super) fn review(request: &ReviewAccessRequest) -> Vec<Need> {
    if request.user.is_empty() && request.groups.is_empty() {
        return Vec::new();
    }
    impersonate(&request.user, &request.groups)
}

/// As in Kubernetes, where users and groups are resources that are only impersonated.
fn impersonate(user: &str, groups: &[String]) -> Vec<Need> {
    let to = |resource: &str, namespace: &str, name: &str| {
        right(
            0,
            Access {
                verb: "impersonate".to_owned(),
                group: String::new(),
                resource: resource.to_owned(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            },
        )
    };
    let mut needs = match rbac::account_of(user) {
        Some((namespace, name)) => vec![to("serviceaccounts", namespace, name)],
        None => vec![to("users", "", user)],
    };
    needs.extend(groups.iter().map(|group| to("groups", "", group)));
    needs
}
