//! gRPC over unix sockets: listening, connecting, observing calls.
//!
//! - [`Endpoint`] is the address of a socket, in every spelling that Kubernetes components use.
//! - [`Listener`] binds it safely (mode 0600, renamed into place, never over a live peer) and yields
//!   [`Connection`]s that correct the `:authority` of clients which put the socket's path there.
//! - [`connect`] and [`connect_lazy`] give a [`tonic::transport::Channel`].
//! - [`Observer`] logs unary calls with secrets left out, and measures them into [`OperationsSeconds`].

mod authority;
mod connect;
mod connection;
mod endpoint;
mod listener;
mod metrics;
mod observer;
mod render;

pub use connect::{ConnectError, connect, connect_lazy};
pub use connection::{Connection, PeerInfo};
pub use endpoint::{Endpoint, EndpointError};
pub use listener::{BindError, Listener};
pub use metrics::{OperationsSeconds, code_name};
pub use observer::Observer;
pub use render::{STRIPPED, render};
