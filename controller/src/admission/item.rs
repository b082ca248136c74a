//! One item of an apply, against the state and its neighbours.

use std::collections::{BTreeMap, BTreeSet};

use model::merge::{self, Known};
use model::validate::FieldError;
use model::{Kind, default, name, object, validate};
use prost::Message;
use proto::state::v1::Key;
use proto::v1::object::Object as Any;
use proto::v1::{Namespace, Object, ObjectMeta, OwnerReference};
use rpc::v1::{ApplyItem, Refusal};
use state::State;

use super::Asked;
use super::results::{made_suffix, made_uid};
use crate::api::status::{Reason, invalid, refusal};

/// Names that are tried for an object that leaves its name to the cluster.
const NAMES_MAX: u32 = 16;

/// Fields of one item that may be mentioned as empty: what a manifest of the largest size says in earnest is below.
const EMPTY_MAX: usize = 4096;

/// What may happen to an object that is there, or is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Created, or merged into what is there.
    Apply,
    /// Refused when it is there.
    Create,
    /// Refused when it is not there.
    Replace,
}

/// An item that nothing speaks against.
#[derive(Clone, Debug)]
pub(super) struct Admitted {
    /// Its place in the request.
    pub(super) item: usize,
    /// As it is to be put.
    pub(super) object: Object,
    /// As it is.
    pub(super) live: Option<Object>,
    /// What is to be remembered of an apply, when it is not known already.
    pub(super) said: Option<Object>,
}

/// The look at all items of one request.
pub(super) struct Admission<'a> {
    state: &'a State,
    request: &'a str,
    /// Who applies.
    manager: &'a str,
    /// Names of namespaces that this request makes.
    namespaces: BTreeSet<String>,
    /// Keys of the items so far, with their places.
    taken: BTreeMap<(Kind, String, String), usize>,
    pub(super) refusals: Vec<Refusal>,
}

impl<'a> Admission<'a> {
    pub(super) fn new(state: &'a State, asked: &Asked<'a>) -> Self {
        let namespaces = asked.items.iter().filter_map(|item| {
            let object = item.object.as_ref()?;
            object::of::<Namespace>(object)?;
            Some(object::meta(object).name.clone())
        });
        Self {
            state,
            request: asked.id,
            manager: asked.manager,
            namespaces: namespaces.collect(),
            taken: BTreeMap::new(),
            refusals: Vec::new(),
        }
    }

    /// None: there are reasons against it now.
    pub(super) fn item(&mut self, item: usize, given: &ApplyItem) -> Option<Admitted> {
        let before = self.refusals.len();
        let admitted = self.look(item, given);
        admitted.filter(|_| self.refusals.len() == before)
    }

    fn refuse(&mut self, item: usize, path: &str, reason: Reason, message: impl Into<String>) {
        self.refusals.push(refusal(item, path, reason, message));
    }

    fn look(&mut self, item: usize, given: &ApplyItem) -> Option<Admitted> {
        let Some((kind, mut object)) = given
            .object
            .clone()
            .and_then(|object| Some((object::try_kind(&object)?, object)))
        else {
            self.refuse(item, "", Reason::Invalid, "an object without a kind");
            return None;
        };
        if !kind.applicable() {
            let message = format!("a {kind} is made by the cluster itself and can't be applied");
            self.refuse(item, "kind", Reason::Forbidden, message);
            return None;
        }
        let mode = match given.mode.as_str() {
            "" | "APPLY" => Mode::Apply,
            "CREATE" => Mode::Create,
            "REPLACE" => Mode::Replace,
            other => {
                let message = format!("unknown mode `{other}`: APPLY, CREATE or REPLACE");
                self.refuse(item, "", Reason::Invalid, message);
                return None;
            }
        };
        self.type_meta(item, kind, &object);

        let namespace = match object::meta(&object).namespace.as_str() {
            _ if !kind.namespaced() => String::new(),
            "" => default::NAMESPACE.to_owned(),
            namespace => namespace.to_owned(),
        };
        let key = object::key_of(kind, &namespace, &object::meta(&object).name);
        let live = if key.name.is_empty() {
            None
        } else {
            self.state.get(&key)
        };
        self.empty(item, given, &object);
        let said = (mode == Mode::Apply).then(|| self.merge(&key, given, &mut object, live.as_ref()));
        if let (Some(live), None) = (&live, &said) {
            keep(&mut object, live);
        }
        default::object(&mut object);
        let errors = validate::object(&object);
        self.refusals
            .extend(errors.into_iter().map(|error| invalid(item, error)));
        let fresh = self.server_set(item, &object, live.as_ref());
        self.owners(item, &object, live.as_ref());
        bare(&mut object);
        match &live {
            None => self.creation(item, kind, mode, &mut object),
            Some(live) => self.update(item, mode, &mut object, live, fresh),
        }
        self.once(item, kind, &object);
        Some(Admitted {
            item,
            object,
            live,
            said: said.flatten(),
        })
    }

