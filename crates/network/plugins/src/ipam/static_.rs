//! `static`: the addresses that the configuration or the runtime names. It keeps no state.

use std::net::IpAddr;

use ipnet::IpNet;
use outrigger_cni_sdk::{
    AddResult, Attachment, Call, Code, Dns, Documentation, Error, IpConfig, Plugin, Route, Version, conf,
};

use super::Later;

conf! {
    /// Gives the container the addresses that are written in the configuration, or that the runtime asks for. It is
    /// called by a plugin that makes interfaces.
    pub struct StaticConf {
        /// What this plugin reads.
        pub ipam: Option<IpamConf>,
    }
}

conf! {
    /// The part of `static`.
    pub struct IpamConf {
        /// Addresses to give.
        pub addresses: Later<Vec<AddressKeys>>,
        /// Routes to put into the result.
        pub routes: Later<Vec<Option<Route>>>,
        /// Name resolution to put into the result.
        pub dns: Later<Dns>,
    }
}

conf! {
    /// An address.
    pub struct AddressKeys {
        /// The address with the prefix length of its network.
        pub address: String,
        /// The gateway.
        pub gateway: Option<IpAddr>,
    }
}

/// Hands out the addresses that are configured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Static;

impl Plugin for Static {
    type Conf = StaticConf;
    const ABOUT: &'static str = "CNI static plugin: gives the addresses that are configured or asked for";
    const DOC: Documentation = Documentation {
        add: "Gives the addresses of `addresses` and those of `IP` in `CNI_ARGS`; instead of them those of \
              `args.cni.ips`; instead of them those of the capability `ips`. `GATEWAY` in `CNI_ARGS` sets the gateway of \
              every address of `IP` in whose network it is.",
        del: "Nothing: there is no state.",
        check: "Fails if an address is in `prevResult` with another gateway than the configured one.",
        gc: "Nothing: there is no state.",
        status: "Fails if the configuration is wrong.",
        capabilities: &[("ips", "List of addresses with prefix length, instead of all others.")],
        args: &[
            ("IP", "Further addresses with prefix length, separated by commas."),
            ("GATEWAY", "Gateways, separated by commas."),
        ],
        example: r#"{
    "cniVersion": "1.1.0",
    "name": "lan",
    "plugins": [
        {
            "type": "macvlan",
            "master": "eth0",
            "ipam": {
                "type": "static",
                "addresses": [{ "address": "192.0.2.7/24", "gateway": "192.0.2.1" }],
                "routes": [{ "dst": "0.0.0.0/0" }],
                "dns": { "nameservers": ["192.0.2.53"] }
            }
        }
    ]
}"#,
    };

    fn add(&self, call: &Call<'_, StaticConf>) -> Result<AddResult, Error> {
        let ipam = ipam(call)?;
        Ok(AddResult {
            interfaces: Vec::new(),
            ips: addresses(call)?,
            routes: ipam.routes.read("ipam.routes")?.unwrap_or_default().into_iter().flatten().collect(),
            dns: ipam.dns.read("ipam.dns")?.unwrap_or_default(),
        })
    }

    fn del(&self, _call: &Call<'_, StaticConf>) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, call: &Call<'_, StaticConf>) -> Result<(), Error> {
        let prev = call.prev()?;
        for wanted in addresses(call)? {
            let Some(gateway) = wanted.gateway else { continue };
            let same = |ip: &&IpConfig| ip.address.addr().to_canonical() == wanted.address.addr();
            if let Some(ip) = prev.ips.iter().find(same)
                && ip.gateway.map(|gateway| gateway.to_canonical()) != Some(gateway)
            {
                let address = wanted.address.addr();
                let found = ip.gateway.map_or_else(|| "none".to_owned(), |gateway| gateway.to_string());
                return Err(Error::internal(format!(
                    "static: address {address} on interface {} has gateway {found}, configured is {gateway}",
                    call.ifname
                )));
            }
        }
        Ok(())
    }

    fn gc(&self, _call: &Call<'_, StaticConf>, _valid: &[Attachment]) -> Result<(), Error> {
        Ok(())
    }

    fn status(&self, call: &Call<'_, StaticConf>) -> Result<(), Error> {
        addresses(call).map(drop)
    }
}

