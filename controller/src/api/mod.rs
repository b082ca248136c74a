//! What clients call: `service Api` of `proto/schema/api.proto`, one file for each group of calls.

pub(crate) mod access;
pub(crate) mod admit;
mod apply;
mod auth;
pub(crate) mod authorize;
mod backup;
pub(crate) mod bearer;
mod carry;
mod change;
mod cluster;
mod delete;
pub(crate) mod guard;
mod history;
mod images;
mod named;
mod read;
mod request;
pub(crate) mod status;
mod watch;
pub(crate) mod wire;

use std::sync::Arc;

use futures_util::stream::BoxStream;
use proto::state::v1::command_reply::Reply;
use proto::state::v1::{Applied, Command, CommandReply, Refused, command};
use proto::v1::Object;
use rpc::v1::api_server::{Api, ApiServer};
use rpc::v1::{
    ApplyRequest, ApplyResponse, BackupPart, BackupRequest, CreateServiceAccountTokenRequest,
    CreateServiceAccountTokenResponse, CreateTokenRequest, CreateTokenResponse, DeleteRequest,
    DeleteResponse, DescribeResponse, ExecInput, ExecOutput, GetRequest, HistoryRequest, HistoryResponse,
    ImportInput, ImportProgress, InspectResponse, IssueCertificateRequest, IssueCertificateResponse,
    ListImagesRequest, ListImagesResponse, ListRequest, ListResponse, ListRevocationsRequest,
    ListRevocationsResponse, ListTokensRequest, ListTokensResponse, LogChunk, LogsRequest, MembersRequest,
    MembersResponse, PodRef, RemoveMemberRequest, RemoveMemberResponse, RestoreResponse, ReviewAccessRequest,
    ReviewAccessResponse, RevokeCertificatesRequest, RevokeCertificatesResponse, RevokeTokenRequest,
    RevokeTokenResponse, RollbackRequest, ScaleRequest, SetSchedulableRequest, UndoRequest, UndoResponse,
    VersionRequest, VersionResponse, WatchEvent, WatchRequest, WhoAmIRequest, WhoAmIResponse, WhyResponse,
    open,
};
use state::{SCHEMA_LEVEL, State};
use tokio::sync::Semaphore;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::audit::Audit;
use crate::calls::Calls;
use crate::clock;
use crate::events::Events;
use crate::figures::Figures;
use crate::raft::Node;
use crate::security::ca::Authority;
use crate::watch::{self as changes, Ring};
use admit::{Asker, Call};
use bearer::Bearers;
use guard::Guard;
use named::{key, kind, not_found};
use read::Pages;
use request::{By, answered, attempt_id, request_id};
use status::{proposing, reading};

/// Largest answer: a page of a list, and one object more.
const ANSWER_BYTES_MAX: usize = 24 << 20;
/// How often a write is decided anew because what it was decided on changed meanwhile.
const ATTEMPTS_MAX: u32 = 16;

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
    /// Signs for people; its hash is part of every join token.
    authority: Arc<Authority>,
    audit: Audit,
    /// A place for each backup that may be read at a time.
    backups: Arc<Semaphore>,
    /// True when this member stops.
    stopped: tokio::sync::watch::Receiver<bool>,
}

