//! What the main plugins share whose interface is in the container alone, with nothing on the host that is the
//! attachment's: macvlan, ipvlan, vlan, dummy, tap, host-device.
//!
//! The interface is made before the addresses are asked for, since an IPAM plugin such as dhcp needs it. They are given
//! back when it is gone, or with dhcp before that.

use outrigger_cni_sdk::{AddResult, Attachment, Call, Code, Conf, Error, Interface, Ipam, Step as _};
use outrigger_netlink::route::{Family, Handle, Link, LinkChange, NewLink, RouteFilter, TABLE_MAIN};

use super::configure::configure;
use super::sysctl::Settings;
use super::{check_ifname, delete_link, mac_text, mark, teardown, verify};
use crate::rules::Owner;
use crate::session::{Container, Session};

/// Where the interface is in the result: it is the only one.
const INDEX: i64 = 0;

/// Looks for the link that the new one sits on: by its name, or, without one, that of the default route. `handle` is of
/// the namespace that it is in.
pub(crate) fn master(handle: &Handle, name: &str) -> Result<Link, Error> {
    if !name.is_empty() {
        return handle.find_link(name).step(format_args!("look for master {name}"))?.ok_or_else(|| {
            Error::config(format!(
                "master: there is no interface {name}; name one that exists, or none for the default route's"
            ))
        });
    }
    for family in [Family::V4, Family::V6] {
        let filter = RouteFilter { family: Some(family), table: Some(TABLE_MAIN), oif: None };
        let routes = handle.routes(filter).step("look for the default route")?;
        let oif = routes.iter().filter(|route| route.is_default()).find_map(|route| route.oif);
        if let Some(index) = oif {
            return handle.link(index).step("look at the interface of the default route");
        }
    }
    Err(Error::config("master is not set, and there is no default route that would tell: set master"))
}

/// The handle of the namespace that the master is in.
pub(crate) fn master_handle<'a>(
    session: &'a Session,
    container: &'a Container,
    in_container: bool,
) -> Result<&'a Handle, Error> {
    if in_container { Ok(&container.route) } else { session.host() }
}

/// STATUS of a plugin with a master: it must be there, unless it is in the container or comes with an earlier plugin.
pub(crate) fn master_status(session: &Session, name: &str, in_container: bool) -> Result<(), Error> {
    if in_container {
        return Ok(());
    }
    master(session.host()?, name).map(drop).map_err(|error| Error { code: Code::NotAvailable, ..error })
}

/// Checks the MTU that is wanted against the master's. None leaves it to the kernel.
pub(crate) fn mtu(wanted: u32, master: &Link) -> Result<Option<u32>, Error> {
    if wanted > master.mtu {
        let (name, most) = (&master.name, master.mtu);
        return Err(Error::config(format!(
            "mtu: {wanted} is more than the {most} of master {name}: take at most that"
        )));
    }
    Ok((wanted != 0).then_some(wanted))
}

/// Makes a link in the container, on a link of the namespace of `handle` if it has a parent.
pub(crate) fn create<C: Conf>(
    call: &Call<'_, C>,
    container: &Container,
    handle: &Handle,
    in_container: bool,
    new: &NewLink<'_>,
) -> Result<Link, Error> {
    check_ifname(new.name)?;
    let netns = (!in_container).then_some(&container.ns);
    let new = NewLink { netns, ..new.clone() };
    match handle.create_link(&new) {
        // Older kernels (Linux 6.1 is one) look for the name where the request comes from, not where the link goes.
        Err(error) if error.is_exists() && !in_container && !is_taken(container, new.name)? => {
            create_in_transit(call, container, handle, &new)
        }
        Err(error) => Err(explained(container, new.name, error)),
        // It is the one that was made: had there been another, this had failed.
        Ok(()) => container
            .route
            .link(new.name)
            .inspect_err(|_| drop(container.route.delete_link(new.name)))
            .step(format_args!("look at {} in the container", new.name)),
    }
}

/// As [`create`], under another name first.
fn create_in_transit<C: Conf>(
    call: &Call<'_, C>,
    container: &Container,
    handle: &Handle,
    new: &NewLink<'_>,
) -> Result<Link, Error> {
    let name = &transit_name(call);
    // One of this name is what a killed ADD of the same attachment left.
    let _ = container.route.delete_link(name);
    handle.create_link(&NewLink { name, ..new.clone() }).map_err(|error| explained(container, new.name, error))?;
    let rename = || {
        let made = container.route.link(name)?;
        container.route.set_link(made.index, &LinkChange { name: Some(new.name), ..LinkChange::default() })?;
        container.route.link(made.index).inspect_err(|_| drop(container.route.delete_link(made.index)))
    };
    rename()
        .inspect_err(|_| drop(container.route.delete_link(name)))
        .step(format_args!("give {} its name in the container", new.name))
}

