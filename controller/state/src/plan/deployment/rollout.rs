//! How many replicas each revision is to have, so that a rollout never goes below or above what the strategy allows.

use proto::v1::int_or_string::Value;
use proto::v1::{DeploymentSpec, IntOrString, PodTemplateSpec};

use super::{Revision, Turn};

/// What a rolling update may do, in pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) desired: i32,
    /// No more pods than that.
    pub(super) most: i32,
    /// No fewer that are available.
    pub(super) least: i32,
}

impl Bounds {
    /// Surge rounds up and unavailable down; when both come to nothing, one may be unavailable, or nothing could move.
    pub(super) fn of(spec: &DeploymentSpec) -> Bounds {
        let desired = spec.replicas.unwrap_or(1).max(0);
        let rolling = spec
            .strategy
            .as_ref()
            .and_then(|strategy| strategy.rolling_update.as_ref());
        let surge = share(rolling.and_then(|r| r.max_surge.as_ref()), desired, true);
        let mut unavailable = share(rolling.and_then(|r| r.max_unavailable.as_ref()), desired, false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        Bounds {
            desired,
            most: desired.saturating_add(surge),
            least: (desired - unavailable.min(desired)).max(0),
        }
    }
}

/// A number or a percentage of the replicas; 25 % when nothing is said.
fn share(value: Option<&IntOrString>, of: i32, round_up: bool) -> i32 {
    let percent = match value.and_then(|value| value.value.as_ref()) {
        Some(Value::Number(number)) => return (*number).max(0),
        Some(Value::Text(text)) => text
            .strip_suffix('%')
            .and_then(|text| text.parse().ok())
            .unwrap_or(0),
        None => 25_i64,
    };
    let product = i64::from(of).saturating_mul(percent.clamp(0, i64::from(i32::MAX)));
    let rounded = if round_up {
        product.saturating_add(99) / 100
    } else {
        product / 100
    };
    i32::try_from(rounded).unwrap_or(i32::MAX)
}

impl Turn<'_> {
    /// One step of the rollout. The name of the ReplicaSet that it makes, if it makes one.
    pub(super) fn rollout<'r>(
        &mut self,
        old: &mut [Revision<'r>],
        current: &mut Option<Revision<'r>>,
        template: &PodTemplateSpec,
    ) -> Option<String> {
        let bounds = Bounds::of(self.spec);
        let newest = old.iter().map(Revision::number).max().unwrap_or(0);
        if self.spec.paused {
            resize(old, current.as_mut(), bounds.desired);
            self.commit_all(old, current.as_ref(), newest);
            return None;
        }
        let recreate = self
            .spec
            .strategy
            .as_ref()
            .is_some_and(|strategy| strategy.r#type == "Recreate");
        if recreate {
            for revision in old.iter_mut() {
                revision.wanted = 0;
            }
            // The old pods end before the first new one begins, those on their way out included.
            let running: i32 = old
                .iter()
                .map(|revision| revision.counts.running)
                .fold(0, i32::saturating_add);
            let free = running == 0;
            match current {
                Some(current) if free || current.asked > bounds.desired => current.wanted = bounds.desired,
                Some(_) => {}
                None if free => {
                    self.commit_all(old, None, newest);
                    return Some(self.start(template, bounds.desired, newest));
                }
                None => {}
            }
            self.commit_all(old, current.as_ref(), newest);
            return None;
        }
        let Some(current) = current else {
            let room = bounds.most.saturating_sub(sum(old, |revision| revision.held()));
            let replicas = room.clamp(0, bounds.desired);
            // The old ones shrink in the next run, when the new one is counted.
            self.commit_all(old, None, newest);
            return Some(self.start(template, replicas, newest));
        };
        grow(old, current, bounds);
        shrink(old, current, bounds);
        self.commit_all(old, Some(current), newest);
        if current.counts.available >= bounds.desired {
            self.forget(old);
        }
        None
    }

    fn start(&mut self, template: &PodTemplateSpec, replicas: i32, newest: u64) -> String {
        let number = newest.saturating_add(1);
        let name = self.create(template, replicas, number);
        self.mark(number);
        name
    }

    fn commit_all(&mut self, old: &[Revision], current: Option<&Revision>, newest: u64) {
        // A template that came back becomes the newest revision.
        let numbered = current.map(|current| {
            let number = current.number();
            (
                current,
                if number > newest {
                    number
                } else {
                    newest.saturating_add(1)
                },
            )
        });
        let all: Vec<&Revision> = old.iter().chain(current).collect();
        self.commit(&all, numbered);
        if let Some((_, number)) = numbered {
            self.mark(number);
        }
    }
}

/// The current revision takes what room there is.
fn grow(old: &[Revision], current: &mut Revision, bounds: Bounds) {
    if current.asked >= bounds.desired {
        current.wanted = bounds.desired;
        return;
    }
    let total = sum(old, |revision| revision.held()).saturating_add(current.held());
    let room = bounds.most.saturating_sub(total).max(0);
    current.wanted = current
        .asked
        .saturating_add(room.min(bounds.desired - current.asked));
}

/// The old revisions give up what may be missing: first the pods that are not available anyway.
fn shrink(old: &mut [Revision], current: &Revision, bounds: Bounds) {
    let total = sum(old, |revision| revision.asked).saturating_add(current.wanted);
    let missing = current.wanted - current.counts.available.min(current.wanted);
    let mut broken = total.saturating_sub(bounds.least).saturating_sub(missing).max(0);
    for revision in old.iter_mut() {
        let idle = revision.asked - revision.counts.available.min(revision.asked);
        let less = idle.min(broken);
        revision.wanted -= less;
        broken -= less;
    }
    let available = sum(old, |revision| revision.available()).saturating_add(current.available());
    let mut spare = available.saturating_sub(bounds.least).max(0);
    for revision in old.iter_mut() {
        let less = revision.wanted.min(spare);
        revision.wanted -= less;
        spare -= less;
    }
}

/// A paused Deployment is only made larger or smaller: the newest revision that runs takes the difference.
fn resize<'a>(old: &mut [Revision<'a>], current: Option<&mut Revision<'a>>, desired: i32) {
    let mut all: Vec<&mut Revision> = old.iter_mut().chain(current).collect();
    let total = all
        .iter()
        .map(|revision| revision.asked)
        .fold(0, i32::saturating_add);
    if total < desired {
        let held = all.iter().map(|revision| revision.held());
        let held = held.fold(0, i32::saturating_add).max(total);
        let runs = all.iter().rposition(|revision| revision.asked > 0);
        let place = runs.unwrap_or(all.len().saturating_sub(1));
        if let Some(revision) = all.get_mut(place) {
            revision.wanted = revision.asked.saturating_add((desired - held).max(0));
        }
        return;
    }
    let mut surplus = total - desired;
    // Oldest first.
    for revision in all {
        let less = revision.asked.min(surplus);
        revision.wanted = revision.asked - less;
        surplus -= less;
    }
}

