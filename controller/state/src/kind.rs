//! Kinds, and the metadata of any object.

use proto::v1::object::Object as Any;
use proto::v1::{Object, ObjectMeta};

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A room of names.
    Namespace,
    /// A machine that runs pods.
    Node,
    /// Containers that share a node, an address and volumes.
    Pod,
    /// Configuration as keys and values.
    ConfigMap,
    /// Replicas of a pod template, with revisions.
    Deployment,
    /// One revision of a deployment.
    ReplicaSet,
    /// Something that happened.
    Event,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 7] = [
        Kind::Namespace,
        Kind::Node,
        Kind::Pod,
        Kind::ConfigMap,
        Kind::Deployment,
        Kind::ReplicaSet,
        Kind::Event,
    ];

    /// As in `kind:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Namespace => "Namespace",
            Kind::Node => "Node",
            Kind::Pod => "Pod",
            Kind::ConfigMap => "ConfigMap",
            Kind::Deployment => "Deployment",
            Kind::ReplicaSet => "ReplicaSet",
            Kind::Event => "Event",
        }
    }

    /// As in `apiVersion:`.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Deployment | Kind::ReplicaSet => "apps/v1",
            Kind::Namespace | Kind::Node | Kind::Pod | Kind::ConfigMap | Kind::Event => "v1",
        }
    }

    /// Whether its objects live in a namespace.
    pub fn namespaced(self) -> bool {
        !matches!(self, Kind::Namespace | Kind::Node)
    }
}

macro_rules! each {
    ($object:expr, $inner:ident => $then:expr, $none:expr) => {
        match $object {
            Some(Any::Namespace($inner)) => $then,
            Some(Any::Node($inner)) => $then,
            Some(Any::Pod($inner)) => $then,
            Some(Any::ConfigMap($inner)) => $then,
            Some(Any::Deployment($inner)) => $then,
            Some(Any::ReplicaSet($inner)) => $then,
            Some(Any::Event($inner)) => $then,
            None => $none,
        }
    };
}

/// The same names as `model::object`.
pub mod object {
    use super::*;

    static NO_META: std::sync::LazyLock<ObjectMeta> = std::sync::LazyLock::new(ObjectMeta::default);

    /// The kind; `None` for an empty message.
    pub fn try_kind(object: &Object) -> Option<Kind> {
        Some(match object.object.as_ref()? {
            Any::Namespace(_) => Kind::Namespace,
            Any::Node(_) => Kind::Node,
            Any::Pod(_) => Kind::Pod,
            Any::ConfigMap(_) => Kind::ConfigMap,
            Any::Deployment(_) => Kind::Deployment,
            Any::ReplicaSet(_) => Kind::ReplicaSet,
            Any::Event(_) => Kind::Event,
        })
    }

    /// The metadata; empty when none was given.
    pub fn meta(object: &Object) -> &ObjectMeta {
        each!(&object.object, inner => inner.metadata.as_ref(), None).unwrap_or(&NO_META)
    }

    /// The metadata, to change.
    pub fn meta_mut(object: &mut Object) -> &mut ObjectMeta {
        each!(&mut object.object, inner => Some(&mut inner.metadata), None)
            .expect("an object has a kind")
            .get_or_insert_default()
    }

    /// Sets `apiVersion` and `kind`.
    pub fn set_type_meta(object: &mut Object) {
        let Some(kind) = try_kind(object) else { return };
        each!(&mut object.object, inner => {
            kind.api_version().clone_into(&mut inner.api_version);
            kind.as_str().clone_into(&mut inner.kind);
        }, ());
    }
}
