//! What the plugins promise, seen by packets: who reaches whom, from which address, how fast, and who does not.
//!
//! `OUTRIGGER_CNI_DIR` points the suite at another directory of plugins, to see it pass on the peers.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use outrigger_testing::NetHost;
use outrigger_tests::eventually;
use serde_json::{Value, json};

use crate::attach::{Network, address};
use crate::common::{Plugins, can_run};

/// Long enough for a busy machine; a packet that arrives does so in a thousandth of it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough to say that a packet was dropped: a connection on one machine takes microseconds.
const DROPPED: Duration = Duration::from_millis(700);

/// Addresses of the way out: the host's end, and a machine beyond it that knows nothing of pods.
const HOST4: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const OUT4: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, 1);
const OUT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, 2);

/// A private host with our plugins, and a machine `out` beyond an uplink `up0`.
struct World {
    host: NetHost,
    dir: PathBuf,
    _installed: Option<Plugins>,
}

impl World {
    fn new() -> Result<Self> {
        let (dir, installed) = if let Some(dir) = std::env::var_os("OUTRIGGER_CNI_DIR") {
            (PathBuf::from(dir), None)
        } else {
            let plugins = Plugins::install()?;
            (plugins.dir().to_owned(), Some(plugins))
        };
        let host = NetHost::new()?;
        host.container("out")?;
        host.sh(&format!(
            "ip link add up0 type veth peer name eth0 netns /run/netns/out; ip link set up0 up
             ip addr add {HOST4}/24 dev up0; ip addr add {HOST6}/64 dev up0 nodad"
        ))?;
        host.container_sh(
            "out",
            &format!(
                "ip link set lo up; ip link set eth0 up
                 ip addr add {OUT4}/24 dev eth0; ip addr add {OUT6}/64 dev eth0 nodad"
            ),
        )?;
        Ok(Self { host, dir, _installed: installed })
    }

    /// For "out" to be a router's neighbour: it sends what is for pods to the host.
    fn route_back(&self, subnet: &str) -> Result<()> {
        let gateway = if subnet.contains(':') { HOST6.to_string() } else { HOST4.to_string() };
        self.host.container_sh("out", &format!("ip route add {subnet} via {gateway}")).map(drop)
    }

    fn network(&self, name: &str, chain: Vec<Value>) -> Network {
        Network::new(name, &self.dir, chain)
    }

    /// A new container on the network.
    fn attach(&self, network: &Network, id: &str) -> Result<Value> {
        self.host.container(id)?;
        self.host.container_sh(id, "ip link set lo up")?;
        network.add(&self.host, id, "eth0")
    }

