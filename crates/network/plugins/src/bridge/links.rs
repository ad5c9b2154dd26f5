//! The bridge, its ports and the gateway's interface, in the kernel.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use outrigger_cni_sdk::{Error, Step as _};
use outrigger_netlink::route::{
    BridgePort, Event, Groups, Handle, Link, LinkChange, LinkDetails, Monitor, NewLink, NewLinkKind, OperState,
    vlan_flags,
};
use rustix::io::Errno;

use super::conf::BridgeConf;
use super::vlan::Vlans;
use crate::attach::{sysctl, veth};

/// How long a new port may take to get a carrier.
const FORWARD: Duration = Duration::from_millis(2550);

/// Finds the bridge or makes it. It comes back up.
pub(super) fn ensure(host: &Handle, conf: &BridgeConf, vlans: &Vlans) -> Result<Link, Error> {
    let name = conf.bridge.as_str();
    let looking = || format!("look for bridge {name}");
    let link = if let Some(link) = host.find_link(name).step(looking())? {
        link
    } else {
        make(host, conf, vlans)?;
        host.link(name).step(looking())?
    };
    if !matches!(link.details, LinkDetails::Bridge { .. }) {
        return Err(wrong_kind(name, link.kind.as_deref()));
    }
    // Routes of this interface are ours to set, not a neighbour's. Kernels without IPv6 lack the setting.
    let _ = sysctl::set(&format!("ipv6/conf/{name}/accept_ra"), "0");
    let promiscuous = conf.promisc_mode.then_some(true);
    if !link.is_up() || promiscuous.is_some() {
        host.set_link(link.index, &LinkChange { up: Some(true), promiscuous, ..LinkChange::default() })
            .step(format_args!("bring bridge {name} up"))?;
    }
    Ok(link)
}

/// Makes the bridge. Another ADD may do so at the same time.
fn make(host: &Handle, conf: &BridgeConf, vlans: &Vlans) -> Result<(), Error> {
    let name = conf.bridge.as_str();
    let made = host.create_link(&NewLink {
        name,
        kind: NewLinkKind::Bridge { vlan_filtering: vlans.filtering },
        mtu: (conf.mtu != 0).then_some(conf.mtu),
        // With an address of its own it does not take that of a port, which would change as ports come and go.
        mac: Some(veth::random_mac()),
        ..NewLink::default()
    });
    match made {
        Err(error) if error.is_exists() => Ok(()),
        Err(error) if error.is_unsupported() && vlans.filtering => Err(Error::internal(format!(
            "make bridge {name} with VLAN filtering: {error}; the kernel needs CONFIG_BRIDGE_VLAN_FILTERING, or remove vlan \
             and vlanTrunk"
        ))),
        made => made.step(format_args!("make bridge {name}")),
    }
}

/// The error for a link that has the bridge's name and is none.
pub(super) fn wrong_kind(name: &str, kind: Option<&str>) -> Error {
    let kind = kind.unwrap_or("network device");
    Error::config(format!("{name} is a {kind}, not a bridge: give bridge another name"))
}

/// Sets what the port does besides forwarding.
pub(super) fn set_port(
    host: &Handle,
    port: &Link,
    bridge: &Link,
    conf: &BridgeConf,
    vlans: &Vlans,
) -> Result<(), Error> {
    if conf.hairpin_mode || conf.port_isolation {
        let flags = BridgePort {
            hairpin: Some(conf.hairpin_mode),
            isolated: Some(conf.port_isolation),
            ..BridgePort::default()
        };
        host.bridge_port(port.index, &flags).step(format_args!("set hairpin and isolation of {}", port.name))?;
    }
    let mut batch = host.batch();
    // A new port has the bridge's default VLAN and no other.
    if let LinkDetails::Bridge { default_pvid: id @ 1.., .. } = bridge.details
        && vlans.leave_default
    {
        batch.bridge_vlan_del(port.index, id..=id, 0);
    }
    let native = vlan_flags::PVID | vlan_flags::UNTAGGED;
    // In this order: a VLAN of the trunk that is the native one too goes through tagged.
    if let Some(id) = vlans.id {
        batch.bridge_vlan_add(port.index, id..=id, native);
    }
    for range in &vlans.tagged {
        batch.bridge_vlan_add(port.index, range.clone(), 0);
    }
    if let (None, Some(id)) = (vlans.id, vlans.native()) {
        batch.bridge_vlan_add(port.index, id..=id, native);
    }
    if batch.is_empty() {
        return Ok(());
    }
    batch.commit().step(format_args!("set the VLANs of {}, port of {}", port.name, bridge.name))
}

/// Waits until a new port of a bridge has a carrier, so that the container's first packets are not lost.
pub(super) fn wait_until_forwarding(host: &Handle, port: &Link) -> Result<(), Error> {
    let is_up = |link: &Link| link.index == port.index && link.oper_state == OperState::Up;
    let look = || host.link(port.index).step(format_args!("look at {}", port.name));
    // Newer kernels bring the state up to date when they are asked for it; then it is up already.
    if is_up(&look()?) {
        return Ok(());
    }
    let monitor = Monitor::open(Groups { links: true, ..Groups::default() }).step("listen for changes of links")?;
    let deadline = Instant::now() + FORWARD;
    loop {
        let link = look()?;
        if is_up(&link) {
            return Ok(());
        }
        let changed =
            monitor.wait_until(deadline, |event| matches!(event, Event::Link(link) if is_up(link)).then_some(()));
        match changed {
            Ok(()) => return Ok(()),
            // Events were lost: look again.
            Err(error) if error.errno() == Some(Errno::NOBUFS) => {}
            Err(_) => {
                return Err(Error::internal(format!(
                    "{}, port of the bridge, has no carrier after {FORWARD:?}, its state is {:?}: is the container's \
                     interface down?",
                    port.name, link.oper_state
                )));
            }
        }
    }
}

