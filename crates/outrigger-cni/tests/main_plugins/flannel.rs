//! `flannel`, with a file as its daemon writes it.

use serde_json::json;

use crate::harness::{Attachment, config, host, ours, root};

#[test]
fn a_network_from_the_daemons_file() {
    if !root() {
        return;
    }
    let host = host().unwrap();
    let config = config("flannel", json!({ "delegate": { "isDefaultGateway": true } }));
    let attachment = Attachment::new("a");
    let failed = attachment.call(&host, ours(), "ADD", &config).unwrap();
    assert_eq!(failed.error_code(), Some(11), "{}", failed.stdout);
    let file = "mkdir -p /run/flannel; printf 'FLANNEL_NETWORK=10.244.0.0/16\\nFLANNEL_SUBNET=10.244.3.1/24\\n\
                FLANNEL_MTU=1450\\nFLANNEL_IPMASQ=false\\n' >/run/flannel/subnet.env";
    host.sh(file).unwrap();
    let result = attachment.add(&host, ours(), &config).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.244.3.2/24");
    assert_eq!(result["routes"], json!([{ "dst": "10.244.0.0/16" }, { "dst": "0.0.0.0/0", "gw": "10.244.3.1" }]));
    assert!(host.container_sh("a", "ip link show eth0").unwrap().contains("mtu 1450"));
    assert!(host.sh("iptables -t nat -S").unwrap().contains("MASQUERADE"));
    host.container_sh("a", "ping -c1 -W2 10.244.3.1").unwrap();
    attachment.after(&host, ours(), "CHECK", &config, &result).unwrap();
    // A second ADD fails and takes nothing away; one that fails by itself leaves nothing.
    assert!(attachment.call(&host, ours(), "ADD", &config).unwrap().code != Some(0));
    attachment.after(&host, ours(), "CHECK", &config, &result).unwrap();
    assert_eq!(host.sh("ls /var/lib/cni/flannel").unwrap(), "a\n");
    let mut wrong = config.clone();
    wrong["delegate"]["mtu"] = json!(1_000_000);
    assert!(Attachment::new("b").call(&host, ours(), "ADD", &wrong).unwrap().code != Some(0));
    assert_eq!(host.sh("ls /var/lib/cni/flannel").unwrap(), "a\n");
    host.sh("rm /run/flannel/subnet.env").unwrap();
    for _ in 0..2 {
        attachment.del(&host, ours(), &config).unwrap();
    }
    assert_eq!(
        host.sh("ip -br link show type veth; find /var/lib/cni -name '10.*'; ls /var/lib/cni/flannel").unwrap(),
        ""
    );
    assert!(!host.sh("iptables -t nat -S").unwrap().contains("MASQUERADE"));
}
