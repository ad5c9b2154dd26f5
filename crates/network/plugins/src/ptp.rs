//! `ptp`: each container on a link of its own to the host, which routes.

use std::net::IpAddr;

use ipnet::IpNet;
use outrigger_cni_sdk::{AddResult, Attachment, Call, Documentation, Error, Interface, Plugin, Step as _, conf};
use outrigger_netlink::route::{Handle, Link, Route, Scope};

use crate::attach::sysctl::{self, Settings};
use crate::attach::undo::Undo;
use crate::attach::{configure, configured_dns, mac_text, mark, previous_ips, teardown, verify, veth};
use crate::rules::masquerade;
use crate::session::{Container, Session};

conf! {
    /// Connects a container to the host by a veth pair without a bridge: the host's end has the gateway's address, and all
    /// traffic goes through the host.
    pub struct PtpConf {
        /// Masquerade what containers send to other networks.
        pub ip_masq: bool,
        /// How to masquerade: `iptables` or `nftables`.
        pub ip_masq_backend: Option<String>,
        /// MTU of both ends; 0 leaves it to the kernel.
        pub mtu: u32,
    }
}

/// The plugin.
pub struct Ptp<'s>(pub &'s Session);

/// Where the container's interface is in the result, after the host's end.
const CONTAINER_INDEX: i64 = 1;

impl Plugin for Ptp<'_> {
    type Conf = PtpConf;
    const ABOUT: &'static str = "ptp";
    const DOC: Documentation = DOC;

    fn add(&self, call: &Call<'_, PtpConf>) -> Result<AddResult, Error> {
        let conf = &call.conf;
        let netns = call.netns()?;
        let host = self.0.host()?;
        let container = self.0.container(netns)?;
        let mark = mark(call);
        // Dropped after the link is gone: an address must not be given to another while it is in use. And asked for after the
        // link is made: that fails if the attachment exists, whose address must not be given back.
        let lease;
        let mut undo = Undo::default();
        let pair = veth::create(
            host,
            &container,
            &veth::Wanted {
                ifname: call.ifname,
                mtu: (conf.mtu != 0).then_some(conf.mtu),
                mac: None,
                master: None,
                alias: mark.alias().as_deref(),
            },
        )?;
        let index = pair.host.index;
        undo.push(move || drop(host.delete_link(index)));

        lease = call.ipam().add()?;
        let mut result = lease.result.clone();
        let mut addresses = Vec::new();
        for ip in &mut result.ips {
            ip.interface = Some(CONTAINER_INDEX);
            let gateway = ip.gateway.ok_or_else(|| {
                Error::config(format!("ipam gives {} without a gateway, which ptp needs: add one to ipam", ip.address))
            })?;
            addresses.push((ip.address, gateway));
        }
        sysctl::enable_forwarding(addresses.iter().map(|(net, _)| net.addr())).step("turn on IP forwarding")?;
        route_to_container(host, &pair.host, &addresses)?;
        configure::configure(&container, &pair.container, &result, CONTAINER_INDEX, &Settings::default())?;
        route_through_gateway(&container, &pair.container, &addresses)?;
        if conf.ip_masq {
            masquerade::add(self.0.rules(), conf.ip_masq_backend.as_deref(), mark.into(), &result.ips)?;
        }
        self.0.commit_rules()?;

        result.interfaces = vec![
            Interface::new(&pair.host.name, mac_text(&pair.host), ""),
            Interface::new(call.ifname, mac_text(&pair.container), netns.to_string_lossy()),
        ];
        if let Some(dns) = configured_dns(call) {
            result.dns = dns;
        }
        undo.keep();
        lease.keep();
        Ok(result)
    }

    fn del(&self, call: &Call<'_, PtpConf>) -> Result<(), Error> {
        teardown::del(self.0, call, || {
            if self.0.may_have_rules(call.conf.ip_masq) {
                masquerade::del(self.0.rules(), mark(call).into(), previous_ips(call));
            }
        })
    }

    fn check(&self, call: &Call<'_, PtpConf>) -> Result<(), Error> {
        call.ipam().check()?;
        let previous = call.prev()?;
        let own = verify::own_interface(call, previous)?;
        let container = self.0.container(call.netns()?)?;
        let link = verify::veth(&container.route, own)?;
        verify::addresses_and_routes(&container.route, &link, previous)?;
        if call.conf.ip_masq {
            let backend = call.conf.ip_masq_backend.as_deref();
            masquerade::check(self.0.nft()?, backend, mark(call).into(), &previous.ips)?;
        }
        Ok(())
    }

    fn gc(&self, call: &Call<'_, PtpConf>, valid: &[Attachment]) -> Result<(), Error> {
        teardown::gc(self.0, call, valid, || {
            if self.0.may_have_rules(call.conf.ip_masq) {
                masquerade::gc(self.0.rules(), &call.net.name, valid);
            }
        })
    }

    fn status(&self, call: &Call<'_, PtpConf>) -> Result<(), Error> {
        call.ipam().status()
    }
}

