//! Watch: what there is, then what changes; pulled by the reader from the ring of recent changes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use model::{Kind, object};
use proto::state::v1::Key;
use proto::v1::Object;
use rpc::v1::{WatchEvent, WatchRequest};
use state::State;
use tokio::sync::watch;
use tonic::Status;

use super::Service;
use super::read::Filter;
use crate::watch::{Ring, shown};

/// Changes or objects looked at in one step.
const STEP: usize = 256;
/// A reader who is shown nothing hears this often how far it is, so that it can go on from there.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(30);

/// What there was at the beginning and is still to be shown.
enum Listing {
    State { state: Box<State>, after: Option<Key> },
    Events(VecDeque<Arc<Object>>),
}

/// One watch.
struct Watching {
    ring: Ring,
    head: watch::Receiver<u64>,
    filter: Filter,
    listing: Option<Listing>,
    /// Everything up to this revision was shown, or is in `next`.
    revision: u64,
    /// The last revision that the reader was told.
    told: u64,
    next: VecDeque<WatchEvent>,
    /// How often it hears at least how far it is.
    bookmarks: Duration,
    /// True when this member stops.
    stopped: watch::Receiver<bool>,
}

impl Service {
    pub(super) async fn do_watch(
        &self,
        request: WatchRequest,
    ) -> Result<BoxStream<'static, Result<WatchEvent, Status>>, Status> {
        let filter = Filter::parse(
            &request.kind,
            &request.namespace,
            &request.label_selector,
            &request.field_selector,
        )?;
        let events = filter.kind == Kind::Event;
        let ring = if events { self.events.ring() } else { &self.ring };
        let (listing, revision) = match (request.revision, events) {
            (0, true) => {
                let (events, revision) = self.events.list();
                (Some(Listing::Events(events.into())), revision)
            }
            (0, false) => {
                let state = Box::new(self.state().await?);
                let revision = state.revision();
                (Some(Listing::State { state, after: None }), revision)
            }
            (revision, _) => (None, revision),
        };
        let watching = Watching {
            head: ring.head(),
            ring: ring.clone(),
            filter,
            listing,
            revision,
            told: revision,
            next: VecDeque::new(),
            bookmarks: BOOKMARK_INTERVAL,
            stopped: self.stopped.clone(),
        };
        // In the stream, as whatever ends a watch: readers list again at one place.
        if events && revision > *watching.head.borrow() {
            let foreign = Status::out_of_range(format!(
                "revision {revision} of events is another member's: list again"
            ));
            return Ok(stream::iter([Err(foreign)]).boxed());
        }
        Ok(stream::unfold(Some(watching), step).boxed())
    }
}

fn expired(cause: crate::watch::TooOld) -> Status {
    Status::out_of_range(cause.to_string())
}

fn stopping() -> Status {
    Status::unavailable("this controller is stopping: watch at another")
}

/// The next event and the watch after it; no watch after the last.
async fn step(watching: Option<Watching>) -> Option<(Result<WatchEvent, Status>, Option<Watching>)> {
    let mut watching = watching?;
    loop {
        if let Some(event) = watching.next.pop_front() {
            watching.told = event.revision;
            return Some((Ok(event), Some(watching)));
        }
        if watching.listing.is_some() {
            watching.list();
            continue;
        }
        // Seen before the look: what comes after it wakes us.
        watching.head.borrow_and_update();
        match watching.look() {
            Err(status) => return Some((Err(status), None)),
            Ok(true) => {}
            Ok(false) => tokio::select! {
                biased;
                // Whoever stops the member, or an end of the ring: nothing more comes from here.
                _ = watching.stopped.wait_for(|stopped| *stopped) => return Some((Err(stopping()), None)),
                changed = watching.head.changed() => {
                    if changed.is_err() {
                        return Some((Err(stopping()), None));
                    }
                }
                () = tokio::time::sleep(watching.bookmarks) => {
                    if watching.told < watching.revision {
                        watching.next.push_back(bookmark(watching.revision));
                    }
                }
            },
        }
    }
}

impl Watching {
    /// Some of what there was at the beginning.
    fn list(&mut self) {
        let mut objects = Vec::new();
        match self.listing.take() {
            None => {}
            Some(Listing::Events(mut events)) => {
                let some = events.drain(..events.len().min(STEP));
                objects.extend(some.map(|event| event.as_ref().clone()));
                if !events.is_empty() {
                    self.listing = Some(Listing::Events(events));
                }
            }
            Some(Listing::State { state, after }) => {
                let all = state.list(self.filter.kind, self.filter.namespace(), after.as_ref());
                objects.extend(all.take(STEP));
                if objects.len() == STEP {
                    let after = objects.last().map(object::key);
                    self.listing = Some(Listing::State { state, after });
                }
            }
        }
        let wanted = objects.into_iter().filter(|object| self.filter.matches(object));
        self.next.extend(wanted.map(|object| WatchEvent {
            r#type: "ADDED".to_owned(),
            // By name and not by revision: whoever went on from one of these would miss others.
            revision: 0,
            object: Some(object),
        }));
        if self.listing.is_none() {
            self.next.push_back(bookmark(self.revision));
        }
    }

