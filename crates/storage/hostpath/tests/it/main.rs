//! The driver behind its socket, called as Kubernetes calls it, with real mounts and loop devices.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests are tests")]

mod controller;
mod crash;
mod input;
mod node;
mod rates;
mod support;
