//! Against the kernel, in namespaces of the test's own. Where iproute2 shows the same, it is asked too.

use std::time::{Duration, Instant};

use super::testing::{netns, output};
use super::*;
use crate::MacAddr;

fn veth(name: &str, peer: &str, handle: &Handle) -> (Link, Link) {
    let peer_link = Box::new(NewLink { name: peer, up: true, ..NewLink::default() });
    handle
        .create_link(&NewLink { name, up: true, kind: NewLinkKind::Veth { peer: peer_link }, ..NewLink::default() })
        .unwrap();
    (handle.link(name).unwrap(), handle.link(peer).unwrap())
}

#[test]
fn links_are_made_changed_moved_and_removed() {
    let Some((here, handle)) = netns() else { return };
    let Some((there, inside)) = netns() else { return };
    let mac: MacAddr = "0a:58:00:00:00:01".parse().unwrap();
    let peer = NewLink { name: "eth0", netns: Some(&there), mtu: Some(1400), mac: Some(mac), ..NewLink::default() };
    let link = NewLink {
        name: "veth0",
        index: Some(77),
        mtu: Some(1400),
        up: true,
        alias: Some("cni:net/id/eth0"),
        tx_queue_len: Some(7),
        kind: NewLinkKind::Veth { peer: Box::new(peer) },
        ..NewLink::default()
    };
    handle.create_link(&link).unwrap();
    let error = handle.create_link(&NewLink { index: None, ..link }).unwrap_err();
    assert!(error.is_exists(), "{error}");

    let veth0 = handle.link("veth0").unwrap();
    assert_eq!((veth0.index, veth0.mtu, veth0.tx_queue_len), (77, 1400, 7));
    assert_eq!((veth0.kind.as_deref(), veth0.alias.as_deref()), (Some("veth"), Some("cni:net/id/eth0")));
    assert!(veth0.is_up() && !veth0.has_carrier() && veth0.parent_netns.is_some());
    let eth0 = inside.link("eth0").unwrap();
    assert_eq!((eth0.mac, eth0.parent, eth0.mtu, eth0.is_up()), (Some(mac), Some(77), 1400, false));
    assert_eq!(veth0.parent, Some(eth0.index));

    let change = LinkChange {
        up: Some(true),
        mtu: Some(1300),
        promiscuous: Some(true),
        all_multicast: Some(true),
        alias: Some(""),
        ipv4_conf: &[(Ipv4Conf::ArpNotify, 1), (Ipv4Conf::RouteLocalnet, 1)],
        ..LinkChange::default()
    };
    handle.set_link(&veth0, &change).unwrap();
    let veth0 = handle.link(77).unwrap();
    assert_eq!((veth0.mtu, veth0.promiscuity, veth0.all_multi(), veth0.alias), (1300, 1, true, None));
    for key in ["arp_notify", "route_localnet"] {
        assert_eq!(output(&here, &["cat", &format!("/proc/sys/net/ipv4/conf/veth0/{key}")]), "1\n");
    }

    // Moved and renamed in one step, although the old name is taken over there.
    inside
        .create_link(&NewLink {
            name: "veth0",
            kind: NewLinkKind::Bridge { vlan_filtering: false },
            ..NewLink::default()
        })
        .unwrap();
    let change = LinkChange { netns: Some(&there), name: Some("net1"), ..LinkChange::default() };
    handle.set_link(77, &change).unwrap();
    assert_eq!(handle.find_link("veth0").unwrap(), None);
    assert_eq!(inside.link("net1").unwrap().kind.as_deref(), Some("veth"));

    inside.delete_link("net1").unwrap();
    assert!(inside.delete_link("eth0").unwrap_err().is_not_found());
    assert_eq!(handle.link("veth0").unwrap_err().to_string(), "link veth0 does not exist");
    assert!(handle.delete_link(0).is_err());
    let names: Vec<_> = handle.links().unwrap().into_iter().map(|link| link.name).collect();
    assert_eq!(names, ["lo"]);
}

