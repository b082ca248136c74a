//! Amounts that the scheduler counts.

use proto::v1::{PodSpec, Quantity};
use std::collections::BTreeMap;

/// What a pod asks of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// Thousandths of a CPU.
    pub(crate) cpu: i64,
    /// Bytes.
    pub(crate) memory: i64,
    /// Protocol and port on the node.
    pub(crate) ports: Vec<(String, i32)>,
}

impl Requests {
    /// The sum over containers, or the largest init container where that is more (Kubernetes' rule). A missing request is
    /// the limit.
    pub(crate) fn of(spec: &PodSpec) -> Requests {
        let one = |container: &proto::v1::Container, name: &str, read: fn(&str) -> i64| {
            let resources = container.resources.as_ref();
            let amount = resources.and_then(|r| r.requests.get(name).or_else(|| r.limits.get(name)));
            amount.map_or(0, |quantity| read(&quantity.text))
        };
        let all = |name: &str, read: fn(&str) -> i64| {
            let sum = spec
                .containers
                .iter()
                .map(|c| one(c, name, read))
                .fold(0, i64::saturating_add);
            let init = spec
                .init_containers
                .iter()
                .map(|c| one(c, name, read))
                .max()
                .unwrap_or(0);
            sum.max(init)
        };
        let ports = spec.containers.iter().flat_map(|container| &container.ports);
        let mut ports: Vec<(String, i32)> = ports
            .filter_map(|port| {
                let number = match port.host_port {
                    0 if spec.host_network => port.container_port,
                    number => number,
                };
                let protocol = if port.protocol.is_empty() {
                    "TCP"
                } else {
                    &port.protocol
                };
                (number > 0).then(|| (protocol.to_owned(), number))
            })
            .collect();
        ports.sort();
        ports.dedup();
        Requests {
            cpu: all("cpu", cpu),
            memory: all("memory", bytes),
            ports,
        }
    }
}

/// CPU in thousandths, rounded up; 0 for what is not a quantity (validated before it was stored).
pub(crate) fn cpu(text: &str) -> i64 {
    model::quantity::parse(text).map_or(0, |amount| amount.cpu_millis().max(0))
}

/// Bytes, rounded up; 0 for what is not a quantity.
pub(crate) fn bytes(text: &str) -> i64 {
    model::quantity::parse(text).map_or(0, |amount| amount.bytes().max(0))
}

/// An amount of a node by name; `None` when it does not say.
pub(crate) fn amount(amounts: &BTreeMap<String, Quantity>, name: &str, read: fn(&str) -> i64) -> Option<i64> {
    amounts.get(name).map(|quantity| read(&quantity.text))
}

/// Memory as people write it, in the largest unit that shows at most one decimal.
pub(crate) fn show_bytes(bytes: i64) -> String {
    const UNITS: [(&str, i64); 4] = [("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    for (unit, size) in UNITS {
        if bytes >= size {
            let tenths = i128::from(bytes) * 10 / i128::from(size);
            return match tenths % 10 {
                0 => format!("{}{unit}", tenths / 10),
                rest => format!("{}.{rest}{unit}", tenths / 10),
            };
        }
    }
    bytes.to_string()
}

/// CPU as people write it: whole, or in thousandths.
pub(crate) fn show_cpu(thousandths: i64) -> String {
    match thousandths % 1000 {
        0 => (thousandths / 1000).to_string(),
        _ => format!("{thousandths}m"),
    }
}