/// The API behind its guard. Begins to follow what this member applies.
pub(crate) fn routes(
    node: Node,
    events: Events,
    calls: Calls,
    authority: Arc<Authority>,
    audit: Audit,
    figures: Figures,
    stopped: tokio::sync::watch::Receiver<bool>,
) -> Routes {
    let bearers = Bearers::new(node.clone(), authority.account_key().clone());
    let service = Service::new(node, events, calls, authority, audit.clone(), stopped);
    let server = ApiServer::new(service)
        .max_decoding_message_size(wire::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(ANSWER_BYTES_MAX);
    Routes::new(Guard::new(server, bearers, audit, figures))
}

impl Service {
    fn new(
        node: Node,
        events: Events,
        calls: Calls,
        authority: Arc<Authority>,
        audit: Audit,
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
            authority,
            audit,
            backups: Arc::new(Semaphore::new(backup::BACKUPS_MAX)),
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
        by: &By,
        request_id: String,
        kind: command::Kind,
    ) -> Result<Result<Applied, Refused>, Status> {
        let command = Command {
            request_id,
            time: Some(clock::timestamp(clock::now_ms())),
            kind: Some(kind),
            actor: by.actor.clone(),
            verb: by.verb.clone(),
            ..Default::default()
        };
        let CommandReply { reply } = self.node.propose(command).await.map_err(proposing)?;
        match reply {
            Some(Reply::Applied(applied)) => Ok(Ok(applied)),
            Some(Reply::Refused(refused)) => Ok(Err(refused)),
            None => Err(Status::internal("the state gave no answer")),
        }
    }
}

/// What it was decided on changed every time.
fn contended(what: &str) -> Status {
    status::refused_one(
        status::Reason::Conflict,
        format!("{what} kept changing while this was being decided; try again"),
    )
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
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let call = Call {
            request_id: &request.request_id,
            ..Call::writes("Apply")
        };
        let admitted = self
            .admit(call, asker, |state| {
                Ok(access::apply(&request.items, &request.request_id, state))
            })
            .await?;
        let answer = self.do_apply(request, &admitted.who).await;
        let answer = answer.map(|answer| self.without_unreadable(&admitted.who, answer));
        admitted.done(answer).await.map(Response::new)
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Object>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::object("get", request.key.as_ref())?;
        let admitted = self.admit(Call::reads("Get"), asker, |_| Ok(needs)).await?;
        admitted
            .done(self.do_get(&request).await)
            .await
            .map(Response::new)
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let (kind, namespace, fields) = (&request.kind, &request.namespace, &request.field_selector);
        let needs = access::many("list", kind, namespace, fields)?;
        let admitted = self.admit(Call::reads("List"), asker, |_| Ok(needs)).await?;
        admitted
            .done(self.do_list(request).await)
            .await
            .map(Response::new)
    }

    type WatchStream = BoxStream<'static, Result<WatchEvent, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let (kind, namespace, fields) = (&request.kind, &request.namespace, &request.field_selector);
        let needs = access::many("watch", kind, namespace, fields)?;
        let admitted = self.admit(Call::reads("Watch"), asker, |_| Ok(needs)).await?;
        admitted
            .done(self.do_watch(request).await)
            .await
            .map(Response::new)
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let call = Call {
            request_id: &request.request_id,
            ..Call::writes("Delete")
        };
        let needs = access::delete(&request);
        let admitted = self.admit(call, asker, |_| Ok(needs)).await?;
        let by = By::new(&admitted.who, "delete");
        admitted
            .done(self.do_delete(request, &by).await)
            .await
            .map(Response::new)
    }

    async fn scale(&self, request: Request<ScaleRequest>) -> Result<Response<Object>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::scale(&request)?;
        let admitted = self.admit(Call::writes("Scale"), asker, |_| Ok(needs)).await?;
        let by = By::new(&admitted.who, "scale");
        admitted
            .done(self.do_scale(&request, &by).await)
            .await
            .map(Response::new)
    }

    async fn set_schedulable(
        &self,
        request: Request<SetSchedulableRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::set_schedulable(&request);
        let admitted = self
            .admit(Call::writes("SetSchedulable"), asker, |_| Ok(needs))
            .await?;
        let answer = self.do_set_schedulable(&request, &admitted.who).await;
        admitted.done(answer).await.map(Response::new)
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Result<Response<Object>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::rollback(&request)?;
        let admitted = self.admit(Call::writes("Rollback"), asker, |_| Ok(needs)).await?;
        let by = By::new(&admitted.who, "rollout undo");
        admitted
            .done(self.do_rollback(&request, &by).await)
            .await
            .map(Response::new)
    }

    async fn why(&self, request: Request<GetRequest>) -> Result<Response<WhyResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::object("get", request.key.as_ref())?;
        let admitted = self.admit(Call::reads("Why"), asker, |_| Ok(needs)).await?;
        admitted
            .done(self.do_why(&request).await)
            .await
            .map(Response::new)
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::object("get", request.key.as_ref())?;
        let admitted = self.admit(Call::reads("History"), asker, |_| Ok(needs)).await?;
        admitted
            .done(self.do_history(&request).await)
            .await
            .map(Response::new)
    }

    async fn undo(&self, request: Request<UndoRequest>) -> Result<Response<UndoResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let call = Call {
            request_id: &request.request_id,
            ..Call::writes("Undo")
        };
        let admitted = self
            .admit(call, asker, |state| history::needs(state, &request))
            .await?;
        let answer = self.do_undo(request, &admitted.who).await;
        admitted.done(answer).await.map(Response::new)
    }

    type LogsStream = BoxStream<'static, Result<LogChunk, Status>>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::of_pod(&open::Call::Logs(request.clone()), request.pod.as_ref())?;
        let admitted = self.admit(Call::reads("Logs"), asker, |_| Ok(needs)).await?;
        let answer = self.do_logs(&admitted.who, request).await;
        admitted.done(answer).await.map(Response::new)
    }

    type ExecStream = BoxStream<'static, Result<ExecOutput, Status>>;

    async fn exec(
        &self,
        request: Request<Streaming<ExecInput>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let asker = Asker::of(request.extensions())?;
        self.do_exec(asker, request.into_inner()).await.map(Response::new)
    }

    async fn inspect(&self, request: Request<PodRef>) -> Result<Response<InspectResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::of_pod(&open::Call::Inspect(request.clone()), Some(&request))?;
        let admitted = self.admit(Call::reads("Inspect"), asker, |_| Ok(needs)).await?;
        let answer = self.do_inspect(&admitted.who, request).await;
        admitted.done(answer).await.map(Response::new)
    }

    async fn describe(&self, request: Request<PodRef>) -> Result<Response<DescribeResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::of_pod(&open::Call::Describe(request.clone()), Some(&request))?;
        let admitted = self.admit(Call::reads("Describe"), asker, |_| Ok(needs)).await?;
        let answer = self.do_describe(&admitted.who, request).await;
        admitted.done(answer).await.map(Response::new)
    }

    type ImportImageStream = BoxStream<'static, Result<ImportProgress, Status>>;

    async fn import_image(
        &self,
        request: Request<Streaming<ImportInput>>,
    ) -> Result<Response<Self::ImportImageStream>, Status> {
        let asker = Asker::of(request.extensions())?;
        let needs = access::images("create");
        let admitted = self
            .admit(Call::writes("ImportImage"), asker, |_| Ok(needs))
            .await?;
        let answer = self.do_import(&admitted.who, request.into_inner()).await;
        admitted.done(answer).await.map(Response::new)
    }

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let needs = access::images("list");
        let admitted = self
            .admit(Call::reads("ListImages"), asker, |_| Ok(needs))
            .await?;
        let answer = self.do_list_images(&admitted.who, request.into_inner()).await;
        admitted.done(answer).await.map(Response::new)
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::create_token(&request);
        let admitted = self
            .admit(Call::writes("CreateToken"), asker, |_| Ok(needs))
            .await?;
        let by = By::new(&admitted.who, "token create");
        admitted
            .done(self.do_create_token(&request, &by).await)
            .await
            .map(Response::new)
    }

    async fn list_tokens(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let needs = access::tokens("list", "");
        let admitted = self
            .admit(Call::reads("ListTokens"), asker, |_| Ok(needs))
            .await?;
        admitted
            .done(self.do_list_tokens().await)
            .await
            .map(Response::new)
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::tokens("delete", &request.id);
        let admitted = self
            .admit(Call::writes("RevokeToken"), asker, |_| Ok(needs))
            .await?;
        let by = By::new(&admitted.who, "token revoke");
        admitted
            .done(self.do_revoke_token(request, &by).await)
            .await
            .map(Response::new)
    }

    async fn create_service_account_token(
        &self,
        request: Request<CreateServiceAccountTokenRequest>,
    ) -> Result<Response<CreateServiceAccountTokenResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::account_token(&request)?;
        let admitted = self
            .admit(Call::writes("CreateServiceAccountToken"), asker, |_| Ok(needs))
            .await?;
        admitted
            .done(self.do_create_account_token(&request).await)
            .await
            .map(Response::new)
    }

    async fn remove_member(
        &self,
        request: Request<RemoveMemberRequest>,
    ) -> Result<Response<RemoveMemberResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::members("delete", &request.name);
        let admitted = self
            .admit(Call::writes("RemoveMember"), asker, |_| Ok(needs))
            .await?;
        admitted
            .done(self.do_remove_member(&request).await)
            .await
            .map(Response::new)
    }

    async fn members(&self, request: Request<MembersRequest>) -> Result<Response<MembersResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let needs = access::members("list", "");
        let admitted = self
            .admit_without_leader(Call::reads("Members"), asker, needs)
            .await?;
        admitted
            .done(Ok(self.do_members().await))
            .await
            .map(Response::new)
    }

    type BackupStream = BoxStream<'static, Result<BackupPart, Status>>;

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let asker = Asker::of(request.extensions())?;
        let needs = access::everything();
        let admitted = self.admit(Call::writes("Backup"), asker, |_| Ok(needs)).await?;
        admitted.done(self.do_backup().await).await.map(Response::new)
    }

    async fn restore(
        &self,
        request: Request<Streaming<BackupPart>>,
    ) -> Result<Response<RestoreResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let needs = access::everything();
        let admitted = self.admit(Call::writes("Restore"), asker, |_| Ok(needs)).await?;
        let by = By::new(&admitted.who, "cluster restore");
        let answer = self.do_restore(request.into_inner(), &by).await;
        admitted.done(answer).await.map(Response::new)
    }

    /// For everybody with a certificate or a token; with a certificate also while nobody leads.
    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            schema_level: SCHEMA_LEVEL,
        }))
    }

    async fn issue_certificate(
        &self,
        request: Request<IssueCertificateRequest>,
    ) -> Result<Response<IssueCertificateResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::issue(&request);
        let admitted = self
            .admit(Call::writes("IssueCertificate"), asker, |_| Ok(needs))
            .await?;
        let answer = self.do_issue(&admitted.who, &request).await;
        admitted.done(answer).await.map(Response::new)
    }

    async fn revoke_certificates(
        &self,
        request: Request<RevokeCertificatesRequest>,
    ) -> Result<Response<RevokeCertificatesResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::certificates("delete", &request.identity);
        let admitted = self
            .admit(Call::writes("RevokeCertificates"), asker, |_| Ok(needs))
            .await?;
        let by = By::new(&admitted.who, "auth revoke");
        let answer = self.do_revoke(&request, &by).await;
        admitted.done(answer).await.map(Response::new)
    }

    async fn list_revocations(
        &self,
        request: Request<ListRevocationsRequest>,
    ) -> Result<Response<ListRevocationsResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let needs = access::certificates("list", "");
        let admitted = self
            .admit(Call::reads("ListRevocations"), asker, |_| Ok(needs))
            .await?;
        let answer = self.do_list_revocations().await;
        admitted.done(answer).await.map(Response::new)
    }

    async fn review_access(
        &self,
        request: Request<ReviewAccessRequest>,
    ) -> Result<Response<ReviewAccessResponse>, Status> {
        let asker = Asker::of(request.extensions())?;
        let request = request.into_inner();
        let needs = access::review(&request);
        let admitted = self
            .admit(Call::reads("ReviewAccess"), asker, |_| Ok(needs))
            .await?;
        let answer = self.do_review(&admitted.who, request).await;
        admitted.done(answer).await.map(Response::new)
    }

    /// For everybody with a certificate or a token.
    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        let Asker { who, .. } = Asker::of(request.extensions())?;
        Ok(Response::new(Self::do_who_am_i(who, request.extensions())))
    }
}

#[cfg(test)]
mod backup_test;
#[cfg(test)]
mod rights_test;
#[cfg(test)]
pub(crate) mod service_test;
