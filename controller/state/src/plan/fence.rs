//! Pods that must not run twice: when one on a node that is lost has ended for certain.
//!
//! Its monitor ends it by itself, with or without an agent: it asks the containers to end when the lease is over that the node
//! was last granted, counted from when the node sent its heartbeat, and kills what is left after the grace period of the pod.
//! The leader counts its lease from when it heard the heartbeat, which is later. So once that lease is over and the grace
//! period too, the containers have ended, but for what the two clocks differ and how long a kill takes.

use crate::record::PodRecord;

/// Beyond lease and grace period, in milliseconds: a quarter of the lease of 6 s, for what clocks differ (see
/// [`CLOCKS_DIFFER`]), and 2.5 s from the kill to the end of what was killed: a second after which the kernel kills the monitor
/// that did not do it, and as much and more for a busy machine.
pub const MARGIN_MS: i64 = 4_000;
/// A node's clock and a leader's differ by less than a quarter of what passes: the kernel lets no daemon make a clock faster
/// or slower than by a tenth (adjtimex(2): `tick` from 9,000 to 11,000), and 11 / 9 is less than 5 / 4.
const CLOCKS_DIFFER: i64 = 4;
/// As the agent has it for pods that do not say.
const GRACE_SECONDS: i32 = model::default::GRACE_SECONDS;

/// How long after the end of its node's lease a pod has ended for certain, in milliseconds. The grace period is the one of its
/// spec, which never changes: monitors know of no other.
pub(super) fn ended_after(pod: &PodRecord) -> i64 {
    let spec = pod.template.spec();
    let grace = spec.and_then(|spec| spec.termination_grace_period_seconds);
    let grace_ms = i64::from(grace.unwrap_or(GRACE_SECONDS).max(0)) * 1_000;
    grace_ms + grace_ms / CLOCKS_DIFFER + MARGIN_MS
}
