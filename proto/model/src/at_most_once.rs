//! Pods that must not run twice: whether one asks for it.

use std::collections::BTreeMap;

/// The annotation of a pod, or of a pod template, that must never run in two places at the same time, nor beside the pod that
/// it replaces, whatever becomes of its node. Its node ends it by itself when no controller has confirmed the node in time.
pub const ANNOTATION: &str = "bulkhead.io/at-most-once";
/// What asks for it; `false` says the same as no annotation. Anything else is refused.
pub const ASKED: &str = "true";

/// Whether a pod with these annotations asks for it.
pub fn is_asked(annotations: &BTreeMap<String, String>) -> bool {
    annotations.get(ANNOTATION).is_some_and(|value| value == ASKED)
}
