//! `vlan`: the container is in a VLAN of one of the host's interfaces.

use outrigger_cni_sdk::{AddResult, Attachment, Call, Documentation, Error, Plugin, conf};
use outrigger_netlink::route::{LinkDetails, NewLink, NewLinkKind};

use crate::attach::inside;
use crate::attach::sysctl::Settings;
use crate::attach::undo::Undo;
use crate::session::Session;

conf! {
    /// Gives the container an interface in a VLAN of one of the host's interfaces (`master`).
    pub struct VlanConf {
        /// The interface below. Required.
        pub master: String,
        /// Tag of the VLAN, 0 to 4094.
        pub vlan_id: i64,
        /// MTU, at most that of `master`; 0 leaves it to the kernel.
        pub mtu: u32,
        /// `master` is an interface in the container, not on the host.
        pub link_in_container: bool,
    }
}

/// The plugin.
pub struct Vlan<'s>(pub &'s Session);

impl VlanConf {
    fn id(&self) -> Result<u16, Error> {
        let id = u16::try_from(self.vlan_id).ok().filter(|id| *id <= 4094);
        id.ok_or_else(|| Error::config(format!("vlanId: {} is not from 0 to 4094", self.vlan_id)))
    }

    fn master(&self) -> Result<&str, Error> {
        if self.master.is_empty() {
            return Err(Error::config("master is missing: name the interface whose VLAN it is"));
        }
        Ok(&self.master)
    }
}

impl Plugin for Vlan<'_> {
    type Conf = VlanConf;
    const ABOUT: &'static str = "CNI vlan plugin: an interface in a VLAN of one of the host's interfaces";
    const DOC: Documentation = DOC;

    fn add(&self, call: &Call<'_, VlanConf>) -> Result<AddResult, Error> {
        let conf = &call.conf;
        let (id, name) = (conf.id()?, conf.master()?);
        let container = self.0.container(call.netns()?)?;
        let handle = inside::master_handle(self.0, &container, conf.link_in_container)?;
        let master = inside::master(handle, name)?;
        let new = NewLink {
            name: call.ifname,
            kind: NewLinkKind::Vlan { id },
            mtu: inside::mtu(conf.mtu, &master)?,
            parent: Some(master.index),
            ..NewLink::default()
        };
        let mut undo = Undo::default();
        let link = inside::create(call, &container, handle, conf.link_in_container, &new)?;
        let (route, index) = (&container.route, link.index);
        undo.push(move || drop(route.delete_link(index)));
        let mut result = inside::address(call, &container, &link, &Settings::default())?;
        result.dns = call.net.dns.clone();
        undo.keep();
        Ok(result)
    }

    fn del(&self, call: &Call<'_, VlanConf>) -> Result<(), Error> {
        inside::del(self.0, call)
    }

    fn check(&self, call: &Call<'_, VlanConf>) -> Result<(), Error> {
        let wanted = call.conf.id()?;
        let link = inside::check(self.0, call, Some("vlan"))?;
        if call.conf.mtu != 0 {
            inside::check_setting(&link, "mtu", Some(link.mtu), call.conf.mtu)?;
        }
        let LinkDetails::Vlan { id } = link.details else { return Ok(()) };
        inside::check_setting(&link, "vlanId", Some(id), wanted)
    }

    fn gc(&self, call: &Call<'_, VlanConf>, valid: &[Attachment]) -> Result<(), Error> {
        inside::gc(call, valid)
    }

    fn status(&self, call: &Call<'_, VlanConf>) -> Result<(), Error> {
        inside::master_status(self.0, call.conf.master()?, call.conf.link_in_container)?;
        call.ipam().status()
    }
}

const DOC: Documentation = Documentation {
    add: "Makes the interface on `master`, at once in the container and under its name; asks `ipam` for addresses and puts \
          them and the routes on it. If a step fails, the interface is removed and the addresses are given back.",
    del: "Removes the interface, then gives the addresses back; with dhcp the other way around. Looks at neither `master` nor \
          `vlanId`, and succeeds when the interface or the network namespace is gone.",
    check: "Looks whether the interface is in this VLAN with the MAC address, the addresses and the routes of the previous \
            result, and, if it is set, with this `mtu`; asks `ipam`.",
    gc: inside::GC,
    status: "Fails (50) if `master` is not there; asks `ipam`.",
    capabilities: &[],
    args: &[],
    example: r#"{
    "cniVersion": "1.1.0",
    "name": "vlan7",
    "plugins": [
        {
            "type": "vlan",
            "master": "eth0",
            "vlanId": 7,
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.7.0.0/24" }]] }
        }
    ]
}"#,
};
