//! `ctl rollout status|history|undo|restart|pause|resume deployment/NAME`.

use clap::Subcommand;
use model::{Kind, object};
use proto::state::v1::Key;
use proto::v1::object::Object as Any;
use proto::v1::{DeploymentSpec, Object, ReplicaSet};
use rpc::v1::RollbackRequest;

use crate::cluster::{Cluster, Query};
use crate::error::CtlError;
use crate::output::{Output, Table};
use crate::waiting::{self, Verdict};
use crate::{age, change, target};

/// Where a ReplicaSet keeps its revision, Kubernetes' own annotation.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// When the pods were last restarted for no other reason, Kubernetes' own annotation.
const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";
/// Why a change was made, when somebody said so.
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";

/// Arguments of `ctl rollout`.
#[derive(clap::Args)]
pub(crate) struct Rollout {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Wait until the latest revision runs everywhere
    Status {
        /// The Deployment, as deployment/web
        #[arg(required = true, value_name = "KIND/NAME", num_args = 1..=2)]
        target: Vec<String>,
        /// How long to wait
        #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = age::parse)]
        timeout: u64,
    },
    /// List the revisions
    History {
        /// The Deployment, as deployment/web
        #[arg(required = true, value_name = "KIND/NAME", num_args = 1..=2)]
        target: Vec<String>,
    },
    /// Replace every pod, with nothing else changed
    Restart {
        /// The Deployment, as deployment/web
        #[arg(required = true, value_name = "KIND/NAME", num_args = 1..=2)]
        target: Vec<String>,
    },
    /// Let changes of the template wait
    Pause {
        /// The Deployment, as deployment/web
        #[arg(required = true, value_name = "KIND/NAME", num_args = 1..=2)]
        target: Vec<String>,
    },
    /// Roll out what waits
    Resume {
        /// The Deployment, as deployment/web
        #[arg(required = true, value_name = "KIND/NAME", num_args = 1..=2)]
        target: Vec<String>,
    },
    /// Go back to an earlier revision
    Undo {
        /// The Deployment, as deployment/web
        #[arg(required = true, value_name = "KIND/NAME", num_args = 1..=2)]
        target: Vec<String>,
        /// Which revision; 0 is the one before the current
        #[arg(long, value_name = "N", default_value_t = 0)]
        to_revision: u32,
    },
}

/// Runs `ctl rollout`.
pub(crate) async fn run(args: Rollout, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    match args.verb {
        Verb::Status { target, timeout } => {
            status(&deployment(&target, cluster)?, timeout, cluster, out).await
        }
        Verb::History { target } => history(&deployment(&target, cluster)?, cluster, out).await,
        Verb::Restart { target } => restart(&deployment(&target, cluster)?, cluster, out).await,
        Verb::Pause { target } => pause(&deployment(&target, cluster)?, true, cluster, out).await,
        Verb::Resume { target } => pause(&deployment(&target, cluster)?, false, cluster, out).await,
        Verb::Undo { target, to_revision } => {
            let key = deployment(&target, cluster)?;
            let request = RollbackRequest {
                key: Some(key.clone()),
                revision: to_revision,
            };
            cluster
                .api
                .clone()
                .rollback(request)
                .await
                .map_err(|status| cluster.error(status))?;
            out.line(format_args!("{} rolled back", target::shown(&key)))
        }
    }
}

fn deployment(words: &[String], cluster: &Cluster) -> Result<Key, CtlError> {
    let key = target::one(words, &cluster.namespace)?;
    if key.kind != Kind::Deployment.as_str() {
        return Err(CtlError::Usage(format!(
            "only Deployments have rollouts, not {}",
            target::shown(&key)
        )));
    }
    Ok(key)
}

