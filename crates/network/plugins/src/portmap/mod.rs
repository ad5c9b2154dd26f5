//! `portmap`: ports of the host that lead to a container.

mod conditions;
mod iptables;
mod localnet;
mod nftables;

use std::net::IpAddr;

use ipnet::IpNet;
use outrigger_cni_sdk::{AddResult, Attachment, Call, Code, Documentation, Error, Plugin, Step as _, conf};
use outrigger_netlink::conntrack;
use outrigger_netlink::nft::Handle;

use crate::Session;
use crate::rules::legacy::{self, Doomed, Table};
use crate::rules::{Backend, Owner, RuleView, iptables as xt};
use conditions::Conditions;

conf! {
    /// Maps ports of the host to a container.
    pub struct PortmapConf {
        /// `iptables` or `nftables`: which layout the rules have; `iptables` if not given, unless the kernel lacks its matches.
        pub backend: Option<String>,
        /// Masquerade connections that would otherwise bypass the host on their way back: from the container itself, its
        /// network, and from 127.0.0.1.
        pub snat: bool = true,
        /// Masquerade all mapped connections.
        pub masq_all: bool,
        /// Bit of the packet mark that stands for "masquerade", 0 to 31; 13 if not given.
        pub mark_masq_bit: Option<i64>,
        /// Chain of table `nat` that marks packets to be masqueraded, made by others, for instance `KUBE-MARK-MASQ`; not
        /// together with `markMasqBit`, and with `iptables` only.
        pub external_set_mark_chain: Option<String>,
        /// Conditions under which IPv4 ports are mapped, in the syntax of the back end. They are read here, not by the
        /// tools; what is not listed makes ADD and STATUS fail (7). `iptables`: `-s`, `-d`, `-i`, `-o`, and the modules
        /// `addrtype` (`--src-type`, `--dst-type`), `comment`, `conntrack` (`--ctstate`), `state`, `mark`, `multiport`,
        /// `iprange`, `tcp` and `udp` (`--sport`, `--dport`), inverted by `!`. So not `-m set`, `-m physdev`,
        /// `--tcp-flags`. `nftables`: `ip` or `ip6` `saddr` and `daddr`, `iifname`, `oifname`, `mark`, and `sport` and
        /// `dport` of `tcp`, `udp`, `sctp` or `th`, inverted by `!=`.
        pub conditions_v4: Vec<String>,
        /// Conditions under which IPv6 ports are mapped, likewise.
        pub conditions_v6: Vec<String>,
    }
}

conf! {
    /// One port of the host.
    pub struct PortMapping {
        /// The port on the host.
        pub host_port: i64,
        /// The port in the container.
        pub container_port: i64,
        /// `tcp`, `udp` or `sctp`.
        pub protocol: String,
        /// Only this address of the host; all if empty or 0.0.0.0 or ::.
        #[key = "hostIP"]
        pub host_ip: String,
    }
}

/// A mapping, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapping {
    protocol: u8,
    host_port: u16,
    container_port: u16,
    host_ip: Option<IpAddr>,
}

impl Mapping {
    /// The host's address that is to be matched; `Err` if the mapping is not for this IP version.
    fn host_address(&self, v6: bool) -> Result<Option<IpAddr>, ()> {
        match self.host_ip {
            Some(address) if address.is_ipv6() != v6 => Err(()),
            Some(address) if address.is_unspecified() => Ok(None),
            other => Ok(other),
        }
    }
}

/// What ADD and CHECK work with.
#[derive(Debug, Clone)]
struct Plan {
    network: String,
    container_id: String,
    ifname: String,
    mappings: Vec<Mapping>,
    snat: bool,
    masq_all: bool,
    mark_bit: u8,
    external_chain: Option<String>,
    conditions: [Conditions; 2],
}

impl Plan {
    fn owner(&self) -> Owner<'_> {
        Owner { network: &self.network, container_id: &self.container_id, ifname: &self.ifname }
    }

    fn mark(&self) -> u32 {
        1 << self.mark_bit
    }
}

/// The plugin.
pub struct Portmap<'s>(pub &'s Session);

