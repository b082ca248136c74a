//! `ctl cluster backup FILE`, `verify FILE`, `restore FILE`: all that the cluster has replicated, in one sealed file.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use rpc::v1::backup_part::Part;
use rpc::v1::{BackupEnd, BackupPart, BackupRequest, BackupStart, KindCount, RestoreResponse};
use seal::Key;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::age;
use crate::backup::check::{self, Checked};
use crate::backup::format::{Chunk, Writer};
use crate::backup::key::{self, Fresh};
use crate::backup::target::Target;
use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::{Output, Table};

/// Parts of a backup that wait for the cluster to take them.
const PARTS_MAX: usize = 4;

/// Arguments of `ctl cluster backup`.
#[derive(clap::Args)]
pub(crate) struct Backup {
    /// The file to write
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Seal it with the key in this file: 32 random bytes, in hex or base64
    #[arg(long, value_name = "KEY")]
    key_file: Option<PathBuf>,
    /// Make a key, in a new file of this name, and seal the backup with it
    #[arg(long, value_name = "KEY", conflicts_with = "key_file")]
    new_key_file: Option<PathBuf>,
    /// Also when the file is there already
    #[arg(long)]
    force: bool,
}

/// Arguments of `ctl cluster verify`.
#[derive(clap::Args)]
pub(crate) struct Verify {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The key that it was sealed with; without it only checksums are looked at
    #[arg(long, value_name = "KEY")]
    key_file: Option<PathBuf>,
}

/// Arguments of `ctl cluster restore`.
#[derive(clap::Args)]
pub(crate) struct Restore {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The key that it was sealed with
    #[arg(long, value_name = "KEY")]
    key_file: Option<PathBuf>,
}

/// Where the key of a new backup is from.
enum Source<'a> {
    File(Key),
    Fresh(Fresh, &'a Path),
}

impl<'a> Source<'a> {
    fn of(args: &'a Backup, out: &mut Output) -> Result<Self, CtlError> {
        match (&args.key_file, &args.new_key_file) {
            (Some(path), _) => Ok(Self::File(key::read(path, out)?)),
            (None, Some(path)) if path.exists() => Err(CtlError::refused(format!(
                "{} exists: name it with --key-file to use it, or another one with --new-key-file",
                path.display()
            ))),
            (None, Some(path)) => Ok(Self::Fresh(Fresh::make(), path)),
            (None, None) => Err(CtlError::Usage(
                "a backup has every Secret of the cluster in it, so it is always sealed: name a key with --key-file \
                 KEY, or have one made with --new-key-file KEY. Keep the key apart from the backup, and keep it: \
                 nothing else opens the backup"
                    .to_owned(),
            )),
        }
    }

    fn key(&self) -> Key {
        match self {
            Self::File(key) => key.clone(),
            Self::Fresh(fresh, _) => fresh.key(),
        }
    }
}

/// Runs `ctl cluster backup`.
pub(crate) async fn backup(args: Backup, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let path = &args.file;
    if path.exists() && !args.force {
        return Err(CtlError::refused(format!(
            "{} exists; --force writes over it",
            path.display()
        )));
    }
    let source = Source::of(&args, out)?;
    let key = source.key();
    let answer = cluster.api.clone().backup(BackupRequest {}).await;
    let mut parts = answer.map_err(|status| cluster.error(status))?.into_inner();
    let Some(Part::Start(start)) = next(&mut parts, cluster).await? else {
        return Err(CtlError::refused("the cluster did not say what the backup is of"));
    };
    if let Source::Fresh(fresh, path) = &source {
        fresh.write(path)?;
        out.note(format_args!(
            "the key is in {}: keep it apart from the backup; nothing else opens it",
            path.display()
        ));
    }
    let failed = || format!("failed to write {}", path.display());
    let (target, file) = Target::create(path).map_err(CtlError::io(failed()))?;
    let writer = Writer::begin(BufWriter::new(file), &key, &start).map_err(CtlError::io(failed()))?;
    let written = receive(&mut parts, writer, cluster, &failed).await?;
    written
        .into_inner()
        .map_err(|cause| cause.into_error())
        .and_then(|file| file.sync_all()) // or the rename could reach the disk ahead of the bytes
        .map_err(CtlError::io(failed()))?;
    // Before it takes the place of another one: what is on the disk is read as a restore would.
    let checked = check::file(target.temporary(), Some(&key))?;
    let placed = match args.force {
        true => target.replace(),
        false => target.place(),
    };
    placed.map_err(CtlError::io(failed()))?;
    out.line(format_args!(
        "cluster {} at revision {} is in {}: {} objects, {} bytes, sealed with key {}",
        start.cluster_id,
        start.revision,
        path.display(),
        objects(&start.counts),
        checked.bytes,
        checked.key
    ))
}

