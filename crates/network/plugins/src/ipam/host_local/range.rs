//! Ranges of addresses and the order in which they are handed out. Values in, values out.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A range as the configuration has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeConf {
    /// `subnet`, with whatever host bits it was written with.
    pub subnet: Option<IpNet>,
    /// `rangeStart`, inclusive.
    pub start: Option<IpAddr>,
    /// `rangeEnd`, inclusive.
    pub end: Option<IpAddr>,
    /// `gateway`.
    pub gateway: Option<IpAddr>,
}

/// Why a range, a set or the list of sets cannot be used. The text says which.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

/// A range that is complete and right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    subnet: IpNet,
    start: u128,
    end: u128,
    gateway: IpAddr,
}

/// Ranges of one family, from all of which together one address is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

/// An address, and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The address with the prefix length of its subnet.
    pub net: IpNet,
    /// The gateway of its range.
    pub gateway: IpAddr,
}

impl RangeConf {
    /// Fills in what is missing and checks the rest.
    fn complete(&self) -> Result<Range, Invalid> {
        let Some(subnet) = self.subnet else {
            return Err(Invalid("a range has no subnet: set \"subnet\" to a network such as 10.1.0.0/16".into()));
        };
        if is_mapped(subnet.addr()) {
            return Err(Invalid(format!("subnet {subnet} is an IPv4-mapped IPv6 network: write it as IPv4")));
        }
        if subnet.prefix_len() > subnet.max_prefix_len() - 2 {
            return Err(Invalid(format!(
                "network {subnet} too small to allocate from: the longest prefix is /{}",
                subnet.max_prefix_len() - 2
            )));
        }
        if subnet.addr() != subnet.network() {
            return Err(Invalid(format!("network {subnet} has host bits set: write {}", subnet.trunc())));
        }
        let network = number(subnet.network());
        let last = number(subnet.broadcast()) - u128::from(subnet.addr().is_ipv4());
        let inside = |key: &str, address: Option<IpAddr>, default: u128| match address.map(|a| a.to_canonical()) {
            None => Ok(default),
            Some(address) if subnet.contains(&address) => Ok(number(address)),
            Some(address) => Err(Invalid(format!("{key} {address} not in network {subnet}"))),
        };
        let start = inside("rangeStart", self.start, network + 1)?;
        let end = inside("rangeEnd", self.end, last)?;
        if start > end {
            let (start, end) = (address(start, subnet), address(end, subnet));
            return Err(Invalid(format!("rangeStart {start} is after rangeEnd {end} in network {subnet}")));
        }
        let gateway = self.gateway.map_or_else(|| address(network + 1, subnet), |gateway| gateway.to_canonical());
        Ok(Range { subnet, start, end, gateway })
    }
}

impl Range {
    /// Whether an address is one of the range (the gateway's counts).
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.is_ipv4() && (self.start..=self.end).contains(&number(address))
    }

    fn is_ipv4(&self) -> bool {
        self.subnet.addr().is_ipv4()
    }

    fn candidate(&self, number: u128) -> Candidate {
        let net = IpNet::new_assert(address(number, self.subnet), self.subnet.prefix_len());
        Candidate { net, gateway: self.gateway }
    }

    /// The number of the gateway, if it is one of the range's own.
    fn gateway_number(&self) -> Option<u128> {
        self.contains(self.gateway).then(|| number(self.gateway))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", address(self.start, self.subnet), address(self.end, self.subnet))
    }
}

impl RangeSet {
    /// Checks a set: not empty, one family, every range right, none overlaps another.
    pub fn new(ranges: &[RangeConf]) -> Result<Self, Invalid> {
        let ranges: Vec<Range> = ranges.iter().map(RangeConf::complete).collect::<Result<_, _>>()?;
        let Some(first) = ranges.first() else {
            return Err(Invalid("empty range set: give it a range or leave it out".into()));
        };
        if ranges.iter().any(|range| range.is_ipv4() != first.is_ipv4()) {
            return Err(Invalid("mixed address families: put IPv4 and IPv6 ranges into sets of their own".into()));
        }
        if let Some((one, other)) = overlap(ranges.iter().map(|range| (range, ()))) {
            return Err(Invalid(format!("ranges {} and {} overlap", one.0, other.0)));
        }
        Ok(Self(ranges))
    }

