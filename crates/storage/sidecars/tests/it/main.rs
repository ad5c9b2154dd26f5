//! The provisioner against an API server in memory and a scripted driver on a real socket.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod claims;
mod cluster;
mod crash;
mod driver;
mod effects;
mod faults;
mod harness;