/// The interface that holds the gateway's addresses of a VLAN: `<bridge>.<id>`, one end of a pair on the host whose other
/// end is a port of the bridge in that VLAN. It stays, as the bridge does.
pub(super) fn ensure_vlan_gateway(host: &Handle, bridge: &Link, id: u16, conf: &BridgeConf) -> Result<Link, Error> {
    let name = format!("{}.{id}", bridge.name);
    let find = || host.find_link(&name).step(format_args!("look for {name}"));
    // Bringing it up is the last step.
    let finish = |port: &Link| {
        let vlans =
            Vlans { id: Some(id), filtering: true, leave_default: !conf.preserve_default_vlan, tagged: Vec::new() };
        set_port(host, port, bridge, &BridgeConf::default(), &vlans)?;
        host.set_link(&name, &LinkChange { up: Some(true), ..LinkChange::default() })
            .step(format_args!("bring {name} up"))?;
        host.link(&name).step(format_args!("look for {name}"))
    };
    if let Some(link) = find()? {
        if link.is_up() || link.kind.as_deref() != Some("veth") {
            return Ok(link);
        }
        // Another ADD was killed, or is right behind with the same.
        let port = link.parent.map(|port| host.find_link(port)).transpose().step(format_args!("look at {name}"))?;
        return match port.flatten().filter(|port| port.master == Some(bridge.index)) {
            Some(port) => finish(&port),
            None => Ok(link),
        };
    }
    let wanted =
        veth::Wanted { ifname: &name, mtu: Some(bridge.mtu), mac: None, master: Some(bridge.index), alias: None };
    match veth::create_on_host(host, &wanted) {
        Ok(port) => finish(&port).inspect_err(|_| drop(host.delete_link(port.index))),
        // Another ADD may have been faster.
        Err(error) => find()?.ok_or(error),
    }
}

/// Gives the bridge the gateway's address, unless it has it. One that overlaps with it is in the way: `forceAddress`
/// removes it. IPv6 allows several networks on one bridge, IPv4 does not.
pub(super) fn ensure_address(host: &Handle, link: &Link, wanted: IpNet, force: bool) -> Result<(), Error> {
    let addresses = host.addresses(Some(link.index)).step(format_args!("read the addresses of {}", link.name))?;
    let present: Vec<IpNet> = addresses.iter().map(|address| address.net).collect();
    match obstacles(&present, wanted) {
        None => return Ok(()),
        Some(obstacles) => {
            for obstacle in obstacles {
                if !force {
                    return Err(Error::config(format!(
                        "{} has the address {obstacle}, which is not the gateway's {wanted}: set forceAddress to replace \
                         it, or give the network a bridge of its own",
                        link.name
                    )));
                }
                match host.delete_address(link.index, obstacle) {
                    Err(error) if !error.is_not_found() => {
                        return Err(error).step(format_args!("remove {obstacle} from {}", link.name));
                    }
                    _ => {}
                }
            }
        }
    }
    match host.add_address(link.index, &wanted.into()) {
        Err(error) if !error.is_exists() => {
            return Err(error).step(format_args!("add the gateway's address {wanted} to {}", link.name));
        }
        _ => {}
    }
    // A bridge that others made may still take the address of a port; from now on it keeps the one that it has.
    host.set_link(link.index, &LinkChange { mac: link.mac, ..LinkChange::default() })
        .step(format_args!("fix the MAC address of {}", link.name))
}

/// Which addresses are in the way of a gateway's. None if that is there already.
fn obstacles(present: &[IpNet], wanted: IpNet) -> Option<Vec<IpNet>> {
    if present.contains(&wanted) {
        return None;
    }
    let in_the_way = |net: &&IpNet| match (net.addr(), wanted.addr()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => true,
        (IpAddr::V6(_), IpAddr::V6(_)) => net.contains(&wanted.addr()) || wanted.contains(&net.addr()),
        _ => false,
    };
    Some(present.iter().filter(in_the_way).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_the_way() {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        let wanted = |text: &str| text.parse::<IpNet>().unwrap();
        let present = nets(&["10.0.0.1/24", "fd00::1/64", "fe80::1/64"]);
        assert_eq!(obstacles(&present, wanted("10.0.0.1/24")), None);
        assert_eq!(obstacles(&present, wanted("10.9.0.1/24")), Some(nets(&["10.0.0.1/24"])));
        assert_eq!(obstacles(&present, wanted("10.0.0.1/16")), Some(nets(&["10.0.0.1/24"])));
        assert_eq!(obstacles(&present, wanted("fd01::1/64")), Some(vec![]));
        assert_eq!(obstacles(&present, wanted("fd00::2/48")), Some(nets(&["fd00::1/64"])));
        assert_eq!(obstacles(&[], wanted("fd00::2/48")), Some(vec![]));
    }
}
