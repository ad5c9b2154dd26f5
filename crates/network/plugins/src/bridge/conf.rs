//! Configuration of the bridge plugin.

use outrigger_cni_sdk::conf;

use super::vlan::TrunkItem;

conf! {
    /// Connects containers to a Linux bridge on the host by veth pairs. The bridge is made when it is absent, and can be
    /// the containers' gateway.
    pub struct BridgeConf {
        /// Name of the bridge.
        pub bridge: String = "cni0".into(),
        /// The bridge gets the gateway's address of each subnet, and the host forwards.
        pub is_gateway: bool,
        /// As `isGateway`, and the containers' default route leads there.
        pub is_default_gateway: bool,
        /// Replace an address of the bridge that overlaps with the gateway's, instead of failing.
        pub force_address: bool,
        /// Masquerade what containers send to other networks.
        pub ip_masq: bool,
        /// How to masquerade: `iptables` or `nftables`.
        pub ip_masq_backend: Option<String>,
        /// MTU of the bridge and of both ends of the pair; 0 leaves it to the kernel.
        pub mtu: u32,
        /// Let frames out of the port they came in by, so that a container reaches itself through its service's address.
        pub hairpin_mode: bool,
        /// Put the bridge into promiscuous mode. Not together with `hairpinMode`.
        pub promisc_mode: bool,
        /// VLAN of the container's frames, 1 to 4094; 0 is none. The bridge filters VLANs if it is made with this key or
        /// `vlanTrunk`; one that exists already is left as it is.
        pub vlan: i64,
        /// VLANs that the container may use tagged.
        pub vlan_trunk: Option<Vec<TrunkItem>>,
        /// Keep the bridge's default VLAN on the port when `vlan` or `vlanTrunk` is used.
        pub preserve_default_vlan: bool,
        /// Drop frames from the container whose source is not its MAC address.
        #[key = "macspoofchk"]
        pub mac_spoof_check: bool,
        /// Look for duplicates of the container's IPv6 addresses.
        #[key = "enabledad"]
        pub enable_dad: bool,
        /// Ports that are isolated do not reach each other.
        pub port_isolation: bool,
        /// Leave the container's interface down, without addresses. Not together with `ipam`.
        pub disable_container_interface: bool,
    }
}
