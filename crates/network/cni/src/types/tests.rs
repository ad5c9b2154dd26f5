use proptest::prelude::*;

use super::*;

fn full() -> AddResult {
    let ip = |address: &str, gateway: &str, interface| IpConfig {
        address: address.parse().unwrap(),
        gateway: gateway.parse().ok(),
        interface,
    };
    AddResult {
        interfaces: vec![
            Interface::new("cni0", "aa:bb:cc:dd:ee:ff", ""),
            Interface {
                mtu: Some(1400),
                socket_path: "/run/s".to_owned(),
                pci_id: "0000:00:1f.6".to_owned(),
                ..Interface::new("eth0", "", "/run/netns/x")
            },
        ],
        ips: vec![
            ip("10.1.0.5/16", "10.1.0.1", Some(1)),
            ip("fd00::5/64", "", Some(1)),
            ip("10.2.0.5/16", "10.2.0.1", Some(1)),
        ],
        routes: vec![
            Route::new("0.0.0.0/0".parse().unwrap(), Some("10.1.0.1".parse().unwrap())),
            Route {
                mtu: Some(1300),
                advmss: Some(1200),
                priority: Some(7),
                table: Some(0),
                scope: Some(253),
                ..Route::new("fd01::/64".parse().unwrap(), None)
            },
        ],
        dns: Dns { nameservers: vec!["10.1.0.1".to_owned()], domain: "local".to_owned(), ..Dns::default() },
    }
}

#[test]
fn newest_form() {
    let value = full().to_value(Version::V1_1_0).unwrap();
    let expected = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "cni0", "mac": "aa:bb:cc:dd:ee:ff"},
            {"name": "eth0", "sandbox": "/run/netns/x", "mtu": 1400, "socketPath": "/run/s", "pciID": "0000:00:1f.6"},
        ],
        "ips": [
            {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1},
            {"address": "fd00::5/64", "interface": 1},
            {"address": "10.2.0.5/16", "gateway": "10.2.0.1", "interface": 1},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "10.1.0.1"},
            {"dst": "fd01::/64", "mtu": 1300, "advmss": 1200, "priority": 7, "table": 0, "scope": 253},
        ],
        "dns": {"nameservers": ["10.1.0.1"], "domain": "local"},
    });
    assert_eq!(value, expected);
    assert_eq!(AddResult::from_value(&value).unwrap(), full());
}

#[test]
fn middle_forms() {
    for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0, Version::V1_0_0] {
        let value = full().to_value(version).unwrap();
        assert_eq!(value["cniVersion"], version.as_str());
        // No place for what 1.1.0 brought to interfaces.
        assert_eq!(value["interfaces"][1], json!({"name": "eth0", "sandbox": "/run/netns/x"}));
        let family = value["ips"][1].get("version");
        assert_eq!(family, (version < Version::V1_0_0).then(|| json!("6")).as_ref());
        let mut expected = full();
        expected.interfaces[1] = Interface::new("eth0", "", "/run/netns/x");
        assert_eq!(AddResult::from_value(&value).unwrap(), expected);
    }
}

#[test]
fn oldest_forms() {
    for version in [Version::V0_1_0, Version::V0_2_0] {
        let value = full().to_value(version).unwrap();
        let expected = json!({
            "cniVersion": version.as_str(),
            "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
            "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "fd01::/64"}]},
            "dns": {"nameservers": ["10.1.0.1"], "domain": "local"},
        });
        assert_eq!(value, expected);
        let back = AddResult::from_value(&value).unwrap();
        assert!(back.interfaces.is_empty());
        assert_eq!(back.ips.iter().map(|ip| ip.interface).collect::<Vec<_>>(), [None, None]);
        assert_eq!(back.to_value(version).unwrap(), expected);
        // A configuration of this version may have a result that does not say its own.
        let mut unversioned = expected.clone();
        unversioned.as_object_mut().unwrap().remove("cniVersion");
        assert_eq!(AddResult::from_value(&unversioned).unwrap(), back);
        let error = AddResult::default().to_value(version).unwrap_err();
        assert!(error.msg.contains("IP address"), "{error}");
    }
}

#[test]
fn dns_is_printed_empty_before_1_0() {
    for version in Version::ALL {
        let result = AddResult { ips: full().ips, ..AddResult::default() };
        let value = result.to_value(*version).unwrap();
        assert_eq!(value.get("dns"), (*version < Version::V1_0_0).then(|| json!({})).as_ref(), "{version}");
        assert!(value.get("routes").is_none() && value.get("interfaces").is_none());
    }
    assert_eq!(AddResult::default().to_value(Version::V1_0_0).unwrap(), json!({"cniVersion": "1.0.0"}));
}

