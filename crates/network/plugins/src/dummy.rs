//! `dummy`: an interface that leads nowhere and keeps addresses.

use outrigger_cni_sdk::{AddResult, Attachment, Call, Documentation, Error, Plugin, conf};
use outrigger_netlink::route::{NewLink, NewLinkKind};

use crate::attach::inside;
use crate::attach::sysctl::Settings;
use crate::attach::undo::Undo;
use crate::session::Session;

conf! {
    /// Gives the container an interface that leads nowhere, for addresses that it is to have. `ipam` is required.
    pub struct DummyConf {}
}

/// The plugin.
pub struct Dummy<'s>(pub &'s Session);

fn need_ipam(call: &Call<'_, DummyConf>) -> Result<(), Error> {
    if call.ipam().is_configured() {
        return Ok(());
    }
    Err(Error::config("ipam.type is missing: a dummy interface is of no use without addresses"))
}

impl Plugin for Dummy<'_> {
    type Conf = DummyConf;
    const ABOUT: &'static str = "CNI dummy plugin: an interface that leads nowhere and keeps addresses";
    const DOC: Documentation = DOC;

    fn add(&self, call: &Call<'_, DummyConf>) -> Result<AddResult, Error> {
        need_ipam(call)?;
        let container = self.0.container(call.netns()?)?;
        let new = NewLink { name: call.ifname, kind: NewLinkKind::Dummy, ..NewLink::default() };
        let mut undo = Undo::default();
        let link = inside::create(call, &container, &container.route, true, &new)?;
        let (route, index) = (&container.route, link.index);
        undo.push(move || drop(route.delete_link(index)));
        let result = inside::address(call, &container, &link, &Settings::default())?;
        undo.keep();
        Ok(result)
    }

    fn del(&self, call: &Call<'_, DummyConf>) -> Result<(), Error> {
        inside::del(self.0, call)
    }

    fn check(&self, call: &Call<'_, DummyConf>) -> Result<(), Error> {
        need_ipam(call)?;
        inside::check(self.0, call, Some("dummy")).map(drop)
    }

    fn gc(&self, call: &Call<'_, DummyConf>, valid: &[Attachment]) -> Result<(), Error> {
        inside::gc(call, valid)
    }

    fn status(&self, call: &Call<'_, DummyConf>) -> Result<(), Error> {
        need_ipam(call)?;
        call.ipam().status()
    }
}

const DOC: Documentation = Documentation {
    add: "Makes the interface in the container, asks `ipam` for addresses and puts them and the routes on it. If a step \
          fails, the interface is removed and the addresses are given back.",
    del: "Removes the interface, then gives the addresses back; with dhcp the other way around. Succeeds when the interface or \
          the network namespace is gone.",
    check: "Looks whether the interface is a dummy with the MAC address, the addresses and the routes of the previous \
            result; asks `ipam`.",
    gc: inside::GC,
    status: "Asks `ipam`.",
    capabilities: &[],
    args: &[],
    example: r#"{
    "cniVersion": "1.1.0",
    "name": "service-address",
    "plugins": [
        {
            "type": "dummy",
            "ipam": { "type": "static", "addresses": [{ "address": "192.0.2.1/32" }] }
        }
    ]
}"#,
};
