//! The main plugins and the fast chain on private hosts, beside the original plugins where these are installed.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and say what they skip"
)]

mod bridge;
mod chain;
mod flannel;
mod harness;
mod loopback;
mod ptp;
mod teardown;
mod vlans;