#[test]
fn impossible_names_are_refused_before_the_kernel_is_asked() {
    let Ok(handle) = Handle::open() else { return };
    for name in ["sixteen-letters-", "a b", "a/b", "a:b", "..", "a%d", "a%"] {
        let error = handle.create_link(&NewLink { name, ..NewLink::default() }).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
        assert!(handle.delete_link(name).is_err());
        assert_eq!(handle.find_link(name).unwrap(), None);
    }
    assert_eq!(handle.find_link("").unwrap(), None);
    assert_eq!(handle.find_link("a-name-that-is-longer-than-any").unwrap(), None);
    let change = LinkChange { name: Some("b"), ..LinkChange::default() };
    assert!(matches!(handle.set_link("a", &change), Err(Error::Invalid { .. })));
}

#[test]
fn macvlan_in_another_namespace() {
    let Some((_, handle)) = netns() else { return };
    let Some((there, inside)) = netns() else { return };
    let (master, _) = veth("up0", "up1", &handle);
    let link = NewLink {
        name: "eth0",
        kind: NewLinkKind::Macvlan { mode: MacvlanMode::Private, bc_queue_len: Some(500) },
        parent: Some(master.index),
        netns: Some(&there),
        ..NewLink::default()
    };
    handle.create_link(&link).unwrap();
    let eth0 = inside.link("eth0").unwrap();
    let details = LinkDetails::Macvlan { mode: Some(MacvlanMode::Private), bc_queue_len: Some(500) };
    assert_eq!((eth0.details, eth0.parent), (details, Some(master.index)));
    assert_eq!("vepa".parse::<MacvlanMode>().unwrap(), MacvlanMode::Vepa);
    assert!("l4".parse::<IpvlanMode>().unwrap_err().to_string().contains("l2, l3, l3s"));
}

#[test]
fn kinds_that_this_kernel_may_lack_say_so() {
    let Some((_, handle)) = netns() else { return };
    let (master, _) = veth("up0", "up1", &handle);
    for (kind, parent) in [
        (NewLinkKind::Dummy, None),
        (NewLinkKind::Ipvlan { mode: IpvlanMode::L3s }, Some(master.index)),
        (NewLinkKind::Vlan { id: 7 }, Some(master.index)),
        (NewLinkKind::Vrf { table: 10 }, None),
    ] {
        match handle.create_link(&NewLink { name: "x", kind, parent, ..NewLink::default() }) {
            Ok(()) => handle.delete_link("x").unwrap(),
            Err(error) => assert!(error.is_unsupported(), "{error}"),
        }
    }
}

