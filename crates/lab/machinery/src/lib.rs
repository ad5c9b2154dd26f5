//! API machinery without I/O: the algorithms behind the lab's request path.
//!
//! Everything here takes values and returns values. Objects are [`serde_json::Value`]s, what is known about their
//! shape comes from `outrigger_lab_schema`, and time and randomness are arguments, so that each rule of the
//! Kubernetes API can be tested by itself:
//!
//! | module | what |
//! |---|---|
//! | [`names`] | object names, label keys and values, `generateName` |
//! | [`quantity`] | resource quantities such as `1.5Gi` |
//! | [`duration`], [`time`] | human ages, RFC 3339 stamps |
//! | [`selector`] | label and field selectors |
//! | [`json`], [`merge`], [`strategic`] | the three patch formats |
//! | [`table`] | server-side printing (`meta.k8s.io/v1 Table`) |
//! | [`managed`] | field ownership and server-side apply |

pub mod duration;
pub mod json;
pub mod managed;
pub mod merge;
pub mod names;
mod patch;
pub mod quantity;
pub mod selector;
pub mod strategic;
pub mod table;
pub mod time;

pub use patch::PatchError;
