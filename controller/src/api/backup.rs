//! The replicated state out and in again, as `ctl cluster backup` and `restore` have it. Its parts are those of a snapshot;
//! who reads them here seals them before they touch a disk.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use model::Kind;
use proto::state::v1::Restore;
use proto::state::v1::command::Kind as Body;
use rpc::v1::backup_part::Part;
use rpc::v1::{BackupEnd, BackupPart, BackupStart, KindCount, RestoreResponse};
use state::State;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::status::{Reason, by_state, refused, refused_one};
use super::{By, Service, blocking};
use crate::clock;
use crate::security::new_uuid;

/// Backups that are read from one member at a time: each holds a state that the member itself has left behind.
pub(super) const BACKUPS_MAX: usize = 2;
/// Parts that wait for the reader, of 256 KiB, or of a largest object.
const PARTS_MAX: usize = 4;
/// Whoever takes no part, or sends none, for this long is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A reader that never stalls, yet never ends, must not hold a place for ever: a gigabyte at 300 KB a second.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// The last part of a restore reads and checks all of them, which takes seconds in a large cluster: longer than a
/// proposal is waited for. It is asked for again, as one request.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two such questions.
const SWITCH_PAUSE: Duration = Duration::from_secs(1);

/// A state, with how many objects it has of each kind that it has.
async fn counted(state: State) -> Result<(State, Vec<KindCount>), Status> {
    let counted = move || {
        let all = Kind::ALL.into_iter().map(|kind| KindCount {
            kind: kind.as_str().to_owned(),
            count: state.count(kind) as u64,
        });
        let counts = all.filter(|of| of.count > 0).collect();
        (state, counts)
    };
    blocking(counted).await
}

impl Service {
    pub(super) async fn do_backup(&self) -> Result<BoxStream<'static, Result<BackupPart, Status>>, Status> {
        let place = self.backups.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{BACKUPS_MAX} backups are being read from this controller; try again when one has ended"
            ))
        })?;
        let (state, counts) = counted(self.state().await?.for_backup()).await?;
        let Some(settings) = state.settings() else {
            return Err(Status::unavailable("the cluster is still being set up"));
        };
        let start = BackupStart {
            cluster_id: settings.cluster_id.clone(),
            revision: state.revision(),
            time: Some(clock::timestamp(clock::now_ms())),
            schema_level: state.level(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            counts,
        };
        let (parts, reader) = mpsc::channel(PARTS_MAX);
        let mut stopped = self.stopped.clone();
        tokio::spawn(async move {
            let sent = tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => {
                    Err(Status::unavailable("this controller is stopping: begin the backup again at another"))
                }
                sent = tokio::time::timeout(WHOLE_TIMEOUT, send(start, state, &parts, STALL_TIMEOUT)) => {
                    sent.unwrap_or_else(|_| Err(Status::deadline_exceeded("the backup was not read whole in time")))
                }
            };
            if let Err(status) = sent {
                tracing::warn!(%status, "a backup was not read to its end");
                // Without room the reader finds no `end` instead, which says the same.
                drop(parts.try_send(Err(status)));
            }
            drop::<OwnedSemaphorePermit>(place);
        });
        Ok(ReceiverStream::new(reader).boxed())
    }

    pub(super) async fn do_restore(
        &self,
        mut input: Streaming<BackupPart>,
        by: &By,
    ) -> Result<RestoreResponse, Status> {
        let Some(Part::Start(start)) = next(&mut input).await? else {
            return Err(Status::invalid_argument(
                "the first message of a restore is `start`",
            ));
        };
        // Before much is sent; each part asks again.
        let state = self.state().await?;
        if start.schema_level > state.level() {
            return Err(Status::failed_precondition(format!(
                "the backup needs schema level {}, not every controller knows more than {}: upgrade the controllers first",
                start.schema_level,
                state.level()
            )));
        }
        if let Some(message) = state.occupied() {
            return Err(refused_one(Reason::Conflict, message));
        }
        let id = new_uuid();
        tracing::info!(
            id,
            cluster = start.cluster_id,
            revision = start.revision,
            "a restore begins"
        );
        if let Err(status) = self.restore_parts(&id, &mut input, by).await {
            let abandon = Restore {
                id: id.clone(),
                abandon: true,
                ..Default::default()
            };
            // What stays is dropped ten minutes later, or by the next restore.
            if let Err(cause) = self.propose_part(abandon, by).await {
                tracing::warn!(id, %cause, "what a restore had put aside was not dropped");
            }
            return Err(status);
        }
        let (state, counts) = counted(self.state().await?).await?;
        tracing::info!(id, revision = state.revision(), "the cluster was restored");
        Ok(RestoreResponse {
            revision: state.revision(),
            counts,
        })
    }

    /// Hands on part by part; the end makes them the state.
    async fn restore_parts(
        &self,
        id: &str,
        input: &mut Streaming<BackupPart>,
        by: &By,
    ) -> Result<(), Status> {
        let mut part = 0;
        loop {
            let restore = |records, last| Restore {
                id: id.to_owned(),
                part,
                records,
                last,
                abandon: false,
            };
            match next(input).await? {
                Some(Part::Records(records)) => self.propose_part(restore(records, false), by).await?,
                Some(Part::End(BackupEnd { parts })) if parts == part => {
                    return self.propose_part(restore(Vec::new(), true), by).await;
                }
                Some(Part::End(BackupEnd { parts })) => {
                    let message = format!("{part} parts of the backup came, and {parts} were to come");
                    return Err(Status::invalid_argument(message));
                }
                Some(Part::Start(_)) => return Err(Status::invalid_argument("a restore begins once")),
                None => return Err(Status::aborted("the backup was not sent to its end")),
            }
            part += 1;
        }
    }

    async fn propose_part(&self, restore: Restore, by: &By) -> Result<(), Status> {
        // A repetition is answered as the first was.
        let request = match restore.abandon {
            true => format!("{}/abandon", restore.id),
            false => format!("{}/{}", restore.id, restore.part),
        };
        let deadline = Instant::now()
            + if restore.last {
                SWITCH_TIMEOUT
            } else {
                Duration::ZERO
            };
        let mut stopped = self.stopped.clone();
        loop {
            let body = Body::Restore(restore.clone());
            match self.propose(by, request.clone(), body).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(refusal)) => return Err(refused(vec![by_state(0, &refusal)])),
                Err(status) if status.code() == Code::Unavailable && Instant::now() < deadline => {
                    tracing::info!(%status, "a restore waits for its end");
                }
                Err(status) => return Err(status),
            }
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => {
                    return Err(Status::unavailable("this controller is stopping, and the restore may still be carried out"));
                }
                () = tokio::time::sleep(SWITCH_PAUSE) => {}
            }
        }
    }
}

