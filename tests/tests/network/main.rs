//! The network plugins as runtimes meet them: the real multi-call binary, private hosts, stock peers and clients.

mod clients;
mod common;
mod rules;
