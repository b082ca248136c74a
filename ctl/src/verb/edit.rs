//! `ctl edit KIND/NAME`: change an object in an editor. What others change meanwhile is not overwritten.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use model::object;
use proto::state::v1::Key;
use proto::v1::Object;

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::Output;
use crate::verb::apply;
use crate::{change, target};

/// How often a change of the status alone is stepped over.
const ATTEMPTS_MAX: u32 = 16;
/// Above what is edited.
const HEADER: &str =
    "# Edit the object below. Lines that begin with # are ignored; an empty file, or one that is not
# changed, cancels the edit. If it is refused, it is opened again with the reasons.
";

/// Arguments of `ctl edit`.
#[derive(clap::Args)]
pub(crate) struct Edit {
    /// The object, as deployment/web; $VISUAL, $EDITOR or vi edits it
    #[arg(required = true, value_name = "KIND/NAME", num_args = 1..=2)]
    target: Vec<String>,
}

/// Opens the editor until what it leaves is taken, or nothing more is changed.
pub(crate) async fn run(args: Edit, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let key = target::one(&args.target, &cluster.namespace)?;
    let there = cluster.get(key.clone()).await?;
    let file = Draft::new(cluster)?;
    let original = text(&there);
    let mut draft = original.clone();
    let mut reasons: Vec<String> = Vec::new();
    loop {
        file.write(&format!("{HEADER}{}{draft}", comments(&reasons)))?;
        edit(&file.path)?;
        let edited = file.read()?;
        if edited.trim().is_empty() || edited == original {
            file.remove()?;
            out.note("Edit cancelled, no changes made.");
            return Ok(());
        }
        if edited == draft {
            // Nothing more was changed after a refusal.
            let kept = format!(
                "the edit was cancelled; your changes are in {}",
                file.path.display()
            );
            return Err(CtlError::Refused(reasons.into_iter().chain([kept]).collect()));
        }
        draft = edited;
        reasons = match save(&draft, &key, &there, cluster).await {
            Ok(changed) => {
                file.remove()?;
                let word = if changed { "edited" } else { "unchanged" };
                return out.line(format_args!("{} {word}", target::shown(&key)));
            }
            Err(CtlError::Refused(reasons)) => reasons,
            Err(error) => {
                out.note(format_args!("your changes are in {}", file.path.display()));
                return Err(error);
            }
        };
    }
}

/// Writes what was edited; whether it differs from what is there.
async fn save(draft: &str, key: &Key, there: &Object, cluster: &Cluster) -> Result<bool, CtlError> {
    let mut edited = change::manifest("edited", draft.as_bytes(), key)?;
    let mut base = there.clone();
    for _ in 0..ATTEMPTS_MAX {
        if text(&edited) == text(&base) {
            return Ok(false);
        }
        if change::replace(cluster, edited.clone(), "edit", false).await? {
            return Ok(true);
        }
        let now = cluster.get(key.clone()).await?;
        if text(&without_version(now.clone())) != text(&without_version(there.clone())) {
            let message = format!(
                "{} was changed meanwhile: take over what is new (`ctl get {} -o yaml`), with its resourceVersion {}",
                target::shown(key),
                target::shown(key),
                object::meta(&now).resource_version
            );
            // Whoever put the newest version there has seen it.
            if object::meta(&edited).resource_version != object::meta(&now).resource_version {
                return Err(CtlError::refused(message));
            }
        }
        let version = object::meta(&now).resource_version.clone();
        object::meta_mut(&mut edited).resource_version = version;
        base = now;
    }
    Err(CtlError::refused(format!(
        "{} keeps changing; save it again",
        target::shown(key)
    )))
}

/// What is edited: not the status, which is the cluster's.
fn text(object: &Object) -> String {
    let mut object = object.clone();
    object::clear_status(&mut object);
    model::write::yaml(&object)
}

fn without_version(mut object: Object) -> Object {
    let meta = object::meta_mut(&mut object);
    meta.resource_version.clear();
    object
}

fn comments(reasons: &[String]) -> String {
    let lines = reasons.iter().flat_map(|reason| reason.lines());
    lines.map(|line| format!("# refused: {line}\n")).collect()
}

/// Runs the editor as git does: a shell splits its words.
fn edit(path: &Path) -> Result<(), CtlError> {
    let named = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let editor = named("VISUAL")
        .or_else(|| named("EDITOR"))
        .unwrap_or_else(|| "vi".to_owned());
    let status = Command::new("sh")
        .arg("-c")
        .arg(format!("{editor} \"$1\""))
        .arg("sh")
        .arg(path)
        .status()
        .map_err(CtlError::io(format!("failed to run the editor `{editor}`")))?;
    if status.success() {
        Ok(())
    } else {
        Err(CtlError::refused(format!(
            "the editor `{editor}` failed ({status}); your changes are in {}",
            path.display()
        )))
    }
}

/// The file that is edited; for its owner alone, it may hold a Secret.
struct Draft {
    path: PathBuf,
}

impl Draft {
    fn new(cluster: &Cluster) -> Result<Self, CtlError> {
        let id = apply::request_id().map_err(|status| cluster.error(status))?;
        let path = std::env::temp_dir().join(format!("ctl-edit-{id}.yaml"));
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        made.map_err(CtlError::io(format!("failed to make {}", path.display())))?;
        Ok(Self { path })
    }

    fn write(&self, text: &str) -> Result<(), CtlError> {
        let file = OpenOptions::new().write(true).truncate(true).open(&self.path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(CtlError::io(format!("failed to write {}", self.path.display())))
    }

    /// Without the lines that are comments.
    fn read(&self) -> Result<String, CtlError> {
        let text = std::fs::read_to_string(&self.path);
        let text = text.map_err(CtlError::io(format!("failed to read {}", self.path.display())))?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Ok(lines.map(|line| format!("{line}\n")).collect())
    }

    fn remove(&self) -> Result<(), CtlError> {
        let removed = std::fs::remove_file(&self.path);
        removed.map_err(CtlError::io(format!("failed to remove {}", self.path.display())))
    }
}
