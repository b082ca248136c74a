//! Small changes of one thing: the number of replicas, whether nodes take pods, an earlier revision.

use std::collections::BTreeMap;

use model::{Kind, object, template_hash};
use proto::state::v1::command::Kind as Body;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::precondition::Expect;
use proto::state::v1::{Key, Operation, Precondition, Put, Scale, Transaction};
use proto::v1::object::Object as Any;
use proto::v1::{Deployment, Node, Object, ObjectMeta, PodTemplateSpec, ReplicaSet};
use rpc::v1::{ApplyResponse, ApplyResult, RollbackRequest, ScaleRequest, SetSchedulableRequest};
use state::rbac::Who;
use state::{REVISION_ANNOTATION, State};
use tonic::Status;

use super::delete::missing;
use super::status::{Reason, refusal, refused, refused_one};
use super::{ATTEMPTS_MAX, By, Service, attempt_id, contended};
use crate::security::new_uuid;

/// What a look at the state comes to.
struct Change {
    /// Nothing to do when it is empty.
    transaction: Transaction,
    /// The answer when there is nothing to do.
    as_it_is: Vec<Object>,
}

impl Service {
    /// Decides, writes, and decides anew while what it was decided on has changed.
    async fn change(
        &self,
        what: &str,
        by: &By,
        decide: impl Fn(&State) -> Result<Change, Status>,
    ) -> Result<(Vec<Object>, u64), Status> {
        let id = new_uuid();
        for attempt in 0..ATTEMPTS_MAX {
            let state = self.state().await?;
            let change = decide(&state)?;
            if change.transaction.operations.is_empty() {
                return Ok((change.as_it_is, state.revision()));
            }
            let body = Body::Transaction(change.transaction);
            match self.propose(by, attempt_id(&id, attempt), body).await? {
                Ok(applied) => return Ok((applied.objects, applied.revision)),
                Err(refusal) => tracing::debug!(attempt, ?refusal, what, "a change is decided anew"),
            }
        }
        Err(contended(what))
    }

    async fn change_one(
        &self,
        key: &Key,
        by: &By,
        decide: impl Fn(&State) -> Result<Change, Status>,
    ) -> Result<Object, Status> {
        let (objects, _) = self
            .change(&format!("{} {}", key.kind, key.name), by, decide)
            .await?;
        let object = objects.into_iter().next();
        object.ok_or_else(|| Status::internal("the state gave no object"))
    }

    pub(super) async fn do_scale(&self, request: &ScaleRequest, by: &By) -> Result<Object, Status> {
        let (kind, key) = super::key(request.key.as_ref())?;
        if request.replicas < 0 {
            let message = format!("replicas must be at least 0, is {}", request.replicas);
            return Err(refused_one(Reason::Invalid, message));
        }
        self.change_one(&key, by, |state| scale(state, kind, &key, request))
            .await
    }

    pub(super) async fn do_set_schedulable(
        &self,
        request: &SetSchedulableRequest,
        who: &Who,
    ) -> Result<ApplyResponse, Status> {
        if request.nodes.is_empty() || request.nodes.len() > state::OPERATIONS_MAX {
            return Err(refused_one(Reason::Invalid, "name the nodes"));
        }
        let decide = |state: &State| set_schedulable(state, &request.nodes, request.unschedulable);
        let by = By::new(
            who,
            if request.unschedulable {
                "cordon"
            } else {
                "uncordon"
            },
        );
        let (written, revision) = self.change("a node", &by, decide).await?;
        let state = self.node.stale();
        let written: BTreeMap<&str, &Object> = written
            .iter()
            .map(|object| (object::meta(object).name.as_str(), object))
            .collect();
        // A node that is named twice was changed once.
        let mut told = std::collections::BTreeSet::new();
        let results = request.nodes.iter().map(|name| match written.get(name.as_str()) {
            Some(node) if told.insert(name.as_str()) => ApplyResult {
                object: Some((*node).clone()),
                outcome: "configured".to_owned(),
            },
            _ => ApplyResult {
                object: state.get(&object::key_of(Kind::Node, "", name)),
                outcome: "unchanged".to_owned(),
            },
        });
        Ok(ApplyResponse {
            results: results.collect(),
            revision,
        })
    }

