//! A state as bytes and back: records with their lengths, in chunks of bounded size.

use std::sync::Arc;

use prost::Message;
use proto::state::v1::snapshot_record::Record as Part;
use proto::state::v1::{SnapshotEnd, SnapshotHeader, SnapshotRecord, StoredPod, StoredReply, StoredSaid};

use crate::SCHEMA_LEVEL;
use crate::apply::restore::Stage;
use crate::key::ObjectKey;
use crate::record::{PodRecord, Record, Status, Template};
use crate::store::State;
use model::{Kind, object};

/// Size at which a chunk is closed. One record may stand above it: [`CHUNK_BYTES_MAX`].
const CHUNK_BYTES: usize = 256 << 10;
/// No chunk is larger: the largest record is a kept answer, and answers are bounded by what one command can say.
pub const CHUNK_BYTES_MAX: usize = CHUNK_BYTES + RECORD_BYTES_MAX;
/// Largest record.
const RECORD_BYTES_MAX: usize = 64 << 20;
/// No revision that ever was: one step a nanosecond for 292 years.
pub(crate) const REVISION_MAX: u64 = i64::MAX as u64;

/// Why bytes are no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Damage, or not a snapshot.
    #[error("the snapshot's record {record} cannot be read")]
    Record {
        /// Its place, from 0.
        record: u64,
        /// What the decoder says.
        source: prost::DecodeError,
    },
    /// It was made by a newer version.
    #[error("the snapshot has schema level {found}; this version reads up to {SCHEMA_LEVEL}")]
    Level {
        /// The snapshot's level.
        found: u32,
    },
    /// The parts do not fit together.
    #[error("the snapshot is not whole: {problem}")]
    Broken {
        /// What does not fit.
        problem: &'static str,
    },
}

fn broken<T>(problem: &'static str) -> Result<T, DecodeError> {
    Err(DecodeError::Broken { problem })
}

impl State {
    /// The state as chunks of bytes, none above [`CHUNK_BYTES_MAX`]. Equal states give equal chunks.
    pub fn encode(&self) -> impl Iterator<Item = Vec<u8>> + Send + use<> {
        // A snapshot that shares everything: the chunks can be made while the original goes on.
        Chunks {
            parts: Box::new(parts(self.clone())),
            records: 0,
            ended: false,
        }
    }

    /// The state that was encoded into these chunks; they may be cut elsewhere than they were made.
    pub fn decode<B: AsRef<[u8]>>(chunks: impl IntoIterator<Item = B>) -> Result<State, DecodeError> {
        let mut decoder = Decoder::new();
        for chunk in chunks {
            decoder.push(chunk.as_ref())?;
        }
        decoder.finish()
    }
}

struct Chunks {
    parts: Box<dyn Iterator<Item = Part> + Send>,
    records: u64,
    ended: bool,
}

impl Iterator for Chunks {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.ended {
            return None;
        }
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        while chunk.len() < CHUNK_BYTES {
            let part = self.parts.next().unwrap_or_else(|| {
                self.ended = true;
                Part::End(SnapshotEnd {
                    records: self.records,
                })
            });
            self.records += 1;
            chunk.extend(SnapshotRecord { record: Some(part) }.encode_length_delimited_to_vec());
            if self.ended {
                break;
            }
        }
        Some(chunk)
    }
}