/// The next message, from a client that does not stall; None at the end.
async fn next(input: &mut Streaming<BackupPart>) -> Result<Option<Part>, Status> {
    let message = tokio::time::timeout(STALL_TIMEOUT, input.message()).await;
    let message = message.map_err(|_| Status::deadline_exceeded("no part of the backup came in time"))??;
    match message {
        Some(BackupPart { part: Some(part) }) => Ok(Some(part)),
        Some(BackupPart { part: None }) => Err(Status::invalid_argument("an empty part of a backup")),
        None => Ok(None),
    }
}

type Parts = mpsc::Sender<Result<BackupPart, Status>>;

/// Sends the whole state; each part is made when there is room for it.
async fn send(start: BackupStart, state: State, parts: &Parts, stall: Duration) -> Result<(), Status> {
    let tell = async |part| {
        let part = Ok(BackupPart { part: Some(part) });
        match parts.send_timeout(part, stall).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(Status::cancelled("the reader has left")),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                Err(Status::deadline_exceeded("the backup was read too slowly"))
            }
        }
    };
    tell(Part::Start(start)).await?;
    let mut chunks = blocking(move || state.encode()).await?;
    let mut count = 0;
    loop {
        let made = blocking(move || {
            let chunk = chunks.next();
            (chunks, chunk)
        });
        let (rest, chunk) = made.await?;
        let Some(chunk) = chunk else {
            return tell(Part::End(BackupEnd { parts: count })).await;
        };
        tell(Part::Records(chunk)).await?;
        chunks = rest;
        count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let mut state = State::new();
        let settings = proto::state::v1::ClusterSettings {
            cluster_id: "c".to_owned(),
            pod_cidr: "10.244.0.0/16".to_owned(),
            ..Default::default()
        };
        let command = proto::state::v1::Command {
            kind: Some(Body::Settings(settings)),
            ..Default::default()
        };
        assert!(state.apply(&command).applied());
        state
    }

    #[tokio::test]
    async fn a_backup_is_a_start_the_records_and_an_end() {
        let (parts, mut reader) = mpsc::channel(PARTS_MAX);
        let sent = state();
        let sending = tokio::spawn({
            let sent = sent.clone();
            async move { send(BackupStart::default(), sent, &parts, STALL_TIMEOUT).await }
        });
        let mut records = Vec::new();
        let mut count = 0;
        while let Some(part) = reader.recv().await {
            count += 1;
            match part.unwrap().part.unwrap() {
                Part::Start(_) => assert_eq!(count, 1),
                Part::Records(chunk) => records.push(chunk),
                Part::End(end) => assert_eq!(end.parts, records.len() as u64),
            }
        }
        sending.await.unwrap().unwrap();
        assert_eq!(count, records.len() + 2);
        let read = State::decode(&records).unwrap();
        assert!(read.encode().eq(sent.encode()));
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_dropped() {
        let (parts, _reader) = mpsc::channel(1);
        let stall = Duration::from_millis(10);
        let dropped = send(BackupStart::default(), state(), &parts, stall).await;
        assert_eq!(dropped.unwrap_err().code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_reader_that_leaves_ends_it() {
        let (parts, reader) = mpsc::channel(1);
        drop(reader);
        let ended = send(BackupStart::default(), state(), &parts, STALL_TIMEOUT).await;
        assert_eq!(ended.unwrap_err().code(), Code::Cancelled);
    }
}
