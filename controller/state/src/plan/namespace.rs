//! A namespace that is being deleted: first what lives in it, then itself.

use model::Kind;
use proto::state::v1::Remove;
use proto::state::v1::operation::Operation as Op;

use super::{Plan, delete};

impl Plan<'_> {
    pub(super) fn namespaces(&mut self) {
        let leaving = self
            .state
            .deleting
            .iter()
            .filter(|key| key.kind == Kind::Namespace);
        for namespace in leaving {
            let name = namespace.name.as_ref();
            let Some(record) = self.state.records.get(namespace) else {
                continue;
            };
            let kinds = || Kind::ALL.into_iter().filter(|kind| kind.namespaced());
            let content = || kinds().flat_map(|kind| self.state.entries(kind, Some(name), None));
            if content().next().is_none() {
                if !record.finalizers().is_empty() {
                    continue;
                }
                let remove = Remove {
                    key: Some(namespace.to_proto()),
                    uid: record.uid().to_owned(),
                };
                self.propose(Vec::new(), vec![Op::Remove(remove)]);
                continue;
            }
            let deletes: Vec<Op> = content()
                .filter(|(_, record)| !record.deleting())
                .map(|(key, record)| delete(key.to_proto(), record.uid(), "Background"))
                .collect();
            self.propose_each(&[], deletes);
        }
    }
}
