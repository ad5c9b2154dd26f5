//! The OpenAPI documents that clients fetch: `/openapi/v2` as JSON and as gnostic's protobuf, `/openapi/v3` by group and
//! version. They are made for what is served: the definitions in them are those that the resources need.

mod definitions;
mod gnostic;
mod paths;

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::types::Schema;

/// Where the schema of a served resource comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A built-in definition, by name.
    Builtin(Box<str>),
    /// The compiled schema of a custom resource.
    Custom(Arc<Schema>),
}

/// A subresource such as `status`, `scale` or `log`.
#[derive(Debug, Clone)]
pub struct Subresource {
    /// The last path segment.
    pub name: Box<str>,
    /// Group, version and kind of its body, when it differs from the resource's (`autoscaling/v1 Scale`).
    pub kind: Option<(Box<str>, Box<str>, Box<str>)>,
    /// The verbs served, of `get`, `create`, `update`, `patch`, `delete`.
    pub verbs: Vec<Box<str>>,
}

/// One resource in one version, as the API server serves it.
#[derive(Debug, Clone)]
pub struct ServedResource {
    /// The API group; empty for core.
    pub group: Box<str>,
    /// The version.
    pub version: Box<str>,
    /// The kind.
    pub kind: Box<str>,
    /// The kind of a list of these.
    pub list_kind: Box<str>,
    /// The plural name: the path segment.
    pub plural: Box<str>,
    /// Objects live in namespaces.
    pub namespaced: bool,
    /// The verbs served, of `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verbs: Vec<Box<str>>,
    /// The subresources.
    pub subresources: Vec<Subresource>,
    /// The schema.
    pub source: Source,
}

/// One document of `/openapi/v3`.
#[derive(Debug, Clone)]
pub struct Document {
    /// The path below `/openapi/v3/`, such as `api/v1` or `apis/apps/v1`.
    pub path: String,
    /// The document as JSON.
    pub body: Bytes,
    /// A hash of the body for the index's URL and the ETag.
    pub hash: String,
}

/// The media types by which clients ask for [`v2_protobuf`] in `Accept`: the old spelling and the new one.
pub const V2_PROTOBUF_ACCEPT: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
];

/// The Content-Type to answer [`v2_protobuf`] with. It differs from what older clients ask for: Go's parser of media types
/// refuses the `@` in an answer.
pub const V2_PROTOBUF_CONTENT_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The `/openapi/v2` document. `server_version` goes into `info.version`, such as `v1.37.0`.
pub fn v2(resources: &[ServedResource], server_version: &str) -> Value {
    let resources: Vec<&ServedResource> = resources.iter().collect();
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": server_version},
        "paths": paths::all(&resources, Dialect::V2),
        "definitions": definitions::all(&resources, Dialect::V2),
        "securityDefinitions": {"BearerToken": {
            "type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication"}},
        "security": [{"BearerToken": []}],
    })
}

/// The same document in gnostic's protobuf form, which kubectl up to 1.28 insists on.
pub fn v2_protobuf(document: &Value) -> Bytes {
    gnostic::document(document).into()
}

/// The `/openapi/v3` document of one group and version. Resources of others are passed over.
pub fn v3(group: &str, version: &str, resources: &[ServedResource], server_version: &str) -> Document {
    let resources: Vec<&ServedResource> =
        resources.iter().filter(|resource| &*resource.group == group && &*resource.version == version).collect();
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": server_version},
        "paths": paths::all(&resources, Dialect::V3),
        "components": {
            "schemas": definitions::all(&resources, Dialect::V3),
            "securitySchemes": {"BearerToken": {
                "type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication"}},
        },
    });
    let body = document.to_string();
    let mut hash = String::new();
    for byte in Sha256::digest(&body) {
        write!(hash, "{byte:02X}").expect("a string takes all that is written");
    }
    Document { path: paths::root(group, version).trim_start_matches('/').to_owned(), body: body.into(), hash }
}

/// The `/openapi/v3` index: each path with its `serverRelativeURL`.
pub fn v3_index<'a>(documents: impl IntoIterator<Item = &'a Document>) -> Value {
    let paths: Map<String, Value> = documents
        .into_iter()
        .map(|document| {
            let url = format!("/openapi/v3/{}?hash={}", document.path, document.hash);
            (document.path.clone(), json!({ "serverRelativeURL": url }))
        })
        .collect();
    json!({ "paths": paths })
}

/// The two forms of OpenAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    /// A reference to a definition.
    fn reference(self, name: &str) -> Value {
        let place = match self {
            Self::V2 => "#/definitions/",
            Self::V3 => "#/components/schemas/",
        };
        json!({ "$ref": format!("{place}{name}") })
    }
}

#[cfg(test)]
mod tests;