impl Plugin for Portmap<'_> {
    type Conf = PortmapConf;
    const ABOUT: &'static str = "CNI portmap plugin: ports of the host that lead to a container";
    const DOC: Documentation = Documentation {
        add: "makes rules for the ports that the runtime passes as capability `portMappings`; without any it does nothing. \
              `iptables`: chain `CNI-HOSTPORT-DNAT`, to which `PREROUTING` and `OUTPUT` of table `nat` lead, and a chain \
              `CNI-DN-…` for the container. `nftables`: maps in table `inet outrigger_cni`. With `snat` it sets \
              `route_localnet` on the interface to the container, so that 127.0.0.1 reaches IPv4 mappings. Tracked UDP \
              connections to the ports are forgotten. In `nftables`, a port that another container has is an error (11).",
        del: "removes the rules of the container's interface in both layouts, also those that other versions or the \
              original made; needs neither its namespace, nor `prevResult`, nor the mappings. Rules of the container's \
              other interfaces in this network stay. What the original made through iptables-legacy goes as well, by the \
              tools of iptables-legacy, started only where the kernel has its tables.",
        check: "all rules of the container must be there, in either layout, or as the original makes them through \
                iptables-legacy.",
        gc: "removes the rules of attachments of this network that are not in the list, by their comments and marks.",
        status: "not ready (50) if the kernel takes no rules.",
        capabilities: &[("portMappings", "list of `{hostPort, containerPort, protocol, hostIP}`: what is mapped")],
        args: &[],
        example: r#"{
  "cniVersion": "1.1.0",
  "name": "pods",
  "plugins": [
    { "type": "bridge", "isGateway": true, "ipMasq": true, "ipam": { "type": "host-local", "subnet": "10.22.0.0/16" } },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}"#,
    };

    fn add(&self, call: &Call<'_, PortmapConf>) -> Result<AddResult, Error> {
        let prev = call.prev()?;
        let mappings = mappings(call)?;
        let (backend, plan) = plan(self.0, call, mappings)?;
        if plan.mappings.is_empty() {
            return Ok(prev.clone());
        }
        let addresses = container_addresses(prev, call.ifname);
        for net in &addresses {
            let (plan, net) = (plan.clone(), *net);
            self.0.rules().plan(move |view| match backend {
                Backend::Iptables => iptables::add(view, &plan, net),
                Backend::Nftables => nftables::add(view, &plan, net),
            });
        }
        let (ports, versions) =
            (udp_ports(&plan), addresses.iter().map(|net| net.addr().is_ipv6()).collect::<Vec<_>>());
        if !ports.is_empty() {
            self.0.rules().afterwards(move |_| {
                forget_connections(&ports, &versions);
                Ok(())
            });
        }
        self.0.commit_rules()?;
        if plan.snat {
            for net in addresses.iter().filter(|net| net.addr().is_ipv4()) {
                localnet::enable(net.addr())?;
            }
        }
        Ok(prev.clone())
    }

    fn del(&self, call: &Call<'_, PortmapConf>) -> Result<(), Error> {
        // Whatever the configuration says, or does not say any more: rules are found by network and container. The
        // mappings only make it faster, so wrong ones do not matter.
        let mappings = mappings(call).unwrap_or_default();
        let (network, id, ifname) = (call.net.name.clone(), call.container_id.to_owned(), call.ifname.to_owned());
        let addresses: Vec<IpNet> =
            call.net.prev_result.as_ref().map_or_else(Vec::new, |prev| container_addresses(prev, call.ifname));
        let legacy = iptables::chains(&network, &id).map(|(_, chain)| chain);
        self.0.rules().afterwards(move |_| {
            let is_doomed = |_: &Table, chain: &str| legacy.iter().any(|doomed| doomed == chain);
            legacy::remove("nat", &Doomed { chains: &is_doomed, lines: &|_| false })
        });
        self.0.rules().plan(move |view| {
            let owner = Owner { network: &network, container_id: &id, ifname: &ifname };
            iptables::del(view, owner)?;
            nftables::del(view, owner, &mappings, &addresses)
        });
        self.0.commit_rules()
    }

    fn check(&self, call: &Call<'_, PortmapConf>) -> Result<(), Error> {
        let prev = call.prev()?;
        let (backend, plan) = plan(self.0, call, mappings(call)?)?;
        if plan.mappings.is_empty() {
            return Ok(());
        }
        let handle = self.0.nft()?;
        let mut view = RuleView::new(handle);
        for net in container_addresses(prev, call.ifname) {
            let mut layout = |backend| match backend {
                Backend::Iptables => iptables::check(&mut view, &plan, net),
                Backend::Nftables => nftables::check(&mut view, &plan, net),
            };
            // The container may be older than the choice of the back end.
            if let Err(error) = layout(backend)
                && layout(backend.other()).is_err()
                && !iptables::is_in_legacy(&plan, net)?
            {
                return Err(error);
            }
        }
        Ok(())
    }

    fn gc(&self, call: &Call<'_, PortmapConf>, valid: &[Attachment]) -> Result<(), Error> {
        iptables::gc(self.0.rules(), &call.net.name, valid);
        nftables::gc(self.0.rules(), &call.net.name, valid);
        self.0.commit_rules()
    }

    fn status(&self, call: &Call<'_, PortmapConf>) -> Result<(), Error> {
        is_available(self.0.nft())?;
        settings(self.0, call).map(drop)
    }
}

