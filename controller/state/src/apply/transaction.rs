//! Transactions: preconditions first, then operations in order.

use proto::state::v1::operation::Operation as Op;
use proto::state::v1::precondition::Expect;
use proto::state::v1::{Bind, Command, Key, Precondition, Scale, Transaction};
use proto::v1::object::Object as Any;
use proto::v1::{Condition, Object};

use super::{Reason, Refusal, Trial, refuse};
use crate::history::Change;
use crate::key::ObjectKey;
use crate::record::{Record, Status};
use crate::store::State;
use crate::{OPERATIONS_MAX, conditions, level, rbac, schedule};
use model::{Kind, object};

impl Trial {
    pub(super) fn transaction(
        &mut self,
        transaction: &Transaction,
        command: &Command,
    ) -> Result<(), Refusal> {
        if transaction.operations.len() > OPERATIONS_MAX || transaction.preconditions.len() > OPERATIONS_MAX {
            return refuse(
                Reason::Invalid,
                format!("more than {OPERATIONS_MAX} operations or preconditions"),
            );
        }
        for (index, precondition) in transaction.preconditions.iter().enumerate() {
            self.expect(precondition).map_err(|refusal| refusal.at(index))?;
        }
        self.touched = true;
        let mut accounts = Vec::new();
        for (index, operation) in transaction.operations.iter().enumerate() {
            accounts.extend(
                self.new_account_use(operation.operation.as_ref())
                    .map(|used| (index, used)),
            );
            self.noted(operation.operation.as_ref(), command)
                .map_err(|refusal| refusal.at(index))?;
        }
        // At the end: a manifest may have the pod first.
        for (index, used) in accounts {
            self.require_account(&used).map_err(|refusal| refusal.at(index))?;
        }
        Ok(())
    }

    /// Carries an operation out; what somebody makes of an object by it is noted.
    fn noted(&mut self, operation: Option<&Op>, command: &Command) -> Result<(), Refusal> {
        let about = operation.filter(|_| !command.actor.is_empty()).and_then(about);
        // Pods have no history: they are many, and hardly anything of them can change.
        let Some(key) = about.filter(|key| key.kind != Kind::Pod) else {
            return self.operation(operation);
        };
        let record = |state: &State| {
            let record = state.records.get(&key).filter(|record| !record.deleting());
            record.cloned()
        };
        let (revision, before) = (self.state.revision, record(&self.state));
        self.operation(operation)?;
        if self.state.revision == revision {
            return Ok(());
        }
        let after = record(&self.state);
        let change = Change {
            revision: self.state.revision,
            time: command.time,
            actor: &command.actor,
            verb: &command.verb,
            created: before.is_none(),
        };
        self.state.history.note(&key, before, after, &change);
        Ok(())
    }

    /// The service account of a pod that this operation creates.
    fn new_account_use(&self, operation: Option<&Op>) -> Option<ObjectKey> {
        let object = match operation? {
            Op::Put(put) => put.object.as_ref()?,
            Op::Apply(apply) => apply.object.as_ref()?,
            _ => return None,
        };
        let Some(Any::Pod(pod)) = &object.object else {
            return None;
        };
        let key = ObjectKey::of(object)?;
        let name = &pod.spec.as_ref()?.service_account_name;
        let new = !self.state.records.contains_key(&key);
        new.then(|| ObjectKey::new(Kind::ServiceAccount, &key.namespace, name))
    }

    /// Kubernetes refuses such a pod too (its ServiceAccount admission).
    pub(super) fn require_account(&self, account: &ObjectKey) -> Result<(), Refusal> {
        match self.state.has_account(&account.namespace, &account.name) {
            true => Ok(()),
            false => refuse(
                Reason::Forbidden,
                rbac::no_account(&account.namespace, &account.name),
            ),
        }
    }

    fn expect(&self, precondition: &Precondition) -> Result<(), Refusal> {
        let key = key(precondition.key.as_ref())?;
        let record = self.state.records.get(&key);
        match (&precondition.expect, record) {
            (Some(Expect::Absent(true)), None) => Ok(()),
            (Some(Expect::Absent(true)), Some(_)) => {
                refuse(Reason::AlreadyExists, format!("{key} exists already"))
            }
            (_, None) => refuse(Reason::NotFound, format!("{key} does not exist")),
            (Some(Expect::Uid(uid)), Some(record)) if record.uid() != uid => refuse(
                Reason::Conflict,
                format!("{key} is another one: its uid is {}", record.uid()),
            ),
            (Some(Expect::ResourceVersion(version)), Some(record))
                if record.resource_version().to_string() != *version =>
            {
                let now = record.resource_version();
                refuse(
                    Reason::Conflict,
                    format!("{key} has changed: its resourceVersion is {now}, not {version}"),
                )
            }
            (_, Some(_)) => Ok(()),
        }
    }

