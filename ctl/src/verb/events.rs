//! `ctl events`: what happened, the oldest first.

use futures_util::StreamExt;
use model::Kind;
use proto::v1::Event;
use proto::v1::object::Object as Any;

use crate::cluster::{Cluster, Query};
use crate::error::CtlError;
use crate::output::{Output, Table};
use crate::rows;
use crate::target::{self, Targets};

/// Arguments of `ctl events`.
#[derive(clap::Args)]
pub(crate) struct Events {
    /// Only about this object, as pod/web-1
    #[arg(value_name = "KIND/NAME", num_args = 0..=2)]
    target: Vec<String>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only Normal or Warning
    #[arg(long, value_name = "TYPE", value_parser = ["Normal", "Warning"])]
    types: Option<String>,
    /// Go on with what comes
    #[arg(short, long)]
    watch: bool,
}

/// Lists, then follows when asked to.
pub(crate) async fn run(args: Events, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let mut fields = Vec::new();
    let mut namespace = if args.all_namespaces {
        String::new()
    } else {
        cluster.namespace.clone()
    };
    if !args.target.is_empty() {
        let Targets::Named(named) = target::parse(&args.target)? else {
            return Err(CtlError::Usage("name one object, as KIND/NAME".to_owned()));
        };
        for (kind, name) in named {
            fields.push(format!("involvedObject.kind={}", kind.as_str()));
            fields.push(format!("involvedObject.name={name}"));
            if !kind.namespaced() {
                namespace.clear();
            }
        }
    }
    let query = Query {
        kind: Kind::Event.as_str().to_owned(),
        namespace,
        labels: String::new(),
        fields: fields.join(","),
    };
    let list = cluster.list(&query).await?;
    let wanted = |event: &Event| args.types.as_ref().is_none_or(|wanted| *wanted == event.r#type);
    let mut events: Vec<Event> = list.items.into_iter().filter_map(typed).filter(wanted).collect();
    sort(&mut events);
    let mut table = Table::new(rows::heading(Kind::Event, false));
    for event in events {
        table.row(cells(event));
    }
    out.table(&table)?;
    if !args.watch {
        return Ok(());
    }
    let mut changes = cluster.watch(&query, list.revision).await?;
    while let Some(change) = changes.next().await {
        let change = change.map_err(|status| cluster.error(status))?;
        if change.r#type == "DELETED" {
            continue;
        }
        if let Some(event) = change.object.and_then(typed).filter(wanted) {
            out.line(cells(event).join("   "))?;
        }
    }
    Ok(())
}

fn cells(event: Event) -> Vec<String> {
    rows::cells(
        &proto::v1::Object {
            object: Some(Any::Event(event)),
        },
        false,
    )
}

/// The event of an object, if it is one.
pub(crate) fn typed(object: proto::v1::Object) -> Option<Event> {
    match object.object {
        Some(Any::Event(event)) => Some(event),
        _ => None,
    }
}

/// By when each was last seen.
pub(crate) fn sort(events: &mut [Event]) {
    let seen = |event: &Event| {
        event
            .last_timestamp
            .or(event.first_timestamp)
            .map(|time| (time.seconds, time.nanos))
    };
    events.sort_by_key(seen);
}
