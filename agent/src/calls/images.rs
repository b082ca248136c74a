//! Imports an archive that a client sends, and lists what is there.

use std::io::Write;
use std::sync::Arc;

use proto::Timestamp;
use rpc::v1::import_input::Input;
use rpc::v1::{ImageInfo, ImportProgress, ImportStart, NodeImages, carry_down, carry_up};
use tonic::Status;

use super::{Down, Stop, Up};
use crate::image::{Image, ImportError, RootDefaults};
use crate::node::Node;

/// Largest archive; beyond it the client is told so.
const ARCHIVE_BYTES_MAX: u64 = 64 << 30;
/// Bytes gathered before they are written: a write is a task for another thread.
const WRITE_BYTES: usize = 1 << 20;

/// Takes an archive into the store. What was received of one that is not whole is removed.
pub(super) async fn import(
    node: &Arc<Node>,
    start: ImportStart,
    up: &Up,
    down: &mut Down,
) -> Result<(), Stop> {
    let told = match receive(node, up, down).await {
        Ok(spool) => {
            progress(node, up, "unpacking", String::new(), Vec::new()).await?;
            let (store, reference) = (node.images.clone(), start.reference);
            let work = move || {
                let name = Some(&*reference).filter(|name| !name.is_empty());
                // What docker gives an image from `docker import`, an interactive shell, is what people expect to have.
                let defaults = RootDefaults {
                    cmd: vec!["/bin/sh".to_owned()],
                };
                store.import(&spool.file, name, &defaults)
            };
            let done = tokio::task::spawn_blocking(work).await;
            done.map_err(|error| Status::internal(format!("a task of the agent failed: {error}")))?
                .map_err(|error| import_failed(&error))
        }
        Err(Stop::Failed(status)) => Err(status.message().to_owned()),
        Err(Stop::Left) => return Err(Stop::Left),
    };
    match told {
        Ok(images) => {
            let references: Vec<String> = images.into_iter().map(|image| image.reference).collect();
            tracing::info!(?references, "images were imported");
            progress(node, up, "done", String::new(), references).await
        }
        Err(message) => {
            tracing::info!(message, "an import failed");
            progress(node, up, "failed", message, Vec::new()).await
        }
    }
}

fn import_failed(error: &ImportError) -> String {
    runtime::monitor::chain(error)
}

async fn receive(node: &Arc<Node>, up: &Up, down: &mut Down) -> Result<crate::image::Spool, Stop> {
    let failed = |error: String| {
        Stop::Failed(Status::unavailable(format!(
            "failed to keep the archive: {error}"
        )))
    };
    let mut spool = node
        .images
        .spool()
        .map_err(|error| failed(runtime::monitor::chain(&error)))?;
    progress(node, up, "receiving", String::new(), Vec::new()).await?;
    let mut bytes: u64 = 0;
    let mut gathered = Vec::new();
    loop {
        let frame = tokio::select! {
            frame = down.next() => frame?,
            () = up.closed() => return Err(Stop::Left),
        };
        let last = frame.is_none();
        match frame {
            None => {}
            Some(carry_down::Frame::ImportImage(input)) => match input.input {
                Some(Input::Data(data)) => {
                    bytes += data.len() as u64;
                    gathered.extend_from_slice(&data);
                }
                Some(Input::Start(_)) | None => {}
            },
            Some(carry_down::Frame::Exec(_)) => {
                return Err(Status::invalid_argument("input of exec is no archive").into());
            }
        }
        if bytes > ARCHIVE_BYTES_MAX {
            let message = format!("the archive has more than {} GiB", ARCHIVE_BYTES_MAX >> 30);
            return Err(Status::resource_exhausted(message).into());
        }
        if gathered.len() >= WRITE_BYTES || (last && !gathered.is_empty()) {
            let piece = std::mem::take(&mut gathered);
            let written = tokio::task::spawn_blocking(move || {
                let mut spool = spool;
                spool.file.write_all(&piece).map(|()| spool)
            });
            let written = written.await.map_err(|error| failed(error.to_string()))?;
            spool = written.map_err(|error| failed(error.to_string()))?;
        }
        if last {
            return Ok(spool);
        }
    }
}

async fn progress(
    node: &Node,
    up: &Up,
    state: &str,
    message: String,
    references: Vec<String>,
) -> Result<(), Stop> {
    let step = ImportProgress {
        node: node.name.clone(),
        state: state.to_owned(),
        message,
        references,
    };
    up.send(carry_up::Frame::ImportImage(step)).await
}

/// Says which images are here.
pub(super) async fn list(node: &Arc<Node>, up: &Up) -> Result<(), Stop> {
    let store = node.images.clone();
    let listed = tokio::task::spawn_blocking(move || store.list()).await;
    let listed = listed.map_err(|error| Status::internal(format!("a task of the agent failed: {error}")))?;
    let answer = match listed {
        Ok(images) => NodeImages {
            node: node.name.clone(),
            error: String::new(),
            images: images.into_iter().map(info).collect(),
        },
        Err(error) => NodeImages {
            node: node.name.clone(),
            error: runtime::monitor::chain(&error),
            images: Vec::new(),
        },
    };
    up.send(carry_up::Frame::Images(answer)).await
}

fn info(image: Image) -> ImageInfo {
    ImageInfo {
        reference: image.reference,
        digest: image.digest,
        size_bytes: image.size_bytes,
        created: Some(Timestamp {
            seconds: image.created_ms.div_euclid(1000),
            nanos: (image.created_ms.rem_euclid(1000) * 1_000_000) as i32, // below 1,000,000,000
        }),
    }
}
