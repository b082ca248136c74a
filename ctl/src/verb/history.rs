//! `ctl history KIND/NAME`: who changed an object, when, and what. `ctl undo`: bring an earlier form of it back.

use proto::state::v1::Key;
use rpc::v1::{HistoryEntry, HistoryRequest, UndoRequest};

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::{Output, Table};
use crate::verb::apply;
use crate::{age, target};

/// Arguments of `ctl history`.
#[derive(clap::Args)]
pub(crate) struct History {
    /// The object, as deployment/web; also one that is gone
    #[arg(required = true, value_name = "KIND/NAME", num_args = 1..=2)]
    target: Vec<String>,
    /// Show what the object was at this revision
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    revision: Option<u64>,
    /// yaml or json, with --revision
    #[arg(short, long, value_name = "FORMAT", value_parser = ["yaml", "json"], requires = "revision")]
    output: Option<String>,
}

/// Arguments of `ctl undo`.
#[derive(clap::Args)]
pub(crate) struct Undo {
    /// The object whose last change is to be undone, as deployment/web, or that change by its revision
    #[arg(required = true, value_name = "KIND/NAME|REVISION", num_args = 1..=2)]
    target: Vec<String>,
    /// Go back to what the object was at this revision
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    to_revision: Option<u64>,
    /// server: let the cluster decide everything and change nothing
    #[arg(long, value_name = "WHERE", value_parser = ["server", "none"], default_value = "none")]
    dry_run: String,
}

/// Asks and prints.
pub(crate) async fn run(args: History, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let key = target::one(&args.target, &cluster.namespace)?;
    let request = HistoryRequest {
        key: Some(key.clone()),
        revision: args.revision.unwrap_or(0),
    };
    let answer = cluster
        .call(request, async |mut api, request| api.history(request).await)
        .await
        .map_err(|status| cluster.error(status))?;
    if let Some(revision) = args.revision {
        let entry = answer.entries.into_iter().next();
        let Some(object) = entry.and_then(|entry| entry.object) else {
            let message = format!("{} was deleted at revision {revision}", target::shown(&key));
            return Err(CtlError::refused(message));
        };
        return match args.output.as_deref() {
            Some("json") => out.line(crate::rows::json_text(&object)?),
            _ => out.bytes(model::write::yaml(&object).as_bytes()),
        };
    }
    if answer.entries.is_empty() {
        out.note(format_args!(
            "nobody has changed {} as far as is known",
            target::shown(&key)
        ));
        return Ok(());
    }
    let mut table = Table::new(["REVISION", "WHEN", "WHO", "VERB", "CHANGED"]);
    for entry in &answer.entries {
        table.row(row(entry));
    }
    out.table(&table)
}

fn row(entry: &HistoryEntry) -> Vec<String> {
    let changed = match entry.what.as_str() {
        "changed" => {
            let more = match entry.more_paths {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("{}{more}", entry.paths.join(", "))
        }
        "known" => "(what was there before)".to_owned(),
        what => format!("({what})"),
    };
    vec![
        entry.revision.to_string(),
        entry.time.as_ref().map(age::stamp).unwrap_or_default(),
        entry.actor.clone(),
        entry.verb.clone(),
        changed,
    ]
}

/// Asks and says what the object is as now.
pub(crate) async fn undo(args: Undo, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let (key, revision) = undone(&args, &cluster.namespace)?;
    let dry_run = args.dry_run == "server";
    let request = UndoRequest {
        key,
        revision,
        to_revision: args.to_revision.unwrap_or(0),
        dry_run,
        request_id: apply::request_id().map_err(|status| cluster.error(status))?,
    };
    let answer = cluster
        .call(request, async |mut api, request| api.undo(request).await)
        .await
        .map_err(|status| cluster.error(status))?;
    let object = answer.object.unwrap_or_default();
    let Some(kind) = model::object::try_kind(&object) else {
        return Err(CtlError::refused("the cluster did not say what it brought back"));
    };
    let shown = format!("{}/{}", kind.singular(), model::object::meta(&object).name);
    let suffix = if dry_run { " (server dry run)" } else { "" };
    let of = match answer.revision {
        0 => String::new(),
        revision => format!(" to revision {revision}"),
    };
    match answer.outcome.as_str() {
        "unchanged" => out.line(format_args!("{shown} unchanged: it is as it was then")),
        "created" => out.line(format_args!("{shown} created again, back{of}{suffix}")),
        _ => out.line(format_args!("{shown} back{of}{suffix}")),
    }
}

/// Of which object, and which change: a lone number is a revision.
fn undone(args: &Undo, namespace: &str) -> Result<(Option<Key>, u64), CtlError> {
    if let [word] = args.target.as_slice()
        && let Ok(revision) = word.parse::<u64>()
    {
        if args.to_revision.is_some() || revision == 0 {
            let message = "either REVISION, or KIND/NAME with --to-revision";
            return Err(CtlError::Usage(message.to_owned()));
        }
        return Ok((None, revision));
    }
    Ok((Some(target::one(&args.target, namespace)?), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_number_is_a_revision() {
        let undo = |words: &str, to_revision| {
            let args = Undo {
                target: words.split(' ').map(str::to_owned).collect(),
                to_revision,
                dry_run: "none".to_owned(),
            };
            undone(&args, "default")
        };
        assert_eq!(undo("17", None).unwrap(), (None, 17));
        let (key, revision) = undo("deployment web", Some(3)).unwrap();
        assert_eq!((key.unwrap().name.as_str(), revision), ("web", 0));
        assert!(
            undo("17", Some(3)).is_err() && undo("0", None).is_err() && undo("deployments", None).is_err()
        );
    }

    #[test]
    fn a_row_says_what_changed() {
        let entry = HistoryEntry {
            revision: 7,
            actor: "ada".to_owned(),
            verb: "scale".to_owned(),
            what: "changed".to_owned(),
            paths: vec!["spec.replicas".to_owned()],
            more_paths: 2,
            ..HistoryEntry::default()
        };
        assert_eq!(row(&entry), ["7", "", "ada", "scale", "spec.replicas and 2 more"]);
    }
}