/// Whether the kernel takes rules at all.
pub(crate) fn is_available(handle: Result<&Handle, Error>) -> Result<(), Error> {
    let answer = handle.and_then(|handle| handle.generation().step("ask nf_tables for its state"));
    answer.map(drop).map_err(|error| {
        let error = error.during("the kernel takes no packet filter rules: load the module nf_tables");
        Error { code: Code::NotAvailable, ..error }
    })
}

/// The keys that do not depend on the container.
fn settings(session: &Session, call: &Call<'_, PortmapConf>) -> Result<(Backend, u8, [Conditions; 2]), Error> {
    const DEFAULT_MARK_BIT: u8 = 13;
    let conf = &call.conf;
    let backend = match Backend::parse(conf.backend.as_deref(), "backend")? {
        Some(backend) => backend,
        None => RuleView::new(session.nft()?).default_backend(),
    };
    if conf.mark_masq_bit.is_some() && conf.external_set_mark_chain.is_some() {
        return Err(Error::config("externalSetMarkChain and markMasqBit exclude each other: give only one of them"));
    }
    let bit = match conf.mark_masq_bit {
        None => DEFAULT_MARK_BIT,
        Some(bit) => u8::try_from(bit)
            .ok()
            .filter(|bit| *bit < 32)
            .ok_or_else(|| Error::config(format!("markMasqBit: {bit} is not between 0 and 31")))?,
    };
    if backend == Backend::Nftables && conf.external_set_mark_chain.is_some() {
        return Err(Error::config(
            "externalSetMarkChain is for backend iptables only: remove it, or set backend to iptables",
        ));
    }
    let v4 = Conditions::parse(backend, false, &conf.conditions_v4).map_err(|error| error.during("conditionsV4"))?;
    let v6 = Conditions::parse(backend, true, &conf.conditions_v6).map_err(|error| error.during("conditionsV6"))?;
    Ok((backend, bit, [v4, v6]))
}

fn plan(session: &Session, call: &Call<'_, PortmapConf>, mappings: Vec<Mapping>) -> Result<(Backend, Plan), Error> {
    let (backend, mark_bit, conditions) = settings(session, call)?;
    let plan = Plan {
        network: call.net.name.clone(),
        container_id: call.container_id.to_owned(),
        ifname: call.ifname.to_owned(),
        mappings,
        snat: call.conf.snat,
        masq_all: call.conf.masq_all,
        mark_bit,
        external_chain: call.conf.external_set_mark_chain.clone(),
        conditions,
    };
    Ok((backend, plan))
}

fn mappings(call: &Call<'_, PortmapConf>) -> Result<Vec<Mapping>, Error> {
    let mappings = call.runtime::<Vec<PortMapping>>("portMappings")?.unwrap_or_default();
    mappings
        .iter()
        .enumerate()
        .map(|(index, mapping)| {
            mapping_of(mapping).map_err(|what| Error::config(format!("runtimeConfig.portMappings[{index}]: {what}")))
        })
        .collect()
}

