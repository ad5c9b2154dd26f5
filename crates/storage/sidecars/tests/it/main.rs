//! The provisioner against an API server in memory and a scripted driver on a real socket.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, and figures go to the test's output"
)]

mod claims;
mod cluster;
mod crash;
mod driver;
mod effects;
mod faults;
mod harness;
mod lab;