    pub(super) async fn do_rollback(&self, request: &RollbackRequest, by: &By) -> Result<Object, Status> {
        let (kind, key) = super::key(request.key.as_ref())?;
        if kind != Kind::Deployment {
            let message = format!("only Deployments have revisions, not a {kind}");
            return Err(refused_one(Reason::Invalid, message));
        }
        self.change_one(&key, by, |state| rollback(state, &key, request.revision))
            .await
    }
}

/// The object is as it was when this was decided.
fn unchanged(key: Key, meta: &ObjectMeta) -> Precondition {
    Precondition {
        key: Some(key),
        expect: Some(Expect::ResourceVersion(meta.resource_version.clone())),
    }
}

fn scale(state: &State, kind: Kind, key: &Key, request: &ScaleRequest) -> Result<Change, Status> {
    let Some(object) = state.get(key) else {
        return Err(missing(kind, key));
    };
    let replicas = match &object.object {
        Some(Any::Deployment(it)) => it.spec.as_ref().and_then(|spec| spec.replicas),
        Some(Any::ReplicaSet(it)) => it.spec.as_ref().and_then(|spec| spec.replicas),
        _ => {
            let message = format!(
                "{} has no replicas: only Deployments and ReplicaSets have",
                object::display(&object)
            );
            return Err(refused_one(Reason::Invalid, message));
        }
    };
    let replicas = replicas.unwrap_or(1);
    if let Some(expected) = request.current_replicas.filter(|expected| *expected != replicas) {
        let message = format!(
            "{} has {replicas} replicas, not {expected}",
            object::display(&object)
        );
        return Err(refused_one(Reason::Conflict, message));
    }
    let mut transaction = Transaction::default();
    if replicas != request.replicas {
        let meta = object::meta(&object);
        // Without a number to compare with, any change in between is fine.
        if request.current_replicas.is_some() {
            transaction.preconditions.push(unchanged(key.clone(), meta));
        }
        transaction.operations.push(Operation {
            operation: Some(Op::Scale(Scale {
                key: Some(key.clone()),
                uid: meta.uid.clone(),
                replicas: request.replicas,
            })),
        });
    }
    Ok(Change {
        transaction,
        as_it_is: vec![object],
    })
}

fn set_schedulable(state: &State, nodes: &[String], unschedulable: bool) -> Result<Change, Status> {
    let mut transaction = Transaction::default();
    let mut refusals = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for (item, name) in nodes.iter().enumerate() {
        let key = object::key_of(Kind::Node, "", name);
        let Some(mut node) = state.get(&key).and_then(object::into::<Node>) else {
            refusals.push(refusal(
                item,
                "",
                Reason::NotFound,
                super::not_found(Kind::Node, &key),
            ));
            continue;
        };
        let spec = node.spec.get_or_insert_default();
        if spec.unschedulable == unschedulable || !seen.insert(name) {
            continue;
        }
        spec.unschedulable = unschedulable;
        let meta = node.metadata.clone().unwrap_or_default();
        transaction.preconditions.push(unchanged(key, &meta));
        transaction.operations.push(put(object::from(node)));
    }
    if !refusals.is_empty() {
        return Err(refused(refusals));
    }
    Ok(Change {
        transaction,
        as_it_is: Vec::new(),
    })
}

fn put(object: Object) -> Operation {
    Operation {
        operation: Some(Op::Put(Put { object: Some(object) })),
    }
}