fn mapping_of(mapping: &PortMapping) -> Result<Mapping, String> {
    let port = |name: &str, port: i64| {
        u16::try_from(port)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("{name}: {port} is not a port (1 to 65535)"))
    };
    let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
        "tcp" => xt::TCP,
        "udp" => xt::UDP,
        "sctp" => xt::SCTP,
        _ => return Err(format!("protocol: {:?} cannot be mapped: use tcp, udp or sctp", mapping.protocol)),
    };
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| format!("hostIP: {text:?} is not an IP address"))?),
    };
    Ok(Mapping {
        protocol,
        host_port: port("hostPort", mapping.host_port)?,
        container_port: port("containerPort", mapping.container_port)?,
        host_ip,
    })
}

/// The container's first address of each version, as far as it is on the attachment's interface.
fn container_addresses(prev: &AddResult, ifname: &str) -> Vec<IpNet> {
    let mut found: Vec<IpNet> = Vec::new();
    for ip in &prev.ips {
        let elsewhere =
            prev.interface_of(ip).is_some_and(|interface| interface.name != ifname || interface.sandbox.is_empty());
        if !elsewhere && !found.iter().any(|net| net.addr().is_ipv4() == ip.address.addr().is_ipv4()) {
            found.push(ip.address);
        }
    }
    found.sort_by_key(|net| net.addr().is_ipv6());
    found
}

fn udp_ports(plan: &Plan) -> Vec<u16> {
    let udp = |mapping: &&Mapping| mapping.protocol == xt::UDP;
    plan.mappings.iter().filter(udp).map(|mapping| mapping.host_port).collect()
}

/// Connections without a handshake go on for as long as they are used: those of a former mapping must be forgotten. A
/// failure does not matter enough to undo the mapping.
fn forget_connections(ports: &[u16], versions: &[bool]) {
    let Ok(handle) = conntrack::Handle::open() else { return };
    for v6 in versions {
        let _ = handle.delete_by_destination_port(*v6, conntrack::UDP, ports);
    }
}

#[cfg(test)]
mod tests {
    use outrigger_cni_sdk::{Interface, IpConfig};

    use super::*;

    #[test]
    fn mappings_are_checked() {
        let mapping = |protocol: &str, host_port, container_port, host_ip: &str| PortMapping {
            host_port,
            container_port,
            protocol: protocol.into(),
            host_ip: host_ip.into(),
        };
        let good = mapping_of(&mapping("TCP", 8080, 80, "")).unwrap();
        assert_eq!(good, Mapping { protocol: 6, host_port: 8080, container_port: 80, host_ip: None });
        for (bad, word) in [
            (mapping("icmp", 1, 1, ""), "protocol"),
            (mapping("tcp", 0, 1, ""), "hostPort"),
            (mapping("tcp", 1, 65536, ""), "containerPort"),
            (mapping("tcp", -1, 1, ""), "hostPort"),
            (mapping("tcp", 1, 1, "x"), "hostIP"),
        ] {
            assert!(mapping_of(&bad).unwrap_err().starts_with(word));
        }
        let bound = mapping_of(&mapping("udp", 53, 53, "::")).unwrap();
        assert_eq!((bound.host_address(true), bound.host_address(false)), (Ok(None), Err(())));
    }

    #[test]
    fn addresses_of_the_attachment_only() {
        let mut prev = AddResult::default();
        for (name, sandbox) in [("br0", ""), ("eth0", "/x"), ("eth1", "/x")] {
            prev.push_interface(Interface::new(name, "", sandbox));
        }
        for (address, interface) in
            [("10.0.0.1/24", 0), ("10.0.2.5/24", 2), ("fd00::5/64", 1), ("10.0.1.5/24", 1), ("10.0.1.6/24", 1)]
        {
            prev.ips.push(IpConfig { interface: Some(interface), ..IpConfig::new(address.parse().unwrap()) });
        }
        let found: Vec<_> = container_addresses(&prev, "eth0").iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.1.5/24", "fd00::5/64"]);
    }
}
