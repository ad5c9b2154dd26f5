//! The file that flannel's daemon writes for the plugin: what of the cluster's network belongs to this node.

use std::net::IpAddr;

use ipnet::IpNet;

/// Contents of `subnet.env`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SubnetEnv {
    /// The cluster's networks, IPv4 first.
    pub networks: Vec<IpNet>,
    /// This node's subnets, IPv4 first; the address is the gateway's.
    pub subnets: Vec<IpNet>,
    /// MTU of the fabric.
    pub mtu: u32,
    /// The daemon masquerades; the bridge need not.
    pub masquerades: bool,
}

impl SubnetEnv {
    /// Reads the `KEY=value` lines. The error says which line or key is wrong; unknown keys are ignored.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let (mut subnet4, mut subnet6, mut mtu, mut masquerades) = (None, None, None, None);
        for line in text.lines() {
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.trim();
            let bad = |what: &str| format!("{key}={value} is not {what}");
            match key.trim() {
                "FLANNEL_NETWORK" => v4 = networks(value, true).ok_or_else(|| bad("a list of IPv4 networks"))?,
                "FLANNEL_IPV6_NETWORK" => v6 = networks(value, false).ok_or_else(|| bad("a list of IPv6 networks"))?,
                "FLANNEL_SUBNET" => subnet4 = Some(network(value, true).ok_or_else(|| bad("an IPv4 network"))?),
                "FLANNEL_IPV6_SUBNET" => subnet6 = Some(network(value, false).ok_or_else(|| bad("an IPv6 network"))?),
                "FLANNEL_MTU" => mtu = Some(value.parse().map_err(|_| bad("a number"))?),
                "FLANNEL_IPMASQ" => masquerades = Some(value == "true"),
                _ => {}
            }
        }
        let mut missing = Vec::new();
        if v4.is_empty() && v6.is_empty() {
            missing.push("FLANNEL_NETWORK or FLANNEL_IPV6_NETWORK");
        }
        if subnet4.is_none() && subnet6.is_none() {
            missing.push("FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET");
        }
        match (mtu, masquerades) {
            (Some(mtu), Some(masquerades)) if missing.is_empty() => Ok(Self {
                networks: v4.into_iter().chain(v6).collect(),
                subnets: subnet4.into_iter().chain(subnet6).collect(),
                mtu,
                masquerades,
            }),
            _ => {
                missing.extend(mtu.is_none().then_some("FLANNEL_MTU"));
                missing.extend(masquerades.is_none().then_some("FLANNEL_IPMASQ"));
                Err(format!("it lacks {}", missing.join(", ")))
            }
        }
    }
}

fn networks(list: &str, v4: bool) -> Option<Vec<IpNet>> {
    // The daemon writes networks without host bits; the original drops such bits if there are any, and doubles.
    let mut found: Vec<IpNet> = Vec::new();
    for item in list.split(',') {
        let net = network(item.trim(), v4)?.trunc();
        if !found.contains(&net) {
            found.push(net);
        }
    }
    Some(found)
}

fn network(text: &str, v4: bool) -> Option<IpNet> {
    let net: IpNet = text.parse().ok()?;
    (matches!(net.addr(), IpAddr::V4(_)) == v4).then_some(net)
}

#[cfg(test)]
mod tests {
    use super::SubnetEnv;

    #[test]
    fn both_families() {
        let env = SubnetEnv::parse(
            "FLANNEL_NETWORK=10.244.0.0/16,10.245.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\n\
             FLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\nOTHER=x\n",
        )
        .unwrap();
        let nets = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(nets(&env.networks), ["10.244.0.0/16", "10.245.0.0/16", "fd00::/48"]);
        assert_eq!(nets(&env.subnets), ["10.244.1.1/24", "fd00:0:0:1::1/64"]);
        assert_eq!((env.mtu, env.masquerades), (1450, true));
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(
            SubnetEnv::parse("").unwrap_err(),
            "it lacks FLANNEL_NETWORK or FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"
        );
        assert_eq!(
            SubnetEnv::parse("FLANNEL_NETWORK=fd00::/48").unwrap_err(),
            "FLANNEL_NETWORK=fd00::/48 is not a list of IPv4 networks"
        );
        assert_eq!(SubnetEnv::parse("FLANNEL_MTU=x").unwrap_err(), "FLANNEL_MTU=x is not a number");
    }
}