    /// Checks all sets of a configuration: there is one, each is right, none overlaps another.
    pub fn all(sets: &[Vec<RangeConf>]) -> Result<Vec<Self>, Invalid> {
        if sets.is_empty() {
            return Err(Invalid("no ip ranges specified: set \"ranges\" or \"subnet\"".into()));
        }
        let mut complete = Vec::with_capacity(sets.len());
        for (index, set) in sets.iter().enumerate() {
            let set = Self::new(set).map_err(|Invalid(why)| Invalid(format!("invalid range set {index}: {why}")))?;
            complete.push(set);
        }
        let ranges = complete.iter().enumerate().flat_map(|(index, set)| set.0.iter().map(move |range| (range, index)));
        if let Some((one, other)) = overlap(ranges) {
            let (low, high) = (one.1.min(other.1), one.1.max(other.1));
            return Err(Invalid(format!("range set {low} overlaps with {high} ({} and {})", one.0, other.0)));
        }
        Ok(complete)
    }

    /// Whether the set is one of IPv4 ranges.
    pub fn is_ipv4(&self) -> bool {
        self.0.first().is_some_and(Range::is_ipv4)
    }

    /// The range that an address is of.
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(address))
    }

    /// An address wanted by name; none if it is not one of the set. The gateway is refused.
    pub fn wanted(&self, address: IpAddr) -> Option<Result<Candidate, Invalid>> {
        let address = address.to_canonical();
        let range = self.range_of(address)?;
        if range.gateway == address {
            return Some(Err(Invalid(format!("requested ip {address} is subnet's gateway"))));
        }
        Some(Ok(range.candidate(number(address))))
    }

    /// How many addresses the set can hand out at most.
    pub fn capacity(&self) -> u128 {
        let sizes = self
            .0
            .iter()
            .map(|range| (range.end - range.start).saturating_add(1) - u128::from(range.gateway_number().is_some()));
        sizes.fold(0, u128::saturating_add)
    }

    /// All addresses in the order in which they are to be tried, each once, without the gateways: from the one after
    /// `last` round to `last` itself; from the first if `last` is not one of the set.
    pub fn round_robin(&self, last: Option<IpAddr>) -> RoundRobin<'_> {
        let last = last.map(|last| last.to_canonical());
        let at = last.and_then(|last| self.0.iter().position(|range| range.contains(last)));
        let first = (0, self.0.first().map_or(0, |range| range.start));
        let start = match (at, last) {
            (Some(index), Some(last)) => self.after(index, number(last)),
            _ => first,
        };
        RoundRobin { set: self, start, next: Some(start) }
    }

    fn after(&self, index: usize, number: u128) -> (usize, u128) {
        if self.0[index].end > number {
            return (index, number + 1);
        }
        let index = (index + 1) % self.0.len();
        (index, self.0[index].start)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Ten thousand ranges are no text that anybody reads.
        const SHOWN: usize = 8;
        for (index, range) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{range}", if index > 0 { "," } else { "" })?;
        }
        if self.0.len() > SHOWN {
            write!(f, ",... ({} ranges)", self.0.len())?;
        }
        Ok(())
    }
}

/// See [`RangeSet::round_robin`].
#[derive(Debug, Clone)]
pub struct RoundRobin<'a> {
    set: &'a RangeSet,
    start: (usize, u128),
    next: Option<(usize, u128)>,
}

impl RoundRobin<'_> {
    /// The next address that is not taken. Work is proportional to the number of taken addresses that are passed, not to
    /// the size of the ranges.
    pub fn next_free(&mut self, taken: &HashSet<IpAddr>) -> Option<Candidate> {
        self.find(|candidate| !taken.contains(&candidate.net.addr()))
    }
}

impl Iterator for RoundRobin<'_> {
    type Item = Candidate;

    fn next(&mut self) -> Option<Candidate> {
        loop {
            let (index, number) = self.next?;
            let after = self.set.after(index, number);
            self.next = (after != self.start).then_some(after);
            let range = &self.set.0[index];
            if range.gateway_number() != Some(number) {
                return Some(range.candidate(number));
            }
        }
    }
}

/// A range, and what the caller knows it by.
type Tagged<'a, T> = (&'a Range, T);

