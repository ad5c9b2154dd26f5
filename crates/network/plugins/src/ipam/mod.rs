//! Plugins that hand out addresses: `host-local`, `static` and `dhcp`.

pub mod dhcp;
pub mod host_local;
mod later;
pub mod static_;
#[cfg(test)]
mod testing;

pub use later::Later;
