//! What to change so that an interface answers through itself: pure computation.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use outrigger_cni_sdk::{AddResult, Error, IpConfig};
use outrigger_netlink::route::{Route, Rule, Scope, TABLE_MAIN};

/// Tables are looked for from here on.
pub(super) const FIRST_TABLE: u32 = 100;

/// The changes, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) rules: Vec<Rule>,
    /// Routes to put in place, over those of the same destination.
    pub(super) replaced: Vec<Route>,
    pub(super) deleted: Vec<Route>,
}

/// What there is in the container.
#[derive(Debug, Default)]
pub(super) struct Present {
    /// Index of the interface.
    pub(super) index: u32,
    /// Its routes in the main table.
    pub(super) routes: Vec<Route>,
    /// Tables that rules or routes mention.
    pub(super) tables: BTreeSet<u32>,
}

/// The addresses of an interface in a result. Those of no known interface count as its own.
pub(super) fn addresses<'r>(result: &'r AddResult, ifname: &str) -> Vec<&'r IpConfig> {
    let of_it = |ip: &&IpConfig| {
        let index = ip.interface.and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| result.interfaces.get(index)).is_none_or(|interface| interface.name == ifname)
    };
    result.ips.iter().filter(of_it).collect()
}

/// At most one gateway for each family, to use instead of those of the result.
pub(super) fn gateways(texts: &[String]) -> Result<Vec<IpAddr>, Error> {
    let mut found: Vec<IpAddr> = Vec::new();
    for text in texts {
        let gateway: IpAddr =
            text.parse().map_err(|_| Error::config(format!("gateways: {text:?} is no IP address")))?;
        if found.iter().any(|other| other.is_ipv4() == gateway.is_ipv4()) {
            return Err(Error::config(format!("gateways: {text} is the second one of its family, one is allowed")));
        }
        found.push(gateway);
    }
    Ok(found)
}

/// The rule that sends what has this source address to a table.
pub(super) fn rule(address: IpAddr, table: u32) -> Rule {
    Rule { src: Some(IpNet::from(address)), table, ..Rule::default() }
}

/// With a table of its own for each address; the interface's routes move there from the main table.
pub(super) fn move_routes(ips: &[&IpConfig], present: &Present, gateways: &[IpAddr], hints: bool) -> Plan {
    let mut plan = Plan::default();
    let mut next = FIRST_TABLE;
    for ip in ips {
        let table = (next..=u32::MAX).find(|table| !present.tables.contains(table)).unwrap_or(next);
        next = table + 1;
        let address = ip.address.addr();
        plan.rules.push(rule(address, table));
        let same_family = |gateway: &&IpAddr| gateway.is_ipv4() == address.is_ipv4();
        if let Some(gateway) = gateways.iter().find(same_family).copied().or(ip.gateway) {
            // An earlier plugin may have left it out, or another interface may have it.
            plan.replaced.push(Route {
                dst: Some(everything(address)),
                gateway: Some(gateway),
                oif: Some(present.index),
                table,
                ..Route::default()
            });
        }
        let belongs = |route: &&Route| match (route.source, route.gateway) {
            (None, None) => true,
            (source, gateway) => [source, gateway].iter().flatten().any(|other| ip.address.contains(other)),
        };
        plan.replaced.extend(present.routes.iter().filter(belongs).map(|route| Route { table, ..route.clone() }));
    }
    if hints {
        // Who has no source address yet still finds the subnets, and gets the right one.
        plan.replaced.extend(ips.iter().map(|ip| Route {
            dst: Some(ip.address.trunc()),
            source: Some(ip.address.addr()),
            oif: Some(present.index),
            table: TABLE_MAIN,
            scope: if ip.address.addr().is_ipv4() { Scope::LINK } else { Scope::UNIVERSE },
            ..Route::default()
        }));
        let keep = |route: &&Route| {
            route.scope == Scope::LINK
                || ips.iter().any(|ip| route.dst == Some(ip.address.trunc()) && route.gateway.is_none())
        };
        plan.deleted = present.routes.iter().filter(|route| !keep(route)).cloned().collect();
    } else {
        plan.deleted.clone_from(&present.routes);
    }
    plan
}

