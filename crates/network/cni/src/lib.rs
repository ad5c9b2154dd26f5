//! The Container Network Interface: types of every version, an SDK for plugins, and a runtime library.
//!
//! A plugin is a type that implements [`Plugin`]: an associated configuration (see [`conf!`]) and one method for each
//! command. [`main`] runs it as a program: reads the environment and the configuration, converts results to the version
//! that was asked for, and answers errors in the form of the specification. Nothing here starts a thread or needs an
//! async runtime: a plugin is started for every pod, and its start is most of its cost.
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use outrigger_cni_sdk::{AddResult, Call, Error, Plugin, conf};
//!
//! conf! {
//!     /// Passes on what the plugin before made, if it made few enough addresses.
//!     pub struct LimitConf {
//!         /// How many addresses a container may have.
//!         pub max_addresses: usize = 2,
//!     }
//! }
//!
//! struct Limit;
//!
//! impl Plugin for Limit {
//!     type Conf = LimitConf;
//!     const ABOUT: &'static str = "CNI plugin limit: not too many addresses";
//!
//!     fn add(&self, call: &Call<'_, LimitConf>) -> Result<AddResult, Error> {
//!         let prev = call.prev()?;
//!         if prev.ips.len() > call.conf.max_addresses {
//!             return Err(Error::config(format!("maxAddresses is {}", call.conf.max_addresses)));
//!         }
//!         Ok(prev.clone())
//!     }
//!
//!     fn del(&self, _: &Call<'_, LimitConf>) -> Result<(), Error> {
//!         Ok(())
//!     }
//!
//!     fn check(&self, call: &Call<'_, LimitConf>) -> Result<(), Error> {
//!         self.add(call).map(drop)
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     outrigger_cni_sdk::main(&Limit)
//! }
//! ```
//!
//! Sections named in the documentation are those of the CNI specification 1.1.0.

mod args;
pub mod conf;
mod delegate;
pub mod docs;
mod error;
mod names;
mod net;
mod plugin;
pub mod runtime;
pub mod types;
mod version;

pub use args::{CniArgs, Command, Environment};
pub use conf::{Conf, DecodeError, Field, Key};
pub use delegate::{Delegate, Delegates, Ipam, Lease, execute, find_in_path};
pub use docs::Documentation;
pub use error::{Code, Error, Errors, Step};
pub use net::{Attachment, NetConf, parse_config};
pub use plugin::{Call, DynPlugin, Plugin, main, main_with, run};
pub use types::{AddResult, Dns, Interface, IpConfig, Route};
pub use version::Version;

/// A JSON object, as configurations and results are.
pub type Map = serde_json::Map<String, serde_json::Value>;