    /// Every field that is mentioned as empty has to be one, and not to be there.
    fn empty(&mut self, item: usize, given: &ApplyItem, object: &Object) {
        if given.empty.len() > EMPTY_MAX {
            let message = format!("{} empty fields are more than {EMPTY_MAX}", given.empty.len());
            self.refuse(item, "", Reason::Invalid, message);
            return;
        }
        for path in merge::not_empty(object, &given.empty) {
            let message = "is mentioned as empty, but is set or no field";
            self.refuse(item, path, Reason::Invalid, message);
        }
    }

    /// Merges what is given into what is there; what is to be remembered of it, unless that is known.
    fn merge(
        &self,
        key: &Key,
        given: &ApplyItem,
        object: &mut Object,
        live: Option<&Object>,
    ) -> Option<Object> {
        default::string_data(object);
        let now = merge::said(object);
        let Some(live) = live else { return Some(now) };
        let (mine, others): (Vec<_>, Vec<_>) = self
            .state
            .said(key)
            .into_iter()
            .partition(|(manager, _)| manager == self.manager);
        let before = mine.into_iter().next().map(|(_, said)| said);
        let others: Vec<Object> = others.into_iter().map(|(_, said)| said).collect();
        let known = Known {
            said: before.as_ref(),
            others: &others,
        };
        let empty: BTreeSet<String> = given.empty.iter().cloned().collect();
        *object = merge::apply(live, object, &empty, known);
        (before.as_ref() != Some(&now)).then_some(now)
    }

    /// What the object says that it is has to be what it is.
    fn type_meta(&mut self, item: usize, kind: Kind, object: &Object) {
        let (api_version, said) = object::type_meta(object);
        if !api_version.is_empty() && api_version != kind.api_version() {
            let message = format!("must be {} for {kind}, is `{api_version}`", kind.api_version());
            self.refuse(item, "apiVersion", Reason::Invalid, message);
        }
        if !said.is_empty() && said != kind.as_str() {
            self.refuse(
                item,
                "kind",
                Reason::Invalid,
                format!("must be {kind}, is `{said}`"),
            );
        }
    }

    /// Fields that the cluster sets are taken only when they say what it would say. Whether the object is the one that
    /// whoever sends it has seen.
    fn server_set(&mut self, item: usize, object: &Object, live: Option<&Object>) -> bool {
        let given = object::meta(object);
        let none = ObjectMeta::default();
        let there = live.map_or(&none, object::meta);
        let what = object::display(object);
        if !given.uid.is_empty() && given.uid != there.uid {
            let message = match live {
                Some(_) => format!("{what} is another one now: its uid is {}", there.uid),
                None => format!("{what} does not exist: remove the uid to create it"),
            };
            self.refuse(item, "metadata.uid", Reason::Conflict, message);
            return false;
        }
        if !given.resource_version.is_empty() && given.resource_version != there.resource_version {
            let message = match live {
                Some(_) => format!(
                    "{what} has changed: its resourceVersion is {}, not {}; get it again",
                    there.resource_version, given.resource_version
                ),
                None => format!("{what} does not exist: remove the resourceVersion to create it"),
            };
            self.refuse(item, "metadata.resourceVersion", Reason::Conflict, message);
            return false;
        }
        let fields = [
            (
                "generation",
                given.generation == 0 || given.generation == there.generation,
            ),
            (
                "creationTimestamp",
                given.creation_timestamp.is_none() || given.creation_timestamp == there.creation_timestamp,
            ),
            (
                "deletionTimestamp",
                given.deletion_timestamp.is_none() || given.deletion_timestamp == there.deletion_timestamp,
            ),
            (
                "deletionGracePeriodSeconds",
                given.deletion_grace_period_seconds.is_none()
                    || given.deletion_grace_period_seconds == there.deletion_grace_period_seconds,
            ),
        ];
        for (field, _) in fields.into_iter().filter(|(_, right)| !right) {
            self.refuse(
                item,
                &format!("metadata.{field}"),
                Reason::Invalid,
                set_by_cluster(live),
            );
        }
        let same = status_bytes(object) == 0 || live.is_some_and(|live| object::status_equal(object, live));
        if !same {
            self.refuse(item, "status", Reason::Invalid, set_by_cluster(live));
        }
        true
    }

