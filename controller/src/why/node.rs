//! Nodes and namespaces.

use model::{Kind, object};
use proto::v1::{Namespace, Node};

use super::{Cause, Look, Severity, cause, condition, word};

impl Look<'_> {
    pub(super) fn node(&self, node: &Node) -> Vec<Cause> {
        let meta = node.metadata.clone().unwrap_or_default();
        let subject = format!("node/{}", meta.name);
        let conditions = node.status.as_ref().map_or(&[][..], |status| &status.conditions);
        let mut causes = Vec::new();
        match condition(conditions, "Ready") {
            None => causes.push(
                cause(
                    Severity::Waiting,
                    &subject,
                    "NeverHeard",
                    "its agent was never heard since it joined",
                )
                .hint("is bulkhead-agent running there?"),
            ),
            Some(ready) if ready.status != "True" => {
                let since = self.ago(ready.last_transition_time.as_ref());
                let message = format!(
                    "{} (since {since})",
                    word(&ready.message, "the node is not ready")
                );
                causes.push(
                    cause(Severity::Error, &subject, word(&ready.reason, "NotReady"), message)
                        .hint("is the machine up, bulkhead-agent running there, and a controller reachable from it?"),
                );
            }
            Some(_) => {}
        }
        for condition in conditions {
            match (condition.r#type.as_str(), condition.status.as_str()) {
                ("ReplacementPaused", "True") => causes.push(
                    cause(Severity::Error, &subject, "ReplacementPaused", condition.message.clone())
                        .hint("bring nodes back, or delete those that will not come back with `ctl delete node/NAME`"),
                ),
                ("Ready" | "ReplacementPaused", _) => {}
                // As Kubernetes' own: these hold when something is short.
                (name, "True") if name.ends_with("Pressure") || name.ends_with("Unavailable") => {
                    causes.push(cause(Severity::Error, &subject, name, condition.message.clone()));
                }
                _ => {}
            }
        }
        if node.spec.as_ref().is_some_and(|spec| spec.unschedulable) {
            causes.push(
                cause(Severity::Waiting, &subject, "Cordoned", "it takes no new pods")
                    .hint(format!("`ctl uncordon {}` lets it take pods again", meta.name)),
            );
        }
        causes
    }

    pub(super) fn namespace(&self, namespace: &Namespace) -> Vec<Cause> {
        let meta = namespace.metadata.clone().unwrap_or_default();
        let Some(asked) = &meta.deletion_timestamp else {
            return Vec::new();
        };
        let left = Kind::ALL
            .into_iter()
            .filter(|kind| kind.namespaced())
            .filter_map(|kind| {
                let count = self.state.list(kind, Some(&meta.name), None).count();
                (count > 0).then(|| format!("{count} {}", kind.plural()))
            });
        let left: Vec<String> = left.collect();
        let subject = format!("namespace/{}", meta.name);
        let mut causes = vec![cause(
            Severity::Waiting,
            &subject,
            "Terminating",
            match left.is_empty() {
                true => format!("deletion was asked for {} ago", self.ago(Some(asked))),
                false => format!(
                    "deletion was asked for {} ago; still to go are {}",
                    self.ago(Some(asked)),
                    left.join(", ")
                ),
            },
        )];
        let pods = self.state.list(Kind::Pod, Some(&meta.name), None);
        for pod in pods.filter_map(object::into::<proto::v1::Pod>) {
            causes.extend(self.going(&pod));
            if causes.len() > super::workload::CAUSES_MAX {
                break;
            }
        }
        causes
    }
}
