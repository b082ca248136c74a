//! Which range, address and pair of categories a pod gets. Pure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::Range;

use ipnet::Ipv4Net;
use runtime::spec::IdRange;

use super::{LedgerError, Slot};

/// First user id of pods: beyond those of people, of subordinate ids (/etc/subuid begins at 100,000) and of systemd's
/// dynamic users.
const IDS_BEGIN: u32 = 1_000_000_000;
/// Ids of one pod.
pub(super) const IDS: u32 = 65_536;
/// Ledgers of one machine: `ctl dev up` makes at most 100 nodes.
pub(super) const PARTS: u32 = 128;
/// Ranges of one ledger: twice the pods of a full node, for those that are on their way out.
const RANGES: u32 = 256;
const _: () = assert!(
    (IDS_BEGIN as u64) + (PARTS as u64) * (RANGES as u64) * (IDS as u64) < u32::MAX as u64,
    "the last id of all is the kernel's \"no id\""
);
/// SELinux categories: c0 to c1023.
const CATEGORIES: u32 = 1024;
/// Pairs of two different categories.
const PAIRS: u32 = CATEGORIES * (CATEGORIES - 1) / 2;

/// Which things a pod wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// User ids of its own.
    pub ids: bool,
    /// An address.
    pub address: bool,
    /// SELinux categories.
    pub categories: bool,
}

/// What this ledger may hand out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pool {
    /// Numbers of ranges.
    ranges: Range<u32>,
    /// Numbers of pairs.
    pairs: Range<u32>,
}

impl Pool {
    /// One of `PARTS` equal parts of the machine's.
    pub(super) fn of_part(part: u32) -> Self {
        assert!(part < PARTS, "a claim is one of the parts");
        let pairs = PAIRS / PARTS;
        Self {
            ranges: part * RANGES..(part + 1) * RANGES,
            pairs: part * pairs..(part + 1) * pairs,
        }
    }
}

/// What other pods hold.
#[derive(Debug, Default)]
pub(super) struct Taken {
    starts: BTreeSet<u32>,
    addresses: BTreeSet<Ipv4Addr>,
    categories: BTreeSet<(u16, u16)>,
}

impl Taken {
    pub(super) fn add(&mut self, slot: &Slot) {
        self.starts.extend(slot.ids.map(|ids| ids.start));
        self.addresses.extend(slot.address);
        self.categories.extend(slot.categories);
    }
}

/// `have` with what is missing of `want`. `last` is the number of the address handed out last, and is returned anew.
pub(super) fn allot(
    have: Slot,
    want: Want,
    taken: &Taken,
    pool: &Pool,
    range: Option<Ipv4Net>,
    last: u32,
) -> Result<(Slot, u32), LedgerError> {
    let mut slot = have;
    let mut last = last;
    if want.ids && slot.ids.is_none() {
        // The lowest that is free: copies of layers with shifted owners are found again.
        let start = pool
            .ranges
            .clone()
            .map(|number| IDS_BEGIN + number * IDS)
            .find(|start| !taken.starts.contains(start))
            .ok_or(LedgerError::Exhausted {
                what: "range of user ids",
            })?;
        slot.ids = Some(IdRange { start, count: IDS });
    }
    if want.address {
        let range = range.ok_or(LedgerError::NoRange)?;
        // One of another range is of another cluster, which the node has left.
        if !slot.address.is_some_and(|address| range.contains(&address)) {
            let (address, number) = address(range, &taken.addresses, last)?;
            slot.address = Some(address);
            last = number;
        }
    }
    if want.categories && slot.categories.is_none() {
        let free = pool
            .pairs
            .clone()
            .map(pair)
            .find(|pair| !taken.categories.contains(pair));
        slot.categories = Some(free.ok_or(LedgerError::Exhausted {
            what: "pair of SELinux categories",
        })?);
    }
    Ok((slot, last))
}

/// The next free address behind the last one, so that one that was just given back rests: peers may still have it in mind.
fn address(range: Ipv4Net, taken: &BTreeSet<Ipv4Addr>, last: u32) -> Result<(Ipv4Addr, u32), LedgerError> {
    let first = range.network().to_bits();
    // 0 is the network's own, 1 the bridge's, the last one the broadcast address.
    let end = range.broadcast().to_bits() - first;
    let usable = 2..end;
    let from = if usable.contains(&(last + 1)) { last + 1 } else { 2 };
    (from..end)
        .chain(2..from)
        .map(|number| (Ipv4Addr::from_bits(first + number), number))
        .find(|(address, _)| !taken.contains(address))
        .ok_or(LedgerError::Exhausted { what: "address" })
}

