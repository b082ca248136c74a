//! Bandwidth limits of a pod: a token bucket (tc-tbf(8)) on the node's end of its pair for what it receives, and one on
//! an intermediate device (ifb) for what it sends, where a root with CAP_NET_ADMIN inside the pod cannot take it away.

use netlink_packet_route::link::LinkMessage;
use rtnetlink::{Handle, LinkIfb};

use super::firewall::run;
use super::{NetworkError, PodNet, link, short};

/// How the devices that limit egress are called.
pub(super) const LIMITER_PREFIX: &str = "bi-";
/// How long a packet may wait in a full bucket, as bytes of queue at the rate.
const LATENCY: &str = "25ms";
/// Least burst: one packet of the largest size that segmentation offload makes.
const BURST_BYTES_MIN: u64 = 64 << 10;
/// Bursts last at least this part of a second; below the timer's step a bucket cannot reach its rate (tc-tbf(8)).
const BURST_PER_SECOND: u64 = 100;

/// Name of the device that limits a pod's egress.
pub(super) fn limiter_name(uid: &str) -> String {
    format!("{LIMITER_PREFIX}{}", short(uid))
}

/// Sets a pod's limits; `host` is the node's end of its pair.
pub(super) async fn apply(handle: &Handle, host: &str, pod: &PodNet) -> Result<(), NetworkError> {
    let mut batch = String::new();
    if let Some(bps) = pod.ingress_bps {
        batch.push_str(&bucket(host, bps));
    }
    let limiter = limiter_name(&pod.uid);
    if let Some(bps) = pod.egress_bps {
        if link::find(handle, &limiter).await?.is_none() {
            let device: LinkMessage = LinkIfb::new(&limiter).up().build();
            let added = handle.link().add(device).execute().await;
            added.map_err(NetworkError::netlink(format!("add {limiter}")))?;
            batch.push_str(&format!("qdisc add dev {host} ingress\n"));
            batch.push_str(&format!(
                "filter add dev {host} parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev {limiter}\n"
            ));
        }
        batch.push_str(&bucket(&limiter, bps));
    }
    if batch.is_empty() {
        Ok(())
    } else {
        run("tc", &batch).await
    }
}

fn bucket(device: &str, bps: u64) -> String {
    let burst = (bps / 8 / BURST_PER_SECOND).max(BURST_BYTES_MIN);
    format!("qdisc replace dev {device} root tbf rate {bps}bit burst {burst} latency {LATENCY}\n")
}
