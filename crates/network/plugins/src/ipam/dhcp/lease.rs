//! What a server gave, and what a container gets of it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use outrigger_cni_sdk::{AddResult, IpConfig, Route};
use serde::{Deserialize, Serialize};

use super::packet::{Message, option};

/// A server that says nothing means an hour, as with the original.
const DEFAULT_TIME: u32 = 3600;
/// The lease never ends.
const INFINITE: u32 = u32::MAX;
/// `RT_SCOPE_LINK`
const SCOPE_LINK: u8 = 253;

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// The subnet mask, if the server gave one.
    pub mask: Option<Ipv4Addr>,
    /// The server that gave it.
    pub server: Ipv4Addr,
    /// Hardware address that the server's message came from: the server's, or that of the relay next to us.
    pub next_hop: [u8; 6],
    /// Options 3, 26, 33 and 121 as they came.
    routers: Vec<u8>,
    mtu: Vec<u8>,
    static_routes: Vec<u8>,
    classless_routes: Vec<u8>,
    /// Lease time, T1 and T2 in seconds.
    times: [u32; 3],
}

/// Why what a server gave cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(String);

impl Lease {
    /// Reads an acknowledgement. None if it gives no address, no server, or no time.
    pub fn of(message: &Message, next_hop: [u8; 6]) -> Option<Self> {
        let bytes = |number| message.options.get(&number).cloned().unwrap_or_default();
        let time = message.number(option::LEASE_TIME).unwrap_or(DEFAULT_TIME);
        if message.yours.is_unspecified() || time == 0 {
            return None;
        }
        // Times that make no sense are no times: 0 < T1 < T2 < lease time.
        let rebind = message.number(option::REBINDING_TIME).filter(|t2| *t2 > 0 && *t2 < time);
        let rebind = rebind.unwrap_or(part(time, 85));
        let renew = message.number(option::RENEWAL_TIME).filter(|t1| *t1 > 0 && *t1 < rebind);
        let renew = renew.unwrap_or_else(|| part(time, 50).min(rebind));
        Some(Self {
            address: message.yours,
            mask: message.address(option::SUBNET_MASK),
            server: message.address(option::SERVER_ID)?,
            next_hop,
            routers: bytes(option::ROUTER),
            mtu: bytes(option::MTU),
            static_routes: bytes(option::STATIC_ROUTES),
            classless_routes: bytes(option::CLASSLESS_ROUTES),
            times: [time, renew, rebind],
        })
    }

    /// When, after it was given, the lease is to be renewed, to be asked of any server, and ends; none if it never ends.
    pub fn times(&self) -> Option<(Duration, Duration, Duration)> {
        let [end, renew, rebind] = self.times.map(|seconds| Duration::from_secs(seconds.into()));
        (self.times[0] != INFINITE).then_some((renew, rebind, end))
    }

    /// The address with its prefix length.
    pub fn net(&self) -> Result<Ipv4Net, Unusable> {
        let Some(mask) = self.mask else {
            return Err(Unusable(format!("the server {} gave no subnet mask (option 1)", self.server)));
        };
        Ipv4Net::with_netmask(self.address, mask)
            .map_err(|_| Unusable(format!("the server {} gave the subnet mask {mask}, which is none", self.server)))
    }

    /// What the plugin answers. `priority` is for all routes; the MTU is used if `mtu`.
    pub fn result(&self, priority: Option<u32>, mtu: bool) -> Result<AddResult, Unusable> {
        let gateway = addresses(&self.routers).next();
        let mut ip = IpConfig::new(IpNet::V4(self.net()?));
        ip.gateway = gateway.map(IpAddr::V4);
        let mut routes = self.routes()?;
        let mtu = mtu.then(|| Some(u16::from_be_bytes(self.mtu.get(..2)?.try_into().ok()?).into())).flatten();
        for route in &mut routes {
            route.priority = priority;
            route.mtu = mtu;
        }
        Ok(AddResult { ips: vec![ip], routes, ..AddResult::default() })
    }

    /// Classless routes if there are any; then neither static routes nor routers count (RFC 3442).
    fn routes(&self) -> Result<Vec<Route>, Unusable> {
        if !self.classless_routes.is_empty() {
            let wrong = || Unusable(format!("the server {} gave routes (option 121) that cannot be read", self.server));
            return classless(&self.classless_routes).ok_or_else(wrong);
        }
        let mut routes = Vec::new();
        for pair in self.static_routes.chunks_exact(8) {
            let mut pair = addresses(pair);
            if let (Some(to), Some(via)) = (pair.next(), pair.next()) {
                routes.extend(classful(to).map(|net| Route::new(net, Some(via.into()))));
            }
        }
        if let Some(gateway) = addresses(&self.routers).next() {
            routes.push(Route::new(IpNet::V4(Ipv4Net::default()), Some(gateway.into())));
        }
        Ok(routes)
    }
}

fn part(time: u32, percent: u64) -> u32 {
    u32::try_from(u64::from(time) * percent / 100).unwrap_or(u32::MAX)
}

fn addresses(bytes: &[u8]) -> impl Iterator<Item = Ipv4Addr> {
    bytes.chunks_exact(4).map(|four| Ipv4Addr::new(four[0], four[1], four[2], four[3]))
}

/// Reads option 121: width, the significant bytes of the destination, router.
fn classless(mut bytes: &[u8]) -> Option<Vec<Route>> {
    let mut routes = Vec::new();
    while let Some((width, rest)) = bytes.split_first() {
        let significant = usize::from(width.div_ceil(8));
        let mut destination = [0; 4];
        destination.get_mut(..significant)?.copy_from_slice(rest.get(..significant)?);
        let router = addresses(rest.get(significant..significant + 4)?).next()?;
        let net = Ipv4Net::new(destination.into(), *width).ok()?.trunc();
        let mut route = Route::new(IpNet::V4(net), Some(router.into()));
        // No router: the destination is on the link.
        route.scope = router.is_unspecified().then_some(SCOPE_LINK);
        routes.push(route);
        bytes = &rest[significant + 4..];
    }
    Some(routes)
}

