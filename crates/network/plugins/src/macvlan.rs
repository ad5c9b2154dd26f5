//! `macvlan`: the container has a MAC address of its own on an interface of the host.

use outrigger_cni_sdk::{AddResult, Attachment, Call, Documentation, Error, Plugin, conf};
use outrigger_netlink::route::{Ipv4Conf, LinkDetails, MacvlanMode, NewLink, NewLinkKind};

use crate::attach::sysctl::Settings;
use crate::attach::undo::Undo;
use crate::attach::{inside, requested_mac};
use crate::session::Session;

conf! {
    /// Puts the container on the network of one of the host's interfaces (`master`), with a MAC address of its own. The
    /// host itself and its containers on the same master do not reach each other; that is how macvlan works.
    pub struct MacvlanConf {
        /// The interface below. Without it: that of the default route.
        pub master: String,
        /// How containers on one master reach each other: `bridge` (directly; the default), `private` (not at all),
        /// `vepa` (by the switch outside), or `passthru` (there is only one).
        pub mode: String,
        /// MTU, at most that of `master`; 0 leaves it to the kernel.
        pub mtu: u32,
        /// MAC address of the interface, unless the runtime gives one.
        pub mac: String,
        /// `master` is an interface in the container, not on the host.
        pub link_in_container: bool,
        /// Length of the queue of received broadcasts; 0 leaves it to the kernel.
        #[key = "bcqueuelen"]
        pub bc_queue_len: u32,
    }
}

/// The plugin.
pub struct Macvlan<'s>(pub &'s Session);

/// Announce the address when it comes up.
pub(crate) const ANNOUNCE: Settings = Settings { ipv4: &[(Ipv4Conf::ArpNotify, 1)], ipv6: &[("ndisc_notify", "1")] };

impl MacvlanConf {
    fn mode(&self) -> Result<MacvlanMode, Error> {
        if self.mode.is_empty() {
            return Ok(MacvlanMode::Bridge);
        }
        self.mode.parse().map_err(|error| Error::config(format!("mode: {error}")))
    }
}

impl Plugin for Macvlan<'_> {
    type Conf = MacvlanConf;
    const ABOUT: &'static str = "CNI macvlan plugin: a MAC address of the container's own on an interface of the host";
    const DOC: Documentation = DOC;

    fn add(&self, call: &Call<'_, MacvlanConf>) -> Result<AddResult, Error> {
        let conf = &call.conf;
        let mode = conf.mode()?;
        let mac = match requested_mac(call)? {
            None if !conf.mac.is_empty() => {
                Some(conf.mac.parse().map_err(|error| Error::config(format!("mac: {error}")))?)
            }
            mac => mac,
        };
        let container = self.0.container(call.netns()?)?;
        let handle = inside::master_handle(self.0, &container, conf.link_in_container)?;
        let master = inside::master(handle, &conf.master)?;
        let bc_queue_len = (conf.bc_queue_len != 0).then_some(conf.bc_queue_len);
        let new = NewLink {
            name: call.ifname,
            kind: NewLinkKind::Macvlan { mode, bc_queue_len },
            mtu: inside::mtu(conf.mtu, &master)?,
            mac,
            parent: Some(master.index),
            ..NewLink::default()
        };
        let mut undo = Undo::default();
        let link = inside::create(call, &container, handle, conf.link_in_container, &new)?;
        let (route, index) = (&container.route, link.index);
        undo.push(move || drop(route.delete_link(index)));
        let mut result = if call.ipam().is_configured() {
            inside::address(call, &container, &link, &ANNOUNCE)?
        } else {
            inside::bring_up(call, &container, &link)?
        };
        result.dns = call.net.dns.clone();
        undo.keep();
        Ok(result)
    }

    fn del(&self, call: &Call<'_, MacvlanConf>) -> Result<(), Error> {
        inside::del(self.0, call)
    }

    fn check(&self, call: &Call<'_, MacvlanConf>) -> Result<(), Error> {
        let wanted = call.conf.mode()?;
        let link = inside::check(self.0, call, Some("macvlan"))?;
        let LinkDetails::Macvlan { mode, .. } = link.details else { return Ok(()) };
        inside::check_setting(&link, "mode", mode, wanted)
    }

    fn gc(&self, call: &Call<'_, MacvlanConf>, valid: &[Attachment]) -> Result<(), Error> {
        inside::gc(call, valid)
    }

    fn status(&self, call: &Call<'_, MacvlanConf>) -> Result<(), Error> {
        inside::master_status(self.0, &call.conf.master, call.conf.link_in_container)?;
        call.ipam().status()
    }
}

const DOC: Documentation = Documentation {
    add: "Makes the interface on `master`, at once in the container and under its name; asks `ipam` for addresses and puts \
          them and the routes on it. Without `ipam` it is brought up and nothing more. If a step fails, the interface is \
          removed and the addresses are given back. A MAC address may be given by the capability `mac`, by \
          `args.cni.mac`, by `MAC` in `CNI_ARGS`, or by `mac`, in this order.",
    del: "Removes the interface, then gives the addresses back; with dhcp the other way around. Looks at neither `master` nor \
          `mode`, and succeeds when the interface or the network namespace is gone.",
    check: "Looks whether the interface is a macvlan of this mode with the MAC address, the addresses and the routes of the \
            previous result; asks `ipam`.",
    gc: inside::GC,
    status: "Fails (50) if `master` is not there, or without `master` if there is no default route; asks `ipam`.",
    capabilities: &[("mac", "MAC address of the interface.")],
    args: &[("MAC", "MAC address of the interface.")],
    example: r#"{
    "cniVersion": "1.1.0",
    "name": "lan",
    "plugins": [
        {
            "type": "macvlan",
            "master": "eth0",
            "ipam": { "type": "dhcp" }
        }
    ]
}"#,
};
