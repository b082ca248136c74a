//! Get, List, Why.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::selector::{Fields, Labels};
use model::{Kind, object};
use prost::Message;
use proto::state::v1::Key;
use proto::v1::Object;
use rpc::v1::{GetRequest, ListRequest, ListResponse, WhyResponse};
use state::State;
use tokio::time::Instant;
use tonic::Status;

use super::delete::missing;
use super::{Service, blocking};
use crate::{clock, why};

/// Bytes of one page, unless one object alone has more.
const PAGE_BYTES_MAX: usize = 16 << 20;
/// Objects of one page.
const PAGE_OBJECTS_MAX: usize = 10_000;
/// Lists that can be gone on with at the revision at which they began.
const PAGES_MAX: usize = 32;
/// How long: a page follows the other within seconds.
const PAGES_LIFE: Duration = Duration::from_secs(120);

/// Which objects a list or a watch shows.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    pub(super) kind: Kind,
    /// None: all.
    namespace: Option<String>,
    labels: Labels,
    fields: Fields,
}

impl Filter {
    pub(super) fn parse(kind: &str, namespace: &str, labels: &str, fields: &str) -> Result<Self, Status> {
        let kind = super::kind(kind)?;
        let wrong = |what: &str, cause: &dyn std::fmt::Display| {
            Status::invalid_argument(format!("the {what} selector is not one: {cause}"))
        };
        Ok(Self {
            kind,
            namespace: (kind.namespaced() && !namespace.is_empty()).then(|| namespace.to_owned()),
            labels: Labels::parse(labels).map_err(|cause| wrong("label", &cause))?,
            fields: {
                let fields = Fields::parse(fields).map_err(|cause| wrong("field", &cause))?;
                fields.fits(kind).map_err(|cause| wrong("field", &cause))?;
                fields
            },
        })
    }

    pub(super) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    pub(super) fn matches(&self, object: &Object) -> bool {
        if object::try_kind(object) != Some(self.kind) {
            return false;
        }
        let meta = object::meta(object);
        self.namespace
            .as_ref()
            .is_none_or(|namespace| *namespace == meta.namespace)
            && self.labels.matches(&meta.labels)
            && self.fields.matches(object)
    }
}

/// What a list is read from: it does not change.
#[derive(Clone)]
enum Source {
    State(Box<State>),
    /// All events, by namespace and name.
    Events(Arc<Vec<Arc<Object>>>, u64),
}

impl Source {
    fn revision(&self) -> u64 {
        match self {
            Self::State(state) => state.revision(),
            Self::Events(_, revision) => *revision,
        }
    }

    fn is_events(&self) -> bool {
        matches!(self, Self::Events(..))
    }

    /// One page, and where to go on.
    fn page(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> (Vec<Object>, Option<Key>) {
        match self {
            Self::State(state) => {
                let objects = state.list(filter.kind, filter.namespace(), after);
                page(objects.filter(|object| filter.matches(object)), limit)
            }
            Self::Events(events, _) => {
                let objects = events.iter().filter(|event| {
                    let meta = object::meta(event);
                    after.is_none_or(|after| (&meta.namespace, &meta.name) > (&after.namespace, &after.name))
                });
                let wanted = objects.filter(|event| filter.matches(event));
                page(wanted.map(|event| event.as_ref().clone()), limit)
            }
        }
    }
}

/// As many as one answer holds, and the key of the last one when there are more.
fn page(mut objects: impl Iterator<Item = Object>, limit: usize) -> (Vec<Object>, Option<Key>) {
    let mut page = Vec::new();
    let mut bytes = 0;
    for object in objects.by_ref() {
        let size = object.encoded_len() + 8;
        if !page.is_empty() && (page.len() >= limit || bytes + size > PAGE_BYTES_MAX) {
            let last = page.last().map(object::key);
            return (page, last);
        }
        bytes += size;
        page.push(object);
    }
    (page, None)
}

/// What lists in pages are read from, until they are read.
#[derive(Clone, Default)]
pub(super) struct Pages {
    kept: Arc<Mutex<VecDeque<(Instant, Source)>>>,
}

impl Pages {
    fn keep(&self, source: Source) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(since, other)| {
            let same = other.revision() == source.revision() && other.is_events() == source.is_events();
            !same && since.elapsed() < PAGES_LIFE
        });
        kept.push_back((Instant::now(), source));
        while kept.len() > PAGES_MAX {
            kept.pop_front();
        }
    }

    fn find(&self, events: bool, revision: u64) -> Option<Source> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(since, _)| since.elapsed() < PAGES_LIFE);
        let found = kept
            .iter()
            .find(|(_, source)| source.revision() == revision && source.is_events() == events);
        found.map(|(_, source)| source.clone())
    }
}

