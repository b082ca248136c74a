//! Conditions: the time of a transition is that of the status, not of the last word about it.

use proto::Timestamp;
use proto::v1::Condition;

/// `new` as a whole list: `lastTransitionTime` stays where the status did not change.
pub(crate) fn replaced(old: &[Condition], new: &[Condition], time: &Timestamp) -> Vec<Condition> {
    new.iter().map(|condition| timed(old, condition, time)).collect()
}

/// `old` with those of `new` put in place or added.
pub(crate) fn with(old: &[Condition], new: &[Condition], time: &Timestamp) -> Vec<Condition> {
    let mut merged = old.to_vec();
    for condition in new {
        let condition = timed(old, condition, time);
        match merged.iter_mut().find(|there| there.r#type == condition.r#type) {
            Some(there) => *there = condition,
            None => merged.push(condition),
        }
    }
    merged
}

/// One of these conditions.
pub(crate) fn get<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.r#type == kind)
}

/// Whether a condition is True.
pub(crate) fn holds(conditions: &[Condition], kind: &str) -> bool {
    get(conditions, kind).is_some_and(|condition| condition.status == "True")
}

fn timed(old: &[Condition], new: &Condition, time: &Timestamp) -> Condition {
    let mut condition = new.clone();
    match get(old, &new.r#type) {
        Some(before) if before.status == new.status && before.last_transition_time.is_some() => {
            condition
                .last_transition_time
                .clone_from(&before.last_transition_time);
        }
        _ => {
            condition.last_transition_time.get_or_insert(*time);
        }
    }
    condition
}
