//! The whole system as its users meet it: the real binary, stock clients, real mounts.

mod bad_input;
mod clients;
mod command;
mod storage;