    /// One TCP exchange between namespaces (none = the host); gives the client's address as the server saw it.
    fn tcp(
        &self,
        client: Option<&str>,
        server: Option<&str>,
        listen: SocketAddr,
        connect: SocketAddr,
    ) -> Result<IpAddr> {
        let listener = self.host.within(server, || Ok(TcpListener::bind(listen)?))?;
        let (seen, got) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let from = serve_one(&listener);
            // Closed before anyone hears of it: the next one listens on the same port.
            drop(listener);
            let _ = seen.send(from);
        });
        self.host.within(client, || ask(connect, PATIENCE))?;
        got.recv_timeout(PATIENCE).context("the server heard nothing")?
    }

    /// One UDP exchange; the answer must come from where the question went.
    fn udp(&self, client: Option<&str>, server: Option<&str>, listen: SocketAddr, to: SocketAddr) -> Result<IpAddr> {
        let socket = self.host.within(server, || Ok(UdpSocket::bind(listen)?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let server = std::thread::spawn(move || -> Result<IpAddr> {
            let mut bytes = [0; 64];
            let (length, from) = socket.recv_from(&mut bytes)?;
            socket.send_to(&bytes[..length], from)?;
            Ok(from.ip())
        });
        self.host.within(client, || {
            let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send(b"question")?;
            let mut bytes = [0; 64];
            let length = socket.recv(&mut bytes).with_context(|| format!("no answer from {to}"))?;
            ensure!(&bytes[..length] == b"question", "another answer");
            Ok(())
        })?;
        server.join().map_err(|_| anyhow::anyhow!("the server panicked"))?
    }

    fn ping(&self, from: Option<&str>, to: IpAddr) -> Result<()> {
        let line = format!("ping -n -c 1 -W 5 {to}");
        match from {
            Some(name) => self.host.container_sh(name, &line).map(drop),
            None => self.host.sh(&line).map(drop),
        }
    }

    /// That no connection comes about though somebody listens: packets are dropped.
    fn no_tcp(
        &self,
        client: Option<&str>,
        server: Option<&str>,
        listen: SocketAddr,
        connect: SocketAddr,
    ) -> Result<()> {
        let _listener = self.host.within(server, || Ok(TcpListener::bind(listen)?))?;
        // The listener's backlog takes the connection if it gets through.
        match self.host.within(client, || Ok(TcpStream::connect_timeout(&connect, DROPPED).map(drop)?)) {
            Ok(()) => bail!("{client:?} reaches {connect}, which it must not"),
            Err(_) => Ok(()),
        }
    }
}

/// Takes one connection, echoes what comes, gives the peer's address.
fn serve_one(listener: &TcpListener) -> Result<IpAddr> {
    let (mut stream, from) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    stream.write_all(&bytes)?;
    Ok(from.ip())
}

fn ask(server: SocketAddr, patience: Duration) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, patience).with_context(|| format!("to {server}"))?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"question")?;
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes).with_context(|| format!("no answer from {server}"))?;
    ensure!(&bytes == b"question", "another answer");
    Ok(())
}

