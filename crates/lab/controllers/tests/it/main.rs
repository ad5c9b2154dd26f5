//! The control loops with a real API server and store in the same process.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod garbage;
mod hardship;
mod lab;
mod namespaces;
mod volumes;