/// Where a list goes on: `1:REVISION:NAMESPACE/NAME` of the last object that was shown.
fn go_on(revision: u64, key: &Key) -> String {
    format!("1:{revision}:{}/{}", key.namespace, key.name)
}

fn gone_on(text: &str, kind: Kind) -> Option<(u64, Key)> {
    let (revision, place) = text.strip_prefix("1:")?.split_once(':')?;
    let (namespace, name) = place.split_once('/')?;
    Some((revision.parse().ok()?, object::key_of(kind, namespace, name)))
}

impl Service {
    pub(super) async fn do_get(&self, request: &GetRequest) -> Result<Object, Status> {
        let (kind, key) = super::key(request.key.as_ref())?;
        let found = if kind == Kind::Event {
            let event = self.events.get(&key.namespace, &key.name);
            event.map(|event| event.as_ref().clone())
        } else {
            self.read(request.stale).await?.get(&key)
        };
        found.ok_or_else(|| missing(kind, &key))
    }

    pub(super) async fn do_list(&self, request: ListRequest) -> Result<ListResponse, Status> {
        let filter = Filter::parse(
            &request.kind,
            &request.namespace,
            &request.label_selector,
            &request.field_selector,
        )?;
        let (source, after) = if request.r#continue.is_empty() {
            (self.source(filter.kind, request.stale).await?, None)
        } else {
            let (revision, after) = gone_on(&request.r#continue, filter.kind)
                .ok_or_else(|| Status::invalid_argument("`continue` is none that a list gave"))?;
            (self.same_source(filter.kind, revision)?, Some(after))
        };
        let limit = match request.limit {
            0 => PAGE_OBJECTS_MAX,
            limit => (limit as usize).min(PAGE_OBJECTS_MAX),
        };
        let read = source.clone();
        let (items, last) = blocking(move || read.page(&filter, after.as_ref(), limit)).await?;
        let revision = source.revision();
        let next = last.map_or_else(String::new, |key| go_on(revision, &key));
        if !next.is_empty() {
            self.pages.keep(source);
        }
        Ok(ListResponse {
            items,
            revision,
            r#continue: next,
        })
    }

    pub(super) async fn do_why(&self, request: &GetRequest) -> Result<WhyResponse, Status> {
        let (kind, key) = super::key(request.key.as_ref())?;
        if kind == Kind::Event {
            return Err(Status::invalid_argument(
                "an event is as it is: ask about its object",
            ));
        }
        let state = self.read(request.stale).await?;
        let object = state.get(&key).ok_or_else(|| missing(kind, &key))?;
        let events = self.events.clone();
        let reasons = blocking(move || {
            let look = why::Look {
                state: &state,
                events: &|uid: &str| events.about(uid),
                now_ms: clock::now_ms(),
            };
            look.reasons(&object)
        });
        Ok(WhyResponse {
            reasons: reasons.await?,
        })
    }

    async fn read(&self, stale: bool) -> Result<State, Status> {
        if stale {
            Ok(self.node.stale())
        } else {
            self.state().await
        }
    }