fn any(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

fn ipam(subnets: &[&str]) -> Value {
    let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    let routes: Vec<Value> = subnets
        .iter()
        .map(|subnet| json!({ "dst": if subnet.contains(':') { "::/0" } else { "0.0.0.0/0" } }))
        .collect();
    json!({ "type": "host-local", "ranges": ranges, "routes": routes })
}

const DUAL: &[&str] = &["10.5.0.0/24", "fd00:5::/64"];

fn bridge(subnets: &[&str]) -> Value {
    json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": ipam(subnets) })
}

/// Whether the plugins have nftables back ends; Debian's 1.1.1, at which the suite can be pointed, take no notice of the
/// key.
fn knows_nftables(dir: &Path) -> Result<bool> {
    let binary = fs_err::read(dir.join("portmap"))?;
    let name = b"cni_hostport";
    Ok(binary.windows(name.len()).any(|bytes| bytes == name))
}

#[test]
fn containers_reach_each_other_the_gateway_and_out_masqueraded() {
    if !can_run("containers_reach_each_other_the_gateway_and_out_masqueraded") {
        return;
    }
    let mut nft = bridge(DUAL);
    nft["ipMasqBackend"] = "nftables".into();
    let ptp = json!({ "type": "ptp", "ipMasq": true, "ipam": ipam(DUAL) });
    for main in [bridge(DUAL), nft, ptp] {
        let world = World::new().unwrap();
        let network = world.network("pods", vec![main.clone()]);
        let a = world.attach(&network, "a").unwrap();
        let b = world.attach(&network, "b").unwrap();
        for v6 in [false, true] {
            let (a, b) = (address(&a, v6).unwrap(), address(&b, v6).unwrap());
            let gateway: IpAddr = if v6 { "fd00:5::1".parse().unwrap() } else { "10.5.0.1".parse().unwrap() };
            let (out, host): (IpAddr, IpAddr) =
                if v6 { (OUT6.into(), HOST6.into()) } else { (OUT4.into(), HOST4.into()) };
            let what = format!("{main} v6 {v6}");
            let all = (any(v6), 8080).into();
            let seen = world.tcp(Some("a"), Some("b"), all, (b, 8080).into()).expect(&what);
            // ptp routes between containers, and the masquerade leaves what stays in the subnet alone.
            assert_eq!(seen, a, "{main}");
            assert_eq!(world.udp(Some("b"), Some("a"), (a, 5353).into(), (a, 5353).into()).expect(&what), b);
            world.ping(Some("a"), b).expect(&what);
            world.ping(Some("a"), gateway).expect(&what);
            assert_eq!(world.tcp(Some("a"), None, all, (gateway, 8080).into()).expect(&what), a);
            assert_eq!(world.tcp(None, Some("b"), all, (b, 8080).into()).expect(&what), gateway);
            // "out" has no route to the pods: answers come only because it sees the host's address.
            assert_eq!(world.tcp(Some("a"), Some("out"), all, (out, 8080).into()).expect(&what), host, "{main}");
            assert_eq!(world.udp(Some("b"), Some("out"), all, (out, 8080).into()).expect(&what), host, "{main}");
            world.ping(Some("a"), out).expect(&what);
        }
        network.check(&world.host, "a", "eth0", &a).unwrap();
        network.del(&world.host, "a", "eth0", &a).unwrap();
        // The other one keeps its masquerade.
        let all = (any(false), 8080).into();
        assert_eq!(world.tcp(Some("b"), Some("out"), all, (OUT4, 8080).into()).unwrap(), IpAddr::from(HOST4));
        network.del(&world.host, "b", "eth0", &b).unwrap();
    }
}

#[test]
fn mapped_ports_are_reached_from_everywhere_they_should() {
    if !can_run("mapped_ports_are_reached_from_everywhere_they_should") {
        return;
    }
    for backend in ["iptables", "nftables"] {
        let world = World::new().unwrap();
        if backend == "nftables" && !knows_nftables(&world.dir).unwrap() {
            continue;
        }
        let mappings = json!([
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": 5300, "containerPort": 53, "protocol": "udp" },
            { "hostPort": 8081, "containerPort": 81, "protocol": "tcp", "hostIP": HOST4.to_string() },
            { "hostPort": 8082, "containerPort": 82, "protocol": "tcp", "hostIP": HOST6.to_string() },
        ]);
        let portmap = json!({ "type": "portmap", "backend": backend, "snat": true,
            "capabilities": { "portMappings": true }, "runtimeConfig": { "portMappings": mappings } });
        // With br_netfilter the bridge itself sends a packet back to the container that it came from.
        let mut main = bridge(DUAL);
        main["hairpinMode"] = true.into();
        let mut server = world.network("pods", vec![main, portmap.clone()]);
        let a = world.attach(&server, "a").unwrap();
        let plain = world.network("pods", vec![bridge(DUAL)]);
        world.attach(&plain, "b").unwrap();
        let what = |text: &str| format!("{backend}: {text}");
        for v6 in [false, true] {
            let a = address(&a, v6).unwrap();
            let (out, host): (IpAddr, IpAddr) =
                if v6 { (OUT6.into(), HOST6.into()) } else { (OUT4.into(), HOST4.into()) };
            let all: SocketAddr = (any(v6), 80).into();
            let seen =
                world.tcp(Some("out"), Some("a"), all, (host, 8080).into()).context(what("from outside")).unwrap();
            assert_eq!(seen, out, "{backend}: the container sees the real client");
            world.tcp(None, Some("a"), all, (host, 8080).into()).context(what("from the host by its address")).unwrap();
            world.tcp(Some("b"), Some("a"), all, (host, 8080).into()).context(what("from a neighbour")).unwrap();
            world.tcp(Some("a"), Some("a"), all, (host, 8080).into()).context(what("from itself (hairpin)")).unwrap();
            let dns = (any(v6), 53).into();
            let seen =
                world.udp(Some("out"), Some("a"), dns, (host, 5300).into()).context(what("UDP from outside")).unwrap();
            assert_eq!(seen, out);
            // Other addresses and ports of the host are left alone.
            world.no_tcp(Some("out"), Some("a"), (any(v6), 9090).into(), (host, 9090).into()).unwrap();
            let (port, right, wrong) = if v6 { (82, HOST6.into(), a) } else { (81, IpAddr::from(HOST4), a) };
            let own = (any(v6), port).into();
            world.tcp(Some("out"), Some("a"), own, (right, 8000 + port).into()).context(what("hostIP")).unwrap();
            let gateway: IpAddr = if v6 { "fd00:5::1".parse().unwrap() } else { "10.5.0.1".parse().unwrap() };
            world
                .no_tcp(Some("b"), Some("a"), own, (gateway, 8000 + port).into())
                .context(what("another host IP"))
                .unwrap();
            world.no_tcp(Some("b"), Some("a"), own, (wrong, 8000 + port).into()).unwrap();
        }
        let local: SocketAddr = (Ipv4Addr::LOCALHOST, 8080).into();
        world.tcp(None, Some("a"), (any(false), 80).into(), local).context(what("from the host by localhost")).unwrap();
        // A connection that merely passes through to that port is not caught.
        world.route_back("10.5.0.0/24").unwrap();
        let away = (any(false), 8080).into();
        world.tcp(Some("b"), Some("out"), away, (OUT4, 8080).into()).context(what("passing through")).unwrap();
        server.check(&world.host, "a", "eth0", &a).ok();
        // DEL does not need to be told what was mapped.
        server.chain[1].as_object_mut().unwrap().remove("runtimeConfig");
        if std::env::var_os("OUTRIGGER_CNI_DIR").is_some() {
            server.chain[1] = portmap;
        }
        server.del(&world.host, "a", "eth0", &a).unwrap();
        world.no_tcp(Some("out"), Some("out"), (any(false), 1).into(), (HOST4, 8080).into()).unwrap();
        world
            .tcp(Some("out"), None, (any(false), 8080).into(), (HOST4, 8080).into())
            .context(what("the port is free"))
            .unwrap();
    }
}

/// What arrives in one direction in a second of steady flow, in bits of frames.
fn throughput(world: &World, sender: Option<&str>, receiver: Option<&str>, to: IpAddr) -> Result<f64> {
    let listener = world.host.within(receiver, || Ok(TcpListener::bind((any(to.is_ipv6()), 9000))?))?;
    // What waits to be read when the measurement begins came before it; so little may wait.
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 128 * 1024)?;
    let mut stream = world.host.within(sender, || Ok(TcpStream::connect_timeout(&(to, 9000).into(), PATIENCE)?))?;
    let (mut incoming, _) = listener.accept()?;
    incoming.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let sending = std::thread::spawn(move || {
        let chunk = [0; 16 * 1024];
        // Ends when the receiver has closed.
        while stream.write_all(&chunk).is_ok() {}
    });
    let mut bytes = vec![0; 64 * 1024];
    // The burst passes at once; what counts is what follows.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(400) {
        ensure!(incoming.read(&mut bytes)? > 0, "the sender ended");
    }
    let (begin, mut count) = (Instant::now(), 0);
    while begin.elapsed() < Duration::from_secs(2) {
        count += incoming.read(&mut bytes)?;
    }
    let took = begin.elapsed().as_secs_f64();
    drop(incoming);
    sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?;
    // A full segment is a frame of 1514 bytes, 1448 of which are payload.
    let frames = f64::from(u32::try_from(count)?) * 1514.0 / 1448.0;
    Ok(frames * 8.0 / took)
}

