//! `vrf`: puts the container's interface into a routing domain of its own.

use outrigger_cni_sdk::{AddResult, Call, Documentation, Error, Errors, Plugin, Step as _, Version, conf};
use outrigger_netlink as netlink;
use outrigger_netlink::route::{
    Address, Handle, Link, LinkChange, LinkDetails, NewAddress, NewLink, NewLinkKind, Route, RouteFilter, Scope,
    TABLE_LOCAL, TABLE_MAIN, protocol,
};

use crate::attach::configure::settle;
use crate::attach::interface_name;
use crate::session::Session;

conf! {
    /// Puts the interface of an earlier plugin into a VRF, a routing domain with a table of its own, in the container.
    /// Several interfaces may share one.
    pub struct VrfConf {
        /// Name of the VRF. Required.
        pub vrfname: String,
        /// Its routing table; 0 picks one that no other VRF has.
        pub table: u32,
    }
}

/// The plugin.
pub struct Vrf<'s>(pub &'s Session);

impl Plugin for Vrf<'_> {
    type Conf = VrfConf;
    const ABOUT: &'static str = "CNI vrf plugin: puts the container's interface into a routing domain of its own";
    const VERSIONS: std::ops::RangeInclusive<Version> = Version::V0_3_1..=Version::NEWEST;
    const DOC: Documentation = DOC;

    fn add(&self, call: &Call<'_, VrfConf>) -> Result<AddResult, Error> {
        let name = vrf_name(&call.conf)?;
        interface_name("vrfname", name)?;
        let previous = call.prev()?;
        let container = self.0.container(call.netns()?)?;
        let handle = &container.route;
        let link = interface(handle, call.ifname)?.ok_or_else(|| {
            Error::config(format!(
                "interface {} is not in the container: vrf comes after the plugin that makes it",
                call.ifname
            ))
        })?;
        if let Some(master) = link.master {
            let master = handle.link(master).map_or_else(|_| format!("number {master}"), |master| master.name);
            return Err(Error::internal(format!("interface {} belongs to {master} already", call.ifname)));
        }
        let (vrf, table) = find_or_make(handle, name, call.conf.table)?;
        enslave(handle, &link, &vrf, table)?;
        Ok(previous.clone())
    }

    fn del(&self, call: &Call<'_, VrfConf>) -> Result<(), Error> {
        let name = vrf_name(&call.conf)?;
        let Some(container) = self.0.container_if_any(call.netns)? else { return Ok(()) };
        match find(&container.route, name)? {
            Some((vrf, _)) => leave(&container.route, call.ifname, &vrf),
            None => Ok(()),
        }
    }

    fn check(&self, call: &Call<'_, VrfConf>) -> Result<(), Error> {
        let name = vrf_name(&call.conf)?;
        call.prev()?;
        let container = self.0.container(call.netns()?)?;
        let missing = || Error::internal(format!("VRF {name} is missing: add the container again"));
        let (vrf, table) = find(&container.route, name)?.ok_or_else(missing)?;
        if call.conf.table != 0 && call.conf.table != table {
            return Err(Error::internal(format!("VRF {name} has table {table}, configured is {}", call.conf.table)));
        }
        match interface(&container.route, call.ifname)? {
            Some(link) if link.master == Some(vrf.index) => Ok(()),
            _ => Err(Error::internal(format!("{} is not in VRF {name}: add the container again", call.ifname))),
        }
    }
}

fn vrf_name(conf: &VrfConf) -> Result<&str, Error> {
    if conf.vrfname.is_empty() {
        return Err(Error::config("vrfname is missing: name the VRF"));
    }
    Ok(&conf.vrfname)
}

fn interface(handle: &Handle, name: &str) -> Result<Option<Link>, Error> {
    handle.find_link(name).step(format_args!("look for {name}"))
}

/// The VRF and its table, if it is there. Another link of this name is an error.
fn find(handle: &Handle, name: &str) -> Result<Option<(Link, u32)>, Error> {
    let Some(link) = interface(handle, name)? else { return Ok(None) };
    let LinkDetails::Vrf { table } = link.details else {
        return Err(Error::config(format!("vrfname: interface {name} in the container is no VRF; take another name")));
    };
    Ok(Some((link, table)))
}

fn find_or_make(handle: &Handle, name: &str, wanted: u32) -> Result<(Link, u32), Error> {
    let same = |found: (Link, u32)| {
        if wanted == 0 || found.1 == wanted {
            return Ok(found);
        }
        Err(Error::config(format!("table: VRF {name} is there with table {}, not {wanted}", found.1)))
    };
    if let Some(found) = find(handle, name)? {
        return same(found);
    }
    let table = if wanted == 0 { free_table(handle)? } else { wanted };
    match handle.create_link(&NewLink { name, kind: NewLinkKind::Vrf { table }, up: true, ..NewLink::default() }) {
        // Another attachment of the container may have been faster.
        Err(error) if !error.is_exists() => {
            let what = if error.is_unsupported() { "; the kernel lacks VRFs: load the module vrf" } else { "" };
            return Err(Error::internal(format!("make VRF {name}: {error}{what}")));
        }
        _ => {}
    }
    let gone = || Error::internal(format!("VRF {name} is gone right after it was made: try again"));
    same(find(handle, name)?.ok_or_else(gone)?)
}

