//! Any object: its kind, key and metadata, whichever type it has.

use std::sync::LazyLock;

use prost_reflect::DynamicMessage;
use proto::state::v1::Key;
use proto::v1::object::Object as Any;
use proto::v1::{
    ClusterRole, ClusterRoleBinding, ConfigMap, Deployment, Event, Namespace, Node, Object, ObjectMeta, Pod,
    ReplicaSet, Role, RoleBinding, Secret, ServiceAccount,
};

use crate::{Kind, schema};

/// The finalizer of an owner that goes after what it owns (Kubernetes' word).
pub const FOREGROUND: &str = "foregroundDeletion";
/// What objects without metadata share.
static NO_META: LazyLock<ObjectMeta> = LazyLock::new(ObjectMeta::default);

/// The same expression for whichever type is inside; `$none` for an empty `Object`.
macro_rules! each {
    ($object:expr, $inner:ident => $then:expr, $none:expr) => {
        match $object {
            Some(Any::Namespace($inner)) => $then,
            Some(Any::Node($inner)) => $then,
            Some(Any::Pod($inner)) => $then,
            Some(Any::ConfigMap($inner)) => $then,
            Some(Any::Secret($inner)) => $then,
            Some(Any::ServiceAccount($inner)) => $then,
            Some(Any::Role($inner)) => $then,
            Some(Any::ClusterRole($inner)) => $then,
            Some(Any::RoleBinding($inner)) => $then,
            Some(Any::ClusterRoleBinding($inner)) => $then,
            Some(Any::Deployment($inner)) => $then,
            Some(Any::ReplicaSet($inner)) => $then,
            Some(Any::Event($inner)) => $then,
            None => $none,
        }
    };
}

/// One of the kinds' types.
pub trait Typed: Sized {
    /// Its kind.
    const KIND: Kind;
    /// As any object; fills in `apiVersion` and `kind`.
    fn into_object(self) -> Object;
    /// Out of any object, when it is of this kind.
    fn from_object(object: Object) -> Option<Self>;
    /// A look into any object, when it is of this kind.
    fn of(object: &Object) -> Option<&Self>;
    /// Its metadata, if any was given.
    fn metadata(&self) -> Option<&ObjectMeta>;
}

macro_rules! typed {
    ($($kind:ident),*) => {$(
        impl Typed for $kind {
            const KIND: Kind = Kind::$kind;
            fn into_object(mut self) -> Object {
                Kind::$kind.api_version().clone_into(&mut self.api_version);
                Kind::$kind.as_str().clone_into(&mut self.kind);
                Object { object: Some(Any::$kind(self)) }
            }
            fn from_object(object: Object) -> Option<Self> {
                match object.object {
                    Some(Any::$kind(inner)) => Some(inner),
                    _ => None,
                }
            }
            fn of(object: &Object) -> Option<&Self> {
                match &object.object {
                    Some(Any::$kind(inner)) => Some(inner),
                    _ => None,
                }
            }
            fn metadata(&self) -> Option<&ObjectMeta> {
                self.metadata.as_ref()
            }
        }
    )*};
}
typed!(
    Namespace,
    Node,
    Pod,
    ConfigMap,
    Secret,
    ServiceAccount,
    Role,
    ClusterRole,
    RoleBinding,
    ClusterRoleBinding,
    Deployment,
    ReplicaSet,
    Event
);

/// A typed object as any object.
pub fn from<T: Typed>(typed: T) -> Object {
    typed.into_object()
}

/// A look into any object, when it is of type `T`.
pub fn of<T: Typed>(object: &Object) -> Option<&T> {
    T::of(object)
}

/// Out of any object, when it is of type `T`.
pub fn into<T: Typed>(object: Object) -> Option<T> {
    T::from_object(object)
}

/// The kind; `None` for an empty message, which only a raw call can send.
pub fn try_kind(object: &Object) -> Option<Kind> {
    Some(match object.object.as_ref()? {
        Any::Namespace(_) => Kind::Namespace,
        Any::Node(_) => Kind::Node,
        Any::Pod(_) => Kind::Pod,
        Any::ConfigMap(_) => Kind::ConfigMap,
        Any::Secret(_) => Kind::Secret,
        Any::ServiceAccount(_) => Kind::ServiceAccount,
        Any::Role(_) => Kind::Role,
        Any::ClusterRole(_) => Kind::ClusterRole,
        Any::RoleBinding(_) => Kind::RoleBinding,
        Any::ClusterRoleBinding(_) => Kind::ClusterRoleBinding,
        Any::Deployment(_) => Kind::Deployment,
        Any::ReplicaSet(_) => Kind::ReplicaSet,
        Any::Event(_) => Kind::Event,
    })
}

/// The kind. The API refuses empty messages first (see [`try_kind`]).
///
/// # Panics
/// On an empty `Object`: inside the cluster only a bug makes one.
pub fn kind(object: &Object) -> Kind {
    try_kind(object).expect("an object has a kind: empty ones are refused where they arrive")
}

/// The metadata; empty when none was given.
pub fn meta(object: &Object) -> &ObjectMeta {
    each!(&object.object, inner => inner.metadata.as_ref(), None).unwrap_or(&NO_META)
}

