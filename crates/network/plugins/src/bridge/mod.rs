//! `bridge`: containers on a Linux bridge, by veth pairs.

mod check;
mod conf;
mod gateway;
mod links;
mod vlan;

use ipnet::IpNet;
use outrigger_cni_sdk::{AddResult, Attachment, Call, Code, Documentation, Error, Interface, Lease, Plugin, Step as _};
use outrigger_netlink::MacAddr;
use outrigger_netlink::route::{Ipv4Conf, LinkChange, LinkDetails};

pub use self::conf::BridgeConf;
use self::vlan::Vlans;
use crate::attach::sysctl::{self, Settings};
use crate::attach::undo::Undo;
use crate::attach::{
    configure, configured_dns, interface_name, mac_text, mark, previous_ips, requested_mac, teardown, veth,
};
use crate::rules::{macspoof, masquerade};
use crate::session::Session;

/// The plugin.
pub struct Bridge<'s>(pub &'s Session);

/// Where the container's interface is in the result: after the bridge and the host's end of the pair.
const CONTAINER_INDEX: i64 = 2;

impl Plugin for Bridge<'_> {
    type Conf = BridgeConf;
    const ABOUT: &'static str = "bridge";

    const DOC: Documentation = DOC;

    fn add(&self, call: &Call<'_, BridgeConf>) -> Result<AddResult, Error> {
        let wanted = Wanted::new(call)?;
        let conf = &call.conf;
        let host = self.0.host()?;
        let netns = call.netns()?;
        let container = self.0.container(netns)?;
        let bridge = links::ensure(host, conf, &wanted.vlans)?;

        // Dropped after the links are gone: an address must not be given to another while it is in use.
        let mut lease = None;
        let mut undo = Undo::default();
        let mark = mark(call);
        let pair = veth::create(
            host,
            &container,
            &veth::Wanted {
                ifname: call.ifname,
                mtu: wanted.mtu,
                mac: wanted.mac,
                master: Some(bridge.index),
                alias: mark.alias().as_deref(),
            },
        )?;
        let index = pair.host.index;
        undo.push(move || drop(host.delete_link(index)));
        links::set_port(host, &pair.host, &bridge, conf, &wanted.vlans)?;

        let mut result = AddResult::default();
        let mut gateway_interface = None;
        if wanted.layer3 {
            let leased = lease.insert(call.ipam().add()?);
            result = leased.result.clone();
            let gateways = gateway::complete(&mut result, CONTAINER_INDEX, wanted.is_gateway, conf.is_default_gateway);
            let settings = Settings {
                ipv4: &[(Ipv4Conf::ArpNotify, 1)],
                ipv6: if conf.enable_dad {
                    &[("enhanced_dad", "1"), ("accept_dad", "1")]
                } else {
                    &[("accept_dad", "0")]
                },
            };
            configure::configure(&container, &pair.container, &result, CONTAINER_INDEX, &settings)?;
            if !gateways.is_empty() {
                let link = match wanted.vlans.id {
                    None => bridge.clone(),
                    Some(id) => links::ensure_vlan_gateway(host, &bridge, id, conf)?,
                };
                for gateway in &gateways {
                    links::ensure_address(host, &link, *gateway, conf.force_address)?;
                }
                if wanted.vlans.id.is_some() {
                    gateway_interface = Some(Interface::new(&link.name, mac_text(&link), ""));
                }
                sysctl::enable_forwarding(gateways.iter().map(IpNet::addr)).step("turn on IP forwarding")?;
            }
        } else if !conf.disable_container_interface {
            container
                .route
                .set_link(pair.container.index, &LinkChange { up: Some(true), ..LinkChange::default() })
                .step(format_args!("bring {} up", call.ifname))?;
        }
        if !conf.disable_container_interface {
            links::wait_until_forwarding(host, &pair.host)?;
        }

        // Last, since rules are all or nothing by themselves: nothing after them can fail.
        if conf.mac_spoof_check {
            macspoof::add(self.0.rules(), &pair.host.name, &mac_text(&pair.container), mark.into())?;
        }
        if conf.ip_masq && wanted.layer3 {
            masquerade::add(self.0.rules(), conf.ip_masq_backend.as_deref(), mark.into(), &result.ips)?;
        }
        // The first port and the gateway's address may have changed the bridge's MAC address.
        let bridge = host.link(bridge.index).step(format_args!("look at bridge {}", conf.bridge))?;
        self.0.commit_rules()?;

        result.interfaces = vec![
            Interface::new(&bridge.name, mac_text(&bridge), ""),
            Interface::new(&pair.host.name, mac_text(&pair.host), ""),
            Interface::new(call.ifname, mac_text(&pair.container), netns.to_string_lossy()),
        ];
        result.interfaces.extend(gateway_interface);
        if let Some(dns) = configured_dns(call) {
            result.dns = dns;
        }
        undo.keep();
        lease.map(Lease::keep);
        Ok(result)
    }

    fn del(&self, call: &Call<'_, BridgeConf>) -> Result<(), Error> {
        teardown::del(self.0, call, || {
            if self.0.may_have_rules(call.conf.mac_spoof_check || call.conf.ip_masq) {
                macspoof::del(self.0.rules(), mark(call).into());
                masquerade::del(self.0.rules(), mark(call).into(), previous_ips(call));
            }
        })
    }

    fn check(&self, call: &Call<'_, BridgeConf>) -> Result<(), Error> {
        check::check(self.0, call)
    }

    fn gc(&self, call: &Call<'_, BridgeConf>, valid: &[Attachment]) -> Result<(), Error> {
        teardown::gc(self.0, call, valid, || {
            if self.0.may_have_rules(call.conf.mac_spoof_check || call.conf.ip_masq) {
                macspoof::gc(self.0.rules(), &call.net.name, valid);
                masquerade::gc(self.0.rules(), &call.net.name, valid);
            }
        })
    }

    fn status(&self, call: &Call<'_, BridgeConf>) -> Result<(), Error> {
        let not_available = |error: Error| Error { code: Code::NotAvailable, ..error };
        let name = call.conf.bridge.as_str();
        Wanted::new(call).map_err(not_available)?;
        let bridge = self.0.host()?.find_link(name).step(format_args!("look for bridge {name}"));
        if let Some(link) = bridge.map_err(not_available)?
            && !matches!(link.details, LinkDetails::Bridge { .. })
        {
            return Err(not_available(links::wrong_kind(name, link.kind.as_deref())));
        }
        call.ipam().status()
    }
}

