//! `ipvlan`: further addresses on an interface of the host, with its MAC address.

use outrigger_cni_sdk::{AddResult, Attachment, Call, Documentation, Error, Plugin, conf};
use outrigger_netlink::route::{IpvlanMode, LinkDetails, NewLink, NewLinkKind};

use crate::attach::inside;
use crate::attach::undo::Undo;
use crate::macvlan::ANNOUNCE;
use crate::session::Session;

conf! {
    /// Puts the container on the network of one of the host's interfaces (`master`), with an address of its own but the
    /// MAC address of `master`, where a switch or a cloud allows no other. The host itself and its containers on the same
    /// master do not reach each other; that is how ipvlan works.
    ///
    /// It may come after a plugin that made an interface: without `master` it takes the only interface of that result, and
    /// without `ipam` its addresses.
    pub struct IpvlanConf {
        /// The interface below. Without it: the one of the previous result, else that of the default route.
        pub master: String,
        /// `l2` (frames; the default), `l3` (packets, routed on the host), or `l3s` (as l3, through the host's packet
        /// filter).
        pub mode: String,
        /// MTU; 0 leaves it to the kernel.
        pub mtu: u32,
        /// `master` is an interface in the container, not on the host.
        pub link_in_container: bool,
    }
}

/// The plugin.
pub struct Ipvlan<'s>(pub &'s Session);

impl IpvlanConf {
    fn mode(&self) -> Result<IpvlanMode, Error> {
        if self.mode.is_empty() {
            return Ok(IpvlanMode::L2);
        }
        self.mode.parse().map_err(|error| Error::config(format!("mode: {error}")))
    }
}

/// The name of the interface below: configured, or that of the plugin before; empty for that of the default route.
fn master_name<'a>(call: &'a Call<'_, IpvlanConf>) -> Result<&'a str, Error> {
    let configured = call.conf.master.as_str();
    match &call.net.prev_result {
        Some(previous) if configured.is_empty() => match previous.interfaces.as_slice() {
            [only] if !only.name.is_empty() => Ok(&only.name),
            _ => Err(Error::config(
                "master is not set, and prevResult has not just one interface with a name, which would tell: set master",
            )),
        },
        _ => Ok(configured),
    }
}

impl Plugin for Ipvlan<'_> {
    type Conf = IpvlanConf;
    const ABOUT: &'static str = "CNI ipvlan plugin: addresses of the container's own on an interface of the host";
    const DOC: Documentation = DOC;

    fn add(&self, call: &Call<'_, IpvlanConf>) -> Result<AddResult, Error> {
        let conf = &call.conf;
        let mode = conf.mode()?;
        let container = self.0.container(call.netns()?)?;
        let handle = inside::master_handle(self.0, &container, conf.link_in_container)?;
        let master = inside::master(handle, master_name(call)?)?;
        let new = NewLink {
            name: call.ifname,
            kind: NewLinkKind::Ipvlan { mode },
            mtu: (conf.mtu != 0).then_some(conf.mtu),
            parent: Some(master.index),
            ..NewLink::default()
        };
        let mut undo = Undo::default();
        let link = inside::create(call, &container, handle, conf.link_in_container, &new)?;
        let (route, index) = (&container.route, link.index);
        undo.push(move || drop(route.delete_link(index)));
        let chained = call.net.prev_result.clone().filter(|result| !result.ips.is_empty());
        let mut result = match chained.filter(|_| !call.ipam().is_configured()) {
            Some(mut previous) => {
                inside::take_over(call, &container, &link, &mut previous, &ANNOUNCE)?;
                previous
            }
            None => inside::address(call, &container, &link, &ANNOUNCE)?,
        };
        result.dns = call.net.dns.clone();
        undo.keep();
        Ok(result)
    }

    fn del(&self, call: &Call<'_, IpvlanConf>) -> Result<(), Error> {
        inside::del(self.0, call)
    }

    fn check(&self, call: &Call<'_, IpvlanConf>) -> Result<(), Error> {
        let wanted = call.conf.mode()?;
        let link = inside::check(self.0, call, Some("ipvlan"))?;
        let LinkDetails::Ipvlan { mode } = link.details else { return Ok(()) };
        inside::check_setting(&link, "mode", mode, wanted)
    }

    fn gc(&self, call: &Call<'_, IpvlanConf>, valid: &[Attachment]) -> Result<(), Error> {
        inside::gc(call, valid)
    }

    fn status(&self, call: &Call<'_, IpvlanConf>) -> Result<(), Error> {
        // Without a name and without `ipam` the master comes with the result of an earlier plugin.
        if !call.conf.master.is_empty() || call.ipam().is_configured() {
            inside::master_status(self.0, &call.conf.master, call.conf.link_in_container)?;
        }
        call.ipam().status()
    }
}

const DOC: Documentation = Documentation {
    add: "Makes the interface on `master`, at once in the container and under its name; asks `ipam` for addresses, or takes \
          those of the previous result if there is no `ipam`, and puts them and the routes on it. The result has this \
          interface only. If a step fails, the interface is removed and the addresses are given back.",
    del: "Removes the interface, then gives the addresses back; with dhcp the other way around. Looks at neither `master` nor \
          `mode`, and succeeds when the interface or the network namespace is gone.",
    check: "Looks whether the interface is an ipvlan of this mode with the addresses and the routes of the previous result; \
            asks `ipam`.",
    gc: inside::GC,
    status: "Fails (50) if `master` is not there, or without `master` if there is no default route; asks `ipam`.",
    capabilities: &[],
    args: &[],
    example: r#"{
    "cniVersion": "1.1.0",
    "name": "lan",
    "plugins": [
        {
            "type": "ipvlan",
            "master": "eth0",
            "mode": "l2",
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "192.0.2.0/24", "rangeStart": "192.0.2.64", "rangeEnd": "192.0.2.95" }]],
                "routes": [{ "dst": "0.0.0.0/0" }]
            }
        }
    ]
}"#,
};