/// In the container: everything of an address's network goes by the gateway, which is on the link itself. The kernel made
/// a route to the network when the address was added, as if the neighbours were on the link.
fn route_through_gateway(container: &Container, link: &Link, addresses: &[(IpNet, IpAddr)]) -> Result<(), Error> {
    let mut batch = container.route.batch();
    // Several addresses may be of one network, or have the same gateway: the routes of the first will do.
    let (mut networks, mut gateways) = (Vec::new(), Vec::new());
    for (address, gateway) in addresses {
        let source = Some(address.addr());
        let to = |dst| Route { dst: Some(dst), oif: Some(link.index), source, ..Route::default() };
        let network = address.trunc();
        let is_new = !networks.contains(&network);
        if is_new && address.prefix_len() < address.max_prefix_len() {
            batch.delete_route(&Route { source: None, ..to(network) });
        }
        if !gateways.contains(gateway) {
            batch.add_route(&Route { scope: Scope::LINK, ..to(IpNet::from(*gateway)) });
            gateways.push(*gateway);
        }
        if is_new && network != IpNet::from(*gateway) {
            batch.add_route(&Route { gateway: Some(*gateway), ..to(network) });
        }
        networks.push(network);
    }
    batch.commit().step(format_args!("route {} by its gateway in the container", link.name))
}

/// On the host: the gateway's address, and a route to the container.
fn route_to_container(host: &Handle, link: &Link, addresses: &[(IpNet, IpAddr)]) -> Result<(), Error> {
    let mut batch = host.batch();
    for (address, gateway) in addresses {
        batch.add_address(link.index, &IpNet::from(*gateway).into());
        batch.add_route(&Route {
            dst: Some(IpNet::from(address.addr())),
            oif: Some(link.index),
            scope: Scope::HOST,
            ..Route::default()
        });
    }
    let outcomes = batch.commit_each().and_then(|outcomes| {
        // Several addresses may have the same gateway.
        outcomes.into_iter().find(|outcome| outcome.as_ref().is_err_and(|error| !error.is_exists())).unwrap_or(Ok(()))
    });
    outcomes.step(format_args!("route to the container by {}", link.name))
}

const DOC: Documentation = Documentation {
    add: "Makes a veth pair: one end is `CNI_IFNAME` in the container, the other stays on the host, named `veth` and 8 \
          hexadecimal digits, with the alias `cni:<network>/<container id>/<interface>`. Asks `ipam` for addresses, each \
          of which needs a gateway, and turns on forwarding. The host's end gets the gateways as single addresses and a route to each \
          address of the container. In the container the gateway is on the link, and its network is reached by it. The \
          result has the host's end and the container's interface. If a step fails, the pair is removed and the addresses \
          are given back.",
    del: "Removes the pair, by the container's interface or, without a network namespace, by the alias of the host's end; \
          then removes the rules and gives the addresses back. Succeeds when nothing is there.",
    check: "Looks whether the container's interface is there with the MAC address, the addresses and the routes of the \
            previous result; asks `ipam`.",
    gc: "Removes pairs of this network by their alias, and rules by their comments, where the attachment is not valid; \
         asks `ipam` to do the same.",
    status: "Asks `ipam`.",
    capabilities: &[],
    args: &[],
    example: r#"{
    "cniVersion": "1.1.0",
    "name": "mynet",
    "plugins": [
        {
            "type": "ptp",
            "ipMasq": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.1.1.0/24" }]],
                "routes": [{ "dst": "0.0.0.0/0" }]
            }
        }
    ]
}"#,
};
