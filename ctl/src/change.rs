//! Changing one object as it is now: read, change, replace if nobody came between, else again. So nobody's change is lost.

use model::{object, read};
use proto::state::v1::Key;
use proto::v1::Object;
use tonic::Code;

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::target::shown;
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
        shown(key)
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

/// One object as somebody wrote it, in `file`; it must be the one that is changed.
pub(crate) fn manifest(file: &str, bytes: &[u8], key: &Key) -> Result<Object, CtlError> {
    let refused = |refusals: read::Refusals| {
        let lines = refusals.to_string();
        CtlError::Refused(lines.lines().map(str::to_owned).collect())
    };
    let manifests = read::manifests(file, bytes).map_err(refused)?;
    let [manifest] = manifests.as_slice() else {
        let message = format!("one object is {file}, not {}", manifests.len());
        return Err(CtlError::refused(message));
    };
    let mut object = manifest.object.clone();
    model::default::object(&mut object);
    if object::key(&object) != *key {
        let message = format!("kind, namespace and name stay: this is not {}", shown(key));
        return Err(CtlError::refused(message));
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_changed_stays_one_object_of_its_name() {
        let key = crate::target::key(model::Kind::ConfigMap, "default", "a".to_owned());
        let map = |name: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n");
        let read = |text: &str| manifest("edited", text.as_bytes(), &key);
        assert_eq!(object::key(&read(&map("a")).unwrap()), key);
        assert!(read(&map("b")).is_err());
        assert!(read(&format!("{}---\n{}", map("a"), map("c"))).is_err());
        let refused = read(&map("a").replace("name:", "nmae:")).unwrap_err().to_string();
        assert!(
            refused.contains("did you mean") && refused.contains("edited:3:"),
            "{refused}"
        );
    }
}