#[test]
fn bandwidth_is_within_a_tenth_of_the_limit_in_both_directions() {
    if !can_run("bandwidth_is_within_a_tenth_of_the_limit_in_both_directions") {
        return;
    }
    let world = World::new().unwrap();
    let (to_pod, from_pod) = (16_000_000, 24_000_000);
    let limits = json!({ "ingressRate": to_pod, "ingressBurst": to_pod / 40, "egressRate": from_pod,
        "egressBurst": from_pod / 40 });
    let shaper = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true },
        "runtimeConfig": { "bandwidth": limits } });
    let network = world.network("pods", vec![bridge(&["10.5.0.0/24"]), shaper]);
    let a = world.attach(&network, "a").unwrap();
    let address = address(&a, false).unwrap();
    network.check(&world.host, "a", "eth0", &a).unwrap();
    for (direction, limit, sender, receiver, to) in [
        ("to the container", to_pod, None, Some("a"), address),
        ("from the container", from_pod, Some("a"), Some("out"), OUT4.into()),
    ] {
        // A machine that is busy with other things can starve one of the two ends; not three times.
        let mut ratios = Vec::new();
        while ratios.len() < 3 && !ratios.last().is_some_and(|ratio| (0.9..=1.1).contains(ratio)) {
            ratios.push(throughput(&world, sender, receiver, to).unwrap() / f64::from(limit));
        }
        println!("{direction}: {ratios:.3?} of the limit");
        assert!((0.9..=1.1).contains(ratios.last().unwrap()), "{direction}: {ratios:?} of {limit} bit/s");
    }
    network.del(&world.host, "a", "eth0", &a).unwrap();
    assert_eq!(world.host.sh("ip -o link show type ifb").unwrap(), "");
}

