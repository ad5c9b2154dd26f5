//! Schemas of the Kubernetes API as data.
//!
//! Everything the lab knows of a kind's shape is here: the built-in definitions ([`builtin`]), the schemas of custom
//! resources ([`structural`]), what they demand of a value ([`prune`], [`check_types`], [`apply_defaults`],
//! [`validate`]), protobuf bodies as JSON ([`protobuf`]) and the OpenAPI documents made of it all ([`openapi`]).
//!
//! All of it is pure: values in, values out. Rules in the Common Expression Language are carried as data
//! ([`Schema::validations`]) and evaluated elsewhere.

mod builtin;
mod defaults;
mod error;
mod formats;
pub mod openapi;
pub mod protobuf;
pub mod structural;
mod types;
mod validate;
mod walk;

pub use builtin::{Builtin, GroupVersionKind, Kind, Scope, builtin};
pub use error::{Error, FieldError, Reason, TypeError};
pub use types::{CelRule, Definitions, ListKind, MapKind, PatchStrategy, Pattern, Rules, Schema, Type};
pub use validate::validate;
pub use walk::{apply_defaults, check_types, prune};