    fn operation(&mut self, operation: Option<&Op>) -> Result<(), Refusal> {
        match operation {
            Some(Op::Put(put)) => match &put.object {
                Some(object) => self.put(object),
                None => refuse(Reason::Invalid, "the put has no object"),
            },
            Some(Op::Apply(apply)) => self.apply_merged(apply),
            Some(Op::Delete(delete)) => {
                self.deleted.extend(delete.key.clone());
                self.delete(delete)
            }
            Some(Op::Bind(bind)) => self.bind(bind),
            Some(Op::SetStatus(set)) => self.set_status(set),
            Some(Op::Scale(scale)) => self.scale(scale),
            Some(Op::Remove(remove)) => {
                let key = key(remove.key.as_ref())?;
                self.remove(&key, &remove.uid)
            }
            Some(Op::CreatePods(create)) => self.create_pods(create),
            None => refuse(Reason::Invalid, "the operation says nothing"),
        }
    }

    fn bind(&mut self, bind: &Bind) -> Result<(), Refusal> {
        let key = key(bind.pod.as_ref())?;
        let Record::Pod(pod) = self.find(&key, &bind.uid)? else {
            return refuse(Reason::Invalid, format!("{key} is no pod"));
        };
        if pod.bound() {
            return refuse(
                Reason::Conflict,
                format!("{key} is bound to {} already", pod.node),
            );
        }
        if pod.deleted.is_some() || pod.status.finished {
            return refuse(Reason::Conflict, format!("{key} is ending"));
        }
        let Some(node) = self.state.node(&bind.node) else {
            return refuse(Reason::NotFound, format!("Node {} does not exist", bind.node));
        };
        // Whoever decided may have seen an older state, without the pods that another leader placed.
        if self.state.level() >= level::ROOM_WHEN_BOUND
            && let Some(why) = schedule::misfit(&self.state, &bind.node, &pod.template)
        {
            return refuse(
                Reason::Conflict,
                format!("{key} does not go on Node {}: {why}", bind.node),
            );
        }
        // Who names a node gets it, cordoned or not, as in Kubernetes.
        let named = pod
            .template
            .spec()
            .is_some_and(|spec| spec.node_name == bind.node);
        if !named && node.spec.as_ref().is_some_and(|spec| spec.unschedulable) {
            return refuse(Reason::Conflict, format!("Node {} is cordoned", bind.node));
        }
        let mut status = pod.status.decoded();
        let scheduled = Condition {
            r#type: "PodScheduled".to_owned(),
            status: "True".to_owned(),
            ..Default::default()
        };
        status.conditions = conditions::with(&status.conditions, &[scheduled], &self.time);
        let mut bound = pod.as_ref().clone();
        bound.node = bind.node.as_str().into();
        bound.status = Status::new(&status);
        self.store_pod(key, bound);
        Ok(())
    }

    fn scale(&mut self, scale: &Scale) -> Result<(), Refusal> {
        let key = key(scale.key.as_ref())?;
        if scale.replicas < 0 {
            return refuse(
                Reason::Invalid,
                format!("{key} cannot have {} replicas", scale.replicas),
            );
        }
        let mut object = self.find(&key, &scale.uid)?.object(&key);
        let replicas = match &mut object.object {
            Some(Any::Deployment(deployment)) => &mut deployment.spec.get_or_insert_default().replicas,
            Some(Any::ReplicaSet(set)) => &mut set.spec.get_or_insert_default().replicas,
            _ => return refuse(Reason::Invalid, format!("{key} has no replicas")),
        };
        if *replicas != Some(scale.replicas) {
            *replicas = Some(scale.replicas);
            let meta = object::meta_mut(&mut object);
            meta.generation = meta.generation.saturating_add(1);
            self.store(key.clone(), object);
        }
        self.show(&key);
        Ok(())
    }

    /// Adds the object to the reply: as it is now, or as it was when it went with this operation.
    pub(super) fn show(&mut self, key: &ObjectKey) {
        let object: Option<Object> = match self.state.records.get(key) {
            Some(record) => Some(record.object(key)),
            None => self.changes.last().map(|change| change.object().clone()),
        };
        self.objects.extend(object);
    }
}

/// The object that somebody changes by an operation: those that only the cluster itself makes have none.
fn about(operation: &Op) -> Option<ObjectKey> {
    match operation {
        Op::Put(put) => ObjectKey::of(put.object.as_ref()?),
        Op::Apply(apply) => ObjectKey::of(apply.object.as_ref()?),
        Op::Delete(delete) => ObjectKey::from_proto(delete.key.as_ref()?),
        Op::Scale(scale) => ObjectKey::from_proto(scale.key.as_ref()?),
        Op::Bind(_) | Op::SetStatus(_) | Op::Remove(_) | Op::CreatePods(_) => None,
    }
}

/// The key that an operation names.
pub(super) fn key(key: Option<&Key>) -> Result<ObjectKey, Refusal> {
    let Some(key) = key else {
        return refuse(Reason::Invalid, "a key is missing");
    };
    match ObjectKey::from_proto(key) {
        Some(key) if key.kind == Kind::Event => refuse(Reason::Invalid, "events are kept outside the log"),
        Some(key) => Ok(key),
        None => refuse(Reason::Invalid, format!("unknown kind `{}`", key.kind)),
    }
}