/// Everything but the end, in an order that a reader can take as it comes: templates before their pods. The state is
/// walked key by key, so that the iterator owns it and nothing is collected but the templates' places.
fn parts(state: State) -> impl Iterator<Item = Part> + Send {
    let header = SnapshotHeader {
        level: state.level(),
        revision: state.revision,
        settings: state.settings.as_deref().cloned(),
    };
    // By the first pod that uses each: the order must not depend on how the templates were hashed.
    let mut places = std::collections::HashMap::new();
    let mut templates: Vec<Arc<Template>> = Vec::new();
    for (_, record) in state.entries(Kind::Pod, None, None) {
        let Record::Pod(pod) = record else { continue };
        places
            .entry(Arc::as_ptr(&pod.template) as usize)
            .or_insert_with(|| {
                templates.push(pod.template.clone());
                templates.len() as u64 - 1
            });
    }
    let State {
        records,
        tokens,
        revocations,
        replies,
        said,
        history,
        stage,
        ..
    } = state;
    // Key by key, as the objects: what is not walked yet stays shared with the original.
    let speakers: Vec<ObjectKey> = said.keys().cloned().collect();
    let said = speakers.into_iter().flat_map(move |key| {
        let all = said.of(&key).map(|(manager, said)| StoredSaid {
            key: Some(key.to_proto()),
            manager: manager.to_owned(),
            said: Some(said),
        });
        all.collect::<Vec<_>>()
    });
    let revisions = history.revisions();
    let past = revisions
        .into_iter()
        .filter_map(move |revision| history.at(revision));
    let staged = stage
        .map(Arc::unwrap_or_clone)
        .into_iter()
        .flat_map(Stage::stored);
    let replies: Vec<StoredReply> = replies
        .iter()
        .map(|(id, reply)| StoredReply {
            request_id: id.to_owned(),
            reply: Some(reply),
        })
        .collect();
    std::iter::once(Part::Header(header))
        .chain(
            templates
                .into_iter()
                .map(|template| Part::Template(template.content.clone())),
        )
        .chain(records.into_iter().map(move |(key, record)| match record {
            Record::Pod(pod) => {
                let template = places
                    .get(&(Arc::as_ptr(&pod.template) as usize))
                    .copied()
                    .unwrap_or(u64::MAX);
                Part::Pod(stored(&key, &pod, template))
            }
            Record::Whole(object) => Part::Object(object.as_ref().clone()),
        }))
        .chain(
            tokens
                .into_iter()
                .map(|(_, token)| Part::Token(token.as_ref().clone())),
        )
        .chain(
            revocations
                .into_iter()
                .map(|(_, revocation)| Part::Revocation(revocation.as_ref().clone())),
        )
        .chain(said.map(Part::Said))
        .chain(past.map(Part::Past))
        .chain(replies.into_iter().map(Part::Reply))
        .chain(staged.map(Part::Restore))
}

fn stored(key: &ObjectKey, pod: &PodRecord, template: u64) -> StoredPod {
    StoredPod {
        template,
        namespace: key.namespace.as_ref().to_owned(),
        name: key.name.as_ref().to_owned(),
        uid: pod.uid.as_ref().to_owned(),
        resource_version: pod.resource_version,
        desired_revision: pod.desired_revision,
        generation: pod.generation,
        creation_timestamp: pod.created,
        deletion_timestamp: pod.deleted,
        deletion_grace_period_seconds: pod.grace,
        node: pod.node.as_ref().to_owned(),
        status: Some(pod.status.decoded()),
    }
}

/// Reads a snapshot as it comes in.
#[derive(Debug)]
struct Decoder {
    state: State,
    templates: Vec<Arc<Template>>,
    /// What has come of a record that is not whole yet.
    rest: Vec<u8>,
    records: u64,
    ended: bool,
}

impl Decoder {
    fn new() -> Decoder {
        Decoder {
            state: State::new(),
            templates: Vec::new(),
            rest: Vec::new(),
            records: 0,
            ended: false,
        }
    }

    fn push(&mut self, chunk: &[u8]) -> Result<(), DecodeError> {
        self.rest.extend_from_slice(chunk);
        let bytes = std::mem::take(&mut self.rest);
        let mut at = 0;
        while let Some((length, prefix)) = length(&bytes[at..])? {
            let Some(body) = bytes.get(at + prefix..at + prefix + length) else {
                break;
            };
            let record = SnapshotRecord::decode(body).map_err(|source| DecodeError::Record {
                record: self.records,
                source,
            })?;
            self.take(record)?;
            self.records += 1;
            at += prefix + length;
        }
        self.rest = bytes[at..].to_vec();
        Ok(())
    }

    fn finish(self) -> Result<State, DecodeError> {
        if !self.ended || !self.rest.is_empty() {
            return broken("it is cut off");
        }
        Ok(self.state)
    }

