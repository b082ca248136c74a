//! `ctl label KIND/NAME KEY=VALUE KEY-` and `ctl annotate` likewise: set and remove, of others' nothing.

use std::collections::BTreeMap;

use model::object;
use proto::v1::{Object, ObjectMeta};

use crate::change;
use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::Output;
use crate::selected::Selected;
use crate::target;

/// Arguments of `ctl label` and `ctl annotate`.
#[derive(clap::Args)]
pub(crate) struct Change {
    /// KIND NAME... or KIND/NAME..., then KEY=VALUE to set and KEY- to remove
    #[arg(required = true, value_name = "KIND/NAME KEY=VALUE|KEY-")]
    words: Vec<String>,
    /// Give keys that have a value already another one
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    selected: Selected,
    /// Show what the objects have
    #[arg(long)]
    list: bool,
    /// server: let the cluster decide everything and change nothing
    #[arg(long, value_name = "WHERE", value_parser = ["server", "none"], default_value = "none")]
    dry_run: String,
}

/// Which of the two maps.
#[derive(Clone, Copy)]
enum Map {
    Labels,
    Annotations,
}

impl Map {
    fn of(self, meta: &mut ObjectMeta) -> &mut BTreeMap<String, String> {
        match self {
            Self::Labels => &mut meta.labels,
            Self::Annotations => &mut meta.annotations,
        }
    }

    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Labels => ("label", "labeled", "unlabeled"),
            Self::Annotations => ("annotate", "annotated", "annotated"),
        }
    }
}

/// Sets and removes labels.
pub(crate) async fn label(args: Change, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    run(args, Map::Labels, cluster, out).await
}

/// Sets and removes annotations.
pub(crate) async fn annotate(args: Change, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    run(args, Map::Annotations, cluster, out).await
}

/// What to do with one key.
#[derive(Debug, PartialEq)]
enum Step {
    Set(String, String),
    Remove(String),
}

async fn run(args: Change, map: Map, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let (resources, steps) = split(&args.words)?;
    if steps.is_empty() && !args.list {
        return Err(CtlError::Usage(
            "say what to change: KEY=VALUE or KEY-".to_owned(),
        ));
    }
    let (verb, set, removed) = map.words();
    let dry_run = args.dry_run == "server";
    let suffix = if dry_run { " (server dry run)" } else { "" };
    let word = match steps.iter().any(|step| matches!(step, Step::Set(..))) {
        true => set,
        false => removed,
    };
    for key in args.selected.keys(&resources, cluster).await? {
        let shown = target::shown(&key);
        if !steps.is_empty() {
            let overwrite = args.overwrite;
            let carry_out =
                |object: &mut Object| change_one(map.of(object::meta_mut(object)), &steps, overwrite);
            match change::one(cluster, &key, verb, dry_run, carry_out).await? {
                true => out.line(format_args!("{shown} {word}{suffix}"))?,
                false => out.line(format_args!("{shown} not {set}"))?,
            }
        }
        if args.list {
            let mut object = cluster.get(key).await?;
            let what = match map {
                Map::Labels => "labels",
                Map::Annotations => "annotations",
            };
            out.line(format_args!("Listing {what} for {shown}:"))?;
            for (name, value) in map.of(object::meta_mut(&mut object)) {
                out.line(format_args!("  {name}={value}"))?;
            }
        }
    }
    Ok(())
}

fn change_one(map: &mut BTreeMap<String, String>, steps: &[Step], overwrite: bool) -> Result<(), CtlError> {
    for step in steps {
        match step {
            Step::Set(key, value) => {
                if let Some(there) = map.get(key).filter(|there| *there != value && !overwrite) {
                    return Err(CtlError::refused(format!(
                        "`{key}` already has a value ({there}), and --overwrite is not given"
                    )));
                }
                map.insert(key.clone(), value.clone());
            }
            Step::Remove(key) => {
                map.remove(key);
            }
        }
    }
    Ok(())
}

/// The words before the first KEY=VALUE or KEY-, and what these say.
fn split(words: &[String]) -> Result<(Vec<String>, Vec<Step>), CtlError> {
    let is_step = |word: &String| word.contains('=') || word.ends_with('-');
    let first = words.iter().position(is_step).unwrap_or(words.len());
    let (resources, steps) = words.split_at(first);
    let mut parsed = Vec::with_capacity(steps.len());
    for word in steps {
        let step = match (word.split_once('='), word.strip_suffix('-')) {
            (Some((key, value)), _) if !key.is_empty() => Step::Set(key.to_owned(), value.to_owned()),
            (None, Some(key)) if !key.is_empty() => Step::Remove(key.to_owned()),
            _ => return Err(CtlError::Usage(format!("`{word}` is not KEY=VALUE or KEY-"))),
        };
        let key = |step: &Step| match step {
            Step::Set(key, _) | Step::Remove(key) => key.clone(),
        };
        if parsed.iter().any(|other| key(other) == key(&step)) {
            let message = format!("`{}` is named twice", key(&step));
            return Err(CtlError::Usage(message));
        }
        parsed.push(step);
    }
    Ok((resources.to_vec(), parsed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn objects_come_first_then_what_to_change() {
        let (resources, steps) = split(&words("pods a b app=web empty= old-")).unwrap();
        assert_eq!(resources, ["pods", "a", "b"]);
        let set = |key: &str, value: &str| Step::Set(key.to_owned(), value.to_owned());
        assert_eq!(
            steps,
            [
                set("app", "web"),
                set("empty", ""),
                Step::Remove("old".to_owned())
            ]
        );
        for wrong in ["pod/a =x", "pod/a app=b c", "pod/a a=b a-", "pod/a -"] {
            assert!(split(&words(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_value_is_replaced_only_when_asked() {
        let mut map = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let set = [Step::Set("app".to_owned(), "db".to_owned())];
        let refused = change_one(&mut map, &set, false).unwrap_err();
        assert!(refused.to_string().contains("already has a value (web)"));
        change_one(&mut map, &set, true).unwrap();
        assert_eq!(map.get("app").map(String::as_str), Some("db"));
        change_one(&mut map, &[Step::Remove("app".to_owned())], false).unwrap();
        assert!(map.is_empty());
    }
}