/// As `kubectl rollout undo` has it: the template of an earlier revision becomes the wanted one; where it is that already,
/// nothing happens.
fn rollback(state: &State, key: &Key, revision: u32) -> Result<Change, Status> {
    let Some(mut deployment) = state.get(key).and_then(object::into::<Deployment>) else {
        return Err(missing(Kind::Deployment, key));
    };
    let name = &key.name;
    if deployment.spec.as_ref().is_some_and(|spec| spec.paused) {
        return Err(Status::failed_precondition(format!(
            "deployment/{name} is paused: a paused deployment can't be rolled back; apply it with spec.paused false first"
        )));
    }
    let meta = deployment.metadata.clone().unwrap_or_default();
    let revisions = revisions(state, &meta.uid);
    let wanted = match revision {
        0 => {
            let mut earlier = revisions.iter().rev().skip(1);
            earlier.next().ok_or_else(|| {
                refused_one(
                    Reason::NotFound,
                    format!("deployment/{name} has no revision before the current one"),
                )
            })?
        }
        wanted => revisions.get_key_value(&u64::from(wanted)).ok_or_else(|| {
            let known: Vec<String> = revisions.keys().map(u64::to_string).collect();
            let known = match known.is_empty() {
                true => "it has none yet".to_owned(),
                false => format!("there are {}", known.join(", ")),
            };
            refused_one(
                Reason::NotFound,
                format!("deployment/{name} has no revision {wanted}: {known}"),
            )
        })?,
    };
    let template = without_hash(wanted.1);
    let spec = deployment.spec.get_or_insert_default();
    let mut transaction = Transaction::default();
    if spec.template.as_ref() != Some(&template) {
        spec.template = Some(template);
        transaction.preconditions.push(unchanged(key.clone(), &meta));
        transaction.operations.push(put(object::from(deployment.clone())));
    }
    Ok(Change {
        transaction,
        as_it_is: vec![object::from(deployment)],
    })
}

/// Templates of a Deployment's revisions, by number.
fn revisions(state: &State, uid: &str) -> BTreeMap<u64, PodTemplateSpec> {
    let sets = state.owned_by(uid).filter_map(object::into::<ReplicaSet>);
    let numbered = sets.filter_map(|set| {
        let number = set.metadata?.annotations.get(REVISION_ANNOTATION)?.parse().ok()?;
        Some((number, set.spec?.template?))
    });
    numbered.collect()
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        meta.labels.remove(template_hash::LABEL);
    }
    template
}

#[cfg(test)]
mod tests {
    use proto::state::v1::{ClusterSettings, Command, NodeJoin};
    use proto::v1::{Container, DeploymentSpec, LabelSelector, PodSpec};
    use state::plan;
    use tonic::Code;

    use super::*;

    fn do_it(state: &mut State, kind: Body) {
        let outcome = state.apply(&Command {
            time: Some(crate::clock::timestamp(1_000)),
            kind: Some(kind),
            ..Default::default()
        });
        assert!(outcome.applied(), "{:?}", outcome.reply);
    }

    fn begun() -> State {
        let mut state = State::new();
        do_it(
            &mut state,
            Body::Settings(ClusterSettings {
                cluster_id: "test".to_owned(),
                pod_cidr: "10.244.0.0/16".to_owned(),
                service_cidr: "10.96.0.0/16".to_owned(),
                cluster_domain: "cluster.local".to_owned(),
                node_prefix: 24,
            }),
        );
        state
    }

    fn deployment(image: &str) -> Object {
        let labels = [("app".to_owned(), "web".to_owned())];
        let mut object = object::from(Deployment {
            metadata: Some(ObjectMeta {
                name: "web".to_owned(),
                namespace: "default".to_owned(),
                uid: "uid-web".to_owned(),
                ..Default::default()
            }),
            spec: Some(DeploymentSpec {
                replicas: Some(2),
                selector: Some(LabelSelector {
                    match_labels: labels.clone().into(),
                    ..Default::default()
                }),
                template: Some(PodTemplateSpec {
                    metadata: Some(ObjectMeta {
                        labels: labels.into(),
                        ..Default::default()
                    }),
                    spec: Some(PodSpec {
                        containers: vec![Container {
                            name: "main".to_owned(),
                            image: image.to_owned(),
                            ..Default::default()
                        }],
                        ..Default::default()
                    }),
                }),
                ..Default::default()
            }),
            ..Default::default()
        });
        model::default::object(&mut object);
        object
    }

    /// What the leader's loop does of it.
    fn settle(state: &mut State) {
        for _ in 0..10 {
            for command in plan::commands(state, 2_000, &plan::World::default()) {
                state.apply(&command);
            }
        }
    }

    fn key() -> Key {
        object::key(&deployment("a"))
    }

    fn apply(state: &mut State, change: Change) {
        do_it(state, Body::Transaction(change.transaction));
    }

    fn image(state: &State) -> String {
        let deployment = object::into::<Deployment>(state.get(&key()).unwrap()).unwrap();
        deployment
            .spec
            .unwrap()
            .template
            .unwrap()
            .spec
            .unwrap()
            .containers[0]
            .image
            .clone()
    }