/// A destination of option 33, whose class says how long its prefix is.
fn classful(to: Ipv4Addr) -> Option<IpNet> {
    let prefix = match to.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        192..224 => 24,
        _ => return None,
    };
    Ipv4Net::new(to, prefix).ok().map(|net| IpNet::V4(net.trunc()))
}

#[cfg(test)]
mod tests {
    use super::super::packet::MessageType;
    use super::*;

    fn ack(options: &[(u8, &[u8])]) -> Message {
        let mut message = Message::new(MessageType::Ack, 1, [0; 6]);
        message.yours = Ipv4Addr::new(10, 0, 0, 9);
        message.options.insert(option::SERVER_ID, vec![10, 0, 0, 1]);
        message.options.insert(option::SUBNET_MASK, vec![255, 255, 255, 0]);
        for (number, value) in options {
            message.options.insert(*number, value.to_vec());
        }
        message
    }

    fn lease(options: &[(u8, &[u8])]) -> Lease {
        Lease::of(&ack(options), [0; 6]).unwrap()
    }

    fn routes(lease: &Lease) -> Vec<String> {
        let route = |route: &Route| format!("{} via {} {:?}", route.dst, route.gw.unwrap(), route.scope);
        lease.result(None, false).unwrap().routes.iter().map(route).collect()
    }

    #[test]
    fn times() {
        let seconds = |lease: Lease| lease.times().map(|(a, b, c)| [a.as_secs(), b.as_secs(), c.as_secs()]);
        assert_eq!(seconds(lease(&[])), Some([1800, 3060, 3600]));
        let long = [0, 0, 0, 100];
        assert_eq!(seconds(lease(&[(51, &long)])), Some([50, 85, 100]));
        assert_eq!(seconds(lease(&[(51, &long), (58, &[0, 0, 0, 3]), (59, &[0, 0, 0, 90])])), Some([3, 90, 100]));
        assert_eq!(seconds(lease(&[(51, &long), (58, &[0, 0, 9, 3]), (59, &[0, 0, 9, 90])])), Some([50, 85, 100]));
        assert_eq!(seconds(lease(&[(51, &long), (59, &[0, 0, 0, 20])])), Some([20, 20, 100]));
        assert_eq!(seconds(lease(&[(51, &long), (58, &[0; 4]), (59, &[0; 4])])), Some([50, 85, 100]));
        assert_eq!(seconds(lease(&[(51, &[255; 4])])), None);
    }

    #[test]
    fn routes_by_option() {
        let plain = lease(&[(3, &[10, 0, 0, 1, 10, 0, 0, 2])]);
        assert_eq!(routes(&plain), ["0.0.0.0/0 via 10.0.0.1 None"]);
        let old = lease(&[(3, &[10, 0, 0, 1]), (33, &[192, 0, 2, 7, 10, 0, 0, 3, 172, 16, 1, 1, 10, 0, 0, 4, 9])]);
        assert_eq!(
            routes(&old),
            ["192.0.2.0/24 via 10.0.0.3 None", "172.16.0.0/16 via 10.0.0.4 None", "0.0.0.0/0 via 10.0.0.1 None"]
        );
        let new = [24, 192, 0, 2, 10, 0, 0, 3, 0, 10, 0, 0, 5, 32, 10, 9, 9, 9, 0, 0, 0, 0];
        let new = lease(&[(3, &[10, 0, 0, 1]), (33, &[192, 0, 2, 7, 10, 0, 0, 3]), (121, &new)]);
        assert_eq!(
            routes(&new),
            ["192.0.2.0/24 via 10.0.0.3 None", "0.0.0.0/0 via 10.0.0.5 None", "10.9.9.9/32 via 0.0.0.0 Some(253)"]
        );
        assert_eq!(new.result(None, false).unwrap().ips[0].gateway, Some(IpAddr::from([10, 0, 0, 1])));
        for wrong in [&[33, 1, 2, 3, 4, 5, 6, 7, 8, 9][..], &[24, 1, 2], &[8, 10, 1, 2, 3]] {
            assert!(lease(&[(121, wrong)]).result(None, false).is_err());
        }
    }

    #[test]
    fn priority_and_mtu() {
        let lease = lease(&[(3, &[10, 0, 0, 1]), (26, &[5, 120])]);
        let result = lease.result(Some(7), true).unwrap();
        assert_eq!((result.routes[0].priority, result.routes[0].mtu), (Some(7), Some(1400)));
        assert_eq!(lease.result(None, false).unwrap().routes[0].mtu, None);
        assert_eq!(result.ips[0].address.to_string(), "10.0.0.9/24");
    }

    #[test]
    fn what_cannot_be_used() {
        let mut message = ack(&[]);
        message.options.remove(&option::SUBNET_MASK);
        let error = Lease::of(&message, [0; 6]).unwrap().result(None, false).unwrap_err();
        assert_eq!(error.to_string(), "the server 10.0.0.1 gave no subnet mask (option 1)");
        assert!(lease(&[(1, &[255, 0, 255, 0])]).net().is_err());
        message.options.remove(&option::SERVER_ID);
        assert_eq!(Lease::of(&message, [0; 6]), None);
        let mut message = ack(&[]);
        message.yours = Ipv4Addr::UNSPECIFIED;
        assert_eq!(Lease::of(&message, [0; 6]), None);
        assert_eq!(Lease::of(&ack(&[(51, &[0; 4])]), [0; 6]), None);
    }
}
