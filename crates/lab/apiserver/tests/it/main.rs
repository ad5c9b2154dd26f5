//! The API server from outside: real HTTPS, real `kubectl`.

mod access;
mod crd;
mod crud;
mod deletion;
mod formats;
mod kubectl;
mod lab;
mod reads;
mod robustness;