fn ipam<'c>(call: &'c Call<'_, StaticConf>) -> Result<&'c IpamConf, Error> {
    call.conf.ipam.as_ref().ok_or_else(|| Error::config("ipam is missing: static reads its configuration from it"))
}

/// The addresses in force.
fn addresses(call: &Call<'_, StaticConf>) -> Result<Vec<IpConfig>, Error> {
    let configured = ipam(call)?.addresses.read("ipam.addresses")?.unwrap_or_default();
    let [ip, gateway] = call.args.known(["IP", "GATEWAY"])?;
    let args: Vec<String> = call.cni_arg("ips")?.unwrap_or_default();
    let capability: Vec<String> = call.runtime("ips")?.unwrap_or_default();
    let environment = Code::InvalidEnvironment;
    // All of it is read, so that a mistake shows even where something else comes first.
    let mut from_env = cidrs(ip.unwrap_or_default().split_terminator(',').map(str::trim), "CNI_ARGS: IP", environment)?;
    for text in gateway.filter(|gateway| !gateway.is_empty()).into_iter().flat_map(|gateway| gateway.split(',')) {
        let gateway: IpAddr = text
            .trim()
            .parse()
            .map_err(|_| Error::new(environment, format!("CNI_ARGS: GATEWAY: invalid gateway address {text:?}")))?;
        let gateway = gateway.to_canonical();
        // As in the original, gateways of configured addresses are the configuration's.
        for ip in from_env.iter_mut().filter(|ip| ip.address.contains(&gateway)) {
            ip.gateway = Some(gateway);
        }
    }
    let from_args = cidrs(args.iter().map(String::as_str), "args.cni.ips", Code::InvalidConfig)?;
    let from_capability = cidrs(capability.iter().map(String::as_str), "runtimeConfig.ips", Code::InvalidConfig)?;
    let ips = if !from_capability.is_empty() {
        from_capability
    } else if !from_args.is_empty() {
        from_args
    } else {
        let mut ips = Vec::new();
        for (index, keys) in configured.iter().enumerate() {
            let mut ip = cidr(&keys.address, &format!("ipam.addresses[{index}].address"), Code::InvalidConfig)?;
            ip.gateway = keys.gateway.map(|gateway| gateway.to_canonical());
            ips.push(ip);
        }
        ips.extend(from_env);
        ips
    };
    let v4 = ips.iter().filter(|ip| ip.address.addr().is_ipv4()).count();
    if call.net.cni_version < Version::V0_3_0 && (v4 > 1 || ips.len() - v4 > 1) {
        let version = call.net.cni_version;
        return Err(Error::config(format!("CNI version {version} does not support more than 1 address per family")));
    }
    Ok(ips)
}

fn cidrs<'t>(texts: impl Iterator<Item = &'t str>, place: &str, code: Code) -> Result<Vec<IpConfig>, Error> {
    texts.map(|text| cidr(text, place, code)).collect()
}

