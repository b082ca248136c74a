//! A pod's quality of service, from its requests and limits.

use proto::v1::{Container, PodSpec};

use crate::quantity::{bytes, cpu};

/// Reads an amount of one resource.
type Read = fn(&str) -> i64;

/// Kubernetes' rule: Guaranteed when every container has limits for CPU and memory and its requests equal them, BestEffort
/// when none has any, Burstable otherwise.
pub(crate) fn class(spec: &PodSpec) -> &'static str {
    let all = || spec.containers.iter().chain(&spec.init_containers);
    let amount = |container: &Container, name: &str, read: Read| {
        let resources = container.resources.as_ref();
        let limit = resources
            .and_then(|r| r.limits.get(name))
            .map_or(0, |quantity| read(&quantity.text));
        let request = resources
            .and_then(|r| r.requests.get(name))
            .map(|quantity| read(&quantity.text));
        (request.unwrap_or(limit), limit)
    };
    let kinds: [(&str, Read); 2] = [("cpu", cpu), ("memory", bytes)];
    let amounts = || all().flat_map(|container| kinds.map(|(name, read)| amount(container, name, read)));
    if amounts().all(|(request, limit)| request == 0 && limit == 0) {
        "BestEffort"
    } else if amounts().all(|(request, limit)| limit > 0 && request == limit) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}
