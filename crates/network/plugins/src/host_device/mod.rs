//! `host-device`: moves an interface of the host into the container, and back.

mod find;
mod stray;

use outrigger_cni_sdk::{
    AddResult, Attachment, Call, Documentation, Error, Errors, Interface, Ipam, Plugin, Step as _, conf,
};
use outrigger_netlink::NetNs;
use outrigger_netlink::route::{Handle, Link, LinkChange, check_link_name};

use crate::attach::sysctl::Settings;
use crate::attach::undo::Undo;
use crate::attach::{check_ifname, inside, teardown};
use crate::session::{Container, Session};
use find::Device;

conf! {
    /// Moves an interface of the host into the container, for instance a virtual function of a network card, and back on
    /// DEL. Exactly one of the keys says which; if there are several, the first of this list counts.
    pub struct HostDeviceConf {
        /// Name of the interface.
        pub device: String,
        /// Its MAC address.
        pub hwaddr: String,
        /// The directory of its device, below `/sys/devices`.
        pub kernelpath: String,
        /// Address of its PCI device, such as `0000:00:1f.6`. If a driver hands that device to a program (vfio-pci,
        /// uio_pci_generic, igb_uio), it is left alone, and only `ipam` is asked.
        #[key = "pciBusID"]
        pub pci_bus_id: String,
    }
}

/// The plugin.
pub struct HostDevice<'s>(pub &'s Session);

impl Plugin for HostDevice<'_> {
    type Conf = HostDeviceConf;
    const ABOUT: &'static str = "CNI host-device plugin: moves an interface of the host into the container";
    const DOC: Documentation = DOC;

    fn add(&self, call: &Call<'_, HostDeviceConf>) -> Result<AddResult, Error> {
        let device = find::device(call)?;
        let container = self.0.container(call.netns()?)?;
        if device == Device::UserSpace {
            return add_without_link(call, &container);
        }
        let host = self.0.host()?;
        let home = NetNs::current().step("open the host's network namespace")?;
        // The name that is noted must be its own, not one that it had in a container.
        stray::rename(host, &device, Some(call.ifname))?;
        let found = find::link(host, &device)?;
        let mut undo = Undo::default();
        let link = move_in(host, &home, &container, &found, call.ifname)?;
        let (inside_host, container_ref) = (host, &container);
        undo.push(move || bring_home(inside_host, &home, container_ref, &found, call.ifname));
        let result = if call.ipam().is_configured() {
            let result = inside::address(call, &container, &link, &Settings::default())?;
            AddResult { dns: call.net.dns.clone(), ..result }
        } else {
            inside::bring_up(call, &container, &link)?
        };
        undo.keep();
        Ok(result)
    }

    fn del(&self, call: &Call<'_, HostDeviceConf>) -> Result<(), Error> {
        teardown::release_around(call, Ipam::del, || self.give_back(call))
    }

    fn check(&self, call: &Call<'_, HostDeviceConf>) -> Result<(), Error> {
        if find::device(call)? == Device::UserSpace {
            call.ipam().check()?;
            return call.prev().map(drop);
        }
        inside::check(self.0, call, None).map(drop)
    }

    fn gc(&self, call: &Call<'_, HostDeviceConf>, valid: &[Attachment]) -> Result<(), Error> {
        let mut errors = Errors::new();
        errors.push(inside::gc(call, valid));
        if let Ok(device) = find::device(call) {
            errors.push(self.0.host().and_then(|host| stray::rename(host, &device, None)));
        }
        errors.finish()
    }

    fn status(&self, call: &Call<'_, HostDeviceConf>) -> Result<(), Error> {
        call.ipam().status()
    }
}

fn add_without_link(call: &Call<'_, HostDeviceConf>, container: &Container) -> Result<AddResult, Error> {
    let interfaces = vec![Interface::new(call.ifname, "", container.ns.path().to_string_lossy())];
    if !call.ipam().is_configured() {
        return Ok(AddResult { interfaces, ..AddResult::default() });
    }
    let mut result = call.ipam().add()?.keep();
    for ip in &mut result.ips {
        ip.interface = Some(0);
    }
    Ok(AddResult { interfaces, dns: call.net.dns.clone(), ..result })
}