/// What the configuration asks for, checked.
struct Wanted {
    layer3: bool,
    is_gateway: bool,
    mtu: Option<u32>,
    mac: Option<MacAddr>,
    vlans: Vlans,
}

impl Wanted {
    fn new(call: &Call<'_, BridgeConf>) -> Result<Self, Error> {
        let conf = &call.conf;
        interface_name("bridge", &conf.bridge)?;
        let layer3 = call.net.ipam_type().is_some();
        if layer3 && conf.disable_container_interface {
            return Err(Error::config(
                "disableContainerInterface is set, so there can be no addresses: remove ipam or disableContainerInterface",
            ));
        }
        if conf.hairpin_mode && conf.promisc_mode {
            return Err(Error::config("hairpinMode and promiscMode exclude each other: set one of them to false"));
        }
        Ok(Self {
            layer3,
            is_gateway: conf.is_gateway || conf.is_default_gateway,
            mtu: (conf.mtu != 0).then_some(conf.mtu),
            mac: requested_mac(call)?,
            vlans: Vlans::new(conf.vlan, conf.vlan_trunk.as_deref(), conf.preserve_default_vlan)
                .map_err(Error::config)?,
        })
    }
}

const DOC: Documentation = Documentation {
    add: "Makes the bridge if it is absent (with a MAC address of its own, up, `accept_ra` 0) and a veth pair: one end is \
          `CNI_IFNAME` in the container, the other a port of the bridge named `veth` and 8 hexadecimal digits, whose alias \
          is `cni:<network>/<container id>/<interface>`. With `ipam`: asks it for addresses, puts them and its routes on \
          the container's interface, waits until IPv6 addresses are usable, gives the bridge the gateways' addresses \
          (`isGateway`) and turns on forwarding. With `vlan` the gateways' addresses are on `<bridge>.<vlan>`, one end of \
          another pair. Waits until the port forwards. Rules come last. The result has the bridge, the host's end and \
          the container's interface, in this order. If a step fails, the pair is removed and the addresses are given back; \
          the bridge stays.",
    del: "Removes the pair, by the container's interface or, without a network namespace, by the alias of the host's end; \
          then removes the rules and gives the addresses back. The bridge stays. Succeeds when nothing is there.",
    check: "Looks whether the bridge, the pair and the port are there with the MAC addresses of the previous result, and \
            the addresses and routes; asks `ipam`. What others added is fine.",
    gc: "Removes pairs of this network by their alias, and rules by their comments, where the attachment is not valid; \
         asks `ipam` to do the same.",
    status: "Not ready if the keys contradict each other, if the bridge's name belongs to a link of another kind, or if \
             `ipam` is not ready.",
    capabilities: &[(
        "mac",
        "MAC address of the container's interface. `args.cni.mac` and `MAC` in `CNI_ARGS` do the same.",
    )],
    args: &[("MAC", "MAC address of the container's interface.")],
    example: r#"{
    "cniVersion": "1.1.0",
    "name": "mynet",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipMasq": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.88.0.0/16" }]],
                "routes": [{ "dst": "0.0.0.0/0" }]
            }
        }
    ]
}"#,
};
