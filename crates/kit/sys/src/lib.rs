//! Kernel interfaces that need raw system calls: loop devices, mounts, the mount table, file system usage, what network
//! code needs beyond `rustix`.
//!
//! This is the only crate of the workspace in which `unsafe` is allowed. What it holds of it are `ioctl`s and a few
//! other calls, one system call a function, each wrapped so that callers see paths, numbers and [`Error`]s only. Everything
//! else goes through `rustix`.
//!
//! Nothing here keeps state: the kernel is asked each time, because other programs (and earlier runs of the caller)
//! attach devices and mount file systems too.

mod children;
mod error;
mod filesystem;
pub mod loopdev;
pub mod mount;
pub mod mountinfo;
pub mod namespace;
pub mod net;
pub mod packet;
pub mod service;

pub use children::{ResourceUsage, wait_with_usage};
pub use error::Error;
pub use filesystem::{Usage, block_device_size, sync_filesystem, usage};
