//! `dhcp`: addresses from DHCP servers, and the daemon that keeps them.

mod client;
mod lease;
mod options;
mod packet;