/// The metadata, to change; made when none was given.
///
/// # Panics
/// On an empty `Object`, as [`kind`].
pub fn meta_mut(object: &mut Object) -> &mut ObjectMeta {
    let metadata = each!(&mut object.object, inner => Some(&mut inner.metadata), None);
    metadata
        .expect("an object has a kind: empty ones are refused where they arrive")
        .get_or_insert_default()
}

/// `apiVersion` and `kind` as the object says them.
pub fn type_meta(object: &Object) -> (&str, &str) {
    each!(&object.object, inner => (inner.api_version.as_str(), inner.kind.as_str()), ("", ""))
}

/// Sets `apiVersion` and `kind` to what the object is.
pub fn set_type_meta(object: &mut Object) {
    let Some(kind) = try_kind(object) else { return };
    each!(&mut object.object, inner => {
        kind.api_version().clone_into(&mut inner.api_version);
        kind.as_str().clone_into(&mut inner.kind);
    }, ());
}

/// The name under which the object is stored.
pub fn key(object: &Object) -> Key {
    let meta = meta(object);
    key_of(kind(object), &meta.namespace, &meta.name)
}

/// A key from its parts.
pub fn key_of(kind: Kind, namespace: &str, name: &str) -> Key {
    Key {
        kind: kind.as_str().to_owned(),
        namespace: if kind.namespaced() {
            namespace.to_owned()
        } else {
            String::new()
        },
        name: name.to_owned(),
    }
}

/// An object that says nothing but its key.
pub fn named(kind: Kind, namespace: &str, name: &str) -> Object {
    let message = schema::message(&kind.message()).expect("the schema has every kind");
    let mut object = schema::typed(DynamicMessage::new(message), kind);
    let key = key_of(kind, namespace, name);
    let meta = meta_mut(&mut object);
    (meta.namespace, meta.name) = (key.namespace, key.name);
    object
}

/// `pod/web`, as tables and messages show it.
pub fn display(object: &Object) -> String {
    format!("{}/{}", kind(object).singular(), meta(object).name)
}

/// Whether both want the same: everything but metadata and status. A change of it is a new generation.
pub fn spec_equal(a: &Object, b: &Object) -> bool {
    match (&a.object, &b.object) {
        (Some(Any::Namespace(a)), Some(Any::Namespace(b))) => a.spec == b.spec,
        (Some(Any::Node(a)), Some(Any::Node(b))) => a.spec == b.spec,
        (Some(Any::Pod(a)), Some(Any::Pod(b))) => a.spec == b.spec,
        (Some(Any::ConfigMap(a)), Some(Any::ConfigMap(b))) => {
            a.data == b.data && a.binary_data == b.binary_data && a.immutable == b.immutable
        }
        (Some(Any::Secret(a)), Some(Any::Secret(b))) => {
            a.data == b.data && a.r#type == b.r#type && a.immutable == b.immutable
        }
        (Some(Any::ServiceAccount(a)), Some(Any::ServiceAccount(b))) => {
            a.automount_service_account_token == b.automount_service_account_token
        }
        (Some(Any::Role(a)), Some(Any::Role(b))) => a.rules == b.rules,
        (Some(Any::ClusterRole(a)), Some(Any::ClusterRole(b))) => a.rules == b.rules,
        (Some(Any::RoleBinding(a)), Some(Any::RoleBinding(b))) => {
            a.role_ref == b.role_ref && a.subjects == b.subjects
        }
        (Some(Any::ClusterRoleBinding(a)), Some(Any::ClusterRoleBinding(b))) => {
            a.role_ref == b.role_ref && a.subjects == b.subjects
        }
        (Some(Any::Deployment(a)), Some(Any::Deployment(b))) => a.spec == b.spec,
        (Some(Any::ReplicaSet(a)), Some(Any::ReplicaSet(b))) => a.spec == b.spec,
        (Some(Any::Event(a)), Some(Any::Event(b))) => a == b,
        _ => false,
    }
}

/// Whether the object's status says the same.
pub fn status_equal(a: &Object, b: &Object) -> bool {
    match (&a.object, &b.object) {
        (Some(Any::Namespace(a)), Some(Any::Namespace(b))) => a.status == b.status,
        (Some(Any::Node(a)), Some(Any::Node(b))) => a.status == b.status,
        (Some(Any::Pod(a)), Some(Any::Pod(b))) => a.status == b.status,
        (Some(Any::Deployment(a)), Some(Any::Deployment(b))) => a.status == b.status,
        (Some(Any::ReplicaSet(a)), Some(Any::ReplicaSet(b))) => a.status == b.status,
        _ => try_kind(a) == try_kind(b) && try_kind(a).is_some_and(|kind| !kind.has_status()),
    }
}

/// Takes the status out of an object.
pub fn clear_status(object: &mut Object) {
    match &mut object.object {
        Some(Any::Namespace(inner)) => inner.status = None,
        Some(Any::Node(inner)) => inner.status = None,
        Some(Any::Pod(inner)) => inner.status = None,
        Some(Any::Deployment(inner)) => inner.status = None,
        Some(Any::ReplicaSet(inner)) => inner.status = None,
        Some(
            Any::ConfigMap(_)
            | Any::Secret(_)
            | Any::ServiceAccount(_)
            | Any::Role(_)
            | Any::ClusterRole(_)
            | Any::RoleBinding(_)
            | Any::ClusterRoleBinding(_)
            | Any::Event(_),
        )
        | None => {}
    }
}
