//! CHECK of the bridge plugin.

use outrigger_cni_sdk::{Call, Error, Step as _};
use outrigger_netlink::route::LinkDetails;

use super::conf::BridgeConf;
use super::links;
use crate::attach::{mac_text, mark, verify};
use crate::rules::{macspoof, masquerade};
use crate::session::Session;

/// Compares the bridge, the pair, addresses and routes with the previous result.
pub(super) fn check(session: &Session, call: &Call<'_, BridgeConf>) -> Result<(), Error> {
    let conf = &call.conf;
    call.ipam().check()?;
    let previous = call.prev()?;
    let own = verify::own_interface(call, previous)?;
    let on_host = || previous.interfaces.iter().filter(|interface| interface.sandbox.is_empty());
    let host = session.host()?;

    let bridge = on_host()
        .find(|interface| interface.name == conf.bridge)
        .ok_or_else(|| Error::config(format!("prevResult has no bridge {}: it is of another network", conf.bridge)))?;
    let bridge = verify::link(host, bridge)?;
    if !matches!(bridge.details, LinkDetails::Bridge { .. }) {
        return Err(links::wrong_kind(&bridge.name, bridge.kind.as_deref()));
    }
    // Others may have good reasons to have it promiscuous; only the lack of it is ours to tell.
    if conf.promisc_mode && bridge.promiscuity == 0 {
        return Err(Error::internal(format!("bridge {} is not promiscuous: add the container again", bridge.name)));
    }

    let container = session.container(call.netns()?)?;
    let inside = verify::veth(&container.route, own)?;
    let Some(outside) =
        inside.parent.map(|index| host.find_link(index)).transpose().step("look for the host's end")?.flatten()
    else {
        return Err(Error::internal(format!("the host's end of {} is missing: add the container again", inside.name)));
    };
    if !on_host().any(|interface| interface.name == outside.name) {
        return Err(Error::internal(format!(
            "the host's end of {} is {}, which prevResult lacks: add the container again",
            inside.name, outside.name
        )));
    }
    if outside.master != Some(bridge.index) {
        return Err(Error::internal(format!(
            "{} is no port of bridge {}: add the container again",
            outside.name, bridge.name
        )));
    }
    verify::addresses_and_routes(&container.route, &inside, previous)?;
    if conf.mac_spoof_check {
        macspoof::check(session.nft()?, &outside.name, &mac_text(&inside), mark(call).into())?;
    }
    if conf.ip_masq && call.net.ipam_type().is_some() {
        masquerade::check(session.nft()?, conf.ip_masq_backend.as_deref(), mark(call).into(), &previous.ips)?;
    }
    Ok(())
}
