//! The SDK for Container Storage Interface plugins and clients.

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
