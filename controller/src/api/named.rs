//! The objects that calls name.

use model::{Kind, default, object};
use proto::state::v1::Key;
use tonic::Status;

/// The key of a call, with the namespace that it leaves out.
pub(super) fn key(given: Option<&Key>) -> Result<(Kind, Key), Status> {
    let given = given.ok_or_else(|| Status::invalid_argument("the call names no object"))?;
    let kind = kind(&given.kind)?;
    if given.name.is_empty() {
        return Err(Status::invalid_argument(format!("the call names no {kind}")));
    }
    let namespace = match given.namespace.as_str() {
        "" => default::NAMESPACE,
        namespace => namespace,
    };
    Ok((kind, object::key_of(kind, namespace, &given.name)))
}

pub(super) fn kind(text: &str) -> Result<Kind, Status> {
    Kind::parse(text).map_err(|cause| Status::invalid_argument(cause.to_string()))
}

/// How a missing object is spoken of.
pub(super) fn not_found(kind: Kind, key: &Key) -> String {
    let (kind_name, name) = (kind.singular(), &key.name);
    if kind.namespaced() {
        format!("{kind_name} {name} not found in namespace {}", key.namespace)
    } else {
        format!("{kind_name} {name} not found")
    }
}