/// Two of the ranges that have an address in common. By sorting, since there may be very many.
fn overlap<'a, T: Copy>(ranges: impl Iterator<Item = Tagged<'a, T>>) -> Option<(Tagged<'a, T>, Tagged<'a, T>)> {
    let mut sorted: Vec<_> = ranges.collect();
    sorted.sort_by_key(|(range, _)| (range.is_ipv4(), range.start));
    let mut previous: Option<Tagged<'_, T>> = None;
    for current in sorted {
        if let Some(previous) = previous
            && previous.0.is_ipv4() == current.0.is_ipv4()
            && previous.0.end >= current.0.start
        {
            return Some((previous, current));
        }
        previous = Some(current);
    }
    None
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The address of a number that [`number`] made of one of the same subnet.
fn address(number: u128, subnet: IpNet) -> IpAddr {
    match (subnet, u32::try_from(number)) {
        (IpNet::V4(_), Ok(number)) => IpAddr::V4(Ipv4Addr::from(number)),
        _ => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> RangeConf {
        let mut parts = text.split_whitespace();
        let mut conf = RangeConf { subnet: Some(parts.next().unwrap().parse().unwrap()), ..RangeConf::default() };
        for part in parts {
            let (key, value) = part.split_once('=').unwrap();
            let value = Some(value.parse().unwrap());
            match key {
                "start" => conf.start = value,
                "end" => conf.end = value,
                _ => conf.gateway = value,
            }
        }
        conf
    }

    fn set(texts: &[&str]) -> Result<RangeSet, Invalid> {
        RangeSet::new(&texts.iter().map(|text| range(text)).collect::<Vec<_>>())
    }

    fn sequence(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        set.round_robin(last.map(|last| last.parse().unwrap())).map(|c| c.net.addr().to_string()).collect()
    }

    #[test]
    fn round_robin_starts_after_the_last_and_skips_the_gateway() {
        let small = set(&["10.1.0.0/29"]).unwrap();
        assert_eq!(sequence(&small, None), ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]);
        assert_eq!(sequence(&small, Some("10.1.0.4")), ["10.1.0.5", "10.1.0.6", "10.1.0.2", "10.1.0.3", "10.1.0.4"]);
        assert_eq!(sequence(&small, Some("10.1.0.6"))[0], "10.1.0.2");
        assert_eq!(sequence(&small, Some("10.9.0.6"))[0], "10.1.0.2");
        assert_eq!(sequence(&small, Some("fd00::6"))[0], "10.1.0.2");
        assert_eq!(small.capacity(), 5);
    }

    #[test]
    fn round_robin_goes_through_all_ranges_of_a_set() {
        let two = set(&["10.1.0.0/24 start=10.1.0.1 end=10.1.0.2", "10.2.0.0/24 start=10.2.0.7 end=10.2.0.8"]).unwrap();
        assert_eq!(sequence(&two, None), ["10.1.0.2", "10.2.0.7", "10.2.0.8"]);
        assert_eq!(sequence(&two, Some("10.2.0.8")), ["10.1.0.2", "10.2.0.7", "10.2.0.8"]);
        assert_eq!(sequence(&two, Some("10.1.0.2")), ["10.2.0.7", "10.2.0.8", "10.1.0.2"]);
        assert_eq!(two.to_string(), "10.1.0.1-10.1.0.2,10.2.0.7-10.2.0.8");
        let gateway_only = set(&["10.1.0.0/24 start=10.1.0.1 end=10.1.0.1"]).unwrap();
        assert_eq!(sequence(&gateway_only, None), [""; 0]);
        assert_eq!(gateway_only.capacity(), 0);
    }

    #[test]
    fn defaults_are_those_of_the_family() {
        let v6 = set(&["fd00::/126"]).unwrap();
        assert_eq!(sequence(&v6, None), ["fd00::2", "fd00::3"]);
        assert_eq!(v6.round_robin(None).next().unwrap().gateway, "fd00::1".parse::<IpAddr>().unwrap());
        let v4 = set(&["10.0.0.0/30 gateway=10.9.0.1"]).unwrap();
        assert_eq!(sequence(&v4, None), ["10.0.0.1", "10.0.0.2"]);
        // Written out, network and broadcast address are the administrator's choice.
        let all = set(&["10.0.0.0/30 start=10.0.0.0 end=10.0.0.3"]).unwrap();
        assert_eq!(sequence(&all, None), ["10.0.0.0", "10.0.0.2", "10.0.0.3"]);
    }

    #[test]
    fn refusals() {
        for (ranges, text) in [
            (vec!["10.1.0.0/31"], "network 10.1.0.0/31 too small to allocate from: the longest prefix is /30"),
            (vec!["10.1.0.0/32"], "network 10.1.0.0/32 too small to allocate from: the longest prefix is /30"),
            (vec!["fd00::/127"], "network fd00::/127 too small to allocate from: the longest prefix is /126"),
            (vec!["10.1.0.1/24"], "network 10.1.0.1/24 has host bits set: write 10.1.0.0/24"),
            (vec!["10.1.0.0/24 start=10.2.0.1"], "rangeStart 10.2.0.1 not in network 10.1.0.0/24"),
            (vec!["10.1.0.0/24 end=fd00::1"], "rangeEnd fd00::1 not in network 10.1.0.0/24"),
            (
                vec!["10.1.0.0/24 start=10.1.0.9 end=10.1.0.3"],
                "rangeStart 10.1.0.9 is after rangeEnd 10.1.0.3 in network 10.1.0.0/24",
            ),
            (
                vec!["10.1.0.0/24 start=10.1.0.255"],
                "rangeStart 10.1.0.255 is after rangeEnd 10.1.0.254 in network 10.1.0.0/24",
            ),
            (
                vec!["::ffff:10.1.0.0/120"],
                "subnet ::ffff:10.1.0.0/120 is an IPv4-mapped IPv6 network: write it as IPv4",
            ),
            (vec![], "empty range set: give it a range or leave it out"),
            (
                vec!["10.1.0.0/24", "fd00::/64"],
                "mixed address families: put IPv4 and IPv6 ranges into sets of their own",
            ),
            (
                vec!["10.1.0.0/25", "10.2.0.0/24", "10.1.0.0/24"],
                "ranges 10.1.0.1-10.1.0.126 and 10.1.0.1-10.1.0.254 overlap",
            ),
        ] {
            assert_eq!(set(&ranges).unwrap_err().to_string(), text);
        }
        assert!(RangeSet::all(&[]).unwrap_err().to_string().starts_with("no ip ranges specified"));
        let error = RangeSet::all(&[vec![range("10.1.0.0/24")], vec![], vec![]]).unwrap_err().to_string();
        assert!(error.starts_with("invalid range set 1: empty range set"), "{error}");
        let error = RangeSet::all(&[vec![range("10.1.0.0/24")], vec![range("10.1.0.0/25")]]).unwrap_err().to_string();
        assert!(error.starts_with("range set 0 overlaps with 1"), "{error}");
        assert!(RangeSet::all(&[vec![range("10.1.0.0/24")], vec![range("fd00::/64")]]).is_ok());
    }

    #[test]
    fn ipv4_mapped_addresses_mean_ipv4() {
        let set = set(&["10.1.0.0/24 start=::ffff:10.1.0.5 gateway=::ffff:10.1.0.1"]).unwrap();
        assert_eq!(sequence(&set, None)[0], "10.1.0.5");
        assert_eq!(set.wanted("::ffff:10.1.0.9".parse().unwrap()).unwrap().unwrap().net.to_string(), "10.1.0.9/24");
        assert!(set.wanted("10.1.0.1".parse().unwrap()).is_none(), "outside of start and end");
    }

    #[test]
    fn wanted_addresses() {
        let set = set(&["10.1.0.0/24", "10.2.0.0/16"]).unwrap();
        assert_eq!(set.wanted("10.2.7.9".parse().unwrap()).unwrap().unwrap().net.to_string(), "10.2.7.9/16");
        let error = set.wanted("10.2.0.1".parse().unwrap()).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "requested ip 10.2.0.1 is subnet's gateway");
        assert!(set.wanted("10.3.0.1".parse().unwrap()).is_none());
        assert!(set.wanted("fd00::1".parse().unwrap()).is_none());
    }

    #[test]
    fn huge_ranges_cost_nothing() {
        let set = set(&["::/0"]).unwrap();
        assert_eq!(set.capacity(), u128::MAX - 1);
        assert_eq!(sequence_head(&set, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), ["::2", "::3"]);
        let v4 = RangeSet::new(&[range("0.0.0.0/0")]).unwrap();
        assert_eq!(sequence_head(&v4, "255.255.255.254"), ["0.0.0.2", "0.0.0.3"]);
        let many: Vec<_> = (0..10_000_u32).map(|i| range(&format!("{}/24", Ipv4Addr::from(i << 8)))).collect();
        let many = RangeSet::new(&many).unwrap();
        assert_eq!(many.capacity(), 2_530_000);
        assert!(many.to_string().len() < 300);
    }

    fn sequence_head(set: &RangeSet, last: &str) -> Vec<String> {
        set.round_robin(Some(last.parse().unwrap())).take(2).map(|c| c.net.addr().to_string()).collect()
    }

    proptest! {
        #[test]
        fn every_address_once(prefix in 24u8..=30, low in 0u32..40, high in 0u32..40, last in any::<Option<u8>>()) {
            let subnet = IpNet::new(IpAddr::from([10, 0, 0, 0]), prefix).unwrap();
            let conf = RangeConf {
                subnet: Some(subnet),
                start: Some(IpAddr::from(Ipv4Addr::from(0x0a00_0000 + low))),
                end: Some(IpAddr::from(Ipv4Addr::from(0x0a00_0000 + high))),
                gateway: None,
            };
            let size = 1u32 << (32 - prefix);
            match RangeSet::new(&[conf]) {
                Err(_) => prop_assert!(low > high || high >= size),
                Ok(set) => {
                    let last = last.map(|last| IpAddr::from([10, 0, 0, last]));
                    let given: Vec<_> = set.round_robin(last).map(|c| c.net.addr()).collect();
                    let wanted: HashSet<_> =
                        (low..=high).filter(|n| *n != 1).map(|n| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n))).collect();
                    prop_assert_eq!(given.len(), wanted.len());
                    prop_assert_eq!(given.len() as u128, set.capacity());
                    prop_assert_eq!(given.iter().copied().collect::<HashSet<_>>(), wanted);
                }
            }
        }
    }
}
