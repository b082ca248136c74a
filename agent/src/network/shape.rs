//! Bandwidth limits of a pod: a token bucket (tc-tbf(8)) on the node's end of its pair for what it receives, and one on
//! an intermediate device (ifb) for what it sends, where a root with CAP_NET_ADMIN inside the pod cannot take it away.

use netlink_packet_route::link::LinkMessage;
use rtnetlink::{Handle, LinkIfb};
use serde::Deserialize;

use super::firewall::{query, run};
use super::{Bandwidth, NetworkError, link, pod, short};

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

/// Sets a pod's limits in place of those of `before`.
pub(super) async fn apply(
    handle: &Handle,
    uid: &str,
    before: Bandwidth,
    wanted: Bandwidth,
) -> Result<(), NetworkError> {
    let (host, limiter) = (pod::host_name(uid), limiter_name(uid));
    let mut batch = String::new();
    match (before.ingress_bps, wanted.ingress_bps) {
        (before, wanted) if before == wanted => {}
        (_, Some(bps)) => batch.push_str(&bucket(&host, bps)),
        (_, None) => batch.push_str(&format!("qdisc del dev {host} root\n")),
    }
    match (before.egress_bps, wanted.egress_bps) {
        (before, wanted) if before == wanted => {}
        (_, Some(bps)) => {
            if link::find(handle, &limiter).await?.is_none() {
                let device: LinkMessage = LinkIfb::new(&limiter).up().build();
                let added = handle.link().add(device).execute().await;
                added.map_err(NetworkError::netlink(format!("add {limiter}")))?;
            }
            batch.push_str(&format!(
                "qdisc replace dev {host} ingress\nfilter replace dev {host} parent ffff: protocol all pref 1 handle 800::800 \
                 u32 match u32 0 0 action mirred egress redirect dev {limiter}\n"
            ));
            batch.push_str(&bucket(&limiter, bps));
        }
        (_, None) => {
            batch.push_str(&format!("qdisc del dev {host} ingress\n"));
        }
    }
    if !batch.is_empty() {
        run("tc", &batch).await?;
    }
    if wanted.egress_bps.is_none() && before.egress_bps.is_some() {
        link::remove(handle, &limiter).await?;
    }
    Ok(())
}

fn bucket(device: &str, bps: u64) -> String {
    let burst = (bps / 8 / BURST_PER_SECOND).max(BURST_BYTES_MIN);
    format!("qdisc replace dev {device} root tbf rate {bps}bit burst {burst} latency {LATENCY}\n")
}

/// What the kernel limits a pod to: a limit of its egress counts only while everything is sent through it.
pub(super) async fn read(handle: &Handle, uid: &str) -> Result<Bandwidth, NetworkError> {
    let (host, limiter) = (pod::host_name(uid), limiter_name(uid));
    let mut found = Bandwidth::default();
    if link::find(handle, &host).await?.is_none() {
        return Ok(found);
    }
    found.ingress_bps = rate(&query("tc", &["-j", "qdisc", "show", "dev", &host]).await?)?;
    if link::find(handle, &limiter).await?.is_some() {
        let filters = query("tc", &["-j", "filter", "show", "dev", &host, "ingress"]).await?;
        if redirects(&filters, &limiter)? {
            found.egress_bps = rate(&query("tc", &["-j", "qdisc", "show", "dev", &limiter]).await?)?;
        }
    }
    Ok(found)
}

/// A line of `tc -j qdisc show`.
#[derive(Deserialize)]
struct Qdisc {
    kind: String,
    #[serde(default)]
    root: bool,
    #[serde(default)]
    options: QdiscOptions,
}

#[derive(Default, Deserialize)]
struct QdiscOptions {
    /// Bytes a second.
    rate: Option<u64>,
}

/// A line of `tc -j filter show`.
#[derive(Deserialize)]
struct Filter {
    #[serde(default)]
    options: FilterOptions,
}

#[derive(Default, Deserialize)]
struct FilterOptions {
    #[serde(default)]
    r#match: Option<Match>,
    #[serde(default)]
    actions: Vec<Action>,
}

#[derive(Deserialize)]
struct Match {
    /// Bits that are looked at, in hexadecimal: `0` when every packet fits.
    mask: String,
}

#[derive(Deserialize)]
struct Action {
    #[serde(default)]
    to_dev: String,
}

fn parsed<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, NetworkError> {
    serde_json::from_slice(json).map_err(|error| NetworkError::Rules {
        program: "tc",
        message: format!("its answer can't be read: {error}"),
    })
}

/// The rate of the bucket through which everything goes, in bits a second.
fn rate(json: &[u8]) -> Result<Option<u64>, NetworkError> {
    let qdiscs: Vec<Qdisc> = parsed(json)?;
    let bucket = qdiscs.into_iter().find(|qdisc| qdisc.root && qdisc.kind == "tbf");
    Ok(bucket
        .and_then(|bucket| bucket.options.rate)
        .map(|bytes| bytes.saturating_mul(8)))
}

/// Whether every packet is sent on to `limiter`.
fn redirects(json: &[u8], limiter: &str) -> Result<bool, NetworkError> {
    let filters: Vec<Filter> = parsed(json)?;
    Ok(filters.iter().any(|filter| {
        let all = filter
            .options
            .r#match
            .as_ref()
            .is_some_and(|found| found.mask == "0");
        all && filter
            .options
            .actions
            .iter()
            .any(|action| action.to_dev == limiter)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_bucket_at_the_root() {
        let shown = br#"[{"kind":"tbf","handle":"1:","root":true,"options":{"rate":1250000,"burst":65535,"lat":25000}},
            {"kind":"ingress","handle":"ffff:","parent":"ffff:fff1","options":{}}]"#;
        assert_eq!(rate(shown).unwrap(), Some(10_000_000));
        let none = br#"[{"kind":"noqueue","handle":"0:","root":true,"options":{}}]"#;
        assert_eq!(rate(none).unwrap(), None);
        assert!(rate(b"Cannot find device").is_err());
    }

    #[test]
    fn only_a_filter_of_everything_redirects() {
        let shown = |mask: &str, device: &str| {
            format!(
                r#"[{{"kind":"u32"}},{{"kind":"u32","options":{{"fh":"800:","ht_divisor":1}}}},{{"kind":"u32","options":
                {{"match":{{"value":"0","mask":"{mask}"}},"actions":[{{"kind":"mirred","to_dev":"{device}"}}]}}}}]"#
            )
        };
        let of = |json: &str| redirects(json.as_bytes(), "bi-1").unwrap();
        assert!(of(&shown("0", "bi-1")));
        assert!(!of(&shown("0", "bi-2")));
        assert!(!of(&shown("ff", "bi-1")));
        assert!(!of("[]"));
    }
}
