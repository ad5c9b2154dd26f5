//! What the main plugins share whose interface is in the container alone, with nothing on the host that is the
//! attachment's: macvlan, ipvlan, vlan, dummy, tap, host-device.
//!
//! The interface is made before the addresses are asked for, and they are given back before it is removed: an IPAM plugin
//! such as dhcp needs it for both.

use outrigger_cni_sdk::{AddResult, Attachment, Call, Code, Conf, Error, Errors, Interface, Step as _};
use outrigger_netlink::route::{Family, Handle, Link, LinkChange, NewLink, RouteFilter, TABLE_MAIN};

use super::configure::configure;
use super::sysctl::Settings;
use super::{mac_text, verify};
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
pub(crate) fn create(
    container: &Container,
    handle: &Handle,
    in_container: bool,
    new: &NewLink<'_>,
) -> Result<Link, Error> {
    let netns = (!in_container).then_some(&container.ns);
    handle.create_link(&NewLink { netns, ..new.clone() }).map_err(|error| explained(container, new.name, error))?;
    container.route.link(new.name).step(format_args!("look at {} in the container", new.name))
}

/// Errors of making a link that need more words than the kernel's.
pub(crate) fn explained(container: &Container, name: &str, error: outrigger_netlink::Error) -> Error {
    let netns = container.ns.path().display();
    if error.is_exists() && container.route.find_link(name).is_ok_and(|found| found.is_some()) {
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

/// DEL: gives the addresses back and removes the interface, each whatever becomes of the other. Nothing but the container's
/// namespace and the interface's name is looked at.
pub(crate) fn del<C: Conf>(session: &Session, call: &Call<'_, C>) -> Result<(), Error> {
    let mut errors = Errors::new();
    errors.push(call.ipam().del());
    errors.push(delete(session, call));
    errors.finish()
}

fn delete<C: Conf>(session: &Session, call: &Call<'_, C>) -> Result<(), Error> {
    // With its namespace the interface is gone.
    let Some(container) = session.container_if_any(call.netns)? else { return Ok(()) };
    match container.route.delete_link(call.ifname) {
        Err(error) if !error.is_not_found() => Err(error).step(format_args!("delete {}", call.ifname)),
        _ => Ok(()),
    }
}

/// GC: interfaces went with the namespaces that they were in; addresses are the IPAM plugin's.
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
