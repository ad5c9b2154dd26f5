//! Results as each version of the specification writes them: made for plugins, and judged when they come from plugins.

use serde_json::{Map, Value, json};

/// The released versions, oldest first.
pub const VERSIONS: &[&str] = &["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// True if `version` is `other` or newer; versions that were never released are older than all.
pub fn at_least(version: &str, other: &str) -> bool {
    let place = |wanted: &str| VERSIONS.iter().position(|known| *known == wanted);
    place(version) >= place(other) && place(version).is_some()
}

/// An address as suites write it: address, gateway (may be empty), index of the interface.
pub type Ip<'a> = (&'a str, &'a str, Option<usize>);

/// A result in the form of `version`.
pub fn make(version: &str, interfaces: &[Value], ips: &[Ip<'_>], routes: &[(&str, &str)]) -> Value {
    let mut result = Map::from_iter([("cniVersion".to_owned(), json!(version))]);
    let routes: Vec<Value> = routes
        .iter()
        .map(|(dst, gw)| if gw.is_empty() { json!({ "dst": dst }) } else { json!({ "dst": dst, "gw": gw }) })
        .collect();
    if !at_least(version, "0.3.0") {
        for (key, v6) in [("ip4", false), ("ip6", true)] {
            if let Some((address, gateway, _)) = ips.iter().find(|(address, ..)| address.contains(':') == v6) {
                let of_family = |route: &&Value| route["dst"].as_str().is_some_and(|dst| dst.contains(':') == v6);
                let routes: Vec<_> = routes.iter().filter(of_family).cloned().collect();
                let mut block = json!({ "ip": address, "routes": routes });
                if !gateway.is_empty() {
                    block["gateway"] = json!(gateway);
                }
                result.insert(key.into(), block);
            }
        }
        result.insert("dns".into(), json!({}));
        return result.into();
    }
    if !interfaces.is_empty() {
        result.insert("interfaces".into(), interfaces.into());
    }
    let ips: Vec<Value> = ips
        .iter()
        .map(|(address, gateway, interface)| {
            let mut ip = json!({ "address": address });
            if !at_least(version, "1.0.0") {
                ip["version"] = if address.contains(':') { "6".into() } else { "4".into() };
            }
            if !gateway.is_empty() {
                ip["gateway"] = json!(gateway);
            }
            if let Some(interface) = interface {
                ip["interface"] = json!(interface);
            }
            ip
        })
        .collect();
    result.insert("ips".into(), ips.into());
    result.insert("routes".into(), routes.into());
    result.insert("dns".into(), json!({}));
    result.into()
}

/// The addresses of a result of any version, `ip/len`, in its order.
pub fn addresses(result: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if let Some(ips) = result["ips"].as_array() {
        return ips.iter().filter_map(|ip| text(&ip["address"])).collect();
    }
    ["ip4", "ip6"].iter().filter_map(|key| text(&result[*key]["ip"])).collect()
}

/// What is wrong with the shape of a result for its version; empty if nothing is.
pub fn faults(result: &Value, version: &str, ipam: bool) -> Vec<String> {
    let mut faults = Vec::new();
    if result["cniVersion"] != version {
        faults.push(format!("cniVersion is {}, not {version:?} as in the configuration", result["cniVersion"]));
    }
    if at_least(version, "0.3.0") {
        list_form(result, version, ipam, &mut faults);
    } else {
        for key in ["interfaces", "ips", "routes"] {
            if !result[key].is_null() {
                faults.push(format!("{key} does not exist in version {version}"));
            }
        }
        for (key, v6) in [("ip4", false), ("ip6", true)] {
            let block = &result[key];
            if block.is_null() {
                continue;
            }
            if !is_prefix(&block["ip"], Some(v6)) {
                faults.push(format!("{key}.ip is {}, not an address with its prefix length", block["ip"]));
            }
        }
    }
    faults
}

fn list_form(result: &Value, version: &str, ipam: bool, faults: &mut Vec<String>) {
    for key in ["ip4", "ip6"] {
        if !result[key].is_null() {
            faults.push(format!("{key} does not exist any more in version {version}"));
        }
    }
    let none = Vec::new();
    for key in ["interfaces", "ips", "routes"] {
        if !result[key].is_array() && !result[key].is_null() {
            faults.push(format!("{key} is no list"));
        }
    }
    let interfaces = result["interfaces"].as_array().unwrap_or(&none);
    if ipam && !interfaces.is_empty() {
        faults.push("an IPAM result has interfaces".into());
    }
    for (index, interface) in interfaces.iter().enumerate() {
        if interface["name"].as_str().is_none_or(str::is_empty) {
            faults.push(format!("interfaces[{index}] has no name"));
        }
        if !at_least(version, "1.1.0") {
            for key in ["mtu", "socketPath", "pciID"] {
                if !interface[key].is_null() {
                    faults.push(format!("interfaces[{index}].{key} does not exist before version 1.1.0"));
                }
            }
        }
    }
    for (index, ip) in result["ips"].as_array().unwrap_or(&none).iter().enumerate() {
        if !is_prefix(&ip["address"], None) {
            faults.push(format!("ips[{index}].address is {}, not an address with its prefix length", ip["address"]));
        }
        let v6 = ip["address"].as_str().is_some_and(|address| address.contains(':'));
        let family = if at_least(version, "1.0.0") { Value::Null } else { json!(if v6 { "6" } else { "4" }) };
        if ip["version"] != family {
            faults.push(format!("ips[{index}].version is {}, not {family}, in version {version}", ip["version"]));
        }
        if let Some(interface) = ip.get("interface") {
            let known =
                interface.as_u64().and_then(|at| usize::try_from(at).ok()).is_some_and(|at| at < interfaces.len());
            if ipam {
                faults.push(format!("ips[{index}] of an IPAM result has an interface"));
            } else if !known {
                faults.push(format!(
                    "ips[{index}].interface is {interface}, but there are {} interfaces",
                    interfaces.len()
                ));
            }
        }
    }
    for (index, route) in result["routes"].as_array().unwrap_or(&none).iter().enumerate() {
        if !is_prefix(&route["dst"], None) {
            faults.push(format!("routes[{index}].dst is {}, not an address with its prefix length", route["dst"]));
        }
        if !at_least(version, "1.1.0") {
            for key in ["mtu", "advmss", "priority", "table", "scope"] {
                if !route[key].is_null() {
                    faults.push(format!("routes[{index}].{key} does not exist before version 1.1.0"));
                }
            }
        }
    }
}

fn is_prefix(value: &Value, v6: Option<bool>) -> bool {
    let Some((address, length)) = value.as_str().and_then(|text| text.split_once('/')) else { return false };
    let (Ok(address), Ok(length)) = (address.parse::<std::net::IpAddr>(), length.parse::<u8>()) else { return false };
    length <= if address.is_ipv6() { 128 } else { 32 } && v6.is_none_or(|v6| v6 == address.is_ipv6())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_results_have_no_faults_in_any_version() {
        for version in VERSIONS {
            let interface = json!({ "name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/a" });
            let ips = [("10.0.0.2/24", "10.0.0.1", Some(0)), ("fd00::2/64", "", Some(0))];
            let result = make(version, &[interface], &ips, &[("0.0.0.0/0", ""), ("::/0", "fd00::1")]);
            assert_eq!(faults(&result, version, false), Vec::<String>::new(), "{result}");
            assert_eq!(addresses(&result), ["10.0.0.2/24", "fd00::2/64"]);
        }
    }

    #[test]
    fn faults_are_seen() {
        let old = json!({ "cniVersion": "0.4.0", "ips": [{ "address": "10.0.0.2", "interface": 1 }], "ip4": {} });
        let found = faults(&old, "0.4.0", false);
        assert_eq!(found.len(), 4, "{found:?}");
        let new = json!({ "cniVersion": "1.0.0", "ips": [{ "version": "4", "address": "10.0.0.2/24" }],
            "routes": [{ "dst": "::/0", "mtu": 1400 }], "interfaces": [{ "name": "", "mtu": 1 }] });
        let found = faults(&new, "1.0.0", false);
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(faults(&json!({ "cniVersion": "0.2.0", "ips": [] }), "0.1.0", false).len(), 2);
        assert!(at_least("1.0.0", "0.4.0") && !at_least("0.3.1", "0.4.0") && !at_least("9.9.9", "0.1.0"));
    }
}