    async fn source(&self, kind: Kind, stale: bool) -> Result<Source, Status> {
        if kind == Kind::Event {
            let (events, revision) = self.events.list();
            return Ok(Source::Events(Arc::new(events), revision));
        }
        Ok(Source::State(Box::new(self.read(stale).await?)))
    }

    /// What the list began with; also another member's, when nothing changed since.
    fn same_source(&self, kind: Kind, revision: u64) -> Result<Source, Status> {
        let events = kind == Kind::Event;
        if let Some(source) = self.pages.find(events, revision) {
            return Ok(source);
        }
        let state = self.node.stale();
        if !events && state.revision() == revision {
            return Ok(Source::State(Box::new(state)));
        }
        Err(Status::out_of_range(format!(
            "the list at revision {revision} is no longer kept here: list again"
        )))
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::{ConfigMap, ObjectMeta};

    use super::*;

    fn map(number: usize, bytes: usize) -> Object {
        object::from(ConfigMap {
            metadata: Some(ObjectMeta {
                name: format!("map-{number:05}"),
                namespace: "default".to_owned(),
                labels: [("even".to_owned(), number.is_multiple_of(2).to_string())].into(),
                ..Default::default()
            }),
            data: [("key".to_owned(), "x".repeat(bytes))].into(),
            ..Default::default()
        })
    }

    #[test]
    fn a_page_ends_at_its_limit_and_says_where_to_go_on() {
        let (page_of, last) = page((0..10).map(|number| map(number, 1)), 4);
        assert_eq!(page_of.len(), 4);
        assert_eq!(last.unwrap().name, "map-00003");
        let (page_of, last) = page((0..4).map(|number| map(number, 1)), 4);
        assert_eq!((page_of.len(), last), (4, None));
    }

    #[test]
    fn a_page_is_bounded_in_bytes_and_never_empty() {
        let (page_of, last) = page((0..100).map(|number| map(number, 1 << 20)), 1000);
        let bytes: usize = page_of.iter().map(Message::encoded_len).sum();
        assert!(bytes <= PAGE_BYTES_MAX && last.is_some());
        let (page_of, _) = page((0..2).map(|number| map(number, PAGE_BYTES_MAX + 1)), 1000);
        assert_eq!(page_of.len(), 1);
    }

    #[test]
    fn events_are_paged_like_everything_else() {
        let events = (0..5).map(|number| Arc::new(map(number, 1))).collect();
        let source = Source::Events(Arc::new(events), 7);
        let filter = Filter::parse("ConfigMap", "", "even=true", "").unwrap();
        let (first, last) = source.page(&filter, None, 2);
        assert_eq!(first.len(), 2);
        let (rest, last) = source.page(&filter, last.as_ref(), 2);
        assert_eq!((rest.len(), last), (1, None));
    }

    #[test]
    fn the_place_where_a_list_goes_on_reads_back() {
        let key = object::key_of(Kind::Pod, "web", "a.b-1");
        assert_eq!(gone_on(&go_on(12, &key), Kind::Pod), Some((12, key)));
        for damaged in ["", "1:", "1:x:a/b", "1:5:ab", "2:5:a/b"] {
            assert_eq!(gone_on(damaged, Kind::Pod), None, "{damaged}");
        }
    }

    #[test]
    fn a_selector_that_is_none_is_refused_with_its_reason() {
        let refused = Filter::parse("Pod", "", "a in (", "").unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(
            refused.message().contains("label selector"),
            "{}",
            refused.message()
        );
        let refused = Filter::parse("Service", "", "", "").unwrap_err();
        assert!(
            refused.message().contains("not supported"),
            "{}",
            refused.message()
        );
    }

    #[test]
    fn kept_lists_are_bounded() {
        let pages = Pages::default();
        for revision in 0..PAGES_MAX as u64 + 5 {
            pages.keep(Source::Events(Arc::default(), revision));
        }
        assert!(pages.find(true, 4).is_none());
        assert!(pages.find(true, 5).is_some());
        assert!(pages.find(false, 5).is_none());
    }
}