fn sum(revisions: &[Revision], of: impl Fn(&Revision) -> i32) -> i32 {
    revisions.iter().map(of).fold(0, i32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{DeploymentStrategy, RollingUpdateDeployment};

    fn bounds(replicas: i32, surge: &str, unavailable: &str) -> (i32, i32) {
        let value = |text: &str| match text.parse() {
            Ok(number) => IntOrString {
                value: Some(Value::Number(number)),
            },
            Err(_) => IntOrString {
                value: Some(Value::Text(text.to_owned())),
            },
        };
        let spec = DeploymentSpec {
            replicas: Some(replicas),
            strategy: Some(DeploymentStrategy {
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(value(surge)),
                    max_unavailable: Some(value(unavailable)),
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let bounds = Bounds::of(&spec);
        (bounds.most, bounds.least)
    }

    #[test]
    fn percentages_round_as_in_kubernetes() {
        assert_eq!(bounds(10, "25%", "25%"), (13, 8));
        assert_eq!(bounds(3, "25%", "25%"), (4, 3));
        assert_eq!(bounds(1, "25%", "25%"), (2, 1));
        assert_eq!(bounds(4, "1", "0"), (5, 4));
    }

    #[test]
    fn something_can_always_move() {
        assert_eq!(bounds(4, "0", "0"), (4, 3));
        assert_eq!(bounds(1, "0", "10%"), (1, 0));
        assert_eq!(bounds(0, "0", "0"), (0, 0));
    }

    #[test]
    fn more_than_all_may_be_unavailable() {
        assert_eq!(bounds(2, "0", "5"), (2, 0));
        assert_eq!(bounds(2, "0", "500%"), (2, 0));
    }
}