/// With a table that another plugin filled.
pub(super) fn use_table(ips: &[&IpConfig], table: u32) -> Plan {
    Plan { rules: ips.iter().map(|ip| rule(ip.address.addr(), table)).collect(), ..Plan::default() }
}

fn everything(address: IpAddr) -> IpNet {
    if address.is_ipv4() { IpNet::V4(ipnet::Ipv4Net::default()) } else { IpNet::V6(ipnet::Ipv6Net::default()) }
}

#[cfg(test)]
mod tests {
    use outrigger_cni_sdk::Interface;

    use super::*;

    fn ip(address: &str, gateway: Option<&str>) -> IpConfig {
        IpConfig { gateway: gateway.map(|text| text.parse().unwrap()), ..IpConfig::new(address.parse().unwrap()) }
    }

    fn route(dst: &str, gateway: Option<&str>, source: Option<&str>) -> Route {
        Route {
            dst: Some(dst.parse().unwrap()),
            gateway: gateway.map(|text| text.parse().unwrap()),
            source: source.map(|text| text.parse().unwrap()),
            oif: Some(7),
            table: TABLE_MAIN,
            ..Route::default()
        }
    }

    fn present(routes: &[Route]) -> Present {
        Present { index: 7, routes: routes.to_vec(), tables: [100, 254, 255].into() }
    }

    #[test]
    fn each_address_gets_a_free_table_with_its_routes() {
        let routes = [
            route("10.1.0.0/24", None, Some("10.1.0.2")),
            route("10.99.0.0/16", Some("10.1.0.1"), None),
            route("fe80::/64", None, None),
            route("fd00::/64", None, Some("fd00::9")),
        ];
        let (four, six) = (ip("10.1.0.2/24", Some("10.1.0.1")), ip("fd00:1::2/64", None));
        let plan = move_routes(&[&four, &six], &present(&routes), &[], false);
        assert_eq!(plan.rules, [rule("10.1.0.2".parse().unwrap(), 101), rule("fd00:1::2".parse().unwrap(), 102)]);
        let moved: Vec<(String, u32)> =
            plan.replaced.iter().map(|route| (route.dst.unwrap().to_string(), route.table)).collect();
        let expected =
            [("0.0.0.0/0", 101), ("10.1.0.0/24", 101), ("10.99.0.0/16", 101), ("fe80::/64", 101), ("fe80::/64", 102)];
        assert_eq!(moved, expected.map(|(dst, table)| (dst.to_owned(), table)));
        assert_eq!(plan.deleted, routes);
    }

    #[test]
    fn given_gateways_win_and_hints_keep_the_subnet() {
        let routes = [route("10.1.0.0/24", None, Some("10.1.0.2")), route("0.0.0.0/0", Some("10.1.0.1"), None)];
        let four = ip("10.1.0.2/24", Some("10.1.0.1"));
        let gateways = gateways(&["10.1.0.254".to_owned()]).unwrap();
        let plan = move_routes(&[&four], &present(&routes), &gateways, true);
        assert_eq!(plan.replaced[0].gateway, Some(gateways[0]));
        let hint = plan.replaced.last().unwrap();
        assert_eq!((hint.table, hint.source), (TABLE_MAIN, Some(four.address.addr())));
        assert_eq!(plan.deleted, routes[1..]);
    }

    #[test]
    fn bad_gateways() {
        for bad in [&["x"][..], &["10.0.0.1", "10.0.0.2"], &["::1", "::2"], &["10.0.0.1", "::1", "10.0.0.2"]] {
            let texts: Vec<String> = bad.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(gateways(&texts).unwrap_err().code.number(), 7);
        }
    }

    #[test]
    fn whose_addresses() {
        let at = |index| IpConfig { interface: index, ..ip("10.0.0.1/24", None) };
        let result = AddResult {
            interfaces: vec![Interface::new("veth0", "", ""), Interface::new("eth0", "", "/ns")],
            ips: vec![at(Some(0)), at(Some(1)), at(None), at(Some(9)), at(Some(-1))],
            ..AddResult::default()
        };
        assert_eq!(addresses(&result, "eth0").len(), 4);
    }
}
