//! A pod as the runtime's sandbox. Pure.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use proto::v1::{Pod, PodSpec};
use runtime::spec::{CgroupSpec, FenceSpec, PidShare, SandboxSpec, Share};

use super::fence;
use super::plan::Restart;
use super::resources::{self, ResourceError};
use crate::ledger::{Slot, Want};
use crate::network::{Bandwidth, HostPort, Protocol};

/// Longest host name (sethostname(2), HOST_NAME_MAX is 64 with its end).
const HOSTNAME_BYTES_MAX: usize = 63;
/// Bandwidth limits of a pod, in bits a second.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// What the pod needs of the node's ids and addresses.
pub(super) fn want(spec: &PodSpec, selinux: bool) -> Want {
    Want {
        ids: has_users(spec),
        address: !spec.host_network,
        categories: selinux,
    }
}

/// Whether the pod has a user namespace of its own.
pub(super) fn has_users(spec: &PodSpec) -> bool {
    spec.host_users != Some(true)
}

/// Whether containers see each other's processes.
pub(super) fn shares_processes(spec: &PodSpec) -> bool {
    spec.share_process_namespace == Some(true)
}

pub(super) fn restart(spec: &PodSpec) -> Restart {
    match spec.restart_policy.as_str() {
        "Never" => Restart::Never,
        "OnFailure" => Restart::OnFailure,
        _ => Restart::Always,
    }
}

/// The time that the pod's containers have from being asked to end until they are killed, when nobody says otherwise.
pub(super) fn grace_ms(spec: &PodSpec) -> i64 {
    let seconds = spec.termination_grace_period_seconds;
    i64::from(seconds.unwrap_or(model::default::GRACE_SECONDS)).max(0) * 1_000
}

/// The name that the pod's containers see as theirs.
pub(super) fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let given = spec.map(|spec| spec.hostname.as_str()).unwrap_or_default();
    let name = match given {
        "" => pod
            .metadata
            .as_ref()
            .map(|meta| meta.name.as_str())
            .unwrap_or_default(),
        given => given,
    };
    let mut end = name.len().min(HOSTNAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    // As Kubernetes cuts it: no dash or dot at the end.
    name[..end].trim_end_matches(['-', '.']).to_owned()
}

/// The pod's shared parts.
pub(super) fn sandbox(
    uid: &str,
    pod: &Pod,
    slot: &Slot,
    cgroup: PathBuf,
) -> Result<SandboxSpec, ResourceError> {
    let spec = pod.spec.clone().unwrap_or_default();
    let share = |host: bool| if host { Share::Host } else { Share::Pod };
    let sysctls = spec.security_context.iter().flat_map(|context| &context.sysctls);
    Ok(SandboxSpec {
        id: uid.to_owned(),
        hostname: (!spec.host_network).then(|| hostname(pod)),
        users: slot.ids.filter(|_| has_users(&spec)),
        network: share(spec.host_network),
        ipc: share(spec.host_ipc),
        pid: match (spec.host_pid, shares_processes(&spec)) {
            (true, _) => PidShare::Host,
            (false, true) => PidShare::Pod,
            (false, false) => PidShare::Container,
        },
        cgroup: CgroupSpec {
            path: cgroup,
            resources: resources::pod(&spec)?,
        },
        sysctls: sysctls
            .map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone()))
            .collect(),
        fence: fence::is_asked(pod).then(|| FenceSpec {
            grace_ms: grace_ms(&spec).unsigned_abs(),
        }),
    })
}

/// Ports of the node that lead to the pod.
pub(super) fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let ports = spec.containers.iter().flat_map(|container| &container.ports);
    ports
        .filter_map(|port| {
            let host_port = u16::try_from(port.host_port).ok().filter(|port| *port != 0)?;
            Some(HostPort {
                host_ip: port
                    .host_ip
                    .parse()
                    .ok()
                    .filter(|address: &Ipv4Addr| !address.is_unspecified()),
                host_port,
                container_port: u16::try_from(port.container_port).ok()?,
                protocol: match port.protocol.as_str() {
                    "UDP" => Protocol::Udp,
                    "SCTP" => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
            })
        })
        .collect()
}

