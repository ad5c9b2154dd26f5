//! The veth pair between host and container, made by one request in both namespaces at once.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use outrigger_cni_sdk::{Error, Step as _};
use outrigger_netlink::MacAddr;
use outrigger_netlink::route::{Handle, Link, NewLink, NewLinkKind};

use super::{check_ifname, sysctl};
use crate::session::Container;

/// How often another name is tried when one is taken.
const ATTEMPTS: u32 = 10;

/// What is wanted of a pair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Name of the end in the container.
    pub ifname: &'a str,
    /// MTU of both ends; none is the kernel's choice.
    pub mtu: Option<u32>,
    /// MAC address of the end in the container; none is a random one.
    pub mac: Option<MacAddr>,
    /// Bridge that the host's end becomes a port of.
    pub master: Option<u32>,
    /// Alias of the host's end.
    pub alias: Option<&'a str>,
}

/// A pair that was made: the host's end is up, the other is down.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    /// The host's end.
    pub host: Link,
    /// The container's end.
    pub container: Link,
}

/// Makes the pair. Both ends get their MAC addresses here, also when they are random: one that the kernel chose could be
/// replaced later by the device manager of the host, and the neighbours would not know.
pub(crate) fn create(host: &Handle, container: &Container, wanted: &Wanted<'_>) -> Result<Pair, Error> {
    check_ifname(wanted.ifname)?;
    let peer = NewLink { netns: Some(&container.ns), ..peer(wanted) };
    let name = create_pair(host, wanted, &peer, || {
        let taken = container.route.find_link(wanted.ifname).step("look for the interface in the container")?;
        Ok(taken.map(|_| {
            let (ifname, netns) = (wanted.ifname, container.ns.path().display());
            Error::internal(format!("interface {ifname} exists already in {netns}: delete its attachment first"))
        }))
    })?;
    let found = host.link(&name).and_then(|host| Ok(Pair { host, container: container.route.link(wanted.ifname)? }));
    found.inspect_err(|_| drop(host.delete_link(&name))).step("look at the new veth pair")
}

/// Makes a pair with both ends on the host, and gives the end that has a random name.
pub(crate) fn create_on_host(host: &Handle, wanted: &Wanted<'_>) -> Result<Link, Error> {
    let peer = peer(wanted);
    let name = create_pair(host, wanted, &peer, || {
        let taken = host.find_link(wanted.ifname).step(format_args!("look for {}", wanted.ifname))?;
        Ok(taken.map(|_| Error::internal(format!("interface {} exists already on the host", wanted.ifname))))
    })?;
    host.link(&name).inspect_err(|_| drop(host.delete_link(&name))).step("look at the new veth pair")
}

fn peer<'a>(wanted: &Wanted<'a>) -> NewLink<'a> {
    NewLink {
        name: wanted.ifname,
        mtu: wanted.mtu,
        mac: Some(wanted.mac.unwrap_or_else(random_mac)),
        ..NewLink::default()
    }
}

/// Tries random names for the host's end until one is free. `taken` tells whether it is the other name that is not.
fn create_pair(
    host: &Handle,
    wanted: &Wanted<'_>,
    peer: &NewLink<'_>,
    taken: impl Fn() -> Result<Option<Error>, Error>,
) -> Result<String, Error> {
    for _ in 0..ATTEMPTS {
        let name = random_name();
        let made = host.create_link(&NewLink {
            name: &name,
            kind: NewLinkKind::Veth { peer: Box::new(peer.clone()) },
            mtu: wanted.mtu,
            mac: Some(random_mac()),
            master: wanted.master,
            alias: wanted.alias,
            up: true,
            ..NewLink::default()
        });
        match made {
            Ok(()) => {
                // Routes of this interface are not a neighbour's to set. Kernels without IPv6 lack the setting.
                let _ = sysctl::set(&format!("ipv6/conf/{name}/accept_ra"), "0");
                return Ok(name);
            }
            Err(error) if error.is_exists() => {
                if let Some(error) = taken()? {
                    return Err(error);
                }
            }
            Err(error) => {
                // The pair may be there although its alias was refused.
                if wanted.alias.is_some() {
                    let _ = host.delete_link(&name);
                }
                return Err(error).step(format_args!("make the veth pair of {}", wanted.ifname));
            }
        }
    }
    Err(Error::internal(format!(
        "{ATTEMPTS} random names for the host's end of {} were all taken: try again",
        wanted.ifname
    )))
}

/// `veth` and eight hexadecimal digits, as the original plugins name the host's end.
fn random_name() -> String {
    format!("veth{:08x}", random() >> 32)
}

/// A random unicast address, marked as locally administered.
pub(crate) fn random_mac() -> MacAddr {
    let mut mac = [0; 6];
    mac.copy_from_slice(&random().to_ne_bytes()[..6]);
    mac[0] = mac[0] & 0xfe | 0x02;
    MacAddr(mac)
}

/// The standard library seeds its hash maps from the kernel's random numbers; for names that is random enough.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn random_names_and_addresses() {
        let names: HashSet<String> = (0..1000).map(|_| random_name()).collect();
        assert!(names.len() > 990);
        assert!(names.iter().all(|name| name.len() == 12 && name.starts_with("veth")));
        let macs: HashSet<[u8; 6]> = (0..1000).map(|_| random_mac().0).collect();
        assert!(macs.len() == 1000 && macs.iter().all(|mac| mac[0] & 3 == 2));
    }
}