fn cidr(text: &str, place: &str, code: Code) -> Result<IpConfig, Error> {
    let net: IpNet = text.parse().map_err(|_| {
        Error::new(code, format!("{place}: expected an address with prefix length such as 192.0.2.7/24, got {text:?}"))
    })?;
    // An IPv4-mapped address with the prefix length of its IPv6 form.
    let mapped = match net.addr().to_canonical() {
        IpAddr::V4(address) if !net.addr().is_ipv4() => {
            net.prefix_len().checked_sub(96).and_then(|prefix| IpNet::new(address.into(), prefix).ok()).ok_or_else(
                || Error::new(code, format!("{place}: {text} is an IPv4-mapped address with a prefix of IPv6")),
            )?
        }
        _ => net,
    };
    Ok(IpConfig::new(mapped))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Static;
    use crate::ipam::testing::{Invocation, original, same};

    fn config(ipam: &Value, extra: &Value, version: &str) -> Value {
        let mut config = json!({"cniVersion": version, "name": "net", "type": "bridge", "ipam": ipam});
        for (key, value) in extra.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    #[test]
    fn same_outcomes_as_the_original() {
        let Some(plugin) = original("static") else { return };
        let ipams = [
            json!({"type": "static", "addresses": [{"address": "10.10.0.1/24", "gateway": "10.10.0.254"}]}),
            json!({"type": "static", "addresses": [
                {"address": "10.10.0.1/24"}, {"address": "3ffe:ffff:0:01ff::1/64", "gateway": "3ffe:ffff:0::1"}
            ], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.10.5.1"}],
               "dns": {"nameservers": ["8.8.8.8"], "domain": "x", "search": ["y"], "options": ["z"]}}),
            json!({"type": "static", "addresses": [{"address": "10.10.0.1/24"}, {"address": "10.10.0.2/24"}]}),
            json!({"type": "static"}),
            json!({"type": "static", "addresses": [{"address": "10.10.0.1"}]}),
            json!({"type": "static", "addresses": [{"address": "bad/24"}]}),
            json!({"type": "static", "addresses": [{}]}),
            json!({"type": "static", "addresses": {}}),
            json!({"type": "static", "addresses": [{"address": "10.10.0.1/24", "gateway": "bad"}]}),
            json!({"type": "static", "addresses": [{"address": "10.10.0.1/24", "gateway": ""}]}),
        ];
        let extras = [
            json!({}),
            json!({"args": {"cni": {"ips": ["10.10.0.7/24", "fd00::7/64"]}}}),
            json!({"args": {"cni": {"ips": ["10.10.0.7"]}}}),
            json!({"args": {"cni": {"ips": []}}, "runtimeConfig": {"ips": []}}),
            json!({"args": {"cni": {"ips": ["10.10.0.7/24"]}}, "runtimeConfig": {"ips": ["10.10.0.8/16"]}}),
            json!({"runtimeConfig": {"ips": ["10.10.0.8"]}}),
        ];
        let args = [
            "",
            "IP=10.10.0.9/24",
            "IP=10.10.0.9/24, fd00::9/64;GATEWAY=10.10.0.3,fd00::1",
            "GATEWAY=10.10.0.3",
            "GATEWAY=bad",
            "IP=10.10.0.9",
            "X=y",
            "X=y;IgnoreUnknown=true",
        ];
        for ipam in &ipams {
            for extra in &extras {
                for args in args {
                    for version in ["1.0.0", "0.4.0", "0.2.0"] {
                        let invocation = Invocation::new("ADD", "a", config(ipam, extra, version)).args(args);
                        let (ours, theirs) = (invocation.ours(&Static), invocation.theirs(&plugin));
                        same(&ours, &theirs, &invocation);
                    }
                }
            }
        }
    }

    #[test]
    fn check_compares_what_is_configured() {
        let ipam = json!({"type": "static", "addresses": [
            {"address": "10.10.0.1/24", "gateway": "10.10.0.254"}, {"address": "10.10.1.1/24"}
        ]});
        let check = |ips: Value| {
            let prev = json!({"prevResult": {"cniVersion": "1.0.0", "ips": ips}});
            Invocation::new("CHECK", "a", config(&ipam, &prev, "1.0.0")).ours(&Static)
        };
        check(json!([])).unwrap();
        check(json!([{"address": "10.10.0.1/24", "gateway": "10.10.0.254"}])).unwrap();
        check(json!([{"address": "10.10.1.1/24", "gateway": "10.10.1.254"}])).unwrap();
        let error = check(json!([{"address": "10.10.0.1/24"}])).unwrap_err();
        assert!(error["msg"].as_str().unwrap().contains("10.10.0.254"), "{error}");
        let missing = Invocation::new("CHECK", "a", config(&ipam, &json!({}), "1.0.0")).ours(&Static);
        assert_eq!(missing.unwrap_err()["code"], 7);
    }
}
