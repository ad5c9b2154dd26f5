//! CHECK: is the container's interface as ADD left it? What others added is fine.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use outrigger_cni_sdk::{AddResult, Call, Conf, Error, Interface, Step as _};
use outrigger_netlink::route::{Family, Handle, Link, Route, RouteFilter};

use super::mac_text;

/// The entry of the call's interface in the previous result.
pub(crate) fn own_interface<'a, C: Conf>(call: &Call<'_, C>, previous: &'a AddResult) -> Result<&'a Interface, Error> {
    let netns = call.netns()?;
    previous
        .interfaces
        .iter()
        .find(|interface| interface.name == call.ifname && Path::new(&interface.sandbox) == netns)
        .ok_or_else(|| {
            let (ifname, netns) = (call.ifname, netns.display());
            Error::config(format!("prevResult has no interface {ifname} in {netns}: it is of another attachment"))
        })
}

/// The link of an interface in the result, which must exist and have the MAC address that the result says.
pub(crate) fn link(handle: &Handle, interface: &Interface) -> Result<Link, Error> {
    let name = interface.name.as_str();
    let link = handle
        .find_link(name)
        .step(format_args!("look for {name}"))?
        .ok_or_else(|| Error::internal(format!("interface {name} is missing: add the container again")))?;
    if !interface.mac.is_empty() && !interface.mac.eq_ignore_ascii_case(&mac_text(&link)) {
        return Err(Error::internal(format!(
            "interface {name} has the MAC address {}, but was given {}: add the container again",
            mac_text(&link),
            interface.mac
        )));
    }
    Ok(link)
}

/// As [`link`], of a veth pair.
pub(crate) fn veth(handle: &Handle, interface: &Interface) -> Result<Link, Error> {
    let link = link(handle, interface)?;
    if link.kind.as_deref() == Some("veth") {
        return Ok(link);
    }
    Err(Error::internal(format!("{} is no end of a veth pair: add the container again", link.name)))
}

/// The addresses and routes of a result. Addresses must be on `link` with a route to their network; default routes may
/// lead anywhere, since others of a chain may have changed them.
pub(crate) fn addresses_and_routes(handle: &Handle, link: &Link, previous: &AddResult) -> Result<(), Error> {
    let name = &link.name;
    let addresses = handle.addresses(Some(link.index)).step(format_args!("read the addresses of {name}"))?;
    for ip in &previous.ips {
        if !addresses.iter().any(|address| address.net == ip.address) {
            return Err(Error::internal(format!("{name} lacks the address {}: add the container again", ip.address)));
        }
    }
    if previous.routes.is_empty() && previous.ips.is_empty() {
        return Ok(());
    }
    let routes = handle.routes(RouteFilter::default()).step("read the container's routes")?;
    // Without a table any will do: sbr and vrf move routes from the main table to another.
    let missing = |dst: IpNet, gateway: Option<IpAddr>, table: Option<u32>| {
        let is_it = |route: &Route| {
            let same = if dst.prefix_len() == 0 {
                route.is_default() && route.family() == Some(Family::of(dst.addr()))
            } else {
                route.dst == Some(dst.trunc()) && gateway.is_none_or(|gateway| route.goes_through(gateway))
            };
            same && table.is_none_or(|table| route.table == table)
        };
        !routes.iter().any(is_it)
    };
    for ip in &previous.ips {
        // A single address needs no route to its network.
        if ip.address.prefix_len() < ip.address.max_prefix_len() && missing(ip.address, None, None) {
            return Err(Error::internal(format!(
                "the route to {} is missing: add the container again",
                ip.address.trunc()
            )));
        }
    }
    for route in &previous.routes {
        if missing(route.dst, route.gw, route.table) {
            return Err(Error::internal(format!("the route to {} is missing: add the container again", route.dst)));
        }
    }
    Ok(())
}
