//! Changing one object as it is now: read, change, replace if nobody came between, else again. So nobody's change is lost.

use model::object;
use proto::state::v1::Key;
use proto::v1::Object;
use tonic::Code;

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::verb::apply;

/// How often it is begun anew: statuses change an object too, several times while a rollout goes on.
const ATTEMPTS_MAX: u32 = 16;

/// Makes `change` of the object and writes it; whether anything differs by it.
pub(crate) async fn one(
    cluster: &Cluster,
    key: &Key,
    verb: &str,
    dry_run: bool,
    change: impl Fn(&mut Object) -> Result<(), CtlError>,
) -> Result<bool, CtlError> {
    for _ in 0..ATTEMPTS_MAX {
        let there = cluster.get(key.clone()).await?;
        let mut changed = there.clone();
        change(&mut changed)?;
        if changed == there {
            return Ok(false);
        }
        if replace(cluster, changed, verb, dry_run).await? {
            return Ok(true);
        }
    }
    Err(CtlError::refused(format!(
        "{} kept changing; try again",
        crate::target::shown(key)
    )))
}

/// Replaces an object that was read; false when it has changed since.
pub(crate) async fn replace(
    cluster: &Cluster,
    mut object: Object,
    verb: &str,
    dry_run: bool,
) -> Result<bool, CtlError> {
    // It is the cluster's, and the resourceVersion says that nothing of it has changed.
    object::clear_status(&mut object);
    match apply::send(cluster, vec![object], "REPLACE", verb, dry_run).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::Aborted => Ok(false),
        Err(status) => Err(cluster.error(status)),
    }
}