    /// Owners have to be there: the cluster removes what belongs to nobody.
    fn owners(&mut self, item: usize, object: &Object, live: Option<&Object>) {
        let given = &object::meta(object).owner_references;
        if live.is_some_and(|live| object::meta(live).owner_references == *given) {
            return;
        }
        let managers = given.iter().filter(|owner| owner.controller == Some(true));
        if managers.count() > 1 {
            let message = "only one owner can be the controller";
            self.refuse(item, "metadata.ownerReferences", Reason::Invalid, message);
        }
        let namespace = object::meta(object).namespace.clone();
        for (index, owner) in given.iter().enumerate() {
            if let Some(message) = self.wrong_owner(owner, &namespace) {
                let path = format!("metadata.ownerReferences[{index}].uid");
                self.refuse(item, &path, Reason::Invalid, message);
            }
        }
    }

    fn wrong_owner(&self, owner: &OwnerReference, namespace: &str) -> Option<String> {
        if owner.uid.is_empty() {
            return None; // validation says it
        }
        let what = format!("{} {}", owner.kind, owner.name);
        match self.state.key_by_uid(&owner.uid) {
            None => Some(format!("there is no object with the uid of {what}")),
            Some(Key { kind, name, .. }) if kind != owner.kind || name != owner.name => {
                Some(format!("this is the uid of {kind} {name}, not of {what}"))
            }
            Some(key) if !key.namespace.is_empty() && key.namespace != namespace => {
                Some(format!("{what} is in another namespace, {}", key.namespace))
            }
            Some(_) => None,
        }
    }

    fn creation(&mut self, item: usize, kind: Kind, mode: Mode, object: &mut Object) {
        let what = object::display(object);
        if mode == Mode::Replace {
            let message = format!("{what} does not exist, so it can't be replaced");
            self.refuse(item, "", Reason::NotFound, message);
        }
        if kind == Kind::Node {
            let message = format!("{what} does not exist; nodes come by joining: see `ctl token create`");
            self.refuse(item, "metadata.name", Reason::Forbidden, message);
        }
        if kind.namespaced() {
            self.namespace(item, &object::meta(object).namespace.clone());
        }
        let uid = made_uid(self.request, item);
        let meta = object::meta_mut(object);
        meta.uid = uid;
        if meta.name.is_empty() && !meta.generate_name.is_empty() {
            match self.free_name(item, kind, &meta.namespace, &meta.generate_name) {
                Some(name) => meta.name = name,
                None => {
                    let message = "no free name was found; try again".to_owned();
                    self.refuse(item, "metadata.generateName", Reason::AlreadyExists, message);
                }
            }
        }
    }

    fn namespace(&mut self, item: usize, namespace: &str) {
        let key = object::key_of(Kind::Namespace, "", namespace);
        let path = "metadata.namespace";
        match self.state.get(&key) {
            Some(there) if object::meta(&there).deletion_timestamp.is_some() => {
                let message =
                    format!("namespace {namespace} is being deleted; nothing new can be created in it");
                self.refuse(item, path, Reason::Forbidden, message);
            }
            None if !self.namespaces.contains(namespace) => {
                let message = format!("namespace {namespace} does not exist");
                self.refuse(item, path, Reason::NotFound, message);
            }
            _ => {}
        }
    }