/// The lowest table that no VRF of the container has, as the original counts; never one of the kernel's own.
fn free_table(handle: &Handle) -> Result<u32, Error> {
    let links = handle.links().step("list the container's links")?;
    let taken = |table: u32| {
        (TABLE_MAIN - 1..=TABLE_LOCAL).contains(&table)
            || links.iter().any(|link| link.details == LinkDetails::Vrf { table })
    };
    (1..u32::MAX).find(|table| !taken(*table)).ok_or_else(|| Error::internal("no routing table is free for the VRF"))
}

/// Puts the link into the VRF. The kernel takes it down and up again for that and forgets its IPv6 addresses and its
/// routes: they are noted before and put back, the routes into the VRF's table. If that fails, it is taken out again and is
/// as before.
fn enslave(handle: &Handle, link: &Link, vrf: &Link, table: u32) -> Result<(), Error> {
    let name = &link.name;
    let noted = Noted::of(handle, link)?;
    let change = LinkChange { master: Some(Some(vrf.index)), ..LinkChange::default() };
    let moved = || {
        handle.set_link(link.index, &change).step(format_args!("put {name} into VRF {}", vrf.name))?;
        noted.put_addresses_back(handle)?;
        settle(handle, link)?;
        let outcomes = noted.put_routes_back(handle, Some(table))?;
        outcomes
            .into_iter()
            .collect::<Result<(), _>>()
            .step(format_args!("put the routes of {name} into table {table}"))
    };
    moved().inspect_err(|_| {
        // The first error is the one to report.
        let _ = leave(handle, name, vrf);
        let _ = noted.put_addresses_back(handle);
        let _ = noted.put_routes_back(handle, None);
    })
}

/// What the kernel forgets when a link changes its VRF.
struct Noted<'a> {
    link: &'a Link,
    addresses: Vec<Address>,
    routes: Vec<Route>,
}

impl<'a> Noted<'a> {
    fn of(handle: &Handle, link: &'a Link) -> Result<Self, Error> {
        let filter = RouteFilter { table: Some(TABLE_MAIN), oif: Some(link.index), family: None };
        let mut routes = handle.routes(filter).step(format_args!("list the routes of {}", link.name))?;
        // Those of the link's own networks come back with the addresses.
        routes.retain(|route| route.protocol != protocol::KERNEL);
        // A gateway must be there before what goes by it.
        routes.sort_by_key(|route| route.gateway.is_some());
        Ok(Self { link, addresses: addresses(handle, link)?, routes })
    }

    fn put_addresses_back(&self, handle: &Handle) -> Result<(), Error> {
        let left = addresses(handle, self.link)?;
        let lost = self.addresses.iter().filter(|address| {
            address.net.addr().is_ipv6()
                && address.scope == Scope::UNIVERSE
                && !left.iter().any(|other| other.net == address.net)
        });
        let mut batch = handle.batch();
        for address in lost {
            batch.add_address(self.link.index, &NewAddress::new(address.net));
        }
        batch.commit().step(format_args!("put the addresses back on {}", self.link.name))
    }

    /// Tries all of them, into another table if one is given.
    fn put_routes_back(&self, handle: &Handle, table: Option<u32>) -> Result<Vec<netlink::Result<()>>, Error> {
        let mut batch = handle.batch();
        for route in &self.routes {
            batch.replace_route(&Route { table: table.unwrap_or(route.table), ..route.clone() });
        }
        batch.commit_each().step(format_args!("put the routes of {} back", self.link.name))
    }
}

fn addresses(handle: &Handle, link: &Link) -> Result<Vec<Address>, Error> {
    handle.addresses(Some(link.index)).step(format_args!("list the addresses of {}", link.name))
}

/// Takes the interface out of the VRF, if it is in it, and removes the VRF with its last interface.
fn leave(handle: &Handle, ifname: &str, vrf: &Link) -> Result<(), Error> {
    let mut errors = Errors::new();
    let links = handle.links().step("list the container's links")?;
    let members: Vec<&Link> = links.iter().filter(|link| link.master == Some(vrf.index)).collect();
    let own = members.iter().find(|link| link.name == ifname);
    if let Some(link) = own {
        let change = LinkChange { master: Some(None), ..LinkChange::default() };
        match handle.set_link(link.index, &change) {
            Err(error) if error.is_not_found() => {}
            result => {
                errors.push(result.step(format_args!("take {ifname} out of VRF {}", vrf.name)));
            }
        }
    }
    if errors.is_empty() && members.len() == usize::from(own.is_some()) {
        match handle.delete_link(vrf.index) {
            Err(error) if error.is_not_found() => {}
            result => {
                errors.push(result.step(format_args!("delete VRF {}", vrf.name)));
            }
        }
    }
    errors.finish()
}

const DOC: Documentation = Documentation {
    add: "Makes the VRF in the container if it is not there, and puts the interface `CNI_IFNAME` of an earlier plugin into \
          it. Its IPv6 addresses and its routes, which the kernel forgets by that, are put back, the routes into the VRF's \
          table; if a step fails, it is taken out again and gets them back. Gives the previous result.",
    del: "Takes the interface out of the VRF and removes the VRF with its last interface. Succeeds when the interface, the \
          VRF or the network namespace is gone.",
    check: "Looks whether the interface is in the VRF, and, if `table` is set, whether that is its table.",
    gc: "Nothing: a VRF goes with the network namespace that it is in.",
    status: "Always ready.",
    capabilities: &[],
    args: &[],
    example: r#"{
    "cniVersion": "1.1.0",
    "name": "blue",
    "plugins": [
        {
            "type": "macvlan",
            "master": "eth1",
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.20.0.0/24" }]] }
        },
        { "type": "vrf", "vrfname": "blue" }
    ]
}"#,
};