async fn status(key: &Key, timeout: u64, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    waiting::until(
        cluster,
        key,
        "to be rolled out",
        timeout,
        out,
        |object| match object.map(|object| &object.object) {
            Some(Some(Any::Deployment(deployment))) => waiting::rollout(deployment),
            _ => Verdict::Failed("it is not there".to_owned()),
        },
    )
    .await?;
    out.line(format_args!("{} successfully rolled out", target::shown(key)))
}

/// As kubectl: a note in the template makes another revision of it.
async fn restart(key: &Key, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let now = age::stamp(&pbjson_types::Timestamp {
        seconds: age::now(),
        nanos: 0,
    });
    let restart = |object: &mut Object| {
        let spec = spec(object)?;
        if spec.paused {
            let message = format!("{} is paused: run `ctl rollout resume` first", target::shown(key));
            return Err(CtlError::refused(message));
        }
        let template = spec.template.get_or_insert_default();
        let notes = &mut template.metadata.get_or_insert_default().annotations;
        notes.insert(RESTARTED_AT.to_owned(), now.clone());
        Ok(())
    };
    let changed = change::one(cluster, key, "rollout restart", false, restart).await?;
    if !changed {
        let message = format!("{} was restarted in this second already", target::shown(key));
        return Err(CtlError::refused(message));
    }
    out.line(format_args!("{} restarted", target::shown(key)))
}

async fn pause(key: &Key, paused: bool, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let (verb, word) = match paused {
        true => ("rollout pause", "paused"),
        false => ("rollout resume", "resumed"),
    };
    let set = |object: &mut Object| {
        spec(object)?.paused = paused;
        Ok(())
    };
    let already = match change::one(cluster, key, verb, false, set).await? {
        true => "",
        false => "already ",
    };
    out.line(format_args!("{} {already}{word}", target::shown(key)))
}

fn spec(object: &mut Object) -> Result<&mut DeploymentSpec, CtlError> {
    match &mut object.object {
        Some(Any::Deployment(deployment)) => Ok(deployment.spec.get_or_insert_default()),
        _ => Err(CtlError::refused("the cluster answered with another kind")),
    }
}

async fn history(key: &Key, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let deployment = cluster.get(key.clone()).await?;
    let uid = object::meta(&deployment).uid.clone();
    let query = Query {
        kind: Kind::ReplicaSet.as_str().to_owned(),
        namespace: key.namespace.clone(),
        ..Query::default()
    };
    let mut sets: Vec<ReplicaSet> = cluster
        .list(&query)
        .await?
        .items
        .into_iter()
        .filter_map(typed)
        .collect();
    sets.retain(|set| {
        set.metadata
            .as_ref()
            .is_some_and(|meta| meta.owner_references.iter().any(|owner| owner.uid == uid))
    });
    let note = |set: &ReplicaSet, name: &str| {
        set.metadata
            .as_ref()
            .and_then(|meta| meta.annotations.get(name))
            .cloned()
            .unwrap_or_default()
    };
    sets.sort_by_key(|set| note(set, REVISION).parse::<u64>().unwrap_or_default());
    let mut table = Table::new([
        "REVISION",
        "REPLICASET",
        "REPLICAS",
        "AGE",
        "IMAGES",
        "CHANGE-CAUSE",
    ]);
    for set in &sets {
        let meta = set.metadata.clone().unwrap_or_default();
        let spec = set.spec.clone().unwrap_or_default();
        let containers = spec
            .template
            .and_then(|template| template.spec)
            .unwrap_or_default()
            .containers;
        let images: Vec<String> = containers.into_iter().map(|container| container.image).collect();
        table.row(vec![
            note(set, REVISION),
            meta.name,
            spec.replicas.unwrap_or_default().to_string(),
            age::since(meta.creation_timestamp.as_ref()),
            images.join(","),
            note(set, CHANGE_CAUSE),
        ]);
    }
    out.table(&table)
}

fn typed(object: Object) -> Option<ReplicaSet> {
    match object.object {
        Some(Any::ReplicaSet(set)) => Some(set),
        _ => None,
    }
}
