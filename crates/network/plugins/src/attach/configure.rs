//! Addresses and routes from IPAM, put on an interface.

use std::time::Duration;

use ipnet::IpNet;
use outrigger_cni_sdk::{AddResult, Code, Error, Step as _};
use outrigger_netlink as netlink;
use outrigger_netlink::route::{Handle, Link, LinkChange, OperState, Route, Scope};

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
        settle(&container.route, link)?;
        batch = container.route.batch();
    }
    // Several routes may have one destination, such as two default routes by different gateways.
    for route in &routes {
        batch.add_route_beside(route);
    }
    batch.commit().step(format_args!("configure {name} in the container"))
}

/// Waits until the IPv6 addresses are usable. Without a carrier they never are; that is no reason to fail.
/// `handle` is of the namespace that the link is in.
pub(crate) fn settle(handle: &Handle, link: &Link) -> Result<(), Error> {
    let name = link.name.as_str();
    // A tap gets a carrier when a program opens it: waiting is of no use. Hardware may take its time.
    if link.kind.is_some() && !handle.link(link.index).step(format_args!("look at {name}"))?.has_carrier() {
        return Ok(());
    }
    let settled = match handle.wait_addresses_settled(link.index, SETTLE) {
        Err(netlink::Error::Timeout { .. }) => {
            let link = handle.link(link.index).step(format_args!("look at {name}"))?;
            if link.oper_state != OperState::Up {
                return Ok(());
            }
            return Err(Error::new(
                Code::TryAgain,
                format!("the IPv6 addresses of {name} are still looked for duplicates after {SETTLE:?}: try again"),
            ));
        }
        settled => settled.step(format_args!("wait for the IPv6 addresses of {name}"))?,
    };
    match settled.iter().find(|address| address.is_duplicate()) {
        Some(address) => Err(Error::internal(format!(
            "another station on the network of {name} has the address {}: take it away there, or leave it out of ipam",
            address.net
        ))),
        None => Ok(()),
    }
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
