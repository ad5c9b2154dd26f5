//! What the main plugins share: the pair of interfaces, addresses and routes from IPAM, checks, and taking all down again.

pub(crate) mod configure;
pub(crate) mod inside;
mod mark;
pub(crate) mod sysctl;
pub(crate) mod teardown;
pub(crate) mod undo;
pub(crate) mod verify;
pub(crate) mod veth;

use outrigger_cni_sdk::{Call, Code, Conf, Dns, Error, IpConfig, Map, Step as _, conf};
use outrigger_netlink::route::{Handle, Link, check_link_name};
use outrigger_netlink::{self as netlink, MacAddr};
use serde_json::Value;

pub(crate) use self::mark::Mark;

/// The mark of a call's attachment.
pub(crate) fn mark<'a, C>(call: &'a Call<'_, C>) -> Mark<'a> {
    Mark { network: &call.net.name, container_id: call.container_id, ifname: call.ifname }
}

/// Checks that `CNI_IFNAME` can be the name of a new interface: in a name with `%` the kernel puts a number, and what was
/// made could not be found again.
pub(crate) fn check_ifname(ifname: &str) -> Result<(), Error> {
    if ifname.contains('%') {
        let msg = format!("CNI_IFNAME: {ifname:?} cannot name an interface: leave out the %");
        return Err(Error::new(Code::InvalidEnvironment, msg));
    }
    Ok(())
}

/// Deletes an interface by its name; false if there is none.
pub(crate) fn delete_link(handle: &Handle, name: &str) -> Result<bool, Error> {
    match handle.delete_link(name) {
        // What cannot name an interface names none.
        Err(error) if error.is_not_found() || matches!(error, netlink::Error::Invalid { .. }) => Ok(false),
        deleted => deleted.map(|()| true).step(format_args!("delete {name}")),
    }
}

/// A link's MAC address as results show it; empty if it has none.
pub(crate) fn mac_text(link: &Link) -> String {
    link.mac.map(|mac| mac.to_string()).unwrap_or_default()
}

/// An error of the configuration if the value of `key` cannot be the name of an interface.
pub(crate) fn interface_name(key: &str, name: &str) -> Result<(), Error> {
    check_link_name(name).map_err(|error| Error::config(format!("{key}: {error}")))
}

/// The addresses of the previous result, if there is one.
pub(crate) fn previous_ips<'a, C>(call: &Call<'a, C>) -> &'a [IpConfig] {
    call.net.prev_result.as_ref().map(|result| result.ips.as_slice()).unwrap_or_default()
}

/// The name service of the configuration, if one is set there; else that of the IPAM plugin counts. As with the originals an
/// empty list sets it too, to none.
pub(crate) fn configured_dns<C>(call: &Call<'_, C>) -> Option<Dns> {
    let object = conf::lookup(call.config(), "dns").and_then(Value::as_object);
    let is_list = |dns: &Map, key: &str| conf::lookup(dns, key).is_some_and(Value::is_array);
    let has_list = |dns: &Map| ["nameservers", "search", "options"].iter().any(|key| is_list(dns, key));
    let set = !call.net.dns.is_empty() || object.is_some_and(has_list);
    set.then(|| call.net.dns.clone())
}

/// The MAC address that is asked for: by the capability `mac`, else by `args.cni.mac`, else by `MAC` in `CNI_ARGS`.
pub(crate) fn requested_mac<C: Conf>(call: &Call<'_, C>) -> Result<Option<MacAddr>, Error> {
    let [from_args] = call.args.known(["MAC"])?;
    let sources = [
        ("runtimeConfig.mac", call.runtime::<String>("mac")?),
        ("args.cni.mac", call.cni_arg("mac")?),
        ("MAC in CNI_ARGS", from_args.map(str::to_owned)),
    ];
    let Some((source, text)) =
        sources.into_iter().find_map(|(source, text)| Some((source, text.filter(|text| !text.is_empty())?)))
    else {
        return Ok(None);
    };
    let wrong = |what: &str| Error::config(format!("{source}: {text:?} is {what}; write it as 02:00:00:00:00:01"));
    let mac: MacAddr = text.parse().map_err(|_| wrong("no MAC address"))?;
    match mac.0[0] & 1 {
        0 => Ok(Some(mac)),
        _ => Err(wrong("the MAC address of a group, not of a station")),
    }
}
