//! Plugins that hand out addresses: `host-local`, `static` and `dhcp`.

pub mod host_local;