#[test]
fn addresses_and_routes() {
    let Some((here, handle)) = netns() else { return };
    let (eth0, _) = veth("eth0", "eth1", &handle);
    let net = "10.1.2.3/24".parse().unwrap();
    handle.add_address(eth0.index, &NewAddress::new(net)).unwrap();
    assert!(handle.add_address(eth0.index, &NewAddress::new(net)).unwrap_err().is_exists());
    let v6: ipnet::IpNet = "fd00::3/64".parse().unwrap();
    handle.add_address(eth0.index, &NewAddress { no_dad: true, ..v6.into() }).unwrap();
    let peer =
        NewAddress { peer: Some("10.9.0.1".parse().unwrap()), ..NewAddress::new("10.9.0.2/32".parse().unwrap()) };
    handle.add_address(eth0.index, &peer).unwrap();
    let addresses = handle.addresses(Some(eth0.index)).unwrap();
    let find = |net: &str| addresses.iter().find(|address| address.net.to_string() == net).unwrap().clone();
    assert_eq!(find("10.1.2.3/24").broadcast, Some("10.1.2.255".parse().unwrap()));
    assert_eq!(find("10.1.2.3/24").label.as_deref(), Some("eth0"));
    assert_eq!((find("10.9.0.2/32").peer, find("10.9.0.2/32").broadcast), (peer.peer, None));
    assert!(!find("fd00::3/64").is_tentative());
    assert!(
        output(&here, &["ip", "-4", "addr", "show", "eth0"])
            .contains("inet 10.1.2.3/24 brd 10.1.2.255 scope global eth0")
    );
    assert_eq!(handle.addresses(Some(9999)).unwrap(), []);

    let route = Route {
        dst: Some("10.50.0.0/16".parse().unwrap()),
        gateway: Some("10.1.2.1".parse().unwrap()),
        oif: Some(eth0.index),
        priority: Some(300),
        mtu: Some(1400),
        advmss: Some(1300),
        source: Some("10.1.2.3".parse().unwrap()),
        ..Route::default()
    };
    handle.add_route(&route).unwrap();
    assert!(handle.add_route(&route).unwrap_err().is_exists());
    handle.replace_route(&route).unwrap();
    let default = Route { gateway: Some("fd00::1".parse().unwrap()), table: 1000, ..Route::default() };
    handle.add_route(&default).unwrap();
    let onlink = Route {
        dst: Some("0.0.0.0/0".parse().unwrap()),
        gateway: Some("192.0.2.1".parse().unwrap()),
        oif: Some(eth0.index),
        onlink: true,
        ..Route::default()
    };
    handle.add_route(&onlink).unwrap();
    assert!(
        output(&here, &["ip", "route", "show", "10.50.0.0/16"])
            .starts_with("10.50.0.0/16 via 10.1.2.1 dev eth0 src 10.1.2.3 metric 300 mtu 1400 advmss 1300")
    );
    let main = RouteFilter { table: Some(TABLE_MAIN), oif: Some(eth0.index), family: Some(Family::V4) };
    let routes = handle.routes(main).unwrap();
    let found = routes.iter().find(|route| route.gateway == "10.1.2.1".parse().ok()).unwrap();
    assert_eq!(*found, Route { table: TABLE_MAIN, protocol: protocol::BOOT, ..route.clone() });
    assert!(routes.iter().any(|route| route.is_default() && route.onlink));
    assert!(routes.iter().any(|route| route.dst == "10.1.2.0/24".parse().ok() && route.scope == Scope::LINK));
    let other = handle.routes(RouteFilter { table: Some(1000), ..RouteFilter::default() }).unwrap();
    assert_eq!((other.len(), other[0].gateway, other[0].is_default()), (1, default.gateway, true));
    assert_eq!(handle.routes(RouteFilter { table: Some(4711), ..RouteFilter::default() }).unwrap(), []);

    handle.delete_route(&route).unwrap();
    assert!(handle.delete_route(&route).unwrap_err().is_not_found());
    handle.delete_route(&onlink).unwrap();
    handle.delete_route(&default).unwrap();
    handle.delete_address(eth0.index, net).unwrap();
    assert!(handle.delete_address(eth0.index, net).unwrap_err().is_not_found());
    let mixed = Route { gateway: Some("fd00::1".parse().unwrap()), ..route };
    assert!(matches!(handle.add_route(&mixed), Err(Error::Invalid { .. })));
}

#[test]
fn several_next_hops() {
    let Some((here, handle)) = netns() else { return };
    let (eth0, _) = veth("eth0", "eth1", &handle);
    for net in ["10.1.0.2/24", "fd00::2/64"] {
        let net: ipnet::IpNet = net.parse().unwrap();
        handle.add_address(eth0.index, &NewAddress { no_dad: true, ..net.into() }).unwrap();
    }
    let through = |dst: &str, gateway: &str| Route {
        dst: Some(dst.parse().unwrap()),
        gateway: Some(gateway.parse().unwrap()),
        oif: Some(eth0.index),
        ..Route::default()
    };
    let listed = |dst: &str, oif| {
        let routes = handle.routes(RouteFilter { oif, table: Some(TABLE_MAIN), ..RouteFilter::default() }).unwrap();
        routes.into_iter().filter(|route| route.dst == dst.parse().ok()).collect::<Vec<_>>()
    };
    for (dst, one, other) in [("10.7.0.0/16", "10.1.0.1", "10.1.0.9"), ("fd07::/16", "fd00::1", "fd00::9")] {
        handle.add_route_beside(&through(dst, one)).unwrap();
        assert!(handle.add_route(&through(dst, other)).unwrap_err().is_exists());
        handle.add_route_beside(&through(dst, other)).unwrap();
        assert!(handle.add_route_beside(&through(dst, other)).unwrap_err().is_exists());
        let found = listed(dst, Some(eth0.index));
        for gateway in [one, other] {
            assert!(found.iter().any(|route| route.goes_through(gateway.parse().unwrap())), "{found:?}");
        }
        // IPv4 has two routes, IPv6 one with two next hops.
        assert_eq!(found.len(), if dst.starts_with("10.") { 2 } else { 1 });
    }
    let balanced = Route {
        more_hops: vec![NextHop { gateway: "10.1.0.9".parse().ok(), oif: eth0.index, weight: 4, onlink: false }],
        ..through("10.8.0.0/16", "10.1.0.1")
    };
    handle.add_route(&balanced).unwrap();
    let shown = output(&here, &["ip", "route", "show", "10.8.0.0/16"]);
    assert!(
        shown.contains("via 10.1.0.1 dev eth0 weight 1") && shown.contains("via 10.1.0.9 dev eth0 weight 5"),
        "{shown}"
    );
    let found = listed("10.8.0.0/16", None);
    assert_eq!((found[0].gateway, &found[0].more_hops), (balanced.gateway, &balanced.more_hops));
    handle.delete_route(&found[0]).unwrap();
    assert_eq!(listed("10.8.0.0/16", None), []);
}