    /// Some of what changed; whether there was anything.
    fn look(&mut self) -> Result<bool, Status> {
        let changes = self.ring.after(self.revision, STEP).map_err(expired)?;
        for change in &changes {
            self.revision = change.revision;
            if let Some((happened, object)) = shown(change, |object| self.filter.matches(object)) {
                self.next.push_back(WatchEvent {
                    r#type: happened.as_str().to_owned(),
                    revision: change.revision,
                    object: Some(object),
                });
            }
        }
        Ok(!changes.is_empty())
    }
}

fn bookmark(revision: u64) -> WatchEvent {
    WatchEvent {
        r#type: "BOOKMARK".to_owned(),
        revision,
        object: None,
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::{ConfigMap, ObjectMeta};
    use state::Change;
    use tonic::Code;

    use super::*;

    fn added(revision: u64, namespace: &str) -> Change {
        let map = ConfigMap {
            metadata: Some(ObjectMeta {
                name: format!("map-{revision}"),
                namespace: namespace.to_owned(),
                resource_version: revision.to_string(),
                ..Default::default()
            }),
            ..Default::default()
        };
        Change::of_put(revision, None, Arc::new(object::from(map)))
    }

    fn watching(ring: &Ring, revision: u64, namespace: &str) -> (Watching, watch::Sender<bool>) {
        let (stop, stopped) = watch::channel(false);
        let watching = Watching {
            ring: ring.clone(),
            head: ring.head(),
            filter: Filter::parse("ConfigMap", namespace, "", "").unwrap(),
            listing: None,
            revision,
            told: revision,
            next: VecDeque::new(),
            bookmarks: Duration::from_millis(1),
            stopped,
        };
        (watching, stop)
    }

    #[tokio::test]
    async fn a_watch_shows_its_own_and_says_how_far_it_is() {
        let ring = Ring::new(10);
        ring.push(vec![added(11, "web"), added(12, "other")]);
        let (watch, _stop) = watching(&ring, 10, "web");
        let (first, watch) = step(Some(watch)).await.unwrap();
        let first = first.unwrap();
        assert_eq!((first.r#type.as_str(), first.revision), ("ADDED", 11));
        // Nothing of its own comes: after a while it hears that it may go on at 12.
        let (told, watch) = step(watch).await.unwrap();
        let told = told.unwrap();
        assert_eq!((told.r#type.as_str(), told.revision), ("BOOKMARK", 12));
        ring.push(vec![added(13, "web")]);
        let (next, _) = step(watch).await.unwrap();
        assert_eq!(next.unwrap().revision, 13);
    }

    /// What a reader is shown of its namespace until it has read `count` events, and where it then is.
    async fn read(ring: &Ring, from: u64, count: usize) -> (Vec<u64>, u64) {
        let (mut watch, _stop) = watching(ring, from, "web");
        watch.bookmarks = Duration::from_secs(3600);
        let (mut seen, mut at, mut watch) = (Vec::new(), from, Some(watch));
        while seen.len() < count {
            let (event, next) = step(watch).await.expect("the watch goes on");
            let event = event.expect("nothing is too old");
            at = event.revision;
            seen.push(event.revision);
            watch = next;
        }
        (seen, at)
    }

    #[tokio::test]
    async fn a_reader_goes_on_at_another_member_without_missing_or_repeating() {
        let entry = |revision: u64| {
            added(
                revision,
                if revision.is_multiple_of(3) {
                    "other"
                } else {
                    "web"
                },
            )
        };
        let wanted: Vec<u64> = (11_u64..=40)
            .filter(|revision| !revision.is_multiple_of(3))
            .collect();
        for cut in 0..wanted.len() {
            // The other member is behind where the reader was, as far, or ahead; it got its changes in other portions.
            for ahead in [11, 20, 30, 40] {
                let (first, second) = (Ring::new(10), Ring::new(10));
                first.push((11..=40).map(entry));
                second.push((11..=ahead).map(entry));
                let (mut seen, at) = read(&first, 10, cut).await;
                let later = tokio::spawn(async move {
                    for revision in ahead + 1..=40 {
                        second.push(vec![entry(revision)]);
                    }
                    second
                });
                let second = later.await.expect("the pushes");
                let (rest, _) = read(&second, at, wanted.len() - cut).await;
                seen.extend(rest);
                assert_eq!(seen, wanted, "after {cut} events, the other at {ahead}");
            }
        }
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_is_dropped() {
        let ring = Ring::new(10);
        ring.push(vec![added(11, "web")]);
        let (watch, _stop) = watching(&ring, 10, "");
        let (_, watch) = step(Some(watch)).await.unwrap();
        ring.reset(50);
        let (dropped, watch) = step(watch).await.unwrap();
        assert_eq!(dropped.unwrap_err().code(), Code::OutOfRange);
        assert!(step(watch).await.is_none());
    }

    #[tokio::test]
    async fn a_watch_ends_when_its_member_stops() {
        let ring = Ring::new(10);
        let (watch, stop) = watching(&ring, 10, "");
        let next = tokio::spawn(step(Some(watch)));
        stop.send_replace(true);
        let (ended, watch) = next.await.unwrap().unwrap();
        assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
        assert!(watch.is_none());
    }
}
