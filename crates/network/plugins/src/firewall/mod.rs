//! `firewall`: forwarded packets of a container are let through, and networks are kept apart.

mod iptables;
mod memory;
mod nftables;

use std::net::IpAddr;
use std::ops::RangeInclusive;

use outrigger_cni_sdk::{AddResult, Attachment, Call, Code, Documentation, Error, Plugin, Version, conf, conf_enum};

use crate::Session;
use crate::portmap::is_available;
use crate::rules::{Backend, Kept, Owner, RuleView, Saved};

conf_enum! {
    /// Which way the rules are made.
    pub enum FirewallBackend {
        /// In the chains of table `filter` that iptables shows.
        #[default]
        Iptables = "iptables",
        /// In the own table `inet outrigger_cni`.
        Nftables = "nftables",
        /// Through firewalld; not supported.
        Firewalld = "firewalld",
    }
}

conf_enum! {
    /// Who may open connections to a container.
    pub enum IngressPolicy {
        /// Everyone.
        #[default]
        Open = "open",
        /// Not those on other bridges with a policy.
        SameBridge = "same-bridge",
        /// Not those on other bridges with a policy, nor those on the same one.
        Isolated = "isolated",
    }
}

conf! {
    /// Lets forwarded packets of a container through where the host's policy is to drop them, and keeps networks apart.
    pub struct FirewallConf {
        /// How the rules are made; `iptables` if not given, unless the kernel lacks its matches. `firewalld` is refused.
        pub backend: Option<FirewallBackend>,
        /// Chain for rules of the administrator, which come before those of containers; `CNI-ADMIN` if empty.
        pub iptables_admin_chain_name: String,
        /// Zone of firewalld; read for compatibility, and not used.
        pub firewalld_zone: String,
        /// Who may open connections to a container, as far as it is on a bridge.
        pub ingress_policy: IngressPolicy,
    }
}

/// What ADD and CHECK work with.
#[derive(Debug, Clone)]
struct Plan {
    owner: Saved,
    addresses: Vec<IpAddr>,
    admin_chain: String,
    /// The bridge, and whether containers on it are kept apart from each other too.
    isolation: Option<(String, bool)>,
}

impl Plan {
    fn of_version(&self, v6: bool) -> Vec<IpAddr> {
        self.addresses.iter().copied().filter(|address| address.is_ipv6() == v6).collect()
    }
}

/// The plugin.
pub struct Firewall<'s>(pub &'s Session);