/// What follows the start, into the file.
async fn receive<W: Write>(
    parts: &mut Streaming<BackupPart>,
    mut writer: Writer<W>,
    cluster: &Cluster,
    failed: &impl Fn() -> String,
) -> Result<W, CtlError> {
    let mut count = 0;
    loop {
        match next(parts, cluster).await? {
            Some(Part::Records(records)) => writer.chunk(records).map_err(CtlError::io(failed()))?,
            Some(Part::End(BackupEnd { parts })) if parts == count => {
                return writer.finish().map_err(CtlError::io(failed()));
            }
            _ => {
                return Err(CtlError::refused(
                    "the backup broke off before its end; begin it again",
                ));
            }
        }
        count += 1;
    }
}

async fn next(parts: &mut Streaming<BackupPart>, cluster: &Cluster) -> Result<Option<Part>, CtlError> {
    let message = parts.message().await.map_err(|status| cluster.error(status))?;
    Ok(message.and_then(|message| message.part))
}

/// Runs `ctl cluster verify`; asks no cluster.
pub(crate) fn verify(args: &Verify, out: &mut Output) -> Result<(), CtlError> {
    let key = match &args.key_file {
        Some(path) => Some(key::read(path, out)?),
        None => None,
    };
    let checked = check::file(&args.file, key.as_ref())?;
    print(&checked, out)?;
    out.line(match key {
        Some(_) => "The backup is whole: every part opens, and together they are the state of a cluster.",
        None => "The checksums are right. Whether it opens, --key-file tells.",
    })
}

fn print(checked: &Checked, out: &mut Output) -> Result<(), CtlError> {
    let start = &checked.start;
    let time = start.time.as_ref().map_or_else(|| "-".to_owned(), age::stamp);
    for (name, value) in [
        ("Cluster", start.cluster_id.clone()),
        ("Revision", start.revision.to_string()),
        ("Time", time),
        ("Schema level", start.schema_level.to_string()),
        ("Made by", format!("controller {}", start.version)),
        ("Key", checked.key.to_string()),
        ("Bytes", checked.bytes.to_string()),
    ] {
        out.line(format_args!("{:14}{value}", format!("{name}:")))?;
    }
    let mut table = Table::new(["KIND", "OBJECTS"]);
    for of in &start.counts {
        table.row(vec![of.kind.clone(), of.count.to_string()]);
    }
    out.table(&table)
}

fn objects(counts: &[KindCount]) -> u64 {
    counts.iter().fold(0, |sum, of| sum.saturating_add(of.count))
}

/// Runs `ctl cluster restore`.
pub(crate) async fn restore(args: Restore, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let Some(path) = &args.key_file else {
        return Err(CtlError::Usage(
            "a backup is sealed: name the key that it was made with with --key-file KEY".to_owned(),
        ));
    };
    let key = key::read(path, out)?;
    // All of it, before anything is sent.
    let Checked { start, .. } = check::file(&args.file, Some(&key))?;
    let (parts, stream) = mpsc::channel(PARTS_MAX);
    let answer = async {
        let answer = cluster.api.clone().restore(ReceiverStream::new(stream)).await;
        answer.map(tonic::Response::into_inner)
    };
    let (sent, answer) = tokio::join!(send(&args.file, &key, parts), answer);
    sent?;
    let restored: RestoreResponse = answer.map_err(|status| failed(cluster, status))?;
    out.line(format_args!(
        "cluster {} as of revision {} is restored: {} objects, at revision {} now",
        start.cluster_id,
        start.revision,
        objects(&restored.counts),
        restored.revision
    ))?;
    out.note("Nodes join again with new tokens, under their names; until then pods wait. Certificates of the old cluster are not good here.");
    Ok(())
}

fn failed(cluster: &Cluster, status: Status) -> CtlError {
    match cluster.error(status) {
        CtlError::Refused(mut lines) => {
            lines.push(
                "nothing was restored, unless the connection was lost at the very end: `ctl get` shows it"
                    .to_owned(),
            );
            CtlError::Refused(lines)
        }
        other => other,
    }
}

/// Sends the backup as it is read; ends quietly when the cluster takes no more, since it says why.
async fn send(path: &Path, key: &Key, parts: mpsc::Sender<BackupPart>) -> Result<(), CtlError> {
    let mut reader = check::open(path, Some(key))?;
    let start: BackupStart = reader.start().clone();
    let tell = async |part| parts.send(BackupPart { part: Some(part) }).await.is_ok();
    if !tell(Part::Start(start)).await {
        return Ok(());
    }
    let mut count = 0;
    loop {
        let part = match reader.next() {
            Ok(Some(Chunk::Records(records))) => Part::Records(records),
            Ok(None) => Part::End(BackupEnd { parts: count }),
            Ok(Some(Chunk::Sealed)) => return Err(CtlError::refused("the backup did not open")),
            Err(cause) => return Err(check::about(path, &cause.into())),
        };
        let ended = matches!(part, Part::End(_));
        if !tell(part).await || ended {
            return Ok(());
        }
        count += 1;
    }
}
