//! Ranges of pod addresses, one a node.

use std::net::Ipv4Addr;

use proto::state::v1::ClusterSettings;

/// Prefix length of a node's range when the settings do not say.
const NODE_PREFIX: u32 = 24;
/// A node's range needs a network, a gateway and a broadcast address and some pods.
const NODE_PREFIX_MAX: u32 = 28;

/// How the cluster's range is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ranges {
    base: u32,
    node_prefix: u32,
    /// How many there are.
    count: u64,
}

impl Ranges {
    /// Err: what is wrong with the settings.
    pub(crate) fn of(settings: &ClusterSettings) -> Result<Ranges, String> {
        let text = &settings.pod_cidr;
        let Some((base, prefix)) = parse(text) else {
            return Err(format!("podCIDR `{text}` is not an IPv4 network"));
        };
        let node_prefix = if settings.node_prefix == 0 {
            NODE_PREFIX
        } else {
            settings.node_prefix
        };
        if node_prefix < prefix || node_prefix > NODE_PREFIX_MAX {
            return Err(format!(
                "nodePrefix {node_prefix} is not between podCIDR's {prefix} and {NODE_PREFIX_MAX}"
            ));
        }
        Ok(Ranges {
            base,
            node_prefix,
            count: 1 << (node_prefix - prefix),
        })
    }

    /// The first range that is not taken; `None` when all are.
    pub(crate) fn free<'a>(&self, taken: impl Iterator<Item = &'a str>) -> Option<String> {
        let mut taken: Vec<u64> = taken.filter_map(|text| self.place(text)).collect();
        taken.sort_unstable();
        taken.dedup();
        let gap = taken.iter().zip(0..).find(|(place, expected)| *place != expected);
        let place = gap.map_or(taken.len() as u64, |(_, expected)| expected);
        (place < self.count).then(|| self.at(place))
    }

    /// Whether this is one of them.
    pub(crate) fn has(&self, text: &str) -> bool {
        self.place(text).is_some_and(|place| self.at(place) == text)
    }

    fn at(&self, place: u64) -> String {
        // Fits: `place` is below `count`, and the whole lies in 32 bits.
        let address = u64::from(self.base) + (place << (32 - self.node_prefix));
        let address = Ipv4Addr::from(u32::try_from(address).unwrap_or(u32::MAX));
        format!("{address}/{}", self.node_prefix)
    }

    fn place(&self, text: &str) -> Option<u64> {
        let (address, _) = parse(text)?;
        let place = u64::from(address.checked_sub(self.base)?) >> (32 - self.node_prefix);
        (place < self.count).then_some(place)
    }
}

/// Address and prefix length of an IPv4 network; prefix 0 is refused with the rest.
fn parse(text: &str) -> Option<(u32, u32)> {
    let (address, prefix) = text.split_once('/')?;
    let address = u32::from(address.parse::<Ipv4Addr>().ok()?);
    let prefix: u32 = prefix.parse().ok()?;
    if prefix == 0 || prefix > 32 {
        return None;
    }
    let host_bits = (1_u64 << (32 - prefix)) - 1;
    (u64::from(address) & host_bits == 0).then_some((address, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(pod_cidr: &str, node_prefix: u32) -> Result<Ranges, String> {
        Ranges::of(&ClusterSettings {
            pod_cidr: pod_cidr.to_owned(),
            node_prefix,
            ..Default::default()
        })
    }

    #[test]
    fn the_first_gap_is_taken() {
        let ranges = ranges("10.244.0.0/16", 0).unwrap();
        assert_eq!(ranges.free([].into_iter()).unwrap(), "10.244.0.0/24");
        assert_eq!(
            ranges
                .free(["10.244.0.0/24", "10.244.2.0/24"].into_iter())
                .unwrap(),
            "10.244.1.0/24"
        );
        assert_eq!(
            ranges
                .free(["10.244.1.0/24", "10.244.0.0/24"].into_iter())
                .unwrap(),
            "10.244.2.0/24"
        );
    }

    #[test]
    fn another_clusters_range_is_none_of_ours() {
        let ranges = ranges("10.244.0.0/16", 0).unwrap();
        assert!(ranges.has("10.244.255.0/24"));
        for other in [
            "10.243.0.0/24",
            "10.245.0.0/24",
            "10.244.0.0/25",
            "10.244.0.0/16",
            "",
            "x",
        ] {
            assert!(!ranges.has(other), "{other}");
        }
    }

    #[test]
    fn a_full_cluster_range_gives_none() {
        let ranges = ranges("10.0.0.0/23", 24).unwrap();
        assert_eq!(ranges.free(["10.0.0.0/24", "10.0.1.0/24"].into_iter()), None);
    }

    #[test]
    fn senseless_ranges_are_refused() {
        for (cidr, prefix) in [
            ("10.0.0.0", 0),
            ("10.0.0.1/16", 0),
            ("10.0.0.0/25", 0),
            ("10.0.0.0/16", 31),
            ("::/64", 0),
            ("0.0.0.0/0", 8),
        ] {
            assert!(ranges(cidr, prefix).is_err(), "{cidr} {prefix}");
        }
    }
}
