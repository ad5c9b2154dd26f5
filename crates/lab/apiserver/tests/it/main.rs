//! The API server from outside: real HTTPS, real `kubectl`.

#![expect(clippy::print_stderr, reason = "a skipped test says why")]

mod access;
mod crd;
mod crud;
mod deletion;
mod formats;
mod kubectl;
mod lab;
mod reads;
mod robustness;
