//! The network plugins as runtimes meet them: the real multi-call binary, private hosts, stock peers and clients.

mod attach;
mod bad_input;
mod clients;
mod common;
mod connectivity;
mod crash;
mod dhcp;
mod guest;
mod interchange;
mod interfaces;
mod legacy;
mod meta;
mod owners;
mod rules;
mod verify;
