//! What owners leave behind, and owners that wait for what they own (foreground deletion).

use std::collections::BTreeSet;

use model::Kind;
use model::object::FOREGROUND;
use proto::state::v1::Remove;
use proto::state::v1::operation::Operation as Op;

use super::{Plan, delete};
use crate::key::ObjectKey;
use crate::record::Record;

impl Plan<'_> {
    pub(super) fn garbage(&mut self) {
        let state = self.state;
        // A set: what two lost owners had is told of once.
        let dependents: BTreeSet<&ObjectKey> = state
            .ownerless
            .iter()
            .flat_map(|uid| state.owned(uid))
            .map(|(key, _)| key)
            .collect();
        let deletes: Vec<Op> = dependents
            .into_iter()
            .filter_map(|key| Some((key, state.records.get(key)?)))
            .filter(|(_, record)| !record.deleting())
            // One owner that lives is enough to stay.
            .filter(|(_, record)| {
                record
                    .owners()
                    .iter()
                    .all(|owner| !state.by_uid.contains_key(owner.uid.as_str()))
            })
            .map(|(key, record)| delete(key.to_proto(), record.uid(), "Background"))
            .collect();
        self.propose_each(&[], deletes);

        let waiting = state
            .deleting
            .iter()
            .filter(|key| !matches!(key.kind, Kind::Pod | Kind::Namespace));
        let foreground = |record: &Record| {
            let finalizers = record.finalizers();
            // Below level 5 nothing else keeps what is to go.
            finalizers.is_empty() || finalizers.iter().any(|finalizer| finalizer == FOREGROUND)
        };
        for key in waiting {
            let Some(record) = state.records.get(key).filter(|record| foreground(record)) else {
                continue;
            };
            if state.by_owner.contains_key(record.uid()) {
                let owned = state.owned(record.uid()).filter(|(_, owned)| !owned.deleting());
                let deletes: Vec<Op> = owned
                    .map(|(key, owned)| delete(key.to_proto(), owned.uid(), "Foreground"))
                    .collect();
                self.propose_each(&[], deletes);
            } else {
                let remove = Remove {
                    key: Some(key.to_proto()),
                    uid: record.uid().to_owned(),
                };
                self.propose(Vec::new(), vec![Op::Remove(remove)]);
            }
        }
    }
}
