//! The pod that is meant by what a person names: a pod, or a workload whose pods are alike.

use model::{Kind, object};
use proto::v1::object::Object as Any;
use proto::v1::{Object, Pod};

use crate::cluster::{Cluster, Query};
use crate::error::CtlError;
use crate::output::Output;
use crate::target;

/// `web-1` and `pod/web-1` are that pod; of `deploy/web` it is one that is ready, and is named to the person.
pub(crate) async fn find(cluster: &Cluster, word: &str, out: &mut Output) -> Result<String, CtlError> {
    let (kind, name) = target::pod_or_workload(word)?;
    if kind == Kind::Pod {
        return Ok(name);
    }
    let workload = cluster
        .get(target::key(kind, &cluster.namespace, name.clone()))
        .await?;
    let pods = of_workload(cluster, &workload).await?;
    let chosen = pods
        .iter()
        .find(|pod| is_ready(pod))
        .or_else(|| pods.first())
        .and_then(|pod| pod.metadata.as_ref())
        .ok_or_else(|| CtlError::refused(format!("{word} has no pods")))?;
    if pods.len() > 1 {
        out.note(format_args!("of {} pods: pod/{}", pods.len(), chosen.name));
    }
    Ok(chosen.name.clone())
}

async fn of_workload(cluster: &Cluster, workload: &Object) -> Result<Vec<Pod>, CtlError> {
    let mut owners = vec![object::meta(workload).uid.clone()];
    let query = |kind: Kind| Query {
        kind: kind.as_str().to_owned(),
        namespace: cluster.namespace.clone(),
        ..Query::default()
    };
    let sets = cluster.list(&query(Kind::ReplicaSet)).await?.items;
    // A Deployment owns ReplicaSets, which own the pods.
    let owned = sets.iter().filter(|set| is_owned(set, &owners));
    let owned: Vec<String> = owned.map(|set| object::meta(set).uid.clone()).collect();
    owners.extend(owned);
    let pods = cluster.list(&query(Kind::Pod)).await?.items;
    Ok(pods
        .into_iter()
        .filter(|pod| is_owned(pod, &owners))
        .filter_map(|pod| match pod.object {
            Some(Any::Pod(pod)) => Some(pod),
            _ => None,
        })
        .collect())
}

fn is_owned(object: &Object, owners: &[String]) -> bool {
    let references = &object::meta(object).owner_references;
    references
        .iter()
        .any(|reference| reference.controller == Some(true) && owners.contains(&reference.uid))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| &status.conditions);
    let ready = conditions
        .into_iter()
        .any(|condition| condition.r#type == "Ready" && condition.status == "True");
    let stays = pod
        .metadata
        .as_ref()
        .is_some_and(|meta| meta.deletion_timestamp.is_none());
    ready && stays
}