#[test]
fn duplicate_detection_is_awaited() {
    let Some((here, handle)) = netns() else { return };
    let (eth0, eth1) = veth("eth0", "eth1", &handle);
    handle
        .add_address(eth1.index, &NewAddress { no_dad: true, ..NewAddress::new("fd00::9/64".parse().unwrap()) })
        .unwrap();
    let net: ipnet::IpNet = "fd00::3/64".parse().unwrap();
    handle.add_address(eth0.index, &net.into()).unwrap();
    let settled = handle.wait_addresses_settled(eth0.index, Duration::from_secs(10)).unwrap();
    let found = settled.iter().find(|address| address.net == net).unwrap();
    assert!(!found.is_tentative() && !found.is_duplicate());
    // Nothing is left of the subscription: later requests see their own answers only.
    assert!(handle.link("eth0").is_ok());
    // The other end answers for this one, so the kernel gives up the address.
    output(&here, &["ip", "link", "set", "eth0", "down"]);
    handle.add_address(eth0.index, &NewAddress::new("fd00::9/64".parse().unwrap())).unwrap();
    output(&here, &["ip", "link", "set", "eth0", "up"]);
    let settled = handle.wait_addresses_settled(eth0.index, Duration::from_secs(10)).unwrap();
    assert!(settled.iter().all(|address| !address.is_tentative()));
    // Without a carrier detection never ends.
    output(&here, &["ip", "link", "set", "eth1", "down"]);
    handle.add_address(eth0.index, &NewAddress::new("fd00::77/64".parse().unwrap())).unwrap();
    let waited = handle.wait_addresses_settled(eth0.index, Duration::from_millis(50));
    assert!(matches!(waited, Err(Error::Timeout { .. })), "{waited:?}");
}

#[test]
fn rules_of_policy_routing() {
    let Some((here, handle)) = netns() else { return };
    let before = handle.rules(None).unwrap();
    let rule = Rule {
        src: Some("10.1.0.0/16".parse().unwrap()),
        dst: Some("10.2.0.0/16".parse().unwrap()),
        iif: Some("lo".into()),
        oif: Some("eth7".into()),
        mark: Some(16),
        mask: Some(0xff),
        priority: Some(500),
        table: 1234,
        family: Some(Family::V4),
        ..Rule::default()
    };
    handle.add_rule(&rule).unwrap();
    assert!(handle.add_rule(&rule).unwrap_err().is_exists());
    assert!(handle.rules(Some(Family::V4)).unwrap().contains(&rule));
    assert!(output(&here, &["ip", "rule"]).contains("500:\tfrom 10.1.0.0/16 to 10.2.0.0/16 fwmark 0x10/0xff iif lo"));
    let v6 = Rule { src: Some("fd00::/64".parse().unwrap()), table: 100, ..Rule::default() };
    handle.add_rule(&v6).unwrap();
    assert!(handle.rules(None).unwrap().iter().any(|rule| rule.src == v6.src && rule.table == 100));
    handle.delete_rule(&v6).unwrap();
    handle.delete_rule(&rule).unwrap();
    assert!(handle.delete_rule(&rule).unwrap_err().is_not_found());
    assert_eq!(handle.rules(None).unwrap(), before);
}

