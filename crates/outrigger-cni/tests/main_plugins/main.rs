//! The main plugins and the fast chain on private hosts, beside the original plugins where these are installed.

mod bridge;
mod chain;
mod flannel;
mod harness;
mod loopback;
mod ptp;
