//! `ctl get KIND [NAME...]`: a table, or the objects themselves.

use model::{Kind, object};
use proto::v1::Object;

use crate::cluster::{Cluster, Query};
use crate::error::{CtlError, is_lost};
use crate::output::{Output, Table};
use crate::target::{self, Targets};
use crate::{files::Files, rows};

/// Arguments of `ctl get`.
#[derive(clap::Args)]
pub(crate) struct Get {
    /// KIND, KIND,KIND, KIND NAME... or KIND/NAME...
    #[arg(value_name = "KIND[/NAME]")]
    targets: Vec<String>,
    #[command(flatten)]
    files: Files,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only with these labels, as app=web,tier!=db
    #[arg(
        short = 'l',
        long,
        value_name = "SELECTOR",
        default_value = "",
        hide_default_value = true
    )]
    selector: String,
    /// Only with these fields, as spec.nodeName=node-1
    #[arg(long, value_name = "SELECTOR", default_value = "", hide_default_value = true)]
    field_selector: String,
    /// wide, yaml, json or name
    #[arg(short, long, value_name = "FORMAT", value_parser = ["wide", "yaml", "json", "name"])]
    output: Option<String>,
    /// Go on showing what changes
    #[arg(short, long)]
    watch: bool,
    /// Leave the heading out
    #[arg(long)]
    no_headers: bool,
    /// Show the labels too
    #[arg(long)]
    show_labels: bool,
}

/// Asks and prints; with `-w` until it is interrupted.
pub(crate) async fn run(args: Get, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let namespace = if args.all_namespaces {
        ""
    } else {
        cluster.namespace.as_str()
    };
    let query = |kind: Kind| Query {
        kind: kind.as_str().to_owned(),
        namespace: if kind.namespaced() {
            namespace.to_owned()
        } else {
            String::new()
        },
        labels: args.selector.clone(),
        fields: args.field_selector.clone(),
    };
    let targets = if args.files.filename.is_empty() {
        target::parse(&args.targets)?
    } else {
        let manifests = args.files.read(&[])?;
        let name = |manifest: &model::read::Manifest| {
            (
                object::kind(&manifest.object),
                object::meta(&manifest.object).name.clone(),
            )
        };
        Targets::Named(manifests.iter().map(name).collect())
    };
    match targets {
        Targets::Named(named) => {
            if args.watch && named.len() > 1 {
                return Err(CtlError::Usage("-w watches one kind or one object".to_owned()));
            }
            let mut objects = Vec::new();
            let mut missing = Vec::new();
            for (kind, name) in &named {
                match cluster
                    .find(target::key(*kind, &cluster.namespace, name.clone()))
                    .await?
                {
                    Some(object) => objects.push(object),
                    None => missing.push(not_found(*kind, name, &cluster.namespace)),
                }
            }
            print(&args, &objects, out)?;
            match (args.watch, named.first()) {
                (true, Some((kind, name))) if missing.is_empty() => {
                    let mut query = query(*kind);
                    query.fields = format!("metadata.name={name}");
                    follow(&args, cluster, &query, revision_of(&objects), out).await
                }
                _ if missing.is_empty() => Ok(()),
                _ => Err(CtlError::Refused(missing)),
            }
        }
        Targets::Kinds(kinds) => {
            if args.watch && kinds.len() > 1 {
                return Err(CtlError::Usage("-w watches one kind".to_owned()));
            }
            let mut all = Vec::new();
            let mut revision = 0;
            for kind in &kinds {
                let list = cluster.list(&query(*kind)).await?;
                revision = list.revision;
                all.extend(list.items);
            }
            print(&args, &all, out)?;
            if let (true, Some(kind)) = (args.watch, kinds.first()) {
                return follow(&args, cluster, &query(*kind), revision, out).await;
            }
            if all.is_empty() && args.output.as_deref().is_none_or(|format| format == "wide") {
                let place = if namespace.is_empty() {
                    String::new()
                } else {
                    format!(" in namespace {namespace}")
                };
                out.note(format_args!(
                    "no {} found{place}",
                    kinds
                        .iter()
                        .map(|kind| kind.plural())
                        .collect::<Vec<_>>()
                        .join(", ")
                ));
            }
            Ok(())
        }
    }
}