#[test]
fn shaping_and_redirection() {
    let Some((here, handle)) = netns() else { return };
    let (eth0, _) = veth("eth0", "eth1", &handle);
    handle.create_link(&NewLink { name: "bwp0", up: true, kind: NewLinkKind::Ifb, ..NewLink::default() }).unwrap();
    let ifb = handle.link("bwp0").unwrap();
    let tbf = Tbf { rate: 1_000_000, burst: 125_000, limit: 150_000 };
    let mut batch = handle.batch();
    batch.add_tbf(ifb.index, &tbf).add_ingress(eth0.index).add_mirred(eth0.index, ifb.index);
    batch.commit().unwrap();
    let fast = Tbf { rate: 5_000_000_000, burst: 1_250_000, limit: 2_000_000 };
    handle.add_tbf(eth0.index, &fast).unwrap();
    let qdiscs = handle.qdiscs(Some(ifb.index)).unwrap();
    let found = qdiscs.iter().find(|qdisc| qdisc.parent == ROOT).unwrap();
    assert_eq!((found.kind.as_str(), found.handle, found.tbf), ("tbf", 0x1_0000, Some(tbf)));
    let qdiscs = handle.qdiscs(None).unwrap();
    assert_eq!(
        qdiscs.iter().find(|qdisc| qdisc.tbf.is_some_and(|tbf| tbf.rate == fast.rate)).unwrap().index,
        eth0.index
    );
    assert!(qdiscs.iter().any(|qdisc| qdisc.kind == "ingress" && qdisc.parent == INGRESS));
    let filters = handle.filters(eth0.index, INGRESS).unwrap();
    let redirections: Vec<_> = filters.iter().filter_map(|filter| filter.redirect).collect();
    assert_eq!(redirections, [ifb.index]);
    let shown = output(&here, &["tc", "qdisc", "show", "dev", "bwp0"]);
    assert!(shown.contains("rate 8Mbit burst 125000b") || shown.contains("rate 8Mbit burst 122Kb"), "{shown}");
    let shown = output(&here, &["tc", "filter", "show", "dev", "eth0", "ingress"]);
    assert!(shown.contains("mirred (Egress Redirect to device bwp0)"), "{shown}");

    handle.delete_filters(eth0.index, INGRESS).unwrap();
    assert_eq!(handle.filters(eth0.index, INGRESS).unwrap(), []);
    handle.delete_qdisc(eth0.index, INGRESS).unwrap();
    handle.delete_qdisc(eth0.index, ROOT).unwrap();
    assert!(handle.delete_qdisc(eth0.index, INGRESS).is_err());
    assert!(handle.add_tbf(eth0.index, &Tbf { rate: 0, ..tbf }).is_err());
}

#[test]
fn bridges_and_ports() {
    let Some((here, handle)) = netns() else { return };
    let (port, _) = veth("port", "eth0", &handle);
    let bridge = NewLinkKind::Bridge { vlan_filtering: false };
    handle.create_link(&NewLink { name: "br0", up: true, kind: bridge, ..NewLink::default() }).unwrap();
    let br = handle.link("br0").unwrap();
    let monitor = Monitor::in_netns(Groups { links: true, ..Groups::default() }, &here).unwrap();
    handle.set_link("port", &LinkChange { master: Some(Some(br.index)), ..LinkChange::default() }).unwrap();
    monitor
        .wait_until(Instant::now() + Duration::from_secs(5), |event| match event {
            Event::Link(link) if link.index == port.index => link.master.filter(|master| *master == br.index),
            _ => None,
        })
        .unwrap();
    let settings = BridgePort { hairpin: Some(true), isolated: Some(true), ..BridgePort::default() };
    handle.bridge_port(port.index, &settings).unwrap();
    let found = handle.link("port").unwrap().port.unwrap();
    assert_eq!((found.hairpin, found.isolated, found.learning), (Some(true), Some(true), Some(true)));
    assert_eq!(found.state, Some(PortState::Forwarding));
    handle.set_link(&port, &LinkChange { master: Some(None), ..LinkChange::default() }).unwrap();
    assert_eq!(handle.link("port").unwrap().master, None);
}

