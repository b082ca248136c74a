//! What clients call: `service Api` of `proto/schema/api.proto`, one file for each group of calls.

mod apply;
pub(crate) mod authorize;
mod carry;
mod change;
mod cluster;
mod delete;
pub(crate) mod guard;
mod images;
mod read;
pub(crate) mod status;
mod watch;
pub(crate) mod wire;

use futures_util::stream::BoxStream;
use proto::state::v1::command_reply::Reply;
use proto::state::v1::{Applied, Command, CommandReply, Key, Refused, command};
use proto::v1::Object;
use rpc::v1::api_server::{Api, ApiServer};
use rpc::v1::{
    ApplyRequest, ApplyResponse, CreateTokenRequest, CreateTokenResponse, DeleteRequest, DeleteResponse,
    DescribeResponse, ExecInput, ExecOutput, GetRequest, ImportInput, ImportProgress, InspectResponse,
    ListImagesRequest, ListImagesResponse, ListRequest, ListResponse, ListTokensRequest, ListTokensResponse,
    LogChunk, LogsRequest, MembersRequest, MembersResponse, PodRef, RemoveMemberRequest,
    RemoveMemberResponse, RevokeTokenRequest, RevokeTokenResponse, RollbackRequest, ScaleRequest,
    SetSchedulableRequest, VersionRequest, VersionResponse, WatchEvent, WatchRequest, WhyResponse,
};
use state::{SCHEMA_LEVEL, State};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::calls::Calls;
use crate::clock;
use crate::events::Events;
use crate::raft::Node;
use crate::security::new_uuid;
use crate::watch::{self as changes, Ring};
use guard::Guard;
use read::Pages;
use status::{proposing, reading};

/// Largest answer: a page of a list, and one object more.
const ANSWER_BYTES_MAX: usize = 24 << 20;
/// How often a write is decided anew because what it was decided on changed meanwhile.
const ATTEMPTS_MAX: u32 = 16;
/// Longest request id of a client: the state takes a few bytes more, which number the attempts.
const REQUEST_ID_BYTES_MAX: usize = state::REQUEST_ID_BYTES_MAX - 8;

/// The service; clones are the same one.
#[derive(Clone)]
pub(crate) struct Service {
    node: Node,
    events: Events,
    calls: Calls,
    /// Recent changes of the state.
    ring: Ring,
    /// Lists that are being read in pages.
    pages: Pages,
    /// Of the CA: part of every join token.
    ca_sha256: [u8; 32],
    /// True when this member stops.
    stopped: tokio::sync::watch::Receiver<bool>,
}

/// The API behind its guard. Begins to follow what this member applies.
pub(crate) fn routes(
    node: Node,
    events: Events,
    calls: Calls,
    ca_sha256: [u8; 32],
    stopped: tokio::sync::watch::Receiver<bool>,
) -> Routes {
    let server = ApiServer::new(Service::new(node, events, calls, ca_sha256, stopped))
        .max_decoding_message_size(wire::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(ANSWER_BYTES_MAX);
    Routes::new(Guard::new(server))
}

impl Service {
    fn new(
        node: Node,
        events: Events,
        calls: Calls,
        ca_sha256: [u8; 32],
        stopped: tokio::sync::watch::Receiver<bool>,
    ) -> Self {
        let ring = Ring::new(0);
        // The changes first: what is in both is taken once.
        let following = node.changes();
        tokio::spawn(changes::feed(ring.clone(), node.applied(), following));
        Self {
            node,
            events,
            calls,
            ring,
            pages: Pages::default(),
            ca_sha256,
            stopped,
        }
    }

    /// The state, with everything that was acknowledged anywhere.
    async fn state(&self) -> Result<State, Status> {
        self.node.read().await.map_err(reading)
    }

    /// Writes; the inner result is the state's own.
    async fn propose(
        &self,
        request_id: String,
        kind: command::Kind,
    ) -> Result<Result<Applied, Refused>, Status> {
        let command = Command {
            request_id,
            time: Some(clock::timestamp(clock::now_ms())),
            level: SCHEMA_LEVEL,
            kind: Some(kind),
        };
        let CommandReply { reply } = self.node.propose(command).await.map_err(proposing)?;
        match reply {
            Some(Reply::Applied(applied)) => Ok(Ok(applied)),
            Some(Reply::Refused(refused)) => Ok(Err(refused)),
            None => Err(Status::internal("the state gave no answer")),
        }
    }
}

/// The id under which a call writes: the client's, or one of its own.
fn request_id(given: &str) -> Result<String, Status> {
    match given.len() {
        0 => Ok(new_uuid()),
        1..=REQUEST_ID_BYTES_MAX => Ok(given.to_owned()),
        bytes => Err(Status::invalid_argument(format!(
            "a request id of {bytes} bytes is longer than {REQUEST_ID_BYTES_MAX}"
        ))),
    }
}

/// A call that decides anew writes under another id: the state remembers refusals too.
fn attempt_id(id: &str, attempt: u32) -> String {
    match attempt {
        0 => id.to_owned(),
        attempt => format!("{id}/{attempt}"),
    }
}

/// The object that was written for this request, whichever attempt it was.
fn answered(state: &State, id: &str) -> Option<Applied> {
    (0..ATTEMPTS_MAX).find_map(|attempt| match &state.reply(&attempt_id(id, attempt))?.reply {
        Some(Reply::Applied(applied)) => Some(applied.clone()),
        _ => None,
    })
}

/// What it was decided on changed every time.
fn contended(what: &str) -> Status {
    status::refused_one(
        status::Reason::Conflict,
        format!("{what} kept changing while this was being decided; try again"),
    )
}

/// The key of a call, with the namespace that it leaves out.
fn key(given: Option<&Key>) -> Result<(model::Kind, Key), Status> {
    let given = given.ok_or_else(|| Status::invalid_argument("the call names no object"))?;
    let kind = kind(&given.kind)?;
    if given.name.is_empty() {
        return Err(Status::invalid_argument(format!("the call names no {kind}")));
    }
    let namespace = match given.namespace.as_str() {
        "" => model::default::NAMESPACE,
        namespace => namespace,
    };
    Ok((kind, model::object::key_of(kind, namespace, &given.name)))
}

fn kind(text: &str) -> Result<model::Kind, Status> {
    model::Kind::parse(text).map_err(|cause| Status::invalid_argument(cause.to_string()))
}

/// How a missing object is spoken of.
fn not_found(kind: model::Kind, key: &Key) -> String {
    let (kind_name, name) = (kind.singular(), &key.name);
    if kind.namespaced() {
        format!("{kind_name} {name} not found in namespace {}", key.namespace)
    } else {
        format!("{kind_name} {name} not found")
    }
}

/// Work that takes the processor for a while, off the threads that serve connections.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    crate::blocking(work)
        .await
        .map_err(|cause| Status::internal(format!("a call's work ended badly: {cause}")))
}