/// How a missing object is spoken of.
pub(crate) fn not_found(kind: Kind, name: &str, namespace: &str) -> String {
    let place = if kind.namespaced() {
        format!(" in namespace {namespace}")
    } else {
        String::new()
    };
    format!("{} {name} not found{place}", kind.as_str().to_lowercase())
}

fn revision_of(objects: &[Object]) -> u64 {
    objects
        .iter()
        .filter_map(|object| object::meta(object).resource_version.parse().ok())
        .max()
        .unwrap_or_default()
}

fn print(args: &Get, objects: &[Object], out: &mut Output) -> Result<(), CtlError> {
    match args.output.as_deref() {
        Some("name") => objects
            .iter()
            .try_for_each(|object| out.line(target::shown(&object::key(object)))),
        Some("yaml") => match objects {
            [one] => out.bytes(model::write::yaml(one).as_bytes()),
            many => many
                .iter()
                .try_for_each(|object| out.bytes(format!("---\n{}", model::write::yaml(object)).as_bytes())),
        },
        Some("json") => match objects {
            [one] if args.targets.iter().any(|word| word.contains('/')) || args.targets.len() == 2 => {
                out.line(rows::json_text(one)?)
            }
            many => out.line(rows::json_list(many)?),
        },
        _ => {
            // A table for each kind, in the order of asking.
            let mut rest = objects;
            while let Some(first) = rest.first() {
                let kind = object::kind(first);
                let count = rest
                    .iter()
                    .take_while(|object| object::kind(object) == kind)
                    .count();
                let (these, others) = rest.split_at(count);
                if rest.len() < objects.len() {
                    out.line("")?;
                }
                out.table(&table(args, kind, these))?;
                rest = others;
            }
            Ok(())
        }
    }
}

fn table(args: &Get, kind: Kind, objects: &[Object]) -> Table {
    let wide = args.output.as_deref() == Some("wide");
    let mut heading = rows::heading(kind, wide);
    if args.all_namespaces && kind.namespaced() {
        heading.insert(0, "NAMESPACE");
    }
    if args.show_labels {
        heading.push("LABELS");
    }
    let mut table = if args.no_headers {
        Table::new(heading.iter().map(|_| ""))
    } else {
        Table::new(heading)
    };
    for object in objects {
        table.row(cells(args, object, wide));
    }
    table
}

fn cells(args: &Get, object: &Object, wide: bool) -> Vec<String> {
    let mut cells = rows::cells(object, wide);
    let meta = object::meta(object);
    if args.all_namespaces && object::kind(object).namespaced() {
        cells.insert(0, meta.namespace.clone());
    }
    if args.show_labels {
        let labels: Vec<String> = meta
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        cells.push(labels.join(","));
    }
    cells
}

/// Prints each change as it comes.
async fn follow(
    args: &Get,
    cluster: &Cluster,
    query: &Query,
    revision: u64,
    out: &mut Output,
) -> Result<(), CtlError> {
    let mut revision = revision;
    loop {
        let mut events = cluster.watch(query, revision).await?;
        loop {
            let event = match events.message().await {
                Ok(Some(event)) => event,
                // A controller stops or dies: another one goes on where this one was.
                Ok(None) => break,
                Err(status) if is_lost(&status) => break,
                Err(status) => return Err(cluster.error(status)),
            };
            revision = revision.max(event.revision);
            if let Some(object) = event.object {
                show_change(args, &object, event.r#type == "DELETED", out)?;
            }
        }
    }
}

fn show_change(args: &Get, object: &Object, deleted: bool, out: &mut Output) -> Result<(), CtlError> {
    match args.output.as_deref() {
        Some("name") => out.line(target::shown(&object::key(object)))?,
        Some("yaml") => out.bytes(format!("---\n{}", model::write::yaml(object)).as_bytes())?,
        Some("json") => out.line(model::write::json(object))?,
        format => {
            let mut cells = cells(args, object, format == Some("wide"));
            if deleted {
                cells.push("(deleted)".to_owned());
            }
            let cells: Vec<String> = cells
                .into_iter()
                .map(|cell| if cell.is_empty() { "-".to_owned() } else { cell })
                .collect();
            out.line(cells.join("   "))?;
        }
    }
    Ok(())
}