#[test]
fn the_firewall_lets_out_and_answers_in_and_nothing_else() {
    if !can_run("the_firewall_lets_out_and_answers_in_and_nothing_else") {
        return;
    }
    let world = World::new().unwrap();
    world.host.sh("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP").unwrap();
    for subnet in DUAL {
        world.route_back(subnet).unwrap();
    }
    let mut main = bridge(DUAL);
    main["ipMasq"] = false.into();
    let open = world.network("pods", vec![main.clone(), json!({ "type": "firewall" })]);
    let closed = world.network("pods", vec![main]);
    let a = world.attach(&open, "a").unwrap();
    let b = world.attach(&closed, "b").unwrap();
    for v6 in [false, true] {
        let a = address(&a, v6).unwrap();
        let out: IpAddr = if v6 { OUT6.into() } else { OUT4.into() };
        let all: SocketAddr = (any(v6), 8080).into();
        world.tcp(Some("a"), Some("out"), all, (out, 8080).into()).unwrap();
        world.ping(Some("a"), out).unwrap();
        world.no_tcp(Some("out"), Some("a"), all, (a, 8080).into()).unwrap();
        world.no_tcp(Some("b"), Some("out"), all, (out, 8080).into()).unwrap();
    }
    open.check(&world.host, "a", "eth0", &a).unwrap();
    open.del(&world.host, "a", "eth0", &a).unwrap();
    closed.del(&world.host, "b", "eth0", &b).unwrap();
    let left = world.host.sh("iptables-save -t filter; ip6tables-save -t filter").unwrap();
    assert!(!left.contains("10.5.0.") && !left.contains("fd00:5:"), "{left}");
}

#[test]
fn ingress_policies_keep_bridges_apart() {
    if !can_run("ingress_policies_keep_bridges_apart") {
        return;
    }
    for policy in ["open", "same-bridge", "isolated"] {
        let world = World::new().unwrap();
        if policy == "isolated" && world.host.sh("sysctl -w net.bridge.bridge-nf-call-iptables=1").is_err() {
            outrigger_tests::eprintln_skip("ingress_policies_keep_bridges_apart", "isolated needs br_netfilter");
            continue;
        }
        let chain = |bridge: &str, subnet: &str| {
            let main = json!({ "type": "bridge", "bridge": bridge, "isGateway": true, "ipam": ipam(&[subnet]) });
            vec![main, json!({ "type": "firewall", "ingressPolicy": policy })]
        };
        let one = world.network("one", chain("cni0", "10.5.0.0/24"));
        let two = world.network("two", chain("cni1", "10.6.0.0/24"));
        world.attach(&one, "a").unwrap();
        let b = world.attach(&one, "b").unwrap();
        let c = world.attach(&two, "c").unwrap();
        let (b, c) = (address(&b, false).unwrap(), address(&c, false).unwrap());
        // Each with a port of its own: who waits in vain keeps it.
        let port = |port: u16| SocketAddr::from((any(false), port));
        let near = world.tcp(Some("a"), Some("b"), port(8080), (b, 8080).into());
        let far = world.no_tcp(Some("a"), Some("c"), port(8080), (c, 8080).into());
        assert_eq!(
            (near.is_ok(), far.is_err()),
            (policy != "isolated", policy == "open"),
            "{policy}: {near:?} {far:?}"
        );
        // The host itself reaches all.
        world.tcp(None, Some("b"), port(8081), (b, 8081).into()).unwrap();
        world.tcp(None, Some("c"), port(8081), (c, 8081).into()).unwrap();
    }
}