impl HostDevice<'_> {
    /// Moves the interface back. Nothing there: it is back already, or never came.
    fn give_back(&self, call: &Call<'_, HostDeviceConf>) -> Result<(), Error> {
        let host = self.0.host()?;
        let Some(container) = self.0.container_if_any(call.netns)? else {
            // Without a device that can be found there is none to be named.
            let Ok(device) = find::device(call) else { return Ok(()) };
            return stray::rename(host, &device, Some(call.ifname));
        };
        let Some(link) = container.route.find_link(call.ifname).step(format_args!("look for {}", call.ifname))? else {
            return Ok(());
        };
        // Without its old name as a note it did not come from here.
        let Some(name) = link.alias.clone().filter(|alias| check_link_name(alias).is_ok()) else { return Ok(()) };
        if host.find_link(&name).step(format_args!("look for {name}"))?.is_some() {
            return Err(Error::internal(format!(
                "{} cannot be given back: the host has another interface {name}; rename that one",
                link.name
            )));
        }
        let home = NetNs::current().step("open the host's network namespace")?;
        // The kernel takes it down as it moves. Whether it was up before is not known, so it stays down.
        let back = LinkChange { netns: Some(&home), name: Some(&name), ..LinkChange::default() };
        container.route.set_link(link.index, &back).step(format_args!("move {} to the host as {name}", link.name))?;
        forget(host, &name)
    }
}

fn forget(host: &Handle, name: &str) -> Result<(), Error> {
    let change = LinkChange { alias: Some(""), ..LinkChange::default() };
    host.set_link(name, &change).step(format_args!("remove the note of {name}"))
}

/// Moves the link into the container under its name there, with its name on the host as a note.
fn move_in(host: &Handle, home: &NetNs, container: &Container, found: &Link, ifname: &str) -> Result<Link, Error> {
    check_ifname(ifname)?;
    let netns = container.ns.path().display();
    if container.route.find_link(ifname).step(format_args!("look for {ifname} in the container"))?.is_some() {
        return Err(Error::internal(format!(
            "interface {ifname} exists already in {netns}: delete its attachment first"
        )));
    }
    let noted = LinkChange { alias: Some(&found.name), ..LinkChange::default() };
    let moved = LinkChange { netns: Some(&container.ns), name: Some(ifname), ..LinkChange::default() };
    let result = host
        .set_link(found.index, &noted)
        .and_then(|()| host.set_link(found.index, &moved))
        .and_then(|()| container.route.link(ifname));
    result
        .inspect_err(|_| bring_home(host, home, container, found, ifname))
        .step(format_args!("move {} to {netns} as {ifname}", found.name))
}

/// Puts the link back as it was found, from wherever a failed ADD left it. Errors are swallowed: the first one counts.
fn bring_home(host: &Handle, home: &NetNs, container: &Container, found: &Link, ifname: &str) {
    for name in [ifname, &found.name] {
        if let Ok(Some(link)) = container.route.find_link(name)
            && link.alias.as_deref() == Some(&found.name)
        {
            let back = LinkChange { netns: Some(home), name: Some(&found.name), ..LinkChange::default() };
            let _ = container.route.set_link(link.index, &back);
        }
    }
    if let Ok(Some(link)) = host.find_link(&found.name) {
        let alias = found.alias.as_deref().unwrap_or_default();
        let change = LinkChange { alias: Some(alias), up: Some(found.is_up()), ..LinkChange::default() };
        let _ = host.set_link(link.index, &change);
    }
}

const DOC: Documentation = Documentation {
    add: "Finds the interface, notes its name as its alias, and moves it into the container as `CNI_IFNAME`; asks `ipam` \
          for addresses and puts them and the routes on it. Without `ipam` it is brought up and nothing more. If a step \
          fails, the interface goes back as it was and the addresses are given back.",
    del: "Moves the interface back and gives it the name in its alias, then gives the addresses back, also without a network \
          namespace; with dhcp the other way around. If the namespace is gone, and with it the name of hardware that the \
          kernel gave back, it gets its name again, by whichever key it is found; the next ADD does that too. The interface \
          stays down.",
    check: "Looks whether the interface is in the container with the MAC address, the addresses and the routes of the \
            previous result; asks `ipam`.",
    gc: "Asks `ipam`. Gives an interface that came back with the end of its network namespace its name again, as DEL. While \
         that lives on, the interface stays, though its address may be given to others.",
    status: "Asks `ipam`.",
    capabilities: &[("deviceID", "PCI address or name of an auxiliary device, instead of `pciBusID`.")],
    args: &[],
    example: r#"{
    "cniVersion": "1.1.0",
    "name": "fast",
    "plugins": [
        {
            "type": "host-device",
            "pciBusID": "0000:3b:02.1",
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.9.0.0/24" }]] }
        }
    ]
}"#,
};
