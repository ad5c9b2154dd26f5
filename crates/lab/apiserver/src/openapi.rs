//! The OpenAPI documents, made when first asked for and again when the custom kinds change.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use outrigger_lab_schema::{builtin, openapi};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::api::Api;
use crate::kinds::{KindInfo, Registry};

/// A document with its ETag.
#[derive(Debug, Clone)]
pub(crate) struct Tagged {
    pub(crate) bytes: Bytes,
    pub(crate) etag: String,
}

/// Documents of one set of kinds.
#[derive(Debug, Default)]
struct Cached {
    serial: u64,
    v2_json: Option<Tagged>,
    v2_protobuf: Option<Tagged>,
    v3: Option<Arc<BTreeMap<String, openapi::Document>>>,
}

/// The documents that have been made.
#[derive(Debug, Default)]
pub(crate) struct Documents(Mutex<Cached>);

/// A document tagged with the hash of its bytes.
pub(crate) fn tagged(bytes: Bytes) -> Tagged {
    let etag = Sha256::digest(&bytes).iter().take(16).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02X}");
        text
    });
    Tagged { bytes, etag }
}

fn served(kind: &KindInfo) -> openapi::ServedResource {
    let boxed = |names: Vec<&'static str>| names.into_iter().map(Into::into).collect();
    openapi::ServedResource {
        group: kind.group.clone(),
        version: kind.version.clone(),
        kind: kind.kind.clone(),
        list_kind: kind.list_kind.clone(),
        plural: kind.plural.clone(),
        namespaced: kind.namespaced,
        verbs: boxed(kind.verbs.names()),
        subresources: kind
            .subresources
            .iter()
            .map(|sub| openapi::Subresource {
                name: sub.name.clone(),
                kind: sub.foreign.map(|(group, version, kind)| (group.into(), version.into(), kind.into())),
                verbs: boxed(sub.verbs.names()),
            })
            .collect(),
        source: if let Some(custom) = &kind.custom {
            openapi::Source::Custom(Arc::clone(&custom.schema))
        } else {
            let definition =
                builtin().kind(&kind.group, &kind.version, &kind.kind).map(|known| known.definition.clone());
            openapi::Source::Builtin(definition.as_deref().unwrap_or_default().into())
        },
    }
}

fn all(registry: &Registry) -> Vec<openapi::ServedResource> {
    registry.kinds().map(|kind| served(kind)).collect()
}

impl Api {
    fn documents<T>(&self, registry: &Registry, get: impl FnOnce(&mut Cached) -> T) -> T {
        let mut cached = self.0.documents.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.serial != registry.serial {
            *cached = Cached { serial: registry.serial, ..Cached::default() };
        }
        get(&mut cached)
    }

    /// `/openapi/v2` as JSON or in gnostic's protobuf form.
    pub(crate) fn openapi_v2(&self, protobuf: bool) -> Tagged {
        let registry = self.registry();
        let version = &self.0.config.version;
        self.documents(&registry, |cached| {
            let slot = if protobuf { &mut cached.v2_protobuf } else { &mut cached.v2_json };
            slot.get_or_insert_with(|| {
                let document = openapi::v2(&all(&registry), version);
                tagged(if protobuf {
                    openapi::v2_protobuf(&document)
                } else {
                    crate::object::to_bytes(&document).into()
                })
            })
            .clone()
        })
    }

    /// The `/openapi/v3` documents by path, such as `apis/apps/v1`.
    fn openapi_v3_documents(&self) -> Arc<BTreeMap<String, openapi::Document>> {
        let registry = self.registry();
        let version = &self.0.config.version;
        self.documents(&registry, |cached| {
            let documents = cached.v3.get_or_insert_with(|| {
                let resources = all(&registry);
                let groups = registry.groups().iter();
                let documents =
                    groups.flat_map(|group| group.versions.iter().map(move |version| (&group.name, version)));
                Arc::new(
                    documents
                        .map(|(group, group_version)| openapi::v3(group, group_version, &resources, version))
                        .map(|document| (document.path.clone(), document))
                        .collect(),
                )
            });
            Arc::clone(documents)
        })
    }

    /// The `/openapi/v3` index.
    pub(crate) fn openapi_v3_index(&self) -> Value {
        openapi::v3_index(self.openapi_v3_documents().values())
    }

    /// One `/openapi/v3/<path>` document.
    pub(crate) fn openapi_v3(&self, path: &str) -> Option<Tagged> {
        let documents = self.openapi_v3_documents();
        let document = documents.get(path)?;
        Some(Tagged { bytes: document.body.clone(), etag: document.hash.clone() })
    }
}