    fn put_and_settle(state: &mut State, image: &str) {
        do_it(
            state,
            Body::Transaction(Transaction {
                operations: vec![put(deployment(image))],
                ..Default::default()
            }),
        );
        settle(state);
    }

    #[test]
    fn undo_goes_to_the_revision_before_and_back_again() {
        let mut state = begun();
        put_and_settle(&mut state, "a:1");
        let first = rollback(&state, &key(), 0).err().unwrap();
        assert_eq!(first.code(), Code::NotFound);
        put_and_settle(&mut state, "a:2");
        let back = rollback(&state, &key(), 0).unwrap();
        apply(&mut state, back);
        settle(&mut state);
        assert_eq!(image(&state), "a:1");
        let forth = rollback(&state, &key(), 0).unwrap();
        apply(&mut state, forth);
        assert_eq!(image(&state), "a:2");
    }

    #[test]
    fn undo_to_a_revision_that_is_not_there_names_those_that_are() {
        let mut state = begun();
        put_and_settle(&mut state, "a:1");
        put_and_settle(&mut state, "a:2");
        let refused = rollback(&state, &key(), 7).err().unwrap();
        assert_eq!(refused.code(), Code::NotFound);
        assert_eq!(
            refused.message(),
            "deployment/web has no revision 7: there are 1, 2"
        );
        let same = rollback(&state, &key(), 2).unwrap();
        assert!(same.transaction.operations.is_empty(), "it is that revision");
        assert_eq!(same.as_it_is.len(), 1);
        let other = Key {
            name: "other".to_owned(),
            ..key()
        };
        assert_eq!(rollback(&state, &other, 0).err().unwrap().code(), Code::NotFound);
    }

    #[test]
    fn a_paused_deployment_is_not_rolled_back() {
        let mut state = begun();
        put_and_settle(&mut state, "a:1");
        let mut paused = deployment("a:2");
        if let Some(Any::Deployment(deployment)) = &mut paused.object {
            deployment.spec.as_mut().unwrap().paused = true;
        }
        do_it(
            &mut state,
            Body::Transaction(Transaction {
                operations: vec![put(paused)],
                ..Default::default()
            }),
        );
        let refused = rollback(&state, &key(), 1).err().unwrap();
        assert_eq!(refused.code(), Code::FailedPrecondition);
    }

    #[test]
    fn scaling_compares_with_the_number_that_was_expected() {
        let mut state = begun();
        put_and_settle(&mut state, "a:1");
        let request = |replicas, current| ScaleRequest {
            key: Some(key()),
            replicas,
            current_replicas: current,
        };
        let scaled = |state: &State, replicas, current| {
            scale(state, Kind::Deployment, &key(), &request(replicas, current))
        };
        assert_eq!(scaled(&state, 5, Some(3)).err().unwrap().code(), Code::Aborted);
        assert!(scaled(&state, 2, None).unwrap().transaction.operations.is_empty());
        let change = scaled(&state, 5, Some(2)).unwrap();
        assert_eq!(change.transaction.preconditions.len(), 1);
        apply(&mut state, change);
        assert!(scaled(&state, 5, None).unwrap().transaction.operations.is_empty());
    }

    #[test]
    fn nodes_are_cordoned_together_or_not_at_all() {
        let mut state = begun();
        for name in ["n1", "n2"] {
            let node = Node {
                metadata: Some(ObjectMeta {
                    name: name.to_owned(),
                    uid: format!("uid-{name}"),
                    ..Default::default()
                }),
                ..Default::default()
            };
            do_it(&mut state, Body::NodeJoin(NodeJoin { node: Some(node) }));
        }
        let names = |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        let refused = set_schedulable(&state, &names(&["n1", "n9"]), true)
            .err()
            .unwrap();
        assert_eq!(refused.code(), Code::NotFound);
        let change = set_schedulable(&state, &names(&["n1", "n2", "n1"]), true).unwrap();
        assert_eq!(change.transaction.operations.len(), 2);
        apply(&mut state, change);
        let again = set_schedulable(&state, &names(&["n1", "n2"]), true).unwrap();
        assert!(again.transaction.operations.is_empty());
    }
}