#[tonic::async_trait]
impl Api for Service {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        self.do_apply(request.into_inner()).await.map(Response::new)
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Object>, Status> {
        self.do_get(&request.into_inner()).await.map(Response::new)
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        self.do_list(request.into_inner()).await.map(Response::new)
    }

    type WatchStream = BoxStream<'static, Result<WatchEvent, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.do_watch(request.into_inner()).await.map(Response::new)
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        self.do_delete(request.into_inner()).await.map(Response::new)
    }

    async fn scale(&self, request: Request<ScaleRequest>) -> Result<Response<Object>, Status> {
        self.do_scale(&request.into_inner()).await.map(Response::new)
    }

    async fn set_schedulable(
        &self,
        request: Request<SetSchedulableRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        self.do_set_schedulable(&request.into_inner())
            .await
            .map(Response::new)
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Result<Response<Object>, Status> {
        self.do_rollback(&request.into_inner()).await.map(Response::new)
    }

    async fn why(&self, request: Request<GetRequest>) -> Result<Response<WhyResponse>, Status> {
        self.do_why(&request.into_inner()).await.map(Response::new)
    }

    type LogsStream = BoxStream<'static, Result<LogChunk, Status>>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        self.do_logs(request.into_inner()).await.map(Response::new)
    }

    type ExecStream = BoxStream<'static, Result<ExecOutput, Status>>;

    async fn exec(
        &self,
        request: Request<Streaming<ExecInput>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        self.do_exec(request.into_inner()).await.map(Response::new)
    }

    async fn inspect(&self, request: Request<PodRef>) -> Result<Response<InspectResponse>, Status> {
        self.do_inspect(request.into_inner()).await.map(Response::new)
    }

    async fn describe(&self, request: Request<PodRef>) -> Result<Response<DescribeResponse>, Status> {
        self.do_describe(request.into_inner()).await.map(Response::new)
    }

    type ImportImageStream = BoxStream<'static, Result<ImportProgress, Status>>;

    async fn import_image(
        &self,
        request: Request<Streaming<ImportInput>>,
    ) -> Result<Response<Self::ImportImageStream>, Status> {
        self.do_import(request.into_inner()).await.map(Response::new)
    }

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        self.do_list_images(request.into_inner()).await.map(Response::new)
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        self.do_create_token(&request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_tokens(
        &self,
        _: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        self.do_list_tokens().await.map(Response::new)
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        self.do_revoke_token(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn remove_member(
        &self,
        request: Request<RemoveMemberRequest>,
    ) -> Result<Response<RemoveMemberResponse>, Status> {
        self.do_remove_member(&request.into_inner())
            .await
            .map(Response::new)
    }

    async fn members(&self, _: Request<MembersRequest>) -> Result<Response<MembersResponse>, Status> {
        Ok(Response::new(self.do_members().await))
    }

    /// Also while nobody leads.
    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            schema_level: SCHEMA_LEVEL,
        }))
    }
}

#[cfg(test)]
mod service_test;