#[test]
fn tolerant_reading() {
    assert_eq!(AddResult::from_value(&Value::Null), Ok(AddResult::default()));
    let value = json!({"CNIVERSION": "1.0.0", "IPs": [{"Address": "10.0.0.2/24", "gateway": "", "x": 1}, null],
        "routes": null, "interfaces": [null, {"name": "eth0"}]});
    let result = AddResult::from_value(&value).unwrap();
    assert_eq!(result.ips, [IpConfig::new("10.0.0.2/24".parse().unwrap())]);
    assert_eq!(result.interfaces[1].name, "eth0");
    // Without a version: that of the configuration.
    let value = json!({"ips": [{"version": "4", "address": "10.0.0.2/24"}]});
    assert_eq!(AddResult::decode(&value, Version::V0_4_0).unwrap().ips.len(), 1);
    assert_eq!(AddResult::from_value(&value).unwrap().ips.len(), 0);
}

#[test]
fn refused_results() {
    let cases = [
        (json!([]), Code::Decode),
        (json!({"cniVersion": 1}), Code::Decode),
        (json!({"cniVersion": "2.0.0"}), Code::IncompatibleVersion),
        (json!({"cniVersion": "1.0.0", "ips": {}}), Code::Decode),
        (json!({"cniVersion": "1.0.0", "ips": [{}]}), Code::Decode),
        (json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1"}]}), Code::Decode),
        (json!({"cniVersion": "1.0.0", "routes": [{"gw": "10.0.0.1"}]}), Code::Decode),
        (json!({"cniVersion": "0.2.0", "ip4": {"ip": "x"}}), Code::Decode),
    ];
    for (value, code) in cases {
        assert_eq!(AddResult::from_value(&value).unwrap_err().code, code, "{value}");
    }
    let error = AddResult::from_value(&json!({"cniVersion": "1.0.0", "ips": [{"address": 1}]})).unwrap_err();
    assert_eq!(error.msg, "ips[0].address: expected an address with prefix length, got 1");
    let error = AddResult::from_value(&json!({"cniVersion": "0.1.0", "ip6": {}})).unwrap_err();
    assert_eq!(error.msg, "ip6.ip: an address with prefix length is required");
}

fn any_result() -> impl Strategy<Value = AddResult> {
    let text = "[a-z0-9]{0,8}";
    let net = prop_oneof![
        (any::<u32>(), 0_u8..=32).prop_map(|(addr, len)| IpNet::new(std::net::Ipv4Addr::from(addr).into(), len)),
        (any::<u128>(), 0_u8..=128).prop_map(|(addr, len)| IpNet::new(std::net::Ipv6Addr::from(addr).into(), len)),
    ]
    .prop_map(Result::unwrap);
    let address = any::<Option<IpAddr>>();
    let positive = prop::option::of(1_u32..);
    let interface =
        (text, text, positive.clone(), text, text, text).prop_map(|(name, mac, mtu, sandbox, socket_path, pci_id)| {
            Interface { name, mac, mtu, sandbox, socket_path, pci_id }
        });
    let ip = (net.clone(), address.clone(), any::<Option<i64>>()).prop_map(|(address, gateway, interface)| IpConfig {
        address,
        gateway,
        interface,
    });
    let route = (net, address, positive.clone(), positive.clone(), positive, any::<Option<u32>>(), any::<Option<u8>>())
        .prop_map(|(dst, gw, mtu, advmss, priority, table, scope)| Route {
            dst,
            gw,
            mtu,
            advmss,
            priority,
            table,
            scope,
        });
    let texts = prop::collection::vec(text, 0..3);
    let dns = (texts.clone(), text, texts.clone(), texts).prop_map(|(nameservers, domain, search, options)| Dns {
        nameservers,
        domain,
        search,
        options,
    });
    let vec = 0..4_usize;
    (
        prop::collection::vec(interface, vec.clone()),
        prop::collection::vec(ip, vec.clone()),
        prop::collection::vec(route, vec),
        dns,
    )
        .prop_map(|(interfaces, ips, routes, dns)| AddResult { interfaces, ips, routes, dns })
}

proptest! {
    /// The newest form loses nothing; the others lose only once.
    #[test]
    fn conversion_is_stable(result in any_result()) {
        prop_assert_eq!(&AddResult::from_value(&result.to_value(Version::NEWEST).unwrap()).unwrap(), &result);
        for version in Version::ALL {
            if let Ok(value) = result.to_value(*version) {
                let back = AddResult::from_value(&value).unwrap();
                prop_assert_eq!(back.to_value(*version).unwrap(), value);
            } else {
                prop_assert!(*version < Version::V0_3_0 && result.ips.is_empty());
            }
        }
    }
}