/// Bits a second to and from the pod.
pub(super) fn bandwidth(pod: &Pod) -> Bandwidth {
    let annotations = pod.metadata.as_ref().map(|meta| &meta.annotations);
    let rate = |key: &str| {
        let amount = model::quantity::parse(annotations?.get(key)?).ok()?;
        u64::try_from(amount.bytes()).ok().filter(|rate| *rate > 0)
    };
    Bandwidth {
        ingress_bps: rate(INGRESS),
        egress_bps: rate(EGRESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{Container, ContainerPort, ObjectMeta, PodSecurityContext, Sysctl};
    use runtime::spec::IdRange;

    fn pod(spec: PodSpec) -> Pod {
        Pod {
            metadata: Some(ObjectMeta {
                name: "web".into(),
                annotations: [(INGRESS.to_owned(), "10M".to_owned())].into(),
                ..ObjectMeta::default()
            }),
            spec: Some(spec),
            ..Pod::default()
        }
    }

    const SLOT: Slot = Slot {
        ids: Some(IdRange {
            start: 100_000,
            count: 65_536,
        }),
        address: None,
        categories: None,
    };

    fn made(spec: PodSpec) -> SandboxSpec {
        sandbox("u1", &pod(spec), &SLOT, "/bulkhead/pod-u1".into()).unwrap()
    }

    #[test]
    fn a_plain_pod_shares_nothing_with_the_host() {
        let plain = made(PodSpec {
            host_users: Some(false),
            ..PodSpec::default()
        });
        assert_eq!(plain.hostname.as_deref(), Some("web"));
        assert_eq!(plain.users, SLOT.ids);
        assert_eq!(
            (plain.network, plain.ipc, plain.pid),
            (Share::Pod, Share::Pod, PidShare::Container)
        );
    }

    #[test]
    fn what_is_shared_is_what_was_asked_for() {
        let host = made(PodSpec {
            host_users: Some(true),
            host_network: true,
            host_pid: true,
            host_ipc: true,
            ..PodSpec::default()
        });
        assert_eq!((host.users, host.hostname), (None, None));
        assert_eq!(
            (host.network, host.ipc, host.pid),
            (Share::Host, Share::Host, PidShare::Host)
        );
        let together = made(PodSpec {
            share_process_namespace: Some(true),
            security_context: Some(PodSecurityContext {
                sysctls: vec![Sysctl {
                    name: "net/ipv4/tcp_syncookies".into(),
                    value: "1".into(),
                }],
                ..PodSecurityContext::default()
            }),
            ..PodSpec::default()
        });
        assert_eq!(together.pid, PidShare::Pod);
        assert_eq!(
            together
                .sysctls
                .get("net.ipv4.tcp_syncookies")
                .map(String::as_str),
            Some("1")
        );
    }

    #[test]
    fn a_long_name_is_cut_for_the_host_name() {
        let mut long = pod(PodSpec::default());
        if let Some(meta) = &mut long.metadata {
            meta.name = format!("{}-b", "a".repeat(62));
        }
        assert_eq!(hostname(&long), "a".repeat(62));
        long.spec = Some(PodSpec {
            hostname: "own".into(),
            ..PodSpec::default()
        });
        assert_eq!(hostname(&long), "own");
    }

    #[test]
    fn ports_of_the_node_and_bandwidth_are_read() {
        let spec = PodSpec {
            containers: vec![Container {
                ports: vec![
                    ContainerPort {
                        container_port: 80,
                        host_port: 8080,
                        protocol: "TCP".into(),
                        host_ip: "0.0.0.0".into(),
                        ..ContainerPort::default()
                    },
                    ContainerPort {
                        container_port: 81,
                        ..ContainerPort::default()
                    },
                ],
                ..Container::default()
            }],
            ..PodSpec::default()
        };
        let ports = host_ports(&spec);
        assert_eq!(ports.len(), 1);
        assert_eq!((ports[0].host_port, ports[0].host_ip), (8080, None));
        let limits = Bandwidth {
            ingress_bps: Some(10_000_000),
            egress_bps: None,
        };
        assert_eq!(bandwidth(&pod(spec)), limits);
    }
}
