//! `ctl image import FILE|DIR` and `ctl image ls`: images without a registry.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use rpc::v1::import_input::Input;
use rpc::v1::{ImportInput, ImportStart, ListImagesRequest};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::age;
use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::{Output, Table};

/// Bytes of the archive in one message.
const CHUNK_BYTES: usize = 256 << 10;
/// Messages on their way; reading stops while the nodes do not take them.
const CHUNKS_MAX: usize = 8;

/// Arguments of `ctl image`.
#[derive(clap::Args)]
pub(crate) struct Image {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Put an image on the nodes: an OCI or docker archive, or a root file system (directory or tar)
    Import(Import),
    /// List the images of the nodes
    #[command(visible_alias = "list")]
    Ls {
        /// Only this node; may be repeated
        #[arg(long, value_name = "NODE")]
        node: Vec<String>,
    },
}

#[derive(clap::Args)]
struct Import {
    /// The archive or directory; - for standard input
    #[arg(value_name = "FILE|DIR|-")]
    source: PathBuf,
    /// Its name [default: the archive's own; needed for a root file system]
    #[arg(value_name = "NAME[:TAG]")]
    reference: Option<String>,
    /// Only to this node; may be repeated [default: all that are ready]
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,
}

/// Runs `ctl image`.
pub(crate) async fn run(args: Image, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    match args.verb {
        Verb::Import(args) => import(args, cluster, out).await,
        Verb::Ls { node } => list(node, cluster, out).await,
    }
}

async fn import(args: Import, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let mut source = open(&args.source)?;
    let (input, messages) = mpsc::channel(CHUNKS_MAX);
    let start = ImportStart {
        reference: args.reference.unwrap_or_default(),
        nodes: args.node,
    };
    let shown = args.source.display().to_string();
    let reading = tokio::spawn(async move {
        let mut message = Input::Start(start);
        loop {
            if input.send(ImportInput { input: Some(message) }).await.is_err() {
                return Ok(()); // the answer says why
            }
            let mut buffer = vec![0; CHUNK_BYTES];
            let count = source.read(&mut buffer).await?;
            if count == 0 {
                return source.finish().await;
            }
            buffer.truncate(count);
            message = Input::Data(buffer);
        }
    });
    let answer = cluster
        .api
        .clone()
        .import_image(ReceiverStream::new(messages))
        .await
        .map_err(|status| cluster.error(status))?;
    let mut progress = answer.into_inner();
    let mut failures = Vec::new();
    while let Some(step) = progress.message().await.map_err(|status| cluster.error(status))? {
        match step.state.as_str() {
            "done" => {
                for reference in &step.references {
                    out.line(format_args!("image {reference} imported on node/{}", step.node))?;
                }
            }
            "failed" => failures.push(format!("node/{}: {}", step.node, step.message)),
            state if out.progress => out.note(format_args!("node/{}: {state} {}", step.node, step.message)),
            _ => {}
        }
    }
    let what = format!("failed to read {shown}");
    match reading.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => failures.push(format!("{what}: {error}")),
        Err(_) => failures.push(what),
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(CtlError::Refused(failures))
    }
}

/// Where an archive comes from; a directory is packed by tar(1), which keeps owners, links and attributes.
enum Source {
    File(tokio::fs::File),
    Stdin(tokio::fs::File),
    Tar {
        child: tokio::process::Child,
        stdout: tokio::process::ChildStdout,
    },
}

fn open(path: &Path) -> Result<Source, CtlError> {
    let what = format!("failed to read {}", path.display());
    if path == Path::new("-") {
        let stdin = std::fs::File::open("/dev/stdin").map_err(CtlError::io(what))?;
        return Ok(Source::Stdin(tokio::fs::File::from_std(stdin)));
    }
    let meta = std::fs::metadata(path).map_err(CtlError::io(what.clone()))?;
    if !meta.is_dir() {
        let file = std::fs::File::open(path).map_err(CtlError::io(what))?;
        return Ok(Source::File(tokio::fs::File::from_std(file)));
    }
    let mut child = tokio::process::Command::new("tar")
        .args(["--create", "--numeric-owner", "--xattrs", "--directory"])
        .arg(path)
        .arg(".")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(CtlError::io("failed to run tar"))?;
    let stdout = child
        .stdout
        .take()
        .ok_or_else(|| CtlError::refused("tar has no output"))?;
    Ok(Source::Tar { child, stdout })
}

impl Source {
    async fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::File(file) | Self::Stdin(file) => file.read(buffer).await,
            Self::Tar { stdout, .. } => stdout.read(buffer).await,
        }
    }

    /// After the last byte: whether all of it was there.
    async fn finish(self) -> std::io::Result<()> {
        let Self::Tar { mut child, .. } = self else {
            return Ok(());
        };
        let status = child.wait().await?;
        if status.success() {
            Ok(())
        } else {
            Err(std::io::Error::other(format!("tar ended with {status}")))
        }
    }
}

async fn list(nodes: Vec<String>, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let answer = cluster
        .api
        .clone()
        .list_images(ListImagesRequest { nodes })
        .await
        .map_err(|status| cluster.error(status))?;
    let mut table = Table::new(["NODE", "IMAGE", "DIGEST", "SIZE", "AGE"]);
    let mut failures = Vec::new();
    for node in answer.into_inner().nodes {
        if !node.error.is_empty() {
            failures.push(format!("node/{}: {}", node.node, node.error));
        }
        for image in node.images {
            let digest = image
                .digest
                .trim_start_matches("sha256:")
                .chars()
                .take(12)
                .collect();
            let age = age::since(image.created.as_ref());
            table.row(vec![
                node.node.clone(),
                image.reference,
                digest,
                size(image.size_bytes),
                age,
            ]);
        }
    }
    out.table(&table)?;
    if failures.is_empty() {
        Ok(())
    } else {
        Err(CtlError::Refused(failures))
    }
}

/// A size in powers of 1024 with one digit.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    for unit in units {
        if tenths < 10_240 || unit == "TiB" {
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
        tenths /= 1024;
    }
    unreachable!("the last unit ends the loop")
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_have_one_digit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (5 << 20, "5.0 MiB"),
            (3 << 30, "3.0 GiB"),
        ] {
            assert_eq!(super::size(bytes), text);
        }
    }
}
