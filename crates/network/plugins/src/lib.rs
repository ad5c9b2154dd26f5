//! The CNI reference plugins: main, IPAM and meta plugins, and the fast chain.

mod attach;
pub mod bandwidth;
pub mod bridge;
pub mod chain;
pub mod dummy;
pub mod firewall;
pub mod flannel;
pub mod host_device;
pub mod ipam;
pub mod ipvlan;
pub mod loopback;
pub mod macvlan;
pub mod portmap;
pub mod ptp;
pub mod registry;
pub mod rules;
pub mod sbr;
pub mod session;
pub mod tap;
pub mod tuning;
pub mod vlan;
pub mod vrf;
pub mod windows;

pub use registry::plugin;
pub use session::{Container, Session};
