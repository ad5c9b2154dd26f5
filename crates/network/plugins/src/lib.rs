//! The CNI reference plugins: main, IPAM and meta plugins, and the fast chain.

pub mod ipam;
pub mod rules;
