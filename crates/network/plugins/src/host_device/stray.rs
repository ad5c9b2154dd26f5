//! Hardware that the kernel gave back to the host when its network namespace ended.
//!
//! It has the name that it had in the container, or `dev` and a number if that is taken on the host. Its old name is still
//! its note, and it gets it again.

use outrigger_cni_sdk::{Error, Step as _};
use outrigger_netlink::route::{Handle, Link, LinkChange, check_link_name};

use super::find::{self, Device};
use super::forget;

/// Gives the device its old name again, if it came back without it. `ifname` is its name in the container, if that is known.
pub(super) fn rename(host: &Handle, device: &Device, ifname: Option<&str>) -> Result<(), Error> {
    let Some((link, name)) = find(host, device, ifname)? else { return Ok(()) };
    let down = LinkChange { up: Some(false), ..LinkChange::default() };
    let renamed = LinkChange { name: Some(&name), ..LinkChange::default() };
    let mut batch = host.batch();
    batch.set_link(link.index, &down).set_link(link.index, &renamed);
    batch.commit().step(format_args!("give {} its name {name} again", link.name))?;
    forget(host, &name)
}

/// The device and its old name.
fn find(host: &Handle, device: &Device, ifname: Option<&str>) -> Result<Option<(Link, String)>, Error> {
    let free = |name: &str| host.find_link(name).map(|found| found.is_none()).step(format_args!("look for {name}"));
    if let Device::Name(name) = device {
        if !free(name)? {
            return Ok(None);
        }
        let links = host.links().step("list the links of the host")?;
        let stray = |link: &Link| link.alias.as_ref() == Some(name) && may_come_from_container(link, ifname);
        return Ok(links.into_iter().find(stray).map(|link| (link, name.clone())));
    }
    // One that is not there has no name to be given back.
    let Ok(link) = find::link(host, device) else { return Ok(None) };
    let Some(name) = link.alias.clone().filter(|alias| *alias != link.name && check_link_name(alias).is_ok()) else {
        return Ok(None);
    };
    // It comes back down. One that is up is in use, and its note is perhaps the administrator's.
    let stray = !link.is_up() && may_come_from_container(&link, ifname) && free(&name)?;
    Ok(stray.then_some((link, name)))
}

fn may_come_from_container(link: &Link, ifname: Option<&str>) -> bool {
    ifname.is_none_or(|ifname| link.name == ifname) || link.name.starts_with("dev")
}
