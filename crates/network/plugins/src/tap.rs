//! `tap`: a device whose other end is a program, such as a hypervisor.

use std::fs::OpenOptions;

use outrigger_cni_sdk::{AddResult, Attachment, Call, Documentation, Error, Plugin, Step as _, conf};
use outrigger_netlink::MacAddr;
use outrigger_netlink::route::{Ipv4Conf, Link, LinkChange};
use outrigger_sys::net as sys;

use crate::attach::sysctl::Settings;
use crate::attach::undo::Undo;
use crate::attach::{check_ifname, inside, requested_mac};
use crate::session::{Container, Session};

conf! {
    /// Makes a tap device in the container: what a program such as a hypervisor, which opens it, writes and reads are
    /// Ethernet frames.
    pub struct TapConf {
        /// It may be opened several times, for one queue each.
        pub multi_queue: bool,
        /// MTU; 0 leaves it to the kernel.
        pub mtu: u32,
        /// MAC address of the device, unless the runtime gives one.
        pub mac: String,
        /// User that may open it without being root.
        pub owner: Option<u32>,
        /// Group that may open it without being root.
        pub group: Option<u32>,
        /// SELinux label that the device is made with: that of the program that is to open it.
        pub selinux_context: String,
        /// A bridge in the container that it becomes a port of.
        pub bridge: String,
    }
}

/// The plugin.
pub struct Tap<'s>(pub &'s Session);

impl Plugin for Tap<'_> {
    type Conf = TapConf;
    const ABOUT: &'static str = "CNI tap plugin: a device whose other end is a program";
    const DOC: Documentation = DOC;

    fn add(&self, call: &Call<'_, TapConf>) -> Result<AddResult, Error> {
        let conf = &call.conf;
        let mac = match requested_mac(call)? {
            None if !conf.mac.is_empty() => {
                Some(conf.mac.parse().map_err(|error| Error::config(format!("mac: {error}")))?)
            }
            mac => mac,
        };
        let container = self.0.container(call.netns()?)?;
        let mut undo = Undo::default();
        make(&container, call.ifname, conf)?;
        let (route, ifname) = (&container.route, call.ifname);
        undo.push(move || drop(route.delete_link(ifname)));
        let link = set_up(&container, call.ifname, conf, mac)?;
        let mut result = if call.ipam().is_configured() {
            let announce = Settings { ipv4: &[(Ipv4Conf::ArpNotify, 1)], ipv6: &[] };
            inside::address(call, &container, &link, &announce)?
        } else {
            inside::bring_up(call, &container, &link)?
        };
        result.dns = call.net.dns.clone();
        undo.keep();
        Ok(result)
    }

    fn del(&self, call: &Call<'_, TapConf>) -> Result<(), Error> {
        inside::del(self.0, call)
    }

    fn check(&self, call: &Call<'_, TapConf>) -> Result<(), Error> {
        inside::check(self.0, call, Some("tun")).map(drop)
    }

    fn gc(&self, call: &Call<'_, TapConf>, valid: &[Attachment]) -> Result<(), Error> {
        inside::gc(call, valid)
    }

    fn status(&self, call: &Call<'_, TapConf>) -> Result<(), Error> {
        call.ipam().status()
    }
}

/// Makes the device, which stays when nobody has it open.
fn make(container: &Container, name: &str, conf: &TapConf) -> Result<(), Error> {
    check_ifname(name)?;
    // Whoever opens an existing device gets that: it must be told apart from a new one before.
    if container.route.find_link(name).step(format_args!("look for {name}"))?.is_some() {
        let netns = container.ns.path().display();
        return Err(Error::internal(format!(
            "interface {name} exists already in {netns}: delete its attachment first"
        )));
    }
    let attempt = || -> Result<(), Error> {
        if !conf.selinux_context.is_empty() {
            // The device gets the label of the thread that makes it; this one ends right after.
            OpenOptions::new()
                .write(true)
                .open("/proc/thread-self/attr/current")
                .and_then(|mut file| std::io::Write::write_all(&mut file, conf.selinux_context.as_bytes()))
                .step(format_args!("selinuxContext: take the label {:?}", conf.selinux_context))?;
        }
        let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").step("open /dev/net/tun")?;
        sys::attach_tap(&tun, name, conf.multi_queue).step(format_args!("make tap {name}"))?;
        if let Some(owner) = conf.owner {
            sys::set_tap_owner(&tun, owner).step(format_args!("set the owner of tap {name}"))?;
        }
        if let Some(group) = conf.group {
            sys::set_tap_group(&tun, group).step(format_args!("set the group of tap {name}"))?;
        }
        sys::set_tap_persistent(&tun, true).step(format_args!("make tap {name} persistent"))
    };
    container.ns.run(attempt).step("enter the container's network namespace")?
}

fn set_up(container: &Container, name: &str, conf: &TapConf, mac: Option<MacAddr>) -> Result<Link, Error> {
    let link = container.route.link(name).step(format_args!("look at {name}"))?;
    let master = if conf.bridge.is_empty() {
        None
    } else {
        let found = container.route.find_link(&conf.bridge).step(format_args!("look for bridge {}", conf.bridge))?;
        let found = found.filter(|found| found.kind.as_deref() == Some("bridge"));
        let missing =
            || Error::config(format!("bridge: there is no bridge {} in the container; make it first", conf.bridge));
        Some(Some(found.ok_or_else(missing)?.index))
    };
    if mac.is_none() && master.is_none() && conf.mtu == 0 {
        return Ok(link);
    }
    let change = LinkChange { mac, master, mtu: (conf.mtu != 0).then_some(conf.mtu), ..LinkChange::default() };
    container.route.set_link(link.index, &change).step(format_args!("set up {name}"))?;
    container.route.link(name).step(format_args!("look at {name}"))
}

const DOC: Documentation = Documentation {
    add: "Makes the device in the container, under its name, and sets owner, group, MTU, MAC address and bridge; asks \
          `ipam` for addresses and puts them and the routes on it. Without `ipam` it is brought up and nothing more. If a \
          step fails, the device is removed and the addresses are given back.",
    del: "Removes the device, then gives the addresses back; with dhcp the other way around. Succeeds when the device or \
          the network namespace is gone.",
    check: "Looks whether the device is a tap with the MAC address, the addresses and the routes of the previous result; \
            asks `ipam`.",
    gc: inside::GC,
    status: "Asks `ipam`.",
    capabilities: &[("mac", "MAC address of the device.")],
    args: &[("MAC", "MAC address of the device.")],
    example: r#"{
    "cniVersion": "1.1.0",
    "name": "machines",
    "plugins": [
        {
            "type": "tap",
            "multiQueue": true,
            "owner": 107,
            "group": 107,
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.8.0.0/24" }]] }
        }
    ]
}"#,
};
