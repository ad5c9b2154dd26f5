//! Blocking netlink without a runtime: rtnetlink, nf_tables, conntrack, and network namespaces.

pub mod conntrack;
mod error;
mod mac;
mod netns;
pub mod nft;
pub mod route;
mod socket;
pub mod wire;

pub use error::{Error, NamespaceProblem, Result};
pub use mac::MacAddr;
pub use netns::NetNs;
pub use socket::{NLMSG_DONE, NLMSG_ERROR, Outcome, Protocol, Refusal, Reply, Socket};
