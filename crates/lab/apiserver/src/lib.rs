//! The lab's Kubernetes API server.
//!
//! Objects are data here: every kind, built-in or custom, is described by a row ([`kinds`]) and a schema, and all of
//! them go through one request path:
//!
//! authentication -> authorisation -> route -> decode -> default -> admit -> validate -> compare-and-swap -> negotiate
//!
//! [`Server`] serves it over TLS (HTTP/1.1 and HTTP/2); [`Client`] is the same path without the network, for the
//! controllers of the lab.

mod admit;
mod api;
mod auth;
mod body;
mod cache;
mod client;
mod convert;
mod crd;
mod delete;
mod discovery;
mod expire;
pub mod kinds;
mod list;
mod metrics;
mod negotiate;
mod object;
mod openapi;
mod ownership;
mod part;
mod patch;
mod present;
mod request;
mod routes;
mod scale;
mod server;
mod shape;
mod status;
mod tls;
mod validate;
mod watch;
mod write;

pub use api::{Api, Config};
pub use auth::{Attributes, Authorizer, User};
pub use body::Body;
pub use client::{Client, List, WatchEvent, WatchStream};
pub use delete::DeleteOptions;
pub use kinds::Resource;
pub use patch::Patch;
pub use request::{FieldValidation, ListOptions, VersionMatch, WriteOptions};
pub use server::{Server, ServerOptions, StartError};
pub use status::{ApiError, Cause};
pub use tls::PkiError;
pub use watch::EventType;