    fn take(&mut self, record: SnapshotRecord) -> Result<(), DecodeError> {
        if self.ended {
            return broken("something follows its end");
        }
        let Some(part) = record.record else {
            return broken("an unknown record");
        };
        if matches!(part, Part::Header(_)) != (self.records == 0) {
            return broken("the header is not at the start");
        }
        match part {
            Part::Header(header) => {
                if header.level > SCHEMA_LEVEL {
                    return Err(DecodeError::Level { found: header.level });
                }
                if header.revision > REVISION_MAX {
                    return broken("the revision is senseless");
                }
                self.state.level = header.level;
                self.state.revision = header.revision;
                self.state.settings = header.settings.map(Arc::new);
            }
            Part::Template(content) => self.templates.push(Arc::new(Template::new(content))),
            Part::Pod(pod) => self.pod(pod)?,
            Part::Object(object) => self.object(object)?,
            Part::Token(token) => {
                self.state.tokens.insert(token.id.clone(), Arc::new(token));
            }
            Part::Revocation(revocation) => {
                let known = &mut self.state.revocations;
                known.insert(revocation.identity.clone(), Arc::new(revocation));
            }
            Part::Reply(StoredReply { request_id, reply }) => match reply {
                Some(reply) => self.state.replies.push(&request_id, &reply),
                None => return broken("an answer is missing"),
            },
            Part::Said(said) => self.said(&said)?,
            Part::Past(past) => {
                if past.revision > self.state.revision || !self.state.history.take(&past) {
                    return broken("a change of the history is out of order");
                }
            }
            Part::Restore(part) => {
                if !Stage::take(&mut self.state.stage, &part) {
                    return broken("a part of a restore is another one's, or too large");
                }
            }
            Part::End(end) => {
                if end.records != self.records {
                    return broken("records are missing");
                }
                self.ended = true;
            }
        }
        Ok(())
    }

    fn pod(&mut self, pod: StoredPod) -> Result<(), DecodeError> {
        let place = usize::try_from(pod.template).unwrap_or(usize::MAX);
        let Some(template) = self.templates.get(place).cloned() else {
            return broken("a pod without its template");
        };
        if pod.uid.is_empty() || pod.desired_revision == 0 || pod.desired_revision > pod.resource_version {
            return broken("a pod without a uid, or with revisions out of order");
        }
        let key = ObjectKey::new(Kind::Pod, &pod.namespace, &pod.name);
        let record = PodRecord {
            template,
            uid: pod.uid.into(),
            resource_version: pod.resource_version,
            desired_revision: pod.desired_revision,
            generation: pod.generation,
            created: pod.creation_timestamp,
            deleted: pod.deletion_timestamp,
            grace: pod.deletion_grace_period_seconds,
            node: pod.node.into(),
            status: Status::new(&pod.status.unwrap_or_default()),
        };
        self.insert(key, Record::Pod(Arc::new(record)))
    }

    fn object(&mut self, object: proto::v1::Object) -> Result<(), DecodeError> {
        let Some(key) = ObjectKey::of(&object) else {
            return broken("an empty object");
        };
        if matches!(key.kind, Kind::Pod | Kind::Event) {
            return broken("an object of a kind that is not stored so");
        }
        if object::meta(&object).uid.is_empty() {
            return broken("an object without a uid");
        }
        self.insert(key, Record::Whole(Arc::new(object)))
    }

    fn said(&mut self, stored: &StoredSaid) -> Result<(), DecodeError> {
        let key = stored.key.as_ref().and_then(ObjectKey::from_proto);
        let (Some(key), Some(said)) = (key, &stored.said) else {
            return broken("what was said is of no object");
        };
        if !self.state.records.contains_key(&key) || !self.state.said.set(&key, &stored.manager, said) {
            return broken("what was said is of no object, or by too many");
        }
        Ok(())
    }

    fn insert(&mut self, key: ObjectKey, record: Record) -> Result<(), DecodeError> {
        let unknown = !self.state.records.contains_key(&key) && !self.state.by_uid.contains_key(record.uid());
        if !unknown || record.resource_version() > self.state.revision {
            return broken("two objects with one key or uid, or one that is newer than the snapshot");
        }
        self.state.insert(key, record);
        Ok(())
    }
}

/// The length before a record and how many bytes it takes itself; `None` when it is not whole yet.
fn length(bytes: &[u8]) -> Result<Option<(usize, usize)>, DecodeError> {
    let mut value = 0_u64;
    for (place, byte) in bytes.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            let length = usize::try_from(value).unwrap_or(usize::MAX);
            if length > RECORD_BYTES_MAX {
                return broken("a record is too large");
            }
            return Ok(Some((length, place + 1)));
        }
    }
    if bytes.len() >= 5 {
        broken("a record has no length")
    } else {
        Ok(None)
    }
}
