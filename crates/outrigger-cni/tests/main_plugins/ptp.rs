//! `ptp`

use serde_json::{Value, json};

use crate::harness::{Attachment, compare, config, host, ipam, ours, root};

const V4: &str = "10.23.0.0/16";
const V6: &str = "fd00:23::/64";

fn as_the_original(keys: Value) {
    if root() {
        compare("true", &Attachment::new("a"), &config("ptp", keys)).unwrap();
    }
}

#[test]
fn ipv4() {
    as_the_original(json!({ "ipam": ipam(&[V4], &["0.0.0.0/0"]) }));
    as_the_original(json!({ "mtu": 1400, "cniVersion": "0.4.0", "ipam": ipam(&[V4], &[]) }));
}

#[test]
fn dual_stack() {
    as_the_original(json!({ "ipam": ipam(&[V4, V6], &["0.0.0.0/0", "::/0"]) }));
}

#[test]
fn masquerade() {
    as_the_original(json!({ "ipMasq": true, "ipam": ipam(&[V4, "10.24.0.0/24"], &["0.0.0.0/0"]) }));
}

/// Several addresses of one network, and of two with one gateway. The original fails for both.
#[test]
fn addresses_share_gateways() {
    if !root() {
        return;
    }
    for (second, gateway) in [("10.1.1.3/24", "10.1.1.1"), ("10.1.2.3/24", "10.1.1.1")] {
        let host = host().unwrap();
        let addresses = json!([
            { "address": "10.1.1.2/24", "gateway": "10.1.1.1" },
            { "address": second, "gateway": gateway },
            { "address": "fd00:1::2/64", "gateway": "fd00:1::1" },
            { "address": "fd00:1::3/64", "gateway": "fd00:1::1" },
        ]);
        let ipam = json!({ "type": "static", "addresses": addresses, "routes": [{ "dst": "0.0.0.0/0" }] });
        let ptp = config("ptp", json!({ "ipam": ipam }));
        let result = Attachment::new("a").add(&host, ours(), &ptp).unwrap();
        Attachment::new("a").after(&host, ours(), "CHECK", &ptp, &result).unwrap();
        host.sh(&format!("ping -c1 -W2 10.1.1.2; ping -c1 -W2 {}", second.split('/').next().unwrap())).unwrap();
        host.sh("ping -c1 -W2 fd00:1::2; ping -c1 -W2 fd00:1::3").unwrap();
        Attachment::new("a").after(&host, ours(), "DEL", &ptp, &result).unwrap();
    }
}

#[test]
fn packets_garbage_and_failures() {
    if !root() {
        return;
    }
    let host = host().unwrap();
    let keys = json!({ "cniVersion": "1.1.0", "ipMasq": true, "ipam": ipam(&[V4, V6], &["0.0.0.0/0", "::/0"]) });
    let ptp = config("ptp", keys);
    let leftovers = || {
        host.sh("ip -br link show type veth; find /var/lib/cni -name '10.*'; iptables-save | grep CNI- || true")
            .unwrap()
    };
    let result = Attachment::new("a").add(&host, ours(), &ptp).unwrap();
    let other = Attachment::new("b").add(&host, ours(), &ptp).unwrap();
    for ip in other["ips"].as_array().unwrap() {
        let address = ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
        host.container_sh("a", &format!("ping -c1 -W2 {address}; ping -c1 -W2 {}", ip["gateway"].as_str().unwrap()))
            .unwrap();
    }
    // A second ADD fails and leaves the first alone.
    assert!(Attachment::new("a").call(&host, ours(), "ADD", &ptp).unwrap().code != Some(0));
    Attachment::new("a").after(&host, ours(), "CHECK", &ptp, &result).unwrap();
    // What is missing is told.
    host.container_sh("a", "ip route del default").unwrap();
    Attachment::new("a").after(&host, ours(), "CHECK", &ptp, &result).unwrap_err();
    // Without its namespace and by GC.
    Attachment::new("a").without_netns().del(&host, ours(), &ptp).unwrap();
    let mut gc = ptp.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    let nobody = Attachment { id: String::new(), container: None, ifname: String::new(), args: None };
    nobody.call(&host, ours(), "GC", &gc).unwrap().ok().unwrap();
    assert_eq!(leftovers(), "");
    // IPAM without a gateway.
    let fixed = json!({ "type": "static", "addresses": [{ "address": "10.1.1.2/24" }] });
    let output = Attachment::new("a").call(&host, ours(), "ADD", &config("ptp", json!({ "ipam": fixed }))).unwrap();
    assert_eq!(output.error_code(), Some(7), "{}", output.stdout);
    let output = Attachment::new("a").call(&host, ours(), "ADD", &config("ptp", json!({}))).unwrap();
    assert_eq!(output.error_code(), Some(7), "{}", output.stdout);
    assert_eq!(leftovers(), "");
}
