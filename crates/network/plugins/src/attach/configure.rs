//! Addresses and routes from IPAM, put on an interface.

use std::time::Duration;

use ipnet::IpNet;
use outrigger_cni_sdk::{AddResult, Error, Step as _};
use outrigger_netlink::route::{Link, LinkChange, Route, Scope};

use super::sysctl::Settings;
use crate::session::Container;

/// How long IPv6 addresses may take to be found free of duplicates.
const SETTLE: Duration = Duration::from_secs(5);

/// Puts the addresses of `result` that belong to interface `index` on `link`, which must be that interface, brings it up,
/// and adds the routes; those without a gateway go by the first gateway of their family. `settings` are made before.
pub(crate) fn configure(
    container: &Container,
    link: &Link,
    result: &AddResult,
    index: i64,
    settings: &Settings,
) -> Result<(), Error> {
    let name = link.name.as_str();
    let addresses: Vec<IpNet> =
        result.ips.iter().filter(|ip| ip.interface == Some(index)).map(|ip| ip.address).collect();
    let has_ipv6 = addresses.iter().any(|address| address.addr().is_ipv6());
    if has_ipv6 || !settings.ipv6.is_empty() {
        container.ns.run(|| settings.write(name, has_ipv6)).step("enter the container's network namespace")??;
    }
    let mut batch = container.route.batch();
    for net in addresses {
        batch.add_address(link.index, &net.into());
    }
    batch.set_link(link.index, &LinkChange { up: Some(true), ipv4_conf: settings.ipv4, ..LinkChange::default() });
    let routes = routes(result, index, link.index);
    if has_ipv6 {
        batch.commit().step(format_args!("configure {name} in the container"))?;
        container
            .route
            .wait_addresses_settled(link.index, SETTLE)
            .step(format_args!("wait for the IPv6 addresses of {name}"))?;
        batch = container.route.batch();
    }
    for route in &routes {
        batch.add_route(route);
    }
    batch.commit().step(format_args!("configure {name} in the container"))
}

/// The routes of a result, for the kernel.
fn routes(result: &AddResult, index: i64, oif: u32) -> Vec<Route> {
    let gateway = |v4: bool| {
        result
            .ips
            .iter()
            .filter(|ip| ip.interface == Some(index))
            .filter_map(|ip| ip.gateway)
            .find(|gateway| gateway.is_ipv4() == v4)
    };
    // What is on the link itself has no gateway.
    let is_far = |scope: Option<u8>| scope.is_none_or(|scope| Scope(scope) < Scope::LINK);
    let of = |route: &outrigger_cni_sdk::Route| Route {
        dst: Some(route.dst),
        gateway: route.gw.or_else(|| gateway(route.dst.addr().is_ipv4()).filter(|_| is_far(route.scope))),
        oif: Some(oif),
        table: route.table.unwrap_or_default(),
        scope: Scope(route.scope.unwrap_or_default()),
        priority: route.priority,
        mtu: route.mtu,
        advmss: route.advmss,
        ..Route::default()
    };
    result.routes.iter().map(of).collect()
}