/// The name that a link has before it gets its own. DEL knows it too.
fn transit_name<C: Conf>(call: &Call<'_, C>) -> String {
    let key = Owner::from(mark(call)).key();
    format!("cni{}", &key[key.len() - 12..])
}

fn is_taken(container: &Container, name: &str) -> Result<bool, Error> {
    container.route.find_link(name).map(|found| found.is_some()).step(format_args!("look for {name} in the container"))
}

/// Errors of making a link that need more words than the kernel's.
fn explained(container: &Container, name: &str, error: outrigger_netlink::Error) -> Error {
    let netns = container.ns.path().display();
    if error.is_exists() && is_taken(container, name).is_ok_and(|taken| taken) {
        Error::internal(format!("interface {name} exists already in {netns}: delete its attachment first"))
    } else if error.is_unsupported() {
        Error::internal(format!("{error}: the kernel lacks this kind of link; load its module"))
    } else {
        Error::internal(format!("make {name} in {netns}: {error}"))
    }
}

/// The rest of an ADD with `ipam`: addresses and routes on `link`, which is in the container.
pub(crate) fn address<C: Conf>(
    call: &Call<'_, C>,
    container: &Container,
    link: &Link,
    settings: &Settings,
) -> Result<AddResult, Error> {
    let mut lease = call.ipam().add()?;
    let mut result = std::mem::take(&mut lease.result);
    take_over(call, container, link, &mut result, settings)?;
    lease.keep();
    Ok(result)
}

/// Puts what a result says on `link`, and makes `link` the interface of the result.
pub(crate) fn take_over<C: Conf>(
    call: &Call<'_, C>,
    container: &Container,
    link: &Link,
    result: &mut AddResult,
    settings: &Settings,
) -> Result<(), Error> {
    for ip in &mut result.ips {
        ip.interface = Some(INDEX);
    }
    result.interfaces = vec![interface(call, container, link)];
    configure(container, link, result, INDEX, settings)
}

/// The rest of an ADD without `ipam`: the interface is brought up.
pub(crate) fn bring_up<C: Conf>(call: &Call<'_, C>, container: &Container, link: &Link) -> Result<AddResult, Error> {
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    container.route.set_link(link.index, &up).step(format_args!("bring up {}", link.name))?;
    Ok(AddResult { interfaces: vec![interface(call, container, link)], ..AddResult::default() })
}

fn interface<C: Conf>(call: &Call<'_, C>, container: &Container, link: &Link) -> Interface {
    Interface::new(call.ifname, mac_text(link), container.ns.path().to_string_lossy())
}

/// DEL: removes the interface and gives the addresses back. Nothing but the container's namespace and the interface's name
/// is looked at.
pub(crate) fn del<C: Conf>(session: &Session, call: &Call<'_, C>) -> Result<(), Error> {
    teardown::release_around(call, Ipam::del, || delete(session, call))
}

fn delete<C: Conf>(session: &Session, call: &Call<'_, C>) -> Result<(), Error> {
    // With its namespace the interface is gone.
    let Some(container) = session.container_if_any(call.netns)? else { return Ok(()) };
    if !delete_link(&container.route, call.ifname)? {
        delete_link(&container.route, &transit_name(call))?;
    }
    Ok(())
}

/// What the documentation says of [`gc`].
pub(crate) const GC: &str = "Asks `ipam`. An interface goes with the network namespace that it is in; while that lives on, it \
                             stays, though its address may be given to others: nothing outside tells of it.";

/// GC: addresses are the IPAM plugin's, and of the interfaces nothing on the host tells.
pub(crate) fn gc<C: Conf>(call: &Call<'_, C>, valid: &[Attachment]) -> Result<(), Error> {
    call.ipam().gc(valid)
}

/// CHECK: asks `ipam`, and compares the interface with the previous result. Gives the interface.
pub(crate) fn check<C: Conf>(session: &Session, call: &Call<'_, C>, kind: Option<&str>) -> Result<Link, Error> {
    call.ipam().check()?;
    let previous = call.prev()?;
    let own = verify::own_interface(call, previous)?;
    let container = session.container(call.netns()?)?;
    let link = verify::link(&container.route, own)?;
    if let Some(kind) = kind
        && link.kind.as_deref() != Some(kind)
    {
        let found = link.kind.as_deref().unwrap_or("of another kind");
        return Err(Error::internal(format!("{} is no {kind} but {found}: add the container again", link.name)));
    }
    verify::addresses_and_routes(&container.route, &link, previous)?;
    Ok(link)
}

/// CHECK of one setting of the interface.
pub(crate) fn check_setting<T: PartialEq + std::fmt::Display>(
    link: &Link,
    what: &str,
    found: Option<T>,
    wanted: T,
) -> Result<(), Error> {
    match found {
        Some(found) if found == wanted => Ok(()),
        found => {
            let found = found.map_or_else(|| "unknown".to_owned(), |found| found.to_string());
            Err(Error::internal(format!(
                "{what} of {} is {found}, configured is {wanted}: add the container again",
                link.name
            )))
        }
    }
}
