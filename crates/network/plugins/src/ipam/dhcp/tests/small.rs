//! With a server whose leases are short, and which changes its mind.

use std::net::Ipv4Addr;

use serde_json::json;

use super::super::packet::MessageType;
use super::server::{Mood, Server};
use super::{Lan, Running, code, eventually, lease_files};

const ADDRESS: &str = "10.77.0.99/24";

#[test]
fn an_ended_lease_takes_the_address_away_and_a_new_one_brings_it_back() {
    let Some(lan) = Lan::new() else { return };
    let server = Server::start(&lan, Mood::Generous(6));
    let _daemon = Running::start(lan.settings());
    let result = lan.call("ADD", "a", json!({})).unwrap();
    assert_eq!(result["ips"][0]["address"], ADDRESS);
    Lan::ip(&lan.container, &format!("addr add {ADDRESS} dev eth0"));
    Lan::ip(&lan.container, "route add default via 10.77.0.1");
    let own: Ipv4Addr = [10, 77, 0, 99].into();
    eventually("renewed from its own address", || server.heard(MessageType::Request) == (2, Some(own)));
    server.become_(Mood::Silent);
    eventually("the address is taken off", || !lan.addresses().contains(ADDRESS));
    let (_, msg) = code(lan.call("CHECK", "a", json!({})));
    assert!(msg.contains("has lost its lease"), "{msg}");
    server.become_(Mood::Generous(600));
    eventually("the address is back", || lan.addresses().contains(ADDRESS));
    eventually("and the route", || Lan::ip(&lan.container, "route show default").contains("via 10.77.0.1"));
    eventually("the lease is there again", || lan.call("CHECK", "a", json!({})).is_ok());
    lan.call("DEL", "a", json!({})).unwrap();
    eventually("released", || server.heard(MessageType::Release) == (1, Some(own)));
}

#[test]
fn what_gc_frees_without_a_daemon_the_next_gives_back() {
    let Some(lan) = Lan::new() else { return };
    let server = Server::start(&lan, Mood::Generous(600));
    let daemon = Running::start(lan.settings());
    lan.call("ADD", "a", json!({})).unwrap();
    drop(daemon);
    lan.call("GC", "a", json!({})).unwrap();
    assert_eq!(lease_files(&lan), ["release"]);
    let _daemon = Running::start(lan.settings());
    eventually("released", || server.heard(MessageType::Release).0 == 1);
    eventually("forgotten", || lease_files(&lan).is_empty());
}

#[test]
fn a_refused_renewal() {
    let Some(lan) = Lan::new() else { return };
    let server = Server::start(&lan, Mood::Generous(4));
    let _daemon = Running::start(lan.settings());
    lan.call("ADD", "a", json!({})).unwrap();
    Lan::ip(&lan.container, &format!("addr add {ADDRESS} dev eth0"));
    server.become_(Mood::Refusing);
    eventually("the address is taken off", || !lan.addresses().contains(ADDRESS));
    eventually("it starts over", || server.heard(MessageType::Discover).0 >= 2);
    server.become_(Mood::Generous(600));
    eventually("the address is back", || lan.addresses().contains(ADDRESS));
}

#[test]
fn a_link_that_is_down_for_a_while() {
    let Some(lan) = Lan::new() else { return };
    let server = Server::start(&lan, Mood::Generous(8));
    let _daemon = Running::start(lan.settings());
    lan.call("ADD", "a", json!({})).unwrap();
    Lan::ip(&lan.container, &format!("addr add {ADDRESS} dev eth0"));
    Lan::ip(&lan.server, "link set srv down");
    let requests = server.heard(MessageType::Request).0;
    // Some tries go nowhere.
    let began = std::time::Instant::now();
    eventually("T1 has passed", || began.elapsed().as_secs() >= 5);
    assert_eq!(server.heard(MessageType::Request).0, requests);
    Lan::ip(&lan.server, "link set srv up");
    eventually("renewed", || server.heard(MessageType::Request).0 > requests);
    lan.call("CHECK", "a", json!({})).unwrap();
    assert!(lan.addresses().contains(ADDRESS));
}

#[test]
fn a_plugin_that_gives_up_leaves_no_lease() {
    let Some(lan) = Lan::new() else { return };
    let server = Server::start(&lan, Mood::Silent);
    let _daemon = Running::start(lan.settings());
    let request = json!({
        "protocol": 1, "command": "add", "container": "a", "network": "lan", "ifname": "eth0",
        "netns": lan.container.path(),
    });
    let stream = std::os::unix::net::UnixStream::connect(lan.socket()).unwrap();
    std::io::Write::write_all(&mut &stream, format!("{request}\n").as_bytes()).unwrap();
    eventually("it looks for a server", || server.heard(MessageType::Discover).0 > 0);
    drop(stream);
    server.become_(Mood::Generous(600));
    lan.call("STATUS", "a", json!({})).unwrap();
    eventually("there is none", || code(lan.call("CHECK", "a", json!({}))).1.contains("no lease"));
    assert_eq!(server.heard(MessageType::Request).0, 0);
    assert_eq!(lease_files(&lan), [""; 0]);
}

#[test]
fn a_container_that_went_without_del() {
    let Some(lan) = Lan::new() else { return };
    let _server = Server::start(&lan, Mood::Generous(600));
    let daemon = Running::start(lan.settings());
    lan.call("ADD", "a", json!({})).unwrap();
    drop(daemon);
    outrigger_netlink::NetNs::remove(lan.container.path()).unwrap();
    assert_eq!(lease_files(&lan), ["json"]);
    let _daemon = Running::start(lan.settings());
    lan.call("STATUS", "a", json!({})).unwrap();
    assert_eq!(lease_files(&lan), [""; 0]);
    lan.call("DEL", "a", json!({})).unwrap();
}

#[test]
fn a_container_that_goes_while_its_lease_runs() {
    let Some(lan) = Lan::new() else { return };
    let _server = Server::start(&lan, Mood::Generous(3));
    let _daemon = Running::start(lan.settings());
    lan.call("ADD", "a", json!({})).unwrap();
    outrigger_netlink::NetNs::remove(lan.container.path()).unwrap();
    eventually("the lease is forgotten at its end", || lease_files(&lan).is_empty());
    assert!(code(lan.call("CHECK", "a", json!({}))).1.contains("no lease"));
}