impl Plugin for Firewall<'_> {
    type Conf = FirewallConf;
    const ABOUT: &'static str = "CNI firewall plugin: lets packets of containers through, and keeps networks apart";
    const VERSIONS: RangeInclusive<Version> = Version::V0_4_0..=Version::NEWEST;
    const DOC: Documentation = Documentation {
        add: "lets forwarded packets from the container's addresses through, and answers to them. `iptables`: chain \
              `CNI-FORWARD`, which is first in `FORWARD` of table `filter`, and before its rules the administrator's chain. \
              `nftables`: chain `forward` of table `inet outrigger_cni`; it cannot let through what the chain of another \
              table drops. With an `ingressPolicy`, packets from one bridge with a policy to another are dropped.",
        del: "removes the rules of the container's addresses, and those that are known to be the container's; needs neither \
              its namespace nor `prevResult`. Rules that keep networks apart stay for the other containers of the network. What the \
              original made for the addresses of `prevResult` through iptables-legacy goes as well, by the tools of \
              iptables-legacy, started only where the kernel has its tables.",
        check: "all rules that ADD makes must be there, in either layout, or as the original makes them through \
                iptables-legacy.",
        gc: "removes the rules of containers that are not in the list. When the list is empty and no port is left on the \
             bridge, it removes the rules that keep the network apart.",
        status: "not ready (50) if the kernel takes no rules, or if `backend` is `firewalld`.",
        capabilities: &[],
        args: &[],
        example: r#"{
  "cniVersion": "1.1.0",
  "name": "pods",
  "plugins": [
    { "type": "bridge", "isGateway": true, "ipam": { "type": "host-local", "subnet": "10.22.0.0/16" } },
    { "type": "firewall", "ingressPolicy": "same-bridge" }
  ]
}"#,
    };

    fn add(&self, call: &Call<'_, FirewallConf>) -> Result<AddResult, Error> {
        let prev = call.prev()?;
        let plan = plan(call, prev)?;
        let backend = usable(self.0, call.conf.backend)?;
        if matches!(backend, Backend::Iptables) {
            let key = plan.owner.borrow().key();
            self.0.rules().afterwards(move |made| {
                memory::remember(&key, made);
                Ok(())
            });
        }
        self.0.rules().plan(move |view| match backend {
            Backend::Iptables => iptables::add(view, &plan),
            Backend::Nftables => nftables::add(view, &plan),
        });
        self.0.commit_rules()?;
        Ok(prev.clone())
    }

    fn del(&self, call: &Call<'_, FirewallConf>) -> Result<(), Error> {
        let owner = Saved::new(owner(call));
        let addresses = call.net.prev_result.as_ref().map(addresses).unwrap_or_default();
        let key = owner.borrow().key();
        self.0.rules().afterwards({
            let addresses = addresses.clone();
            move |_| {
                memory::forget(&key);
                iptables::del_legacy(&addresses)
            }
        });
        self.0.rules().plan(move |view| {
            iptables::del(view, owner.borrow(), &addresses)?;
            nftables::del(view, owner.borrow(), &addresses)
        });
        self.0.commit_rules()
    }

    fn check(&self, call: &Call<'_, FirewallConf>) -> Result<(), Error> {
        let plan = plan(call, call.prev()?)?;
        let mut view = RuleView::new(self.0.nft()?);
        let mut layout = |backend| match backend {
            Backend::Iptables => iptables::check(&mut view, &plan),
            Backend::Nftables => nftables::check(&mut view, &plan),
        };
        let backend = usable(self.0, call.conf.backend)?;
        // The container may be older than the choice of the back end.
        match layout(backend) {
            Err(error) if layout(backend.other()).is_err() && !iptables::is_in_legacy(&plan)? => Err(error),
            _ => Ok(()),
        }
    }

    fn gc(&self, call: &Call<'_, FirewallConf>, valid: &[Attachment]) -> Result<(), Error> {
        let network = &call.net.name;
        // A bridge that is gone, or has no ports, has no containers that rules could keep apart.
        let mut unused = Vec::new();
        if valid.is_empty() {
            let links = self.0.host()?.links().map_err(|error| Error::internal(error.to_string()))?;
            let mut view = RuleView::new(self.0.nft()?);
            let mut bridges = iptables::isolated_bridges(&mut view, network)?;
            bridges.extend(nftables::isolated_bridges(&mut view, network)?);
            for bridge in bridges {
                let index = links.iter().find(|link| link.name == bridge).map(|link| link.index);
                if index.is_none_or(|index| !links.iter().any(|link| link.master == Some(index))) {
                    unused.push(bridge);
                }
            }
        }
        iptables::gc(self.0.rules(), network, valid, unused.clone());
        nftables::gc(self.0.rules(), network, valid, unused);
        let (network, valid) = Kept::new(network, valid).into_owned();
        self.0.rules().afterwards(move |_| {
            let kept = Kept::new(&network, &valid);
            memory::forget_those(|key| kept.is_stale(key));
            Ok(())
        });
        self.0.commit_rules()
    }

    fn status(&self, call: &Call<'_, FirewallConf>) -> Result<(), Error> {
        is_available(self.0.nft())?;
        usable(self.0, call.conf.backend).map(drop)
    }
}

fn usable(session: &Session, backend: Option<FirewallBackend>) -> Result<Backend, Error> {
    match backend {
        None => Ok(RuleView::new(session.nft()?).default_backend()),
        Some(FirewallBackend::Iptables) => Ok(Backend::Iptables),
        Some(FirewallBackend::Nftables) => Ok(Backend::Nftables),
        Some(FirewallBackend::Firewalld) => {
            let state = if std::fs::exists("/run/dbus/system_bus_socket").unwrap_or_default() {
                "firewalld is not asked over D-Bus by this plugin"
            } else {
                "firewalld cannot be running, since there is no D-Bus"
            };
            Err(Error::new(
                Code::NotAvailable,
                format!(
                    "backend firewalld is not supported: use iptables or nftables, or the original plugin ({state})"
                ),
            ))
        }
    }
}

fn owner<'a>(call: &Call<'a, FirewallConf>) -> Owner<'a> {
    Owner { network: &call.net.name, container_id: call.container_id, ifname: call.ifname }
}

fn addresses(result: &AddResult) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.address.addr()).collect()
}

fn plan(call: &Call<'_, FirewallConf>, prev: &AddResult) -> Result<Plan, Error> {
    let isolation = match call.conf.ingress_policy {
        IngressPolicy::Open => None,
        policy => {
            let bridge = prev.interfaces.first().map(|interface| interface.name.clone()).unwrap_or_default();
            if bridge.is_empty() {
                return Err(Error::config(format!(
                    "ingressPolicy {}: prevResult names no bridge: put firewall behind bridge in the list",
                    policy.as_str()
                )));
            }
            Some((bridge, policy == IngressPolicy::Isolated))
        }
    };
    let admin_chain = match call.conf.iptables_admin_chain_name.as_str() {
        "" => "CNI-ADMIN".to_owned(),
        name => name.to_owned(),
    };
    // The limit of iptables; nf_tables as such would take more.
    if admin_chain.len() > 28 || admin_chain.starts_with(['-', '!']) || admin_chain.contains(char::is_whitespace) {
        return Err(Error::config(format!(
            "iptablesAdminChainName: {admin_chain:?} is not a name of a chain: use up to 28 characters without spaces"
        )));
    }
    Ok(Plan { owner: Saved::new(owner(call)), addresses: addresses(prev), admin_chain, isolation })
}