/// The pair of a number, the smaller category first.
fn pair(number: u32) -> (u16, u16) {
    let mut rest = number;
    for small in 0..CATEGORIES - 1 {
        let row = CATEGORIES - 1 - small;
        if rest < row {
            return (small as u16, (small + 1 + rest) as u16); // below 1024
        }
        rest -= row;
    }
    unreachable!("{number} is below the number of pairs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: Want = Want {
        ids: true,
        address: true,
        categories: true,
    };

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn pairs_are_different_and_in_order() {
        let all: BTreeSet<(u16, u16)> = (0..PAIRS).map(pair).collect();
        assert_eq!(all.len(), PAIRS as usize);
        assert!(all.iter().all(|(a, b)| a < b && *b < 1024));
    }

    #[test]
    fn parts_share_nothing() {
        for part in 1..PARTS {
            let (before, this) = (Pool::of_part(part - 1), Pool::of_part(part));
            assert_eq!(before.ranges.end, this.ranges.start);
            assert_eq!(before.pairs.end, this.pairs.start);
        }
        assert!(Pool::of_part(PARTS - 1).pairs.end <= PAIRS);
    }

    #[test]
    fn the_first_range_is_that_of_the_documents() {
        let (slot, _) = allot(
            Slot::default(),
            ALL,
            &Taken::default(),
            &Pool::of_part(0),
            Some(net("10.244.1.0/24")),
            0,
        )
        .unwrap();
        assert_eq!(
            slot.ids,
            Some(IdRange {
                start: 1_000_000_000,
                count: 65_536
            })
        );
        assert_eq!(slot.address, Some(Ipv4Addr::new(10, 244, 1, 2)));
        assert_eq!(slot.categories, Some((0, 1)));
    }

    #[test]
    fn an_address_of_another_range_is_replaced() {
        let have = Slot {
            address: Some(Ipv4Addr::new(10, 1, 0, 5)),
            ..Slot::default()
        };
        let want = Want {
            address: true,
            ..Want::default()
        };
        let range = Some(net("10.244.1.0/24"));
        let (slot, _) = allot(have, want, &Taken::default(), &Pool::of_part(0), range, 0).unwrap();
        assert_eq!(slot.address, Some(Ipv4Addr::new(10, 244, 1, 2)));
    }

    #[test]
    fn an_address_that_was_given_back_rests_until_all_others_had_their_turn() {
        let range = net("10.0.0.0/29"); // 2 to 6 are for pods
        let mut last = 0;
        let mut seen = Vec::new();
        for _ in 0..6 {
            let (address, number) = address(range, &BTreeSet::new(), last).unwrap();
            seen.push(address.octets()[3]);
            last = number;
        }
        assert_eq!(seen, [2, 3, 4, 5, 6, 2]);
    }

    #[test]
    fn a_range_without_hosts_is_exhausted_at_once() {
        for text in ["10.0.0.0/30", "10.0.0.0/31", "10.0.0.0/32"] {
            let found = address(net(text), &BTreeSet::new(), 0).map(|(address, _)| address.octets()[3]);
            match text {
                "10.0.0.0/30" => assert_eq!(found.unwrap(), 2),
                _ => assert!(matches!(found, Err(LedgerError::Exhausted { .. })), "{text}"),
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_and_goes_nothing_has_two_holders(
            steps in prop::collection::vec((0u8..40, any::<bool>(), any::<[bool; 3]>()), 1..300)
        ) {
            let pool = Pool::of_part(3);
            let range = Some(net("10.0.7.0/27"));
            let mut held: std::collections::BTreeMap<u8, Slot> = std::collections::BTreeMap::new();
            let mut last = 0;
            for (pod, keep, [ids, address, categories]) in steps {
                if !keep {
                    held.remove(&pod);
                    continue;
                }
                let want = Want { ids, address, categories };
                let have = held.get(&pod).copied().unwrap_or_default();
                let mut taken = Taken::default();
                held.iter().filter(|(other, _)| **other != pod).for_each(|(_, slot)| taken.add(slot));
                match allot(have, want, &taken, &pool, range, last) {
                    Ok((slot, number)) => {
                        last = number;
                        prop_assert!(have.ids.is_none() || have.ids == slot.ids);
                        prop_assert!(have.address.is_none() || have.address == slot.address);
                        prop_assert!(have.categories.is_none() || have.categories == slot.categories);
                        prop_assert!(!ids || slot.ids.is_some());
                        held.insert(pod, slot);
                    }
                    Err(LedgerError::Exhausted { what }) => prop_assert_eq!(what, "address"),
                    Err(error) => prop_assert!(false, "{error}"),
                }
                let mut all = Taken::default();
                held.values().for_each(|slot| all.add(slot));
                let count = |has: fn(&Slot) -> bool| held.values().filter(|slot| has(slot)).count();
                prop_assert_eq!(all.starts.len(), count(|slot| slot.ids.is_some()));
                prop_assert_eq!(all.addresses.len(), count(|slot| slot.address.is_some()));
                prop_assert_eq!(all.categories.len(), count(|slot| slot.categories.is_some()));
                for address in &all.addresses {
                    let last_byte = address.octets()[3];
                    prop_assert!((2..31).contains(&last_byte), "{}", address);
                }
            }
        }
    }
}