#[test]
fn vlans_of_bridges() {
    let Some((_, handle)) = netns() else { return };
    let (port, _) = veth("port", "eth0", &handle);
    let bridge = NewLinkKind::Bridge { vlan_filtering: true };
    match handle.create_link(&NewLink { name: "br0", up: true, kind: bridge, ..NewLink::default() }) {
        Err(error) if error.is_unsupported() => {
            eprintln!("skipped: the bridges of this kernel know no VLANs (the test in a guest shows them)");
            return;
        }
        result => result.unwrap(),
    }
    let br = handle.link("br0").unwrap();
    assert_eq!(br.details, LinkDetails::Bridge { vlan_filtering: true, default_pvid: 1 });
    handle.set_link("port", &LinkChange { master: Some(Some(br.index)), ..LinkChange::default() }).unwrap();
    handle.bridge_vlan_add(port.index, 100..=100, vlan_flags::PVID | vlan_flags::UNTAGGED).unwrap();
    handle.bridge_vlan_add(port.index, 200..=210, 0).unwrap();
    handle.bridge_vlan_add(br.index, 100..=100, vlan_flags::SELF).unwrap();
    handle.bridge_vlan_del(port.index, 1..=1, 0).unwrap();
    let vlans = handle.bridge_vlans().unwrap();
    assert_eq!(vlans[&port.index], [(100..=100, vlan_flags::PVID | vlan_flags::UNTAGGED), (200..=210, 0)]);
    assert!(vlans[&br.index].contains(&(100..=100, 0)));
    handle.set_bridge(br.index, &BridgeSettings { vlan_filtering: Some(false), default_pvid: Some(0) }).unwrap();
    let details = LinkDetails::Bridge { vlan_filtering: false, default_pvid: 0 };
    assert_eq!(handle.link("br0").unwrap().details, details);
}

#[test]
fn batches_go_on_after_a_refusal() {
    let Some((_, handle)) = netns() else { return };
    let bridge = NewLink {
        name: "br",
        index: Some(50),
        kind: NewLinkKind::Bridge { vlan_filtering: false },
        ..NewLink::default()
    };
    let mut batch = handle.batch();
    batch.create_link(&bridge).create_link(&bridge);
    batch.add_address(50, &NewAddress::new("10.0.0.1/24".parse().unwrap()));
    batch.set_link("br", &LinkChange { up: Some(true), ..LinkChange::default() });
    let results = batch.commit_each().unwrap();
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, true]);
    assert!(results[1].as_ref().unwrap_err().is_exists());
    assert!(handle.link("br").unwrap().is_up());
    assert_eq!(handle.addresses(Some(50)).unwrap()[0].net.to_string(), "10.0.0.1/24");

    let mut batch = handle.batch();
    batch.delete_link("br").delete_link("no such link");
    assert!(matches!(batch.commit(), Err(Error::Invalid { .. })));
    assert!(handle.find_link("br").unwrap().is_some(), "nothing is sent if one request is impossible");
    assert!(handle.batch().is_empty());
    handle.batch().commit().unwrap();
}

#[test]
fn large_batches_and_dumps() {
    let Some((_, handle)) = netns() else { return };
    let mut batch = handle.batch();
    for number in 0..2000u32 {
        let net = ipnet::Ipv4Net::new((0x0a00_0000 + number * 256 + 1).into(), 24).unwrap();
        batch.add_address(1, &NewAddress::new(net.into()));
    }
    assert_eq!(batch.len(), 2000);
    batch.commit().unwrap();
    assert_eq!(handle.addresses(Some(1)).unwrap().len(), 2000);
    // All of these are refused, so there is an answer to each.
    let mut batch = handle.batch();
    for number in 0..2000u32 {
        let net = ipnet::Ipv4Net::new((0x0a00_0000 + number * 256 + 1).into(), 24).unwrap();
        batch.add_address(1, &NewAddress::new(net.into()));
    }
    assert!(batch.commit_each().unwrap().iter().all(|result| result.as_ref().is_err_and(Error::is_exists)));
}
