//! The connection to a cluster, with what every verb needs of it.

use std::path::Path;
use std::time::{Duration, Instant};

use proto::state::v1::Key;
use proto::v1::Object;
use rpc::v1::api_client::ApiClient;
use rpc::v1::{GetRequest, ListRequest, ListResponse, WatchEvent, WatchRequest};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use crate::bearer::Bearer;
use crate::config::{Config, Context, Credentials};
use crate::error::{self, CtlError};

/// Largest message that is taken from the cluster: a list answer of the server's own limit, with room.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Objects asked for in one answer; longer lists are fetched in pages at one revision.
const PAGE: u32 = 500;

/// How often a list is begun anew whose revision is no longer kept.
const LISTS_MAX: u32 = 4;

/// For how long a call is made again whose answer was lost: longer than a member that stops lets calls go on (5 s), shorter
/// than one looks for a leader (10 s), so that its word that there is none is the last one.
const CALL_PATIENCE: Duration = Duration::from_secs(8);
/// Before the second time; it doubles.
const CALL_PAUSE: Duration = Duration::from_millis(100);

/// The calls, each with a token if that is how the context says who calls.
pub(crate) type Api = ApiClient<InterceptedService<Channel, Bearer>>;

/// One cluster, and the namespace that names without one are in.
pub(crate) struct Cluster {
    pub(crate) api: Api,
    /// From `-n`, else `default`.
    pub(crate) namespace: String,
    endpoints: String,
    context: String,
    /// A certificate or a token.
    shows: &'static str,
}

/// Which objects of a kind are asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub(crate) kind: String,
    /// Empty: all namespaces.
    pub(crate) namespace: String,
    pub(crate) labels: String,
    pub(crate) fields: String,
}

impl Cluster {
    /// The cluster of a context. No call is made yet.
    pub(crate) fn open(
        config: &Path,
        context: Option<&str>,
        namespace: Option<&str>,
    ) -> Result<Self, CtlError> {
        let known = Config::read(config)?;
        Self::connect(known.context(context, config)?, namespace)
    }

    /// The cluster that `context` describes.
    pub(crate) fn connect(context: &Context, namespace: Option<&str>) -> Result<Self, CtlError> {
        let (identity, token) = match context.credentials()? {
            Credentials::Certificate { cert, key } => (Some((cert, key)), None),
            Credentials::Token(token) => (None, Some(token)),
        };
        let shows = if token.is_some() { "token" } else { "certificate" };
        let channel = rpc::tls::channel(&context.endpoints, &context.ca, identity)
            .map_err(|error| CtlError::refused(format!("context {}: {}", context.name, chain(&error))))?;
        let api =
            ApiClient::with_interceptor(channel, Bearer(token)).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self {
            api,
            namespace: namespace.unwrap_or("default").to_owned(),
            endpoints: context.endpoints.join(", "),
            context: context.name.clone(),
            shows,
        })
    }

    /// What a failed call means.
    pub(crate) fn error(&self, status: Status) -> CtlError {
        if error::is_unreachable(&status) {
            return CtlError::Unreachable {
                endpoints: self.endpoints.clone(),
                context: self.context.clone(),
                cause: chain(&status).trim_start_matches("status: ").to_owned(),
            };
        }
        match status.code() {
            Code::Unauthenticated => CtlError::refused(format!(
                "{} does not accept the {} of context {}: {}",
                self.endpoints,
                self.shows,
                self.context,
                status.message()
            )),
            Code::DeadlineExceeded => CtlError::refused(format!("{} did not answer in time", self.endpoints)),
            _ => CtlError::Refused(error::lines(&status)),
        }
    }

    /// Makes a call that may be made again: one that reads, or one that carries the id under which a member answers a
    /// repeated request with the first answer. When the connection to a member is lost before its answer, or it stops,
    /// another one is asked.
    pub(crate) async fn call<M: Clone, T>(
        &self,
        request: M,
        call: impl AsyncFn(Api, M) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let began = Instant::now();
        let mut pause = CALL_PAUSE;
        loop {
            match call(self.api.clone(), request.clone()).await {
                Ok(answer) => return Ok(answer.into_inner()),
                // Where none can be reached, each was tried already.
                Err(status)
                    if error::is_lost(&status)
                        && !error::is_unreachable(&status)
                        && began.elapsed() + pause < CALL_PATIENCE => {}
                Err(status) => return Err(status),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// One object; none when it is not there.
    pub(crate) async fn find(&self, key: Key) -> Result<Option<Object>, CtlError> {
        match self.fetch(key).await {
            Ok(object) => Ok(Some(object)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.error(status)),
        }
    }

    /// One object, which must be there.
    pub(crate) async fn get(&self, key: Key) -> Result<Object, CtlError> {
        self.fetch(key).await.map_err(|status| self.error(status))
    }

    async fn fetch(&self, key: Key) -> Result<Object, Status> {
        let request = GetRequest {
            key: Some(key),
            stale: false,
        };
        self.call(request, async |mut api, request| api.get(request).await)
            .await
    }

    /// Every object that matches, at one revision.
    pub(crate) async fn list(&self, query: &Query) -> Result<ListResponse, CtlError> {
        let mut all = ListResponse::default();
        let mut begun = 0;
        loop {
            let later_page = !all.r#continue.is_empty();
            let request = ListRequest {
                kind: query.kind.clone(),
                namespace: query.namespace.clone(),
                label_selector: query.labels.clone(),
                field_selector: query.fields.clone(),
                stale: false,
                limit: PAGE,
                r#continue: std::mem::take(&mut all.r#continue),
            };
            let page = self
                .call(request, async |mut api, request| api.list(request).await)
                .await;
            let page = match page {
                Ok(page) => page,
                // Another member answers now, or this one keeps the list no longer.
                Err(status) if status.code() == Code::OutOfRange && later_page && begun < LISTS_MAX => {
                    begun += 1;
                    all = ListResponse::default();
                    continue;
                }
                Err(status) => return Err(self.error(status)),
            };
            all.items.extend(page.items);
            all.revision = page.revision;
            all.r#continue = page.r#continue;
            if all.r#continue.is_empty() {
                return Ok(all);
            }
        }
    }

    /// The changes after a revision; 0 shows first what there is.
    pub(crate) async fn watch(
        &self,
        query: &Query,
        revision: u64,
    ) -> Result<Streaming<WatchEvent>, CtlError> {
        let request = WatchRequest {
            kind: query.kind.clone(),
            namespace: query.namespace.clone(),
            label_selector: query.labels.clone(),
            field_selector: query.fields.clone(),
            revision,
        };
        let stream = self
            .api
            .clone()
            .watch(request)
            .await
            .map_err(|status| self.error(status))?;
        Ok(stream.into_inner())
    }
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    text
}
