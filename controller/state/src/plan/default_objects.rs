//! What every cluster and every namespace has: the roles that come with it, and a service account called default.

use model::{Kind, default, object};
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::precondition::Expect;
use proto::state::v1::{Precondition, Put};
use proto::v1::object::Object as Any;
use proto::v1::{Object, ObjectMeta, ServiceAccount};

use super::{Plan, unchanged};
use crate::identity;
use crate::key::ObjectKey;
use crate::rbac::defaults::{self, AUTOUPDATE};
use crate::record::Record;

/// The schema level that these kinds came with.
const LEVEL: u32 = 3;

impl Plan<'_> {
    pub(super) fn default_objects(&mut self) {
        if self.state.settings.is_none() {
            return;
        }
        let state = self.state;
        for wanted in defaults::objects() {
            match ObjectKey::of(wanted).and_then(|key| state.records.get(&key)) {
                None => self.make(wanted.clone(), defaults::LABEL.1),
                Some(Record::Whole(there)) => self.complete(there, wanted),
                Some(Record::Pod(_)) => {}
            }
        }
        for (key, record) in state.entries(Kind::Namespace, None, None) {
            if record.deleting()
                || state.has_record(Kind::ServiceAccount, &key.name, default::SERVICE_ACCOUNT)
            {
                continue;
            }
            let account = ServiceAccount {
                metadata: Some(ObjectMeta {
                    name: default::SERVICE_ACCOUNT.to_owned(),
                    namespace: key.name.as_ref().to_owned(),
                    ..Default::default()
                }),
                ..Default::default()
            };
            self.make(object::from(account), record.uid());
        }
    }

    /// Its uid comes from what it belongs to and the revision: one that was deleted comes again as another.
    fn make(&mut self, mut wanted: Object, owner: &str) {
        let key = object::key(&wanted);
        let revision = self.state.revision.to_string();
        let parts = [owner, &key.kind, &key.namespace, &key.name, &revision];
        object::meta_mut(&mut wanted).uid = identity::uid(&parts);
        let absent = Precondition {
            key: Some(key),
            expect: Some(Expect::Absent(true)),
        };
        self.propose_new(absent, wanted);
    }

    /// Adds what a newer version gives to a role, unless the object says that it is to be left alone. What people added
    /// stays.
    fn complete(&mut self, there: &Object, wanted: &Object) {
        let meta = object::meta(there);
        if meta
            .annotations
            .get(AUTOUPDATE)
            .is_some_and(|said| said == "false")
        {
            return;
        }
        let mut completed = there.clone();
        match (&mut completed.object, &wanted.object) {
            (Some(Any::ClusterRole(there)), Some(Any::ClusterRole(wanted))) => {
                let missing = wanted.rules.iter().filter(|rule| !there.rules.contains(rule));
                let missing: Vec<_> = missing.cloned().collect();
                there.rules.extend(missing);
            }
            (Some(Any::ClusterRoleBinding(there)), Some(Any::ClusterRoleBinding(wanted))) => {
                let missing = wanted.subjects.iter().filter(|one| !there.subjects.contains(one));
                let missing: Vec<_> = missing.cloned().collect();
                there.subjects.extend(missing);
            }
            _ => {}
        }
        if completed != *there {
            let unchanged = unchanged(object::key(there), &meta.resource_version);
            self.propose_new(unchanged, completed);
        }
    }

    /// As a command that older members, which would drop what they do not know, do not apply.
    fn propose_new(&mut self, precondition: Precondition, object: Object) {
        let put = Put { object: Some(object) };
        self.propose(vec![precondition], vec![Op::Put(put)]);
        if let Some(command) = self.commands.last_mut() {
            command.level = LEVEL;
        }
    }
}
