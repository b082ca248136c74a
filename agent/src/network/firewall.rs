//! The nftables table `inet bulkhead`: masquerade for what leaves the cluster, and ports of the node that lead to pods.
//!
//! The table is ours alone and is replaced whole, in one transaction of `nft`. Only numbers and addresses go into it.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io;
use std::net::Ipv4Addr;
use std::process::{Output, Stdio};

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{NetworkConfig, NetworkError};

/// A port of the node that leads to a pod's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Address of the node that it is bound to; none for all.
    pub host_ip: Option<Ipv4Addr>,
    /// Port of the node.
    pub host_port: u16,
    /// Port of the pod.
    pub container_port: u16,
    /// Transport.
    pub protocol: Protocol,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

type Ports = BTreeMap<String, (Ipv4Addr, Vec<HostPort>)>;

/// The first of `wanted` that another pod holds, and that pod.
pub(super) fn conflict(ports: &Ports, uid: &str, wanted: &[HostPort]) -> Option<(HostPort, String)> {
    let overlaps = |a: &HostPort, b: &HostPort| {
        let same_address = a.host_ip.is_none() || b.host_ip.is_none() || a.host_ip == b.host_ip;
        same_address && a.host_port == b.host_port && a.protocol == b.protocol
    };
    wanted.iter().find_map(|port| {
        let others = ports.iter().filter(|(other, _)| *other != uid);
        let holder = others
            .into_iter()
            .find(|(_, (_, theirs))| theirs.iter().any(|other| overlaps(port, other)))?;
        Some((port.clone(), holder.0.clone()))
    })
}

/// The whole table, as one transaction that replaces what was there.
pub(super) fn rules(config: &NetworkConfig, ports: &Ports) -> String {
    let NetworkConfig { bridge, cluster, .. } = config;
    let mut forward = String::new();
    for (address, ports) in ports.values() {
        for port in ports {
            let HostPort {
                host_ip,
                host_port,
                container_port,
                protocol,
            } = port;
            let local = match host_ip {
                Some(host_ip) => format!("ip daddr {host_ip}"),
                None => "fib daddr type local".to_owned(),
            };
            // Writing to a String cannot fail.
            writeln!(
                forward,
                "    {local} {protocol} dport {host_port} dnat ip to {address}:{container_port}"
            )
            .unwrap_or_default();
        }
    }
    // `table` before `delete table`: deleting what is not there would fail the transaction.
    // -100 is the priority `dstnat`, a name that the output hook does not take.
    // The last two of `postrouting`: the node reaching a host port by 127.0.0.1, and a pod reaching itself by one.
    format!(
        "table inet bulkhead
delete table inet bulkhead
table inet bulkhead {{
  chain ports {{
{forward}  }}
  chain prerouting {{
    type nat hook prerouting priority -100;
    jump ports
  }}
  chain output {{
    type nat hook output priority -100;
    jump ports
  }}
  chain postrouting {{
    type nat hook postrouting priority 100;
    ip saddr {cluster} ip daddr != {cluster} oifname != \"{bridge}\" masquerade
    ip saddr 127.0.0.0/8 oifname \"{bridge}\" masquerade
    oifname \"{bridge}\" ct status dnat iifname \"{bridge}\" masquerade
  }}
}}
"
    )
}

/// The transaction that takes the table away.
pub(super) fn removal() -> String {
    "table inet bulkhead\ndelete table inet bulkhead\n".to_owned()
}

/// Runs `nft -f -` or `tc -batch -` with `rules` as its input.
pub(super) async fn run(program: &'static str, rules: &str) -> Result<(), NetworkError> {
    let flag = if program == "nft" { "-f" } else { "-batch" };
    let what = || format!("run {program} (is it installed?)");
    let mut child = Command::new(program)
        .args([flag, "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(NetworkError::io(what()))?;
    if let Some(mut input) = child.stdin.take() {
        match input.write_all(rules.as_bytes()).await {
            // It ended early; its error output says why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                return Err(NetworkError::io(what())(error));
            }
            _ => {}
        }
    }
    let output = child.wait_with_output().await.map_err(NetworkError::io(what()))?;
    answer(program, output).map(drop)
}

/// What `nft` or `tc` prints.
pub(super) async fn query(program: &'static str, arguments: &[&str]) -> Result<Vec<u8>, NetworkError> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(NetworkError::io(format!("run {program} (is it installed?)")))?;
    answer(program, output)
}

fn answer(program: &'static str, output: Output) -> Result<Vec<u8>, NetworkError> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr)
        .lines()
        .take(5)
        .collect::<Vec<_>>()
        .join("; ");
    Err(NetworkError::Rules { program, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: Option<Ipv4Addr>, host_port: u16) -> HostPort {
        HostPort {
            host_ip,
            host_port,
            container_port: 80,
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn ports_conflict_on_any_shared_address() {
        let address = Ipv4Addr::new(10, 244, 0, 2);
        let one = Some(Ipv4Addr::new(10, 0, 0, 1));
        let other = Some(Ipv4Addr::new(10, 0, 0, 2));
        let held: Ports = [("a".to_owned(), (address, vec![port(one, 8080)]))].into();
        assert!(conflict(&held, "b", &[port(None, 8080)]).is_some());
        assert!(conflict(&held, "b", &[port(one, 8080)]).is_some());
        assert!(conflict(&held, "b", &[port(other, 8080)]).is_none());
        assert!(conflict(&held, "b", &[port(one, 8081)]).is_none());
        assert!(conflict(&held, "a", &[port(one, 8080)]).is_none());
        let udp = HostPort {
            protocol: Protocol::Udp,
            ..port(one, 8080)
        };
        assert!(conflict(&held, "b", &[udp]).is_none());
    }
}
