//! The SDK for Container Storage Interface plugins and clients.
//!
//! A **plugin** ("CSI driver") is a gRPC server on a unix socket that a container orchestrator asks for volumes: to create
//! them, attach them to machines, mount them for workloads, cut snapshots, grow them. This crate is version 1.12 of the
//! interface, GA and alpha, for those who write plugins and for those who call them.
//!
//! # Writing a plugin
//!
//! 1. Implement [`Identity`], and the traits of [`driver`] for what the plugin does. There is one trait per capability:
//!    handing it to the [`Plugin`] is what advertises the capability, so a promise without its methods does not compile.
//! 2. Put the plugin together and [serve](Plugin::serve) it. Contradictions that types cannot exclude are a
//!    [`StartError`] before the socket is touched.
//!
//! Controller and node side are usually two processes of one program. Which parts a process registers is its own affair;
//! the `Identity` is the same in both.
//!
//! | service | traits, and what they need |
//! |---|---|
//! | Controller | [`Controller`]; with it [`CreateDeleteVolume`], [`PublishVolume`], [`ListVolumes`], [`GetCapacity`], [`CreateDeleteSnapshot`], [`ListSnapshots`], [`GetSnapshot`], [`ExpandVolume`], [`GetVolume`], [`ModifyVolume`] |
//! | Node | [`Node`]; with it [`StageVolume`], [`VolumeStats`], [`NodeExpandVolume`] |
//! | GroupController | [`GroupController`] |
//! | SnapshotMetadata | [`SnapshotMetadata`] |
//!
//! ## What the SDK does, so that drivers need not
//!
//! - **Requests arrive checked**: required fields, sizes (128 bytes a string, 4 KiB a map, 256 bytes a node id; secrets, and
//!   what the kubelet adds to a volume's context, service account tokens for one, may be of any size), control characters,
//!   absolute paths without `..` (`volume_path`, where nothing is made, may be relative), capacity ranges,
//!   access types and modes, topology keys, and only what the plugin advertises. What is wrong is answered by the code of
//!   the specification and a message that names the field.
//! - **One operation at a time** runs on a volume, a snapshot or a name to be; the second is answered `ABORTED`. The
//!   controller and the node side of a volume do not exclude each other, and calls that only read are not held up.
//! - **An operation runs to its end** even if its caller goes away or its deadline passes, and keeps its lock until then.
//!   [`Plugin::serve`] waits for such operations before it returns. What it cannot survive is the end of the process:
//!   drivers order their effects so that the repeated call finds what is there.
//! - **Answers are checked**, too (ids, capacities, echoed sources, topologies, pages, order of metadata ranges). Instead of
//!   a wrong one the caller gets what is wrong: as `INTERNAL` if the call only read, as `UNAVAILABLE` if it changes
//!   something, for what the driver made is there and must not be forgotten. A panic is
//!   `UNAVAILABLE` as well, and frees the object.
//! - **Pages** ([`Page::take`]) have tokens that survive what is created and deleted between two calls.
//! - **Calls are logged** as the Go drivers do, and [measured](Observer::with_metrics) if wanted. Fields that the
//!   specification marks `csi_secret` are never shown; `Debug` of the messages leaves them out as well.
//!
//! What it leaves to drivers: whether capabilities go together (block and mount in one request), what parameters mean, and
//! whether a path or id exists. Ids come from outside: never join one to a path unchecked.
//!
//! ## Errors
//!
//! | say | when |
//! |---|---|
//! | [`Error::not_found`] | volume, snapshot, node or content source does not exist (not when deleting: that is a success) |
//! | [`Error::already_exists`] | the name, or the publication, exists with other arguments |
//! | [`Error::failed_precondition`] | it is in use, attached elsewhere (name the node), has dependents, is not staged |
//! | [`Error::invalid_argument`] | parameters, source or capabilities that the plugin cannot do |
//! | [`Error::out_of_range`] | capacity or offset outside of what is possible |
//! | [`Error::resource_exhausted`] | no room, no fitting topology, or the node's limit is reached |
//! | [`Error::aborted`] | something else is in progress; page token not valid |
//! | [`Error::unauthenticated`], [`Error::permission_denied`] | the secrets are missing or wrong, or do not suffice |
//! | [`Error::unavailable`] | the storage cannot be reached now |
//! | [`Error::internal`] | the rest |
//!
//! `UNAVAILABLE`, `RESOURCE_EXHAUSTED`, `ABORTED` (and a missed deadline) tell the caller that the operation **may be
//! going on**; after any other code it may take for granted that nothing happened ([`CallError::class`]).
//!
//! ## A whole plugin
//!
//! Volumes are directories, bind mounted where workloads want them (`examples/csi-minimal`):
//!
//! ```ignore
#![doc = include_str!("../../../../examples/csi-minimal/src/main.rs")]
//! ```
//!
//! # Calling a plugin
//!
//! ```no_run
//! # async fn call() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use outrigger_csi::{Client, ControllerCapability, proto};
//!
//! let deadline = Duration::from_secs(10);
//! let client = Client::connect(&"unix:///run/csi.sock".parse()?, Duration::from_secs(30)).await?;
//! client.wait_ready().await?;
//! if client.capabilities(deadline).await?.has(ControllerCapability::ListVolumes) {
//!     let volumes = client.list_volumes(proto::ListVolumesRequest::default(), deadline).await?;
//!     println!("{} volumes", volumes.entries.len());
//! }
//! // By name and in JSON, as the command line does it.
//! println!("{}", outrigger_csi::call_json(&client, "node-get-info", "", deadline).await?);
//! # Ok(()) }
//! ```
//!
//! # Versions
//!
//! Unknown fields, enum values and capabilities are passed over, in both directions, so plugins and clients of other
//! 1.x versions work: the health calls of 1.13 are answered `UNIMPLEMENTED`. `proto/csi.proto` is this project's
//! writing of the interface; the generated module [`proto`] and its descriptors are committed.

mod capability;
mod check;
mod client;
pub mod driver;
mod error;
mod json;
mod lock;
mod page;
mod plugin;
pub mod proto;
mod server;
mod services;

pub use capability::{
    Capabilities, Capability, ControllerCapability, GroupControllerCapability, NodeCapability, PluginService,
    VolumeExpansion,
};
pub use client::{CallError, Class, Client, MetadataMessages};
pub use driver::{
    Controller, CreateDeleteSnapshot, CreateDeleteVolume, ExpandVolume, GetCapacity, GetSnapshot, GetVolume,
    GroupController, Identity, ListSnapshots, ListVolumes, MetadataStream, ModifyVolume, Node, NodeExpandVolume,
    PublishVolume, SnapshotMetadata, StageVolume, VolumeStats,
};
pub use error::Error;
pub use json::{JsonError, RpcName, call_json, request_template, rpc_names};
pub use outrigger_rpc::{ConnectError, Endpoint, Observer};
pub use page::{Listing, Page};
pub use plugin::{Plugin, StartError};
pub use server::ServeError;
