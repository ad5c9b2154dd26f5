//! Gateways of a bridged network, as values: what the bridge itself must answer to, and the container's default routes.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use outrigger_cni_sdk::{AddResult, Route};

/// First address of a network, which is the gateway unless IPAM names another.
pub(super) fn first_address(net: IpNet) -> IpAddr {
    match net.network() {
        IpAddr::V4(address) => IpAddr::V4((u32::from(address).wrapping_add(1)).into()),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address).wrapping_add(1)).into()),
    }
}

/// Completes a result from IPAM: every address belongs to interface `interface`; with `is_gateway` each has a gateway;
/// with `default_route` each family has a default route. Gives the addresses that the bridge must have, IPv4 first.
pub(super) fn complete(result: &mut AddResult, interface: i64, is_gateway: bool, default_route: bool) -> Vec<IpNet> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for ip in &mut result.ips {
        ip.interface = Some(interface);
        if !is_gateway {
            continue;
        }
        let gateway = *ip.gateway.get_or_insert_with(|| first_address(ip.address));
        let same_family = |route: &Route| route.dst.addr().is_ipv6() == gateway.is_ipv6();
        // One without a gateway will get this very gateway; the same route twice is an error to the kernel.
        if default_route && !result.routes.iter().any(|route| route.dst.prefix_len() == 0 && same_family(route)) {
            result.routes.push(Route::new(everywhere(gateway), Some(gateway)));
        }
        let address = IpNet::new(gateway, ip.address.prefix_len()).unwrap_or(ip.address);
        if gateway.is_ipv4() { v4.push(address) } else { v6.push(address) }
    }
    v4.append(&mut v6);
    v4
}

/// The destination of a default route of this address's family.
fn everywhere(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
    }
}

#[cfg(test)]
mod tests {
    use outrigger_cni_sdk::IpConfig;

    use super::*;

    fn leased(ips: &[(&str, Option<&str>)], routes: &[(&str, Option<&str>)]) -> AddResult {
        let gateway = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        AddResult {
            ips: ips
                .iter()
                .map(|(address, gw)| IpConfig { gateway: gateway(*gw), ..IpConfig::new(address.parse().unwrap()) })
                .collect(),
            routes: routes.iter().map(|(dst, gw)| Route::new(dst.parse().unwrap(), gateway(*gw))).collect(),
            ..AddResult::default()
        }
    }

    fn texts(nets: Vec<IpNet>) -> Vec<String> {
        nets.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn gateways_are_completed() {
        let mut result = leased(&[("fd00::5/64", None), ("10.1.2.3/24", None), ("10.9.0.3/30", Some("10.9.0.2"))], &[]);
        let gateways = complete(&mut result, 2, true, false);
        assert_eq!(texts(gateways), ["10.1.2.1/24", "10.9.0.2/30", "fd00::1/64"]);
        assert!(result.ips.iter().all(|ip| ip.interface == Some(2) && ip.gateway.is_some()));
        assert!(result.routes.is_empty());

        let mut result = leased(&[("10.1.2.3/24", None)], &[]);
        assert!(complete(&mut result, 2, false, false).is_empty());
        assert_eq!(result.ips[0].gateway, None);
    }

    #[test]
    fn one_default_route_for_each_family() {
        let mut result = leased(
            &[("10.1.2.3/24", None), ("10.9.0.3/24", None), ("fd00::5/64", None)],
            &[("10.0.0.0/8", None), ("::/0", None)],
        );
        complete(&mut result, 2, true, true);
        let routes: Vec<_> = result.routes.iter().map(|route| (route.dst.to_string(), route.gw)).collect();
        assert_eq!(routes[2], ("0.0.0.0/0".to_owned(), Some("10.1.2.1".parse().unwrap())));
        assert_eq!(routes.len(), 3);
    }
}
