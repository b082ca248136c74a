//! `ctl wait KIND/NAME --for CONDITION`.

use model::object;
use proto::v1::object::Object as Any;
use proto::v1::{Condition, Object};

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::Output;
use crate::selected::Selected;
use crate::target;
use crate::waiting::{self, Verdict};

/// Arguments of `ctl wait`.
#[derive(clap::Args)]
pub(crate) struct Wait {
    /// KIND/NAME..., or a kind with -l or --all
    #[arg(required = true, value_name = "KIND/NAME")]
    targets: Vec<String>,
    /// ready, delete, condition=NAME[=STATUS] or phase=PHASE
    #[arg(long = "for", value_name = "WHAT", default_value = "ready")]
    what: String,
    #[command(flatten)]
    selected: Selected,
    /// How long to wait for all of them
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = crate::age::parse)]
    timeout: u64,
}

enum Goal {
    Ready,
    Gone,
    Condition { name: String, status: String },
    Phase(String),
}

fn goal(text: &str) -> Result<Goal, CtlError> {
    let refused = || {
        CtlError::Usage(format!(
            "--for {text}: expected ready, delete, condition=NAME[=STATUS] or phase=PHASE"
        ))
    };
    match text.split_once('=') {
        None if text == "ready" => Ok(Goal::Ready),
        None if text == "delete" => Ok(Goal::Gone),
        Some(("condition", rest)) => {
            let (name, status) = rest.split_once('=').unwrap_or((rest, "True"));
            Ok(Goal::Condition {
                name: name.to_owned(),
                status: status.to_owned(),
            })
        }
        // As kubectl has it: --for=jsonpath='{.status.phase}'=Running
        Some(("jsonpath", rest)) => match rest
            .trim_start_matches(['\'', '"'])
            .strip_prefix("{.status.phase}")
        {
            Some(rest) => Ok(Goal::Phase(rest.trim_matches(['\'', '"', '=']).to_owned())),
            None => Err(refused()),
        },
        Some(("phase", phase)) => Ok(Goal::Phase(phase.to_owned())),
        _ => Err(refused()),
    }
}

/// Waits for each in turn, all within one time.
pub(crate) async fn run(args: Wait, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let goal = goal(&args.what)?;
    let began = tokio::time::Instant::now();
    let keys = args.selected.keys(&args.targets, cluster).await?;
    if keys.is_empty() && !matches!(goal, Goal::Gone) {
        return Err(CtlError::refused("no such objects"));
    }
    for key in keys {
        let left = args.timeout.saturating_sub(began.elapsed().as_secs());
        match &goal {
            Goal::Ready => waiting::until_ready(cluster, &key, left, out).await?,
            Goal::Gone => {
                let uid = cluster
                    .find(key.clone())
                    .await?
                    .map(|object| object::meta(&object).uid.clone());
                if let Some(uid) = uid {
                    waiting::until_gone(cluster, &key, &uid, left, out).await?;
                }
            }
            Goal::Condition { name, status } => {
                waiting::until(cluster, &key, &args.what, left, out, |object| match object {
                    Some(object) if waiting::holds(conditions(object), name, status) => Verdict::Reached,
                    _ => Verdict::Waiting(String::new()),
                })
                .await?;
            }
            Goal::Phase(wanted) => {
                waiting::until(cluster, &key, &args.what, left, out, |object| {
                    match object.map(|object| &object.object) {
                        Some(Some(Any::Pod(pod)))
                            if pod.status.as_ref().is_some_and(|status| status.phase == *wanted) =>
                        {
                            Verdict::Reached
                        }
                        _ => Verdict::Waiting(String::new()),
                    }
                })
                .await?;
            }
        }
        let word = if matches!(goal, Goal::Gone) {
            "gone"
        } else {
            "condition met"
        };
        out.line(format_args!("{} {word}", target::shown(&key)))?;
    }
    Ok(())
}

fn conditions(object: &Object) -> &[Condition] {
    match &object.object {
        Some(Any::Pod(it)) => it.status.as_ref().map_or(&[], |status| &status.conditions),
        Some(Any::Node(it)) => it.status.as_ref().map_or(&[], |status| &status.conditions),
        Some(Any::Deployment(it)) => it.status.as_ref().map_or(&[], |status| &status.conditions),
        Some(Any::ReplicaSet(it)) => it.status.as_ref().map_or(&[], |status| &status.conditions),
        Some(Any::Namespace(it)) => it.status.as_ref().map_or(&[], |status| &status.conditions),
        _ => &[],
    }
}