#[test]
fn macvlan_neighbours_reach_each_other_and_the_wire() {
    if !can_run("macvlan_neighbours_reach_each_other_and_the_wire") {
        return;
    }
    let world = World::new().unwrap();
    let chain = |last: u8| {
        let addresses =
            json!([{ "address": format!("10.200.0.{last}/24") }, { "address": format!("fd00:200::{last}/64") }]);
        vec![json!({ "type": "macvlan", "master": "up0", "ipam": { "type": "static", "addresses": addresses } })]
    };
    let (first, second) = (world.network("wire", chain(11)), world.network("wire", chain(12)));
    let a = world.attach(&first, "a").unwrap();
    let b = world.attach(&second, "b").unwrap();
    for id in ["a", "b"] {
        // Addresses of IPv6 are usable when the kernel knows that nobody else has them.
        eventually(PATIENCE, || {
            let tentative = world.host.container_sh(id, "ip -6 -o addr show tentative")?;
            ensure!(tentative.is_empty(), "{tentative}");
            Ok(())
        })
        .unwrap();
    }
    for v6 in [false, true] {
        let (a, b) = (address(&a, v6).unwrap(), address(&b, v6).unwrap());
        let out: IpAddr = if v6 { OUT6.into() } else { OUT4.into() };
        let all: SocketAddr = (any(v6), 8080).into();
        assert_eq!(world.tcp(Some("a"), Some("b"), all, (b, 8080).into()).unwrap(), a);
        assert_eq!(world.tcp(Some("a"), Some("out"), all, (out, 8080).into()).unwrap(), a);
        assert_eq!(world.udp(Some("out"), Some("b"), all, (b, 8080).into()).unwrap(), out);
        world.ping(Some("b"), a).unwrap();
    }
    first.check(&world.host, "a", "eth0", &a).unwrap();
    first.del(&world.host, "a", "eth0", &a).unwrap();
    second.del(&world.host, "b", "eth0", &b).unwrap();
}

#[test]
fn sbr_answers_from_the_interface_that_was_asked() {
    if !can_run("sbr_answers_from_the_interface_that_was_asked") {
        return;
    }
    for sbr in [false, true] {
        let world = World::new().unwrap();
        world.route_back("10.7.0.0/24").unwrap();
        world.route_back("fd00:7::/64").unwrap();
        let first = world.network("first", vec![bridge(DUAL)]);
        let second = ["10.7.0.0/24", "fd00:7::/64"];
        let mut chain = vec![json!({ "type": "bridge", "bridge": "cni1", "isGateway": true, "ipam": ipam(&second) })];
        // Only eth0 has the default routes.
        chain[0]["ipam"]["routes"] = json!([]);
        if sbr {
            chain.push(json!({ "type": "sbr" }));
        }
        let second = world.network("second", chain);
        world.attach(&first, "a").unwrap();
        let result = second.add(&world.host, "a", "net1").unwrap();
        // Whoever answers for the second network through the first interface is not heard.
        world.host.sh("iptables -I FORWARD -i cni0 -s 10.7.0.0/24 -j DROP").unwrap();
        world.host.sh("ip6tables -I FORWARD -i cni0 -s fd00:7::/64 -j DROP").unwrap();
        for v6 in [false, true] {
            let address = address(&result, v6).unwrap();
            let all: SocketAddr = (any(v6), 8080).into();
            if sbr {
                world.tcp(Some("out"), Some("a"), all, (address, 8080).into()).unwrap();
            } else {
                world.no_tcp(Some("out"), Some("a"), all, (address, 8080).into()).unwrap();
            }
        }
        if std::env::var_os("OUTRIGGER_CNI_DIR").is_none() {
            // The peers' bridge misses the routes that sbr moved.
            second.check(&world.host, "a", "net1", &result).unwrap();
        }
        second.del(&world.host, "a", "net1", &result).unwrap();
        let rules = world.host.container_sh("a", "ip rule; ip -6 rule").unwrap();
        assert!(!rules.contains("10.7.0.") && !rules.contains("fd00:7:"), "{rules}");
        world.tcp(Some("a"), Some("out"), (any(false), 80).into(), (OUT4, 80).into()).unwrap();
    }
}