    fn free_name(&self, item: usize, kind: Kind, namespace: &str, prefix: &str) -> Option<String> {
        let mut names =
            (0..NAMES_MAX).map(|round| name::generate(prefix, made_suffix(self.request, item, round)));
        names.find(|name| {
            let key = object::key_of(kind, namespace, name);
            let place = (kind, key.namespace.clone(), key.name.clone());
            self.state.get(&key).is_none() && !self.taken.contains_key(&place)
        })
    }

    fn update(&mut self, item: usize, mode: Mode, object: &mut Object, live: &Object, fresh: bool) {
        let what = object::display(live);
        let going = object::meta(live).deletion_timestamp.is_some();
        if mode == Mode::Create {
            let message = if going {
                format!("{what} exists already; it is being deleted")
            } else {
                format!("{what} exists already")
            };
            self.refuse(item, "metadata.name", Reason::AlreadyExists, message);
            return;
        }
        if going && !finalizes(object, live) {
            let message = match object::meta(live).finalizers.as_slice() {
                [] => format!("{what} is being deleted; apply it again once it is gone"),
                kept => format!(
                    "{what} is being deleted and waits for {}; until it is gone, all that can be done is to take one of these out of \
                     metadata.finalizers",
                    kept.join(", ")
                ),
            };
            self.refuse(item, "metadata.name", Reason::Conflict, message);
            return;
        }
        object::meta_mut(object).uid.clone_from(&object::meta(live).uid);
        if fresh {
            let errors: Vec<FieldError> = validate::update(live, object);
            self.refusals
                .extend(errors.into_iter().map(|error| invalid(item, error)));
        }
    }

    /// One object has one form in one transaction.
    fn once(&mut self, item: usize, kind: Kind, object: &Object) {
        let meta = object::meta(object);
        if meta.name.is_empty() {
            return;
        }
        let place = (kind, meta.namespace.clone(), meta.name.clone());
        if self.taken.insert(place, item).is_some() {
            let message = format!("{} is in this request twice", object::display(object));
            self.refuse(item, "metadata.name", Reason::Invalid, message);
        }
    }
}

/// Whether finalizers are taken out and none put in.
fn finalizes(object: &Object, live: &Object) -> bool {
    let (new, old) = (&object::meta(object).finalizers, &object::meta(live).finalizers);
    new.len() < old.len() && new.iter().all(|finalizer| old.contains(finalizer))
}

fn set_by_cluster(live: Option<&Object>) -> &'static str {
    match live {
        Some(_) => "is set by the cluster, which has another value: remove it",
        None => "is set by the cluster: remove it",
    }
}

/// What stays when a replacement does not speak of it. (Labels and annotations of the cluster's own the state itself keeps.)
fn keep(object: &mut Object, live: &Object) {
    let owners = &object::meta(live).owner_references;
    let meta = object::meta_mut(object);
    if meta.owner_references.is_empty() {
        meta.owner_references.clone_from(owners);
    }
    if let (Some(Any::Node(new)), Some(Any::Node(old))) = (&mut object.object, &live.object) {
        let Some(old) = &old.spec else { return };
        let new = new.spec.get_or_insert_default();
        if new.pod_cidr.is_empty() {
            new.pod_cidr.clone_from(&old.pod_cidr);
        }
    }
}

/// Takes off what the cluster sets: it was checked, and the state sets it anew.
fn bare(object: &mut Object) {
    object::clear_status(object);
    let meta = object::meta_mut(object);
    meta.uid.clear();
    meta.resource_version.clear();
    meta.generation = 0;
    meta.creation_timestamp = None;
    meta.deletion_timestamp = None;
    meta.deletion_grace_period_seconds = None;
}

/// 0 also for a status that is there and says nothing.
fn status_bytes(object: &Object) -> usize {
    fn bytes(status: Option<&impl Message>) -> usize {
        status.map_or(0, Message::encoded_len)
    }
    match &object.object {
        Some(Any::Namespace(inner)) => bytes(inner.status.as_ref()),
        Some(Any::Node(inner)) => bytes(inner.status.as_ref()),
        Some(Any::Pod(inner)) => bytes(inner.status.as_ref()),
        Some(Any::Deployment(inner)) => bytes(inner.status.as_ref()),
        Some(Any::ReplicaSet(inner)) => bytes(inner.status.as_ref()),
        // The other kinds have none.
        _ => 0,
    }
}
